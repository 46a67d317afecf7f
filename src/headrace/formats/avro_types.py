"""Avro and Arrow types, both ways, with what Kafka Connect and Debezium write into Avro schemas.

Reading gives the types of native capture (`headrace.capture.postgres.types`):

===================================================  ==========================================================
Avro ``connect.name`` or ``logicalType``             Arrow
===================================================  ==========================================================
int with ``connect.type`` int8, int16                int8, int16
io.debezium.time.Date, Connect Date, ``date``        date32
…Timestamp, MicroTimestamp, NanoTimestamp,           timestamp[us]; nanoseconds of NanoTimestamp: timestamp[ns]
Connect Timestamp, ``local-timestamp-*``
io.debezium.time.ZonedTimestamp, ``timestamp-*``     timestamp[us, UTC] (``timestamp-nanos``: ns)
…Time, MicroTime, NanoTime, Connect Time, ``time-*`` string, as PostgreSQL writes it: ``10:34:56.7``
Connect Decimal, ``decimal``                         decimal128(p, s); string where p > 38 or s > p
io.debezium.data.VariableScaleDecimal                string
…MicroDuration, NanoDuration                         duration[us], duration[ns]
io.debezium.data.Bits, geometry.Point                string, as PostgreSQL writes them: ``0101``, ``(1,2)``
enum, Uuid, Json, Xml, ``uuid``, everything else     string; what the Avro type is
===================================================  ==========================================================

Writing makes ``connect.name`` and, where no reader stumbles over both, ``logicalType``: Connect's converter and sinks
read the first, Python's readers the second.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.arrays import Mask
from headrace.errors import FormatError
from headrace.formats import base64_columns, coerce, connect, decimals, timestamps
from headrace.formats.avro_schema import Node
from headrace.plain_values import is_bytes

Converted = tuple[pa.Array, Mask | None]
_CONNECT = "org.apache.kafka.connect.data."
_DEBEZIUM = "io.debezium."
_BEYOND_ARROW = 64
_UTC_US = pa.timestamp("us", tz="UTC")


def finished(node: Node, array: pa.Array) -> Converted:
    """A column of an Avro type as the Arrow type above, and which of its values cannot be one (None: all can).

    >>> finished(Node("int", {"logicalType": "date"}), pa.array([19723], pa.int32()))[0].to_pylist()
    [datetime.date(2024, 1, 1)]
    """
    name = node.attributes.get("connect.name") or (node.name if node.kind == "record" else None)
    convert = _convert_of(node)
    if convert is not None:
        return convert(node, array)
    if name in _FURTHER:
        return _as_connect(node, array)
    small = {"int8": pa.int8(), "int16": pa.int16()}.get(str(node.attributes.get("connect.type")))
    if small is not None and node.kind == "int":
        limits = np.iinfo(small.to_pandas_dtype())
        numbers = np.asarray(array)
        wrong = (numbers < limits.min) | (numbers > limits.max)
        return array.cast(small, safe=False), wrong if wrong.any() else None
    return array, None


def _convert_of(node: Node) -> Callable[[Node, pa.Array], Converted] | None:
    name = node.attributes.get("connect.name") or (node.name if node.kind == "record" else None)
    return _BY_NAME.get(str(name)) or _BY_NAME.get(str(node.attributes.get("logicalType")))


def _date(node: Node, array: pa.Array) -> Converted:
    return (array.view(pa.date32()), None) if node.kind == "int" else (array, None)


def _timestamp(unit: str, zone: str | None) -> Callable[[Node, pa.Array], Converted]:
    def convert(node: Node, array: pa.Array) -> Converted:
        if node.kind != "long":
            return array, None
        if unit != "ms":
            return array.view(pa.timestamp(unit, tz=zone)), None
        numbers = np.asarray(array)
        wrong = np.abs(numbers // 1000) > 2**63 // 1_000_001
        thousands = pa.array(np.where(wrong, 0, numbers) * 1000)
        return thousands.view(pa.timestamp("us", tz=zone)), wrong if wrong.any() else None

    return convert


def _zoned(node: Node, array: pa.Array) -> Converted:
    if node.kind != "string":
        return array, None
    try:
        return _instants(array), None
    except ValueError:
        parsed = [_instant(array[i : i + 1]) for i in range(len(array))]
        return pa.array(parsed, pa.int64()).view(_UTC_US), np.array([one is None for one in parsed])


def _instants(array: pa.Array) -> pa.Array:
    return timestamps.from_iso(array, "us").view(_UTC_US)


def _instant(array: pa.Array) -> int | None:
    try:
        return int(timestamps.from_iso(array, "us")[0].as_py())
    except ValueError:
        return None


def _time(per_second: int) -> Callable[[Node, pa.Array], Converted]:
    def convert(node: Node, array: pa.Array) -> Converted:
        if node.kind not in ("int", "long"):
            return array, None
        numbers = np.asarray(array).astype(np.int64)
        micros = numbers * 1000 if per_second == 1000 else numbers // (per_second // 1_000_000)
        wrong = (micros < 0) | (micros > 86_400_000_000)
        return timestamps.time_text(pa.array(np.where(wrong, 0, micros))), wrong if wrong.any() else None

    return convert


def _decimal(node: Node, array: pa.Array) -> Converted:
    if node.kind not in ("bytes", "fixed"):
        return array, None
    scale, precision = _digits(node)
    if 0 < precision <= 38 and 0 <= scale <= precision:
        values = fixed_point(array, precision, scale)
        # Integers of a scale of 0 compare without Python's limits of precision.
        whole = decimals.unscaled(values)
        limit = pa.scalar(Decimal("9" * precision), pa.decimal128(38, 0))
        beyond = pc.or_(pc.greater(whole, limit), pc.less(whole, pa.scalar(Decimal("-" + "9" * precision), limit.type)))
        wrong = np.asarray(pc.fill_null(beyond, True))
        return values, wrong if wrong.any() else None
    return decimals.from_bytes(array, scale).cast(pa.string()), None


def _digits(node: Node) -> tuple[int, int]:
    """Scale and precision of a decimal; without a precision, or with an odd one, it has more than Arrow's.

    Avro's own decimals have a scale of 0 where none is said, Kafka Connect's must say it.

    Raises:
        FormatError: there is no scale, or it is no number, or one that would only fill memory.
    """
    told = node.attributes.get("connect.parameters")
    scale = connect.parameter(node.attributes, "scale")
    scale = connect.parameter(told, "scale") if scale is None else scale
    if scale is None:
        if node.attributes.get("connect.name") == f"{_CONNECT}Decimal":
            raise FormatError("it has no scale")
        scale = 0
    decimals.check_scale(scale)
    for attributes, name in ((told, "connect.decimal.precision"), (node.attributes, "precision")):
        try:
            precision = connect.parameter(attributes, name)
        except FormatError:
            continue
        if precision is not None:
            return scale, precision
    return scale, _BEYOND_ARROW


def check(node: Node) -> None:
    """Refuse a schema whose logical types have parameters that say no type.

    Raises:
        FormatError: names the type.
    """
    name = node.attributes.get("connect.name") or (node.name if node.kind == "record" else None)
    try:
        if _convert_of(node) is _decimal and node.kind in ("bytes", "fixed"):
            _digits(node)
        elif name in _FURTHER:
            connect.reading_of(_as_connect_schema(node))
    except FormatError as error:
        what = name or node.attributes.get("logicalType")
        raise FormatError(error.message if str(what) in error.message else f"type {what}: {error.message}") from None
    for child in node.children:
        check(child)


def fixed_point(values: pa.Array, precision: int, scale: int) -> pa.Array:
    """Big-endian two's complement numbers as decimals; null where one has more than 16 bytes.

    >>> fixed_point(pa.array([b"\\xff\\x85", b"\\x01\\x00", None]), 5, 2).to_pylist()
    [Decimal('-1.23'), Decimal('2.56'), None]
    """
    flat = values.cast(pa.large_binary())
    offsets = np.frombuffer(flat.buffers()[1], np.int64)[flat.offset : flat.offset + len(flat) + 1]
    data = np.frombuffer(flat.buffers()[2] or b"", np.uint8)
    if not len(data):
        data = np.zeros(1, np.uint8)
    starts, stops = offsets[:-1], offsets[1:]
    lengths = stops - starts
    first = data[np.minimum(starts, len(data) - 1)]
    fill = np.where((lengths > 0) & (first & 0x80 != 0), 0xFF, 0).astype(np.uint8)
    # Byte k of the number, counted from its low end, lies k bytes before the value's end.
    back = np.arange(16)
    at = np.maximum(stops[:, None] - 1 - back, 0)
    number = np.where(back < lengths[:, None], data[at], fill[:, None])
    present = np.asarray(pc.is_valid(flat)) & (lengths <= 16)
    bitmap = pa.array(present).buffers()[1]
    kind = pa.decimal128(precision, scale)
    return pa.Array.from_buffers(kind, len(flat), [bitmap, pa.py_buffer(np.ascontiguousarray(number))])


def _variable_scale(node: Node, array: pa.Array) -> Converted:
    if node.kind != "record" or set(node.names) != {"scale", "value"}:
        return array, None
    numbers, given = array.field("value"), array.field("scale")
    if not pa.types.is_integer(given.type) or not is_bytes(numbers.type):
        return array, None
    scales = np.asarray(given.fill_null(0))
    wrong = (scales < decimals.SMALLEST_SCALE) | (scales > decimals.LARGEST_SCALE) | np.asarray(given.is_null())
    scales = np.where(wrong, 0, scales)
    pieces, places = [], []
    for scale in np.unique(scales).tolist():
        at = np.flatnonzero(scales == scale)
        pieces.append(decimals.from_bytes(numbers.take(pa.array(at)), scale).cast(pa.string()))
        places.append(at)
    if not pieces:
        return pa.array([], pa.string()), None
    return pa.concat_arrays(pieces).take(pa.array(np.argsort(np.concatenate(places)))), wrong if wrong.any() else None


def _uuid(node: Node, array: pa.Array) -> Converted:
    if node.kind != "fixed" or node.size != 16:
        return array, None
    # What stands for a message that is bad has no bytes.
    return pa.array(
        [str(uuid.UUID(bytes=one)) if len(one) == 16 else "" for one in array.to_pylist()], pa.string()
    ), None


def _as_connect_schema(node: Node) -> connect.Schema:
    kind = {"long": "int64", "int": "int32", "record": "struct"}.get(node.kind, node.kind)
    schema = {"type": kind, "field": "", "name": node.attributes.get("connect.name") or node.name}
    return {**schema, "parameters": node.attributes.get("connect.parameters")}


def _as_connect(node: Node, array: pa.Array) -> Converted:
    """Debezium's rarer types, as the JSON formats take them."""
    reading = connect.reading_of(_as_connect_schema(node))
    raw = base64_columns.encode(array) if node.kind == "bytes" else array
    values, bad = coerce.fitting(raw, reading)
    wrong = np.zeros(len(array), np.bool_)
    wrong[[place for place, _ in bad]] = True
    return values, wrong if bad else None


