"""Which transaction each row event belongs to: the Begin and Commit messages of a frame, read as vectors.

Begin: int64 final LSN (the commit record's), int64 commit time, int32 xid. Commit: int8 flags, int64 commit LSN, int64
end LSN, int64 commit time. (https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from headrace.capture.postgres.messages import BEGIN, COMMIT, HEADER, UNIX_2000_US, Frame, Ints, Longs, Mask

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
        starts = np.searchsorted(rows, self.first)
        stops = np.searchsorted(rows, self.last)
        counts: Ints = stops - starts
        if int(counts.sum()) != rows.size:
            inside = np.zeros(len(frame), bool)
            for first, last in zip(self.first, self.last, strict=True):
                inside[max(first, 0) : last] = True
            raise frame.error(int(rows[~inside[rows]][0]), HEADER, "a row outside of a transaction")
        return counts


def transactions(frame: Frame, unfinished: Unfinished | None) -> Transactions:
    """Read BEGIN and COMMIT of a frame that may go on with an unfinished transaction and end inside another."""
    kind = frame.kind
    marks = np.flatnonzero((kind == BEGIN) | (kind == COMMIT))
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
    differ = frame.gather(ends + 2, ">u8") != lsn[: last.size]
    if differ.any():
        raise frame.error(int(last[differ.argmax()]), HEADER + 2, "COMMIT's LSN is not the one of its BEGIN")
    end_lsn = frame.gather(ends + 10, ">u8")
    if first.size > last.size:
        last = np.append(last, len(frame))
    return Transactions(first, last, lsn, ts_us, base, end_lsn)


def _check_order(frame: Frame, marks: Ints, begins: Mask, inside: bool) -> None:
    expected = np.arange(marks.size) % 2 == int(inside)
    wrong = begins != expected
    if wrong.any():
        row = int(wrong.argmax())
        what = "BEGIN inside a transaction" if begins[row] else "COMMIT without BEGIN"
        raise frame.error(int(marks[row]), HEADER, what)


def _check_length(frame: Frame, messages: Ints, length: int) -> None:
    wrong = frame.end[messages] - frame.start[messages] != length
    if wrong.any():
        message = int(messages[wrong.argmax()])
        raise frame.error(message, int(frame.end[message] - frame.start[message]), f"has not its {length} bytes")
