"""Mistakes that people make: each ends in a refusal, or a warning, that names what is wrong and what to write instead.

Three tables of them: in the words of a declaration, in the columns that it names (one database for all), and on the
command line, in files and in the environment.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest
from sklearn.linear_model import SGDClassifier, SGDRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tests.databases import Database, fresh_database

import headrace as hr
from headrace.cli.main import main
from headrace.errors import DeclarationError, HeadraceError
from headrace.testing.servers import PostgresServer

DSN = "postgresql://localhost/shop"
Declare = Callable[[hr.App], Any]


def app() -> hr.App:
    return hr.App("shop", log="memory://")


def kmeans(made: hr.App, **more: Any) -> Any:
    return made.model("m", hr.KMeans(k=2), **{"features": ["x"], **more})


def topic() -> Any:
    return app().topic("t")


# -- words ------------------------------------------------------------------------------------------------------------

ANSWER = {"on": "id", "within": "1 min", "target": "y"}

WORDS: dict[str, tuple[Declare, tuple[str, ...]]] = {
    "an app without a name": (lambda a: hr.App(""), ("cannot name an app", "Give a word")),
    "a number as the app's name": (lambda a: hr.App(5), ("App(name=5)", "text")),  # type: ignore[arg-type]
    "a list as the log": (lambda a: hr.App("a", log=[]), ("App(log=[])", "Path")),  # type: ignore[arg-type]
    "a format that is none": (lambda a: hr.App("a", format="jsn"), ("jsn", "json")),
    "a word that is not there": (lambda a: a.model("m", hr.KMeans(k=2), feature=["x"]), ("«feature»", "«features»")),  # type: ignore[call-arg]
    "a model without features=": (lambda a: a.model("m", hr.KMeans(k=2)), ("features", "It takes name, learner")),  # type: ignore[call-arg]
    "a class as learner": (lambda a: a.model("m", SGDClassifier, features=["x"]), ("a class", "SGDClassifier(…)")),
    "a class as a step": (
        lambda a: kmeans_like(a, make_pipeline(StandardScaler(), SGDRegressor)),
        ("SGDRegressor, a step", "SGDRegressor(…)"),
    ),
    "our class as learner": (lambda a: a.model("m", hr.KMeans, features=["x"]), ("a class", "KMeans(…)")),
    "a text as learner": (lambda a: a.model("m", "KMeans", features=["x"]), ("not a learner", "partial_fit")),
    "a classifier without classes": (lambda a: kmeans_like(a, SGDClassifier()), ("all labels", "classes=[…]")),
    "classes as one text": (lambda a: kmeans_like(a, SGDClassifier(), classes="yes"), ("one text", '["no", "yes"]')),
    "classes of two kinds": (lambda a: kmeans_like(a, SGDClassifier(), classes=["a", 1]), ("number, text", "List")),
    "one class": (lambda a: kmeans_like(a, SGDClassifier(), classes=["a"]), ("['a']", "two classes")),
    "classes of a regressor": (lambda a: kmeans_like(a, SGDRegressor(), classes=["a", "b"]), ("no classifier",)),
    "a learner without its target": (
        lambda a: kmeans_like(a, SGDRegressor()).learn(a.topic("t")),
        ("«m» learns from a target", 'target="…"'),
    ),
    "a feature twice": (lambda a: kmeans(a, features=["x", "x"]), ("«x» is named twice",)),
    "a number as features": (lambda a: kmeans(a, features=5), ("features", "5", "Name columns")),
    "features as a dict": (lambda a: kmeans(a, features={"x": 1}), ("no list of columns", "Name columns")),
    "no features": (lambda a: kmeans(a, features=[]), ("has no features", "features=[…]")),
    "the target among the features": (
        lambda a: kmeans(a, target="x").learn(a.topic("t")),
        ("«x» is both a feature and the target",),
    ),
    "a list as target": (lambda a: kmeans(a, target=["y"]), ("model(target=['y'])", "text")),
    "an empty target": (lambda a: kmeans(a, target=""), ("target=''",)),
    "a model without a name": (lambda a: a.model("", hr.KMeans(k=2), features=["x"]), ("cannot name a model",)),
    "two models of one name": (lambda a: (kmeans(a), kmeans(a)), ("two models are named «m»", "name of its own")),
    "missing= unknown": (lambda a: kmeans(a, missing="skip"), ("missing='skip'", '"reject" or "pass"')),
    "missing=pass without support": (lambda a: kmeans(a, missing="pass"), ("takes no NaN", "Leave")),
    "versions as text": (lambda a: kmeans(a, versions="10"), ("versions='10'", "whole number")),
    "versions of no row": (lambda a: kmeans(a, versions=0), ("versions=0", "positive")),
    "initial= of another learner": (lambda a: kmeans(a, initial=5), ("initial=int", "hr.csv")),
    "a k-means of no cluster": (lambda a: hr.KMeans(k=0), ("k", "1")),
    "an image without size": (lambda a: hr.image("x", shape=(0,)), ("shape", "positive sizes")),
    "a shape that is a number": (lambda a: hr.image("x", shape=5), ("image(shape=5)", "list")),  # type: ignore[arg-type]
    "a coding that is none": (lambda a: hr.category("x", coding="dummy"), ("dummy", "treatment")),  # type: ignore[arg-type]
    "a category for no word": (lambda a: hr.category("x", capacity=0), ("capacity=0", "positive")),
    "open braces in a text": (lambda a: hr.text("{a"), ("text template", "{{")),
    "a quantile above 1": (lambda a: hr.metrics.quantile("x", 2), ("between 0 and 1", "quantile")),
    "a text as a stream": (lambda a: kmeans(a).learn("t"), ("learn(stream='t')", "Stream")),
    "a database as a stream": (
        lambda a: kmeans(a).learn(a.postgres(DSN, tables="x")),
        ("learn(stream=Database", "Stream"),
    ),
    "every=0": (lambda a: kmeans(a).learn(a.topic("t"), every=0), ("every=0", '"transaction"')),
    "every= in the past": (lambda a: kmeans(a).learn(a.topic("t"), every="-1 s"), ("every='-1 s'",)),
    "weights for a learner without": (lambda a: kmeans(a).learn(a.topic("t"), sample_weight="w"), ("sample_weight",)),
    "probabilities of clusters": (lambda a: kmeans(a).predict(a.topic("t"), proba=True), ("probabilities",)),
    "predictions that go nowhere": (
        lambda a: kmeans(a).predict(a.topic("t")),
        ("the predictions of «m» on t go nowhere", ".to(topic)"),
    ),
    "a model without a word": (lambda a: kmeans(a), ("neither learns nor predicts", "m.learn(stream)")),
    "an unknown metric": (
        lambda a: kmeans(a, target="y").evaluate(a.topic("t"), metrics=["acuracy"]),
        ("«acuracy»", "«accuracy»"),
    ),
    "a text to be evaluated on": (lambda a: kmeans(a, target="y").evaluate("t"), ("evaluated", "Give a stream")),
    "an evaluation without target": (lambda a: kmeans(a).evaluate(a.topic("t")), ("no target", 'target="…"')),
    "rows for retraining that are none": (lambda a: kmeans(a).retrain(rows=5), ("retrain(rows=5)", "Rowset")),
    "the last 0 rows": (lambda a: topic().last(0), ("last(0)", "positive")),
    "a topic without a name": (lambda a: topic().to(""), ("cannot name a topic",)),
    "a topic of ours": (lambda a: a.topic("t").to("x.dlq"), ("«x.dlq» is Headrace's own", "another name")),
    "a topic written into itself": (lambda a: a.topic("t").to("t"), ("«t» come back to it", "another name")),
    "a topic written twice": (
        lambda a: (a.topic("t").to("u"), a.topic("v").to("u")),
        ("«u» is written twice", "topic of its own"),
    ),
    "SQL as a filter": (lambda a: topic().filter("x > 1"), ("filter('x > 1')", 'pc.field("x") > 1')),
    "a number as a filter": (lambda a: topic().filter(5), ("filter", "pyarrow.compute")),
    "nothing selected": (lambda a: topic().select(), ("leaves no column", ".select(")),
    "a transform that is no function": (lambda a: topic().transform(5), ("transform(function=5)", "function")),
    "a window of no time": (lambda a: topic().window("0 s"), ("window='0 s'", '"1 min"')),
    "a window of negative time": (lambda a: topic().window("-1 min"), ("window='-1 min'", '"1 min"')),
    "a window of text": (lambda a: topic().window("soon"), ("window='soon'", '"1 min"')),
    "a window that leaves rows out": (lambda a: topic().window("1 min", every="2 min"), ("leaves rows out", "shorter")),
    "an emit= that is none": (lambda a: topic().window(5, emit="all"), ("emit='all'", '"final" or "changes"')),
    "a window of nothing": (lambda a: topic().window(5).agg(), ("makes nothing", "aggregate")),
    "an aggregate as text": (lambda a: topic().window(5).agg(a="mean"), ("agg(a='mean')", "Aggregate")),
    "an alarm without a number": (lambda a: topic().above("2"), ("above(x='2')", "a number")),
    "an alarm without a column": (lambda a: topic().above(2), ("many columns", 'column="…"')),
    "an alarm between nothing": (lambda a: topic().outside(2, 1, column="x"), ("outside(2, 1)", "smaller one first")),
    "an alarm after 0 rows": (lambda a: topic().above(1, column="x", consecutive=0), ("consecutive=0", "positive")),
    "a detector's name": (lambda a: topic().drift("x", "ADWIN"), ("drift(«x»)", "river.drift")),
    "a grade of a text": (lambda a: topic().grade("t", **ANSWER), ("grade(truth='t')", "Stream")),
    "a grade without target": (lambda a: topic().grade(topic(), on="id", within="1 s"), ("the truth", 'target="…"')),
    "a grade without time": (lambda a: topic().grade(topic(), on="id", within=5, target="y"), ("within=5", "text")),
    "a grade of an unknown metric": (lambda a: topic().grade(topic(), **ANSWER, metric="mae"), ("metric='mae'",)),
    "a grade by nothing": (lambda a: topic().grade(topic(), **{**ANSWER, "on": []}), ("on=[]", "Name the column")),
    "a grade by one side": (
        lambda a: topic().grade(topic(), **{**ANSWER, "on": {"left": "a"}}),
        ("on={'left': 'a'}", '"right"'),
    ),
    "no room for labels": (lambda a: topic().grade(topic(), **ANSWER, limit=0), ("limit=0", "positive")),
    "a derived stream that goes nowhere": (
        lambda a: a.topic("t").window(5).mean("x"),
        ("rows of a window go nowhere", ".to(topic)"),
    ),
    "a connection string as a word": (
        lambda a: a.postgres("shop", tables="x"),
        ("no connection string", "postgresql:"),
    ),
    "another database's address": (lambda a: a.postgres("mysql://me:pw@h/x", tables="x"), ("no connection string",)),
    "a pattern that is none": (lambda a: a.postgres(DSN, tables="("), ("tables='('", "regular expression")),
    "a slot with capitals": (lambda a: a.postgres(DSN, tables="x", slot="My-Slot"), ("My-Slot", "lower-case")),
    "a snapshot= that is none": (
        lambda a: a.postgres(DSN, tables="x", snapshot="all"),
        ("snapshot='all'", '"initial"'),
    ),  # type: ignore[arg-type]
    "two sources of one prefix": (
        lambda a: (a.postgres(DSN, tables="x"), a.postgres(DSN, tables="y")),
        ("two sources", "prefix="),
    ),
    "a table without its schema": (
        lambda a: a.postgres(DSN, tables=".*")["orders"],
        ("names no schema", "public.orders"),
    ),
    "a table that is not captured": (
        lambda a: a.postgres(DSN, tables=r"public\.orders")["public.labels"],
        ("no pattern", "widen tables="),
    ),
    "Debezium without Kafka": (lambda a: a.debezium(prefix="x"), ("where Kafka is", "kafka://host:port")),
    "a sink without a table": (lambda a: topic().to_table(DSN, ""), ("table",)),
    "a sink's key twice": (lambda a: topic().to_table(DSN, "x", key=["a", "a"]), ("«a»", "twice")),
    "two sinks of one name": (
        lambda a: (a.topic("t").to_table(DSN, "x"), a.topic("u").to_table(DSN, "x")),
        ("two sinks are named «postgres:x»", "name="),
    ),
    "a directory without a name": (lambda a: topic().to_parquet(""), ("no name", ".to_parquet(")),
    "a directory that is a file": (lambda a: topic().to_parquet(__file__), ("is not a directory",)),
    "files of no rows": (lambda a: topic().to_parquet("x", rows_per_file=0), ("rows_per_file=0", "positive")),
    "a receiver without http": (lambda a: topic().to_http("localhost"), ("the URL cannot be read", "Give http(s)://")),
    "a method that is none": (lambda a: topic().to_http("http://x", method="GET"), ("method='GET'", '"POST"')),
    "MongoDB without its scheme": (lambda a: topic().to_mongo("localhost", "a.b"), ("mongodb://",)),
    "a path without /": (lambda a: kmeans(a).serve("prediction"), ("prediction", "/prediction")),
    "a path of ours": (lambda a: kmeans(a).serve("/v2/x"), ("/v2", "not a path")),
    "inputs without a feature": (lambda a: kmeans(a).serve(inputs={"a": "b"}), ("the feature «x»", "inputs={…}")),
    "a data set of no rows": (lambda a: topic().dataset(0), ("batch_size=0", "at least 1")),
    "an app with nothing to do": (lambda a: a, ("declares nothing to do", "Capture a database")),
    "until= that is none": (lambda a: a.run(until="caught up"), ("until='caught up'", '"caught-up"')),
}


def kmeans_like(made: hr.App, learner: Any, **more: Any) -> Any:
    return made.model("m", learner, features=["x"], **more)


@pytest.mark.parametrize("mistake", WORDS)
def test_a_mistake_in_words_is_refused(mistake: str) -> None:
    declare, words = WORDS[mistake]
    made = app()
    with pytest.raises(DeclarationError) as refused:
        declare(made)
        made.plan().check()
    for word in words:
        assert word in str(refused.value)


# -- columns ----------------------------------------------------------------------------------------------------------

TABLES = """
create table orders (id int primary key, name text, born date, placed timestamptz, paid boolean, price float8,
    weight float8, took float8);
