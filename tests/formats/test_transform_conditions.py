"""Debezium's Filter and ContentBasedRouter with SQL, and a chain in which some records fail."""

from __future__ import annotations

import json

import pytest

from headrace.errors import DeclarationError
from headrace.formats.transforms.chain import Chain, check_chain
from headrace.formats.transforms.records import parsed
from tests.data.transforms.cases import RECORDS

GOODS = [json.dumps(record) for record in RECORDS["goods"]]
FILTER, ROUTER = "io.debezium.transforms.Filter", "io.debezium.transforms.ContentBasedRouter"
UNWRAP = "io.debezium.transforms.ExtractNewRecordState"


def chain(*steps: dict[str, str]) -> dict[str, str]:
    found = {"transforms": ",".join(f"t{place}" for place in range(len(steps)))}
    for place, step in enumerate(steps):
        found |= {f"transforms.t{place}.{name}": value for name, value in step.items()}
    return found


def kept(properties: dict[str, str]) -> tuple[dict[int, str], dict[int, str]]:
    """Return the topics of records that are left, and the reasons of those that were refused, by their places."""
    made = Chain.of(properties)
    assert made is not None
    records, refusals = made.apply(parsed(GOODS))
    topics = {
        order: topic
        for some in records
        for order, topic in zip(some.order.tolist(), some.topics.to_pylist(), strict=True)
    }
    return topics, {refusal.order: refusal.reason for refusal in refusals}


EVENTS = "topic.regex", r"dbz\..*"


@pytest.mark.parametrize(
    ("condition", "places"),
    [
        ("after.id = 1", [1, 3]),
        ("value.after.id = 1", [1, 3]),
        ("AFTER.ID = 1", [1, 3]),
        ("op = 'd'", [4]),
        ("after IS NULL", [4, 6]),
        ("before.name = 'old' AND after.name LIKE 'Zo%'", [3]),
        ("after.price > 1281.63 AND after.price = 1281.64", [1, 3]),
        ("after.price < 0", [2]),
        ("after.big > 9007199254740992", [1, 3]),
        ("after.flag", [1, 3]),
        ("after.tags[1] = 'a'", [1, 3]),
        ("after.point.y = -2.5", [1, 3]),
        ("after.d < 0.001", [2]),
        ("source.snapshot = 'true'", [0]),
        ("source.snapshot = 'false'", [1, 2, 3, 4, 6]),
        ("after.name = 'anon'", [0]),
        ("topic LIKE '%goods' AND key.id = 1", [1, 3, 4]),
        ("transaction.total_order = 3", [1]),
        ("""after.name = 'Zoë "q" \\ 😀'""", [1, 3]),
        ("NULL", []),
        ("after.id -- a comment", None),
        ("1/0 = 1", []),
        ("value::JSON->>'op' = 'u'", [3]),
    ],
)
def test_a_condition(condition: str, places: list[int] | None) -> None:
    topics, refused = kept(chain({"type": FILTER, "condition": condition, EVENTS[0]: EVENTS[1]}))
    if places is None:
        assert "no boolean" in refused[0]
        return
    # The tombstone is kept, and what is of no table's topic.
    assert (sorted(topics), refused) == (sorted([*places, 5, 7]), {})


@pytest.mark.parametrize(
    ("more", "topics", "refused"),
    [
        ({"null.handling.mode": "drop"}, [1, 3, 7], []),
        ({"null.handling.mode": "evaluate"}, [1, 3, 7], [5]),
        ({"topic.regex": ".*"}, [1, 3, 5], [7]),
    ],
)
def test_records_without_a_value_or_of_another_table(
    more: dict[str, str], topics: list[int], refused: list[int]
) -> None:
    """A column that a table has not is an error of its records, as a field is in Groovy."""
    found = kept(chain({"type": FILTER, "condition": "after.id = 1", EVENTS[0]: EVENTS[1], **more}))
    assert (sorted(found[0]), sorted(found[1])) == (topics, refused)
    assert all("Error while evaluating expression" in reason for reason in found[1].values())


def test_rows_at_fault_alone_are_refused() -> None:
    condition = "CASE WHEN after.id = 1 THEN error('no ' || after.name) ELSE after.small = 1 END"
    topics, refused = kept(chain({"type": FILTER, "condition": condition, EVENTS[0]: EVENTS[1]}))
    assert (sorted(topics), sorted(refused)) == ([0, 5, 7], [1, 3])
    cast = {"type": "org.apache.kafka.connect.transforms.Cast$Value", "spec": "num:int32"}
    topics, refused = kept(chain({"type": UNWRAP}, cast))
    assert sorted(topics) == [0, 1, 3, 4, 7]
    assert refused == {2: "Value ( 1e3 ) was out of range for requested data type"}


def test_a_router() -> None:
    expression = "CASE WHEN op = 'd' THEN 'gone' WHEN after.id = 1 THEN topic || '-' || after.num END"
    topics, refused = kept(chain({"type": ROUTER, "topic.expression": expression, EVENTS[0]: EVENTS[1]}))
    goods = "dbz.public.goods"
    assert topics == {
        **dict.fromkeys((0, 2, 5, 6), goods),
        **dict.fromkeys((1, 3), f"{goods}-42"),
        4: "gone",
        7: "__debezium-heartbeat.dbz",
    }
    assert refused == {}
    _, refused = kept(chain({"type": ROUTER, "topic.expression": "after.id", EVENTS[0]: EVENTS[1]}))
    assert "no text" in refused[0]


def test_a_condition_on_flat_rows() -> None:
    topics, _ = kept(
        chain({"type": UNWRAP}, {"type": FILTER, "condition": "id = 1 AND topic <> ''", EVENTS[0]: EVENTS[1]})
    )
    assert sorted(topics) == [1, 3, 4, 7]


@pytest.mark.parametrize(
    ("condition", "says"),
    [
        ("after.id = = 1", "no SQL"),
        ("1), (2", "not one expression"),
        ("1) FROM range(3) t(x", "not one expression"),
        ("true; DROP TABLE x", "no SQL"),
        (" ", "is empty"),
    ],
)
def test_what_is_no_expression_is_refused(condition: str, says: str) -> None:
    with pytest.raises(DeclarationError, match=says):
        check_chain(chain({"type": FILTER, "condition": condition}))


def test_an_expression_reads_no_file() -> None:
    condition = "(SELECT count(*) FROM read_text('/etc/hostname')) > 0"
    topics, refused = kept(chain({"type": FILTER, "condition": condition, EVENTS[0]: EVENTS[1]}))
    assert sorted(topics) == [5, 7]
    assert "disabled" in refused[0]


@pytest.mark.parametrize(
    ("step", "says"),
    [
        ({"type": "org.apache.kafka.connect.transforms.RegexRouter", "regex": "a", "replacement": "$1"}, "no group 1"),
        ({"type": "org.apache.kafka.connect.transforms.MaskField$Value", "predicate": "p"}, "type is not there"),
        ({"type": "io.debezium.transforms.TimezoneConverter", "converted.timezone": "Mars/Base"}, "no time zone"),
        ({"type": "org.apache.kafka.connect.transforms.TimestampRouter", "timestamp.format": "GGQ"}, "letter"),
        ({"type": FILTER, "condition": "true", "language": "jsr223.groovy"}, "write it in SQL"),
        (
            {"type": "io.debezium.transforms.HeaderToValue", "headers": "a,b", "fields": "c", "operation": "copy"},
            "shorter",
        ),
    ],
)
def test_a_transform_that_cannot_be_made(step: dict[str, str], says: str) -> None:
    with pytest.raises(DeclarationError, match=says):
        check_chain(chain(step))
