"""--add_tokens: words in the tokenizer, its files and the embeddings, trained and merged; the truth is plain
transformers on a model whose rows are set by hand.
"""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from conftest import CONSENT, FACTS, FAMILIES, MODEL_ID, logs_of, make_loader, run, slow, turns
from launch import here, launch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

import merge_lora_weights
import predict
from arguments import parse_arguments
from collators import COLLATORS
from loaders.new_tokens import add_tokens, read_tokens, write_tokens
from reading.dataset import MultimodalDataset
from training.added_tokens import added_tokens
from training.engines import check_deepspeed, set_up_fsdp
from training.make_collator import make_collator
from training.resume import describe_run, differences
from training.trainable import make_trainable

TIED, UNTIED = "qwen2.5-vl", "llava-1.5"
WORDS = ["<point>", "New York", "[SEP_2]"]
MANY = [*WORDS, *(f"<w{i}>" for i in range(80))]  # more than a tiny model has spare rows for
LORA = ["--use_lora", True, "--lora_dropout", 0]
REFUSED = dict.fromkeys(("gemma-3n", "gemma-4"), "has another embedding table, .*per_layer")
REFUSED |= {"llama-3.2-vision": "the head of .* has 1,109 outputs for 1,117"}
REFUSED |= {family: "is custom code" for family in FAMILIES if FACTS[family].remote_code}
TAKES = [family for family in FAMILIES if family not in REFUSED]


def file_of(folder, words) -> str:
    (folder / "words.txt").write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
    return str(folder / "words.txt")


def parsed(tiny, family, *flags):
    words = ["--model_id", MODEL_ID[family], "--model_local_path", tiny(family), "--data_path", "x.json"]
    return parse_arguments([*words, "--output_dir", "unused", *CONSENT[family], *map(str, flags)])


def by_hand(tiny, family, words):
    """A plain model and tokenizer with the words, and their ids."""
    model = AutoModelForImageTextToText.from_pretrained(tiny(family), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tiny(family))
    pieces = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in words]
    assert tokenizer.add_tokens(words) == len(words) and all(map(len, pieces))
    ids = tokenizer.convert_tokens_to_ids(words)
    if max(ids) >= model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
    with torch.no_grad():
        for table in (model.get_input_embeddings(), model.get_output_embeddings()):
            for id, own in zip(ids, pieces):
                table.weight[id] = table.weight[own].double().mean(0)
    return model, tokenizer, ids


@pytest.mark.few
@pytest.mark.parametrize("family", TAKES)
def test_words_start_from_their_pieces_and_are_found_in_the_saved_tokenizer(tiny, family, tmp_path):
    for words in (WORDS, MANY):
        plain, tokenizer, ids = by_hand(tiny, family, words)
        loader = make_loader(family, tiny(family))
        arguments = parsed(tiny, family, "--add_tokens", file_of(tmp_path, words))
        collator = make_collator(family, loader, arguments.data)
        assert [*loader.pieces] == [*loader.new_tokens] == ids
        for get in ("get_input_embeddings", "get_output_embeddings"):
            found, expected = (getattr(model, get)().weight for model in (loader.load_model(), plain))
            torch.testing.assert_close(found, expected, atol=1e-7, rtol=0)
        folder = tmp_path / f"{len(words)}"
        shutil.copytree(tiny(family), folder)
        write_tokens(str(folder), loader.new_tokens)
        text = f"a{words[0]} b {words[1]}{words[2]}, {words[-1]}."
        expected = tokenizer(text)["input_ids"]
        assert {*ids[:3], ids[-1]} <= {*expected}
        assert AutoProcessor.from_pretrained(folder).tokenizer(text)["input_ids"] == expected
        image, text = {"type": "image", "image": Image.new("RGB", (64, 64))}, {"type": "text", "text": words[0]}
        messages = [{"role": "user", "content": [image, text]}, {"role": "assistant", "content": [text]}]
        labels = collator([{"messages": messages}])["labels"]
        assert (labels == ids[0]).sum() == 1
    before, after = (json.loads((place / "tokenizer.json").read_text()) for place in (folder, tmp_path / "3"))
    added = [before.pop("added_tokens"), after.pop("added_tokens")]
    assert before == after and [entry["content"] for entry in added[0][-len(MANY) :]] == MANY


