"""Folders of pictures or clips without a data file: classes as folders, or captions in .txt files of the same stem."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from reading.references import kind_by_name
from reading.sources import refuse


def paths_below(folder: str) -> list[str]:
    """The media files and texts of a folder and those in it, relative to it, sorted; without what is hidden."""
    found = []
    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if links := [name for name in folders if os.path.islink(os.path.join(parent, name))]:
            raise ValueError(f"{os.path.join(parent, links[0])} is a link to a folder: give it as a separate path.")
        kept = [
            name for name in files if not name.startswith(".") and (kind_by_name(name) or name.lower().endswith(".txt"))
        ]
        found += [os.path.relpath(os.path.join(parent, name), folder) for name in kept]
    return sorted(found)


def state_of_folder(folder: str) -> list[int]:
    """A state that changes when a file is added or removed, or a text is rewritten."""
    names, found = paths_below(folder), hashlib.sha256()
    for name in names:
        state = None if kind_by_name(name) else os.stat(os.path.join(folder, name))
        found.update(repr([name, state and (state.st_size, state.st_mtime_ns)]).encode())
    return [len(names), int.from_bytes(found.digest()[:8])]


def rows_in(folder: str, prompt: str | None) -> Iterator[dict[str, str]]:
    """A row of each medium; a ValueError names one that has neither class nor caption, and a caption without one."""
    names = paths_below(folder)
    media = {name: os.path.splitext(name)[0] for name in names if kind_by_name(name)}  # -> stem
    texts = {os.path.splitext(name)[0]: name for name in names if not kind_by_name(name)}
    # A text in the folder of a picture, or of its name: labels/1.txt next to images/1.jpg is none, and refused below.
    has_captions = any(
        {*map(part, media.values())} & {*map(part, texts)} for part in (os.path.dirname, os.path.basename)
    )
    if prompt is None:
        what, ask = ("captions", "Describe the picture.") if has_captions else ("classes", "What is in the picture?")
        raise ValueError(f'{folder} holds {what} and no question: add --prompt "{ask}", or your own question.')
    alone = [name for name in media if media[name] not in texts]
    alone += [texts[stem] for stem in sorted(texts.keys() - {*media.values()})]
    if alone and has_captions:
        raise ValueError(
            f"{folder}: files without a partner: {', '.join(alone[:5])}{', ...' if alone[5:] else ''} ({len(alone):,} "
            "in all). Each picture NAME.jpg needs a caption NAME.txt next to it, and vice versa: add what is missing, "
            "or move these elsewhere."
        )
    for name, stem in media.items():
        answer = os.path.dirname(name)
        if has_captions:
            path = os.path.join(folder, texts[stem])
            try:
                answer = Path(path).read_text(encoding="utf-8-sig").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise ValueError(f"{path} cannot be read as UTF-8 text: {error}.") from error
        elif not answer or os.sep in answer:
            raise ValueError(
                f"{os.path.join(folder, name)} has no caption, and is not directly in a class folder: move it "
                "to CLASS/1.jpg, or write a caption next to each picture, 1.txt next to 1.jpg."
            )
        yield {kind_by_name(name): name, "answer": answer}
