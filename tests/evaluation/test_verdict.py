"""The state of a run and what it learned, from logs made by hand; the standard errors from the binomial itself."""

import math
from types import SimpleNamespace

import pytest

from evaluation.answers import guess_blindly
from evaluation.verdict import TONES, Diverged, of_check, of_run, painted, two_standard_errors
from reading.dataset import MultimodalDataset
from reports.run_report import RunFacts


def log_of(before: float, after: float, blind: float = 0.2, answers: int = 50, losses=(2.0, 1.5, 1.0), **more) -> list:
    """A run of 30 steps that was evaluated at 0, 20 and 30."""
    found = [{"step": step, "eval_loss": loss} for step, loss in zip((0, 20, 30), losses)]
    about = {"eval_answers": answers, "eval_blind_exact_match": blind, "eval_blind_anls": blind}
    found[0] |= about | {"eval_exact_match": before, "eval_anls": before}
    found[-1] |= {"eval_exact_match": after, "eval_anls": after} | more
    return [*({"step": step, "loss": 1.0} for step in range(1, 31)), *found]


def learned(log: list, metric: str | None = None, higher: bool | None = None) -> str:
    verdict = of_run(log, None, metric, higher)
    is_bad = verdict.sentence.split(" (")[0] in ("learned nothing", "overfits")
    assert verdict.state == "finished" and verdict.tone == ("warning" if is_bad else "good")
    return verdict.sentence


