"""What all families share."""

import shutil

import pytest
from conftest import run, turns
from safetensors.torch import load_file, save_file

from loaders.base import is_inside


@pytest.mark.parametrize(
    "name, expected",
    [
        ("model.visual", True),
        ("model.visual.blocks.0.weight", True),
        ("model.visual_projector.weight", False),
        ("model", False),
        ("base.model.visual.weight", False),
    ],
)
def test_a_module_path_is_a_prefix_of_whole_names(name, expected):
    assert is_inside(name, "model.visual") == expected


NAME = "model.language_model.layers.0.mlp.gate_proj.weight"


def edit_weights(folder, edit) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


DAMAGES = {
    "missing weight": (lambda folder, _: edit_weights(folder, lambda w: w.pop(NAME)), f"1 weights .* such as {NAME}"),
    "other shape": (
        lambda folder, _: edit_weights(folder, lambda w: w.update({NAME: w[NAME][1:].clone()})),
        f"1 weights .* such as {NAME}. They would be random",
    ),
    "tokenizer": (
        lambda folder, other: shutil.copyfile(f"{other}/tokenizer.json", folder / "tokenizer.json"),
        r"has no fast tokenizer \(tokenizer.json\) that contains <IMG_ATOM> as token \d+ \(config.json\)",
    ),
    "no template": (lambda folder, _: (folder / "chat_template.jinja").unlink(), "Add --chat_template family"),
    "broken template": (
        lambda folder, _: (folder / "chat_template.jinja").write_text("\n{% for message in messages %}"),
        "the chat template is not valid Jinja, line 2: Unexpected end of template",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_checkpoint_with_a_damaged_file_is_refused(tiny, tmp_path, write_rows, damage):
    folder = tmp_path / "checkpoint"
    shutil.copytree(tiny("ovis2"), folder)
    make, message = DAMAGES[damage]
    make(folder, tiny("qwen3.5"))
    with pytest.raises(ValueError, match=message):
        run(lambda family: str(folder), "ovis2", write_rows([{"conversations": turns("A?", "B.")}]), tmp_path / "out")
