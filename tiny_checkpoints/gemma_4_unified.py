"""A tiny Gemma 4 12B."""

from tiny_checkpoints import register_tiny
from tiny_checkpoints.base import TEXT, TinyModel, padded_size
from tiny_checkpoints.gemma_4 import LARGE_GEMMA_4_TEMPLATE, gemma_4


@register_tiny("gemma-4-unified")
def gemma_4_unified() -> TinyModel:
    """Tokenizer, pixels and prompt of Gemma 4. Images are bidirectional; in full-attention layers, keys are values."""
    from transformers import (
        Gemma4UnifiedAudioConfig,
        Gemma4UnifiedAudioFeatureExtractor,
        Gemma4UnifiedConfig,
        Gemma4UnifiedImageProcessor,
        Gemma4UnifiedProcessor,
        Gemma4UnifiedTextConfig,
        Gemma4UnifiedVideoProcessor,
        Gemma4UnifiedVisionConfig,
    )

    tiny = gemma_4()
    like, tokenizer = tiny.config, tiny.processor.tokenizer
    ids = {"pad_token_id": like.text_config.pad_token_id, "bos_token_id": like.text_config.bos_token_id}
    patches = {"patch_size": 4, "pooling_kernel_size": 2}
    text = Gemma4UnifiedTextConfig(
        **TEXT | {"num_hidden_layers": 4, "intermediate_size": 192, "initializer_range": 0.04},
        **ids,
        head_dim=8,
        global_head_dim=16,
        num_global_key_value_heads=1,
        attention_k_eq_v=True,
        sliding_window=64,
        layer_types=["sliding_attention", "full_attention"] * 2,
        vocab_size=padded_size(tokenizer),
        final_logit_softcapping=30.0,
        eos_token_id=like.text_config.eos_token_id,
    )
    config = Gemma4UnifiedConfig(
        text_config=text,
        vision_config=Gemma4UnifiedVisionConfig(
            **patches, mm_embed_dim=64, output_proj_dims=64, mm_posemb_size=140, initializer_range=0.15
        ),
        audio_config=Gemma4UnifiedAudioConfig(audio_embed_dim=64),
        **{
            name: getattr(like, name)
            for name in (
                *("boi_token_id", "eoi_token_id", "image_token_id", "video_token_id"),
                *("boa_token_id", "eoa_token_index", "audio_token_id"),
            )
        },
    )
    processor = Gemma4UnifiedProcessor(
        feature_extractor=Gemma4UnifiedAudioFeatureExtractor(feature_size=64, audio_samples_per_token=64),
        image_processor=Gemma4UnifiedImageProcessor(max_soft_tokens=70, **patches),
        tokenizer=tokenizer,
        video_processor=Gemma4UnifiedVideoProcessor(max_soft_tokens=70, **patches),
        image_seq_length=70,
        chat_template=LARGE_GEMMA_4_TEMPLATE,
    )
    return TinyModel(config, processor, tiny.generation)
