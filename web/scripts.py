"""Run scripts of the repository in forks of a process that has imported them, because imports take many seconds."""

import json
import os
import signal
import socket
import sys
import traceback
from functools import partial
from importlib import import_module

from entry import cli

SCRIPTS = ("check_serving", "estimate", "merge_lora_weights", "predict", "preview")
requests = None  # socket to the process that forks


def start_process() -> None:
    """Start the process that forks. Call this before other threads start, as a fork keeps their locks forever."""
    global requests
    for script in SCRIPTS:
        import_module(script)
    requests, asked = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork():
        return asked.close()
    requests.close()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # leaves no zombie
    while (request := socket.recv_fds(asked, 1 << 17, 1))[0]:  # until webui.py ends
        if not os.fork():
            _run(*json.loads(request[0]), *request[1])
        os.close(*request[1])
    os._exit(0)


def _run(script: str, words: list[str], answer: int) -> None:
    """Run a script, and send what it prints, a null character, and its error."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    sys.argv, fault = [f"{script}.py"], None
    os.dup2(answer, 1)
    os.dup2(os.open(os.devnull, os.O_RDWR), 2)  # hides progress bars and warnings
    try:
        cli(partial(import_module(script).main, words))
    except SystemExit as end:
        fault = end.code
    except Exception:
        fault = traceback.format_exc()
    print(f"\0{fault or ''}", flush=True)
    os._exit(0)


class Failed(ValueError):
    """What a script printed, and its error: `fault` is its message, or its exit code if there is no message."""

    def __init__(self, printed: str, fault: str):
        super().__init__(f"{printed}\n{fault}".strip())
        self.fault = fault


def tool(script: str, *words: str) -> str:
    """Return what a script prints. Raises `Failed` if the script fails."""
    ours, theirs = socket.socketpair()
    with ours, ours.makefile(encoding="utf-8", errors="replace") as answer:
        with theirs:
            socket.send_fds(requests, [json.dumps([script, words], allow_nan=False).encode()], [theirs.fileno()])
        printed, ended, fault = (part.strip() for part in answer.read().partition("\0"))
    if fault or not ended:
        raise Failed(printed, fault.removeprefix("Error: ")[-2000:] or "The script was killed.")
    return printed
