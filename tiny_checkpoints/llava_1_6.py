"""A tiny LLaVA 1.6."""

from tiny_checkpoints import register_tiny
from tiny_checkpoints.base import PAPER, TEXT, TinyModel, llama_tokenizer, padded_size
from tiny_checkpoints.llava_1_5 import LLAVA_TEMPLATE, tiny_clip

# "[INST] <image>\nquestion [/INST] answer</s> ". Only the first text of a system message or a reply is used.
LLAVA_MISTRAL_TEMPLATE = """
{%- for message in messages %}
    {%- if message['role'] == 'assistant' %}
        {{- ' ' + message['content'][0]['text'] + '</s> ' }}
    {%- elif message['role'] == 'system' %}
        {{- '<<SYS>>\n' + message['content'][0]['text'] + '\n<</SYS>>\n\n' }}
    {%- else %}
        {{- '[INST] ' }}
        {%- for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}
        {%- for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}
        {{- ' [/INST]' }}
    {%- endif %}
{%- endfor %}"""

# ChatML, for Nous-Hermes-2-Yi-34B.
LLAVA_YI_TEMPLATE = """
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\n' }}
    {%- for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}
    {%- for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}
    {{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""


def template_of(checkpoint: str) -> str:
    """Choose the template by the size and the language model in a checkpoint's name."""
    by_name = {"mistral": LLAVA_MISTRAL_TEMPLATE, "34b": LLAVA_YI_TEMPLATE}
    return next((template for name, template in by_name.items() if name in checkpoint.lower()), LLAVA_TEMPLATE)


def llava_tokenizer(template: str, control: list[str], **kwargs):
    """Llama's tokenizer, without BOS for the ChatML checkpoints."""
    special = {}
    if template == LLAVA_YI_TEMPLATE:
        turns = ["<|startoftext|>", "<|im_start|>", "<|im_end|>"]
        control = [*turns, *control]
        special = {"bos_token": turns[0], "eos_token": turns[2], "add_bos_token": False}
    return llama_tokenizer(control, padding_side="left", **special, **kwargs)


def special_ids(tokenizer) -> dict[str, int]:
    return {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}


# A tile is 4x4 tokens; those of the real checkpoints are 24x24, in the same arrangements.
TILE, PATCH = 64, 16
TILES = [[1, 2], [2, 1], [2, 2], [3, 1], [1, 3]]
GRID = [[height * TILE, width * TILE] for height, width in TILES]


def llama_text(tokenizer):
    """The language model of the Vicuna checkpoints."""
    from transformers import LlamaConfig

    return LlamaConfig(
        **TEXT | {"num_key_value_heads": 4}, vocab_size=padded_size(tokenizer), max_position_embeddings=4096
    )


def mistral_text(tokenizer):
    """The language model of Mistral 7B Instruct 0.2, which has no sliding window."""
    from transformers import MistralConfig

    return MistralConfig(
        **TEXT,
        vocab_size=padded_size(tokenizer),
        max_position_embeddings=32768,
        sliding_window=None,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )


def tiled_image_processor():
    from transformers import LlavaNextImageProcessor

    return LlavaNextImageProcessor(
        size={"shortest_edge": TILE}, crop_size={"height": TILE, "width": TILE}, image_grid_pinpoints=GRID, **PAPER
    )


@register_tiny("llava-1.6")
def llava_1_6(checkpoint: str = "llava-v1.6-vicuna") -> TinyModel:
    """CLIP, two-layer projector, Llama or Mistral. An image is a thumbnail of 16 tokens and up to four tiles."""
    from transformers import LlavaNextConfig, LlavaNextProcessor

    template = template_of(checkpoint)
    make_text = mistral_text if template == LLAVA_MISTRAL_TEMPLATE else llama_text
    tokenizer = llava_tokenizer(template, ["<image>", "<pad>"], pad_token="<pad>")
    image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    config = LlavaNextConfig(
        vision_config=tiny_clip(),
        text_config=make_text(tokenizer),
        image_token_index=image_token_id,
        image_grid_pinpoints=GRID,
        image_seq_length=(TILE // PATCH) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    processor = LlavaNextProcessor(
        image_processor=tiled_image_processor(),
        tokenizer=tokenizer,
        patch_size=PATCH,
        num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
        chat_template=template,
    )
    return TinyModel(config, processor, special_ids(tokenizer))
