"""What Llama 4 alone has: pixels in bfloat16, tiles, complex buffers."""

from importlib.metadata import version

import pytest
import torch
from packaging.version import Version
from PIL import Image

from collators import COLLATORS
from loaders import LOADERS

pytestmark = pytest.mark.skipif(Version(version("transformers")) >= Version("5.24"), reason="refused in this release")


@pytest.fixture
def collator(tiny):
    return COLLATORS.get("llama4")(LOADERS.get("llama4")(tiny("llama4")).load_processor())


def asked_about(*images: Image.Image) -> dict:
    content = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": "What is it?"}]
    reply = [{"type": "text", "text": "Noise"}]
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": reply}]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pixels_reach_the_model_unrounded_and_in_its_precision(tiny, collator, dtype):
    model = LOADERS.get("llama4")(tiny("llama4"), dtype=dtype).load_model()
    batch = collator([asked_about(Image.effect_noise((90, 70), 80).convert("RGB"))])
    seen = []
    model.vision_model.patch_embedding.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(**batch)
    assert seen[0].dtype == dtype and torch.equal(seen[0], batch["pixel_values"].to(dtype))
    assert torch.equal(seen[0].to(torch.bfloat16), batch["pixel_values"])


def test_media_tokens_of_images_of_every_shape(collator):
    sizes = [(1, 1), (56, 56), (57, 56), (56, 112), (300, 40), (40, 300), (500, 500), (3, 999), (113, 113), (60, 140)]
    images = [Image.new("RGB", (width, height)) for height, width in sizes]
    for chosen in ([image] for image in images), [images]:
        for group in chosen:
            row = {"messages": [{"content": [{"type": "image", "image": str(image.size)} for image in group]}]}
            known = {("image", str(image.size)): (image.height, image.width) for image in group}
            ids = collator.encode(asked_about(*group)).inputs["input_ids"]
            assert collator.budget.count_media_tokens(row, known) == collator.is_media(ids).sum()


def test_a_release_in_which_it_fails_is_refused(tiny, monkeypatch):
    path = tiny("llama4")
    monkeypatch.setattr("loaders.llama4.version", {"transformers": "5.24.0"}.get)
    with pytest.raises(ValueError, match="fails in transformers 5.24.* pip install 'transformers<5.24'"):
        LOADERS.get("llama4")(path)
