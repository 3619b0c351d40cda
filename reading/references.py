"""References to images and videos in rows, and the names of references in error messages.

A reference is an absolute path, an http(s) URL, the bytes of an encoded file, or a PIL image. A video may also be a
list of references to images, its frames.
"""

import hashlib
import io
import re
from importlib.util import find_spec

from PIL import Image

HUB_PATH = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+)(?:@((?:refs/(?:convert|pr)/)?[^/]+))?/?(.*)\Z")
# First bytes of files that are often stored under the name of a media or data file -> what the file is, and the fix.
TAKEN_FOR_OTHERS = {
    rb"\Z": "empty",
    rb"version https://git-lfs": "a Git LFS pointer: run `git lfs pull` to fetch the file itself",
    rb"\s*<(!doctype html|html|head|body)": "an HTML page, perhaps of an error: download the file again",
    rb"\s*<(\?xml|svg)": "XML, perhaps an SVG drawing: convert it",
    rb"%PDF": "a PDF: convert its pages to images",
    rb"PK\x03\x04|PK\x05\x06|\x1f\x8b|BZh|7z\xbc\xaf|Rar!|\xfd7zXZ|\x28\xb5\x2f\xfd": "a compressed archive: unpack it",
    rb".{4}ftyp(hei|hev|mif1|msf1)": (HEIC := "a HEIC image: pip install pillow-heif, or convert it to JPEG or PNG"),
}

ENDING = re.compile(  # of common media files, not all of which can be opened
    r"\.(?:(?P<image>avif|bmp|dng|gif|heic|heif|ico|jfif|jp2|jpe?g|pbm|pgm|png|pnm|ppm|svg|tga|tiff?|webp)"
    r"|(?P<video>3gp|avi|flv|m4v|mkv|mov|mp4|mpe?g|ogv|webm|wmv)|aac|flac|m4a|mp3|oga|ogg|opus|wav|wma)\Z",
    re.IGNORECASE,
)


def kind_by_name(name: str) -> str | None:
    """Return "image" or "video" if a file name has such an extension, else None."""
    match = ENDING.search(name)
    return match and match.lastgroup


def describe(reference) -> str:
    """Return the name of a reference for messages: one printable line without credentials, query or content."""
    if isinstance(reference, (bytes, bytearray, memoryview)):
        return f"of {len(reference):,} bytes"
    if isinstance(reference, Image.Image):
        return f"of {reference.width}x{reference.height} pixels"
    if isinstance(reference, (list, tuple)):
        return f"of {len(reference)} images"
    if not isinstance(reference, str):
        return f"of type {type(reference).__name__}"
    if is_url(reference):
        scheme, rest = reference.split("://", 1)
        address, question, _ = rest.partition("?")
        authority, slash, path = address.partition("/")
        reference = f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}{question and '?...'}"
    if not reference.isprintable():
        reference = repr(reference)
    return reference if len(reference) <= 300 else f"{reference[:200]}...{reference[-60:]}"


def is_url(reference) -> bool:
    return isinstance(reference, str) and reference[:8].lower().startswith(("http://", "https://", "hf://"))


def digest(reference) -> str:
    """Hash the content of a reference: a file, bytes, a PIL image or a list of these. For a URL, hash its text."""
    if isinstance(reference, list):
        return hash_of("".join(map(digest, reference)).encode())
    if is_url(reference):
        return hash_of(reference.encode())
    if isinstance(reference, str):
        with open(reference, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return hash_of(reference if isinstance(reference, bytes) else reference.tobytes())


def hash_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def what_it_is(source: str | io.BytesIO) -> str | None:
    """Return what an unreadable file is and the fix, or None if its first bytes are unknown."""
    if isinstance(source, str):
        with open(source, "rb") as file:
            start = file.read(256)
    else:
        start = source.getvalue()[:256]
    matches = (what for begin, what in TAKEN_FOR_OTHERS.items() if re.match(begin, start, re.IGNORECASE | re.DOTALL))
    what = next(matches, None)
    return None if what == HEIC and find_spec("pillow_heif") else what
