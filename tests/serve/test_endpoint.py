"""The seed's API: one row asked by GET, one answer; what is wrong with a request; training."""

from __future__ import annotations

import re
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import headrace as hr
from headrace.errors import DeclarationError
from headrace.serve.settings import ServeSettings
from tests.waiting import wait_until

from .client import FISH, SEEDS, Client, fish, serving


def test_it_answers_as_the_seed_does(tmp_path: Path) -> None:
    with serving(fish(tmp_path / "fish.headrace"), FISH) as (running, client):
        got = client.get("/prediction", **SEEDS)
        exact = running["weight"].predict([{"Length": 86.37, "Height": 18.74, "Species": "salmon"}])[0]
        assert got.status == 200
        assert list(got.json) == ["Weight", "ModelTime"]
        assert got.json["Weight"] == round(float(exact), 4)
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", got.json["ModelTime"])
        assert got.headers["headrace-model"] == "weight"
        assert got.headers["headrace-version"] == "1"
        assert got.headers["headrace-position"] == running["weight"].position


def test_it_answers_with_what_was_just_appended(tmp_path: Path) -> None:
    with serving(fish(tmp_path / "fish.headrace")) as (running, client):
        for row in FISH:
            running.append("measured", [row])
            got = client.get("/prediction", **SEEDS)
            assert got.headers["headrace-position"] == running["weight"].position


NUMBER = "unable to parse"
WRONG: dict[str, tuple[dict[str, Any], list[tuple[str, str]]]] = {
    "a field is missing": ({"length": 1, "species": "salmon"}, [("height", "Field required")]),
    "nothing is given": ({}, [("length", "required"), ("height", "required"), ("species", "required")]),
    "a word for a number": (SEEDS | {"length": "long"}, [("length", NUMBER)]),
    "two are wrong": (SEEDS | {"length": "", "height": "x"}, [("length", NUMBER), ("height", NUMBER)]),
    "not a number": (SEEDS | {"length": "nan"}, [("length", "finite")]),
    "infinite": (SEEDS | {"length": "1e999"}, [("length", "finite")]),
    "as Python writes numbers": (SEEDS | {"length": "1_000"}, [("length", NUMBER)]),
    "a species that is not known": (SEEDS | {"species": "pike"}, [("species", "'pike', which is not known")]),
    "a field of another API": (SEEDS | {"width": 3}, [("width", "not permitted")]),
    "no LSN": (SEEDS | {"at_least": "soon"}, [("at_least", "LSN")]),
    "an LSN where no database is": (SEEDS | {"at_least": "0/1"}, [("at_least", "no database")]),
    "a topic that is not read": (SEEDS | {"at_least": "other:1"}, [("at_least", "does not read")]),
    "too long a deadline": (SEEDS | {"deadline": 1e9}, [("deadline", "from 0 to 60")]),
}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with serving(fish(tmp_path_factory.mktemp("served") / "fish.headrace"), FISH) as (_, client):
        yield client


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_told_by_field(client: Client, case: str) -> None:
    query, expected = WRONG[case]
    got = client.get("/prediction", **query)
    assert got.status == 422
    found = [(row["loc"], row["msg"]) for row in got.json["detail"]]
    assert [loc for loc, _ in found] == [["query", name] for name, _ in expected]
    for (_, told), (_, part) in zip(found, expected, strict=True):
        assert part in told


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/prediction?length=1&length=2&height=1&species=salmon", 422),
        ("/prediction?length=%FF&height=1&species=salmon", 422),
        ("/prediction/", 404),
        ("/nothing", 404),
        ("/v2/models/other", 404),
        ("/train", 405),
    ],
)
def test_other_requests_are_refused(client: Client, target: str, status: int) -> None:
    assert client.get(target).status == status


