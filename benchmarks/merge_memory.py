"""Peak memory of merge_lora_weights.py, against the largest shard of the base and against a merge of the whole model.

    python benchmarks/merge_memory.py                  # a checkpoint of 2.2 GB in 6 shards
    python benchmarks/merge_memory.py --layers 4       # a small one, as the tests do

Prints megabytes of resident memory: of the process after it has merged a tiny checkpoint ("base"), and at its peak in
the merge of the large one. The self-check is of the files alone, as on a machine that cannot hold the model.
"""

import argparse
import glob
import json
import os
import subprocess
import sys
import tempfile

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.initialization import no_init_weights

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from tiny_checkpoints import make_tiny_checkpoint  # noqa: E402

# Merges the tiny checkpoint, notes its resident size, merges the large one, and prints that and its peak, in bytes.
CHILD = """
import json, psutil, re, sys
import merge_lora_weights as tool

def whole_model(*_):
    raise tool.WholeModelNeeded("to compare")

if sys.argv[1] == "whole":
    tool.ShardMerge = whole_model
tool.memory_needed = lambda loader: float("inf")
for name in ("tiny", "large"):
    base = psutil.Process().memory_info().rss
    folder = f"{sys.argv[2]}/{name}"
    tool.main(["--model_path", f"{folder}-adapter", "--model_save_path", f"{folder}-{sys.argv[1]}"])
# Not ru_maxrss, which a process inherits from its parent.
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
print(json.dumps([base, peak]))
"""


def measure(folder: str, layers: int, hidden: int, shard_size: str) -> dict[str, float]:
    """Megabytes of the checkpoint and its largest shard; of the process, and of the peak of each merge less that."""
    make_tiny_checkpoint("qwen2-vl", os.path.join(folder, "tiny"))
    make_checkpoint(folder, layers, hidden, shard_size)
    for name in ("tiny", "large"):
        add_adapter(os.path.join(folder, name))
    shards = [os.path.getsize(path) / 1e6 for path in glob.glob(os.path.join(folder, "large", "*.safetensors"))]
    found = {"checkpoint": sum(shards), "shards": len(shards), "shard": max(shards)}
    for way in ("shards", "whole"):
        words = [sys.executable, "-c", CHILD, way, folder]
        child = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
        if child.returncode:
            sys.exit(child.stderr)
        base, peak = (size / 1e6 for size in json.loads(child.stdout.splitlines()[-1]))
        found |= {f"base of {way}": base, f"peak by {way}": peak - base}
    return found


def make_checkpoint(folder: str, layers: int, hidden: int, shard_size: str) -> None:
    """A Qwen2-VL of a larger language model, in bfloat16, beside the tiny one and with its processor."""
    config = AutoConfig.from_pretrained(os.path.join(folder, "tiny"))
    config.text_config.update({"num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": 4 * hidden})
    config.text_config.layer_types = None
    config.text_config.__post_init__()
    config.vision_config.hidden_size = hidden
    with no_init_weights():
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    model.tie_weights()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.05, 0.05)
    model.save_pretrained(os.path.join(folder, "large"), max_shard_size=shard_size)
    for path in glob.glob(os.path.join(folder, "tiny", "*token*")) + glob.glob(
        os.path.join(folder, "tiny", "*processor*")
    ):
        os.link(path, os.path.join(folder, "large", os.path.basename(path)))


def add_adapter(base: str) -> None:
    model = AutoModelForImageTextToText.from_pretrained(base, dtype="auto")
    targets = r"model\.language_model\..*_proj"
    model = get_peft_model(model, LoraConfig(r=16, target_modules=targets, init_lora_weights=False))
    model.save_pretrained(f"{base}-adapter")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32, help="Layers of the language model.")
    parser.add_argument("--hidden", type=int, default=1536, help="Width of the language model.")
    parser.add_argument("--shard_size", default="400MB", help="Largest shard, as `save_pretrained` takes it.")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(folder, args.layers, args.hidden, args.shard_size)
    for name, value in found.items():
        print(f"{name:<16}{value:>10,.0f}")
    print(f"peak by shards / largest shard: {found['peak by shards'] / found['shard']:.2f}")
    print(f"peak by shards / peak by whole: {found['peak by shards'] / found['peak by whole']:.2f}")


if __name__ == "__main__":
    main()
