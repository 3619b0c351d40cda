"""Flags: what is read, and what is refused with the flag and the cure."""

import dataclasses
import json
import pickle
import re

import pytest
import transformers
import yaml
from conftest import IMAGE_ROWS, VIDEO_ROWS, turns
from transformers import HfArgumentParser

import train
from arguments import FLAG_PARTS, DataArguments, has_bf16, parse_arguments
from entry import end
from reading.dataset import MultimodalDataset
from reading.split import make_datasets
from train import check_media_kinds, model_kwargs
from training.checks import ATTENTION, EXCLUDES, KEPT_FLAGS, NEEDS, RANGE_OF
from training.make_collator import make_collator

REQUIRED = ["--model_id", "qwen2-vl-2b-instruct", "--data_path", "rows.json"]
TRAINING_FLAGS = {field.name for field in dataclasses.fields(transformers.TrainingArguments)}
PREDECESSOR_FLAGS = """
model_id model_local_path data_path eval_data_path image_folder video_folder num_frames user_key assistant_key
model_max_length use_flash_attn attn_implementation train_vision_encoder train_vision_projector mask_question_tokens
use_lora use_vision_lora q_lora lora_r lora_alpha lora_dropout lora_bias lora_experts lora_router
""".split()


def parse(words: str):
    return parse_arguments(REQUIRED + words.split())


def test_every_flag_of_the_issue_and_of_transformers_exists_and_has_help():
    parser = HfArgumentParser(FLAG_PARTS)
    actions = {action.dest: action for action in parser._actions}
    assert set(actions) >= {*PREDECESSOR_FLAGS, *TRAINING_FLAGS}
    assert [name for name, action in actions.items() if not action.help] == []
    help_text = parser.format_help()  # a bare % in a help would raise here
    assert all(f"--{name}" in help_text for name in PREDECESSOR_FLAGS)


def test_both_forms_of_a_flag_are_read():
    arguments = parse("--use_lora=True --lora_r=4 --lora-alpha 32 --no_dataloader_pin_memory --learning_rate 1e-4")
    assert (arguments.lora.use_lora, arguments.lora.lora_r, arguments.lora.lora_alpha) == (True, 4, 32)
    assert arguments.training.learning_rate == 1e-4
    assert arguments.given >= {"model_id", "use_lora", "lora_r", "lora_alpha", "dataloader_pin_memory", "learning_rate"}
    assert arguments.as_dict()["dataloader_pin_memory"] is False


def test_a_model_is_loaded_from_the_hub_path_or_the_local_path():
    assert parse("").model.model_path == "Qwen/Qwen2-VL-2B-Instruct"
    by_path = parse_arguments(["--model_id", "Qwen/Qwen2-VL-2B-Instruct", "--data_path", "rows.json"])
    assert (by_path.model.family, by_path.model.model_path) == ("qwen2-vl", "Qwen/Qwen2-VL-2B-Instruct")
    assert parse("--model_local_path here").model.model_path == "here"


