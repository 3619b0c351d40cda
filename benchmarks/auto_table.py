"""Run `--model_id auto` on every image-text-to-text model type of the installed transformers.

    python benchmarks/auto_table.py                    # only types that docs/auto_types.json lacks
    python benchmarks/auto_table.py aria ovis2         # these types, even if they were run before
    python benchmarks/auto_table.py --all

Each type runs in a separate process with limits of time and memory. The process creates a tiny checkpoint (from
tiny_checkpoints/any_type.py or from a family), trains it for two steps with train.py, merges it and lets it answer. If
a step fails, the reason is written and the next type starts. After each type, docs/auto_types.json and
docs/auto_types.md are updated. Run this before a release, or after an update of transformers.
"""

import argparse
import contextlib
import datetime
import io
import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from types import SimpleNamespace

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402
import transformers  # noqa: E402
from PIL import Image  # noqa: E402
from transformers.models.auto import modeling_auto  # noqa: E402

import merge_lora_weights  # noqa: E402
import predict  # noqa: E402
import train  # noqa: E402
from collators import COLLATORS  # noqa: E402
from collators.label_check import check_labels  # noqa: E402
from loaders import LOADERS  # noqa: E402
from loaders.attention import is_padding_free  # noqa: E402
from reading.dataset import IGNORE_INDEX, MultimodalDataset  # noqa: E402
from supported_models import AUTO, families  # noqa: E402
from tiny_checkpoints import any_type, make_tiny_checkpoint  # noqa: E402
from training import auto_checks  # noqa: E402

TABLE = REPO / "docs" / "auto_types.json"
SECONDS, GIGABYTES = 240, 8  # of a type
PAGE = """# What `auto` does with every type of transformers

<!-- Written by `python benchmarks/auto_table.py`: change the code, not this file. -->

`--model_id auto` was run on a tiny checkpoint of each image-text-to-text type of transformers {version}, made with the
type's own config and processor class. The last run was on {date}. Each type goes through these steps, in this order:

- components: the vision encoder, the language model and its head are found.
- labels: in test conversations, the labels are exactly the replies and their end tokens.
- batch: the losses of a padded batch equal those of each sample alone.
- picture: the loss changes if the image is replaced by another one.
- trained, merged, answered: `train.py` trains two steps of LoRA, then `merge_lora_weights.py` and `predict.py` run.

If a step fails, the type's later steps are not run, and the last cell shows the error. The column `samples` shows if
samples are concatenated or padded. They are padded if the model would let concatenated samples affect each other.

If a model fails on the output of its processor, the cause may only be that its tiny config does not fit the processor.
Check `tiny_checkpoints/any_type.py` before you trust this result.

Types with a link were run with the public chat template of their checkpoints. For the others, no usable template was
found, so they were run with a neutral template from `--chat_template`. Their ticks mean that the type loads and trains
if the checkpoint contains a template, or you pass one.

"""
STEPS = ("components", "labels", "batch", "picture", "trained", "merged", "answered")
ROUNDING = 1e-3  # of a loss in float32, between two ways of computing it
# Written by nobody for these checkpoints: it shows what a run does once its user gives a template.
NEUTRAL = """{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' }}
{%- for part in message.content %}{{- part.text if part.type == 'text' else IMAGE + '\\n' }}{% endfor %}
{{- '<|im_end|>\\n' }}{% endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"""
# What train.py's arguments tell the checks of a loaded model.
ARGUMENTS = SimpleNamespace(
    data=SimpleNamespace(padding_free=None, packing=False),
    lora=SimpleNamespace(load_in_8bit=False),
    training=SimpleNamespace(deepspeed=None, fsdp=False, torch_compile=False, device=torch.device("cpu")),
)
PICTURES = {"red": (64, 64), "blue": (100, 50), "green": (60, 140)}


def types() -> list[str]:
    """Return the model types of AutoModelForImageTextToText, which `--model_id auto` accepts."""
    return [*modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES]


def family_types() -> dict[str, str]:
    """Map each model type to the first family with this type."""
    found = {LOADERS.get(family).model_type: family for family in reversed(families())}
    return found | {"cohere2_vision": AUTO}


class Refused(Exception):
    """A step did not succeed; the message says why."""


