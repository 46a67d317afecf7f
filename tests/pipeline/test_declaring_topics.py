"""Topics of others as a user declares them: what the plan says of their order, and what is refused at once."""

from __future__ import annotations

import pytest

import headrace as hr
from headrace.errors import DeclarationError
from headrace.plan.plan import ARRIVAL

KAFKA = "kafka://127.0.0.1:9092"


def learner(app: hr.App, *topics: str) -> None:
    model = app.model("m", hr.KMeans(k=2), features=["x"])
    for topic in topics:
        model.learn(app.topic(topic))


def test_the_plan_says_which_order_foreign_topics_have() -> None:
    app = hr.App("a", log=KAFKA)
    learner(app, "theirs", "written.here")
    app.topic("theirs").to("written.here")
    plan = app.plan()
    assert plan.foreign == ("theirs",)
    assert f"topic theirs: {ARRIVAL}" in str(plan)
    assert plan.to_dict()["topics"] == [{"topic": "theirs", "kafka": KAFKA, "order": ARRIVAL}]


@pytest.mark.parametrize(
    ("transactions", "words"),
    [
        (True, "in commit order, by its transaction topic"),
        (False, ARRIVAL),
        (None, "where a transaction topic is; else"),
    ],
)
def test_the_plan_says_what_orders_debeziums_topics(transactions: bool | None, words: str) -> None:
    app = hr.App("a", log=KAFKA)
    db = app.debezium(prefix="shop", tables=r"public\..*", transactions=transactions)
    app.model("m", hr.KMeans(k=2), features=["x"]).learn(db["public.orders"])
    assert words in str(app.plan())
    assert app.plan().foreign == ()


def test_an_embedded_log_has_no_foreign_topics() -> None:
    app = hr.App("a", log="a.headrace")
    learner(app, "nobody.writes.this")
    assert app.plan().foreign == ()


def test_mistakes_are_refused() -> None:
    app = hr.App("a", log="a.headrace")
    with pytest.raises(DeclarationError, match="needs to know where Kafka is"):
        app.debezium(prefix="shop")
    app = hr.App("a", log=KAFKA)
    db = app.debezium(prefix="shop", tables=r"public\.orders")
    with pytest.raises(DeclarationError, match="no pattern"):
        db["public.customers"]
    with pytest.raises(DeclarationError, match="two sources"):
        app.debezium(prefix="shop")
    with pytest.raises(DeclarationError, match="not a regular expression"):
        app.debezium(prefix="other", tables="(")
    for wrong in ("jsn", "avro+colour", "json+json+schema"):
        with pytest.raises(DeclarationError, match=r"there is no format «"):
            app.topic("t", format=wrong)
        with pytest.raises(DeclarationError, match=r"there is no format «"):
            hr.App("b", log=KAFKA, format=wrong)
    for location in ("kafka://", "kafka://host", "kafka://ann:secret@host:9092", "kafka://host:9092?colour=red"):
        with pytest.raises(DeclarationError) as refusal:
            learned = hr.App("b", log=location)
            learner(learned, "t")
            learned.start()
        assert "secret" not in str(refusal.value)
