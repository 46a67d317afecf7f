"""The format that a name stands for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from headrace.errors import DeclarationError
from headrace.formats.arrow import ArrowFormat
from headrace.formats.base import Format
from headrace.formats.csv import CsvFormat
from headrace.formats.image_label import ImageLabelFormat
from headrace.formats.json import JsonFormat
from headrace.formats.json_keys import check_key_format
from headrace.formats.plain import BytesFormat, StringFormat

REGISTERED = ("avro", "jsonschema", "protobuf", "registry")
KNOWN = (
    "json",
    "json+schema",
    "json+envelope",
    "json+envelope+schema",
    "arrow",
    "csv",
    "string",
    "bytes",
    "image+label",
    "avro",
    "avro+envelope",
    "jsonschema",
    "jsonschema+envelope",
    "protobuf",
    "registry",
)

_PLAIN: dict[str, Callable[..., Format]] = {
    "csv": CsvFormat,
    "string": StringFormat,
    "bytes": BytesFormat,
    **dict.fromkeys(("image+label", "label+image"), ImageLabelFormat),
}


def format_for(spec: str, *, key: str | None = None, registry: Any = None) -> Format:
    """The format of this name.

    Args:
        spec: a name as `KNOWN` lists them; what follows a «+» may stand in any order.
        key: how keys are written, where that is not as the format itself says.
        registry: the schema registry, for the formats that need one.

    Raises:
        DeclarationError: there is no such format, or it cannot have such a key.

    >>> format_for("json+schema+envelope").name
    'json+envelope+schema'
    """
    base, *more = spec.split("+")
    if base in REGISTERED:
        from headrace.formats.registered import registered_format

        return registered_format(spec, registry=registry, key=key)
    if base == "json" and set(more) <= {"schema", "envelope"} and len(set(more)) == len(more):
        return JsonFormat(schemas="schema" in more, envelope="envelope" in more, key=key)
    if not more and base == "arrow":
        check_key_format(key)
        if key not in (None, "none"):
            raise DeclarationError(
                "a message of format «arrow» holds many rows and has no key", advice="Leave key out."
            )
        return ArrowFormat()
    if spec not in _PLAIN:
        raise DeclarationError(f"there is no format «{spec}»", advice=f"Known are {', '.join(KNOWN)}.")
    return _PLAIN[spec](key=key)