# (words, what the message must hold: the flag, and the cure)
REFUSED = [
    ("--warmup_ratio 0.03", "--warmup_ratio .* --warmup_steps"),
    ("--evaluation_strategy steps", "--evaluation_strategy .* --eval_strategy"),
    ("--evaluation-strategy steps", "--evaluation-strategy .* --eval_strategy"),
    ("--group_by_length", "--group_by_length .* --train_sampling_strategy group_by_length"),
    ("--group_by_length=True", "--group_by_length .* --train_sampling_strategy group_by_length"),
    ("--no_cuda True", "--no_cuda .* --use_cpu"),
    ("--logging_dir logs", "--logging_dir .* TENSORBOARD_LOGGING_DIR"),
    ("--save_safetensors True", "--save_safetensors is not a flag: leave it out .checkpoints are always safetensors"),
    ("--lora_rank 8", r"--lora_rank is not a flag: use --lora_r\. .*docs/coming_from.md"),
    ("--use_lor True", "--use_lor is not a flag: did you mean --use_lora"),
    ("--num_frame 8", "--num_frame is not a flag: did you mean --num_frames"),
    ("--xyzzy 8", r"--xyzzy is not a flag\. .*--help"),
    ("--check", r"--check is not a flag: leave it out .*preview.py --check"),
    ("--lr 1e-4", r"--lr is not a flag: use --learning_rate\."),
    ("--epochs 3", r"--epochs is not a flag: use --num_train_epochs\."),
    ("--batch_size 4", r"--batch_size is not a flag: use --per_device_train_batch_size \("),
    ("--micro_batch_size 4", r"--micro_batch_size is not a flag: use --per_device_train_batch_size\."),
    ("--auto_find_batchsize 4", r"--auto_find_batchsize is not a flag\. "),  # the nearest one is refused
    ("--freeze_language_model True", "--freeze_language_model is not a flag: use --train_language_model False"),
    ("--freeze_llm false", "--freeze_llm is not a flag: leave it out"),
    ("--freeze_vision_tower False", "--freeze_vision_tower is not a flag: use --train_vision_encoder"),
    ("--freeze-vision-tower=true", "--freeze-vision-tower is not a flag: leave it out"),
    ("--quantization_bit 8", "--quantization_bit is not a flag: use --load_in_8bit"),
    ("--load_in_4bit false", r"--load_in_4bit is not a flag: leave it out\."),
    ("--use_lora True --lora_target_modules all-linear", "--lora_target_modules all-linear is the default: leave it"),
    ("--use_lora True stray", "'stray' does not belong to any flag"),
    ("--use_lora True --lora_r 4 run.yaml", "'run.yaml' does not belong .* put the YAML file first"),
    ("--fps 2 --num_frames 16", "--num_frames 16 and --fps 2.0 are mutually exclusive"),
    ("--max_frames 4", "--max_frames has no effect without --fps"),
    ("--max_bad_samples 4", "--max_bad_samples has no effect .* --on_bad_sample skip"),
    ("--image_resize_algorithm box", "--image_resize_algorithm has no effect .* --image_size"),
    ("--image_resize_algorithm wavy --image_size 8", "--image_resize_algorithm .*'wavy'.*lanczos"),
    ("--image_size 8 --max_pixels 8", "--max_pixels 8 and --image_size 8 are mutually exclusive"),
    ("--jpeg_draft True --min_pixels 8", "--jpeg_draft has no effect without --image_size or --max_pixels"),
    ("--min_pixels 0", "--min_pixels is 0"),
    ("--fps nan", "--fps is nan"),
    ("--fps -1", "--fps is -1.0"),
    ("--video_pixel_limit 0", "--video_pixel_limit is 0"),
    ("--image_pixel_limit 0", "--image_pixel_limit is 0"),
    ("--media_megabytes_limit 4", "--media_megabytes_limit has no effect .* --allow_urls True"),
    ("--video_backend decord", "--video_backend is not a flag: leave it out .videos are decoded by PyAV"),
    ("--on_bad_sample wait", "--on_bad_sample.*'wait'.*error.*skip"),
    ("--max_samples 0", "--max_samples is 0; it must be 1 or more"),
    ("--processor_kwargs {", "--processor_kwargs { is not valid JSON"),
    ("--lora_r x", "--lora_r.* 'x'"),
    ("--use_lora maybe", "--use_lora.*yes/no"),
    ("--lora_r", "--lora_r.*expected one argument"),
    ("--lr_scheduler_type wavy", "--lr_scheduler_type.*'wavy'.*cosine"),
    (
        "--use_vision_lora True --train_vision_encoder False",
        "--use_vision_lora .* --train_vision_encoder True",
    ),
    ("--vision_encoder_lr 1e-5", "--vision_encoder_lr has no effect without --train_vision_encoder True"),
    ("--image_size 99999", "--image_size 99999 makes images of 9,999,800,001 pixels, .*--image_pixel_limit"),
    ("--image_size 64x9000000", "--image_size 64x9000000 makes images of 576,000,000 pixels"),
    ("--min_pixels 999999999", "--min_pixels 999999999 makes images of"),
    ("--max_samples 3 --fps null --max_frames 4", "--max_frames has no effect without --fps"),
    ("--q_lora True", "--q_lora .* --use_lora True"),
    ("--lora_r 16", "--lora_r has no effect .* --use_lora True"),
    ("--lora_r 8", "--lora_r has no effect .* --use_lora True"),  # the default, which asks for LoRA all the same
    ("--hub_model_id a/b", "--hub_model_id has no effect without --push_to_hub True"),
    ("--learning_rate 0", "--learning_rate 0 trains nothing"),
    ("--save_total_limit 0", "--save_total_limit is 0"),
    ("--torch_compile False --torch_compile_mode default", "--torch_compile_mode has no effect without --torch_comp"),
    ("--eval_split 3 --eval_strategy steps --eval_steps 0", "--eval_steps is 0.* --eval_strategy no"),
    ("--save_steps 0", "--save_steps is 0.* --save_strategy no"),
    ("--lr_scheduler_type constant --warmup_steps 3", "--warmup_steps has no effect with .* constant"),
    ("--lora_bias all", "--lora_bias has no effect .* --use_lora True"),
    ("--lora_experts True --lora_dropout 0", "--lora_experts has no effect .* --use_lora True"),
    ("--use_lora True --lora_router True", "--lora_router True .* --lora_dropout 0"),
    ("--use_lora True --lora_bias some", "--lora_bias.*'some'.*lora_only"),
    ("--use_lora True --lora_r 0", "--lora_r is 0"),
    ("--use_lora True --lora_alpha 0", "--lora_alpha is 0"),
    ("--use_lora True --lora_dropout 1", "--lora_dropout is 1.0"),
    ("--num_frames 0", "--num_frames is 0"),
    ("--model_max_length 0", "--model_max_length is 0"),
    ("--user_key a --assistant_key a", "--user_key and --assistant_key"),
    ("--image_folder nowhere", "--image_folder 'nowhere' is not a folder"),
    ("--video_folder nowhere", "--video_folder 'nowhere' is not a folder"),
    ("--eval_strategy epoch", "--eval_strategy has no effect without --eval_data_path"),
    ("--eval_split 0.1 --eval_data_path a b:c", "--eval_data_path a b:c and --eval_split 0.1 are mutually exclusive"),
    ("--eval_split 2.5", "--eval_split is 2.5; it must be a fraction"),
    ("--sample_rows 0", "--sample_rows is 0; it must be 1 or more"),
    ("--eval_split 0", "--eval_split is 0.0; it must be a fraction"),
    ("--eval_steps 5", "--eval_steps has no effect: add --eval_strategy steps"),
    ("--save_steps 5 --save_strategy epoch", "--save_steps has no effect: add --save_strategy steps"),
    ("--logging_steps 5 --logging_strategy no", "--logging_steps has no effect"),
    ("--remove_unused_columns True", "--remove_unused_columns"),
    ("--resume_from_checkpoint nowhere", "--resume_from_checkpoint nowhere is not a folder"),
    ("--load_best_model_at_end True", "--load_best_model_at_end has no effect without --eval_strategy"),
    ("--load_best_model_at_end True --save_strategy no", "--load_best_model_at_end has no effect"),
    ("--eval_delay 2", "--eval_delay has no effect without --eval_strategy"),
    ("--per_device_eval_batch_size 4", "--per_device_eval_batch_size has no effect without --eval_data_path"),
    ("--bf16 True --fp16 True --use_cpu True", "fp16 and bf16"),
    ("--save_strategy no --save_total_limit 2", "--save_total_limit has no effect without --save_strategy steps"),
    ("--save_strategy no --save_only_model True", "--save_only_model has no effect without --save_strategy steps"),
    ("--logging_strategy no --logging_nan_inf_filter True", "--logging_nan_inf_filter has no effect"),
    ("--run_name first", "--run_name has no effect without --report_to"),
    ("--eval_max_new_tokens 128", "--eval_max_new_tokens has no effect without --eval_generate"),  # the default
    ("--dataloader_num_workers 0 --dataloader_prefetch_factor 2", "--dataloader_prefetch_factor has no effect"),
    ("--ignore_data_skip True", "--ignore_data_skip True would repeat samples"),
    ("--fp16 True --on_nonfinite skip", "--on_nonfinite skip and --fp16 True are mutually exclusive"),
    ("--ddp_bucket_cap_mb 9 --fsdp True", "--ddp_bucket_cap_mb 9 and --fsdp True are mutually exclusive"),
    ("--optim_args momentum=0.9", "--optim_args momentum=0.9 has no effect with --optim adamw_torch_fused"),
    ("--optim sgd --optim_args momentum=0.9,foo=2", "--optim_args foo=2 has no effect with --optim sgd"),
    ("--optim sgd --adam_beta1 0.8", "--adam_beta1 0.8 has no effect with --optim sgd"),
    ('--lr_scheduler_type constant --lr_scheduler_kwargs {"num_cycles":2}', "--lr_scheduler_kwargs has no effect with"),
    ("--fp16 True --use_cpu True", "--fp16 True needs a GPU: leave it out"),
    ("--deepspeed nowhere.json", "nowhere.json"),
    ("--per_device_train_batch_size 0", "--per_device_train_batch_size is 0; it must be 1 or more"),
    ("--gradient_accumulation_steps 0", "--gradient_accumulation_steps is 0"),
    ("--learning_rate nan", "--learning_rate is nan"),
    ("--label_smoothing_factor 2", "--label_smoothing_factor is 2.0; it must be at least 0 and below 1"),
    ("--dataloader_num_workers -1", "--dataloader_num_workers is -1"),
    ("--dataloader_persistent_workers True", "--dataloader_persistent_workers .* --dataloader_num_workers"),
    ("--num_train_epochs 0", "--num_train_epochs is 0.0; it must be above 0"),
    ("--save_strategy best", "--save_strategy best .* --metric_for_best_model"),
    ("--report_to clearml", "--report_to clearml needs a package .*; choose from none"),
    ("--report_to nobody", "--report_to nobody is unknown; choose from none, all, .*wandb"),
    ("--output_dir setup.py/out", "--output_dir setup.py/out cannot be written: .*setup.py is not a folder"),
    ("--max_steps 0", "--max_steps is 0; .* --num_train_epochs"),
    ("--max_grad_norm -1", "--max_grad_norm is -1"),
    ("--weight_decay -1", "--weight_decay is -1"),
    ("--eval_on_start True", "--eval_on_start has no effect without --eval_data_path"),
    ("--dataloader_multiprocessing_context spawn", "--dataloader_multiprocessing_context .* --dataloader_num"),
    ("--average_tokens_across_devices False", "--average_tokens_across_devices False .* mean loss of each process"),
    ("--auto_find_batch_size True", "--auto_find_batch_size True would restart"),
    ("--dataloader_in_order False", "--dataloader_in_order False .* order"),
    ("--bf16_full_eval True --use_cpu True", "--bf16_full_eval True would round"),
    ("--fp16_full_eval True --use_cpu True", "--fp16_full_eval True would round"),
    *(
        (f'--accelerator_config {{"{name}":{value}}}', f"--accelerator_config {name} would change")
        for name, value in [("split_batches", "true"), ("dispatch_batches", "true"), ("even_batches", "false")]
    ),
    ("--gradient_checkpointing True --activation_checkpointing False", "--gradient_checkpointing is the old name"),
    ('--activation_checkpointing_kwargs {"offload":true}', "has no effect without --activation_checkpointing True"),
    *(
        (f"--activation_checkpointing True --activation_checkpointing_kwargs {{{wrong}}}", "only every_n_layers, off")
        for wrong in ('"use_reentrant":true', '"preserve_rng_state":false')
    ),
    ("--attn_implementation fast", "--attn_implementation fast is unknown; use sdpa, eager, flash_attention_2"),
    ("--attn_implementation kernels-community/mamba-ssm", "kernels-community/mamba-ssm is unknown"),
    ("--attn_implementation anybody/flash-attn2", "--attn_implementation anybody/flash-attn2 is unknown"),
    ("--attn_implementation kernels-community/flash-attn2", "flash-attn2 needs a GPU, and the package kernels"),
    ("--attn_implementation flash_attention_4", "needs a Hopper or newer GPU, and flash-attn-4 or kernels"),
    ("--use_flash_attn True --attn_implementation eager", "--use_flash_attn True contradicts .* eager"),
    ("--use_flash_attn True", "--use_flash_attn True needs a CUDA GPU, and the package flash-attn or kernels"),
    ("--attn_implementation flash_attention_3", "--attn_implementation flash_attention_3 needs a Hopper GPU"),
    ("--attn_implementation flex_attention", "--attn_implementation flex_attention needs a GPU"),
    ("--use_liger_kernel True", "--use_liger_kernel True needs a GPU and the package liger-kernel"),
    ("--optim galore_adamw --optim_args rank=4", "--optim galore_adamw is not supported: it groups the parameters"),
    ("--optim schedule_free_adamw", "--optim schedule_free_adamw is not supported: the saved weights would differ"),
    ("--optim paged_adamw_8bit --use_cpu True", "--optim paged_adamw_8bit needs a CUDA GPU: use adamw_8bit"),
    ("--optim grokadamw", "--optim grokadamw cannot be created .*pip install grokadamw"),
    ("--adam_beta1 2", "--optim adamw_torch_fused cannot be created .* 2.0"),
    ("--optim_target_modules all-linear", "--optim_target_modules all-linear has no effect"),
    ('--lr_scheduler_kwargs {"foo":1}', "--lr_scheduler_kwargs {'foo': 1} cannot be created .*'foo'"),
    ("--lr_scheduler_type cosine_with_min_lr", "--lr_scheduler_type cosine_with_min_lr .* min_lr"),
    ("--torch_compile True --torch_compile_backend foo", "--torch_compile True does not work .*foo"),
    ("--torch_compile True --torch_compile_mode foo", "--torch_compile True does not work .*foo"),
    *((f"--{flag}", "has no effect") for flag in ("do_train False", "do_predict True", "batch_eval_metrics True")),
]


