"""Tests whether gradients, losses and saved weights are finite, so that a run ends before its weights become nan."""

import math

import torch
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from evaluation.verdict import RECENT_LOSSES, Diverged, diverges
from training.engines import print_once
from training.resume import last_checkpoint

MOST_SKIPPED = 20  # updates in a row that are skipped before the run ends
MOST_NAMES = 8  # samples that a message lists


class FiniteCheck(TrainerCallback):
    """Ends a run before an update that is not finite, or skips that update; never saves weights that are not finite.

    In bf16 and float32, the norm of the gradients, which is the same on all processes, is tested before the update.
    DeepSpeed updates the weights in `backward`, so the loss is tested before that call, and the norm only after it.
    In fp16, the scaler skips some updates to find its scale, so only 20 skipped updates in a row end the run.
    """

    def __init__(self, trainer):
        self.trainer, self.has_warned = trainer, False
        self.is_skipped, self.skipped, self.in_a_row, self.scale = False, 0, 0, None

    def on_step_begin(self, args, state, control, **kwargs):
        if self.scale is None and (scaler := self.trainer.accelerator.scaler):
            self.scale = scaler.get_scale()
        self.update, self.is_skipped = state.global_step, False

    def see_loss(self, loss: torch.Tensor) -> None:
        """Record the loss of a batch. Called on all processes, before `backward`."""
        trainer = self.trainer
        trainer.losses.append(loss.detach())
        if trainer.is_deepspeed_enabled and not trainer.args.fp16:
            if trainer.accelerator.reduce(1.0 - loss.isfinite().float()):
                self.end("the loss")

    def see_norm(self, norm: torch.Tensor | float | None) -> None:
        """Test the norm of the gradients. Called on all processes, before the optimizer's step."""
        trainer = self.trainer
        if trainer.args.fp16:
            return
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        # If DeepSpeed has already skipped the update, it returns no norm.
        if not trainer.accelerator.optimizer_step_was_skipped and (norm is None or math.isfinite(norm)):
            return
        if trainer.args.on_nonfinite == "error":
            self.end("the norm of the gradients")
        trainer.optimizer.zero_grad()  # without gradients, the optimizer changes nothing
        self.is_skipped = True

    def was_skipped(self) -> bool:
        accelerator = self.trainer.accelerator
        if accelerator.scaler is None:
            return self.is_skipped or accelerator.optimizer_step_was_skipped
        # Fused optimizers skip the update inside their step. accelerate 1.15 does not see this, but the scale drops.
        before, self.scale = self.scale, accelerator.scaler.get_scale()
        return self.scale < before

    def on_step_end(self, args, state, control, **kwargs):
        is_skipped = self.was_skipped()
        self.skipped += is_skipped
        self.in_a_row = self.in_a_row + 1 if is_skipped else 0
        if self.in_a_row == MOST_SKIPPED:
            self.end(f"for {MOST_SKIPPED} updates in a row, the norm of the gradients")

    def end(self, what: str) -> None:
        """Save the weights as they were before this update, and end the run."""
        trainer, args = self.trainer, self.trainer.args
        names = self.names()  # gathered from all processes
        saved = trainer.save_before_update()
        fp16 = "--bf16 True instead of --fp16 True, " if args.fp16 else ""
        norm = args.max_grad_norm / 10 if 0 < args.max_grad_norm <= 1 else 1
        skip = " To skip such updates, add --on_nonfinite skip, also together with --resume_from_checkpoint True."
        can_skip = args.on_nonfinite == "error" and not args.fp16 and not trainer.is_deepspeed_enabled
        raise Diverged(
            f"step {self.update + 1}: {what} is not finite, at a learning rate of "
            f"{trainer.lr_scheduler.get_last_lr()[0]:.3g}. The update was not applied; {saved}. Samples: {names}. "
            f"Try {fp16}a lower --learning_rate, more --warmup_steps or --max_grad_norm {norm:g}, and look at the "
            f"samples with preview.py.{skip if can_skip else ''}"
        )

    def names(self) -> str:
        """List the samples of batches whose loss is not finite or, if all losses are finite, of the whole update."""
        trainer, args = self.trainer, self.trainer.args
        flags = 1.0 - torch.stack(trainer.losses).isfinite().float()
        # The sampler's batch 0 goes to process 0, batch 1 to process 1, and so on.
        flags = trainer.accelerator.gather(flags).view(args.world_size, -1).T.flatten().tolist()
        order, size = list(trainer.epoch_sampler), args.train_batch_size
        updates = math.ceil(len(trainer.callback_handler.train_dataloader) / args.gradient_accumulation_steps)
        start = self.update % updates * args.gradient_accumulation_steps * args.world_size
        found = []
        for batch, is_bad in enumerate(flags, start):
            if is_bad or not any(flags):
                found += [order[i % len(order)] for i in range(batch * size, (batch + 1) * size)]
        rows = [row for one in found for row in (one if isinstance(one, tuple) else (one,))]  # a pack has several rows
        more = f" and {len(rows) - MOST_NAMES} more" if len(rows) > MOST_NAMES else ""
        return "; ".join(map(trainer.train_dataset.dataset.source, rows[:MOST_NAMES])) + more

    def check_weights(self) -> None:
        """Raise `Diverged` if weights that should be saved are not finite. Called on all processes."""
        trained = [shard(p).detach() for p in self.trainer.model.parameters() if p.requires_grad]
        is_finite = torch.stack([weights.sum(dtype=torch.float32) for weights in trained]).isfinite().all()
        if self.trainer.accelerator.reduce(1.0 - is_finite.float()):
            raise Diverged(
                f"step {self.trainer.state.global_step}: the weights are no longer finite, so they are not saved; "
                f"{last_checkpoint(self.trainer.args.output_dir)}. Start again with a lower --learning_rate."
            )

    def on_log(self, args, state, control, logs=None, **kwargs):
        losses = [each["loss"] for each in state.log_history if "loss" in each]
        if not self.has_warned and losses and diverges(losses[0], losses):
            self.has_warned = True
            mean = sum(losses[-RECENT_LOSSES:]) / RECENT_LOSSES
            print_once(
                f"WARNING: the mean of the last {RECENT_LOSSES} logged losses, {mean:.4g}, is over twice the first: "
                "the run diverges. Try a lower --learning_rate or more --warmup_steps."
            )

    def on_train_end(self, args, state, control, **kwargs):
        if self.skipped:
            print_once(f"{self.skipped} of {state.global_step:,} updates were skipped: the gradients were not finite.")


def shard(parameter: torch.nn.Parameter) -> torch.Tensor:
    """Return this process's shard of a parameter."""
    if hasattr(parameter, "ds_tensor"):  # ZeRO-3
        return parameter.ds_tensor
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter
