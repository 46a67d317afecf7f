"""Debezium's events as columns: what an envelope, or the fields that its flattening adds, say of each row.

https://debezium.io/documentation/reference/stable/connectors/postgresql.html#postgresql-events and
https://debezium.io/documentation/reference/stable/transformations/event-flattening.html

Everything here works on raw columns, as JSON (or any other serialisation) has them.
"""

from __future__ import annotations

import base64
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.arrays import Ints, Mask
from headrace.batch import OPS, is_meta
from headrace.formats.coerce import to_type
from headrace.plain_values import is_bytes, is_list, is_text

Columns = dict[str, pa.Array]

PLACEHOLDER = "__debezium_unavailable_value"
UNKNOWN = -1

_NOT_ROWS = ("m",)
_ENVELOPE_NAMES = frozenset({"before", "after", "source", "transaction", "op", "ts_ms", "ts_us", "ts_ns"})
# Fields that flattening adds and that are used up; any other keeps its column.
_USED = ("__deleted", "__op", "__ts_ms", "__ts_us", "__ts_ns", "__source_ts_ms", "__source_ts_us", "__source_ts_ns")


FACTS = ("rows", "op", "lsn", "tx", "order", "ts_us")  # what `Events` has of each event, in the fields' order


@dataclass(slots=True)
class Events:
    """Some events in raw columns.

    Attributes:
        columns: of the rows, by name; a delete's are those of its old row.
        rows: the message that each event came from.
        op: ASCII codes.
        lsn, tx: a number that rises with the commits, and the transaction's id; 0 where unknown.
        order: index in the transaction, UNKNOWN where nobody says it.
        ts_us: commit time, UNKNOWN likewise.
        before: old rows of updates, and which rows have one.
        unchanged: per row the names of columns that the source did not send; None where no row has any.
        source: the source's name, empty where unknown.
        enveloped: whether these were envelopes.
    """

    columns: Columns
    rows: Ints
    op: npt.NDArray[np.uint8]
    lsn: npt.NDArray[np.uint64]
    tx: Ints
    order: Ints
    ts_us: Ints
    before: Columns | None = None
    has_before: Mask | None = None
    unchanged: list[list[str] | None] | None = None
    source: str = ""
    enveloped: bool = False
    bad: list[tuple[int, str]] = field(default_factory=list)

    def take(self, where: Ints) -> Events:
        """Some of the events."""
        at = pa.array(where)
        return replace(
            self,
            columns={name: array.take(at) for name, array in self.columns.items()},
            before=None if self.before is None else {name: array.take(at) for name, array in self.before.items()},
            has_before=None if self.has_before is None else self.has_before[where],
            unchanged=None if self.unchanged is None else [self.unchanged[i] for i in where.tolist()],
            bad=[],
            **{name: getattr(self, name)[where] for name in FACTS},
        )


def blank(columns: Columns, rows: Ints, op: str = "c") -> Events:
    """Events of which nothing is known but their rows."""
    n = rows.size
    return Events(
        columns,
        rows,
        np.full(n, OPS[op], np.uint8),
        np.zeros(n, np.uint64),
        np.zeros(n, np.int64),
        np.full(n, UNKNOWN, np.int64),
        np.full(n, UNKNOWN, np.int64),
    )


# --- envelopes ---

_REQUIRED = {"version", "connector", "name", "ts_ms", "db", "schema", "table"}
# The block ``source`` of an envelope, as the connector for PostgreSQL writes it.
SOURCE_BLOCK = tuple(
    pa.field(name, kind, nullable=name not in _REQUIRED)
    for name, kind in (
        ("version", pa.string()),
        ("connector", pa.string()),
        ("name", pa.string()),
        ("ts_ms", pa.int64()),
        ("snapshot", pa.string()),
        ("db", pa.string()),
        ("sequence", pa.string()),
        ("ts_us", pa.int64()),
        ("ts_ns", pa.int64()),
        ("schema", pa.string()),
        ("table", pa.string()),
        ("txId", pa.int64()),
        ("lsn", pa.int64()),
        ("xmin", pa.int64()),
        ("origin", pa.string()),
        ("origin_lsn", pa.int64()),
    )
)
_KINDS = {field.name: field.type for field in SOURCE_BLOCK}
SOURCE = pa.struct([(name, _KINDS[name]) for name in ("name", "ts_ms", "ts_us", "sequence", "lsn", "txId")])
"""Of that block, what is read."""