@pytest.mark.parametrize("words, named", REFUSED, ids=[words for words, _ in REFUSED])
def test_a_wrong_flag_is_refused_with_its_name_and_the_cure(words, named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "setup.py").touch()
    with pytest.raises(ValueError) as caught:
        parse(words)
    assert re.search(named, str(caught.value))


def test_a_file_that_cannot_be_read_is_told_with_its_flag(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "right.json").write_text(json.dumps([{"conversations": turns("Hi", "Hello")}]))
    for name, held in (("empty", b""), ("broken", b"{"), ("bytes", b"\xff\xfe\x00")):
        (tmp_path / name).write_bytes(held)
        (tmp_path / f"{name}.json").write_bytes(held)

    def read(flag: str, path: str):
        if flag in ("data_path", "eval_data_path"):
            paths = {"data_path": [str(tmp_path / "right.json")]} | {flag: [path]}
            return make_datasets(DataArguments(**paths, data_cache=str(tmp_path / "cache")), 0)
        arguments = parse(f"--{flag} {path} --data_cache {tmp_path}/cache --fsdp True --use_cpu True")
        return train.probe_questions(arguments) if flag == "probe" else make_collator("llava-1.5", None, arguments.data)

    configurations = ("fsdp_config", "accelerator_config")
    for flag in ("data_path", "eval_data_path", "probe", "chat_template", "add_tokens", *configurations):
        for name in ("missing.json", "folder", "empty.json", "broken.json", "bytes.json"):
            if name != "broken.json" or flag not in ("chat_template", "add_tokens"):  # any text may be one
                with pytest.raises(ValueError, match=rf"--{flag}\b.*{tmp_path / name}"):
                    read(flag, str(tmp_path / name))
    with pytest.raises(ValueError, match="--lr_scheduler_kwargs {: Expecting"):
        parse("--lr_scheduler_kwargs {")


