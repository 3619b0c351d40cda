"""The web interface without a browser: its flags, its walls, and runs of a stand-in for train.py."""

import asyncio
import base64
import html
import io
import json
import os
import re
import shlex
import shutil
import signal
import socket
import threading
import time
from functools import partial
from pathlib import Path
from string import Formatter

import gradio as gr
import pandas as pd
import psutil
import pytest
import yaml
from conftest import REPO, turns
from matplotlib.figure import Figure
from PIL import Image
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

import webui
from arguments import FLAG_PARTS, parse_arguments
from evaluation.answers import stream_answer
from evaluation.verdict import TONES, Verdict
from predict import load
from reading.dataset import MultimodalDataset
from reading.first_row import columns_for, first_row
from reading.images import open_image
from reading.options import ROOT, MediaOptions
from reports import run_comparison, run_report
from supported_models import MODELS, VIDEO
from training.trainable import training_modes
from web import chat_page, form, parts, runs, runs_page, tune_page
from web.scripts import Failed

ROW = [{"conversations": turns("Hi", "Hello")}]
# Flags of a preset whose values are those of the first one, whatever a script says.
OWN_PACE = ("num_train_epochs", "eval_strategy", "eval_generate", "gradient_accumulation_steps", "eval_split")
KILL = partial(runs.stop, at_once=True)
# What train.py does to its output folder, in a second.
STAND_IN = """
import json, os, signal, sys, time
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
print(json.dumps(sys.argv[1:]), flush=True)
def stop(*_):
    end = {"step": 1, "max_steps": 9, "time": time.time(), "state": "stopped", "verdict": "by SIGTERM"}
    print(json.dumps(end), file=open(os.path.join(flags["--output_dir"], "log.jsonl"), "w"), flush=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
time.sleep(float(flags["--num_train_epochs"]))
if "--seed" in flags:
    sys.exit("Error: no such seed.")
end = {"step": 9, "max_steps": 9, "time": time.time(), "state": "finished", "verdict": "learned (all)"}
print(json.dumps(end), file=open(os.path.join(flags["--output_dir"], "log.jsonl"), "w"), flush=True)
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A root as the interface sees it, in a folder with files that are none of its business."""
    folder = tmp_path / "root"
    (folder / "data").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    for path in ("root/train.json", "root/data/more.json", "outside/secret.json"):
        (tmp_path / path).write_text(json.dumps(ROW))
    (folder / "link.json").symlink_to(tmp_path / "outside/secret.json")
    (folder / "links").symlink_to(tmp_path / "outside")
    (folder / "mixed").mkdir()
    (folder / "mixed/a.json").symlink_to(tmp_path / "outside/secret.json")
    monkeypatch.chdir(folder)
    return str(folder)


def watched(root: str, run: str | None, seen=None, ticked=(), log_scale=False) -> list:
    return runs_page.watch(root, run, [*ticked], log_scale, seen)


def explained(root: str, read=None, **given) -> tuple[str, str, dict, dict]:
    """Command, message, the button's update, and the update of each field that has one."""
    values = form.values_of([]) | given
    command, message, button, _, _, _, wanted, *changes = tune_page.explain(root, True, read, "seed", *values.values())
    assert wanted == [values[name] for name in form.SHOWN_BY]  # of which rows are shown when it changes
    found = dict(zip(form.INPUTS, changes))
    return command, message, button, {name: change for name, change in found.items() if change != gr.skip()}


def words(**flags) -> list[str]:
    flags = {"model_id": "llava-1.5-7b", "data_path": "train.json", "output_dir": "out/a"} | flags
    return runs.words_of(flags)


# ---- flags ----


def test_only_flags_that_differ_from_their_defaults_are_words():
    values = {name: runs.DECLARED[name].default for name in form.FLAGS}
    assert runs.words_of(values) == []
    shown = {name: "" if value is None else str(value) for name, value in values.items()}
    assert runs.words_of(shown) == []
    given = values | {"learning_rate": "1e-4", "bf16": True, "data_path": ["a b.json", "c.json:0.5"], "seed": 7}
    assert runs.words_of(given | {"activation_checkpointing": False}, "--lora_bias 'all' --tf32=False") == [
        *("--data_path", "a b.json", "c.json:0.5", "--learning_rate", "1e-4", "--bf16", "True", "--seed", "7"),
        *("--lora_bias", "all", "--tf32=False"),
    ]


@pytest.mark.parametrize(
    "more, message",
    [
        ("--lora_bias 'all", "No closing quotation"),
        ("run.yaml", "further flags begin with --"),
        ("--output_dir elsewhere", "--output_dir has its own field"),
        ("--output-dir=elsewhere", "--output_dir has its own field"),
    ],
)
def test_further_flags_that_are_refused(more, message):
    with pytest.raises(ValueError, match=message):
        runs.words_of({"output_dir": "out"}, more)


def test_fields_are_made_of_the_dataclasses():
    declared = {field.name: field for part in FLAG_PARTS for field in part.__dataclass_fields__.values()}
    assert len(set(form.FLAGS)) == len(form.FLAGS)
    with gr.Blocks():
        for name in form.FLAGS:
            made, field = tune_page.field(name), declared[name]
            assert made.label == name.replace("_", " ")
            assert field.metadata["help"].replace("%%", "%").startswith(made.info) and made.info
            assert made.value in (field.default, str(field.default)) or (not made.value and not field.default)


@pytest.mark.parametrize("language", form.STRATEGIES["language model"])
@pytest.mark.parametrize("projector", form.STRATEGIES["vision projector"])
@pytest.mark.parametrize("encoder", form.STRATEGIES["vision encoder"])
def test_strategies_are_what_they_are_called(encoder, projector, language, root):
    given = {"model_id": "llava-1.5-7b", "data_path": ["train.json"], "use_cpu": True}
    given |= {"vision encoder": encoder, "vision projector": projector, "language model": language}
    values = form.values_of([]) | given
    arguments = parse_arguments(made := form.words_of_form(values))
    assert form.values_of(made) == values
    modes = [name.lower() if "LoRA" not in name else "lora" for name in (encoder, projector, language)]
    assert list(training_modes(arguments).values()) == modes
    assert (arguments.lora.q_lora, arguments.lora.load_in_8bit) == ("Q-" in language, "8-bit" in language)


def test_the_command_is_one_that_a_shell_reads(root):
    given = words(data_path=["a b.json", "$(rm -rf ~)", "it's.json:0.5"], metric=["m.py:f"])
    line = runs.command_line(given, root)
    script = os.path.join(runs.OWN_FOLDER, "train.py")
    assert shlex.split(line.replace("\\\n", "")) == ["python", script, *given]
    assert shlex.split(runs.command_line(given, runs.OWN_FOLDER).replace("\\\n", ""))[1] == "train.py"


