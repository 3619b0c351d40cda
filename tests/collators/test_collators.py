"""Training texts, labels and batches, each held against something that this repository did not compute."""

import json
from functools import cache

import numpy as np
import pytest
import torch
from conftest import (
    AUTO,
    FACTS,
    FAMILIES,
    TAKES_VIDEO,
    collator_of,
    for_official_template,
    golden_records,
    make_loader,
    official_template,
    outline,
    replies_of,
    row_losses,
    rows_for,
    taught,
    trained_runs,
)
from official import official_processor
from PIL import Image
from transformers import Ovis2Processor, PaliGemmaProcessor

from collators import COLLATORS
from collators.base import IGNORE_INDEX, ChatCollator
from collators.budget import OverlongSample
from loaders.base import is_inside
from reading.dataset import MultimodalDataset
from reading.options import MediaOptions
from reading.rows import RESERVED_CHARACTER, content_parts

MULTI_TURN = [family for family in FAMILIES if FACTS[family].multi_turn]


def logits_of(model, inputs: dict) -> torch.Tensor:
    with torch.no_grad():
        return model(**{k: v for k, v in inputs.items() if k != "labels"}).logits


def with_media(messages: list[dict]) -> list[dict]:
    """Golden messages with something to look at."""
    frames = {"metadata": {"fps": 2.0, "duration": 2.0, "total_num_frames": 4, "frames_indices": [0, 1, 2, 3]}}
    opened = {
        "image": {"image": Image.new("RGB", (64, 64), "red")},
        "video": {"video": np.zeros((4, 56, 56, 3), np.uint8), **frames},
        "text": {},
    }
    return [{**m, "content": [part | opened[part["type"]] for part in m["content"]]} for m in messages]


@pytest.fixture(scope="module")
def official(tiny):
    """`official(family)`: the checkpoint's processor as it comes."""
    return cache(lambda family: official_processor(family, tiny(family)))


@pytest.fixture(scope="module")
def make_collator(tiny):
    return lambda family, **kwargs: collator_of(family, tiny, **kwargs)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def collator(make_collator, family) -> ChatCollator:
    return make_collator(family)


@pytest.fixture(scope="module")
def tokenizer(official, family):
    return official(family).tokenizer


@pytest.fixture(scope="module")
def model(tiny, family):
    return make_loader(family, tiny(family)).load_model().eval()


@pytest.fixture(scope="module")
def dataset(media_folder, family) -> MultimodalDataset:
    path = media_folder / f"{family}-mixtures.json"
    path.write_text(json.dumps(rows_for(family)))
    return MultimodalDataset(str(path), media=MediaOptions(num_frames=4))


@pytest.fixture(scope="module")
def samples(dataset) -> list[dict]:
    return [dataset[i] for i in range(len(dataset))]


# ---- the text ----


def golden_texts(family: str) -> list[tuple[list, str, list]]:
    """(messages, text, trained spans) of the golden records, with the documented exceptions applied."""
    found = []
    for record in golden_records(family):
        form = record.get("documented_variant", record)
        text, spans = form["text"], form["trained"]
        old, new = FACTS[family].rewritten  # stands before replies, in none
        if old:
            gone = len(old) - len(new)
            spans = [[i - gone * text[:start].count(old) for i in (start, end)] for start, end in spans]
            text = text.replace(old, new)
        found.append((record["messages"], text, spans))
    return found


def test_texts_and_spans_are_the_golden_ones(collator, family):
    for messages, text, spans in golden_texts(family):
        rendered, ours = collator.template.render(messages)
        bos, space = FACTS[family].bos, len(FACTS[family].prompt_space)
        # A reply that the template begins with a line break is kept apart from that of the prompt.
        ours = [[n - rendered[:n].count(RESERVED_CHARACTER) for n in span] for span in ours]
        assert bos + rendered.replace(RESERVED_CHARACTER, "") == text
        assert [[s + len(bos) + space, e + len(bos)] for s, e in ours] == spans
        encoded = collator.encode({"messages": with_media(messages)})
        assert encoded.text == text and encoded.cut == 0


