"""Reading Protobuf whose schemas are in a registry.

Messages become Arrow columns in `ptars` (Rust) by the whole group: 1.2 microseconds a message of 15 fields, where
google.protobuf's own classes need 5 to parse it, before anybody has looked at a field. A group with a broken message is
halved until that message is alone.

Enums are their names (a number that the schema does not know: its digits), ``google.protobuf.Timestamp`` is
timestamp[us, UTC], messages are structs, wrappers nullable values, maps maps; uint64 stays uint64. A message inside
itself is its bytes. A field without presence (proto3) that was not sent has its default value, as Protobuf means it.

Wire form: https://docs.confluent.io/platform/current/schema-registry/fundamentals/serdes-develop/index.html#wire-format

Schemas are source text or serialised descriptors, compiled without a network: protoc comes from the package
grpcio-tools and runs as a process of its own, once for each schema: it writes its errors to the process's stderr and is
not made for threads.
"""

from __future__ import annotations

import base64
import binascii
import importlib
import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa

from headrace.arrays import Ints
from headrace.errors import FormatError, MissingExtra
from headrace.formats.registry import RegisteredSchema, SchemaRegistry
from headrace.formats.registry_format import RegistryReader, Structs
from headrace.formats.registry_framing import Framed, Wire

_Bodies = tuple[list[int], list[bytes]]  # places and payloads
_MOST_INDEXES = 32


class ProtobufDecoder:
    """Payloads of one Protobuf schema to columns; remembers what it has compiled."""

    def __init__(self) -> None:
        self._files: dict[RegisteredSchema, Any] = {}
        self._handlers: dict[tuple[RegisteredSchema, tuple[int, ...]], Any] = {}

    def __call__(self, group: Framed, schema: RegisteredSchema) -> Structs:
        """Structs of the messages; a schema that cannot be used makes all of them bad.

        Raises:
            MissingExtra: the extra «protobuf» is not installed.
        """
        payloads = group.payloads()
        # Without Confluent's prefix nothing names the message: it is the schema's first.
        indexed = group.schema_id.scheme == "id"
        kinds, reasons = _by_message(payloads) if indexed else ({(0,): (list(range(len(payloads))), payloads)}, {})
        found: list[tuple[pa.StructArray, Ints]] = []
        for indexes, (places, bodies) in kinds.items():
            try:
                handler = self._handler(schema, indexes)
            except FormatError as error:
                reasons |= dict.fromkeys(places, f"{group.schema_id}: {error.message}")
                continue
            _convert(handler, bodies, np.array(places, np.int64), found, reasons)
        return found, reasons

    def _handler(self, schema: RegisteredSchema, indexes: tuple[int, ...]) -> Any:
        known = self._handlers.get((schema, indexes))
        if known is not None:
            return known
        try:
            import ptars
        except ImportError as error:
            raise MissingExtra("protobuf", "Protobuf from a schema registry") from error
        file = self._files.get(schema)
        if file is None:
            file = self._files[schema] = descriptor(schema)
        kind = message(file, indexes)
        options = ptars.PtarsConfig(timestamp_unit="us", time_unit="us", duration_unit="us", enum_repr="string")
        handler = ptars.HandlerPool([file], options).get_for_message(kind)
        return self._handlers.setdefault((schema, indexes), handler)


def _by_message(payloads: Sequence[bytes]) -> tuple[dict[tuple[int, ...], _Bodies], dict[int, str]]:
    """Messages behind their indexes, by the type that these name; and the places without any.

    >>> kinds, bad = _by_message([b"\\0ab", b"\\4\\2\\0cd", b""])
    >>> kinds, list(bad)
    ({(0,): ([0], [b'ab']), (1, 0): ([1], [b'cd'])}, [2])
    """
    if all(payload[:1] == b"\0" for payload in payloads):
        return {(0,): (list(range(len(payloads))), [payload[1:] for payload in payloads])}, {}
    kinds: dict[tuple[int, ...], _Bodies] = {}
    bad: dict[int, str] = {}
    for i, payload in enumerate(payloads):
        try:
            indexes, size = _indexes(payload)
        except (IndexError, ValueError):
            bad[i] = "no Protobuf message indexes behind the schema id"
            continue
        places, bodies = kinds.setdefault(indexes, ([], []))
        places.append(i)
        bodies.append(payload[size:])
    return kinds, bad


def _indexes(payload: bytes) -> tuple[tuple[int, ...], int]:
    count, at = _varint(payload, 0)
    if count == 0:
        return (0,), at
    if not 0 < count <= _MOST_INDEXES:
        raise ValueError("not a count of indexes")
    found = []
    for _ in range(count):
        index, at = _varint(payload, at)
        found.append(index)
    return tuple(found), at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    bits = shift = 0
    while True:
        byte = data[at]
        at += 1
        bits |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (bits >> 1) ^ -(bits & 1), at
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def _convert(
    handler: Any,
    payloads: list[bytes],
    places: Ints,
    found: list[tuple[pa.StructArray, Ints]],
    reasons: dict[int, str],
) -> None:
    if not payloads:
        return
    try:
        records = handler.list_to_record_batch(payloads)
    except ValueError as error:
        if len(payloads) == 1:
            reasons[int(places[0])] = str(error)
            return
        half = len(payloads) // 2
        _convert(handler, payloads[:half], places[:half], found, reasons)
        _convert(handler, payloads[half:], places[half:], found, reasons)
        return
    struct = pa.array([{}] * len(payloads), pa.struct([])) if not records.num_columns else records.to_struct_array()
    found.append((struct, places))


