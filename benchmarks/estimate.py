"""Forecast of estimate.py against the measured peak of train.py, over a grid of runs on the CPU.

    python benchmarks/estimate.py                    # the whole grid: about 20 minutes on two cores, 12 GB
    python benchmarks/estimate.py --only qlora       # the runs whose name contains a word

Each run is a process of its own, of two steps on random checkpoints of 20 to 250 million parameters. Prints gigabytes
above what the process held after its imports: the forecast; the peak of resident memory in the steps; and the peak of
the whole process, which on a CPU also holds the checkpoint's file while it is read.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from tiny_checkpoints import make_tiny_checkpoint  # noqa: E402

MODEL_IDS = {"llava-1.5": "llava-1.5-7b", "qwen2.5-vl": "qwen2.5-vl-3b-instruct", "gemma-3": "gemma-3-4b-it"}
LORA = ("--use_lora", "True")
BF16 = ("--bf16", "True")
AGAIN = ("--activation_checkpointing", "True")
VISION = ("--train_vision_encoder", "True", "--train_vision_projector", "True")
# Family, width of the language model, thousands of vocabulary, rows of a batch, tokens of a row, flags.
GRID = {
    "full": ("llava-1.5", 1024, 32, 2, 256, ()),
    "full-checkpointing": ("llava-1.5", 1024, 32, 4, 512, AGAIN),
    "full-bf16": ("qwen2.5-vl", 768, 150, 2, 256, BF16),
    "full-bf16-accumulated": ("gemma-3", 1024, 32, 1, 256, (*BF16, "--gradient_accumulation_steps", "2")),
    "full-gemma": ("gemma-3", 768, 150, 2, 256, ()),
    "full-adafactor": ("llava-1.5", 1024, 32, 2, 512, ("--optim", "adafactor")),
    "full-vision": ("qwen2.5-vl", 768, 150, 1, 256, VISION),
    "full-eager": ("llava-1.5", 256, 32, 2, 1024, ("--attn_implementation", "eager")),
    "lora": ("llava-1.5", 256, 32, 4, 1024, LORA),
    "lora-long": ("qwen2.5-vl", 256, 150, 1, 2048, LORA),
    "lora-wide": ("qwen2.5-vl", 256, 150, 8, 256, LORA),
    "lora-bf16": ("llava-1.5", 256, 32, 8, 512, (*LORA, *BF16)),
    "lora-gemma": ("gemma-3", 256, 150, 2, 1024, LORA),
    "lora-gemma-bf16": ("gemma-3", 256, 150, 4, 1024, (*LORA, *BF16)),
    "lora-checkpointing": ("qwen2.5-vl", 256, 150, 8, 512, (*LORA, *AGAIN)),
    "qlora": ("llava-1.5", 256, 32, 4, 1024, (*LORA, "--q_lora", "True")),
    "qlora-bf16": ("qwen2.5-vl", 256, 150, 4, 1024, (*LORA, *BF16, "--q_lora", "True")),
    "8bit": ("llava-1.5", 256, 32, 4, 1024, (*LORA, "--load_in_8bit", "True")),
}

# Runs train.py and prints resident bytes: after the imports, at the peak of the steps, at that of the process.
CHILD = """
import json, re, sys
import bitsandbytes, peft, train
from transformers import AutoModelForImageTextToText, AutoProcessor

def resident(key):
    return int(re.search(key + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024

def from_now_on():
    open("/proc/self/clear_refs", "w").write("5")  # sets the peak to what is resident now

class Measured(train.FinetuneTrainer):
    def train(self, checkpoint):
        self.loading = resident("VmHWM")
        from_now_on()
        super().train(checkpoint)
        print("MEASURED", json.dumps([base, resident("VmHWM"), max(self.loading, resident("VmHWM"))]), flush=True)
        sys.exit()  # nothing needs to be saved

train.FinetuneTrainer = Measured
base = resident("VmRSS")
from_now_on()
train.main(sys.argv[1:])
"""


def make_checkpoint(folder: str, family: str, hidden: int, vocabulary: int, layers: int = 12) -> None:
    """A random checkpoint with a larger language model and the processor of the tiny one."""
    make_tiny_checkpoint(family, folder)
    config = AutoConfig.from_pretrained(folder)
    text = config.text_config
    text.update({"num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": 3 * hidden})
    text.update({"vocab_size": vocabulary, "num_attention_heads": 16, "head_dim": hidden // 16})
    text.update({"num_key_value_heads": 16 if family == "llava-1.5" else 4})
    if family == "gemma-3":
        text.layer_types = [("sliding_attention", "full_attention")[i % 2] for i in range(layers)]
    if family == "qwen2.5-vl":
        text.layer_types = ["full_attention"] * layers
        text.rope_parameters["mrope_section"] = [hidden // 128, *[3 * hidden // 256] * 2]
        config.vision_config.out_hidden_size = hidden
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)


def write_rows(path: str, tokens: int, rows: int = 16) -> None:
    """An image each, then as much question as answer, more of both than the budget takes."""
    words = "red " * (2 * tokens)
    images = os.path.join(ROOT, "example_data", "images", "sample")
    image = os.path.join(images, sorted(os.listdir(images))[0])
    turns = [{"from": "human", "value": f"<image>\n{words[: 2 * tokens]}"}, {"from": "gpt", "value": words}]
    with open(path, "w") as file:
        json.dump([{"image": image, "conversations": turns}] * rows, file)


def flags_of(folder: str, name: str) -> list[str]:
    """The command line of a run; makes its checkpoint and its data."""
    family, hidden, thousands, rows, tokens, flags = GRID[name]
    checkpoint, data = os.path.join(folder, f"{family}-{hidden}-{thousands}k"), os.path.join(folder, f"{tokens}.json")
    if not os.path.isdir(checkpoint):
        make_checkpoint(checkpoint, family, hidden, thousands * 1000)
    write_rows(data, tokens)
    words = {"model_id": MODEL_IDS[family], "model_local_path": checkpoint, "data_path": data, "max_steps": 2}
    words |= {"per_device_train_batch_size": rows, "model_max_length": tokens, "output_dir": f"{folder}/{name}"}
    words |= {"save_strategy": "no", "use_cpu": True, "allow_outside": True}
    return [word for flag, value in words.items() for word in (f"--{flag}", str(value))] + list(flags)


def run(command: list[str], **kwargs) -> str:
    child = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, **kwargs)
    if child.returncode:
        sys.exit(child.stderr)
    return child.stdout


def measure(words: list[str]) -> tuple[float, float]:
    """Gigabytes above the imports, at the peak of the steps and at that of the process."""
    # Freed blocks of any size go back to the system at once, as PyTorch's own cache on a GPU hands them out again.
    # By default glibc raises that threshold to 32 MB, and what is smaller stays in the heap, split up.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072", "DS_ACCELERATOR": "cpu"}
    found = re.search(r"MEASURED (.*)", run(["-c", CHILD, *words], env=environment))[1]
    base, steps, process = json.loads(found)
    return (steps - base) / 1e9, (process - base) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="Only the runs whose name contains this.")
    own = parser.parse_args()
    print(f"{'run':<24}{'forecast':>10}{'steps':>10}{'process':>10}{'forecast / steps':>18}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in [name for name in GRID if own.only in name]:
            words = flags_of(folder, name)
            forecast = json.loads(run(["estimate.py", *words, "--json"]))["total"] / 1e9
            steps, process = measure(words)
            print(f"{name:<24}{forecast:>10.2f}{steps:>10.2f}{process:>10.2f}{forecast / steps:>18.2f}", flush=True)


if __name__ == "__main__":
    main()
