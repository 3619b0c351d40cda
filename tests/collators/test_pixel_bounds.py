"""--max_pixels where the processor has bounds of its own; the truth is what transformers makes of the saved files."""

import json
import random

import pytest
from conftest import make_loader, run, turns
from PIL import Image
from transformers import AutoImageProcessor, AutoVideoProcessor

import merge_lora_weights
from arguments import parse_arguments
from loaders.output_folder import copy_processor_files, write_image_size
from merging import servers
from reading.dataset import make_dataset
from training.make_collator import make_collator

FAMILIES = {
    "qwen2-vl": "qwen2-vl-2b-instruct",
    "qwen2.5-vl": "qwen2.5-vl-3b-instruct",
    "qwen3-vl": "qwen3-vl-2b-instruct",
    "glm-4.1v": "glm-4.1v-9b-thinking",
}
OTHERS = {"llava-1.5": "llava-1.5-7b", "pixtral": "pixtral-12b"}


def parsed(path: str, out, family: str, *words: str):
    flags = ["--model_id", (FAMILIES | OTHERS)[family], "--data_path", path, "--output_dir", str(out)]
    return parse_arguments([*flags, "--use_cpu", "True", *words])


def opened(arguments, tiny):
    """(collator, data set) as train.py makes them."""
    family, data = arguments.model.family, arguments.data
    dataset = make_dataset(data, "data_path", data.data_path)
    return make_collator(family, make_loader(family, tiny(family)), data), dataset


def draw(folder, sizes) -> list[dict]:
    rows = []
    for i, size in enumerate(sizes):
        image, exif = Image.new("RGB", size, "red"), Image.Exif()
        exif[0x0112] = (1, 6, 3, 8)[i % 4]
        image.save(folder / f"{i}.jpg", exif=exif)
        rows.append({"image": f"{i}.jpg", "conversations": turns("<image>\nWhat?", "Red")})
    return rows


@pytest.mark.parametrize("family", FAMILIES)
def test_the_grids_of_training_are_those_of_the_saved_processor(tiny, write_rows, media_folder, tmp_path, family):
    pick = random.Random(0)
    sizes = [(pick.randint(30, 500), pick.randint(30, 500)) for _ in range(49)] + [(403, 302)]
    rows = draw(media_folder, sizes)
    arguments = parsed(write_rows(rows), tmp_path, family, "--max_pixels", "32145")
    collator, dataset = opened(arguments, tiny)
    (saved := tmp_path / "saved").mkdir()
    copy_processor_files(tiny(family), str(saved))
    write_image_size(str(saved), dict(collator.processor.image_processor.size))
    official = AutoImageProcessor.from_pretrained(saved)
    for i, (width, height) in enumerate(sizes):
        seen = (height, width) if i % 2 else (width, height)  # the odd ones lie on their sides
        expected = official(Image.new("RGB", seen), return_tensors="pt")["image_grid_thw"]
        assert collator.encode(dataset[i], within_budget=False).inputs["image_grid_thw"].tolist() == expected.tolist()
        frames, rows_, columns = expected[0].tolist()
        most = 32145 / (official.patch_size**2)
        assert rows_ * columns <= most
    tokens = collator.budget.media_tokens(dataset).media
    assert tokens[0] == collator.is_media(collator.encode(dataset[0]).inputs["input_ids"]).sum()


@pytest.mark.parametrize(
    "config, expected",
    [
        ({"min_pixels": 3136, "max_pixels": 12845056}, {"min_pixels": 3136, "max_pixels": 802816}),
        (
            {"size": {"longest_edge": 16777216, "shortest_edge": 65536}},
            {"size": {"longest_edge": 802816, "shortest_edge": 3136}},
        ),
    ],
)
def test_the_bound_is_written_in_the_files_own_spelling_and_videos_keep_theirs(tmp_path, config, expected):
    types = {"image_processor_type": "Qwen2VLImageProcessor", "video_processor_type": "Qwen2VLVideoProcessor"}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config | types))
    videos = AutoVideoProcessor.from_pretrained(tmp_path).size
    write_image_size(str(tmp_path), {"shortest_edge": 3136, "longest_edge": 802816})
    assert json.loads((tmp_path / "preprocessor_config.json").read_text()) == expected | types
    size = AutoImageProcessor.from_pretrained(tmp_path).size
    assert (size["shortest_edge"], size["longest_edge"]) == (3136, 802816)
    assert AutoVideoProcessor.from_pretrained(tmp_path).size == videos


