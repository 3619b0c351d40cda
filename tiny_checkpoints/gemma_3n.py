"""A tiny Gemma 3n."""

from tiny_checkpoints import register_tiny
from tiny_checkpoints.base import TEXT, TinyModel, gemma_tokenizer, padded_size
from tiny_checkpoints.gemma_3 import GEMMA_3_TEMPLATE

GEMMA_3N_TEMPLATE = GEMMA_3_TEMPLATE.replace(
    "{{ '<start_of_image>' }}",
    "{{ '<image_soft_token>' }}{% elif part['type'] == 'audio' %}{{ '<audio_soft_token>' }}",
)


@register_tiny("gemma-3n")
def gemma_3n() -> TinyModel:
    """Every part of E2B: MobileNet V5 with narrow channels, audio tower, AltUp, two layers that reuse keys and values.

    64x64 images: 16 tokens each. The width of the vision encoder's output, 2048, cannot be chosen.
    """
    from transformers import (
        Gemma3nAudioConfig,
        Gemma3nAudioFeatureExtractor,
        Gemma3nConfig,
        Gemma3nProcessor,
        Gemma3nTextConfig,
        Gemma3nVisionConfig,
        SiglipImageProcessor,
    )

    side, image_tokens, audio_tokens = 64, 16, 8
    begin_of_media = {"boi_token": "<start_of_image>", "boa_token": "<start_of_audio>"}
    image = {"eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    audio = {"eoa_token": "<end_of_audio>", "audio_token": "<audio_soft_token>"}
    media = begin_of_media | image | audio
    tokenizer = gemma_tokenizer(
        ["<start_of_turn>", "<end_of_turn>"], [*media.values()], extra_special_tokens=media, padding_side="left"
    )
    pad, end, begin, end_of_turn = tokenizer.convert_tokens_to_ids(["<pad>", "<eos>", "<bos>", "<end_of_turn>"])
    ids = {"pad_token_id": pad, "bos_token_id": begin}
    text = Gemma3nTextConfig(
        **TEXT
        | {"num_hidden_layers": 4, "num_key_value_heads": 1, "intermediate_size": 192, "initializer_range": 0.04},
        **ids,
        head_dim=8,
        sliding_window=64,
        layer_types=["sliding_attention", "full_attention"] * 2,
        num_kv_shared_layers=2,
        activation_sparsity_pattern=[0.95, 0.0, 0.0, 0.0],
        altup_num_inputs=2,
        laurel_rank=8,
        hidden_size_per_layer_input=16,
        vocab_size=padded_size(tokenizer),
        vocab_size_per_layer_input=tokenizer.eoi_token_id,
        eos_token_id=end,
    )
    vision = Gemma3nVisionConfig(
        model_args={"channel_multiplier": 0.01, "msfa_output_resolution": 4},
        hidden_size=2048,
        vocab_size=len(image),
        vocab_offset=tokenizer.eoi_token_id,
    )
    sound = Gemma3nAudioConfig(
        vocab_size=len(audio),
        vocab_offset=tokenizer.eoa_token_id,
        hidden_size=32,
        conf_num_attention_heads=2,
        conf_num_hidden_layers=1,
        sscp_conv_channel_size=[8, 4],
    )
    config = Gemma3nConfig(
        text_config=text,
        vision_config=vision,
        audio_config=sound,
        vision_soft_tokens_per_image=image_tokens,
        audio_soft_tokens_per_image=audio_tokens,
        boi_token_id=tokenizer.boi_token_id,
        eoi_token_id=tokenizer.eoi_token_id,
        image_token_id=tokenizer.image_token_id,
        boa_token_id=tokenizer.boa_token_id,
        eoa_token_id=tokenizer.eoa_token_id,
        audio_token_id=tokenizer.audio_token_id,
        eos_token_id=[end, end_of_turn],
    )
    # The real processor does not normalize, so a black image is zeros. A new encoder, with biases of zero, would output
    # zeros for that image, and the magnitudes in AltUp have no gradient at zero.
    processor = Gemma3nProcessor(
        feature_extractor=Gemma3nAudioFeatureExtractor(),
        image_processor=SiglipImageProcessor(size={"height": side, "width": side}),
        tokenizer=tokenizer,
        image_seq_length=image_tokens,
        audio_seq_length=audio_tokens,
        chat_template=GEMMA_3N_TEMPLATE,
    )
    return TinyModel(config, processor, ids | {"eos_token_id": [end, end_of_turn]})
