"""A batch of change events: one Arrow record batch, columns by their names, then what the event was.

The columns that Headrace adds begin with ``__`` (Debezium's prefix for added fields) and stand last:

=============  ======================  ===================================================================
column         type                    meaning
=============  ======================  ===================================================================
``__op``       uint8                   ASCII code of Debezium's op: c insert, u update, d delete, t truncate, r snapshot
``__lsn``      uint64                  commit LSN of the transaction (0 where the source has none)
``__index``    int64                   index of the event in its transaction
``__ts``       timestamp[us, UTC]      commit time
``__before``   struct of the columns   the old row of an update, where the replica identity gives it (optional)
``__unchanged``list<string>            columns whose value the source did not send (unchanged TOAST; optional)
``__headrace_  list<struct<column,     decimals that are NaN, where Arrow has NULL; of the old row where ``before`` says
nan``          before>>                so (optional)
``__headrace_  struct<lsn, number,     of PostgreSQL, where Debezium's events are written: where the change lies in the
change``       after>                  WAL, its transaction's number, where the commit before that ended (optional)
``__headrace_  struct<name, lsn>       of the same: where a transaction was replicated from, and the LSN of its commit
origin``                               there; null for one that began here, left out where all did (optional)
=============  ======================  ===================================================================

A delete's columns hold the old row (its key columns, or all under REPLICA IDENTITY FULL); a truncate's are null.
The key's column names and the source's name travel in the schema's metadata.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise, product
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.plain_values import json_texts, united, values
from headrace.position import Position, format_positions
from headrace.row_tables import html_table, summary
from headrace.wire import WireMessages

OPS = {name: ord(name) for name in "cudtr"}
META_FIELDS: tuple[pa.Field, ...] = (
    pa.field("__op", pa.uint8(), nullable=False),
    pa.field("__lsn", pa.uint64(), nullable=False),
    pa.field("__index", pa.int64(), nullable=False),
    pa.field("__ts", pa.timestamp("us", tz="UTC"), nullable=False),
)
CHANGE = "__headrace_change"
NAN = pa.field("__headrace_nan", pa.list_(pa.struct({"column": pa.string(), "before": pa.bool_()})))
"""Which decimals are NaN: Arrow's are NULL there. Optional; ``before`` says that it is the old row's."""
ORIGIN = pa.field("__headrace_origin", pa.struct({"name": pa.string(), "lsn": pa.uint64()}))
"""The replication origin of each event's transaction. Optional."""
_META_NAMES = frozenset(field.name for field in META_FIELDS) | {
    *("__before", "__unchanged", NAN.name, CHANGE, ORIGIN.name, "__order", "__headrace_row", "__headrace_update")
}


UPDATE = "__headrace_update"
STEP_COLUMNS = ("__order", "__headrace_row", UPDATE)
"""Columns that rows have while a step runs: their places in its order, which row of their table each is about, and
whether a label takes another one's place."""


def is_meta(name: str) -> bool:
    """Return whether a column is one that Headrace adds to an event."""
    return name in _META_NAMES


def told_apart(
    names: Iterable[str], reserved: Collection[str], *, suffix: str = "_input", given: dict[str, str] | None = None
) -> list[str]:
    """Return names of the user's columns beside columns of ours: one that is ours gets a suffix, as often as it takes.

    Columns that have no name of ours keep theirs, and so a suffixed one steps aside for them, whatever their order.

    Args:
        names: the user's. reserved: ours.
        given: the names that columns were given before, which they keep whatever comes later; changed in place.

    >>> told_apart(["id", "status", "prediction", "prediction_input"], {"prediction", "status"})
    ['id', 'status_input', 'prediction_input_input', 'prediction_input']
    >>> given = {}
    >>> told_apart(["status"], {"status"}, given=given), told_apart(["status", "status_input"], {"status"}, given=given)
    (['status_input'], ['status_input', 'status_input_input'])
    """
    names = list(names)
    given = {} if given is None else given
    held = set(given.values())
    # Columns whose name is neither ours nor another's by now keep it.
    taken = {*reserved, *held, *(name for name in names if name not in reserved)}
    found = []
    for name in names:
        if name not in given and (name in reserved or name in held):
            other = name + suffix
            while other in taken:
                other += suffix
            given[name] = other
            taken.add(other)
        found.append(given.get(name, name))
    return found


