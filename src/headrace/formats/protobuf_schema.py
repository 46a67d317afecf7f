"""Protobuf schemas out of a registry: source text or serialised descriptors, compiled without a network.

protoc comes from the package grpcio-tools and runs as a process of its own, once for each schema: it writes its errors
to the process's stderr and is not made for threads.
"""

from __future__ import annotations

import base64
import binascii
import importlib
import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any

from headrace.errors import FormatError, MissingExtra
from headrace.formats.registry import RegisteredSchema

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
        _add(pool, main, {one.name: one for one in files}, set())
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
