"""Qwen2.5-VL: the same module names as Qwen2-VL."""

from loaders import register_loader
from loaders.qwen2_vl import Qwen2VLLoader


@register_loader("qwen2.5-vl")
class Qwen25VLLoader(Qwen2VLLoader):
    model_type = "qwen2_5_vl"
    vocabulary = 151_665