@pytest.mark.parametrize(("unseen", "status"), [("error", 422), ("ignore", 200), ("grow", 200)])
def test_an_unknown_category_is_what_the_declaration_says(unseen: Any, status: int) -> None:
    app = hr.App("fish", log="memory://")
    known = None if unseen == "grow" else ["salmon", "walleye"]
    features = ["Length", "Height", hr.category("Species", known=known, unseen=unseen)]
    model = app.model("weight", hr.LinearRegression(), features=features, target="Weight")
    model.learn(app.topic("measured", append=True)).serve()
    with serving(app, FISH) as (running, client):
        got = client.get("/prediction", **(SEEDS | {"species": "pike"}))
        assert got.status == status
        if status == 200:
            row = {"Length": 86.37, "Height": 18.74, "Species": "pike"}
            assert got.json["Weight"] == float(running["weight"].predict([row])[0])


def test_a_model_that_has_learned_nothing_says_so(tmp_path: Path) -> None:
    with serving(fish(tmp_path / "fish.headrace")) as (running, client):
        got = client.get("/prediction", **SEEDS)
        assert (got.status, got.headers["retry-after"]) == (503, "1")
        assert client.get("/v2/health/ready").status == 503
        assert client.get("/v2/health/live").status == 200
        for row in FISH:
            running.append("measured", [row])
        assert client.get("/prediction", **SEEDS).status == 200
        assert client.get("/v2/health/ready").status == 200


def test_answers_are_logged_and_go_with_their_keys(tmp_path: Path) -> None:
    inputs = {"length": "Length", "height": "Height", "species": "Species", "fish": ("Fish_Id", int)}
    app = fish(tmp_path / "fish.headrace", log_to="answered", inputs=inputs)
    with serving(app, FISH) as (running, client):
        for number in (7, 8):
            assert client.get("/prediction", **SEEDS, fish=number).status == 200
        assert client.get("/prediction", **SEEDS, fish="seven").status == 422
        rows = app.topic("answered").read().to_arrow()
        assert rows.column("Fish_Id").to_pylist() == [7, 8]
        assert rows.column("Length").to_pylist() == [86.37, 86.37]
        assert (
            rows.column("prediction").to_pylist()
            == running["weight"].predict([{"Length": 86.37, "Height": 18.74, "Species": "salmon"}] * 2).tolist()
        )
        assert set(rows.column("status").to_pylist()) == {"ok"}
        assert set(rows.column("model_position").to_pylist()) == {running["weight"].position}


def test_at_least_waits_until_it_is_learned(tmp_path: Path) -> None:
    with serving(fish(tmp_path / "fish.headrace"), FISH[:4]) as (running, client):
        got = client.get("/prediction", **SEEDS, at_least="measured:3")
        assert (got.status, got.headers["headrace-position"]) == (200, running["weight"].position)
        late = client.get("/prediction", **SEEDS, at_least="measured:4", deadline=0.05)
        assert late.status == 504
        assert late.json["position"] == running["weight"].position
        assert "within 0.05 s" in late.json["detail"]
        answers: list[Any] = []
        other = Client(client.url)
        header = {"Headrace-At-Least": "measured:4"}
        asking = threading.Thread(target=lambda: answers.append(other.get("/prediction", header, **SEEDS)))
        asking.start()
        running.append("measured", [FISH[4]])
        asking.join(10)
        assert answers[0].status == 200
        assert answers[0].headers["headrace-position"] == running["weight"].position
        other.close()


def retrained(log: Path, learner: Any = None) -> hr.App:
    """A model that is trained when somebody asks, on every row of its topic."""
    app = hr.App("fish", log=log)
    measured = app.topic("measured", append=True)
    features = ["Length", "Height", hr.category("Species", known=["salmon", "walleye"])]
    model = app.model("weight", learner or hr.LinearRegression(), features=features, target="Weight")
    model.predict(measured).to("answers")
    model.retrain(rows=measured.all())
    model.serve()
    return app


def test_train_begins_a_new_version(tmp_path: Path) -> None:
    with serving(retrained(tmp_path / "fish.headrace"), FISH) as (_, client):
        assert client.get("/prediction", **SEEDS).status == 503
        got = client.post("/train")
        assert got.status == 200, got.body
        assert (got.json["model"], got.json["version"], got.json["rows"]) == ("weight", 2, 6)
        after = client.get("/prediction", **SEEDS)
        assert (after.status, after.headers["headrace-version"]) == (200, "2")
        assert after.json["ModelTime"] == got.json["ModelTime"]
        assert client.post("/train", model="other").status == 404
        # The same rows again: nothing new comes of them, and the old version stays.
        again = client.post("/train")
        assert again.status == 409
        assert "weight" in again.json["detail"]
        assert client.get("/prediction", **SEEDS).headers["headrace-version"] == "2"


