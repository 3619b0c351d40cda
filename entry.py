"""What a script does before its imports, which take seconds.

The text of --help lies in `docs/help`, written by `python docs/generate.py` from the real parser. It is shown while the
flags in the source are those it was written from; else the script goes on, and the parser shows what holds now.
"""

import ast
import gc
import glob
import hashlib
import logging
import os
import signal
import sys
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
