"""The table of models: its printed form, its look-up, its registry."""

import re
import subprocess
import sys

import pytest
from conftest import REPO

import supported_models
from supported_models import MODELS, Registry, families, find_model

# As the issue prints it.
HEAD = """\
Supported models:
  Model ID                      : HuggingFace Path
  ------------------------------------------------
  llava-1.5-7b                  : llava-hf/llava-1.5-7b-hf
"""
# The models that must be there.
IDS = """
llava-1.5-7b llava-1.5-13b llava-1.6-vicuna-7b llava-1.6-vicuna-13b llava-1.6-mistral-7b
llava-next-video-7b llava-next-video-7b-32k llava-next-video-34b llava-interleave-qwen-0.5b llava-interleave-qwen-7b
llava-onevision-0.5b-ov llava-onevision-7b-ov llava-onevision-72b-ov qwen-vl-chat phi3-v phi3.5-v
qwen2-vl-2b-instruct qwen2-vl-7b-instruct qwen2-vl-72b-instruct
qwen2.5-vl-3b-instruct qwen2.5-vl-7b-instruct qwen2.5-vl-32b-instruct qwen2.5-vl-72b-instruct
llama-3.2-11b-vision-instruct llama-3.2-90b-vision-instruct
llama-4-scout-17b-16e-instruct llama-4-maverick-17b-128e-instruct pixtral-12b
mistral-small-3.1-24b-instruct-2503 mistral-small-3.2-24b-instruct-2506 gemma-3-4b-it gemma-3-12b-it gemma-3-27b-it
qwen3-vl-4b-instruct smolvlm2-2.2b-instruct internvl3-8b glm-4.1v-9b-thinking
""".split()


@pytest.mark.slow
def test_the_script_prints_the_table_without_torch():
    code = (
        "import runpy, sys; runpy.run_path('supported_models.py', run_name='__main__'); "
        "sys.exit(str([name for name in ('torch', 'transformers', 'numpy', 'PIL') if name in sys.modules] or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert done.stderr.strip() == ""
    assert done.stdout.startswith(HEAD)
    rows = [line.partition(":")[::2] for line in done.stdout.splitlines()[3:]]
    assert {row[0].strip() for row in rows} >= set(IDS)
    assert all(len(row[0]) == len("  llava-1.5-7b                  ") for row in rows if len(row[0].strip()) < 30)


def test_the_list_is_filtered_and_keeps_a_space_behind_long_ids(capsys, monkeypatch):
    monkeypatch.setitem(MODELS, "x" * 30, MODELS["qwen2-vl-7b-instruct"])
    supported_models.main(["QWEN", "vl-7b"])
    rows = capsys.readouterr().out.splitlines()[3:]
    ids = ["qwen2-vl-7b-instruct", "qwen2.5-vl-7b-instruct", "x" * 30]
    assert [row.split(" : ")[0].strip() for row in rows] == ids and f"  {'x' * 30} : Qwen/Qwen2-VL-7B-Instruct" in rows
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    supported_models.main(["llava", "--video"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows if row[2:4] == ["images,", "videos"]] == [row[0] for row in rows]
    assert {row[1] for row in rows} == {"llava-next-video", "llava-onevision"}
    for word, named in (
        ("gpt-2", "No model matches all words"),
        ("--vidoe", "--vidoe is not a flag: did you mean --vi"),
    ):
        with pytest.raises(ValueError, match=named):
            supported_models.main([word])


def test_media_are_those_that_the_processors_take():
    """README's table is written from the collators."""
    rows = re.findall(r"^\| ([\w.-]+) \| \[`.* \| ([\w, ]+) \|$", (REPO / "README.md").read_text(), re.MULTILINE)
    assert {family: "videos" in media for family, media in rows} == {f: f in supported_models.VIDEO for f in families()}


@pytest.mark.parametrize(
    "model_id, family, hub_path",
    [
        ("llava-1.5-13b", "llava-1.5", "llava-hf/llava-1.5-13b-hf"),
        ("llava-onevision-0.5b-ov", "llava-onevision", "llava-hf/llava-onevision-qwen2-0.5b-ov-hf"),
        ("Qwen/Qwen2-VL-2B-Instruct", "qwen2-vl", "Qwen/Qwen2-VL-2B-Instruct"),
        ("qwen2.5-vl-32b-instruct", "qwen2.5-vl", "Qwen/Qwen2.5-VL-32B-Instruct"),
    ],
)
def test_a_model_is_found_by_its_id_and_by_its_hub_path(model_id, family, hub_path):
    assert tuple(find_model(model_id)) == (family, hub_path)


@pytest.mark.parametrize(
    "wrong, named",
    [
        ("qwen2vl-2b-instruct", "qwen2-vl-2b-instruct"),
        ("llava-1.5", "llava-1.5-7b"),
        ("LLaVA-1.5-7B", "Did you mean llava-1.5-7b?"),
        ("qwen/qwen2.5-vl-3b-instruct", "Did you mean Qwen/Qwen2.5-VL-3B-Instruct?"),
        ("gemma3", "a family; name one of its models: gemma-3-4b-it, gemma-3-12b-it, gemma-3-27b-it."),
        ("phi-3-vision-128k-instruct", "Did you mean phi3-v?"),
        ("qwen2.5-vl-4b", "Did you mean qwen2.5-vl-3b-instruct, qwen2.5-vl-7b-instruct"),
        *(
            (theirs, f"Did you mean --model_id {ours} --model_local_path {theirs}?")
            for theirs, ours in [
                ("unsloth/Qwen2.5-VL-7B-Instruct-bnb-4bit", "qwen2.5-vl-7b-instruct"),
                ("mistralai/Pixtral-12B-2409", "pixtral-12b"),
                ("Qwen/Qwen2-VL-7B", "qwen2-vl-7b-instruct"),
                ("google/gemma-3-4b-pt", "gemma-3-4b-it"),
                ("OpenGVLab/InternVL3-8B", "internvl3-8b"),
                ("./runs/SmolVLM2-500M-mine", "smolvlm2-500m-video-instruct"),
                ("someone/zzz", "auto"),
            ]
        ),
        ("zzz", "python supported_models.py"),
    ],
)
def test_an_unknown_id_names_the_nearest(wrong, named):
    with pytest.raises(ValueError, match="--model_id") as caught:
        find_model(wrong)
    assert named in str(caught.value)


def test_a_family_is_registered_once():
    registry = Registry("collators")
    registry.register("a")(int)
    with pytest.raises(ValueError, match="registered twice"):
        registry.register("a")(str)
