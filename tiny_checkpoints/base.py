"""Shared parts of the tiny checkpoints: tokenizers learned from a short text, and sizes of a small language model."""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple


class TinyModel(NamedTuple):
    config: Any  # PreTrainedConfig of the whole model
    processor: Any  # ProcessorMixin with tokenizer and chat template, or `RemoteFiles`
    generation: dict  # the token ids of generation_config.json
    model_class: Any = None  # if AutoModelForImageTextToText does not have it
    gates: float | None = None  # value of the parameters `*gate`, which are zero in a new model


class RemoteFiles(NamedTuple):
    """The files of a checkpoint with remote code except its weights, used instead of a processor."""

    code: str  # folder in tiny_checkpoints/remote
    files: dict[str, str | dict]  # name -> text or JSON object
    tokenizer: dict  # token -> id

    def save_pretrained(self, output_dir: str) -> None:
        for path in Path(__file__).parent.joinpath("remote", self.code).glob("*.py"):
            shutil.copy(path, output_dir)
        for name, content in self.files.items():
            text = content if isinstance(content, str) else json.dumps(content, indent=2) + "\n"
            Path(output_dir, name).write_text(text, encoding="utf-8")


# Text that teaches the tokenizers: enough English that a question costs a few tokens instead of dozens.
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
    """Return the sentences, then each word in three forms: after a space, capitalised, and alone (as an answer)."""
    answers = [line for word in ANSWERS for line in (word, word, word.capitalize(), f"A {word} {word}")]
    return SENTENCES * 2 + answers + [f"{word.capitalize()} {word} {word}" for word in WORDS]


def learn_bpe(pre_tokenizer, alphabet: list[str], first: list[str]) -> dict:
    """Learn the vocabulary and merges of a BPE from `corpus()`. The tokens of `first` get the ids 0, 1, ...

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
    """Return id -> token for the tokens after the learned pieces: `control`, then `plain`, which decoding keeps.

    The explicit ids prevent a tokenizer class from putting its end or pad token first.
    """
    from tokenizers import AddedToken

    tokens = [AddedToken(token, normalized=False, special=True) for token in control]
    tokens += [AddedToken(token, normalized=False, special=False) for token in plain]
    return dict(enumerate(tokens, start=len(bpe["vocab"])))


def learn_llama_bpe() -> dict:
    """Learn vocabulary and merges of a Llama tokenizer: <unk> <s> </s>, the 256 bytes, then learned pieces."""
    from tokenizers import pre_tokenizers

    # Like SentencePiece: no piece crosses a space or contains both letters and punctuation; each digit is one piece.
    split = [pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation(), pre_tokenizers.Digits(individual_digits=True)]
    first = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    printable = [chr(code) for code in range(33, 127)]
    return learn_bpe(pre_tokenizers.Sequence(split), printable, first)


def llama_tokenizer(control: list[str], add_bos_token: bool = True, **kwargs):
    """A `LlamaTokenizer`: the pieces of `learn_llama_bpe`, then the `control` tokens."""
    from transformers import LlamaTokenizer

    bpe = learn_llama_bpe()
    return LlamaTokenizer(
        **bpe,
        added_tokens_decoder=added_tokens(bpe, control),
        legacy=False,
        add_bos_token=add_bos_token,
        model_max_length=4096,
        **kwargs,
    )


def learn_qwen_bpe(tokenizer_class=None) -> dict:
    """Learn vocabulary and merges of a Qwen tokenizer: the 256 bytes, then learned byte-level pieces."""
    from tokenizers import pre_tokenizers
    from transformers import Qwen2Tokenizer

    tokenizer_class = tokenizer_class or Qwen2Tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return learn_bpe(tokenizer_class().backend_tokenizer.pre_tokenizer, alphabet, first=[])


def qwen_tokenizer(control: list[str], plain: list[str] = (), tokenizer_class=None, **kwargs):
    """A `Qwen2Tokenizer`, or another: the pieces of `learn_qwen_bpe`, the `control` tokens, the `plain` ones."""
    from transformers import Qwen2Tokenizer

    tokenizer_class = tokenizer_class or Qwen2Tokenizer
    bpe = learn_qwen_bpe(tokenizer_class)
    return tokenizer_class(
        **bpe,
        added_tokens_decoder=added_tokens(bpe, control, plain),
        **{
            "extra_special_tokens": [token for token in control if token != "<|endoftext|>"],
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "model_max_length": 32768,
        }
        | kwargs,
    )


# Words and numbers of up to three digits, as the tokenizer.json of Llama 3 splits them.
LLAMA_3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def llama_3_tokenizer(control: list[str], **kwargs):
    """A generic fast tokenizer like Llama 3's: byte-level pieces, then the `control` tokens, of which the first is BOS.

    The post-processor in tokenizer.json adds BOS before every text.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    split = [pre_tokenizers.Split(Regex(LLAMA_3_SPLIT), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    bpe = learn_bpe(pre_tokenizers.Sequence(split), sorted(pre_tokenizers.ByteLevel.alphabet()), first=[])
    backend = Tokenizer(models.BPE(**bpe, ignore_merges=True))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Sequence(split), decoders.ByteLevel()
    backend.add_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    bos = control[0]
    start = processors.TemplateProcessing(f"{bos} $A", f"{bos} $A {bos} $B", [(bos, backend.token_to_id(bos))])
    backend.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), start])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, **kwargs)