@pytest.mark.parametrize("family", [TIED, UNTIED])
def test_under_lora_the_rows_get_the_gradients_of_the_plain_embeddings(tiny, family, tmp_path, write_rows):
    """Fresh adapters add nothing, so that a plain model with the same rows computes the same."""
    words = file_of(tmp_path, MANY)
    arguments = parsed(tiny, family, "--add_tokens", words, *LORA)
    loader = make_loader(family, tiny(family))
    collator = make_collator(family, loader, arguments.data)
    model = make_trainable(loader.load_model(), loader, arguments)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    names = {name.removeprefix("base_model.model.") for name in trained if ".lora_" not in name}
    tables = ["model.language_model.embed_tokens", *(["lm_head"] if family == UNTIED else [])]
    assert names == {f"{table}.token_adapter.trainable_tokens_delta.default" for table in tables}
    if family == TIED:
        with pytest.raises(ValueError, match="--add_tokens under LoRA and FSDP2 needs a head that is not tied"):
            set_up_fsdp(SimpleNamespace(fsdp=True), model, torch.float32)
    dataset = MultimodalDataset(write_rows([{"conversations": turns("New York?", "at <point> in New York<w79>")}]))
    batch = collator([dataset[0]])
    plain, _, ids = by_hand(tiny, family, MANY)
    losses = [m(**batch, use_cache=False).loss for m in (model.train(), plain.train())]
    [loss.backward() for loss in losses]
    torch.testing.assert_close(*losses, atol=1e-6, rtol=0)
    parameters = dict(model.named_parameters())
    for table in tables:
        found = parameters[f"base_model.model.{table}.token_adapter.trainable_tokens_delta.default"].grad
        expected = plain.get_submodule(table).weight.grad[ids]
        assert expected.any()
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


ROWS = [
    {"conversations": turns("Where is it?", "at <point> in New York")},
    {"conversations": turns("And now?", "[SEP_2]<point>")},
]


RUNS = [slow(TIED, WORDS, LORA), (UNTIED, MANY, LORA), slow(TIED, MANY, []), slow(UNTIED, WORDS, [])]
RUNS += [slow(TIED, MANY, [*LORA, "--q_lora", True]), slow(UNTIED, MANY, [*LORA, "--q_lora", True])]
# In full: with their random layers frozen, these tiny models learn no text at all by LoRA, of old words neither.
IN_FULL = ["gemma-4-unified", "granite-vision"]
APART = [TIED, UNTIED, *IN_FULL, "paligemma"]  # which takes no row without an image
RUNS += [
    pytest.param(family, MANY, LORA, marks=[pytest.mark.slow, pytest.mark.cross])
    for family in TAKES
    if family not in APART
]
RUNS += [slow(family, MANY, ["--learning_rate", 5e-3]) for family in ("gemma-3", *IN_FULL)]


