"""Topics as data sets: batches, groups, epochs, rows that are none, and the frameworks that take them."""

from __future__ import annotations

import itertools
import logging
import os
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

import headrace as hr
from headrace.batch import Batch
from headrace.dataset.examples import ExampleBlock, recut, shuffled
from headrace.errors import DeclarationError, LogError, MissingExtra
from headrace.log import open_log
from headrace.log.base import Log

TOPIC = "t.public.rows"


@pytest.fixture
def app(tmp_path: Path) -> hr.App:
    return hr.App("data", log=tmp_path / "data.headrace")


@pytest.fixture
def log(app: hr.App) -> Iterator[Log]:
    """The writer's side of the app's log: the app itself only reads."""
    opened = open_log(app.log, writer=True)
    yield opened
    opened.close()


def append(log: Log, ids: Sequence[int], *, op: str = "c", topic: str = TOPIC, **columns: Any) -> None:
    values = {"id": list(ids), "a": [float(i) for i in ids], "label": [i % 3 for i in ids], **columns}
    with log.transaction() as transaction:
        transaction.append(topic, Batch.of(values, op=op, key=["id"]).records)


def fill(log: Log, rows: int, *, entry: int = 7) -> None:
    for first in range(0, rows, entry):
        append(log, range(first, min(rows, first + entry)))


def ids(batches: Any) -> list[list[int]]:
    """The ids in each batch: of Arrow batches, or of the feature «a»."""
    return [
        batch.column("id").to_pylist()
        if isinstance(batch, pa.RecordBatch)
        else matrix_of(batch)[:, 0].astype(int).tolist()
        for batch in batches
    ]


def matrix_of(batch: Any) -> Any:
    return batch[0] if isinstance(batch, tuple) else batch


def flat(lists: Sequence[list[int]]) -> list[int]:
    return list(itertools.chain.from_iterable(lists))


def cut(numbers: Sequence[int], size: int) -> list[list[int]]:
    return [list(numbers[i : i + size]) for i in range(0, len(numbers), size)]


# -- batches -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "size"), [(0, 4), (3, 4), (4, 4), (20, 4), (20, 6), (20, 64), (20, 1)])
def test_batches_have_the_size_whatever_the_entries(app: hr.App, log: Log, rows: int, size: int) -> None:
    append(log, [])
    append(log, range(100, 101), topic="another")
    fill(log, rows)
    if not rows:
        append(log, [0], op="d")
    assert ids(app.topic(TOPIC).dataset(size)) == cut(range(rows), size)
    assert ids(app.topic(TOPIC).dataset(size, features=["a"], target="label")) == cut(range(rows), size)
    full = [batch for batch in cut(range(rows), size) if len(batch) == size]
    assert ids(app.topic(TOPIC).dataset(size, drop_remainder=True)) == full


def test_without_features_a_batch_shows_all_columns(app: hr.App, log: Log) -> None:
    append(log, [1, 2])
    (batch,) = app.topic(TOPIC).dataset(8)
    assert batch.schema.names == ["id", "a", "label", "op", "position", "ts"]


def test_with_features_a_batch_is_a_matrix_and_labels(app: hr.App, log: Log) -> None:
    append(log, [4, 5])
    ((X, y),) = app.topic(TOPIC).dataset(8, features=["id", "a"], target="label")
    assert X.tolist() == [[4.0, 4.0], [5.0, 5.0]] and X.dtype == np.float64
    assert y.tolist() == [1, 2]
    (alone,) = app.topic(TOPIC).dataset(8, features=lambda batch: np.stack([batch.column("a")] * 2, axis=1))
    assert alone.tolist() == [[4.0, 4.0], [5.0, 5.0]]
    assert [item.num_rows for item in app.topic(TOPIC).dataset(8, features=["a"], target="label").arrow()] == [2]


