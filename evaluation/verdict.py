"""Verdicts on a run (its state, and a sentence on what it learned) and on a data check (whether a run can start).

The terminal, `log.jsonl`, the report, the model card and the web page all show these verdicts.
"""

import signal
from typing import NamedTuple

from evaluation.metrics import kind_of

TONES = {
    "running": "neutral",
    "finished": "good",
    "stopped": "warning",  # by Ctrl-C or SIGTERM
    "interrupted": "warning",  # the log has no end, since the run was killed or the machine went down
    "failed": "error",
    "diverged": "error",
    # states of a data check
    "ready": "good",
    "ready, but": "warning",
    "not ready": "error",
}
ANSI = {"good": 32, "warning": 33, "error": 31}
RECENT_LOSSES = 20
# With fewer steps or answers, there is no verdict on what was learned.
FEW_STEPS, FEW_ANSWERS = 20, 8
# The evaluation loss has risen if the last one exceeds the lowest by this factor.
RISEN = 1.02


class Diverged(ValueError):
    """Losses, gradients or weights are no longer finite."""


class Verdict(NamedTuple):
    state: str  # a key of TONES
    sentence: str = ""

    @property
    def tone(self) -> str:
        is_doubtful = self.sentence.startswith(("learned nothing", "overfits")) or "; forgot " in self.sentence
        return "warning" if is_doubtful else TONES[self.state]

    def __str__(self) -> str:
        return f"{self.state}: {self.sentence}" if self.sentence else self.state


def painted(text: object, tone: str, stream) -> str:
    """Return the text in the colour of a tone, or without colour if the stream is not a terminal."""
    return f"\033[1;{ANSI[tone]}m{text}\033[0m" if tone in ANSI and stream.isatty() else str(text)


def of_check(failures: list[str], concerns: list[str]) -> Verdict:
    return Verdict("not ready" if failures else "ready, but" if concerns else "ready")


def of_run(log: list[dict], ended: BaseException | None, metric: str | None, higher_is_better: bool | None) -> Verdict:
    """Return the verdict on a run that has ended.

    Args:
        log: the logged dicts, oldest first, each with "step".
        ended: the exception that ended the run early, if any.
        metric, higher_is_better: values of `--metric_for_best_model` and `--greater_is_better`.
    """
    signals = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
    code = ended.code if isinstance(ended, SystemExit) else None
    number = signal.SIGINT if isinstance(ended, KeyboardInterrupt) else isinstance(code, int) and code - 128
    if number in signals:
        return Verdict("stopped", f"by {signals[number]}. To continue, add --resume_from_checkpoint True")
    if ended:
        reason = f"exit code {code}" if isinstance(ended, SystemExit) else str(ended) or type(ended).__name__
        return Verdict("diverged" if isinstance(ended, Diverged) else "failed", reason)
    losses = [logs["loss"] for logs in log if "loss" in logs]
    if losses and diverges(losses[0], losses[1:], fewest=3):
        return Verdict("diverged", "the last losses are over twice the first. Try a lower --learning_rate")
    sentence = learned(log, (metric or "loss").removeprefix("eval_"), higher_is_better is not False)
    return Verdict("finished", sentence + forgotten(log))


def diverges(first: float, losses: list[float], fewest: int = RECENT_LOSSES) -> bool:
    """Return whether the mean of the last losses is above twice the first loss, or is not a number."""
    recent = list(losses)[-RECENT_LOSSES:]
    return len(recent) >= fewest and not sum(recent) / len(recent) <= 2 * first


def learned(log: list[dict], metric: str, higher_is_better: bool) -> str:
    """Return what a run learned, judged by its answers before and after training, then by its evaluation losses."""
    losses = [(logs["eval_loss"], logs["step"]) for logs in log if "eval_loss" in logs]
    lowest, best_step = min(losses, default=(0, 0))
    has_risen = bool(losses) and losses[-1][0] > RISEN * lowest
    gain = error = answers = 0
    shown = "add --eval_generate 100" if losses else "add --eval_data_path and --eval_generate 100"
    if kind_of(metric) == "loss":  # the loss says nothing about answers
        metric, higher_is_better = "exact_match", True
        if not any(logs.get("eval_exact_match") for logs in log):  # long answers are rarely equal to the reference
            metric = "anls"
    if len(values := [logs[f"eval_{metric}"] for logs in log if f"eval_{metric}" in logs]) > 1:
        about = next((logs for logs in reversed(log) if "eval_answers" in logs), {})
        heads = [key.removesuffix("answers") for key in about if key.endswith("answers")]  # "eval_", and one per file
        head = max((head for head in heads if f"eval_{metric}".startswith(head)), key=len, default="")
        answers, blind = about.get(f"{head}answers", 0), about.get(f"eval_blind_{metric}", values[0])
        gain = values[-1] - max(values[0], blind) if higher_is_better else min(values[0], blind) - values[-1]
        error = two_standard_errors(values[-1], answers)
        name = metric.replace("_", " ")
        shown = f"{name} {values[-1]:.3g}, before {values[0]:.3g}, blind {blind:.3g}, {answers} answers"
    if answers >= FEW_ANSWERS and gain > error:
        return f"learned ({shown})"
    if not log or log[-1]["step"] < FEW_STEPS:
        return f"too few steps to tell ({shown})"
    if has_risen and best_step:
        of_loss = f"evaluation loss {losses[-1][0]:.3g}, and {lowest:.3g} at step {best_step}"
        return f"overfits ({of_loss}: use that checkpoint, or add --load_best_model_at_end True)"
    if has_risen:
        return f"learned nothing (evaluation loss {losses[-1][0]:.3g}, and {lowest:.3g} before)"
    if answers and (blind + error >= 1 if higher_is_better else blind <= error):
        return f"too few answers to tell ({shown}): no score could be clearly better than blind guesses"
    if answers < FEW_ANSWERS or 0 < gain:
        return f"too few answers to tell ({shown})"
    return f"learned nothing ({shown})"


def forgotten(log: list[dict]) -> str:
    """Return the outcome of `--probe`. It is "forgot" if more is lost than by chance (McNemar, two standard errors)."""
    found = next((logs for logs in log if "probe_lost" in logs), None)
    if not found:
        return ""
    right, lost, gained = (found[f"probe_{name}"] for name in ("right", "lost", "gained"))
    if not right:  # the base model does not answer in this form
        return f"; of {found['probe_answers']} plain questions none was right before, {gained} after"
    verb = "forgot" if lost - gained > 2 * (lost + gained) ** 0.5 else "lost"
    return f"; {verb} {lost} of {right} plain answers, gained {gained}"


def two_standard_errors(share: float, number: int) -> float:
    """Return two standard errors of a mean of `number` values from 0 to 1. Two right and two wrong values are added,
    which corrects for small numbers (Agresti-Coull). If the mean is outside 0 to 1, infinity is returned.
    """
    if not 0 <= share <= 1:
        return float("inf")
    share = (share * number + 2) / (number + 4)
    return 2 * (share * (1 - share) / (number + 4)) ** 0.5