@pytest.mark.parametrize("family, words, flags", RUNS)
def test_plain_transformers_writes_the_words_that_were_learned(tiny, write_rows, tmp_path, family, words, flags):
    out, merged = tmp_path / "out", tmp_path / "merged"
    flags = ["--add_tokens", file_of(tmp_path, words), "--learning_rate", 2e-2, "--max_steps", 20, *flags]
    losses = [step["loss"] for step in run(tiny, family, write_rows(ROWS), out, *flags)]
    assert losses[-1] < 0.5 < losses[0]
    if "--use_lora" in flags:
        words_of_merge = ["--model_path", str(out), "--model_save_path", str(merged)]
        merge_lora_weights.main([*words_of_merge, *(["--load_4bit"] if "--q_lora" in flags else [])])
    else:
        merged = out
    processor = AutoProcessor.from_pretrained(merged)
    model = AutoModelForImageTextToText.from_pretrained(merged, dtype=torch.float32).eval()
    ids = [processor.tokenizer(word, add_special_tokens=False)["input_ids"] for word in WORDS]
    assert all(len(tokens) <= 2 for tokens in ids)  # some put a space of their own before a text
    ids = processor.tokenizer.convert_tokens_to_ids(WORDS)
    base = by_hand(tiny, family, words)[0]
    assert model.get_input_embeddings().weight.shape == base.get_input_embeddings().weight.shape
    if "--use_lora" in flags:
        others = [row for row in range(min(ids))]
        for get in ("get_input_embeddings", "get_output_embeddings"):
            torch.testing.assert_close(getattr(model, get)().weight[others], getattr(base, get)().weight[others])
    question = [{"role": "user", "content": [{"type": "text", "text": "Where is it?"}]}]
    given = COLLATORS.get(family).template_kwargs  # as the run says that answers need them
    text = processor.apply_chat_template(question, add_generation_prompt=True, tokenize=False, **given)
    inputs = processor(text=text, return_tensors="pt", add_special_tokens=not text.startswith("<bos>"))
    answer = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :].tolist()
    assert {ids[0], ids[1]} <= {*answer}
    assert "at <point> in New York" in processor.decode(answer, skip_special_tokens=True)
    if "--use_lora" in flags:
        with_adapter, _ = predict.load(str(out))
        with torch.no_grad():
            inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([ids])], 1)
            inputs = {name: inputs["input_ids"] * 0 + (name == "attention_mask") for name in inputs} | {
                "input_ids": inputs["input_ids"]
            }
            torch.testing.assert_close(
                with_adapter.eval()(**inputs).logits.float(),
                model(**inputs).logits,
                atol=2e-2 if "--q_lora" in flags else 1e-4,
                rtol=1e-3,
            )


# ---- what is refused or said ----

LINES = {
    "an empty line": ("<a>\n\n<b>\n", "line 2: '' is empty"),
    "twice": ("<a>\n<b>\n<a>\n", "line 3: '<a>' repeats line 1"),
    "a space": ("<a>\n <b>\n", "line 2: ' <b>' begins or ends with white space"),
    "reserved": ("<a>\n<\ufdd0b>\n", "line 2: .* has an unprintable character"),
    "tab": ("a\tb\n", "line 1: .* has an unprintable character"),
}


@pytest.mark.parametrize("text, named", LINES.values(), ids=LINES)
def test_a_line_that_is_no_word_is_refused(tmp_path, text, named):
    (tmp_path / "words.txt").write_text(text, encoding="utf-8", newline="")
    with pytest.raises(ValueError, match=f"(?s)--add_tokens .*words.txt, {named}. Write one token per line"):
        read_tokens(str(tmp_path / "words.txt"))
    (tmp_path / "words.txt").write_bytes(b"<a>\r\nx y\r\n")
    assert read_tokens(str(tmp_path / "words.txt")) == ["<a>", "x y"]
    with pytest.raises(ValueError, match="--add_tokens nowhere cannot be read: .*No such file"):
        read_tokens("nowhere")


