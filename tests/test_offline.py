"""Training from a local folder asks nothing of any network, also where it would be allowed to."""

import json
import os
import subprocess
import sys

import pytest
from conftest import CONSENT, MODEL_ID, REPO, VISION_FLAGS, rows_for

# Every connection and every look-up of a name, by Python's own audit events, which no library can pass by.
GUARDED = """
import json, sys

seen = []

def note(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        seen.append(str(arguments))
        raise OSError("there is no network")

sys.addaudithook(note)
import train

for words in json.loads(sys.argv[1]):
    train.main(words)
asked = list(seen)
try:  # the guard works, and the library was free to ask
    from huggingface_hub import model_info
    model_info("org/name")
except Exception:
    pass
print(json.dumps([asked, seen[len(asked):]]))
"""


@pytest.mark.slow
def test_no_connection_is_tried(tiny, write_rows, tmp_path):
    runs = []
    for family in ("llava-1.5", "phi3-v", "auto"):
        for i, flags in enumerate([VISION_FLAGS, ["--use_lora", "True"]]):
            path = write_rows(rows_for(family))
            words = ["--model_id", MODEL_ID[family], "--model_local_path", tiny(family), "--data_path", path]
            words += ["--output_dir", str(tmp_path / f"{family}-{i}"), "--max_steps", "1", "--use_cpu", "True"]
            runs.append([*words, "--save_strategy", "steps", "--save_steps", "1", *CONSENT[family], *flags])
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    result = subprocess.run(
        [sys.executable, "-c", GUARDED, json.dumps(runs)],
        cwd=REPO,
        env=environment | {"HF_ENDPOINT": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    asked, control = json.loads(result.stdout.splitlines()[-1])
    assert asked == []
    assert control
