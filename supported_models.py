"""The table of supported models: model id -> family and Hugging Face Hub path.

    python supported_models.py                  # all
    python supported_models.py qwen 7b          # models whose id, family or Hub path contains each of these words
    python supported_models.py --video          # models that accept videos

A new model size is one more row in this table, never code. The code of the family `qwen2-vl` is in
`loaders/qwen2_vl.py` and `collators/qwen2_vl.py`, which are imported only when needed. This file never imports torch.
"""

import importlib
import os
import sys
from typing import NamedTuple

from command_line import FlagParser, nearest, only_letters


class Model(NamedTuple):
    family: str
    hub_path: str | None


MODELS = {
    "llava-1.5-7b": Model("llava-1.5", "llava-hf/llava-1.5-7b-hf"),
    "llava-1.5-13b": Model("llava-1.5", "llava-hf/llava-1.5-13b-hf"),
    "llava-1.6-vicuna-7b": Model("llava-1.6", "llava-hf/llava-v1.6-vicuna-7b-hf"),
    "llava-1.6-vicuna-13b": Model("llava-1.6", "llava-hf/llava-v1.6-vicuna-13b-hf"),
    "llava-1.6-mistral-7b": Model("llava-1.6", "llava-hf/llava-v1.6-mistral-7b-hf"),
    "llava-1.6-34b": Model("llava-1.6", "llava-hf/llava-v1.6-34b-hf"),
    "llava-next-video-7b": Model("llava-next-video", "llava-hf/LLaVA-NeXT-Video-7B-hf"),
    "llava-next-video-7b-32k": Model("llava-next-video", "llava-hf/LLaVA-NeXT-Video-7B-32K-hf"),
    "llava-next-video-34b": Model("llava-next-video", "llava-hf/LLaVA-NeXT-Video-34B-hf"),
    "llava-interleave-qwen-0.5b": Model("llava-interleave", "llava-hf/llava-interleave-qwen-0.5b-hf"),
    "llava-interleave-qwen-7b": Model("llava-interleave", "llava-hf/llava-interleave-qwen-7b-hf"),
    "llava-onevision-0.5b-ov": Model("llava-onevision", "llava-hf/llava-onevision-qwen2-0.5b-ov-hf"),
    "llava-onevision-7b-ov": Model("llava-onevision", "llava-hf/llava-onevision-qwen2-7b-ov-hf"),
    "llava-onevision-72b-ov": Model("llava-onevision", "llava-hf/llava-onevision-qwen2-72b-ov-hf"),
    "qwen-vl-chat": Model("qwen-vl", "Qwen/Qwen-VL-Chat"),
    "qwen2-vl-2b-instruct": Model("qwen2-vl", "Qwen/Qwen2-VL-2B-Instruct"),
    "qwen2-vl-7b-instruct": Model("qwen2-vl", "Qwen/Qwen2-VL-7B-Instruct"),
    "qwen2-vl-72b-instruct": Model("qwen2-vl", "Qwen/Qwen2-VL-72B-Instruct"),
    "qwen2.5-vl-3b-instruct": Model("qwen2.5-vl", "Qwen/Qwen2.5-VL-3B-Instruct"),
    "qwen2.5-vl-7b-instruct": Model("qwen2.5-vl", "Qwen/Qwen2.5-VL-7B-Instruct"),
    "qwen2.5-vl-32b-instruct": Model("qwen2.5-vl", "Qwen/Qwen2.5-VL-32B-Instruct"),
    "qwen2.5-vl-72b-instruct": Model("qwen2.5-vl", "Qwen/Qwen2.5-VL-72B-Instruct"),
    "qwen3-vl-2b-instruct": Model("qwen3-vl", "Qwen/Qwen3-VL-2B-Instruct"),
    "qwen3-vl-4b-instruct": Model("qwen3-vl", "Qwen/Qwen3-VL-4B-Instruct"),
    "qwen3-vl-8b-instruct": Model("qwen3-vl", "Qwen/Qwen3-VL-8B-Instruct"),
    "qwen3-vl-32b-instruct": Model("qwen3-vl", "Qwen/Qwen3-VL-32B-Instruct"),
    "qwen3-vl-2b-thinking": Model("qwen3-vl", "Qwen/Qwen3-VL-2B-Thinking"),
    "qwen3-vl-4b-thinking": Model("qwen3-vl", "Qwen/Qwen3-VL-4B-Thinking"),
    "qwen3-vl-8b-thinking": Model("qwen3-vl", "Qwen/Qwen3-VL-8B-Thinking"),
    "qwen3-vl-32b-thinking": Model("qwen3-vl", "Qwen/Qwen3-VL-32B-Thinking"),
    "qwen3-vl-30b-a3b-instruct": Model("qwen3-vl-moe", "Qwen/Qwen3-VL-30B-A3B-Instruct"),
    "qwen3-vl-235b-a22b-instruct": Model("qwen3-vl-moe", "Qwen/Qwen3-VL-235B-A22B-Instruct"),
    "qwen3-vl-30b-a3b-thinking": Model("qwen3-vl-moe", "Qwen/Qwen3-VL-30B-A3B-Thinking"),
    "qwen3-vl-235b-a22b-thinking": Model("qwen3-vl-moe", "Qwen/Qwen3-VL-235B-A22B-Thinking"),
    "qwen3.5-0.8b": Model("qwen3.5", "Qwen/Qwen3.5-0.8B"),
    "qwen3.5-2b": Model("qwen3.5", "Qwen/Qwen3.5-2B"),
    "qwen3.5-4b": Model("qwen3.5", "Qwen/Qwen3.5-4B"),
    "qwen3.5-9b": Model("qwen3.5", "Qwen/Qwen3.5-9B"),
    "qwen3.5-27b": Model("qwen3.5", "Qwen/Qwen3.5-27B"),
    "qwen3.5-35b-a3b": Model("qwen3.5-moe", "Qwen/Qwen3.5-35B-A3B"),
    "qwen3.5-122b-a10b": Model("qwen3.5-moe", "Qwen/Qwen3.5-122B-A10B"),
    "qwen3.5-397b-a17b": Model("qwen3.5-moe", "Qwen/Qwen3.5-397B-A17B"),
    "qwen3.6-27b": Model("qwen3.5", "Qwen/Qwen3.6-27B"),
    "qwen3.6-35b-a3b": Model("qwen3.5-moe", "Qwen/Qwen3.6-35B-A3B"),
    "qwen3.8-27b": Model("qwen3.5", "Qwen/Qwen3.8-27B"),
    "phi3-v": Model("phi3-v", "microsoft/Phi-3-vision-128k-instruct"),
    "phi3.5-v": Model("phi3-v", "microsoft/Phi-3.5-vision-instruct"),
    "llama-3.2-11b-vision-instruct": Model("llama-3.2-vision", "meta-llama/Llama-3.2-11B-Vision-Instruct"),
    "llama-3.2-90b-vision-instruct": Model("llama-3.2-vision", "meta-llama/Llama-3.2-90B-Vision-Instruct"),
    "llama-4-scout-17b-16e-instruct": Model("llama4", "meta-llama/Llama-4-Scout-17B-16E-Instruct"),
    "llama-4-maverick-17b-128e-instruct": Model("llama4", "meta-llama/Llama-4-Maverick-17B-128E-Instruct"),
    "pixtral-12b": Model("pixtral", "mistral-community/pixtral-12b"),
    "mistral-small-3.1-24b-instruct-2503": Model("mistral-small-3.1", "mistralai/Mistral-Small-3.1-24B-Instruct-2503"),
    "mistral-small-3.2-24b-instruct-2506": Model("mistral-small-3.1", "mistralai/Mistral-Small-3.2-24B-Instruct-2506"),
    "ministral-3-3b-instruct-2512-bf16": Model("ministral-3", "mistralai/Ministral-3-3B-Instruct-2512-BF16"),
    "ministral-3-8b-instruct-2512-bf16": Model("ministral-3", "mistralai/Ministral-3-8B-Instruct-2512-BF16"),
    "ministral-3-14b-instruct-2512-bf16": Model("ministral-3", "mistralai/Ministral-3-14B-Instruct-2512-BF16"),
    "mistral-small-4-119b-2603-bf16": Model("mistral-small-4", "axolotl-ai-co/Mistral-Small-4-119B-2603-BF16"),
    "gemma-3-4b-it": Model("gemma-3", "google/gemma-3-4b-it"),
    "gemma-3-12b-it": Model("gemma-3", "google/gemma-3-12b-it"),
    "gemma-3-27b-it": Model("gemma-3", "google/gemma-3-27b-it"),
    "gemma-3n-e2b-it": Model("gemma-3n", "google/gemma-3n-E2B-it"),
    "gemma-3n-e4b-it": Model("gemma-3n", "google/gemma-3n-E4B-it"),
    "gemma-4-e2b-it": Model("gemma-4", "google/gemma-4-E2B-it"),
    "gemma-4-e4b-it": Model("gemma-4", "google/gemma-4-E4B-it"),
    "gemma-4-26b-a4b-it": Model("gemma-4", "google/gemma-4-26B-A4B-it"),
    "gemma-4-31b-it": Model("gemma-4", "google/gemma-4-31B-it"),
    "gemma-4-12b-it": Model("gemma-4-unified", "google/gemma-4-12B-it"),
    "paligemma-3b-pt-224": Model("paligemma", "google/paligemma-3b-pt-224"),
    "paligemma-3b-pt-448": Model("paligemma", "google/paligemma-3b-pt-448"),
    "paligemma-3b-pt-896": Model("paligemma", "google/paligemma-3b-pt-896"),
    "paligemma-3b-mix-224": Model("paligemma", "google/paligemma-3b-mix-224"),
    "paligemma-3b-mix-448": Model("paligemma", "google/paligemma-3b-mix-448"),
    "paligemma2-3b-pt-224": Model("paligemma", "google/paligemma2-3b-pt-224"),
    "paligemma2-3b-pt-448": Model("paligemma", "google/paligemma2-3b-pt-448"),
    "paligemma2-3b-pt-896": Model("paligemma", "google/paligemma2-3b-pt-896"),
    "paligemma2-3b-mix-224": Model("paligemma", "google/paligemma2-3b-mix-224"),
    "paligemma2-3b-mix-448": Model("paligemma", "google/paligemma2-3b-mix-448"),
    "paligemma2-10b-pt-224": Model("paligemma", "google/paligemma2-10b-pt-224"),
    "paligemma2-10b-pt-448": Model("paligemma", "google/paligemma2-10b-pt-448"),
    "paligemma2-10b-pt-896": Model("paligemma", "google/paligemma2-10b-pt-896"),
    "paligemma2-10b-mix-224": Model("paligemma", "google/paligemma2-10b-mix-224"),
    "paligemma2-10b-mix-448": Model("paligemma", "google/paligemma2-10b-mix-448"),
    "paligemma2-28b-pt-224": Model("paligemma", "google/paligemma2-28b-pt-224"),
    "paligemma2-28b-pt-448": Model("paligemma", "google/paligemma2-28b-pt-448"),
    "paligemma2-28b-pt-896": Model("paligemma", "google/paligemma2-28b-pt-896"),
    "paligemma2-28b-mix-224": Model("paligemma", "google/paligemma2-28b-mix-224"),
    "paligemma2-28b-mix-448": Model("paligemma", "google/paligemma2-28b-mix-448"),
    "smolvlm2-256m-video-instruct": Model("smolvlm2", "HuggingFaceTB/SmolVLM2-256M-Video-Instruct"),
    "smolvlm2-500m-video-instruct": Model("smolvlm2", "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"),
    "smolvlm2-2.2b-instruct": Model("smolvlm2", "HuggingFaceTB/SmolVLM2-2.2B-Instruct"),
    "idefics3-8b-llama3": Model("idefics3", "HuggingFaceM4/Idefics3-8B-Llama3"),
    "smolvlm-256m-instruct": Model("idefics3", "HuggingFaceTB/SmolVLM-256M-Instruct"),
    "smolvlm-500m-instruct": Model("idefics3", "HuggingFaceTB/SmolVLM-500M-Instruct"),
    "smolvlm-instruct": Model("idefics3", "HuggingFaceTB/SmolVLM-Instruct"),
    "internvl3-1b": Model("internvl3", "OpenGVLab/InternVL3-1B-hf"),
    "internvl3-2b": Model("internvl3", "OpenGVLab/InternVL3-2B-hf"),
    "internvl3-8b": Model("internvl3", "OpenGVLab/InternVL3-8B-hf"),
    "internvl3-14b": Model("internvl3", "OpenGVLab/InternVL3-14B-hf"),
    "internvl3-38b": Model("internvl3", "OpenGVLab/InternVL3-38B-hf"),
    "internvl3-78b": Model("internvl3", "OpenGVLab/InternVL3-78B-hf"),
    "internvl3.5-1b": Model("internvl3", "OpenGVLab/InternVL3_5-1B-HF"),
    "internvl3.5-2b": Model("internvl3", "OpenGVLab/InternVL3_5-2B-HF"),
    "internvl3.5-4b": Model("internvl3", "OpenGVLab/InternVL3_5-4B-HF"),
    "internvl3.5-8b": Model("internvl3", "OpenGVLab/InternVL3_5-8B-HF"),
    "internvl3.5-14b": Model("internvl3", "OpenGVLab/InternVL3_5-14B-HF"),
    "internvl3.5-38b": Model("internvl3", "OpenGVLab/InternVL3_5-38B-HF"),
    "glm-4.1v-9b-thinking": Model("glm-4.1v", "zai-org/GLM-4.1V-9B-Thinking"),
    "glm-4.6v-flash": Model("glm-4.6v", "zai-org/GLM-4.6V-Flash"),
    "glm-ocr": Model("glm-ocr", "zai-org/GLM-OCR"),
    "paddleocr-vl-1.5": Model("paddleocr-vl", "PaddlePaddle/PaddleOCR-VL-1.5"),
    "paddleocr-vl-1.6": Model("paddleocr-vl", "PaddlePaddle/PaddleOCR-VL-1.6"),
    "minicpm-v-4.6": Model("minicpm-v-4.6", "openbmb/MiniCPM-V-4.6"),
    "ovis2-1b": Model("ovis2", "thisisiron/Ovis2-1B-hf"),
    "ovis2-2b": Model("ovis2", "thisisiron/Ovis2-2B-hf"),
    "deepseek-vl-1.3b-chat": Model("deepseek-vl", "deepseek-community/deepseek-vl-1.3b-chat"),
    "lfm2-vl-450m": Model("lfm2-vl", "LiquidAI/LFM2-VL-450M"),
    "lfm2-vl-1.6b": Model("lfm2-vl", "LiquidAI/LFM2-VL-1.6B"),
    "lfm2-vl-3b": Model("lfm2-vl", "LiquidAI/LFM2-VL-3B"),
    "lfm2.5-vl-450m": Model("lfm2-vl", "LiquidAI/LFM2.5-VL-450M"),
    "lfm2.5-vl-1.6b": Model("lfm2-vl", "LiquidAI/LFM2.5-VL-1.6B"),
    "lfm2.5-vl-3b": Model("lfm2-vl", "LiquidAI/LFM2.5-VL-3B"),
    "granite-vision-3.1-2b-preview": Model("granite-vision", "ibm-granite/granite-vision-3.1-2b-preview"),
    "granite-vision-3.2-2b": Model("granite-vision", "ibm-granite/granite-vision-3.2-2b"),
}