def test_words_that_the_tokenizer_has_train_from_what_they_are(tiny, tmp_path):
    loader = make_loader(TIED, tiny(TIED))
    arguments = parsed(tiny, TIED, "--add_tokens", file_of(tmp_path, ["<point>", "<|box_start|>"]), *LORA)
    collator = make_collator(TIED, loader, arguments.data)
    box = AutoTokenizer.from_pretrained(tiny(TIED)).convert_tokens_to_ids("<|box_start|>")
    assert added_tokens(loader, collator.template) == (
        "--add_tokens: 1 new tokens; these are tokens already and keep their embeddings: <|box_start|>."
    )
    model = make_trainable(loader.load_model(), loader, arguments)
    (delta,) = [p for name, p in model.named_parameters() if "trainable_tokens_delta" in name]
    before = load_file(f"{tiny(TIED)}/model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(delta[1], before[box]) and [*loader.new_tokens.values()] == ["<point>"]


@pytest.mark.parametrize("word", ["</s>", "<image>", "<image>s"])
def test_a_frame_token_is_no_word(tiny, tmp_path, word):
    arguments = parsed(tiny, UNTIED, "--add_tokens", file_of(tmp_path, ["<point>", word]))
    with pytest.raises(ValueError, match=f"--add_tokens: '{word}' contains the chat format's token '.*'"):
        make_collator(UNTIED, make_loader(UNTIED, tiny(UNTIED)), arguments.data)


def test_a_word_that_a_byte_level_tokenizer_cannot_write_is_refused(tiny):
    loader = make_loader(TIED, tiny(TIED))
    with pytest.raises(ValueError, match="would turn 'größer' into 'gr.*er'. Choose another word"):
        add_tokens(loader, AutoTokenizer.from_pretrained(tiny(TIED)), ["größer"])
    add_tokens(make_loader(UNTIED, tiny(UNTIED)), AutoTokenizer.from_pretrained(tiny(UNTIED)), ["größer"])


@pytest.mark.parametrize("family", REFUSED)
def test_a_model_that_has_no_single_table_of_words_is_refused(tiny, tmp_path, family):
    loader = make_loader(family, tiny(family))
    with pytest.raises(ValueError, match=f"--add_tokens: .*{REFUSED[family]}"):
        make_collator(family, loader, parsed(tiny, family, "--add_tokens", file_of(tmp_path, WORDS)).data)
        loader.load_model()


TOGETHER = [
    (TIED, "--train_language_model False --train_vision_encoder True", "--add_tokens needs --use_lora True"),
    (TIED, "--use_vision_lora True", "--add_tokens needs --use_lora True, or a language model"),
    (
        TIED,
        "--freeze embed_tokens",
        "--add_tokens trains rows of model.language_model.embed_tokens.weight: do not name",
    ),
    (UNTIED, "--use_lora True --train lm_head", "--add_tokens trains rows of lm_head.weight: do not name"),
    (
        UNTIED,
        "--use_lora True --lora_target_modules lm_head",
        "--lora_target_modules: leave the output head out",
    ),
]


@pytest.mark.parametrize("family, flags, named", TOGETHER)
def test_flags_that_words_cannot_train_with_are_refused(tiny, tmp_path, family, flags, named):
    with pytest.raises(ValueError, match=named):
        arguments = parsed(tiny, family, "--add_tokens", file_of(tmp_path, WORDS), *flags.split())
        loader = make_loader(family, tiny(family))
        make_collator(family, loader, arguments.data)
        make_trainable(loader.load_model(), loader, arguments)


def test_a_resumed_run_has_the_same_words_wherever_their_file_is(tiny, tmp_path, write_rows):
    dataset = MultimodalDataset(write_rows(ROWS))

    def described(folder, words):
        (tmp_path / folder).mkdir()
        return describe_run(parsed(tiny, TIED, "--add_tokens", file_of(tmp_path / folder, words)), dataset)

    before = described("a", WORDS)
    assert differences(before, described("b", WORDS)) == []
    assert differences(before, described("c", WORDS[:2])) == [f"--add_tokens is {WORDS[:2]}, but was {WORDS}"]


# ---- resume, engines ----


@pytest.mark.slow
@pytest.mark.parametrize("family, flags", [(TIED, LORA), (UNTIED, []), (UNTIED, LORA)])
def test_a_run_with_words_is_resumed_and_gone_on_from(tiny, write_rows, tmp_path, family, flags):
    path, words = write_rows(ROWS), file_of(tmp_path, MANY)
    flags = ["--add_tokens", words, "--max_steps", 4, "--save_strategy", "steps", "--save_steps", 2, *flags]
    whole = run(tiny, family, path, tmp_path / "out", *flags)
    name = "adapter_model.safetensors" if "--use_lora" in flags else "model.safetensors"
    before = load_file(tmp_path / "out" / name)
    shutil.rmtree(tmp_path / "out" / "checkpoint-4")
    resumed = run(tiny, family, path, tmp_path / "out", *flags, "--resume_from_checkpoint", True)
    assert [step["loss"] for step in resumed] == pytest.approx([step["loss"] for step in whole], abs=1e-5)
    after = load_file(tmp_path / "out" / name)
    assert before.keys() == after.keys() and all(torch.allclose(before[k], after[k], atol=1e-6) for k in before)
    if "--use_lora" in flags:
        on = ["--use_lora", True, "--lora_weight_path", tmp_path / "out", "--learning_rate", 1e-30, "--max_steps", 1]
        run(tiny, family, path, tmp_path / "on", *on, "--add_tokens", words)
        again = load_file(tmp_path / "on" / name)
        assert all(torch.equal(after[key], again[key]) for key in after)
        with pytest.raises(ValueError, match="has 83 added tokens, but this run has 0. Use the --add_tokens file"):
            run(tiny, family, path, tmp_path / "off", *on)


ENGINES = {
    "zero3_rows_on_cpu": ["--deepspeed", "ds_configs/zero3.json"],
    "fsdp_on_cpu": [*("--fsdp", True, "--fsdp_config", "fsdp_configs/fsdp2.json"),
                    *("--accelerator_config", '{"use_configured_state": true}')],
}  # fmt: skip


SHARDED = [(family, flags, engine) for family in (TIED, UNTIED) for flags in ([], LORA) for engine in ENGINES]
SHARDED.remove((TIED, LORA, "fsdp_on_cpu"))  # which is refused


@pytest.mark.slow
@pytest.mark.parametrize("family, flags, engine", SHARDED)
def test_shards_train_words_as_one_process_does(tiny, write_rows, tmp_path, family, flags, engine):
    path, losses, weights = write_rows(ROWS * 2), [], []
    for processes in (1, 2):
        out = tmp_path / f"{processes}"
        words = ["--model_id", MODEL_ID[family], "--model_local_path", tiny(family), "--data_path", path, "--use_cpu"]
        words += [True, "--max_steps", 3, "--per_device_train_batch_size", 4 // processes, "--learning_rate", 2e-3]
        words += ["--logging_steps", 1, "--save_strategy", "no", "--max_grad_norm", 0, "--output_dir", out, *flags]
        words += ["--train_sampling_strategy", "sequential", "--add_tokens", file_of(tmp_path, MANY)]
        if processes == 1:
            here(words)
        else:
            launch([*words, *ENGINES[engine]], processes, engine)
        log = logs_of(out)
        losses.append([entry["loss"] for entry in log if "loss" in entry])
        weights.append(load_file(out / ("adapter_model.safetensors" if flags else "model.safetensors")))
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    assert weights[0].keys() == weights[1].keys()
    for key in weights[0]:
        torch.testing.assert_close(weights[1][key], weights[0][key], atol=2e-3, rtol=0)


def test_zero3_under_lora_needs_a_gpu(tiny, tmp_path):
    arguments = parsed(tiny, TIED, "--add_tokens", file_of(tmp_path, WORDS), *LORA, "--use_cpu", True)
    with pytest.raises(ValueError, match="--add_tokens under LoRA and ZeRO-3 needs GPUs .* use ds_configs/zero2.json"):
        check_deepspeed(arguments, SimpleNamespace(config={}, is_zero3=lambda: True))