class ProtobufFormat(RegistryReader):
    """Protobuf messages, to read: field numbers are a promise that columns cannot make. Arguments: `RegistryReader`.

    >>> ProtobufFormat("http://127.0.0.1:8081").name
    'protobuf'
    """

    def __init__(self, registry: SchemaRegistry | str, *, wire: Wire = "confluent") -> None:
        super().__init__("protobuf", registry, {"PROTOBUF": ProtobufDecoder()}, wire=wire)


_MAIN = "headrace_registered_schema.proto"
_SECONDS = 60


def descriptor(schema: RegisteredSchema) -> Any:
    """The schema's ``google.protobuf.descriptor.FileDescriptor``.

    Raises:
        FormatError: protoc refuses it; the message is protoc's.
        MissingExtra: protobuf or grpcio-tools is not installed.
    """
    try:
        from google.protobuf import descriptor_pool
    except ImportError as error:
        raise MissingExtra("protobuf", "Protobuf from a schema registry") from error
    main, files = _serialised(schema) or _compiled(schema)
    pool = descriptor_pool.DescriptorPool()
    try:
        _add(pool, main, {file.name: file for file in files}, set())
        return pool.FindFileByName(main)
    except (KeyError, TypeError, RecursionError) as error:
        raise FormatError(f"a Protobuf schema that does not hang together: {error}") from error


def message(file: Any, indexes: tuple[int, ...]) -> Any:
    """The message type that Confluent's indexes name: the first of the file, then the second in it, …

    Raises:
        FormatError: there is no such message.
    """
    types = list(file.message_types_by_name.values())
    found = None
    for index in indexes:
        if not 0 <= index < len(types):
            raise FormatError(f"the schema has no message at the indexes {list(indexes)}")
        found = types[index]
        types = list(found.nested_types)
    if found is None:
        raise FormatError("no message is named")
    return found


def _serialised(schema: RegisteredSchema) -> tuple[str, list[Any]] | None:
    """File descriptors, where the registry was given those instead of text (Confluent's Python client does)."""
    main = _descriptor(schema.text, None)
    if main is None:
        return None
    main.name = main.name or _MAIN
    files = [main]
    for reference in schema.references:
        one = _descriptor(reference.text, reference.name)
        if one is None:
            raise FormatError(f"the Protobuf schema is serialised and «{reference.name}», which it imports, is text")
        files.append(one)
    return main.name, files


def _descriptor(text: str, name: str | None) -> Any | None:
    from google.protobuf import descriptor_pb2
    from google.protobuf.message import DecodeError

    try:
        found = descriptor_pb2.FileDescriptorProto.FromString(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError, DecodeError):
        return None
    if name is not None:
        found.name = name
    return found


def _compiled(schema: RegisteredSchema) -> tuple[str, list[Any]]:
    from google.protobuf import descriptor_pb2

    if importlib.util.find_spec("grpc_tools") is None:
        raise MissingExtra("protobuf", "compiling Protobuf schemas of a registry")
    with tempfile.TemporaryDirectory(prefix="headrace-proto-") as folder:
        root = Path(folder)
        for name, text in [*schema.references, (_MAIN, schema.text)]:
            path = PurePosixPath(name)
            # Names come from the registry: they must stay inside of the folder.
            if path.is_absolute() or ".." in path.parts or not path.parts:
                raise FormatError(f"the Protobuf schema imports «{name}», which is no plain relative path")
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
        output = root / "descriptors"
        command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{root}", "--include_imports"]
        command += [f"--descriptor_set_out={output}", _MAIN]
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS, cwd=root)
        if result.returncode:
            raise FormatError(f"protoc refuses the Protobuf schema: {result.stderr.strip()[:1000]}")
        return _MAIN, list(descriptor_pb2.FileDescriptorSet.FromString(output.read_bytes()).file)


def _add(pool: Any, name: str, files: dict[str, Any], added: set[str]) -> None:
    """A file and what it imports, imports first."""
    if name in added:
        return
    added.add(name)
    one = files.get(name) or _well_known(name)
    for imported in one.dependency:
        _add(pool, imported, files, added)
    pool.Add(one)


def _well_known(name: str) -> Any:
    """Google's own types, which every compiler brings along."""
    from google.protobuf import descriptor_pb2

    if not name.startswith("google/"):
        raise FormatError(f"the Protobuf schema imports «{name}», to which the registry has no reference")
    try:
        module = importlib.import_module(name.removesuffix(".proto").replace("/", ".") + "_pb2")
    except ImportError as error:
        raise FormatError(f"the Protobuf schema imports «{name}», to which the registry has no reference") from error
    found = descriptor_pb2.FileDescriptorProto()
    module.DESCRIPTOR.CopyToProto(found)
    return found
