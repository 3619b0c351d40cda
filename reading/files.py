"""Find the file to which a reference in a row refers."""

import io
import os
import stat
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from urllib.parse import unquote

from reading.options import MediaOptions
from reading.references import HUB_PATH, describe, is_url


def local_file(kind: str, reference, options: MediaOptions) -> str | io.BytesIO:
    """Return an encoded image or video, as the path of a regular file or as bytes in memory.

    Raises:
        ValueError: The value is not a reference, its URL must not be fetched, or its file is missing or not a regular
        file. Pipes and devices are refused because they might never end.
    """
    name = f"{kind} {describe(reference)}"
    if isinstance(reference, (bytes, bytearray, memoryview)):
        return io.BytesIO(reference)
    if not isinstance(reference, str):
        raise ValueError(f"{name} is not an image or a video; expected a path, a URL or the bytes of a file")
    if is_url(reference):
        from reading import fetch  # imported only if there are URLs

        if not options.allow_urls:
            raise ValueError(f"{name} is a URL; pass --allow_urls True to fetch it")
        return hub_file(reference) if reference[:3].lower() == "hf:" else fetch.fetch(reference, options)
    try:
        mode = os.stat(reference).st_mode
        if stat.S_ISREG(mode):
            return reference
        fault = "is a folder" if stat.S_ISDIR(mode) else "is a pipe or device, not a file"
    except (OSError, ValueError) as error:
        missing = isinstance(error, (FileNotFoundError, NotADirectoryError))
        fault = "does not exist" if missing else f"cannot be read: {getattr(error, 'strerror', None) or error}"
        if missing and (similar := similar_path(reference)):
            fault += f", but {similar} does, which differs only in case, accents or slashes"
    raise ValueError(f"{name} {fault}; fix the path or --{kind}_folder")


def hub_file(url: str) -> str:
    """Return the path of hf://datasets/OWNER/NAME[@REVISION]/FILE in the Hub library's cache. Download it if needed."""
    from huggingface_hub import hf_hub_download

    match = HUB_PATH.match(url)
    if not match or not match[3]:
        raise ValueError(f"{describe(url)} is no data set file; it must look like hf://datasets/owner/name/1.jpg")
    name, revision, file = match.groups()
    wanted = {"repo_id": name, "filename": file, "repo_type": "dataset", "revision": revision and unquote(revision)}
    with suppress(Exception):  # fails if the file was not fetched before
        return hf_hub_download(**wanted, local_files_only=True)
    try:
        return hf_hub_download(**wanted)
    except Exception as error:  # errors of huggingface_hub or of its HTTP library
        raise ValueError(f"{describe(url)} cannot be fetched from the Hub: {error}") from error


def is_within(path: str, folder: str) -> bool:
    """Whether `path` is `folder` or inside it. Both must be absolute and normalized, without links."""
    return f"{path}{os.sep}".startswith(f"{folder.rstrip(os.sep)}{os.sep}")


def resolve_in(path: str, folders: Sequence[str], what: str) -> str:
    """Return the path with links resolved. Raise a ValueError if it is neither in `folders` nor in the Hub's cache."""
    try:
        resolved = os.path.realpath(path)
    except ValueError as error:  # the path contains a null character
        raise ValueError(f"{what} is not a path.") from error
    is_inside = any(is_within(resolved, os.path.realpath(folder)) for folder in folders)
    if not is_inside and not (os.path.islink(path) and is_hub_blob(resolved)):
        raise ValueError(f"{what} leads out of {folders[0]}: use a path in it, or start webui.py with another --root.")
    return resolved


def is_hub_blob(path: str) -> bool:
    from huggingface_hub.constants import HF_HUB_CACHE  # imported only for links and outside folders

    return is_within(path, os.path.realpath(HF_HUB_CACHE)) and os.path.basename(os.path.dirname(path)) == "blobs"


def similar_path(path: str) -> str | None:
    """Return an existing path that differs from a missing absolute path only as `folded` allows, or None."""
    found = os.sep
    for name in path.replace("\\", "/").strip("/").split("/"):
        if not os.path.lexists(os.path.join(found, name)):
            name = names_in(found).get(folded(name))
        if name is None:
            return None
        found = os.path.join(found, name)
    return found if os.path.exists(found) else None  # None for a broken link


@lru_cache(maxsize=64)  # cached, since many missing files are usually in few folders
def names_in(folder: str) -> dict[str, str]:
    with suppress(OSError):
        return {folded(name): name for name in os.listdir(folder)}
    return {}


def folded(name: str) -> str:
    """Convert a name to lower case and compose its accents, which macOS stores as separate characters."""
    return unicodedata.normalize("NFC", name).casefold()
