"""JSON in a column as Kafka Connect's structs, with schemas that are found in it.

Source: ``io.debezium.transforms.outbox.JsonSchemaData`` of Debezium 3.6.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from headrace.arrays import Ints
from headrace.formats.debezium_types import Schema
from headrace.formats.transforms.records import Records, RowsRefused, dumped


@dataclass
class Groups:
    """Texts by the schemas that were found in them.

    Attributes:
        parsed: (rows, schema, values).
        wrong: what is wrong with texts that are no JSON of one shape, by row.
        unfit: as ``wrong``, of those that Debezium fails on when it reads their values.
    """

    parsed: list[tuple[Ints, Schema, list[Any]]] = field(default_factory=list)
    wrong: dict[int, str] = field(default_factory=dict)
    unfit: dict[int, str] = field(default_factory=dict)

    def check(self, records: Records, *, unfit_only: bool = False) -> None:
        """Refuse records whose texts have no schema.

        Raises:
            RowsRefused: there are some.
        """
        faults = self.unfit if unfit_only else {**self.wrong, **self.unfit}
        if faults:
            mask = np.zeros(len(records), bool)
            reason = next(iter(faults.values()))
            mask[[row for row, said in faults.items() if said == reason]] = True
            raise RowsRefused(mask, reason)


@dataclass(frozen=True)
class JsonPayload:
    """Finds schemas in JSON.

    Attributes:
        key: the name of the outermost schema; None where it has none.
        nulls: fields that are null are kept, as bytes.
    """

    key: str | None = None
    nulls: bool = False

    def groups(self, texts: Sequence[str | None]) -> Groups:
        """Return texts by their schemas; those that are None stand nowhere."""
        found = Groups()
        by_schema: dict[str, tuple[Schema, list[int], list[Any]]] = {}
        for row, text in enumerate(texts):
            if text is None:
                continue
            try:
                node = _parsed(text)
                schema = self._schema(self.key, node)
            except (ValueError, RecursionError) as error:
                found.wrong[row] = str(error)
                continue
            if schema is None or schema["type"] != "struct":
                found.unfit[row] = "a JSON array is no struct, which a payload has to be"
                continue
            try:
                value = _data(node, schema)
            except ValueError as error:
                found.unfit[row] = str(error)
                continue
            _, rows, values = by_schema.setdefault(dumped(schema), (schema, [], []))
            rows.append(row)
            values.append(value)
        found.parsed = [(np.array(rows, np.int64), schema, values) for schema, rows, values in by_schema.values()]
        return found

    def _schema(self, key: str | None, node: Any) -> Schema | None:
        """Return the schema of a value; None: its field is left out.

        Raises:
            ValueError: an array has values of several types.
        """
        if node is None:
            return {"type": "bytes", "optional": True} if self.nulls else None
        if isinstance(node, list):
            return {"type": "array", "items": self._items(key, node), "optional": True} if node else None
        if isinstance(node, dict):
            fields = []
            for name, value in node.items():
                schema = self._schema(f"{key}.{name}" if key else name, value)
                if schema is not None:
                    fields.append({**schema, "field": name})
            made: Schema = {"type": "struct", "fields": fields, "optional": True}
            return made if key is None else {**made, "name": key}
        return {"type": _kind(node), "optional": True}

    def _items(self, key: str | None, nodes: list[Any]) -> Schema:
        there = [node for node in nodes if node is not None]
        kinds = dict.fromkeys(_kind(node) for node in there)
        if len(kinds) > 1:
            raise ValueError(f"Field is not a homogenous array ({' x '.join(kinds)}).")
        if there and isinstance(there[0], dict):
            merged: dict[str, Schema] = {}
            schemas = [schema for node in there if (schema := self._schema(key, node)) is not None]
            one = all(schema == schemas[0] for schema in schemas)
            for schema in schemas:
                for part in schema["fields"]:
                    known = merged.get(part["field"])
                    if known is None or (known["type"] == "bytes" and part["type"] != "bytes"):
                        merged[part["field"]] = part
            # What is merged of several schemas may not be null any more.
            made: Schema = {"type": "struct", "fields": list(merged.values()), "optional": one}
            return made if key is None else {**made, "name": key}
        schema = self._schema(None, there[0]) if there else self._schema(None, None)
        if schema is None:
            raise ValueError("Array has unrecognized member schema.")
        return schema


def _parsed(text: str) -> Any:
    if not text.startswith(("{", "[")):
        raise ValueError(f"Unable to parse payload starting with '{text[:1]}'")
    # Jackson takes no NaN, and ends at the end of the first value.
    node, _ = json.JSONDecoder(parse_constant=_no_constant).raw_decode(text)
    return node


def _no_constant(name: str) -> Any:
    raise ValueError(f"Non-standard token '{name}'")


def _kind(node: Any) -> str:
    if isinstance(node, bool):
        return "boolean"
    if isinstance(node, int):
        return "int32" if -(2**31) <= node < 2**31 else "int64" if -(2**63) <= node < 2**63 else "double"
    return {float: "double", str: "string", list: "array", dict: "struct"}[type(node)]


def _data(node: Any, schema: Mapping[str, Any]) -> Any:
    """Return a value as its schema has it.

    Raises:
        ValueError: it is another one's.
    """
    if node is None:
        return None
    if isinstance(node, dict) and schema["type"] == "struct":
        return {part["field"]: _data(node.get(part["field"]), part) for part in schema["fields"]}
    if isinstance(node, list) and schema["type"] == "array":
        if None in node and not schema["items"]["optional"]:
            raise ValueError("Invalid value: null used for required element of an array")
        return [_data(item, schema["items"]) for item in node]
    if _kind(node) != schema["type"] or (isinstance(node, int) and schema["type"] == "double"):
        raise ValueError(f"Invalid Java object for schema type {schema['type'].upper()}: {node!r}")
    return node
