"""Images in rows: which columns are some, and their bytes as a browser draws them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any

from headrace.log.base import Log
from headrace.registry.models import read_model

# How files begin that a browser draws, and none of which can hold a script.
SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF87a": "image/gif",
    b"GIF89a": "image/gif",
    b"BM": "image/bmp",
}


def declared_images(log: Log) -> dict[str, tuple[int, ...]]:
    """Return the columns that a model of the log takes as images (`hr.image`), with their shapes."""
    found: dict[str, tuple[int, ...]] = {}
    for name in log.records("model"):
        known = read_model(log, name)
        for column, shape in _images(known["fingerprint"] if known is not None else {}):
            found.setdefault(column, shape)
    return found


def _images(value: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    if isinstance(value, dict):
        if isinstance(value.get("image"), str) and isinstance(value.get("shape"), list):
            yield value["image"], tuple(value["shape"])
        for part in value.values():
            yield from _images(part)
    elif isinstance(value, list):
        for part in value:
            yield from _images(part)


def image_of(value: Any, shape: tuple[int, ...] | None) -> tuple[bytes, str] | None:
    """Return a file with the image that a value is, and its media type; None where it is none.

    Args:
        shape: of pixels that a model takes: height and width, and 3 where they have colours.

    >>> image_of(bytes(784), (28, 28))[1], image_of(b"no image", None)
    ('image/png', None)
    """
    if not isinstance(value, bytes):
        return None
    for signature, kind in SIGNATURES.items():
        if value.startswith(signature):
            return value, kind
    if value[:4] == b"RIFF" and value[8:12] == b"WEBP":
        return value, "image/webp"
    if shape is None:
        return None
    sides = [side for side in shape if side != 1]
    colours = sides.pop() if len(sides) == 3 else 1
    if len(sides) != 2 or colours not in (1, 3) or sides[0] * sides[1] * colours != len(value):
        return None
    return _png(value, sides[0], sides[1], colours), "image/png"


def _png(pixels: bytes, height: int, width: int, colours: int) -> bytes:
    """Return pixels as a PNG (https://www.w3.org/TR/png-3/): 8 bits, grey or RGB, no filter."""
    row = width * colours
    lines = b"".join(b"\0" + pixels[start : start + row] for start in range(0, len(pixels), row))
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if colours == 1 else 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    parts = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
