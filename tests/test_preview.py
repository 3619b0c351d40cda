"""`preview.py`: what it shows of rows, against texts written by hand, the golden records and the files' own pixels."""

import base64
import io
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from conftest import (
    CONSENT,
    FACTS,
    FAMILIES,
    MODEL_ID,
    REPO,
    TAKES_VIDEO,
    golden_records,
    replies_of,
    rows_for,
    taught,
    trained_runs,
    turns,
)
from PIL import Image
from transformers import AutoProcessor, AutoTokenizer

import preview
from reading import images
from reports import html_page

COUNTS = ["num_tokens", "num_trained", "num_image_tokens", "num_video_tokens", "cut"]
KEYS = ["index", "text", "trained", *COUNTS, "token_ids", "labels"]
# Families whose pages are looked at: media in front or in place, tiles, videos -> what stands for pixels.
SHOWN = {
    "llava-1.5": ["<image>"],
    "qwen2.5-vl": ["<|image_pad|>", "<|video_pad|>"],
    "llava-onevision": ["<image>", "<video>"],
    "gemma-3": ["<image_soft_token>"],
}
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
        flags = ["--model_id", MODEL_ID[family], "--model_local_path", tiny(family), "--data_path", path]
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


@pytest.mark.few
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


def chosen(words: str, length: int) -> list[int]:
    flags = ["--model_id", MODEL_ID["qwen2-vl"], "--data_path", "none.json", *words.split()]
    arguments, own = preview.parse_arguments(flags, extend=preview.add_flags)
    return preview.chosen(own, range(length), arguments.training.seed)[0]


def test_rows_are_chosen_in_the_order_asked_for(run, write_rows):
    for words, expected in [
        ("", [0, 1, 2, 3]),
        ("--index 2 0", [2, 0]),
        ("--num_rows 2", [0, 1]),
        ("--index 3 2 0 --num_rows 2", [3, 2]),
        ("--num_rows 9", [0, 1, 2, 3]),
    ]:
        assert chosen(words, 4) == expected
    code, out = run("qwen2-vl", write_rows(ROWS), "--json", *"--index 2 0 3 --num_rows 2".split())
    assert ([line["index"] for line in json_lines(out)], code) == ([2, 0], 0)


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
    assert list(overlong) == ["index", "error"] and "--model_max_length 100" in overlong["error"] and code == 1


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
    assert f">>{FACTS[family].prompt_space}Red{FACTS[family].end_of_turn}<<" in out
    assert "an <|image_pad|>" in out.split("--- row 1")[1]  # typed, so shown as it is
    assert "--- row 2 cannot be used\n" in out and code == 1


def test_thoughts_and_calls_are_named(run, page, write_rows):
    call = {"function": {"name": "look", "arguments": {"at": "a </think> b"}}}
    tools = [{"name": "look", "description": "Looks.", "parameters": {"type": "object", "properties": {}}}]
    called = {"role": "assistant", "reasoning": "Hm.", "content": "I look.", "tool_calls": [call]}
    rest = [{"role": "tool", "content": "x"}, {"role": "assistant", "content": "Red"}]
    rows = [
        {"tools": tools, "messages": [{"role": "user", "content": "?"}, called, *rest]},
        {"conversations": turns("?", "Red")},
    ]
    path, words = write_rows(rows), ["--template_kwargs", '{"enable_thinking": true}']
    _, out = run("qwen3.5", path, *words)
    assert ">>[thought]Hm.\n</think>\n\n[answer]I look.\n\n[call]<tool_call>\n<function=look>" in out
    assert ">>Red<|im_end|><<" in out and out.count("[thought]") == 1  # neither of the other replies has parts
    _, html = page("qwen3.5", path, *words)
    shown = html.rows[0]["trained"]
    assert shown[0].startswith("thoughtHm.") and "answerI look." in shown[0] and "call<tool_call>" in shown[0]
    assert html.rows[1]["trained"] == ["Red<|im_end|>"]


