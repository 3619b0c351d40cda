"""What each script runs before its slow imports (`begin`) and around its `main` (`cli`).

--help prints a hand-written text from `docs/help`. --help_all prints the help of the parser.
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
# peft 0.21 imports bitsandbytes if it is installed. On some CPUs, bitsandbytes warns about a missing 4-bit kernel.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
# peft 0.21 also reads a model attribute that transformers 5.23 has renamed.
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)


def begin(script: str) -> None:
    """If --help is given, print the help of the script at this path and exit. Otherwise prepare for slow imports."""
    if {"-h", "--help"}.intersection(sys.argv[1:]):
        about = ast.get_docstring(ast.parse(Path(script).read_text(encoding="utf-8")))
        print(about, (HERE / "docs/help" / f"{Path(script).stem}.txt").read_text(encoding="utf-8"), sep="\n\n", end="")
        sys.exit()
    sys.argv = ["--help" if word == "--help_all" else word for word in sys.argv]
    let_threads_sleep()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # exits without a traceback; `cli` undoes this
    gc.disable()  # during imports, it would scan all modules repeatedly and free nothing; `cli` enables it


def let_threads_sleep() -> None:
    """Without a GPU, let waiting threads sleep. Spinning threads take cores from other processes, such as the data
    loader, and make runs several times slower (benchmarks/waiting_threads.py). torch reads OMP_WAIT_POLICY on import.
    """
    if not glob.glob("/dev/nvidia*") and not os.path.exists("/dev/kfd"):
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def cli(main) -> None:
    """Run the `main` of a script. A ValueError that our code raises is printed without a traceback."""
    gc.freeze()  # the imported modules stay, so the garbage collector can skip them from now on
    gc.enable()
    if callable(signal.getsignal(signal.SIGINT)):  # set by `begin`; a shell's background job ignores SIGINT
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        main()
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)  # as a shell reports it
    except BrokenPipeError:  # the program that reads stdout, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename).resolve()
        if isinstance(error, ValueError) and HERE in raised_in.parents[:2]:
            end(f"Error: {error}")
        if "No space left on device" in str(error):  # from Python (an OSError) or safetensors (not an OSError)
            end(f"Error: the disk is full ({error}). Make room, then run the same command again.")
        raise


def end(message: str) -> None:
    """Exit with an error message. Under torchrun, the message appears once, in torchrun's final summary of failures."""
    if not (path := os.environ.get("TORCHELASTIC_ERROR_FILE")):
        sys.exit(f"\033[1;31m{message}\033[0m" if sys.stderr.isatty() else message)
    of_all_processes = os.path.dirname(os.path.dirname(path))
    # torchrun shows the earliest failure at the very end, so date this failure a second earlier.
    found = {"message": message, "extraInfo": {"timestamp": str(int(time.time()) - 1)}}
    with open(path, "w", encoding="utf-8") as file:
        json.dump({"message": found}, file, allow_nan=False)
    try:
        open(os.path.join(of_all_processes, hashlib.sha256(message.encode()).hexdigest()), "x").close()
    except FileExistsError:  # another process has reported this message
        os.remove(path)
    sys.exit(1)