create table labels (order_id text primary key, id int, took float8, paid boolean)
"""


@pytest.fixture(scope="module")
def shop(server: PostgresServer) -> Iterator[Database]:
    """One database for all mistakes: none of them gets as far as writing to it."""
    with fresh_database(server, "mistakes") as made:
        for statement in TABLES.split(";"):
            made.execute(statement)
        yield made


class Shop:
    """An app over the database, and what a mistake is made with."""

    def __init__(self, dsn: str, log: Path) -> None:
        self.dsn = dsn
        self.app = hr.App("shop", log=log)
        self.db = self.app.postgres(dsn, tables=r"public\..*")
        self.orders, self.labels = self.db["public.orders"], self.db["public.labels"]

    def model(self, **more: Any) -> Any:
        given = {"features": ["price", "weight"], "target": "took", **more}
        return self.app.model("m", given.pop("learner", None) or hr.LinearRegression(), **given)

    def predicted(self) -> Any:
        return self.model().predict(self.orders).to("predicted")

    def graded(self) -> Any:
        return self.predicted().grade(self.labels, on="id", within="1 min").to("graded")


COLUMNS: dict[str, tuple[Callable[[Shop], Any], tuple[str, ...]]] = {
    "text as a feature": (
        lambda s: s.model(features=["name"]).learn(s.orders),
        ("«name» is text, not a number", 'hr.category("name")'),
    ),
    "a day as a feature": (
        lambda s: s.model(features=["born"]).learn(s.orders),
        ("«born» is date, not a number", ".with_columns(born_number=", "days since 1970"),
    ),
    "an instant as a feature": (
        lambda s: s.model(features=["price", "placed"]).predict(s.orders).to("p"),
        ("«placed» is timestamp with time zone, not a number", ".with_columns(placed_number="),
    ),
    "a number as an image": (
        lambda s: s.model(features=[hr.image("price", shape=(2, 2))]).learn(s.orders),
        ("the image «price» is double precision", "bytea"),
    ),
    "a feature misspelled": (
        lambda s: s.model(features=["prise"]).learn(s.orders),
        ("the model «m» wants the column «prise», which shop.public.orders does not have", "«price»", "weight, took"),
    ),
    "a feature misspelled behind a filter": (
        lambda s: s.model(features=["prise"]).learn(s.orders.filter(pc.field("price") > 1)),
        ("«prise»", "(did you mean «price»?)"),
    ),
    "a feature that was not selected": (
        lambda s: s.model(features=["price"]).learn(s.orders.select("id", "weight", "took")),
        ("«price», which shop.public.orders does not have", "Its columns are: id, weight, took"),
    ),
    "a feature of another case": (
        lambda s: s.model(features=["Price"]).learn(s.orders),
        ("«Price»", "(did you mean «price»?)"),
    ),
    "a target misspelled": (lambda s: s.model(target="tok").learn(s.orders), ("«tok»", "(did you mean «took»?)")),
    "a target of text": (
        lambda s: s.model(target="name").learn(s.orders),
        ("the target of the model «m» from shop.public.orders: «name» is text",),
    ),
    "words as classes of a boolean": (
        lambda s: s.model(learner=SGDClassifier(), target="paid", classes=["no", "yes"]).learn(s.orders),
        ("«paid» is boolean, and the classes are 'no', 'yes'", "as the column has them: classes=[False, True]"),
    ),
    "numbers as classes of a text": (
        lambda s: s.model(learner=SGDClassifier(), target="name", classes=[0, 1]).learn(s.orders),
        ("«name» is text", "the classes are 0, 1"),
    ),
    "a weight of text": (
        lambda s: s.model().learn(s.orders, sample_weight="name"),
        ("the weight of the model «m»", "«name» is text"),
    ),
    "a fixed set without a feature": (
        lambda s: s.model().evaluate([{"price": 1.0, "took": 2.0}]),
        ("«weight»", "the fixed set «held out»", "price, took"),
    ),
    "a feature function that asks for nothing there": (
        lambda s: s.model(features=lambda batch: batch.column("prise").to_numpy()).learn(s.orders),
        ("the feature function of «m»", "«prise»", "(did you mean «price»?)"),
    ),
    "an initial table without the target": (
        lambda s: s.model(initial=s.labels.select("id", "took"), features=["price"]).predict(s.orders).to("p"),
        ("«price»", "shop.public.labels"),
    ),
    "a column computed of nothing": (
        lambda s: s.orders.with_columns(double="prise").to("t"),
        ("with_columns(double=prise)", "«prise»", "«price»"),
    ),
    "a function that asks for nothing there": (
        lambda s: s.orders.with_columns(double=lambda batch: pc.multiply(batch.column("prise"), 2)).to("t"),
        ("«prise»", "(did you mean «price»?)"),
    ),
    "a transform that asks for nothing there": (
        lambda s: s.orders.transform(lambda batch: batch.with_columns([("x", batch.column("prise"))])).to("t"),
        ("transform(", "«prise»"),
    ),
    "a text of nothing": (
        lambda s: s.orders.select("id", note=hr.text("{nam} is new")).to("t"),
        ("«nam»", "(did you mean «name»?)"),
    ),
    "nothing selected that is there": (lambda s: s.orders.select("ids").to("t"), ("select(…)", "«ids»", "«id»")),
    "a filter by nothing": (
        lambda s: s.orders.filter(pc.field("prise") > 1).to("t"),
        ("filter(", "«prise»", "(did you mean «price»?)"),
    ),
    "a filter that compares text with a number": (
        lambda s: s.orders.filter(pc.field("name") > 1).to("t"),
        ("cannot be computed", "name string"),
    ),
    "a filter that is a number": (
        lambda s: s.orders.filter("price").to("t"),
        ("filter(price)", "double", "neither true nor false"),
    ),
    "a grade by nothing": (
        lambda s: s.predicted().grade(s.labels, on="order", within="1 min").to("g"),
        ("grade(on=…)", "«order»", "the predictions of «m»"),
    ),
    "a grade by a column of one side": (
        lambda s: s.predicted().grade(s.labels, on={"left": "id", "right": "order"}, within="1 min").to("g"),
        ("grade(on=…)", "«order»", "(did you mean «order_id»?)", "shop.public.labels"),
    ),
    "a grade by a number and a text": (
        lambda s: s.predicted().grade(s.labels, on={"left": "id", "right": "order_id"}, within="1 min").to("g"),
        ("«id»", "a number", "«order_id»", "text", "no label would ever be found"),
    ),
    "a grade of no truth": (
        lambda s: s.predicted().grade(s.labels, on="id", within="1 min", target="tok").to("g"),
        ("grade(target=…)", "«tok»", "«took»"),
    ),
    "a grade at no time": (
        lambda s: s.predicted().grade(s.labels, on="id", within="1 min", time=("placed", "plased")).to("g"),
        ("grade(time=…)", "«plased»"),
    ),
    "a grade at a time that is true or false": (
        lambda s: s.predicted().grade(s.labels, on="id", within="1 min", time="paid").to("g"),
        ("grade(time=…)", "«paid» is bool, no time", "timestamp"),
    ),
    "a mean of nothing": (
        lambda s: s.graded().window("1 min").mean("eror").to("w"),
        ("mean(…) of a window", "«eror»", "(did you mean «error»?)"),
    ),
    "a mean of days": (
        lambda s: s.orders.window("1 min").mean("born").to("w"),
        ("the mean of «born»", "one of numbers", "date32"),
    ),
    "a window by nothing": (
        lambda s: s.orders.window("1 min", by="nme").mean("price").to("w"),
        ("window(by=…)", "«nme»", "(did you mean «name»?)"),
    ),
    "a window at no time": (
        lambda s: s.orders.window("1 min", time="plced").mean("price").to("w"),
        ("window(time=…)", "«plced»", "«placed»"),
    ),
    "an alarm on nothing": (
        lambda s: s.orders.above(3, column="prise").to("a"),
        ("an alarm", "«prise»", "(did you mean «price»?)"),
    ),
    "an alarm on no column of a window": (
        lambda s: s.orders.window(5).agg(mean=hr.metrics.mean("price")).above(3, column="price").to("a"),
        ("an alarm", "«price»", "the windows of", "window_start, window_end, rows, mean"),
    ),
    "an alarm on days": (
        lambda s: s.orders.above(3, column="born").to("a"),
        ("an alarm on «born», which is date32", "numbers"),
    ),
    "a drift of nothing": (
        lambda s: s.orders.drift("prise", detector()).to("d"),
        ("drift(…)", "«prise»", "(did you mean «price»?)"),
    ),
    "a window of a topic made here": (
        lambda s: (s.predicted(), s.app.topic("predicted").window(5).mean("predicton").to("w")),
        ("«predicton»", "(did you mean «prediction»?)", "predicted"),
    ),
    "a window of scores that nobody writes": (
        lambda s: s.model(learner=hr.LinearRegression()).evaluate(s.orders).window(5).mean("acuracy").to("w"),
        ("«acuracy»", "m-metrics", "mae"),
    ),
    "a sink's key that is not there": (
        lambda s: s.orders.to_table(s.dsn, "copy", key="ids"),
        ("«postgres:copy»", "«ids»", "(did you mean «id»?)"),
    ),
    "partitions by nothing": (
        lambda s: s.graded().to_parquet("files", partition_by="nme"),
        ("«parquet:files»", "«nme»", "«name»"),
    ),
    "retraining on rows without a feature": (lambda s: retrained(s), ("«weight»", "Its columns are: took, price")),
    "served predictions without the key of their grade": (
        lambda s: served(s, {"price": "price", "weight": "weight"}),
        ("serve('/prediction', log_to='predicted') of «m»", "takes no «id»", '"id": ("id", int)'),
    ),
    "served predictions whose key is of another type": (
        lambda s: served(s, {"price": "price", "weight": "weight", "id": "id"}),
        ("«id» as text", "is a number", '("id", int)'),
    ),
    "a table that is not there": (
        lambda s: s.model().learn(s.db["public.ordres"]),
        ("shop.public.ordres", "nobody writes", "(did you mean «shop.public.orders»?)"),
    ),
    "a topic that is not there": (
        lambda s: (s.predicted(), s.app.topic("predictd").to("x")),
        ("«predictd», which nobody writes", "(did you mean «predicted»?)"),
    ),
    "a query that is none": (
        lambda s: s.model(initial="selec * from x").predict(s.orders).to("p"),
        ("initial=", "selec"),
    ),
    "a query of a column that is not there": (
        lambda s: s.model(initial='select prise, weight, took from "shop.public.orders"').predict(s.orders).to("p"),
        ("initial=", "prise", "price"),
    ),
    "a query without a feature": (
        lambda s: s.model(initial='select weight, took from "shop.public.orders"').predict(s.orders).to("p"),
        ("«price»", "initial="),
    ),
    "a query for retraining that is none": (
        lambda s: retrain_by(s, "select * from nowhere"),
        ("retrain(rows=…)", "nowhere"),
    ),
}


def detector() -> Any:
    from river.drift import ADWIN

    return ADWIN()


def retrained(s: Shop) -> Any:
    model = s.model()
    graded = model.predict(s.orders).to("predicted").grade(s.labels, on="id", within="1 s").to("graded")
    return model.retrain(rows=graded.select("took", "price").last(5))


def retrain_by(s: Shop, query: str) -> None:
    model = s.model()
    model.predict(s.orders).to("p")
    model.retrain(rows=query)


def served(s: Shop, inputs: dict[str, Any]) -> None:
    model = s.model()
    model.predict(s.orders).to("predicted").grade(s.labels, on="id", within="1 min").to("graded")
    model.serve("/prediction", inputs=inputs, log_to="predicted")


@pytest.mark.parametrize("mistake", COLUMNS)
def test_a_mistake_in_columns_is_refused_before_anything_runs(mistake: str, shop: Database, tmp_path: Path) -> None:
    declare, words = COLUMNS[mistake]
    made = Shop(shop.dsn, tmp_path / "shop.headrace")
    declare(made)
    with pytest.raises(HeadraceError) as refused:
        made.app.run(until="caught-up")
    for word in words:
        assert word in str(refused.value)
    assert refused.value.exit_code == 2
    assert not (tmp_path / "shop.headrace").exists()
    assert shop.execute("select slot_name from pg_replication_slots where database = current_database()") == []


def test_what_is_right_is_not_refused(rows: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Every word once, on columns that are there, of ours too; and what is known only when rows come."""
    s = Shop(rows.dsn, tmp_path / "shop.headrace")
    priced = s.orders.filter(pc.field("price") > 0).with_columns(
        double=lambda batch: pc.multiply(batch.column("price"), 2),
        since=pc.field("__ts"),
        before=pc.field("__before"),
        note=hr.text("{name} at {price}"),
    )
    priced.select("id", "double", day="born").to("priced")
    priced.transform(lambda batch: batch.with_columns([("x", batch.column("price"))])).window(2).mean("x").to("x")
    s.app.topic("priced").window("1 min", by="day", time="day").agg(n=hr.metrics.count()).above(3).to("many")
    model = s.model(features=["price", "double", hr.category("name")])
    model.retrain(rows='select price, price * 2 as double, name, took from "shop.public.orders"', shadow=True)
    graded = model.predict(priced).to("predicted").grade(s.labels, on="id", within="1 min").to("graded")
    graded.above(3, column="shadow_error").to("worse")
    graded.window(5).agg(error=hr.metrics.mean("error"), late=hr.metrics.max("label_delay")).to("errors")
    s.app.topic("errors").below(0.5, column="error").drift("rows", detector()).to("drifts")
    model.evaluate(priced).window(3).mean("window_rmse").above(2).to("scores")
    model.serve("/p", inputs={**NAMED, "id": ("id", int)}, log_to="predicted")
    s.app.topic("m-training").to_parquet(tmp_path / "trainings", partition_by="status")
    s.app.topic("shop.public.orders.dlq").to_parquet(tmp_path / "letters", partition_by="stage")
    late = s.app.topic("late", append=True)
    late.select("id", twice=pc.multiply(pc.field("n"), 2)).window(2).mean("twice").to("twice")
    ready = SGDRegressor().fit([[1.0], [2.0]], [1.0, 2.0])
    s.app.model("ready", ready, features=["price"]).predict(s.orders).to("ready")
    with s.app.start() as running:
        running.append("late", [{"id": 1, "n": 2}, {"id": 2, "n": 3}])
        running.wait(timeout=60)
        assert [row["twice"] for row in s.app.topic("twice").read().to_arrow().to_pylist()] == [5.0]
    assert [text for text in caplog.messages if "wants" in text or "may be others" in text] == []