def test_an_image_alone_keeps_its_shape(app: hr.App, log: Log) -> None:
    append(log, [1, 2], pixels=[bytes(range(6)), bytes([255] * 6)])
    rows = app.topic(TOPIC)
    (X,) = rows.dataset(features=[hr.image("pixels", shape=(2, 3))])
    assert X.shape == (2, 2, 3) and X.dtype == np.float32 and X[0].tolist() == [[0, 1, 2], [3, 4, 5]]
    (flat,) = rows.dataset(features=[hr.image("pixels", shape=(6,), scale=1 / 255)])
    assert flat.shape == (2, 6) and flat[1].tolist() == [1.0] * 6
    (several,) = rows.dataset(features=[hr.image("pixels", shape=(2, 3)), "a"])
    assert several.shape == (2, 7)


def test_columns_that_change_meanwhile(app: hr.App, log: Log) -> None:
    append(log, [1])
    append(log, [2], more=["x"])
    append(log, [3], a=["text"])
    (batch,) = app.topic(TOPIC).dataset(8)
    assert batch.column("id").to_pylist() == [1, 2, 3]
    assert batch.column("more").to_pylist() == [None, "x", None]
    assert batch.column("a").to_pylist() == ["1", "2", "text"]  # as PostgreSQL prints them
    assert ids(app.topic(TOPIC).dataset(8, features=["a"])) == [[1, 2]]


def test_operations_come_first_and_offsets_are_the_topics(app: hr.App, log: Log) -> None:
    fill(log, 30)
    even = app.topic(TOPIC).filter(lambda batch: np.asarray(batch.column("id")) % 2 == 0).select("id")
    assert ids(even.dataset(4, start=9)) == cut(range(10, 30, 2), 4)
    with_group = even.dataset(4, group="g")
    for _ in zip(range(3), with_group, strict=False):
        pass
    assert next(iter(app.topic(TOPIC).dataset(1, group="g"))).column("id").to_pylist() == [15]


@given(
    st.lists(st.integers(1, 9), max_size=12),
    st.integers(1, 10),
    st.integers(1, 40),
)
def test_shuffled_rows_are_the_same_rows(sizes: list[int], batch: int, buffer: int) -> None:
    rows = sum(sizes)
    starts = np.cumsum([0, *sizes]).tolist()

    def piece(start: int, size: int) -> ExampleBlock:
        return ExampleBlock((np.arange(start, start + size),), size, lambda row: {0: start + row + 1})

    pieces = [piece(start, size) for start, size in zip(starts, sizes, strict=False)]
    found = list(recut(shuffled(pieces, buffer, np.random.default_rng(1), {0: 0}), batch))
    assert [item.rows for item in found] == [len(item) for item in cut(range(rows), batch)]
    order = [value for item in found for value in item.data[0].tolist()]
    assert sorted(order) == list(range(rows))
    for at, value in enumerate(order):
        assert at // buffer == value // buffer, "a row moves inside its buffer only"
    consumed = 0
    for item in found:
        consumed += item.rows
        place = item.after(item.rows - 1)[0]
        assert place <= consumed and set(order[:consumed]) >= set(range(place))


def test_shuffling_is_decided_by_seed_and_epoch(app: hr.App, log: Log) -> None:
    fill(log, 50)
    rows = app.topic(TOPIC)

    def order(**options: Any) -> list[int]:
        return flat(ids(rows.dataset(8, **options)))

    one = order(shuffle=True)
    assert one == order(shuffle=1000) != list(range(50)) and sorted(one) == list(range(50))
    assert order(shuffle=True, seed=1) != one
    twice = order(shuffle=True, epochs=2)
    assert twice[:50] == one != twice[50:] and sorted(twice[50:]) == list(range(50))
    assert sorted(order(shuffle=10)[:10]) == list(range(10))


# -- which rows ----------------------------------------------------------------------------------------------------


