"""Rows whose label comes later: each is learned once, as it was predicted, when its first label comes.

A row that comes without a label waits, with the columns that features are made of as its newest event without a label
showed them. The first event that brings its label takes them: what is learned is what the model was asked, whatever
else that event changes. State belongs to a row, not to a key (`row_identity`): it moves with the key, and ends
with a delete, a truncate, or a new row of the same key, under every replica identity.

A row that the log has not shown yet is known by the old image of its update where there is a whole one (REPLICA
IDENTITY FULL); else an update that brings a label teaches nothing, because nobody knows whether it is the first. The
same holds for tables without a key, whose rows have no identity at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.arrays import Ints, Mask
from headrace.batch import OPS, Batch, inserted
from headrace.grade.interval_join.keys import truth_codes
from headrace.grade.interval_join.pending import PendingRows
from headrace.plain_values import values, whole
from headrace.step.row_identity import LIMIT, ROW, Identity, Numbered, nonzero, told_by
from headrace.step.state_codec import below
from headrace.value_hashes import Hashes, hashed

Tracked = TypeVar("Tracked", bound="Identity | Late | Changes")
NO_LABEL = "no label came while {limit:,} newer rows of the table did: it is not waited for any more"


# -- the events of a batch, by row ---------------------------------------------------------------------------------


@dataclass(slots=True)
class Histories:
    """Events of one batch in runs of one row's each; events that bring no row (deletes, truncates) are left out.

    Attributes:
        at: the events by number of row, then in order. number: of each of their rows; 0 where it has none.
        first: which of them is the first of its row here. unknown: which rows no event has shown before.
    """

    at: Ints
    number: Ints
    first: Mask
    unknown: Mask

    @classmethod
    def of(cls, batch: Batch) -> Histories:
        n = batch.num_rows
        row = np.asarray(batch.column(ROW)) if ROW in batch.schema.names else np.zeros(n, np.int64)
        op = batch.op
        at = np.flatnonzero(inserted(batch) | (op == OPS["u"]))
        row = row[at]
        number = np.where(row < 0, ~row, row)
        order = np.argsort(number, kind="stable")
        at, row, number = at[order], row[order], number[order]
        first = np.append(True, (number[1:] != number[:-1]) | (number[1:] == 0))[: len(at)]
        return cls(at, number, first, (row <= 0) | inserted(batch)[at])

    @property
    def last(self) -> Mask:
        """The events that are the last of their row here, as a mask."""
        return np.append(self.first[1:], True)[: len(self.at)]

    @property
    def begin(self) -> Ints:
        """The place where the run of each event begins."""
        return np.maximum.accumulate(np.where(self.first, np.arange(len(self.at)), 0))

    def before(self, marked: Mask) -> Ints:
        """Return the newest earlier event of each one's row that is marked; -1 where there is none."""
        newest = np.maximum.accumulate(np.where(marked, np.arange(len(self.at)), -1))
        newest = np.append(-1, newest[:-1])[: len(self.at)]
        return np.where(newest >= self.begin, newest, -1)

    def newest(self, marked: Mask) -> Ints:
        """Return the same, each event itself among the earlier ones."""
        newest = np.maximum.accumulate(np.where(marked, np.arange(len(self.at)), -1))
        return np.where(newest >= self.begin, newest, -1)


def whole_before(batch: Batch, target: str | None = None) -> Mask:
    """Return which updates come with the whole old row, the label's column included, not only with its key."""
    before = batch.before
    names = [] if before is None else [field.name for field in before.type]
    others = [name for name in names if name not in batch.identity_columns]
    told = told_by(batch, others) if target is None or target in names else None
    return np.zeros(batch.num_rows, np.bool_) if told is None else told


def unsent(batch: Batch, name: str) -> Mask | None:
    """Return which events lack a column's value, because it is large and did not change (TOAST); None: none."""
    unchanged = batch.unchanged
    if unchanged is None:
        return None
    hits = pc.equal(unchanged.flatten(), name).fill_null(False).to_numpy(zero_copy_only=False)
    if not hits.any():
        return None
    found = np.zeros(batch.num_rows, np.bool_)
    found[np.asarray(pc.list_parent_indices(unchanged))[hits]] = True
    return np.asarray(found & np.asarray(batch.column(name).is_null()))