_FURTHER = frozenset(
    f"{_DEBEZIUM}{name}"
    for name in (
        "time.ZonedTime",
        "time.MicroDuration",
        "time.NanoDuration",
        "time.IsoDate",
        "time.IsoTime",
        "time.IsoTimestamp",
        "data.Bits",
        "data.geometry.Point",
    )
)
_BY_NAME: Mapping[str, Callable[[Node, pa.Array], Converted]] = {
    **dict.fromkeys((f"{_DEBEZIUM}time.Date", f"{_CONNECT}Date", "date"), _date),
    **dict.fromkeys(
        (f"{_DEBEZIUM}time.Timestamp", f"{_CONNECT}Timestamp", "local-timestamp-millis"), _timestamp("ms", None)
    ),
    **dict.fromkeys((f"{_DEBEZIUM}time.MicroTimestamp", "local-timestamp-micros"), _timestamp("us", None)),
    **dict.fromkeys((f"{_DEBEZIUM}time.NanoTimestamp", "local-timestamp-nanos"), _timestamp("ns", None)),
    "timestamp-millis": _timestamp("ms", "UTC"),
    "timestamp-micros": _timestamp("us", "UTC"),
    "timestamp-nanos": _timestamp("ns", "UTC"),
    f"{_DEBEZIUM}time.ZonedTimestamp": _zoned,
    **dict.fromkeys((f"{_DEBEZIUM}time.Time", f"{_CONNECT}Time", "time-millis"), _time(1000)),
    **dict.fromkeys((f"{_DEBEZIUM}time.MicroTime", "time-micros"), _time(1_000_000)),
    f"{_DEBEZIUM}time.NanoTime": _time(1_000_000_000),
    **dict.fromkeys((f"{_CONNECT}Decimal", "decimal"), _decimal),
    f"{_DEBEZIUM}data.VariableScaleDecimal": _variable_scale,
    "uuid": _uuid,
}
