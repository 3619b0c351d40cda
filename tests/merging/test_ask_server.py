"""A server that answers as the folder, and each way in which one does not: plain transformers stand in for it."""

import base64
import json
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import turns
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import check_serving
from merging.ask_server import Server

LAYERS = r"model\.language_model\..*_proj"


@cache
def load(base, adapter):
    model = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(model, adapter) if adapter else model, AutoProcessor.from_pretrained(base)


class PlainServer:
    """OpenAI's protocol over plain transformers, with vLLM's additions or without.

    Args:
        template, pixels: other ones than the folder's.
        samples: whether a request without a temperature is sampled.
        trusts: whether it takes what a request says of its media.
    """

    def __init__(
        self, base, adapter=None, name="tuned", vllm=True, template=None, pixels=None, samples=False, trusts=False
    ):
        self.model, self.processor = load(base, adapter)
        self.trusts = trusts
        self.name, self.vllm, self.template, self.samples = name, vllm, template, samples
        self.size = {"size": {"shortest_edge": 4 * 28 * 28, "longest_edge": pixels}} if pixels else {}

    def inputs(self, body: dict):
        messages = []
        for message in body["messages"]:
            parts = message["content"]
            parts = [{"type": "text", "text": parts}] if isinstance(parts, str) else parts
            messages.append({"role": message["role"], "content": [self.part(part) for part in parts]})
        ends = {name: body[name] for name in ("add_generation_prompt", "continue_final_message") if name in body}
        return self.processor.apply_chat_template(
            messages,
            self.template,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"videos_kwargs": {"do_sample_frames": False}}
            | ({"images_kwargs": self.size} if self.size else {}),
            **({"add_generation_prompt": True} | ends),
        )

    def part(self, part: dict) -> dict:
        if part["type"] == "text":
            return part
        kind, _, files = part[part["type"]]["url"].partition(";base64,")
        images = [Image.open(BytesIO(base64.b64decode(file))) for file in files.split(",")]
        if kind == "data:video/jpeg":
            return {"type": "video", "video": np.stack(images)}
        return {"type": "image", "image": images[0]}

    def chat(self, body: dict) -> dict | None:
        if "media_io_kwargs" in body and not self.trusts:
            return None
        inputs = self.inputs(body)
        ids = inputs["input_ids"][0]
        with torch.no_grad():
            sampled = {"do_sample": True, "temperature": 5.0, "top_k": 0}
            how = sampled if self.samples and "temperature" not in body else {"do_sample": False}
            tokens = self.model.generate(**inputs, max_new_tokens=body["max_tokens"], **how)[0, len(ids) :]
            response = {"usage": {"prompt_tokens": len(ids)}}
            if "prompt_logprobs" in body:
                scores = self.model(**inputs).logits[0].log_softmax(-1)
                listed = [{str(int(t)): {"logprob": float(scores[i, t])}} for i, t in enumerate(ids[1:])]
                response["prompt_logprobs"] = [None, *listed]
        choice = {"message": {"content": self.processor.tokenizer.decode(tokens, skip_special_tokens=True)}}
        if body.get("return_token_ids") and self.vllm:
            response["prompt_token_ids"], choice["token_ids"] = ids.tolist(), tokens.tolist()
        return response | {"choices": [choice]}

    def answer(self, path: str, body: dict | None) -> dict | None:
        if path == "/v1/models":
            return {"data": [{"id": self.name}]}
        if path == "/version" and self.vllm:
            return {"version": "0.32.0"}
        return self.chat(body) if path == "/v1/chat/completions" else None


