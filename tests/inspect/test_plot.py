"""Pictures: what is drawn of rows, of bytes, of metrics; on which axes; and what is said where it cannot be."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import headrace as hr
from headrace.demos.mnist.digits import read_three
from headrace.errors import DeclarationError
from headrace.inspect import plot
from headrace.inspect.rows import Rows

matplotlib.use("agg")
from matplotlib import pyplot as plt

THREE = read_three()
ROW = {"id": 7, "pixels": THREE, "labels": 3}


@pytest.fixture(autouse=True)
def figure() -> Any:
    made = plt.figure()
    yield made
    plt.close("all")


DRAWN: dict[str, tuple[Any, str]] = {
    "a row": (ROW, "3"),
    "a prediction before the label": ({**ROW, "prediction": 8}, "8"),
    "bytes": (THREE, ""),
    "numbers": (list(THREE), ""),
    "an array": (np.frombuffer(THREE, np.uint8).reshape(28, 28), ""),
    "an Arrow table": (pa.Table.from_pylist([ROW]), "3"),
    "rows that were read": (Rows(pa.Table.from_pylist([ROW])), "3"),
    "a data frame": (pd.DataFrame([ROW]), "3"),
    "a series": (pd.DataFrame([ROW]).iloc[0], "3"),
}


@pytest.mark.parametrize("what", DRAWN)
def test_a_digit_is_drawn_with_what_is_known_of_it(what: str) -> None:
    row, title = DRAWN[what]
    axes = plot.digit(row)
    assert axes is plt.gca()
    assert axes.get_title() == title
    assert (np.asarray(axes.images[0].get_array()) == np.frombuffer(THREE, np.uint8).reshape(28, 28)).all()


def test_a_digit_on_given_axes_with_a_given_title() -> None:
    _, (left, right) = plt.subplots(1, 2)
    assert plot.digit({"image": THREE}, ax=left, title="three", pixels="image") is left
    assert left.get_title() == "three"
    assert not right.images


def test_scaled_pixels_are_as_dark() -> None:
    scaled = plot.digit(np.frombuffer(THREE, np.uint8) / 255)
    assert scaled.images[0].get_clim() == (0, 1)


NOT_DRAWN: dict[str, tuple[Any, str]] = {
    "no pixels": ({"id": 1}, "no «pixels»"),
    "no square": (bytes(10), "10 pixels are no square"),
    "nothing": (b"", "0 pixels"),
    "words": (["a", "b"], "numbers or bytes"),
    "two rows": (pa.Table.from_pylist([ROW, ROW]), "one row is drawn, not 2"),
}


@pytest.mark.parametrize("what", NOT_DRAWN)
def test_what_is_no_image_is_refused(what: str) -> None:
    row, words = NOT_DRAWN[what]
    with pytest.raises(DeclarationError) as error:
        plot.digit(row)
    assert words in str(error.value)


PREDICTED = pa.table({"prediction": [1, 2, 3, 4], "labels": [1, 0, 3, 4]})
CURVES: dict[str, tuple[Any, list[tuple[float, float]]]] = {
    "pairs": ([(10, 0.5), (20, 0.75)], [(10, 0.5), (20, 0.75)]),
    "nothing yet": ([], []),
    "predictions": (PREDICTED, [(1, 1.0), (2, 0.5), (3, 2 / 3), (4, 0.75)]),
    "rows of predictions": (Rows(PREDICTED), [(1, 1.0), (2, 0.5), (3, 2 / 3), (4, 0.75)]),
    "metrics": (pa.table({"learned": [5, 9], "rows": [1, 1], "accuracy": [0.1, 0.2]}), [(5, 0.1), (9, 0.2)]),
    "a data frame": (pd.DataFrame({"rows": [1, 2], "accuracy": [0.1, 0.2]}), [(1, 0.1), (2, 0.2)]),
}


@pytest.mark.parametrize("what", CURVES)
def test_an_accuracy_is_drawn_over_rows(what: str) -> None:
    given, points = CURVES[what]
    axes = plot.accuracy(given, label="it")
    assert axes is plt.gca()
    assert list(map(tuple, axes.lines[0].get_xydata())) == pytest.approx(points)
    assert axes.get_legend() is not None


def test_a_model_shows_its_metrics(tmp_path: Any) -> None:
    from sklearn.linear_model import SGDClassifier

    app = hr.App("curve", log=tmp_path / "c.headrace")
    rows = app.topic("rows", append=True)
    model = app.model("m", SGDClassifier(random_state=0), features=["x"], target="y", classes=[0, 1])
    model.learn(rows, every=4)
    model.evaluate([{"x": -1.0, "y": 0}, {"x": 1.0, "y": 1}])
    with app.start() as running:
        running.append("rows", [{"x": float(x), "y": int(x > 0)} for x in (-2, 3, -1, 2, -3, 1, -4, 5)])
    axes = plot.accuracy(model)
    assert [x for x, _ in axes.lines[0].get_xydata()] == [4, 8]
    assert axes.get_ylabel() == "accuracy"
    assert plot.accuracy(model, metric="macro_f1", ax=plt.figure().add_subplot()).get_ylabel() == "macro_f1"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        pytest.param(pa.table({"a": [1]}), "no curve of «accuracy»", id="no metrics"),
        pytest.param(pa.table({"prediction": [1]}), "no column «labels»", id="no labels"),
        pytest.param([(1, 2, 3)], "pairs", id="no pairs"),
    ],
)
def test_what_is_no_curve_is_refused(given: Any, words: str) -> None:
    with pytest.raises(DeclarationError) as error:
        plot.accuracy(given)
    assert words in str(error.value)


@pytest.mark.parametrize("call", ["plot.digit(bytes(4))", "plot.accuracy([(1, 0.5)])"])
def test_without_matplotlib_it_says_what_to_install(call: str) -> None:
    code = (
        "import sys\nsys.modules['matplotlib'] = None\nfrom headrace import plot, errors\n"
        f"try:\n    {call}\nexcept errors.MissingExtra as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "pip install 'headrace[plot]'" in done.stdout


def test_an_import_brings_no_matplotlib() -> None:
    code = "import sys\nfrom headrace import plot\nassert not any('matplotlib' in name for name in sys.modules)"
    subprocess.run([sys.executable, "-c", code], timeout=60, check=True)
