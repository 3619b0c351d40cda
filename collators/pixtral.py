"""Pixtral: the [INST] format. The first user message begins with the system text."""

import math

from collators import register_collator
from collators.base import ChatCollator
from collators.budget import Budget
from collators.template import TemplateException
from reading.rows import content_parts


class PixtralBudget(Budget):
    def count_media_tokens(self, row, media_sizes):
        """Count one token per patch and one for the end of each row of patches.

        The processor's own count is wrong for images that are one or three pixels high: it takes the height for the
        channels (transformers 5.23). Extremely narrow images are refused, since resizing would leave zero pixels.
        """
        patch = self.processor.patch_size * self.processor.spatial_merge_size
        longest = self.processor.image_processor.size["longest_edge"]
        num_tokens = 0
        for part in content_parts(row):
            if part["type"] == "image":
                size = media_sizes["image", part["image"]]
                shrink = max(1, max(size) / longest)
                height, width = (math.ceil(math.floor(side / shrink) / patch) for side in size)
                if not height * width:
                    raise ValueError(f"an image of {size[1]}x{size[0]} pixels is too narrow to resize")
                num_tokens += height * (width + 1)
        return num_tokens


@register_collator("pixtral")
class PixtralCollator(ChatCollator):
    chat_template = (
        "<s>"
        "{% for message in messages %}"
        "{% if message.role == 'assistant' %}"
        "{% generation %}{% for part in message.content %}{{ part.text }}{% endfor %}</s>{% endgeneration %}"
        "{% elif message.role == 'user' %}"
        "[INST]"
        "{% if loop.index0 == 1 and messages[0].role == 'system' %}"
        "{% for part in messages[0].content %}{{ part.text }}{% endfor %}{{ '\n\n' }}"
        "{% endif %}"
        "{% for part in message.content %}{% if part.type == 'image' %}[IMG]{% else %}{{ part.text }}{% endif %}"
        "{% endfor %}"
        "[/INST]"
        "{% endif %}"
        "{% endfor %}"
    )
    string_roles = ("system",)
    template_exceptions = (
        TemplateException(
            "Be brief.\n\n",  # the system text of EXAMPLES
            "",
            "The template drops the system text (here `Be brief.`) from a conversation that ends with a reply, and "
            "puts it into the last user message of a prompt. We keep it in the first one, as in the first prompt.",
            "moved",
        ),
    )

    # The processor's default, "pt" (transformers 5.23), would also convert the offsets to a tensor.
    processor_kwargs = {"return_tensors": None}
    budget_class = PixtralBudget
