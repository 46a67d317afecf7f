"""IDX files, in which MNIST and its relatives come: images and labels, plain or compressed with gzip.

The layout is on http://yann.lecun.com/exdb/mnist/ ("The IDX file format"): two zero bytes, a byte for the type (8 is
unsigned byte), a byte for the number of dimensions, a big-endian 32-bit size for each dimension, then the values, the
last dimension fastest. EMNIST (https://www.nist.gov/itl/products-and-services/emnist-dataset) writes the pixels of
each image column by column: read it with ``column_major=True``.
"""

from __future__ import annotations

import gzip
import io
import math
import re
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from headrace.arrays import Bytes
from headrace.errors import FormatError

UNSIGNED_BYTE = 8
MOST_BYTES = 1 << 30
_NAME = re.compile(r"(?P<set>.*?)-?(?P<what>images|labels)[-.]idx(?P<dimensions>[13])-ubyte(\.gz)?")


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """Images with their labels.

    Attributes:
        name: of the set, as its files say it: ``train``, ``t10k``, ``emnist-letters-test``.
        images: uint8 of shape (n, rows, columns).
        labels: uint8 of shape (n,).
    """

    name: str
    images: Bytes
    labels: Bytes

    def __len__(self) -> int:
        return len(self.labels)

    def records(self, start: int = 0, stop: int | None = None, *, first_id: int = 1) -> pa.RecordBatch:
        """Some of them as rows: ``id`` int64, ``pixels`` binary (row by row), ``label`` int16.

        Args:
            start, stop: which, counted from 0.
            first_id: the id of the first of all.

        >>> pair = LabelledImages("train", np.full((2, 1, 3), 7, np.uint8), np.array([4, 9], np.uint8))
        >>> pair.records(1).to_pylist()
        [{'id': 2, 'pixels': b'\\x07\\x07\\x07', 'label': 9}]
        """
        start, stop, _ = slice(start, stop).indices(len(self))
        images = np.ascontiguousarray(self.images[start : max(start, stop)])
        size = math.prod(images.shape[1:])
        offsets = pa.py_buffer(np.arange(len(images) + 1, dtype=np.int64) * size)
        pixels = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(images), [None, offsets, pa.py_buffer(images)])
        columns = {
            "id": pa.array(np.arange(len(images), dtype=np.int64) + first_id + start),
            "pixels": pixels.cast(pa.binary()),
            "label": pa.array(self.labels[start : max(start, stop)].astype(np.int16)),
        }
        return pa.RecordBatch.from_pydict(columns)


def read_images(path: Path | str, *, column_major: bool = False, max_bytes: int = MOST_BYTES) -> Bytes:
    """Images of an ``idx3-ubyte`` file.

    Args:
        column_major: the file has each image column by column, as EMNIST's; what is returned is upright all the same.
        max_bytes: refuse what would be larger in memory, before memory is taken.

    Returns:
        uint8 of shape (n, rows, columns).

    Raises:
        FormatError: it is not such a file, is truncated or too long, or declares more than ``max_bytes``.
    """
    values = _read(Path(path), 3, max_bytes)
    if not column_major:
        return values
    n, rows, columns = values.shape
    return np.ascontiguousarray(values.reshape(n, columns, rows).transpose(0, 2, 1))


def read_labels(path: Path | str, *, max_bytes: int = MOST_BYTES) -> Bytes:
    """Labels of an ``idx1-ubyte`` file: uint8 of shape (n,). Arguments and errors are those of `read_images`."""
    return _read(Path(path), 1, max_bytes)


def read_pair(
    images: Path | str,
    labels: Path | str,
    *,
    name: str = "",
    column_major: bool = False,
    max_bytes: int = MOST_BYTES,
) -> LabelledImages:
    """Images and their labels.

    Raises:
        FormatError: as for `read_images`; or there are more of the ones than of the others.
    """
    named = read_labels(labels, max_bytes=max_bytes)
    drawn = read_images(images, column_major=column_major, max_bytes=max_bytes)
    if len(drawn) != len(named):
        raise FormatError(
            f"{images} holds {len(drawn)} images and {labels} {len(named)} labels",
            advice="Take both files from one download.",
        )
    return LabelledImages(name, drawn, named)


