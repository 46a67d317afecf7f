"""Events of a captured database go through a connector's transforms on their way out, whole batches at once."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.connectors import ARTICLE
from tests.databases import Database, fresh_database
from tests.serve.client import headrace

import headrace as hr
from headrace.errors import DeclarationError
from headrace.formats.debezium_writer import EventOptions
from headrace.inspect.debezium import event_lines
from headrace.log import open_log
from headrace.testing.servers import PostgresServer

KAFKA, DEBEZIUM = "org.apache.kafka.connect.transforms.", "io.debezium.transforms."
CHAIN = {
    "transforms": "only,unwrap,mask,number,route",
    "transforms.only.type": f"{DEBEZIUM}Filter",
    "transforms.only.condition": "coalesce(after.n, before.n) % 2 = 0",
    "transforms.only.topic.regex": ".*goods",
    "transforms.unwrap.type": f"{DEBEZIUM}ExtractNewRecordState",
    "transforms.unwrap.add.fields": "op",
    "transforms.mask.type": f"{KAFKA}MaskField$Value",
    "transforms.mask.fields": "secret",
    "transforms.mask.predicate": "gone",
    "transforms.mask.negate": "true",
    "predicates": "gone",
    "predicates.gone.type": f"{KAFKA}predicates.RecordIsTombstone",
    "transforms.number.type": f"{KAFKA}Cast$Value",
    "transforms.number.spec": "code:int32",
    "transforms.route.type": f"{KAFKA}RegexRouter",
    "transforms.route.regex": r"shop\.public\.(.*)",
    "transforms.route.replacement": "all-$1",
}


@pytest.fixture(scope="module")
def log(server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Rows of a table and of an outbox, some read and some streamed."""
    path = tmp_path_factory.mktemp("transformed") / "shop.headrace"
    with fresh_database(server, "transformed") as database:
        fill(database, path)
        yield path


def fill(database: Database, path: Path) -> None:
    database.execute("CREATE TABLE goods (id int PRIMARY KEY, n int, secret text, code text DEFAULT '0')")
    database.execute("CREATE TABLE outbox (id uuid PRIMARY KEY, aggregatetype text, aggregateid text, payload jsonb)")
    database.execute("ALTER TABLE goods REPLICA IDENTITY FULL")
    database.execute("INSERT INTO goods SELECT i, i, 'x' || i, i::text FROM generate_series(1, 4) i")
    app = hr.App("shop", log=str(path))
    app.postgres(database.dsn, tables=r"public\..*", compat="debezium", properties=CHAIN)
    with app.start() as running:
        running.wait(60)
        database.execute("UPDATE goods SET code = 'zé\"' WHERE id = 2")
        database.execute("UPDATE goods SET id = 10 WHERE id = 4")
        database.execute("INSERT INTO goods VALUES (5, 6, NULL, NULL), (6, 7, '', '7')")
        database.execute("DELETE FROM goods WHERE id = 10")
        database.execute(
            "INSERT INTO outbox VALUES ('00000000-0000-0000-0000-000000000001', 'order', 'k', '{\"a\": [1, 2.5]}')"
        )
        running.wait(60)


def lines(log: Path, properties: dict[str, str], *, schemas: bool = False) -> tuple[list[Any], list[str]]:
    said: list[str] = []
    with contextlib.closing(open_log(str(log), writer=False)) as held:
        options = EventOptions.of(properties, schemas=schemas)
        found = event_lines(held, options=options, on_refusal=lambda refusal, _: said.append(str(refusal)))
        return [json.loads(line) for line in found], said


