"""The support matrix: every family with every kind of row and every way of training.

python docs/generate.py --matrix        # run all of it, and write what it found into docs/supported_models.md
"""

import re

import pytest
import torch
from conftest import (
    CONSENT,
    FACTS,
    FAMILIES,
    TAKES_VIDEO,
    VISION_FLAGS,
    make_loader,
    replies_of,
    row_losses,
    rows_for,
    run,
    taught,
    trained_runs,
    turns,
)
from conftest import KINDS as ONE_OF_EACH_KIND
from safetensors.torch import load_file

import merge_lora_weights
import predict
from collators import COLLATORS
from collators.base import IGNORE_INDEX
from loaders.base import COMPONENTS
from reading.dataset import MultimodalDataset
from reading.options import MediaOptions

# Two rows a kind or more, so that a batch has something to pad.
KINDS = {
    "one image": [
        {"image": "red.png", "conversations": turns("<image>\nWhat colour is it?", "Red")},
        {"image": "tall.jpg", "conversations": turns("What is this? <image>", "A tall green picture")},
    ],
    "several images": [
        {"image": ["blue.png", "tall.jpg"], "conversations": turns("Is <image> like <image> ?", "No, not at all")},
        {
            "image": ["red.png", "blue.png", "red.png"],
            "conversations": turns("<image> <image>\nWhich is blue?", "The second", "And <image> ?", "Red"),
        },
        {"image": ["tall.jpg", "blue.png"], "conversations": turns("<image><image>Which is green?", "The first")},
    ],
    "image in a later turn": [
        {"image": "red.png", "conversations": turns("Hello.", "Hi!", "And this? <image>", "A red square")},
        {"image": "blue.png", "conversations": turns("One?", "1", "Two?", "2", "<image>\nColour?", "Blue")},
    ],
    "text only": [
        {"conversations": turns("Name a colour.", "Blue"), "system_prompt": "Be brief."},
        {"conversations": turns("Hello.", "Hi!", "What can you see?", "Nothing yet")},
    ],
    "video": [
        {"video": "clip.mp4", "conversations": turns("<video>\nWhat happens?", "It gets brighter")},
        {"video": "clip.mp4", "conversations": turns("Hm", "Yes?", "<video> What happens then?", "It ends")},
    ],
    "image and video": [
        {"video": "clip.mp4", "image": "red.png", "conversations": turns("<image> then <video> ?", "Red, then a fade")},
        {"video": "clip.mp4", "image": "blue.png", "conversations": turns("<video> before <image>", "So it is")},
    ],
}
KINDS["all in one batch"] = [row for rows in KINDS.values() for row in rows]

MODES = {
    "full": VISION_FLAGS,
    "LoRA": ["--use_lora", True],
    "vision LoRA": ["--use_lora", True, "--train_vision_encoder", True, "--use_vision_lora", True],
    "projector": ["--use_lora", True, *VISION_FLAGS[2:]],
}


IMAGES_FIRST = re.compile(r"(<image>\s*)+[^<]+")


def fits(family: str, row: dict) -> bool:
    if not FACTS[family].multi_turn:
        return len(row["conversations"]) == 2 and bool(IMAGES_FIRST.fullmatch(row["conversations"][0]["value"]))
    if "video" not in row:
        return True
    return family in TAKES_VIDEO and ("image" not in row or FACTS[family].mixes_media)


def kinds_of(family: str) -> list[str]:
    return [kind for kind, rows in KINDS.items() if any(fits(family, row) for row in rows)]


def cells(columns_of, marks_of) -> list:
    """A test case for each family and column, marked for `--matrix`."""
    return [
        pytest.param(
            family,
            column,
            id=f"{family}-{column}",
            marks=[pytest.mark.cell(family, column), *marks_of(family, column)],
        )
        for family in FAMILIES
        for column in columns_of(family)
    ]


@pytest.fixture(scope="module")
def parts(tiny):
    """`parts(family)`: (loader, collator, model) of the tiny checkpoint; the last family's are kept."""
    kept = {}

    def get(family: str):
        if family not in kept:
            kept.clear()
            loader = make_loader(family, tiny(family))
            model = loader.load_model().eval()
            kept[family] = loader, COLLATORS.get(family)(loader.load_processor()), model
        return kept[family]

    return get


