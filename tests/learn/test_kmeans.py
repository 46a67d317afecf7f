"""K-means: the two published semantics, the update rules by hand, nearest centres to the last bit, the start."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from headrace.errors import BadRows, DeclarationError, LearnError
from headrace.learn.kmeans import BLOCK_ROWS, KMeans, nearest, plus_plus

IRIS = resources.files("headrace.demos.iris") / "data"
FILES = ("train1.csv", "train2.csv", "test.csv", "expected.json")


def rows(name: str) -> npt.NDArray[np.float64]:
    lines = (IRIS / name).read_text().splitlines()[1:]
    return np.array([[float(cell) for cell in line.split(",")] for line in lines])


def features(name: str) -> npt.NDArray[np.float64]:
    return np.ascontiguousarray(rows(name)[:, :4])


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((IRIS / "expected.json").read_text())
    return loaded


# -- what others have published ----------------------------------------------------------------------------------


def test_the_shipped_data_is_the_real_data(shared_data: Path) -> None:
    for name in FILES:
        assert (IRIS / name).read_bytes() == (shared_data / "iris" / name).read_bytes()


def test_flink_ml_online_kmeans(expected: dict[str, Any]) -> None:
    published, labels = expected["flink"], np.array(expected["labels"])
    cut = published["global_batch_size"]
    model = KMeans(3, initial_centers=expected["initial_centers"], initial_weights=expected["initial_weights"])
    pending = np.empty((0, 4))
    correct = []
    for name, stage in (("train1", "after_train1"), ("train2", "after_train2"), ("train2", "after_train2_again")):
        pending = np.concatenate([pending, features(f"{name}.csv")])
        while len(pending) >= cut:
            model.learn(pending[:cut])
            pending = pending[cut:]
        predicted = model.predict(features("test.csv"))
        assert predicted.tolist() == published[stage]
        correct.append(int((predicted == labels).sum()))
    assert correct == published["correct"] == [5, 7, 9]


def test_spark_mllib_streaming_kmeans(expected: dict[str, Any]) -> None:
    published, labels = expected["spark"], np.array(expected["labels"])
    names = np.array([1, 0, 2])  # cluster 0 stands for label 1, and 1 for 0
    model = KMeans(3, initial_centers=expected["initial_centers"], decay=1, split_dying=True)
    correct = []
    for name, stage in (("train1", "after_train1"), ("train2", "after_train2"), ("train2", "after_train2_again")):
        model.learn(features(f"{name}.csv"))
        after_data = model.predict(features("test.csv"))
        model.learn(np.empty((0, 4)))
        predicted = model.predict(features("test.csv"))
        assert predicted.tolist() == published[stage]
        if name == "train2":
            assert after_data.tolist() == published[stage]
        correct.append(int((names[predicted] == labels).sum()))
    assert correct == [5, 8, 11]


# -- the update, by hand -----------------------------------------------------------------------------------------


def test_weights_are_decayed_once_an_update() -> None:
    model = KMeans(2, initial_centers=[[0.0], [10.0]], initial_weights=[4, 8], decay=0.5)
    model.learn(np.array([[2.0], [4.0]]))
    assert model.weights.tolist() == [4.0, 4.0]
    assert model.centers.tolist() == [[1.5], [10.0]]  # (2 * 0 + 2 * 3) / 4
    model.learn(np.empty((0, 1)))
    assert model.weights.tolist() == [2.0, 2.0]
    assert model.centers.tolist() == [[1.5], [10.0]]


def test_weights_are_decayed_once_a_row() -> None:
    model = KMeans(2, initial_centers=[[0.0], [10.0]], initial_weights=[4, 8], decay=0.5, time_unit="points")
    model.learn(np.array([[2.0], [4.0]]))
    assert model.weights.tolist() == [3.0, 2.0]
    model.learn(np.empty((0, 1)))
    assert model.weights.tolist() == [3.0, 2.0]


def test_without_decay_a_centre_is_the_mean_of_all_its_rows() -> None:
    X = np.random.default_rng(1).normal(size=(500, 3))
    model = KMeans(1, initial_centers=[[0, 0, 0]], decay=1)
    for at in range(0, 500, 7):
        model.learn(X[at : at + 7])
    np.testing.assert_allclose(model.centers[0], X.mean(axis=0), rtol=1e-12)
    assert model.weights.tolist() == [500.0]


def test_with_decay_0_only_the_latest_cut_counts() -> None:
    model = KMeans(2, initial_centers=[[0.0], [10.0]], initial_weights=[1000, 1000])
    model.learn(np.array([[1.0], [3.0]]))
    assert model.centers.tolist() == [[2.0], [10.0]]
    assert model.weights.tolist() == [2.0, 0.0]


def test_a_dying_cluster_takes_half_of_the_largest() -> None:
    model = KMeans(3, initial_centers=[[0.5, -300.0], [50.0, 0.0], [90.0, 0.0]], decay=1, split_dying=True)
    model.learn(np.array([[0.5, -300.0], [0.5, -300.0], [90.0, 0.0]]))
    apart = np.array([1e-14, 300 * 1e-14])
    assert model.weights.tolist() == [1.0, 1.0, 1.0]
    assert (model.centers[0] == np.array([0.5, -300.0]) + apart).all()
    assert (model.centers[1] == np.array([0.5, -300.0]) - apart).all()
    assert model.centers[2].tolist() == [90.0, 0.0]


def test_among_equals_the_first_is_split_and_the_first_takes_half() -> None:
    model = KMeans(4, initial_centers=[[0.0], [10.0], [20.0], [30.0]], decay=1, split_dying=True)
    model.learn(np.array([[10.0], [20.0]]))
    assert model.weights.tolist() == [0.5, 0.5, 1.0, 0.0]
    model.learn(np.empty((0, 0)))  # an empty update splits the next
    assert model.weights.tolist() == [0.5, 0.5, 0.5, 0.5]
    assert model.centers.ravel().tolist() == [10.0 - 1e-13, 10.0 + 1e-13, 20.0 + 2e-13, 20.0 - 2e-13]


def test_nothing_is_split_where_nothing_dies_or_lives() -> None:
    model = KMeans(2, initial_centers=[[0.0], [1.0]], split_dying=True)
    model.learn(np.empty((0, 1)))
    assert model.centers.tolist() == [[0.0], [1.0]]
    faint = KMeans(2, initial_centers=[[0.0], [1.0]], initial_weights=[1, 1e-8], decay=1, split_dying=True)
    faint.learn(np.empty((0, 1)))
    assert faint.weights.tolist() == [1.0, 1e-8]


# -- nearest, to the last bit ------------------------------------------------------------------------------------


def by_definition(X: npt.NDArray[np.float64], centers: npt.NDArray[np.float64]) -> list[int]:
    """Python's own arithmetic, one number after the other."""
    labels = []
    for row in X.tolist():
        distances = []
        for center in centers.tolist():
            total = 0.0
            for a, b in zip(row, center, strict=True):
                total += (a - b) * (a - b)
            distances.append(total)
        labels.append(distances.index(min(distances)))
    return labels