def envelope_types(row: pa.DataType | None) -> pa.Schema:
    """Raw types of an envelope whose row is known to be ``row``; of the rest what is read."""
    rows = [] if row is None else [("before", row), ("after", row)]
    transaction = pa.struct([("id", pa.string()), ("total_order", pa.int64())])
    times = [(name, pa.int64()) for name in ("ts_ms", "ts_us")]
    return pa.schema([*rows, ("source", SOURCE), ("transaction", transaction), ("op", pa.string()), *times])


def is_envelope(names: Sequence[str]) -> bool:
    """Return whether an object of these names is an envelope.

    >>> is_envelope(["before", "after", "source", "op", "ts_ms", "transaction"]), is_envelope(["op", "source"])
    (True, False)
    """
    found = set(names)
    return "op" in found and bool(found & {"before", "after"}) and found <= _ENVELOPE_NAMES


def is_no_row(value: dict[str, Any]) -> bool:
    """Return whether an object is one of Debezium's that speak of no row: logical messages, transactions, heartbeats.

    >>> is_no_row({"op": "m", "source": {}, "message": {}}), is_no_row({"id": 1})
    (True, False)
    """
    names = set(value)
    if value.get("op") in _NOT_ROWS and {"source", "message"} <= names:
        return True
    return value.get("status") in ("BEGIN", "END") and {"id", "event_count", "data_collections"} <= names


def envelopes(records: pa.RecordBatch, rows: Ints, *, declared: bool = False) -> list[Events]:
    """The events of envelopes, in as many pieces as old and new rows have types.

    ``declared``: the columns' types are known, so that a number here and a text there may both become it.
    """
    op, bad, keep = _ops(records, rows)
    if not keep.all():
        where = np.flatnonzero(keep)
        records, rows, op = records.take(pa.array(where)), rows[where], op[where]
    if not rows.size:
        return [replace(blank({}, rows), enveloped=True, bad=bad)]
    events = _described(records, rows, op)
    before, after = _struct(records, "before"), _struct(records, "after")
    missing = ((op == OPS["d"]) & ~before[1]) | (np.isin(op, list(map(ord, "cur"))) & ~after[1])
    if missing.any():
        bad += [(int(rows[i]), f"op «{chr(op[i])}» without its row") for i in np.flatnonzero(missing)]
        kept = np.flatnonzero(~missing)
        at = pa.array(kept)
        events, op = events.take(kept), op[kept]
        before, after = (({n: a.take(at) for n, a in side.items()}, valid[kept]) for side, valid in (before, after))
    pieces = _merged(events, before, after, declared)
    if pieces:
        pieces[0].bad = bad
        return pieces
    return [replace(blank({}, rows[:0]), enveloped=True, bad=bad)]


def _ops(records: pa.RecordBatch, rows: Ints) -> tuple[npt.NDArray[np.uint8], list[tuple[int, str]], Mask]:
    texts = records.column("op") if "op" in records.schema.names else pa.nulls(len(records), pa.string())
    if not is_text(texts.type):
        texts = pa.nulls(len(texts), pa.string()) if pa.types.is_null(texts.type) else texts.cast(pa.string())
    codes = np.zeros(len(texts), np.uint8)
    for name, code in OPS.items():
        codes[np.asarray(pc.fill_null(pc.equal(texts, name), False))] = code
    silent = np.asarray(pc.fill_null(pc.equal(texts, "m"), False))
    unknown = (codes == 0) & ~silent
    bad = [(int(rows[i]), f"an envelope of op {_shown(texts[i].as_py())}") for i in np.flatnonzero(unknown)]
    return codes, bad, codes != 0


def _shown(op: str | None) -> str:
    return "null" if op is None else f"«{op}», which is none of c, u, d, t, r"


def _struct(records: pa.RecordBatch, name: str) -> tuple[Columns, Mask]:
    """Fields of a struct column and which rows have it."""
    array = records.column(name) if name in records.schema.names else None
    if array is None or not pa.types.is_struct(array.type):
        return {}, np.zeros(len(records), bool)
    names = [column.name for column in array.type]
    return dict(zip(names, array.flatten(), strict=True)), np.asarray(array.is_valid())