@pytest.mark.parametrize("flag, named", [("tf32", "--tf32 requires Ampere"), ("bf16", "--bf16 True needs a GPU")])
def test_a_precision_that_the_machine_lacks_is_refused(flag, named, monkeypatch):
    monkeypatch.setattr("transformers.training_args.is_torch_tf32_available", lambda: False)
    monkeypatch.setattr("training.checks.is_torch_bf16_gpu_available", lambda: False)
    with pytest.raises(ValueError, match=named):
        parse(f"--{flag} True")


def test_the_names_of_the_optimizers_that_work_here_are_taken():
    """All that the Trainer makes from PyTorch and bitsandbytes."""
    names = "adamw_torch sgd adagrad rmsprop adafactor adamw_8bit lion_32bit ademamix_8bit rmsprop_bnb"
    for name in names.split():
        assert parse(f"--optim {name}").training.optim == name


def test_mixed_precision_of_accelerate_launch_must_be_said_in_the_flags(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(ValueError, match="accelerate launch. .* --bf16 True"):
        parse("--use_cpu True")
    assert parse("--use_cpu True --bf16 True").training.mixed_precision == "bf16"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    with pytest.raises(ValueError, match="accelerate launch. sets fp8, which is not supported"):
        parse("--use_cpu True")


def test_flash_attention_has_a_long_and_a_short_name(monkeypatch):
    monkeypatch.setitem(ATTENTION, "flash_attention_2", (lambda _: True, ""))
    for words in ("--use_flash_attn True", "--attn_implementation flash_attention_2"):
        with pytest.raises(ValueError, match="16 bits only: add --bf16 True"):
            parse(words)
        arguments = parse(f"{words} --bf16 True --use_cpu True")
        assert model_kwargs(arguments)["attn_implementation"] == "flash_attention_2"
    assert model_kwargs(parse(""))["attn_implementation"] == "sdpa"


def test_the_defaults_show_something(monkeypatch):
    training = parse("--use_cpu True").training
    assert (training.logging_steps, training.logging_first_step, training.bf16) == (0.01, True, False)
    assert parse("--use_cpu --bf16").training.bf16
    assert not parse("--logging_strategy no").training.logging_first_step
    evaluated = "--eval_data_path rows.json --eval_strategy steps"
    assert parse(evaluated).training.eval_steps == 0.1
    assert parse(f"{evaluated} --eval_steps 7").training.eval_steps == 7
    assert parse(f"{evaluated} --save_steps 20 --early_stopping_patience 2").training.eval_steps == 20
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    for has_it in (True, False):
        monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation, has_it=has_it: has_it)
        assert (has_bf16(use_cpu=False), has_bf16(use_cpu=True)) == (has_it, False)


