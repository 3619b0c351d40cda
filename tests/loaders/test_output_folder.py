"""What lies in an output folder beside weights."""

import pytest

from loaders.output_folder import copy_processor_files, family_in, write_arguments


def test_the_family_is_that_of_the_run_before_that_of_the_config(tiny, tmp_path):
    """The config of a LLaVA names its family; a run may have trained it as `auto`, by the checkpoint's template."""
    base, out = tiny("llava-1.5"), tmp_path / "out"
    (out / "checkpoint-3").mkdir(parents=True)
    assert family_in(str(out), base) == "llava-1.5"
    write_arguments(str(out), {"model_id": "auto"})
    assert family_in(str(out), base) == family_in(str(out / "checkpoint-3"), base) == "auto"
    assert family_in(str(out), base, "llava-1.5-7b") == "llava-1.5"
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match="is not a checkpoint"):
        family_in(str(tmp_path / "other"), str(tmp_path / "other"))


# As model cards of the Hub list them.
COPIED = """
    tokenizer.json tokenizer_config.json tokenizer.model spiece.model vocab.json vocab.txt merges.txt tekken.json
    qwen.tiktoken special_tokens_map.json added_tokens.json chat_template.jinja chat_template.json
    additional_chat_templates/tools.jinja generation_config.json processor_config.json preprocessor_config.json
    video_preprocessor_config.json"""
LEFT = "config.json model.safetensors model.safetensors.index.json README.md training_args.bin optimizer.pt"


def test_files_of_tokenizer_and_processor_are_copied(tmp_path):
    for name in [*COPIED.split(), *LEFT.split()]:
        (tmp_path / "base" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "base" / name).write_text(name)
    copy_processor_files(str(tmp_path / "base"), str(tmp_path / "out"))
    found = {str(path.relative_to(tmp_path / "out")): path.read_text() for path in (tmp_path / "out").rglob("*.*")}
    assert found == {name: name for name in COPIED.split()}
