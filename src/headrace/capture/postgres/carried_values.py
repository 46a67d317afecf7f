"""Values that an update did not send (TOAST), carried forward from their row's event before, which the log has.

Unlike what is read again from the table (`unsent`), they are exact: a value that was not sent has not changed. The
event before is found by the row's identity, in three places: the batch itself; what was handed out and is not in the
log yet, or not indexed; and the log, of which an index is made where a table needs one, and lost with the process.
"""

from __future__ import annotations

import json
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.arrays import Ints, Mask
from headrace.batch import OPS, Batch, is_meta
from headrace.capture.base import Log, Piece
from headrace.capture.comparison import coded, same
from headrace.capture.postgres.incremental import old_or_new
from headrace.capture.postgres.row_places import RowPlaces
from headrace.capture.postgres.unsent import with_values
from headrace.errors import SourceRefused
from headrace.plain_values import values
from headrace.position import Lsn
from headrace.value_hashes import Hashes, hashes

_SLICE_ROWS = 4_096  # rows without values that are filled together
_ASIDE_BYTES = 64 << 20  # a batch that was filled and is larger lies in a file
_HELD_BYTES, _HELD = 64 << 20, 256  # of batches that are in the log already: beyond that the log is indexed
_READ_BYTES = 128 << 20  # of entries of the log
_LETTERS = 1 << 20  # dead letters of a table that are told by their keys
_OUTSIDE, _UNKNOWN = -1, -2  # in place of a row: it lies before the batch, or nobody knows what it was

_Position = tuple[int, int]


@dataclass(slots=True)
class _Recent:
    """A batch that was handed out: its rows have what could be carried into them."""

    batch: Batch
    _names: tuple[str, ...] = ()
    _rows: RowPlaces | None = None

    def find(self, names: tuple[str, ...], wanted: Hashes) -> Ints:
        """Return the last row of each key, by its hash; -1 for one that has none."""
        if self._rows is None or self._names != names:
            self._names, self._rows = names, RowPlaces()
            columns = _columns(self.batch, names)
            if columns is not None:
                self._rows.add(hashes(columns), np.arange(self.batch.num_rows))
        return self._rows.find(wanted)


@dataclass(slots=True)
class _Topic:
    """What is known of a table's rows.

    Attributes:
        floor: of rows at earlier positions nothing is carried on.
        recent: batches that were handed out, the oldest first; ``refused``: dead letters that were.
        keys: columns by which rows are told in the index, with their types; ``places``: by column that was not sent
            somewhere, the newest row of each key that has it, or is known not to; ``offset``: the log is indexed up to
            there.
        letters: by the hash of a key, positions of rows that are in no batch, as Arrow cannot hold them.
    """

    floor: _Position
    recent: list[_Recent] = field(default_factory=list)
    refused: list[Batch] = field(default_factory=list)
    keys: Mapping[str, pa.DataType] = field(default_factory=dict)
    places: dict[str, RowPlaces] = field(default_factory=dict)
    offset: int = 0
    letters: dict[int, list[_Position]] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.keys)


