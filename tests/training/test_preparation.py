"""What a sample and a frozen part may cost: no needless copy, decoding, call, recorded operation or worker."""

import json
import os
import pickle

import numpy as np
import pytest
import torch
from conftest import CONSENT, CROSSED, FACTS, FAMILIES, MODEL_ID, collator_of, make_loader, run, turns
from PIL import ExifTags, Image
from torch.utils.data import DataLoader
from transformers import AutoProcessor

import arguments
import train
from arguments import parse_arguments
from collators import COLLATORS
from collators.channels_last import channels_last
from loaders.base import is_inside
from reading import images, media
from reading.dataset import EncodedDataset, MultimodalDataset
from reading.options import MediaOptions
from training.adapters import base_name
from training.trainable import SkipFrozenBackward, make_trainable

NATIVE = [family for family in FAMILIES if not FACTS[family].remote_code]


def test_evaluation_rows_that_are_also_trained_on_are_a_warning(write_rows, capsys):
    one, other, both = ([{"conversations": turns(text, "b")} for text in texts] for texts in ("a", "c", "ca"))
    train.report_data(MultimodalDataset(write_rows(one)), MultimodalDataset(write_rows(other)))
    assert "WARNING: 1 of" not in capsys.readouterr().out
    names = write_rows(one), write_rows(both)
    train.report_data(*map(MultimodalDataset, names))
    twins = " = ".join(f"{os.path.basename(name)}, sample {place}" for name, place in zip(names[::-1], (1, 0)))
    found = capsys.readouterr().out
    assert "WARNING: 1 of 2 evaluation rows are also in the training data" in found and f"{twins}.\n" in found


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def tensors(value) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    values = value.values() if hasattr(value, "values") else value if isinstance(value, (list, tuple)) else []
    return [tensor for part in values for tensor in tensors(part)]


def conversation(*images: Image.Image) -> list[dict]:
    text = [{"type": "text", "text": "What is it?"}]
    parts = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": parts + text}, {"role": "assistant", "content": text}]


# ---- images ----


@pytest.mark.parametrize("family", NATIVE)
def test_images_come_out_as_of_the_checkpoints_own_processor(tiny, family):
    """To the bit, and laid out alike, also in a worker that was spawned; RGB images take the faster way."""
    own = AutoProcessor.from_pretrained(tiny(family)).image_processor
    ours = pickle.loads(pickle.dumps(channels_last(own)))
    assert type(ours) is not type(own) and vars(ours) == vars(own)
    opened = noise(100, 80)
    opened.info["transparency"] = (1, 2, 3)
    for pictures in ([noise(301, 200)], [noise(57, 333)], [noise(80, 80)], [noise(64, 48), noise(90, 40)], [opened]):
        expected, given = tensors(own(pictures)), tensors(ours(pictures))
        assert len(expected) == len(given) > 0
        for a, b in zip(expected, given):
            assert torch.equal(a, b) and a.is_contiguous() == b.is_contiguous()


@pytest.mark.parametrize("family", ["llava-1.5", "gemma-3"])
def test_a_collator_takes_the_faster_way_and_leaves_no_trace_in_the_image(tiny, family, monkeypatch):
    collator = collator_of(family, tiny)
    image = noise(90, 70)
    before = image.tobytes()
    copies = []
    monkeypatch.setattr("transformers.image_processing_backends.convert_to_rgb_pil", lambda *a, **k: copies.append(a))
    collator.encode({"messages": conversation(image)})
    assert not copies and image.tobytes() == before


def test_without_resizing_an_image_is_copied_as_before(tiny):
    own = AutoProcessor.from_pretrained(tiny("llava-1.5")).image_processor
    own.do_resize = False
    image = noise(80, 70)
    assert torch.equal(own([image])["pixel_values"][0], channels_last(own)([image])["pixel_values"][0])