class Batch:
    """Change events of one topic, in commit order.

    Wraps ``records``, an Arrow record batch laid out as this module's docstring says; slicing and reading
    columns copy nothing.

    >>> batch = Batch.of({"id": [1, 2]}, op="c", lsn=26421800, key=["id"])
    >>> batch.num_rows, batch.column_names, batch.key_columns, str(batch.position(1))
    (2, ['id'], ('id',), '0/1932A28:1')
    """

    __slots__ = ("records",)

    def __init__(self, records: pa.RecordBatch) -> None:
        self.records = records

    @classmethod
    def of(
        cls,
        columns: dict[str, Any] | pa.RecordBatch,
        *,
        op: str | npt.NDArray[np.uint8] = "c",
        lsn: int | npt.NDArray[np.uint64] = 0,
        index: npt.NDArray[np.int64] | None = None,
        ts_us: int | npt.NDArray[np.int64] = 0,
        key: Sequence[str] = (),
        source: str = "",
        before: pa.StructArray | None = None,
        unchanged: pa.ListArray | None = None,
    ) -> Batch:
        """Build a batch from its columns; scalars for ``op``, ``lsn`` and ``ts_us`` hold for every row."""
        rows = columns if isinstance(columns, pa.RecordBatch) else pa.RecordBatch.from_pydict(columns)
        n = rows.num_rows
        ops = np.full(n, OPS[op], np.uint8) if isinstance(op, str) else op
        indexes = np.arange(n, dtype=np.int64) if index is None else index
        arrays = [
            *rows.columns,
            pa.array(ops),
            pa.array(np.broadcast_to(np.asarray(lsn, np.uint64), (n,))),
            pa.array(indexes),
            pa.array(np.broadcast_to(np.asarray(ts_us, np.int64), (n,))).view(META_FIELDS[3].type),
        ]
        fields = [*rows.schema, *META_FIELDS]
        for name, extra in (("__before", before), ("__unchanged", unchanged)):
            if extra is not None:
                arrays.append(extra)
                fields.append(pa.field(name, extra.type))
        metadata = {b"headrace.key": json.dumps(list(key)).encode(), b"headrace.source": source.encode()}
        return cls(pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields, metadata=metadata)))

    @property
    def num_rows(self) -> int:
        return int(self.records.num_rows)

    @property
    def schema(self) -> pa.Schema:
        return self.records.schema

    @property
    def column_names(self) -> list[str]:
        """The table's columns, without the ones that Headrace adds."""
        return [name for name in self.records.schema.names if not is_meta(name)]

    @property
    def rows(self) -> pa.RecordBatch:
        """The table's columns only."""
        # By their places: a batch may have two columns of one name.
        return self.records.select([i for i, name in enumerate(self.records.schema.names) if not is_meta(name)])

    @property
    def key_columns(self) -> tuple[str, ...]:
        """Names of the columns that identify a row; empty where the table has no key."""
        metadata = self.records.schema.metadata or {}
        return _names(metadata.get(b"headrace.key", b"[]"))

    @property
    def identity_columns(self) -> tuple[str, ...]:
        """Names of the columns by which old rows are told: the key's, unless the replica identity is another index."""
        metadata = self.records.schema.metadata or {}
        return _names(metadata[b"headrace.identity"]) if b"headrace.identity" in metadata else self.key_columns

    @property
    def source(self) -> str:
        """Name (prefix) of the source the events came from."""
        metadata = self.records.schema.metadata or {}
        return bytes(metadata.get(b"headrace.source", b"")).decode()

    def column(self, name: str) -> pa.Array:
        return self.records.column(name)

    @property
    def op(self) -> npt.NDArray[np.uint8]:
        return np.asarray(self.records.column("__op"))

    @property
    def lsn(self) -> npt.NDArray[np.uint64]:
        return np.asarray(self.records.column("__lsn"))

    @property
    def index(self) -> npt.NDArray[np.int64]:
        return np.asarray(self.records.column("__index"))

    @property
    def ts_us(self) -> npt.NDArray[np.int64]:
        """Commit times in microseconds since 1970-01-01 UTC."""
        return np.asarray(self.records.column("__ts").view(pa.int64()))

    @property
    def before(self) -> pa.StructArray | None:
        return self.records.column("__before") if "__before" in self.records.schema.names else None

    @property
    def unchanged(self) -> pa.ListArray | None:
        return self.records.column("__unchanged") if "__unchanged" in self.records.schema.names else None

    def nan(self, name: str, *, before: bool = False) -> npt.NDArray[np.bool_] | None:
        """Return which values of a column of decimals, NULL in the batch, are NaN; None where none is.

        A column that was computed in place of the captured one has none where it has values, or is of another type.

        Args:
            before: those of the old rows.
        """
        if NAN.name not in self.records.schema.names:
            return None
        column = self._decimals(name, before=before)
        if column is None:
            return None
        lists = self.records.column(NAN.name)
        columns, olds = pc.list_flatten(lists).flatten()
        mine = pc.and_(pc.equal(columns, name), olds if before else pc.invert(olds))
        found = np.zeros(self.num_rows, np.bool_)
        found[np.asarray(pc.list_parent_indices(lists).filter(mine))] = True
        found &= np.asarray(column.is_null())
        return found if found.any() else None

    def _decimals(self, name: str, *, before: bool) -> pa.Array | None:
        """Return a column of rows, or of old rows, if it is there and of decimals."""
        if before:
            old = self.before
            places = [] if old is None else [at for at, child in enumerate(old.type) if child.name == name]
            column = old.flatten()[places[0]] if old is not None and places else None
        else:
            indexes = self.records.schema.get_all_field_indices(name)
            column = self.records.column(indexes[0]) if indexes else None
        return column if column is not None and pa.types.is_decimal(column.type) else None

    @property
    def stored(self) -> Batch:
        """The batch without the columns that rows have only while a step runs."""
        own = [name for name in STEP_COLUMNS if name in self.records.schema.names]
        return Batch(self.records.drop_columns(own)) if own else self

    def renamed(self, names: Mapping[str, str]) -> Batch:
        """Return the batch with other names for some of its columns, those of its key included."""
        schema = self.records.schema
        fields = [field.with_name(names.get(field.name, field.name)) for field in schema]
        metadata = dict(schema.metadata or {})
        for about in (b"headrace.key", b"headrace.identity"):
            if about in metadata:
                metadata[about] = json.dumps([names.get(name, name) for name in _names(metadata[about])]).encode()
        found = pa.schema(fields, metadata=metadata or None)
        return Batch(pa.RecordBatch.from_arrays(self.records.columns, schema=found))

    def position(self, row: int) -> Position:
        return Position(int(self.lsn[row]), int(self.index[row]))

    def slice(self, offset: int, length: int | None = None) -> Batch:
        return Batch(self.records.slice(offset, length))

    def take(self, indices: npt.NDArray[np.int64]) -> Batch:
        return Batch(take_records(self.records, np.asarray(indices, np.int64)))

    def filter(self, mask: npt.NDArray[np.bool_]) -> Batch:
        try:
            return Batch(self.records.filter(pa.array(mask)))
        except pa.ArrowNotImplementedError:
            return self.take(np.flatnonzero(mask))

    def with_columns(self, columns: Iterable[tuple[str, pa.Array]]) -> Batch:
        """Return the batch with columns added (or replaced, by name) before the ones that Headrace adds."""
        new = dict(columns)
        schema = self.records.schema
        own: list[tuple[pa.Field, pa.Array]] = []
        meta: list[tuple[pa.Field, pa.Array]] = []
        for field, array in zip(schema, self.records.columns, strict=True):
            if field.name in _META_NAMES:
                meta.append((field, array))
            elif field.name not in new:
                own.append((field, array))
        added = [(pa.field(name, array.type), array) for name, array in new.items()]
        fields, arrays = zip(*own, *added, *meta, strict=True)
        return Batch(pa.RecordBatch.from_arrays(list(arrays), schema=pa.schema(fields, metadata=schema.metadata)))

    def __repr__(self) -> str:
        return f"Batch({summary(self.rows)})"

    def _repr_html_(self) -> str:
        return html_table(present(self.records))


