"""Debezium's own messages: how the files hold them, and a slow reader of what they say to compare with."""

from __future__ import annotations

import base64
import datetime
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Context, Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from headrace.wire import WireMessages

SMALL = Path(__file__).parent / "cases"
PLACEHOLDER = "__debezium_unavailable_value"


@dataclass
class Line:
    """One message as the file has it."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]] = field(default_factory=list)


def lines(path: Path) -> list[Line]:
    """Messages of a file, keys and values byte for byte as they stand there."""
    return [_line(text) for text in path.read_text(encoding="utf-8").split("\n") if text]


def _line(text: str) -> Line:
    decoder = json.JSONDecoder()
    whole = json.loads(text)
    parts = {}
    at = 1
    while True:
        name, at = decoder.raw_decode(text, at)
        at += 1
        _, end = decoder.raw_decode(text, at)
        parts[name] = text[at:end]
        if text[end] == "}":
            break
        at = end + 1
    return Line(
        whole["topic"],
        None if whole["key"] is None else parts["key"].encode(),
        None if whole["value"] is None else parts["value"].encode(),
        [(name, str(value).encode()) for name, value in whole.get("headers", [])],
    )


def by_topic(found: list[Line]) -> dict[str, list[Line]]:
    topics: dict[str, list[Line]] = {}
    for line in found:
        topics.setdefault(line.topic, []).append(line)
    return topics


def messages(topic: str, found: list[Line]) -> WireMessages:
    return WireMessages(
        topic,
        [line.value for line in found],
        offsets=np.arange(len(found)),
        keys=[line.key for line in found],
        headers=[line.headers for line in found],
        ts_ms=np.full(len(found), 1_700_000_000_000),
    )


@dataclass
class Expected:
    """What a message says, read slowly."""

    message: int
    op: str
    row: dict[str, Any]
    before: dict[str, Any] | None = None
    key_only: bool = False


def expected_envelopes(found: list[Line]) -> Iterator[Expected]:
    for i, line in enumerate(found):
        value = None if line.value is None else json.loads(line.value)
        if value is None or value.get("op") in (None, "m") or "status" in value:
            continue
        op = value["op"]
        row = value["before"] if op == "d" else value["after"]
        yield Expected(i, op, row or {}, value["before"] if op == "u" else None)


def expected_flat(found: list[Line]) -> Iterator[Expected]:
    added = ("__deleted", "__op", "__lsn", "__source_ts_ms")
    for i, line in enumerate(found):
        if line.value is None:
            key = json.loads(line.key) if line.key else {}
            yield Expected(i, "d", key, key_only=True)
            continue
        value = json.loads(line.value)
        if "status" in value or value.get("op") == "m":
            continue
        op = "d" if value.get("__deleted") == "true" else value.get("__op") or "c"
        yield Expected(i, op, {name: one for name, one in value.items() if name not in added})


def is_placeholder(value: Any) -> bool:
    raw = PLACEHOLDER.encode()
    text = base64.b64encode(raw).decode()
    known = [PLACEHOLDER, text, raw.hex(), list(raw), [PLACEHOLDER], [text], {PLACEHOLDER: PLACEHOLDER}]
    known += [json.dumps({PLACEHOLDER: PLACEHOLDER}, separators=(",", ":")), ["b68a35a7-17ad-35b3-af2a-ae46edb4545a"]]
    return value in known


def same(got: Any, want: Any) -> bool:
    """Whether a decoded value says what the JSON value says, nothing more or less."""
    if want is None or got is None:
        return got is None and want is None
    if isinstance(want, bool) or isinstance(got, bool):
        return got is want
    if isinstance(want, int | float) and isinstance(got, int | float):
        return float(got) == float(want) and (not isinstance(want, int) or int(got) == want)
    if want in ("NaN", "Infinity", "-Infinity") and isinstance(got, float):
        return repr(got) == repr(float(want))
    if isinstance(want, list) and isinstance(got, list):
        return len(want) == len(got) and all(map(same, got, want))
    if isinstance(want, dict) and isinstance(got, list):  # a map
        return dict(got) == want
    if isinstance(want, dict) and isinstance(got, dict):
        return set(want) <= set(got) and all(same(got[name], want.get(name)) for name in got)
    if isinstance(got, str) and isinstance(want, list | dict):
        return bool(json.loads(got) == want)
    return type(got) is type(want) and bool(got == want)


# --- messages with a schema, and what their values mean ---


def with_schemas(found: list[Line], schemas: Path) -> list[Line]:
    """The messages as schemas.enable=true writes them; None of the file's schemas fits: an error."""
    known = [json.loads(text) for text in schemas.read_text(encoding="utf-8").split("\n") if text]
    lines = []
    for line in found:
        if line.value is None:
            lines.append(line)
            continue
        value = json.loads(line.value)
        schema = next(
            row["value_schema"]
            for row in known
            if row["topic"] == line.topic and row["value_schema"] and _describes(row["value_schema"], value)
        )
        text = json.dumps(schema, separators=(",", ":"), ensure_ascii=False)
        payload = b'{"schema":' + text.encode() + b',"payload":' + line.value + b"}"
        lines.append(Line(line.topic, line.key, payload, line.headers))
    return lines