def test_rows_that_are_no_examples(app: hr.App, log: Log, caplog: pytest.LogCaptureFixture) -> None:
    append(log, [1, 2, 3], op="r", label=[0, None, 2])
    append(log, [3], op="d")
    append(log, [4, 5], a=[None, float("nan")])
    append(log, [1], op="u", label=[9])
    append(log, [2], op="u", label=[7])
    data = app.topic(TOPIC).dataset(8, features=["a"], target="label")
    with caplog.at_level(logging.WARNING, "headrace"):
        ((X, y),) = data
    assert X[:, 0].tolist() == [1.0, 3.0, 2.0] and y.tolist() == [0, 2, 7], "2 is learned once its label is there"
    assert data.skipped == 3
    assert [record.getMessage() for record in caplog.records] == [
        "«t.public.rows» offset 1 is no example and was skipped: the target «label» is NULL",
        "«t.public.rows» offset 4 is no example and was skipped: the feature «a» is NULL",
        "«t.public.rows» offset 5 is no example and was skipped: the feature «a» is nan",
    ]
    assert list(app.topic(TOPIC).dataset(8, features=["a"], target="nothing")) == []
    assert ids(app.topic(TOPIC).dataset(8)) == [[1, 2, 3, 4, 5]]


def test_many_rows_are_counted_and_a_few_spoken_of(app: hr.App, log: Log, caplog: pytest.LogCaptureFixture) -> None:
    fill(log, 40)
    data = app.topic(TOPIC).dataset(8, features=["a"], target="nothing", epochs=3)
    assert list(data) == [] and data.skipped == 40
    assert len(caplog.records) == 5 and "counted only" in caplog.records[-1].getMessage()


def test_a_row_at_which_an_operation_fails_is_skipped_alone(app: hr.App, log: Log) -> None:
    append(log, range(20))

    def inverse(batch: Batch) -> list[float]:
        return [1 / (value - 7) for value in batch.column("a").to_pylist()]

    data = app.topic(TOPIC).with_columns(inverse=inverse).dataset(64, features=["inverse", "a"])
    ((X),) = data
    assert X[:, 1].tolist() == [i for i in range(20) if i != 7] and data.skipped == 1


def test_a_transform_must_keep_what_a_row_is(app: hr.App, log: Log) -> None:
    append(log, range(3))
    forgets = app.topic(TOPIC).transform(lambda batch: Batch.of({"x": np.arange(batch.num_rows)}))
    with pytest.raises(ValueError, match="must keep the columns"):
        list(forgets.dataset(8))


# -- groups --------------------------------------------------------------------------------------------------------


def some(data: Any, batches: int) -> list[list[int]]:
    """The first batches, and away with ``break``."""
    found = []
    for row in data:
        found.append(row)
        if len(found) == batches:
            break
    return ids(found)


@pytest.mark.parametrize("features", [None, ["a"]], ids=["arrow", "arrays"])
def test_a_group_goes_on_after_the_last_batch_that_was_consumed(app: hr.App, log: Log, features: Any) -> None:
    fill(log, 20)
    data = app.topic(TOPIC).dataset(4, group="g", features=features)
    assert some(data, 1) == [[0, 1, 2, 3]]
    assert some(data, 2) == [[0, 1, 2, 3], [4, 5, 6, 7]], "the batch in hand was not consumed"
    assert ids(data) == cut(range(4, 20), 4)
    assert ids(data) == []
    fill(log, 3)
    assert ids(app.topic(TOPIC).dataset(2, group="g", start="earliest")) == [[0, 1], [2]]
    assert len(ids(app.topic(TOPIC).dataset(4, group="other"))) == 6
    assert len(ids(app.topic(TOPIC).dataset(4))) == 6


def test_an_error_loses_no_batch(app: hr.App, log: Log) -> None:
    fill(log, 8)
    data = app.topic(TOPIC).dataset(4, group="g")
    with pytest.raises(ZeroDivisionError):
        for batch in data:
            1 / batch.column("id")[0].as_py()
    assert ids(data) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_a_group_keeps_what_was_left_out_at_the_end(app: hr.App, log: Log) -> None:
    fill(log, 10)
    data = app.topic(TOPIC).dataset(4, group="g", drop_remainder=True)
    assert ids(data) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    append(log, range(10, 14))
    assert ids(data) == [[8, 9, 10, 11]]


