"""Qwen2.5-VL: the format of Qwen2-VL. Videos also have their time scale (`second_per_grid_ts`)."""

from collators import register_collator
from collators.boxes import BOX_FORMATS
from collators.qwen2_vl import Qwen2VLCollator


@register_collator("qwen2.5-vl")
class Qwen25VLCollator(Qwen2VLCollator):
    box_format = BOX_FORMATS["pixels"]  # source: process_bbox.ipynb (see collators/qwen2_vl.py)
    told_times = True
