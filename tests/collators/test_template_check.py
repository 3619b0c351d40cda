"""Another template than the family's: an error where the data meets it, with two ways to go on."""

import json
import shutil

import pytest
from conftest import FAMILIES, golden_records, make_loader, run, turns

import predict
import preview
from collators import COLLATORS
from collators.template_check import check_template
from reading.dataset import MultimodalDataset
from reading.options import MediaOptions
from reading.row_index import Layout

# Exchanges, system prompts, texts around media, a reply that is not trained, a first reply, an open question.
USUAL = ["UtAt", "UitAt", "UtiAt", "UtttAt", "SttUtAt", "StUitAtUtAt", "UtitiAt", "UtAtUitAt", "UitAtUtA-tUtAt"]
USUAL += ["AtUtAt", "UitAtUt", "UvtAtUtAt", "StUtAtUitAt"]


class Data:
    def __init__(self, *layouts: str):
        self.layouts = lambda: dict.fromkeys(map(Layout, layouts), 0)
        self.media = MediaOptions()


def collator_of(family: str, path: str, **kwargs):
    loader = make_loader(family, path)
    processor = loader.load_processor()
    return COLLATORS.get(family)(processor, stop_tokens=loader.stop_tokens(processor.tokenizer), **kwargs)


def test_a_shape_is_what_a_template_may_see():
    shapes = {"UtAt": "UtAt", "StttUiiiitttA-ttUtAtUtAtUtAtUt": "StUiittAtUtAtUtAt", "UtA-tUtAtUtAt": "UtAtUtAt"}
    assert {layout: Layout(layout).shape for layout in shapes} == shapes


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_s_own_checkpoint_passes_on_all_usual_shapes(tiny, family):
    collator = collator_of(family, tiny(family))
    golden = [Layout.of(record["messages"]) for record in golden_records(family)]
    note = check_template(collator, Data(*USUAL, *golden), None)
    if any("empty thought" in exception.reason for exception in collator.template.exceptions):
        assert note.startswith("Each reply is trained after an empty thought") and "\n" not in note
    else:
        assert note == ""


# What is changed in Qwen2-VL's template, a shape that shows it, and one that does not.
OTHERS = {
    "thinking": (("<|im_start|>assistant\n", "<|im_start|>assistant\n<think>\n"), "StUtAt", None),
    "older": (("<|image_pad|><|vision_end|>", "<|image_pad|><|vision_end|>\n"), "StUtAtUitAt", "UvtAt"),
    "edited": (("a helpful assistant", "a useful assistant"), "UitAt", "StUtAt"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_difference_counts_where_the_data_meets_it(tiny, name):
    change, meets, not_met = OTHERS[name]
    collator = collator_of("qwen2-vl", tiny("qwen2-vl"))
    official = collator.processor.chat_template
    collator.processor.chat_template = official.replace(*change)
    assert collator.processor.chat_template != official
    with pytest.raises(ValueError) as error:
        check_template(collator, Data(not_met or meets), Data(meets))
    for told in ("(docs/chat_formats.md)", "family: ", "checkpoint: ", "--chat_template checkpoint", "template family"):
        assert told in str(error.value)
    if not_met:
        assert "data contains no conversation with their shapes" in check_template(collator, Data(not_met))


def test_both_ways_to_go_on(tiny, write_rows, tmp_path, capsys):
    altered = tmp_path / "altered"
    shutil.copytree(tiny("qwen2-vl"), altered)
    template = altered / "chat_template.jinja"
    official = template.read_text(encoding="utf-8")
    template.write_text(official.replace("a helpful assistant", "a useful assistant"), encoding="utf-8")
    path = write_rows([{"image": "red.png", "conversations": turns("<image>\nWhat colour?", "Red", "So?", "Yes")}])
    given = ["--model_local_path", str(altered)]
    with pytest.raises(ValueError, match="(?s)a helpful assistant.*a useful assistant.*--chat_template checkpoint"):
        run(tiny, "qwen2-vl", path, tmp_path / "out", *given)

    def shown(*flags: str) -> tuple[str, str]:
        """What preview.py prints of the row, and of the whole."""
        with pytest.raises(SystemExit) as ended:
            preview.main(["--model_id", "qwen2-vl-2b-instruct", "--data_path", path, "--json", *given, *flags])
        return json.loads(capsys.readouterr().out.splitlines()[-1]), ended.value.code

    row, code = shown()
    assert "a helpful" in row["text"] and code.startswith("Error: The checkpoint's chat template differs from")
    for chosen, words in (("checkpoint", "a useful"), ("family", "a helpful")):
        row, code = shown("--chat_template", chosen)
        assert words in row["text"] and row["trained"] == ["Red<|im_end|>", "Yes<|im_end|>"] and code == 0
        out = tmp_path / chosen
        run(tiny, "qwen2-vl", path, out, *given, "--use_lora", True, "--max_steps", 1, "--chat_template", chosen)
        _, collator = predict.load(str(out))
        prompt = collator.encode_prompt(MultimodalDataset(path)[0]["messages"][:1])["input_ids"][0]
        assert words in collator.processor.tokenizer.decode(prompt)
    capsys.readouterr()
    asked = ["--data_path", path, "--output_path", str(tmp_path / "a.jsonl"), "--max_new_tokens", "1"]
    predict.main(["--model_path", str(altered), *asked])
    assert "WARNING: The checkpoint's chat template differs from its family's" in capsys.readouterr().out


def test_the_family_s_own_template_needs_a_family(tiny):
    with pytest.raises(ValueError, match="--chat_template family: --model_id auto has no family template"):
        collator_of("auto", tiny("auto"), chat_template="family")