def test_a_groups_position_moves_in_the_last_epoch(app: hr.App, log: Log) -> None:
    fill(log, 8)
    data = app.topic(TOPIC).dataset(4, group="g", epochs=2)
    assert some(data, 3) == [[0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 2, 3]]
    assert some(data, 4)[0] == [0, 1, 2, 3], "nothing was consumed before"
    assert ids(data) == [[4, 5, 6, 7]] * 2


def test_a_shuffled_group_reads_a_buffer_again_at_most(app: hr.App, log: Log) -> None:
    fill(log, 20)
    data = app.topic(TOPIC).dataset(4, group="g", shuffle=8)
    first = flat(some(data, 4))[:12]
    rest = flat(ids(data))
    assert sorted(rest) == list(range(8, 20)) and set(first) | set(rest) == set(range(20))


def test_groups_of_topics_and_of_processes_are_apart(app: hr.App, log: Log) -> None:
    fill(log, 6)
    append(log, range(3), topic="other")
    assert len(ids(app.topic(TOPIC).dataset(2, group="g"))) == 3
    assert len(ids(app.topic("other").dataset(2, group="g"))) == 2
    program = (
        f"import headrace as hr; app = hr.App('data', log={app.log!r}); "
        f"print([len(b) for b in app.topic({TOPIC!r}).dataset(4, group='g')], "
        f"[len(b) for b in app.topic({TOPIC!r}).dataset(4, group='h')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[] [4, 2]"
    assert ids(app.topic(TOPIC).dataset(4, group="h")) == []


def test_rows_that_retention_took_from_a_group(app: hr.App, log: Log, caplog: pytest.LogCaptureFixture) -> None:
    fill(log, 21)
    data = app.topic(TOPIC).dataset(2, group="g")
    some(data, 2)
    log.prune(TOPIC, before_offset=14)
    assert flat(ids(data)) == list(range(14, 21))
    assert "were dropped before the group «g» read them" in caplog.text


def test_a_log_made_anew_forgets_its_groups(app: hr.App) -> None:
    for rows in (20, 30):
        Path(app.log).unlink(missing_ok=True)
        log = open_log(app.log, writer=True)
        fill(log, rows)
        log.close()
        assert flat(ids(app.topic(TOPIC).dataset(4, group="g"))) == list(range(rows))


def test_a_position_beyond_the_end_is_of_another_topic(app: hr.App, log: Log, caplog: pytest.LogCaptureFixture) -> None:
    from headrace.dataset.groups import open_positions

    fill(log, 3)
    positions = open_positions(log, TOPIC, "g")
    positions.commit({0: 99})
    positions.close()
    assert ids(app.topic(TOPIC).dataset(4, group="g")) == [[0, 1, 2]]
    assert "it begins anew" in caplog.text


# -- where it begins, where it ends --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "expected"), [("earliest", range(10)), ("latest", []), (0, range(10)), (6, range(6, 10)), (99, [])]
)
def test_start(app: hr.App, log: Log, start: Any, expected: Any) -> None:
    fill(log, 10)
    assert flat(ids(app.topic(TOPIC).dataset(4, start=start))) == list(expected)


def test_epochs_replay_the_rows_of_the_first(app: hr.App, log: Log) -> None:
    fill(log, 10)
    found = []
    for batch in app.topic(TOPIC).dataset(4, start=2, epochs=3):
        if not found:
            append(log, [10, 11])
        found.append(batch)
    assert ids(found) == cut(range(2, 10), 4) * 3