def test_a_chain_and_a_record_that_fails(log: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What a transform cannot take is said on standard error, and the others go on; the exit code says it too."""
    command = ("topics", "cat", "--log", str(log), "--format", "debezium-json")
    done = headrace(capfd, *command, "--all")
    found = [json.loads(line) for line in done.stdout.split("\n")[:-1]]
    goods = [(line["key"], line["value"]) for line in found if line["topic"] == "all-goods"]
    assert goods == [
        ({"id": 2}, {"id": 2, "n": 2, "secret": "", "code": 2, "__op": "r"}),
        ({"id": 4}, {"id": 4, "n": 4, "secret": "", "code": 4, "__op": "r"}),
        ({"id": 4}, None),
        ({"id": 10}, {"id": 10, "n": 4, "secret": "", "code": 4, "__op": "c"}),
        ({"id": 5}, {"id": 5, "n": 6, "secret": None, "code": 0, "__op": "c"}),
        ({"id": 10}, None),
    ]
    assert done.returncode == 1
    assert done.stderr.count('transforms.number: Value (zé") was out of range') == 2  # as it comes, and at the end
    assert "records that a transform could not take: 1; the first: a record of shop.public.goods" in done.stderr
    assert "errors.tolerance=all" in done.stderr
    # A topic's name is the one that events come to.
    alone = headrace(capfd, *command[:2], "all-goods", *command[2:])
    assert alone.stdout.split("\n")[:-1] == [line for line in done.stdout.split("\n") if '"all-goods"' in line]


@pytest.mark.parametrize("limit", [1, 3, 6, 1000])
def test_a_limit_counts_lines(log: Path, capfd: pytest.CaptureFixture[str], limit: int) -> None:
    command = ("topics", "cat", "--all", "--log", str(log), "--format", "debezium-json")
    whole = headrace(capfd, *command).stdout.split("\n")[:-1]
    assert 6 < len(whole) < 1000
    assert headrace(capfd, *command, "--limit", str(limit)).stdout.split("\n")[:-1] == whole[:limit]


def test_records_that_fail_are_left_out_where_that_is_wanted(
    log: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As with errors.tolerance=all of Kafka Connect: the first is said, and how many there were."""
    strict, tolerant = tmp_path / "strict.headrace", tmp_path / "tolerant.headrace"
    chain = {**CHAIN, "transforms": "unwrap,number", "transforms.number.spec": "secret:int32"}
    for path, more in ((strict, {}), (tolerant, {"errors.tolerance": "all"})):
        shutil.copy(log, path)
        with contextlib.closing(open_log(str(path), writer=True)) as held, held.transaction() as transaction:
            transaction.put("debezium", "shop", json.dumps({**chain, **more}).encode())
        done = headrace(capfd, "topics", "cat", "--all", "--log", str(path), "--format", "debezium-json")
        if path == strict:
            printed, failed = done.stdout, done.stderr.count("a record of shop.public.goods was left out") - 1
            assert done.returncode == 1 and failed > 1
    assert (done.returncode, done.stdout) == (0, printed)
    assert done.stderr.count("a record of shop.public.goods was left out") == 1
    assert f"left out as errors.tolerance=all says: {failed}\n" in done.stderr


def test_columns_and_lines_give_the_same(log: Path) -> None:
    """Transaction metadata is put into lines, which are parsed for the transforms."""
    chain = {name: value for name, value in CHAIN.items() if not name.startswith("transforms.only")}
    chain["transforms"] = "unwrap,mask,number,route"
    plain, said = lines(log, chain, schemas=True)
    told, said_again = lines(log, {**chain, "provide.transaction.metadata": "true"}, schemas=True)
    assert [line for line in told if line["topic"] != "shop.transaction"] == plain
    assert len(plain) == 10
    assert said == said_again
    with_block = {
        **chain,
        "provide.transaction.metadata": "true",
        "transforms.unwrap.add.fields": "transaction.total_order",
    }
    found, _ = lines(log, with_block)
    orders = [line["value"]["__transaction_total_order"] for line in found if line["topic"] == "all-outbox"]
    assert orders == [1]


def test_an_outbox(log: Path) -> None:
    properties = {
        "transforms": "outbox",
        "transforms.outbox.type": f"{DEBEZIUM}outbox.EventRouter",
        "transforms.outbox.table.expand.json.payload": "true",
        "transforms.outbox.predicate": "it",
        "predicates": "it",
        "predicates.it.type": f"{KAFKA}predicates.TopicNameMatches",
        "predicates.it.pattern": r".*\.outbox",
    }
    found, said = lines(log, properties)
    # An array of an integer and a number is no array of one type: the payload stays a text.
    assert (found[-1], said) == (
        {
            "topic": "outbox.event.order",
            "key": "k",
            "value": '{"a": [1, 2.5]}',
            "headers": [["id", "00000000-0000-0000-0000-000000000001"]],
        },
        [],
    )


def test_a_mistake_is_refused_before_anything_runs(tmp_path: Path) -> None:
    app = hr.App("shop", log=str(tmp_path / "x.headrace"))
    wrong = {**CHAIN, "transforms.number.spec": "code:date", "transforms.only.condition": "after.id ="}
    with pytest.raises(DeclarationError, match=r"(?s)transforms.only: .*no SQL.*transforms.number: Invalid type"):
        app.postgres("postgresql://x/y", tables="a.b", compat="debezium", properties=wrong)


def test_explain_says_what_is_wrong_with_a_chain(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "connector.json"
    plain = {name: value for name, value in ARTICLE.items() if not name.startswith("transforms")}
    file.write_text(json.dumps({**plain, **CHAIN, "transforms.number.spec": "code:date"}))
    done = headrace(capfd, "capture", "explain", str(file), "--json")
    assert done.returncode == 2
    lines = {line["property"]: line for line in json.loads(done.stdout)}
    assert lines["transforms.number.type"]["state"] == "refused"
    assert "Invalid type found in casting spec: date" in lines["transforms.number.type"]["meaning"]
    assert lines["transforms.only.condition"]["state"] == lines["predicates.gone.type"]["state"] == "done"
