"""Random checkpoints and drawn rows to measure speed with: offline, seeded, in seconds.

    python benchmarks/checkpoints.py --family qwen2-vl --size 32k --output_dir /tmp/qwen2-vl-32k
    python benchmarks/checkpoints.py --family qwen2-vl --rows mixture --output_dir /tmp/mixture

Classes, files and chat format are those of the family's tiny checkpoint (`tiny_models.py`); image sizes, and so the
tokens of an image, are those of the real one. Sizes of the language model:

    32k, 150k   hidden 256, 4 layers: nearly all parameters are the embeddings of a vocabulary of 32,000 or 151,936
    7b          as a 7B model in small: hidden 512, 16 layers, feed-forward and vocabulary in their real proportion to
                the hidden size, a vision encoder scaled alike; the head is a small share of the work, as it is there
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tiny_checkpoints  # noqa: E402
from tiny_checkpoints import hub_state_dict  # noqa: E402
from tiny_checkpoints.base import WORDS  # noqa: E402

FAMILIES = {"llava-1.5": "llava-1.5-7b", "qwen2-vl": "qwen2-vl-7b-instruct", "llava-onevision": "llava-onevision-7b-ov"}
SIZES = ("32k", "150k", "7b")
ROWS = ("small", "hd", "clips", "mixture")

SMALL = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4, "num_attention_heads": 8}
VISION = {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 4}
# Vicuna 7B divided by 8, Qwen2 7B by 7; half and 4/7 of their layers. CLIP-L/14 and SigLIP SO400M alike.
VICUNA = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 16, "num_attention_heads": 8}
QWEN2 = {"hidden_size": 512, "intermediate_size": 2688, "num_hidden_layers": 16, "num_attention_heads": 8}
CLIP = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 12, "num_attention_heads": 4}
SIGLIP = {"hidden_size": 168, "intermediate_size": 616, "num_hidden_layers": 15, "num_attention_heads": 4}


def text_sizes(family: str, size: str) -> dict:
    if size != "7b":
        vocabulary = {"32k": 32_000, "150k": 151_936}[size]
        return SMALL | {"num_key_value_heads": 8 if family == "llava-1.5" else 2, "vocab_size": vocabulary}
    if family == "llava-1.5":
        return VICUNA | {"num_key_value_heads": 8, "vocab_size": 32_064 // 8}
    return QWEN2 | {"num_key_value_heads": 1, "vocab_size": 152_064 // 7}


def describe(family: str, size: str):
    """The tiny checkpoint of a family with another text and vision config and the real image sizes."""
    tiny = tiny_checkpoints.TINY_CHECKPOINTS.get(family)()
    config, processor = tiny.config, tiny.processor
    text = text_sizes(family, size) | {"initializer_range": 0.02}
    if family == "qwen2-vl":
        # A head of 32 or 64 dimensions, its half shared out 1 : 1.5 : 1.5 to time, height and width.
        half = text["hidden_size"] // text["num_attention_heads"] // 2
        sections = [half // 4, half * 3 // 8, half * 3 // 8]
        config.text_config.rope_parameters |= {"mrope_section": sections}
        vision = {"embed_dim": 184 if size == "7b" else 192, "hidden_size": text["hidden_size"]}
        vision |= {"depth": 18 if size == "7b" else 4, "num_heads": 2 if size == "7b" else 4}
        token = 28 * 28
        # The range that the model's authors advise: 4 to 1280 tokens an image; a pair of frames, up to 128.
        processor.image_processor.size = {"shortest_edge": 4 * token, "longest_edge": 1280 * token}
        processor.video_processor.size = {"shortest_edge": 4 * token, "longest_edge": 128 * token}
    elif family == "llava-1.5":
        vision = (CLIP if size == "7b" else VISION) | {"image_size": 336, "patch_size": 14, "initializer_factor": 1.0}
        processor.image_processor.size = {"shortest_edge": 336}
        processor.image_processor.crop_size = {"height": 336, "width": 336}
        processor.patch_size, config.image_seq_length = 14, 576
    else:
        vision = (SIGLIP if size == "7b" else VISION) | {"image_size": 384, "patch_size": 14}
        grid = [[height * 384, width * 384] for height in range(1, 7) for width in range(1, 7)]
        config.image_grid_pinpoints = processor.image_processor.image_grid_pinpoints = grid
        for part in (processor.image_processor, processor.video_processor):
            part.size = {"height": 384, "width": 384}
        processor.num_image_tokens = 27 * 27
    for part, values in ((config.text_config, text), (config.vision_config, vision)):
        for name, value in values.items():
            setattr(part, name, value)
    layers = config.text_config.num_hidden_layers
    if hasattr(config.text_config, "layer_types"):
        config.text_config.layer_types = ["full_attention"] * layers
    return config, processor, tiny.generation


def make_checkpoint(family: str, size: str, output_dir: str, seed: int = 0) -> int:
    """Write a random fp32 checkpoint; returns its number of parameters."""
    import torch
    from transformers import AutoModelForImageTextToText, GenerationConfig

    config, processor, generation = describe(family, size)
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(type(config).from_dict(config.to_dict()), dtype=torch.float32)
    model.generation_config = GenerationConfig(do_sample=False, **generation)
    model.save_pretrained(output_dir, state_dict=hub_state_dict(model))
    processor.save_pretrained(output_dir)
    return model.num_parameters()


# ---- rows ----


def draw_picture(random: np.random.Generator, width: int, height: int) -> Image.Image:
    """Hills of colour with grain: neither flat nor noise, as a photograph compresses."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / random.uniform(20, 90)) + np.cos(y / random.uniform(20, 90)) for _ in range(3)]
    grain = random.integers(0, 24, (height, width, 3))
    return Image.fromarray((np.stack(waves, -1) * 50 + 110 + grain).clip(0, 255).astype(np.uint8))


