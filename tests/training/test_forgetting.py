"""What a model forgets: answers before and after training are those of predict.py, and are counted by hand."""

import pytest
from conftest import lines_of, run
from PIL import Image

import predict
from evaluation.verdict import of_run
from training.forgetting import compare, is_right

FAMILY = "qwen2-vl"


@pytest.mark.parametrize(
    "prediction, references, expected",
    [
        ("Paris", ["Paris"], True),
        ("The capital of France is **Paris**.", ["paris"], True),
        ("Parisian", ["Paris"], False),
        ("There are three of them.", ["3"], True),
        ("13", ["3"], False),
        ("H₂O", ["H2O"], True),
        ("法国的首都是巴黎。", ["巴黎"], True),
        ("It is light\n blue", ["Light  blue"], True),
        ("Dog", ["Cat", "dog"], True),
        ("", ["Cat"], False),
        ("a.b", ["a+b"], False),
    ],
)
def test_an_answer_that_names_a_reference_is_right(prediction, references, expected):
    assert is_right({"prediction": prediction, "reference": references[0], "references": references}) is expected


def test_lost_is_what_was_right_before_and_gained_what_was_not():
    before, after = ([{"right": letter == "r"} for letter in letters] for letters in ("rrrrww", "rwwwrw"))
    counts = {"probe_answers": 6, "probe_right": 4, "probe_lost": 3, "probe_gained": 1}
    assert compare([*zip(before, after)]) == counts
    for lost, gained, word in ((4, 0, "lost"), (5, 0, "forgot"), (9, 4, "lost"), (12, 4, "lost"), (13, 4, "forgot")):
        verdict = of_run([counts | {"step": 1, "probe_lost": lost, "probe_gained": gained}], None, None, None)
        assert verdict.sentence.endswith(f"; {word} {lost} of 4 plain answers, gained {gained}")
        assert verdict.tone == ("warning" if word == "forgot" else "good")
    verdict = of_run([counts | {"step": 1, "probe_right": 0, "probe_lost": 0, "probe_gained": 2}], None, None, None)
    assert verdict.sentence.endswith("; of 6 plain questions none was right before, 2 after") and verdict.tone == "good"


def answered(folder, *flags) -> list[str]:
    predict.main([*map(str, flags), "--output_path", str(folder), "--max_new_tokens", "5"])
    return [line["prediction"] for line in lines_of(folder)]


def test_a_run_tells_what_it_forgot(tiny, write_rows, tmp_path):
    """Of questions whose references are what the base answers, and one that nobody can."""
    Image.new("RGB", (56, 56), "red").save(tmp_path / "red.png")
    asked = [{"question": "Name a colour."}, {"question": "What is it?", "image": str(tmp_path / "red.png")}]
    asked += [{"question": f"Count to {n}."} for n in (3, 4)]
    blank = write_rows([row | {"answer": "?"} for row in asked], "blank.json")
    base = ["--model_path", tiny(FAMILY)]
    before = answered(tmp_path / "base.jsonl", *base, "--data_path", blank)
    assert all(before) and len(before) == 4
    references = [*before[:3], "No word of it"]
    probe = write_rows([row | {"answer": text} for row, text in zip(asked, references)], "probe.json")
    rows = [{"question": "Name a colour.", "reply": "Blue"}]
    out = tmp_path / "out"
    flags = ["--use_lora", True, "--lora_dropout", 0, "--learning_rate", 2e-2, "--max_steps", 4]
    flags += ["--columns", "answer=reply", "--max_samples", 1, "--save_strategy", "no"]  # of the training data alone
    run(tiny, FAMILY, write_rows(rows), out, *flags, "--probe", probe, "--eval_max_new_tokens", 5)
    after = answered(tmp_path / "tuned.jsonl", "--model_path", out, "--data_path", probe)
    for name, texts in (("0", before), ("last", after)):
        answers = sorted(lines_of(out / f"eval_answers/step-{name}-probe.jsonl"), key=lambda answer: answer["index"])
        assert [answer["prediction"] for answer in answers] == texts
    lost = sum(one != other for one, other in zip(before[:3], after))
    assert lost, "the run changed no answer"
    *_, logs, end = lines_of(out / "log.jsonl")
    counts = {"probe_answers": 4, "probe_right": 3, "probe_lost": lost, "probe_gained": 0}
    assert logs.items() >= counts.items()
    assert end["verdict"].endswith(f"; lost {lost} of 3 plain answers, gained 0")
    report = (out / "report.html").read_text()
    assert "Answers to plain questions" in report


def test_a_probe_without_a_question_is_refused(tiny, write_rows, tmp_path):
    rows = [{"conversations": [{"from": "human", "value": "Name a colour."}, {"from": "gpt", "value": "Blue"}]}]
    call = {"type": "function", "function": {"name": "look", "arguments": {}}}
    said = {"messages": [{"role": "user", "content": "Look."}, {"role": "assistant", "tool_calls": [call]}]}
    with pytest.raises(ValueError, match="--probe: .*said.json has no reply to a user"):
        path, probe = write_rows(rows), write_rows([said], "said.json")
        run(tiny, FAMILY, path, tmp_path / "out", "--probe", probe)