def test_wrong_values_are_told_as_train_py_tells_them(root):
    for given, message in (
        (words(learning_rate="fast"), "--learning_rate.*invalid float value: 'fast'"),
        (words(lora_r="4"), "--lora_r has no effect without --use_lora True"),
        ([*words(), "--warmup_ratio", "0.1"], "use --warmup_steps"),
        ([*words(), "--help"], "not flags of a run"),
        ([*words(), "--index", "0"], "--index"),
        (words(data_path="none.json"), "none.json does not exist"),
        (words(output_dir=""), "--output_dir is missing"),
        (words(output_dir="."), "must be 1 to 4 folders below"),
        (words(output_dir="a/b/c/d/e"), "must be 1 to 4 folders below"),
    ):
        with pytest.raises(ValueError, match=message):
            runs.check_start(given, root)


def test_the_form_says_what_is_missing_and_what_is_wrong_where_it_is(root):
    command, message, button, changes = explained(root)
    assert "Still needed: a model, data, a new output folder." in message and "error" not in message
    assert button["value"] == "Start" and [*changes] == ["seed"]  # what was wrong before is told no more
    assert (changes["seed"]["info"], changes["seed"]["elem_classes"]) == (form.help_of("seed"), [])
    given = {"model_id": "llava", "data_path": ["train.json"], "output_dir": "out"}
    command, message, _, changes = explained(root, **given)
    assert "--model_id llava" in command and "error" in message and "Did you mean" in changes["model_id"]["info"]
    _, message, _, changes = explained(root, learning_rate="fast")  # also where others are missing
    assert changes["learning_rate"] == gr.update(info="invalid float value: 'fast'", elem_classes=["wrong"])
    assert "--learning_rate: invalid" in message
    _, _, _, changes = explained(root, **given | {"model_id": "llava-1.5-7b", "lora_r": "4", "language model": "full"})
    assert "without --use_lora" in changes["lora_r"]["info"]


def test_ready_means_that_the_data_were_read(root):
    given = {"model_id": "llava-1.5-7b", "data_path": ["train.json"], "output_dir": "out"}
    seen = [(form.values_of([]) | given)[name] for name in form.SHOWN_BY]
    for read, told in [
        (None, "Reading rows of the data"),
        ((seen[1:], None), "Reading rows of the data"),
        ((seen, None), "Ready to start: the data can be read."),
        ((seen, "--data_path: broken"), "--data_path: broken"),
    ]:
        assert told in explained(root, read, **given)[1]
    os.mkdir("out")
    open("out/model.safetensors", "w").close()
    assert explained(root, (seen, None), **given)[2]["value"] == "Start over in out …"


def test_a_refusal_is_said_although_its_page_was_written(root, monkeypatch):
    given = {"model_id": "llava-1.5-7b", "data_path": ["train.json"], "output_dir": "out"}
    refusals = {"the template differs: add --chat_template family": "chat_template family", "1": "Ready to start"}
    for fault, told in refusals.items():  # 1: of rows that cannot be used, which the page shows

        def refusing(script: str, *words: str, fault: str = fault) -> str:
            Path(words[-1]).write_text("1 of 1 rows", encoding="utf-8")
            raise Failed(f"{words[-1]}: 1 of 1 rows", fault)

        monkeypatch.setattr(runs, "tool", refusing)
        page, number, read = tune_page.show_rows(root, 0, "", *(form.values_of([]) | given).values())
        assert "1 of 1 rows" in page and number == 1
        message = explained(root, read, **given)[1]
        assert told in message and "page.html" not in message


# ---- what it says ----

CHINESE = re.compile("[\u4e00-\u9fff]")


def test_all_that_the_page_says_is_in_the_table_in_both_languages():
    page, helps = parts.TABLE["page"], parts.TABLE["help"]
    for key, said in page.items():
        assert [*said] == [*parts.LANGUAGES], key
        en, zh = (sorted(name for _, name, *_ in Formatter().parse(one) if name is not None) for one in said.values())
        assert en == zh, key
    files = [*(REPO / "web").glob("*.py"), REPO / "webui.py", *(REPO / "reports/templates").glob("webui_*.html")]
    code = "".join(file.read_text() for file in files)
    assert {*re.findall(r"""\btext\(\s*["'](\w+)["']""", code)} <= {*page}
    named = {*TONES, *form.MENUS, *form.FOLDED, *form.PRESETS, *form.ENGINES, *form.STRATEGIES}
    named |= {"merged_help", "answered_help", *(way for ways in form.STRATEGIES.values() for way in ways)}
    left = {key for key in {*page} - named if f'"{key}"' not in code and f"'{key}'" not in code}
    assert left == set()  # of what it said once
    assert {*helps} == {*form.INPUTS}
    assert {name for name, said in helps.items() if "en" in said} == {*form.INPUTS} - {*form.FLAGS}
    assert all(CHINESE.search(said["zh"]) for said in helps.values())


def test_the_page_in_chinese(root, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "language", "zh")
    config = webui.make_page(root, str(tmp_path)).get_config_file()
    told = {"LoRA", "Q-LoRA", *(name.replace("_", " ") for name in form.FLAGS), "# finelmm", "True", "False"}
    of_components = [c["props"] for c in config["components"] if c["type"] not in ("state", "timer", "dataset")]
    shown = {props[key] for props in of_components for key in ("label", "info", "placeholder") if props.get(key)}
    shown |= {props.get("value") or "中" for props in of_components if props["name"] in ("button", "markdown", "html")}
    assert {said for said in shown - told if not CHINESE.search(said)} == set()
    _, message, button, _ = explained(root)
    assert "还需要：模型、数据、新的输出文件夹。" in message and button["value"] == "开始"


# ---- the form ----


def test_the_presets_are_those_of_readme_and_scripts():
    readme = (REPO / "README.md").read_text()
    block = next(block for block in readme.split("```") if "train.py --model_id" in block and "hinges" in block)
    told = dict(runs.flags_of(shlex.split(block.replace("\\\n", "")[block.index("train.py") :])[1:]))
    places = ("model_id", "data_path", "eval_data_path", "output_dir")
    first = next(iter(form.PRESETS))
    preset = dict(runs.flags_of(runs.words_of(form.PRESETS[first])))
    assert preset.pop("eval_split")  # in the place of --eval_data_path
    assert preset == {name: its for name, its in told.items() if name not in places}
    assert form.preset() == form.preset(first)
    for name, script in (("Q-LoRA", "q_lora_24gb.sh"), ("all weights", "full_8_gpus.sh")):
        text = (REPO / "example_scripts" / script).read_text()
        for flag, its in dict(runs.flags_of(runs.words_of(form.PRESETS[name]))).items():
            written = re.search(rf"^ *--{flag} (\S+)", text, re.MULTILINE)
            if flag not in OWN_PACE:
                assert (written or [0, "False"])[1] == its[0] or flag == "train_vision_projector", (name, flag)


