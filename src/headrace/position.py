"""Positions of rows in the database's log: (commit LSN, index in the transaction).

Never a bare LSN: all rows of one COPY share an LSN. The text form is ``<LSN>:<index>``, with the LSN as
PostgreSQL prints it (`pg_lsn`, https://www.postgresql.org/docs/current/datatype-pg-lsn.html).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc


def format_lsn(lsn: int) -> str:
    """Return the LSN as PostgreSQL prints it.

    >>> format_lsn(0x16B374D848)
    '16/B374D848'
    """
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def parse_lsn(text: str) -> int:
    """Return the LSN as an integer.

    >>> hex(parse_lsn("16/B374D848"))
    '0x16b374d848'
    """
    high, low = text.split("/")
    return int(high, 16) << 32 | int(low, 16)


class Lsn(int):
    """A byte of a server's write-ahead log, as a source's position: everything committed before it.

    >>> str(Lsn.parse("16/B374D848")), Lsn.parse(5) >= Lsn.parse("0/4")
    ('16/B374D848', True)
    """

    __slots__ = ()

    @classmethod
    def parse(cls, lsn: str | int) -> Lsn:
        """Make one of PostgreSQL's text, or of the number itself."""
        return cls(parse_lsn(lsn) if isinstance(lsn, str) else lsn)

    def __str__(self) -> str:
        return format_lsn(self)


@dataclass(frozen=True, order=True, slots=True)
class Position:
    """A row's position in commit order; positions of one source compare.

    >>> Position(5, 2) < Position(5, 10) < Position(6, 0)
    True
    >>> str(Position(0x1932A28, 3)), Position.parse("0/1932A28:3")
    ('0/1932A28:3', Position(lsn=26421800, index=3))
    """

    lsn: int
    index: int

    def __str__(self) -> str:
        return f"{format_lsn(self.lsn)}:{self.index}"

    @classmethod
    def parse(cls, text: str) -> Position:
        lsn, _, index = text.rpartition(":")
        return cls(parse_lsn(lsn), int(index))


def format_positions(lsn: npt.NDArray[np.uint64], index: npt.NDArray[np.int64]) -> pa.Array:
    """Return text forms of many positions at once; each distinct LSN is formatted once.

    >>> format_positions(np.array([26421800, 26421800], np.uint64), np.array([0, 1])).to_pylist()
    ['0/1932A28:0', '0/1932A28:1']
    """
    distinct, where = np.unique(lsn, return_inverse=True)
    texts = pa.array([format_lsn(int(value)) for value in distinct], pa.string())
    return pc.binary_join_element_wise(texts.take(pa.array(where)), pa.array(index).cast(pa.string()), ":")
