"""Frames off the socket: found at once, whatever the rows hold and wherever the reads cut them."""

from __future__ import annotations

import random
import struct
from typing import Any

import pytest

from headrace.capture.postgres.client import Server
from headrace.capture.postgres.wire import WireStream, at_rest
from headrace.errors import DecodeError, SourceError, SourceRefused, SourceUnavailable


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
    made.wal_end, made.reply_wanted, made._rest, made.ended = 0, False, b"", None
    made._server, made._publication, made._from = Server("host=here"), "p", 0x10
    return made


def bodies_of(part: Any) -> list[bytes]:
    pairs = zip(part.start.tolist(), part.end.tolist(), strict=True) if part is not None else ()
    return [part.data[a + 25 : b] for a, b in pairs]


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
        found += bodies_of(parser.frame([data[:cut]]))
        data = data[cut:]
    assert found == bodies
    assert parser.wal_end == ends
    assert parser._rest == b""


def test_frames_over_16_megabytes() -> None:
    bodies = [b"I1", b"I" + bytes(1 << 24), b"I2", b"I" + b"w" * (1 << 24)]
    data = b"".join(map(xlog, bodies))
    assert bodies_of(stream().frame([data])) == bodies
    assert bodies_of(stream().frame([data[:-1]])) == bodies[:3]


NOTICE = frame(b"N", b"SNOTICE\0CNOTIC\0Mnothing\0\0")
BESIDE = NOTICE + frame(b"S", b"TimeZone\0UTC\0") + frame(b"A", bytes(4) + b"channel\0payload\0") + frame(b"d", b"")
SAID = {
    "publication": (b'SERROR\0C42704\0Mpublication "p" does not exist\0\0', SourceRefused, "was dropped"),
    "slot": (b"SERROR\0C42704\0Mslot is gone\0\0", SourceRefused, "slot is gone"),
    "down": (b"SFATAL\0C57P01\0Mshutting down\0\0", SourceUnavailable, "shutting down"),
}


def test_what_is_there_is_handled_wherever_the_reads_cut_it() -> None:
    """An error has been met as soon as its last byte is there, whatever follows; what came before it is given out."""
    for body, kind, says in SAID.values():
        before = xlog(b"I1") + BESIDE + keepalive(7) + xlog(b"I2") + frame(b"d", b"s" + bytes(24)) + NOTICE
        data = before + frame(b"E", body)
        for cut in range(len(data) + 1):
            parser = stream()
            found = bodies_of(parser.frame([data[:cut]]))
            assert (parser.ended is None) == (cut < len(data))
            found += bodies_of(parser.frame([data[cut:]]))
            assert (found, parser.wal_end) == ([b"I1", b"I2"], 7)
            assert isinstance(parser.ended, kind)
            assert says in str(parser.ended)
        assert parser.frame([xlog(b"I3")]) is None


def test_messages_one_byte_at_a_time() -> None:
    parser, found = stream(), []
    for byte in NOTICE + xlog(b"I1") + BESIDE + xlog(b"I2") + keepalive(3) + frame(b"Z", b"I"):
        found += bodies_of(parser.frame([bytes([byte])]))
    assert (found, parser.wal_end) == ([b"I1", b"I2"], 3)
    assert isinstance(parser.ended, SourceUnavailable)


def test_many_notices_between_rows() -> None:
    bodies = [b"I%d" % number for number in range(5000)]
    assert bodies_of(stream().frame([b"".join(xlog(body) + NOTICE for body in bodies)])) == bodies


def test_unknown_kinds_of_copy_data_are_errors() -> None:
    for kind in set(range(256)) - set(b"wks"):
        parser = stream()
        other = frame(b"d", bytes([kind]) + bytes(24))
        assert bodies_of(parser.frame([keepalive(0x20) + xlog(b"I1") + other + xlog(b"I2")])) == [b"I1"]
        assert isinstance(parser.ended, DecodeError)
        assert f"kind {chr(kind)!r}" in str(parser.ended)
        assert "0/20" in str(parser.ended)


def test_unknown_messages_are_errors() -> None:
    for byte in set(range(256)) - set(b"dcCEZNSA"):
        parser = stream()
        assert bodies_of(parser.frame([xlog(b"I1") + frame(bytes([byte]), b"")])) == [b"I1"]
        assert isinstance(parser.ended, DecodeError)


def test_what_the_server_says_at_the_end() -> None:
    def ended(*messages: bytes) -> SourceError | None:
        parser = stream()
        parser.frame(list(messages))
        made: SourceError | None = parser.ended
        return made

    gone = ended(xlog(b"I"), frame(b"N", b'SWARNING\0C55000\0Mskipped loading publication "p"\0\0'), xlog(b"I"))
    assert isinstance(gone, SourceRefused)
    assert "publication «p» is not there" in str(gone)
    assert isinstance(ended(frame(b"c", b"")), SourceUnavailable)


def test_a_lone_transaction_is_known_to_be_whole() -> None:
    assert at_rest(xlog(b"B") + COMMIT)
    assert at_rest(COMMIT + keepalive(1) + keepalive(2, 1))
    assert at_rest(keepalive(1))
    assert not at_rest(xlog(b"B"))
    assert not at_rest(xlog(b"B" + bytes(25)))
    assert not at_rest(COMMIT[:-1])
