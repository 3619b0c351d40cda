"""What a script does before its imports, which take seconds, and around its `main`.

--help is answered from `docs/help`, which is written by hand; --help_all, by the parser.
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
# peft 0.21 imports bitsandbytes wherever it is installed, which warns of a kernel for 4-bit answers on some CPUs.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
# It also asks a model by a name that transformers 5.23 has renamed.
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)


def begin(script: str) -> None:
    """Answer --help, if it is asked for, and end there; else get ready for the imports. `script`: its path."""
    if {"-h", "--help"}.intersection(sys.argv[1:]):
        about = ast.get_docstring(ast.parse(Path(script).read_text(encoding="utf-8")))
        print(about, (HERE / "docs/help" / f"{Path(script).stem}.txt").read_text(encoding="utf-8"), sep="\n\n", end="")
        sys.exit()
    sys.argv = ["--help" if word == "--help_all" else word for word in sys.argv]
    let_threads_sleep()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # without the traceback of an import; `cli` resets it
    gc.disable()  # it looks through modules being imported again and again, and frees nothing; `cli` enables it


def let_threads_sleep() -> None:
    """On CPUs, threads that spin while they wait take the cores from whatever else works there, a run's own data loader
    included: several times slower (benchmarks/waiting_threads.py). Read when torch is imported.
    """
    if not glob.glob("/dev/nvidia*") and not os.path.exists("/dev/kfd"):
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


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
    except Exception as error:
        raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename).resolve()
        if isinstance(error, ValueError) and HERE in raised_in.parents[:2]:
            end(f"Error: {error}")
        if "No space left on device" in str(error):  # of Python, or of safetensors, whose error is no OSError
            end(f"Error: the disk is full ({error}). Make room, then run the same command again.")
        raise


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