def _numbers(columns: Columns, name: str, n: int) -> tuple[Ints, Mask]:
    """An integer field: values (0 where null) and which rows have it."""
    array = columns.get(name)
    if array is None or not pa.types.is_integer(array.type):
        return np.zeros(n, np.int64), np.zeros(n, bool)
    return np.asarray(pc.fill_null(array, 0).cast(pa.int64())), np.asarray(array.is_valid())


def _described(records: pa.RecordBatch, rows: Ints, op: npt.NDArray[np.uint8]) -> Events:
    n = len(records)
    source, _ = _struct(records, "source")
    events = replace(blank({}, rows), op=op, enveloped=True, source=_first_text(source.get("name")))
    top = {name: records.column(name) for name in ("ts_us", "ts_ms") if name in records.schema.names}
    events.ts_us = commit_times(
        [(source, "ts_us", 1), (source, "ts_ms", 1000), (top, "ts_us", 1), (top, "ts_ms", 1000)], n
    )
    events.lsn = positions(source, n, "sequence", "lsn")
    events.tx = _numbers(source, "txId", n)[0]
    total, present = _numbers(_struct(records, "transaction")[0], "total_order", n)
    events.order = np.where(present, total - 1, UNKNOWN)
    return events


def _first_text(array: pa.Array | None) -> str:
    if array is None or not is_text(array.type):
        return ""
    texts = array.drop_null()
    return str(texts[0].as_py()) if len(texts) else ""


def commit_times(candidates: Sequence[tuple[Columns, str, int]], n: int) -> Ints:
    """Microseconds from the first candidate that a row has; UNKNOWN where it has none."""
    times = np.full(n, UNKNOWN, np.int64)
    for columns, name, scale in candidates:
        values, present = _numbers(columns, name, n)
        times = np.where((times == UNKNOWN) & present, values * scale, times)
        if (times != UNKNOWN).all():
            break
    return times


def positions(columns: Columns, n: int, sequence: str, lsn: str) -> npt.NDArray[np.uint64]:
    """A number that rises with the commits: the commit LSN of the transaction before, else the event's own LSN.

    Debezium's ``sequence`` is a JSON text ``["<commit LSN of the transaction before>","<LSN>"]``. The event's own LSN
    follows the order of writing, which is not that of the commits.
    """
    own, present = _numbers(columns, lsn, n)
    numbers = np.where(present, own, 0).astype(np.uint64)
    texts = columns.get(sequence)
    if texts is not None and is_text(texts.type) and texts.null_count < len(texts):
        found = pc.extract_regex(texts, r'^\s*\[\s*"(?P<commit>\d{1,19})"')
        commits = found.field("commit")
        valid = np.asarray(found.is_valid())
        numbers = np.where(valid, np.asarray(pc.if_else(pa.array(valid), commits, "0").cast(pa.uint64())), numbers)
    return numbers


def _merged(events: Events, before: tuple[Columns, Mask], after: tuple[Columns, Mask], declared: bool) -> list[Events]:
    """Rows from ``after``, those of deletes from ``before``."""
    deletes = events.op == OPS["d"]
    updated = before[1] & (events.op == OPS["u"])
    if not deletes.any() and not updated.any():
        return [replace(events, columns=after[0])]
    same = _alike(before[0], after[0], declared)
    if same is None:
        return _in_pieces(events, before, after, deletes | updated, declared)
    old, new = same
    mask = pa.array(deletes)
    events.columns = {name: pc.if_else(mask, old[name], new[name]) if deletes.any() else new[name] for name in new}
    if updated.any():
        events.before, events.has_before = old, updated
    return [events]