def labelled(batch: Batch, target: str) -> Mask:
    """Return which events have a label; one that was not sent is none."""
    return np.asarray(batch.column(target).is_valid())


def numbered(batch: Batch, rows: Identity) -> Batch:
    """Return the batch with the numbers of its rows; what it does to them is remembered."""
    return Batch(batch.records.append_column(ROW, pa.array(rows.follow(batch))))


# -- rows that wait for their labels ---------------------------------------------------------------------------------


class Late:
    """Rows of one stream that wait for their labels, each with some columns as they were.

    Args:
        partial: whether the stream may lack events of a row, because something is done to its batches first. A row
            whose insert it has not seen is then new to it, and its first label is the first one that the stream has.

    Attributes:
        hashes: of keys of rows that waited in a state of a version that kept nothing else.
        revised: rows that events have changed or ended after they were learned, one for each event, until `settle`.
    """

    def __init__(self, *, partial: bool = False) -> None:
        self._rows = PendingRows()
        # Of a partial stream: 1 for rows that had their label.
        self._done = Numbered() if partial else None
        # Number of a row (without its last bit) -> where it is kept, plus one.
        self._where = Numbered()
        # 1 for rows that have had a label, and were not learned: it was refused, or may not have been the first.
        self._unlearned = Numbered()
        self.hashes: set[int] = set()
        self.revised: list[Ints] = []

    def __len__(self) -> int:
        return len(self._rows) + len(self.hashes)

    @property
    def partial(self) -> bool:
        return self._done is not None

    @property
    def empty(self) -> bool:
        """True where it has nothing to remember."""
        unlearned = len(self._unlearned.values) > 0
        return not len(self) and not unlearned and (self._done is None or not len(self._done.values))

    def examples(
        self,
        batch: Batch,
        target: str,
        columns: Sequence[str] | None,
        *,
        nulls: bool = False,
        absent: Mapping[str, Mask] | None = None,
        revisions: bool = False,
    ) -> Batch:
        """Return the rows to be learned, in order: those that come with a label, and those that get one here.

        Args:
            target: the label's column.
            columns: those that features are made of; None: all but the target.
            nulls: whether a row that lacks one of them could be predicted. Where not, one that lacked one when it was
                last seen without a label is learned as the label's event shows it.
            absent: events that do not have a column's value, which is the one before; by default what was not sent.
            revisions: whether events of rows that were learned before are counted (`revised`).

        >>> rows, late = Identity(), Late()
        >>> def came(op, u, y):
        ...     batch = Batch.of({"id": [1], "u": [u], "y": pa.array([y], pa.int64())}, op=op, key=["id"])
        ...     return late.examples(numbered(batch, rows), "y", ["u"]).rows.select(["u", "y"]).to_pylist()
        >>> came("c", 10, None), came("u", 11, 5), came("u", 11, 6)
        ([], [{'u': 10, 'y': 5}], [])
        """
        fresh, label = inserted(batch), labelled(batch, target)
        if (fresh & label).all():
            self.hashes.difference_update(_old_hashes(batch) if self.hashes else ())
            if self._done is not None and ROW in batch.schema.names:
                number = np.asarray(batch.column(ROW))
                self._done.put(number[number > 0] >> 1, np.ones(int((number > 0).sum()), np.uint64))
            return batch
        found = self.first_labels(batch, label, target)
        direct = np.flatnonzero(fresh & label)
        names = [item for item in columns or batch.column_names if item != target and item in batch.schema.names]
        values = _Values(batch, found, names, self._stored(found, names), absent)
        taken = found.runs.at[found.takes]
        rows = np.sort(np.concatenate([direct, taken]))
        if revisions and not fresh.all():
            self._note_revised(batch, fresh, rows, found)
        result = batch.take(rows)
        if len(taken):
            source = values.sources(found.takes, found.source)
            if not nulls:
                source = values.whole_ones(source, taken)
            place = np.searchsorted(rows, taken)
            own = {name: rows.copy() for name in names}
            for name in names:
                own[name][place] = source[name]
            result = _replaced(result, {name: values.column(name, own[name]) for name in names})
        keeps = found.runs.last & found.waits
        keys = [name for name in batch.key_columns if name in batch.schema.names and name not in names]
        self._keep(found, keeps, values, [*names, *keys], target)
        return result

    def first_labels(self, batch: Batch, label: Mask, target: str) -> FirstLabels:
        """Return which events bring a row's first label, and which rows wait after theirs."""
        runs = Histories.of(batch)
        stored = np.where(runs.unknown, 0, self._where.get(runs.number >> 1)).astype(np.int64)
        whole = whole_before(batch, target)[runs.at]
        had_none = np.zeros(len(runs.at), np.bool_)
        whole &= runs.unknown
        if whole.any():
            had_none = whole & np.asarray(batch.before.field(target).is_null())[runs.at]  # type: ignore[union-attr]  # some are whole
        mine, fresh = label[runs.at], inserted(batch)[runs.at]
        shown = runs.unknown & ~fresh
        waited = stored > 0
        if self._done is not None:
            waited |= ~runs.unknown & (self._done.get(runs.number >> 1) == 0)
        waited |= fresh & ~mine
        waited |= shown & np.where(whole, had_none, ~mine)
        if self.hashes:
            waited |= shown & ~whole & _were_waiting(self.hashes, batch)[runs.at]
        waited = waited[runs.begin] if len(runs.at) else waited
        earlier = runs.before(mine) >= 0
        takes = ~fresh & mine & waited & ~earlier
        source = runs.before(np.ones(len(runs.at), np.bool_))
        unlearned = shown & mine & ~waited & runs.first
        return FirstLabels(runs, takes, waited & ~earlier & ~mine, source, stored, whole, unlearned)

    def _note_revised(self, batch: Batch, fresh: Mask, learned: Ints, found: FirstLabels) -> None:
        """Count events of rows that had been learned before them: in this batch, or by what is known from before."""
        if ROW not in batch.schema.names:
            return
        unlearned = found.runs.number[found.unlearned]
        self.refuse(unlearned[unlearned > 0])
        row = np.asarray(batch.column(ROW))
        number = np.where(row < 0, ~row, row)
        order = np.argsort(number, kind="stable")
        number, fresh = number[order], fresh[order]
        place, learns = np.arange(len(order)), np.zeros(len(order), np.bool_)
        learns[learned] = True
        first = np.append(True, number[1:] != number[:-1])[: len(order)]
        begin = np.maximum.accumulate(np.where(first, place, 0))
        newest = np.append(-1, np.maximum.accumulate(np.where(learns[order], place, -1))[:-1])
        known = ((row[order] > 0) & ~fresh)[begin] & (self._where.get(number >> 1) == 0)
        if self._done is not None:
            known &= self._done.get(number >> 1) != 0
        before = (newest >= begin) | known
        self.revised.append(number[~fresh & (number > 0) & before] >> 1)

    def settle(self) -> int:
        """Return how many events have changed or ended rows that were learned before, since this was asked last.

        Rows of the events' own batch may have been refused meanwhile.
        """
        found, self.revised = self.revised, []
        return sum(int((self._unlearned.get(rows) == 0).sum()) for rows in found)

    def refuse(self, numbers: Ints) -> None:
        """Remember that rows were not learned though they have a label."""
        places = numbers >> 1
        self._unlearned.put(places, np.ones(len(places), np.uint64))

    def _stored(self, found: FirstLabels, names: Sequence[str]) -> pa.Table:
        """Return what is kept of the rows of a batch, where something is."""
        kept = self._rows.take(np.unique(found.stored[found.stored > 0]) - 1)
        there = [name for name in names if name in kept.column_names]
        return kept.select(there)

    def _keep(self, found: FirstLabels, keeps: Mask, values: _Values, names: Sequence[str], target: str) -> None:
        """Replace what is kept of the rows of a batch by what they are after it."""
        runs = found.runs
        gone = np.unique(found.stored[(found.stored > 0) & (found.takes | keeps)])
        if len(gone):
            self._rows.drop(gone - 1)
        taken = runs.number[found.takes] >> 1
        self._where.put(taken[taken > 0], np.zeros(int((taken > 0).sum()), np.uint64))
        if self._done is not None:
            done = runs.number[labelled(values.batch, target)[runs.at] & (runs.number > 0)] >> 1
            self._done.put(done, np.ones(len(done), np.uint64))
        keeps = keeps & (runs.number > 0)
        if not keeps.any():
            return
        order = np.argsort(runs.at[keeps])
        at, number = runs.at[keeps][order], runs.number[keeps][order] >> 1
        own = values.own(np.flatnonzero(keeps)[order])
        columns = {name: values.column(name, own.get(name, at)) for name in names}
        first = self._rows.add(pa.record_batch({"__number": pa.array(number), **columns}))
        self._where.put(number, (first + 1 + np.arange(len(number))).astype(np.uint64))

    # -- rows that leave without a label -----------------------------------------------------------------------------

    def end(self, numbers: Ints) -> None:
        """Let rows go that have ended."""
        places = np.unique(numbers >> 1)
        stored = self._where.get(places).astype(np.int64)
        stored, places = stored[stored > 0], places[stored > 0]
        if len(stored):
            self._rows.drop(stored - 1)
            self._where.put(places, np.zeros(len(places), np.uint64))

    def end_all(self, before: int) -> None:
        """Let all rows go whose numbers (without the last bit) are up to one: the table was truncated."""
        self.hashes.clear()
        places = self._where.first + np.flatnonzero(self._where.values)
        self.end(2 * places[places <= before])

    def too_old(self, forgotten: int) -> tuple[Ints, pa.Table]:
        """Take rows that are not remembered any more (`row_identity.LIMIT`), and what was kept of them."""
        for numbers in (self._unlearned, self._done):
            if numbers is not None:
                numbers.forget(forgotten + 1)
        values = self._where.values
        if not len(values) or self._where.first > forgotten:
            return np.empty(0, np.int64), pa.table({})
        old = values[: forgotten + 1 - self._where.first]
        places = self._where.first + np.flatnonzero(old)
        kept = self._rows.take(old[old > 0].astype(np.int64) - 1) if len(places) else pa.table({})
        self.end(2 * places)
        self._where.forget(forgotten + 1)
        return places, kept.drop_columns(["__number"]) if len(places) else kept

    # -- stored ----------------------------------------------------------------------------------------------------

    def state(self, begin: int = 1) -> dict[str, Any]:
        """Return flat values; ``begin``: the first number that is remembered."""
        flat = {f"rows.{name}": value for name, value in self._rows.snapshot().items()}
        if self._done is not None:
            flat.update({f"done.{name}": value for name, value in self._done.state(begin).items()})
        if self.hashes:
            flat["hashes"] = np.sort(np.fromiter(self.hashes, np.int64, len(self.hashes)))
        if self._unlearned.values.any():
            flat["unlearned"] = (self._unlearned.first + np.flatnonzero(self._unlearned.values)).astype(np.int64)
        return flat

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take flat values that `state` returned."""
        self.hashes = set(np.asarray(state.get("hashes", ()), np.int64).tolist())
        self._unlearned = Numbered()
        self.refuse(2 * np.asarray(state.get("unlearned", ()), np.int64))
        self._rows.restore(below("rows.", state))
        self._where = Numbered()
        if self._done is not None and "done.first" in state:
            self._done.restore(below("done.", state))
        kept = np.asarray(state["rows.seqs"], np.int64)
        if len(kept):
            number = np.asarray(self._rows.take(kept).column("__number").combine_chunks(), np.int64)
            self._where.put(number, (kept + 1).astype(np.uint64))


@dataclass(slots=True)
class FirstLabels:
    """The effect of a batch on rows that wait; all but ``runs`` as long as its events.

    Attributes:
        takes: events that bring a row's first label.
        waits: events after which their row still waits.
        source: the event before, whose columns were the row's; -1: what is kept of it, or its old image.
        stored: where it is kept, plus one; 0: nowhere.
        whole: which come with the whole old row.
        unlearned: which show a row for the first time, with a label that may not be its first.
    """

    runs: Histories
    takes: Mask
    waits: Mask
    source: Ints
    stored: Ints
    whole: Mask
    unlearned: Mask


class _Values:
    """Columns of rows as events of a batch show them: a value that was not sent is the one before.

    Each column is put together of the batch's, what is kept of rows, and the old images, and values are places in it.
    """

    def __init__(
        self,
        batch: Batch,
        found: FirstLabels,
        names: Sequence[str],
        stored: pa.Table,
        absent: Mapping[str, Mask] | None = None,
    ) -> None:
        self.batch, self.found, self.names, self.stored, self.absent = batch, found, list(names), stored, absent
        self.known = np.unique(found.stored[found.stored > 0])
        n, runs = batch.num_rows, found.runs
        # Where the columns of each event's row were before the event, where no event of the batch says so.
        kept = np.where(found.stored > 0, n + np.searchsorted(self.known, found.stored), -1)
        kept = np.where(found.whole & (kept < 0), n + len(self.known) + runs.at, kept)
        self._begin = kept[runs.begin] if len(kept) else kept
        self._own: dict[str, Ints] = {}

    def _places(self, name: str) -> Ints:
        """Return where each event in the runs has its value of a column; -1: nowhere."""
        if name not in self._own:
            runs = self.found.runs
            missing = unsent(self.batch, name) if self.absent is None else self.absent.get(name)
            if missing is None:
                self._own[name] = runs.at
            else:
                sent = runs.newest(~missing[runs.at])
                self._own[name] = np.where(sent >= 0, runs.at[sent], self._begin)
        return self._own[name]

    def own(self, events: Ints) -> dict[str, Ints]:
        """Return the places of the columns of some events, by their numbers in the runs."""
        return {name: self._places(name)[events] for name in self.names}

    def sources(self, takes: Mask, source: Ints) -> dict[str, Ints]:
        """Return the places of the columns that events' rows had before them."""
        before, begin = source[takes], self._begin[takes]
        # Where nothing tells what the row was, it is what the event says.
        begin = np.where(begin >= 0, begin, self.found.runs.at[takes])
        return {name: np.where(before >= 0, self._places(name)[before], begin) for name in self.names}

    def whole_ones(self, source: dict[str, Ints], events: Ints) -> dict[str, Ints]:
        """Places of rows that lack no value; of the others the events' own."""
        lacks = np.zeros(len(events), np.bool_)
        for name, places in source.items():
            lacks |= np.asarray(self.column(name, places).is_null())
        if not lacks.any():
            return source
        at = np.argsort(self.found.runs.at)
        numbers = at[np.searchsorted(self.found.runs.at[at], events)]
        own = self.own(numbers)
        return {name: np.where(lacks, own[name], places) for name, places in source.items()}

    def column(self, name: str, places: Ints) -> pa.Array:
        """Return values of a column by their places."""
        n = self.batch.num_rows
        own = self.batch.column(name)
        if len(places) and (places < n).all() and (places >= 0).all():
            return own.take(pa.array(places))
        kept = whole(self.stored.column(name)) if name in self.stored.column_names else None
        before = self.batch.before
        old = None if before is None or before.type.get_field_index(name) < 0 else before.field(name)
        parts = _stacked(own, [(kept, len(self.known)), (old, n)])
        return parts.take(pa.array(places, mask=places < 0))


