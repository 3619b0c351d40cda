"""Checks of a checkpoint's files. Each file gets a checksum when it is saved, and is checked before it is loaded.

Files saved by torch also contain checksums of their tensors. Loading a pickle can run any code. So, before a pickle is
loaded without restrictions, the functions and classes that it names are listed without calling them.
"""

import os
import pickle
import zipfile
import zlib

from safetensors import safe_open
from torch.serialization import get_unsafe_globals_in_checkpoint

BLOCK, BLOCKS = 65_536, 64  # reading all of a larger file would take as long as writing it
PICKLED = (".pt", ".pth", ".bin")
# The Trainer writes this file, but nothing reads it.
UNREAD = "training_args.bin"
METADATA = "torch.distributed.checkpoint.metadata"
# Functions and classes in checkpoints of torch 2.14 (FSDP2's shards), numpy (random states) and deepspeed 0.19 (ZeRO),
# without those that torch considers safe.
KNOWN_GLOBALS = {
    *("numpy._core.multiarray._reconstruct", "numpy.dtype", "numpy.ndarray"),
    *("deepspeed.runtime.fp16.loss_scaler.LossScaler", "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler"),
    *("deepspeed.runtime.zero.config.ZeroStageEnum", "deepspeed.utils.tensor_fragment.fragment_address"),
    *(f"{METADATA}.{name}" for name in ("Metadata", "MetadataIndex", "StorageMeta", "TensorProperties")),
    *(f"{METADATA}.{name}" for name in ("BytesStorageMetadata", "ChunkStorageMetadata", "TensorStorageMetadata")),
    *(f"{METADATA}._MEM_FORMAT_ENCODING", "torch.distributed.checkpoint.filesystem._StorageInfo"),
    *("torch.Size", "torch.serialization._get_layout", "pathlib.PosixPath"),
    *(f"torch.{name}" for name in ("float64", "float32", "float16", "bfloat16", "int64", "uint8")),
}


def checksum(path: str) -> list[int]:
    """Return the size and the CRC of a file. Above 4 MiB, the CRC covers only 64 blocks, spread over the file."""
    size, found = os.path.getsize(path), 0
    with open(path, "rb") as file:
        for number in range(BLOCKS):
            if size > BLOCK * BLOCKS:
                file.seek((size - BLOCK) * number // (BLOCKS - 1))
            found = zlib.crc32(file.read(BLOCK), found)
    return [size, found]


class UntrustedCheckpoint(ValueError):
    """Raised if loading a checkpoint would run unknown code. The run then ends, and tries no older checkpoint."""


def check_file(path: str, saved: list[int] | None, is_trusted: bool) -> None:
    """Raise a ValueError if a file has changed since it was saved, or if loading it would run unknown code."""
    try:
        unknown = globals_of(path) - KNOWN_GLOBALS
        if saved and (is_trusted or not unknown):
            check_bytes(path, saved)
    except Exception as error:  # readers raise many kinds of errors for damaged bytes
        raise ValueError(f"{path} is damaged: {' '.join(str(error).split())[:200]}.") from error
    if unknown and not is_trusted:
        raise UntrustedCheckpoint(
            f"{path} would run {', '.join(sorted(unknown))} when it is loaded, which no checkpoint of torch or "
            "DeepSpeed needs. If you trust its author, add --trust_checkpoint True."
        )


def check_bytes(path: str, saved: list[int]) -> None:
    if checksum(path) != saved:
        raise ValueError("its bytes differ from those that were saved")
    if path.endswith(".safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():
                if not file.get_tensor(name).float().sum().isfinite():
                    raise ValueError(f"{name} is not finite")
    elif path.endswith(PICKLED):
        with zipfile.ZipFile(path) as archive:
            if name := archive.testzip():
                raise ValueError(f"the bytes of {name} in it differ from those that were saved")


def globals_of(path: str) -> set[str]:
    """Return the functions and classes that a pickle names, except those torch considers safe, without calling any."""
    name = os.path.basename(path)
    if name.endswith(PICKLED) and name != UNREAD:
        return set(get_unsafe_globals_in_checkpoint(path))
    if name != ".metadata":
        return set()
    with open(path, "rb") as file:
        lister = Lister(file)
        lister.load()
    return lister.names


class Lister(pickle.Unpickler):
    """Lists the names in a plain pickle, which torch's own function cannot read, and replaces each with a stub."""

    def __init__(self, file):
        super().__init__(file)
        self.names = set()

    def find_class(self, module, name):
        self.names.add(f"{module}.{name}")
        return Stub


class Stub:
    """A class that does nothing, in place of every function and class that a pickle names."""

    def __init__(self, *_):
        pass

    __setstate__ = __setitem__ = __init__
