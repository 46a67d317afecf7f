"""Events of the two machines of the factory: rows of files, each with the time of its event, in that order."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.batch import Batch
from headrace.demos.fish.pipeline import MEASUREMENT, WEIGHT
from headrace.errors import DeclarationError
from headrace.event_time import event_times
from headrace.learn.rows_file import csv

TIME = "Timestamp"
BEGINNING = datetime(2021, 6, 10, tzinfo=UTC)
EVERY = timedelta(seconds=2)
LATER = timedelta(seconds=10)
FIELDS = {MEASUREMENT: ("Species", "Fish_Id", "Length", "Height"), WEIGHT: ("Species", "Fish_Id", "Weight")}
FILES = {MEASUREMENT: "measurement.jsonl", WEIGHT: "weight.jsonl"}
NUMBERS = ("Length", "Height", "Weight")
TRAINING = ("Species", "Length", "Height", "Weight")


@dataclass(frozen=True, slots=True)
class Sent:
    """Rows of one machine, in the order in which it sends them.

    Attributes:
        rows: with a column ``Timestamp``.
        times_us: of them, microseconds since 1970-01-01 UTC, never falling.
    """

    rows: pa.RecordBatch
    times_us: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Event:
    """One row is sent: number ``row`` of a machine, at ``time_us``."""

    time_us: int
    machine: str
    row: int


@dataclass(frozen=True, slots=True)
class FishData:
    """The events that the demo plays.

    Attributes:
        training: the CSV file that the first model is trained on.
        sent: rows by the machine.
    """

    training: Path
    sent: Mapping[str, Sent]

    def events(self) -> list[Event]:
        """All rows of both machines in the order of their times.

        Of equal times the measurement comes first: a fish on the scales changes nothing for one measured just then.
        """
        found = [
            Event(time_us, machine, row)
            for machine in (MEASUREMENT, WEIGHT)
            for row, time_us in enumerate(self.sent[machine].times_us.tolist())
        ]
        return sorted(found, key=lambda one: (one.time_us, one.machine != MEASUREMENT, one.row))

    @property
    def species(self) -> list[str]:
        """Kinds of fish, in the order in which they are measured first."""
        return list(dict.fromkeys(self.sent[MEASUREMENT].rows.column("Species").to_pylist()))


def read_data(directory: Path | None = None) -> FishData:
    """The three files: ``training.csv``, ``measurement.jsonl`` and ``weight.jsonl``; by default those of the package.

    Rows without ``Timestamp`` get one: measurement i, counted from 0, is 2 i seconds after 2021-06-10T00:00:00Z, and
    its weight, the one with its ``Fish_Id``, 10 seconds later.

    Raises:
        DeclarationError: a file, a column or a value is missing or wrong.
    """
    root = directory or Path(str(files("headrace.demos.fish") / "data"))
    training = root / "training.csv"
    _check_training(training)
    rows = {machine: list(_read(root / FILES[machine], FIELDS[machine])) for machine in FIELDS}
    _check_times(rows, root)
    if TIME not in rows[MEASUREMENT][0]:
        _add_times(rows)
    return FishData(training, {machine: _in_order(rows[machine], root / FILES[machine]) for machine in rows})


def _check_training(path: Path) -> None:
    rows = csv(path, rename=str.capitalize).read()
    missing = [name for name in TRAINING if name not in rows.schema.names]
    if missing:
        raise DeclarationError(
            f"{path} has no column {missing[0].lower()}", advice=f"Its header: {','.join(TRAINING).lower()}"
        )
    for name in TRAINING[1:]:
        kind = rows.schema.field(name).type
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)) or rows.column(name).null_count:
            raise DeclarationError(f"{path}: {name.lower()} is not a number in every row", advice="Correct the file.")
    if not rows.num_rows:
        raise DeclarationError(f"{path} has no rows", advice="The first model is trained on them.")


def _read(path: Path, fields: Sequence[str]) -> Iterator[dict[str, Any]]:
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DeclarationError(
            f"{path} cannot be read: {error}", advice="Give training.csv, measurement.jsonl, weight.jsonl."
        ) from error
    count = 0
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield _parsed(line, fields, f"{path}, line {number}")
            count += 1
    if not count:
        raise DeclarationError(f"{path} has no rows", advice="One JSON object a line.")


def _parsed(line: str, fields: Sequence[str], where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DeclarationError(f"{where}: no JSON: {error}", advice="One JSON object a line.") from error
    if not isinstance(row, dict):
        raise DeclarationError(f"{where}: no JSON object", advice="One JSON object a line.")
    for name in fields:
        value = row.get(name)
        if value is None:
            raise DeclarationError(f"{where}: there is no {name}", advice=f"Its fields: {', '.join(fields)}.")
        if name in NUMBERS and not _is_number(value):
            raise DeclarationError(f"{where}: {name} is {value!r}, no number", advice="Correct the file.")
        if name == "Weight" and value <= 0:
            raise DeclarationError(f"{where}: a Weight of {value}", advice="Errors are relative to it: none is 0.")
        if name == "Fish_Id" and (not isinstance(value, str | int) or isinstance(value, bool)):
            raise DeclarationError(f"{where}: Fish_Id is {value!r}", advice="Give a text or a whole number.")
        if name == "Species" and not isinstance(value, str):
            raise DeclarationError(f"{where}: Species is {value!r}", advice="Give a text.")
    return {name: float(value) if name in NUMBERS else value for name, value in row.items()}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# -- times --------------------------------------------------------------------------------------------------------


def _check_times(rows: Mapping[str, Sequence[dict[str, Any]]], root: Path) -> None:
    """Either every row says when it was sent, or none."""
    said = {machine: sum(item.get(TIME) is not None for item in found) for machine, found in rows.items()}
    for machine, count in said.items():
        every = len(rows[machine])
        if any(said.values()) and count < every:
            raise DeclarationError(
                f"{root / FILES[machine]}: {every - count} of {every} rows have no {TIME}",
                advice=f"Give every row of {' and '.join(FILES.values())} one, or none.",
            )


def _add_times(rows: Mapping[str, list[dict[str, Any]]]) -> None:
    at = {row["Fish_Id"]: i for i, row in reversed(list(enumerate(rows[MEASUREMENT])))}
    for i, row in enumerate(rows[MEASUREMENT]):
        row[TIME] = iso(BEGINNING + i * EVERY)
    for i, row in enumerate(rows[WEIGHT]):
        # A fish that was never measured is weighed where the file has it.
        row[TIME] = iso(BEGINNING + at.get(row["Fish_Id"], i) * EVERY + LATER)


def iso(when: datetime) -> str:
    """A time in UTC, ending in Z.

    >>> iso(datetime(2021, 6, 10, 0, 2, tzinfo=UTC))
    '2021-06-10T00:02:00Z'
    """
    return when.isoformat().replace("+00:00", "Z")


def _in_order(rows: list[dict[str, Any]], path: Path) -> Sent:
    names = list(dict.fromkeys(name for row in rows for name in row))
    try:
        columns = [pa.array([row.get(name) for row in rows]) for name in names]
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DeclarationError(f"{path}: a column of several types: {error}", advice="Give each one type.") from error
    records = pa.RecordBatch.from_arrays(columns, names=names)
    times, valid, reasons = event_times(Batch.of(records), TIME)
    if not valid.all():
        row = min(reasons)
        raise DeclarationError(f"{path}, row {row + 1}: {reasons[row]}", advice="Give ISO 8601: 2021-06-10T00:00:00Z.")
    order = np.argsort(times, kind="stable")
    return Sent(records.take(pa.array(order)), times[order])
