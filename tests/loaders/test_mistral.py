"""Mistral's checkpoints: files of its own kind, a head that config.json does not tell of, images of any shape."""

import base64
import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import outline, row_losses, rows_for, run, turns
from PIL import Image
from transformers import AutoModelForImageTextToText
from transformers.convert_slow_tokenizer import bytes_to_unicode

import predict
from collators import COLLATORS
from loaders import LOADERS
from reading.dataset import MultimodalDataset

FAMILIES = ["pixtral", "mistral-small-3.1", "ministral-3", "mistral-small-4"]
EFFORT = {"reasoning_effort": "high"}


@pytest.fixture
def copy_of(tiny, tmp_path):
    """`copy_of(family, config)`: the folder of a tiny checkpoint whose config.json went through a function."""

    def make(family: str, edit) -> Path:
        folder = tmp_path / "checkpoint"
        shutil.copytree(tiny(family), folder)
        config = json.loads((folder / "config.json").read_text())
        edit(config)
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return make


# ---- files ----


@pytest.fixture
def tekken_only(copy_of):
    """A checkpoint with the files of Mistral-Small-3.2-24B-Instruct-2506: tekken.json, no processor, no template."""
    return with_tekken(copy_of("mistral-small-3.1", lambda config: config["text_config"].pop("tie_word_embeddings")))


def with_tekken(folder: Path) -> Path:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json", "chat_template.jinja"):
        (folder / name).unlink()
    control = [token["content"] for token in tokenizer["added_tokens"]]
    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
    pieces = sorted(tokenizer["model"]["vocab"].items(), key=lambda item: item[1])[len(control) :]
    spelled = [bytes(byte_of[character] for character in piece) for piece, _ in pieces]
    tekken = {
        "config": {
            "pattern": tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"],
            "num_vocab_tokens": len(pieces),
            "default_vocab_size": len(pieces) + len(control),
            "default_num_special_tokens": len(control),
            "version": "v11",
        },
        "vocab": [
            {"rank": rank, "token_bytes": base64.b64encode(piece).decode()} for rank, piece in enumerate(spelled)
        ],
        "special_tokens": [
            {"rank": rank, "token_str": token, "is_control": True} for rank, token in enumerate(control)
        ],
    }
    (folder / "tekken.json").write_text(json.dumps(tekken))
    return folder


def test_a_checkpoint_with_tekken_json_alone_gets_the_processor_of_its_sibling(tekken_only, tiny):
    made = LOADERS.get("mistral-small-3.1")(str(tekken_only)).load_processor()
    shipped = LOADERS.get("mistral-small-3.1")(tiny("mistral-small-3.1")).load_processor()
    assert made.tokenizer.get_vocab() == shipped.tokenizer.get_vocab()
    assert made.tokenizer.special_tokens_map == shipped.tokenizer.special_tokens_map
    prompts = {"text": ["<s>[INST][IMG]What colour is it?[/INST]"], "images": [[Image.new("RGB", (70, 50), "red")]]}
    prompts |= {"images_kwargs": {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}, "add_special_tokens": False}
    ours, theirs = made(**prompts), shipped(**prompts)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_without_a_template_the_text_is_that_of_mistral_common(tekken_only):
    collator = COLLATORS.get("mistral-small-3.1")(LOADERS.get("mistral-small-3.1")(str(tekken_only)).load_processor())
    text = lambda t: {"type": "text", "text": t}  # noqa: E731
    user = {"role": "user", "content": [text("What is it?"), {"type": "image"}]}
    reply = {"role": "assistant", "content": [text("A "), text("cat.")]}
    system = {"role": "system", "content": [text("Be "), text("brief.")]}
    assert collator.template.render([user, reply])[0] == "<s>[INST][IMG]What is it?[/INST]A cat.</s>"
    assert collator.template.render([system, user, reply])[0] == (
        "<s>[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT][INST][IMG]What is it?[/INST]A cat.</s>"
    )
    three = {"role": "user", "content": [text("What is "), {"type": "image"}, text("?")]}
    prompt = collator.template.render_official([three], add_generation_prompt=True)
    assert prompt == "<s>[INST]What is [IMG]?[/INST]"
    assert collator.template.differences() == []


