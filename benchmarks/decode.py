"""The speed at which the decoder turns replication messages in memory into Arrow batches.

The reference is what no decoder can avoid: joining the messages to one buffer and copying it once.
"""

from __future__ import annotations

import json
import struct
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from headrace.capture.postgres.decode import Decoder

_CHUNK = 16_384
_TWENTY = [
    *[(f"i{n}", 23) for n in range(3)],
    *[(f"b{n}", 20) for n in range(2)],
    *[(f"f{n}", 701) for n in range(4)],
    *[(f"s{n}", 25) for n in range(5)],
    *[(f"t{n}", 1184) for n in range(3)],
    ("d", 1082),
    ("ok", 16),
    ("u", 2950),
]
_SIX = [("a", 23), ("b", 701), ("c", 701), ("d", 701), ("e", 701), ("f", 20)]
_WIDTHS = {23: 4, 20: 8, 701: 8, 1184: 8, 1082: 4, 16: 1, 2950: 16}


def run(rows: int) -> list[dict[str, Any]]:
    """Rows a second for a table of 6 numbers, one of 20 mixed columns, and one-row transactions."""
    results = []
    for name, columns, nulls, per_transaction in (
        ("6 numbers, one transaction", _SIX, 0.0, rows),
        ("6 numbers, one-row transactions", _SIX, 0.0, 1),
        ("20 mixed columns, 10% NULL", _TWENTY, 0.1, rows),
    ):
        messages = stream(columns, rows, nulls, per_transaction)
        size = sum(map(len, messages))
        ours = rows / _best(partial(_decode, messages))
        reference = rows / _best(partial(_join_and_copy, messages))
        details = f"{len(messages)} messages, {size / rows:.0f} bytes a row, {ours * size / rows / 1e6:.0f} MB/s"
        results.append(_result(name, reference, ours, "rows/s", details))
    tiny = stream(_SIX, 3, 0.0, 3)
    decoder = Decoder("bench")
    decoder.feed(tiny)
    chunk = tiny[:1] + tiny[2:]
    ours = 200 / _best(lambda: [decoder.feed(chunk) for _ in range(200)])
    details = f"{1e6 / ours:.0f} us each; the reference is the target of 300 us"
    results.append(_result("feed() of 3 rows of 6 numbers", 1e6 / 300, ours, "feeds/s", details))
    return results


def stream(columns: list[tuple[str, int]], rows: int, nulls: float, per_transaction: int) -> list[bytes]:
    """Synthetic XLogData messages of binary inserts into one table."""
    random = np.random.default_rng(7)
    relation = b"R" + struct.pack(">I", 1) + b"public\0t\0d" + struct.pack(">H", len(columns))
    for name, oid in columns:
        relation += b"\0" + name.encode() + b"\0" + struct.pack(">Ii", oid, -1)
    cells = [_cells(random, oid, rows, nulls) for _, oid in columns]
    messages = []
    for row, values in enumerate(zip(*cells, strict=True)):
        lsn = 1000 + row // per_transaction * 100
        header = b"w" + struct.pack(">qqq", lsn, lsn, 0)
        if row % per_transaction == 0:
            messages.append(header + b"B" + struct.pack(">qqi", lsn + 50, row, 1))
        if row == 0:
            messages.append(header + relation)
        messages.append(header + b"I" + struct.pack(">IcH", 1, b"N", len(columns)) + b"".join(values))
        if (row + 1) % per_transaction == 0 or row == rows - 1:
            messages.append(header + b"C\0" + struct.pack(">qqq", lsn + 50, lsn + 99, row))
    return messages


def _cells(random: np.random.Generator, oid: int, rows: int, nulls: float) -> list[bytes]:
    null = random.random(rows) < nulls
    if oid == 25:
        values = [b"text %d" % number for number in random.integers(0, 10**12, rows) >> random.integers(0, 40, rows)]
    else:
        width = _WIDTHS[oid]
        data = random.integers(0, 120, rows * width).astype(np.uint8).tobytes()
        values = [data[at : at + width] for at in range(0, len(data), width)]
    return [b"n" if no else b"b" + struct.pack(">I", len(v)) + v for no, v in zip(null, values, strict=True)]


def _join_and_copy(messages: list[bytes]) -> None:
    np.frombuffer(b"".join(messages), np.uint8).copy()


def _decode(messages: list[bytes]) -> None:
    decoder = Decoder("bench")
    for at in range(0, len(messages), _CHUNK):
        decoder.feed(messages[at : at + _CHUNK])


def _best(work: Callable[[], object], repeats: int = 5) -> float:
    """Seconds of the fastest of a few runs."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times)


def _result(name: str, reference: float, ours: float, unit: str, details: str) -> dict[str, Any]:
    return {
        "name": f"decode: {name}",
        "reference": reference,
        "ours": ours,
        "ratio": ours / reference,
        "unit": unit,
        "details": details,
    }


if __name__ == "__main__":
    print(json.dumps(run(int(sys.argv[1]) if len(sys.argv) > 1 else 200_000), indent=2))
