"""Makes the collator of a run from its flags."""

from collators import COLLATORS
from collators.pixel_bounds import set_options
from loaders.new_tokens import add_tokens, read_text
from reading.strict_json import json_object

# Values of --chat_template other than a file. They choose between the checkpoint's template and the family's.
OWN_TEMPLATES = ("checkpoint", "family")


def make_collator(family: str, loader, data, *datasets):
    """Make the collator of a run from its loader and DataArguments. `--max_pixels auto` requires the data sets."""
    chat_template = data.chat_template
    if chat_template and chat_template not in OWN_TEMPLATES:
        chat_template = read_text("chat_template", chat_template)
    processor, words = loader.load_processor(), data.new_tokens or []
    if words:
        add_tokens(loader, processor.tokenizer, words)
    collator = COLLATORS.get(family)(
        processor,
        data.model_max_length,
        data.mask_question_tokens,
        chat_template=chat_template,
        stop_tokens=loader.stop_tokens(processor.tokenizer),
        template_kwargs=json_object("template_kwargs", data.template_kwargs),
        train_thoughts=data.train_thoughts,
        box_format=data.box_format,
    )
    if wrong := [(word, token) for word in words for token in collator.template.frame.tokens if token in word]:
        raise ValueError(f"--add_tokens: {wrong[0][0]!r} contains the chat format's token {wrong[0][1]!r}. Rename it.")
    set_options(collator, data, *datasets)
    return collator