@pytest.mark.parametrize("family", ["llava-1.5", "qwen2.5-vl", "llava-onevision"])
def test_an_image_is_decoded_once_and_processed_once(tiny, family, tmp_path, monkeypatch):
    names = ["a.jpg", "b.jpg"]
    for name in names:
        noise(120, 90).save(tmp_path / name)
    row = {"image": names, "conversations": turns("<image>\n<image>\nWhat is it?", "Grain")}
    (tmp_path / "rows.json").write_text(json.dumps([row]))
    dataset = MultimodalDataset(str(tmp_path / "rows.json"))
    collator = collator_of(family, tiny)
    calls = []

    def count(owner, name):
        original = getattr(owner, name)
        counted = lambda *args, **kwargs: calls.append(name) or original(*args, **kwargs)  # noqa: E731
        monkeypatch.setattr(owner, name, counted)

    count(Image, "_getdecoder")
    count(type(collator.processor), "__call__")
    count(type(collator.processor.image_processor), "_preprocess")
    collator.encode(dataset[0])
    assert sorted(calls) == ["__call__", "_getdecoder", "_getdecoder", "_preprocess"]


@pytest.mark.slow
def test_workers_that_are_spawned_make_the_same_tensors(tiny, tmp_path):
    noise(120, 90).save(tmp_path / "a.jpg")
    row = {"image": "a.jpg", "conversations": turns("<image>\nWhat is it?", "Grain")}
    (tmp_path / "rows.json").write_text(json.dumps([row]))
    collator = COLLATORS.get("llava-1.5")(make_loader("llava-1.5", tiny("llava-1.5")).load_processor())
    dataset = EncodedDataset(MultimodalDataset(str(tmp_path / "rows.json")), collator, 1)
    [made] = DataLoader(dataset, batch_size=None, num_workers=1, multiprocessing_context="spawn")
    expected = dataset[0]
    assert made.keys() == expected.keys() and all(torch.equal(made[name], expected[name]) for name in made)


# ---- --jpeg_draft ----


def scene(width: int, height: int) -> Image.Image:
    """Hills with a little grain."""
    hills = np.add.outer(np.sin(np.arange(height) / 20), np.cos(np.arange(width) / 30)) * 50 + 110
    grain = np.random.default_rng(0).integers(0, 12, (height, width, 3))
    return Image.fromarray((hills[..., None] + grain).astype(np.uint8))


@pytest.mark.parametrize("orientation", [1, 6, 8])
@pytest.mark.parametrize("flags", [{"image_size": "100x60"}, {"image_size": "64"}, {"max_pixels": 120 * 70}])
def test_a_drafted_jpeg_has_its_size_and_nearly_its_pixels(tmp_path, orientation, flags, monkeypatch):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = str(tmp_path / "a.jpg")
    scene(640, 360).save(path, exif=exif)
    plain = images.open_image(path, MediaOptions(**flags))
    decoded, seen = [], images._as_seen
    monkeypatch.setattr(images, "_as_seen", lambda image: decoded.append(image.size) or seen(image))
    drafted = images.open_image(path, MediaOptions(**flags, jpeg_draft=True))
    assert drafted.size == plain.size
    assert media.read_header("image", path, MediaOptions(**flags, jpeg_draft=True)) == plain.size[::-1]
    # The largest of these that is no smaller than the image is to be, on either side.
    wanted = plain.size if orientation == 1 else plain.size[::-1]
    scale = max(k for k in (1, 2, 4, 8) if 640 / k >= wanted[0] and 360 / k >= wanted[1])
    assert scale > 1 and decoded == [(640 // scale, 360 // scale)]
    difference = np.abs(np.asarray(drafted, int) - np.asarray(plain, int))
    assert 0 < difference.max() and difference.mean() < 2


@pytest.mark.parametrize("name, flags", [("a.jpg", {"image_size": "400x200"}), ("a.png", {"image_size": "64"})])
def test_what_cannot_be_drafted_stays_the_same(tmp_path, name, flags):
    scene(640, 360).save(tmp_path / name)
    plain, drafted = (
        images.open_image(str(tmp_path / name), MediaOptions(**flags, jpeg_draft=draft)) for draft in (False, True)
    )
    assert plain.tobytes() == drafted.tobytes()


# ---- workers ----


@pytest.mark.parametrize(
    "cores, devices, flags, workers",
    [(64, 8, "", 4), (12, 4, "", 3), (2, 8, "", 1), (64, 8, "--use_cpu True", 0), (64, 0, "", 0)],
)
def test_the_default_number_of_workers(monkeypatch, cores, devices, flags, workers):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: devices > 0)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: devices)
    assert arguments.default_workers("use_cpu" in flags) == workers


