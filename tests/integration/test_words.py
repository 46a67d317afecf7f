"""Every word on every kind of stream: rows come of it, or the declaration is refused.

Kinds of streams times public methods, found by looking: a word that is added later is in the product by itself, and
asks for an argument here if it wants one of a new name.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import pytest

import headrace as hr
from headrace.engines.local.running import Running
from headrace.pipeline.stream import Stream, Windowed
from headrace.replay.verify import verify
from tests.databases import Database

ROWS = 6
# Where these go is no server of this test: they are declared, and not started.
ELSEWHERE = ("to_mongo", "to_http")


class Mean:
    """Answers with the mean of what it learned."""

    deterministic = True
    ready = True

    def __init__(self) -> None:
        self.total, self.rows = 0.0, 0

    def learn(self, X: npt.NDArray[Any], y: npt.NDArray[Any] | None = None) -> None:
        for truth in X[:, 0] if y is None else y:
            self.total, self.rows = self.total + float(truth), self.rows + 1

    def predict(self, X: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.full(len(X), self.total / max(self.rows, 1))

    def parameters(self) -> dict[str, Any]:
        return {}

    def state(self) -> dict[str, Any]:
        return {"total": self.total, "rows": self.rows}

    def restore(self, state: dict[str, Any]) -> None:
        self.total, self.rows = float(state["total"]), int(state["rows"])


class Always:
    """A detector that says drift at every value."""

    drift_detected = True

    def update(self, x: float) -> None:
        """Nothing to remember."""


def words(kind: type) -> dict[str, Callable[..., Any]]:
    found = inspect.getmembers(kind, inspect.isfunction)
    return {name: function for name, function in found if not name.startswith("_")}


class Kinds:
    """Streams of each kind, with a column of numbers; what is derived from a model is derived from one of its own."""

    def __init__(self, app: hr.App, table: Stream, name: str) -> None:
        self.app, self.table, self.name = app, table, name
        self.topic = app.topic("rows", append=True)
        self.model = app.model(name, Mean(), features=["x"], target="y")
        self.predicted = self.model.predict(self.topic)
        self.scores = self.predicted.to(f"{name}-scores")

    def to(self, stream: Stream, topic: str) -> Stream:
        return stream.to(f"{self.name}-{topic}")

    def made(self) -> dict[str, tuple[Callable[[], Stream], str]]:
        """By their names: what makes one."""
        app, topic, table, scores, to = self.app, self.topic, self.table, self.scores, self.to
        some = pc.field("x") > 0
        few = ("id", "x", "y", "prediction")
        return {
            "table": (lambda: table, "x"),
            "topic appended to": (lambda: topic, "x"),
            "topic by its name": (lambda: app.topic("rows"), "x"),
            "filtered": (lambda: topic.filter(some), "x"),
            "selected": (lambda: table.select("id", "x", "y"), "x"),
            "with columns": (lambda: topic.with_columns(z=pc.field("x")), "z"),
            "transformed": (lambda: topic.transform(lambda batch: batch), "x"),
            "written": (lambda: to(topic.filter(some), "some"), "x"),
            "predictions without a topic": (lambda: self.predicted, "prediction"),
            "predictions": (lambda: scores, "prediction"),
            "predictions by their topic": (lambda: app.topic(f"{self.name}-scores"), "prediction"),
            "predictions of a table": (lambda: to(self.model.predict(table), "of-table"), "prediction"),
            "predictions after operations": (lambda: scores.filter(some).with_columns(p=pc.field("prediction")), "p"),
            "predictions after operations, written": (lambda: to(self.predicted.select(*few), "fewer"), "prediction"),
            "grades without a topic": (self.graded, "error"),
            "grades": (lambda: to(self.graded(), "grades"), "error"),
            "grades after operations": (lambda: self.graded().with_columns(e=pc.field("error")), "e"),
            "windows without a topic": (lambda: self.windows(scores), "prediction"),
            "windows": (lambda: to(self.windows(scores), "windows"), "prediction"),
            "windows of windows": (lambda: to(self.windows(self.windows(scores)), "wide"), "prediction"),
            "windows of a topic": (lambda: to(self.windows(topic.with_columns(prediction="x")), "flow"), "x"),
            "alarms": (lambda: to(self.alarms(), "alarms"), "prediction"),
            "alarms without a topic": (lambda: self.alarms().filter(some), "prediction"),
            "drifts": (lambda: to(scores.drift("prediction", Always()), "drifts"), "prediction"),
            # What a function gives is not known before rows come: what it lacks is told when they do.
            "metrics": (
                lambda: self.model.evaluate(topic, every=1, name=self.name).transform(lambda batch: batch),
                "learned",
            ),
        }

    def graded(self) -> Stream:
        return self.scores.grade(self.topic, on="id", within="1 h")

    def windows(self, stream: Stream) -> Stream:
        last = {column: hr.metrics.last(column) for column in ("id", "x", "y")}
        return stream.window(2).agg(prediction=hr.metrics.mean("prediction"), **last)

    def alarms(self) -> Stream:
        return self.scores.above(-1.0, column="prediction", cooldown=0)


def arguments(function: Callable[..., Any], known: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a word is called with, by the names of its parameters."""
    given: tuple[Any, ...] = ()
    named: dict[str, Any] = {}
    for name, one in list(inspect.signature(function).parameters.items())[1:]:
        if one.kind is one.VAR_POSITIONAL:
            given = (*given, *known[name])
        elif one.kind is one.VAR_KEYWORD:
            named |= known[name]
        elif one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD:
            assert name in known, f"a word wants «{name}»: say in `known` what it is given here"
            given = (*given, known[name])
        elif name in known:
            named[name] = known[name]
    return given, named


