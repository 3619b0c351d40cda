"""Read folders of media without a data file. Replies are class names (of folders) or captions (1.txt for 1.jpg)."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from reading.references import kind_by_name
from reading.sources import refuse


def paths_below(folder: str) -> list[str]:
    """Return the sorted relative paths of all media and .txt files below a folder, except hidden files and folders."""
    found = []
    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if links := [name for name in folders if os.path.islink(os.path.join(parent, name))]:
            raise ValueError(f"{os.path.join(parent, links[0])} is a link to a folder: pass it as a separate path.")
        kept = [
            name for name in files if not name.startswith(".") and (kind_by_name(name) or name.lower().endswith(".txt"))
        ]
        found += [os.path.relpath(os.path.join(parent, name), folder) for name in kept]
    return sorted(found)


def state_of_folder(folder: str) -> list[int]:
    """Return a state that changes when a file is added or removed, or a .txt file is rewritten."""
    names, found = paths_below(folder), hashlib.sha256()
    for name in names:
        state = None if kind_by_name(name) else os.stat(os.path.join(folder, name))
        found.update(repr([name, state and (state.st_size, state.st_mtime_ns)]).encode())
    return [len(names), int.from_bytes(found.digest()[:8])]


def rows_in(folder: str, prompt: str | None) -> Iterator[dict[str, str]]:
    """Yield one row per image or video. Each must have a class or a caption, and each caption an image or video."""
    names = paths_below(folder)
    media = {name: os.path.splitext(name)[0] for name in names if kind_by_name(name)}  # file -> stem
    texts = {os.path.splitext(name)[0]: name for name in names if not kind_by_name(name)}
    # True if a .txt shares its folder or name with an image. If only the name is shared, it is refused below.
    has_captions = any(
        {*map(part, media.values())} & {*map(part, texts)} for part in (os.path.dirname, os.path.basename)
    )
    if prompt is None:
        what, ask = ("captions", "Describe the picture.") if has_captions else ("classes", "What is in the picture?")
        raise ValueError(f'{folder} has {what} but no question: add --prompt "{ask}", or your own question.')
    alone = [name for name in media if media[name] not in texts]
    alone += [texts[stem] for stem in sorted(texts.keys() - {*media.values()})]
    if alone and has_captions:
        raise ValueError(
            f"{folder}: files without a partner: {', '.join(alone[:5])}{', ...' if alone[5:] else ''} ({len(alone):,} "
            "in all). Each image NAME.jpg needs a caption NAME.txt in the same folder, and vice versa: add the missing "
            "files, or move these files elsewhere."
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
                f"{os.path.join(folder, name)} has no caption, and is not directly in a class folder: move the "
                "file to CLASS/1.jpg, or write a caption for each image, such as 1.txt for 1.jpg."
            )
        yield {kind_by_name(name): name, "answer": answer}
