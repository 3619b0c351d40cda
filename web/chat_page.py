"""The "Chat" tab: one loaded model, which all open pages share, and optionally the base of its adapter."""

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
from reading.references import kind_by_name
from web.parts import text
from web.runs import PARSING, check_inside, check_model_folder

IDLE = gr.update(submit_btn=True, stop_btn=False)  # state of the question box


class Chat:
    """One loaded model from the folder `root`. It answers questions about media in the folder `uploads`."""

    def __init__(self, root: str, uploads: str):
        self.root, self.uploads = root, os.path.realpath(uploads)
        self.lock = threading.Lock()  # guards model, collator and options
        self.loaded = self.model = self.collator = self.options = None

    def answer(self, path: str, messages: list[dict], most: int, base: bool = False) -> Iterator[tuple[str, str]]:
        """Generate the reply to the last message. After each piece of text, yield the (thought, answer) so far.

        With `base`, the base model of the adapter answers. Raises a ValueError if there is no such model, or if the
        model refuses the conversation.
        """
        folder = check_model_folder(path, self.root)
        if base and not adapter_config(folder):
            raise ValueError(f"{path} is a full model, not an adapter: choose its base model instead.")
        with self.lock:
            self._load(folder)
            messages = [message | {"content": list(map(self._open, message["content"]))} for message in messages]
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

    def _open(self, part: dict) -> dict:
        if part["type"] == "text":
            return part
        check_inside(path := part[part["type"]], self.uploads, "the file")
        try:
            return open_part(part, self.options)
        except ValueError as error:
            raise ValueError(str(error).replace(path, os.path.basename(path))) from error


def messages_of(shown: list[dict]) -> list[dict]:
    """Convert gradio's messages to canonical ones, with paths of media. Consecutive messages of one role are joined.

    A question that failed is left out, and so is its error message.
    """
    messages = []
    for one in shown:
        title, role, content = (one.get("metadata") or {}).get("title"), one["role"], one["content"]
        if title == text("no_answer"):
            messages = messages[:-1]
            continue
        if not messages or messages[-1]["role"] != role:
            messages.append({"role": role, "content": []})
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if title:
            messages[-1]["reasoning_content"] = parts[0]["text"]
            continue
        for part in parts:
            path = part["file"]["path"] if part["type"] == "file" else ""
            kind = kind_by_name(path) or "image"
            messages[-1]["content"].append({"type": kind, kind: path} if path else part)
    return messages


def chat_tab(chat: Chat) -> gr.Dropdown:
    with gr.Row():
        about = {"label": text("chat_model"), "info": text("chat_model_help"), "elem_id": "chat_model"}
        model = gr.Dropdown([], allow_custom_value=True, min_width=300, **about)
        most = gr.Slider(1, 1024, value=128, step=1, label=text("longest"), elem_id="longest", min_width=300)
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
    """Yield question box and both conversations after each piece of text. The tuned model answers before the base."""
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
            for thought, said in chat.answer(model, messages_of(side), int(most), base=number == 1):
                thoughts = [{"role": "assistant", "content": thought, "metadata": {"title": text("thought")}}]
                shown[number] = [*side, *thoughts[: bool(thought)], {"role": "assistant", "content": said}]
                yield gr.skip(), *shown
        except Exception as error:  # from the model or the media, or out of memory
            if not isinstance(error, ValueError):
                traceback.print_exc()
            fault = {"role": "assistant", "content": str(error), "metadata": {"title": text("no_answer")}}
            shown[number] = [*side, fault]
    yield IDLE, *shown