class CarriedValues:
    """Fills updates with the values that they did not send; all methods belong to the thread that polls.

    Memory: batches that are not in the log yet, at most 64 MB a table that are, 128 MB of the log's entries. An open
    transaction's batches, and the index (16 bytes a key and column), lie in files without names.

    Args:
        whole_since: the LSN from which on the log has all changes; None: what it has by now is of no use.
        captured_since: returns, by topic, LSNs before which rows are not those of the topic's table now.
    """

    def __init__(self, log: Log, whole_since: int | None, captured_since: Callable[[], Mapping[str, int]]) -> None:
        self._log, self._whole_since, self._captured_since = log, whole_since or 0, captured_since
        self._first = {} if whole_since is not None else {name: held.end for name, held in log.topics().items()}
        self._topics: dict[str, _Topic] = {}
        self._entries: OrderedDict[tuple[str, int], Batch] = OrderedDict()

    # --- what is handed out ---

    def fill(self, pieces: Sequence[Piece[Lsn]]) -> list[Piece[Lsn]]:
        """Return pieces, in the order in which they are handed out, with the values that are known.

        Raises:
            SourceRefused: what is to lie in a file has no room.
        """
        return [piece if piece.idle or piece.rewound else self._filled(piece) for piece in pieces]

    def _filled(self, piece: Piece[Lsn]) -> Piece[Lsn]:
        for topic, letters in piece.rejected:
            known = self._of(topic.removesuffix(".dlq"))
            known.refused.append(letters)
            if known.places:
                _note_letters(known, letters)
        batches = []
        for topic, batch in piece.batches:
            if not _may_be_large(batch.schema):
                batches.append((topic, batch))
                continue
            known = self._of(topic)
            for part in self._parts(topic, known, batch):
                large = piece.open or piece.continued or part.records.nbytes > _ASIDE_BYTES
                found = _aside(part) if large else part
                known.recent.append(_Recent(found))
                batches.append((topic, found))
        return replace(piece, batches=tuple(batches))

    def _of(self, topic: str) -> _Topic:
        floor = (max(self._whole_since, self._captured_since().get(topic, 0)), 0)
        known = self._topics.setdefault(topic, _Topic(floor))
        known.floor = max(known.floor, floor)
        return known

    def stored(self, lsn: int) -> None:
        """Note that everything before an LSN is in the log."""
        for topic, known in self._topics.items():
            known.refused = [letters for letters in known.refused if int(letters.lsn[-1]) >= lsn]
            stored = sum(int(recent.batch.lsn[-1]) < lsn for recent in known.recent)
            if known.places:
                held = sum(recent.batch.records.nbytes for recent in known.recent[:stored])
                if stored <= _HELD and held <= _HELD_BYTES:
                    continue
                self._index(topic, known)
            del known.recent[:stored]

    def rewound(self, lsn: int) -> None:
        """Forget what was handed out and is not in the log, which has everything before an LSN: it comes again."""
        for known in self._topics.values():
            known.recent = [recent for recent in known.recent if int(recent.batch.lsn[-1]) < lsn]
            known.refused = [letters for letters in known.refused if int(letters.lsn[-1]) < lsn]
            kept = {key: [at for at in places if at[0] < lsn] for key, places in known.letters.items()}
            known.letters = {key: places for key, places in kept.items() if places}

    # --- one batch ---

    def _parts(self, topic: str, known: _Topic, batch: Batch) -> Iterator[Batch]:
        """Yield a batch with its values, in parts of which none has too many that were filled in.

        Each has to be noted before the next one is asked for.
        """
        keys = _columns(batch, batch.identity_columns)
        if batch.unchanged is None or not keys:
            yield batch
            return
        types = {name: key.type for name, key in zip(batch.identity_columns, keys, strict=True)}
        if known.keys != types:
            known.keys, known.places, known.letters = types, {}, {}
        lacking = np.cumsum(_lengths(batch.unchanged) > 0)
        cuts = np.searchsorted(lacking, np.arange(_SLICE_ROWS, int(lacking[-1]), _SLICE_ROWS), "right")
        for first, end in pairwise([0, *cuts.tolist(), batch.num_rows]):
            yield self._carried(topic, known, batch.slice(first, end - first))

    def _carried(self, topic: str, known: _Topic, batch: Batch) -> Batch:
        assert batch.unchanged is not None
        columns = [name for name in values(pc.unique(batch.unchanged.flatten())) if name in batch.column_names]
        if not columns:
            return batch
        self._know(topic, known, columns)
        keys = _Keys.of(batch, known.names)
        before = keys.before(batch, known)
        records, filled = batch.records, {}
        for name in columns:
            unsent = _unsent(batch, name)
            rows = np.flatnonzero(unsent)
            some, place = self._values(topic, known, batch, name, keys, _roots(before, unsent)[rows])
            mask = np.zeros(batch.num_rows, bool)
            mask[rows[place >= 0]] = True
            if not mask.any():
                continue
            index = records.schema.get_field_index(name)
            found = some.take(pa.array(place[place >= 0]))
            column = with_values(records.column(index), mask, found)
            records = records.set_column(index, records.schema.field(index), column)
            filled[name] = mask
        return Batch(_without(records, filled)) if filled else batch

    def _values(
        self, topic: str, known: _Topic, batch: Batch, name: str, keys: _Keys, roots: Ints
    ) -> tuple[pa.Array, Ints]:
        """Return values of a column, and which of them each root has; below 0 where that is not known.

        A root is a row of the batch that has the value, or whose value is that of an event before the batch.
        """
        place = np.full(roots.size, _UNKNOWN)
        unsent, told = _unsent(batch, name), roots >= 0
        inside = told & ~unsent[roots] & (batch.op[roots] != OPS["d"])
        place[inside] = np.arange(int(inside.sum()))
        own = batch.records.column(name).take(pa.array(roots[inside]))
        outside = told & unsent[roots]
        asked, which = np.unique(roots[outside], return_inverse=True)
        found, at = self._sought(topic, known, batch, name, keys.olds, asked)
        place[outside] = np.where(at >= 0, at + len(own), _UNKNOWN)[which]
        return pa.concat_arrays([own, found]), place

    def _sought(
        self, topic: str, known: _Topic, batch: Batch, name: str, keys: Sequence[pa.Array], rows: Ints
    ) -> tuple[pa.Array, Ints]:
        """Return the values that rows had before a batch, and which of them each has."""
        sought = _Sought(batch, name, known, [key.take(pa.array(rows)) for key in keys], rows)
        missing = np.arange(rows.size)
        for recent in reversed(known.recent):
            if not missing.size:
                break
            at = recent.find(known.names, sought.hashes[missing])
            sought.take(missing[at >= 0], recent.batch, at[at >= 0])
            missing = missing[at < 0]
        held = self._log.topics().get(topic)
        offsets = known.places[name].find(sought.hashes[missing])
        there = offsets >= held.first if held is not None else np.zeros(offsets.size, bool)
        order = np.argsort(offsets[there], kind="stable")
        missing, offsets = missing[there][order], offsets[there][order]
        done = 0
        while done < offsets.size:
            start, entry = self._entry(topic, int(offsets[done]))
            end = int(np.searchsorted(offsets, start + entry.num_rows))
            sought.take(missing[done:end], entry, offsets[done:end] - start)
            done = end
        return sought.values(), sought.place

    # --- the log ---

    def _know(self, topic: str, known: _Topic, columns: Sequence[str]) -> None:
        """Have an index of columns: where one is new, the topic is read from its beginning."""
        if set(columns) <= known.places.keys():
            return
        if not known.places:
            for letters in (*(batch for _, batch in self._rest(f"{topic}.dlq", 0)), *known.refused):
                _note_letters(known, letters)
        known.places = {name: RowPlaces() for name in (*known.places, *columns)}
        known.offset = 0
        self._index(topic, known)

    def _index(self, topic: str, known: _Topic) -> None:
        """Read the log to its end, and note where the newest values of each key are."""
        for offset, batch in self._rest(topic, known.offset):
            _note_places(known, batch, offset)
            known.offset = offset + batch.num_rows

    def _rest(self, topic: str, offset: int) -> Iterator[tuple[int, Batch]]:
        """Yield what a topic has from an offset on, with the offset of the first row of each batch."""
        topics = self._log.topics()
        if topic not in topics:
            return
        offset = max(offset, topics[topic].first, self._first.get(topic, 0))
        while entries := self._log.read_topic(topic, offset=offset):
            for entry in entries:
                skipped = max(0, offset - entry.offset)
                if skipped < entry.records.num_rows:
                    yield entry.offset + skipped, Batch(entry.records.slice(skipped))
                offset = max(offset, entry.offset + entry.records.num_rows)

    def _entry(self, topic: str, offset: int) -> tuple[int, Batch]:
        """Return the entry of the log that holds an offset, and where it begins."""
        for (of, start), batch in reversed(self._entries.items()):
            if of == topic and start <= offset < start + batch.num_rows:
                self._entries.move_to_end((of, start))
                return start, batch
        (entry, *_) = self._log.read_topic(topic, offset=offset, limit=1)
        batch = self._entries[topic, entry.offset] = Batch(entry.records)
        while len(self._entries) > 1 and sum(held.records.nbytes for held in self._entries.values()) > _READ_BYTES:
            self._entries.popitem(last=False)
        return entry.offset, batch