def test_the_flags_of_a_gpu_run_are_no_obstacle(run, write_rows):
    flags = ["--bf16", "True", "--tf32=True", "--use_flash_attn", "True", "--deepspeed", "nowhere.json"]
    code, out = run("qwen2-vl", write_rows(ROWS[:1]), *flags, "--json")
    assert code == 0 and json_lines(out)[0]["index"] == 0


def test_what_a_library_prints_goes_to_stderr(run, write_rows, monkeypatch):
    open_image = images.open_image
    monkeypatch.setattr(images, "open_image", lambda *of: print("noise") or open_image(*of))
    code, out = run("qwen2-vl", write_rows(ROWS[:1]), "--json")
    assert [line["index"] for line in json_lines(out)] == [0] and code == 0


@pytest.mark.slow
def test_stdout_of_the_script_holds_only_the_lines(tiny, write_rows):
    words = ["--model_id", MODEL_ID["llava-1.5"], "--model_local_path", tiny("llava-1.5"), "--json"]
    command = [sys.executable, "preview.py", *words, "--data_path", write_rows(ROWS)]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert [json.loads(line)["index"] for line in done.stdout.splitlines()] == [0, 1, 2, 3]


@pytest.mark.parametrize("family", EXPECTED)
def test_token_ids_are_those_of_the_checkpoint_s_processor(run, tiny, write_rows, media_folder, family):
    code, out = run(family, write_rows(ROWS[:1]), "--json")
    (line,) = json_lines(out)
    text, _ = EXPECTED[family][0]
    processor = AutoProcessor.from_pretrained(tiny(family))
    image = Image.open(media_folder / "red.png")
    assert line["token_ids"] == processor(text=text.removeprefix("<s>"), images=image)["input_ids"][0]


def test_what_is_cut_is_in_neither_token_ids_nor_labels(run, write_rows):
    path = write_rows([{"conversations": turns("Hi", "word " * 200)}])
    (whole,) = json_lines(run("qwen2-vl", path, "--json")[1])
    (cut,) = json_lines(run("qwen2-vl", path, "--json", "--model_max_length", "100")[1])
    assert cut["token_ids"] == whole["token_ids"][:100] and cut["labels"] == whole["labels"][:100]


# ---- which rows ----


def test_random_rows_are_drawn_by_the_seed(run, write_rows):
    first = chosen("--random 9", 60)
    assert first == sorted(set(first)) and len(first) == 9 and first != [*range(9)]
    assert first == chosen("--random 9 --seed 42", 60) != chosen("--random 9 --seed 7", 60)
    assert chosen("--random 9 --num_rows 2", 60) == first[:2]
    assert chosen("--random 900", 60) == [*range(60)]
    path = write_rows([{"conversations": turns("Hi", str(i))} for i in range(60)])
    out = run("qwen2-vl", path, "--json", "--random", "9", "--seed", "7")[1]
    assert [line["index"] for line in json_lines(out)] == chosen("--random 9 --seed 7", 60)


@pytest.mark.parametrize(
    "words, named",
    [
        ("--random 0", "--random is 0"),
        ("--random 1 --index 0", "not allowed with"),
        ("--html a.html --json", "--json and --html are mutually exclusive"),
        ("--html .", "is a folder"),
        ("--html requirements.txt", "requirements.txt exists and does not end with .html"),
        ("--num_processes 0", "--num_processes is 0"),
        ("--num_processes 2", "no effect without --check"),
        ("--html README.md/a.html", "is not a folder"),
    ],
)
def test_what_contradicts_is_refused_before_the_data_is_read(words, named):
    flags = ["--model_id", MODEL_ID["qwen2-vl"], "--data_path", "none.json", "--image_folder", str(REPO)]
    with pytest.raises(ValueError, match=named):
        preview.chosen(preview.parse_arguments([*flags, *words.split()], extend=preview.add_flags)[1], range(4), 42)
        preview.main([*flags, *words.split()])


# ---- a terminal ----