def write_clip(random: np.random.Generator, path: Path, frames: int = 48) -> None:
    """Two seconds of 640x360 in which the picture moves sideways."""
    import av

    picture = np.asarray(draw_picture(random, 640 + 4 * frames, 360))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"
        for i in range(frames):
            frame = np.ascontiguousarray(picture[:, 4 * i : 4 * i + 640])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def words(random: np.random.Generator, count: int) -> str:
    """So many words, of about one token each."""
    return " ".join(random.choice(WORDS, max(int(count), 1)))


def make_rows(kind: str, count: int, folder: str | Path, seed: int = 0) -> Path:
    """Draw media and write rows.json, a list of `conversations`; returns its path.

    small: one 178x218 JPEG, 10 words asked, 28 answered. hd: one 1920x1080 JPEG, 20 asked, 300 answered. clips: one
    clip, 10 asked, 40 answered. mixture: text of 100 to 900 words, half of it answered; in a fifth of the rows, 100 to
    300 words and a small picture.
    """
    folder, random = Path(folder), np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(count):
        medium, (asked, answered) = None, {"small": (10, 28), "hd": (20, 300), "clips": (10, 40)}.get(kind, (0, 0))
        if kind == "mixture":
            medium = "image" if i % 5 == 0 else None
            asked = answered = int(random.integers(100, 301 if medium else 901)) // 2
        if kind == "clips":
            medium, name = "video", f"{i:05}.mp4"
            write_clip(random, folder / name)
        elif kind != "mixture" or medium:
            medium, name = "image", f"{i:05}.jpg"
            size = (1920, 1080) if kind == "hd" else (178, 218)
            draw_picture(random, *size).save(folder / name, quality=90)
        question = (f"<{medium}>\n" if medium else "") + words(random, asked)
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": words(random, answered)}]
        rows.append(({medium: name} if medium else {}) | {"conversations": turns})
    path = folder / "rows.json"
    path.write_text(json.dumps(rows))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=FAMILIES, default="qwen2-vl")
    parser.add_argument("--size", choices=SIZES, default="32k")
    parser.add_argument("--rows", choices=ROWS, help="write rows instead of a checkpoint")
    parser.add_argument("--count", type=int, default=40, help="how many rows")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", required=True)
    own = parser.parse_args()
    if own.rows:
        print(make_rows(own.rows, own.count, own.output_dir, own.seed))
    else:
        print(f"{own.output_dir}: {make_checkpoint(own.family, own.size, own.output_dir, own.seed):,} parameters")


if __name__ == "__main__":
    main()