def _describes(schema: dict[str, Any], value: dict[str, Any]) -> bool:
    fields = {field["field"]: field for field in schema["fields"]}
    if set(fields) != set(value):
        return False
    row = value.get("after") or value.get("before")
    return not isinstance(row, dict) or {field["field"] for field in fields["after"]["fields"]} == set(row)


def row_schema(value: bytes) -> dict[str, dict[str, Any]]:
    """Fields of the row in a message with a schema, by name."""
    schema = json.loads(value)["schema"]
    fields = {field["field"]: field for field in schema["fields"]}
    inside = fields["after"]["fields"] if "after" in fields else schema["fields"]
    return {field["field"]: field for field in inside}


def meaning(field: dict[str, Any], value: Any) -> Any:
    """What a value of Connect's JSON is, in Python: instants and dates as numbers, decimals exact."""
    if value is None:
        return None
    name = (field.get("name") or "").rsplit(".", 1)[-1]
    parameters = field.get("parameters") or {}
    if name == "Decimal":
        return Decimal(unscaled(value)).scaleb(-int(parameters["scale"]), EXACT)
    if name == "VariableScaleDecimal":
        return Decimal(unscaled(value["value"])).scaleb(-value["scale"], EXACT)
    if name in ("Timestamp", "Time"):
        value, name = value * 1000, f"Micro{name}"
    if name == "MicroTime":
        seconds, rest = divmod(value, 1_000_000)
        decimals = f".{rest:06d}".rstrip("0") if rest else ""
        return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}{decimals}"
    if name in ("ZonedTimestamp", "IsoTimestamp"):
        return instant(value)
    if name == "IsoDate":
        return instant(value.rstrip("Z") + "T00:00:00Z") // 86_400_000_000
    if name == "IsoTime":
        return value.rstrip("Z")
    if name == "ZonedTime":
        return value.replace("Z", "+00")
    if name == "Bits":
        number = int.from_bytes(base64.b64decode(value), "little")
        length = int(parameters["length"])
        return f"{number:0{length}b}" if length < 2**31 - 1 else f"{number:b}" if number else ""
    if name == "Point":
        return f"({number_text(value['x'])},{number_text(value['y'])})"
    if name == "SparseDoubleVector":
        inside = ",".join(f"{i}:{number_text(one)}" for i, one in sorted(value["vector"]))
        return f"{{{inside}}}/{value['dimensions']}"
    if field["type"] == "float":
        return float(np.float32(value))
    if field["type"] == "bytes":
        return base64.b64decode(value)
    if field["type"] == "array":
        return [meaning(field["items"], item) for item in value]
    return value


EXACT = Context(prec=10_000)


def unscaled(text: str) -> int:
    return int.from_bytes(base64.b64decode(text), "big", signed=True)


def number_text(number: float) -> str:
    return str(int(number)) if number == int(number) else repr(number)


def instant(text: str) -> int | str:
    """Microseconds since 1970 of an ISO instant in UTC, of any year; any other text as it is."""
    match = re.fullmatch(r"([+-]?\d{4,})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.(\d{1,6}))?Z", text)
    if not match:
        return text
    year, month, day, hour, minute, second = (int(match[i]) for i in range(1, 7))
    # The calendar repeats every 400 years; Python knows those from 1 to 9999.
    cycles, year = divmod(year - 2000, 400)
    days = datetime.date(2000 + year, month, day).toordinal() - datetime.date(1970, 1, 1).toordinal()
    seconds = (days + cycles * 146_097) * 86_400 + hour * 3600 + minute * 60 + second
    return seconds * 1_000_000 + int((match[7] or "").ljust(6, "0"))


def comparable(array: pa.Array) -> list[Any]:
    """Decoded values as `meaning` gives them."""
    if pa.types.is_date(array.type):
        return array.cast(pa.int32()).to_pylist()
    if pa.types.is_timestamp(array.type) or pa.types.is_duration(array.type):
        return array.cast(pa.int64()).to_pylist()
    if pa.types.is_list(array.type):
        items = comparable(array.flatten())
        at, lists = 0, []
        for size in [None if not value.is_valid else len(value) for value in array]:
            lists.append(None if size is None else items[at : at + size])
            at += size or 0
        return lists
    return array.to_pylist()