def take(array: pa.Array, rows: npt.NDArray[np.int64]) -> pa.Array:
    """Return some of the values, in the given order, whatever the type: Arrow's own `take` knows no views and no runs.

    >>> take(pa.array(["a", "b", "c"], pa.string_view()), np.array([2, 0])).to_pylist()
    ['c', 'a']
    """
    try:
        return array.take(pa.array(rows, pa.int64()))
    except pa.ArrowNotImplementedError:
        if not rows.size:
            return array.slice(0, 0)
        cuts = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), rows.size]
        spans = pairwise(cuts)  # neighbours are taken together
        return pa.concat_arrays([array.slice(int(rows[a]), b - a) for a, b in spans])


def take_records(records: pa.RecordBatch, rows: npt.NDArray[np.int64]) -> pa.RecordBatch:
    """Return some of the rows of a record batch.

    >>> take_records(pa.record_batch({"a": [1, 2]}), np.array([1])).to_pydict()
    {'a': [2]}
    """
    try:
        return records.take(pa.array(rows, pa.int64()))
    except pa.ArrowNotImplementedError:
        return pa.RecordBatch.from_arrays([take(column, rows) for column in records.columns], schema=records.schema)


def record_batch(table: pa.Table) -> pa.RecordBatch:
    """Return the rows of a table as one record batch, which may be empty.

    >>> record_batch(pa.table({"a": pa.chunked_array([[1], [2]])})).to_pydict(), record_batch(pa.table({})).num_rows
    ({'a': [1, 2]}, 0)
    """
    batches = table.combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)