def test_a_preset_changes_all_that_any_preset_says():
    for preset in form.PRESETS.values():
        values = form.values_of(runs.words_of(preset))
        assert form.PRESETS[form.preset_of(values)] == preset and not form.preset_of(values | {"learning_rate": "7"})
        changed = {name for name, value in form.values_of([]).items() if value != values[name]}
        assert changed <= {*form.OF_PRESETS}


@pytest.mark.parametrize(
    "line",
    [
        "--model_id auto --model_local_path a --data_path 'a b.json' c.json:0.5 --bf16 False --use_cpu True",
        "--columns question=query answer=reply image=jpg url= system=head --prompt 'What is it?'",
        "--train_vision_encoder True --use_vision_lora True --use_lora True --load_in_8bit True --lora_r 4",
        "--deepspeed mine.json --adam_beta2 0.95 --metric anls cider",
        "--eval_split 0.05 --eval_strategy steps --lora_target_modules q_proj v_proj --packing True",
    ],
)
def test_a_command_line_becomes_a_form_and_the_same_line_again(line, root):
    given = shlex.split(line)
    made = form.words_of_form(form.values_of(given))
    assert sorted(runs.flags_of(made)) == sorted(runs.flags_of(given))


def test_engines_and_devices(root):
    for engine, flags in form.ENGINES.items():
        values = form.values_of([]) | {"engine": engine, "model_id": "llava-1.5-7b"}
        made = form.words_of_form(values | {"data_path": ["train.json"]})
        runs.check_command(made, root)  # the files of the repository are not in the root
        assert dict(runs.flags_of(made)).keys() == {"model_id", "data_path", *flags}
        assert form.values_of(made)["engine"] == engine
    assert "torchrun --nproc_per_node 4 " in runs.command_line(words(), root, 4)
    assert "python " in runs.command_line(words(), root, 1)


def test_the_form_is_kept_for_every_browser_and_after_a_restart(root, tmp_path):
    assert form.kept(root) == form.preset()
    values = form.preset() | {"data_path": ["a b.json"], "devices": 2, "further flags": "--lora_bias 'al"}
    explained(root, **values)
    assert form.kept(root) == values
    tune_page.explain(root, False, None, None, *form.values_of([]).values())  # of a page that is still loading
    assert form.kept(root) == values
    for odd in ("{", "[]", '{"engine": "none"}', '{"data_path": 3}'):
        Path(form.KEPT).write_text(odd)
        assert form.kept(root) == form.preset()
    os.remove(form.KEPT)
    os.symlink(tmp_path / "outside" / "secret.json", form.KEPT)
    assert form.kept(root) == form.preset()


def test_settings_as_a_yaml_file(root):
    values = form.preset() | {"model_id": "llava-1.5-7b", "data_path": ["train.json"], "output_dir": "out/a"}
    assert "Saved: python train.py run.yaml" in tune_page.save_form(root, "run.yaml", *values.values())
    assert tune_page.load_form(root, "run.yaml") == [*values.values()]
    assert parse_arguments(["run.yaml"]).as_dict() == parse_arguments(form.words_of_form(values)).as_dict()
    for path, message in (("run.yaml", "name of a new file"), ("../run.yaml", "leads out"), ("run.txt", "new file")):
        assert message in tune_page.save_form(root, path, *values.values())
    with pytest.raises(gr.Error, match="leads out of"):
        tune_page.load_form(root, "links/run.yaml")


def test_the_settings_of_a_run_again(root):
    os.makedirs("out/a-2")
    record = {"words": [*words(seed=7), "--resume_from_checkpoint", "True"], "pid": 1, "created": 1, "started": 1}
    os.makedirs("out/a")
    runs.write_json(f"out/a/{runs.PROCESS_FILE}", record)
    *values, _ = tune_page.same_again(root, "out/a")
    assert form.words_of_form(dict(zip(form.INPUTS, values))) == words(seed=7, output_dir="out/a-3")
    os.mkdir("out/terminal")
    Path("out/terminal/args.yaml").write_text(
        yaml.safe_dump(parse_arguments(words(use_lora=True, lora_dropout=0.0)).as_dict())
    )
    *values, _ = tune_page.same_again(root, "out/terminal")
    assert dict(zip(form.INPUTS, values))["lora_dropout"] == "0.0" and "user_key" not in str(values)
    with pytest.raises(gr.Error, match="leads out of"):
        tune_page.same_again(root, "links")


def test_starting_over_a_run_asks(root, monkeypatch):
    started = []
    monkeypatch.setattr(runs, "start", lambda words, root, devices: started.append(words) or "out/a")
    given = form.values_of(words())
    *_, asked, _, _ = tune_page.start_run(root, None, *given.values())
    assert asked is None and started == [words()]
    os.makedirs("out/a")
    open("out/a/args.yaml", "w").close()  # of a run that failed before its first checkpoint
    tune_page.start_run(root, None, *given.values())
    assert started.pop() == words()
    os.mkdir("out/a/checkpoint-5")
    for before in (None, "out/b"):  # what was asked was about another folder
        message, button, asked, _, _ = tune_page.start_run(root, before, *given.values())
        assert len(started) == 1 and asked == "out/a" and "out/a contains a run" in message
    tune_page.start_run(root, asked, *given.values())
    assert started[1] == [*words(), "--overwrite_output_dir", "True"]