def marks_of_data(family: str, kind: str) -> list:
    """All but the one that holds all the others; tests/collators/test_collators.py cuts what is over-long."""
    return [] if kind == "all in one batch" and family in ONE_OF_EACH_KIND else [pytest.mark.slow]


@pytest.mark.parametrize("family, kind", cells(lambda family: [*kinds_of(family), "over-long"], marks_of_data))
def test_data(parts, write_rows, family, kind):
    loader, collator, model = parts(family)
    rows = [row for row in KINDS.get(kind, KINDS["one image"]) if fits(family, row)]
    dataset = MultimodalDataset(write_rows(rows), media=MediaOptions(num_frames=4))
    samples = [dataset[i] for i in range(len(dataset))]
    if kind == "over-long":
        check_cut(collator, model, samples, FACTS[family].rounding)
        return
    batch = collator(samples)
    for row, labels in zip(rows, batch["labels"]):
        tokenizer = collator.processor.tokenizer
        assert trained_runs(tokenizer, labels) == taught(family, replies_of(row))
    alone = torch.cat([row_losses(model, collator([sample])) for sample in samples])
    torch.testing.assert_close(row_losses(model, batch), alone, atol=FACTS[family].rounding, rtol=0)

    model.zero_grad(set_to_none=True)
    logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits[:, :-1]
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten()).backward()
    touched = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    model.zero_grad(set_to_none=True)
    expected = {"language_model"} if kind == "text only" else {*COMPONENTS}
    if not loader.vision_projector:
        expected -= {"vision_projector"}
    assert {loader.component_of(name) for name in touched} == expected
    assert not any(loader.is_unused(name) for name in touched)


def check_cut(collator, model, samples: list[dict], rounding: float) -> None:
    """With a token less of budget, the media stay, and the tokens that are left have the logits of the whole."""
    for sample in samples:
        collator.budget.max_length = None
        whole = collator.encode(sample).inputs
        budget = collator.budget.max_length = whole["input_ids"].shape[1] - 1
        cut = collator.encode(sample).inputs
        collator.budget.max_length = None
        assert cut["labels"].equal(whole["labels"][:, :budget]) and (cut["labels"] != IGNORE_INDEX).any()
        assert collator.is_media(cut["input_ids"]).sum() == collator.is_media(whole["input_ids"]).sum()
        with torch.no_grad():
            logits = [model(**{k: v for k, v in inputs.items() if k != "labels"}).logits for inputs in (cut, whole)]
        torch.testing.assert_close(logits[0], logits[1][:, :budget], atol=rounding, rtol=0)


def modes_of(family: str) -> list[str]:
    return [mode for mode in MODES if mode != "vision LoRA" or FACTS[family].vision_linears]


def marks_of_training(family: str, mode: str) -> list:
    """All but LoRA of one family. tests/test_merge.py merges all parts of every family."""
    return [] if (family, mode) == ("qwen2.5-vl", "LoRA") else [pytest.mark.slow, pytest.mark.cross]


@pytest.mark.parametrize("family, mode", cells(modes_of, marks_of_training))
def test_training(tiny, family, mode, write_rows, tmp_path):
    """Train, save, reload, merge: the logits of the trained model, the key names and shapes of the base."""
    path, out, merged = write_rows(rows_for(family)), tmp_path / "out", tmp_path / "merged"
    steps = run(tiny, family, path, out, *MODES[mode], "--learning_rate", 1e-2)
    assert len(steps) == 2 and all(step["loss"] > 0 for step in steps)

    trained, collator = predict.load(str(out), trust_remote_code=FACTS[family].remote_code)
    if mode == "full":
        merged = out
    else:
        merge_lora_weights.main(["--model_path", str(out), "--model_save_path", str(merged), *CONSENT[family]])
    assert shapes(merged) == shapes(tiny(family))

    plain, untrained = (make_loader(family, folder).load_model() for folder in (merged, tiny(family)))
    dataset = MultimodalDataset(path, media=MediaOptions(num_frames=4))
    batch = collator([dataset[i] for i in range(len(dataset))])
    batch.pop("labels")
    with torch.no_grad():
        logits = [model.eval()(**batch).logits for model in (plain, trained, untrained)]
    assert (logits[0] - logits[1]).abs().max() < FACTS[family].rounding
    assert (logits[0] - logits[2]).abs().max() > 1e-3  # the training left its mark


def shapes(folder) -> dict:
    return {name: (t.shape, t.dtype) for name, t in load_file(f"{folder}/model.safetensors").items()}
