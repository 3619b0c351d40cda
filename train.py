"""Finetune a vision-language model.

    python train.py --model_id qwen2.5-vl-3b-instruct --data_path train.json --output_dir out --use_lora True
    python train.py run.yaml                                        # the same flags from a file
    torchrun --nproc_per_node 8 train.py run.yaml --deepspeed ds_configs/zero3.json

`finetune` contains every step, from the flags to the saved checkpoint.
"""

if __name__ == "__main__":
    import entry

    entry.begin(__file__)  # answers --help before the imports below, which take seconds

import os
from functools import partial

import numpy as np
from transformers import set_seed

from arguments import PLAIN, Arguments, DataArguments, parse_arguments
from collators.label_check import check_labels
from collators.pixel_bounds import describe_bounds
from collators.template_check import check_template, outlines
from collators.thoughts_and_tools import SERVER_TEMPLATE
from entry import HERE, cli
from loaders import LOADERS, attention, output_folder
from loaders.output_folder import ProcessorFiles
from loaders.quantization import quantization_config, quantized_bits
from reading import replaced
from reading.dataset import EncodedDataset, MultimodalDataset, cost_of_replies, make_dataset, shared_rows
from reading.options import MEDIA_FLAGS
from reading.split import make_datasets
from reading.strict_json import make_strict
from reports.run_report import RunFacts, reported, write_card
from reports.trackers import AnswerTables
from training import auto_checks, engines, resume, run_folder, trainable
from training.added_tokens import added_tokens, untrained_tokens
from training.engines import print_once
from training.forgetting import Probe
from training.make_collator import make_collator
from training.sampling import SAMPLERS
from training.trainer import FinetuneTrainer


def main(words: list[str] | None = None) -> None:
    # argv -> flags
    arguments = parse_arguments(words, description=__doc__)
    engines.check(arguments)
    if arguments.training.max_steps > 0 and "num_train_epochs" in arguments.given:
        # This happens when a recipe with epochs is tried out for a few steps.
        print_once(f"--max_steps {arguments.training.max_steps} overrides --num_train_epochs.")
    with run_folder.locked(arguments):
        finetune(arguments)