def _stacked(own: pa.Array, others: Sequence[tuple[pa.Array | None, int]]) -> pa.Array:
    """Arrays one after the other; those that cannot have one type with the first are nulls."""
    kinds = [other.type for other in (own, *(array for array, _ in others)) if other is not None]
    kind = next((item for item in kinds if not pa.types.is_null(item)), pa.null())
    parts = []
    for array, n in [(own, len(own)), *others]:
        try:
            parts.append(pa.nulls(n, kind) if array is None else array.cast(kind) if array.type != kind else array)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            parts.append(pa.nulls(n, kind))
    return pa.concat_arrays(parts)


def _replaced(batch: Batch, columns: Mapping[str, pa.Array]) -> Batch:
    """Return the batch with other values in some columns, where they stand."""
    arrays = [columns.get(name, batch.column(name)) for name in batch.schema.names]
    fields = [field.with_type(array.type) for field, array in zip(batch.schema, arrays, strict=True)]
    return Batch(pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields, metadata=batch.schema.metadata)))


def _were_waiting(hashes: set[int], batch: Batch) -> Mask:
    """Return which events are of rows whose keys waited in an older state; the keys are taken out."""
    keys = _old_hashes(batch)
    found = np.array([key in hashes for key in keys], np.bool_)
    hashes.difference_update(keys)
    return found