@pytest.mark.parametrize(
    "flags, expected",
    [
        ([], (0, False)),  # here, without a GPU
        (["--dataloader_num_workers", "2"], (2, True)),
        (["--dataloader_num_workers", "2", "--dataloader_persistent_workers", "False"], (2, False)),
    ],
)
def test_the_users_workers_win(monkeypatch, flags, expected):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    training = parse_arguments(["--model_id", "llava-1.5-7b", "--data_path", "x.json", *flags]).training
    assert (training.dataloader_num_workers, training.dataloader_persistent_workers) == expected


# ---- what is frozen costs one forward pass and no memory ----


def watch(model, loader) -> tuple[dict[str, int], set[str]]:
    """Hook into the modules of the vision encoder and projector: how often each is called, and whose output is part of
    the graph, so that something is kept for the backward pass."""
    called, recorded = {}, set()

    def hook(name):
        def look(module, args, output):
            called[name] = called.get(name, 0) + 1
            if any(tensor.requires_grad for tensor in tensors(output)):
                recorded.add(name)

        return look

    for name, module in model.named_modules():
        if any(is_inside(base_name(name), path) for path in (*loader.vision_encoder, *loader.vision_projector)):
            module.register_forward_hook(hook(base_name(name)))
    return called, recorded


def steps(tiny, family, *flags):
    """Forward and backward as in training, without and with checkpointing.

    Yields:
        the model, the loader, how often each module was called in the forward pass and in both, and what was recorded.
    """
    words = ["--model_id", MODEL_ID[family], "--model_local_path", tiny(family), "--data_path", "x.json"]
    loader = make_loader(family, tiny(family))
    model = make_trainable(loader.load_model(), loader, parse_arguments([*words, *CONSENT[family], *flags]))
    collator = COLLATORS.get(family)(loader.load_processor(), 4096)
    batch = collator([{"messages": conversation(noise(100, 80))}])
    called, recorded = watch(model.train(), loader)
    for checkpointing in (False, True):
        if checkpointing:  # as the Trainer does
            model.activation_checkpointing_enable()
            SkipFrozenBackward().on_train_begin(None, None, None, model=model)
        called.clear(), recorded.clear(), model.zero_grad()
        loss = model(**batch, use_cache=False).loss
        forward = dict(called)
        loss.backward()
        yield model, loader, forward, called, recorded


@pytest.mark.few
@pytest.mark.parametrize("family", CROSSED)
def test_frozen_vision_parts_are_computed_once_and_keep_nothing(tiny, family):
    for model, _, forward, called, recorded in steps(tiny, family, "--use_lora", "True"):
        assert forward and not recorded and called == forward
        for name, parameter in model.named_parameters():
            assert parameter.requires_grad == (parameter.grad is not None), name


@pytest.mark.slow
@pytest.mark.parametrize("family", CROSSED)
def test_a_frozen_encoder_under_a_projector_that_trains(tiny, family):
    flags = ["--use_lora", "True", "--train_vision_projector", "True"]
    for _, loader, forward, called, recorded in steps(tiny, family, *flags):
        encoder = {name for name in called if loader.component_of(name) == "vision_encoder"}
        around = {name for name in encoder if any(is_inside(path, name) for path in loader.vision_projector)}
        behind = {"transformer.visual.ln_post"} if family == "qwen-vl" else set()  # its projector is not the last layer
        assert recorded and not recorded & encoder - around - behind
        assert all(called[name] == forward[name] for name in encoder)


def test_under_checkpointing_a_run_leaves_a_frozen_encoder_alone(tiny, write_rows, tmp_path, monkeypatch):
    watched, made = [], train.trainable.make_trainable

    def make_and_watch(model, loader, arguments):
        model = made(model, loader, arguments)
        watched.append(watch(model, loader))
        return model

    monkeypatch.setattr(train.trainable, "make_trainable", make_and_watch)
    path = write_rows([{"image": "red.png", "conversations": turns("<image>\nWhat colour is it?", "Red")}])
    flags = ["--use_lora", True, "--activation_checkpointing", True, "--max_steps", 1]
    run(tiny, "qwen2.5-vl", path, tmp_path / "out", *flags)
    [(called, recorded)] = watched
    assert set(called.values()) == {1} and not recorded
