"""Avro schemas as a tree: parsed once for each schema id, walked by the reader and the writer.

Follows https://avro.apache.org/docs/1.12.0/specification/. What Kafka Connect's AvroConverter adds to a schema
(``connect.name``, ``connect.type``, ``connect.parameters``) stays in `Node.attributes`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from headrace.errors import FormatError

PRIMITIVES = frozenset({"null", "boolean", "int", "long", "float", "double", "bytes", "string"})


@dataclass(frozen=True, slots=True)
class Node:
    """One type of a schema.

    Attributes:
        kind: ``int``, ``string``, …, ``fixed``, ``enum``, ``array``, ``map``, ``record`` or ``union``.
        attributes: every other attribute the schema gives to the type.
        name: the full name of a record, an enum or a fixed; the type's own name otherwise.
        names: a record's field names, an enum's symbols.
        children: a record's field types, a union's branches, the element type of an array or a map.
        size: bytes of a fixed.
    """

    kind: str
    attributes: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    names: tuple[str, ...] = ()
    children: tuple[Node, ...] = ()
    size: int = 0

    @property
    def nullable(self) -> bool:
        """Whether this is a union of null and exactly one other type."""
        return self.kind == "union" and len(self.children) == 2 and any(c.kind == "null" for c in self.children)

    @property
    def value(self) -> Node:
        """What is there when it is not null."""
        return next(c for c in self.children if c.kind != "null") if self.nullable else self

    @property
    def null_branch(self) -> int:
        """Which branch of a union is null, -1 where none is."""
        return next((i for i, c in enumerate(self.children) if c.kind == "null"), -1)

    def child(self, name: str) -> Node:
        """The type of one of a record's fields."""
        return self.children[self.names.index(name)]


def parse(text: str, references: Sequence[str] = ()) -> Node:
    """The tree of a schema; ``references`` are the schemas whose names it uses, innermost first.

    Raises:
        FormatError: not a schema, or one that a table cannot hold (a record inside itself).

    >>> node = parse('{"type": "record", "name": "V", "fields": [{"name": "a", "type": ["null", "int"]}]}')
    >>> node.names, node.child("a").nullable, node.child("a").value.kind
    (('a',), True, 'int')
    """
    named: dict[str, Node | None] = {}
    try:
        for reference in references:
            _node(json.loads(reference), "", named)
        return _node(json.loads(text), "", named)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(f"not an Avro schema ({type(error).__name__}: {error}): {text[:200]}") from error


def _node(schema: Any, namespace: str, named: dict[str, Node | None]) -> Node:
    if isinstance(schema, list):
        return Node("union", name="union", children=tuple(_node(branch, namespace, named) for branch in schema))
    if isinstance(schema, str):
        return _named(schema, namespace, named)
    kind = schema["type"]
    if not isinstance(kind, str):
        return _node(kind, namespace, named)
    attributes = {key: value for key, value in schema.items() if key not in ("type", "fields", "items", "values")}
    if kind == "array":
        return Node(kind, attributes, kind, children=(_node(schema["items"], namespace, named),))
    if kind == "map":
        return Node(kind, attributes, kind, children=(_node(schema["values"], namespace, named),))
    if kind in ("record", "error", "enum", "fixed"):
        return _definition(schema, kind, attributes, namespace, named)
    found = _named(kind, namespace, named)
    return Node(kind, attributes, kind) if kind in PRIMITIVES else found


def _definition(
    schema: dict[str, Any], kind: str, attributes: dict[str, Any], namespace: str, named: dict[str, Node | None]
) -> Node:
    name = str(schema["name"])
    space = name.rpartition(".")[0] if "." in name else str(schema.get("namespace", namespace) or "")
    full = name if "." in name or not space else f"{space}.{name}"
    named[full] = None  # being defined: a use of it inside itself has no Arrow type
    if kind == "enum":
        node = Node(kind, attributes, full, names=tuple(schema["symbols"]))
    elif kind == "fixed":
        node = Node(kind, attributes, full, size=int(schema["size"]))
    else:
        fields = schema["fields"]
        children = tuple(_node(_with_attributes(one), space, named) for one in fields)
        node = Node("record", attributes, full, names=tuple(_field_name(one) for one in fields), children=children)
    named[full] = node
    return node


def _field_name(one: dict[str, Any]) -> str:
    """A field's name; ours may carry a column's name that Avro would not allow."""
    return str(one.get("headrace.name", one["name"]))


def _with_attributes(one: dict[str, Any]) -> Any:
    """A field's type; some writers put ``logicalType`` beside the type instead of inside it."""
    kind = one["type"]
    if isinstance(kind, str) and kind in PRIMITIVES and "logicalType" in one:
        return {key: value for key, value in one.items() if key not in ("name", "default", "doc")}
    return kind


def _named(name: str, namespace: str, named: dict[str, Node | None]) -> Node:
    if name in PRIMITIVES:
        return Node(name, name=name)
    full = name if "." in name or not namespace else f"{namespace}.{name}"
    if full not in named:
        full = name
    if full not in named:
        raise FormatError(f"the Avro schema uses «{name}» and nothing defines it")
    node = named[full]
    if node is None:
        raise FormatError(f"the Avro record «{full}» contains itself; columns cannot hold that")
    return node
