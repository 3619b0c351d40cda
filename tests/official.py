"""The checkpoints' own processors, as they come. Those with remote code get the interface of the others here, from what
the checkpoint's sample code does around them."""

from itertools import count

import torch
from conftest import FACTS
from transformers import AutoConfig, AutoProcessor, AutoTokenizer
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.utils.chat_template_utils import render_jinja_template


def official_processor(family: str, path: str):
    remote = {"phi3-v": Phi3VProcessor, "qwen-vl": QwenVLProcessor}
    return remote[family](path) if FACTS[family].remote_code else AutoProcessor.from_pretrained(path)


class Phi3VProcessor:
    """The template takes strings in which images are numbered tags; the processor takes one text."""

    image_token_id = -1  # of the first image

    def __init__(self, path: str):
        self.processor = AutoProcessor.from_pretrained(path, trust_remote_code=True)
        self.tokenizer = self.processor.tokenizer
        self.chat_template = self.tokenizer.chat_template

    def apply_chat_template(
        self,
        conversations,
        chat_template=None,
        tokenize=False,
        add_generation_prompt=False,
        return_assistant_tokens_mask=False,
        **_,
    ):
        messages = conversations[0] if isinstance(conversations[0], list) else conversations
        numbers, tagged = count(1), []
        for message in messages:
            texts = [part.get("text") or self.tag(part, numbers) for part in message["content"]]
            joined = "".join(texts) if chat_template in (None, self.chat_template) else [{"text": t} for t in texts]
            tagged.append({"role": message["role"], "content": joined})
        texts, spans = render_jinja_template(
            [tagged],
            chat_template=chat_template or self.chat_template,
            return_assistant_tokens_mask=return_assistant_tokens_mask,
            add_generation_prompt=add_generation_prompt,
        )
        if not tokenize:
            return texts[0]
        images = [part["image"] for message in messages for part in message["content"] if part["type"] == "image"]
        inputs = dict(self.processor(texts[0], images or None, return_tensors="pt"))
        if return_assistant_tokens_mask:
            inputs["assistant_masks"] = self.mask(texts[0], spans[0], inputs["input_ids"][0].tolist())
        return inputs

    def is_media(self, input_ids: torch.Tensor) -> torch.Tensor:
        return input_ids < 0

    def tag(self, part: dict, numbers) -> str:
        return f"<|image_{next(numbers)}|>\n" if part["type"] == "image" else ""

    def mask(self, text: str, spans: list, ids: list[int]) -> torch.Tensor:
        """Each span lies between two tags, so its tokens are those of one piece."""
        mask, begin, position = torch.zeros(1, len(ids)), 0, 0
        for number in range(1, text.count("<|image_") + 2):
            end = text.find(f"<|image_{number}|>", begin)
            end = len(text) if end < 0 else end
            piece = self.tokenizer(text[begin:end])
            for first, last in spans:
                if begin <= first < end:
                    a, b = (piece.char_to_token(0, char - begin) for char in (first, last - 1))
                    mask[0, position + a : position + b + 1] = 1
            position += len(piece.input_ids) + ids.count(-number)
            begin = end + len(f"<|image_{number}|>")
        return mask

    def spelling(self, ids: list[int]) -> str:
        """The text of tokens, with the tags of images, and the line break that <|assistant|> eats."""
        text, piece, assistant = "", [], self.tokenizer.convert_tokens_to_ids("<|assistant|>")
        for id, before in zip(ids, [-1, *ids]):
            if id < 0 or id == assistant:
                text += self.tokenizer.decode(piece)
                piece = []
            if id == assistant:
                text += "<|assistant|>\n"
            elif id < 0:
                text += f"<|image_{-id}|>" if id != before else ""
            elif id != self.tokenizer.bos_token_id or before >= 0:
                piece.append(id)
        return text + self.tokenizer.decode(piece)


class QwenVLProcessor:
    """No template and no processor: `from_list_format` of the tokenizer and `make_context` make a prompt, and the model
    opens the images. What ends with a reply is as in the official finetune.py: each message and its end, a line break.
    """

    chat_template = None
    image_token_id = -1  # there is none: an image is whatever stands between two tokens

    def __init__(self, path: str):
        self.path, self.tokenizer = path, AutoTokenizer.from_pretrained(path, trust_remote_code=True)
        self.control_ids = set(self.tokenizer.special_tokens.values())

    def is_media(self, input_ids: torch.Tensor) -> torch.Tensor:
        found = torch.zeros_like(input_ids, dtype=torch.bool)
        for row, ids in enumerate(input_ids.tolist()):
            for start in [i for i, id in enumerate(ids) if id == self.tokenizer.img_start_id]:
                found[row, start : ids.index(self.tokenizer.img_end_id, start) + 1] = True
        return found

    def apply_chat_template(self, conversations, tokenize=False, add_generation_prompt=False, **options):
        messages = conversations[0] if isinstance(conversations[0], list) else conversations
        files, turns = count(1), []
        for message in messages:
            parts = [
                {"image": f"img_{next(files)}.jpg"} if part["type"] == "image" else {"text": part["text"]}
                for part in message["content"]
            ]
            turns.append((message["role"], self.tokenizer.from_list_format(parts)))
        if turns[0][0] != "system":
            turns.insert(0, ("system", "You are a helpful assistant."))
        ends = [f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns]
        text = "".join(ends) + "<|im_start|>assistant\n" * add_generation_prompt
        if not tokenize:
            return text
        ids, mask = [], []
        for role, content in turns:
            header = [self.tokenizer.im_start_id, *self.tokenizer.encode(f"{role}\n")]
            body = [*self.tokenizer.encode(content), self.tokenizer.im_end_id]
            ids += [*header, *body, *self.tokenizer.encode("\n")]
            mask += [0] * len(header) + [int(role == "assistant")] * len(body) + [0]
        if add_generation_prompt:
            make_context = get_class_from_dynamic_module("qwen_generation_utils.make_context", self.path)
            texts = [content for _, content in turns]
            asked, ids = make_context(self.tokenizer, texts[-1], list(zip(texts[1:-1:2], texts[2:-1:2])), texts[0])
            assert asked == text
        inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
        images = [part["image"] for message in messages for part in message["content"] if part["type"] == "image"]
        if images:
            config = AutoConfig.from_pretrained(self.path, trust_remote_code=True)
            vision = get_class_from_dynamic_module("visual.VisionTransformer", self.path)(**config.visual)
            inputs["pixel_values"] = torch.stack([vision.image_transform(image) for image in images])
        if options.get("return_assistant_tokens_mask"):
            inputs["assistant_masks"] = [mask]
        return inputs
