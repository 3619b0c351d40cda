"""The guides are true: their files are read, their messages are those of the program, their values are computed."""

import errno
import json
import os
import re
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import not_finite
import pytest
import yaml
from conftest import REPO, turns
from launch import plots
from test_docs import code_blocks, workplace  # noqa: F401
from transformers import HfArgumentParser

import arguments
import preview
import train
from arguments import parse_arguments
from collators.template_check import check_template
from reading import replaced
from reading.dataset import MultimodalDataset
from reading.row_index import Layout
from supported_models import find_model
from training import checks, engines, resume, run_folder

ERRORS = REPO / "docs/errors.md"
COMING = REPO / "docs/coming_from.md"


def sections(page: Path) -> dict[str, str]:
    """Heading of the second level -> what stands under it."""
    parts = re.split(r"(?m)^## (.*)\n", page.read_text(encoding="utf-8"))
    return dict(zip(parts[1::2], parts[2::2]))


def block(text: str, language: str) -> str:
    return re.search(rf"(?s)```{language}\n(.*?)```", text)[1]


# ---- start.md ----

START = REPO / "docs/start.md"
# All but those that make a model first.
TASKS = [name for name, text in sections(START).items() if "train.py" in text and "tiny_models.py" not in text]


@pytest.fixture
def task_folder(tmp_path, media_folder, monkeypatch) -> Path:
    """A folder in which the commands of the page run: the examples, and the files of its own that it shows."""
    monkeypatch.chdir(tmp_path)
    os.symlink(REPO / "example_data", "example_data")
    for name, source in [("photos/1.jpg", "tall.jpg"), ("photos/2.jpg", "tall.jpg"), ("clips/door.mp4", "clip.mp4")]:
        Path(name).parent.mkdir(exist_ok=True)
        shutil.copy(media_folder / source, name)
    for name, caption in {
        "pictures/1": "A tree.\n",
        "pictures/deep/größe 2": "Zwei Häuser",
        "flowers/rose/1": "",
    }.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(media_folder / "red.png", f"{name}.png")
        if caption:
            Path(f"{name}.txt").write_text(caption, encoding="utf-8")
    for section, name in [("Reading text", "receipts.csv"), ("Videos", "videos.csv")]:
        Path(name).write_text(block(sections(START)[section], "csv"), encoding="utf-8")
    return tmp_path


def contents(dataset: MultimodalDataset) -> list[list]:
    """Of each row the types of the question's parts, and the answer."""
    rows = [dataset.rows[i]["messages"] for i in range(len(dataset))]
    return [[*(part["type"] for part in row[0]["content"]), row[1]["content"][0]["text"]] for row in rows]


def test_the_files_of_the_start_page_are_the_examples():
    """What the page shows of a file are its first rows, or one of them."""
    shown = "".join(code for language in ("jsonl", "csv") for _, code in code_blocks(START, language)).splitlines()
    held = {line for path in (REPO / "example_data").glob("*.*") for line in path.read_text().splitlines()}
    own = {"photos/1.jpg", "photos/2.jpg", "clips/door.mp4", "image", "video"}
    assert [line for line in shown if line not in held and line.split(",")[0] not in own] == []
    assert len(shown) > 10


@pytest.mark.parametrize(
    "name, parts",
    [
        ("several_pictures.jsonl", ["image", "image", "text"]),
        ("several_turns.json", ["image", "text"]),
        ("system_prompt.jsonl", ["text"]),
        ("picture_and_clip.jsonl", ["image", "video", "text"]),
        ("questions.csv", ["image", "text"]),
        ("texts.jsonl", ["text"]),
    ],
)
def test_the_examples_hold_what_their_names_say(name, parts):
    rows = MultimodalDataset(str(REPO / "example_data" / name)).rows
    for i in range(len(rows)):
        assert [part["type"] for part in rows[i]["messages"][0]["content"]] == parts
    assert len(rows[0]["messages"]) == {"several_turns.json": 6, "system_prompt.jsonl": 3}.get(name, 2)