def test_flags_that_change_nothing_may_be_written_beside_the_one_that_switches_them_off():
    for words in ("--use_lora False --lora_r 8", "--q_lora False", "--eval_strategy no", "--eval_generate 0"):
        assert parse(words)
    assert parse("--learning_rate 0 --train_vision_projector True --vision_projector_lr 1e-3")
    assert parse("--optim sgd --optim_args momentum=0.9,nesterov=true --max_steps -1 --num_train_epochs 3")
    assert parse(
        "--save_total_limit 2 --eval_data_path a.json --eval_strategy steps --eval_max_new_tokens 128 "
        "--eval_generate 4 --save_only_model True --save_strategy epoch"
    )
    assert parse("--lr_scheduler_type constant_with_warmup --warmup_steps 0.1 --max_steps 3")


def test_vision_lora_implies_its_companion():
    arguments = parse("--use_lora True --use_vision_lora True --vision_encoder_lr 1e-5")
    assert arguments.model.train_vision_encoder and arguments.as_dict()["train_vision_encoder"]


def test_flags_of_media_that_no_row_holds_are_named(write_rows, capsys):
    picture, clip, text = IMAGE_ROWS[0], VIDEO_ROWS[0], {"conversations": turns("A?", "B")}
    words = "--num_frames 4 --max_pixels 999 --video_max_pixels 99 --seed 3"
    for rows, idle in (
        ([picture], {"num_frames", "video_max_pixels"}),
        ([clip], {"max_pixels"}),
        ([picture, clip], set()),
        ([text], {"num_frames", "video_max_pixels", "max_pixels"}),
    ):
        datasets = [MultimodalDataset(write_rows([row])) for row in rows]
        check_media_kinds(parse(words), *datasets)
        assert set(re.findall(r"WARNING: --(\w+) has no effect", capsys.readouterr().out)) == idle


