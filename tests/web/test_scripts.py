"""Scripts as the page runs them: in forks of one process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPO

pytestmark = pytest.mark.slow
WORK = """
import os, signal, sys
imported = os.getpid()
def main(words):
    print(*words, len(sys.argv), len({imported, os.getppid(), os.getpid()}))
    print("a bar", file=sys.stderr)
    end = {"error": ValueError("a fault of the code"), "exit": SystemExit("Error: no rows"), "code": SystemExit(1)}
    if words[0] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if words[0] in end:
        raise end[words[0]]
"""
PAGE = """
import os, threading, time
from web import scripts
scripts.SCRIPTS = ["work"]
scripts.start_process()
said = {}
def ask(word):
    try:
        said[word] = scripts.tool("work", word, "\\u00fc")
    except ValueError as error:
        said[word] = f"ValueError: {error}"
words = ("right", "error", "exit", "code", "kill", "right again")
asked = [threading.Thread(target=ask, args=[word]) for word in words]
[thread.start() for thread in asked]
[thread.join() for thread in asked]
for word in sorted(said):
    print(said[word].replace("\\n", "|"))
"""


def test_a_script_answers_with_what_it_prints_or_with_what_was_wrong(tmp_path):
    Path(tmp_path, "work.py").write_text(WORK)
    environment = os.environ | {"PYTHONPATH": f"{REPO}:{tmp_path}"}
    done = subprocess.run([sys.executable, "-c", PAGE], capture_output=True, text=True, env=environment, timeout=100)
    code, error, exit, kill, right, again = done.stdout.splitlines()
    assert (right, again) == ("right \u00fc 1 3", "right again \u00fc 1 3")
    assert exit == "ValueError: exit \u00fc 1 3|no rows" and code == "ValueError: code \u00fc 1 3|1"
    assert "Traceback" in error and error.endswith("ValueError: a fault of the code")
    assert kill.endswith("The script was killed.") and done.stderr == ""
