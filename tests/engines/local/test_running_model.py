"""`running["m"]`: predictions and probabilities of rows of the caller's own, in every form; and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sklearn.linear_model import SGDClassifier, SGDRegressor

import headrace as hr
from headrace.errors import DeclarationError, HeadraceError

LABELS = ["a", "b", "ö"]


def declared() -> hr.App:
    app = hr.App("t", log="memory://")
    rows = app.topic("rows", append=True)
    logistic = SGDClassifier(loss="log_loss", random_state=0)
    for name, learner, more in (
        ("m", logistic, {"target": "c", "classes": LABELS}),
        ("hinge", SGDClassifier(random_state=0), {"target": "c", "classes": LABELS}),
        ("number", SGDRegressor(), {"target": "z"}),
        ("cluster", hr.KMeans(k=2), {}),
    ):
        app.model(name, learner, features=["x", "y"], **more).learn(rows)
    return app


@pytest.fixture(scope="module")
def running() -> Iterator[hr.Running]:
    with declared().start() as running:
        with pytest.raises(HeadraceError, match=r"cannot predict row 0: not_ready, it has learned nothing yet"):
            running["m"].predict_proba([[1, 2]])
        rows = [{"x": i / 20, "y": -i / 20, "c": LABELS[i % 3], "z": float(i)} for i in range(21)]
        running.append("rows", rows)
        running.wait()
        yield running


GIVEN = {
    "lists": [[0.1, 0.2], [0.3, 0.4]],
    "array": np.array([[0.1, 0.2], [0.3, 0.4]]),
    "dicts": [{"x": 0.1, "y": 0.2}, {"y": 0.4, "x": 0.3}],
    "arrow": pa.table({"y": [0.2, 0.4], "x": [0.1, 0.3]}),
    "frame": pd.DataFrame({"x": [0.1, 0.3], "y": [0.2, 0.4]}),
}


@pytest.mark.parametrize("form", GIVEN)
def test_probabilities_are_the_estimators_own(running: hr.Running, form: str) -> None:
    model = running["m"]
    found = model.predict_proba(GIVEN[form])
    assert found.shape == (2, 3) and found.dtype == np.float64
    assert np.allclose(found.sum(axis=1), 1)
    assert model.classes == LABELS
    assert [model.classes[i] for i in found.argmax(axis=1)] == model.predict(GIVEN[form]).tolist()
    assert (found == model.predict_proba(GIVEN["lists"])).all()


@pytest.mark.parametrize("nothing", [[], np.zeros((0, 2)), pa.table({"x": pa.array([], pa.float64()), "y": [] * 0})])
def test_no_rows_have_no_predictions(running: hr.Running, nothing: Any) -> None:
    assert running["m"].predict(nothing).shape == (0,)
    assert running["m"].predict_proba(nothing).shape == (0, 3)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([[1, 2, 3]], "«m» has 2 features, got rows of 3"),
        ([{"x": 1, "y": 2}, {"x": 1, "y": None}], "cannot predict row 1: invalid, the feature «y» is NULL"),
        ([{"x": 1}], "there is no column «y»\n  → Its features: x, y."),
        ([[float("nan"), 1]], "row 0: invalid, the feature «x» is nan"),
        ([[1, float("inf")]], "row 0: invalid, the feature «y» is inf"),
        ([{"x": "q", "y": 1}], "the feature «x» is text, not a number"),
        ("text", "«m» takes no str of this kind"),
        (None, "«m» takes no NoneType"),
        ([["a", "b"]], "«m» takes no list"),
    ],
)
def test_a_row_without_a_prediction_says_which_and_why(running: hr.Running, rows: Any, said: str) -> None:
    for ask in (running["m"].predict, running["m"].predict_proba):
        with pytest.raises(HeadraceError) as caught:
            ask(rows)
        assert said in str(caught.value)


@pytest.mark.parametrize("name", ["hinge", "number", "cluster"])
def test_a_learner_without_probabilities_says_so(running: hr.Running, name: str) -> None:
    with pytest.raises(DeclarationError, match=f"«{name}» gives no probabilities: .* has no predict_proba"):
        running[name].predict_proba([[1, 2]])
    if name != "hinge":
        assert running[name].classes == []