def in_background(work: Any) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_live_rows_are_seen_as_they_arrive_until_nothing_comes(app: hr.App, log: Log) -> None:
    fill(log, 5)
    seen = threading.Semaphore(0)

    def write() -> None:
        for i in range(5, 12):
            assert seen.acquire(timeout=30)
            append(log, [i])

    thread = in_background(write)
    found = []
    for batch in app.topic(TOPIC).dataset(1, idle_timeout="400 ms"):
        found.append(batch)
        if len(found) >= 5:
            seen.release()
    thread.join(30)
    assert flat(ids(found)) == list(range(12))


def test_epochs_of_live_rows_end_where_the_first_did(app: hr.App, log: Log) -> None:
    fill(log, 5)
    assert ids(app.topic(TOPIC).dataset(4, idle_timeout=0.1, epochs=2)) == [[0, 1, 2, 3], [4]] * 2


def test_time_with_a_batch_is_not_idle(app: hr.App, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the last batch took, the topic is looked at again, and waited for as long as was said."""

    class Clock:
        ahead = 0.0
        sleep = time.sleep

        def monotonic(self) -> float:
            return time.monotonic() + self.ahead

    clock = Clock()
    monkeypatch.setattr("headrace.dataset.time", clock)
    append(log, [0])
    found = []
    for batch in app.topic(TOPIC).dataset(1, idle_timeout=0.5):
        found.append(batch)
        if len(found) == 1:
            clock.ahead += 60
            append(log, [1])
    assert ids(found) == [[0], [1]]


@pytest.mark.parametrize("start", ["earliest", "latest"])
def test_a_topic_that_is_not_there_is_waited_for(app: hr.App, start: Any) -> None:
    """Even its log may not be there yet. What is waited for is read from the first row."""
    started = threading.Event()

    def write() -> None:
        started.wait(30)
        log = open_log(app.log, writer=True)
        append(log, [0], topic="another")
        fill(log, 6, entry=2)
        log.close()

    data = app.topic(TOPIC).dataset(4, wait=True, idle_timeout="2 s", start=start)
    thread = in_background(write)
    started.set()
    assert ids(data) == [[0, 1, 2, 3], [4, 5]]
    thread.join(30)
    assert ids(app.topic(TOPIC).dataset(4, wait=True, until="caught-up")) == [[0, 1, 2, 3], [4, 5]]


@pytest.mark.parametrize("until", [None, "caught-up"])
def test_a_topic_that_never_comes(app: hr.App, until: Any) -> None:
    data = app.topic(TOPIC).dataset(4, wait=True, idle_timeout=0.2, until=until)
    assert list(data) == []


def test_a_topic_or_log_that_nobody_waits_for_is_an_error(app: hr.App) -> None:
    with pytest.raises(LogError, match=r"there is no log at .*data\.headrace"):
        list(app.topic("nothing").dataset())
    log = open_log(app.log, writer=True)
    append(log, [1])
    with pytest.raises(LogError, match=r"there is no topic «nothing» (?s:.*)t\.public\.rows.*wait=True"):
        list(app.topic("nothing").dataset())
    log.close()


def test_a_memory_log_and_its_groups() -> None:
    app = hr.App("data", log="memory://")
    app._declared.open_log = log = open_log("memory://", writer=True)
    fill(log, 10)
    data = app.topic(TOPIC).dataset(4, group="g")
    assert some(data, 2) == cut(range(8), 4)
    assert ids(data) == [[4, 5, 6, 7], [8, 9]] and ids(data) == []
    assert len(ids(app.topic(TOPIC).dataset(4, group="h"))) == 3


def test_a_large_topic_in_little_memory(app: hr.App, log: Log) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        pixels = [integer.tobytes() for integer in rng.integers(0, 255, (2_000, 1_000), np.uint8)]
        append(log, range(2_000), pixels=pixels)
    data = app.topic(TOPIC).dataset(64, features=[hr.image("pixels", shape=(1_000,))], target="label")
    next(iter(data))
    allocated, most = pa.total_allocated_bytes(), 0
    tracemalloc.start()
    rows = 0
    for X, _ in data:
        rows += len(X)
        most = max(most, pa.total_allocated_bytes() - allocated + tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert rows == 40_000
    assert most < 120 << 20, "of 40 MB of bytes, 160 MB as numbers"


# -- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": True}, "batch_size=True"),
        ({"features": []}, "features=\\[\\]"),
        ({"features": ["a", "a"]}, "named twice"),
        ({"target": "y"}, "without features"),
        ({"epochs": 0}, "epochs=0"),
        ({"epochs": 2, "wait": True}, "never end"),
        ({"start": "beginning"}, "start='beginning'"),
        ({"start": -1}, "start=-1"),
        ({"until": "tomorrow"}, "until='tomorrow'"),
        ({"idle_timeout": "soon"}, "idle_timeout='soon'"),
        ({"idle_timeout": 0}, "idle_timeout=0"),
        ({"shuffle": 10, "wait": True}, "cannot be shuffled"),
        ({"shuffle": -1}, "shuffle=-1"),
        ({"group": ""}, "group=''"),
        ({"features": [hr.vector("v")]}, "left to the rows that a model learns"),
    ],
    ids=lambda one: None if isinstance(one, dict) else one,
)
def test_what_makes_no_sense_is_refused_at_once(app: hr.App, options: dict[str, Any], match: str) -> None:
    with pytest.raises(DeclarationError, match=match):
        app.topic(TOPIC).dataset(**options)


def test_predictions_are_read_from_their_topic(app: hr.App) -> None:
    model = app.model("m", hr.KMeans(k=2), features=["a"])
    with pytest.raises(DeclarationError, match="read from their topic"):
        model.predict(app.topic(TOPIC)).dataset()


@pytest.mark.parametrize("form", ["keras", "torch", "tf"])
def test_without_the_library_or_features_it_says_so(
    app: hr.App, log: Log, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(log, [1])
    for name in ("keras.src.trainers.data_adapters.data_adapter", "torch", "tensorflow"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises((MissingExtra, DeclarationError), match="needs"):
        getattr(app.topic(TOPIC).dataset(features=["a"]), form)()


# -- frameworks ----------------------------------------------------------------------------------------------------


def digits(log: Log, rows: int) -> tuple[Any, Any]:
    """Noise with a bright corner that says the label; as arrays too."""
    rng = np.random.default_rng(5)
    y = np.arange(rows) % 4
    X = rng.integers(0, 90, (rows, 4, 4)).astype(np.uint8)
    X[np.arange(rows), (y // 2) * 3, (y % 2) * 3] = 255
    for first in range(0, rows, 90):
        part = slice(first, min(rows, first + 90))
        append(log, range(part.start, part.stop), pixels=[item.tobytes() for item in X[part]], label=y[part].tolist())
    return X.astype(np.float32) * np.float32(1 / 255), y


@pytest.fixture
def keras() -> Any:
    os.environ.setdefault("KERAS_BACKEND", "jax")
    return pytest.importorskip("keras")


def network(keras: Any) -> Any:
    keras.utils.set_random_seed(3)
    layers = [keras.layers.Input((4, 4)), keras.layers.Flatten(), keras.layers.Dense(4, activation="softmax")]
    model = keras.Sequential(layers)
    model.compile(keras.optimizers.Adam(0.05), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


@pytest.mark.filterwarnings("error:Your input ran out of data")
@pytest.mark.slow
def test_keras_learns_from_a_topic_as_from_arrays(app: hr.App, log: Log, keras: Any) -> None:
    X, y = digits(log, 500)
    image = hr.image("pixels", shape=(4, 4), scale=1 / 255)
    rows = app.topic(TOPIC)
    data = rows.dataset(64, features=[image], target="label")
    by_arrays, by_topic, by_epochs = network(keras), network(keras), network(keras)
    expected = by_arrays.fit(X, y, batch_size=64, epochs=3, shuffle=False, verbose=0).history
    found = by_topic.fit(data.keras(), epochs=3, verbose=0).history
    by_epochs.fit(rows.dataset(64, features=[image], target="label", epochs=3).keras(), verbose=0)
    for item in (by_topic, by_epochs):
        for mine, theirs in zip(item.get_weights(), by_arrays.get_weights(), strict=True):
            assert np.array_equal(mine, theirs)
    assert np.allclose(found["loss"], expected["loss"], rtol=1e-6)
    # The last batch is smaller and counts as much as it has rows.
    assert np.allclose(by_topic.evaluate(data.keras(), verbose=0), by_arrays.evaluate(X, y, batch_size=64, verbose=0))
    assert by_topic.evaluate(data.keras(), verbose=0)[1] > 0.9
    predicted = by_topic.predict(data.keras(), verbose=0)
    assert np.array_equal(predicted, by_arrays.predict(X, batch_size=64, verbose=0))


def test_keras_shuffles_each_epoch_in_its_own_way(app: hr.App, log: Log, keras: Any) -> None:
    del keras
    fill(log, 40)
    adapter = app.topic(TOPIC).dataset(64, features=["a"], shuffle=True).keras()
    first, second = (flat(ids(adapter.get_numpy_iterator())) for _ in range(2))
    adapter.on_epoch_end()
    assert sorted(first) == sorted(second) == list(range(40)) and first != second


def test_keras_evaluates_live_rows_of_a_topic_that_comes(app: hr.App, keras: Any) -> None:
    """The seed's notebook: evaluation starts first, then the rows come."""
    model = network(keras)
    image = hr.image("pixels", shape=(4, 4), scale=1 / 255)
    found: list[Any] = []

    def write() -> None:
        log = open_log(app.log, writer=True)
        found.append(digits(log, 300))
        log.close()

    data = app.topic(TOPIC).dataset(
        64, features=[image], target="label", wait=True, idle_timeout="3 s", group="mnistcg"
    )
    thread = in_background(write)
    loss, accuracy = model.evaluate(data.keras(), verbose=0)
    thread.join(30)
    X, y = found[0]
    assert np.allclose([loss, accuracy], model.evaluate(X, y, batch_size=64, verbose=0))
    nothing = app.topic(TOPIC).dataset(64, features=[image], target="label", idle_timeout=0.1, group="mnistcg")
    with pytest.raises(LogError, match=r"no rows of t\.public\.rows (?s:.*)Another group reads again"):
        model.evaluate(nothing.keras(), verbose=0)


def test_torch_takes_batches(app: hr.App, log: Log) -> None:
    torch = pytest.importorskip("torch")
    X, y = digits(log, 500)
    image = hr.image("pixels", shape=(4, 4), scale=1 / 255)
    data = app.topic(TOPIC).dataset(64, features=[image], target="label").torch()
    for workers in (0, 2):
        batches = list(torch.utils.data.DataLoader(data, batch_size=None, num_workers=workers))
        assert sorted(len(batch) for batch, _ in batches) == [500 % 64, *[64] * 7]
        assert np.isclose(sum(float(batch.sum()) for batch, _ in batches), X.sum())
        assert sum(int(batch.sum()) for _, batch in batches) == y.sum()


def test_tensorflow_takes_batches(app: hr.App, log: Log) -> None:
    pytest.importorskip("tensorflow")
    X, y = digits(log, 500)
    image = hr.image("pixels", shape=(4, 4), scale=1 / 255)
    data = app.topic(TOPIC).dataset(64, features=[image], target="label").tf()
    batches = list(data.as_numpy_iterator())
    assert np.array_equal(np.concatenate([batch for batch, _ in batches]), X)
    assert np.array_equal(np.concatenate([batch for _, batch in batches]), y)


def test_expressions_of_arrow_filter_too(app: hr.App, log: Log) -> None:
    fill(log, 12)
    assert ids(app.topic(TOPIC).filter(pc.field("a") > 8).dataset(2)) == [[9, 10], [11]]