def finetune(arguments: Arguments) -> None:
    checkpoint = resume.checkpoint_to_resume(arguments.training)
    resume.keep_resize(checkpoint, arguments.data)

    # rows on disk -> canonical samples; an unusable row ends the run here, unless --on_bad_sample is skip
    data = arguments.data
    allowed = data.max_bad_samples if data.on_bad_sample == "skip" else None
    train_dataset, eval_dataset = make_datasets(data, arguments.training.seed, max_bad_samples=allowed)
    report_data(train_dataset, eval_dataset)
    probe = probe_questions(arguments)

    # model id -> family -> processor and collator; then compare the training template with the checkpoint's
    loader = LOADERS.get(arguments.model.family)(
        arguments.model.model_path, arguments.model.trust_remote_code, **model_kwargs(arguments)
    )
    check_kernels(arguments, loader)
    collator = make_collator(arguments.model.family, loader, data, train_dataset, eval_dataset)
    print_once(describe_bounds(collator, data))
    if attention.is_padding_free(arguments, loader):
        collator.make_padding_free(loader)
    check_labels(collator)
    print_once(check_template(collator, train_dataset, eval_dataset))
    print_once(added_tokens(loader, collator.template))
    print_once(untrained_tokens(loader, arguments, collator.template, train_dataset))
    check_media_kinds(arguments, train_dataset, eval_dataset)
    for dataset in filter(None, (train_dataset, eval_dataset)):
        fit_to_budget(collator, dataset, arguments.data.drop_overlong)
    if arguments.data.train_replies == "each":
        print_once(cost_of_replies(train_dataset, kept_lengths(collator, train_dataset)))
    # count the lengths only if the order of an epoch depends on them
    needs_lengths = data.packing or SAMPLERS[arguments.training.train_sampling_strategy].needs_lengths
    lengths = kept_lengths(collator, train_dataset) if needs_lengths else None
    run = resume.describe_run(arguments, train_dataset)
    if checkpoint:
        resume.check_same_run(checkpoint, run)
    run_folder.check_run(arguments.training, run)

    # load the weights, and decide which of them train
    engines.init_deepspeed(arguments.training)
    quantize(arguments, loader)
    model = loader.load_model()
    if loader.is_tested_on_loading:
        print_once(auto_checks.check_batches(model, loader, collator, arguments))
    if collator.is_padding_free:
        attention.separate_samples(model, loader)
    engines.set_up_fsdp(arguments.training, model, trainable.compute_dtype(arguments.training))
    set_seed(arguments.training.seed)  # adapters get the same initial weights under every engine
    model = trainable.make_trainable(model, loader, arguments)
    if loader.is_tested_on_loading:
        print_once(auto_checks.allow_unreached(model, collator, arguments.training))
    trained = trainable.summarize(model, loader, arguments)
    print_once("\n" + trainable.format_summary(trained) + "\n")
    collator.media_in_every_batch = engines.equal_vision_calls(arguments, loader, trained, train_dataset, eval_dataset)

    # train and evaluate; `reported` prints and saves the outcome, even if the run is interrupted
    request = collator.template.request_options()
    facts = RunFacts(arguments, trained, train_dataset, eval_dataset, request, collator.image_size, probe)
    run_folder.begin_run(arguments.training, run, checkpoint)
    if arguments.training.should_save:
        # predict.py and merge_lora_weights.py need this file, also to read the checkpoints of an interrupted run.
        output_folder.write_arguments(arguments.training.output_dir, arguments.as_dict())
    templates = chat_templates(arguments, collator, train_dataset)
    files = ProcessorFiles(arguments.model.model_path, templates, collator.image_size, loader.new_tokens)
    num_workers = arguments.training.dataloader_num_workers
    trainer = FinetuneTrainer(
        model=model,
        args=arguments.training,
        data_collator=collator.collate,
        train_dataset=EncodedDataset(train_dataset, collator, num_workers),
        eval_dataset=eval_dataset and EncodedDataset(eval_dataset, collator, num_workers, is_training=False),
        processor_files=files,
        learning_rates=trainable.learning_rates(model, loader, arguments),
        lengths=lengths,
        pack_budget=arguments.data.model_max_length if arguments.data.packing else None,
        write_card=partial(write_card, facts),
        run=run,
    )
    if eval_dataset:
        trainer.add_callback(AnswerTables(eval_dataset))
    if probe:
        trainer.add_callback(Probe(trainer, collator, probe))
    with reported(trainer, facts):
        metrics = trainer.train(checkpoint).metrics
        if eval_dataset:
            metrics |= trainer.evaluate_at_end()
        trainer.report_skipped()

        # save the adapter or full checkpoint, the base's processor files, the model card and all_results.json
        with resume.disk_errors(arguments.training.output_dir, arguments.training):
            save(trainer, loader, metrics)
    if arguments.training.push_to_hub:  # after the report is written, since the model card shows it
        trainer.push_to_hub("Model save")
    trainer.accelerator.wait_for_everyone()  # if one rank exited early, the saving rank would fail
    trainer.end()


def report_data(train_dataset: MultimodalDataset, eval_dataset: MultimodalDataset | None) -> None:
    """Print how many samples there are to train on and evaluate on, with notes and warnings."""
    for purpose, dataset in (("Training data", train_dataset), ("Evaluation data", eval_dataset)):
        if dataset:
            print_once("\n".join([f"{purpose}: {dataset.summary()}", *dataset.notes(), *replaced.check_drawn(dataset)]))
    if eval_dataset and (shared := shared_rows(train_dataset, eval_dataset)):
        of_train, of_eval = shared[0]
        print_once(
            f"WARNING: {len(shared):,} of {len(eval_dataset):,} evaluation rows are also in the training data, so "
            "evaluation also measures memorization. The first pair: "
            f"{eval_dataset.source(of_eval)} = {train_dataset.source(of_train)}."
        )


def probe_questions(arguments: Arguments) -> MultimodalDataset | None:
    """Return the questions of --probe, read with default flags, since the given flags describe the training data."""
    path = arguments.training.probe
    if not path:
        return None
    path = os.path.join(HERE, "example_data", "plain", "questions.jsonl") if path == PLAIN else path
    return make_dataset(DataArguments(data_path=[path], data_cache=arguments.data.data_cache), "probe", path)