# --- rows by their keys ---


@dataclass(frozen=True, slots=True)
class _Keys:
    """The keys that a batch's rows have, and those that they had before."""

    news: list[pa.Array]
    olds: list[pa.Array]

    @classmethod
    def of(cls, batch: Batch, names: Sequence[str]) -> _Keys:
        news, before = _columns(batch, names), batch.before
        assert news is not None
        if before is None:
            return cls(news, news)
        given, parts = before.is_valid(), dict(zip((f.name for f in before.type), before.flatten(), strict=True))
        return cls(news, [old_or_new(given, parts[name], new) for name, new in zip(names, news, strict=True)])

    def before(self, batch: Batch, known: _Topic) -> Ints:
        """Return for each row the one with its row's event before; `_OUTSIDE` where the batch has none."""
        n = batch.num_rows
        codes = coded([pa.concat_arrays(pair) for pair in zip(self.olds, self.news, strict=True)])
        # Each row asks first, by the key that it had, and has the key that it has now from then on.
        asks = np.arange(2 * n) < n
        time = np.concatenate([2 * np.arange(n), 2 * np.arange(n) + 1])
        order = np.lexsort((time, codes))
        newest = np.maximum.accumulate(np.where(asks[order], -1, np.arange(2 * n)))
        there = (newest >= 0) & (codes[order][newest] == codes[order])
        answers = np.where(there, order[newest] - n, _OUTSIDE)
        before = np.empty(n, np.int64)
        before[order[asks[order]]] = answers[asks[order]]
        rows = np.flatnonzero(before >= 0)
        since = _Since.of(known, hashes(self.olds)[rows], batch, rows)
        before[rows[~since.reached(batch, before[rows])]] = _UNKNOWN
        return before


