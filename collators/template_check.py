"""Compare the checkpoint's chat template with the family's, on conversations with the shapes found in the data."""

from itertools import count, repeat

from reading.dataset import MultimodalDataset, evenly_spread
from reading.row_index import Layout
from reading.rows import content_parts

MOST_SHAPES = 1000  # compare at most this many, the shortest first; each takes a millisecond or less
MOST_ROWS = 1000  # search at most this many rows, spread over the data, for boxes in texts


def check_template(collator, *datasets: MultimodalDataset | None) -> str:
    """Compare the training text with the text that the checkpoint's own template renders.

    Returns:
        A note for the user, or an empty text.

    Raises:
        ValueError: the texts of a shape found in the data differ by more than the documented exceptions.
    """
    shapes = {layout.shape for dataset in datasets if dataset for layout in dataset.layouts()}
    notes = collator.template.thoughts_and_tools.notes(outlines(*datasets))
    notes += [own_pixels(collator, dataset) for dataset in datasets if dataset]
    return "\n".join(filter(None, [*notes, compare_templates(collator, shapes)]))


def outlines(*datasets: MultimodalDataset | None) -> list[list[dict]]:
    """Return one conversation for each layout in the data sets."""
    layouts = {layout for dataset in datasets if dataset for layout in dataset.layouts()}
    return [layout.messages for layout in layouts]


def own_pixels(collator, dataset: MultimodalDataset) -> str:
    """Return a warning if flags resize images but texts contain boxes in pixels, which are not scaled."""
    boxes, media = collator.template.boxes, dataset.media
    if not boxes.in_pixels or not (media.image_size or media.min_pixels or media.max_pixels or collator.image_size):
        return ""
    for position in evenly_spread(range(len(dataset)), MOST_ROWS):
        texts = [part.get("text", "") for part in content_parts(dataset.rows[position] or {"messages": []})]
        if any(len(box) == 4 for text in texts for box in boxes.format.numbers(text)):
            return (
                f"WARNING: {dataset.source(position)} has a box in its text, which is not scaled when the image is "
                "resized. Write boxes as `objects` (docs/boxes.md)."
            )
    return ""


def compare_templates(collator, shapes: set[Layout]) -> str:
    """Compare the texts of conversations with these shapes. Returns and raises the same as `check_template`."""
    template = collator.template
    if not collator.processor.chat_template:
        if collator.fixed_format:  # the checkpoint's code writes the format
            return ""
        raise ValueError("The checkpoint has no chat template. Add --chat_template family to use that of its family.")
    for shape in sorted(shapes, key=lambda shape: (len(shape), shape))[:MOST_SHAPES]:
        messages = with_texts(shape)
        try:
            template.check_layout(messages)
            differences = template.differences_in(messages)
        except ValueError:  # `fit` reports the rows of this shape
            continue
        if differences:
            roles = ", ".join(message["role"] for message in messages)
            texts = f"({roles}), as in the data:" + "\n  {}: {!r}\n  {}: {!r}"
            ours, official = differences[0]
            if template.is_replaced:
                texts = texts.format("training text", ours, "prompt", official)
                return f"WARNING: the prompts of --chat_template differ from its training text for messages {texts}"
            ways = (
                "Add --chat_template checkpoint to train with the checkpoint's own, or --chat_template family to train "
                "with the family's, which is then saved with the model."
            )
            raise ValueError(
                "The checkpoint's chat template differs from its family's by more than the documented exceptions "
                f"(docs/chat_formats.md), for messages {texts.format('family', ours, 'checkpoint', official)}\n"
                + (f"No other template is possible, since {collator.fixed_format}." if collator.fixed_format else ways)
            )
    if number := len(template.differences()):
        return (
            f"The checkpoint's chat template differs from its family's in {number} of our test conversations, but the "
            "data contains no conversation with their shapes (docs/chat_formats.md)."
        )
    return ""


def with_texts(shape: Layout) -> list[dict]:
    """Return a conversation of this shape. It has the system text of EXAMPLES, which an exception may contain."""
    numbers, messages = count(1), []
    for message in shape.messages:
        texts = repeat("Be brief.") if message["role"] == "system" else (f"Text {number}." for number in numbers)
        parts = [part | {"text": next(texts)} if part["type"] == "text" else part for part in message["content"]]
        messages.append(message | {"content": parts})
    return messages
