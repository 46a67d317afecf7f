"""The digits of the demo: the 10,000 in the package, or those in a directory; and as SQL."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

import pyarrow as pa

from headrace.errors import DeclarationError, FormatError
from headrace.produce.idx import LabelledImages, read_pair

TESTED = 1_000
SIDE = 28
COLUMNS = "pixels BYTEA, labels SMALLINT"
INSERT = "INSERT INTO {} (pixels, labels) VALUES ('\\x{}', {});"
_PARTS = ("images-idx3-ubyte", "labels-idx1-ubyte")


@dataclass(frozen=True, slots=True)
class Digits:
    """Labelled digits to learn, and others to be tested on.

    Attributes:
        train, test: images of 28 x 28 pixels with their labels.
        three: the pixels of a 3 drawn by hand, row by row.
    """

    train: LabelledImages
    test: LabelledImages
    three: bytes = field(repr=False)


def read_data(directory: Path | None = None) -> Digits:
    """Digits of a directory with IDX files, plain or compressed with gzip; else those in the package.

    With MNIST's four files the training set is learned and the test set tested. With the test set's two alone the last
    1,000 are tested, and those before them learned.

    Raises:
        DeclarationError: a file is missing (the message names it) or cannot be read.
    """
    root = directory if directory is not None else _shipped()
    paths = {name: [_found(root, f"{name}-{part}") for part in _PARTS] for name in ("train", "t10k")}
    some = any(paths["train"])
    missing = [
        f"{name}-{part}"
        for name in (("train", "t10k") if some else ("t10k",))
        for part, path in zip(_PARTS, paths[name], strict=True)
        if path is None
    ]
    if missing:
        raise DeclarationError(
            f"{root} has no {', no '.join(missing)} (plain or .gz)",
            advice="Give a directory with MNIST's four IDX files, or with the two of t10k.",
        )
    test = _read("t10k", paths["t10k"])
    if some:
        return Digits(_read("train", paths["train"]), test, read_three())
    if len(test) <= TESTED:
        raise DeclarationError(
            f"{root} holds {len(test)} digits, and {TESTED} are kept for the test",
            advice="Add the training set: train-images-idx3-ubyte and train-labels-idx1-ubyte.",
        )
    split = len(test) - TESTED
    first = LabelledImages("train", test.images[:split], test.labels[:split])
    return Digits(first, LabelledImages("test", test.images[split:], test.labels[split:]), read_three())


def read_three() -> bytes:
    """The 3 drawn by hand: 784 bytes, row by row."""
    return bytes(json.loads((_shipped() / "digit3.json").read_text())["pixels"])


def rows(images: LabelledImages) -> pa.RecordBatch:
    """Digits as the demo's tables hold them: ``pixels`` binary, ``labels`` int16.

    >>> import numpy as np
    >>> rows(LabelledImages("", np.zeros((1, 1, 2), np.uint8), np.array([7], np.uint8))).to_pylist()
    [{'pixels': b'\\x00\\x00', 'labels': 7}]
    """
    return images.records().select(["pixels", "label"]).rename_columns(["pixels", "labels"])


def write_sql(directory: Path, data: Path | None = None) -> list[Path]:
    """``mnist_train.sql`` and ``mnist_test.sql``: a line that makes the table, then a line for each row.

    There is no transaction around them, so that the first lines of a file work by themselves (``head -5``).
    """
    digits = read_data(data)
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for table, images in (("mnist_train", digits.train), ("mnist_test", digits.test)):
        path = directory / f"{table}.sql"
        with path.open("w") as file:
            file.write(f"CREATE TABLE IF NOT EXISTS {table} ({COLUMNS});\n")
            for image, label in zip(images.images, images.labels.tolist(), strict=True):
                file.write(INSERT.format(table, image.tobytes().hex(), label) + "\n")
        written.append(path)
    return written


def _shipped() -> Path:
    return Path(str(files("headrace.demos.mnist") / "data"))


def _found(root: Path, name: str) -> Path | None:
    """A file by MNIST's name; also with a dot before ``idx``, as some unpack it; also compressed."""
    for stem in (name, name.replace("-idx", ".idx")):
        for path in (root / stem, root / f"{stem}.gz"):
            if path.is_file():
                return path
    return None


def _read(name: str, paths: list[Path | None]) -> LabelledImages:
    images, labels = paths
    assert images is not None and labels is not None
    try:
        pair = read_pair(images, labels, name=name)
    except FormatError as error:
        raise DeclarationError(error.message, advice=error.advice) from error
    if pair.images.shape[1:] != (SIDE, SIDE):
        raise DeclarationError(f"{images} holds images of {pair.images.shape[1:]} pixels, not {SIDE} x {SIDE}")
    return pair