def test_any_model_that_is_typed_is_taken(root, tiny):
    shutil.copytree(tiny("qwen2-vl"), "mine")
    for typed, expected in {
        "qwen2-vl-7b-instruct": ("qwen2-vl-7b-instruct", ""),
        "Qwen/Qwen2-VL-7B-Instruct": ("Qwen/Qwen2-VL-7B-Instruct", ""),
        "unsloth/Qwen2.5-VL-7B-Instruct": ("qwen2.5-vl-7b-instruct", "unsloth/Qwen2.5-VL-7B-Instruct"),
        "someone/Never-Heard-Of": ("auto", "someone/Never-Heard-Of"),
        "mine": ("qwen2-vl-2b-instruct", "mine"),
        "llava": ("llava", ""),  # which train.py answers with what was meant
    }.items():
        assert form.model_of(typed) == expected
    os.symlink(tiny("qwen2-vl"), "linked")
    for outside in (tiny("qwen2-vl"), "linked", "/no/such/folder", "../root/../.."):
        with pytest.raises(ValueError, match="leads out of"):  # and not whether it is there, or what it is
            form.model_of(outside)
    assert tune_page.find_id("qwen2-vl-2b-instruct", "mine") == ("qwen2-vl-2b-instruct", "mine")
    assert tune_page.find_id("llava-1.5-7b", "mine") == ("llava-1.5-7b", "")
    found = {id for _, id in form.choices_of_models("QWEN 7b video")}
    assert found == {
        id
        for id, model in MODELS.items()
        if model.family in VIDEO and "7b" in id and "qwen" in str((id, model)).lower()
    }


def test_the_first_row_and_the_columns_that_it_needs(root):
    row = {"photo": "a.png", "what": "Why?", "reply": "So.", "id": "7"}
    Image.new("RGB", (8, 8)).save("a.png")
    for name in ("rows.csv", "rows.jsonl", "rows.parquet"):
        frame = pd.DataFrame([row])
        write = {"csv": frame.to_csv, "parquet": frame.to_parquet}
        ending = name.rpartition(".")[2]
        write[ending](name, index=False) if ending in write else Path(name).write_text(json.dumps(row))
        assert {key: str(value) for key, value in first_row(name).items()} == row, name
        shown, *menus, ignored = tune_page.show_columns(root, [name])
        assert [menu["value"] for menu in menus] == ["what", "reply", "photo", ""] and "So." in shown
        columns = [f"{name}={menu['value']}" for name, menu in zip(form.MENUS.values(), menus) if menu["value"]]
        assert MultimodalDataset(name, columns=columns).rows[0]["messages"][1]["content"][0]["text"] == "So."
    assert columns_for({"question": "a", "answer": "b"}) == columns_for(ROW[0]) == []
    for paths in ([], ["owner/name"], ["none.json"], ["link.json"], ["data"]):  # nothing is shown of what is not ours
        assert tune_page.show_columns(root, paths)[1]["value"] == ""


def test_dropped_files_are_data_or_a_folder_of_them(root, tmp_path):
    for name in ("rows.csv", "a.png"):
        (tmp_path / name).write_text(name)
    _, update = tune_page.take_files(root, [str(tmp_path / "rows.csv"), str(tmp_path / "a.png")], ["train.json"])
    kept, dropped = update["value"]
    assert kept == "train.json" and Path(dropped).read_text() == "rows.csv"
    assert Path(dropped).with_name("a.png").read_text() == "a.png" and dropped in update["choices"]


# ---- walls ----


@pytest.mark.parametrize(
    "flags",
    [
        {"data_path": "/etc/hosts"},
        {"data_path": "../outside/secret.json"},
        {"data_path": "~/secret.json"},
        {"data_path": "link.json"},
        {"data_path": "link.json:0.5"},
        {"data_path": "link.json[:10]"},
        {"data_path": "lin*.json"},
        {"data_path": "links"},
        {"data_path": "links/secret.json"},
        {"data_path": "mixed"},
        {"data_path": ["train.json", "mixed:2"]},
        {"eval_data_path": "mixed/*.json[:1]:2"},
        {"model_local_path": "/usr"},
        {"output_dir": "links/out"},
        {"output_dir": "../out"},
        {"image_folder": "links"},
        {"chat_template": "link.json"},
        {"metric": ["link.json:score"]},
        {"deepspeed": '{"zero_optimization": {"offload_param": {"nvme_path": "/tmp"}}}'},
    ],
    ids=str,
)
def test_no_path_leads_out_of_the_root(flags, root):
    with pytest.raises(ValueError, match="leads out of"):
        runs.check_start(words(**flags), root)
    with pytest.raises(ValueError, match="leads out of"):
        runs.start(words(**flags), root)
    assert not os.path.exists("out")
    (name, value), *_ = flags.items()
    if isinstance(value, str):
        with pytest.raises(ValueError, match="leads out of"):
            runs.check_start([*words(), f"--{name.replace('_', '-')}={value}"], root)


def rows_of(*references: object, kind: str = "image") -> list[dict]:
    return [{kind: [reference], "conversations": turns(f"<{kind}>", "b")} for reference in references]


def test_no_medium_of_the_data_leads_out_of_the_root(root, tmp_path, monkeypatch):
    hub = tmp_path / "hub" / "datasets--a--b"
    for folder in (tmp_path / "outside", tmp_path / "rooted", tmp_path / "root" / "data", hub / "blobs"):
        folder.mkdir(exist_ok=True, parents=True)
        Image.new("RGB", (8, 8)).save(folder / "a.png")
    os.symlink(tmp_path / "outside" / "a.png", "data/link.png")
    os.symlink("link.png", "data/chain.png")
    os.symlink(tmp_path / "outside", "data/links")
    os.symlink("a.png", "data/near.png")
    os.symlink(hub / "blobs" / "a.png", "data/blob.png")
    away = [*map(str, (tmp_path / "outside" / "a.png", tmp_path / "rooted" / "a.png", hub / "blobs" / "a.png"))]
    away += ["link.png", "chain.png", "links/a.png"]
    away = [*rows_of(*away, {"path": "link.png", "bytes": None}), *rows_of(["a.png", "link.png"], kind="video")]
    near = rows_of("a.png", "near.png", f"{root}/data/a.png", "blob.png", "deep/../a.png")
    with open("data/media.json", "w") as file:
        json.dump([*away, *near], file)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    media = MediaOptions(cache_folder=str(tmp_path / "cache"))
    assert MultimodalDataset("data/media.json", media=media).errors == {}  # on the command line all are usual
    monkeypatch.setenv(ROOT, root)
    errors = MultimodalDataset("data/media.json", media=media, check=False).errors
    assert list(errors) == [*range(len(away))] and all(f"leads out of {root}: " in error for error in errors.values())
    assert "media.json, sample 3: image[0] is 'link.png', which leads out" in errors[3]
    with pytest.raises(ValueError, match="link.json leads out of"):
        MultimodalDataset("link.json")


