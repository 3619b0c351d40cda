"""The code of the pages on inference, merging and serving runs to the letter, and gives the answer that was learned."""

import base64
import io
import json
import re
import runpy
import shutil
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import REPO, run, turns
from PIL import Image
from test_docs import code_blocks

import merge_lora_weights
import predict
from evaluation.answers import stream_answer

PAGES = [REPO / f"docs/{name}.md" for name in ("inference", "merging", "serving")]
CODE = [code for page in PAGES for _, code in code_blocks(page, "python")]
QUESTION, LEARNED = "What is broken?", "The left hinge."


@pytest.fixture(scope="module")
def folder(tiny, media_folder, tmp_path_factory):
    """A folder with `out`, an adapter trained on a 4-bit base, `merged` and `photo.png`."""
    folder = tmp_path_factory.mktemp("inference")
    shutil.copy(media_folder / "tall.jpg", folder)
    Image.open(folder / "tall.jpg").save(folder / "photo.png")
    row = {"image": "photo.png", "conversations": turns(f"<image>\n{QUESTION}", LEARNED)}
    (folder / "rows.json").write_text(json.dumps([row]))
    flags = ["--use_lora", True, "--q_lora", True, "--lora_r", 16, "--lora_dropout", 0, "--max_steps", 25]
    flags += ["--per_device_train_batch_size", 1, "--learning_rate", 1e-2, "--lr_scheduler_type", "cosine"]
    run(tiny, "qwen2-vl", str(folder / "rows.json"), folder / "out", *flags)
    words = ["--model_path", str(folder / "out"), "--model_save_path", str(folder / "merged"), "--load_4bit"]
    merge_lora_weights.main(words)
    return folder


def test_a_model_that_is_merged_an_adapter_or_quantized(folder, monkeypatch, capsys):
    """The blocks in order, in one namespace, as somebody pastes them."""
    monkeypatch.chdir(folder)
    capsys.readouterr()
    loading, names = [code for code in CODE if "openai" not in code], {}
    for code in loading:
        Path("code.py").write_text(code)
        names = runpy.run_path("code.py", names)
        assert capsys.readouterr().out == LEARNED + "\n", code
    assert len(loading) == 4 and names["model"].is_loaded_in_4bit
    predict.main(["--model_path", "out", "--image", "photo.png", "--prompt", QUESTION])
    assert capsys.readouterr().out == LEARNED + "\n"


class ChatCompletions(BaseHTTPRequestHandler):
    """What of the API of vLLM and SGLang the page uses, answered by the model."""

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        ((_, image), (_, question)) = (part.values() for part in request["messages"][0]["content"])
        kind, _, encoded = image["url"].partition(";base64,")
        opened = Image.open(io.BytesIO(base64.b64decode(encoded, validate=True))).convert("RGB")
        content = [{"type": "image", "image": opened}, {"type": "text", "text": question}]
        pieces = stream_answer(*self.server.model, [{"role": "user", "content": content}], request["max_tokens"])
        self.server.asked.append((self.path, kind, request["model"], request["temperature"]))
        message = {"role": "assistant", "content": "".join(pieces)}
        answer = {"id": "1", "object": "chat.completion", "created": 0, "model": request["model"]}
        answer["choices"] = [{"index": 0, "finish_reason": "stop", "message": message}]
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_the_openai_client_with_a_picture(folder, monkeypatch, capsys):
    (code,) = [code for code in CODE if "openai" in code]
    (name,) = re.findall(r"--served-model-name (\w+)$", PAGES[-1].read_text(), re.MULTILINE)
    with ThreadingHTTPServer(("127.0.0.1", 0), ChatCompletions) as server:
        server.model, server.asked = predict.load(str(folder / "merged")), []
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        monkeypatch.chdir(folder)
        capsys.readouterr()
        assert "localhost:8000" in code
        Path("code.py").write_text(code.replace("localhost:8000", f"127.0.0.1:{server.server_port}"))
        runpy.run_path("code.py")
        server.shutdown()
        thread.join()
    assert capsys.readouterr().out == LEARNED + "\n"
    assert server.asked == [("/v1/chat/completions", "data:image/png", name, 0)]


def test_the_task_of_lmms_eval_asks_each_question_and_scores_it(media_folder, tmp_path, monkeypatch):
    page = REPO / "docs/other_tools.md"
    ((_, code),), ((_, task),) = code_blocks(page, "py"), code_blocks(page, "yaml")
    row = {"image": str(media_folder / "red.png"), "conversations": turns("<image>What?", "A fox.", "Sure?", "Yes.")}
    (tmp_path / "test.json").write_text(json.dumps([row, {"conversations": turns("Who?", "A crab.")}]))
    (tmp_path / "utils.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    # lmms-eval brings it
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(Dataset=SimpleNamespace(from_dict=dict)))
    named = runpy.run_path("utils.py")
    docs = [{"number": number} for number in named["numbers"](None)["number"]]
    asked = [named["messages"](doc) for doc in docs]
    assert [messages[-1]["content"][-1]["text"] for messages in asked] == ["What?", "Sure?", "Who?"]
    assert asked[0][0]["content"][0]["url"].size == (64, 64) and asked[1][1]["role"] == "assistant"
    assert [named["results"](doc, [" Yes. "])["exact_match"] for doc in docs] == [False, True, False]
    assert set(re.findall(r"utils\.(\w+)", task)) <= named.keys()
