"""What every transform needs: its options, and the side of a record that it works on, its key or its value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np

from headrace.formats.transforms.records import Column, Records, RowsRefused, Struct, opened

Transform: TypeAlias = Callable[[Records], list[Records]]
Side: TypeAlias = Literal["key", "value"]


@dataclass(frozen=True, slots=True)
class Options:
    """Properties of one transform, without its prefix.

    Attributes:
        side: of ``…$Key`` and ``…$Value``; ``value`` of those that have no sides.
    """

    own: Mapping[str, str]
    side: Side = "value"

    def text(self, name: str, default: str = "") -> str:
        return self.own.get(name, default).strip()

    def flag(self, name: str, default: bool) -> bool:
        return self.own.get(name, str(default)).strip().lower() == "true"

    def listed(self, name: str) -> list[str]:
        return [item.strip() for item in self.own.get(name, "").split(",") if item.strip()]

    def whole(self, name: str) -> int | None:
        return int(self.own[name]) if self.own.get(name, "").strip() else None

    @property
    def defaults(self) -> bool:
        """Return whether what is copied takes the schema's default for null."""
        return self.flag("replace.null.with.default", True)


def side_of(records: Records, side: Side) -> Column | None:
    return records.key if side == "key" else records.value


def with_side(records: Records, side: Side, column: Column | None) -> Records:
    return replace(records, key=column) if side == "key" else replace(records, value=column)


def all_refused(records: Records, message: str) -> RowsRefused:
    """Return an error of all records."""
    return RowsRefused(np.ones(len(records), bool), message, order=records.order)


def on_structs(
    records: Records, side: Side, change: Callable[[Records, Struct], Column], *, purpose: str, keeps_null: bool
) -> list[Records]:
    """Return records whose structs were changed.

    Args:
        purpose: as Kafka Connect's error names it.
        keeps_null: a null stays as it is; it is an error otherwise.

    Raises:
        RowsRefused: there are others than structs.
    """
    column = side_of(records, side)
    null = np.ones(len(records), bool) if column is None else column.is_null
    if null.any():
        if not keeps_null:
            what = "Map objects supported in absence of schema" if column is None else "Struct objects supported"
            raise RowsRefused(null, f"Only {what} for [{purpose}], found: null")
        kept, rest = records.split(null)
        return [kept, *(on_structs(rest, side, change, purpose=purpose, keeps_null=True) if len(rest) else [])]
    structs = structs_of(records, side, purpose)
    return [with_side(records, side, change(records, structs))]


def structs_of(records: Records, side: Side, purpose: str) -> Struct:
    """Return a side's structs, of which some may be null.

    Raises:
        RowsRefused: they are none.
    """
    column = side_of(records, side)
    found = None if column is None or not column.schema else opened(column)
    if not isinstance(found, Struct):
        what = "null" if column is None else column.schema.get("type", "a map without a schema")
        raise all_refused(records, f"Only Struct objects supported for [{purpose}], found: {what}")
    return found