def test_the_folders_of_the_start_page_are_read(task_folder):
    for section, answers in {"Captions": ["A tree.", "Zwei Häuser"], "Classification": ["rose"]}.items():
        words = commands_of(sections(START)[section])[-1]
        path, prompt = (words[words.index(flag) + 1] for flag in ("--data_path", "--prompt"))
        dataset = MultimodalDataset(path, prompt=prompt)
        assert contents(dataset) == [["image", "text", answer] for answer in answers]
        assert dataset.rows[0]["messages"][0]["content"][1]["text"] == prompt


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_the_commands_of_a_task_run(tiny, task_folder, task, capsys):
    """Each command of a section, on a tiny model."""
    for _, script, *words in commands_of(sections(START)[task]):
        if "--bf16" in words:
            del words[words.index("--bf16") : words.index("--bf16") + 2]
        words += ["--model_local_path", tiny("qwen2.5-vl"), "--use_cpu", "True"]
        if script == "train.py":
            train.main([*words, "--max_steps", "1", "--report_to", "none"])
        else:
            with pytest.raises(SystemExit, match="^0$"):
                preview.main(words)
    assert "1 steps" in capsys.readouterr().out


def commands_of(text: str) -> list[list[str]]:
    code = "".join(re.findall(r"(?s)```bash\n(.*?)```", text)).replace("\\\n", " ")
    return [shlex.split(line) for line in code.splitlines() if line.strip()]


def test_the_table_of_the_data_page_is_read(tmp_path, media_folder):
    for name in ("hinge 1.jpg", "front.jpg", "back.jpg"):
        shutil.copy(media_folder / "tall.jpg", tmp_path / name)
    text = block(sections(REPO / "docs/data_files.md")["Tables: CSV, TSV and Excel"], "csv")
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    assert [row[:-1] for row in contents(MultimodalDataset(str(tmp_path / "a.csv")))] == [
        ["image", "text"],
        ["image", "image", "text"],
        ["text"],
    ]


# ---- errors.md ----


def row(**fields) -> dict:
    return {"image": "red.png", "conversations": turns("<image>\nWhat is it?", "A square.")} | fields


def of_rows(make, *rows):
    return lambda: MultimodalDataset(make(list(rows)))


def of_table(make):
    path = Path(make([])).with_suffix(".csv")
    path.write_text("file;frage\na.png;Was?", encoding="utf-8")
    try:
        MultimodalDataset(str(path))
    finally:
        path.unlink()


def of_replaced(make, picture):
    dataset = MultimodalDataset(make([row(image=str(picture))]))
    picture.write_bytes(picture.read_bytes() + b"more")
    replaced.check_drawn(dataset)


def of_splits(folder):
    folder.mkdir()
    for name in ("train", "test"):
        (folder / f"{name}.jsonl").write_text('{"question": "a", "answer": "b"}')
    MultimodalDataset(str(folder))


def of_flags(*words):
    return lambda: parse_arguments(["--model_id", "llava-1.5-7b", "--data_path", "train.json", *words])


def of_run(tiny, make, rows, *words):
    given = ["--model_id", "llava-1.5-7b", "--model_local_path", tiny("llava-1.5"), "--data_path", make(rows)]
    return lambda: train.main([*given, "--use_cpu", "True", *words])


def other_run(tmp_path) -> None:
    run = {"flags": {"learning_rate": 1e-4}, "processes": 1, "samples": 1, "texts": "a", "media": []}
    (tmp_path / "checkpoint-1").mkdir()
    resume.write_record(str(tmp_path / "checkpoint-1"), {"run": run})
    resume.check_same_run(str(tmp_path / "checkpoint-1"), run | {"flags": {"learning_rate": 1e-5}})


def not_finite_run(tiny, make, tmp_path, monkeypatch):
    def start() -> None:
        not_finite.plant(1, monkeypatch)
        of_run(tiny, make, [row()], "--output_dir", str(tmp_path / "out"))()

    return start


def other_results(tmp_path) -> None:
    with pytest.raises(ValueError):
        other_run(tmp_path)
    run = {"flags": {"learning_rate": 1e-5}, "processes": 1, "samples": 1, "texts": "a", "media": []}
    run_folder.check_run(SimpleNamespace(output_dir=str(tmp_path), should_save=True, overwrite_output_dir=False), run)