def test_without_a_template_small_4_has_its_settings(copy_of):
    loader = LOADERS.get("mistral-small-4")(str(with_tekken(copy_of("mistral-small-4", lambda config: None))))
    collator = COLLATORS.get("mistral-small-4")(loader.load_processor())
    asked = [{"role": "user", "content": [{"type": "text", "text": "What?"}, {"type": "image"}]}]
    settings = '<s>[MODEL_SETTINGS]{"reasoning_effort": "none"}[/MODEL_SETTINGS]'
    assert collator.template.render_official(asked, add_generation_prompt=True) == f"{settings}[INST][IMG]What?[/INST]"
    assert collator.template.differences() == []


def test_a_thought_needs_a_prompt_that_asks_for_one(tiny):
    """The template of mistral-common writes thoughts; its prompt tells the model not to think unless it is asked."""
    processor = LOADERS.get("mistral-small-4")(tiny("mistral-small-4")).load_processor()
    thought = "{{ '[THINK]' + message['reasoning_content'] + '[/THINK]' if message['reasoning_content'] else '' }}"
    processor.chat_template = processor.chat_template.replace(
        "{{ text + eos_token }}", thought + "{{ text + eos_token }}"
    )
    text = lambda t: [{"type": "text", "text": t}]  # noqa: E731
    question, reply = {"role": "user", "content": text("Two?")}, {"role": "assistant", "content": text("Two.")}
    thinks = [question, reply | {"reasoning_content": "Hm."}]
    plain, asked = (COLLATORS.get("mistral-small-4")(processor, template_kwargs=given) for given in ({}, EFFORT))
    assert plain.template.render([question, reply])[0].endswith("[INST]Two?[/INST]Two.</s>")
    with pytest.raises(ValueError, match=r"has a thought .* add --template_kwargs '{\"reasoning_effort\": \"high\"}'"):
        plain.template.render(thinks)
    settings = '[MODEL_SETTINGS]{"reasoning_effort": "high"}[/MODEL_SETTINGS]'
    assert asked.template.render(thinks)[0] == f"<s>{settings}[INST]Two?[/INST][THINK]Hm.[/THINK]Two.</s>"


def test_it_trains_and_answers(tekken_only, write_rows, tmp_path):
    path, out, answers = write_rows(rows_for("mistral-small-3.1")), tmp_path / "out", tmp_path / "answers.jsonl"
    model_id = ["--model_id", "mistral-small-3.2-24b-instruct-2506"]
    run(lambda family: str(tekken_only), "mistral-small-3.1", path, out, *model_id)
    assert (out / "tekken.json").read_bytes() == (tekken_only / "tekken.json").read_bytes()
    predict.main(["--model_path", str(out), "--data_path", path, "--output_path", str(answers), *model_id])
    assert len(answers.read_text().splitlines()) == 7


def test_a_checkpoint_without_any_tokenizer_is_refused(tekken_only):
    (tekken_only / "tekken.json").unlink()
    with pytest.raises(ValueError, match="has no usable processor or tokenizer files"):
        LOADERS.get("mistral-small-3.1")(str(tekken_only)).load_processor()


@pytest.mark.parametrize("version", ["4.50.0.dev0", "5.23.0"])
def test_words_with_combining_marks_stay_whole(copy_of, tiny, version):
    """The tokenizer.json of Mistral-Small-3.1-24B-Instruct-2503 splits them, in whatever library saved config.json."""
    folder = copy_of("mistral-small-3.1", lambda config: config.update(transformers_version=version))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    split = tokenizer["pre_tokenizer"]["pretokenizers"][0]
    split["pattern"]["Regex"] = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+"
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    processor = LOADERS.get("mistral-small-3.1")(str(folder)).load_processor()
    words = processor.tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("नमस्ते 12")
    assert [span for _, span in words] == [(0, 6), (6, 7), (7, 8), (8, 9)]


