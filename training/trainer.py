"""The HF Trainer, extended by an exact loss, deterministic samplers, answers in evaluation, and processor files."""

import math
import time
from collections.abc import Callable
from contextlib import contextmanager
from functools import cached_property

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch.utils.data import DataLoader
from transformers import EarlyStoppingCallback, PrinterCallback, ProgressCallback

from evaluation import metrics
from evaluation.answers import Question, generate_answers, guess_blindly, questions, write_answers
from loaders.output_folder import ProcessorFiles, share_weights
from reading.dataset import MultimodalDataset, evenly_spread
from training.divergence import FiniteCheck
from training.engines import print_once
from training.gradients import GradientCheck, complete_gradients
from training.loss import label_losses, sample_sums
from training.progress import LogFile, ProgressLine
from training.resume import ResumableTrainer, check_not_removed, end_with_parent_only
from training.sampling import SAMPLERS, PackSampler
from training.throughput import ThroughputMeter
from training.trainable import SkipFrozenBackward


class FinetuneTrainer(ResumableTrainer):
    """The Trainer of this repository. It has the arguments of `ResumableTrainer`, and these:

    processor_files: processor files to save with the weights.
    learning_rates: parameter name -> learning rate; default: `args.learning_rate`.
    lengths: tokens of each training row (rows,); needed to group by length and to pack.
    pack_budget: maximum number of tokens in a pack. None: no packing.
    write_card: called with a folder of weights and the Trainer's state; writes the model card into that folder.
    """

    # `compute_loss` already divides by the number of labels in the whole global step.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        *args,
        processor_files: ProcessorFiles,
        learning_rates: dict[str, float] | None = None,
        lengths: np.ndarray | None = None,
        pack_budget: int | None = None,
        write_card: Callable | None = None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.processor_files, self.learning_rates = processor_files, learning_rates or {}
        self.lengths, self.pack_budget, self.epoch_sampler = lengths, pack_budget, None
        self.write_card = write_card
        self.add_callback(GradientCheck(self))
        self.finite_check, self.progress, self.log_file = FiniteCheck(self), ProgressLine(), LogFile()
        self.remove_callback(PrinterCallback if self.args.disable_tqdm else ProgressCallback)
        for callback in (self.finite_check, SkipFrozenBackward, self.progress, self.log_file):
            self.add_callback(callback)
        if self.args.early_stopping_patience:
            self.add_callback(EarlyStopping(self.args.early_stopping_patience))
        self.meter = ThroughputMeter(self.args.device, self.args.peak_tflops, self.args.activation_checkpointing)
        # Several models set this to False, and then the Trainer does not count the labels of a step.
        self.model_accepts_loss_kwargs = True

    def train(self, resume_from_checkpoint: str | None = None):
        try:
            with self.naming_samples():
                return super().train(resume_from_checkpoint)
        finally:
            self.progress.bar.close()  # otherwise an error would be printed on the bar's line

    def evaluate(self, *args, **kwargs):
        self.meter.pause()
        with self.naming_samples():
            return super().evaluate(*args, **kwargs)

    def evaluate_at_end(self) -> dict[str, float]:
        """Evaluate the final weights, or return the logged metrics if they were evaluated after the last step."""
        step = self.state.global_step
        found = [logs for logs in self.state.log_history if "eval_loss" in logs and logs["step"] == step]
        if found and not self.args.load_best_model_at_end:
            return {name: value for name, value in found[-1].items() if name.startswith("eval_")}
        return self.evaluate()

    @contextmanager
    def naming_samples(self):
        """Turn the error that ended a data loader's worker into a ValueError that names the sample."""
        try:
            yield
        except (OSError, EOFError, RuntimeError, ValueError) as error:
            cause = error
            if isinstance(error, (OSError, EOFError)):
                try:
                    check_not_removed(self.args.output_dir, error)
                    time.sleep(1)  # torch names the dead worker on SIGCHLD, which may come a bit later
                except RuntimeError as named:
                    cause = named
            for dataset in filter(None, (self.train_dataset, self.eval_dataset)):
                if explained := dataset.explain(cause):
                    raise explained from error
            raise

    def report_skipped(self) -> None:
        """Print how many unusable samples all processes have skipped, including those left out at the start."""
        for what, dataset in (("training", self.train_dataset), ("evaluation", self.eval_dataset)):
            if dataset and len(dataset.failed):
                number = int((self.accelerator.reduce(dataset.failed.to(self.args.device).long()) > 0).sum())
                number, total = (dataset.dataset.num_bad + found for found in (number, len(dataset)))
                print_once(f"--on_bad_sample skip: {number:,} of {total:,} {what} samples were skipped.")

    def training_step(self, model, inputs, *args):
        with self.meter.step(inputs):
            return super().training_step(model, inputs, *args)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Return the sum of the label losses, divided by the number of labels in the global step over all ranks."""
        losses, keep, outputs = label_losses(model, inputs, self.args.label_smoothing_factor)
        self.meter.end_forward()
        loss = losses.sum() / (keep.sum() if num_items_in_batch is None else num_items_in_batch)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # engines average gradients over ranks
        self.finite_check.see_loss(loss)
        return (loss, outputs) if return_outputs else loss

    def _get_grad_norm(self, *args, **kwargs):
        norm = super()._get_grad_norm(*args, **kwargs)
        self.finite_check.see_norm(norm)
        return norm

    def floating_point_ops(self, inputs) -> int:
        return 0  # the model's method counts all parameters again in every batch (transformers 5.23)

    def set_initial_training_values(self, args, dataloader):
        """Turn `*_steps` flags that are fractions of the run into numbers of steps. Return the Trainer's values."""
        values = super().set_initial_training_values(args, dataloader)
        for name in ("logging_steps", "eval_steps", "save_steps"):
            if 0 < (getattr(args, name) or 0) < 1:
                setattr(args, name, math.ceil(values[-1] * getattr(args, name)))
        return values

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        return super().get_batch_samples(self.meter.waiting(epoch_iterator), num_batches, device)

    def log(self, logs, start_time=None):
        if "loss" in logs:
            logs |= {"loss": self.logged_loss()} | self.meter.log()
        elif "train_loss" in logs:  # `train` returns these too; the Trainer's own figures include evaluations
            logs |= self.meter.log_run()
            seconds = self.log_file.seconds  # since the first start; the Trainer counts since the last resume
            logs["train_runtime"] = round(seconds, 4)
            logs["train_steps_per_second"] = round(self.state.global_step / seconds, 3)
            logs["train_loss"] = (self.total_loss + self.loss_sum.item()) / self.state.global_step
        super().log(logs, start_time)

    def _save_checkpoint(self, *args):
        self.meter.pause()
        self.finite_check.check_weights()
        super()._save_checkpoint(*args)

    def create_optimizer(self, model=None):
        """Create the Trainer's optimizer. Parameters with other learning rates are moved to new groups at the end."""
        optimizer = super().create_optimizer(model)
        named = self.accelerator.unwrap_model(self.model if model is None else model).named_parameters()
        rates = {parameter: self.learning_rates[name] for name, parameter in named if name in self.learning_rates}
        for group in list(optimizer.param_groups):
            for rate in sorted({rates[p] for p in group["params"] if p in rates} - {group["lr"]}):
                moved = [p for p in group["params"] if rates.get(p) == rate]
                group["params"] = [p for p in group["params"] if rates.get(p) != rate]
                optimizer.add_param_group({**group, "params": moved, "lr": rate})
        # In an update that should be skipped, all gradients must stay None.
        optimizer.register_step_pre_hook(
            lambda *args: None if self.finite_check.is_skipped else complete_gradients(*args)
        )
        return optimizer

    def get_decay_parameter_names(self, model):
        """Exclude all norms from weight decay. The Trainer (5.23) misses some names, such as Qwen2.5-VL's `norm1`."""
        norms = {name for name, module in model.named_modules() if "norm" in type(module).__name__.lower()}
        return [name for name in super().get_decay_parameter_names(model) if name.rpartition(".")[0] not in norms]

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs):
        """Evaluate as the Trainer does, but report the mean loss per label, over all rows and for each data path."""
        self._eval_sums = []
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        sums, found = torch.cat(self._eval_sums, 1), {}
        assert sums.shape == (2, len(self.eval_dataset))
        for part, rows in self.eval_dataset.dataset.parts().items():
            losses, labels = sums[:, rows.start : rows.stop].sum(1).tolist()
            if labels:
                found[f"{part}loss"] = losses / labels
        if self.args.eval_generate:
            found |= self._score_answers()
        best = (self.args.metric_for_best_model or "loss").removeprefix("eval_")
        if best not in found:
            raise ValueError(f"--metric_for_best_model {best} is not measured; choose from {', '.join(found)}.")
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in found.items()})
        return output

    def _score_answers(self) -> dict[str, float]:
        """Generate answers to the `--eval_generate` rows, write them to `eval_answers/step-N.jsonl` and score them."""
        answers, found = self.answers(self.eval_dataset.collator, self.eval_dataset.dataset, self._asked), [None]
        if self.is_world_process_zero():
            write_answers(self.args.output_dir, self.state.global_step, answers)
            found = [self._score(answers) | self._score_blind(answers)]
        return broadcast_object_list(found)[0]

    def answers(self, collator, dataset: MultimodalDataset, asked: list[Question]) -> list[dict]:
        """Generate answers to the questions in `asked`. Return all answers, in order, on every process.

        The questions are split among the processes. Each process calls `generate` equally often, since gathering the
        shards of a model requires all processes.
        """
        rank, processes = self.args.process_index, self.args.world_size
        mine = asked[rank::processes]
        mine += asked[:1] * (math.ceil(len(asked) / processes) - len(mine))
        size, longest = self.args.per_device_eval_batch_size, self.args.eval_max_new_tokens
        self.meter.pause()
        with self.accelerator.autocast():
            answers = generate_answers(self.model, collator, dataset, size, longest, mine, synced_gpus=processes > 1)
            answers = gather_object(list(answers))
        answers = {(answer["index"], answer["turn"]): answer for answer in answers}
        return [answers[key] for key in sorted(answers)]

    def _score(self, answers: list[dict]) -> dict[str, float]:
        functions, found = metrics.load_metrics(self.args.metric), {}
        for part, rows in self.eval_dataset.dataset.parts().items():
            if own := [answer for answer in answers if answer["index"] in rows]:
                found |= {f"{part}{name}": value for name, value in metrics.score(own, functions).items()}
        return found

    def _score_blind(self, answers: list[dict]) -> dict[str, float]:
        """Return the number of answers and the scores of blind guesses, or {} if they were logged before."""
        if any(logs.get("eval_answers") == len(answers) for logs in self.state.log_history):
            return {}
        guesses, parts = guess_blindly(self.train_dataset.dataset, answers), self.eval_dataset.dataset.parts()
        numbers = {f"{part}answers": sum(a["index"] in rows for a in answers) for part, rows in parts.items()}
        return numbers | {f"blind_{name}": value for name, value in self._score(guesses).items()}

    @cached_property
    def _asked(self) -> list[Question]:
        dataset, asked = self.eval_dataset.dataset, []
        for rows in [*dataset.parts().values()][-len(dataset.paths) :]:  # one range per data path
            some = evenly_spread(rows, self.args.eval_generate)
            asked += [found for found in questions(dataset, some) if self.eval_dataset.can_open(found.index)]
        if not asked:
            raise ValueError(f"{dataset.name}: its --eval_generate rows contain no reply. Raise --eval_generate.")
        return asked

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        with torch.no_grad(), self.compute_loss_context_manager():
            inputs = self._prepare_inputs(inputs)
            losses, keep, _ = label_losses(model, inputs, self.args.label_smoothing_factor)
        # Sums per sample, so that samples which accelerate repeats to fill the last batches can be dropped again.
        sample_losses, num_labels = sample_sums(losses, keep, inputs.get("sample_lengths"))
        own = slice(self.args.eval_batch_size)  # all but dummies, which come last
        sample_losses, num_labels = self.accelerator.gather_for_metrics((sample_losses[own], num_labels[own]))
        self._eval_sums.append(torch.stack([sample_losses.double(), num_labels.double()]).cpu())
        return losses.mean(), None, None

    def get_train_dataloader(self) -> DataLoader:
        args, rows = self.args, self.train_dataset.dataset
        seed = args.seed if args.data_seed is None else args.data_seed
        batch = args.train_batch_size * args.world_size
        if self.pack_budget:
            epochs = self._most_epochs(rows, seed, batch)
            self.epoch_sampler = PackSampler(rows, seed, self.lengths, self.pack_budget, batch, epochs)
        else:
            sampler = SAMPLERS[args.train_sampling_strategy]
            self.epoch_sampler = sampler(rows, seed, batch * args.gradient_accumulation_steps, self.lengths)
        options = {"sampler": self.epoch_sampler, "drop_last": args.dataloader_drop_last}
        return self._data_loader(self.train_dataset, args.train_batch_size, **options)

    def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
        return self._eval_loader

    @cached_property
    def _eval_loader(self) -> DataLoader:
        return self._data_loader(self.eval_dataset, self.args.eval_batch_size)

    def _data_loader(self, dataset, batch_size: int, **options) -> DataLoader:
        names = ("num_workers", "pin_memory", "persistent_workers", "multiprocessing_context", "prefetch_factor")
        options |= {name: getattr(self.args, f"dataloader_{name}") for name in names}
        options |= {"collate_fn": self.data_collator, "worker_init_fn": end_with_parent_only}
        return self.accelerator.prepare(DataLoader(dataset, batch_size, **options))

    def _most_epochs(self, dataset, seed: int, batch: int) -> int:
        """Return the number of epochs. With `--max_steps`, it is an upper bound, which only full packs would reach."""
        if self.args.max_steps <= 0:
            return math.ceil(self.args.num_train_epochs)
        tokens, epoch = self.args.max_steps * self.args.gradient_accumulation_steps * batch * self.pack_budget, 0
        while tokens > 0:
            tokens -= self.lengths[dataset.epoch_rows(seed, epoch)].sum()
            epoch += 1
        return epoch

    def _run_epoch(self, *, epoch, **kwargs):
        # If a finished run is resumed, even one that was stopped early, the Trainer (5.23) would take another step.
        if self.state.global_step < self.state.max_steps and not self.control.should_training_stop:
            self.epoch_sampler.set_epoch(epoch)  # accelerate 1.15 omits this if several ranks resume
            super()._run_epoch(epoch=epoch, **kwargs)

    def _save(self, output_dir=None, state_dict=None):
        if state_dict is not None:  # ZeRO-3 gathers a tied head as a separate tensor
            tied = self.accelerator.unwrap_model(self.model).all_tied_weights_keys
            state_dict = {name: weight for name, weight in state_dict.items() if name not in tied}
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            output_dir = output_dir or self.args.output_dir
            share_weights(output_dir)
            self.processor_files.write(output_dir)
            if self.write_card:
                self.write_card(output_dir, self.state)

    def create_model_card(self, *args, **kwargs):
        """Do nothing, because the Trainer would overwrite our model card before an upload to the Hub."""


class EarlyStopping(EarlyStoppingCallback):
    """The Trainer's early stopping. It also prints the reason, and a resumed run keeps the count (not so in 5.23)."""

    def on_train_begin(self, args, state, control, **kwargs):
        saved = state.stateful_callbacks[type(self).__name__]["attributes"]
        self.early_stopping_patience_counter = saved["early_stopping_patience_counter"]
        control.should_training_stop = self.is_over

    @property
    def is_over(self) -> bool:
        return self.early_stopping_patience_counter >= self.early_stopping_patience

    def on_train_end(self, args, state, control, **kwargs):
        if self.is_over:
            print_once(
                f"Stopped early after step {state.global_step}: {self.early_stopping_patience} evaluations without a "
                f"better {args.metric_for_best_model} than {state.best_metric:.4g} at step {state.best_global_step}."
            )
