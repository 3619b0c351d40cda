"""What a row says of a medium, and how messages name it.

A reference is an absolute path, an http(s) URL, the bytes of an encoded file, or a PIL image; of a video also a list of
image references, its frames.
"""

from PIL import Image


def describe(reference) -> str:
    """How a message names a medium: one printable line, and no credentials, query or content."""
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
    return isinstance(reference, str) and reference[:8].lower().startswith(("http://", "https://"))