def full_disk(tmp_path) -> None:
    training = SimpleNamespace(output_dir=str(tmp_path), should_save=True)
    with resume.disk_errors(str(tmp_path / "checkpoint-1"), training):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def triggers(tiny, write_rows, tmp_path, media_folder, monkeypatch):
    """Heading of errors.md -> what raises its message."""
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr("sys.argv", ["train.py"])
    (tmp_path / "broken.png").write_bytes(b"<html>404</html>")
    eight_bits = SimpleNamespace(lora=SimpleNamespace(load_in_8bit=True))
    zero3 = SimpleNamespace(config={}, is_zero3=lambda: True)
    return {
        "Images and placeholders": of_rows(write_rows, row(conversations=turns("What is it?", "A square."))),
        "Missing files": of_rows(write_rows, row(image="missing.png")),
        "Unknown rows": of_rows(write_rows, {"text": "What?", "label": "That."}),
        "Unknown columns": lambda: of_table(write_rows),
        "Fields that are not read": of_rows(write_rows, row(photo="blue.png")),
        "Empty replies": of_rows(write_rows, row(conversations=turns("<image>\nWhat is it?", " "))),
        "Replaced media": lambda: of_replaced(write_rows, media_folder / "blue.png"),
        "Several splits": lambda: of_splits(tmp_path / "splits"),
        "Who speaks": of_rows(write_rows, row(conversations=[{"from": "person", "value": "Hi"}])),
        "The order of turns": of_rows(write_rows, row(conversations=turns("<image>\nWhat is it?"))),
        "Too long": of_run(tiny, write_rows, [row()], "--model_max_length", "10"),
        "Broken media": of_rows(write_rows, row(image=str(tmp_path / "broken.png"))),
        "A model that is not found": of_run(
            tiny, write_rows, [row()], "--model_local_path", "meta-llama/Llama-3.2-11B-Vision-Instruct"
        ),
        "An unknown model id": lambda: find_model("qwen2.5-vl-4b"),
        "Renamed flags": of_flags("--warmup_ratio", "0.03"),
        "No bfloat16": of_flags("--bf16", "True"),
        "No FlashAttention": of_flags("--use_flash_attn", "True"),
        "A flag without effect": of_run(
            tiny, write_rows, [{"conversations": turns("Hi", "Hello")}], "--train_vision_projector", "True"
        ),
        "No launcher": lambda: engines.check(
            SimpleNamespace(
                training=SimpleNamespace(
                    n_gpu=0,
                    device=SimpleNamespace(type="cpu"),
                    deepspeed="ds_configs/zero2.json",
                    hf_deepspeed_config=SimpleNamespace(config={}, is_zero3=lambda: False),
                    fsdp=False,
                    fsdp_config=None,
                    save_on_each_node=False,
                ),
                lora=SimpleNamespace(load_in_8bit=False),
            )
        ),
        "Quantized under ZeRO-3": lambda: engines.check_deepspeed(eight_bits, zero3),
        "A loss that is not finite": not_finite_run(tiny, write_rows, tmp_path, monkeypatch),
        "Resuming another run": lambda: other_run(tmp_path),
        "Results of another run": lambda: other_results(tmp_path),
        "A full disk": lambda: full_disk(tmp_path),
    }


FOREIGN = {"Out of memory", "A run that hangs"}


@pytest.mark.parametrize(
    "heading", [name for name in sections(ERRORS) if name not in FOREIGN | {"No error, but wrong"}]
)
def test_a_message_of_the_errors_page_is_what_the_program_says(triggers, heading):
    documented = block(sections(ERRORS)[heading], "text")
    pattern = re.escape(" ".join(documented.split())).replace(r"\.\.\.", ".*")
    with pytest.raises(ValueError) as raised:
        triggers[heading]()
    assert re.search(pattern, " ".join(str(raised.value).split())), raised.value


def test_the_errors_page_says_which_are_not_ours():
    found = sections(ERRORS)
    assert {name for name, text in found.items() if "\nThis error comes from" in text} == FOREIGN


