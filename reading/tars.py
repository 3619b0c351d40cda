"""Read WebDataset shards: members of a .tar file with the same name up to the first dot form a row.

Extensions name the fields of a row, and the keys of its .json are fields too. The index stores each row's byte range.
"""

import io
import itertools
import tarfile
from array import array
from collections.abc import Iterator

import numpy as np

from reading.sources import CHUNK, PARSER, fault_of

TEXTS = ("txt", "text", "cls")


def scan(path: str) -> Iterator[tuple[int, int, object]]:
    """Yield the same as `sources.scan`. Raise a ValueError if the members of a row are not next to each other."""
    stems = array("q")  # the hashes of the rows' stems
    try:
        with tarfile.open(path, "r:") as tar:
            for stem, members in itertools.groupby(members_of(tar), lambda member: member[0]):
                members = [*members]
                (_, start, *_), (_, _, end, *_) = members[0], members[-1]
                stems.append(hash(stem))
                yield start, end - start, row_of(members)
            tar.fileobj.seek(tar.offset)  # `next` stops silently at a broken header or a second archive
            if any(block.strip(b"\0") for block in iter(lambda: tar.fileobj.read(CHUNK), b"")):
                raise tarfile.ReadError(f"it continues at byte {tar.offset:,}, but no member begins there")
    except (tarfile.TarError, OSError) as error:
        raise ValueError(f"{path} is not a readable tar file: {error}.") from error
    ordered = np.sort(stems)
    if (ordered[1:] == ordered[:-1]).any():
        _, firsts = np.unique(stems, return_index=True)
        apart = np.setdiff1d(np.arange(len(stems)), firsts)[0]
        raise ValueError(f"{path}: sample {apart} has the name of an earlier sample; pack with `tar --sort=name`.")


def members_of(tar: tarfile.TarFile) -> Iterator[tuple[str, int, int, str, bytes | None]]:
    """Yield (stem, begin, end, field, data) of each member, except folders and hidden files such as those of macOS."""
    while member := tar.next():
        tar.members.clear()  # otherwise, `tar` keeps all members in memory
        folder, _, name = member.name.rpartition("/")
        stem, _, field = name.partition(".")
        if stem and not member.isdir():
            data = tar.extractfile(member).read() if member.isreg() and not member.issparse() else None
            yield f"{folder}/{stem}", member.offset, tar.offset, field.lower(), data


def row_of(members: list[tuple]) -> dict | ValueError:
    row = {}
    for stem, _, _, field, data in members:
        try:
            found = parse_member(field, data)
            if twice := [name for name in found if name in row]:
                raise ValueError(f"gives the field `{twice[0]}` a second time")
            row |= found
        except (ValueError, RecursionError) as error:
            fault = error if type(error) is ValueError else f"is {fault_of(error)}"
            return ValueError(f"has a member {f'{stem}.{field}'.strip('./')} that {fault}")
    return row


def parse_member(field: str, data: bytes | None) -> dict:
    kind = field.rpartition(".")[2]
    if data is None:
        raise ValueError("is a link or not a regular file: pack the file itself")
    if not kind:
        raise ValueError("has no extension to name its field: remove it from the shard")
    text = data.decode() if kind in ("json", *TEXTS) else ""
    value = PARSER.decode(text) if kind == "json" else text.strip() if kind in TEXTS else data
    return value if field == "json" and isinstance(value, dict) else {field: value}


def row_in(data: bytes) -> dict | ValueError:
    """Return one row from the bytes that `scan` found."""
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        return row_of([*members_of(tar)])