def test_flags_of_thoughts_and_boxes_that_no_row_holds_are_named(write_rows, capsys):
    box = IMAGE_ROWS[0] | {
        "objects": {"ref": ["x"], "bbox": [[1, 2, 3, 4]]},
        "conversations": turns("<image>A?", "<ref-object><bbox>"),
    }
    thought = {"conversations": turns("A?", "<think>Hm.</think>B")}
    for rows, idle in (([IMAGE_ROWS[0]], {"train_thoughts", "box_format"}), ([box, thought], set())):
        for words in ("--train_thoughts False --box_format thousand", "--train_thoughts True"):
            check_media_kinds(parse(words), MultimodalDataset(write_rows(rows)))
            expected = idle if "False" in words else set()
            assert set(re.findall(r"WARNING: --(\w+) has no effect", capsys.readouterr().out)) == expected


def test_bf16_runs_on_the_cpu_when_asked_for():
    assert parse("--bf16 True --use_cpu True").training.bf16


@pytest.mark.parametrize("given", [[], ["--model_id", "llava-1.5-7b"], ["--data_path", "rows.json"]])
def test_a_missing_required_flag_is_named(given):
    missing = "--data_path" if "--model_id" in given else "--model_id"
    with pytest.raises(ValueError, match=f"{missing} is missing"):
        parse_arguments(given)


def test_the_tables_name_flags_that_exist():
    known = {action.dest for action in HfArgumentParser(FLAG_PARTS)._actions}
    pairs = {text.partition(" ")[0] for one, other, _ in EXCLUDES for text in (one, other)}
    needed = {name for text in NEEDS.values() for name in re.findall(r"--(\w+)", text)}
    assert KEPT_FLAGS.keys() | RANGE_OF.keys() | NEEDS.keys() | needed | pairs <= known
    assert KEPT_FLAGS.keys() <= TRAINING_FLAGS


# ---- YAML ----