def _old_hashes(batch: Batch) -> list[int]:
    """Return hashes of keys as older states have them; of updates of a key, of the one that the row had."""
    names = batch.key_columns
    if not names or any(name not in batch.schema.names for name in names):
        return [0] * batch.num_rows
    before = batch.before
    columns = []
    for name in names:
        column = batch.column(name)
        if before is not None and before.type.get_field_index(name) >= 0:
            column = pc.coalesce(before.field(name).cast(column.type), column)
        columns.append(values(column))
    return [_hash(key) for key in zip(*columns, strict=True)]


def _hash(key: tuple[object, ...]) -> int:
    text = json.dumps(key, default=str, separators=(",", ":")).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big", signed=True)


# -- which updates change something ----------------------------------------------------------------------------------


class Changes:
    """Tells which updates change some columns, by hashes of what each row had."""

    def __init__(self) -> None:
        self._columns: dict[str, Numbered] = {}

    def changed(self, batch: Batch, columns: Mapping[str, pa.Array]) -> Mask:
        """Return which events bring a row, or change one of its columns as far as is known; remember these.

        Args:
            columns: by name. One that was not sent (TOAST) has not changed.
        """
        found = inserted(batch)
        updates = batch.op == OPS["u"]
        if not updates.any():
            return self._all_new(batch, columns, found)
        runs = Histories.of(batch)
        fresh = inserted(batch)[runs.at]
        whole = whole_before(batch)[runs.at]
        differs = np.zeros(len(runs.at), np.bool_)
        earlier = self._of_before(batch, list(columns)) if (whole & runs.unknown).any() else {}
        for name, all_of, missing in self._hashed(batch, columns):
            mine = all_of[runs.at]
            old = self._values(name).get(runs.number >> 1)
            old[runs.unknown] = 0
            if (whole & runs.unknown).any():
                old = np.where(whole & runs.unknown, earlier[name][runs.at], old) if name in earlier else old
            if missing is None:
                previous = np.where(runs.first, old, np.concatenate([mine[:1], mine[:-1]]))
                differs |= mine != previous
            else:
                sent = ~missing[runs.at]
                at = runs.before(sent)
                previous = np.where(at >= 0, mine[at], old[runs.begin])
                differs |= sent & (mine != previous)
                newest = runs.newest(sent)
                mine = np.where(newest >= 0, mine[newest], old[runs.begin])
            keeps = runs.last & (runs.number > 0)
            put_newest(self._values(name), runs.number[keeps] >> 1, mine[keeps])
        asks = np.zeros(batch.num_rows, np.bool_)
        asks[runs.at] = fresh | differs
        return asks

    def _all_new(self, batch: Batch, columns: Mapping[str, pa.Array], found: Mask) -> Mask:
        if ROW not in batch.schema.names:
            return found
        number = np.asarray(batch.column(ROW))
        keeps = found & (number > 0)
        if keeps.any():
            for name, values, _ in self._hashed(batch, columns):
                put_newest(self._values(name), number[keeps] >> 1, values[keeps])
        return found

    @property
    def empty(self) -> bool:
        """True where it has nothing to remember."""
        return not self._columns

    def _values(self, name: str) -> Numbered:
        return self._columns.setdefault(name, Numbered())

    def _hashed(self, batch: Batch, columns: Mapping[str, pa.Array]) -> list[tuple[str, Hashes, Mask | None]]:
        """Return hashes of the columns, all of fixed width as one, and which of their values were not sent."""
        missing = {name: unsent(batch, name) for name in columns if name in batch.schema.names}
        return [(name, values, missing.get(name)) for name, values in _together(columns, batch.num_rows).items()]

    def _of_before(self, batch: Batch, names: Sequence[str]) -> dict[str, Hashes]:
        """Return the same of old images; nothing where these lack a column."""
        before = batch.before
        if before is None or any(before.type.get_field_index(name) < 0 for name in names):
            return {}
        return _together({name: before.field(name) for name in names}, batch.num_rows)

    def state(self) -> dict[str, Any]:
        """Return flat values."""
        flat: dict[str, Any] = {"names": json.dumps(list(self._columns))}
        for i, column in enumerate(self._columns.values()):
            flat.update({f"{i}.{name}": value for name, value in column.state(1).items()})
        return flat

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take flat values that `state` returned."""
        self._columns = {}
        for i, name in enumerate(json.loads(state["names"])):
            self._values(name).restore(below(f"{i}.", state))


class Truths:
    """The newest label of each row, for those who must know whether an update brings another one.

    Attributes:
        hashes: of keys of rows without a label, in a state of a version that kept nothing else.
    """

    def __init__(self) -> None:
        self._codes = Numbered()
        self.hashes: set[int] = set()

    def brought(self, batch: Batch, target: str) -> tuple[Mask, Mask]:
        """Return which events bring a label or another one, and of which rows it is not the first.

        >>> rows, truths = Identity(), Truths()
        >>> def came(op, y):
        ...     batch = Batch.of({"id": [1], "y": pa.array([y], pa.int64())}, op=op, key=["id"])
        ...     return [found.tolist() for found in truths.brought(numbered(batch, rows), "y")]
        >>> came("c", None), came("u", 5), came("u", 5), came("u", None), came("u", 6)
        ([[False], [False]], [[True], [False]], [[False], [True]], [[False], [True]], [[True], [True]])
        """
        runs, n = Histories.of(batch), batch.num_rows
        codes = _codes(batch.column(target))[runs.at]
        mine, fresh = labelled(batch, target)[runs.at], inserted(batch)[runs.at]
        old = self._codes.get(runs.number >> 1)
        old[runs.unknown] = 0
        again = runs.unknown & ~fresh
        whole = whole_before(batch, target)[runs.at]
        if (whole & runs.unknown).any():
            before = batch.before.field(target)  # type: ignore[union-attr]  # some are whole
            had = whole & np.asarray(before.is_valid())[runs.at]
            old = np.where(runs.unknown & had, _codes(before)[runs.at], old)
            again &= ~whole
        if self.hashes:
            again &= ~_were_waiting(self.hashes, batch)[runs.at]
        earlier = runs.before(mine)
        previous = np.where(earlier >= 0, codes[earlier], old[runs.begin] if len(runs.at) else old)
        # Of a row that nothing is known of, an update that has a label may have changed it.
        again &= earlier < 0
        brings, known = np.zeros(n, np.bool_), np.zeros(n, np.bool_)
        brings[runs.at] = mine & (fresh | again | (codes != previous))
        known[runs.at] = ~fresh & (again | (previous != 0))
        keeps = mine & (runs.number > 0) & self._next(runs, mine)
        put_newest(self._codes, runs.number[keeps] >> 1, codes[keeps])
        return brings, known

    @staticmethod
    def _next(runs: Histories, marked: Mask) -> Mask:
        """Return which marked events are the last marked ones of their row."""
        place = np.arange(len(marked))
        following = np.minimum.accumulate(np.where(marked, place, len(marked))[::-1])[::-1]
        following = np.append(following[1:], len(marked))
        end = np.append(np.flatnonzero(runs.first)[1:], len(marked))[np.cumsum(runs.first) - 1]
        return np.asarray(following >= end)

    def state(self) -> dict[str, Any]:
        """Return flat values."""
        flat = {f"codes.{name}": value for name, value in self._codes.state(1).items()}
        return {**flat, "hashes": np.sort(np.fromiter(self.hashes, np.int64, len(self.hashes)))}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take flat values that `state` returned."""
        self._codes.restore(below("codes.", state))
        self.hashes = set(np.asarray(state["hashes"], np.int64).tolist())


