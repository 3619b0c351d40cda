"""An image processor of transformers whose images stay as Pillow has them, the channels last, until they are resized.

transformers (5.23) copies an image twice before it resizes it: out of Pillow's memory, and to channels first. torch
resizes that several times more slowly than channels that come last, to the same pixels.
"""

from functools import cache

import numpy as np
import torch
from PIL import Image
from transformers import TorchvisionBackend


class ChannelsLast(TorchvisionBackend):
    """Mixin between the class of an image processor and its base; gives the same tensors."""

    def process_image(self, image, *args, **kwargs):
        is_plain = isinstance(image, Image.Image) and image.mode == "RGB" and not image.has_transparency_data
        if not (self.do_resize and is_plain):
            return super().process_image(image, *args, **kwargs)
        # By DLPack, since `from_numpy` warns of memory that cannot be written; resizing only reads it.
        return torch.from_dlpack(np.asarray(image)).permute(2, 0, 1)

    def resize(self, *args, **kwargs):
        return super().resize(*args, **kwargs).contiguous()

    def __reduce__(self):
        """For a data loader's worker that is spawned: pickle cannot find a class that was made here."""
        return _restored, (type(self).__bases__[0], vars(self))


def channels_last(image_processor):
    """The same image processor with less copying; any other object as it is."""
    if not isinstance(image_processor, TorchvisionBackend) or isinstance(image_processor, ChannelsLast):
        return image_processor
    return _restored(type(image_processor), vars(image_processor))


def _restored(base: type, attributes: dict):
    processor = object.__new__(_with_channels_last(base))
    vars(processor).update(attributes)
    return processor


@cache
def _with_channels_last(base: type) -> type:
    return type(base.__name__, (base, ChannelsLast), {})
