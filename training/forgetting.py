"""Measures what a model forgets in training, with plain questions (`--probe`) that it answers before and after."""

import re
import unicodedata
from collections import Counter

from transformers import TrainerCallback

from evaluation.answers import questions, read_answers, write_answers
from evaluation.metrics import NUMBERS
from reading.dataset import MultimodalDataset

BEFORE, AFTER = "0-probe", "last-probe"  # parts of the names of the files with answers


class Probe(TrainerCallback):
    """Asks the questions before the first and after the last step of a run, and logs how many answers were lost."""

    def __init__(self, trainer, collator, dataset: MultimodalDataset):
        self.trainer, self.collator, self.dataset, self.asked = trainer, collator, dataset, questions(dataset)
        if not self.asked:
            raise ValueError(f"--probe: {dataset.name} has no reply to a user. Use a file with questions and answers.")

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step == 0:
            answers = self._answers()
            if state.is_world_process_zero:
                write_answers(args.output_dir, BEFORE, answers)
        elif state.is_world_process_zero and len(read_answers(args.output_dir, BEFORE)) != len(self.asked):
            raise ValueError("--probe: the run began with a different number of questions. Use the same file again.")

    def on_train_end(self, args, state, control, **kwargs):
        answers = self._answers()
        if state.is_world_process_zero:
            pairs = [*zip(read_answers(args.output_dir, BEFORE), answers)]
            pairs.sort(key=lambda pair: not pair[0]["right"])  # the questions that were right before come first
            write_answers(args.output_dir, AFTER, [after for _, after in pairs])
            self.trainer.log(compare(pairs))

    def _answers(self) -> list[dict]:
        answers = self.trainer.answers(self.collator, self.dataset, self.asked)
        return [answer | {"right": is_right(answer)} for answer in answers]


def compare(pairs: list[tuple[dict, dict]]) -> dict[str, int]:
    """Count all questions, those answered right before training, and those lost or gained in training."""
    counts = Counter((before["right"], after["right"]) for before, after in pairs)
    lost, gained, right = counts[True, False], counts[False, True], counts[True, False] + counts[True, True]
    return {"probe_answers": len(pairs), "probe_right": right, "probe_lost": lost, "probe_gained": gained}


def is_right(answer: dict) -> bool:
    """Return whether an answer contains a reference. "It is **Paris**." contains "Paris". "3" and "three" are equal."""
    references, said = map(plain, answer.get("references", [answer["reference"]])), plain(answer["prediction"])
    return any(re.search(rf"(?<![a-z0-9]){re.escape(text)}(?![a-z0-9])", said) for text in references)


def plain(text: str) -> str:
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return re.sub("[a-z]+", lambda word: str(NUMBERS.get(word[0], word[0])), text)
