"""A tiny SmolVLM2."""

from tiny_checkpoints import register_tiny
from tiny_checkpoints.base import TEXT, TinyModel, byte_level_tokenizer, padded_size
from tiny_checkpoints.idefics3 import IMAGE_TOKENS, PIXELS, SCALE, SPEAKERS_TEMPLATE, TILE_MARKERS, VISION


@register_tiny("smolvlm2")
def smolvlm2() -> TinyModel:
    """SigLIP, a pixel shuffle with one Linear, Llama with an untied head. The template does not support videos."""
    from tokenizers import pre_tokenizers
    from transformers import (
        LlamaConfig,
        SmolVLMConfig,
        SmolVLMImageProcessor,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )

    first = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    control = [*TILE_MARKERS, "<fake_token_around_image>", "<image>", "<end_of_utterance>"]
    tokenizer = byte_level_tokenizer(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
        first,
        control,
        unk_token="<|endoftext|>",
        bos_token="<|im_start|>",
        eos_token="<end_of_utterance>",
        pad_token="<|im_end|>",
        extra_special_tokens={
            "image_token": "<image>",
            "fake_image_token": "<fake_token_around_image>",
            "global_image_token": "<global-img>",
            "end_of_utterance_token": "<end_of_utterance>",
        },
        model_max_length=8192,
    )
    end_of_turn, image_token_id = tokenizer.convert_tokens_to_ids(["<end_of_utterance>", "<image>"])
    text = LlamaConfig(
        **TEXT,
        vocab_size=padded_size(tokenizer),
        max_position_embeddings=8192,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    config = SmolVLMConfig(
        vision_config=VISION,
        text_config=text,
        image_token_id=image_token_id,
        scale_factor=SCALE,
        tie_word_embeddings=False,
    )
    sampling = {"fps": 1, "max_frames": 64, "video_size": PIXELS["max_image_size"]}
    processor = SmolVLMProcessor(
        image_processor=SmolVLMImageProcessor(**PIXELS),
        tokenizer=tokenizer,
        video_processor=SmolVLMVideoProcessor(**PIXELS, video_sampling=sampling),
        image_seq_len=IMAGE_TOKENS,
        chat_template="<|im_start|>" + SPEAKERS_TEMPLATE,
    )
    return TinyModel(config, processor, {"bos_token_id": 0, "eos_token_id": end_of_turn, "pad_token_id": 2})
