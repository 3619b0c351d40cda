"""The memory of a training step, found by running it without values. `measure_step` runs optimizer, forward and
backward on fake tensors, which have a shape and a precision but no values (torch's FakeTensor), and tracks which of
them are alive. So adapters, checkpointing, dropout, autocast and the code of each family need no formula. The batch is
real, and so is all that follows from it alone, such as masks and positions: what the code asks of them has an answer.
"""

import weakref
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from training.loss import label_losses

MEMORY_PARTS = ("weights", "gradients", "optimizer", "activations", "logits")

# bitsandbytes 0.50, nf4 with double quantization: a byte of scale for each block of 64 weights, and a float for each
# block of 256 of those.
NF4_BLOCK, NF4_SCALES = 64, 256


@dataclass
class Shares:
    """What a device holds of each kind, in an engine: a share of what one process alone would hold, and more bytes.

    An engine that shards a kind leaves each device its share of it. What it gathers or copies meanwhile comes on top,
    in `more`. A kind without a share is held in full, as are activations and logits of the device's own rows.

    Four devices train a billion weights in bfloat16: alone, 2 GB of weights, 2 of gradients, 4 of the optimizer. ZeRO-2
    shards the last two, `share={"gradients": 1/4, "optimizer": 1/4}`, and reduces gradients in a bucket of 500 million,
    `more={"gradients": 1e9}`: 2 + (0.5 + 1) + 1 = 4.5 GB. ZeRO-3 shards the weights too, and gathers layers in `more`.
    """

    share: dict[str, float] = field(default_factory=dict)  # where left out: all of it
    more: Counter = field(default_factory=Counter)


class Ledger(TorchDispatchMode):
    """Counts the bytes of live tensors by kind, and keeps the counts of the moment at which a device holds the most."""

    def __init__(self, shares: Shares, vocabulary: int):
        super().__init__()
        self.shares, self.vocabulary = shares, vocabulary
        self.kind = "activations"  # of new tensors
        self.sizes: dict[int, tuple[str, int]] = {}  # of each storage
        self.live, self.peak = Counter(), Counter()

    def held(self, counts: Counter) -> float:
        return sum(size * self.shares.share.get(kind, 1) for kind, size in counts.items())

    def add(self, tensor: torch.Tensor, kind: str) -> None:
        """Count a tensor's storage, under another kind if it is counted already."""
        storage = tensor.untyped_storage()  # the same object as long as it lives
        key, size = id(storage), storage.nbytes()
        if key in self.sizes:
            self.live[self.sizes[key][0]] -= size
        else:
            weakref.finalize(storage, self._free, key)
        self.sizes[key] = kind, size
        self.live[kind] += size
        if self.held(self.live) > self.held(self.peak):
            self.peak = self.live.copy()

    def _free(self, key: int) -> None:
        kind, size = self.sizes.pop(key)
        self.live[kind] -= size

    def _kind_of(self, tensor: torch.Tensor, function, arguments: tuple) -> str:
        if self.kind == "activations" and tensor.is_floating_point() and tensor.shape[-1:] == (self.vocabulary,):
            return "logits"
        if function is torch.ops.aten._to_copy.default:  # of weights to 16 bits, by autocast
            source, _ = self.sizes.get(id(arguments[0].untyped_storage()), (None, 0))
            return "copies" if source == "weights" else self.kind
        return self.kind

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.index.Tensor:
            args = (args[0], _positions(args[1]))
        output = function(*args, **(kwargs or {}))
        if function is torch.ops.aten.topk.default and isinstance(output[1], FakeTensor):
            output = output[0], _even_choice(output[1], args[0].shape[args[2] if len(args) > 2 else -1])
        for tensor in output if isinstance(output, (tuple, list)) else [output]:
            if isinstance(tensor, torch.Tensor) and id(tensor.untyped_storage()) not in self.sizes:
                self.add(tensor, self._kind_of(tensor, function, args))
        return output


def _positions(indices: list) -> list:
    """Boolean masks as positions, since a fake tensor cannot tell how many values are true."""
    found = []
    for index in indices:
        is_mask = index is not None and index.dtype == torch.bool and not isinstance(index, FakeTensor)
        found += index.nonzero(as_tuple=True) if is_mask else [index]
    return found


def _even_choice(chosen: torch.Tensor, number: int) -> torch.Tensor:
    """Real indices in the place of a router's fake ones: each of `number` experts gets equally many tokens."""
    return (torch.arange(chosen.numel()) % number).view(chosen.shape)


