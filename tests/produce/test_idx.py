"""IDX files: the real digits, small ones made here, and what is none."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import FormatError
from headrace.produce.idx import MOST_BYTES, find_pairs, read_images, read_labels, read_pair, read_sets


def idx(*shape: int, values: bytes | None = None, magic: bytes | None = None) -> bytes:
    head = magic if magic is not None else bytes((0, 0, 8, len(shape)))
    filled = bytes(i % 251 for i in range(int(np.prod(shape)))) if values is None else values
    return head + struct.pack(f">{len(shape)}I", *shape) + filled


def put(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def test_the_real_digits(shared_data: Path) -> None:
    (digits,) = read_sets(shared_data / "mnist")
    assert (digits.name, digits.images.shape, len(digits)) == ("t10k", (10_000, 28, 28), 10_000)
    assert digits.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]  # published everywhere
    assert np.bincount(digits.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert digits.images.max() == 255 and digits.images[0].any()
    rows = digits.records(9_998, first_id=1)
    assert rows.column("id").to_pylist() == [9_999, 10_000]
    assert rows.column("pixels")[0].as_py() == digits.images[9_998].tobytes()
    assert rows.schema.field("label").type == "int16" and rows.schema.field("pixels").type == "binary"


@pytest.mark.parametrize("name", ["images", "images.gz"])
def test_images_row_and_column_major(name: str, tmp_path: Path) -> None:
    drawn = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert read_images(put(tmp_path / name, idx(2, 2, 3, values=drawn.tobytes()))).tolist() == drawn.tolist()
    by_column = np.ascontiguousarray(drawn.transpose(0, 2, 1)).tobytes()
    turned = read_images(put(tmp_path / name, idx(2, 2, 3, values=by_column)), column_major=True)
    assert turned.tolist() == drawn.tolist() and turned.flags.c_contiguous


@given(st.integers(0, 5), st.integers(0, 4), st.integers(0, 4), st.booleans())
def test_any_shape_comes_back(tmp_path_factory: pytest.TempPathFactory, n: int, r: int, c: int, packed: bool) -> None:
    path = tmp_path_factory.getbasetemp() / ("any.gz" if packed else "any")
    found = read_images(put(path, idx(n, r, c)))
    assert found.shape == (n, r, c) and found.tobytes() == idx(n, r, c)[16:]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "begins with nothing"),
        (b"PK\3\4 a zip file", "Is it an IDX file"),
        (idx(3), "These are labels"),
        (idx(1, 2, 2, magic=bytes((0, 0, 0x0D, 3))), "no unsigned bytes"),
        (idx(1, 2), "other dimensions"),
        (idx(1, 2, 2)[:9], "truncated: 9 bytes, and the header has 16"),
        (idx(2, 2, 2)[:-1], "truncated: 7 of the 8 bytes"),
        (idx(2, 2, 2) + b"x", "goes on behind the 8 bytes"),
        (idx(1 << 31, 1 << 31, 4, values=b""), "declares 2147483648 x 2147483648 x 4 bytes"),
    ],
)
@pytest.mark.parametrize("name", ["images", "images.gz"])
def test_what_is_none(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=message) as told:
        read_images(put(tmp_path / name, content))
    assert name in told.value.message


def test_a_broken_gzip_file_and_none_at_all(tmp_path: Path) -> None:
    whole = gzip.compress(idx(50, 20, 20))
    for content in (whole[:-9], whole[:40] + b"\xff" * 30 + whole[70:]):
        (tmp_path / "cut.gz").write_bytes(content)
        with pytest.raises(FormatError, match="no whole gzip file"):
            read_images(tmp_path / "cut.gz")
    with pytest.raises(FormatError, match="cannot be read: No such file"):
        read_images(tmp_path / "none")


def test_a_declared_size_takes_no_memory(tmp_path: Path) -> None:
    """A header of a gigabyte over a file of nothing allocates nothing."""
    import tracemalloc

    path = put(tmp_path / "labels", idx(MOST_BYTES, values=b"abc"))
    tracemalloc.start()
    with pytest.raises(FormatError, match="truncated: 3 of"):
        read_labels(path)
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()
    with pytest.raises(FormatError, match="at most 2 are read"):
        read_labels(put(tmp_path / "labels", idx(3)), max_bytes=2)


def test_pairs(tmp_path: Path) -> None:
    images, labels = put(tmp_path / "i", idx(2, 1, 1)), put(tmp_path / "l", idx(3))
    with pytest.raises(FormatError, match=r"holds 2 images and .* 3 labels"):
        read_pair(images, labels)


def test_a_directory(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no directory"):
        find_pairs(tmp_path / "none")
    with pytest.raises(FormatError, match="no IDX files"):
        find_pairs(tmp_path)
    put(tmp_path / "t10k-images.idx3-ubyte.gz", idx(1, 1, 1))
    put(tmp_path / "notes.txt", b"")
    with pytest.raises(FormatError, match="no labels for «t10k»"):
        find_pairs(tmp_path)
    put(tmp_path / "t10k-labels-idx1-ubyte", idx(1))
    put(tmp_path / "train-images-idx3-ubyte.gz", idx(2, 1, 1))
    put(tmp_path / "train-labels-idx1-ubyte.gz", idx(2))
    put(tmp_path / "train-labels-idx1-ubyte", idx(2))
    assert [(read_set.name, len(read_set)) for read_set in read_sets(tmp_path)] == [("train", 2), ("t10k", 1)]
    assert find_pairs(tmp_path)["train"][1].name == "train-labels-idx1-ubyte"
    put(tmp_path / "emnist-letters-train-images-idx3-ubyte", idx(2, 1, 1))
    put(tmp_path / "emnist-letters-train-labels-idx1-ubyte", idx(2))
    with pytest.raises(FormatError, match="holds 3 sets"):
        find_pairs(tmp_path)
