"""How right training tools for vision-language models are: one row a tool, one column a property.

    python benchmarks/correctness.py --pythons trl=venv-trl/bin/python llamafactory=venv-lf/bin/python --json found.json
    python benchmarks/correctness.py --tools finelmm --columns text "packed samples"

Each tool runs through its own entry point and documented flags (contenders/tools.py), in an environment of its own, on
the same rows and the same tiny random checkpoints. What is judged are the batches that its model got and the gradients
that its optimizer got (contenders/observe.py), never its code or its word. A cell:

    yes      the property holds                    no: ...   it does not, and how
    error    it refuses the run, and says so       n/a       it cannot be asked for, or not be seen

A tool may refuse: that costs its user a minute, not a model. `--json FILE` is written after each cell, and the tables
of docs/correctness.md and README.md are made from it (docs/generate.py). Linux; no GPU, no network.
"""

import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPO = HERE.parent
sys.path[:0] = [str(REPO), str(HERE), str(HERE / "contenders"), str(REPO / "tests")]
os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}

import tools  # noqa: E402
import torch  # noqa: E402
from columns import Cell, Column, Seen, columns, prepare  # noqa: E402
from tools import TOOLS, Run, Tool, first_error  # noqa: E402

SECONDS = 900  # that a run may take; on an idle core, a tiny one takes ten
PRINT_VERSIONS = "import sys, importlib.metadata as m; print(', '.join(f'{n} {m.version(n)}' for n in sys.argv[1:]))"


def jobs_of(tool: Tool, column: Column, folder: Path, made: list[tuple[Run, dict]]) -> dict[str, dict]:
    """The jobs of a column, by name; a run that was asked for before is not made again."""
    found = {}
    for name, run in column.runs.items():
        job = next((job for other, job in made if other == run), None)
        if job is None:
            job = start(tool.run, folder / f"{column.name} {name}".replace(" ", "-"), run)
            if run.resumes:
                out, saved = Path(found[run.resumes]["folder"], "out"), f"checkpoint-{run.save}"
                job["copy"] = [str(out / saved), f"{job['folder']}/out/{saved}"]
            made.append((run, job))
        found[name] = job | {"processes": run.processes}
    if column.merges:
        if tool.merge:
            found["merged"] = start(tool.merge, folder / "merged", Path(found["run"]["folder"], "out")) | {
                "processes": 1
            }
        else:
            found["merged"] = {"refused": "by peft"}
    return found


def start(call: Callable[..., dict], folder: Path, *given) -> dict:
    folder.mkdir(parents=True)
    return {"processes": 1, "seconds": SECONDS} | call(*given, folder) | {"folder": str(folder)}


def see(job: dict) -> Seen:
    if "refused" in job:
        return Seen("refused", job["refused"], [], Path())
    folder = Path(job["folder"])
    log = "\n".join(path.read_text(errors="replace") for path in sorted(folder.glob("log-*.txt")))
    records = [torch.load(path) for path in sorted(folder.glob("record-*.pt"))]
    return Seen((folder / "outcome.txt").read_text(), log, records, folder)


def measure(tool: Tool, python: str, wanted: list[Column], work: Path, tell: Callable[[str, Cell], None]) -> None:
    """All runs of a tool in forks of one process; each column is judged when the last of its runs has ended."""
    folder = work / tool.name
    made: list[tuple[Run, dict]] = []
    jobs = {column: jobs_of(tool, column, folder, made) for column in wanted}
    asked = {job["folder"]: job for of_column in jobs.values() for job in of_column.values() if "refused" not in job}
    file = work / f"{tool.name}.json"
    path = [str(tools.repo)] if tool.name == "finelmm" else []
    file.write_text(json.dumps({"imports": tool.imports, "path": path, "jobs": [*asked.values()]}))
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"FINELMM_CACHE": str(work)}
    command = [python, str(HERE / "contenders" / "observe.py"), str(file)]
    with open(work / f"{tool.name}.log", "w") as log, subprocess.Popen(command, env=env, stdout=log, stderr=log) as ran:
        for column, of_column in jobs.items():
            missing = [job for job in of_column.values() if "refused" not in job]
            while missing and ran.poll() is None:
                missing = [job for job in missing if not Path(job["folder"], "outcome.txt").exists()]
                time.sleep(1)
            if all("refused" in job or Path(job["folder"], "outcome.txt").exists() for job in of_column.values()):
                tell(column.name, column.cell({name: see(job) for name, job in of_column.items()}))
            else:
                tell(column.name, Cell("n/a", first_error((work / f"{tool.name}.log").read_text())))


def with_fault(name: str, folder: Path) -> Path:
    """A copy of the repository with a fault of tests/mutants.py."""
    from conftest import copy_code
    from mutants import FAULTS

    fault = next(fault for fault in FAULTS if fault.name == name)
    copy_code(folder)
    path = folder / fault.file
    path.write_text(fault.plant(path.read_text(encoding="utf-8")), encoding="utf-8")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--columns", nargs="+", help="default: all; names as in the table")
    parser.add_argument("--pythons", nargs="*", default=[], metavar="TOOL=PATH", help="interpreter of each other tool")
    parser.add_argument("--fault", help="of tests/mutants.py, planted into a copy of finelmm, which is measured")
    parser.add_argument("--json", type=Path, help="what was found, written after each cell; other tools' are kept")
    parser.add_argument("--folder", type=Path, help="keep the runs here; default: a temporary folder")
    own = parser.parse_args()
    pythons = {"finelmm": sys.executable} | dict(pair.split("=", 1) for pair in own.pythons)
    with tempfile.TemporaryDirectory() as temporary:
        work = (own.folder or Path(temporary)).resolve()
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(exist_ok=True)
        prepare(work)
        if own.fault:
            tools.repo = with_fault(own.fault, work / "faulty")
        wanted = [column for column in columns() if not own.columns or column.name in own.columns]
        found = json.loads(own.json.read_text()) if own.json and own.json.exists() else {"tools": {}}
        found["date"] = datetime.date.today().isoformat()
        for name in own.tools:
            tool = TOOLS[name]
            if name not in pythons:
                print(f"{tool.name}: left out, --pythons {name}=PATH is not given")
                continue
            command = [pythons[name], "-c", PRINT_VERSIONS, *tool.packages.split()]
            versions = subprocess.run(command, capture_output=True, text=True, cwd="/").stdout.strip()
            print(f"{tool.name}: {versions}", flush=True)
            title = f"{tool.name}, {own.fault}" if own.fault else tool.name
            cells = found["tools"].setdefault(title, {}).setdefault("cells", {})
            found["tools"][title] |= {"versions": versions, "flags": tool.flags}

            def tell(column: str, cell: Cell, name=tool.name, cells=cells) -> None:
                cells[column] = [cell.verdict, cell.why]
                print(
                    f"{name} | {column} | {cell}" + (f" ({cell.why})" if cell.verdict != "no" and cell.why else ""),
                    flush=True,
                )
                if own.json:
                    own.json.write_text(json.dumps(found, indent=1) + "\n")

            measure(tool, pythons[name], wanted, work, tell)


if __name__ == "__main__":
    main()