NAMED = {name: name for name in ("price", "double", "name")}


# -- rows that come later ---------------------------------------------------------------------------------------------


def test_a_topic_without_rows_is_checked_at_its_first(caplog: pytest.LogCaptureFixture) -> None:
    made = app()
    events = made.topic("events", append=True)
    kmeans(made, features=["amout", "name"]).learn(events)
    events.window(2).mean("amout").to("windows")
    events.filter(pc.field("amount") > 1).to("large")
    with made.start() as running:
        assert caplog.messages == [text for text in caplog.messages if "amout" not in text]
        running.append("events", [{"amount": 1.5, "name": "a"}, {"amount": 2.5, "name": "b"}])
        running.wait(timeout=30)
        running.append("events", [{"amount": 3.5, "name": "c"}])
        running.wait(timeout=30)
    said = [text for text in caplog.messages if "rows to come may be others" in text]
    assert len(said) == 2
    assert "the model «m» wants the column «amout», which events does not have (did you mean «amount»?)" in said[0]
    assert "Its columns are: amount, name" in said[0]
    assert "mean(…) of a window wants the column «amout»" in said[1]


def test_a_topic_with_rows_is_checked_at_the_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = tmp_path / "events.headrace"

    def made(feature: str, *, append: bool) -> hr.App:
        app = hr.App("events", log=log)
        app.model(feature, hr.KMeans(k=2), features=[feature]).learn(app.topic("events", append=append))
        return app

    with made("amount", append=True).start() as running:
        running.append("events", [{"amount": 1.5, "name": "a"}])
        running.append("events", [{"amount": 2, "name": "b"}])
        running.wait(timeout=30)
    # Nobody brings rows while it runs: what is not there does not come.
    with pytest.raises(DeclarationError, match=r"(?s)«name» is text, not a number.*hr.category"):
        made("name", append=False).run(until="caught-up")
    with pytest.raises(DeclarationError, match=r"«amout», which events does not have .did you mean «amount»"):
        made("amout", append=False).run(until="caught-up")
    # The program itself appends: rows to come may have it.
    caplog.clear()
    with made("amout", append=True).start() as running:
        assert any("did you mean «amount»?" in text and "may be others" in text for text in caplog.messages)
        running.append("events", [{"amount": 1.5, "name": "a", "amout": 1.0}])
        running.wait(timeout=30)
        assert running["amout"].learned == 1


