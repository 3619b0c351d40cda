"""Pixtral: Mistral's native-resolution vision transformer, an MLP projector and Mistral NeMo."""

from tokenizers import Regex, pre_tokenizers

from loaders import register_loader
from loaders.base import BaseLoader

# The pattern by which Mistral's tekken.json splits text into words.
TEKKEN_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@register_loader("pixtral")
class PixtralLoader(BaseLoader):
    model_type = "llava"
    text_model_type = "mistral"
    vision_model_type = "pixtral"
    vocabulary = 131_072
    vision_encoder = ["model.vision_tower"]
    vision_projector = ["model.multi_modal_projector"]
    language_model = ["model.language_model", "lm_head"]

    def load_processor(self, path=None):
        """Load the checkpoint's processor, and make its tokenizer split text as Mistral's own does.

        The tokenizer.json of Mistral Small 3.1 has a wrong pattern, which breaks words at combining marks (Hindi, Thai,
        Tamil). `fix_mistral_regex` of transformers 5.23 skips checkpoints whose config.json is as recent as itself, so
        the base model and a model saved from it would tokenize differently.
        """
        processor = super().load_processor(path)
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        split = pre_tokenizers.Split(Regex(TEKKEN_PATTERN), "isolated")
        processor.tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
        return processor