class Product:
    """Declares the words, and remembers what is to be looked at once rows have come."""

    def __init__(self, app: hr.App, table: Stream, dsn: str, folder: Path, some: tuple[str, ...] = ()) -> None:
        self.app, self.table, self.dsn, self.folder = app, table, dsn, folder
        self.numbers = itertools.count()
        found = Kinds(app, table, "shared").made()
        self.shared = {kind: (make(), column) for kind, (make, column) in found.items() if not some or kind in some}
        self.refused: dict[tuple[str, str], str] = {}
        self.looks: dict[tuple[str, str], Look] = {}

    def known(self, column: str, number: int) -> dict[str, Any]:
        """What parameters are given, by their names."""
        sinks = {"dsn": self.dsn, "table": f"made.sink_{number}", "uri": "mongodb://nowhere", "url": "http://nowhere"}
        more = {"database_collection": "a.b", "directory": self.folder / str(number), "name": f"sink-{number}"}
        operations = {"expression": lambda batch: np.ones(batch.num_rows, np.bool_), "function": lambda batch: batch}
        graded = {"truth": self.app.topic("rows"), "on": "id", "within": "1 h", "target": "y"}
        derived = {"size": 2, "x": 1e9, "a": 1e8, "b": 1e9, "column": column, "cooldown": 0, "detector": Always()}
        taken = {"rows": 3, "span": "1 h", "aggregates": {"count": hr.metrics.count()}, "q": 0.5}
        names = {"columns": (column,), "computed": {"more": column}, "topic": f"out-{number}"}
        names["condition"] = f'"{column}" IS NOT NULL'
        return {**sinks, **more, **operations, **graded, **derived, **taken, **names}

    def declare(self, kind: str, word: str, declaration: Callable[[], Look]) -> None:
        """Declare a word on a kind: it is refused, or its rows are to be looked at."""
        declared = self.app._declared
        kinds: tuple[list[Any], ...] = (declared.models, declared.streams, declared.operator_tasks, declared.sinks)
        lengths = [(declarations, len(declarations)) for declarations in kinds]
        try:
            self.looks[kind, word] = declaration()
        except hr.errors.DeclarationError as error:
            assert error.exit_code == 2 and error.message
            self.refused[kind, word] = error.message
            for declarations, length in lengths:
                del declarations[length:]

    def look(self, topic: str) -> Look:
        return lambda running: self.app.topic(topic).read().to_arrow().num_rows

    def written(self, stream: Stream, number: int) -> Look:
        """The rows of a stream, by the topic that they are written to."""
        topic = f"out-{number}"
        if stream._plan.topic != topic:
            stream.to(topic)
        return self.look(topic)

    def word(self, kind: str, name: str) -> Look:
        """A public method of a stream."""
        (stream, column), number = self.shared[kind], next(self.numbers)
        known = self.known(column, number)
        known |= {"x": -1e9} if name == "above" else {}
        known.pop("target") if name == "dataset" else None
        if name == "grade" and column != "prediction" and stream._derived_from() is None:
            stream = stream.with_columns(prediction=column)
        given, named = arguments(words(Stream)[name], known)
        if name in ("read", "dataset"):
            getattr(stream, name)(*given, **named) if name == "dataset" else stream._refuse_unwritten()
            return lambda running: len(list(stream.read().to_arrow() if name == "read" else stream.dataset(2)))
        found = getattr(stream, name)(*given, **named)
        if isinstance(found, Windowed):
            found = found.count()
        return self.written(found, number) if not name.startswith("to_") else lambda running: 1

    def window(self, kind: str, name: str) -> Look:
        """A public method of a stream's windows."""
        (stream, column), number = self.shared[kind], next(self.numbers)
        given, named = arguments(words(Windowed)[name], self.known(column, number))
        return self.written(getattr(stream.window(2), name)(*given, **named), number)

    def learned(self, kind: str, name: str) -> Look:
        """What a model does with a stream of a kind."""
        (stream, column), number = self.shared[kind], next(self.numbers)
        model = self.app.model(f"own-{number}", Mean(), features=[column], target="y")
        answers = getattr(model, name)(stream)
        if name == "evaluate":
            return self.look(f"own-{number}-metrics")
        if name == "learn":
            answers = model.predict(self.app.topic("rows").with_columns(**{column: "x"}))
        return self.written(answers, number)

    def trained(self, kind: str, name: str) -> Look:
        """What a model of its own is trained on, or by, or graded with."""
        number = next(self.numbers)
        kinds = Kinds(self.app, self.table, f"m{number}")
        make, column = kinds.made()[kind]
        stream, model = make(), kinds.model
        if name == "truth":
            return self.written(kinds.scores.grade(stream, on="id", within="1 h", target=column), number)
        if name == "on":
            model.retrain(on=stream, rows=self.app.topic("rows").all())
            return self.look(f"{model.name}-training")
        given, named = arguments(words(Stream)[name], self.known(column, number))
        rows = stream.with_columns(x=column) if stream._derived_from() is None else stream
        model.retrain(rows=getattr(rows, name)(*given, **named))
        return lambda running: int(running.retrain(model.name)["rows"])