def find_pairs(directory: Path | str) -> dict[str, tuple[Path, Path]]:
    """The sets in a directory, by name, the training set first: files of images and of labels.

    Files are called as MNIST's are (``t10k-images-idx3-ubyte``, also with ``.gz`` or with a dot before ``idx3``); where
    one is there plain and compressed the plain one counts.

    Raises:
        FormatError: there is no set, a set has one file only, or there are more than a training and a test set.
    """
    folder = Path(directory)
    if not folder.is_dir():
        raise FormatError(f"there is no directory {folder}", advice="Name the one that holds the IDX files.")
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.iterdir()):
        parts = _NAME.fullmatch(path.name)
        if parts and parts["dimensions"] == {"images": "3", "labels": "1"}[parts["what"]]:
            found.setdefault(parts["set"], {}).setdefault(parts["what"], path)
    if not found:
        raise FormatError(f"no IDX files in {folder}", advice="Expected are t10k-images-idx3-ubyte.gz and the like.")
    for name, pair in found.items():
        for what in {"images", "labels"} - pair.keys():
            raise FormatError(f"{folder} has no {what} for «{name}», only {next(iter(pair.values())).name}")
    if len(found) > 2:
        raise FormatError(f"{folder} holds {len(found)} sets: {', '.join(found)}", advice="Give each its directory.")
    order = sorted(found, key=lambda name: ("train" not in name, name))
    return {name: (found[name]["images"], found[name]["labels"]) for name in order}


def read_sets(
    directory: Path | str, *, column_major: bool = False, max_bytes: int = MOST_BYTES
) -> list[LabelledImages]:
    """All sets of a directory (`find_pairs`), the training set first.

    Raises:
        FormatError: as for `find_pairs` and `read_pair`.
    """
    return [
        read_pair(*paths, name=name, column_major=column_major, max_bytes=max_bytes)
        for name, paths in find_pairs(directory).items()
    ]


# -- bytes ------------------------------------------------------------------------------------------------------------


def _read(path: Path, dimensions: int, max_bytes: int) -> Bytes:
    try:
        with path.open("rb") as raw:
            compressed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            stream = gzip.GzipFile(fileobj=raw) if compressed else raw
            return _parse(stream, str(path), dimensions, max_bytes)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise FormatError(f"{path} is no whole gzip file: {error}", advice="Download it again.") from error
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror or error}") from error


def _parse(stream: io.BufferedIOBase, where: str, dimensions: int, max_bytes: int) -> Bytes:
    header = stream.read(4 + 4 * dimensions)
    magic = bytes((0, 0, UNSIGNED_BYTE, dimensions))
    if header[:4] != magic:
        raise FormatError(
            f"{where} begins with {header[:4].hex(' ') or 'nothing'}, and IDX with {dimensions} dimension(s) of "
            f"unsigned bytes with {magic.hex(' ')}",
            advice=_confused(header),
        )
    if len(header) < 4 + 4 * dimensions:
        raise FormatError(f"{where} is truncated: {len(header)} bytes, and the header has {4 + 4 * dimensions}")
    shape = struct.unpack(f">{dimensions}I", header[4:])
    size = math.prod(shape)
    if size > max_bytes:
        raise FormatError(f"{where} declares {' x '.join(map(str, shape))} bytes, and at most {max_bytes} are read")
    values = _exactly(stream, size)
    if len(values) < size:
        raise FormatError(
            f"{where} is truncated: {len(values)} of the {size} bytes that its header declares",
            advice="Download it again.",
        )
    if stream.read(1):
        raise FormatError(f"{where} goes on behind the {size} bytes that its header declares")
    return np.frombuffer(values, np.uint8).reshape(shape)


def _exactly(stream: io.BufferedIOBase, size: int) -> bytearray:
    """At most so many bytes. Memory grows with what is there, not with what a header declares."""
    values = bytearray()
    while len(values) < size:
        piece = stream.read(min(1 << 20, size - len(values)))
        if not piece:
            break
        values += piece
    return values


def _confused(header: bytes) -> str:
    if header[:2] != b"\0\0" or len(header) < 4:
        return "Is it an IDX file?"
    if header[2] != UNSIGNED_BYTE:
        return "Its values are no unsigned bytes."
    return {1: "These are labels.", 3: "These are images."}.get(header[3], "It has other dimensions.")
