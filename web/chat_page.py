"""The chat of the web interface: the one model that is loaded, and pages that take turns with it."""

import contextlib
import gc
import glob
import mimetypes
import os
import threading
from collections.abc import Iterator

import torch

import predict
from arguments import ReadingArguments
from collators.pixel_bounds import set_options
from evaluation.answers import stream_answer
from loaders.output_folder import ARGUMENTS, adapter_config, saved_arguments
from reading.media import open_part
from reading.options import MediaOptions
from web.runs import check_folder, check_inside

# Titles of messages that are no answer.
FAILED, THOUGHT = "No answer", "Thought"


class Chat:
    """Args:
    root: folder that models lie in.
    uploads: folder that pictures and clips lie in.
    """

    def __init__(self, root: str, uploads: str):
        self.root, self.uploads = root, os.path.realpath(uploads)
        self.lock = threading.Lock()  # of model, collator and options
        self.loaded = self.model = self.collator = self.options = None

    def answer(self, path: str, turns: list[dict], max_new_tokens: int) -> Iterator[tuple[str, str]]:
        """What is written so far of the thought and the answer to a conversation, again and again.

        Args:
            path: the folder of a model.
            turns: {"role", "text", "files"} and a "thought", the last one the user's.

        Raises:
            ValueError: no such model, or it refuses the conversation.
        """
        folder = check_folder(path, self.root, "the model")
        if os.path.lexists(above := os.path.join(os.path.dirname(folder), ARGUMENTS)):  # of a checkpoint-N
            check_inside(above, self.root, "the flags of the model")
        for file in (file for turn in turns for file in turn["files"]):
            check_inside(file, self.uploads, "the file")
        with self.lock:
            self._load(folder)
            messages = [{"role": turn["role"], "content": list(self._parts(turn))} for turn in turns]
            for message, turn in zip(messages, turns):
                message |= {"reasoning_content": turn["thought"]} if turn.get("thought") else {}
            text, split = "", self.collator.template.thoughts_and_tools.split
            with contextlib.closing(stream_answer(self.model, self.collator, messages, max_new_tokens)) as pieces:
                for piece in pieces:
                    text += piece
                    yield split(text, is_whole=False)
            yield split(text)

    def release(self) -> None:
        """Free the memory of the model."""
        with self.lock:
            self._release()

    def _release(self) -> None:
        self.loaded = self.model = self.collator = self.options = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _load(self, folder: str) -> None:
        weights = glob.glob(os.path.join(glob.escape(folder), "*.safetensors"))
        version = folder, max(map(os.path.getmtime, weights), default=None)
        if self.loaded == version:
            return
        self._release()
        if adapter := adapter_config(folder):
            check_folder(adapter["base_model_name_or_path"], self.root, "the base of the adapter")
        self.model, self.collator = predict.load(folder)
        saved = saved_arguments(folder)
        names = [name for group in predict.AS_IN_TRAINING for name in group if name in saved]
        reading = ReadingArguments(**{name: saved[name] for name in names})
        set_options(self.collator, reading)
        self.options = MediaOptions.of(reading)
        self.loaded = version

    def _parts(self, turn: dict) -> Iterator[dict]:
        for file in turn["files"]:
            try:
                kind = "video" if (mimetypes.guess_type(file)[0] or "").startswith("video/") else "image"
                yield open_part({"type": kind, kind: file}, self.options)
            except ValueError as error:
                raise ValueError(str(error).replace(file, os.path.basename(file))) from error
        if turn["text"]:
            yield {"type": "text", "text": turn["text"]}


def turns_of(messages: list[dict]) -> list[dict]:
    """Messages as gradio has them -> {"role", "text", "files"} and a "thought"; those of a side in a row are one.

    A question that failed is left out with its error.
    """
    turns = []
    for message in messages:
        title = (message.get("metadata") or {}).get("title")
        if title == FAILED:
            turns.pop()
            continue
        if not turns or turns[-1]["role"] != message["role"]:
            turns.append(
                {"role": message["role"], "text": "", "files": []} | ({"thought": ""} if title == THOUGHT else {})
            )
        content, turn = message["content"], turns[-1]
        turn["files"] += message.get("files", [])
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            if part["type"] == "file":
                turn["files"].append(part["file"]["path"])
            else:
                turn["thought" if title == THOUGHT else "text"] += part["text"]
    return turns