def grids(k: int, d: int) -> dict[str, tuple[Any, Any]]:
    rng = np.random.default_rng(k * 1000 + d)
    centers = rng.normal(size=(k, d))
    X = rng.normal(size=(60, d))
    halfway = (centers[rng.integers(0, k, 60)] + centers[rng.integers(0, k, 60)]) / 2
    twins = np.repeat(centers[: (k + 1) // 2], 2, axis=0)[:k]
    return {
        "plain": (X, centers),
        "halfway": (halfway, centers),
        "whole numbers, many ties": (rng.integers(-2, 3, (60, d)) * 1.0, rng.integers(-2, 3, (k, d)) * 1.0),
        "centres twice": (X, twins),
        "centres apart by one bit": (X, np.nextafter(twins, np.tile([-9.0, 9.0], k)[:k, None])),
        "far from zero": (X + 1e9, centers + 1e9),
        "one column is large": (X * np.r_[1e12, np.ones(d - 1)], centers * np.r_[1e12, np.ones(d - 1)]),
        "one row is far": (np.concatenate([X, X[:1] * 1e20]), centers),
        "tiny": (X * 1e-170, centers * 1e-170),
        "tiny in single precision": (X * 1e-23, centers * 1e-23),
        "large": (X * 1e30, centers * 1e30),
        "too large for squares": (X * 1e200, centers * 1e200),
        "the largest": (np.sign(X) * np.finfo(float).max, np.sign(centers) * np.finfo(float).max),
    }


@pytest.mark.parametrize(("k", "d"), [(2, 1), (3, 4), (8, 8), (20, 3), (7, 10), (9, 8), (30, 33), (1, 5), (64, 2)])
@pytest.mark.parametrize("kind", grids(2, 1))
def test_nearest_is_what_direct_differences_say(k: int, d: int, kind: str) -> None:
    X, centers = (np.ascontiguousarray(grid) for grid in grids(k, d)[kind])
    with np.errstate(all="raise", under="ignore"):  # nearest keeps its own overflows to itself
        labels = nearest(X, centers)
    assert labels.tolist() == by_definition(X, centers)
    assert labels.dtype == np.int64


def test_nearest_of_many_rows_is_that_of_each() -> None:
    rng = np.random.default_rng(5)
    X, centers = rng.normal(size=(3 * BLOCK_ROWS + 11, 24)), rng.normal(size=(40, 24))
    alone = [int(nearest(X[i : i + 1], centers)[0]) for i in range(0, len(X), 17)]
    assert nearest(X, centers)[::17].tolist() == alone
    few = nearest(X[:, :2].copy(), centers[:3, :2].copy())
    assert few.tolist() == [int(nearest(row[None, :2].copy(), centers[:3, :2].copy())[0]) for row in X]


@pytest.mark.parametrize("d", [4, 20])
def test_a_sum_adds_row_after_row(d: int) -> None:
    X = np.random.default_rng(3).normal(size=(700, d)) * 1e3
    centers = X[:3].copy()
    model = KMeans(3, initial_centers=centers)
    part = model.partial(X)
    sums = np.zeros((3, d))
    for row, label in zip(X, nearest(X, centers), strict=True):
        sums[label] += row
    assert part["sums"].tobytes() == sums.tobytes()  # type: ignore[union-attr]


# -- the start ---------------------------------------------------------------------------------------------------


def test_it_waits_for_k_different_rows() -> None:
    model = KMeans(3, decay=1)
    assert not model.ready
    assert model.width is None
    model.learn(np.empty((0, 0)))
    for value in (1.0, 1.0, 2.0, 1.0):
        model.learn(np.array([[value, 0.0]]))
    assert not model.ready
    assert model.width == 2
    state = model.state()
    assert sorted(zip(state["waiting"].tolist(), state["waiting_counts"].tolist(), strict=True)) == [  # type: ignore[union-attr]
        ([1.0, 0.0], 3),
        ([2.0, 0.0], 1),
    ]
    with pytest.raises(LearnError, match="fewer than 3 different rows"):
        model.predict(np.array([[1.0, 0.0]]))
    model.learn(np.array([[5.0, 0.0]]))
    assert model.ready
    assert sorted(zip(model.centers[:, 0].tolist(), model.weights.tolist(), strict=True)) == [(1, 3), (2, 1), (5, 1)]


def test_waiting_takes_no_more_room_than_k_rows() -> None:
    model = KMeans(3)
    for _ in range(5):
        model.learn(np.ones((10_000, 2)))
    assert model.state()["waiting"].tolist() == [[1.0, 1.0]]  # type: ignore[union-attr]
    assert model.state()["waiting_counts"].tolist() == [50_000]  # type: ignore[union-attr]


def test_waiting_rows_weigh_in_the_start() -> None:
    model = KMeans(3, decay=1)
    model.learn(np.zeros((10_000, 1)))
    model.learn(np.array([[1.0], [2.0], [3.0]]))
    assert model.centers[0].tolist() == [0.0]
    assert model.weights.tolist()[0] == 10_000.0


def test_parts_before_the_start_are_copies_of_the_rows() -> None:
    X = np.arange(6.0).reshape(3, 2)
    part = KMeans(2).partial(X)
    X[:] = 0
    assert part["rows"].tolist() == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]  # type: ignore[union-attr]


def test_the_start_finds_clusters_and_follows_its_seed() -> None:
    rng = np.random.default_rng(8)
    X = np.concatenate([rng.normal(size=(100, 2)) + place for place in ([0, 0], [50, 0], [0, 50])])
    models = [KMeans(3, seed=seed) for seed in (0, 0, 1)]
    for model in models:
        model.learn(X)
        assert len(set(model.predict(X)[[0, 100, 200]].tolist())) == 3
    assert models[0].centers.tobytes() == models[1].centers.tobytes()
    assert plus_plus(X, np.ones(300, np.int64), 3, 0).tolist() != plus_plus(X, np.ones(300, np.int64), 3, 1).tolist()


def test_the_start_draws_by_counts_and_distances() -> None:
    X, counts = np.array([[0.0], [1.0], [1e200]]), np.array([1, 10**9, 1])
    assert plus_plus(X, counts, 1, seed=0).tolist() == [[1.0]]
    assert plus_plus(X, counts, 2, seed=0).tolist() == [[1.0], [1e200]]
    assert sorted(plus_plus(X, counts, 9, seed=0).ravel().tolist()) == [0.0, 1.0, 1e200]


# -- what it refuses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"k": 0}, "k is 0"),
        ({"k": 2.0}, r"k is 2\.0"),
        ({"k": True}, "k is True"),
        ({"initial_centers": [[1, 2]]}, r"shape \(1, 2\)"),
        ({"initial_centers": [1, 2]}, r"shape \(2,\)"),
        ({"initial_centers": [[], []]}, r"shape \(2, 0\)"),
        ({"initial_centers": [[1], [2, 3]]}, "not an array of numbers"),
        ({"initial_centers": [["a"], ["b"]]}, "not an array of numbers"),
        ({"initial_centers": [[1.0], [np.nan]]}, "NaN or infinity"),
        ({"initial_weights": [1, 1]}, "without initial_centers"),
        ({"initial_centers": [[1], [2]], "initial_weights": [1, 2, 3]}, "initial_weights"),
        ({"initial_centers": [[1], [2]], "initial_weights": [1, -1]}, "initial_weights"),
        ({"initial_centers": [[1], [2]], "initial_weights": [1, np.inf]}, "NaN or infinity"),
        ({"decay": -0.1}, "decay"),
        ({"decay": 1.1}, "decay"),
        ({"decay": float("nan")}, "decay"),
        ({"decay": "1"}, "decay"),
        ({"decay": True}, "decay"),
        ({"time_unit": "seconds"}, "time_unit"),
        ({"seed": -1}, "seed"),
        ({"seed": None}, "seed"),
    ],
)
def test_a_wrong_declaration_is_refused(declared: dict[str, Any], message: str) -> None:
    with pytest.raises(DeclarationError, match=message) as refusal:
        KMeans(**{"k": 2, **declared})
    assert refusal.value.advice


