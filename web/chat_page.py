"""The tab "Chat": the one model that is loaded, and pages that take turns with it."""

import contextlib
import gc
import glob
import mimetypes
import os
import threading
import traceback
from collections.abc import Iterator
from functools import partial

import gradio as gr
import torch

import predict
from arguments import ReadingArguments
from collators.pixel_bounds import set_options
from evaluation.answers import stream_answer
from loaders.output_folder import adapter_config, saved_arguments
from reading.media import open_part
from reading.options import MediaOptions
from web.runs import check_inside, check_model

# Titles of messages that are no answer.
FAILED, THOUGHT, BASE = "No answer", "Thought", "The base, without tuning"


class Chat:
    """Args:
    root: folder that models lie in.
    uploads: folder that pictures and clips lie in.
    """

    def __init__(self, root: str, uploads: str):
        self.root, self.uploads = root, os.path.realpath(uploads)
        self.lock = threading.Lock()  # of model, collator and options
        self.loaded = self.model = self.collator = self.options = None

    def answer(
        self, path: str, turns: list[dict], max_new_tokens: int, with_base: bool = False
    ) -> Iterator[list[tuple[str, str]]]:
        """What is written so far of the (thought, answer) to a conversation, again and again; then of the base's too.

        Args:
            path: the folder of a model.
            turns: {"role", "text", "files"} and a "thought", the last one the user's.
            with_base: whether the model that an adapter was trained on answers too.

        Raises:
            ValueError: no such model, or it refuses the conversation.
        """
        folder = check_model(path, self.root)
        if with_base and not adapter_config(folder):
            raise ValueError(f"{path} is no adapter, which could be taken off: choose its base as the model.")
        for file in (file for turn in turns for file in turn["files"]):
            check_inside(file, self.uploads, "the file")
        with self.lock:
            self._load(folder)
            messages = [{"role": turn["role"], "content": list(self._parts(turn))} for turn in turns]
            for message, turn in zip(messages, turns):
                message |= {"reasoning_content": turn["thought"]} if turn.get("thought") else {}
            split, done = self.collator.template.thoughts_and_tools.split, []
            for without in (contextlib.nullcontext, *([self.model.disable_adapter] if with_base else [])):
                text, pieces = "", stream_answer(self.model, self.collator, messages, max_new_tokens)
                with without(), contextlib.closing(pieces):
                    for piece in pieces:
                        text += piece
                        yield [*done, split(text, is_whole=False)]
                done.append(split(text))
            yield done

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
        if title in (FAILED, BASE):
            turns = turns[:-1] if title == FAILED else turns
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


# ---- the tab ----


def chat_tab(chat: Chat) -> gr.Dropdown:
    with gr.Row():
        info = "A checkpoint in the root, of a run or any other. One is loaded at a time."
        model = gr.Dropdown([], label="model", info=info, allow_custom_value=True, min_width=300, elem_id="chat_model")
        most = gr.Slider(1, 1024, value=128, step=1, label="longest answer, in tokens", min_width=300)
    base = gr.Checkbox(label="let the base answer too", info="The same model without its adapter.")
    gr.ChatInterface(
        partial(answer, chat),
        multimodal=True,
        chatbot=gr.Chatbot(
            height=440, render_markdown=False, label="conversation", buttons=["copy"], allow_file_downloads=False
        ),
        textbox=gr.MultimodalTextbox(
            file_types=["image", "video"], file_count="multiple", placeholder="A question, and a picture if you like"
        ),
        additional_inputs=[model, most, base],
    )
    gr.Button("Free the memory of the model", size="sm").click(chat.release)
    return model


def answer(chat: Chat, message: dict, history: list[dict], model: str | None, most: int, base: bool) -> Iterator:
    question = {"role": "user", "content": message["text"], "files": message["files"]}
    try:
        if not model:
            raise ValueError("Choose a model first.")
        for (thought, text), *others in chat.answer(model, turns_of([*history, question]), int(most), base):
            parts = [(thought, THOUGHT), (text, None), *((text, BASE) for _, text in others)]
            written = [(text, {"title": title} if title else {}) for text, title in parts if text or not title]
            yield [{"role": "assistant", "content": content, "metadata": about} for content, about in written]
    except Exception as error:  # of the model, the picture or the memory
        if not isinstance(error, ValueError):
            traceback.print_exc()
        yield {"role": "assistant", "content": str(error), "metadata": {"title": FAILED}}
