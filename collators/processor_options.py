"""Options of the checkpoint's own image and video processors (`--processor_kwargs`)."""

from PIL import Image

from collators.template import conversation

# Options of processors that are settled by how media are opened and batches made.
SETTLED_OPTIONS = {
    *("return_tensors", "device", "data_format", "input_data_format", "do_convert_rgb", "disable_grouping"),
    *("do_sample_frames", "num_frames", "fps", "min_frames", "max_frames", "video_metadata", "return_metadata"),
}


def set_processor_options(collator, options: dict) -> None:
    """Have the image and video processors of a collator made with other options."""
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
            f"--processor_kwargs: {name_of_class} has no option {min(unknown)!r}; it has "
            f"{', '.join(sorted(of_all)) or 'none'}."
        )
    if not options:
        return
    probe = conversation(("user", "image", "?"), ("assistant", "."))
    probe[0]["content"][0]["image"] = image = Image.new("RGB", (300, 200))
    try:
        for name, own in known.items():
            mine = {option: options[option] for option in options.keys() & own}
            setattr(processor, name, type(parts[name]).from_dict(parts[name].to_dict(), **mine))
        made = collator.is_media(collator.encode({"messages": probe}, within_budget=False).inputs["input_ids"]).sum()
        probe[0]["content"][0]["image"] = 0
        counted = collator.budget.count_media_tokens({"messages": probe}, {("image", 0): image.size[::-1]})
    except Exception as error:  # on a value of a wrong type they raise nearly any
        raise ValueError(f"--processor_kwargs {options}: {name_of_class}: {error}") from error
    if made > counted:  # it counts without regard to the option (transformers 5.23)
        raise ValueError(
            f"--processor_kwargs {options}: {name_of_class} makes {made} tokens of an image but counts {counted:g}, so "
            "no budget could be kept."
        )