def test_a_function_may_fail_without_rows(tmp_path: Path) -> None:
    made = app()
    events = made.topic("events", append=True).with_columns(share=lambda batch: [1 / batch.num_rows] * batch.num_rows)
    kmeans(made, features=lambda batch: batch.column("x").to_numpy() / batch.column("x")[0].as_py()).learn(events)
    with made.start() as running:
        running.append("events", [{"x": 1.5}])
        running.wait(timeout=30)
        assert (running["m"].learned, running.dead_letters) == (1, {})


# -- dead letters -----------------------------------------------------------------------------------------------------

LETTERS = """
import headrace as hr

app = hr.App("shop", log="shop.headrace")
db = app.postgres({dsn!r}, tables=r"public\\.orders")
model = app.model("m", hr.LinearRegression(), features=["price"], target="took")
model.learn(db["public.orders"])
"""


@pytest.fixture
def rows(shop: Database) -> Iterator[Database]:
    shop.execute("insert into orders (id, price, took) values (1, null, 1), (2, null, 2), (3, 1, 1), (4, 'NaN', 1)")
    try:
        yield shop
    finally:
        shop.drop_slots()
        shop.execute("delete from orders")
        for (name,) in shop.execute("select pubname from pg_publication"):
            shop.execute(f'drop publication "{name}"')


