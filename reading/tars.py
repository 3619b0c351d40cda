"""WebDataset's shards: the members of a .tar file whose names are alike up to their first dot are a row.

    shard/0001.jpg  shard/0001.txt  shard/0002.jpg  shard/0002.json

The endings are the names of the fields; what the .json holds are fields too. Nothing is unpacked: the index keeps where
the members of a row begin and end.
"""

import io
import itertools
import tarfile
from array import array
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from reading.sources import CHUNK, PARSER, fault_of

TEXTS = ("txt", "text", "cls")


class Member(NamedTuple):
    start: int  # of its header, in the file
    end: int
    stem: str
    field: str
    data: bytes | None  # of what is no plain file


def scan(path: str) -> Iterator[tuple[int, int, object]]:
    """As `sources.scan`.

    Raises:
        ValueError: the file is broken, or the members of one row are apart.
    """
    stems = array("q")  # their hashes
    try:
        with tarfile.open(path, "r:") as tar:
            for stem, members in itertools.groupby(members_of(tar), lambda member: member.stem):
                members = [*members]
                stems.append(hash(stem))
                yield members[0].start, members[-1].end - members[0].start, row_of(members)
            tar.fileobj.seek(tar.offset)  # which stops at a broken header, and at the end of the first of two archives
            if any(block.strip(b"\0") for block in iter(lambda: tar.fileobj.read(CHUNK), b"")):
                raise tarfile.ReadError(f"no member begins at byte {tar.offset:,}, and yet it goes on there")
    except tarfile.TarError as error:
        raise ValueError(f"{path} is not a readable tar file: {error}.") from error
    order = np.argsort(stems, kind="stable")
    if len(twice := np.flatnonzero(np.diff(np.take(stems, order)) == 0)):
        first, second = order[twice[0] : twice[0] + 2]
        raise ValueError(
            f"{path}: samples {first} and {second} have one name, whose members must be next to each other: pack them "
            "by `tar --sort=name`."
        )


def members_of(tar: tarfile.TarFile) -> Iterator[Member]:
    """Those that are no folder and not hidden, as what a Mac adds is."""
    while member := tar.next():
        tar.members.clear()  # where it would keep all of them
        folder, _, name = member.name.rpartition("/")
        stem, _, field = name.partition(".")
        if stem and not member.isdir():
            data = tar.extractfile(member).read() if member.isreg() and not member.issparse() else None
            yield Member(member.offset, tar.offset, f"{folder}/{stem}", field.lower(), data)


def row_of(members: list[Member]) -> dict | ValueError:
    row = {}
    for member in members:
        try:
            value = value_of(member)
            found = value if member.field == "json" and isinstance(value, dict) else {member.field: value}
            if twice := [name for name in found if name in row]:
                raise ValueError(f"gives the field `{twice[0]}`, as another of its name does")
            row |= found
        except (ValueError, RecursionError) as error:
            fault = error if type(error) is ValueError else f"is {fault_of(error)}"
            return ValueError(f"has a member {f'{member.stem}.{member.field}'.strip('./')} that {fault}")
    return row


def value_of(member: Member) -> object:
    kind = member.field.rpartition(".")[2]
    if member.data is None:
        raise ValueError("is a link or no plain file: pack the file itself")
    if not kind:
        raise ValueError("has no ending, which would be the name of its field: leave it out of the shard")
    if kind == "json":
        return PARSER.decode(member.data.decode())
    return member.data.decode().strip() if kind in TEXTS else member.data


def read_row(path: str, offset: int, length: int) -> object:
    """One row, by what `scan` said of it."""
    with open(path, "rb", buffering=0) as file:
        file.seek(offset)
        data = io.BytesIO(file.read(length))
    with tarfile.open(fileobj=data, mode="r:") as tar:
        return row_of([*members_of(tar)])