@pytest.mark.parametrize(
    "written, there",
    [
        ("Küche/größe.JPG", "Küche/größe.jpg"),
        ("küche\\größe.jpg", "Küche/größe.jpg"),
        ("a\u0308 b.png", "ä b.png"),
        ("ä b.png", "a\u0308 b.png"),
        ("x/ä b.png", None),
        ("ä b.png", None),
        ("link.png", None),
    ],
)
def test_a_missing_file_names_the_one_that_looks_like_it(tmp_path, written, there):
    if there:
        (tmp_path / there).parent.mkdir(exist_ok=True)
        (tmp_path / there).touch()
    (tmp_path / "link.png").symlink_to("nowhere")
    (tmp_path / "a.jsonl").write_text(json.dumps({"image": written, "prompt": "a", "completion": "b"}))
    (error,) = MultimodalDataset(str(tmp_path / "a.jsonl"), check=False).errors.values()
    hint = f", but {tmp_path / there} does, which differs only in case, accents or slashes" if there else ""
    assert error.endswith(f"image {tmp_path}/{written} does not exist{hint}; fix the path or --image_folder")
    if hint:
        told = "but ... does, which differs only in case, accents or slashes"
        assert told in ERRORS.read_text(encoding="utf-8")


def test_the_error_of_another_template_is_what_the_program_says():
    pair = ("a", "b")
    template = SimpleNamespace(differences_in=lambda _: [pair], check_layout=lambda _: None, is_replaced=False)
    template.thoughts_and_tools = SimpleNamespace(notes=lambda _: [])
    template.boxes = SimpleNamespace(in_pixels=False)
    processor = SimpleNamespace(chat_template="x")
    differing = SimpleNamespace(processor=processor, template=template, fixed_format="")
    data = SimpleNamespace(layouts=lambda: {Layout("UtAt"): 0}, media=None)
    (documented,) = re.findall(r"`(The checkpoint's chat template .*?)`", ERRORS.read_text(encoding="utf-8"))
    with pytest.raises(ValueError, match=documented):
        check_template(differing, data)


# ---- coming_from.md ----

FLAGS = {
    option.removeprefix("--")
    for action in HfArgumentParser(arguments.FLAG_PARTS)._actions
    for option in action.option_strings
}


def rows_of(section: str) -> list[list[str]]:
    """(there, here, note) of each row of a table."""
    return [list(cells) for cells in re.findall(r"(?m)^\| (.*?) \| (.*?) \| (.*?) ?\|$", section) if "---" not in cells]


def test_every_flag_that_a_key_became_exists():
    checked = 0
    for section in ("lmms-finetune", "axolotl", "LLaMA-Factory", "Renamed flags", "Short names"):
        for there, here, _ in rows_of(sections(COMING)[section])[1:]:
            names = re.findall(r"--(\w+)", here)
            if here == "the same":
                names = [name for name in re.findall(r"`(\w+)`", there) if "." not in name]
            else:
                assert names or here == "nothing" or not here.startswith("--"), here
            assert set(names) <= FLAGS, (there, here)
            checked += len(names)
            is_gone = section in ("Renamed flags", "Short names")  # "the same" name there is a name of another tool
            assert not is_gone or not {*re.findall(r"`(\w+)`", there)} & FLAGS, there
    assert checked > 60