def byte_level_tokenizer(split: list, first: list[str], control: list[str], writes_bos: bool = False, **kwargs):
    """A generic fast tokenizer: the `first` tokens, learned byte-level pieces, then the `control` tokens.

    Args:
        split: pre-tokenizers that run before the byte-level one.
        writes_bos: whether the tokenizer adds `bos_token` before a text, as Llama 3's does.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    by_pieces = pre_tokenizers.Sequence(split)
    backend = Tokenizer(models.BPE(**learn_bpe(by_pieces, alphabet, first)))
    backend.pre_tokenizer, backend.decoder = by_pieces, decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in [*first, *control]])
    if writes_bos:
        bos = kwargs["bos_token"]
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=backend, **kwargs)


TEKKEN_TOKENS = (
    "<unk> <s> </s> [INST] [/INST] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS] [/TOOL_RESULTS] [TOOL_CALLS] "
    "[IMG] <pad> [IMG_BREAK] [IMG_END] [PREFIX] [MIDDLE] [SUFFIX] [SYSTEM_PROMPT] [/SYSTEM_PROMPT] [TOOL_CONTENT]"
).split()


def tekken_tokenizer(**kwargs):
    """Mistral's Tekken as a `tokenizer.json`: the control tokens first, with the real ids, then byte-level pieces."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    from loaders.pixtral import TEKKEN_PATTERN

    split = pre_tokenizers.Split(Regex(TEKKEN_PATTERN), "isolated")
    split = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    bpe = learn_bpe(split, sorted(pre_tokenizers.ByteLevel.alphabet()), TEKKEN_TOKENS)
    backend = Tokenizer(models.BPE(bpe["vocab"], bpe["merges"], ignore_merges=True))
    backend.pre_tokenizer, backend.decoder = split, decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in TEKKEN_TOKENS])
    backend.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        model_input_names=["input_ids", "attention_mask"],
        **kwargs,
    )


def gemma_tokenizer(turns: list[str], control: list[str], plain: list[str] = (), **kwargs):
    """A `GemmaTokenizer`: <pad> <eos> <bos> <unk> <mask>, the `turns` tokens, line breaks, bytes and learned pieces.

    The `control` tokens follow, then the `plain` ones, which are not special.
    """
    from tokenizers import AddedToken, pre_tokenizers
    from transformers import GemmaTokenizer

    split = [pre_tokenizers.Metaspace(prepend_scheme="never"), pre_tokenizers.Punctuation()]
    split.append(pre_tokenizers.Digits(individual_digits=True))
    line_breaks = ["\n" * count for count in range(1, 32)]  # a run is one token, as in the real vocabulary
    first = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *turns, *line_breaks]
    printable = ["▁", *(chr(code) for code in range(33, 127))]
    bpe = learn_bpe(pre_tokenizers.Sequence(split), printable, first=first + [f"<0x{byte:02X}>" for byte in range(256)])
    leading = {
        id: AddedToken(token, normalized=False, special=token not in ("<mask>", *line_breaks))
        for id, token in enumerate(first)
    }
    return GemmaTokenizer(
        **bpe, added_tokens_decoder=leading | added_tokens(bpe, control, plain), add_bos_token=True, **kwargs
    )


def padded_size(tokenizer) -> int:
    """Return the rows of the embedding: the next multiple of 64. Real checkpoints too have more rows than tokens."""
    return (len(tokenizer) // 64 + 1) * 64


# A language model of two layers. With a wide initialisation, this narrow model learns from the first step and its
# answers depend on the image. With the usual 0.02, all logits would be nearly equal.
TEXT = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.08,
}

# The example images are shapes on a white background. With the usual normalisation, the white is the strongest signal
# and hides the position embeddings of a new encoder: it learns colours, but neither position nor count.
PAPER = {"image_mean": [0.96] * 3, "image_std": [1.4] * 3}


def tiny_siglip(image_size: int, patch_size: int):
    """Return the config of a SigLIP with two layers and without the head that pools patches."""
    from transformers import SiglipVisionConfig

    return SiglipVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=image_size,
        patch_size=patch_size,
        vision_use_head=False,
    )
