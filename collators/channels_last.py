"""Keep images in Pillow's layout, with the channels last, until an image processor of transformers resizes them.

Before resizing, transformers (5.23) copies an image twice: out of Pillow's memory, and to channels first. With channels
last, torch resizes several times faster and gives the same pixels.
"""

from functools import cache

import numpy as np
import torch
from PIL import Image
from transformers import TorchvisionBackend


class ChannelsLast(TorchvisionBackend):
    """A mixin between the class of an image processor and its base. It does not change the resulting tensors."""

    def process_image(self, image, *args, **kwargs):
        is_plain = isinstance(image, Image.Image) and image.mode == "RGB" and not image.has_transparency_data
        if not (self.do_resize and is_plain):
            return super().process_image(image, *args, **kwargs)
        # `from_numpy` would warn about read-only memory; resizing only reads it.
        return torch.from_dlpack(np.asarray(image)).permute(2, 0, 1)

    def resize(self, *args, **kwargs):
        return super().resize(*args, **kwargs).contiguous()

    def __reduce__(self):
        """Support pickling for spawned workers, since pickle cannot find a class that is created at run time."""
        return _restored, (type(self).__bases__[0], vars(self))


def channels_last(image_processor):
    """Return the same image processor with less copying. Any other object is returned unchanged."""
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