def test_tokens_trained_on_golden_texts_are_the_replies_and_their_end(collator, tokenizer, family):
    for messages, text, spans in golden_texts(family):
        labels = collator.encode({"messages": with_media(messages)}).inputs["labels"][0]
        space = FACTS[family].decoded_space
        texts = [space + text[start:end].replace(*FACTS[family].decoded) for start, end in spans]
        assert trained_runs(tokenizer, labels) == texts


def test_training_text_agrees_with_the_checkpoint(collator):
    assert collator.template.differences() == []


@pytest.mark.few
@pytest.mark.parametrize("family, change", [(f, c) for f in FAMILIES for c in FACTS[f].altered], scope="function")
def test_an_altered_checkpoint_template_is_reported(make_collator, family, change):
    collator = make_collator(family)
    altered = collator.processor.chat_template.replace(*change)
    assert altered != collator.processor.chat_template
    collator.processor.chat_template = altered
    differences = collator.template.differences()
    assert differences and all(ours != official for ours, official in differences)


def test_a_template_that_goes_on_after_the_last_reply_is_reported(make_collator):
    """Which no prompt shows."""
    collator = make_collator("llava-1.5")
    collator.processor.chat_template += "{% if not add_generation_prompt %}!{% endif %}"
    assert collator.template.differences()


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != AUTO], scope="function")
def test_a_template_without_generation_tags_is_refused(official, family):
    class Untagged(COLLATORS.get(family)):
        chat_template = COLLATORS.get(family).chat_template.replace("generation %}", "if true %}", 1)

    with pytest.raises(ValueError, match="chat_template has no {% generation %} tag"):
        Untagged(official(family))


# ---- the labels ----


def test_every_mixture_in_one_batch_trains_the_replies_and_their_end(collator, tokenizer, samples, official, family):
    batch = collator(samples)
    lengths = []
    for row, sample, ids, labels, mask in zip(
        rows_for(family), samples, batch["input_ids"], batch["labels"], batch["attention_mask"]
    ):
        assert trained_runs(tokenizer, labels) == taught(family, replies_of(row))
        trained = labels != IGNORE_INDEX
        assert (labels[trained] == ids[trained]).all()
        assert not (trained & (mask == 0)).any()
        theirs = apply_official(official(family), for_official_template(family, sample["messages"]))["input_ids"][0]
        if FACTS[family].remote_code:
            assert official(family).is_media(ids[None]).sum() == official(family).is_media(theirs[None]).sum()
        for media_id in [] if FACTS[family].remote_code else media_ids(official(family), family):
            assert (ids == media_id).sum() == (theirs == media_id).sum()
        if FACTS[family].bos:
            num_images = sum(part["type"] == "image" for part in content_parts(sample))
            bos = tokenizer.convert_tokens_to_ids(FACTS[family].bos)
            assert (ids == bos).sum() == 1 + num_images * FACTS[family].bos_after_image and ids[0] == bos
        lengths.append(int(mask.sum()))
    assert batch["input_ids"].shape == batch["labels"].shape == (len(samples), max(lengths))
    assert len(set(lengths)) > 1


def media_ids(processor, family: str) -> list[int]:
    ids = [] if isinstance(processor, Ovis2Processor) else processor.image_token_ids + processor.video_token_ids
    named = processor.tokenizer.convert_tokens_to_ids([*FACTS[family].media_tokens])
    return [id for id in ids + named if id is not None]  # the processor of Ovis2 names another


def apply_official(processor, messages: list[dict], **kwargs) -> dict:
    if isinstance(processor, PaliGemmaProcessor):
        question, *reply = messages
        images = [part["image"] for part in question["content"] if part["type"] == "image"]
        prefix = "".join(part["text"] for part in question["content"] if part["type"] == "text")
        suffix = ["".join(part["text"] for part in reply[0]["content"])] if reply else None
        text = processor.image_token * len(images) + prefix
        return dict(processor(images=[images], text=[text], suffix=suffix, return_tensors="pt"))
    options = {"do_sample_frames": False}
    parts = [part for m in messages if not isinstance(m["content"], str) for part in m["content"]]
    metadata = [part["metadata"] for part in parts if part["type"] == "video"]
    if metadata:
        options["video_metadata"] = [metadata]
    if hasattr(processor, "video_processor") and "Qwen" in type(processor).__name__:
        options["cap_pixels_per_frame"] = False
    inputs = processor.apply_chat_template(
        [messages],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs=options if metadata else {},
        **kwargs,
    )
    return {name: torch.as_tensor(value) for name, value in inputs.items()}


