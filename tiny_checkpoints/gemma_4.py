"""A tiny Gemma 4, after E2B."""

from tiny_checkpoints import register_tiny
from tiny_checkpoints.base import TEXT, TinyModel, gemma_tokenizer, padded_size

# Writes <bos>. Texts are trimmed, and thoughts are removed from replies. Each part of a system prompt is followed by a
# space. The system turn turns thinking on.
GEMMA_4_TEMPLATE = """
{%- macro without_thoughts(text) %}
    {%- for piece in text.split('<channel|>') %}{{ piece.split('<|channel>')[0] }}{% endfor %}
{%- endmacro %}
{{- bos_token }}
{%- set thinks = enable_thinking is defined and enable_thinking %}
{%- if thinks and messages[0]['role'] != 'system' %}{{ '<|turn>system\n<|think|>\n<turn|>\n' }}{% endif %}
{%- for message in messages %}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
    {{- '<|turn>' + role + '\n' }}
    {%- if thinks and role == 'system' %}{{ '<|think|>\n' }}{% endif %}
    {%- if message['content'] is string %}
        {{- (without_thoughts(message['content']) if role == 'model' else message['content']) | trim }}
    {%- else %}
        {%- for part in message['content'] %}
            {%- if part['type'] == 'text' and role == 'model' %}{{ without_thoughts(part['text']) | trim }}
            {%- elif part['type'] == 'text' %}{{ part['text'] | trim }}{% if role == 'system' %}{{ ' ' }}{% endif %}
            {%- elif part['type'] in ('image', 'audio', 'video') %}{{ '<|' + part['type'] + '|>' }}{% endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<turn|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|turn>model\n' }}{% endif %}"""

# Sizes of 12B and more answer after an empty thought, which ends their prompt.
PROMPT, THOUGHT = "{{ '<|turn>model\n' }}", "<|channel>thought\n<channel|>"
LARGE_GEMMA_4_TEMPLATE = GEMMA_4_TEMPLATE.replace(
    PROMPT, PROMPT + f"{{% if not thinks %}}{{{{ '{THOUGHT}' }}}}{{% endif %}}"
)


@register_tiny("gemma-4")
def gemma_4(checkpoint: str = "gemma-4-E2B-it") -> TinyModel:
    """All parts of E2B: the audio tower, embeddings per layer, two layers that reuse keys and values. For 26B-A4B and
    31B, only the template differs.

    Images have at most 70 tokens, the processor's smallest setting. Gemma 4 does not scale attention down: with heads
    of the real size, the attention of a random model would be so sharp that rounding errors become visible.
    """
    from transformers import (
        Gemma4AudioConfig,
        Gemma4AudioFeatureExtractor,
        Gemma4Config,
        Gemma4ImageProcessor,
        Gemma4Processor,
        Gemma4TextConfig,
        Gemma4VideoProcessor,
        Gemma4VisionConfig,
    )

    media = {
        **{"boi_token": "<|image>", "boa_token": "<|audio>", "image_token": "<|image|>", "audio_token": "<|audio|>"},
        **{"eoi_token": "<image|>", "eoa_token": "<audio|>"},
    }
    tokenizer = gemma_tokenizer(
        ["<|tool_response>", "<|think|>", "<|channel>", "<channel|>", "<|turn>", "<turn|>"],
        [*media.values(), "<|video|>"],
        extra_special_tokens=media,
        padding_side="left",
    )
    names = ["<pad>", "<eos>", "<bos>", "<turn|>", "<|tool_response>", "<|video|>"]
    pad, end, begin, end_of_turn, tool_response, video = tokenizer.convert_tokens_to_ids(names)
    ids = {"pad_token_id": pad, "bos_token_id": begin}
    patches = {"patch_size": 4, "pooling_kernel_size": 2}
    text = Gemma4TextConfig(
        **TEXT
        | {"num_hidden_layers": 4, "num_key_value_heads": 1, "intermediate_size": 192, "initializer_range": 0.04},
        **ids,
        head_dim=8,
        global_head_dim=16,
        sliding_window=64,
        layer_types=["sliding_attention", "full_attention"] * 2,
        num_kv_shared_layers=2,
        use_double_wide_mlp=True,
        hidden_size_per_layer_input=16,
        vocab_size=padded_size(tokenizer),
        vocab_size_per_layer_input=padded_size(tokenizer),
        final_logit_softcapping=30.0,
        eos_token_id=end,
    )
    vision = Gemma4VisionConfig(
        **patches,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=8,
        position_embedding_size=140,
        use_clipped_linears=True,
    )
    audio = Gemma4AudioConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        subsampling_conv_channels=[8, 4],
        output_proj_dims=48,
    )
    config = Gemma4Config(
        text_config=text,
        vision_config=vision,
        audio_config=audio,
        boi_token_id=tokenizer.boi_token_id,
        eoi_token_id=tokenizer.eoi_token_id,
        image_token_id=tokenizer.image_token_id,
        video_token_id=video,
        boa_token_id=tokenizer.boa_token_id,
        eoa_token_index=tokenizer.eoa_token_id,
        audio_token_id=tokenizer.audio_token_id,
    )
    processor = Gemma4Processor(
        feature_extractor=Gemma4AudioFeatureExtractor(),
        image_processor=Gemma4ImageProcessor(max_soft_tokens=70, **patches),
        tokenizer=tokenizer,
        video_processor=Gemma4VideoProcessor(max_soft_tokens=70, **patches),
        image_seq_length=70,
        chat_template=GEMMA_4_TEMPLATE if "-E" in checkpoint else LARGE_GEMMA_4_TEMPLATE,
    )
    return TinyModel(config, processor, ids | {"eos_token_id": [end, end_of_turn, tool_response]})