@dataclass(frozen=True, slots=True)
class _Since:
    """Positions from which on events say what rows had: behind their dead letters, and behind gaps."""

    lsn: npt.NDArray[np.uint64]
    index: Ints

    @classmethod
    def of(cls, known: _Topic, keys: Hashes, batch: Batch, rows: Ints) -> _Since:
        """Return those of rows of a batch, by the hashes of their keys."""
        lsn, index = batch.lsn[rows], batch.index[rows]
        floor_lsn, floor_index = known.floor
        behind = (lsn > floor_lsn) | (lsn == floor_lsn) & (index >= floor_index)
        since = cls(np.where(behind, floor_lsn, 0).astype(np.uint64), np.where(behind, floor_index, 0))
        if known.letters:
            # The few that have such.
            for place in np.flatnonzero(np.isin(keys, np.array(list(known.letters), np.uint64))).tolist():
                end, least = (int(lsn[place]), int(index[place])), (int(since.lsn[place]), int(since.index[place]))
                letters = [at for at in known.letters[int(keys[place])] if at < end]
                since.lsn[place], since.index[place] = max([least, *letters])
        return since

    def reached(self, batch: Batch, rows: Ints, of: Ints | None = None) -> Mask:
        """Return which rows of a batch are there; ``of`` says which position counts for each."""
        lsn, index = (self.lsn, self.index) if of is None else (self.lsn[of], self.index[of])
        found: Mask = (batch.lsn[rows] > lsn) | (batch.lsn[rows] == lsn) & (batch.index[rows] >= index)
        return found


def _roots(before: Ints, unsent: Mask) -> Ints:
    """Return for each row the one whose value it has: as long as one has not sent it, that of the event before.

    >>> _roots(np.array([-1, 0, 1, -1, -2]), np.array([False, True, True, True, True])).tolist()
    [0, 0, 0, 3, -2]
    """
    n = before.size
    own = np.arange(n + 1)
    to = own.copy()
    to[:n] = np.where(unsent & (before != _OUTSIDE), np.where(before == _UNKNOWN, n, before), own[:n])
    while not ((further := to[to]) == to).all():
        to = further
    return np.where(to[:n] == n, _UNKNOWN, to[:n])


class _Sought:
    """Values that some rows of a batch had before it, as they are found.

    Attributes:
        hashes: of their keys; ``place``: which of `values` each has.
    """

    def __init__(self, batch: Batch, name: str, known: _Topic, keys: list[pa.Array], rows: Ints) -> None:
        self._batch, self._name, self._names, self._keys = batch, name, known.names, keys
        self._values: list[pa.Array] = []
        self._found = 0
        self.hashes = hashes(keys)
        self.place = np.full(rows.size, _UNKNOWN)
        self._since = _Since.of(known, self.hashes, batch, rows)

    def take(self, asked: Ints, found: Batch, rows: Ints) -> None:
        """Take the values of rows that were found by the hashes of some keys, where they are what is asked for."""
        if not asked.size or not _alike(found.schema, self._batch.schema, self._name):
            return
        columns = _columns(found, self._names)
        if columns is None or [column.type for column in columns] != [key.type for key in self._keys]:
            return
        good = ~_unsent(found, self._name)[rows] & (found.op[rows] != OPS["d"]) & (found.op[rows] != OPS["t"])
        for column, key in zip(columns, self._keys, strict=True):
            good &= same(column.take(pa.array(rows)), key.take(pa.array(asked)))
        good &= self._since.reached(found, rows, asked)
        if good.any():
            self.place[asked[good]] = np.arange(self._found, self._found + int(good.sum()))
            self._found += int(good.sum())
            self._values.append(found.records.column(self._name).take(pa.array(rows[good])))

    def values(self) -> pa.Array:
        """Return what was found."""
        return pa.concat_arrays([pa.nulls(0, self._batch.schema.field(self._name).type), *self._values])


def _alike(found: pa.Schema, wanted: pa.Schema, name: str) -> bool:
    """Return whether a column is the same one in both: up to it, they have the same columns."""
    end = wanted.get_field_index(name) + 1
    return len(found) >= end and all(found.field(i).equals(wanted.field(i)) for i in range(end))


