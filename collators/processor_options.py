"""Set options of the checkpoint's image and video processors (`--processor_kwargs`)."""

from collections.abc import Collection

import numpy as np
import torch
from huggingface_hub.dataclasses import validate_typed_dict
from PIL import Image

from collators.template import conversation
from reading.strict_json import strict_json

# Options that may not be set: reading media and making batches already determine them.
SETTLED_OPTIONS = {
    *("return_tensors", "device", "data_format", "input_data_format", "do_convert_rgb", "disable_grouping"),
    *("do_sample_frames", "num_frames", "fps", "min_frames", "max_frames", "video_metadata", "return_metadata"),
}

# Sizes of the media that test whether an option has an effect: some affect only small or only large media.
SIZES = ((1600, 1200), (20, 30), (300, 200))


def set_processor_options(collator, options: dict) -> None:
    """Rebuild the image and video processors of a collator with other options."""
    processor, name_of_class = collator.processor, type(collator.processor).__name__
    parts = {name: getattr(processor, name, None) for name in ("image_processor", "video_processor")}
    known = {
        name: part.valid_kwargs.__annotations__.keys() - SETTLED_OPTIONS
        for name, part in parts.items()
        if hasattr(part, "valid_kwargs")
    }
    of_all = set().union(*known.values())
    if unknown := options.keys() - of_all:
        raise ValueError(
            f"--processor_kwargs: {name_of_class} has no option {min(unknown)!r}. Its options are: "
            f"{', '.join(sorted(of_all)) or 'none'}."
        )
    if not options:
        return

    def set_all(options: dict) -> None:
        for name, own in known.items():
            mine = {option: options[option] for option in options.keys() & own}
            validate_typed_dict(parts[name].valid_kwargs, mine)
            setattr(processor, name, type(parts[name]).from_dict(parts[name].to_dict(), **mine))

    example = conversation(("user", "image", "?"), ("assistant", "."))
    example[0]["content"][0]["image"] = image = Image.new("RGB", (300, 200))
    try:
        idle = []
        for option in options:
            set_all({name: value for name, value in options.items() if name != option})
            without = pixels(processor, known)
            set_all(options)
            with_it = pixels(processor, known)
            idle += [option] * (len(with_it) == len(without) and all(map(torch.equal, with_it, without)))
        made = collator.is_media(collator.encode({"messages": example}, within_budget=False).inputs["input_ids"]).sum()
        example[0]["content"][0]["image"] = 0
        counted = collator.budget.count_media_tokens({"messages": example}, {("image", 0): image.size[::-1]})
    except Exception as error:  # a wrong type of value can cause almost any error
        raise ValueError(f"--processor_kwargs {options}: {name_of_class}: {' '.join(str(error).split())}") from error
    if idle:
        raise ValueError(
            f"--processor_kwargs: {idle[0]} {strict_json(options[idle[0]])} has no effect on what "
            f"{name_of_class} returns for images and videos. Remove this option."
        )
    if made > counted:  # the count ignores the option (transformers 5.23)
        raise ValueError(
            f"--processor_kwargs {options}: {name_of_class} turns an image into {made} tokens but counts {counted:g}, "
            "so the token budget would be wrong. Remove the option."
        )


def pixels(processor, parts: Collection[str]) -> list[torch.Tensor]:
    """Return all tensors that the image and video processors return for media of the SIZES."""
    found = []
    for width, height in SIZES:
        frames = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), np.uint8)
        if "image_processor" in parts:
            found.append(dict(processor.image_processor([Image.fromarray(frames[0])], return_tensors="pt")))
    if "video_processor" in parts:
        found.append(dict(processor.video_processor([frames], do_sample_frames=False, return_tensors="pt")))
    values = [value for made in found for value in made.values()]
    values += [each for value in values if isinstance(value, list) for each in value]
    return list(filter(torch.is_tensor, values))