# Families that accept videos. A test compares this list with the real processors.
VIDEO = {
    *("llava-next-video", "llava-onevision", "qwen2-vl", "qwen2.5-vl", "qwen3-vl", "qwen3-vl-moe", "qwen3.5"),
    *("qwen3.5-moe", "gemma-4", "gemma-4-unified", "smolvlm2", "internvl3", "glm-4.1v", "glm-4.6v", "glm-ocr"),
}

AUTO = "auto"  # both the model id and the family of every checkpoint that is not in the table


def families() -> list[str]:
    """Return the family ids in the order of the table."""
    return list(dict.fromkeys(model.family for model in MODELS.values()))


def media_of(family: str) -> str:
    return "images, videos" if family in VIDEO else "images"


def find_model(model_id: str) -> Model:
    """Return the row of a model, given its id or its Hub path. The row of `auto` has no Hub path.

    Raises:
        ValueError: the id is unknown. The message suggests similar ids.
    """
    by_name = MODELS | {model.hub_path: model for model in MODELS.values()} | {AUTO: Model(AUTO, None)}
    if model_id not in by_name:
        raise ValueError(
            f"--model_id {model_id!r} is not a supported model.{meant(model_id)} "
            "`python supported_models.py` lists all of them. For any other checkpoint, pass --model_id auto."
        )
    return by_name[model_id]


