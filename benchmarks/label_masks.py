"""CPU time of the label masks and of a whole row, against the library's own.

    python benchmarks/label_masks.py

Makes tiny checkpoints in a temporary folder; needs no network. Two tables: the label mask of one row by
`_expanded` and `_overlaps` (collators/base.py) and by the loop in `ProcessorMixin._adjust_assistant_masks_indices`
(transformers 5.23), from the same spans and offsets; and a whole row by `collator.encode` and by a plain
`processor.apply_chat_template`, which gives no labels.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from PIL import Image  # noqa: E402
from transformers import AutoProcessor  # noqa: E402

from collators import COLLATORS  # noqa: E402
from collators.base import _expanded, _overlaps  # noqa: E402
from loaders import LOADERS  # noqa: E402
from supported_models import families  # noqa: E402
from tiny_checkpoints import make_tiny_checkpoint  # noqa: E402


def conversation(exchanges: int, words: int, images: int, size: tuple[int, int]) -> list[dict]:
    """The first messages have an image each; a question and a reply have `words` words."""
    sentence = " ".join(["What colour is the circle in the middle of the picture?"] * (words // 11 + 1))
    messages = []
    for i in range(exchanges):
        media = [{"type": "image", "image": Image.new("RGB", size, "red")}] if i < images else []
        messages.append({"role": "user", "content": media + [{"type": "text", "text": sentence}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": sentence}]})
    return messages


def cpu_ms(function, repeats: int = 5, seconds: float = 0.1) -> float:
    """Median CPU-ms of a call, over `repeats` runs of at least `seconds`; all threads count."""
    function()
    start, calls = time.process_time(), 0
    while time.process_time() - start < seconds / 4:
        function()
        calls += 1
    calls *= 4
    times = []
    for _ in range(repeats):
        start = time.process_time()
        for _ in range(calls):
            function()
        times.append((time.process_time() - start) / calls * 1000)
    return statistics.median(times)


def mask_times(collator, messages: list[dict]) -> tuple[int, float, float]:
    """Tokens, and CPU-ms of our and the library's mask of one row."""
    text, spans = collator.template.render(messages)
    images = [part["image"] for message in messages for part in message["content"] if part["type"] == "image"]
    features = collator.processor(
        text=[text], images=[images], return_offsets_mapping=True, return_text_replacement_offsets=True
    )
    offset_mapping, replacements = features["offset_mapping"], features["text_replacement_offsets"]

    def ours():
        return _overlaps(offset_mapping[0], _expanded(spans, replacements[0]))

    def library():
        features.update(offset_mapping=offset_mapping, text_replacement_offsets=replacements)
        return collator.processor._adjust_assistant_masks_indices(features, [spans])["assistant_masks"][0]

    assert ours().tolist() == [bool(x) for x in library()] and any(library())
    return len(offset_mapping[0]), cpu_ms(ours), cpu_ms(library)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    # The library makes no mask for the processors of remote code.
    native = [family for family in families() if not LOADERS.get(family).remote_code]
    parser.add_argument("--families", nargs="+", choices=native, default=native)
    own = parser.parse_args()
    rows = {
        "three short exchanges, one image": conversation(3, 11, 1, (64, 64)),
        "eight long exchanges, three images": conversation(8, 110, 3, (224, 224)),
    }
    with tempfile.TemporaryDirectory() as folder:
        print("label mask of a row      tokens   ours ms   library ms   library / ours")
        lines = []
        for family in own.families:
            path = str(Path(folder) / family)
            with open(os.devnull, "w") as sys.stdout:
                make_tiny_checkpoint(family, path)
            sys.stdout = sys.__stdout__
            collator = COLLATORS.get(family)(LOADERS.get(family)(path).load_processor())
            plain = AutoProcessor.from_pretrained(path)
            for name, messages in rows.items():
                tokens, ours, library = mask_times(collator, messages)
                row = f"{family:<18}{name.split()[0]:<6} {tokens:>6}"
                print(f"{row} {ours:>9.3f} {library:>12.3f} {library / ours:>16.1f}")
                sample = {"messages": messages}
                options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
                encode = cpu_ms(lambda: collator.encode(sample))  # noqa: B023
                theirs = cpu_ms(lambda: plain.apply_chat_template([messages], **options))  # noqa: B023
                lines.append(f"{row} {encode:>9.2f} {theirs:>12.2f} {encode / theirs:>16.2f}")
        print("\na whole row              tokens encode ms   library ms   encode / library")
        print("\n".join(lines))
        print("\n" + "\n".join(f"{name.split()[0]}: {name}" for name in rows))


if __name__ == "__main__":
    main()