class Slow(hr.LinearRegression):
    """A regression whose training takes as long as a test wants."""

    traits = replace(hr.LinearRegression.traits, offers=hr.LinearRegression.traits.offers | {"fit"})
    begun = threading.Event()
    may_end = threading.Event()

    def __deepcopy__(self, memo: Any) -> Slow:
        copied = Slow()
        copied.restore(self.state())
        return copied

    def fit(self, X: Any, y: Any = None) -> None:
        Slow.begun.set()
        assert Slow.may_end.wait(20)
        super().learn(X, y)


def test_a_model_that_is_being_trained_is_busy(tmp_path: Path) -> None:
    Slow.begun.clear()
    Slow.may_end.clear()
    with serving(retrained(tmp_path / "fish.headrace", Slow()), FISH) as (_, client):
        other = Client(client.url)
        answers: list[Any] = []
        asking = threading.Thread(target=lambda: answers.append(other.post("/train")))
        asking.start()
        try:
            wait_until(Slow.begun.is_set)
            busy = client.post("/train")
            assert busy.status == 409
            assert "is being trained" in busy.json["detail"]
            assert busy.json["model"] == "weight"
            # Nobody waits for it: the server answers, from the model that is there.
            assert client.get("/v2/health/live").status == 200
            assert client.get("/models").json["models"][0]["version"] == 1
        finally:
            Slow.may_end.set()
            asking.join(20)
            other.close()
        assert answers[0].status == 200


WRONG_DECLARATIONS: dict[str, tuple[dict[str, Any], str]] = {
    "a path of the server's": ({"path": "/metrics"}, "not a path"),
    "no path": ({"path": "prediction"}, "not a path"),
    "a feature is missing": ({"inputs": {"l": "Length"}}, "0 parameters are the feature «Height»"),
    "a feature twice": ({"inputs": {"a": "Length", "b": "Length", "c": "Height", "d": "Species"}}, "2 parameters"),
    "a parameter of ours": ({"inputs": {"at_least": "Length", "b": "Height", "c": "Species"}}, "Headrace's own"),
    "a type that is none": ({"inputs": {"f": ("Fish_Id", bytes)}}, "inputs="),
    "too many digits": ({"digits": 40}, "digits=40"),
    "two of one name": ({"output": "ModelTime"}, "output="),
}


@pytest.mark.parametrize("case", WRONG_DECLARATIONS)
def test_a_wrong_declaration_is_refused(case: str) -> None:
    options, told = WRONG_DECLARATIONS[case]
    app = hr.App("fish", log="memory://")
    model = app.model(
        "weight", hr.LinearRegression(), features=["Length", "Height", hr.category("Species")], target="Weight"
    )
    with pytest.raises(DeclarationError, match=re.escape(told)):
        model.serve(**options)


def test_features_that_fit_no_query_are_refused() -> None:
    app = hr.App("digits", log="memory://")
    model = app.model("digits", hr.KMeans(k=2), features=[hr.image("pixels", shape=(2, 2))])
    with pytest.raises(DeclarationError, match="fit no query"):
        model.serve()


def test_two_models_have_two_paths() -> None:
    app = hr.App("two", log="memory://")
    app.model("a", hr.KMeans(k=2), features=["x"]).serve()
    with pytest.raises(DeclarationError, match="two models are served"):
        app.model("b", hr.KMeans(k=2), features=["x"]).serve()


def test_a_port_that_is_taken_stops_nothing_half_done(tmp_path: Path) -> None:
    with serving(fish(tmp_path / "one.headrace")) as (running, _):
        assert running.server is not None
        with pytest.raises(hr.errors.HeadraceError, match="cannot listen"):
            fish(tmp_path / "two.headrace").start(serve=ServeSettings(port=running.server.port))
        assert not (tmp_path / "two.headrace").exists()