def _in_pieces(
    events: Events, before: tuple[Columns, Mask], after: tuple[Columns, Mask], odd: Mask, declared: bool
) -> list[Events]:
    """Old and new rows of types that do not go together: each stretch of messages for itself."""
    n = odd.size
    if n == 1:
        deleted = events.op[0] == OPS["d"]
        # An old row of other types than the new one's cannot stand beside it.
        return [replace(events, columns=before[0] if deleted else after[0])]
    cuts = np.flatnonzero(odd[1:] != odd[:-1]) + 1
    if not cuts.size:
        cuts = np.array([n // 2])
    pieces = []
    for start, end in zip([0, *cuts.tolist()], [*cuts.tolist(), n], strict=True):
        where = np.arange(start, end)
        at = pa.array(where)
        halves = [
            ({name: _shown_type(a.take(at)) for name, a in side.items()}, valid[where])
            for side, valid in (before, after)
        ]
        pieces += _merged(events.take(where), halves[0], halves[1], declared)
    return pieces


def _shown_type(array: pa.Array) -> pa.Array:
    return pa.nulls(len(array)) if array.null_count == len(array) else array


def _alike(old: Columns, new: Columns, declared: bool) -> tuple[Columns, Columns] | None:
    """Both sides with the same columns of the same types; None where they contradict each other."""
    names = list(dict.fromkeys([*new, *old]))
    n = len(next(iter([*new.values(), *old.values()]), ()))
    left, right = {}, {}
    for name in names:
        one, other = old.get(name, pa.nulls(n)), new.get(name, pa.nulls(n))
        kind = _common(one.type, other.type, declared)
        if kind is None:
            return None
        left[name], right[name] = _cast(one, kind), _cast(other, kind)
    return left, right


def _common(one: pa.DataType, other: pa.DataType, declared: bool) -> pa.DataType | None:
    """A type that holds the values of both."""
    if one.equals(other) or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    if is_list(one) and is_list(other):
        item = _common(one.value_type, other.value_type, declared)
        return None if item is None else pa.large_list(item)
    if pa.types.is_struct(one) and pa.types.is_struct(other):
        return _common_struct(one, other, declared)
    if pa.types.is_map(one) and pa.types.is_map(other):
        key = _common(one.key_type, other.key_type, declared)
        item = _common(one.item_type, other.item_type, declared)
        return None if key is None or item is None else pa.map_(key, item)
    if _is_number(one) and _is_number(other):
        return pa.int64() if pa.types.is_integer(one) and pa.types.is_integer(other) else pa.float64()
    scalars = not (one.num_fields or other.num_fields)
    return pa.large_string() if declared and scalars and (is_text(one) or is_text(other)) else None


def _common_struct(one: pa.StructType, other: pa.StructType, declared: bool) -> pa.DataType | None:
    names = list(dict.fromkeys([*(field.name for field in one), *(field.name for field in other)]))
    fields = []
    for name in names:
        kinds = [kind.field(name).type if kind.get_field_index(name) >= 0 else pa.null() for kind in (one, other)]
        kind = _common(kinds[0], kinds[1], declared)
        if kind is None:
            return None
        fields.append(pa.field(name, kind))
    return pa.struct(fields)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _cast(array: pa.Array, kind: pa.DataType) -> pa.Array:
    return array.cast(kind, safe=False) if _is_number(kind) and _is_number(array.type) else to_type(array, kind)


# --- flattened rows ---


def flattened(columns: Columns, rows: Ints, keep: frozenset[str] = frozenset()) -> Events:
    """The events of flattened rows, from the fields that were added to them.

    ``__deleted``, ``__op`` and times are used and lose their columns, like every name that Headrace gives a meaning
    of its own; ``__lsn``, ``__source_lsn`` and ``sequence`` say the position. Others (``__table``, ``__db``) stay
    columns. ``keep`` are names that are columns of the table.

    >>> flat = {"id": pa.array([1, 2]), "__deleted": pa.array(["false", "true"]), "__source_ts_ms": pa.array([5, 6])}
    >>> events = flattened(flat, np.arange(2))
    >>> events.op.tobytes(), events.ts_us.tolist(), list(events.columns)
    (b'cd', [5000, 6000], ['id'])
    """
    n = rows.size
    own = {name: array for name, array in columns.items() if name in keep or not is_used(name)}
    events = blank(own, rows)
    if len(own) == len(columns) and not any(name.startswith("__") for name in columns):
        return events
    op = columns.get("__op")
    if op is not None and is_text(op.type):
        for name, code in OPS.items():
            events.op[np.asarray(pc.fill_null(pc.equal(op, name), False))] = code
    deleted = columns.get("__deleted")
    if deleted is not None and is_text(deleted.type):
        events.op[np.asarray(pc.fill_null(pc.equal(deleted, "true"), False))] = OPS["d"]
    events.ts_us = commit_times(
        [
            (columns, "__source_ts_us", 1),
            (columns, "__source_ts_ms", 1000),
            (columns, "__ts_us", 1),
            (columns, "__ts_ms", 1000),
        ],
        n,
    )
    for sequence, lsn in (("__source_sequence", "__source_lsn"), ("__sequence", "__lsn")):
        events.lsn = np.where(events.lsn == 0, positions(columns, n, sequence, lsn), events.lsn)
    events.tx = _numbers(columns, "__txId", n)[0]
    return events


def is_used(name: str) -> bool:
    return name.startswith("__") and (name in _USED or is_meta(name))


# --- values that the source did not send ---


def placeholder_marks(placeholder: str) -> tuple[bytes, ...]:
    """Return the bytes of which a message holds some when one of its values may be the placeholder."""
    raw = placeholder.encode()
    numbers = ",".join(str(byte) for byte in raw[:8])
    return (raw, base64.b64encode(raw), raw.hex().encode(), numbers.encode(), _uuid(raw).encode())


def _uuid(raw: bytes) -> str:
    """Java's `UUID.nameUUIDFromBytes`: an MD5 of the bytes alone, without a namespace."""
    import hashlib

    digest = bytearray(hashlib.md5(raw, usedforsecurity=False).digest())
    return str(uuid.UUID(bytes=bytes(digest), version=3))


def mark_unchanged(events: Events, placeholder: str) -> Events:
    """Placeholders of values that the source did not send become nulls, and their columns' names are noted.

    >>> updates = replace(blank({"t": pa.array(["x", PLACEHOLDER])}, np.arange(2)), op=np.frombuffer(b"uu", np.uint8))
    >>> marked = mark_unchanged(updates, PLACEHOLDER)
    >>> marked.columns["t"].to_pylist(), marked.unchanged
    (['x', None], [None, ['t']])
    """
    raw = placeholder.encode()
    texts = [placeholder, base64.b64encode(raw).decode(), raw.hex(), f'{{"{placeholder}":"{placeholder}"}}', _uuid(raw)]
    possible = (events.op == OPS["u"]) | (events.op == OPS["c"])
    names: list[list[str] | None] = [None] * events.rows.size
    columns = dict(events.columns)
    for name, array in events.columns.items():
        mask = _is_placeholder(array, texts, placeholder) & possible
        if mask.any():
            columns[name] = pc.if_else(pa.array(mask), pa.scalar(None, array.type), array)
            for row in np.flatnonzero(mask).tolist():
                names[row] = [*(names[row] or []), name]
    return replace(events, columns=columns, unchanged=names) if any(names) else events


def _is_placeholder(array: pa.Array, texts: list[str], placeholder: str) -> Mask:
    kind = array.type
    none = np.zeros(len(array), bool)
    if is_bytes(kind):
        return np.asarray(pc.fill_null(pc.equal(array, pa.scalar(placeholder.encode(), kind)), False))
    if is_text(kind):
        # A uuid column of its own is never out of line: only arrays have that form.
        return np.asarray(pc.fill_null(pc.is_in(array, pa.array(texts[:4], kind)), False))
    if is_list(kind) and is_text(kind.value_type):
        sizes = np.asarray(pc.fill_null(pc.list_value_length(array), 0))
        single = pc.if_else(pa.array(sizes == 1), array, pa.scalar(None, kind))
        inside = np.asarray(pc.fill_null(pc.is_in(single.flatten(), pa.array(texts, kind.value_type)), False))
        none[np.flatnonzero(sizes == 1)] = inside
        return none
    if is_list(kind) and (pa.types.is_integer(kind.value_type) or pa.types.is_floating(kind.value_type)):
        code = list(placeholder.encode())
        sizes = np.asarray(pc.fill_null(pc.list_value_length(array), 0))
        for row in np.flatnonzero(sizes == len(code)).tolist():
            none[row] = array[row].as_py() == code
        return none
    if pa.types.is_struct(kind) and kind.get_field_index(placeholder) >= 0:
        return np.asarray(array.flatten()[kind.get_field_index(placeholder)].is_valid())
    if pa.types.is_map(kind) and len(array.keys) and is_text(array.keys.type):
        return np.array(
            [value is not None and [key for key, _ in value] == [placeholder] for value in array.to_pylist()]
        )
    return none
