"""`preview.py`: what it prints of rows, against texts written by hand and the golden records."""

import json
import re
import subprocess
import sys

import pytest
from conftest import CONSENT, FACTS, FAMILIES, MODEL_ID, REPO, TAKES_VIDEO, golden_records, turns

import media
import preview

KEYS = ["index", "text", "trained", "num_tokens", "num_trained", "num_image_tokens", "num_video_tokens", "cut"]
ROWS = [
    {"image": "red.png", "conversations": turns("<image>\nWhat colour is it?", "Red", "And the shape?", "A square.")},
    {"image": "none.png", "conversations": turns("<image>\nWhat is it?", "A cat")},
    {"conversations": turns("Say </s> or <|im_end|>", "An <image> it is"), "system_prompt": "Be brief."},
    {"conversations": turns("Hi")},
]


@pytest.fixture
def run(tiny, capsys):
    """`run(family, path, *words)`: exit code and stdout of preview.py."""

    def call(family: str, path: str, *words: str) -> tuple[int, str]:
        flags = [
            "--model_id",
            MODEL_ID[family],
            "--model_local_path",
            tiny(family),
            "--data_path",
            path,
            *CONSENT[family],
        ]
        capsys.readouterr()  # what making the checkpoint printed
        with pytest.raises(SystemExit) as caught:
            preview.main([*flags, *CONSENT[family], *words])
        return caught.value.code, capsys.readouterr().out

    return call


def json_lines(out: str) -> list[dict]:
    return [json.loads(line) for line in out.splitlines()]


EXPECTED = {
    "llava-1.5": {
        0: (
            "<s>USER: <image>\nWhat colour is it? ASSISTANT: Red</s>USER: And the shape? ASSISTANT: A square.</s>",
            ["Red</s>", "A square.</s>"],
        ),
        2: (
            "<s>Be brief. USER: Say </s> or <|im_end|> ASSISTANT: An <image> it is</s>",
            ["An <image> it is</s>"],
        ),
    },
    "qwen2-vl": {
        0: (
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>What colour is it?<|im_end|>\n"
            "<|im_start|>assistant\nRed<|im_end|>\n<|im_start|>user\nAnd the shape?<|im_end|>\n"
            "<|im_start|>assistant\nA square.<|im_end|>\n",
            ["Red<|im_end|>", "A square.<|im_end|>"],
        ),
        2: (
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nSay </s> or <|im_end|><|im_end|>\n"
            "<|im_start|>assistant\nAn <image> it is<|im_end|>\n",
            ["An <image> it is<|im_end|>"],
        ),
    },
}


@pytest.mark.parametrize("family", EXPECTED)
def test_json_lines_hold_text_and_trained_runs_and_errors(run, write_rows, family):
    code, out = run(family, write_rows(ROWS), "--json")
    lines = json_lines(out)
    assert code == 1 and [line["index"] for line in lines] == [0, 1, 2, 3]
    for index, (text, trained) in EXPECTED[family].items():
        line = lines[index]
        assert list(line) == KEYS
        assert (line["text"], line["trained"], line["cut"]) == (text, trained, 0)
        assert 0 < line["num_trained"] < line["num_tokens"] - line["num_image_tokens"]
        assert (line["num_image_tokens"] > 0, line["num_video_tokens"]) == (index == 0, 0)
    for index, named in {1: "rows.json, sample 1: image .*none.png", 3: "rows.json, sample 3: has the roles"}.items():
        assert list(lines[index]) == ["index", "error"]
        assert named.split(".*")[0] in lines[index]["error"]


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_are_the_golden_ones(run, write_rows, family):
    rows, texts = [], []
    for record in golden_records(family):
        messages = [
            {"role": m["role"], "content": [with_path(part) for part in m["content"]]} for m in record["messages"]
        ]
        rows.append({"messages": messages})
        text = record.get("documented_variant", record)["text"]
        texts.append(text.replace(*FACTS[family].rewritten))
    code, out = run(family, write_rows(rows), "--json", "--model_max_length", "20000")
    assert [line.get("text", line) for line in json_lines(out)] == texts and texts and code == 0


def with_path(part: dict) -> dict:
    paths = {"image": "red.png", "video": "clip.mp4"}
    return {"type": part["type"], "path": paths[part["type"]]} if part["type"] in paths else part


@pytest.mark.parametrize(
    "words, expected",
    [
        ("", [0, 1, 2, 3]),
        ("--index 2 0", [2, 0]),
        ("--num_rows 2", [0, 1]),
        ("--index 3 2 0 --num_rows 2", [3, 2]),
        ("--num_rows 9", [0, 1, 2, 3]),
    ],
)
def test_rows_are_chosen_in_the_order_asked_for(run, write_rows, words, expected):
    code, out = run("qwen2-vl", write_rows(ROWS), "--json", *words.split())
    assert [line["index"] for line in json_lines(out)] == expected
    assert code == (1 if {1, 3} & set(expected) else 0)