def test_bad_rows_are_refused_by_their_indexes() -> None:
    model = KMeans(2, initial_centers=[[0.0, 0.0], [1.0, 1.0]])
    before = model.centers
    with pytest.raises(BadRows) as refusal:
        model.learn(np.array([[0, 0], [np.nan, 0], [1, 1], [0, -np.inf]]))
    assert refusal.value.rows == (1, 3)
    for wrong in (np.ones((2, 3)), np.ones(2), np.array([["1", "2"]]), np.empty((2, 0))):
        for call in (model.learn, model.predict, model.partial):
            with pytest.raises(BadRows):
                call(wrong)
    assert (model.centers == before).all()
    with pytest.raises(BadRows):
        KMeans(2).learn(np.empty((3, 0)))


def test_other_numbers_and_layouts_are_taken() -> None:
    plain = np.arange(12.0).reshape(6, 2)
    for same in (plain.astype(np.int32), plain.astype(np.float32), np.asfortranarray(plain), plain[::-1][::-1]):
        model, other = (KMeans(2, initial_centers=[[0, 0], [9, 9]]) for _ in range(2))
        model.learn(plain)
        other.learn(same)
        assert model.centers.tobytes() == other.centers.tobytes()


@pytest.mark.filterwarnings("error")
def test_finite_rows_never_make_a_centre_infinite() -> None:
    largest = np.finfo(float).max
    for k in (2, 40):
        model = KMeans(k, initial_centers=np.arange(k * 3.0).reshape(k, 3), decay=1)
        for sign in (1, -1, 1):
            model.learn(np.full((5, 3), sign * largest))
            model.learn(np.array([[largest, -largest, 0.0], [-largest, largest, 1.0]]))
            assert np.isfinite(model.centers).all()
    fresh = KMeans(2)
    fresh.learn(np.array([[largest], [-largest], [1.0]]))
    assert np.isfinite(fresh.centers).all()