def row_of(model_type: str, folder: Path) -> dict:
    """Create, train, merge and ask a tiny checkpoint of a type. Return {step: True, or the reason of its failure}."""
    row, base = {"template": family_types().get(model_type)}, str(folder / "base")
    try:
        with step(row, "made"):
            config = make_config(model_type, base)
        with step(row, "components"):
            loader = LOADERS.get(AUTO)(base, attn_implementation="sdpa")
        with step(row, "made"):
            flags = make(model_type, config, base, folder)
        data = write_data(folder)
        with step(row, "labels"):
            collator = collator_of(loader, flags)
            check_labels(collator)
        with step(row, "batch"):
            model = loader.load_model().float().eval()
            if is_padding_free(ARGUMENTS, loader):
                collator.make_padding_free(loader)
            auto_checks.check_batches(model, loader, collator, ARGUMENTS)
            row["padding-free"], collator.is_padding_free = collator.is_padding_free, False
            encoded = [collator.encode(sample).inputs for sample in samples_of(data)]
            alone = torch.cat([losses(model, collator.collate([inputs])) for inputs in encoded])
            together = losses(model, collator.collate(encoded))
            if (apart := (alone - together).abs().max().item()) > ROUNDING:
                raise Refused(f"the losses of a batch differ from those of its rows alone by {apart:.2g}")
        with step(row, "picture"):
            inputs = encoded[0]
            pixels = [name for name, value in inputs.items() if value.is_floating_point()]
            others = {name: 1 - inputs[name] for name in pixels}
            if not (losses(model, collator.collate([inputs | others])) - alone[:1]).abs().max() > 1e-5:
                raise Refused(f"the loss does not depend on the picture ({', '.join(pixels) or 'no pixels'})")
        words = ["--model_id", AUTO, "--model_local_path", base, "--use_cpu", "True"]
        with step(row, "trained"):
            run = "--use_lora True --max_steps 2 --per_device_train_batch_size 2 --save_strategy no --disable_tqdm True"
            train.main([*words, *flags, *run.split(), "--data_path", data, "--output_dir", str(folder / "out")])
        with step(row, "merged"):
            merge_lora_weights.main(["--model_path", f"{folder}/out", "--model_save_path", f"{folder}/merged"])
        with step(row, "answered"):
            words = ["--model_path", f"{folder}/merged", "--data_path", data, "--output_path", f"{folder}/answers"]
            predict.main([*words, "--max_new_tokens", "4", "--model_id", AUTO])
    except Refused:
        pass
    return row


@contextlib.contextmanager
def step(row: dict, name: str):
    """Record the result of a step. For an error other than ValueError, also record where it was raised."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
        row[name] = True
    except (ValueError, Refused) as error:
        words = re.sub(r"\S+/base\b", "it", re.sub(r"\S+/base: ", "", " ".join(str(error).split()))).strip()
        row[name] = words if len(words) < 300 else f"{words[:300]} ..."
    except BaseException as error:
        places = traceback.extract_tb(error.__traceback__)[-3:]
        where = " ".join(f"{Path(place.filename).name}:{place.lineno}" for place in places)
        row[name] = f"ERROR {type(error).__name__}: {str(error)[:300]} ({where})"
    if name == "made" and row[name] is not True:  # no fault of `auto`
        row[name] = f"not tried, since no tiny checkpoint could be made: {row[name].removeprefix('ERROR ')}"
    if row[name] is not True:
        raise Refused


def make_config(model_type: str, base: str):
    """Write a family's whole checkpoint, or only a config. Return the config if weights and processor are missing."""
    if family := family_types().get(model_type):
        return make_tiny_checkpoint(family, base)
    try:
        processor = any_type.make_processor(model_type)
    except ValueError:  # said by `make`, if the type gets that far
        processor = SimpleNamespace(tokenizer=any_type.tokenizer_with(any_type.CONTROL))
    config = any_type.make_config(model_type, processor)
    config.save_pretrained(base)
    return config


def make(model_type: str, config, base: str, folder: Path) -> list[str]:
    """Write the weights and the processor. Return the flags that the training needs."""
    if not config:
        return []
    processor, model = any_type.make_processor(model_type), any_type.make_model(config)
    ids = {"eos_token_id": processor.tokenizer.eos_token_id, "pad_token_id": processor.tokenizer.pad_token_id}
    model.generation_config.update(**ids)
    model.save_pretrained(base)
    processor.save_pretrained(base)
    template = folder / "neutral.jinja"
    token = str(getattr(processor, "image_token", None) or "<image>")
    placeholder = any_type.OVERRIDES.get(model_type, {}).get("placeholder", token)
    template.write_text(NEUTRAL.replace("IMAGE", repr(placeholder)))
    return ["--chat_template", str(template)]