def _codes(truth: pa.Array) -> Hashes:
    return nonzero(truth_codes(truth).astype(np.int64).view(np.uint64))


def put_newest(values: Numbered, numbers: Ints, new: Hashes) -> None:
    """Put values of rows, and let those of rows go that are not remembered any more."""
    if len(numbers):
        values.put(numbers, new)
        values.forget(values.first + len(values.values) - LIMIT)


def _together(columns: Mapping[str, pa.Array], n: int) -> dict[str, Hashes]:
    fixed = np.zeros(n, np.uint64)
    found: dict[str, Hashes] = {}
    for name, array in columns.items():
        values = hashed(array)
        if not pa.types.is_primitive(array.type) and not pa.types.is_decimal(array.type):  # it may be unsent
            found[name] = nonzero(values)
        else:
            fixed += _salted(values, name)
    return {**found, "": nonzero(fixed)}


def _salted(values: Hashes, name: str) -> Hashes:
    salt = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
    return np.asarray((values ^ np.uint64(salt)) * np.uint64(0x9E3779B97F4A7C15 | 1))


# -- all that a task knows of rows -----------------------------------------------------------------------------------


@dataclass(slots=True)
class Memory:
    """The memory of a task: what it knows of the rows of its topics between two events.

    Attributes:
        rows: by topic. late: rows that wait, by who waits for them: `named`. changes: likewise, what they had.
        names: likewise, what columns are called that have a name of ours (`headrace.batch.told_apart`).
    """

    rows: dict[str, Identity] = field(default_factory=dict)
    late: dict[str, Late] = field(default_factory=dict)
    changes: dict[str, Changes] = field(default_factory=dict)
    names: dict[str, dict[str, str]] = field(default_factory=dict)

    def follow(self, topic: str, batch: Batch) -> Batch:
        """Return the batch with the numbers of its rows."""
        return numbered(batch, self.rows.setdefault(topic, Identity()))

    def waiting(self, name: str, *, partial: bool = False) -> Late:
        if name not in self.late:
            self.late[name] = Late(partial=partial)
        return self.late[name]

    def retain(self, topics: Collection[str], names: Mapping[str, str]) -> None:
        """Let go what is known of topics whose rows are not followed any more, and of those who do not wait any more.

        Args:
            names: who waits now -> how it was named before.
        """
        self.rows = {topic: rows for topic, rows in self.rows.items() if topic in topics}
        self.late = {now: self.late[before] for now, before in names.items() if before in self.late}
        self.changes = {now: self.changes[before] for now, before in names.items() if before in self.changes}
        self.names = {now: self.names[before] for now, before in names.items() if before in self.names}

    def settle(self) -> None:
        """Let go what belonged to rows that have ended."""
        for topic, rows in self.rows.items():
            numbers, truncated = rows.ended()
            for name, late in self.late.items():
                if name.split(":", 2)[2] == topic:
                    if truncated:
                        late.end_all(truncated)
                    if len(numbers):
                        late.end(numbers)

    def state(self) -> dict[str, Any]:
        """Return flat values."""
        kept = Memory(_filled(self.rows), _filled(self.late), _filled(self.changes))
        called = {name: one for name, one in self.names.items() if one}
        names = [list(kept.rows), list(kept.late), list(kept.changes)]
        if not any(names) and not called:
            return {}
        about = [*names, [item.partial for item in kept.late.values()], called]
        flat: dict[str, Any] = {"names": json.dumps(about)}
        for start, part in kept._parts():
            flat.update({f"{start}{name}": value for name, value in part.state().items()})
        return flat

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take flat values that `state` returned."""
        rows, late, changes, partial, self.names = json.loads(state["names"])
        self.rows = {name: Identity() for name in rows}
        self.late = {name: Late(partial=one) for name, one in zip(late, partial, strict=True)}
        self.changes = {name: Changes() for name in changes}
        for start, part in self._parts():
            part.restore(below(start, state))

    def _parts(self) -> Iterator[tuple[str, Identity | Late | Changes]]:
        for kind, parts in (("rows", self.rows), ("late", self.late), ("changes", self.changes)):
            for i, part in enumerate(list[Identity | Late | Changes](parts.values())):
                yield f"{kind}.{i}.", part


def _filled(parts: Mapping[str, Tracked]) -> dict[str, Tracked]:
    return {name: part for name, part in parts.items() if not part.empty}


def named(use: str, topics: Sequence[str], number: int) -> str:
    """Return the name of who waits for rows: what for, the topic, and which of the streams of that topic it is.

    >>> named("learn", ["a", "b", "a"], 2)
    'learn:1:a'
    """
    return f"{use}:{topics[:number].count(topics[number])}:{topics[number]}"
