"""Mistral Small 3.1 and 3.2: Pixtral's vision transformer, a projector that merges 2x2 patches, and Mistral.

3.2 ships Mistral's tekken.json instead of processor files. We build its processor from this file and config.json.
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
        """Load the checkpoint's processor, or build one if it ships only Mistral's tekken.json, as Small 3.2 does.

        A checkpoint without processor files has no chat template either. It gets one that matches mistral-common.
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
        # If config.json has no `tie_word_embeddings`, transformers 5.23 assumes that the head of a mistral3 is tied.
        self.config.tie_word_embeddings = self.config.text_config.tie_word_embeddings
        self.model_kwargs["config"] = self.config
        return super().load_model()
