"""What Debezium 3.6.3 emitted for a script of SQL is what the native capture writes for it, in four forms."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.capture.debezium_cases import FORMS, SHIPPED, Case, names, recorded_forms
from tests.databases import Database, fresh_database
from tests.serve.client import headrace

from headrace.testing.servers import PostgresServer

# What does not hold yet, or is not meant to.
DIFFERENT = {
    "07_numeric_special_precise": "a NaN in numeric(p,s) goes to the dead letters: Arrow's decimals have none",
    "08_numeric_special_string": "a NaN in numeric(p,s) goes to the dead letters: Arrow's decimals have none",
    "38_schema_change": "a table that is made while the capture runs does not join it yet",
    "46_partitioned_leaf": "partitioned tables are not captured yet",
    "53_logical_messages": "logical messages are not captured yet",
    "57_domain_over_enum": "Debezium cannot start; here the table is captured",
    "61_case_duplicate_columns": "Debezium refuses the table; here it is captured",
}
CONTRIB = ("58_contrib_types", "59_contrib_hstore_map")


@pytest.fixture
def empty(server: PostgresServer) -> Iterator[Database]:
    """A database without any table."""
    with fresh_database(server, "case") as made:
        yield made


def _case(name: str) -> object:
    marks = [] if name in SHIPPED else [pytest.mark.slow]
    if name in CONTRIB:
        marks.append(pytest.mark.skip(reason="needs extensions that the embedded server does not have"))
    if name in DIFFERENT:
        marks.append(pytest.mark.xfail(strict=True, reason=DIFFERENT[name]))
    return pytest.param(name, marks=marks)


@pytest.mark.parametrize("name", [_case(name) for name in names()])
def test_a_recorded_case(name: str, empty: Database, tmp_path: Path) -> None:
    case = Case.load(name)
    case.capture(empty, tmp_path / "case.headrace")
    for form in recorded_forms(name):
        assert case.lines(tmp_path / "case.headrace", form) == case.recorded(form), form


def test_the_command_prints_the_same_lines(empty: Database, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    case = Case.load("30_pk_change")
    log = tmp_path / "case.headrace"
    case.capture(empty, log)
    command = ("topics", "cat", "--all", "--log", str(log), "--format", "debezium-json")
    done = headrace(capfd, *command)
    assert [case.normal(line) for line in done.stdout.split("\n")[:-1]] == case.recorded("envelope")
    with_schemas = [json.loads(line) for line in headrace(capfd, *command, "--schemas").stdout.split("\n")[:-1]]
    assert with_schemas[0]["value"]["schema"]["name"] == "dbz.public.pk.Envelope"
    assert with_schemas[0]["key"]["payload"] == {"id": 1}
    done = headrace(capfd, *command, "--limit", "2")
    assert len(done.stdout.split("\n")) == 3
    done = headrace(capfd, *command[:2], "dbz.public.pkc", *command[3:])
    alone = [case.normal(line) for line in done.stdout.split("\n")[:-1]]
    assert alone == [line for line in case.recorded("envelope") if json.loads(line)["topic"] == "dbz.public.pkc"]
    assert set(FORMS) == set(recorded_forms(case.name))
