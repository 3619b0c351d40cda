"""Stand-in for the tokenization code of Qwen-VL-Chat: tiktoken; the name of an image stands in its slot, a byte a
token. No padding, no BOS, no special tokens of its own to transformers."""

import base64
import unicodedata

import tiktoken
from transformers import PreTrainedTokenizer

PATTERN = r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"""
EXTRAS = tuple(f"<|extra_{i}|>" for i in range(205))
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *EXTRAS)
TAGS = ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>", "<img>", "</img>", "<imgpad>")
IMG_TOKEN_SPAN = 16  # 256 in the real one


class QWenTokenizer(PreTrainedTokenizer):
    vocab_files_names = {"vocab_file": "qwen.tiktoken"}

    def __init__(self, vocab_file, errors="replace", **kwargs):
        super().__init__(**kwargs)
        self.errors = errors
        with open(vocab_file, "rb") as file:
            lines = [line.split() for line in file.read().splitlines()]
        self.mergeable_ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
        self.special_tokens = {t: i for i, t in enumerate(SPECIAL + TAGS, start=len(self.mergeable_ranks))}
        self.img_start_id, self.img_end_id, self.img_pad_id = (self.special_tokens[tag] for tag in TAGS[6:])
        self.eod_id, self.im_start_id, self.im_end_id = (self.special_tokens[token] for token in SPECIAL[:3])
        self.IMAGE_ST = TAGS
        self.decoder = {id: token for token, id in (self.mergeable_ranks | self.special_tokens).items()}
        self.tokenizer = tiktoken.Encoding(
            "Qwen", pat_str=PATTERN, mergeable_ranks=self.mergeable_ranks, special_tokens=self.special_tokens
        )

    def __len__(self):
        return self.tokenizer.n_vocab

    @property
    def vocab_size(self):
        return self.tokenizer.n_vocab

    def get_vocab(self):
        return self.mergeable_ranks

    def _add_tokens(self, new_tokens, special_tokens=False):
        return 0

    def convert_tokens_to_ids(self, tokens):
        if isinstance(tokens, str | bytes):
            return self._convert_token_to_id(tokens)
        return [self._convert_token_to_id(token) for token in tokens]

    def _convert_token_to_id(self, token):
        return self.special_tokens.get(token, self.mergeable_ranks.get(token))

    def _convert_id_to_token(self, index):
        return self.decoder[index]

    def tokenize(self, text, allowed_special="all", disallowed_special=(), **kwargs):
        text = unicodedata.normalize("NFC", text)
        ids = self.tokenizer.encode(text, allowed_special=allowed_special, disallowed_special=disallowed_special)
        tokens, begin = [], 0
        while self.img_start_id in ids[begin:]:
            start = ids.index(self.img_start_id, begin)
            end = ids.index(self.img_end_id, start)
            name = b"".join(self.decoder[id] for id in ids[start + 1 : end])
            if len(name) > IMG_TOKEN_SPAN:
                raise ValueError("The content in <img>..</img> is too long")
            slot = [self.decoder[byte] for byte in name] + ["<imgpad>"] * (IMG_TOKEN_SPAN - len(name))
            tokens += [*(self.decoder[id] for id in ids[begin:start]), "<img>", *slot, "</img>"]
            begin = end + 1
        return tokens + [self.decoder[id] for id in ids[begin:]]

    def _decode(self, token_ids, skip_special_tokens=False, errors=None, **kwargs):
        ids, shown, begin = [token_ids] if isinstance(token_ids, int) else list(token_ids), [], 0
        while self.img_start_id in ids[begin:]:
            start = ids.index(self.img_start_id, begin)
            if self.img_end_id not in ids[start:]:
                raise ValueError("Unclosed image token")
            name = bytes(ids[start + 1 : ids.index(self.img_pad_id, start)]).decode()
            shown += [*ids[begin : start + 1], *self.tokenizer.encode(name), self.img_end_id]
            begin = ids.index(self.img_end_id, start) + 1
        shown += ids[begin:]
        if skip_special_tokens:
            shown = [id for id in shown if id < self.eod_id]
        return self.tokenizer.decode(shown, errors=errors or self.errors)

    def from_list_format(self, parts):
        text, number = "", 0
        for part in parts:
            if "image" in part:
                number += 1
                text += f"Picture {number}: <img>{part['image']}</img>\n"
            else:
                text += part["text"]
        return text