@pytest.mark.parametrize("words, named", [("--index 4", "rows 0 to 3"), ("--index -1", "-1"), ("--num_rows 0", "is 0")])
def test_a_row_outside_the_file_is_refused(tiny, write_rows, words, named):
    flags = ["--model_id", MODEL_ID["qwen2-vl"], "--model_local_path", tiny("qwen2-vl")]
    with pytest.raises(ValueError, match=named):
        preview.main([*flags, "--data_path", write_rows(ROWS), *words.split()])


def test_what_is_cut_is_counted_and_what_cannot_be_cut_is_an_error(run, write_rows):
    path = write_rows([{"conversations": turns("Hi", "word " * 200)}, {"conversations": turns("word " * 200, "Hi")}])
    whole = json_lines(run("qwen2-vl", path, "--json", "--index", "0")[1])[0]
    code, out = run("qwen2-vl", path, "--json", "--model_max_length", "100")
    cut, overlong = json_lines(out)
    assert cut["num_tokens"] == 100 and cut["cut"] == whole["num_tokens"] - 100
    assert whole["trained"][0].startswith(cut["trained"][0]) and cut["text"] == whole["text"]
    assert list(overlong) == ["index", "error"] and "--model_max_length of 100" in overlong["error"] and code == 1


def test_mask_question_tokens_false_trains_all_but_media(run, write_rows):
    code, out = run("qwen2-vl", write_rows(ROWS[:1]), "--json", "--mask_question_tokens", "False")
    (line,) = json_lines(out)
    assert line["num_trained"] == line["num_tokens"] - line["num_image_tokens"] - 1  # nothing predicts the first token
    assert "What colour is it?" in "".join(line["trained"])


@pytest.mark.parametrize("family", TAKES_VIDEO[:2])
def test_the_terminal_view_folds_media_and_marks_what_is_trained(run, write_rows, family):
    row = {"image": "red.png", "video": "clip.mp4", "conversations": turns("<image>\n<video>\nThe <image>?", "Red")}
    row["conversations"][0]["value"] = "<image>\n<video>\nWhich?"
    typed = {"messages": [{"role": "user", "content": "an <|image_pad|>"}, {"role": "assistant", "content": "No"}]}
    path = write_rows([row, typed, ROWS[1]])
    line = json_lines(run(family, path, "--json", "--index", "0")[1])[0]
    code, out = run(family, path)
    for kind in ("image", "video"):
        folded = re.findall(rf"\[{kind}: (\d+) tokens\]", out)
        assert 0 < len(folded) < 10 and sum(map(int, folded)) == line[f"num_{kind}_tokens"]
    assert f"--- row 0: {line['num_tokens']} tokens, {line['num_trained']} trained, " in out
    assert f">>{FACTS[family].decoded_space}Red{FACTS[family].end_of_turn}<<" in out
    assert "an <|image_pad|>" in out.split("--- row 1")[1]  # typed, so shown as it is
    assert "--- row 2 cannot be used\n" in out and code == 1


def test_colours_are_for_a_terminal(run, write_rows, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    _, out = run("qwen2-vl", write_rows(ROWS[:1]))
    assert "\033[32mRed<|im_end|>\033[0m" in out and "\033[36m[image: " in out and ">>" not in out


def test_the_flags_of_a_gpu_run_are_no_obstacle(run, write_rows):
    flags = ["--bf16", "True", "--tf32=True", "--use_flash_attn", "True", "--deepspeed", "nowhere.json"]
    code, out = run("qwen2-vl", write_rows(ROWS[:1]), *flags, "--json")
    assert code == 0 and json_lines(out)[0]["index"] == 0


def test_what_a_library_prints_goes_to_stderr(run, write_rows, monkeypatch):
    open_image = media.open_image
    monkeypatch.setattr(media, "open_image", lambda path: print("noise") or open_image(path))
    code, out = run("qwen2-vl", write_rows(ROWS[:1]), "--json")
    assert [line["index"] for line in json_lines(out)] == [0] and code == 0


def test_stdout_of_the_script_holds_only_the_lines(tiny, write_rows):
    words = ["--model_id", MODEL_ID["llava-1.5"], "--model_local_path", tiny("llava-1.5"), "--json"]
    command = [sys.executable, "preview.py", *words, "--data_path", write_rows(ROWS)]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert [json.loads(line)["index"] for line in done.stdout.splitlines()] == [0, 1, 2, 3]
