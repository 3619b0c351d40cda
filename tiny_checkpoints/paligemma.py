"""A tiny PaliGemma."""

from tiny_checkpoints import register_tiny
from tiny_checkpoints.base import TEXT, TinyModel, gemma_tokenizer, padded_size, tiny_siglip


@register_tiny("paligemma")
def paligemma() -> TinyModel:
    """SigLIP, a linear projector, Gemma. 56x56 images: 16 tokens each. No chat template, as the real one."""
    from transformers import GemmaConfig, PaliGemmaConfig, PaliGemmaProcessor, SiglipImageProcessor
    from transformers.models.paligemma.processing_paligemma import EXTRA_TOKENS

    side, patch = 56, 14
    image_tokens = (side // patch) ** 2
    tokenizer = gemma_tokenizer(["<start_of_turn>", "<end_of_turn>"], ["<image>"], EXTRA_TOKENS)
    pad, end, begin, image = tokenizer.convert_tokens_to_ids(["<pad>", "<eos>", "<bos>", "<image>"])
    ids = {"pad_token_id": pad, "bos_token_id": begin, "eos_token_id": end}
    vision = tiny_siglip(side, patch)
    text = GemmaConfig(**TEXT | {"num_key_value_heads": 1}, **ids, head_dim=32, vocab_size=padded_size(tokenizer))
    config = PaliGemmaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image,
        projection_dim=TEXT["hidden_size"],
        hidden_size=TEXT["hidden_size"],
        **ids,
    )
    processor = PaliGemmaProcessor(
        image_processor=SiglipImageProcessor(size={"height": side, "width": side}, image_seq_length=image_tokens),
        tokenizer=tokenizer,
    )
    return TinyModel(config, processor, ids)
