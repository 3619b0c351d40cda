"""A tiny GLM-4.1V."""

from tiny_checkpoints import register_tiny
from tiny_checkpoints.base import PAPER, TEXT, TinyModel, learn_bpe, padded_size

# A line break follows every role, but no message. A user message is a list of parts; all others are strings.
GLM_TEMPLATE = """[gMASK]<sop>
{%- for message in messages %}
    {{- '<|' + message['role'] + '|>\n' }}
    {%- if message['role'] != 'user' or message['content'] is string %}
        {{- message['content'] }}
    {%- else %}
        {%- for part in message['content'] %}
            {%- if part['type'] == 'video' %}
                {{- '<|begin_of_video|><|video|><|end_of_video|>' }}
            {%- elif part['type'] == 'image' %}
                {{- '<|begin_of_image|><|image|><|end_of_image|>' }}
            {%- elif part['type'] == 'text' %}
                {{- part['text'] }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"""

GLM_TOKENS = (
    "<|endoftext|> [MASK] [gMASK] [sMASK] <sop> <eop> <|system|> <|user|> <|assistant|> <|observation|> "
    "<|begin_of_image|> <|end_of_image|> <|begin_of_video|> <|end_of_video|> <|image|> <|video|>"
).split()
GLM_PLAIN_TOKENS = "<think> </think> <answer> </answer>".split()
# Contractions, words, up to three digits, punctuation, line breaks, spaces.
GLM_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def glm_tokenizer():
    """Learned byte-level pieces, then the control tokens, then those that decoding keeps; no BOS."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    split = [
        pre_tokenizers.Split(Regex(GLM_PIECES), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    bpe = learn_bpe(pre_tokenizers.Sequence(split), sorted(pre_tokenizers.ByteLevel.alphabet()), first=[])
    backend = Tokenizer(models.BPE(**bpe))
    backend.pre_tokenizer = pre_tokenizers.Sequence(split)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in GLM_TOKENS])
    backend.add_tokens([AddedToken(token, normalized=False) for token in GLM_PLAIN_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=GLM_TOKENS[1:],
        padding_side="left",
        model_max_length=128000,
        clean_up_tokenization_spaces=False,
    )


def glm_vision_model(
    config_class, processor_classes: tuple, chat_template: str, text: dict | None = None, vision: dict | None = None
) -> TinyModel:
    """The common part of the GLMs with vision. A token is 28x28 pixels; 8 to 6,144 tokens an image.

    Args:
        processor_classes: of images, of videos, and of both with the text.
        text, vision: further options of the language model and of the vision encoder.
    """
    tokenizer = glm_tokenizer()
    id_of = tokenizer.convert_tokens_to_ids
    stop_ids = id_of(["<|endoftext|>", "<|user|>", "<|observation|>", "</answer>"])
    shared_text = TEXT | {
        "vocab_size": padded_size(tokenizer),
        "max_position_embeddings": 65536,
        "eos_token_id": stop_ids,
        "pad_token_id": stop_ids[0],
        # Half of a head's 32 dimensions are rotated; half of these are divided in the real ratio 8 : 12 : 12.
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "partial_rotary_factor": 0.5,
            "mrope_section": [2, 3, 3],
        },
    }
    shared_vision = {
        "depth": 2,
        "hidden_size": 48,
        "num_heads": 4,
        "image_size": 56,
        "intermediate_size": 192,
        "out_hidden_size": TEXT["hidden_size"],
        "initializer_range": 0.15,
    }
    config = config_class(
        text_config=shared_text | (text or {}),
        vision_config=shared_vision | (vision or {}),
        image_token_id=id_of("<|image|>"),
        video_token_id=id_of("<|video|>"),
        image_start_token_id=id_of("<|begin_of_image|>"),
        image_end_token_id=id_of("<|end_of_image|>"),
        video_start_token_id=id_of("<|begin_of_video|>"),
        video_end_token_id=id_of("<|end_of_video|>"),
        tie_word_embeddings=False,
    )
    # Two frames share a token; an image counts as two frames, a video's pixels are those of all its frames.
    least, most, most_of_videos = 2 * 8 * 28 * 28, 2 * 6144 * 28 * 28, 2 * 30000 * 28 * 28  # as on the Hub
    of_images, of_videos, of_all = processor_classes
    processor = of_all(
        image_processor=of_images(size={"shortest_edge": least, "longest_edge": most}, **PAPER),
        tokenizer=tokenizer,
        video_processor=of_videos(size={"shortest_edge": least, "longest_edge": most_of_videos}, **PAPER),
        chat_template=chat_template,
    )
    return TinyModel(config, processor, {"eos_token_id": stop_ids, "pad_token_id": stop_ids[0]})


@register_tiny("glm-4.1v")
def glm_4_1v() -> TinyModel:
    from transformers import Glm4vConfig, Glm4vImageProcessor, Glm4vProcessor, Glm4vVideoProcessor

    return glm_vision_model(Glm4vConfig, (Glm4vImageProcessor, Glm4vVideoProcessor, Glm4vProcessor), GLM_TEMPLATE)