# The template of the tiny `auto` checkpoint, tagged by hand.
TAGGED = """
{%- for message in messages %}{{ '<|START_OF_TURN_TOKEN|>' + message['role'] + '\n' }}
    {%- if message['role'] == 'assistant' %}
        {%- generation %}{{ message['content'][0]['text'] }}<|END_OF_TURN_TOKEN|>{% endgeneration %}
    {%- else %}
        {%- for part in message['content'] %}
            {{- part['text'] if part['type'] == 'text' else '<|IMG_PATCH|>' }}
        {%- endfor %}
        {{- ('\n' if message['role'] == 'system' else '') + '<|END_OF_TURN_TOKEN|>' }}
    {%- endif %}
{%- endfor %}"""


def time_steps_as_images(inputs: dict) -> dict:
    """The library's tensors of a sample whose images come before its videos, each time step turned into an image."""
    if "video_grid_thw" in inputs:
        parts = [inputs.pop(name) for name in ("pixel_values", "pixel_values_videos") if name in inputs]
        inputs["pixel_values"] = torch.cat(parts)
        grids = [*inputs.pop("image_grid_thw", []), *inputs.pop("video_grid_thw")]
        inputs["image_grid_thw"] = torch.tensor(
            [[1, h, w] for t, h, w in torch.stack(grids).tolist() for _ in range(t)]
        )
        inputs["mm_token_type_ids"] = (inputs["mm_token_type_ids"] > 0).long()
    return inputs


def test_tokens_and_labels_equal_the_librarys(collator, official, model, samples, family):
    for sample in samples + [{"messages": with_media(record[0])} for record in golden_texts(family)]:
        inputs = collator.encode(sample).inputs
        theirs = apply_official(
            official(family),
            sample["messages"],
            chat_template=collator.template.text if collator.template.is_tagged else TAGGED,
            return_assistant_tokens_mask=True,
            **collator.template.kwargs,
        )
        assert inputs["input_ids"].tolist() == theirs["input_ids"].tolist()
        if (labels := theirs.pop("labels", None)) is None:
            mask = theirs.pop("assistant_masks").bool()
            labels = theirs["input_ids"].masked_fill(~mask, IGNORE_INDEX)
        assert inputs["labels"].tolist() == labels.tolist()
        if FACTS[family].time_steps_as_images:
            if "pixel_values" not in theirs:  # the model takes no videos beside images
                assert torch.equal(logits_of(model, inputs), logits_of(model, theirs))
            theirs = time_steps_as_images(theirs)
        assert inputs.keys() - {"labels"} == theirs.keys()
        for name in theirs:
            assert torch.equal(inputs[name], theirs[name]), name


TIME_STEPS_AS_IMAGES = [family for family in FAMILIES if FACTS[family].time_steps_as_images]


@pytest.mark.parametrize("family", TIME_STEPS_AS_IMAGES, scope="function")
def test_images_and_time_steps_keep_the_order_of_the_text(make_collator, family):
    collator = make_collator(family)
    image, video = (with_media([{"role": "user", "content": [{"type": kind}]}])[0] for kind in ("image", "video"))
    reply = {"role": "assistant", "content": [{"type": "text", "text": "Yes"}]}
    encode = lambda *messages: collator.encode({"messages": [*messages, reply]}).inputs  # noqa: E731
    both = {"role": "user", "content": [*video["content"], *image["content"], *video["content"]]}
    inputs, pieces = encode(both), [encode(video), encode(image), encode(video)]
    for name in ("pixel_values", "image_grid_thw"):
        assert torch.equal(inputs[name], torch.cat([piece[name] for piece in pieces]))
    kinds = [inputs["input_ids"][0, collator.is_media(inputs["input_ids"], kind)[0]] for kind in ("image", "video")]
    num_image, num_video = (collator.is_media(piece["input_ids"]).sum() for piece in pieces[1:])
    assert [len(ids) for ids in kinds] == [num_image, 2 * num_video]


