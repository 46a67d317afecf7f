"""The columns that a plan foretells are those of the rows that come, whatever the plan makes of its topics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from river import drift
from sklearn.linear_model import SGDClassifier

import headrace as hr
from headrace.errors import DeclarationError
from headrace.plan.columns import Columns
from headrace.plan.plan import Plan
from headrace.plan.topic_columns import TopicColumns

# Columns may be called as ours are.
ROWS = [
    {"id": i, "x": i / 2, "y": 1 + i % 2, "kind": "ab"[i % 2], "status": "s", "prediction": "p", "error": i % 3 == 0}
    for i in range(8)
]
LABELS = [{"id": i, "kind": "ab"[i % 2], "weigher": "me", "x": "late", "model": 1.5} for i in range(8)]
SEEN = ["op", "position", "ts"]

operations = {
    "filter": lambda stream: stream.filter(pc.field("id") >= 0),
    "filter of a function": lambda stream: stream.filter(lambda batch: pc.is_valid(batch.column("id"))),
    "select": lambda stream: stream.select("id", "x", "kind", twice=pc.field("x") * 2, note=hr.text("{id} of {kind}")),
    "with": lambda stream: stream.with_columns(big=pc.greater(pc.field("x"), 1.0), status="kind"),
    "with a function": lambda stream: stream.with_columns(half=lambda batch: pc.divide(batch.column("x"), 2.0)),
    "transform": lambda stream: stream.transform(
        lambda batch: batch.with_columns([("added", pc.add(batch.column("id"), 1))])
    ),
}
derived = {
    "by the row": lambda graded: graded.window(1, by="prediction").agg(
        n=hr.metrics.count(),
        kinds=hr.metrics.unique("kind"),
        last=hr.metrics.last("x"),
        mean=hr.metrics.mean("error"),
        most=hr.metrics.max("id"),
        total=hr.metrics.sum("label_delay"),
    ),
    "in time": lambda graded: graded.window("1 s", emit="changes").agg(error=hr.metrics.mean("error")),
    "alarms": lambda graded: graded.above(-1, column="error", cooldown=0),
    "drifts": lambda graded: graded.drift("error", drift.PageHinkley(min_instances=1, threshold=1e-9)),
    "few": lambda graded: graded.select("id", "error", late=pc.field("label_delay")),
}


class Words(NamedTuple):
    """A pipeline, by the words it is made of: what is done before a model predicts, and with what it predicts."""

    before: list[str]
    after: list[str]
    makes: list[str]
    classifies: bool
    proba: bool


def declare(app: hr.App, words: Words) -> None:
    orders, labels = app.topic("orders", append=True), app.topic("labels", append=True)
    for name in words.before:
        orders = operations[name](orders)
    orders = orders.to("chosen")
    if words.classifies:
        learner = SGDClassifier(loss="log_loss")
        model = app.model("m", learner, features=["x"], target="kind", classes=["a", "b"])
    else:
        model = app.model("m", hr.LinearRegression(), features=["x"], target="id")
    model.learn(orders)
    model.evaluate(orders, name="all")
    predicted = model.predict(orders, proba=words.proba and words.classifies)
    for name in words.after:
        predicted = operations[name](predicted)
    graded = predicted.to("predicted").grade(labels, on="id", within="1 h").to("graded")
    for number, name in enumerate(words.makes):
        derived[name](graded).to(f"made-{number}")


def rows_of(app: hr.App, topics: list[str]) -> dict[str, pa.Table]:
    return {topic: app.topic(topic).read().to_arrow() for topic in topics}


def foretold(plan: Plan, known: Mapping[str, pa.Schema]) -> TopicColumns:
    columns = {topic: Columns(topic, schema) for topic, schema in known.items()}
    found = TopicColumns(plan, columns.get)
    for topic in plan.written:
        found.of_topic(topic)
    assert not found.mistakes
    return found


def assert_foretold(columns: Columns, rows: pa.Table) -> None:
    """See that what is said of columns holds for rows."""
    own = [name for name in rows.column_names if name not in SEEN]
    assert set(columns.names) <= set(own), columns
    if not columns.open:
        assert columns.names == own
    for field in columns.schema:
        assert fits(field.type, rows.schema.field(field.name).type), field


def fits(told: pa.DataType, came: pa.DataType) -> bool:
    """Return whether a type is the one that was told, as far as it was."""
    if pa.types.is_null(told) or told == came:
        return True
    return pa.types.is_list(told) and pa.types.is_list(came) and fits(told.value_type, came.value_type)


some = st.lists(st.sampled_from(sorted(operations)), max_size=2)
# Predictions that are filtered or transformed are not graded.
kept = st.lists(st.sampled_from(["select", "with", "with a function"]), max_size=2)
makes = st.lists(st.sampled_from(sorted(derived)), max_size=3)


# Each example is a pipeline that runs.
@settings(max_examples=settings.default.max_examples // 10)
@given(st.builds(Words, some, kept, makes, st.booleans(), st.booleans()))
def test_columns_are_foretold(words: Words) -> None:
    app = hr.App("shop", log="memory://")
    declare(app, words)
    plan = app.plan()
    with app.start() as running:
        running.append("orders", ROWS)
        running.wait()
        running.append("labels", LABELS)
        running.wait()
        came = {topic: app.topic(topic).read().to_arrow() for topic in plan.written}
    assert all(came[topic].num_rows for topic in ("orders", "labels", "chosen", "predicted", "graded"))
    came = {topic: rows for topic, rows in came.items() if rows.num_rows}
    inputs = {topic: came[topic].drop_columns(SEEN).schema for topic in ("orders", "labels")}
    # Where nobody knows what comes, less is said, and that is right too.
    for known in (inputs, {}, {"labels": inputs["labels"]}, {"orders": inputs["orders"]}):
        columns = foretold(plan, known)
        for topic, rows in came.items():
            assert_foretold(columns.of_topic(topic), rows)
    given_columns = {topic: Columns(topic, schema) for topic, schema in inputs.items()}
    shown = TopicColumns(plan, given_columns.get, supposed=True)
    for topic, rows in came.items():
        assert shown.of_topic(topic).batch().rows.schema.equals(rows.drop_columns(SEEN).schema), topic


MISTAKES: dict[str, tuple[Callable[[hr.App, hr.Stream], object], str]] = {
    "a column of windows": (
        lambda app, graded: graded.window(1).agg(mean=hr.metrics.mean("error")).above(1, column="men").to("alarms"),
        "«men».*did you mean «mean»",
    ),
    "a column of metrics": (lambda app, graded: app.topic("m-metrics").select("acuracy").to("few"), "«acuracy»"),
    "a column of trainings": (lambda app, graded: app.topic("m-training").select("cuase").to("few"), "«cuase»"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_what_the_plan_alone_decides_is_checked_before_anybody_knows_a_row(what: str) -> None:
    app = hr.App("shop", log="memory://")
    orders, labels = app.topic("orders", append=True), app.topic("labels", append=True)
    model = app.model("m", SGDClassifier(loss="log_loss"), features=["x"], target="kind", classes=["a", "b"])
    model.evaluate(orders, name="all")
    graded = model.predict(orders).to("predicted").grade(labels, on="id", within="1 h").to("graded")
    model.retrain(rows=graded.last(10))
    declare, message = MISTAKES[what]
    with pytest.raises(DeclarationError, match=message):
        declare(app, graded)
        app.start().stop()
