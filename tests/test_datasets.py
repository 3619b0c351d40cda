"""`import datasets` in the root: Hugging Face's library where it is installed, with our names; else ours alone."""

import importlib
import os
import subprocess
import sys

import pytest
import torch
from conftest import MODEL_ID, REPO, copy_code, rows_for

from reading import dataset

OURS = ("IGNORE_INDEX", "EncodedDataset", "MultimodalDataset", "make_dataset")
# With what else they need beside the packages of requirements.txt.
LIBRARIES = (
    "datasets==5.2.0",
    "evaluate==0.4.6",
    "trl==1.16.0",
    "dill==0.4.1",
    "multiprocess==0.70.19",
    "xxhash==4.1.0",
)

USER = """\
import multiprocessing
import sys

import datasets
from datasets import Dataset, EncodedDataset, IGNORE_INDEX, MultimodalDataset, load_dataset, make_dataset

ROWS = [{"text": "Name a colour. Blue"}] * 4


def work(_) -> tuple:
    import datasets

    mapped = datasets.Dataset.from_list(ROWS).map(lambda row: {"length": len(row["text"])})
    return datasets.__file__, mapped["length"][:]


if __name__ == "__main__":
    folder, checkpoint = sys.argv[1:]
    import evaluate
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    assert datasets.__file__.startswith(folder) and evaluate.__file__.startswith(folder)
    assert MultimodalDataset.__module__ == EncodedDataset.__module__ == make_dataset.__module__ == "reading.dataset"
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(work, (0,)) == work(0) == (datasets.__file__, [19] * 4)

    rows = Dataset.from_list(ROWS)
    rows.to_json(f"{folder}/rows.jsonl")
    assert load_dataset("json", data_files=f"{folder}/rows.jsonl", split="train").to_list() == ROWS

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    sizes = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes))
    before = model.lm_head.weight.clone()
    flags = dict(max_steps=1, save_strategy="no", report_to="none", use_cpu=True, bf16=False, learning_rate=1.0)
    flags["warmup_steps"] = 0
    arguments = SFTConfig(output_dir=f"{folder}/trl", **flags)
    SFTTrainer(model, arguments, train_dataset=rows, processing_class=tokenizer).train()
    assert not before.equal(model.lm_head.weight)
"""


def face(monkeypatch, *path) -> object:
    """datasets.py, imported anew with this path."""
    monkeypatch.setattr(sys, "path", [str(folder) for folder in path])
    monkeypatch.delitem(sys.modules, "datasets", raising=False)
    return importlib.import_module("datasets")


def test_without_the_library_it_is_ours(monkeypatch, tmp_path):
    (tmp_path / "plain/datasets").mkdir(parents=True)  # data of somebody's, and no package
    (tmp_path / "link").symlink_to(REPO)
    monkeypatch.chdir(REPO)
    for path in ([REPO], ["", REPO], [REPO, tmp_path / "link", "."], [REPO, tmp_path / "plain"]):
        found = face(monkeypatch, *path)
        assert os.path.samefile(found.__file__, REPO / "datasets.py")
        # What transformers and accelerate read from it.
        assert found.Dataset is torch.utils.data.Dataset and found.IterableDataset is torch.utils.data.IterableDataset
        assert all(getattr(found, name) is getattr(dataset, name) for name in OURS)
        with pytest.raises(ImportError, match="`load_dataset` is in .* missing: pip install datasets"):
            from datasets import load_dataset  # noqa: F401
        assert not hasattr(found, "_none")


@pytest.mark.slow
def test_with_the_library_it_is_both(tiny, write_rows, tmp_path):
    """The real packages, in a folder of their own behind the root on the path, as site-packages are."""
    folder, root = tmp_path / "packages", tmp_path / "root"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, *LIBRARIES]
    subprocess.run(install, check=True)
    copy_code(root)
    (root / "user.py").write_text(USER)
    environment = os.environ | {"PYTHONPATH": str(folder), "HF_HOME": str(tmp_path / "cache")}

    def run(*words) -> None:
        done = subprocess.run([sys.executable, *map(str, words)], cwd=root, env=environment, capture_output=True)
        assert done.returncode == 0, done.stderr[-3000:].decode()

    run("user.py", folder, tiny("llava-1.5"))
    flags = ["--model_id", MODEL_ID["llava-1.5"], "--model_local_path", tiny("llava-1.5"), "--use_cpu", "True"]
    flags += ["--data_path", write_rows(rows_for("llava-1.5")), "--output_dir", tmp_path / "out", "--max_steps", 1]
    run("train.py", *flags)
    assert (tmp_path / "out/model.safetensors").is_file()
