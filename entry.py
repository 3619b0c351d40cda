"""What a script does before its imports, which take seconds, and around its `main`.

The text of --help lies in `docs/help`, written by `python docs/generate.py` from the real parser. It is shown while the
flags in the source are those it was written from; else the script goes on, and the parser shows what holds now.
"""

import ast
import gc
import glob
import hashlib
import json
import logging
import os
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path

HERE = Path(__file__).resolve().parent


def begin(script: str) -> None:
    """Answer --help, if it is asked for, and end there; else keep two lines off the screen that say nothing of the run.

    Args:
        script: the path of the script that runs.
    """
    if {"-h", "--help"}.intersection(sys.argv[1:]):
        written = HERE / "docs" / "help" / f"{Path(script).stem}.txt"
        digest, _, text = written.read_text(encoding="utf-8").partition("\n") if written.is_file() else ("", "", "")
        if digest == flags_digest(script):
            print(text, end="")
            sys.exit()
    let_threads_sleep()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # without the traceback of an import; `cli` resets it
    gc.disable()  # it looks through modules being imported again and again, and frees nothing; `cli` enables it
    # peft 0.21 imports bitsandbytes wherever it is installed, which warns of a kernel for 4-bit answers on some CPUs.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    # It also asks a model by a name that transformers 5.23 has renamed.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)


def let_threads_sleep() -> None:
    """On CPUs, threads that spin while they wait take the cores from whatever else works there, a run's own data loader
    included: several times slower (benchmarks/waiting_threads.py). Read when torch is imported.
    """
    if not glob.glob("/dev/nvidia*") and not os.path.exists("/dev/kfd"):
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def flags_digest(script: str | Path) -> str:
    """A digest of the source that the help of a script is made of: its docstring, its flags, those of arguments.py."""
    found = []
    for path in (Path(script), HERE / "arguments.py"):
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source)
        found.append(ast.get_docstring(tree))
        for node in ast.walk(tree):
            is_flag = isinstance(node, ast.Call) and ast.unparse(node.func) == "parser.add_argument"
            if is_flag or isinstance(node, ast.AnnAssign):
                found += source.splitlines()[node.lineno - 1 : node.end_lineno]
    return hashlib.sha256("\n".join(found).encode()).hexdigest()


def cli(main) -> None:
    """Run a script: an error message of ours ends it without a traceback, any other error with one."""
    gc.freeze()  # the modules stay: the collector need not look through them ever again
    gc.enable()
    if callable(signal.getsignal(signal.SIGINT)):  # of `begin`; a shell's background job ignores it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        main()
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)  # as a shell reports it
    except BrokenPipeError:  # the reader of stdout, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except ValueError as error:
        raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename).resolve()
        if HERE not in raised_in.parents[:2]:
            raise
        end(f"Error: {error}")


def end(message: str) -> None:
    """End the process with an error message; under torchrun once, in the summary of failures that it prints last."""
    if not (path := os.environ.get("TORCHELASTIC_ERROR_FILE")):
        sys.exit(f"\033[1;31m{message}\033[0m" if sys.stderr.isatty() else message)
    of_all_processes = os.path.dirname(os.path.dirname(path))
    # An earlier time makes it the first failure, which torchrun shows last.
    found = {"message": message, "extraInfo": {"timestamp": str(int(time.time()) - 1)}}
    with open(path, "w", encoding="utf-8") as file:
        json.dump({"message": found}, file, allow_nan=False)
    try:
        open(os.path.join(of_all_processes, hashlib.sha256(message.encode()).hexdigest()), "x").close()
    except FileExistsError:  # another process has said it
        os.remove(path)
    sys.exit(1)
