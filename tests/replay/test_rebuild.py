"""A model as it was at any place of its log: bit for bit the one that answered there."""

from __future__ import annotations

import random
from typing import Any

import pytest

from headrace.batch import Batch
from headrace.errors import DeclarationError, HeadraceError
from headrace.learn.state import state_hash
from headrace.plan.task import Cut, Versions
from headrace.position import Position
from headrace.registry import models as registry
from headrace.replay.rebuild import Place, rebuild
from headrace.replay.steps import read_steps
from headrace.step.state import initial_state
from headrace.step.step import predict_batch

from .bench import CUTS, TEST, TRAIN, A, B, Bench, C, task, tick


@pytest.fixture(params=CUTS, ids=str)
def lived(request: pytest.FixtureRequest) -> Bench:
    """A model's life: transactions of many sizes, some in pieces, ticks, versions, a rollback, restarts."""
    bench = Bench(task(request.param, Versions(every=10)))
    chance = random.Random(11)
    for turn in range(40):
        train = [{"x": chance.gauss(5, 4)} for _ in range(chance.randint(0, 9))]
        test = [{"x": chance.gauss(5, 4)} for _ in range(chance.randint(0, 3))]
        rows = {topic: some for topic, some in ((TRAIN, train), (TEST, test)) if some}
        if rows:
            late = bench.clock.now_us() - chance.choice([0, 0, 700_000])  # commit times run backwards, too
            bench.source.commit(rows, ts_us=late, pieces=chance.choice([1, 1, 3]))
        bench.clock.advance(chance.choice([0.1, 0.5, 1.2]))
        bench.rounds(chance.choice([1, 1, 4]))
        if turn == 18:
            bench.ask(2)
        if turn == 25:
            tick(bench)
        if turn % 9 == 8:
            bench.start()
    bench.rounds(20)
    return bench


def rebuilt(bench: Bench, place: Place) -> Any:
    return rebuild(bench.plan, bench.plan.models[0], bench.log, place)


def predicted(bench: Bench, found: Any, x: float) -> Any:
    one = bench.plan.models[0]
    state = initial_state(one)
    state.current = found.version
    return predict_batch(one, state, Batch.of({"x": [x]})).output().column("prediction")[0].as_py()


def test_every_prediction_is_made_again_by_the_model_that_made_it(lived: Bench) -> None:
    places: dict[str, Any] = {}
    answers = lived.answers()
    assert len({row["model_version"] for row in answers}) > 4
    for row in answers:
        position = row["model_position"]
        if position is None:
            continue
        if position not in places:
            places[position] = rebuilt(lived, Place.parse(position))
        found = places[position]
        assert str(found.version.position) == position
        assert predicted(lived, found, row["x"]) == row["prediction"]
    assert len(places) > 10


def test_the_hash_is_the_recorded_one_where_a_step_ends(lived: Bench) -> None:
    compared = 0
    for record in read_steps(lived.log, lived.plan.steps_topic, "m", 0):
        if record.position is None or record.hash is None:
            continue
        found = rebuilt(lived, Place.parse(record.position))
        assert found.to_dict()["hash"] == record.hash
        assert found.verified in (True, None)
        compared += 1
    assert compared > 20


def test_any_row_is_a_place(lived: Bench) -> None:
    """Also one in the middle of a cut: the model there is the one that answered."""
    seen = {row["model_position"] for row in lived.answers()}
    for row in lived.answers()[::3]:
        found = rebuilt(lived, Place(position=Position(row["__lsn"], row["__index"])))
        assert found.version.position is None or str(found.version.position) in seen | {
            record.position for record in read_steps(lived.log, lived.plan.steps_topic, "m", 0)
        }


def test_an_lsn_means_everything_committed_up_to_it(lived: Bench) -> None:
    if lived.plan.models[0].cut.duration_us:
        return  # a row's own commit time closes the cut before it: the model that answers it is a later one
    for row in lived.answers()[::2]:
        # Every transaction's LSN is 10 after the one before: the model that answers there has seen none of its rows.
        found = rebuilt(lived, Place(lsn=row["__lsn"] - 10))
        if row["model_position"] is None:
            assert found.version.position is None
        elif not _moments_between(lived, row["__lsn"]):
            assert str(found.version.position) == row["model_position"]
            assert predicted(lived, found, row["x"]) == row["prediction"]


def _moments_between(bench: Bench, lsn: int) -> bool:
    """Whether a tick or a rollback stands right before a transaction's rows: then it lies after the LSN before."""
    before = False
    for record in read_steps(bench.log, bench.plan.steps_topic, "m", 0):
        for topic, (first, end) in record.inputs.items():
            for entry in bench.log.read_topic(topic, offset=first, limit=end - first):
                if lsn in entry.records.column("__lsn").to_pylist():
                    return before
        before = record.event is not None or record.tick_us is not None
    return False


def test_a_time_means_everything_until_then() -> None:
    bench = Bench(task(Cut(transaction=True)))
    times = []
    for values in (A, B, C):
        bench.feed(values)
        times.append((bench.clock.now_us() - 1, state_hash(bench.state.learner.state())))
    for ts_us, hashed in times:
        assert rebuilt(bench, Place(ts_us=ts_us)).to_dict()["hash"] == hashed
    assert rebuilt(bench, Place(ts_us=0)).version.position is None


def test_what_it_says() -> None:
    bench = Bench(task(Cut(rows=4)))
    bench.feed([*A, *B])
    found = rebuilt(bench, Place(end=True)).to_dict()
    progress = registry.read_progress(bench.log, "m")
    assert progress is not None
    assert (found["hash"], found["position"], found["rows"]) == (progress.hash, progress.position, 16)
    assert found["learned"] == {TRAIN: 16}
    assert found["version"] == 1
    assert found["verified"] is not False


def test_the_nearest_checkpoint_is_where_it_begins() -> None:
    bench = Bench(task(Cut(transaction=True)))
    bench.feed([*A, *B])
    steps = registry.checkpoint_steps(bench.log, "m")
    last = bench.answers()[-1]["model_position"]
    found = rebuilt(bench, Place.parse(last))
    assert found.from_checkpoint == max(step for step in steps if step <= 7)
    assert found.from_checkpoint + found.steps == 7


@pytest.mark.parametrize("text", ["yesterday", "0/", "x/y:z", "12"])
def test_what_is_no_place_is_refused(text: str) -> None:
    with pytest.raises(DeclarationError, match="is no place"):
        Place.parse(text)


def test_a_position_that_no_row_has_is_refused() -> None:
    bench = Bench(task(Cut(transaction=True)))
    bench.feed(A)
    with pytest.raises(HeadraceError, match="no row at 0/FF:0"):
        rebuilt(bench, Place.parse("0/FF:0"))
