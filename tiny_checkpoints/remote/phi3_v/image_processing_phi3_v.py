"""Stand-in for the image processing code of Phi-3-vision: an image is resized to whole tiles, beside a small copy."""

import math

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

TILE, TOKENS_PER_SIDE = 28, 2  # 336 and 12 in the real one


def resized(width, height, max_tiles):
    """(width, height) of the image, and of the tiles it is put on."""
    if width < height:
        return [size[::-1] for size in resized(height, width, max_tiles)]
    columns = 1
    while (columns + 1) * math.ceil((columns + 1) * height / width) <= max_tiles:
        columns += 1
    size = columns * TILE, int(columns * TILE * height / width)
    return [size, (columns * TILE, math.ceil(size[1] / TILE) * TILE)]


class Phi3VImageProcessor(BaseImageProcessor):
    model_input_names = ["pixel_values"]

    def __init__(self, num_crops=1, image_mean=None, image_std=None, **kwargs):
        super().__init__(**kwargs)
        self.num_crops, self.image_mean, self.image_std = num_crops, image_mean, image_std

    def calc_num_image_tokens_from_image_size(self, width, height):
        columns, rows = (size // TILE for size in resized(width, height, self.num_crops)[1])
        return (rows * columns + 1) * TOKENS_PER_SIDE**2 + 1 + (rows + 1) * TOKENS_PER_SIDE

    def preprocess(self, images, return_tensors=None, **kwargs):
        pixels, sizes = [], []
        for image in images:
            size, canvas_size = resized(*image.size, self.num_crops)
            canvas = Image.new("RGB", canvas_size, "white")
            canvas.paste(image.resize(size), tuple((c - s) // 2 for c, s in zip(canvas_size, size)))
            values = (np.asarray(canvas) / 255 - self.image_mean) / self.image_std
            whole = torch.tensor(values, dtype=torch.float32).permute(2, 0, 1)
            small = torch.nn.functional.interpolate(whole[None], size=(TILE, TILE), mode="bicubic")
            rows, columns = canvas.height // TILE, canvas.width // TILE
            tiles = whole.view(3, rows, TILE, columns, TILE).permute(1, 3, 0, 2, 4).flatten(0, 1)
            missing = torch.zeros(self.num_crops - rows * columns, 3, TILE, TILE)
            pixels.append(torch.cat([small, tiles, missing]))
            sizes.append([canvas.height, canvas.width])
        tokens = [self.calc_num_image_tokens_from_image_size(*image.size) for image in images]
        data = {"pixel_values": torch.stack(pixels), "image_sizes": sizes, "num_img_tokens": tokens}
        return BatchFeature(data, tensor_type=return_tensors)