def test_runs_and_previews_are_told_of_the_root_and_not_of_the_password(root, monkeypatch):
    """All that they are told of is the environment."""
    monkeypatch.setenv(webui.PASSWORD, "sesame")
    monkeypatch.setenv(ROOT, "")
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    monkeypatch.setattr(webui.signal, "signal", lambda *_: None)
    monkeypatch.setattr(webui, "make_page", lambda *_: None)
    served, forked = {}, {}
    monkeypatch.setattr(webui, "serve", lambda _, args: served.update(os.environ, given=args.password, at=os.getcwd()))
    monkeypatch.setattr(webui.scripts, "start_process", lambda: forked.update(os.environ, at=os.getcwd()))
    monkeypatch.setattr(parts, "language", "en")
    webui.main(["--root", root, "--port", "0", "--language", "zh"])
    assert parts.language == "zh"
    assert (served[ROOT], served["given"], served["at"]) == (root, "sesame", root) and webui.PASSWORD not in served
    assert (forked[ROOT], forked["at"]) == (root, root) and webui.PASSWORD not in forked


@pytest.mark.parametrize("name", ["report.html", "webui.log", "log.jsonl", "args.yaml", "eval_answers", "a/deep/link"])
def test_no_link_in_an_output_folder_is_followed_out_of_the_root(name, root, tmp_path):
    os.makedirs(os.path.dirname(f"out/a/{name}"))
    open("out/a/empty", "w").close()
    os.symlink(os.path.join(root, "out", "a", "empty"), f"out/a/{name}")
    watched(root, "out/a")
    os.remove(f"out/a/{name}")
    os.symlink(tmp_path / "outside", f"out/a/{name}")
    assert "leads out of" in watched(root, "out/a")[0]
    with pytest.raises(gr.Error, match="leads out of"):
        runs_page.act(root, runs.stop, "out/a")
    for flags in ({}, {"model_local_path": "out/a"}, {"lora_weight_path": "out/a", "use_lora": True}):
        with pytest.raises(ValueError, match=f"out/a/{name} leads out of"):
            runs.start(words(**flags), root)
    with pytest.raises(ValueError, match="leads out of"):
        next(chat_page.Chat(root, str(tmp_path)).answer("out/a", [], 1))


def test_the_flags_of_a_model_are_not_read_above_the_root(root, tmp_path):
    open("args.yaml", "w").close()
    for path in (".", "../data"):
        with pytest.raises(ValueError, match="the flags of the model .*args.yaml leads out of"):
            next(chat_page.Chat(os.path.join(root, "data"), str(tmp_path)).answer(path, [], 1))


def test_a_configuration_names_no_folder_out_of_the_root(root):
    for path, is_refused in (("/tmp/offload", True), ("offload", False), ("auto", False)):
        with open("zero.json", "w") as file:
            json.dump({"zero_optimization": {"offload_optimizer": {"device": "nvme", "nvme_path": path}}}, file)
        if is_refused:
            with pytest.raises(ValueError, match="--deepspeed zero.json: /tmp/offload leads out of"):
                runs.check_command(words(deepspeed="zero.json"), root)
        else:
            runs.check_command(words(deepspeed="zero.json"), root)


@pytest.mark.parametrize("word", ["--allow_outside", "--allow-outside=True", "--trust_remote_code"])
def test_flags_that_would_open_the_walls_are_refused(word, root):
    with pytest.raises(ValueError, match="refuses it. Run the command in a terminal"):
        runs.check_start([*words(), word], root)


def test_what_lies_in_the_root_is_taken(root):
    for flags in (
        {"data_path": os.path.join(root, "train.json")},
        {"data_path": ["data", "train.json:0.5", "data/*.json[:1]", "data/../train.json"]},
        {"data_path": ["owner/name:train[:10%]:2", "owner/name"]},
        {"lora_target_modules": [r"model.language_model.layers.\d+.mlp.(up|down)_proj"], "use_lora": True},
    ):
        assert runs.check_start(words(**flags), root) == "out/a"


def test_a_file_of_the_user_is_not_run_by_the_check(root):
    with open("my.py", "w") as file:
        file.write("open('ran', 'w')\ndef score(predictions, references): return 0\n")
    given = words(eval_data_path="train.json", eval_generate="2", metric=["my.py:score"])
    runs.check_start([*given, "--metric_for_best_model", "score"], root)
    assert not os.path.exists("ran")


@pytest.mark.parametrize("host, is_local", [("127.0.0.1", 1), ("::1", 1), ("localhost", 1), ("0.0.0.0", 0), ("gpu", 0)])
def test_another_host_needs_a_password(host, is_local, root, monkeypatch):
    monkeypatch.delenv(webui.PASSWORD, raising=False)
    monkeypatch.setattr(webui.socket, "create_server", lambda *_, **__: io.BytesIO())  # this machine may have no ::1
    if not is_local:
        with pytest.raises(ValueError, match="set a password in the environment variable FINELMM_WEBUI_PASSWORD"):
            webui.check_address(webui.parse(["--host", host]))
    assert webui.is_loopback(host) == bool(is_local)
    monkeypatch.setenv(webui.PASSWORD, "sesame")
    args = webui.parse(["--host", host])
    webui.check_address(args)
    assert args.password == "sesame"


def test_wrong_passwords_wait_in_a_line(monkeypatch):
    waited = []

    async def ask() -> list[bool]:
        admit = webui.door("sesame")
        return await asyncio.gather(*(admit("me", word) for word in ("no", "sésame", "sesame", "no")))

    async def sleep(seconds: float) -> None:
        waited.append(seconds)
        await yielding(0)
        assert len(waited) == len(done) + 1  # nobody else was asked meanwhile
        done.append(seconds)

    yielding, done = asyncio.sleep, []
    monkeypatch.setattr("asyncio.sleep", sleep)
    assert asyncio.run(ask()) == [False, False, True, False] and done == [1, 1, 1]