def meant(model_id: str) -> str:
    """Return a sentence that suggests ids similar to one that is not in the table, or "" if none is similar.

    If `model_id` is a path, such as a folder or another organisation's copy, the suggestion keeps this path. For
    `unsloth/Qwen2.5-VL-7B-Instruct`, it is `qwen2.5-vl-7b-instruct` with that path as --model_local_path.
    """
    *parents, name = model_id.rstrip("/").split("/")
    if family := next(iter(nearest(name, families(), cutoff=1)), None):
        found = [id for id, model in MODELS.items() if model.family == family]
        return f" It is a family; name one of its models: {', '.join(found)}."
    found = likely(name)
    paths = {only_letters(model.hub_path): model.hub_path for model in MODELS.values()}
    if path := paths.get(only_letters(model_id)):
        found = [path]
    elif parents:
        found = [f"--model_id {(found or [AUTO])[0]} --model_local_path {model_id}"]
    return f" Did you mean {', '.join(found)}?" if found else ""


def likely(name: str) -> list[str]:
    """Return up to three ids of the table that are most similar to `name`, the most similar first."""
    names = {model_id: model_id for model_id in MODELS}
    names |= {model.hub_path.rpartition("/")[2]: model_id for model_id, model in MODELS.items()}
    form = only_letters(name)
    beginnings = [only_letters(family) for family in families() if form.startswith(only_letters(family))]
    of_family = [name for name in names if only_letters(name).startswith(max(beginnings, key=len, default="?"))]
    of_family.sort(key=lambda name: -len(os.path.commonprefix([form, only_letters(name)])))
    found = nearest(name, names, cutoff=1) or of_family or nearest(name, names, cutoff=0.7)
    return list(dict.fromkeys(names[name] for name in found))[:3]


