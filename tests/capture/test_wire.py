"""Frames off the socket: found at once, whatever the rows hold and wherever the reads cut them."""

from __future__ import annotations

import random
import struct
from types import SimpleNamespace
from typing import Any

import pytest

from headrace.capture.postgres.messages import PAD
from headrace.capture.postgres.wire import WireStream, at_rest, frames
from headrace.errors import SourceRefused, SourceUnavailable


def frame(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack(">I", 4 + len(body)) + body


def xlog(body: bytes) -> bytes:
    return frame(b"d", b"w" + bytes(24) + body)


def keepalive(wal_end: int, reply: int = 0) -> bytes:
    return frame(b"d", struct.pack(">cQqB", b"k", wal_end, 0, reply))


COMMIT = xlog(b"C" + bytes(25))


def stream() -> Any:
    """A stream's parsing half, without a socket."""
    made: Any = WireStream.__new__(WireStream)
    made.wal_end, made.reply_wanted, made._rest = 0, False, b""
    made._server = SimpleNamespace(lost=lambda error: SourceUnavailable(str(error)), __str__=lambda _: "here")
    return made


def rows(chance: random.Random, n: int) -> list[bytes]:
    """Inserts of random bytes, among them ones that look like frames."""
    fakes = (b"d\0\0\0\x20w", xlog(b"Ifake"), keepalive(9), b"d\0", b"w" * 9)
    return [
        b"I" + b"".join(chance.choice((*fakes, chance.randbytes(9))) for _ in range(chance.randint(0, 5)))
        for _ in range(n)
    ]


@pytest.mark.parametrize("seed", range(30))
def test_any_cut_gives_the_same_messages(seed: int) -> None:
    chance = random.Random(seed)
    bodies = rows(chance, 60)
    data, ends = b"", 0
    for number, body in enumerate(bodies):
        data += xlog(body)
        if chance.random() < 0.1:
            ends = number
            data += keepalive(number)
        if chance.random() < 0.05:
            data += frame(b"N", b"CNOTIC\0Mnothing\0\0") + frame(b"S", b"a\0b\0")
    parser, found = stream(), []
    while data:
        cut = chance.randint(1, 400)
        part = parser.frame([data[:cut]])
        data = data[cut:]
        if part is not None:
            found += [part.data[a + 25 : b] for a, b in zip(part.start.tolist(), part.end.tolist(), strict=True)]
    assert found == bodies
    assert parser.wal_end == ends
    assert parser._rest == b""


def test_frames_over_16_megabytes() -> None:
    bodies = [b"I1", b"I" + bytes(1 << 24), b"I2", b"I" + b"w" * (1 << 24)]
    data = b"".join(map(xlog, bodies))
    assert len(frames(data + PAD, len(data))) == 4
    assert len(frames(data + PAD, len(data) - 1)) == 3


def test_what_the_server_says_at_the_end() -> None:
    with pytest.raises(SourceRefused, match="does not send all changes"):
        stream().frame([xlog(b"I"), frame(b"N", b"SWARNING\0C55000\0Mskipped loading publication\0\0")])
    with pytest.raises(SourceRefused, match="slot is gone"):
        stream().frame([frame(b"E", b"SERROR\0C42704\0Mslot is gone\0\0")])
    with pytest.raises(SourceUnavailable, match="shutting down"):
        stream().frame([frame(b"E", b"SFATAL\0C57P01\0Mshutting down\0\0")])
    with pytest.raises(SourceUnavailable, match="ended"):
        stream().frame([frame(b"c", b"")])


def test_a_lone_transaction_is_known_to_be_whole() -> None:
    assert at_rest(xlog(b"B") + COMMIT)
    assert at_rest(COMMIT + keepalive(1) + keepalive(2, 1))
    assert at_rest(keepalive(1))
    assert not at_rest(xlog(b"B"))
    assert not at_rest(xlog(b"B" + bytes(25)))
    assert not at_rest(COMMIT[:-1])
