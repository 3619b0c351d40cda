"""Make a tiny random checkpoint of any supported family: offline, in seconds.

    python tiny_models.py --model_family_id qwen2-vl --output_dir tiny/qwen2-vl
    python tiny_models.py --model_id llava-1.5-7b --output_dir tiny/llava-1.5-7b

For dry runs and tests. Everything but the sizes follows the family's smallest Hub checkpoint: classes, files, special
tokens and their order, chat template, stop tokens, tied or untied head. So a script that runs on the tiny one has met
every class and file of the real one. The folder is a `--model_local_path` like any other.

To add a family: write one function here that returns its config, processor and generation ids, and add it to
`TINY_FAMILIES`.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

from supported_models import find_model


class TinyModel(NamedTuple):
    config: Any  # PreTrainedConfig of the whole model
    processor: Any  # ProcessorMixin, with tokenizer and chat template
    generation: dict  # the token ids of generation_config.json


# ---------------------------------------------------------------------------------------------------------------------
# Text that teaches the tokenizers: enough English that a question costs a few tokens instead of dozens.
# ---------------------------------------------------------------------------------------------------------------------

SENTENCES = """
You are a helpful assistant. You are a careful visual assistant. USER: ASSISTANT: system user assistant
What colour is the circle? The circle is red. What color is the shape in the top left? It is blue.
How many shapes are there? There are three shapes. How many squares are in the image? Two. Only one.
Which shape is in the top right? Which shape is in the bottom left? Which shape is in the bottom right?
Which shape is in the center? Where is the green triangle? The triangle is in the middle of the picture.
Is there a yellow star? Yes, there is. No, there is not. Is the square left of the circle? Is it above or below?
Describe the image. Describe this image in one sentence. Describe the video. What happens in this video?
What is shown in this image? What is in the picture? What can you see here? Here is the first picture.
And the second. What changed? Which one was taken later? Name three primary colours. Red, yellow and blue.
The image shows a small white shape on a black background. A person is walking with a dog in the street.
Answer the question with a single word. Please read the text and tell me what it says. Let me think about that.
I do not know, but I would like to help you. That was a good question. They have been to the old town near the sea.
Can you count the objects? The answer is ten. This is how we did it. It's not what I'd say; don't you think so?
""".strip().split("\n")

VOCABULARY = 1100  # bytes and learned pieces, before the added tokens

ANSWERS = """
red green blue yellow orange purple pink brown black white grey gray cyan magenta circle circles square squares triangle
triangles star stars diamond rectangle cross crosses heart top bottom left right center centre middle upper lower above
below zero one two three four five six seven eight nine ten none yes no
""".split()

WORDS = """
shape object image picture photo video frame colour color size small large big position count corner side between next
behind front near many more less first second third last same different what which where who when why how is are was
were be been do does did has have had can could will would should there not and or but if then than because with without
from into over under about after before again also only very the this that these those it its he she they we you your
his her their our some any all each both other another man woman child person people dog cat bird car bus train street
house tree water sky sun table chair food book sign show see look find name describe explain answer question tell read
write say think know make take give get go come use time day year way thing world life hand part place work word line
number good new old long high little great
""".split()


def corpus() -> list[str]:
    """The sentences, then each word as it meets a tokenizer: after a space, capitalised, and, as an answer, alone."""
    answers = [line for word in ANSWERS for line in (word, word, word.capitalize(), f"A {word} {word}")]
    return SENTENCES * 2 + answers + [f"{word.capitalize()} {word} {word}" for word in WORDS]


def learn_bpe(pre_tokenizer, alphabet: list[str], first: list[str]) -> dict:
    """Vocabulary and merges of a BPE, learned from `corpus()`; the tokens of `first` get ids 0, 1, ...

    The trainer breaks ties by token id and has no random part: the same corpus gives the same merges everywhere.
    """
    from tokenizers import Tokenizer, models, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, initial_alphabet=alphabet, special_tokens=first, show_progress=False
    )
    bpe.train_from_iterator(corpus(), trainer)
    model = json.loads(bpe.to_str())["model"]
    return {"vocab": model["vocab"], "merges": [tuple(merge) for merge in model["merges"]]}


def added_tokens(bpe: dict, control: list[str], plain: list[str] = ()) -> dict:
    """id -> token for what follows the learned pieces: `control` tokens, then `plain` ones, which decoding keeps.

    With the ids written down, a tokenizer class cannot put its end or pad token first.
    """
    from tokenizers import AddedToken

    tokens = [AddedToken(token, normalized=False, special=True) for token in control]
    tokens += [AddedToken(token, normalized=False, special=False) for token in plain]
    return dict(enumerate(tokens, start=len(bpe["vocab"])))


def llama_tokenizer(control: list[str], **kwargs):
    """A `LlamaTokenizer`: <unk> <s> </s>, the 256 bytes, learned pieces, then the `control` tokens."""
    from tokenizers import pre_tokenizers
    from transformers import LlamaTokenizer

    # Like SentencePiece: no piece crosses a space or joins a word and its punctuation, digits stand alone.
    split = [pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation(), pre_tokenizers.Digits(individual_digits=True)]
    first = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    printable = [chr(code) for code in range(33, 127)]
    bpe = learn_bpe(pre_tokenizers.Sequence(split), printable, first)
    return LlamaTokenizer(
        **bpe,
        added_tokens_decoder=added_tokens(bpe, control),
        legacy=False,
        add_bos_token=True,
        model_max_length=4096,
        **kwargs,
    )


def qwen_tokenizer(control: list[str], plain: list[str] = (), **kwargs):
    """A `Qwen2Tokenizer`: learned byte-level pieces, then the `control` tokens, then the `plain` ones."""
    from tokenizers import pre_tokenizers
    from transformers import Qwen2Tokenizer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = learn_bpe(Qwen2Tokenizer().backend_tokenizer.pre_tokenizer, alphabet, first=[])
    return Qwen2Tokenizer(
        **bpe,
        added_tokens_decoder=added_tokens(bpe, control, plain),
        extra_special_tokens=[token for token in control if token != "<|endoftext|>"],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=32768,
        **kwargs,
    )


def padded_size(tokenizer) -> int:
    """Rows of the embedding: the next multiple of 64, since real checkpoints too have more rows than tokens."""
    return (len(tokenizer) // 64 + 1) * 64


# ---------------------------------------------------------------------------------------------------------------------
# Chat templates: the text of the official ones, in the fewest words. Newlines are literal.
# ---------------------------------------------------------------------------------------------------------------------

# "USER: <image>\nquestion ASSISTANT: answer "; images first; no </s> after a reply, and none at the end of a history.
LLAVA_TEMPLATE = """
{%- for message in messages %}
    {%- if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}
    {%- for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}
    {%- for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endfor %}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"""

# ChatML with a default system prompt; parts in their order; content may be a string.
QWEN_TEMPLATE = """
{%- for message in messages %}
    {%- if loop.first and message['role'] != 'system' %}
        {{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}
    {%- endif %}
    {{- '<|im_start|>' + message['role'] + '\n' }}
    {%- if message['content'] is string %}
        {{- message['content'] }}
    {%- else %}
        {%- for part in message['content'] %}
            {%- if part['type'] == 'text' %}
                {{- part['text'] }}
            {%- elif part['type'] in ('image', 'image_url') %}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' }}
            {%- elif part['type'] == 'video' %}
                {{- '<|vision_start|><|video_pad|><|vision_end|>' }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

# A space after the role, images, videos, then every text on a line of its own; but the prompt has no space.
LLAVA_ONEVISION_TEMPLATE = """
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + ' ' }}
    {%- for part in message['content'] if part['type'] == 'image' %}{{ '<image>' }}{% endfor %}
    {%- for part in message['content'] if part['type'] == 'video' %}{{ '<video>' }}{% endfor %}
    {%- for part in message['content'] if part['type'] == 'text' %}{{ '\n' + part['text'] }}{% endfor %}
    {{- '<|im_end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""


# ---------------------------------------------------------------------------------------------------------------------
# Families
# ---------------------------------------------------------------------------------------------------------------------

# A language model of two layers. The wide initialisation lets so narrow a model learn from its first steps and makes
# its answers depend on the image: with the usual 0.02 all logits are nearly equal.
TEXT = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.08,
}

# The example's drawings are shapes on white paper. Normalised as photographs are, the paper is the largest signal and
# drowns the position embeddings of a fresh encoder: it learns colours, but neither place nor count.
PAPER = {"image_mean": [0.96] * 3, "image_std": [1.4] * 3}


def llava_1_5() -> TinyModel:
    """CLIP, two-layer projector, Llama. 64x64 images: 16 tokens each. Large enough to learn to name drawn shapes."""
    from transformers import CLIPImageProcessor, CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaProcessor

    tokenizer = llama_tokenizer(["<image>", "<pad>"], pad_token="<pad>", padding_side="left")
    image_token_id, pad_token_id = tokenizer.convert_tokens_to_ids(["<image>", "<pad>"])
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=256,
        projection_dim=128,
        num_hidden_layers=2,  # the last one is never used: vision_feature_layer is -2
        num_attention_heads=4,
        image_size=64,
        patch_size=16,
        initializer_factor=3.0,
    )
    text = LlamaConfig(
        **TEXT | {"num_key_value_heads": 4}, vocab_size=padded_size(tokenizer), max_position_embeddings=4096
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image_token_id,
        image_seq_length=16,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}, **PAPER),
        tokenizer=tokenizer,
        patch_size=16,
        num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
        chat_template=LLAVA_TEMPLATE,
    )
    return TinyModel(config, processor, {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": pad_token_id})


QWEN_VISION_TOKENS = (
    "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|> "
    "<|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>"
).split()
QWEN_2_5_PLAIN_TOKENS = (
    "<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|>"
).split()


def qwen_vl(config_class, processor_class, tokenizer, vision: dict) -> TinyModel:
    """The common part of Qwen2-VL and Qwen2.5-VL: a token is 28x28 pixels; 4 to 64 tokens an image."""
    from transformers import Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    ids = dict(zip(QWEN_VISION_TOKENS, tokenizer.convert_tokens_to_ids(QWEN_VISION_TOKENS)))
    end_of_text, end_of_turn = ids["<|endoftext|>"], ids["<|im_end|>"]
    text = TEXT | {
        "vocab_size": padded_size(tokenizer),
        "max_position_embeddings": 32768,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_turn,
        # Half of a head's 32 dimensions, shared out in the real ratio 16 : 24 : 24 to time, height and width.
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]},
    }
    config = config_class(
        text_config=text,
        vision_config=vision | {"depth": 2, "num_heads": 4, "initializer_range": 0.15},
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    pixels = 28 * 28
    processor = processor_class(
        image_processor=Qwen2VLImageProcessor(size={"shortest_edge": 4 * pixels, "longest_edge": 64 * pixels}, **PAPER),
        tokenizer=tokenizer,
        # Pixels of one frame; two frames share a token.
        video_processor=Qwen2VLVideoProcessor(size={"shortest_edge": 4 * pixels, "longest_edge": 16 * pixels}, **PAPER),
        chat_template=QWEN_TEMPLATE,
    )
    generation = {
        "bos_token_id": end_of_text,
        "eos_token_id": [end_of_turn, end_of_text],
        "pad_token_id": end_of_text,
    }
    return TinyModel(config, processor, generation)


def qwen2_vl() -> TinyModel:
    """Dynamic resolution, rotary positions in three dimensions."""
    from transformers import Qwen2VLConfig, Qwen2VLProcessor

    vision = {"embed_dim": 96, "hidden_size": TEXT["hidden_size"]}
    return qwen_vl(Qwen2VLConfig, Qwen2VLProcessor, qwen_tokenizer(QWEN_VISION_TOKENS), vision)


def qwen2_5_vl() -> TinyModel:
    """As Qwen2-VL, with window attention in the first vision block (2x2 tokens a window), full in the second."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLProcessor

    vision = {
        "hidden_size": 96,
        "intermediate_size": 192,
        "out_hidden_size": TEXT["hidden_size"],
        "window_size": 56,
        "fullatt_block_indexes": [1],
        "tokens_per_second": 2,
    }
    tokenizer = qwen_tokenizer(QWEN_VISION_TOKENS, QWEN_2_5_PLAIN_TOKENS)
    return qwen_vl(Qwen2_5_VLConfig, Qwen2_5_VLProcessor, tokenizer, vision)


def llava_onevision() -> TinyModel:
    """SigLIP, projector, Qwen2. Tiles of 42x42 pixels are 3x3 tokens: an odd side, as the 27x27 of the real one."""
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionImageProcessor,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
        Qwen2Config,
        SiglipVisionConfig,
    )

    tokenizer = qwen_tokenizer(["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"])
    end_of_text, end_of_turn, image_token_id, video_token_id = tokenizer.convert_tokens_to_ids(
        ["<|endoftext|>", "<|im_end|>", "<image>", "<video>"]
    )
    tile, patch = 42, 14
    grid = [[height * tile, width * tile] for height in (1, 2) for width in (1, 2)]
    vision = SiglipVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=tile,
        patch_size=patch,
        vision_use_head=False,
    )
    text = Qwen2Config(
        **TEXT,
        vocab_size=padded_size(tokenizer),
        max_position_embeddings=32768,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        bos_token_id=end_of_text,
        eos_token_id=end_of_turn,
        tie_word_embeddings=True,
    )
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image_token_id,
        video_token_index=video_token_id,
        image_grid_pinpoints=grid,
        vision_aspect_ratio="anyres_max_9",
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    pixels = {"size": {"height": tile, "width": tile}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    processor = LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(image_grid_pinpoints=grid, **pixels),
        tokenizer=tokenizer,
        video_processor=LlavaOnevisionVideoProcessor(**pixels),
        num_image_tokens=(tile // patch) ** 2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_9",
        chat_template=LLAVA_ONEVISION_TEMPLATE,
    )
    generation = {"bos_token_id": end_of_text, "eos_token_id": end_of_turn, "pad_token_id": end_of_text}
    return TinyModel(config, processor, generation)


TINY_FAMILIES = {
    "llava-1.5": llava_1_5,
    "llava-onevision": llava_onevision,
    "qwen2-vl": qwen2_vl,
    "qwen2.5-vl": qwen2_5_vl,
}


# ---------------------------------------------------------------------------------------------------------------------
# Making one
# ---------------------------------------------------------------------------------------------------------------------


def hub_state_dict(model) -> dict:
    """The weights under names that `save_pretrained` turns into those of the Hub file.

    It restores all but the `vision_model.` of CLIP and SigLIP, which transformers 5.23 strips when it loads a Hub file
    and puts back only for a model that was loaded from one.
    """
    tower = "model.vision_tower."
    nested = model.config.vision_config.model_type in ("clip_vision_model", "siglip_vision_model")
    return {
        name.replace(tower, tower + "vision_model.") if nested else name: weight
        for name, weight in model.state_dict().items()
    }


def make_tiny_checkpoint(family: str, output_dir: str, seed: int = 0) -> None:
    """Write a tiny random fp32 checkpoint of `family` into `output_dir` (made if missing, files overwritten).

    The same seed gives the same bytes. The caller's random state is left as it was.

    Raises:
        ValueError: a family without an entry in `TINY_FAMILIES`.
    """
    if family not in TINY_FAMILIES:
        raise ValueError(f"no tiny checkpoint of family {family!r}; known families: {', '.join(TINY_FAMILIES)}")
    import torch
    from transformers import AutoModelForImageTextToText, GenerationConfig

    tiny = TINY_FAMILIES[family]()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also reseed every GPU
        model = AutoModelForImageTextToText.from_config(tiny.config, dtype=torch.float32)
    model.generation_config = GenerationConfig(do_sample=False, **tiny.generation)
    model.save_pretrained(output_dir, state_dict=hub_state_dict(model))
    tiny.processor.save_pretrained(output_dir)
    print(
        f"{output_dir}: tiny {family}, {model.num_parameters():,} parameters, "
        f"vocabulary of {len(tiny.processor.tokenizer):,}, {model.dtype}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--model_family_id", help=f"one of {', '.join(TINY_FAMILIES)}")
    which.add_argument("--model_id", help="a model id of supported_models.py; its family is made")
    parser.add_argument("--output_dir", required=True, type=Path, help="folder of the checkpoint")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random weights (default: 0)")
    args = parser.parse_args()
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # one line of output, not a bar for one small file
    try:
        family = args.model_family_id or find_model(args.model_id).family
        make_tiny_checkpoint(family, str(args.output_dir), args.seed)
    except ValueError as error:
        sys.exit(f"tiny_models.py: {error}")


if __name__ == "__main__":
    main()
