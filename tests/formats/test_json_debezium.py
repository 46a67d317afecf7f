"""What Debezium 3.6.3 emitted, decoded: every message, every value, against a slow reading of the same JSON."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from headrace.formats.base import Decoded
from headrace.formats.json import JsonFormat

from . import debezium_cases as cases

FLAT = ("flat", "flat_rewrite")
HEARTBEATS = "__debezium-heartbeat"


def check(path: Path) -> int:
    """Decode a file's topics and compare; how many values were compared."""
    kind = path.name.split(".")[1]
    compared = 0
    for topic, found in cases.by_topic(cases.lines(path)).items():
        decoded = JsonFormat(envelope=kind == "envelope").decode(cases.messages(topic, found))
        assert decoded.bad == [], (path.name, topic)
        expected = [] if topic.startswith(HEARTBEATS) else list(
            (cases.expected_flat if kind in FLAT else cases.expected_envelopes)(found)
        )  # fmt: skip
        compared += compare(f"{path.name} {topic}", decoded, expected)
    return compared


def compare(where: str, decoded: Decoded, expected: list[cases.Expected]) -> int:
    rows = by_message(decoded)
    assert list(rows) == [event.message for event in expected], where
    compared = 0
    for event in expected:
        op, row, unchanged, before = rows[event.message]
        assert op == event.op, (where, event)
        for name, value in event.row.items():
            compared += 1
            if unchanged is not None and name in unchanged:
                assert row[name] is None and cases.is_placeholder(value), (where, event.message, name)
                continue
            assert name in row and cases.same(row[name], value), (where, event.message, name, row.get(name), value)
        extra = {name for name, value in row.items() if value is not None} - set(event.row)
        assert not extra, (where, event.message, extra)
        if event.before is not None:
            assert before is not None and cases.same(before, event.before), (where, event.message)
    return compared


def by_message(decoded: Decoded) -> dict[int, tuple[str, dict[str, Any], list[str] | None, dict[str, Any] | None]]:
    """Op, row, unchanged columns and old row of each message, in the order in which they came."""
    rows = {}
    for batch, messages in decoded.parts:
        n = batch.num_rows
        unchanged = [None] * n if batch.unchanged is None else batch.unchanged.to_pylist()
        before = [None] * n if batch.before is None else batch.before.to_pylist()
        for i, row in enumerate(batch.rows.to_pylist()):
            assert int(messages[i]) not in rows
            rows[int(messages[i])] = (chr(batch.op[i]), row, unchanged[i], before[i])
    return rows


@pytest.mark.parametrize("path", sorted(cases.SMALL.glob("*.jsonl")), ids=lambda path: path.name)
def test_a_few_cases_decode_without_loss(path: Path) -> None:
    if ".schema." in path.name:
        assert check_schemas(path) > 0
    else:
        assert check(path) > 0


@pytest.mark.parametrize("kind", ["envelope", *FLAT])
def test_every_case_decodes_without_loss(shared_data: Path, kind: str) -> None:
    paths = sorted((shared_data / "debezium_cases").glob(f"*.{kind}.jsonl"))
    assert len(paths) > 38
    assert sum(check(path) for path in paths) > 2_500


def check_schemas(path: Path) -> int:
    """Decode a case's envelopes together with their schemas, and compare what the values mean."""
    lines = cases.lines(path.with_name(path.name.replace(".schema.", ".envelope.")))
    compared = 0
    for topic, found in cases.by_topic(lines).items():
        if topic.startswith(HEARTBEATS):
            continue
        told = cases.with_schemas(found, path)
        decoded = JsonFormat().decode(cases.messages(topic, told))
        # The column was altered to bigint, which this file's schemas do not know.
        altered = {i for i, why in decoded.bad if why == "column «d»: 7000000000 does not fit int32"}
        assert len(altered) == len(decoded.bad), (path.name, topic, decoded.bad)
        expected = {
            expected_envelope.message: expected_envelope for expected_envelope in cases.expected_envelopes(found)
        }
        seen = []
        for batch, messages in decoded.parts:
            columns = {name: cases.comparable(batch.column(name)) for name in batch.column_names}
            unchanged = [None] * batch.num_rows if batch.unchanged is None else batch.unchanged.to_pylist()
            for i, message in enumerate(messages.tolist()):
                seen.append(message)
                value = told[message].value
                assert value is not None
                fields = cases.row_schema(value)
                for name, raw in expected[message].row.items():
                    compared += 1
                    if unchanged[i] and name in unchanged[i]:
                        assert cases.is_placeholder(raw)
                        continue
                    got, want = columns[name][i], cases.meaning(fields[name], raw)
                    assert means(got, want), (path.name, topic, message, name, got, want)
        assert seen == [message for message in expected if message not in altered]
    return compared


def means(got: Any, want: Any) -> bool:
    if isinstance(want, Decimal):
        return Decimal(got) == want if got is not None else False
    if isinstance(want, list) and isinstance(got, list):
        return len(want) == len(got) and all(map(means, got, want))
    if want in ("infinity", "-infinity"):  # of a timestamp with time zone: the last instant, and the first
        return bool(got == (2**63 - 1 if want == "infinity" else -(2**63)))
    if isinstance(want, bytes) or (isinstance(want, float) and isinstance(got, float)):
        return repr(got) == repr(want)
    return cases.same(got, want)


def test_every_case_decodes_with_its_schemas(shared_data: Path) -> None:
    paths = sorted((shared_data / "debezium_cases").glob("*.schema.jsonl"))
    assert len(paths) > 36
    assert sum(check_schemas(path) for path in paths) > 2_500


def test_types_are_those_of_the_native_capture() -> None:
    path = cases.SMALL / "11_temporal_adaptive.schema.jsonl"
    lines = cases.lines(cases.SMALL / "11_temporal_adaptive.envelope.jsonl")
    topic, found = next(iter(cases.by_topic(lines).items()))
    decoded = JsonFormat().decode(cases.messages(topic, cases.with_schemas(found, path)))
    fields = cases.row_schema(cases.with_schemas(found, path)[0].value or b"")
    names = {name: (field.get("name") or field["type"]).rsplit(".", 1)[-1] for name, field in fields.items()}
    types = {names[field.name]: str(field.type) for field in decoded.parts[0][0].rows.schema}
    assert types["Date"] == "date32[day]"
    assert types["MicroTimestamp"] == types["Timestamp"] == "timestamp[us]"
    assert types["ZonedTimestamp"] == "timestamp[us, tz=UTC]"
    assert types["MicroTime"] == types["Time"] == "string"


def test_a_deletes_tombstone_is_no_row_of_its_own() -> None:
    lines = cases.lines(cases.SMALL / "01_basic_crud.envelope.jsonl")
    tombstones = [i for i, line in enumerate(lines) if line.value is None]
    assert tombstones
    rows = by_message(JsonFormat().decode(cases.messages(lines[0].topic, lines)))
    assert not set(tombstones) & set(rows)
    assert {json.loads(lines[i].key or b"")["id"] for i in tombstones} == {
        row["id"] for op, row, _, _ in rows.values() if op == "d"
    }