def test_what_other_sites_send_is_refused():
    app = Starlette(routes=[Route("/", lambda _: PlainTextResponse("in"), methods=["GET", "POST"])])
    page = TestClient(webui.OwnPageOnly(app), base_url="http://here:7860")
    for headers, is_own in [
        ({}, True),  # of no browser
        ({"Origin": "http://here:7860"}, True),
        ({"Origin": "https://front.example", "Sec-Fetch-Site": "same-origin"}, True),  # by a server with TLS
        ({"Origin": "http://here:8000"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": "http://evil.example/here:7860"}, False),
        ({"Origin": "http://here:7860", "Sec-Fetch-Site": "cross-site"}, False),
    ]:
        assert page.post("/", headers=headers).status_code == (200 if is_own else 403), headers
        assert page.get("/", headers=headers).status_code == 200


def test_asking_for_a_run_that_does_not_exist_makes_nothing(root):
    os.makedirs("terminal")
    for odd in (None, "[]", "{}"):
        if odd:
            (Path("terminal") / runs.PROCESS_FILE).write_text(odd)
        before = sorted(Path().rglob("*"))
        for run in ("none", "a/b/none", "terminal"):
            for action in (runs.stop, KILL, partial(runs.resume, root=root)):
                with pytest.raises(gr.Error, match="no run in .* was started here"):
                    runs_page.act(root, action, run)
        runs_page.act(root, KILL, None)  # not confirmed
        assert sorted(Path().rglob("*")) == before


def test_kill_does_not_take_the_place_of_stop(root, monkeypatch):
    os.makedirs("out/a")
    for state, is_stopping, stop, kill, resume in [
        ("running", False, {"visible": True, "interactive": True}, False, False),
        ("running", True, {"visible": True, "interactive": False}, True, False),
        ("stopped", False, {"visible": False}, False, True),
    ]:
        monkeypatch.setattr(runs, "status", lambda _, state=state: Verdict(state))
        monkeypatch.setattr(runs, "is_alive", lambda _, state=state: state == "running")
        monkeypatch.setattr(runs, "process_record", lambda _, value=is_stopping: {"started": 0, "stopping": value})
        shown = watched(root, "out/a")[1:4]
        assert stop.items() <= shown[0].items() and [button["visible"] for button in shown[1:]] == [kill, resume]


def test_where_it_cannot_start(root):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(ValueError, match="Cannot listen on .*--port .*: Address already in use"):
            webui.check_address(webui.parse(["--port", str(taken.getsockname()[1])]))
    with pytest.raises(ValueError, match="--root .*none is not a folder"):
        webui.check_address(webui.parse(["--root", "none"]))


# ---- runs ----


@pytest.fixture
def stand_in(root, tmp_path, monkeypatch):
    """`stand_in(**flags)` starts a run of the stand-in; what is left of them is killed."""
    monkeypatch.setattr(runs, "OWN_FOLDER", str(tmp_path))
    (tmp_path / "train.py").write_text(STAND_IN)
    folders = set()

    def start(**flags) -> str:
        folder = runs.start(words(**flags), root)
        folders.add(folder)
        return folder

    yield start
    for folder in folders:
        KILL(folder)
    for thread in threading.enumerate():
        if thread.name.endswith("(reap)"):  # it writes below the folder of this test
            thread.join()


def wait_for(*states: str, folder: str = "out/a") -> None:
    end = time.monotonic() + 20
    while runs.status(folder).state not in states:
        assert time.monotonic() < end, (runs.status(folder), runs.log_tail(folder))
        time.sleep(0.02)


def wait_for_log(text: str) -> None:
    end = time.monotonic() + 20
    while text not in runs.log_tail("out/a"):
        assert time.monotonic() < end, runs.log_tail("out/a")
        time.sleep(0.02)


@pytest.mark.slow
def test_a_run_is_started_stopped_and_resumed(root, stand_in):
    folder = stand_in(num_train_epochs=60)
    record = runs.process_record(folder)
    assert runs.status(folder) == ("running", "") and os.getsid(record["pid"]) == record["pid"]
    wait_for_log("]")
    with pytest.raises(ValueError, match="a run is active in --output_dir"):
        stand_in(num_train_epochs=60)
    assert runs.find(root).runs == ["out/a"]
    runs.stop(folder)
    wait_for("stopped")
    end = time.monotonic() + 10
    while psutil.pid_exists(record["pid"]):  # a zombie would stay
        assert time.monotonic() < end
        time.sleep(0.02)
    runs.resume(folder, root)
    KILL(folder)
    wait_for("interrupted")
    runs.resume(folder, root)  # the flag is given once
    wait_for_log('"--resume_from_checkpoint", "True"]')
    first, *_, last = (json.loads(line) for line in runs.log_tail(folder).splitlines())
    assert first == words(num_train_epochs=60) and last == [*first, "--resume_from_checkpoint", "True"]


@pytest.mark.slow
def test_how_a_run_ended(root, stand_in):
    folder = stand_in(num_train_epochs=0.01)
    wait_for("finished")
    assert runs.status(folder).sentence == "learned (all)"
    stand_in(num_train_epochs=0.01, seed=3)  # the log of the run before does not count
    wait_for("failed")
    assert runs.log_tail(folder).endswith("Error: no such seed.")
    stand_in(num_train_epochs=60)
    os.kill(runs.process_record(folder)["pid"], signal.SIGKILL)
    wait_for("interrupted")
    stand_in(num_train_epochs=60)
    wait_for_log("]")
    os.kill(runs.process_record(folder)["pid"], signal.SIGTERM)  # by somebody else
    wait_for("stopped")
    stand_in(num_train_epochs=60)
    KILL(folder)
    wait_for("interrupted")


@pytest.mark.slow
def test_a_run_that_ended_while_no_interface_ran(root, stand_in):
    folder = stand_in(num_train_epochs=0.01)
    wait_for("finished")
    time.sleep(0.2)
    record = {name: value for name, value in runs.process_record(folder).items() if name != "exit_code"}
    runs.write_json(f"{folder}/{runs.PROCESS_FILE}", record)
    assert runs.status(folder).state == "finished"
    os.remove(f"{folder}/log.jsonl")
    assert runs.status(folder).state == "interrupted"
    runs.write_json(f"{folder}/{runs.PROCESS_FILE}", record | {"pid": os.getpid()})  # now another process's
    assert runs.status(folder).state == "interrupted"


@pytest.mark.slow
def test_of_pages_that_start_at_once_one_wins(root, stand_in):
    outcomes = []

    def start():
        try:
            outcomes.append(stand_in(num_train_epochs=60))
        except ValueError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=start) for _ in range(5)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert outcomes.count("out/a") == 1 and len(outcomes) == 5
    assert all("a run is active" in outcome for outcome in outcomes if outcome != "out/a")


def test_what_a_root_holds(root):
    for path in (
        *("out/a/webui_run.json", "out/a/adapter_config.json", "out/a/checkpoint-5/adapter_config.json"),
        *("out/a/checkpoint-5/args.yaml", "out/b/log.jsonl", "out/c/args.yaml", "out/c/eval/x.json"),
        *("base/config.json", ".venv/m/config.json", "a/b/c/d/config.json", "a/b/c/d/e/config.json", "data/x.parquet"),
        *(
            "data/images/1.jpg",
            "flowers/rose/1.jpg",
            "flowers/tulip/2.jpg",
            "clips/1.mp4",
            "clips/1.txt",
            "loose/1.jpg",
            "saved/data-00000-of-00001.arrow",
            "saved/dataset_info.json",
            "saved/state.json",
        ),
    ):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        open(path, "w").close()
    open("adapter_config.json", "w").close()  # the root itself is neither
    open("args.yaml", "w").close()
    for age, name in enumerate(("b", "a", "c")):
        os.utime(f"out/{name}", (1000 - age, 1000 - age))
    found = runs.find(root)
    assert found.runs == ["out/b", "out/a", "out/c"]
    assert sorted(found.models) == ["a/b/c/d", "base", "out/a", "out/a/checkpoint-5"]
    assert sorted(found.data) == [
        "adapter_config.json",
        "clips",
        "data/more.json",
        "data/x.parquet",
        "flowers",
        "link.json",
        "mixed/a.json",
        "saved",
        "train.json",
    ]


def test_a_run_that_cannot_be_read_is_listed_with_the_reason(root, tmp_path):
    for name, content in {
        "unclosed": b"model_id: [",
        "no_mapping": b"- model_id",
        "not_text": b"\xff\xfe\x00",
        "good": b"model_id: llava-1.5-7b\ndata_path: [train.json]",
    }.items():
        os.makedirs(f"out/{name}")
        Path(f"out/{name}/args.yaml").write_bytes(content)
    os.makedirs("out/linked")
    os.symlink(tmp_path / "outside/secret.json", "out/linked/args.yaml")
    Path("out/good/log.jsonl").write_text('7\n[1]\n{"loss": 3}\n' + json.dumps(logged(1, loss=0.5)))
    first, ticks, table = runs_page.list_runs(root, None)
    assert first["value"] in first["choices"] == ticks["choices"]
    for update in (ticks, *runs_page.list_runs(root, "out/good")[:2]):  # what was chosen meanwhile stays
        assert "value" not in update
    assert {*first["choices"]} == {"out/unclosed", "out/no_mapping", "out/not_text", "out/good", "out/linked"}
    rows = {row.split("</td>")[0]: row for row in table.split("<tr><td>")[1:]}
    reasons = {"unclosed": "valid YAML", "no_mapping": "a mapping", "not_text": "YAML", "linked": "leads out of"}
    for name, reason in reasons.items():
        assert "<td>unreadable</td>" in (row := rows[f"out/{name}"]) and reason in row, name
    assert "<td>interrupted</td>" in (good := rows["out/good"]) and "llava-1.5-7b" in good and "<td>0.5</td>" in good


# ---- what a run says of itself ----


def logged(step: int, **values) -> dict:
    return {"step": step, "max_steps": 100, "epoch": step / 10, "time": 1000 + 2 * step} | values


def test_curves_and_figures(tmp_path):
    lines = [logged(step, loss=1 / step, learning_rate=1e-3) for step in (1, 2, 3)]
    lines += [logged(3, eval_loss=0.5, eval_anls=0.25, eval_runtime=9.0), logged(4, loss=float("nan"))]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 5, "lo')
    log = run_comparison.read_log(str(tmp_path))
    assert len(log) == 5
    plots = {
        "loss": {"training": [(1, 1.0), (2, 0.5), (3, 1 / 3)], "evaluation": [(3, 0.5)]},
        "anls": {"evaluation": [(3, 0.25)]},
        "learning_rate": {"training": [(1, 1e-3), (2, 1e-3), (3, 1e-3)]},
    }
    assert run_comparison.curves_of_runs({"": log[:4]}) == plots
    both = run_comparison.curves_of_runs({"": log[:4], "b": log[:1]})
    assert both["loss"] == plots["loss"] | {"b, training": [(1, 1.0)]} and both["anls"] == plots["anls"]
    figures = run_comparison.figures(log)
    assert figures == {"steps": "4 of 100", "epochs": "0.4", "training loss": "nan", "evaluation loss": "0.5"} | {
        "anls": "0.25"
    }
    assert run_comparison.figures([]) == {}
    axes = Figure().subplots()
    run_report.fill_axes(axes, {"training": [(step, 1.0) for step in range(100_000)]}, {"training": "red"})
    (drawn,) = (line.get_xdata() for line in axes.lines)
    assert len(drawn) == run_report.MOST_POINTS and drawn[0] == 0 and drawn[-1] > 99_000


def test_the_log_is_shown_as_a_terminal_shows_it(tmp_path):
    (tmp_path / runs.LOG).write_text("one\n\x1b[31mtwo\x1b[0m\n 10%|#\r 50%|##\r100%|###\nlast", newline="")
    assert runs.log_tail(str(tmp_path)) == "one\ntwo\n100%|###\nlast"
    (tmp_path / runs.LOG).write_text("early\n" * 9999 + "last")
    assert runs.log_tail(str(tmp_path)) == "early\n" * (runs.SHOWN_LINES - 1) + "last"
    assert runs.log_tail(str(tmp_path / "none")) == ""


def test_held_out_answers_of_any_step_with_their_pictures_the_wrong_ones_first(root):
    for name in ("red", "blue"):
        Image.new("RGB", (8, 8), name).save(f"{name}.png")
    with open("test.json", "w") as file:
        json.dump(rows_of("red.png", "blue.png"), file)
    os.makedirs("out/a/eval_answers")
    flags = {"model_id": "llava-1.5-7b", "data_path": ["train.json"], "eval_data_path": ["test.json"]}
    Path("out/a/args.yaml").write_text(yaml.safe_dump(flags))
    for step, right in ((9, 1), (10, 0)):
        answers = [
            {"index": index, "turn": 0, "question": "<i>?", "prediction": "<b onclick=x>${1}</b>"}
            | {"reference": "{{r}}", "exact_match": index == right}
            for index in (0, 1)
        ]
        Path(f"out/a/eval_answers/step-{step}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in answers))
    log = [logged(step, eval_exact_match=0.5) for step in (9, 10, 10)]  # resumed at 9
    Path("out/a/log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    assert watched(root, "out/a")[5]["choices"] == [("10", "out/a:10"), ("9", "out/a:9")]
    for step, order in ((10, [1, 0]), (9, [0, 1])):
        shown = runs_page.show_answers(root, f"out/a:{step}")
        pictures = re.findall(r"base64,([\w+/=]+)", html.unescape(html.unescape(shown)))
        colours = [Image.open(io.BytesIO(base64.b64decode(picture))) for picture in pictures]
        assert [c.convert("RGB").getpixel((0, 0)) for c in colours] == [[(255, 0, 0), (0, 0, 255)][i] for i in order]
    shown = runs_page.show_answers(root, "out/a:10")
    assert shown.count("<") == 2 and "&amp;lt;b onclick=x&amp;gt;${1}&amp;lt;/b&amp;gt;" in shown
    assert runs_page.show_answers(root, None) == "" and "leads out of" in runs_page.show_answers(root, "links:10")
    os.remove("test.json")
    assert "test.json does not exist" in runs_page.show_answers(root, "out/a:10")


def test_what_a_page_is_told_is_text_on_it():
    assert "<b>" not in parts.notice("<b>") and 'srcdoc="&lt;p title=&#34;' in parts.framed('<p title="a">', "rows")


def test_watching_a_run(root):
    os.makedirs("out/b")
    with open("out/b/log.jsonl", "w") as file:
        file.write("".join(json.dumps(logged(step, loss=1.0 / step)) + "\n" for step in (1, 2)))
    head, *_, version = watched(root, "out/b")
    assert "step 2 of 100" in head and '<span class="badge warning">interrupted' in head
    assert watched(root, "out/b", version)[4] == gr.skip() != watched(root, "out/b", version, log_scale=True)[4]
    with open("out/b/log.jsonl", "a") as file:
        file.write(json.dumps(logged(2, state="failed", verdict="<b>no memory")) + "\n")
    head, *_ = watched(root, "out/b", version)
    assert '<span class="badge error">failed' in head and '<p class="error">&lt;b&gt;no memory</p>' in head
    for run in (None, "none", "../outside", "links"):
        head, *others = watched(root, run)
        assert re.search("No run yet|No such run|leads out of", head) and "step" not in head, run


# ---- chat ----


def test_a_chat_is_read_as_messages():
    def file(name: str) -> dict:
        return {"type": "file", "file": {"path": name}}

    failed = {"role": "assistant", "content": "No.", "metadata": {"title": "No answer"}}
    messages = [
        {"role": "user", "content": [file("a.png")]},
        {"role": "user", "content": [{"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": "Hm.", "metadata": {"title": "Thought"}},
        {"role": "assistant", "content": [{"type": "text", "text": "A cat"}], "metadata": None},
        *({"role": "user", "content": "Why?"}, failed),
        {"role": "user", "content": [file("b.mp4"), {"type": "text", "text": "Sure?"}]},
    ]
    assert chat_page.messages_of(messages) == [
        {"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A cat"}], "reasoning_content": "Hm."},
        {"role": "user", "content": [{"type": "video", "video": "b.mp4"}, {"type": "text", "text": "Sure?"}]},
    ]


def test_tuned_and_base_answer_side_by_side_each_in_its_own_conversation(monkeypatch):
    class Parrot:
        def answer(self, path, messages, most, base):
            said = [message["content"][-1]["text"] for message in messages]
            if said[-1] == "Fail" and base:
                raise ValueError("no adapter")
            yield "", "..."
            yield ("hm" if base else ""), f"{path} {most} {'base' if base else 'tuned'} {said}"

    def ask(question: str, tuned: list, base: list, beside: bool) -> list:
        asked = {"text": question, "files": ["a.png"]}
        _, *others, (_, tuned, base) = chat_page.answer(Parrot(), asked, tuned, base, "m", 5, beside)
        assert all(len(shown) == 3 for shown in others)
        return [tuned, base]

    tuned, base = ask("One", [], [], False)
    assert tuned[-1]["content"] == "m 5 tuned ['One']" and base == []
    tuned, base = ask("Two", [], [], True)
    tuned, base = ask("Three", tuned, base, True)
    assert tuned[-1]["content"] == """m 5 tuned ['Two', "m 5 tuned ['Two']", 'Three']"""
    assert base[-1]["content"] == """m 5 base ['Two', "m 5 base ['Two']", 'Three']"""
    assert [message.get("metadata") for message in base[1:3]] == [{"title": "Thought"}, None]
    question, reply, *_ = chat_page.messages_of(base)
    assert question["content"][0] == {"type": "image", "image": "a.png"} and reply["reasoning_content"] == "hm"
    tuned, base = ask("Fail", tuned, base, True)
    assert tuned[-1]["content"].startswith("m 5 tuned") and base[-1]["content"] == "no adapter"
    assert chat_page.messages_of(base)[-1]["role"] == "assistant"  # the question that failed is not asked again


def test_a_chat_shows_the_model_what_training_did(tiny, tmp_path, media_folder):
    model = tmp_path / "model"
    model.symlink_to(tiny("llava-1.5"))
    (tmp_path / "run").mkdir()
    for file in os.listdir(model):
        (tmp_path / "run" / file).hardlink_to(os.path.realpath(model / file))
    (tmp_path / "run/args.yaml").write_text(yaml.safe_dump({"model_id": "llava-1.5-7b", "image_size": "48x32"}))

    def asked(name: str) -> list[dict]:
        picture = {"type": "image", "image": str(media_folder / name)}
        return [{"role": "user", "content": [picture, {"type": "text", "text": "What is it?"}]}]

    chat = chat_page.Chat(str(tmp_path), str(media_folder))
    *_, (thought, text) = chat.answer("run", asked("tall.jpg"), 12)

    image = open_image(str(media_folder / "tall.jpg"), MediaOptions(image_size="48x32"))
    content = [{"type": "image", "image": image}, {"type": "text", "text": "What is it?"}]
    expected = "".join(stream_answer(*load(str(tmp_path / "run")), [{"role": "user", "content": content}], 12))
    assert image.size == (48, 32) and (thought, text) == ("", expected)

    loaded = chat.model
    list(chat.answer("run", asked("tall.jpg"), 1))
    assert chat.model is loaded
    for path, name, message in (
        ("model", "tall.jpg", "the model .* leads out of"),
        ("run", "/etc/hosts", "the file .* leads out of"),
        ("run", "none.png", "^image none.png does not exist"),
    ):
        with pytest.raises(ValueError, match=message):
            list(chat.answer(path, asked(name), 1))
    chat.release()
    assert chat.model is None and not chat.lock.locked()


def test_an_answer_that_nobody_waits_for_frees_the_model(tiny, tmp_path):
    chat = chat_page.Chat(os.path.dirname(tiny("llava-1.5")), str(tmp_path))
    Image.new("RGB", (64, 64)).save(tmp_path / "black.png")
    picture = {"type": "image", "image": str(tmp_path / "black.png")}
    question = {"role": "user", "content": [picture, {"type": "text", "text": "Hi"}]}
    answer = chat.answer("llava-1.5", [question], 20)
    next(answer)
    answer.close()
    assert not chat.lock.locked()
    _, (_, tuned, base) = chat_page.answer(chat, {"text": "Hi", "files": []}, [], [], None, 5, False)
    assert tuned[-1]["content"] == "Choose a model first." and tuned[-1]["metadata"]["title"] == "No answer"
    assert base == [] and chat_page.messages_of(tuned) == []
