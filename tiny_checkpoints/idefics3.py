"""A tiny Idefics3."""

from tiny_checkpoints import register_tiny
from tiny_checkpoints.base import LLAMA_3_SPLIT, TEXT, TinyModel, byte_level_tokenizer, padded_size

TILE_MARKERS = ["<global-img>"] + [f"<row_{row}_col_{col}>" for row in range(1, 7) for col in range(1, 7)]

# Tiles of 32x32 pixels are 2x2 tokens; the longest edge is made 64 pixels: 2 to 5 tiles an image.
TILE, PATCH, SCALE = 32, 8, 2
IMAGE_TOKENS = (TILE // PATCH // SCALE) ** 2
PIXELS = {"size": {"longest_edge": 2 * TILE}, "max_image_size": {"longest_edge": TILE}}
VISION = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": TILE,
    "patch_size": PATCH,
    "initializer_range": 0.15,
}

# `User: ` or, before an image, `User:`; a reply's space is written with its text.
SPEAKERS_TEMPLATE = """
{%- for message in messages %}
    {{- message['role'].capitalize() + (':' if message['content'][0]['type'] == 'image' else ': ') }}
    {%- for part in message['content'] %}
        {%- if part['type'] == 'text' %}{{ part['text'] }}{% elif part['type'] == 'image' %}{{ '<image>' }}{% endif %}
    {%- endfor %}
    {{- '<end_of_utterance>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"""


@register_tiny("idefics3")
def idefics3(checkpoint: str = "Idefics3-8B-Llama3") -> TinyModel:
    """SigLIP, a pixel shuffle with one Linear, Llama with an untied head. SmolVLM differs in the begin token."""
    from tokenizers import Regex, pre_tokenizers
    from transformers import Idefics3Config, Idefics3ImageProcessor, Idefics3Processor, LlamaConfig

    first = pre_tokenizers.Split(Regex(LLAMA_3_SPLIT), "isolated")
    bos = "<|im_start|>" if "SmolVLM" in checkpoint else "<|begin_of_text|>"
    control = [bos, "<|end_of_text|>", "<|reserved_special_token_0|>", "<|eom_id|>", "<|eot_id|>"]
    control += ["<fake_token_around_image>", "<image>", "<end_of_utterance>", *TILE_MARKERS]
    tokenizer = byte_level_tokenizer(
        [first, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)],
        [],
        control,
        writes_bos=True,
        bos_token=bos,
        eos_token="<|eot_id|>",
        pad_token="<|reserved_special_token_0|>",
        padding_side="left",
        model_max_length=16384,
    )
    ids = dict(zip(control, tokenizer.convert_tokens_to_ids(control)))
    text = LlamaConfig(
        **TEXT,
        vocab_size=padded_size(tokenizer),
        max_position_embeddings=16384,
        bos_token_id=ids[bos],
        eos_token_id=ids["<|end_of_text|>"],
        pad_token_id=ids["<|reserved_special_token_0|>"],
    )
    config = Idefics3Config(
        vision_config=VISION,
        text_config=text,
        image_token_id=ids["<image>"],
        scale_factor=SCALE,
        tie_word_embeddings=False,
    )
    processor = Idefics3Processor(
        image_processor=Idefics3ImageProcessor(**PIXELS),
        tokenizer=tokenizer,
        image_seq_len=IMAGE_TOKENS,
        chat_template=bos + SPEAKERS_TEMPLATE,
    )
    stop = ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>", "<end_of_utterance>"]
    generation = {
        "bos_token_id": ids[bos],
        "eos_token_id": [ids[token] for token in stop],
        "pad_token_id": ids["<|reserved_special_token_0|>"],
    }
    return TinyModel(config, processor, generation)
