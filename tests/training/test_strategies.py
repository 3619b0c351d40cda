"""The strategy matrix: ways of training on engines, as runs of train.py, on two processes or in this one.

python docs/generate.py --matrix        # run all of it, and write what it found into docs/several_gpus.md
"""

import functools
import itertools
import json

import pytest
import torch
from conftest import MODEL_ID, TAKES_VIDEO, VISION_FLAGS, logs_of, make_loader, turns
from launch import Launch, here, launch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

import merge_lora_weights
import predict
from reading.dataset import MultimodalDataset
from reading.options import MediaOptions

ARCHETYPES = ["llava-1.5", "qwen2.5-vl", "llava-onevision", "gemma-3", "llama-3.2-vision"]
LORA = ["--use_lora", True, "--lora_dropout", 0]
FSDP = ["--fsdp", True, "--fsdp_config", "fsdp_configs/fsdp2.json"]
STRATEGIES = {
    "full": VISION_FLAGS,
    "LoRA": LORA,
    "Q-LoRA": [*LORA, "--q_lora", True],
    "8-bit": [*LORA, "--load_in_8bit", True],
    "vision LoRA": [*LORA, "--train_vision_encoder", True, "--use_vision_lora", True],
    "projector": [*LORA, *VISION_FLAGS[2:]],
}
ENGINES = {
    "one process": [],
    "DDP": [],
    "ZeRO-2": ["--deepspeed", "ds_configs/zero2.json"],
    "ZeRO-3": ["--deepspeed", "ds_configs/zero3.json"],
    "FSDP2": [*FSDP, "--accelerator_config", '{"use_configured_state": true}'],
}
# accelerate 1.15 takes FSDP on accelerators only, so a script of the tests says that these are some.
SCRIPT = dict.fromkeys(ENGINES, "train") | {"FSDP2": "fsdp_on_cpu"}
# How far evaluation losses may differ, and that of the merged model. LLM.int8 rounds activations by the rows that it
# sees together, and its adapters are merged into the base that was never quantized.
TOLERANCE = {"8-bit": (5e-3, 3e-2)}
# (strategy, engine) -> what train.py says.
REFUSED = {
    ("8-bit", "ZeRO-3"): (
        "--load_in_8bit True: bitsandbytes 0.50 keeps the full 8-bit weights in addition to their ZeRO-3 shard. "
        "Use ds_configs/zero2.json, or --q_lora True."
    ),
    ("8-bit", "FSDP2"): (
        "--fsdp True and --load_in_8bit True are mutually exclusive, since 8-bit weights lose their scales when FSDP2 "
        "shards them (bitsandbytes 0.50), unlike those of --q_lora True: leave one out."
    ),
}


def rows_of(family: str) -> list[dict]:
    """A step: with two rows a process, the first has texts alone, the second images, and a video if it can."""
    seen = {"image": ["red.png", "blue.png"], "conversations": turns("<image> <image>\nWhich is blue?", "The second")}
    if family in TAKES_VIDEO:
        seen = {"video": "clip.mp4", "conversations": turns("<video>\nWhat happens?", "It gets brighter and brighter")}
    return [
        {"conversations": turns("Name a colour.", "Blue"), "system_prompt": "Be brief."},
        {"conversations": turns("Hello.", "Hi!", "What can you see?", "Nothing yet")},
        {"image": "red.png", "conversations": turns("<image>\nWhat colour is it?", "Red")},
        seen,
    ]


@pytest.fixture(scope="module")
def train_on(tiny, media_folder, tmp_path_factory):
    """`train_on(family, strategy, engine)`: (evaluation data, output folder) of four steps on four rows; made once."""

    @functools.cache
    def words_for(family: str) -> list:
        rows, words = rows_of(family), ["--model_id", MODEL_ID[family], "--model_local_path", tiny(family)]
        # Five rows for evaluation: two processes have to fill up their last batch.
        for flag, found in {"--data_path": rows, "--eval_data_path": [*rows, rows[0]]}.items():
            path = media_folder / f"strategies{flag}-{family}.json"
            path.write_text(json.dumps(found))
            words += [flag, path]
        words += ["--num_frames", 4, "--per_device_eval_batch_size", 2, "--num_train_epochs", 4, "--logging_steps", 1]
        words += ["--save_strategy", "no", "--learning_rate", 1e-3, "--train_sampling_strategy", "sequential"]
        return [*words, "--max_grad_norm", 0, "--disable_tqdm", True, "--use_cpu", True]

    @functools.cache
    def made(family: str, strategy: str, engine: str):
        out, words = tmp_path_factory.mktemp(engine.replace(" ", "-")), words_for(family)
        rows = 4 if engine == "one process" else 2
        words = [*words, *STRATEGIES[strategy], *ENGINES[engine], "--per_device_train_batch_size", rows]
        words += ["--output_dir", out]
        if engine == "one process":
            here(words)
        elif reason := REFUSED.get((strategy, engine)):
            refused = Launch(words, 2, SCRIPT[engine])
            assert any(refused.wait()) and f"Error: {reason}" in refused.output
            assert not (out / "config.json").exists() and not (out / "adapter_config.json").exists()
        else:
            launch(words, 2, SCRIPT[engine])
        return words[words.index("--eval_data_path") + 1], out

    return made


