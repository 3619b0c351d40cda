"""predict.py: what it prints and writes, and its conversations."""

import contextlib
import io
import json
import re
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
import torch
from conftest import CONSENT, FACTS, MODEL_ID, REPO, TAKES_VIDEO, crossed_but, run, turns
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.core_model_loading import WeightRenaming

import predict
from evaluation import chat
from evaluation.answers import stream_answer


def converse(monkeypatch, capsys, lines: list[str], *flags) -> tuple[list[str], list[str]]:
    """The lines of stdout and of stderr of a chat whose input is piped."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines) + "\n"))
    capsys.readouterr()
    predict.main(["--chat", *map(str, flags)])
    printed = capsys.readouterr()
    return printed.out.splitlines(), printed.err.splitlines()


def by_transformers(folder: str, messages: list[dict]) -> str:
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    tokens = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    return processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0].strip()


def test_a_conversation_with_a_picture_is_that_of_plain_transformers(tiny, media_folder, monkeypatch, capsys):
    folder = tiny("qwen2-vl")
    messages = [{"role": "system", "content": [{"type": "text", "text": "Be brief."}]}]
    expected, image = [], {"type": "image", "image": Image.open(media_folder / "blue.png")}
    for content in ([image, {"type": "text", "text": "A colour?"}], [{"type": "text", "text": "And now?"}]):
        messages.append({"role": "user", "content": content})
        expected.append(by_transformers(folder, messages))
        messages.append({"role": "assistant", "content": [{"type": "text", "text": expected[-1]}]})
    flags = ["--model_path", folder, "--system_prompt", "Be brief.", "--max_new_tokens", "12"]
    lines = [f"/image {media_folder / 'blue.png'}", "A colour?", "", "And now?", "/quit", "Never asked"]
    out, err = converse(monkeypatch, capsys, lines, *flags)
    assert "\n".join(out) == "\n".join(expected)
    assert f"image {media_folder / 'blue.png'}, 100x50 pixels" in err

    predict.main([*flags, "--prompt", "A colour?", "--image", str(media_folder / "blue.png")])
    assert capsys.readouterr().out == expected[0] + "\n"
    monkeypatch.chdir(media_folder)
    out, _ = converse(monkeypatch, capsys, ["Hm?", "/clear", "/image 'blue.png'", "A colour?"], *flags)
    assert "\n".join(out).endswith("\n" + expected[0])


@pytest.mark.parametrize("family", crossed_but("qwen2.5-vl"))
def test_a_streamed_answer_is_that_of_a_file(tiny, family, media_folder, write_rows, tmp_path, monkeypatch, capsys):
    rows = [{"image": "red.png", "conversations": turns("<image>\nWhat is it?", "A square")}]
    lines = [f"/image {media_folder / 'red.png'}", "What is it?"]
    if family in TAKES_VIDEO:
        rows.append({"video": "clip.mp4", "conversations": turns("<video>\nWhat is it?", "A fade")})
        lines += ["/clear", f"/video {media_folder / 'clip.mp4'}", "What is it?"]
    flags = ["--model_path", tiny(family), "--max_new_tokens", "8", "--num_frames", "4", *CONSENT[family]]
    flags += ["--model_id", MODEL_ID[family]] if FACTS[family].remote_code else []
    predict.main([*flags, "--data_path", write_rows(rows), "--output_path", str(tmp_path / "a.jsonl")])
    expected = [json.loads(line)["prediction"] for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    out, _ = converse(monkeypatch, capsys, lines, *flags)
    assert "\n".join(out).strip() == "\n".join(expected).strip()


def test_what_is_refused_leaves_the_chat_alive(tiny, media_folder, monkeypatch, capsys):
    lines = ["/image nowhere.png", "/video clip.mp4", "/help", "What is it?", f"/image {media_folder / 'red.png'}"]
    lines += ["What is it?", "And now?"]
    with pytest.raises(ValueError, match="5 lines of the input could not be answered"):
        converse(monkeypatch, capsys, lines, "--model_path", tiny("paligemma"), "--max_new_tokens", "4")
    printed = capsys.readouterr()
    refusal = "Error: the conversation: PaliGemmaProcessor refuses it: PaliGemma"
    assert [line for line in printed.err.splitlines() if line.startswith("Error: ")] == [
        "Error: image nowhere.png does not exist; fix the path or --image_folder",
        "Error: the model does not accept videos",
        "Error: /help is not a command; use /image, /video, /clear or /quit",
        f"{refusal} needs at least one image; put all images before the text of the question.",
        f"{refusal} supports one exchange per sample; make each exchange a separate sample.",
    ]
    assert len(printed.out.splitlines()) == 1


def test_who_closes_an_answer_ends_its_generation(tiny):
    model, collator = predict.load(tiny("qwen2-vl"))
    steps, before = [], threading.active_count()
    model.register_forward_hook(lambda *_: steps.append(1))
    messages = [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]
    with contextlib.closing(stream_answer(model, collator, messages, 5000)) as pieces:
        next(pieces)
    assert len(steps) < 500 and threading.active_count() == before


def test_a_thought_is_no_part_of_the_printed_answer(tiny, monkeypatch, capsys):
    """It goes to standard error as it is written, and is kept as a thought."""
    _, collator = predict.load(tiny("qwen3.5"), template_kwargs='{"enable_thinking": true}')
    capsys.readouterr()
    answers = [["A", " circle.\n", "</think>", "\n\nOne", " or", " two", "\n"], ["No ", "thought"]]
    monkeypatch.setattr(chat, "stream_answer", lambda *_: (piece for piece in answers.pop(0)))
    conversation = chat.Conversation(predict.parse(["--model_path", "out", "--chat"]))
    conversation.ask(None, collator, "Count.", 8)
    printed = capsys.readouterr()
    assert (printed.err, printed.out) == ("A circle.\n", "One or two\n")
    reply = conversation.messages[-1]
    assert (reply["reasoning_content"], reply["content"][0]["text"]) == ("A circle.", "One or two")
    conversation.ask(None, collator, "Go on.", 8)
    assert capsys.readouterr().out == "No thought\n" and not conversation.messages[-1]["reasoning_content"]


def test_an_interrupted_answer_counts_as_far_as_it_came(monkeypatch, capsys):
    def interrupted(model, collator, messages, max_new_tokens):
        asked.append(messages)
        yield " One"
        yield " two"
        raise KeyboardInterrupt

    asked = []
    monkeypatch.setattr(chat, "stream_answer", interrupted)
    flags = predict.parse(["--model_path", "out", "--chat"])
    conversation = chat.Conversation(flags)
    without_thoughts = SimpleNamespace(split=lambda answer, is_whole=True: ("", answer))
    collator = SimpleNamespace(template=SimpleNamespace(thoughts_and_tools=without_thoughts))
    conversation.ask(None, collator, "Count.", 8)
    conversation.ask(None, collator, "Go on.", 8)
    assert capsys.readouterr().out == "One two\nOne two\n"
    assert [[part["text"] for message in messages for part in message["content"]] for messages in asked] == [
        ["Count."],
        ["Count.", "One two", "Go on."],
    ]


@pytest.mark.parametrize(
    "flags, named",
    [
        ([], "Choose one: --data_path with --output_path, --chat, or --prompt .none of them is given"),
        (["--chat", "--max_new_token", "5"], "--max_new_token is not a flag: .*--max_new_tokens.*predict.py --help"),
        (["--pompt=Hi"], "--pompt is not a flag: .*--prompt"),
        (["--chat", "--prompt", "Hi"], "Choose one: .* .--chat and --prompt"),
        (["--data_path", "rows.json"], "--data_path needs --output_path"),
        (["--data_path", "rows.json", "--output_path", "a.jsonl", "--image", "a.png"], "--image has no effect with"),
        (["--chat", "--output_path", "a.jsonl"], "--output_path has no effect with --chat"),
        (["--prompt", "Hi", "--batch_size=2"], "--batch_size has no effect with --prompt"),
        (["--chat", "--metric", "m.py:f"], "--metric has no effect with --chat"),
        (["--chat", "--max_new_tokens", "0"], "--max_new_tokens is 0"),
        (["--prompt", "Hi", "--image", "nowhere.png"], "image nowhere.png does not exist"),
        (["--prompt", "Hi", "--video", "clip.mp4"], "--video: .*llava-1.5 does not accept videos"),
        (
            ["--data_path", "rows.json", "--output_path", "a.jsonl", "--metric", "m.py"],
            "--metric m.py: use one of .* FILE.py:",
        ),
    ],
)
def test_wrong_combinations_are_refused(tiny, media_folder, monkeypatch, tmp_path, flags, named):
    monkeypatch.chdir(tmp_path)
    for name in ("red.png", "clip.mp4"):
        (tmp_path / name).symlink_to(media_folder / name)
    with pytest.raises(ValueError, match=named):
        predict.main(["--model_path", tiny("llava-1.5"), *flags])


def test_measures_of_the_users_and_lines_as_they_come(tiny, write_rows, tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(
        "def words(predictions, references):\n    return {'most_words': max(len(r.split()) for r in references)}\n"
    )
    rows = [{"conversations": turns("How many?", reply)} for reply in ("One", "Two or three", "")]
    out = tmp_path / "a.jsonl"
    words = ["--model_path", tiny("qwen2-vl"), "--data_path", write_rows(rows), "--output_path", str(out)]
    predict.main([*words, "--metric", f"{tmp_path / 'mine.py'}:words", "--max_new_tokens", "2"])
    assert capsys.readouterr().out.splitlines()[-3:] == ["exact match: 0.00", "anls: 0.00", "most words: 3.00"]

    with pytest.raises(ValueError, match="two metrics have the same name"):
        predict.main([*words, "--metric", *[f"{tmp_path / 'mine.py'}:words"] * 2])

    def killed(*_):
        yield {"prediction": "One", "reference": "One", "exact_match": True}
        assert json.loads(out.read_text())["prediction"] == "One"
        raise KeyboardInterrupt

    monkeypatch.setattr(predict, "generate_answers", killed)
    with pytest.raises(KeyboardInterrupt):
        predict.main(words)
    assert len(out.read_text().splitlines()) == 1


@pytest.mark.slow
def test_the_screen_of_a_checkpoint_that_samples_by_default(tiny, tmp_path):
    """Its temperature has no effect on greedy answers, and no line says so."""
    model = AutoModelForImageTextToText.from_pretrained(tiny("qwen2-vl"), dtype=torch.float32)
    for file in ("tokenizer.json", "tokenizer_config.json", "processor_config.json", "chat_template.jinja"):
        (tmp_path / file).write_bytes(open(f"{tiny('qwen2-vl')}/{file}", "rb").read())
    model.generation_config.update(do_sample=True, temperature=0.1, top_p=0.001, top_k=1)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text())["top_p"] == 0.001
    words = [sys.executable, "predict.py", "--model_path", str(tmp_path), "--prompt", "Hello", "--max_new_tokens", "4"]
    done = subprocess.run(words, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 1
    assert re.fullmatch(r"(\s*Loading weights: .*)*\s*", done.stderr)


def test_an_adapter_whose_keys_do_not_fit_is_refused(tiny, write_rows, tmp_path):
    path = write_rows([{"conversations": turns("Which?", "Red")}])
    run(tiny, "qwen2-vl", path, tmp_path, "--use_lora", "True")
    predict.load(str(tmp_path))
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({name.replace("language_model", "text_model"): tensor for name, tensor in tensors.items()}, file)
    with pytest.raises(ValueError, match="is not an adapter of .*qwen2-vl: it lacks .*language_model"):
        predict.load(str(tmp_path))
    file.write_bytes(file.read_bytes()[:99])  # of a copy that was broken off
    with pytest.raises(ValueError, match="is not an adapter of .*qwen2-vl: Error while deserializing"):
        predict.load(str(tmp_path))
    with pytest.raises(ValueError, match="--lora_weight_path .* does not fit the model: Error while deserializing"):
        run(tiny, "qwen2-vl", path, tmp_path / "more", "--use_lora", "True", "--lora_weight_path", tmp_path)


def test_an_adapter_is_loaded_by_the_names_that_it_was_saved_with(tiny, write_rows, tmp_path, monkeypatch):
    """peft 0.21 renames them by the rules for the base's files; where one fits a new name too, it loses the layer."""
    rules = [WeightRenaming("mlp.up_proj", "mlp.mlp.up_proj")]
    for name in ("get_checkpoint_conversion_mapping", "get_model_conversion_mapping"):
        monkeypatch.setattr(f"peft.utils.transformers_weight_conversion.{name}", lambda _: rules)
    path, file = write_rows([{"conversations": turns("Which?", "Red")}]), tmp_path / "out" / "adapter_model.safetensors"
    once = ["--use_lora", True, "--max_steps", 1, "--save_strategy", "steps", "--save_steps", 1]
    run(tiny, "qwen2-vl", path, tmp_path / "out", *once)
    saved, model = load_file(file), predict.load(str(tmp_path / "out"))[0]
    assert any(tensor.any() for name, tensor in saved.items() if "up_proj.lora_B" in name)
    for name, tensor in saved.items():
        assert model.get_parameter(name.replace(".weight", ".default.weight")).equal(tensor)
    run(tiny, "qwen2-vl", path, tmp_path / "out", *once, "--resume_from_checkpoint", True)  # at its end: no step
    assert all(tensor.equal(saved[name]) for name, tensor in load_file(file).items())
