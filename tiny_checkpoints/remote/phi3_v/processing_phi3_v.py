"""Stand-in for the processing code of Phi-3-vision: one text a call, image N becomes the ids -N, and the tokenizer is
asked for each piece between images, so that it puts a BOS behind every image too. No `chat_template` attribute."""

import re

import torch
import transformers
from transformers import BatchFeature
from transformers.processing_utils import ProcessorMixin

from .image_processing_phi3_v import Phi3VImageProcessor

transformers.Phi3VImageProcessor = Phi3VImageProcessor  # as the real code; 5.23 looks for `image_processor_class` there

IMAGE_TAG = re.compile(r"<\|image_(\d+)\|>")


class Phi3VProcessor(ProcessorMixin):
    attributes = ["image_processor", "tokenizer"]
    image_processor_class = "Phi3VImageProcessor"
    tokenizer_class = ("LlamaTokenizer", "LlamaTokenizerFast")
    special_image_token = "<|image|>"

    def __init__(self, image_processor, tokenizer):
        self.image_processor = image_processor
        self.tokenizer = tokenizer

    def __call__(self, text, images=None, padding=False, truncation=None, max_length=None, return_tensors="pt"):
        if images is None:
            return BatchFeature(dict(self.tokenizer(text, return_tensors=return_tensors, padding=padding)))
        features = self.image_processor(images, return_tensors=return_tensors)
        first, *rest = IMAGE_TAG.split(text)
        ids = self.tokenizer(first).input_ids
        assert {int(number) for number in rest[::2]} == set(range(1, len(images) + 1)), "tags must be 1, 2, ..."
        for number, piece in zip(map(int, rest[::2]), rest[1::2]):
            ids += [-number] * int(features["num_img_tokens"][number - 1]) + self.tokenizer(piece).input_ids
        ids = torch.tensor([ids])
        data = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return BatchFeature(data | {name: features[name] for name in ("pixel_values", "image_sizes")})

    def calc_num_image_tokens_from_image_size(self, width, height):
        return self.image_processor.calc_num_image_tokens_from_image_size(width, height)