def test_a_yaml_file_gives_the_flags_and_the_command_line_wins(tmp_path):
    (tmp_path / "run.yaml").write_text(
        "model_id: llava-1.5-7b\ndata_path: rows.json\nuse_lora: true\nmask_question_tokens: false\nlora_r: 4\n"
        "eval_data_path: null\nlearning_rate: 1e-4\nsave_strategy: no\nreport_to: [none]\noptim_target_modules: []\n"
        "lr_scheduler_type: cosine\nlr_scheduler_kwargs: {num_cycles: 2}\n"
    )
    arguments = parse_arguments([str(tmp_path / "run.yaml"), "--lora_r", "16", "--learning-rate=2e-4"])
    lora, data, training = arguments.lora, arguments.data, arguments.training
    assert (lora.use_lora, lora.lora_r, training.learning_rate) == (True, 16, 2e-4)
    assert (data.mask_question_tokens, data.eval_data_path) == (False, None)
    assert (training.save_strategy, training.report_to, training.lr_scheduler_kwargs) == ("no", [], {"num_cycles": 2})


def test_a_later_flag_switches_off_what_a_yaml_file_says(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "model_id: llava-1.5-7b\ndata_path: rows.json\nuse_lora: true\nfps: 2\nsave_steps: 5\n"
        "lora_target_modules: [a, b]\n"
    )
    off = "--use_lora False --lora-target-modules null --fps=null --num_frames 4 --save_strategy no --save_steps null"
    arguments = parse_arguments([str(path), *off.split()])
    assert (arguments.lora.use_lora, arguments.lora.lora_target_modules, arguments.data.fps) == (False, None, None)
    assert arguments.given == {"model_id", "data_path", "use_lora", "num_frames", "save_strategy"}
    assert parse_arguments([str(path), "--fps", "null", "--fps", "3"]).data.fps == 3