def _note_places(known: _Topic, batch: Batch, offset: int) -> None:
    """Note which rows of the log have the newest values of their keys."""
    columns = _columns(batch, known.names)
    if columns is None:
        return
    found, rows = hashes(columns), np.arange(batch.num_rows)
    # What these did not send is not sought further: their rows were told otherwise before.
    final = np.full(batch.num_rows, batch.identity_columns != known.names)
    if batch.before is not None:
        final |= np.asarray(batch.before.is_valid())
    for name, places in known.places.items():
        has = final | ~_unsent(batch, name)
        places.add(found[has], offset + rows[has])


def _note_letters(known: _Topic, letters: Batch) -> None:
    """Note rows that are in no batch: what their keys had before is not what they have now."""
    captured = np.asarray(pc.equal(letters.column("stage"), "capture"))
    texts = values(letters.column("row").filter(pa.array(captured)))
    for row, text in zip(np.flatnonzero(captured).tolist(), texts, strict=True):
        key, at = _letter_hash(json.loads(text), known.keys), _position(letters, row)
        if key is None or len(known.letters) >= _LETTERS:
            known.floor = max(known.floor, at)
        else:
            known.letters.setdefault(key, []).append(at)


def _letter_hash(row: Mapping[str, Any], keys: Mapping[str, pa.DataType]) -> int | None:
    """Return the hash of the key of a row that a dead letter has as JSON; None where it cannot be told."""
    columns = []
    for name, kind in keys.items():
        value = row.get(name)
        try:
            if value is not None and pa.types.is_binary(kind):
                value = bytes.fromhex(value.removeprefix("\\x"))
            column = pa.array([value])
            columns.append(column if value is None else column.cast(kind))
        except (ValueError, pa.ArrowInvalid, pa.ArrowNotImplementedError):
            return None
    return int(hashes(columns)[0])


def _position(batch: Batch, row: int) -> _Position:
    return int(batch.lsn[row]), int(batch.index[row])


def _columns(batch: Batch, names: Sequence[str]) -> list[pa.Array] | None:
    """Return some columns; None where the batch has not all of them."""
    there = set(batch.schema.names)
    return [batch.records.column(name) for name in names] if there.issuperset(names) else None


def _lengths(lists: pa.ListArray) -> Ints:
    found: Ints = np.asarray(pc.fill_null(pc.list_value_length(lists), 0)).astype(np.int64)
    return found


def _unsent(batch: Batch, name: str) -> Mask:
    """Return which rows did not send a column."""
    found = np.zeros(batch.num_rows, bool)
    if batch.unchanged is not None:
        mine = np.asarray(pc.equal(batch.unchanged.flatten(), name))
        found[np.repeat(np.arange(batch.num_rows), _lengths(batch.unchanged))[mine]] = True
    return found


def _without(records: pa.RecordBatch, filled: Mapping[str, Mask]) -> pa.RecordBatch:
    """Return rows that no longer say of some columns that they were not sent."""
    index = records.schema.get_field_index("__unchanged")
    lists, field = records.column(index), records.schema.field(index)
    names, rows = lists.flatten(), np.repeat(np.arange(records.num_rows), _lengths(lists))
    kept = np.ones(rows.size, bool)
    for name, mask in filled.items():
        kept &= ~(np.asarray(pc.equal(names, name)) & mask[rows])
    if not kept.any():
        return records.remove_column(index)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows[kept], minlength=records.num_rows))]).astype(np.int32)
    told = pa.ListArray.from_arrays(pa.array(offsets), names.filter(pa.array(kept)), type=field.type)
    return records.set_column(index, field, told)


# --- batches ---


def _may_be_large(schema: pa.Schema) -> bool:
    """Return whether a table has columns whose values may be stored out of line."""
    return any(not is_meta(field.name) and not _is_small(field.type) for field in schema)


def _is_small(kind: pa.DataType) -> bool:
    return bool(pa.types.is_primitive(kind))


def _aside(batch: Batch) -> Batch:
    """Return a batch that lies in a file without a name, from which it is read as it is needed."""
    try:
        with tempfile.NamedTemporaryFile(suffix=".arrow") as file:
            with pa.ipc.new_file(file, batch.schema) as writer:
                writer.write_batch(batch.records)
            file.flush()
            return Batch(pa.ipc.open_file(pa.memory_map(file.name)).get_batch(0))
    except OSError as error:
        raise SourceRefused(
            f"rows of an open transaction cannot be put aside in {tempfile.gettempdir()}: {error}",
            advice='With toast="last" they lie there until it ends; set TMPDIR to a directory with room.',
        ) from error
