"""A tiny DeepSeek-VL."""

from tiny_checkpoints import register_tiny
from tiny_checkpoints.base import LLAMA_3_SPLIT, PAPER, TEXT, TinyModel, byte_level_tokenizer, padded_size, tiny_siglip

# The first text of a message is trimmed on the left and the last on the right. A space separates consecutive texts.
DEEPSEEK_VL_TEMPLATE = """
{{- 'You are a helpful language and vision assistant. You are able to understand the visual content that the user ' }}
{{- 'provides, and assist the user with a variety of tasks using natural language.\n\n' }}
{%- for message in messages %}
    {{- message['role'].capitalize() + (':' if message['role'] == 'assistant' else ': ') }}
    {%- if message['role'] == 'assistant' and message['content'][0]['text'] %}{{ ' ' }}{% endif %}
    {%- for part in message['content'] %}
        {%- if part['type'] == 'image' %}
            {{- '<image_placeholder>' }}
        {%- else %}
            {%- set text = part['text'].lstrip() if loop.first else part['text'] %}
            {%- set text = text.rstrip() if loop.last else text %}
            {{- ' ' + text if loop.index0 and message['content'][loop.index0 - 1]['type'] == 'text' else text }}
        {%- endif %}
    {%- endfor %}
    {%- if not loop.last or add_generation_prompt %}
        {{- '\n\n' if message['role'] == 'user' else '<｜end▁of▁sentence｜>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"""


@register_tiny("deepseek-vl")
def deepseek_vl() -> TinyModel:
    """Every image is padded to a square of 32x32 pixels, in 16 tokens."""
    from tokenizers import Regex, pre_tokenizers
    from transformers import DeepseekVLConfig, DeepseekVLImageProcessor, DeepseekVLProcessor, LlamaConfig

    first = pre_tokenizers.Split(Regex(LLAMA_3_SPLIT), "isolated")
    control = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<image_placeholder>"]
    tokenizer = byte_level_tokenizer(
        [first, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)],
        [],
        control,
        writes_bos=True,
        bos_token=control[0],
        eos_token=control[1],
        pad_token=control[1],
        model_max_length=16384,
        extra_special_tokens={"image_token": control[2]},
    )
    bos, eos, image = tokenizer.convert_tokens_to_ids(control)
    size, patch = 32, 8
    text = LlamaConfig(
        **TEXT,
        vocab_size=padded_size(tokenizer),
        max_position_embeddings=16384,
        bos_token_id=bos,
        eos_token_id=eos,
        pad_token_id=eos,
    )
    config = DeepseekVLConfig(
        text_config=text,
        vision_config=tiny_siglip(size, patch).to_dict(),
        image_token_id=image,
        tie_word_embeddings=False,
    )
    processor = DeepseekVLProcessor(
        image_processor=DeepseekVLImageProcessor(size={"height": size, "width": size}, min_size=patch, **PAPER),
        tokenizer=tokenizer,
        num_image_tokens=(size // patch) ** 2,
        chat_template=DEEPSEEK_VL_TEMPLATE,
    )
    return TinyModel(config, processor, {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": eos})