# The keys of their example files for models with vision, in July and August 2026.
KEYS = {
    "axolotl": """
adapter attn_implementation base_model bf16 chat_template cut_cross_entropy dataset_prepared_path datasets
ddp_find_unused_parameters eot_tokens evals_per_epoch flash_attention flex_attn_compile_kwargs fp16 freeze_mm_modules
fsdp fsdp_config fsdp_version full_finetune gradient_accumulation_steps gradient_checkpointing
gradient_checkpointing_kwargs learning_rate liger_glu_activation liger_layer_norm liger_rms_norm
llama4_linearized_experts load_in_4bit load_in_8bit logging_steps lora_alpha lora_dropout lora_mlp_kernel
lora_model_dir lora_modules_to_save lora_o_kernel lora_qkv_kernel lora_r lora_target_modules lr_scheduler max_steps
micro_batch_size model_type num_epochs optimizer output_dir pad_to_sequence_len plugins processor_type
quantize_moe_experts remove_unused_columns resume_from_checkpoint sample_packing saves_per_epoch sequence_len
skip_prepare_dataset special_tokens strict tf32 tokenizer_use_mistral_common trust_remote_code use_kernels
use_sonicmoe val_set_size wandb_entity wandb_log_model wandb_name wandb_project wandb_watch warmup_ratio weight_decay
""",
    "LLaMA-Factory": """
adapter_name_or_path apollo_layerwise apollo_rank apollo_scale apollo_scale_type apollo_target asft_alpha badam_mode
badam_switch_interval badam_switch_mode badam_verbose bf16 cutoff_len dataloader_num_workers dataset dataset_dir
ddp_timeout deepspeed do_predict do_train double_quantization eval_dataset export_device export_dir
export_legacy_format export_quantization_bit export_quantization_dataset export_size finetuning_type fp8 fp8_backend
fp8_enable_fsdp_float8_all_gather freeze_language_model freeze_multi_modal_projector freeze_trainable_layers
freeze_trainable_modules freeze_vision_tower fsdp fsdp_transformer_layer_cls_to_wrap galore_layerwise galore_rank
galore_scale galore_target gradient_accumulation_steps gradient_checkpointing gradient_checkpointing_kwargs
image_max_pixels learning_rate logging_steps lora_rank lora_target loraplus_lr_ratio lr_scheduler_type max_samples
mixture_of_depths model_name_or_path num_train_epochs oft_block_size oft_target optim output_dir overwrite_cache
overwrite_output_dir packing per_device_eval_batch_size per_device_train_batch_size pissa_convert pissa_init
pissa_iter plot_loss predict_with_generate pref_beta pref_loss preprocessing_num_workers pure_bf16 quantization_bit
quantization_method ray_num_workers report_to resume_from_checkpoint run_name save_only_model save_steps stage
template tokenized_path trust_remote_code use_adam_mini use_apollo use_asft_loss use_badam use_dft_loss use_eaft_loss
use_galore use_llama_pro use_muon use_reentrant_gc video_fps video_max_pixels video_maxlen warmup_ratio
""",
}


@pytest.mark.parametrize("section", KEYS)
def test_the_keys_of_their_examples_are_explained(section):
    explained = set(
        re.findall(r"`(\w+)(?:: \w+)?`", " ".join(there for there, *_ in rows_of(sections(COMING)[section])))
    )
    assert set(KEYS[section].split()) <= explained | FLAGS


@pytest.mark.parametrize("section", ["axolotl", "LLaMA-Factory"])
def test_a_whole_configuration_is_explained_and_ours_parses(section, tmp_path, monkeypatch):
    text = sections(COMING)[section]
    theirs, ours = re.findall(r"(?s)```yaml\n(.*?)```", text)
    explained = set(re.findall(r"`(\w+)(?:: \w+)?`", " ".join(there for there, *_ in rows_of(text))))
    keys = yaml.safe_load(theirs)
    for entry in keys.get("datasets", []):
        assert entry.keys() <= explained
    assert keys.keys() <= explained | {"datasets"}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checks, "is_torch_bf16_gpu_available", lambda: True)
    Path("run.yaml").write_text(ours, encoding="utf-8")
    parsed = parse_arguments(["run.yaml", "--use_cpu", "True"])
    same = {name: value for name, value in keys.items() if name in FLAGS and name in yaml.safe_load(ours)}
    assert len(same) > 4
    for name, value in same.items():
        found = [
            getattr(part, name)
            for part in (parsed.model, parsed.data, parsed.lora, parsed.training)
            if hasattr(part, name)
        ]
        assert str(found[0]) in (str(value), f"SchedulerType.{str(value).upper()}"), name
    batch = keys.get("micro_batch_size", keys.get("per_device_train_batch_size"))
    assert parsed.training.per_device_train_batch_size == batch
    assert parsed.data.model_max_length == keys.get("sequence_len", keys.get("cutoff_len"))
    assert parsed.lora.lora_r == keys.get("lora_r", keys.get("lora_rank"))


# ---- how_it_works.md ----


def test_the_way_of_one_sample_prints_what_the_page_shows(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    os.symlink(REPO / "example_data", "example_data")
    shutil.copytree(tiny("llava-1.5"), "tiny/llava")
    text = (REPO / "docs/how_it_works.md").read_text(encoding="utf-8")
    steps = re.findall(r"(?s)```python\n(.*?)```\n\n```text\n(.*?)```", text)
    assert len(steps) == text.count("```python") == 10
    namespace = {}
    for code, printed in steps:
        capsys.readouterr()
        with plots(False):
            exec(code, namespace)
        assert capsys.readouterr().out == printed
