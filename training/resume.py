"""Stop and resume: checkpoints that are never incomplete, and a Trainer that continues exactly from a checkpoint.

A checkpoint is written to `unfinished-checkpoints` in the output folder, and is renamed to `checkpoint-N` when all its
files are on the disk. Its `checkpoint.json` lists the files, and the settings that a resumed run must not change.
"""

import json
import math
import os
import shutil
import signal
import sys
import threading
import zlib
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
import transformers
from accelerate.utils import broadcast_object_list, gather_object
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import TrainerCallback

from loaders.output_folder import checkpoints_in, fill_adapter
from reading.dataset import MultimodalDataset, of_flag
from reading.replaced import drawn_files, written_again
from reading.strict_json import make_strict, strict_json
from training.checkpoint_files import UntrustedCheckpoint, check_file, checksum
from training.engines import print_once

UNFINISHED = "unfinished-checkpoints"
RECORD = "checkpoint.json"

# Flags that a resumed run may change: paths, how files are read, and when and where to save, evaluate and log.
FREE_FLAGS = set(
    """
    output_dir resume_from_checkpoint model_local_path model_path data_path eval_data_path image_folder video_folder
    data_cache dataloader_num_workers dataloader_persistent_workers dataloader_prefetch_factor dataloader_pin_memory
    dataloader_multiprocessing_context local_rank ddp_timeout on_bad_sample max_bad_samples on_nonfinite
    overwrite_output_dir trust_checkpoint save_strategy save_steps save_total_limit eval_strategy eval_steps eval_delay
    eval_on_start eval_generate eval_max_new_tokens metric per_device_eval_batch_size logging_strategy logging_steps
    logging_first_step disable_tqdm log_level log_level_replica log_on_each_node report_to run_name project
    trackio_space_id trackio_bucket_id trackio_static_space_id skip_memory_metrics peak_tflops push_to_hub hub_token
    hub_private_repo hub_model_id hub_strategy hub_always_push
    """.split()
)


def checkpoint_to_resume(training) -> str | None:
    """Return the path in --resume_from_checkpoint. For True, return the newest intact checkpoint or None."""
    folder, wanted = training.output_dir, training.resume_from_checkpoint
    if training.should_save and os.path.isdir(unfinished := os.path.join(folder, UNFINISHED)):
        shutil.rmtree(unfinished)
        print_once(f"Removed {unfinished}, which contained a half-written or half-deleted checkpoint.")
    if not wanted:
        return None
    if training.save_only_model:
        raise ValueError("--save_only_model True saves nothing to resume from: leave --resume_from_checkpoint out.")
    if wanted is not True:
        with of_flag("resume_from_checkpoint"):
            check_files(wanted, training)
        return wanted
    (checkpoints,) = broadcast_object_list([checkpoints_in(folder)])  # nodes may see shared files a minute late
    for checkpoint in reversed(checkpoints):
        try:
            check_files(checkpoint, training)
            print_once(f"Resuming from {checkpoint}.")
            return checkpoint
        except UntrustedCheckpoint:
            raise
        except ValueError as error:
            print_once(f"WARNING: skipped a checkpoint: {error}")
    print_once(f"No usable checkpoint in {folder}: starting from the beginning.")
    return None


def check_files(checkpoint: str, training) -> None:
    """Check every file of a checkpoint. Each process checks some files, and an error on one process is raised on all.

    Raises:
        ValueError: a file is missing, damaged, or would run unknown code.
    """
    problem = None
    try:
        saved = read_record(checkpoint)["files"]
        found = [os.path.join(parent, name) for parent, _, names in os.walk(checkpoint) for name in names]
        first, step = (0, 1) if training.save_on_each_node else (training.process_index, training.world_size)
        for path in sorted(found)[first::step]:
            check_file(path, saved.get(os.path.relpath(path, checkpoint)), training.trust_checkpoint)
    except ValueError as error:
        problem = error
    if problems := [found for found in gather_object([problem]) if found]:
        raise problems[0]


def read_record(checkpoint: str) -> dict:
    """Return the `checkpoint.json` of a checkpoint. Raise a ValueError if a file is missing or its size has changed."""
    try:
        record = json.loads(Path(checkpoint, RECORD).read_text(encoding="utf-8"))
        if record.pop("checksum") != zlib.crc32(strict_json(record).encode()):
            raise ValueError("it was changed")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{checkpoint} is not a complete checkpoint: no usable {RECORD} ({error}).") from error
    for name, (size, _) in record["files"].items():
        path = os.path.join(checkpoint, name)
        if not os.path.isfile(path) or os.path.getsize(path) != size:
            raise ValueError(f"{checkpoint} is not a complete checkpoint: {name} is missing or not {size:,} bytes.")
    return record