def write_data(folder: Path) -> str:
    """Write rows with one image, two images, no image, and an image in a later turn. Return the path."""
    for colour, size in PICTURES.items():
        Image.new("RGB", size, colour).save(folder / f"{colour}.png")
    ask = lambda *turns: [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]  # noqa: E731
    rows = [
        {"messages": ask("<image>What colour is it?", "Red"), "images": ["red.png"]},
        {"messages": ask("<image><image>Which is blue?", "The second"), "images": ["red.png", "blue.png"]},
        {"messages": ask("Name a colour.", "Blue")},
        {"messages": ask("Hello.", "Hi!", "<image>And this?", "Green"), "images": ["green.png"]},
    ]
    (folder / "rows.json").write_text(json.dumps(rows))
    return str(folder / "rows.json")


def samples_of(data: str) -> list[dict]:
    dataset = MultimodalDataset(data)
    return [dataset[i] for i in range(len(dataset))]


def collator_of(loader, flags: list[str]):
    processor = loader.load_processor()
    template = Path(flags[1]).read_text() if flags else None
    return COLLATORS.get(AUTO)(processor, chat_template=template, stop_tokens=loader.stop_tokens(processor.tokenizer))


def losses(model, batch: dict) -> torch.Tensor:
    """Return the loss of each label, in the order of rows and tokens, computed from all logits."""
    labels = batch["labels"][:, 1:]
    with torch.no_grad():
        logits = model(**{name: value for name, value in batch.items() if name != "labels"}, use_cache=False).logits
    chosen, logits = labels != IGNORE_INDEX, logits[:, -labels.shape[1] - 1 : -1]
    return torch.nn.functional.cross_entropy(logits[chosen], labels[chosen], reduction="none")


def page(found: dict) -> str:
    """Return the text of docs/auto_types.md for the results."""
    rows = []
    for model_type, row in sorted(found["types"].items()):
        family = row.get("template")
        template = f"[{family}](chat_formats.md#{re.sub('[^a-z0-9-]', '', family)})" if family else "needs one"
        marks = ["✓" if row.get(name) is True else "" for name in STEPS]
        samples = {True: "concatenated", False: "padded", None: ""}[row.get("padding-free")]
        reason = next((value for name, value in row.items() if isinstance(value, str) and name != "template"), "")
        rows.append([f"`{model_type}`", template, *marks, samples, reason])
    lines = [["type", "chat template", *STEPS, "samples", "ends with"], ["---"] * (len(STEPS) + 4), *rows]
    table = "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)
    return PAGE.format(version=found["transformers"], date=found["date"]) + table


def in_a_process(model_type: str, seconds: int) -> dict:
    """Run `row_of` in a forked process, which need not repeat the imports."""
    reader, writer = os.pipe()
    if not (child := os.fork()):
        signal.alarm(seconds)
        resource.setrlimit(resource.RLIMIT_AS, (GIGABYTES << 30,) * 2)
        folder = Path(tempfile.mkdtemp())
        with open(os.devnull, "w") as quiet, contextlib.redirect_stderr(quiet):
            row = row_of(model_type, folder)
        shutil.rmtree(folder)
        os.write(writer, json.dumps(row).encode())
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    return json.loads(text) if text else {"made": f"not tried to its end: its process ended with status {status}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--output", type=Path, default=TABLE)
    parser.add_argument("--seconds", type=int, default=SECONDS)
    args = parser.parse_args()
    found = json.loads(args.output.read_text()) if args.output.exists() and not args.all else {"types": {}}
    transformers.logging.set_verbosity_error()
    any_type.vocabulary()  # once for all processes
    for model_type in args.types or [name for name in types() if name not in found["types"]]:
        row = in_a_process(model_type, args.seconds)
        found["types"][model_type] = row
        found |= {"date": datetime.date.today().isoformat(), "transformers": transformers.__version__}
        args.output.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        args.output.with_suffix(".md").write_text(page(found))
        print(model_type, *(name if value is True else f"{name}: {value}" for name, value in row.items()), flush=True)


if __name__ == "__main__":
    main()
