"""Sets missing gradients of trained parameters to zero, and warns about parameters that never get a gradient."""

from itertools import chain

import torch
from transformers import TrainerCallback

from training.adapters import base_name, largest_modules, shortened
from training.engines import print_once
from training.trainable import num_elements

MOST_UPDATES = 20


def complete_gradients(optimizer: torch.optim.Optimizer, *_) -> None:
    """Before a step, set missing gradients to zero, such as those of the vision encoder in a step with text only.

    PyTorch's optimizers skip a parameter without a gradient. With a zero gradient, momentum and weight decay continue.
    DeepSpeed, and dummy images in runs of several processes, give zeros. A single process must train in the same way.
    """
    for parameter in chain(*(group["params"] for group in optimizer.param_groups)):
        if parameter.requires_grad and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)


class GradientCheck(TrainerCallback):
    """Warns once about trained parameters that got no gradient in 20 updates or, in a shorter run, in any update.

    DDP and FSDP2 keep gradients in `.grad` until the optimizer's step. DeepSpeed removes them earlier, but calls hooks.
    FSDP2 calls no hook on a shard. So `.grad` and hooks are both checked. A gradient on any process is enough.
    """

    def __init__(self, trainer):
        self.trainer, self.hooks = trainer, []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.names = [name for name, _ in model.named_parameters()]
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.seen, self.updates = set(), 0  # names of parameters with a gradient
        self.hooks = [
            parameter.register_post_accumulate_grad_hook(lambda _, name=name: self.seen.add(name))
            for name, parameter in self.trained.items()
        ]

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if not self.hooks:
            return
        self.updates += 1
        self.seen |= {name for name, parameter in self.trained.items() if parameter.grad is not None}
        if self.updates < MOST_UPDATES and state.global_step + 1 < state.max_steps:
            return
        seen = torch.tensor([float(name in self.seen) for name in self.trained], device=args.device)
        seen = self.trainer.accelerator.reduce(seen).tolist()
        if missing := {name: self.trained[name] for name, count in zip(self.trained, seen) if not count}:
            modules = largest_modules(map(base_name, missing), map(base_name, self.names))
            print_once(
                f"WARNING: {sum(map(num_elements, missing.values())):,} parameters should train, but no gradient "
                f"reached them in {self.updates} update(s), so they learn nothing: {shortened(modules)}. If the "
                "loss cannot depend on them, name them in `unused_modules` of the loader (docs/add_new_model.md)."
            )
        for hook in self.hooks:
            hook.remove()
        self.names, self.trained, self.hooks = [], {}, []