@pytest.mark.few
def test_unmasked_questions_train_all_text_and_no_media(make_collator, family, samples, official):
    if not FACTS[family].multi_turn:
        with pytest.raises(ValueError, match="--mask_question_tokens False"):
            make_collator(family, mask_question_tokens=False)
        return
    collator = make_collator(family, mask_question_tokens=False)
    batch = collator(samples)
    processor = official(family)
    expected = batch["attention_mask"].bool()
    if FACTS[family].remote_code:
        expected &= ~processor.is_media(batch["input_ids"])
    else:
        for id in media_ids(processor, family):
            expected &= batch["input_ids"] != id
    expected[:, 0] = False
    assert (batch["labels"] != IGNORE_INDEX).equal(expected)


def test_prompts_are_the_checkpoints_own(collator, official, samples, family):
    for sample in samples:
        for i, message in enumerate(sample["messages"]):
            if message["role"] == "assistant":
                prompt = collator.encode_prompt(sample["messages"][:i])
                given = for_official_template(family, sample["messages"][:i])
                options = dict(collator.template.kwargs)
                if FACTS[family].pinned[0]:
                    options["chat_template"] = official_template(official(family), family)
                theirs = apply_official(official(family), given, add_generation_prompt=True, **options)
                theirs.pop("labels", None)
                if FACTS[family].time_steps_as_images:
                    theirs = time_steps_as_images(theirs)
                assert prompt.keys() == theirs.keys()
                assert all(torch.equal(prompt[name], theirs[name]) for name in prompt)


def test_a_prompt_is_the_beginning_of_what_is_trained(collator, samples):
    """What a reply follows in training is what it follows in generation, also when it begins with white space."""
    for reply in ("Red", "3", "\nRed", " Red", "\n\n", "😀", "(b)"):
        messages = [*samples[0]["messages"][:-1], {"role": "assistant", "content": [{"type": "text", "text": reply}]}]
        inputs = collator.encode({"messages": messages}).inputs
        prompt = collator.encode_prompt(messages[:-1])["input_ids"][0]
        assert inputs["input_ids"][0, : len(prompt)].equal(prompt)
        assert (inputs["labels"][0] != IGNORE_INDEX).nonzero()[0] == len(prompt)


# ---- batches ----


@pytest.mark.few
def test_a_batch_of_many_equals_one_by_one(collator, model, samples):
    together = row_losses(model, collator(samples))
    alone = torch.cat([row_losses(model, collator([sample])) for sample in samples])
    assert len(together) == len(samples)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


