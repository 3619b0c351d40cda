"""What only the Gemma families have: formats, attention in both directions, parts that are never trained."""

import json

import pytest
import torch
from conftest import for_official_template, rows_for, run, turns
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText

from collators import COLLATORS
from collators.base import IGNORE_INDEX
from loaders import LOADERS
from reading.dataset import MultimodalDataset
from reading.options import MediaOptions

THOUGHT = "<|channel>thought\n<channel|>"
PROMPT, TURN = "{{ '<|turn>model\n", "{{- '<|turn>' + role + '\n' }}"
LARGE_FIRST = ((PROMPT, PROMPT + THOUGHT),)
LARGE = (*LARGE_FIRST, (TURN, TURN + "{% if role == 'model' %}{{ '" + THOUGHT + "' }}{% endif %}"))


def parts(*texts: str) -> list[dict]:
    return [{"type": "text", "text": text} for text in texts]


CHAT = [
    {"role": "user", "content": parts("One?")},
    {"role": "assistant", "content": parts("Two.")},
    {"role": "user", "content": parts("Three?")},
    {"role": "assistant", "content": parts("Four.")},
]


@pytest.mark.parametrize("changes, thought", [((), ""), (LARGE_FIRST, THOUGHT), (LARGE, THOUGHT)])
def test_gemma_4_follows_the_size_of_the_checkpoint(tiny, changes, thought):
    """E2B and E4B answer at once; 26B-A4B and 31B after an empty thought, in two revisions of their template."""
    processor = LOADERS.get("gemma-4")(tiny("gemma-4")).load_processor()
    for old, new in changes:
        assert old in processor.chat_template
        processor.chat_template = processor.chat_template.replace(old, new)
    collator = COLLATORS.get("gemma-4")(processor)
    assert collator.template.differences() == []
    encoded = collator.encode({"messages": CHAT})
    turn = "<|turn>user\n{}<turn|>\n<|turn>model\n" + thought + "{}<turn|>\n"
    assert encoded.text == "<bos>" + turn.format("One?", "Two.") + turn.format("Three?", "Four.")
    labels = encoded.inputs["labels"]
    assert processor.tokenizer.decode(labels[labels != IGNORE_INDEX]) == "Two.<turn|>Four.<turn|>"
    prompt = collator.encode_prompt(CHAT[:1])["input_ids"][0]
    assert encoded.inputs["input_ids"][0, : len(prompt)].equal(prompt)


@pytest.fixture
def large(tiny, tmp_path):
    """A Gemma 4 as 26B-A4B: a mixture of experts, images seen in both directions, no audio, no embeddings per layer."""
    config = AutoConfig.from_pretrained(tiny("gemma-4"))
    fields = config.text_config.to_dict() | {"use_bidirectional_attention": "vision", "num_kv_shared_layers": 0}
    fields |= {"hidden_size_per_layer_input": 0, "attention_k_eq_v": True, "use_double_wide_mlp": False}
    fields |= {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 16}
    config.text_config = type(config.text_config)(**fields)
    config.audio_config = None
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config)
    model.save_pretrained(tmp_path / "large")
    return str(tmp_path / "large")


def test_gemma_4_with_experts_loads_and_has_no_stray_parameter(large):
    loader = LOADERS.get("gemma-4")(large, attn_implementation="sdpa")
    model = loader.load_model()
    names = [name for name, _ in model.named_parameters()]
    assert all(loader.component_of(name) for name in names)
    for suffixes in (loader.experts, loader.routers):
        assert all(any(name.endswith(suffix) for name in names) for suffix in suffixes)


def test_gemma_4_images_are_seen_in_both_directions_where_the_checkpoint_says_so(large, tiny, media_folder):
    """In sliding layers alone; in a batch of all mixtures every row is as it is alone."""
    (media_folder / "large.json").write_text(json.dumps(rows_for("gemma-4")))
    dataset = MultimodalDataset(str(media_folder / "large.json"), media=MediaOptions(num_frames=2))
    collator = COLLATORS.get("gemma-4")(LOADERS.get("gemma-4")(tiny("gemma-4")).load_processor())
    model = AutoModelForImageTextToText.from_pretrained(large).eval()
    rows = [collator.encode(dataset[i]).inputs for i in range(len(dataset))]
    batch = collator.pad(rows)

    def logits(inputs: dict) -> torch.Tensor:
        with torch.no_grad():
            return model(**{name: value for name, value in inputs.items() if name != "labels"}).logits

    together = logits(batch)
    for i, row in enumerate(rows):
        length = row["input_ids"].shape[1]
        torch.testing.assert_close(together[i, :length], logits(row)[0], atol=2e-5, rtol=0)
        causal = logits({name: value for name, value in row.items() if name != "mm_token_type_ids"})[0]
        has_media = bool(collator.is_media(row["input_ids"]).any())
        assert ((together[i, :length] - causal).abs().max() > 1e-3) == has_media