# The cells of a square in which every pair of strategy and engine, family and engine, family and strategy is met; the
# others are the rest of the cross.
PAIRWISE = {
    (ARCHETYPES[(row + column) % len(ARCHETYPES)], strategy, engine)
    for row, strategy in enumerate(STRATEGIES)
    for column, engine in enumerate(ENGINES)
}
CELLS = [
    pytest.param(
        *cell,
        id="-".join(cell),
        marks=[
            pytest.mark.cell(cell[0], ", ".join(cell[1:]), REFUSED.get(cell[1:], "passed")),
            *([] if cell in PAIRWISE else [pytest.mark.cross]),
        ],
    )
    for cell in itertools.product(ARCHETYPES, STRATEGIES, ENGINES)
]


def test_every_pair_is_met():
    axes = ARCHETYPES, STRATEGIES, ENGINES
    for first, second in itertools.combinations(range(3), 2):
        met = {(cell[first], cell[second]) for cell in PAIRWISE}
        assert met == {*itertools.product(axes[first], axes[second])}


@pytest.mark.slow
@pytest.mark.parametrize("family, strategy, engine", CELLS)
def test_strategy(train_on, tiny, family, strategy, engine, tmp_path):
    """The loss falls, is the one of a single process, and is that of the saved and of the merged model."""
    data, out = train_on(family, strategy, engine)
    if (strategy, engine) in REFUSED:
        return
    found, alone = losses(out), losses(train_on(family, strategy, "one process")[1])
    assert len(found) == 5 and all(later < earlier for earlier, later in zip(found, found[1:]))
    in_evaluation, when_merged = TOLERANCE.get(strategy, (1e-4, 1e-4))
    assert found[:-1] == pytest.approx(alone[:-1], abs=1e-4)
    assert found[-1] == pytest.approx(alone[-1], abs=in_evaluation)

    model, collator = predict.load(str(out))
    assert loss_of(model, collator, data) == pytest.approx(found[-1], abs=in_evaluation)
    if strategy == "full":
        assert shapes(out) == shapes(tiny(family))
        return
    flags = ["--load_4bit", True] if strategy == "Q-LoRA" else []
    merge_lora_weights.main(["--model_path", str(out), "--model_save_path", str(tmp_path / "merged"), *map(str, flags)])
    assert shapes(tmp_path / "merged") == shapes(tiny(family))
    merged = make_loader(family, tmp_path / "merged").load_model()
    assert loss_of(merged, collator, data) == pytest.approx(found[-1], abs=when_merged)


def losses(out) -> list[float]:
    """Of each step, and of the evaluation after the last."""
    log = logs_of(out)
    return [entry.get("loss", entry.get("eval_loss")) for entry in log if {"loss", "eval_loss"} & entry.keys()]


def loss_of(model, collator, data) -> float:
    """The mean over all labels, from rows that are never padded and logits that are never cut."""
    dataset, total, labels = MultimodalDataset(str(data), media=MediaOptions(num_frames=4)), 0.0, 0
    for i in range(len(dataset)):
        batch = collator([dataset[i]])
        targets = batch.pop("labels")[0, 1:]
        with torch.no_grad():
            logits = model.eval()(**batch).logits[0, :-1].double()
        total += cross_entropy(logits, targets, reduction="sum").item()
        labels += (targets != -100).sum().item()
    return total / labels


def shapes(folder) -> dict:
    return {name: (t.shape, t.dtype) for name, t in load_file(f"{folder}/model.safetensors").items()}
