"""What --push_to_hub sends: to a server on this machine that speaks the Hub's protocol, and checks cards as it does."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import REPO, turns
from huggingface_hub import ModelCard
from huggingface_hub.utils import HFValidationError, validate_repo_id

PLACES = {"args.yaml", "training_args.bin", "report.html"}  # files that name folders of the machine
BASE, TOKEN = "Qwen/Qwen2-VL-2B-Instruct", "hf_" + "s3cret" * 6
PIPELINES = ("image-text-to-text", "image-to-text", "visual-question-answering")
RELATIONS = ("adapter", "finetune", "merge", "quantized")
# https://github.com/huggingface/hub-docs/blob/main/modelcard.md
FIELDS = {
    *("language", "license", "license_name", "license_link", "library_name", "tags", "datasets", "metrics"),
    *("base_model", "base_model_relation", "pipeline_tag", "thumbnail", "inference", "model-index", "new_version"),
}


def faults(card: str) -> list[str]:
    """What the Hub would refuse of a card's metadata, and what it would pass over in silence."""
    data = ModelCard(card).data.to_dict()
    found = [f"{name} is no field" for name in data.keys() - FIELDS]
    found += [f"{data['pipeline_tag']} is no task"] if data["pipeline_tag"] not in PIPELINES else []
    if (base := data.get("base_model")) or "base_model_relation" in data:
        validate_repo_id(base)
        found += ["no relation to the base"] if data.get("base_model_relation") not in RELATIONS else []
    return found + [f"{tag!r} is no tag" for tag in data.get("tags", []) if not isinstance(tag, str)]


class Hub:
    """`files` of each repository, by its name: path -> content."""

    def __init__(self):
        self.files: dict[str, dict[str, bytes]] = {}

    def answer(self, path: str, body: bytes) -> tuple[int, dict]:
        if path == "/api/repos/create":
            name = "/".join(filter(None, (json.loads(body).get("organization", "someone"), json.loads(body)["name"])))
            self.files.setdefault(name, {})
            return 200, {"url": f"{self.url}/{name}", "name": name}
        if path == "/api/whoami-v2":
            return 200, {"name": "someone", "type": "user", "orgs": []}
        if path == "/api/validate-yaml":
            found = [{"message": message} for message in faults(json.loads(body)["content"])]
            return (400 if found else 200), {"errors": found, "warnings": []}
        if not (asked := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(.*)", path)):
            return 404, {"error": "not found"}
        name, action = asked.groups()
        if action == "preupload/main":
            files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            return 200, {"files": [file | {"shouldIgnore": False, "oid": None} for file in files]}
        if action == "commit/main":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return 200, {"commitUrl": f"{self.url}/{name}/commit/main", "commitOid": "0" * 40, "success": True}
        return 404, {"error": "not found"}


@pytest.fixture
def hub():
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if "chunked" in self.headers.get("Transfer-Encoding", ""):
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            status, found = hub.answer(self.path, body)
            answer = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_POST = do_HEAD = do_GET

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield hub
        server.shutdown()


@pytest.mark.slow
def test_what_a_run_and_a_merge_send_to_the_hub(tiny, tmp_path, hub):
    base = tmp_path / "hub" / f"models--{BASE.replace('/', '--')}" / "snapshots" / "895c3a4"  # as the Hub's cache
    shutil.copytree(tiny("qwen2-vl"), base)
    (tmp_path / "rows.json").write_text(json.dumps([{"conversations": turns("Name a colour.", "Blue")}]))
    environ = os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}

    def run(words: str):
        command = [sys.executable, *words.split()]
        done = subprocess.run(command, cwd=REPO, env=environ | {"HF_TOKEN": TOKEN}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]

    run(
        f"train.py --model_id qwen2-vl-2b-instruct --model_local_path {base} --data_path {tmp_path}/rows.json "
        f"--output_dir {tmp_path}/out --use_lora True --use_cpu True --max_steps 2 --save_steps 1 "
        f"--push_to_hub True --hub_model_id someone/tuned --hub_token {TOKEN}"
    )
    run(
        f"merge_lora_weights.py --model_path {tmp_path}/out --model_local_path {base} "
        f"--model_save_path {tmp_path}/merged --push_to_hub someone/merged"
    )
    assert hub.files.keys() == {"someone/tuned", "someone/merged"}
    for name, files in hub.files.items():
        folder = tmp_path / ("out" if name == "someone/tuned" else "merged")
        kept = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        assert files.keys() == {path for path in kept if not path.startswith(("checkpoint-", "_"))}
        assert all((folder / path).read_bytes() == content for path, content in files.items())
        assert not [path for path, content in files.items() if TOKEN.encode() in content]
        places = {path for path, content in files.items() if str(tmp_path).encode() in content}
        assert places == PLACES & files.keys(), (name, places)
        card = ModelCard(files["README.md"].decode())
        assert set(re.findall(r"\]\(([^)]+)\)", card.text)) == {"loss.png"} <= files.keys()
        data, is_adapter = card.data, name == "someone/tuned"
        assert data.base_model == BASE and data.library_name == ("peft" if is_adapter else "transformers")
        assert data.base_model_relation == ("adapter" if is_adapter else "finetune")
    config = json.loads(hub.files["someone/tuned"]["adapter_config.json"])
    assert config["base_model_name_or_path"] == BASE


def test_a_card_that_the_hub_refuses(hub):
    """The server above does refuse one."""
    card = "---\nbase_model: {}\nbase_model_relation: {}\npipeline_tag: image-text-to-text\n---\n# Mine\n"
    assert faults(card.format(BASE, "adapter")) == []
    assert faults(card.format(BASE, "child")) == ["no relation to the base"]
    with pytest.raises(HFValidationError):
        faults(card.format("/home/me/models/base", "adapter"))