def whole_checkpoints(folder: str) -> list[str]:
    """Return the complete checkpoints in an output folder, ordered by step."""
    whole = []
    for checkpoint in checkpoints_in(folder):
        with suppress(ValueError):
            read_record(checkpoint)
            whole.append(checkpoint)
    return whole


def last_checkpoint(folder: str) -> str:
    """Return a text that names the last complete checkpoint, or that reports that there is none."""
    whole = whole_checkpoints(folder)
    return f"the last complete checkpoint is {whole[-1]}" if whole else "there is no checkpoint yet"


# ---- the same run ----


def keep_resize(checkpoint: str | None, data) -> None:
    """Keep resizing images before the processor if the resumed run is from an older version, which always did so."""
    if checkpoint and data.keep_processor_config is not None:
        if "keep_processor_config" not in read_record(checkpoint)["run"]["flags"]:
            data.keep_processor_config = None
            print_once("Images are resized before the processor, as when this run began, but unlike in new runs.")


def describe_run(arguments, dataset: MultimodalDataset) -> dict:
    """Return what must be equal in a resumed run and in the run that wrote the checkpoint."""
    flags = vars(arguments.model) | vars(arguments.data) | vars(arguments.lora) | arguments.training.to_dict()
    flags["add_tokens"] = flags.pop("new_tokens")  # the added words, not the path of the file with them
    flags = {name: value for name, value in flags.items() if name not in FREE_FLAGS}
    run = {"flags": flags, "processes": arguments.training.world_size}
    run |= {"samples": len(dataset), "texts": dataset.digest, "media": drawn_files(dataset)}
    return json.loads(strict_json(run, default=str))  # comparable with a record that was read from a file


def check_same_run(checkpoint: str, run: dict) -> None:
    """Raise a ValueError if a run (`describe_run`) differs from the run that wrote the checkpoint."""
    before = read_record(checkpoint)["run"]
    if found := differences(before, run):
        raise ValueError(
            f"{checkpoint} cannot be resumed exactly: {'; '.join(found)}. Undo what has changed, or start a new run "
            "without --resume_from_checkpoint in another --output_dir."
        )
    media = zip(run["media"], before.get("media", []))
    if rewritten := [name for (name, _, now), (_, _, then) in media if now != then]:
        print_once(f"WARNING: {written_again(rewritten)} since the run of {checkpoint} was started.")


def differences(before: dict, run: dict) -> list[str]:
    """Describe the differences between two results of `describe_run`."""
    found, flags = [], before["flags"]
    for name in sorted(flags.keys() | run["flags"].keys()):
        then, now = flags.get(name), run["flags"].get(name)
        if then != now:
            found.append(f"--{name} is {now}, but was {then}")
    if run["processes"] != before["processes"]:
        found.append(f"there are {run['processes']} processes, but there were {before['processes']}")
    if run["samples"] != before["samples"]:
        found.append(f"--data_path has {run['samples']} usable samples, but had {before['samples']}")
    elif run["texts"] != before["texts"]:
        found.append("the rows of --data_path or their order have changed")
    elif other := [(new, old) for new, old in zip(run["media"], before.get("media", [])) if new[1] != old[1]]:
        (name, now, _), (_, then, _) = other[0]
        others = f", and {len(other) - 1:,} other media files have changed size too" if other[1:] else ""
        found.append(f"{name} has {now:,} bytes, but had {then:,}{others}")
    return found


# ---- writing, and the Trainer ----


def check_not_removed(output_dir: str, error: Exception | None = None) -> None:
    if not os.path.isdir(output_dir):
        raise ValueError(f"--output_dir {output_dir} was removed during the run.") from error


@contextmanager
def disk_errors(folder: str, training):
    """Turn an error while writing to a folder into a ValueError that names the last complete checkpoint."""
    output_dir = training.output_dir
    if training.should_save:
        check_not_removed(output_dir)  # otherwise, libraries would create an empty one
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        check_not_removed(output_dir, error)
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):  # the file writer of torch.save
            raise
        shutil.rmtree(os.path.join(output_dir, UNFINISHED), ignore_errors=True)  # frees disk space
        free = shutil.disk_usage(output_dir).free
        raise ValueError(
            f"{folder} could not be written ({error}). The disk has {free / 1e6:,.0f} MB free; "
            f"{last_checkpoint(output_dir)}. Free space, then repeat the command with --resume_from_checkpoint True."
        ) from error


