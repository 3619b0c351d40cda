"""Make `import datasets` import Hugging Face's library of this name, and our data sets for old scripts.

In this folder, `import datasets` finds this file before the library. This file then replaces itself by the library, so
that `load_dataset`, `evaluate` and TRL work as usual. Without the library, this file gives transformers (5.23) the
class `Dataset`, and accelerate (1.15, two or more processes) the class `IterableDataset`, which they import.
"""

import os
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec

from torch.utils.data import Dataset, IterableDataset  # noqa: F401

from reading.dataset import IGNORE_INDEX, EncodedDataset, MultimodalDataset, make_dataset

FOLDER = os.path.dirname(os.path.realpath(__file__))
spec = PathFinder.find_spec(__name__, [path for path in sys.path if os.path.realpath(path) != FOLDER])
if spec and spec.loader:  # a plain folder of that name has no loader
    library = sys.modules[__name__] = module_from_spec(spec)
    spec.loader.exec_module(library)
    library.IGNORE_INDEX, library.make_dataset = IGNORE_INDEX, make_dataset
    library.MultimodalDataset, library.EncodedDataset = MultimodalDataset, EncodedDataset
else:

    def __getattr__(name: str):
        if name.startswith("_"):  # tools that inspect modules ask for these names
            raise AttributeError(name)
        raise ImportError(f"`{name}` is in Hugging Face's library `datasets`, which is missing: pip install datasets")