def test_the_first_dead_letter_of_each_kind_is_said_at_once(
    rows: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = tmp_path / "shop.headrace"
    made = Shop(rows.dsn, log)
    made.model(features=["price"]).learn(made.orders)
    with made.app.start() as running:
        running.wait(timeout=30)
        said = [text for text in caplog.messages if "dead letters" in text]
        assert [text.partition(": ")[2].partition(" · ")[0] for text in said] == [
            "the feature «price» is NULL",
            "the feature «price» is nan",
        ]
        assert "a row of shop.public.orders went to the dead letters (learn)" in said[0]
        assert f"headrace topics cat shop.public.orders.dlq --log {log}" in said[0]
        assert running.dead_letters == {"shop.public.orders.dlq": 3}
        rows.execute("insert into orders (id, price, took) values (5, null, 1)")
        running.wait(timeout=30)
        assert running.dead_letters == {"shop.public.orders.dlq": 4}
        assert len([text for text in caplog.messages if "dead letters" in text]) == 2
    # Those of an earlier run are none of this one's.
    made = Shop(rows.dsn, log)
    made.model(features=["price"]).learn(made.orders)
    made.app.run(until="caught-up", strict=True)
    rows.execute("insert into orders (id, price, took) values (6, null, 1)")
    made = Shop(rows.dsn, log)
    made.model(features=["price"]).learn(made.orders)
    with pytest.raises(HeadraceError, match=r"1 row went to dead letters: 1 in shop.public.orders.dlq") as refused:
        made.app.run(until="caught-up", strict=True)
    assert "headrace topics cat shop.public.orders.dlq --log" in str(refused.value)


def test_headrace_run_ends_with_its_dead_letters(rows: Database, command: Command, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(LETTERS.format(dsn=rows.dsn))
    code, words = command("run", "shop.py", "--until-caught-up")
    assert code == 0, words
    last = words.strip().splitlines()[-1]
    assert "3 rows went to dead letters: 3 in shop.public.orders.dlq" in last
    assert "headrace topics cat shop.public.orders.dlq --log shop.headrace" in last
    code, words = command("run", "shop.py", "--until-caught-up", "--strict")
    assert (code, "went to dead letters" in words) == (0, False)
    rows.execute("insert into orders (id, price, took) values (7, null, 1)")
    code, words = command("run", "shop.py", "--until-caught-up", "--strict")
    assert code == 1, words
    assert "1 row went to dead letters" in words.strip().splitlines()[-1]


# -- commands, files and the environment ------------------------------------------------------------------------------

Command = Callable[..., tuple[int, str]]
PIPELINE = """
import headrace as hr

app = hr.App("shop", log="shop.headrace")
app.model("m", hr.KMeans(k=2), features=["x"]).learn(app.topic("events", append=True))
"""
FILES = {
    "shop.py": PIPELINE,
    "other.py": PIPELINE.replace('"shop", log', '"other", log'),
    "none.py": "import headrace\n",
    "two.py": "import headrace as hr\na, b = hr.App('a'), hr.App('b')\n",
    "open.py": "x = (\n",
    "absent.py": "import nosuchmodule\n",
    "word.py": "import headrace as hr\napp = hr.App('a')\napp.postgress('x')\n",
    "name.py": "import headrace as hr\nap = hr.App('a')\nmodel = apq\n",
    "kind.py": "import headrace as hr\napp = hr.App('a')\napp.model('m', hr.KMeans, features=['x'])\n",
    "port.py": "import headrace as hr\napp = hr.App('a')\n"
    "app.postgres('host=127.0.0.1 port=1 password=pw', tables='x')\n",
    "dsn.py": "import headrace as hr\napp = hr.App('a')\napp.postgres('hots=127.0.0.1 password=pw', tables='x')\n",
    "folder.py": PIPELINE.replace("shop.headrace", "nowhere/shop.headrace"),
    "http.headrace.py": PIPELINE.replace("shop.headrace", "http://x/y"),
    "broker.py": PIPELINE.replace("shop.headrace", "kafka://broker"),
    "notes.txt": "hello",
    "text.headrace": "hello",
}
COMMANDS: dict[str, tuple[str, int, tuple[str, ...]]] = {
    "a file that is not there": ("run nofile.py", 2, ("nofile.py is not there", "Name the Python file")),
    "a folder as a file": ("run folder", 2, ("folder is a directory", "Name the Python file")),
    "a file without an app": ("run none.py", 2, ("none.py holds no App", 'app = hr.App("shop")')),
    "a file with two apps": ("run two.py", 2, ("holds 2 Apps", "two.py:NAME (a, b)")),
    "an app that is not in the file": ("run two.py:c", 2, ("no App named «c»", "It has: a, b")),
    "a file that is no Python": ("run notes.txt", 2, ("notes.txt is no Python file", "Name the file")),
    "an open bracket": ("run open.py", 2, ("open.py, line 1", "was never closed")),
    "a module that is not there": ("run absent.py", 2, ("No module named 'nosuchmodule'", "absent.py, line 1")),
    "a word that is not there": ("run word.py", 2, ("'postgress'", "(did you mean «postgres»?)", "word.py, line 3")),
    "a name that is not there": ("run name.py", 2, ("'apq'", "(did you mean «ap»?)", "name.py, line 3")),
    "a class as a learner": ("run kind.py", 2, ("KMeans is a class", "KMeans(…)", "kind.py, line 3")),
    "an option misspelled": ("run shop.py --untilcaughtup", 2, ("--untilcaughtup", "--until-caught-up")),
    "a command misspelled": ("rnu shop.py", 2, ("No such command 'rnu'", "run")),
    "a port where nobody listens": (
        "run port.py --start-timeout 0",
        1,
        ("127.0.0.1:1", "cannot be reached", "Connection refused"),
    ),
    "a word of libpq misspelled": ("run dsn.py --start-timeout 0", 2, ("connection string", "postgresql://")),
    "a log in no folder": ("run folder.py", 1, ("nowhere", "folder must exist")),
    "a log of no kind": ("run http.headrace.py", 2, ("http://x/y", "kafka://host:port, or memory://")),
    "a log on no broker": ("run broker.py", 2, ("«kafka://broker» names no broker", "kafka://host:port")),
    "a log that is a directory": ("run shop.py --log folder", 1, ("is a directory", "Name a file")),
    "a log that is a text": ("run shop.py --log text.headrace", 1, ("text.headrace", "not a log", "Restore a copy")),
    "a log without a name": ("run shop.py --log=", 2, ("--log names nothing", "--log PATH")),
    "a log of another pipeline": ("run other.py", 2, ("«m» in this log belongs to the app «shop»", "another name")),
    "which of two logs": ("topics list", 2, ("which log?", "shop.headrace, text.headrace", "--log PATH")),
    "a log that is not there": ("topics list --log no.headrace", 1, ("no log at", "no.headrace", "Check the path")),
    "a topic that is not there": ("topics cat event", 1, ("no topic «event»", "Its topics: events")),
    "rows of a directory": ("topics cat events --log folder", 1, ("is a directory", "Name a file")),
    "an offset that is no number": ("topics cat events --from x", 2, ("--from", "integer")),
    "a topic made twice": ("topics create events", 1, ("has the topic «events» already", "another name")),
    "a topic dropped that is not there": ("topics delete nosuch", 1, ("no topic «nosuch»", "topics list")),
    "a log copied onto itself": ("topics copy --from shop.headrace --to shop.headrace", 2, ("onto itself",)),
    "a model that is not there": ("models show n", 1, ("no model «n»", "Its models: m")),
    "a version that is not there": ("models rollback m 7", 1, ("no version «7»", "It has: 1")),
    "a place that is none": ("models rebuild m --at foo", 2, ("--at 'foo'", "0/1932A28:3")),
    "a row that is not there": ("explain events 99", 1, ("«events»", "99")),
    "SQL that is none": ("sql selec", 1, ("syntax error", "selec")),
    "SQL of a column that is not there": ("sql 'select y from events'", 1, ('column "y"', "Candidate bindings")),
    "a port beyond all": ("serve shop.py --port 99999", 2, ("port", "65535")),
    "no worker": ("serve shop.py --workers 0", 2, ("--workers", "greater than or equal to 1")),
    "a rate that is none": ("serve shop.py --rate fast", 2, ("rate", "fast")),
    "open to all without a key": ("serve shop.py --host 0.0.0.0", 2, ("0.0.0.0", "headrace keys create")),
    "a certificate that is not there": ("serve shop.py --tls-cert no.pem --tls-key no.key", 2, ("no.pem",)),
    "a certificate without its key": ("serve shop.py --tls-cert no.pem", 2, ("a certificate and its key", "--tls-key")),
    "a scope that is none": ("keys create --scope all", 2, ("--scope all", "predict, train")),
    "a key for no log": ("keys create --scope predict --log no.headrace", 0, ("no log at no.headrace yet",)),
    "rows of a file that is not there": ("produce events --file nofile.csv", 1, ("nofile.csv",)),
    "a level that is none": ("HEADRACE_LOG_LEVEL=loud run shop.py", 2, ("HEADRACE_LOG_LEVEL", "'loud'", "'debug'")),
    "a log of the environment": ("HEADRACE_LOG=no.headrace topics list", 1, ("no log at", "no.headrace")),
    "a port of the environment": ("HEADRACE_SERVE_PORT=abc serve shop.py", 2, ("port", "integer")),
    "settings that are not there": (
        "HEADRACE_KAFKA_CONFIG=no.conf topics list --log kafka://127.0.0.1:1",
        2,
        ("HEADRACE_KAFKA_CONFIG=no.conf", "No such file"),
    ),
}


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Run a command in this process, in a directory of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["headrace", *arguments])
        monkeypatch.setattr("sys.path", list(sys.path))
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), capfd.readouterr().err

    return run