@pytest.mark.parametrize(
    "content, named",
    [
        (None, "run.yaml cannot be read: No such file"),
        (b"a: [1", "run.yaml is not valid YAML"),
        (b"caf\xe9: 1", "run.yaml is not valid YAML"),
        (b"", "run.yaml must be a mapping"),
        (b"a: &a [1]\nb: [*a, *a]", "run.yaml has an alias"),
        (b"- model_id", "run.yaml must be a mapping"),
        (b"fps: 1\nmodel_id: a\nfps: 2", "run.yaml sets fps twice"),
        (b"model_idd: llava-1.5-7b", "--model_idd is not a flag: did you mean --model_id"),
        (b"warmup_ratio: 0.1", "--warmup_ratio .* --warmup_steps"),
        (b"data_path: rows.json", "--model_id is missing"),
    ],
)
def test_a_bad_yaml_file_is_refused(tmp_path, content, named):
    if content is not None:
        (tmp_path / "run.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=named):
        parse_arguments([str(tmp_path / "run.yaml")])


def test_all_keys_of_another_tool_are_named_at_once(tmp_path):
    (tmp_path / "run.yaml").write_text(
        "base_model: Qwen/Qwen2.5-VL-7B-Instruct\nadapter: qlora\nmicro_batch_size: 2\nnum_epochs: 1\n"
        "val_set_size: 0.0\ndatasets:\n  - path: a.json\n    type: chat_template\n"
        "learning_rate: 1e-4\nwandb_project:\nxyzzy: 1\n"
    )
    with pytest.raises(ValueError) as caught:
        parse_arguments([str(tmp_path / "run.yaml"), "--wramup_steps", "4"])
    *named, end = str(caught.value).splitlines()
    assert "docs/coming_from.md" in end
    for line, start in zip(
        named,
        [
            "--base_model is not a flag: use --model_id (",
            "--adapter is not a flag: use --q_lora (",
            "--micro_batch_size is not a flag: use --per_device_train_batch_size.",
            "--num_epochs is not a flag: use --num_train_epochs.",
            "--val_set_size is not a flag: leave it out.",
            "--datasets is not a flag: use --data_path (",
            "--xyzzy is not a flag.",
            "--wramup_steps is not a flag: did you mean --warmup_steps?",
        ],
        strict=True,
    ):
        assert line.startswith(start)


@pytest.mark.parametrize("can", [True, False])
def test_bf16_auto_is_what_the_machine_can(can, monkeypatch):
    monkeypatch.setattr("arguments.has_bf16", lambda use_cpu: can)
    for words in ("--bf16 auto", "--bf16=auto", "--bf16 False --bf16 auto"):
        assert parse(f"{words} --use_cpu True").training.bf16 is can


def test_under_torchrun_an_error_is_handed_over_once(tmp_path, monkeypatch, capsys):
    """What torchrun reads of its processes' files, by its own reader."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    def fail(rank: int, message: str) -> ProcessFailure:
        file = tmp_path / str(rank) / "error.json"
        file.parent.mkdir()
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
        with pytest.raises(SystemExit) as ended:
            end(message)
        assert ended.value.code == 1
        return ProcessFailure(rank, 123, 1, str(file))

    failures = {3: fail(3, "Error: all\nfail"), 0: fail(0, "Error: all\nfail"), 1: fail(1, "Error: one fails")}
    said = str(ChildFailedError("train.py", failures))
    assert said.count("Error: all\n  fail") == said.count("Error: one fails") == 1
    assert said.index("Error: all") > said.index("Root Cause") and capsys.readouterr() == ("", "")
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE")
    with pytest.raises(SystemExit, match="Error: alone"):
        end("Error: alone")


def test_a_folder_is_no_model_id_and_an_adapter_no_model(tmp_path):
    words = ["--data_path", "rows.json", "--model_id"]
    model, adapter = tmp_path / "my-qwen2.5-vl-7b", tmp_path / "out"
    for folder, name, held in [
        (model, "config.json", '{"model_type": "qwen2_5_vl"}'),
        (adapter, "adapter_config.json", '{"base_model_name_or_path": "its/base"}'),
    ]:
        folder.mkdir()
        (folder / name).write_text(held)
    with pytest.raises(ValueError, match=f"write --model_id qwen2.5-vl-7b-instruct --model_local_path {model}"):
        parse_arguments([*words, str(model)])
    for given in ([str(adapter)], ["qwen2-vl-2b-instruct", "--model_local_path", str(adapter)]):
        with pytest.raises(ValueError, match=f"--lora_weight_path {adapter} and name its base .its.base. with"):
            parse_arguments([*words, *given])


def test_flags_may_be_written_in_the_folder_of_an_adapter(tmp_path, monkeypatch):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "its/base"}')
    monkeypatch.chdir(tmp_path)
    assert parse("").model.model_local_path is None


def test_an_adapter_for_the_hub_names_no_folder_of_this_machine(tmp_path):
    words = ["--model_id", "qwen2-vl-2b-instruct", "--data_path", "rows.json", "--push_to_hub", "True", "--use_cpu"]
    local = ["--model_local_path", str(tmp_path)]
    for kind in (["--use_lora", "True"], ["--use_vision_lora", "True"]):
        with pytest.raises(ValueError, match=f"would name its base as {tmp_path}, a folder on this machine"):
            parse_arguments([*words, "True", *local, *kind])
        parse_arguments([*words, "True", *kind])
    parse_arguments([*words, "True", *local])


def test_the_saved_arguments_give_the_same_run(tmp_path):
    """`args.yaml` of a run is a run file."""
    words = (
        "--use_cpu True --bf16 True --save_strategy no --report_to none --hub_token secret --debug underflow_overflow"
    )
    first = parse(words + ' --accelerator_config {"non_blocking":true} --mask_question_tokens False')
    saved = yaml.safe_dump(first.as_dict())
    assert "secret" not in saved and "HUB_TOKEN" not in saved
    (tmp_path / "args.yaml").write_text(saved)
    second = parse_arguments([str(tmp_path / "args.yaml")])
    assert second.as_dict() == first.as_dict()
    assert second.training.accelerator_config.non_blocking is True and second.data.mask_question_tokens is False


@pytest.mark.parametrize("value, expected", [("True", True), ("False", None)])
def test_resume_takes_true_and_false(value, expected):
    assert parse(f"--resume_from_checkpoint {value}").training.resume_from_checkpoint is expected


@pytest.mark.parametrize("words, is_said", [("--max_steps 9", True), ("--max_steps -1", False)])
def test_of_two_lengths_of_a_run_the_steps_win(words, is_said, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "finetune", lambda arguments: None)
    given = "--model_id llava-1.5-7b --data_path x --use_cpu True --num_train_epochs 3".split()
    train.main([*given, "--output_dir", str(tmp_path / "out"), *words.split()])
    assert ("--max_steps 9 overrides --num_train_epochs" in capsys.readouterr().out) == is_said


def test_the_hubs_token_is_not_pickled_beside_the_weights(tmp_path):
    words = ["--model_id", "qwen2-vl-2b-instruct", "--data_path", "rows.json", "--output_dir", str(tmp_path)]
    training = parse_arguments([*words, "--use_cpu", "--hub_token", "hf_secret"]).training
    assert training.hub_token == "hf_secret" and b"hf_secret" not in pickle.dumps(training)
