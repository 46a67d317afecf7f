"""Formats whose schemas are in a registry, by the names users give them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from headrace.errors import DeclarationError
from headrace.formats.avro import AvroDecoder, AvroFormat
from headrace.formats.base import Format
from headrace.formats.json_keys import KEY_FORMATS
from headrace.formats.jsonschema import JsonSchemaDecoder, JsonSchemaFormat
from headrace.formats.protobuf import ProtobufDecoder, ProtobufFormat
from headrace.formats.registry import SchemaRegistry
from headrace.formats.registry_format import Decoder, RegistryReader
from headrace.formats.registry_framing import Wire


class AnyFormat(RegistryReader):
    """Reads whatever the messages' schema ids say: Avro, JSON or Protobuf, also mixed in one topic.

    >>> AnyFormat("http://127.0.0.1:8081").name
    'registry'
    """

    def __init__(self, registry: SchemaRegistry | str, *, wire: Wire = "confluent") -> None:
        decoders: dict[str, Decoder] = {
            "AVRO": AvroDecoder(),
            "JSON": JsonSchemaDecoder(),
            "PROTOBUF": ProtobufDecoder(),
        }
        super().__init__("registry", registry, decoders, wire=wire)


_FORMATS: dict[str, tuple[Callable[..., Format], dict[str, Any], str]] = {
    "avro": (AvroFormat, {}, "avro"),
    "avro+envelope": (AvroFormat, {"envelope": True}, "avro"),
    "jsonschema": (JsonSchemaFormat, {}, "jsonschema"),
    "jsonschema+envelope": (JsonSchemaFormat, {"envelope": True}, "jsonschema"),
    "protobuf": (ProtobufFormat, {}, ""),
    "registry": (AnyFormat, {}, ""),
}
NAMES = tuple(_FORMATS)


def registered_format(spec: str, *, registry: SchemaRegistry | str | None = None, key: str | None = None) -> Format:
    """The format of this name.

    Args:
        spec: one of `NAMES`.
        registry: a client or a URL; HEADRACE_SCHEMA_REGISTRY_URL where it is None.
        key: how keys are written, one of `json_keys.KEY_FORMATS`; None (or the format's own name): as the values.

    Raises:
        DeclarationError: no such format, no registry, or a key it cannot have.

    >>> registered_format("avro+envelope", registry="http://127.0.0.1:8081").name
    'avro+envelope'
    """
    check_key(spec, key)
    make, options, own = _FORMATS[spec]
    client = registry if isinstance(registry, SchemaRegistry) else SchemaRegistry(registry)
    return make(client, **options, **({"key": key} if own else {}))


def check_key(spec: str, key: str | None) -> None:
    """Refuse a format that there is none of, or that cannot have such keys."""
    if spec not in _FORMATS:
        raise DeclarationError(
            f"no format of a schema registry is called «{spec}»", advice=f"One of {', '.join(NAMES)}."
        )
    own = _FORMATS[spec][2]
    allowed = (own, *KEY_FORMATS) if own else ("none",)
    if key is not None and key not in allowed:
        raise DeclarationError(
            f"{spec} cannot have keys in the format «{key}»", advice=f"Choose one of {', '.join(allowed)}."
        )
