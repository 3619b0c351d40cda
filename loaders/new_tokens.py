"""Tokens that the user adds (--add_tokens): in the tokenizer, in its files, and as rows of the embeddings and head."""

import json
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

import torch
from tokenizers import AddedToken
from torch import nn
from transformers.integrations import is_deepspeed_zero3_enabled

# Options of added tokens: they match exactly, before the text is split, and decoded answers show them.
FOUND = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}


def read_text(flag: str, path: str) -> str:
    """Return the text of the file whose path was passed to a flag."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--{flag} {path} cannot be read: {error}") from error
    if not text.strip():
        raise ValueError(f"--{flag} {path} is empty.")
    return text


def read_tokens(path: str) -> list[str]:
    """Return the words of a file that has one word per line."""
    words = read_text("add_tokens", path).removesuffix("\n").split("\n")
    for number, word in enumerate(words, 1):
        fault = "is empty" if not word.strip() else "begins or ends with white space" if word != word.strip() else ""
        fault = fault or ("has an unprintable character" if not word.isprintable() else "")
        if not fault and (first := words.index(word) + 1) < number:
            fault = f"repeats line {first}"
        if fault:
            raise ValueError(f"--add_tokens {path}, line {number}: {word!r} {fault}. Write one token per line.")
    return words


def add_tokens(loader, tokenizer, words: list[str]) -> None:
    """Add words to a tokenizer, and set the loader's `pieces` and `new_tokens`, which describe their rows."""
    if loader.remote_code or not tokenizer.is_fast:
        raise ValueError(f"--add_tokens: the tokenizer of {loader.model_path} is custom code. Remove the flag.")
    known, loader.pieces, loader.new_tokens = tokenizer.get_vocab(), {}, {}
    pieces = {word: tokenizer.encode(word, add_special_tokens=False) for word in words if word not in known}
    tokenizer.add_tokens([AddedToken(word, **FOUND) for word in pieces])
    for word in words:
        id = tokenizer.convert_tokens_to_ids(word)
        loader.pieces[id] = pieces.get(word, [])
        loader.new_tokens |= {id: word} if word in pieces else {}
        if word in pieces and (written := tokenizer.decode([id])) != word:  # a byte-level one reads `ü` as a byte
            raise ValueError(f"--add_tokens: this tokenizer would turn {word!r} into {written!r}. Choose another word.")


def write_tokens(folder: str, tokens: Mapping[int, str]) -> None:
    """Add tokens to the tokenizer files in a folder, and change nothing else in them."""
    entries = {id: {"content": word} | FOUND for id, word in tokens.items()}
    for name in ("tokenizer.json", "tokenizer_config.json"):
        path = Path(folder, name)
        held = json.loads(path.read_text(encoding="utf-8"))
        if name == "tokenizer.json":
            held["added_tokens"] += [{"id": id} | entry for id, entry in entries.items()]
        elif "added_tokens_decoder" in held:  # the file was written by an older transformers
            held["added_tokens_decoder"] |= {str(id): entry for id, entry in entries.items()}
        path.write_text(json.dumps(held, ensure_ascii=False, indent=2, allow_nan=False), encoding="utf-8")


def trained_rows(adapter: dict | None) -> dict[int, list[int]]:
    """Return a loader's `pieces` for the tokens whose rows an adapter contains. They need no initial values."""
    tables = (adapter or {}).get("trainable_token_indices") or {}
    return {id: [] for ids in tables.values() for id in ids}


def gathered(parameters: list[nn.Parameter], modifier_rank: int | None = None):
    """Return a context in which each parameter is complete, even under ZeRO-3, which shards it across processes."""
    if not is_deepspeed_zero3_enabled():
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(parameters, modifier_rank=modifier_rank)


@torch.no_grad()
def give_rows(model: nn.Module, loader) -> None:
    """Add rows to the embeddings and the head for new tokens. Each starts as the mean of its pieces' rows."""
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    others = [name for name, m in model.named_modules() if isinstance(m, nn.Embedding) and m is not table]
    if found := [name for name in others if loader.component_of(name) == "language_model"]:
        raise ValueError(f"--add_tokens: {loader.model_path} has another embedding table, {found[0]}. Remove the flag.")
    if head.out_features != table.num_embeddings:
        raise ValueError(
            f"--add_tokens: the head of {loader.model_path} has {head.out_features:,} outputs for "
            f"{table.num_embeddings:,} embeddings, so the model could never generate added tokens. Remove the flag."
        )
    if (rows := max(loader.pieces) + 1) > table.num_embeddings:
        model.resize_token_embeddings(rows, mean_resizing=False)  # True would factorize the whole table
        if "vocab_size" in vars(model.config):  # the head of Ovis2 reads this field
            model.config.vocab_size = rows
    weights = {id(m.weight): m.weight for m in (model.get_input_embeddings(), model.get_output_embeddings())}
    with gathered([*weights.values()], modifier_rank=0):
        for weight in weights.values():
            for row, pieces in loader.pieces.items():
                if pieces:
                    weight[row] = weight[pieces].float().mean(0)
