"""Mistral Small 3.1 and 3.2: Pixtral's vision transformer, a projector that merges 2x2 patches, and Mistral.

Of a processor, 3.2 ships Mistral's tekken.json alone: the rest is made from that and config.json.
"""

import re

from transformers import PixtralImageProcessor, PixtralProcessor, TokenizersBackend
from transformers.utils import has_file

from collators.mistral_small_3_1 import WITHOUT_DEFAULT_SYSTEM
from loaders import register_loader
from loaders.pixtral import PixtralLoader


@register_loader("mistral-small-3.1")
class MistralSmall31Loader(PixtralLoader):
    model_type = "mistral3"
    template_of_mistral_common = WITHOUT_DEFAULT_SYSTEM

    def load_processor(self, path=None):
        """The checkpoint's own; where it ships Mistral's tekken.json alone, as Small 3.2, one made of that and config.

        Such a checkpoint has no chat template: it gets the text that mistral-common makes of a conversation.
        """
        path = path or self.model_path
        if any(has_file(path, name) for name in ("processor_config.json", "preprocessor_config.json")):
            return super().load_processor(path)
        template = re.sub(r"\{% (end)?generation %\}", "", self.template_of_mistral_common)
        names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
        tokenizer = self.load_with(TokenizersBackend, path, chat_template=template, **names)
        vision = self.config.vision_config
        return PixtralProcessor(
            image_processor=PixtralImageProcessor(
                size={"longest_edge": vision.image_size}, patch_size=vision.patch_size
            ),
            tokenizer=tokenizer,
            patch_size=vision.patch_size,
            spatial_merge_size=self.config.spatial_merge_size,
            chat_template=template,
        )

    def load_model(self):
        # Where config.json does not say, transformers 5.23 takes every mistral3 for one with a tied head.
        self.config.tie_word_embeddings = self.config.text_config.tie_word_embeddings
        self.model_kwargs["config"] = self.config
        return super().load_model()
