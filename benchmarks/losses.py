"""Losses of six families, to the last bit: the proof that a change of the code's shape changes nothing of a run.

    python benchmarks/losses.py --write before.json      # before the change
    python benchmarks/losses.py --compare before.json    # after it

Each family trains on the example data and rows of text, with a fixed seed and one thread: LoRA and all weights, padded,
padding-free and packed; where a family must be padded, that is the result. The same machine and packages on both sides.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
REPO = Path(__file__).resolve().parent.parent
sys.path[0] = str(REPO)

FAMILIES = {
    "llava-1.5": "llava-1.5-7b",
    "llava-onevision": "llava-onevision-0.5b-ov",
    "qwen2.5-vl": "qwen2.5-vl-3b-instruct",
    "qwen3-vl-moe": "qwen3-vl-30b-a3b-instruct",
    "gemma-3": "gemma-3-4b-it",
    "llama-3.2-vision": "llama-3.2-11b-vision-instruct",
}
MODES = {"lora": "--use_lora True --train_vision_projector True", "full": "--train_vision_encoder True"}
BATCHES = {"padded": "--padding_free False", "padding-free": "--padding_free True", "packed": "--packing True"}
FLAGS = "--use_cpu True --disable_tqdm True --logging_steps 1 --save_strategy no --report_to none --learning_rate 1e-3"
FLAGS += " --model_max_length 2048 --per_device_train_batch_size 2 --gradient_accumulation_steps 2 --seed 7"


def losses_of(words: list[str], out: str, connection) -> None:
    """Run train.py; send the logged losses as hexadecimal floats, or why it refused."""
    import train

    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1), os.dup2(devnull, 2)
    try:
        train.main([*words, "--output_dir", out])
    except ValueError as error:
        connection.send(f"refused: {str(error).split(' cannot be used with ')[0]}")
        return
    log = json.loads(Path(out, "trainer_state.json").read_text())["log_history"]
    connection.send([entry["loss"].hex() for entry in log if "loss" in entry])


def measure(families: list[str], steps: int, folder: str) -> dict[str, list[str] | str]:
    """Case -> its losses."""
    import train  # noqa: F401, in the process that the runs are forked from
    from tiny_checkpoints import make_tiny_checkpoint

    rows = json.loads((REPO / "example_data" / "sample.json").read_text())[:12]
    for row in rows:
        row["image"] = str(REPO / "example_data" / row["image"])
    turns = [{"from": "human", "value": "Name a colour."}, {"from": "gpt", "value": "Blue"}]
    data = Path(folder, "rows.json")
    data.write_text(json.dumps(rows + [{"conversations": turns}] * 4))
    found = {}
    for family in families:
        checkpoint = f"{folder}/{family}"
        make_tiny_checkpoint(family, checkpoint)
        for mode, mode_flags in MODES.items():
            for batch, batch_flags in BATCHES.items():
                words = f"--model_id {FAMILIES[family]} --model_local_path {checkpoint} --data_path {data} {FLAGS}"
                words += f" --max_steps {steps} {mode_flags} {batch_flags}"
                fork, (receiver, sender) = multiprocessing.get_context("fork"), multiprocessing.Pipe(duplex=False)
                process = fork.Process(target=losses_of, args=(words.split(), f"{folder}/out-{len(found)}", sender))
                process.start()
                sender.close()
                case = f"{family}, {mode}, {batch}"
                try:
                    found[case] = receiver.recv()
                except EOFError:
                    sys.exit(f"{case}: the run ended without losses")
                process.join()
                print(f"{case}: {found[case] if isinstance(found[case], str) else len(found[case])}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", type=Path, metavar="FILE")
    what.add_argument("--compare", type=Path, metavar="FILE")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--steps", type=int, default=4)
    own = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(own.families, own.steps, folder)
    if own.write:
        own.write.write_text(json.dumps(found, indent=1) + "\n")
        return
    before = json.loads(own.compare.read_text())
    if missing := before.keys() - found.keys():
        print(f"not compared: {len(missing)} cases of {own.compare}, such as {min(missing)}")
    changed = [case for case in found if found[case] != before.get(case)]
    for case in changed:
        print(f"changed: {case}\n  before {before.get(case)}\n  now    {found[case]}")
    if changed:
        sys.exit(f"{len(changed)} of {len(found)} cases changed.")
    print(f"All {len(found)} cases are equal, to the last bit.")


if __name__ == "__main__":
    main()
