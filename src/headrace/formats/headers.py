"""Headers in which Headrace says what an event is, so that no format loses any of it.

================  =====================================================================================
header            value
================  =====================================================================================
``__op``          c, u, d, t or r
``__position``    ``0/1932A28:3``: commit LSN and index in the transaction (`headrace.position`)
``__ts_us``       commit time, microseconds since 1970-01-01 UTC
``__source``      the source's name, where it is not what the topic's name begins with
``__before``      ``json:`` and the old row of an update as JSON, where the value does not have it
``__unchanged``   ``json:`` and a JSON array of the columns that the source did not send
``__row``         ``json:`` and the row as JSON, where the value does not have all of it: the old row of a delete whose
                  value is null, a row of several columns of which a text is one
``__tombstone``   marks a null value that is no event of its own: behind a delete which has a value, or of the
                  key that a row had before
================  =====================================================================================

What begins with a brace or a bracket is a map or an array to Kafka Connect (its `SimpleHeaderConverter`, the default),
mostly one without a schema, and Debezium's JDBC sink fails on that. Behind ``json:`` it is a text.

Debezium's flattening adds headers too (``add.headers=op,source.ts_ms``), under the names ``__op``,
``__source_ts_ms`` and so on: `read_event_headers` takes what they say. Its ``__debezium.newkey``, ``oldkey`` and
``context.*`` say nothing that a batch holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.arrays import Ints, Mask
from headrace.batch import OPS, Batch, take, take_records
from headrace.formats.json_text import as_bytes, fragments, joined, objects
from headrace.wire import Headers, WireMessages

Cells = Sequence[bytes | None]
Header = tuple[str, bytes | None]

_ALWAYS = ("__op", "__position", "__ts_us")
_MARK = "json:"
_OPS = dict(OPS)


def topic_source(topic: str) -> str:
    """The source's name that a topic's name says: all but its last two parts (schema and table).

    >>> topic_source("shop.public.orders"), topic_source("orders")
    ('shop', '')
    """
    return ".".join(topic.split(".")[:-2])


def event_headers(
    batch: Batch, *, topic: str | None = None, null_values: Mask | None = None, before: bool = True
) -> list[list[Header]]:
    """The headers of every row's message.

    Args:
        batch: the events.
        topic: where they go; the source's name is left out where this says it. None: always left out.
        null_values: whose message has no value; deletes and truncates by default. The row then goes into a header.
        before: whether the old rows of updates go into a header; not where the value has them.

    >>> event_headers(Batch.of({"id": [7]}, op="c", lsn=26421800, ts_us=5))
    [[('__op', b'c'), ('__position', b'0/1932A28:0'), ('__ts_us', b'5')]]
    """
    op = batch.op
    nulls = (op == OPS["d"]) | (op == OPS["t"]) if null_values is None else null_values
    # Every cell becomes an object of Python's anyway: made there directly, a small batch costs a third.
    headers: list[list[Header]] = [
        [_OP_HEADERS[code], ("__position", b"%X/%X:%d" % (lsn >> 32, lsn & 0xFFFFFFFF, index)), ("__ts_us", b"%d" % ts)]
        for code, lsn, index, ts in zip(
            op.tolist(), batch.lsn.tolist(), batch.index.tolist(), batch.ts_us.tolist(), strict=True
        )
    ]
    if topic is not None and batch.source != topic_source(topic):
        source = ("__source", batch.source.encode())
        for pairs in headers:
            pairs.append(source)
    for name, rows, values in _occasional(batch, nulls & (op != OPS["t"]), before):
        for row, value in zip(rows, values, strict=True):
            headers[row].append((name, value))
    return headers


_OP_HEADERS: list[Header] = [("__op", bytes([code])) for code in range(128)]


def _occasional(batch: Batch, nulls: Mask, before: bool) -> Iterator[tuple[str, list[int], list[bytes]]]:
    """Headers that few rows have: name, rows, values."""
    old, unchanged = batch.before, batch.unchanged
    if before and old is not None and old.null_count < len(old):
        rows = np.flatnonzero(np.asarray(old.is_valid()))
        yield "__before", rows.tolist(), _marked(fragments(take(old, rows)))
    if unchanged is not None and unchanged.null_count < len(unchanged):
        rows = np.flatnonzero(np.asarray(unchanged.is_valid()))
        yield "__unchanged", rows.tolist(), _marked(fragments(take(unchanged, rows)))
    if nulls.any():
        rows = np.flatnonzero(nulls)
        columns = take_records(batch.rows, rows)
        texts = objects(list(zip(columns.schema.names, columns.columns, strict=True)), rows.size)
        yield "__row", rows.tolist(), _marked(texts)


def _marked(texts: pa.Array) -> list[bytes]:
    found: list[bytes] = as_bytes(joined([_MARK, texts], len(texts))).to_pylist()
    return found


def _unmarked(cell: bytes | None) -> bytes | None:
    return None if cell is None else cell.removeprefix(_MARK.encode())


TOMBSTONE: Header = ("__tombstone", b"1")


@dataclass(slots=True)
class EventHeaders:
    """The events that the headers of some messages describe, a row for each message.

    Attributes:
        ours: whose message Headrace wrote: all of its headers are there.
        op: ASCII code of the op; 0 where the headers do not say it.
        lsn, index: the position; 0 where the headers do not say it.
        ts_us: commit time; -1 where the headers do not say it.
        before, unchanged, row: JSON; None where there is none, and as a whole where no message has one.
        tombstone: whose message only repeats the delete before it.
        source: the source's name, None where the headers do not say it.
    """

    ours: Mask
    op: npt.NDArray[np.uint8]
    lsn: npt.NDArray[np.uint64]
    index: Ints
    ts_us: Ints
    before: Cells | None = None
    unchanged: Cells | None = None
    row: Cells | None = None
    tombstone: Mask | None = None
    source: str | None = None

    def take(self, rows: Ints) -> EventHeaders:
        """Some of the rows."""
        chosen = rows.tolist()

        def cells(column: Cells | None) -> Cells | None:
            return None if column is None else [column[i] for i in chosen]

        return EventHeaders(
            self.ours[rows],
            self.op[rows],
            self.lsn[rows],
            self.index[rows],
            self.ts_us[rows],
            cells(self.before),
            cells(self.unchanged),
            cells(self.row),
            None if self.tombstone is None else self.tombstone[rows],
            self.source,
        )


def read_event_headers(messages: WireMessages) -> EventHeaders | None:
    """Read what the messages' headers say of their events; None where they say nothing at all.

    >>> batch = Batch.of({"id": [7]}, op="d", lsn=26421800, ts_us=5)
    >>> messages = WireMessages("t", [None], offsets=np.array([0]), headers=event_headers(batch))
    >>> found = read_event_headers(messages)
    >>> chr(found.op[0]), int(found.lsn[0]), int(found.ts_us[0]), found.row
    ('d', 26421800, 5, [b'{"id":7}'])
    """
    headers = messages.headers
    if not len(headers) or not any(headers):
        return None
    return _usual(headers) or _any(headers)


def _usual(headers: Sequence[Headers]) -> EventHeaders | None:
    """Read messages that all have our three headers and no more: the columns are transposed at once."""
    try:
        columns = list(zip(*headers, strict=True))
        names_and_values = [tuple(zip(*column, strict=True)) for column in columns]
    except ValueError:
        return None
    if len(columns) != len(_ALWAYS) or any(
        set(pairs[0]) != {name} for pairs, name in zip(names_and_values, _ALWAYS, strict=True)
    ):
        return None
    try:
        return _ours(*(pairs[1] for pairs in names_and_values))
    except (ValueError, pa.ArrowException):
        return None


def _ours(ops: Cells, positions: Cells, times: Cells) -> EventHeaders:
    lsn, index = parse_positions(pa.array(positions, pa.binary()))
    ts = np.asarray(pa.array(times, pa.binary()).cast(pa.string()).cast(pa.int64()))
    codes = _codes(ops)
    return EventHeaders(np.ones(len(ops), bool), codes, lsn, index, ts)


def _codes(ops: Cells) -> npt.NDArray[np.uint8]:
    joined = b"".join(op or b"\0" for op in ops)
    if len(joined) != len(ops):
        raise ValueError("an op is one letter")
    codes = np.frombuffer(joined, np.uint8)
    return np.where(np.isin(codes, list(OPS.values())), codes, 0).astype(np.uint8)


def parse_positions(texts: pa.Array) -> tuple[npt.NDArray[np.uint64], Ints]:
    """LSNs and indexes of many text forms at once.

    Raises:
        ValueError: one is no position.

    >>> [array.tolist() for array in parse_positions(pa.array([b"0/1932A28:3", b"16/B374D848:10"]))]
    [[26421800, 97500059720], [3, 10]]
    """
    parts = pc.split_pattern(pc.replace_substring(texts.cast(pa.string()), "/", ":"), ":")
    if texts.null_count or (np.asarray(pc.list_value_length(parts)) != 3).any():
        raise ValueError("a position is <LSN>:<index>")
    flat = parts.flatten()
    three = np.arange(len(flat)).reshape(-1, 3)
    high, low = (_hex(flat.take(pa.array(three[:, i]))) for i in (0, 1))
    return high << np.uint64(32) | low, np.asarray(flat.take(pa.array(three[:, 2])).cast(pa.int64()))


def _hex(texts: pa.Array) -> npt.NDArray[np.uint64]:
    distinct = texts.dictionary_encode()
    if len(distinct.dictionary) * 4 < len(texts):
        each = np.array([int(value, 16) for value in distinct.dictionary.to_pylist()], np.uint64)
        numbers: npt.NDArray[np.uint64] = each[np.asarray(distinct.indices)]
    else:
        numbers = np.asarray(pc.binary_join_element_wise("0x", texts, "").cast(pa.uint64()))
    return numbers


def _any(headers: Sequence[Headers]) -> EventHeaders | None:
    """Read messages with any headers, row by row."""
    found = [{name: value for name, value in pairs if name.startswith("__")} for pairs in headers]
    if not any(found):
        return None
    n = len(found)
    events = EventHeaders(
        np.zeros(n, bool), np.zeros(n, np.uint8), np.zeros(n, np.uint64), np.zeros(n, np.int64), np.full(n, -1)
    )
    ours = [i for i, pairs in enumerate(found) if all(pairs.get(name) for name in _ALWAYS)]
    _fill_ours(events, found, ours)
    for i, pairs in enumerate(found):
        if not events.ours[i] and pairs:
            events.op[i] = _OPS.get(_text(pairs.get("__op")), 0)
            events.ts_us[i] = _time(pairs)
    for name in ("before", "unchanged", "row"):
        cells = [_unmarked(pairs.get(f"__{name}")) if events.ours[i] else None for i, pairs in enumerate(found)]
        if any(cell is not None for cell in cells):
            setattr(events, name, cells)
    tombstones = np.array([TOMBSTONE[0] in item for item in found])
    events.tombstone = tombstones if tombstones.any() else None
    source = next((item["__source"] for i, item in enumerate(found) if events.ours[i] and "__source" in item), None)
    events.source = None if source is None else source.decode(errors="replace")
    said = events.op.any() or (events.ts_us >= 0).any() or events.tombstone is not None
    return events if said else None


def _fill_ours(events: EventHeaders, found: list[dict[str, bytes | None]], rows: list[int]) -> None:
    try:
        ours = _ours(*([found[i][name] for i in rows] for name in _ALWAYS))
    except (ValueError, pa.ArrowException):
        if len(rows) > 1:  # somebody else's header of that name: those messages only are not ours
            half = len(rows) // 2
            _fill_ours(events, found, rows[:half])
            _fill_ours(events, found, rows[half:])
        return
    events.ours[rows] = True
    events.op[rows], events.lsn[rows], events.index[rows], events.ts_us[rows] = (
        ours.op,
        ours.lsn,
        ours.index,
        ours.ts_us,
    )


def _text(value: bytes | None) -> str:
    """A header's text; converters of Kafka Connect that write JSON put it in quotes."""
    return (value or b"").decode(errors="replace").strip('"')


def _time(one: dict[str, bytes | None]) -> int:
    for name, scale in (("__source_ts_us", 1), ("__source_ts_ms", 1000), ("__ts_us", 1), ("__ts_ms", 1000)):
        text = _text(one.get(name))
        if text.isdecimal() and len(text) < 17:
            return int(text) * scale
    return -1
