"""Hugging Face's library of this name, where it is installed, and ours (reading/dataset.py), in one module.

In this folder `import datasets` finds this file before the library, which then takes its place; so `load_dataset`,
`evaluate` and TRL work here as anywhere. Without the library, transformers and accelerate find this file all the same,
and read `Dataset` (transformers 5.23) and `IterableDataset` (accelerate 1.15, two or more processes) from it.
"""

import os
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec

from torch.utils.data import Dataset, IterableDataset  # noqa: F401

from reading.dataset import IGNORE_INDEX, EncodedDataset, MultimodalDataset, make_dataset

HERE = os.path.dirname(os.path.realpath(__file__))
spec = PathFinder.find_spec(__name__, [path for path in sys.path if os.path.realpath(path) != HERE])
if spec and spec.loader:  # a mere folder of that name has none
    library = sys.modules[__name__] = module_from_spec(spec)
    spec.loader.exec_module(library)
    library.IGNORE_INDEX, library.make_dataset = IGNORE_INDEX, make_dataset
    library.MultimodalDataset, library.EncodedDataset = MultimodalDataset, EncodedDataset
else:

    def __getattr__(name: str):
        if name.startswith("_"):  # of what looks through modules
            raise AttributeError(name)
        raise ImportError(
            f"`{name}` is of Hugging Face's library `datasets`, which is not installed: pip install datasets"
        )
