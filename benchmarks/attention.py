"""Samples in one row: a call of attention each, against a mask for the whole row, and against padding.

    python benchmarks/attention.py

A random Llama without a head, forward and backward on one thread; the ways take turns. CPU-seconds over those of a call
for each sample, so above 1 is slower than that.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch  # noqa: E402
from transformers import AutoModelForCausalLM, LlamaConfig  # noqa: E402

from loaders.attention import SDPA_BY_SAMPLE  # noqa: E402

# hidden size, layers, tokens of each sample
CASES = [
    (256, 4, [620] * 4),
    (256, 4, [100, 900, 300, 500]),
    (256, 4, [250] * 16),
    (128, 2, [73] * 32),
    (512, 4, [100] * 16),
]


def inputs_of(lengths: list[int]) -> dict[str, tuple[str, dict]]:
    """Way -> (attention, inputs)."""
    longest, row = max(lengths), torch.randint(0, 1000, (1, sum(lengths)))
    mask = torch.stack([(torch.arange(longest) < length).long() for length in lengths])
    positions = {"position_ids": torch.cat([torch.arange(length) for length in lengths])[None]}
    return {
        "by sample": (SDPA_BY_SAMPLE, {"input_ids": row, "sample_lengths": lengths, **positions}),
        "mask": ("sdpa", {"input_ids": row, **positions}),
        "padded": ("sdpa", {"input_ids": torch.randint(0, 1000, mask.shape), "attention_mask": mask}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for hidden, layers, lengths in CASES:
        sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "intermediate_size": int(2.7 * hidden)}
        model = AutoModelForCausalLM.from_config(LlamaConfig(**sizes, num_attention_heads=4, vocab_size=1000)).model
        found = {}
        for _ in range(rounds + 1):
            for way, (implementation, inputs) in inputs_of(lengths).items():
                model.set_attn_implementation(implementation)
                start = time.process_time()
                model(**inputs, use_cache=False).last_hidden_state.square().mean().backward()
                found.setdefault(way, []).append(time.process_time() - start)
        base, *others = (statistics.median(times[1:]) for times in found.values())
        ratios = ", ".join(f"{way} {time / base:.2f}" for way, time in zip([*found][1:], others))
        print(f"hidden {hidden}, {layers} layers, samples of {lengths}: {ratios}", flush=True)


if __name__ == "__main__":
    main()