@pytest.mark.parametrize(
    "log, expected",
    [
        (log_of(0.1, 0.9), "learned (exact match 0.9, before 0.1, blind 0.2, 50 answers)"),
        (log_of(0.5, 0.6, blind=0.1), "too few answers to tell"),  # by 0.1, while two standard errors are 0.13
        (log_of(0.5, 0.6, blind=0.1, answers=1000), "learned (exact match 0.6"),  # and 0.03
        (log_of(0.1, 0.6, blind=0.6, answers=1000), "learned nothing (exact match 0.6, before 0.1, blind 0.6"),
        (log_of(0.6, 0.1, blind=0.0), "learned nothing"),
        (log_of(0.0, 1.0, answers=4), "too few answers to tell"),
        (log_of(0.1, 0.9, losses=(2.0, 1.0, 3.0)), "learned"),  # answers are more than losses
        (log_of(0.1, 0.1, losses=(2.0, 1.0, 1.5)), "overfits (evaluation loss 1.5, and 1 at step 20: use"),
        (log_of(0.1, 0.1, losses=(2.0, 1.0, 1.01)), "learned nothing (exact"),  # no more than noise
        (log_of(0.1, 0.1, losses=(1.0, 1.5, 2.0)), "learned nothing (evaluation loss 2, and 1 before)"),
        ([line for line in log_of(0.1, 0.1) if "loss" in line], "too few answers to tell (add --eval_data_path"),
        ([], "too few steps to tell"),
        ([line | {"step": line["step"] // 2} for line in log_of(0.1, 0.1)], "too few steps to tell"),
        ([line | {"step": line["step"] // 2} for line in log_of(0.1, 0.9)], "learned ("),
    ],
)
def test_what_a_run_learned(log, expected):
    assert learned(log).startswith(expected)


def test_the_chosen_metric_decides():
    log = log_of(0.0, 0.0, eval_anls=0.9)
    assert learned(log).startswith("learned (anls 0.9")  # of long answers, none is exact
    assert learned(log, "exact_match", True).startswith("learned nothing (exact match 0,")
    log[-3] |= {"eval_errors": 0.9, "eval_blind_errors": 0.5, "eval_cider": 1.0}
    log[-1] |= {"eval_errors": 0.1, "eval_cider": 9.0}
    assert learned(log, "eval_errors", False).startswith("learned (errors 0.1, before 0.9, blind 0.5")
    assert learned(log, "errors", True).startswith("learned nothing")
    assert learned(log, "errors", False) == learned(log, "eval_errors", False)
    log[-3] |= {"eval_val_errors": 0.9, "eval_blind_val_errors": 0.5, "eval_val_answers": 30}
    log[-1] |= {"eval_val_errors": 0.1}
    assert learned(log, "val_errors", False) == "learned (val errors 0.1, before 0.9, blind 0.5, 30 answers)"
    log[-3] |= {"eval_blind_val_errors": 0.1}  # which leaves less to gain than two standard errors of 30 answers
    assert learned(log, "val_errors", False).endswith("no score could be clearly better than blind guesses")
    assert learned(log, "val_loss", False).startswith("learned (anls")
    assert learned(log, "cider", True).startswith("too few answers to tell (cider 9")  # of unknown error


def test_the_metric_that_was_asked_for_decides():
    """That of --metric_for_best_model; where it is a loss, the first of --metric by name."""
    log = log_of(0.0, 0.9, eval_cer=0.5, eval_f1=0.1)
    log[-3] |= {"eval_cer": 0.4, "eval_f1": 0.9, "eval_blind_cer": 0.9, "eval_blind_f1": 0.9}
    for metric, best, higher, expected in (
        (None, None, None, "learned (exact match"),
        (["my.py:own"], "loss", False, "learned (exact match"),
        (["my.py:own", "cer", "f1"], "loss", False, "learned nothing (cer 0.5, before 0.4"),
        (["cer", "f1"], None, None, "learned nothing (cer 0.5, before 0.4"),
        (["cer", "f1"], "eval_f1", True, "learned nothing (f1 0.1, before 0.9"),
    ):
        training = SimpleNamespace(metric=metric, metric_for_best_model=best, greater_is_better=higher)
        facts = RunFacts(SimpleNamespace(training=training), [], None, None, {})
        assert facts.verdict(SimpleNamespace(log_history=log)).sentence.startswith(expected)


def test_two_standard_errors_are_those_of_the_binomial():
    """Of so many answers, a true share is within them about 95 times of 100, also of few and near 1."""
    for share, number in ((0.5, 8), (0.9, 20), (0.97, 50)):
        inside = 0.0
        for right in range(number + 1):
            if abs((right + 2) / (number + 4) - share) <= two_standard_errors(right / number, number):
                inside += math.comb(number, right) * share**right * (1 - share) ** (number - right)
        assert 0.93 < inside < 0.995, (share, number)


def test_states_and_their_colours():
    class Terminal:
        isatty = staticmethod(lambda: True)

    steady, rising = log_of(0, 1), [{"step": i, "loss": 1.0 + i} for i in range(30)]
    for ended, state, sentence in (
        (KeyboardInterrupt(), "stopped", "by Ctrl-C. To continue"),
        (SystemExit(143), "stopped", "by SIGTERM. To continue"),
        (SystemExit(3), "failed", "exit code 3"),
        (Diverged("step 3: nan"), "diverged", "step 3: nan"),
        (ValueError("no"), "failed", "no"),
        (MemoryError(), "failed", "MemoryError"),
    ):
        verdict = of_run(steady, ended, None, None)
        assert verdict.state == state and verdict.sentence.startswith(sentence)
        assert painted(verdict, verdict.tone, Terminal).startswith("\033[1;31m") == (state != "stopped")
    assert of_run(rising, None, None, None).state == "diverged"
    checks = [of_check(*found).state for found in (([], []), ([], ["cut"]), (["no row"], ["cut"]))]
    assert checks == ["ready", "ready, but", "not ready"] and [TONES[state] for state in checks][::2] == [
        "good",
        "error",
    ]


def test_a_blind_guess_is_the_most_frequent_reply(write_rows):
    said = [("Shape?", "square"), ("Shape?", "circle"), ("Shape?", "circle"), ("Colour?", "red"), ("Size?", "square")]
    rows = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in said]
    dataset = MultimodalDataset(write_rows([*rows, rows[0]]))
    answers = [{"question": question, "prediction": "", "turn": 3} for question in ("Shape?", "Colour?", "Weather?")]
    guesses = guess_blindly(dataset, answers)
    assert [guess["prediction"] for guess in guesses] in (["square", "red", "square"], ["circle", "red", "square"])
    assert guesses[0]["turn"] == 3 and answers[0]["prediction"] == ""