class Registry(dict):
    """A mapping from family ids to classes. The first `get` of a family imports its module."""

    def __init__(self, package: str):
        super().__init__()
        self.package = package

    def register(self, family: str):
        """Return a decorator that registers a class. A second class for a family raises a ValueError."""

        def decorate(cls):
            if family in self:
                raise ValueError(f"{self.package}: family {family!r} is registered twice: {self[family]} and {cls}")
            self[family] = cls
            return cls

        return decorate

    def get(self, family: str):
        if family not in self:
            importlib.import_module(f"{self.package}.{family.replace('-', '_').replace('.', '_')}")
        return self[family]


def main(words: list[str] | None = None) -> None:
    """Print the models. A terminal also gets their families and media; a pipe gets `id : Hub path` lines."""
    parser = FlagParser(description=__doc__)
    parser.add_argument("words", nargs="*", help="List only models whose id, family or Hub path contains all of these.")
    parser.add_argument("--video", action="store_true", help="List only models that accept videos.")
    args = parser.parse_args(words)
    found = {
        model_id: model
        for model_id, model in MODELS.items()
        if all(word.lower() in f"{model_id} {model.family} {model.hub_path}".lower() for word in args.words)
        and (model.family in VIDEO or not args.video)
    }
    if not found:
        raise ValueError("No model matches all words. For a checkpoint with a chat template, use --model_id auto.")
    if not sys.stdout.isatty():
        print(f"Supported models:\n  {'Model ID':<29} : HuggingFace Path\n  {'-' * 48}")
        rows = [f"  {model_id:<29} : {model.hub_path}" for model_id, model in found.items()]
    else:
        width, of_family = (max(map(len, column)) for column in zip(*((id, m.family) for id, m in found.items())))
        rows = [
            f"{model_id:<{width}}  {model.family:<{of_family}}  {media_of(model.family):<14}  {model.hub_path}"
            for model_id, model in found.items()
        ]
    print(*rows, sep="\n")
    if not args.words and not args.video:
        print(f"  {AUTO:<29} : any other image-text-to-text checkpoint with a chat template (--model_local_path)")


if __name__ == "__main__":
    from entry import cli

    cli(main)
