"""train.py with LLaVA loaders that name no unused module; with `--fsdp`, on CPUs."""

import sys

import fsdp_on_cpu

import train
from loaders.llava_1_5 import LlavaLoader


def main() -> None:
    LlavaLoader.unused_modules = lambda self, model: []
    (fsdp_on_cpu if "--fsdp" in sys.argv else train).main()
