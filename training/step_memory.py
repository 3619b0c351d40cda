"""Estimate the memory of a training step by running it on fake tensors (torch's FakeTensor), which have a shape and a
precision but no values. `measure_step` runs optimizer, forward and backward, and tracks which tensors are alive. So no
formula is needed for adapters, checkpointing, dropout, autocast or the code of a family. The batch is real, and so are
tensors that depend only on it, such as masks and positions, because model code may read their values.
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

# bitsandbytes 0.50, nf4 with double quantization: one byte of scale per 64 weights, and one float per 256 scales.
NF4_BLOCK, NF4_SCALES = 64, 256


@dataclass
class Shares:
    """How much memory of each kind a device needs: a fraction of what a single process needs, plus extra bytes.

    If an engine shards a kind of memory, `share` is the fraction on each device. `more` has the bytes that the engine
    gathers or copies in addition. Kinds without a share count in full, such as the activations of a device's own rows.

    For example, four devices train a billion weights in bfloat16. A single process needs 2 GB for weights, 2 GB for
    gradients and 4 GB for the optimizer. ZeRO-2 shards the last two, `share={"gradients": 1/4, "optimizer": 1/4}`, and
    needs a bucket for 500 million gradients, `more={"gradients": 1e9}`. Each device needs 2 + (0.5 + 1) + 1 = 4.5 GB.
    ZeRO-3 also shards the weights, and `more` then contains the gathered layers.
    """

    share: dict[str, float] = field(default_factory=dict)  # default of a kind: 1, all of it
    more: Counter = field(default_factory=Counter)


class Ledger(TorchDispatchMode):
    """Counts the bytes of live tensors by kind, and keeps the counts at the moment with the most memory in use."""

    def __init__(self, shares: Shares, vocabulary: int):
        super().__init__()
        self.shares, self.vocabulary = shares, vocabulary
        self.kind = "activations"  # of new tensors
        self.sizes: dict[int, tuple[str, int]] = {}  # id of a storage -> (kind, bytes)
        self.live, self.peak = Counter(), Counter()

    def held(self, counts: Counter) -> float:
        return sum(size * self.shares.share.get(kind, 1) for kind, size in counts.items())

    def add(self, tensor: torch.Tensor, kind: str) -> None:
        """Count a tensor's storage as this kind, even if it was counted as another kind before."""
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
        if function is torch.ops.aten._to_copy.default:  # autocast copies weights to 16 bits
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
    """Replace boolean masks with positions, since a fake tensor cannot tell how many values are true."""
    found = []
    for index in indices:
        is_mask = index is not None and index.dtype == torch.bool and not isinstance(index, FakeTensor)
        found += index.nonzero(as_tuple=True) if is_mask else [index]
    return found


def _even_choice(chosen: torch.Tensor, number: int) -> torch.Tensor:
    """Replace a router's fake indices with real ones that give each of `number` experts the same number of tokens."""
    return (torch.arange(chosen.numel()) % number).view(chosen.shape)


class Dequantized(torch.autograd.Function):
    """Dequantizes a weight to the precision of the input in the forward pass, and again in the backward pass."""

    @staticmethod
    def forward(ctx, hidden, weight, shape):
        ctx.save_for_backward(weight)
        ctx.shape = shape
        return hidden @ hidden.new_empty(shape).t()

    @staticmethod
    def backward(ctx, gradient):
        return gradient @ gradient.new_empty(ctx.shape), None, None


class QuantizedLinear(nn.Linear):
    """Stands in for a quantized layer of bitsandbytes. Its weight has as many bytes, including the scales."""

    def __init__(self, linear: nn.Linear, bits: int):
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        number = linear.weight.numel()
        if bits == 4:
            blocks = -(-number // NF4_BLOCK)
            size = -(-number // 2) + blocks + 4 * -(-blocks // NF4_SCALES)
        else:
            size = number + 4 * linear.out_features  # one float per row
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
    """Return the bytes of each of `MEMORY_PARTS` on one device at the peak of a step.

    Args:
        model: a model on the meta device, with `requires_grad` set. It cannot be used afterwards.
        batch: a real batch of the collator.
        dtype: the precision of matrix products.
        make_optimizer: a function of the parameters that returns the optimizer.
        shares: how the engine divides memory among the devices.
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
        model.disable_input_require_grads()  # as trainable.SkipFrozenBackward does
    model.train()
    with ledger:
        kept = _update(trained, ledger, make_optimizer, in_float32=bool(training.deepspeed))
        if training.gradient_accumulation_steps == 1:  # else the gradients of earlier batches still exist
            for parameter in trained:
                parameter.grad = None
        # With DeepSpeed, the model itself has this precision, so nothing is cast.
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
    """Run a step of the optimizer, so that its state and temporary tensors are counted. Keep the gradients.

    Args:
        in_float32: whether the optimizer updates a float32 copy of the trained weights, as in DeepSpeed.

    Returns:
        The optimizer and the float32 copies (an empty list if there are none).
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
    """Compute the loss as FinetuneTrainer does, without keeping the logits."""

    def forward(**inputs):
        with autocast:
            outputs = model(**inputs)
        outputs.logits = outputs.logits.float()  # as accelerate does
        return outputs

    # All values are tensors except the lengths of concatenated samples.
    inputs = {name: value.clone() if torch.is_tensor(value) else value for name, value in batch.items()}
    losses, keep, _ = label_losses(forward, inputs, training.label_smoothing_factor)
    return losses.sum() / keep.sum()