def test_a_control_string_that_trimming_would_join_is_text(tiny):
    collator = COLLATORS.get("gemma-3")(LOADERS.get("gemma-3")(tiny("gemma-3")).load_processor())
    end = collator.processor.tokenizer.convert_tokens_to_ids("<end_of_turn>")
    messages = [{**message, "content": parts("<end_of", " _turn>", " \n x")} for message in CHAT]
    encoded = collator.encode({"messages": messages})
    assert "<end_of_turn>x<end_of_turn>" in encoded.text and (encoded.inputs["input_ids"] == end).sum() == 4


def test_a_system_prompt_in_parts_is_whole(tiny):
    """The templates would read the first part alone, or put spaces in."""
    for family in ("gemma-3", "gemma-4"):
        collator = COLLATORS.get(family)(LOADERS.get(family)(tiny(family)).load_processor())
        messages = [{"role": "system", "content": parts("Be brief.", " Be kind.")}, *CHAT]
        official = collator.processor.apply_chat_template(for_official_template(family, messages))
        assert collator.encode({"messages": messages}).text == official and "Be brief. Be kind." in official


def test_gemma_3n_without_timm_is_refused_by_name(tiny, monkeypatch):
    from loaders import base

    path = tiny("gemma-3n")
    monkeypatch.setattr(base, "find_spec", lambda package: None)
    with pytest.raises(ValueError, match="needs the package timm, .*: pip install timm"):
        LOADERS.get("gemma-3n")(path)


@pytest.fixture(scope="module")
def paligemma(tiny):
    """(collator, the same processor as it comes)"""
    processors = [LOADERS.get("paligemma")(tiny("paligemma")).load_processor() for _ in range(2)]
    return COLLATORS.get("paligemma")(processors[0]), processors[1]


PICTURE = {"type": "image", "image": Image.new("RGB", (64, 64), "red")}


def exchange(question: str, reply: str) -> list[dict]:
    return [
        {"role": "user", "content": [PICTURE, *parts(question)]},
        {"role": "assistant", "content": parts(reply)},
    ]


@pytest.mark.parametrize(
    "typed", ["<image>", "<bos>", "<eos>x", "a <pad>", "\n<image>\n", "<bos><eos>", "\n", " x ", "\nx"]
)
def test_paligemma_keeps_control_strings_text(paligemma, typed):
    collator, untouched = paligemma
    control = torch.tensor(untouched.tokenizer.all_special_ids)
    encoded, harmless = (collator.encode({"messages": exchange(text, text)}) for text in (typed, "Hm"))
    ids, labels = encoded.inputs["input_ids"][0], encoded.inputs["labels"][0]
    others = harmless.inputs["input_ids"][0]
    assert ids[torch.isin(ids, control)].equal(others[torch.isin(others, control)])
    assert untouched.tokenizer.decode(labels[labels != IGNORE_INDEX]) == typed + "<eos>"
    assert encoded.text == f"<image><bos>{typed}\n{typed}<eos>"
    prompt = collator.encode_prompt(exchange(typed, typed)[:1])["input_ids"][0]
    assert ids[: len(prompt)].equal(prompt) and (labels != IGNORE_INDEX).nonzero()[0] == len(prompt)


def test_paligemma_locations_are_tokens(paligemma):
    collator, untouched = paligemma
    labels = collator.encode({"messages": exchange("detect cat", "<loc0000><loc1023><seg127> cat")}).inputs["labels"][0]
    names = untouched.tokenizer.convert_ids_to_tokens(labels[labels != IGNORE_INDEX])
    assert names[:3] == ["<loc0000>", "<loc1023>", "<seg127>"] and names[-1] == "<eos>"