def to_ipc(records: pa.RecordBatch) -> pa.Buffer:
    """Return a record batch as an Arrow IPC stream, its schema included.

    >>> from_ipc(to_ipc(pa.record_batch({"a": [1, 2]}))).to_pydict()
    {'a': [1, 2]}
    """
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, records.schema) as writer:
        writer.write_batch(records)
    return sink.getvalue()


def from_ipc(stream: Any) -> pa.RecordBatch:
    """Return the rows of an Arrow IPC stream, over the memory of ``stream`` where it holds one batch.

    Args:
        stream: anything with Python's buffer protocol.

    Raises:
        pyarrow.ArrowInvalid: it is no such stream.
    """
    with pa.ipc.open_stream(pa.py_buffer(stream)) as reader:
        return record_batch(reader.read_all())


def inserted(batch: Batch) -> npt.NDArray[np.bool_]:
    """Return which events bring a row: inserts, and rows that a snapshot read.

    >>> inserted(Batch.of({"id": [1, 2]}, op=np.array([OPS["c"], OPS["u"]], np.uint8))).tolist()
    [True, False]
    """
    op = batch.op
    return np.asarray((op == OPS["c"]) | (op == OPS["r"]))


def as_events(records: pa.RecordBatch) -> Batch:
    """Return rows as change events; those that no source wrote are inserts, at positions that keep their order."""
    return Batch(records) if "__op" in records.schema.names else Batch.of(records)


def not_numbers(records: pa.RecordBatch) -> list[list[tuple[str, bool]]]:
    """Return for each row which of its decimals are NaN: the column, and whether it is the old row's."""
    found: list[list[tuple[str, bool]]] = [[] for _ in range(records.num_rows)]
    if NAN.name in records.schema.names:
        named = pc.unique(pc.list_flatten(records.column(NAN.name)).field("column"))
        for name, before in product(values(named), (False, True)):
            mask = Batch(records).nan(name, before=before)
            for row in () if mask is None else np.flatnonzero(mask).tolist():
                found[row].append((name, before))
    return found