def test_who_resizes(write_rows, tmp_path):
    path = write_rows([{"conversations": turns("What?", "Red")}])
    settled = lambda family, *words: parsed(path, tmp_path, family, *words).data.keep_processor_config  # noqa: E731
    assert settled("qwen2.5-vl", "--max_pixels", "9999") is False
    assert settled("qwen2.5-vl", "--max_pixels", "9999", "--keep_processor_config", "True") is True
    assert settled("qwen2.5-vl") is None and settled("llava-1.5", "--max_pixels", "9999") is None
    for family, words, match in (
        ("llava-1.5", "--max_pixels 9999 --keep_processor_config True", "llava-1.5's processor has no pixel bounds"),
        ("qwen2.5-vl", "--keep_processor_config True", "no effect without --min_pixels or --max_pixels"),
        ("qwen2.5-vl", "--max_pixels 9999 --jpeg_draft True", "--keep_processor_config True"),
        ("qwen2.5-vl", "--max_pixels 9999 --image_resize_algorithm box", "--keep_processor_config True"),
        ("qwen2.5-vl", """--max_pixels 9999 --processor_kwargs {"size":{}}""", "'size' and --max_pixels set the same"),
        ("qwen2.5-vl", "--max_pixels auto --keep_processor_config True", "True forbids. Pass a number"),
        ("llava-1.5", "--max_pixels auto", "but llava-1.5 has no bounds. Pass a number"),
    ):
        with pytest.raises(ValueError, match=match):
            settled(family, *words.split())


@pytest.mark.parametrize("model", ["qwen2.5-vl", "pixtral"])
def test_too_large_a_picture_is_told_the_pixels_that_fit(tiny, write_rows, media_folder, tmp_path, model):
    """The processor's bound, or what is done before it: with a step more than is proposed, a sample does not fit."""
    path = write_rows(draw(media_folder, [(400, 300), (420, 420), (60, 60)]))
    budget = {"qwen2.5-vl": 60, "pixtral": 40}[model]
    flags = lambda *words: parsed(path, tmp_path, model, "--model_max_length", str(budget), *words)  # noqa: E731
    collator, dataset = opened(flags(), tiny)
    with pytest.raises(
        ValueError, match=r"2 of 3 samples do not fit \(67%; --max_pixels \d+ makes all of them fit"
    ) as e:
        collator.budget.fit(dataset, collator.encode, False)
    pixels = int(str(e.value).split("--max_pixels ")[1].split()[0])
    assert longest(*opened(flags("--max_pixels", str(pixels)), tiny)) <= budget
    assert longest(*opened(flags("--max_pixels", str(pixels + 1024)), tiny)) > budget


def longest(collator, dataset) -> int:
    samples = [collator.encode(dataset[i], within_budget=False) for i in range(len(dataset))]
    return max(sample.inputs["input_ids"].shape[1] for sample in samples)


def test_auto_is_the_most_with_which_all_data_fit(tiny, write_rows, media_folder, tmp_path):
    """Evaluation rows count too; what no number helps does not; where all fit, the processor keeps its own bound."""
    rows = draw(media_folder, [(400, 300), (420, 420), (60, 60)])
    longer = dict(rows[1], conversations=turns("<image>\nWhat?", "It is red. " * 9))
    too_long = dict(rows[1], conversations=turns("<image>\nWhat?", "It is red. " * 99))
    train, evaluation = write_rows([*rows, too_long], "train.json"), write_rows([longer], "eval.json")
    found = {}
    for budget in (80, 9999):
        arguments = parsed(train, tmp_path, "qwen2.5-vl", "--max_pixels", "auto", "--model_max_length", str(budget))
        datasets = [make_dataset(arguments.data, "data_path", path) for path in (train, evaluation)]
        make_collator("qwen2.5-vl", make_loader("qwen2.5-vl", tiny("qwen2.5-vl")), arguments.data, *datasets)
        found[budget] = arguments.data.max_pixels
    assert found[9999] == 16384 * 28 * 28
    for pixels, fits in ((found[80], True), (found[80] + 1024, False)):
        arguments = parsed(evaluation, tmp_path, "qwen2.5-vl", "--max_pixels", str(pixels))
        assert (longest(*opened(arguments, tiny)) <= 80) == fits


@pytest.mark.slow
def test_a_photo_has_the_tokens_of_training_wherever_it_is_seen(tiny, write_rows, media_folder, tmp_path):
    """4032x3024 pixels, as it was taken and turned: the adapter, its merge, its server, its card."""
    rows = draw(media_folder, [(4032, 3024), (3024, 4032)])
    out, merged = tmp_path / "out", tmp_path / "merged"
    run(tiny, "qwen2.5-vl", write_rows(rows), out, "--use_lora", True, "--max_steps", 1, "--max_pixels", 802816)
    merge_lora_weights.main(["--model_path", str(out), "--model_save_path", str(merged)])
    for folder in (out, merged):
        images = AutoImageProcessor.from_pretrained(folder)
        assert images(Image.new("RGB", (4032, 3024)), return_tensors="pt")["image_grid_thw"].tolist() == [[1, 54, 72]]
    size = '{"size": {"longest_edge": 802816, "shortest_edge": 3136}}'
    assert f"--mm-processor-kwargs '{size}'" in "".join(servers.advice(str(out)))
    assert f"--mm-processor-kwargs '{size}'" in (out / "README.md").read_text()
    assert "mm-processor" not in "".join(servers.advice(str(merged))) + (merged / "README.md").read_text()