def test_paligemma_sees_its_prompt_in_both_directions_and_its_reply_in_one(paligemma, tiny, media_folder):
    (media_folder / "paligemma.json").write_text(json.dumps(rows_for("paligemma")))
    dataset = MultimodalDataset(str(media_folder / "paligemma.json"))
    batch = paligemma[0]([dataset[i] for i in range(len(dataset))])
    model, embeddings = AutoModelForImageTextToText.from_pretrained(tiny("paligemma")).eval(), []

    def record(module, args, kwargs):
        embeddings.append(kwargs["inputs_embeds"].detach().requires_grad_())
        return args, kwargs | {"inputs_embeds": embeddings[0]}

    model.model.language_model.register_forward_pre_hook(record, with_kwargs=True)
    logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
    for row, labels in enumerate(batch["labels"]):
        start = int((labels != IGNORE_INDEX).nonzero()[0])
        for position, seen_until in ((0, start), (start - 1, start), (start, start + 1)):
            (gradient,) = torch.autograd.grad(logits[row, position].sum(), embeddings[0], retain_graph=True)
            seen = gradient.abs().sum(-1) > 0
            assert seen[row, :seen_until].all() and seen.sum() == seen_until


@pytest.mark.parametrize(
    "messages, named",
    [
        ([{"role": "system", "content": "Be brief."}], "no system prompt"),
        (
            [{"role": "user", "content": "And?"}, {"role": "assistant", "content": "So."}],
            "supports one exchange per sample",
        ),
        (None, "at least one image"),
    ],
)
def test_paligemma_names_a_row_of_another_form_before_step_1(tiny, write_rows, tmp_path, messages, named):
    good = {"image": "red.png", "conversations": turns("<image>What?", "Red")}
    picture = {"role": "user", "content": [{"type": "image", "path": "red.png"}, {"type": "text", "text": "What?"}]}
    chat = [picture, {"role": "assistant", "content": "Red"}]
    if messages is None:
        chat[0] = {"role": "user", "content": "What?"}
    elif messages[0]["role"] == "system":
        chat = messages + chat
    else:
        chat += messages
    path = write_rows([good, {"messages": chat}])
    with pytest.raises(ValueError, match=f"sample 1: .*{named}"):
        run(tiny, "paligemma", path, tmp_path / "out")


def test_paligemma_2_loads_and_a_batch_equals_one_by_one(paligemma, tiny, media_folder, tmp_path):
    from transformers import Gemma2Config

    config = AutoConfig.from_pretrained(tiny("paligemma"))
    shared = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim", "vocab_size")
    fields = {name: getattr(config.text_config, name) for name in shared}
    config.text_config = Gemma2Config(**fields, num_key_value_heads=1, sliding_window=64, pad_token_id=0)
    AutoModelForImageTextToText.from_config(config).save_pretrained(tmp_path)
    loader = LOADERS.get("paligemma")(str(tmp_path), attn_implementation="sdpa")
    model = loader.load_model().eval()
    assert all(loader.component_of(name) for name, _ in model.named_parameters())
    (media_folder / "paligemma2.json").write_text(json.dumps(rows_for("paligemma")))
    dataset = MultimodalDataset(str(media_folder / "paligemma2.json"))
    rows = [paligemma[0].encode(dataset[i]).inputs for i in range(len(dataset))]
    with torch.no_grad():
        together = model(**paligemma[0].pad(rows)).logits
        for i, row in enumerate(rows):
            alone = model(**row).logits[0]
            torch.testing.assert_close(together[i, : len(alone)], alone, atol=1e-5, rtol=0)


def test_flash_attention_would_drop_the_second_direction_and_is_refused(tiny, large):
    from transformers.models.gemma3.modeling_gemma3 import create_masks_for_vision_model

    config = AutoConfig.from_pretrained(tiny("gemma-3")).text_config
    config._attn_implementation = "flash_attention_2"
    masks = create_masks_for_vision_model(
        config,
        torch.zeros(1, 4, 8),
        torch.ones(1, 4, dtype=torch.long),
        None,  # the cache, whose name changes in 5.24
        None,
        torch.tensor([[-1, 0, 0, -1]]),
    )
    assert set(masks.values()) == {None}  # the library's fault; once it is mended, drop the refusal
    for family, path in (("gemma-3", tiny("gemma-3")), ("gemma-4", large), ("paligemma", tiny("paligemma"))):
        with pytest.raises(ValueError, match="--use_flash_attn True.* would change this model"):
            LOADERS.get(family)(path, attn_implementation="flash_attention_2")
    for family, part in (("gemma-4", "audio_config"), ("gemma-3n", "vision_config")):
        attention = LOADERS.get(family)(tiny(family), attn_implementation="flash_attention_2").model_kwargs
        assert attention["attn_implementation"].pop(part) in ("eager", "sdpa")
        assert set(attention["attn_implementation"].values()) == {"flash_attention_2"}