def test_a_state_of_another_model_is_refused() -> None:
    model = KMeans(2, initial_centers=[[0.0], [1.0]])
    for wrong in ({}, KMeans(3).state() | {"more": 1}, KMeans(3, initial_centers=[[0], [1], [2]]).state()):
        with pytest.raises(LearnError, match="k=2"):
            model.restore(wrong)
    assert model.centers.tolist() == [[0.0], [1.0]]


def test_parts_that_do_not_fit_are_refused() -> None:
    model, waiting = KMeans(2, initial_centers=[[0.0], [1.0]]), KMeans(2)
    wide = KMeans(2, initial_centers=[[0.0, 0.0], [1.0, 1.0]]).partial(np.ones((3, 2)))
    for part in (waiting.partial(np.ones((3, 1))), wide, {}):
        with pytest.raises(LearnError):
            model.merge([model.partial(np.ones((3, 1))), part])
    with pytest.raises(LearnError):
        waiting.merge([wide])
    with pytest.raises(LearnError):
        waiting.merge([waiting.partial(np.ones((3, 1))), waiting.partial(np.ones((3, 2)))])
    assert model.weights.tolist() == [0.0, 0.0]
    assert not waiting.ready


def test_parameters_are_json_and_declare_the_same_again() -> None:
    model = KMeans(2, initial_centers=np.eye(2), initial_weights=(1, 2), decay=0.25, time_unit="points", seed=7)
    declared = json.loads(json.dumps(model.parameters()))
    assert KMeans(**declared).parameters() == declared
    assert KMeans(3).parameters()["initial_centers"] is None
    assert repr(model).startswith("KMeans(k=2, decay=0.25")