Look = Callable[[Running], int]


def rows(first: int) -> list[dict[str, Any]]:
    return [{"id": i, "x": float(i % 5 + 1), "y": float(i % 3)} for i in range(first, first + ROWS)]


SOME = ("table", "predictions without a topic", "predictions", "predictions after operations", "windows")


@pytest.mark.parametrize("some", [SOME, pytest.param((), marks=pytest.mark.slow)], ids=["some", "all"])
def test_every_word_on_every_kind_of_stream(database: Database, tmp_path: Path, some: tuple[str, ...]) -> None:
    database.execute("create table t (id int primary key, x float8, y float8); create schema made")
    app = hr.App("words", log="memory://")
    table = app.postgres(database.dsn, tables=r"public\.t", prefix="db")["public.t"]
    product = Product(app, table, database.dsn, tmp_path, some)
    rowsets = [name for name, value in words(Stream).items() if "Rowset" in str(value.__annotations__["return"])]
    for kind in product.shared:
        for name in words(Stream).keys() - {*ELSEWHERE, *rowsets}:
            product.declare(kind, name, lambda kind=kind, name=name: product.word(kind, name))  # type: ignore[misc]
        for name in words(Windowed):
            product.declare(kind, f"window.{name}", lambda kind=kind, name=name: product.window(kind, name))  # type: ignore[misc]
        for name in ("learn", "predict", "evaluate"):
            product.declare(kind, name, lambda kind=kind, name=name: product.learned(kind, name))  # type: ignore[misc]
    for kind in list(product.shared):
        for name in (*rowsets, "on", "truth"):
            product.declare(kind, name, lambda kind=kind, name=name: product.trained(kind, name))  # type: ignore[misc]
    with app.start() as running:
        database.execute("insert into t select i, i % 5 + 1, i % 3 from generate_series(1, 6) i")
        running.append("rows", rows(1))
        running.append("rows", rows(7))
        running.wait(120)
        silent = {key for key, look in product.looks.items() if not counted(look, running)}
        letters = {topic for topic in running.log.topics() if topic.endswith(".dlq")}
        assert verify(app.plan(), running.log).result == "equal"
    # What a column is missing for is told in the dead letters, or by the training.
    lacking = {("metrics", name) for name in ("grade", "evaluate", *rowsets, "truth")}
    assert silent == (set() if some else lacking)
    assert letters or some
    unwritten = {kind for kind, _ in product.refused if "without a topic" in kind or kind.endswith("operations")}
    elsewhere = {key for key in product.refused if key[0] not in unwritten}
    assert {word for _, word in elsewhere} == {"grade"}, [product.refused[key] for key in elsewhere]


def counted(look: Look, running: Running) -> int:
    """How many rows there are; 0 where there is no topic, or a training says that it wants a column."""
    try:
        return look(running)
    except hr.errors.LogError:
        return 0
    except hr.errors.LearnError as error:
        assert "no column" in error.message
        return 0


def test_what_goes_elsewhere_is_delivered_from_every_kind_or_refused(tmp_path: Path) -> None:
    """To servers that are not there: declared and not started."""
    app = hr.App("words", log="memory://")
    table = app.postgres("postgresql://nowhere/db", tables=r"public\.t", prefix="db")["public.t"]
    product = Product(app, table, "", tmp_path)
    for kind in product.shared:
        for name in ELSEWHERE:
            product.declare(kind, name, lambda kind=kind, name=name: product.word(kind, name))  # type: ignore[misc]
    assert len(app.plan().sinks) == len(product.looks)
    assert all("topic" in message for message in product.refused.values())