class Dequantized(torch.autograd.Function):
    """The weight of a quantized layer in the precision of its input: made for each product, and again in backward."""

    @staticmethod
    def forward(ctx, hidden, weight, shape):
        ctx.save_for_backward(weight)
        ctx.shape = shape
        return hidden @ hidden.new_empty(shape).t()

    @staticmethod
    def backward(ctx, gradient):
        return gradient @ gradient.new_empty(ctx.shape), None, None


class QuantizedLinear(nn.Linear):
    """Stands in for a layer of bitsandbytes: its weight takes as many bytes, including the scales."""

    def __init__(self, linear: nn.Linear, bits: int):
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        number = linear.weight.numel()
        if bits == 4:
            blocks = -(-number // NF4_BLOCK)
            size = -(-number // 2) + blocks + 4 * -(-blocks // NF4_SCALES)
        else:
            size = number + 4 * linear.out_features  # a float for each row
        self.weight = nn.Parameter(torch.empty(size, dtype=torch.uint8, device="meta"), requires_grad=False)
        self.bias = linear.bias

    def forward(self, hidden):
        if torch.is_autocast_enabled("cpu"):
            hidden = hidden.to(torch.get_autocast_dtype("cpu"))
        output = Dequantized.apply(hidden, self.weight, (self.out_features, self.in_features))
        return output if self.bias is None else output + self.bias.to(output.dtype)


def measure_step(
    model: nn.Module, batch: dict[str, torch.Tensor], training, dtype: torch.dtype, make_optimizer, shares: Shares
) -> dict[str, float]:
    """Bytes of each of `MEMORY_PARTS` on a device, at the peak of a step.

    Args:
        model: on the meta device, with what trains set apart; it is spent.
        batch: as the collator makes it, real.
        dtype: of matrix products.
        make_optimizer: parameters -> the optimizer.
        shares: what the engine leaves on the device.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        model.to_empty(device="cpu")
    model.tie_weights()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    ledger = Ledger(shares, model.config.get_text_config().vocab_size)
    for tensor in (*model.parameters(), *model.buffers()):
        ledger.add(tensor, "weights")
    for parameter in trained:
        parameter.register_post_accumulate_grad_hook(lambda parameter: ledger.add(parameter.grad, "gradients"))
    if training.activation_checkpointing:
        options = dict(training.activation_checkpointing_kwargs or {})
        options.pop("offload", None)
        every = options.pop("every_n_layers", 1)
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=options or None, every_n_layers=every)
        model.disable_input_require_grads()  # as trainable.SkipFrozenBackward
    model.train()
    with ledger:
        kept = _update(trained, ledger, make_optimizer, in_float32=bool(training.deepspeed))
        if training.gradient_accumulation_steps == 1:  # else those of the earlier batches wait
            for parameter in trained:
                parameter.grad = None
        # DeepSpeed holds the model itself in that precision.
        casts = dtype != torch.float32 and not training.deepspeed
        _loss(model, batch, training, torch.autocast("cpu", dtype, enabled=casts)).backward()
    del kept
    found = defaultdict(float)
    for kind, size in ledger.peak.items():
        found["weights" if kind == "copies" else kind] += size * shares.share.get(kind, 1)
    for kind, size in shares.more.items():
        found[kind] += size
    return {kind: found[kind] for kind in MEMORY_PARTS}


def _update(trained: list[nn.Parameter], ledger: Ledger, make_optimizer, in_float32: bool):
    """A step of the optimizer, for what it needs besides its state; the gradients stay.

    Args:
        in_float32: whether it works on a copy of what trains, as in DeepSpeed.

    Returns:
        The optimizer, and the copy.
    """
    ledger.kind, copies = "optimizer", []
    if in_float32:
        copies = [nn.Parameter(torch.empty_like(parameter, dtype=torch.float32)) for parameter in trained]
    ledger.kind = "gradients"
    for parameter in trained + copies:
        parameter.grad = torch.empty_like(parameter)
    ledger.kind = "optimizer"
    optimizer = make_optimizer(copies or trained)
    optimizer.step()
    if in_float32:
        optimizer.zero_grad()
    ledger.kind = "activations"
    return optimizer, copies


def _loss(model, batch: dict, training, autocast) -> torch.Tensor:
    """As FinetuneTrainer's, which keeps no logits beyond it."""

    def forward(**inputs):
        with autocast:
            outputs = model(**inputs)
        outputs.logits = outputs.logits.float()  # as accelerate hands them on
        return outputs

    # All but the lengths of samples in one row are tensors.
    inputs = {name: value.clone() if torch.is_tensor(value) else value for name, value in batch.items()}
    losses, keep, _ = label_losses(forward, inputs, training.label_smoothing_factor)
    return losses.sum() / keep.sum()