@pytest.fixture
def in_terminal(run, monkeypatch):
    """`run` with a terminal of 100 characters as stdout."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)

    def call(*words: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.stdout.isatty", lambda: True)
        return run(*words)

    return call


def test_a_terminal_gets_colours_and_the_errors(in_terminal, write_rows):
    code, out = in_terminal("qwen2-vl", write_rows(ROWS))
    assert "\033[1;4;32mtrained\033[0m" in out and "\033[1;4;32mRed<|im_end|>\033[0m" in out  # bold, underlined, green
    assert "\033[36m[image: " in out and ">>" not in out
    assert "row 1 cannot be used" in out and "none.png" in out and code == 1


def test_a_terminal_obeys_nothing_in_a_row(in_terminal, write_rows):
    _, out = in_terminal("qwen2-vl", write_rows([{"conversations": turns("[bold]\033[2J\r:red_circle:", "a\nb")}]))
    assert "[bold]\u241b[2J\u240d:red_circle:" in out and "\033[2J" not in out


def test_a_terminal_shows_what_is_cut(in_terminal, write_rows):
    _, out = in_terminal("qwen2-vl", write_rows([CUT]), "--model_max_length", "60")
    assert "\033[9;31m" in out  # struck through, red
    assert "last" in re.sub(r"\033\[[\d;]*m", "", out)


def test_plain_text_shows_what_is_cut_between_tildes(run, write_rows):
    code, out = run("qwen2-vl", write_rows([CUT, *ROWS[2:3]]), "--model_max_length", "60")
    assert re.search(r"--- row 0: 60 tokens, \d+ trained, \d+ cut\n", out)
    shown = out.split("--- row 1")[0].split("\n", 3)[3]
    assert ">>first " in shown and shown.strip().endswith("last<|im_end|>\n~~")
    kept, cut = re.fullmatch(r"(?s).*>>(.*)<<~~(.*)~~\s*", shown).groups()
    assert kept + cut == "first " + "word " * 60 + "last<|im_end|>\n"
    assert "~~" not in out.split("--- row 1")[1]


CUT = {"conversations": turns("Hi", "first " + "word " * 60 + "last")}


# ---- the page ----


class Page(HTMLParser):
    """What a browser would see: per row the texts of its parts, the pictures, and everything that could load."""

    VOID = {"meta", "link", "img", "br", "hr"}

    def __init__(self, path):
        super().__init__()
        self.rows, self.row, self.open = {}, None, []
        self.tags, self.loads, self.errors = set(), [], {}
        self.feed(path.read_text(encoding="utf-8"))
        assert not self.open

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.add(tag)
        self.loads += [value for name, value in attributes.items() if name in ("src", "href", "srcset", "data")]
        assert not [name for name in attributes if name.startswith("on")]
        if tag == "section" and attributes.get("id", "").startswith("row-"):
            self.row = self.rows[int(attributes["id"][4:])] = {"class": attributes["class"], "text": "", "tokens": []}
            self.row |= {"trained": [], "cut": [], "pictures": [], "captions": "", "ins": "", "del": ""}
        if self.row is not None and tag == "img":
            self.row["pictures"].append(attributes["src"])
        if self.row is not None and "data-token" in attributes:
            self.row["tokens"].append(attributes["data-token"])
        if ("pre", "tokens") in self.open and attributes.get("class") in ("trained", "cut"):
            self.row[attributes["class"]].append("")
        if tag not in self.VOID:
            self.open.append((tag, attributes.get("class", "")))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag
        if tag == "section":
            self.row = None

    def handle_data(self, text):
        if self.row is None:
            return
        around = {tag for tag, _ in self.open}
        if ("pre", "tokens") in self.open:
            self.row["text"] += text
            if ("mark", "trained") in self.open:
                self.row["trained"][-1] += text
            if ("s", "cut") in self.open:
                self.row["cut"][-1] += text
        elif "figcaption" in around:
            self.row["captions"] += text
        elif "pre" in around and around & {"ins", "del"}:
            self.row["ins" if "ins" in around else "del"] += text
        elif ("section", "card error") in self.open:
            self.row["text"] += text


@pytest.fixture
def page(run, tmp_path):
    """`page(family, path, *words)`: exit code and page of --html."""

    def call(family: str, path: str, *words: str) -> tuple[int, Page]:
        code, out = run(family, path, "--html", str(tmp_path / "new/page.html"), *words)
        assert re.fullmatch(r".*page\.html: \d+ of \d+ rows\n", out)
        return code, Page(tmp_path / "new/page.html")

    return call


def pixels(url: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split("base64,")[1]))))


TEXTS = [
    {"conversations": turns("你好", "图片里有两个圆")},
    {"conversations": turns("مرحبا", "توجد دائرتان")},
    {"conversations": turns("Hi 👍🏽", "👨‍👩‍👧 🦄 ok")},
    {"conversations": turns("a\nb\n\nc", "- one\n- two\n\n    indented <b>&amp;</b>", "<i>", "é  ")},
]


def count_pictures(row: dict, num_frames: int) -> int:
    images = row.get("image") or []
    parts = [part for m in row.get("messages", []) if isinstance(m["content"], list) for part in m["content"]]
    images = len([images] if isinstance(images, str) else images) + sum(part["type"] == "image" for part in parts)
    return images + num_frames * ("video" in row)


@pytest.mark.parametrize("family", SHOWN)
def test_the_page_shows_the_replies_as_trained_each_token_and_each_picture(page, run, tiny, write_rows, family):
    rows = rows_for(family) + TEXTS
    path, flags = write_rows(rows), ("--model_max_length", "4000", "--num_frames", "5")
    code, shown = page(family, path, *flags)
    lines = json_lines(run(family, path, "--json", *flags)[1])
    assert code == 0 and [*shown.rows] == [*range(len(rows))]
    facts = FACTS[family]
    tokenizer = AutoTokenizer.from_pretrained(tiny(family))
    media_ids = tokenizer.convert_tokens_to_ids(SHOWN[family])
    for row, line, card in zip(rows, lines, shown.rows.values(), strict=True):
        assert len(line["token_ids"]) == len(line["labels"]) == line["num_tokens"]
        assert all(label in (-100, token) for token, label in zip(line["token_ids"], line["labels"]))
        if row not in TEXTS:
            assert trained_runs(tokenizer, torch.tensor(line["labels"])) == taught(family, replies_of(row))
        replies = [reply.strip() if facts.trims else reply for reply in replies_of(row)]
        assert card["trained"] == [facts.prompt_space + reply + facts.end_of_turn for reply in replies]
        assert len(card["pictures"]) == count_pictures(row, num_frames=5)
        folded = re.findall(r"\[(image|video): (\d+) tokens\]", card["text"])
        for kind in ("image", "video"):
            assert sum(int(number) for name, number in folded if name == kind) == line[f"num_{kind}_tokens"]
        hints = [hint.split(" \u00b7 ") for hint in card["tokens"] if not re.match(r"\d+ tokens", hint)]
        texts = [(token, label) for token, label in zip(line["token_ids"], line["labels"]) if token not in media_ids]
        assert [int(i) for hint in hints for i in hint[0].split()] == [token for token, _ in texts]
        fates = [hint[-1] for hint in hints for _ in hint[0].split()]
        assert fates == ["not trained" if label == -100 else "trained" for _, label in texts]
    assert not shown.rows[0]["ins"] + shown.rows[0]["del"]


@pytest.mark.slow
@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in SHOWN])
def test_every_other_family_has_a_page(page, write_rows, family):
    rows, facts = rows_for(family), FACTS[family]
    code, shown = page(family, write_rows(rows), "--model_max_length", "4000")
    assert code == 0
    for row, card in zip(rows, shown.rows.values(), strict=True):
        for text, reply in zip(card["trained"], replies_of(row), strict=True):
            assert text.strip().startswith(reply + facts.end_of_turn)
            assert text.removesuffix("<|endoftext|>").rstrip().endswith(facts.end_of_turn)  # phi3-v trains both


def test_the_page_loads_nothing_and_runs_nothing(page, write_rows, media_folder):
    name = "<img src=http:evil.png onerror=a>&.png"
    Image.new("RGB", (9, 9)).save(media_folder / name)
    script = "<script>alert('x')</script></pre></section>\"' onclick=a <!-- http://example.org"
    rows = [
        {"image": name, "conversations": turns(f"<image>\n{script}", script)},
        {"image": f"none{name}", "conversations": turns("<image>\nA?", "B")},
    ]
    code, shown = page("qwen2-vl", write_rows(rows, "a<b>.json"))
    (media_folder / name).unlink()
    assert shown.tags <= {
        *("html", "head", "meta", "link", "title", "style", "body", "header", "h1", "h2", "p", "dl", "div", "dt", "dd"),
        *("mark", "span", "s", "i", "nav", "ul", "li", "a", "section", "figure", "img", "figcaption", "pre"),
    }
    assert all(url.startswith(("data:", "#row-")) for url in shown.loads)
    assert shown.rows[0]["trained"] == [script + "<|im_end|>"] and shown.rows[0]["text"].count(script) == 2
    assert len(shown.rows[0]["pictures"]) == 1
    assert shown.rows[1]["class"] == "card error" and name in shown.rows[1]["text"] and code == 1


def test_no_style_loads_anything():
    text = html_page.html_page("<title>", "")
    assert "&lt;title&gt;" in text and "default-src 'none'" in text
    style = text.split("<style>")[1].split("</style>")[0]
    assert not re.search(r"url\(|@import|@font-face|http", style)


def test_an_unusable_row_is_a_red_card(page, write_rows):
    code, shown = page("qwen2-vl", write_rows(ROWS))
    assert [card["class"] for card in shown.rows.values()] == ["card", "card error", "card", "card error"]
    assert "none.png does not exist" in shown.rows[1]["text"] and "has the roles" in shown.rows[3]["text"] and code == 1


def test_the_page_shows_what_is_cut(page, run, write_rows):
    path = write_rows([CUT])
    line = json_lines(run("qwen2-vl", path, "--json", "--model_max_length", "60")[1])[0]
    _, shown = page("qwen2-vl", path, "--model_max_length", "60")
    (card,) = shown.rows.values()
    assert "".join(card["trained"] + card["cut"]) == "first " + "word " * 60 + "last<|im_end|>\n"
    hints = [hint for hint in card["tokens"] if " \u00b7 cut, would be " in hint]
    assert sum(len(hint.split(" \u00b7 ")[0].split()) for hint in hints) == line["cut"] > 0
    assert hints[0].endswith("trained") and hints[-1].endswith("not trained")  # the line break behind the last token


@pytest.mark.parametrize("family", ["qwen2-vl", "llava-onevision", "llava-1.5"])
def test_an_exchange_that_is_cut_is_shown_with_its_picture(page, run, write_rows, family):
    first, eight = turns("<image>\nWhat?", "Red"), turns("<image>" * 8 + "\nAnd?", "Blue")
    path = write_rows([{"image": "red.png", "conversations": first}])
    limit = json_lines(run(family, path, "--json")[1])[0]["num_tokens"] + 1
    path = write_rows([{"image": ["red.png"] * 9, "conversations": first + eight}])
    _, shown = page(family, path, "--model_max_length", str(limit))
    (card,) = shown.rows.values()
    end, space = FACTS[family].end_of_turn, FACTS[family].prompt_space
    assert card["trained"] == [f"{space}Red{end}"] and len(card["pictures"]) == 9
    kept, cut = card["text"].split(f"Red{end}")
    assert kept.count("[image: ") == 1 and 1 <= cut.count("[image: ") <= 8
    assert cut.endswith(f"Blue{end}" + "\n" * (family == "qwen2-vl")) and "And?" in "".join(card["cut"])


def test_the_pictures_are_those_that_the_model_gets(page, write_rows, media_folder):
    turned = Image.new("RGB", (30, 20), "blue")
    turned.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise
    turned.save(media_folder / "turned.png", exif=exif)
    rows = [
        {"image": "turned.png", "conversations": turns("<image>\nA?", "B")},
        {"video": "clip.mp4", "conversations": turns("<video>\nA?", "B")},
    ]
    _, shown = page("qwen2-vl", write_rows(rows), "--num_frames", "4")
    (media_folder / "turned.png").unlink()
    (url,) = shown.rows[0]["pictures"]
    expected = np.full((30, 20, 3), (0, 0, 255))
    expected[0, 19] = (255, 0, 0)
    assert (pixels(url) == expected).all() and "image 1, 20 \u00d7 30" in shown.rows[0]["captions"]
    # clip.mp4: 16 grey frames at 8 a second, each 15 brighter
    greys = [pixels(url).mean() for url in shown.rows[1]["pictures"]]
    assert greys == pytest.approx([0, 75, 150, 225], abs=6)
    assert "frame 5, 0.62 s" in shown.rows[1]["captions"] and "frame 15, 1.88 s" in shown.rows[1]["captions"]


def test_a_large_picture_is_made_smaller_and_says_so():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (1000, 2000, 3), np.uint8))
    url, caption = html_page.embedded(noise, "image 1, 2000 \u00d7 1000")
    small = pixels(url)
    assert len(base64.b64decode(url.split("base64,")[1])) <= html_page.MAX_PICTURE_BYTES
    assert caption == f"image 1, 2000 \u00d7 1000 (here {small.shape[1]} \u00d7 {small.shape[0]})"
    plain, caption = html_page.embedded(Image.new("RGB", (2000, 1000), "red"), "a")
    assert pixels(plain).shape == (1000, 2000, 3) and caption == "a"


def test_a_difference_of_templates_is_shown_inline(page, tiny, write_rows, tmp_path, monkeypatch):
    altered = tmp_path / "altered"
    shutil.copytree(tiny("qwen2-vl"), altered)
    template = altered / "chat_template.jinja"
    text = template.read_text(encoding="utf-8")
    template.write_text(text.replace("a helpful assistant", "a useful assistant"), encoding="utf-8")
    assert text != template.read_text(encoding="utf-8")
    rows = [{"conversations": turns("Hi", "Ho")}, {"system_prompt": "Be brief.", "conversations": turns("Hi", "Ho")}]
    code, shown = page("qwen2-vl", write_rows(rows), "--model_local_path", str(altered))
    assert (shown.rows[0]["ins"], shown.rows[0]["del"]) == ("helpful", "useful")
    assert (shown.rows[1]["ins"], shown.rows[1]["del"]) == ("", "")  # it has a system prompt of its own
    assert code.startswith("Error: The checkpoint's chat template")  # as train.py says


@pytest.mark.parametrize("family", [*SHOWN][:2])
def test_typed_control_strings_are_no_difference(page, write_rows, family):
    row = {"conversations": turns("a </s> b <|im_end|>\nc", "<|im_start|>assistant\n</s> d", "e", "\n<end_of_turn>")}
    _, shown = page(family, write_rows([row]))
    assert shown.rows[0]["text"] and not shown.rows[0]["ins"] + shown.rows[0]["del"]


def test_rows_with_a_typed_control_token_are_counted(tiny, write_rows, capsys):
    texts = ["Hi", "a </s> b", "</ s>", "Say <s>", "<|im_end|>"]  # the last is no token of Llama's
    path = write_rows([{"conversations": turns(text, "Ho")} for text in texts])
    words = ["--model_id", "llava-1.5-7b", "--model_local_path", tiny("llava-1.5"), "--data_path", path, "--json"]
    with pytest.raises(SystemExit):
        preview.main(words)
    assert "2 of 5 rows contain a control token" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        preview.main([*words, "--index", "0", "2"])
    assert "control token" not in capsys.readouterr().err


def test_a_page_of_all_rows_has_the_first_ones(run, write_rows, tmp_path, monkeypatch):
    monkeypatch.setattr(preview, "PAGE_ROWS", 2)
    path, file = write_rows(ROWS[2:3] * 3), tmp_path / "page.html"
    for words in ("--num_rows 3", "--random 3", "--index 0 1 2"):
        assert len(chosen(f"--html a.html {words}", 3)) == 3
    for words, number in (("", 2), ("--num_rows 3", 3)):
        _, out = run("qwen2-vl", path, "--html", str(file), *words.split())
        assert out == f"{file}: {number} of 3 rows\n" and len(Page(file).rows) == number
