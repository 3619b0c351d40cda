"""How fast a run trains: what each log says about tokens, samples, padding, waiting for data, memory and MFU.

Counting never makes a process wait for its GPU: sums stay on the device until they are logged.
"""

import math
import resource
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from time import perf_counter

import torch
from accelerate.utils import gather_object
from torch import nn
from torch.nn.modules.conv import _ConvNd

from reading.dataset import IGNORE_INDEX
from training.adapters import base_name
from training.trainable import num_elements

# Of a layer in `layer_types` -> what names the positions that a token sees, itself and earlier ones; None: all.
WINDOWS = {"full_attention": None, "sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}


def sample_lengths(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The tokens of each sample of a batch (samples,), padded or padding-free; 0 for a dummy, which has no label."""
    labelled = batch["labels"] != IGNORE_INDEX
    if "sample_lengths" not in batch:
        return batch["attention_mask"].sum(1) * labelled.any(1)
    lengths = batch["sample_lengths"]
    has_label = torch.stack([labels.any() for labels in labelled[0].split(lengths)])
    return torch.tensor(lengths, device=labelled.device) * has_label


class ThroughputMeter:
    """Counts the batches and the time of one process, and reports on all processes.

    Args:
        device: where this process trains.
        flop_counter, peak_tflops: for the MFU, the share of a device's peak, in 10^12 operations a second, that the
            operations make that the training needs (`FlopCounter`).
    """

    def __init__(self, device: torch.device, flop_counter: "FlopCounter | None" = None, peak_tflops: float = 0.0):
        self.device, self.flop_counter, self.peak_tflops = device, flop_counter, peak_tflops
        self.since = None  # when the stopwatch was started; None: it stands
        self.interval, self.run = Counter(), Counter()  # sums since the last log, of this process, and of all logs
        self.run_memory = 0.0

    # ---- counting ----

    def waiting(self, batches: Iterator) -> Iterator:
        """The batches, with the time spent in waiting for each; starts the stopwatch."""
        if self.since is None:
            self.since = perf_counter()
        while True:
            start = perf_counter()
            batch = next(batches, None)
            self.interval["wait"] += perf_counter() - start
            if batch is None:
                return
            yield batch

    def pause(self) -> None:
        """Stop the stopwatch, until the next batch is asked for."""
        if self.since is not None:
            self.interval["seconds"] += perf_counter() - self.since
            self.since = None

    @contextmanager
    def forward(self, batch: dict[str, torch.Tensor]):
        """Count a batch, and within it what its forward pass computes."""
        lengths = sample_lengths(batch)
        self.interval["tokens"] += lengths.sum()
        self.interval["samples"] += (lengths > 0).sum()
        self.interval["positions"] += batch["labels"].numel()
        if self.flop_counter is None:
            yield
            return
        with self.flop_counter.forward(batch["labels"].numel()):
            yield
        self.interval["flops"] += self.flop_counter.flops(lengths)

    # ---- reporting ----

    def log(self) -> dict[str, float]:
        """The figures since the last one of these, over all processes, which all have to call it."""
        running = self.since is not None
        self.pause()
        self.since = perf_counter() if running else None
        mine = {name: float(value) for name, value in self.interval.items()} | {"memory": self._peak_memory()}
        processes = gather_object([mine])
        memory = max(process.pop("memory") for process in processes)
        interval = sum(map(Counter, processes), Counter({"processes": len(processes)}))
        self.interval.clear()
        self.run.update(interval)
        self.run["processes"] = len(processes)
        self.run_memory = max(self.run_memory, memory)
        return self._figures(interval, memory)

    def log_run(self) -> dict[str, float]:
        """The same over the whole run, or since its resumption; named `train_...`."""
        self.log()
        return {f"train_{name}": value for name, value in self._figures(self.run, self.run_memory).items()}

    def _figures(self, sums: Counter, memory: float) -> dict[str, float]:
        if not sums["positions"]:
            return {}
        seconds = sums["seconds"] / sums["processes"]
        figures = {
            "tokens_per_second": sums["tokens"] / seconds,
            "samples_per_second": sums["samples"] / seconds,
            "padding": 1 - sums["tokens"] / sums["positions"],
            "data_wait": sums["wait"] / sums["seconds"],
            "peak_memory_gb": memory,
        }
        if self.flop_counter is not None:
            figures["mfu"] = sums["flops"] / (sums["seconds"] * self.peak_tflops * 1e12)
        return {name: float(f"{value:.4g}") for name, value in figures.items()}

    def _peak_memory(self) -> float:
        """In 10^9 bytes: of tensors on a GPU, since the last call; else of the process, since its start."""
        if self.device.type != "cuda":
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        peak = torch.cuda.max_memory_allocated(self.device) / 1e9
        torch.cuda.reset_peak_memory_stats(self.device)
        return peak


def attention_widths(text_config) -> Counter:
    """The window of a language model's layers, in positions, or inf -> heads times head size, of all such layers."""
    widths = Counter()
    kinds = getattr(text_config, "layer_types", None) or ["full_attention"] * text_config.num_hidden_layers
    for kind, layer in zip(kinds, text_config.per_layer_config):
        if kind in WINDOWS:  # others, such as convolutions, have no attention
            window = getattr(layer, WINDOWS[kind]) if WINDOWS[kind] else math.inf
            head_size = getattr(layer, "head_dim", None) or layer.hidden_size // layer.num_attention_heads
            widths[window] += layer.num_attention_heads * head_size
    return widths


class FlopCounter:
    """Counts the floating-point operations that training needs for a batch, by hooks on the modules that multiply.

    - A weight takes 2 operations for each position that it is applied to; the gradient of what goes in takes another
      2, where there is one, and the gradient of the weight another 2, where it trains. Both are read off the forward
      pass itself: a frozen vision encoder has neither, a frozen weight under LoRA the first. Embeddings take none, the
      head is applied to labelled positions, a mixture of experts counts its active ones.
    - Attention takes 4 operations for each pair of positions and each number of the heads' width, and twice as many
      backward. In the language model the pairs are the causal half of each sample, within the window of layers that
      have one (heads and layers by the config). In the vision encoder they are all pairs of a sequence, as its
      attention modules get them: an image, a tile, a frame, or a window.
    - Padding and dummies count nothing in the language model; activations that checkpointing computes again, nowhere.

    Left out, since nothing needs them: layers whose output is not read. Left out, since small: norms, activations,
    rotary positions, the recurrence of linear attention, pairs that an image adds to the causal half, weights that no
    Linear or convolution holds (gemma-3's projection, the resampler's attention in qwen-vl), and attention whose input
    is not (sequences, positions, width), as in qwen-vl's encoder. Cross-attention (llama-3.2-vision) counts as though
    it were to the text.

    Args:
        model: as the Trainer gets it, with its adapters.
        loader: the family's, which names the components.
    """

    def __init__(self, model: nn.Module, loader):
        self.is_counting, self.num_positions = False, 0
        self.text_config = loader.config.get_text_config()
        self.attention_widths = attention_widths(self.text_config)
        head = model.get_output_embeddings()
        trained = {loader.component_of(base_name(name)) for name, p in model.named_parameters() if p.requires_grad}
        for name, module in model.named_modules():
            name = base_name(name)
            component = loader.component_of(name)
            if not component or loader.is_unused(name):
                continue
            of_text = component == "language_model"
            # Under activation checkpointing, what a frozen encoder computes has gradients, too, which nothing needs.
            flows = of_text or not trained.isdisjoint({component, "vision_encoder"})
            own = dict(module.named_parameters(recurse=False))
            parts = {loader.mixture_part(f"{name}.{key}") for key in own}
            if isinstance(module, (nn.Linear, _ConvNd)):
                hook = partial(self._count_weights, [module.weight], flows, of_text and module is not head)
            elif parts & {"experts", "router"}:
                hook = partial(self._count_weights, list(own.values()), flows, of_text, are_experts="experts" in parts)
            elif component == "vision_encoder" and type(module).__name__.endswith("Attention"):
                hook = partial(self._count_attention, flows)
            else:
                continue
            module.register_forward_hook(hook, with_kwargs=True)

    @contextmanager
    def forward(self, num_positions: int):
        """Count what the modules compute within, of a batch with so many positions (rows times tokens)."""
        self.is_counting, self.num_positions = True, num_positions
        self.of_text = self.of_others = 0  # operations; of the text on all positions, also on padding
        try:
            yield
        finally:
            self.is_counting = False

    def flops(self, lengths: torch.Tensor) -> torch.Tensor:
        """What training needs for the batch counted last, with samples of these `lengths` (samples,)."""
        return self.of_others + self.of_text * (lengths.sum() / self.num_positions) + self._text_attention(lengths)

    def _text_attention(self, lengths: torch.Tensor) -> torch.Tensor:
        lengths, pairs = lengths.float(), 0
        for window, width in self.attention_widths.items():
            seen = lengths.clamp(max=window)
            pairs = pairs + width * (lengths * seen - seen**2 / 2).sum()
        return 3 * 4 * pairs

    def _count_weights(self, weights, flows: bool, of_text: bool, module, inputs, kwargs, output, are_experts=False):
        positions, active = self.num_positions, 1
        if isinstance(module, nn.Linear):
            positions = inputs[0].numel() // module.in_features
        elif isinstance(module, _ConvNd):
            positions = output.numel() // module.out_channels
        elif are_experts:
            active = getattr(self.text_config, "num_experts_per_tok", None) or self.text_config.top_k_experts
            active /= weights[0].shape[0]
        operations = 2 * positions * sum(map(num_elements, weights)) * active  # a packed weight counts as what it holds
        backward = (flows and inputs[0].requires_grad) + any(weight.requires_grad for weight in weights)
        self._add(operations * (1 + backward), of_text)

    def _count_attention(self, flows: bool, module, inputs, kwargs, output) -> None:
        hidden = inputs[0] if inputs else kwargs["hidden_states"]
        if "cu_seqlens" in kwargs:  # where each of the sequences in one row begins and ends
            pairs = kwargs["cu_seqlens"].diff().float().square().sum()
        elif hidden.dim() == 3:
            pairs = hidden.shape[0] * hidden.shape[1] ** 2
        else:
            return
        backward = 2 * (flows and hidden.requires_grad)
        self._add(4 * pairs * hidden.shape[-1] * (1 + backward), of_text=False)

    def _add(self, operations: int | torch.Tensor, of_text: bool) -> None:
        if not self.is_counting:  # in evaluation, or computed again by activation checkpointing
            return
        if of_text:
            self.of_text += operations
        else:
            self.of_others += operations