@pytest.mark.few
def test_left_padding_ends_every_row_at_the_last_token(collator, model, samples):
    rows = [collator.encode(sample).inputs for sample in samples]
    left, right = collator.pad(rows, side="left"), collator.pad(rows)
    for i, row in enumerate(rows):
        length = row["input_ids"].shape[1]
        for name in collator.sequence_padding.keys() & row.keys():
            own = tuple(slice(size) for size in row[name].shape[2:])  # rows may differ in their number of images
            assert left[name][i, -length:, *own].equal(row[name][0])
            assert right[name][i, :length, *own].equal(row[name][0])
        assert not left["attention_mask"][i, :-length].any()
    torch.testing.assert_close(row_losses(model, left), row_losses(model, right), atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", [f for f in FAMILIES if FACTS[f].bidirectional_images], scope="function")
def test_tokens_of_an_image_see_each_other_and_nothing_later(make_collator, tiny, media_folder, family):
    """By the gradients of the logits of an image's first token, in a batch of all mixtures."""
    (media_folder / f"{family}-bidirectional.json").write_text(json.dumps(rows_for(family)))
    dataset = MultimodalDataset(str(media_folder / f"{family}-bidirectional.json"), media=MediaOptions(num_frames=4))
    collator = make_collator(family)
    batch = collator([dataset[i] for i in range(len(dataset))])
    model, embeddings = make_loader(family, tiny(family)).load_model().eval(), []

    def record(module, args, kwargs):
        embeddings.append(kwargs["inputs_embeds"].detach().requires_grad_())
        return args, kwargs | {"inputs_embeds": embeddings[0]}

    model.model.language_model.register_forward_pre_hook(record, with_kwargs=True)
    logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
    is_image = collator.is_media(batch["input_ids"], "image")
    for row, positions in enumerate(is_image):
        starts = (positions & ~positions.roll(1)).nonzero()[:, 0].tolist()
        for first in starts:
            last = first + int(positions[first:].int().cumprod(0).sum()) - 1
            (gradient,) = torch.autograd.grad(logits[row, first].sum(), embeddings[0], retain_graph=True)
            seen = gradient.abs().sum(-1) > 0
            assert seen[row, : last + 1].all() and not seen[row, last + 1 :].any()
            assert not seen[:row].any() and not seen[row + 1 :].any()


def loss_and_gradients(model, batch: dict) -> tuple[float, dict]:
    model.zero_grad(set_to_none=True)
    logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten())
    loss.backward()
    return loss.item(), {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("family", MULTI_TURN, scope="module")
def test_dummy_media_teach_nothing_and_reach_every_vision_parameter(make_collator, model, samples, tiny, family):
    collator, text_only = make_collator(family), [samples[3]]
    kinds = {"image", "video"} if family in TAKES_VIDEO else {"image"}
    plain = collator(text_only)
    expected, without = loss_and_gradients(model, plain)
    collator.media_in_every_batch = set(kinds)
    batch = collator(text_only)
    assert len(batch["input_ids"]) == 1 + (1 if FACTS[family].no_video_token else len(kinds))
    assert (batch["labels"][1:] == IGNORE_INDEX).all()
    assert batch["labels"][0, : plain["labels"].shape[1]].equal(plain["labels"][0])
    loss, gradients = loss_and_gradients(model, batch)
    assert abs(loss - expected) <= 2e-6
    loader = make_loader(family, tiny(family))
    unused = loader.unused_modules(model)
    vision = [
        name
        for name in gradients
        if loader.component_of(name) in ("vision_encoder", "vision_projector")
        and not any(is_inside(name, path) for path in unused)
    ]
    assert vision and all(without[name] is None or not without[name].any() for name in vision)
    for name in vision:
        assert gradients[name] is not None and not gradients[name].any(), name
    model.zero_grad(set_to_none=True)


@pytest.mark.few
def test_a_batch_that_has_the_media_gets_no_dummy(make_collator, samples, family):
    collator = make_collator(family)
    kinds = collator.media_in_every_batch = {"image", "video"} if family in TAKES_VIDEO else {"image"}
    others = set() if FACTS[family].no_video_token else kinds - {"image"}
    assert len(collator([samples[0], samples[3]])["input_ids"]) == 2 + len(others)
    assert len(collator([samples[-1]])["input_ids"]) == 1


# ---- the token budget ----


@pytest.mark.few
def test_a_cut_keeps_all_media_and_leaves_the_kept_logits_unchanged(make_collator, model, samples, family):
    collator = make_collator(family)
    for sample in samples:
        collator.budget.max_length = None
        whole = collator.encode(sample).inputs
        length = whole["input_ids"].shape[1]
        reference = logits_of(model, whole)
        num_media = collator.is_media(whole["input_ids"]).sum()
        first_label = int((whole["labels"][0] != IGNORE_INDEX).nonzero()[0])
        media_end = collator._media_end(whole)
        for budget in {max(media_end, first_label + 1), (max(media_end, first_label + 1) + length) // 2, length - 1}:
            collator.budget.max_length = budget
            encoded = collator.encode(sample)
            assert encoded.inputs["input_ids"].shape[1] == encoded.inputs["labels"].shape[1] == budget
            assert encoded.cut == length - budget
            assert collator.is_media(encoded.inputs["input_ids"]).sum() == num_media
            assert (encoded.inputs["labels"] != IGNORE_INDEX).any()
            atol = FACTS[family].rounding
            torch.testing.assert_close(logits_of(model, encoded.inputs), reference[:, :budget], atol=atol, rtol=0)
        collator.budget.max_length = length
        assert collator.encode(sample).cut == 0


@pytest.mark.few
def test_no_budget_gives_a_broken_sample(make_collator, model, samples, tokenizer, family):
    """At every budget: a row with complete media and a label, or an error that names sample and budget."""
    collator = make_collator(family)
    for sample in (samples[0], samples[4]):
        collator.budget.max_length = None
        length = collator.encode(sample).inputs["input_ids"].shape[1]
        usable, seen = [], set()
        for collator.budget.max_length in range(1, length + 1):
            try:
                inputs = collator.encode(sample).inputs
            except OverlongSample as error:
                assert sample["source"] in str(error)
                assert f"--model_max_length {collator.budget.max_length}" in str(error)
                usable.append(False)
                continue
            usable.append(True)
            assert inputs["input_ids"].shape[1] <= collator.budget.max_length
            assert (inputs["labels"] != IGNORE_INDEX).any()
            media = int(collator.is_media(inputs["input_ids"]).sum()), "pixel_values" in inputs
            if media not in seen:
                logits_of(model, inputs)  # raises when media tokens and pixels do not match
                seen.add(media)
        assert usable == sorted(usable) and usable[-1] and not usable[0]


@pytest.mark.few
@pytest.mark.parametrize("family", MULTI_TURN, scope="module")
def test_exchanges_whose_media_lie_past_the_budget_are_dropped(make_collator, samples, tokenizer, family):
    collator = make_collator(family)
    whole = collator.encode(samples[4]).inputs
    collator.budget.max_length = collator._media_end(whole) - 1
    encoded = collator.encode(samples[4])
    assert trained_runs(tokenizer, encoded.inputs["labels"][0]) == taught(family, ["Hi!"])
    assert not collator.is_media(encoded.inputs["input_ids"]).any() and "pixel_values" not in encoded.inputs
    assert encoded.cut == whole["input_ids"].shape[1] - encoded.inputs["input_ids"].shape[1]


@pytest.mark.few
def test_the_first_exchanges_media_must_fit(make_collator, samples, family):
    collator = make_collator(family)
    media_end = collator._media_end(collator.encode(samples[0]).inputs)
    collator.budget.max_length = media_end - 1
    with pytest.raises(OverlongSample, match=rf"sample 0: the media of the first exchange need {media_end} tokens,"):
        collator.encode(samples[0])
    collator.budget.max_length = media_end
    with pytest.raises(OverlongSample, match="sample 0: no reply fits in --model_max_length"):
        collator.encode(samples[0])


@pytest.mark.few
@pytest.mark.parametrize("family", ["qwen2.5-vl"], scope="module")
def test_no_cut_leaves_a_reply_that_nobody_asked_for(make_collator, samples, family):
    """A greeting, or a question in two messages, before the first picture."""
    collator, (question, answer) = make_collator(family), samples[0]["messages"][-2:]
    word = lambda role: {"role": role, "content": [{"type": "text", "text": "Hm"}]}  # noqa: E731
    for before in (["system", "assistant"], ["system", "user"], ["assistant"]):
        sample = {"messages": [*map(word, before), question, answer], "source": "sample 0"}
        collator.budget.max_length = None
        collator.budget.max_length = collator._media_end(collator.encode(sample).inputs) - 1
        with pytest.raises(OverlongSample, match="sample 0: the media of the first exchange"):
            collator.encode(sample)


def test_media_are_counted_as_they_come(collator, dataset, samples, family):
    for i, sample in enumerate(samples):
        ids = collator.encode(sample).inputs["input_ids"]
        found, sizes = outline(dataset, i)
        media_tokens = collator.budget.count_media_tokens(found, sizes)
        num_media = collator.is_media(ids).sum()
        num_frames = sum(size[0] for (kind, _), size in sizes.items() if kind == "video")
        num_media += num_frames * FACTS[family].frame_label_tokens
        assert media_tokens >= num_media if FACTS[family].expanded and num_media else media_tokens == num_media


def test_images_of_any_shape_are_counted(collator, family):
    """One and two images of odd shapes: tiles, padding and its removal round differently for each."""
    for size in [(30, 30), (37, 200), (200, 37), (63, 65), (129, 128), (333, 97), (64, 191), (500, 33)]:
        for number in (1, 2):
            row = conversation([{"type": "image", "image": "path"}] * number)
            opened = conversation([{"type": "image", "image": Image.new("RGB", size)}] * number)
            ids = collator.encode(opened).inputs["input_ids"]
            counted = collator.budget.count_media_tokens(row, {("image", "path"): size[::-1]})
            num_media = collator.is_media(ids).sum()
            assert counted >= num_media if FACTS[family].expanded else counted == num_media
            assert collator.budget.count_text_tokens([row])[0] + counted == ids.shape[1]


def conversation(media: list[dict]) -> dict:
    text = [{"type": "text", "text": "Hm"}]
    return {"messages": [{"role": "user", "content": media + text}, {"role": "assistant", "content": text}]}


@pytest.mark.few
def test_fit_opens_nothing_within_budget(make_collator, dataset, monkeypatch, family):
    collator = make_collator(family)
    collator.budget.max_length = int(collator.budget.token_lengths(dataset).max())
    monkeypatch.setattr(MultimodalDataset, "__getitem__", lambda *_: pytest.fail("opened a sample"))
    rows = list(dataset.rows)
    assert collator.budget.fit(dataset, collator.encode, drop_overlong=False) == (0, 0)
    assert list(dataset.rows) == rows


@pytest.mark.few
def test_fit_counts_lists_and_drops(make_collator, media_folder, samples, family):
    dataset = MultimodalDataset(str(media_folder / f"{family}-mixtures.json"), media=MediaOptions(num_frames=4))
    collator = make_collator(family)
    collator.budget.max_length = budget = collator.encode(samples[0]).inputs["input_ids"].shape[1] - 1
    fates = []
    for sample in samples:
        try:
            fates.append("cut" if collator.encode(sample).cut else "whole")
        except OverlongSample:
            fates.append("dropped")
    assert {"cut", "dropped"} <= set(fates)
    with pytest.raises(ValueError, match=f"{fates.count('dropped')} of {len(samples)} samples do not fit") as error:
        collator.budget.fit(dataset, collator.encode, drop_overlong=False)
    listed = str(error.value).splitlines()[1:]
    assert len(listed) == fates.count("dropped")
    assert all(f"sample {i}:" in line for i, line in zip([i for i, f in enumerate(fates) if f == "dropped"], listed))
    assert len(dataset) == len(samples)
    assert collator.budget.fit(dataset, collator.encode, drop_overlong=True) == (
        fates.count("cut"),
        fates.count("dropped"),
    )
    assert [row["index"] for row in dataset.rows] == [i for i, fate in enumerate(fates) if fate != "dropped"]
    batch = collator([dataset[i] for i in range(len(dataset))])
    assert batch["input_ids"].shape[1] <= budget and (batch["labels"] != IGNORE_INDEX).any(1).all()


@pytest.mark.few
def test_fit_refuses_to_drop_everything(make_collator, dataset, family):
    collator = make_collator(family, model_max_length=2)
    with pytest.raises(ValueError, match=f"{len(dataset)} of {len(dataset)} samples do not fit"):
        collator.budget.fit(dataset, collator.encode, drop_overlong=True)


# ---- odds and ends ----


@pytest.mark.few
def test_the_trainer_finds_no_adapted_tokenizer_to_save(collator):
    assert not hasattr(collator, "tokenizer")


@pytest.mark.few
def test_the_reserved_character_is_in_no_text(collator, samples):
    messages = [*samples[0]["messages"][:-1], {"role": "assistant", "content": [{"type": "text", "text": "\n</s>"}]}]
    encoded = collator.encode({"messages": messages})
    assert RESERVED_CHARACTER not in encoded.text
    ids = encoded.inputs["input_ids"]
    assert RESERVED_CHARACTER not in collator.processor.tokenizer.decode(ids[~collator.is_media(ids)])
