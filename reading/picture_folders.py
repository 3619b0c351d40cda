"""Folders of pictures or clips without a data file: classes as folders, or a caption of the same stem beside each.

    cat/1.jpg  dog/2.jpg                 the answer is the name of the folder
    1.jpg  1.txt  more/2.mp4  more/2.txt the answer is what the .txt file holds

The question of every row is --prompt.
"""

import hashlib
import os
from collections.abc import Iterator

from reading.references import kind_by_name


def names_in(folder: str) -> list[str]:
    """The media files and texts of a folder and those in it, relative to it, sorted; without what is hidden."""
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if links := [name for name in folders if os.path.islink(os.path.join(parent, name))]:
            raise ValueError(f"{os.path.join(parent, links[0])} is a link to a folder: give it as a path of its own.")
        kept = [name for name in files if not name.startswith(".") and (kind_by_name(name) or is_text(name))]
        found += [os.path.relpath(os.path.join(parent, name), folder) for name in kept]
    return sorted(found)


def is_text(name: str) -> bool:
    return name.lower().endswith(".txt")


def state_of_folder(folder: str) -> list[int]:
    """What changes when a file is added or removed, or a text is written again."""
    names, found = names_in(folder), hashlib.sha256()
    for name in names:
        state = os.stat(os.path.join(folder, name)) if is_text(name) else None
        found.update(repr([name, state and (state.st_size, state.st_mtime_ns)]).encode())
    return [len(names), int.from_bytes(found.digest()[:8])]


def rows_in(folder: str, prompt: str | None) -> Iterator[dict[str, str]]:
    """A row of each medium.

    Raises:
        ValueError: there is no prompt, a medium has neither class nor caption, or a caption has no medium.
    """
    names = names_in(folder)
    media, texts = [name for name in names if kind_by_name(name)], {*filter(is_text, names)}
    has_captions = bool({*map(os.path.dirname, media)} & {*map(os.path.dirname, texts)})
    if prompt is None:
        what = "Describe the {}." if has_captions else "What is in the {}?"
        what = what.format("picture" if kind_by_name(media[0]) == "image" else "video")
        raise ValueError(
            f'{folder} holds {"captions" if has_captions else "classes"} and no question: add --prompt "{what}", or '
            "the question that you mean."
        )
    if not has_captions:
        for name in media:
            if len(parts := name.split(os.sep)) != 2:
                raise ValueError(
                    f"{os.path.join(folder, name)} has no caption, and no class, for it is not right in the folder of "
                    f"one: move it to {os.path.join(folder, 'CLASS', parts[-1])}, or write a caption next to each "
                    "picture, 1.txt to 1.jpg."
                )
            yield {kind_by_name(name): name, "answer": parts[0]}
        return
    stems = {os.path.splitext(name)[0]: name for name in texts}
    alone = [name for name in media if os.path.splitext(name)[0] not in stems]
    alone += sorted(stems[stem] for stem in stems.keys() - {os.path.splitext(name)[0] for name in media})
    if alone:
        more = f" and {len(alone) - 5:,} more" if alone[5:] else ""
        raise ValueError(
            f"{folder}: {', '.join(alone[:5])}{more} {'are' if alone[1:] else 'is'} alone: 1.jpg needs its caption "
            "1.txt, and the reverse. Write what is missing, or move these elsewhere."
        )
    for name in media:
        path = os.path.join(folder, stems[os.path.splitext(name)[0]])
        try:
            with open(path, encoding="utf-8-sig") as file:
                yield {kind_by_name(name): name, "answer": file.read().strip()}
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text: {error}.") from error