def present(records: pa.RecordBatch | pa.Table) -> pa.Table:
    """Return events as people read them: the row's columns, then ``op``, ``position`` and ``ts`` in readable form.

    A column of the table that has one of those names keeps it; the event's then stays under its ``__`` name.

    >>> present(Batch.of({"id": [7]}, op="d", lsn=26421800).records).to_pylist()[0]["position"]
    '0/1932A28:0'
    """
    table = pa.Table.from_batches([records]) if isinstance(records, pa.RecordBatch) else records
    table = table.combine_chunks()
    if len(set(table.column_names)) < table.num_columns:
        table = united([table])
    own = [name for name in table.column_names if not is_meta(name)]
    columns = {name: table.column(name) for name in own}
    if "__op" not in table.column_names:
        return table
    codes = np.asarray(table.column("__op"))
    letters = pa.array([chr(code) for code in range(128)])
    lsn, index = np.asarray(table.column("__lsn")), np.asarray(table.column("__index"))
    for name, value in (
        ("op", letters.take(pa.array(codes))),
        ("position", format_positions(lsn, index)),
        ("ts", table.column("__ts")),
    ):
        while name in columns:
            name = f"__{name}"
        columns[name] = value
    for name in ("__before", "__unchanged"):
        if name in table.column_names:
            columns[name] = table.column(name)
    return pa.table(columns)


def dead_letters(
    batch: Batch, reasons: Sequence[str], *, stage: str, model: str | None = None, rows: Sequence[str] | None = None
) -> Batch:
    """Return dead letters: reason, stage and the original row as JSON, at the row's own position.

    Args:
        batch: the rows that could not be handled.
        reasons: why, one for each row.
        stage: who refused them: ``capture``, ``transform``, ``learn`` or ``predict``.
        model: the model that did.
        rows: their JSON, where the values themselves cannot be in ``batch``.

    >>> dead_letters(Batch.of({"id": [7]}), ["no such digit"], stage="learn").rows.to_pylist()
    [{'reason': 'no such digit', 'stage': 'learn', 'model': None, 'row': '{"id": 7}'}]
    """
    texts = rows if rows is not None else json_texts(batch.rows)
    n = batch.num_rows
    columns = {
        "reason": pa.array(list(reasons), pa.string()),
        "stage": pa.array([stage] * n, pa.string()),
        "model": pa.array([model] * n, pa.string()),
        "row": pa.array(list(texts), pa.string()),
    }
    return Batch.of(columns, op=batch.op, lsn=batch.lsn, index=batch.index, ts_us=batch.ts_us, source=batch.source)


def undecodable(messages: WireMessages, bad: Sequence[tuple[int, str]]) -> Batch:
    """Return messages that cannot be decoded, for the dead-letter topic: with their bytes, and where they lie."""
    some, n = messages.take([index for index, _ in bad]), len(bad)

    def text(value: bytes | None) -> str | None:
        try:
            return None if value is None else value.decode()
        except UnicodeDecodeError:
            return None

    columns = {
        "reason": pa.array([reason for _, reason in bad], pa.string()),
        "stage": pa.array(["decode"] * n, pa.string()),
        "model": pa.nulls(n, pa.string()),
        "row": pa.array(map(text, some.values), pa.string()),
        "topic": pa.array([messages.topic] * n, pa.string()),
        "partition": pa.array(some.partitions, pa.int64()),
        "offset": pa.array(some.offsets, pa.int64()),
        "key": pa.array(some.keys, pa.binary()),
        "value": pa.array(some.values, pa.binary()),
    }
    return Batch.of(columns, index=some.offsets, ts_us=some.ts_ms * 1000)


def as_records(rows: Any) -> pa.RecordBatch:
    """Return a user's rows as a record batch: Arrow, a DataFrame, a dict, a list of dicts, or what has ``to_arrow``.

    Raises:
        TypeError: it is none of these.

    >>> as_records([{"id": 1}, {"id": 2}]).num_rows
    2
    """
    if hasattr(rows, "to_arrow"):
        rows = rows.to_arrow()
    if isinstance(rows, pa.RecordBatch):
        return rows
    if isinstance(rows, pa.Table):
        return record_batch(rows)
    if hasattr(rows, "to_records") and hasattr(rows, "columns"):
        return pa.RecordBatch.from_pandas(rows, preserve_index=False)
    if isinstance(rows, dict):
        return pa.RecordBatch.from_pylist([rows])
    if isinstance(rows, list | tuple) and rows and isinstance(rows[0], dict):
        return pa.RecordBatch.from_pylist(list(rows))
    raise TypeError(f"{type(rows).__name__} holds no rows with named columns")


@lru_cache(maxsize=1024)
def _names(text: bytes) -> tuple[str, ...]:
    return tuple(json.loads(text))
