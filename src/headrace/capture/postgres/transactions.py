"""Which transaction each row event belongs to: the Begin and Commit messages of a frame, read as vectors.

Begin: int64 final LSN (the commit record's), int64 commit time, int32 xid. Commit: int8 flags, int64 commit LSN, int64
end LSN, int64 commit time. (https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html)
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from headrace.arrays import Ints, Mask
from headrace.capture.postgres.messages import BEGIN, COMMIT, HEADER, UNIX_2000_US, Frame, Longs

_BEGIN, _COMMIT = struct.Struct(">Qq"), struct.Struct(">QQ")
_BEGIN_BYTES, _COMMIT_BYTES = HEADER + 21, HEADER + 26


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A transaction whose first rows were handed out before its COMMIT came."""

    lsn: int
    ts_us: int
    next_index: int


@dataclass(frozen=True, slots=True)
class Transactions:
    """Transactions of a frame in commit order; the last may lack its COMMIT.

    ``first`` and ``last`` are message indexes of BEGIN (-1 when it was in an earlier piece) and COMMIT (the frame's
    length when it is yet to come); ``base`` is the index of the first row here in its transaction.
    """

    first: Ints
    last: Ints
    lsn: Longs
    ts_us: Ints
    base: Ints
    end_lsn: Longs

    def __len__(self) -> int:
        return self.first.size

    def of_rows(self, frame: Frame, rows: Ints) -> Ints:
        """How many of these row messages each transaction has; a row outside of them is an error."""
        counts: Ints = rows.searchsorted(self.last) - rows.searchsorted(self.first)
        if int(counts.sum()) != rows.size:
            inside = np.zeros(len(frame), bool)
            for first, last in zip(self.first, self.last, strict=True):
                inside[max(first, 0) : last] = True
            raise frame.error(int(rows[~inside[rows]][0]), HEADER, "a row outside of a transaction")
        return counts


def transactions(frame: Frame, unfinished: Unfinished | None) -> Transactions:
    """Read BEGIN and COMMIT of a frame that may go on with an unfinished transaction and end inside another."""
    kinds = frame.kinds
    if kinds.count(b"B") + (unfinished is not None) == 1 and kinds.count(b"C") <= 1:
        return _one(frame, unfinished)
    kind = frame.kind
    marks = ((kind == BEGIN) | (kind == COMMIT)).nonzero()[0]
    begins = kind[marks] == BEGIN
    _check_order(frame, marks, begins, unfinished is not None)
    first, last = marks[begins], marks[~begins]
    _check_length(frame, first, _BEGIN_BYTES)
    _check_length(frame, last, _COMMIT_BYTES)
    body = frame.start[first] + HEADER
    lsn, ts_us = frame.gather(body + 1, ">u8"), frame.gather(body + 9, ">i8") + UNIX_2000_US
    base = np.zeros(first.size, np.int64)
    if unfinished:
        first = np.concatenate([[-1], first])
        lsn = np.concatenate([np.array([unfinished.lsn], np.uint64), lsn])
        ts_us = np.concatenate([[unfinished.ts_us], ts_us])
        base = np.concatenate([[unfinished.next_index], base])
    ends = frame.start[last] + HEADER
    _check_commits(frame, last, frame.gather(ends + 2, ">u8") != lsn[: last.size])
    end_lsn = frame.gather(ends + 10, ">u8")
    if first.size > last.size:
        last = np.append(last, len(frame))
    return Transactions(first, last, lsn, ts_us, base, end_lsn)


def _one(frame: Frame, unfinished: Unfinished | None) -> Transactions:
    """The same for a frame with one transaction, without the overhead of vectors."""
    begin, commit = frame.kinds.find(b"B"), frame.kinds.find(b"C")
    if unfinished is None and -1 < commit < begin:
        raise frame.error(commit, HEADER, "COMMIT without BEGIN")
    if unfinished is None:
        _check_length(frame, np.array([begin]), _BEGIN_BYTES)
        lsn, micros = _BEGIN.unpack_from(frame.data, int(frame.start[begin]) + HEADER + 1)
        unfinished = Unfinished(lsn, int((np.array([micros]) + UNIX_2000_US)[0]), 0)
    ends = []
    if commit >= 0:
        _check_length(frame, np.array([commit]), _COMMIT_BYTES)
        lsn, end_lsn = _COMMIT.unpack_from(frame.data, int(frame.start[commit]) + HEADER + 2)
        ends = [end_lsn]
        _check_commits(frame, np.array([commit]), np.array([lsn != unfinished.lsn]))
    return Transactions(
        np.array([begin]),
        np.array([commit if ends else len(frame)]),
        np.array([unfinished.lsn], np.uint64),
        np.array([unfinished.ts_us]),
        np.array([unfinished.next_index]),
        np.array(ends, np.uint64),
    )


def _check_order(frame: Frame, marks: Ints, begins: Mask, inside: bool) -> None:
    expected = np.arange(marks.size) % 2 == int(inside)
    wrong = begins != expected
    if wrong.any():
        row = int(wrong.argmax())
        what = "BEGIN inside a transaction" if begins[row] else "COMMIT without BEGIN"
        raise frame.error(int(marks[row]), HEADER, what)


def _check_commits(frame: Frame, commits: Ints, differ: Mask) -> None:
    if differ.any():
        raise frame.error(int(commits[differ.argmax()]), HEADER + 2, "COMMIT's LSN is not the one of its BEGIN")


def _check_length(frame: Frame, messages: Ints, length: int) -> None:
    wrong = frame.end[messages] - frame.start[messages] != length
    if wrong.any():
        message = int(messages[wrong.argmax()])
        raise frame.error(message, int(frame.end[message] - frame.start[message]), f"has not its {length} bytes")