def test_the_default_system_text_is_the_checkpoints_own(copy_of):
    """That of Ministral 3 names the size."""
    folder = copy_of("ministral-3", lambda config: None)
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("Ministral-3-3B-Instruct-2512.", "Ministral-3-8B-Instruct-2512."))
    collator = COLLATORS.get("ministral-3")(LOADERS.get("ministral-3")(str(folder)).load_processor())
    parts = [{"type": "text", "text": "What?"}, {"type": "image"}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": parts[:1]}]
    assert collator.template.render(messages)[0] == (
        "<s>[SYSTEM_PROMPT]You are Ministral-3-8B-Instruct-2512.\nThe current date is {today}.[/SYSTEM_PROMPT]"
        "[INST][IMG]What?[/INST]What?</s>"
    )
    assert collator.template.differences() == []


# ---- the head ----


def test_a_head_that_the_config_does_not_tell_of_stays_its_own(tiny, copy_of, tmp_path):
    """transformers 5.23 says `tie_word_embeddings: true` of every mistral3 whose config.json does not say."""

    def silent(config):
        del config["tie_word_embeddings"], config["text_config"]["tie_word_embeddings"]

    assert LOADERS.get("ministral-3")(tiny("ministral-3")).load_model().config.tie_word_embeddings is True
    folder = copy_of("mistral-small-3.1", silent)
    model = LOADERS.get("mistral-small-3.1")(str(folder)).load_model()
    assert model.config.tie_word_embeddings is False
    model.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert saved["tie_word_embeddings"] is False
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "saved")
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)
    assert not torch.equal(again.lm_head.weight, again.model.language_model.embed_tokens.weight)


# ---- images ----

SIZES = [(200, 3), (3, 200), (90, 1), (1, 90), (97, 96), (96, 97), (640, 480), (31, 300), (140, 140), (29, 29)]


@pytest.fixture
def dataset(tmp_path):
    """A row for each size, and one with all."""
    for i, size in enumerate(SIZES):
        Image.effect_noise(size, 80).convert("RGB").save(tmp_path / f"{i}.png")
    names = [f"{i}.png" for i in range(len(SIZES))]
    rows = [{"image": name, "conversations": turns("<image>\nWhat?", f"Image {name}")} for name in names]
    rows.append({"image": names, "conversations": turns("<image>" * len(names) + "What?", "All of them")})
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    return MultimodalDataset(str(tmp_path / "rows.json"))


@pytest.mark.parametrize("family", FAMILIES)
def test_images_of_any_shape(family, tiny, dataset):
    loader = LOADERS.get(family)(tiny(family))
    collator, model = COLLATORS.get(family)(loader.load_processor()), loader.load_model().eval()
    samples = [dataset[i] for i in range(len(dataset))]
    token = 16 if family == "pixtral" else 28
    grids = []
    for i, sample in enumerate(samples):
        inputs = collator.encode(sample).inputs
        ids = inputs["input_ids"]
        grids.append((inputs["image_sizes"] // token).tolist())
        assert collator.budget.count_media_tokens(*outline(dataset, i)) == collator.is_media(ids).sum()
        assert collator.is_media(ids).sum() == sum(height * (width + 1) for height, width in grids[-1])
        count = lambda id: int((ids == id).sum())  # noqa: B023, E731
        assert count(10) == sum(height * width for height, width in grids[-1])  # [IMG]
        assert count(12) == sum(height - 1 for height, _ in grids[-1])  # [IMG_BREAK]
        assert count(13) == len(grids[-1])  # [IMG_END]
    assert len({tuple(grid) for grid in grids[-1]}) >= 5
    batch = collator(samples)
    assert batch["image_sizes"].tolist() == [[h * token, w * token] for grid in grids for h, w in grid]
    alone = torch.cat([row_losses(model, collator([sample])) for sample in samples])
    torch.testing.assert_close(row_losses(model, batch), alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "family, size, named",
    [
        ("pixtral", (3000, 1), "an image of 3000x1 pixels is too narrow"),
        ("lfm2-vl", (500, 2), "an image of 500x2 pixels is too narrow"),
        ("mistral-small-3.1", (28, 20), "an image of 28x20 pixels is too small: one side must exceed 28"),
    ],
)
def test_images_that_would_fail_in_the_model_are_named_before_training(family, size, named, tiny, tmp_path):
    Image.new("RGB", size).save(tmp_path / "odd.png")
    rows = [{"image": "odd.png", "conversations": turns("<image>\nWhat?", "A line")}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    collator = COLLATORS.get(family)(LOADERS.get(family)(tiny(family)).load_processor(), 2048)
    dataset = MultimodalDataset(str(tmp_path / "rows.json"))
    with pytest.raises(ValueError, match=f"rows.json, sample 0: .*{named}"):
        collator.budget.fit(dataset, collator.encode, drop_overlong=False)
    with pytest.raises(ValueError, match="sample 0: .*(too narrow|one side must|refuses it)"):
        collator.encode(dataset[0])  # as predict.py and the check of the data do