@pytest.fixture
def serve():
    """`serve(server)`: its URL."""
    running = []

    def start(server: PlainServer) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                length = int(self.headers.get("Content-Length", 0))
                found = server.answer(self.path, json.loads(self.rfile.read(length)) if length else None)
                self.send_response(200 if found else 404)
                self.end_headers()
                self.wfile.write(json.dumps(found).encode())

            do_POST = do_GET

            def log_message(self, *args):
                pass

        running.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=running[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{running[-1].server_port}/v1"

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def adapters(tiny, tmp_path_factory):
    """The folders of two adapters that change the answers of qwen2-vl."""
    folders = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_pretrained(tiny("qwen2-vl"), dtype=torch.float32)
        model = get_peft_model(model, LoraConfig(r=4, target_modules=LAYERS))
        for parameter in model.parameters():
            parameter.data += parameter.requires_grad * 0.2 * torch.randn_like(parameter)
        folders.append(tmp_path_factory.mktemp("adapters") / "tuned")
        model.save_pretrained(folders[-1])
    return folders


@pytest.fixture
def rows(write_rows):
    def row(image, *texts):
        return {"image": image, "conversations": turns(f"<image>{texts[0]}", *texts[1:])}

    text_alone = {"conversations": turns("Who?", "A fox.")}
    return write_rows([row("red.png", "What?", "A fox."), row("tall.jpg", "And?", "Red.", "Sure?", "Yes."), text_alone])


def asked(folder, url: str, rows: str, capsys, *flags) -> str:
    """What is said of a server."""
    words = ["--model_path", str(folder), "--url", url, "--data_path", rows, "--max_new_tokens", "6", *flags]
    try:
        check_serving.main(words)
    except ValueError as error:
        return str(error)
    return capsys.readouterr().out.splitlines()[-1]


def test_a_server_of_the_folder_answers_the_same(tiny, adapters, serve, rows, capsys):
    for vllm in (True, False):
        url = serve(PlainServer(tiny("qwen2-vl"), adapters[0], vllm=vllm))
        said = asked(adapters[0], url, rows, capsys)
        assert "4 of 4 answers are the same" in said and f"tuned at {url} answers like" in said, said
        assert ("log-probabilities" in said) == vllm


def test_what_differs_is_named(tiny, adapters, serve, write_rows, capsys):
    base = tiny("qwen2-vl")
    rows = write_rows([{"image": "tall.jpg", "conversations": turns("<image>And?", "Red.")}])
    other = AutoProcessor.from_pretrained(base).chat_template.replace("You are a helpful assistant.", "Be brief.")
    for options, expected in [
        ({}, "the answers are those of the base model, so the server does not use what was trained"),
        ({"adapter": adapters[1]}, "different weights: the prompts are the same"),
        ({"adapter": adapters[0], "template": other}, "a different prompt: at token"),
        ({"adapter": adapters[0], "pixels": 8 * 28 * 28}, "a different image size"),
        ({"adapter": adapters[0], "pixels": 8 * 28 * 28, "vllm": False}, "a different prompt or image size"),
        ({"adapter": adapters[0], "template": other, "vllm": False}, "the cause is unknown"),  # of the same length
    ]:
        said = asked(adapters[0], serve(PlainServer(base, **options)), rows, capsys)
        assert expected in said, (options, said)


def test_videos_go_as_their_frames_to_a_vllm_that_takes_them(tiny, adapters, serve, write_rows, capsys):
    def row(*videos):
        return {"video": list(videos), "conversations": turns("<video>" * len(videos) + "What?", "A fox.")}

    rows = write_rows([row("clip.mp4"), row(), row("clip.mp4", "clip.mp4")])
    for options, expected, left_out in [
        ({"trusts": True}, "2 of 2 answers are the same, log-probabilities of the references within ", "more than 1 v"),
        ({}, "1 of 1 answers are the same, log-probabilities", "more than 0 videos are left out"),
        ({"vllm": False, "trusts": True}, "1 of 1 answers are the same", "more than 0 videos are left out"),
    ]:
        url = serve(PlainServer(tiny("qwen2-vl"), adapters[0], **options))
        words = ["--model_path", str(adapters[0]), "--url", url, "--data_path", rows, "--num_frames", "4"]
        check_serving.main([*words, "--max_new_tokens", "3"])
        said = capsys.readouterr().out
        assert expected in said and left_out in said, said

    server = PlainServer(tiny("qwen2-vl"), adapters[0], trusts=True)
    of_part = server.part
    server.part = lambda part: {
        k: v[::-1].copy() if k == "video" else v for k, v in of_part(part).items()
    }  # from the end
    said = asked(adapters[0], serve(server), write_rows([row("clip.mp4"), row()]), capsys)
    assert "the server reads videos differently" in said and "log-probabilities" in said, said


def test_which_model_is_asked(serve):
    """The one that is given, else the one that is called as the folder, else the only one."""
    listed = []
    url = serve(SimpleNamespace(answer=lambda path, _: {"data": [{"id": name} for name in listed]}))
    for listed[:], given, expected in [
        (["a"], None, "a"),
        (["a", "tuned"], None, "tuned"),
        (["a", "tuned"], "b", "b"),
        (["a", "b"], None, "lists a, b: pass the right name as --served_model_name"),
        ([], None, "lists no model: pass the right name as --served_model_name"),
    ]:
        if expected.startswith("lists"):
            with pytest.raises(ValueError, match=expected):
                Server(url, given, "tuned", {})
        else:
            assert Server(url, given, "tuned", {}).model == expected


def test_a_question_that_the_server_refuses_is_named(tiny, serve, rows, capsys):
    server = PlainServer(tiny("qwen2-vl"))
    url, server.chat = serve(server), lambda body: None
    said = asked(tiny("qwen2-vl"), url, rows, capsys)
    assert said == f"{Path(rows).name}, sample 0: {url}/chat/completions answered 404: null"


@pytest.mark.slow
def test_transformers_serve(tiny, adapters, rows, capsys):
    base = tiny("qwen2-vl")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    words = [sys.executable, "-m", "transformers.cli.transformers", "serve", base, "--device", "cpu"]
    with subprocess.Popen([*words, "--host", "127.0.0.1", "--port", port]) as server:
        try:
            for _ in range(300):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health").close()
                    break
                except OSError:
                    assert server.poll() is None
                    time.sleep(1)
            # What it lists are Hub repositories, not what it serves.
            said = [
                asked(path, f"http://127.0.0.1:{port}/v1", rows, capsys, "--served_model_name", base)
                for path in (base, adapters[0])
            ]
        finally:
            server.terminate()
    assert "4 of 4 answers are the same" in said[0] and "answers like" in said[0], said
    assert "does not use what was trained" in said[1], said


def test_a_server_that_samples_is_told_so_last(tiny, adapters, serve, write_rows, capsys):
    """The first row shows sampling alone; of the second, training read the special token as plain text."""
    rows = [{"conversations": turns(question, "A fox.")} for question in ("Who?", "Who <|im_end|>?")]
    url = serve(PlainServer(tiny("qwen2-vl"), adapters[0], samples=True))
    said = asked(adapters[0], url, write_rows(rows[:1]), capsys)
    assert "the server samples unless a request sets the temperature" in said
    assert "a different prompt: at token" in asked(adapters[0], url, write_rows(rows), capsys)


def test_a_call_of_a_tool_comes_as_the_text_that_was_learned(monkeypatch):
    """vLLM 0.32 refuses tools without a choice of them, unless it was started with a parser of calls."""

    def call(self, path: str, body: dict | None = None, source: str = "") -> dict:
        assert not body or "tools" not in body or body["tool_choice"] == "none"
        return {"version": "0.32.0", "sent": body}

    monkeypatch.setattr(Server, "call", call)
    tools = [{"type": "function", "function": {"name": "look_up", "parameters": {}}}]
    text = [{"type": "text", "text": "Look it up."}]
    server = Server("http://127.0.0.1:1/v1", "tuned", "tuned", {})
    sent = server.ask([{"role": "user", "content": text, "tools": tools}], "sample 0")["sent"]
    assert sent["tools"] == tools
    call = {"type": "function", "function": {"name": "look_up", "arguments": {}}}
    called = server.ask([{"role": "assistant", "content": [], "tool_calls": [call]}], "sample 0")["sent"]["messages"]
    assert called[0]["content"] is None
    assert "tool_choice" not in server.ask([{"role": "user", "content": text}], "sample 0")["sent"]


def test_the_same_answers_from_other_weights(tiny, adapters, serve, rows, capsys):
    """One token is an answer that other weights may give too; what they think of the references differs."""
    server = PlainServer(tiny("qwen2-vl"), adapters[0])
    url, chat = serve(server), server.chat

    def less_sure(body: dict) -> dict:
        found = chat(body)
        for scores in found.get("prompt_logprobs", [])[1:]:
            for score in scores.values():
                score["logprob"] -= 0.5
        return found

    server.chat = less_sure
    said = asked(adapters[0], url, rows, capsys)
    assert "only the log-probabilities differ (4 of 4 answers are the same, " in said, said
