"""The outcome of a run: its state and, in a sentence, what it learned; and of a data check: whether a run can start.

Terminal, `log.jsonl`, report, model card and web page show what is decided here.
"""

import signal
from typing import NamedTuple

from evaluation.metrics import kind_of

TONES = {
    "running": "neutral",
    "finished": "good",
    "stopped": "warning",  # by Ctrl-C or SIGTERM
    "interrupted": "warning",  # without a word: killed, or the machine went down
    "failed": "error",
    "diverged": "error",
    # of a check
    "ready": "good",
    "ready, but": "warning",
    "not ready": "error",
}
ANSI = {"good": 32, "warning": 33, "error": 31}
RECENT_LOSSES = 20
# Fewer tell nothing.
FEW_STEPS, FEW_ANSWERS = 20, 8
# An evaluation loss counts as risen if it is above the lowest by this factor.
RISEN = 1.02


class Diverged(ValueError):
    """Losses, gradients or weights are no longer finite."""


class Verdict(NamedTuple):
    state: str  # of TONES
    sentence: str = ""

    @property
    def tone(self) -> str:
        is_doubtful = self.sentence.startswith(("learned nothing", "overfits")) or "; forgot " in self.sentence
        return "warning" if is_doubtful else TONES[self.state]

    def __str__(self) -> str:
        return f"{self.state}: {self.sentence}" if self.sentence else self.state


def painted(text: object, tone: str, stream) -> str:
    """The text, in the colour of a tone if the stream is a terminal."""
    return f"\033[1;{ANSI[tone]}m{text}\033[0m" if tone in ANSI and stream.isatty() else str(text)


def of_check(failures: list[str], concerns: list[str]) -> Verdict:
    return Verdict("not ready" if failures else "ready, but" if concerns else "ready")


def of_run(log: list[dict], ended: BaseException | None, metric: str | None, higher_is_better: bool | None) -> Verdict:
    """The verdict on a run that is over.

    Args:
        log: what was logged, oldest first, each with "step".
        ended: what ended it early, if anything did.
        metric, higher_is_better: of `--metric_for_best_model` and `--greater_is_better`.
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
        return Verdict("diverged", "its last losses are over twice its first. Try a lower --learning_rate")
    sentence = learned(log, (metric or "loss").removeprefix("eval_"), higher_is_better is not False)
    return Verdict("finished", sentence + forgotten(log))


def diverges(first: float, losses: list[float], fewest: int = RECENT_LOSSES) -> bool:
    """Whether the mean of the last losses is above twice the first, or not a number."""
    recent = list(losses)[-RECENT_LOSSES:]
    return len(recent) >= fewest and not sum(recent) / len(recent) <= 2 * first


def learned(log: list[dict], metric: str, higher_is_better: bool) -> str:
    """What a run learned: by its answers before and after, then by its evaluation losses."""
    losses = [(logs["eval_loss"], logs["step"]) for logs in log if "eval_loss" in logs]
    lowest, best_step = min(losses, default=(0, 0))
    has_risen = bool(losses) and losses[-1][0] > RISEN * lowest
    gain = error = answers = 0
    shown = "add --eval_generate 100" if losses else "add --eval_data_path and --eval_generate 100"
    if kind_of(metric) == "loss":  # which says nothing about answers
        metric, higher_is_better = "exact_match", True
        if not any(logs.get("eval_exact_match") for logs in log):  # long answers
            metric = "anls"
    if len(values := [logs[f"eval_{metric}"] for logs in log if f"eval_{metric}" in logs]) > 1:
        about = next((logs for logs in reversed(log) if "eval_answers" in logs), {})
        heads = [key.removesuffix("answers") for key in about if key.endswith("answers")]  # of all, and of each file
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
        return f"too few answers to tell ({shown}): guesses without the pictures score as high"
    if answers < FEW_ANSWERS or 0 < gain:
        return f"too few answers to tell ({shown})"
    return f"learned nothing ({shown})"


def forgotten(log: list[dict]) -> str:
    """The outcome of `--probe`; "forgot": more was lost than chance explains (McNemar, two standard errors)."""
    found = next((logs for logs in log if "probe_lost" in logs), None)
    if not found:
        return ""
    right, lost, gained = (found[f"probe_{name}"] for name in ("right", "lost", "gained"))
    if not right:  # of a base that writes something else
        return f"; of {found['probe_answers']} plain questions none was right before, {gained} after"
    verb = "forgot" if lost - gained > 2 * (lost + gained) ** 0.5 else "lost"
    return f"; {verb} {lost} of {right} plain answers, gained {gained}"


def two_standard_errors(share: float, number: int) -> float:
    """Of a mean of `number` values from 0 to 1; as though four more were half right, for the few (Agresti-Coull).

    Nothing is known of a metric beyond 0 to 1, so that no gain exceeds its error.
    """
    if not 0 <= share <= 1:
        return float("inf")
    share = (share * number + 2) / (number + 4)
    return 2 * (share * (1 - share) / (number + 4)) ** 0.5
