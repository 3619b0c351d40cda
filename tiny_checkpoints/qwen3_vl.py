"""A tiny Qwen3-VL."""

from tiny_checkpoints import register_tiny
from tiny_checkpoints.base import PAPER, TEXT, TinyModel, padded_size, qwen_tokenizer
from tiny_checkpoints.qwen2_5_vl import QWEN_2_5_PLAIN_TOKENS
from tiny_checkpoints.qwen2_vl import QWEN_VISION_TOKENS

# ChatML without a default system prompt; parts in their order; content may be a string.
QWEN3_TEMPLATE = """
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\n' }}
    {%- if message['content'] is string %}
        {{- message['content'] }}
    {%- else %}
        {%- for part in message['content'] %}
            {%- if part['type'] in ('image', 'image_url') %}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' }}
            {%- elif part['type'] == 'video' %}
                {{- '<|vision_start|><|video_pad|><|vision_end|>' }}
            {%- elif 'text' in part %}
                {{- part['text'] }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

# As above, but the last reply has a thought, maybe empty, and the prompt begins a thought.
QWEN3_THINKING_TEMPLATE = """
{%- macro text_of(content) %}
    {%- if content is string %}
        {{- content }}
    {%- else %}
        {%- for part in content %}
            {%- if part['type'] in ('image', 'video') %}
                {{- '<|vision_start|><|' + part['type'] + '_pad|><|vision_end|>' }}
            {%- else %}
                {{- part['text'] }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
{%- endmacro %}
{%- set last = namespace(question=0) %}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}{% set last.question = loop.index0 %}{% endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = text_of(message['content']) %}
    {%- set thought = message['reasoning_content'] or '' %}
    {%- if message['role'] == 'assistant' and '</think>' in content and not thought %}
        {%- set thought = content.split('</think>')[0].split('<think>')[-1] %}
        {%- set content = content.split('</think>')[-1].lstrip('\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message['role'] + '\n' }}
    {%- if message['role'] == 'assistant' and loop.index0 > last.question and (loop.last or thought) %}
        {{- '<think>\n' + thought.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
    {%- else %}
        {{- content }}
    {%- endif %}
    {{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"""


def qwen3_template(checkpoint: str) -> str:
    return QWEN3_THINKING_TEMPLATE if "thinking" in checkpoint.lower() else QWEN3_TEMPLATE


QWEN3_PLAIN_TOKENS = [*QWEN_2_5_PLAIN_TOKENS, "<tool_response>", "</tool_response>", "<think>", "</think>"]


def qwen3_vl_model(
    config_class,
    text: dict,
    vision: dict,
    tie_word_embeddings: bool,
    chat_template=QWEN3_TEMPLATE,
    tokenizer_class=None,
) -> TinyModel:
    """The common part of Qwen3-VL and Qwen3.5: a token is 32x32 pixels; 4 to 16,384 tokens an image.

    Args:
        text: further options of the language model.
        vision: further options of the vision encoder.
    """
    from transformers import Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

    tokenizer = qwen_tokenizer(QWEN_VISION_TOKENS, QWEN3_PLAIN_TOKENS, tokenizer_class)
    ids = dict(zip(QWEN_VISION_TOKENS, tokenizer.convert_tokens_to_ids(QWEN_VISION_TOKENS)))
    end_of_text, end_of_turn = ids["<|endoftext|>"], ids["<|im_end|>"]
    shared_text = TEXT | {
        "head_dim": 32,
        "vocab_size": padded_size(tokenizer),
        "max_position_embeddings": 262144,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_turn,
    }
    shared_vision = {
        "depth": 3,
        "hidden_size": 48,
        "intermediate_size": 128,
        "num_heads": 4,
        "num_position_embeddings": 64,
        "out_hidden_size": TEXT["hidden_size"],
        "initializer_range": 0.15,
    }
    config = config_class(
        text_config=shared_text | text,
        vision_config=shared_vision | vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=tie_word_embeddings,
    )
    # A video's bounds are for all frames together; two frames share a token. The bounds are those on the Hub, except
    # that an image there has at least 64 tokens.
    least, most, most_of_videos = 4 * 32 * 32, 16384 * 32 * 32, 24576 * 32 * 32
    pixels = {"patch_size": 16, "merge_size": 2, "temporal_patch_size": 2, **PAPER}
    processor = Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(size={"shortest_edge": least, "longest_edge": most}, **pixels),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(size={"shortest_edge": least, "longest_edge": most_of_videos}, **pixels),
        chat_template=chat_template,
    )
    generation = {
        "bos_token_id": end_of_text,
        "eos_token_id": [end_of_turn, end_of_text],
        "pad_token_id": end_of_text,
    }
    return TinyModel(config, processor, generation)


# Features of two of three vision layers enter the language model.
DEEPSTACK = {"deepstack_visual_indexes": [0, 1]}
# Half of a head's 32 dimensions, divided among time, height and width in about the real ratio 24 : 20 : 20.
QWEN3_ROPE = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [6, 5, 5], "mrope_interleaved": True}


@register_tiny("qwen3-vl")
def qwen3_vl(checkpoint: str = "Qwen3-VL-2B-Instruct") -> TinyModel:
    from transformers import Qwen3VLConfig

    text, template = {"rope_parameters": QWEN3_ROPE}, qwen3_template(checkpoint)
    return qwen3_vl_model(Qwen3VLConfig, text, DEEPSTACK, tie_word_embeddings=True, chat_template=template)