class ResumableTrainer(transformers.Trainer):
    """A Trainer that resumes exactly. It has the arguments of `transformers.Trainer`, and these:

    run: the result of `describe_run`, which is saved in checkpoints.
    """

    def __init__(self, *args, run: dict | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.run, self.resumed_from, self.is_saving, self.asked_to_stop = run, None, False, False
        # Losses of this update's batches; sums of losses since the last log and before it; the step of the last log.
        self.losses, self.loss_sum = [], torch.zeros(1, device=self.args.device)
        self.total_loss, self.logged_step = 0.0, 0
        self.add_callback(ResumeCallback(self))

    def train(self, resume_from_checkpoint: str | None = None):
        self.resumed_from = resume_from_checkpoint
        if resume_from_checkpoint:
            self.args.eval_on_start = False  # a resumed run is past its start
        if self.args.save_only_model:
            return super().train(resume_from_checkpoint)
        handler = signal.signal(signal.SIGTERM, self._ask_to_stop)
        try:
            return super().train(resume_from_checkpoint)
        except KeyboardInterrupt:
            last = last_checkpoint(self.args.output_dir)
            print_once(f"Ctrl-C: {last}. --resume_from_checkpoint True continues from it, or else starts again.")
            raise
        finally:
            signal.signal(signal.SIGTERM, handler)

    def logged_loss(self) -> float:
        """Return the mean loss of the steps since the last log, and reset the sum."""
        loss, steps = self.accelerator.gather(self.loss_sum).mean().item(), self.state.global_step - self.logged_step
        self.loss_sum, self.total_loss = torch.zeros_like(self.loss_sum), self.total_loss + loss
        self.logged_step = self.state.global_step
        return loss / steps

    def _ask_to_stop(self, number, frame):
        self.asked_to_stop = True

    def _get_output_dir(self, trial):
        return os.path.join(self.args.output_dir, UNFINISHED) if self.is_saving else self.args.output_dir

    def _save_checkpoint(self, model, trial):
        """Save as the Trainer does, but without ever leaving a half-written checkpoint-N when the run is killed."""
        output_dir, name = self.args.output_dir, f"checkpoint-{self.state.global_step}"
        unfinished, finished = os.path.join(output_dir, UNFINISHED, name), os.path.join(output_dir, name)
        with disk_errors(finished, self.args):
            self.is_saving = True
            super()._save_checkpoint(model, trial)
            self.is_saving = False
            best = os.path.join(output_dir, f"checkpoint-{self.state.best_global_step}")
            if best == finished or os.path.isdir(best):
                self.state.best_model_checkpoint = best
            losses = self.accelerator.gather(self.loss_sum).tolist()  # also waits until all ranks have written
            if self.args.should_save:
                state_file = os.path.join(unfinished, "trainer_state.json")
                self.state.save_to_json(state_file)
                make_strict(state_file)
                record = {"losses": losses, "total": self.total_loss, "logged": self.logged_step}
                write_record(unfinished, {"run": self.run, **record})
                discard(finished)  # an earlier start of the run may have left it
                os.rename(unfinished, finished)
                sync(output_dir)
                self.rotate_checkpoints(keep={name, os.path.basename(best)})
                os.rmdir(os.path.dirname(unfinished))
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(finished)

    def save_before_update(self) -> str:
        """Save a checkpoint, without the update that will not be applied. Return the text of `last_checkpoint`."""
        step = self.state.global_step
        if step and not os.path.isdir(os.path.join(self.args.output_dir, f"checkpoint-{step}")):
            self._save_checkpoint(self.model, None)
        return last_checkpoint(self.args.output_dir)

    def _push_from_checkpoint(self, checkpoint_folder):
        if not self.is_saving:
            super()._push_from_checkpoint(checkpoint_folder)

    def rotate_checkpoints(self, keep: set[str]) -> None:
        """Delete the oldest checkpoints beyond `--save_total_limit`. Unlike the Trainer, count only complete ones."""
        checkpoints = whole_checkpoints(self.args.output_dir)
        surplus = len(checkpoints) - (self.args.save_total_limit or len(checkpoints))
        for checkpoint in [path for path in checkpoints if os.path.basename(path) not in keep][: max(surplus, 0)]:
            discard(checkpoint)

    def restore_losses(self) -> None:
        record = read_record(self.resumed_from)
        for logs in (record, *self.state.log_history):
            logs |= {name: math.nan for name, value in logs.items() if value is None}  # `strict_json` wrote nan as null
        loss = record["losses"][self.args.process_index]
        self.loss_sum = self.loss_sum + (math.nan if loss is None else loss)
        self.total_loss, self.logged_step = record["total"], record["logged"]

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        """Load all weights. The Trainer (5.23) skips weights that have other names in the file than in the model."""
        if self.is_fsdp_enabled:
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        model = self.accelerator.unwrap_model(self.model)
        if hasattr(model, "peft_config"):
            return fill_adapter(model, load_file(os.path.join(resume_from_checkpoint, "adapter_model.safetensors")))
        saved = type(model).from_pretrained(resume_from_checkpoint, config=model.config, dtype=torch.float32)
        model.load_state_dict(saved.state_dict())

    def _load_best_model(self):
        if self.is_deepspeed_enabled:
            return super()._load_best_model()
        self._load_from_checkpoint(self.state.best_model_checkpoint)


def write_record(folder: str, record: dict) -> None:
    """List all files of a checkpoint in its `checkpoint.json`, and wait until all of them are on the disk."""
    files = [os.path.join(parent, name) for parent, _, names in os.walk(folder) for name in names if name != RECORD]
    record["files"] = {os.path.relpath(path, folder): checksum(path) for path in sorted(files)}
    record["checksum"] = zlib.crc32(strict_json(record).encode())
    Path(folder, RECORD).write_text(strict_json(record, indent=1), encoding="utf-8")
    for path in [*files, os.path.join(folder, RECORD), *(parent for parent, _, _ in os.walk(folder))]:
        sync(path)


def sync(path: str) -> None:
    """Wait until a file or folder is written to the disk, so that it survives a loss of power."""
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def discard(checkpoint: str) -> None:
    """Delete a checkpoint if it exists. It is first moved to `UNFINISHED`, in case the run is killed meanwhile."""
    if os.path.isdir(checkpoint):
        bin = os.path.join(os.path.dirname(checkpoint), UNFINISHED, f"deleted-{os.path.basename(checkpoint)}")
        os.makedirs(os.path.dirname(bin), exist_ok=True)
        os.rename(checkpoint, bin)
        shutil.rmtree(bin)


class ResumeCallback(TrainerCallback):
    """Makes a stopped run continue exactly, and stops a run on SIGTERM.

    The Trainer's `--enable_jit_checkpoint` (5.23) is not used, because ranks may save at different steps, and the
    script then continues as if training were complete.
    """

    def __init__(self, trainer: ResumableTrainer):
        self.trainer, self.stopping, self.save_after_epoch = trainer, False, False

    def on_train_begin(self, args, state, control, **kwargs):
        state.compute_steps(args, state.max_steps)  # uses the current flags, not those of the checkpoint
        # If nodes share a folder, one of them may see it as it was a minute ago.
        step = torch.tensor([state.global_step], device=args.device)
        if len(steps := set(self.trainer.accelerator.gather(step).tolist())) > 1:
            raise ValueError(
                f"The processes start from different checkpoints, of steps {sorted(steps)}: name one for all with "
                "--resume_from_checkpoint PATH."
            )
        if self.trainer.resumed_from:
            self.trainer.restore_losses()

    def on_step_begin(self, args, state, control, **kwargs):
        self.trainer.losses = []
        # Dropout depends only on seed, step and rank, not on random numbers that evaluations or loaders drew before.
        torch.manual_seed(zlib.crc32(f"{args.seed} {state.global_step} {args.process_index}".encode()))

    def on_step_end(self, args, state, control, **kwargs):
        trainer, asked = self.trainer, self.trainer.asked_to_stop
        for loss in trainer.losses:
            if args.logging_nan_inf_filter and not loss.isfinite():
                loss = trainer.loss_sum / (state.global_step - trainer.logged_step)
            trainer.loss_sum = trainer.loss_sum + loss
        if args.world_size > 1:  # all stop at the same step; a single process need not wait for its GPU
            asked = trainer.accelerator.reduce(torch.tensor(float(asked), device=args.device)).item()
        if asked and state.global_step < state.max_steps:
            self.stopping = control.should_save = True
        # At the end of an epoch, log and evaluate first, and save the checkpoint afterwards.
        if state.epoch.is_integer() or state.global_step == state.max_steps:
            self.save_after_epoch, control.should_save = control.should_save, False

    def on_epoch_end(self, args, state, control, **kwargs):
        control.should_save |= self.save_after_epoch
        self.save_after_epoch = False

    def on_save(self, args, state, control, **kwargs):
        if self.stopping:
            print_once(
                f"SIGTERM: stopped after step {state.global_step} of {state.max_steps} and saved a checkpoint. "
                "To continue, add --resume_from_checkpoint True."
            )
            self.trainer.end()
            sys.exit(128 + signal.SIGTERM)  # as a shell reports it


def end_with_parent_only(worker: int) -> None:
    """Make a data loader's worker obey SIGTERM only from its parent, since a scheduler may send it to all processes.

    If a worker ignored every SIGTERM, its parent would hang, since the parent sends SIGTERM on exit and then waits.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait_for_parent() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)

    threading.Thread(target=wait_for_parent, daemon=True).start()