def model_kwargs(arguments: Arguments) -> dict:
    # Load the weights in the checkpoint's precision, so that nothing is rounded. DeepSpeed casts them while loading.
    return {
        "dtype": trainable.compute_dtype(arguments.training) if arguments.training.deepspeed else "auto",
        "attn_implementation": arguments.model.attn_implementation or LOADERS.get(arguments.model.family).attention,
    }


def check_kernels(arguments: Arguments, loader) -> None:
    """Refuse --use_liger_kernel if Liger has no kernels for the model, since Liger 0.8.5 would silently do nothing."""
    if arguments.training.use_liger_kernel:
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

        if loader.config.model_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
            raise ValueError(f"--use_liger_kernel: Liger has no kernels for {loader.config.model_type}. Leave it out.")


def check_media_kinds(arguments: Arguments, *datasets: MultimodalDataset | None) -> None:
    """Refuse to train the vision encoder or projector without media. Warn about flags without effect on the data."""
    train_dataset, found = datasets[0], set().union(*(dataset.media_kinds for dataset in datasets if dataset))
    for name in ("train_vision_encoder", "train_vision_projector"):
        if getattr(arguments.model, name) and not train_dataset.media_kinds:
            raise ValueError(f"--{name} True has no effect: {train_dataset.name} has no images or videos.")
    for kind, names in MEDIA_FLAGS.items():
        for name in sorted(names & arguments.given) if kind not in found else ():
            print_once(f"WARNING: --{name} has no effect: no row has {kind}s.")
    held = {field for messages in outlines(*datasets) for message in messages for field in message}
    for name, kind, fields in (
        ("train_thoughts", "thoughts", {"reasoning_content", "typed_thought"}),
        ("box_format", "boxes as `objects`", {"objects"}),
    ):
        if name in arguments.given and getattr(arguments.data, name) is not True and held.isdisjoint(fields):
            print_once(f"WARNING: --{name} has no effect: no row has {kind}.")


def fit_to_budget(collator, dataset: MultimodalDataset, drop_overlong: bool) -> None:
    """Before step 1, cut or drop samples that are longer than --model_max_length, or raise an error."""
    total = len(dataset)
    cut, dropped = collator.budget.fit(dataset, collator.encode, drop_overlong)
    if cut or dropped:
        print_once(f"{dataset.name}: of {total} samples, {cut} are cut to --model_max_length, {dropped} are dropped.")


def kept_lengths(collator, dataset: MultimodalDataset) -> np.ndarray:
    """Return the number of tokens of each sample after the cut to --model_max_length, as an array (rows,)."""
    return np.minimum(collator.budget.token_lengths(dataset), collator.budget.max_length)


def quantize(arguments: Arguments, loader) -> None:
    stored = loader.config.to_dict().get("quantization_config") or {}
    if stored.get("quant_method") == "bitsandbytes" and not arguments.lora.use_lora:
        raise ValueError(f"{arguments.model.model_path} is quantized and cannot train in full: add --use_lora True.")
    if bits := quantized_bits(arguments.lora.q_lora, arguments.lora.load_in_8bit):
        dtype = trainable.compute_dtype(arguments.training)
        config = quantization_config(loader, dtype, bits)
        loader.model_kwargs |= engines.quantized(arguments, config, dtype)


def chat_templates(arguments: Arguments, collator, dataset: MultimodalDataset) -> dict[str, str]:
    """Return the chat templates to save: the template of --chat_template, if given, and a template for servers."""
    own = collator.template.text if arguments.data.chat_template else None
    served = collator.template.thoughts_and_tools.server_template(outlines(dataset))
    return {name: text for name, text in (("chat_template.jinja", own), (SERVER_TEMPLATE, served)) if text}


def save(trainer: FinetuneTrainer, loader, metrics: dict) -> None:
    trainer.finite_check.check_weights()
    if not hasattr(trainer.model, "peft_config") and not trainer.is_deepspeed_enabled:
        engines.gather_full_state(trainer, loader)
    trainer.save_model(_internal_call=True)  # otherwise the Trainer would upload now
    trainer.save_state()
    trainer.save_metrics("all", metrics, combined=False)
    if trainer.args.should_save:
        for name in ("trainer_state.json", "all_results.json"):
            make_strict(os.path.join(trainer.args.output_dir, name))
    print_once(f"Saved to {trainer.args.output_dir}.")


if __name__ == "__main__":
    cli(main)
