"""Chains of transforms against what Kafka Connect's and Debezium's own ones made of the same records."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from headrace.formats.transforms.chain import Chain, Refusal
from headrace.formats.transforms.records import Records, parsed, struct_text
from tests.data.transforms.cases import CASES, RECORDS, Case

EXPECTED = Path(__file__).parents[1] / "data" / "transforms" / "expected.jsonl"
# Where ours does otherwise, and why.
OTHERWISE: dict[str, str] = {}


@cache
def expected() -> tuple[list[Any], ...]:
    """Return what was recorded of each case, with the schemas in their places."""
    schemas, *cases = (json.loads(line) for line in EXPECTED.read_text().split("\n") if line)

    def whole(found: Any) -> Any:
        if isinstance(found, list):
            return [whole(item) for item in found]
        if isinstance(found, dict) and found.keys() == {"schema", "payload"} and isinstance(found["schema"], int):
            return {"schema": schemas[found["schema"]], "payload": found["payload"]}
        return {name: whole(item) for name, item in found.items()} if isinstance(found, dict) else found

    return tuple(whole(case) for case in cases)


def ours(case: Case) -> list[Any]:
    """Return what the chain makes of each record: one, None, or an error."""
    chain = Chain.of(in_python(case.properties))
    assert chain is not None
    given = parsed([json.dumps(record) for record in RECORDS[case.records]])
    made, refusals = chain.apply(given)
    found: list[Any] = [None] * len(RECORDS[case.records])
    for records in made:
        for order, line in shown(records):
            assert found[order] is None
            found[order] = line
    for refusal in refusals:
        assert found[refusal.order] is None
        found[refusal.order] = refusal
    return found


def in_python(properties: dict[str, str]) -> dict[str, str]:
    """Return properties with Java's named groups as Python has them, which the configuration does."""
    return {name: value.replace("(?<", "(?P<") for name, value in properties.items()}


def shown(records: Records) -> list[tuple[int, Any]]:
    lines = [json.loads(line) for line in records.lines(schemas=True).to_pylist()]
    if records.timestamps is not None:
        for line, ms in zip(lines, records.timestamps.to_pylist(), strict=True):
            line["timestamp"] = ms
    return list(zip(records.order.tolist(), lines, strict=True))


@pytest.mark.parametrize("place", range(len(CASES)), ids=[case.name for case in CASES])
def test_it_is_what_javas_make(place: int) -> None:
    case = CASES[place]
    for number, (found, wanted) in enumerate(zip(ours(case), expected()[place], strict=True)):
        if isinstance(wanted, dict) and "error" in wanted:
            assert isinstance(found, Refusal), (number, found, wanted)
        else:
            assert not isinstance(found, Refusal), (number, str(found), wanted)
            assert normal(found) == normal(wanted), number


def normal(found: Any) -> Any:
    """Return a record with -0.0 apart from 0.0, as text; its headers, recorded as JSON, as Java prints them."""
    if isinstance(found, dict) and "headers" in found:
        texts = [
            [name, value if isinstance(value, str | None) else struct_text(value)] for name, value in found["headers"]
        ]
        found = {**found, "headers": texts}
    return json.dumps(found, ensure_ascii=False, indent=1, sort_keys=True)
