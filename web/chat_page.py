"""The tab "Chat": one model that is loaded, pages that take turns with it, and the base of an adapter next to it."""

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
from evaluation.answers import stream_answer
from loaders.output_folder import adapter_config
from reading.media import open_part
from reading.options import MediaOptions
from web.runs import PARSING, check_inside, check_model
from web.strings import text

IDLE = gr.update(submit_btn=True, stop_btn=False)  # the box of questions


class Chat:
    """Args:
    root: folder that models lie in.
    uploads: folder that pictures and clips lie in.
    """

    def __init__(self, root: str, uploads: str):
        self.root, self.uploads = root, os.path.realpath(uploads)
        self.lock = threading.Lock()  # of model, collator and options
        self.loaded = self.model = self.collator = self.options = None

    def answer(self, path: str, turns: list[dict], most: int, base: bool = False) -> Iterator[tuple[str, str]]:
        """What is written so far of the (thought, answer) to a conversation, again and again.

        Args:
            path: the folder of a model.
            turns: {"role", "text", "files"} and a "thought", the last one the user's.
            base: whether the model that an adapter was trained on answers.

        Raises:
            ValueError: no such model, or it refuses the conversation.
        """
        folder = check_model(path, self.root)
        if base and not adapter_config(folder):
            raise ValueError(f"{path} is not an adapter: choose its base as the model.")
        for file in (file for turn in turns for file in turn["files"]):
            check_inside(file, self.uploads, "the file")
        with self.lock:
            self._load(folder)
            messages = [{"role": turn["role"], "content": list(self._parts(turn))} for turn in turns]
            for message, turn in zip(messages, turns):
                message |= {"reasoning_content": turn["thought"]} if turn.get("thought") else {}
            split, written = self.collator.template.thoughts_and_tools.split, ""
            pieces = stream_answer(self.model, self.collator, messages, most)
            with self.model.disable_adapter() if base else contextlib.nullcontext(), contextlib.closing(pieces):
                for piece in pieces:
                    written += piece
                    yield split(written, is_whole=False)
            yield split(written)

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
        with PARSING:
            args = predict.parse(["--model_path", folder])
        self.model, self.collator = predict.load_with_options(args)
        self.options, self.loaded = MediaOptions.of(args), version

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
        title, role = (message.get("metadata") or {}).get("title"), message["role"]
        if title == text("no_answer"):
            turns = turns[:-1]
            continue
        if not turns or turns[-1]["role"] != role:
            turns.append({"role": role, "text": "", "files": []})
        content, turn, place = message["content"], turns[-1], "thought" if title else "text"
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            if part["type"] == "file":
                turn["files"].append(part["file"]["path"])
            else:
                turn[place] = turn.get(place, "") + part["text"]
    return turns


# ---- the tab ----


def chat_tab(chat: Chat) -> gr.Dropdown:
    with gr.Row():
        about = {"label": text("chat_model"), "info": text("chat_model_help"), "elem_id": "chat_model"}
        model = gr.Dropdown([], allow_custom_value=True, min_width=300, **about)
        most = gr.Slider(1, 1024, value=128, step=1, label=text("longest"), min_width=300)
    beside = gr.Checkbox(label=text("side_by_side"), info=text("side_by_side_help"), elem_id="side_by_side")
    look = {"height": 440, "render_markdown": False, "buttons": ["copy"], "allow_file_downloads": False}
    with gr.Row():
        tuned = gr.Chatbot(label=text("tuned"), placeholder=text("no_chat"), elem_id="tuned", min_width=300, **look)
        base = gr.Chatbot(label=text("base"), visible=False, elem_id="base", min_width=300, **look)
    about = {"label": text("ask"), "placeholder": text("ask"), "show_label": False, "elem_id": "question"}
    question = gr.MultimodalTextbox(file_types=["image", "video"], file_count="multiple", **about)
    with gr.Row():
        gr.ClearButton([tuned, base], value=text("clear"), size="sm")
        gr.Button(text("free"), size="sm").click(chat.release)
    beside.change(lambda on, said: gr.update(visible=on, value=said if on else []), [beside, tuned], base)
    told = [question, tuned, base]
    asked = question.submit(partial(answer, chat), [*told, model, most, beside], told)
    question.stop(lambda: IDLE, None, question, cancels=asked)
    return model


def answer(chat: Chat, question: dict, tuned: list, base: list, model: str | None, most: int, beside: bool) -> Iterator:
    """The box, and the conversations with tuned and base, again and again: both are asked, one after the other."""
    files = [{"path": file, "mime_type": mimetypes.guess_type(file)[0]} for file in question["files"]]
    content = [{"type": "file", "file": file} for file in files]
    content += [{"type": "text", "text": question["text"]}] if question["text"] else []
    sides = [[*side, {"role": "user", "content": content}] for side in ([tuned, base] if beside else [tuned])]
    shown = [*sides, base][:2]
    yield gr.update(value=None, submit_btn=False, stop_btn=True), *shown
    for number, side in enumerate(sides):
        try:
            if not model:
                raise ValueError(text("no_model"))
            for thought, said in chat.answer(model, turns_of(side), int(most), base=number == 1):
                thoughts = [{"role": "assistant", "content": thought, "metadata": {"title": text("thought")}}]
                shown[number] = [*side, *thoughts[: bool(thought)], {"role": "assistant", "content": said}]
                yield gr.skip(), *shown
        except Exception as error:  # of the model, the picture or the memory
            if not isinstance(error, ValueError):
                traceback.print_exc()
            fault = {"role": "assistant", "content": str(error), "metadata": {"title": text("no_answer")}}
            shown[number] = [*side, fault]
    yield IDLE, *shown