@pytest.fixture(scope="module")
def first_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log with a model and two rows."""
    log = tmp_path_factory.mktemp("mistakes") / "shop.headrace"
    made = hr.App("shop", log=log)
    kmeans(made).learn(made.topic("events", append=True))
    with made.start() as running:
        running.append("events", [{"x": 1.0}, {"x": 2.0}])
        running.wait(timeout=30)
    return log


@pytest.mark.parametrize("mistake", COMMANDS)
def test_a_mistake_in_a_command_is_refused(
    mistake: str, command: Command, first_log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line, code, words = COMMANDS[mistake]
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "folder").mkdir()
    shutil.copy(first_log, tmp_path / "shop.headrace")
    arguments = shlex.split(line)
    while "=" in arguments[0]:
        monkeypatch.setenv(*arguments.pop(0).split("=", 1))
    elsewhere = mistake in ("which of two logs", "a log of the environment") or "--log" in line or "copy" in line
    if arguments[0] in ("topics", "models", "explain", "sql", "serve", "keys", "produce") and not elsewhere:
        arguments += ["--log", "shop.headrace"]
    ended, said = command(*arguments)
    for word in words:
        assert word in said, said
    assert ended == code
    assert "Traceback" not in said
    assert "pw" not in said


# -- what runs --------------------------------------------------------------------------------------------------------

RUNNING: dict[str, tuple[Callable[[Any], Any], tuple[str, ...]]] = {
    "rows for a topic of others": (lambda r: r.append("nope", [{"x": 1}]), ("«nope»", "append=True")),
    "a text as rows": (lambda r: r.append("events", "x"), ("str holds no rows", "Give Arrow")),
    "no rows": (lambda r: r.append("events", []), ("no rows", "dicts")),
    "a key that is not there": (lambda r: r.append("events", [{"x": 1}], key="y"), ("key='y'", "no such column")),
    "a model that is not there": (lambda r: r.tick("n"), ("no model «n»",)),
    "a version that is not there": (lambda r: r.rollback("m", 9), ("no version «9»",)),
    "a training that was not declared": (lambda r: r.retrain("m"), ("never trained anew", "model.retrain(rows=…)")),
    "a time as text": (lambda r: r.wait("soon"), ("wait(timeout='soon')", "a number")),
    "two features for one": (lambda r: r["m"].predict([[1, 2]]), ("«m» has 1 features", "rows of 2", "('x',)")),
    "a row without the feature": (lambda r: r["m"].predict([{"y": 1}]), ("no column «x»", "Its features: x")),
    "started twice": (lambda r: RUNS[0].start(), ("running already", "Stop it first")),
}
RUNS: list[hr.App] = []


@pytest.fixture(scope="module")
def running() -> Iterator[Any]:
    """A pipeline that survives all mistakes."""
    made = app()
    kmeans(made).learn(made.topic("events", append=True))
    RUNS.append(made)
    with made.start() as started:
        started.append("events", [{"x": 1.0}, {"x": 2.0}])
        started.wait(timeout=30)
        yield started


@pytest.mark.parametrize("mistake", RUNNING)
def test_a_mistake_while_it_runs_is_refused(mistake: str, running: Any) -> None:
    make, words = RUNNING[mistake]
    with pytest.raises(HeadraceError) as refused:
        make(running)
    for word in words:
        assert word in str(refused.value)
    assert running["m"].learned == 2
