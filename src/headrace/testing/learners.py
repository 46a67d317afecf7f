"""The conformance suite of the `headrace.learn.base.Learner` contract, for Headrace's learners and for yours.

::

    CASES = {"mine": (functools.partial(MyLearner, rate=0.1), X, y)}

    @pytest.mark.parametrize(("name", "check"), [
        pytest.param(name, check, id=f"{case}: {name}")
        for case, (make, X, y) in CASES.items() for name, check in learner_checks(make, X, y)
    ])
    def test_contract(name, check):
        check()

What a learner says of itself in its ``traits`` (`headrace.learn.base.LearnerTraits`) is checked too.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from headrace.arrays import Array
from headrace.errors import BadRows
from headrace.learn.base import OPTIONAL_METHODS, Learner, pinned, takes_sample_weight, traits_of
from headrace.learn.handover import Block, Handover
from headrace.learn.state import dump_state, load_state, state_hash
from headrace.step.predictions import predict_rows

Make = Callable[[], Learner]
MiniBatch = tuple[Array, Array | None]
Check = Callable[[Make, Array, "Array | None"], None]


def learner_checks(make: Make, X: Array, y: Array | None = None) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield the checks that apply to a learner: names, and functions that raise AssertionError.

    ``make`` is called once to see what the learner offers.

    Args:
        make: a new learner, always declared alike. Another process calls it too, so it must be picklable:
            ``functools.partial(MyLearner, rate=0.1)`` or a function of an importable module, not a lambda.
        X: shape (n, d), at least 16 rows, of which the first half is enough to be ready; any order.
        y: shape (n,), targets; None for a learner without them.

    >>> from headrace.learn.kmeans import KMeans
    >>> rows = np.random.default_rng(0).normal(size=(40, 2))
    >>> for name, check in learner_checks(partial(KMeans, 3), rows):
    ...     check()
    """
    if len(X) < 16:
        raise ValueError(f"the checks need 16 rows or more, got {len(X)}")
    learner = make()
    traits = traits_of(learner)
    offered: dict[str, bool] = {
        "deterministic": traits.deterministic,
        "exact splits": traits.splits == "exact",
        "sample_weight": takes_sample_weight(learner),
        **{method: method in traits.offers for method in OPTIONAL_METHODS},
        "": True,
    }
    for check, needs in _CHECKS.items():
        if offered[needs]:
            yield check.__name__.strip("_").replace("_", " "), partial(check, make, X, y)


def check_learner(make: Make, X: Array, y: Array | None = None) -> None:
    """Run all of `learner_checks`.

    Raises:
        AssertionError: what the first failing check found, with that check's name as a note.
    """
    for name, check in learner_checks(make, X, y):
        try:
            check()
        except Exception as error:
            error.add_note(f"in the check «{name}» of {make}")
            raise


# -- the checks: their names are shown ---------------------------------------------------------------------------


def _offers_what_the_contract_names(make: Make, X: Array, y: Array | None) -> None:
    learner = make()
    _require(isinstance(learner, Learner), f"{type(learner).__name__} lacks a member of headrace.learn.base.Learner")
    _traits_are_of_their_types(learner)
    declared = json.dumps(learner.parameters())
    learned = _learned(make, _cuts(X, y))
    _require(learned.ready is True, "not ready after all rows")
    _require(json.dumps(make().parameters()) == declared, "two learners declared alike have other parameters")
    _require(json.dumps(learned.parameters()) == declared, "learning changed the declared parameters")


def _traits_are_of_their_types(learner: Learner) -> None:
    traits = traits_of(learner)
    for name in ("deterministic", "accepts_nan", "rowwise", "stores_beginning"):
        _require(type(getattr(traits, name)) is bool, f"«{name}» is not True or False")
    _require(traits.splits in ("exact", "different"), '«splits» is "exact" or "different"')
    for method in OPTIONAL_METHODS:
        has = callable(getattr(learner, method, None))
        _require(has or method not in traits.offers, f"«traits» offer {method}, and there is no such method")
    _require(("partial" in traits.offers) == ("merge" in traits.offers), "«partial» and «merge» come together")
    if traits.classes is not None:
        classes = np.asarray(traits.classes)
        _require(bool((classes[:-1] < classes[1:]).all()), "«classes» are not sorted, or one is there twice")
    if traits.takes_sample_weight:
        named = inspect.signature(learner.learn).parameters
        _require("sample_weight" in named, "«takes_sample_weight», and «learn» has no argument of this name")


def _learns_the_same_bits_again(make: Make, X: Array, y: Array | None) -> None:
    _same_state(_learned(make, _cuts(X, y)), _learned(make, _cuts(X, y)), "the same cuts learned twice")


def _restores_its_state_bit_for_bit(make: Make, X: Array, y: Array | None) -> None:
    for end in range(len(_cuts(X, y)) + 1):
        learner = _learned(make, _cuts(X, y)[:end])
        other = _restored(make, learner)
        _same_state(learner, other, f"restored after {end} cuts")
        _require(learner.ready == other.ready, f"«ready» differs, restored after {end} cuts")
        _require(other.parameters() == learner.parameters(), "restoring changed the declared parameters")
        if learner.ready:
            _same(learner.predict(_frozen(X)), other.predict(_frozen(X)), f"predictions, restored after {end} cuts")


def _continues_after_restore_bit_for_bit(make: Make, X: Array, y: Array | None) -> None:
    cuts = _cuts(X, y)
    straight = _learned(make, cuts)
    for end in range(len(cuts) + 1):
        used = _learned(make, cuts)  # restoring must replace everything that was learned before
        used.restore(load_state(dump_state(_learned(make, cuts[:end]).state())))
        for learner in (_restored(make, _learned(make, cuts[:end])), used):
            _learn(learner, cuts[end:])
            _same_state(straight, learner, f"restored after {end} cuts, then learned the rest")
            _same(straight.predict(_frozen(X)), learner.predict(_frozen(X)), f"restored after {end} cuts")


def _continues_in_another_process_bit_for_bit(make: Make, X: Array, y: Array | None) -> None:
    cuts = _cuts(X, y)
    straight, half = _learned(make, cuts), len(cuts) // 2
    try:
        message = pickle.dumps((make, dump_state(_learned(make, cuts[:half]).state()), cuts[half:], X))
    except Exception as error:
        raise AssertionError(f"«make» cannot be sent to another process; use functools.partial: {error}") from error
    child = subprocess.run(
        [sys.executable, "-c", _CHILD, json.dumps(sys.path)],
        input=message,
        capture_output=True,
        env={**os.environ, "PYTHONHASHSEED": "12345"},
        timeout=120,
    )
    _require(child.returncode == 0, f"the other process failed: {child.stderr.decode(errors='replace')}")
    state, predictions = pickle.loads(child.stdout)
    _require(state == dump_state(straight.state()), "the state learned on in another process differs")
    _same(straight.predict(_frozen(X)), predictions, "predictions in another process")


def _gives_copies_of_its_state(make: Make, X: Array, y: Array | None) -> None:
    learner = _learned(make, _cuts(X, y))
    before, given = state_hash(learner.state()), learner.state()
    _scribble(given)
    _require(state_hash(learner.state()) == before, "writing into what state() gave changed the learner")
    given = learner.state()
    learner.restore(given)
    _scribble(given)
    _require(state_hash(learner.state()) == before, "writing into what was restored changed the learner")


def _copies_learn_apart(make: Make, X: Array, y: Array | None) -> None:
    cuts = _cuts(X, y)
    learner = _learned(make, cuts[:-1])
    before = state_hash(learner.state())
    copied = copy.deepcopy(learner)
    _same_state(learner, copied, "a deep copy")
    _learn(copied, cuts[-1:])
    _require(state_hash(learner.state()) == before, "learning on a deep copy changed the original")
    if traits_of(learner).deterministic:
        _learn(learner, cuts[-1:])
        _same_state(learner, copied, "original and deep copy after the same cut")


def _leaves_its_input_alone(make: Make, X: Array, y: Array | None) -> None:
    learner = make()
    for rows, targets in _cuts(X, y):  # read-only, as Arrow's arrays are
        mine, its = rows.copy(), None if targets is None else targets.copy()
        learner.learn(mine, its)
        _same(rows, mine, "X after learn")
        before = state_hash(learner.state())
        mine[...] = 0
        _require(state_hash(learner.state()) == before, "the learner keeps a view of the X it learned")
    asked = X.copy()
    learner.predict(asked)
    _same(X, asked, "X after predict")


def _predicts_without_change(make: Make, X: Array, y: Array | None) -> None:
    learner = _learned(make, _cuts(X, y))
    before = state_hash(learner.state())
    first = learner.predict(_frozen(X)).copy()
    _require(state_hash(learner.state()) == before, "predict changed the state")
    _same(first, learner.predict(_frozen(X)), "the second prediction of the same rows")


def _predicts_one_value_a_row(make: Make, X: Array, y: Array | None) -> None:
    learner = _learned(make, _cuts(X, y))
    for rows in (X, X[:1], X[:0]):
        given = learner.predict(_frozen(rows))
        _require(len(given) == len(rows), f"{len(given)} predictions for {len(rows)} rows")
        traits = traits_of(learner)
        _require(
            traits.prediction_type is None or pa.array(given).type == traits.prediction_type,
            f"predictions of Arrow type {pa.array(given).type}, «prediction_type» is {traits.prediction_type}",
        )
        known = traits.classes is None or bool(np.isin(given, traits.classes).all())
        _require(known, "a prediction is none of the «classes»")


def _predicts_a_row_alike_among_any_neighbours(make: Make, X: Array, y: Array | None) -> None:
    learner = _learned(make, _cuts(X, y))
    if traits_of(learner).rowwise:  # it says that engines may ask for any number of rows
        together = learner.predict(_frozen(X))
        for row in range(len(X)):
            _same(together[row : row + 1], learner.predict(_frozen(X[row : row + 1])), f"row {row} alone")
    for size in (64, 256):  # the fixed blocks in which engines ask
        block = np.resize(X, (size, *X.shape[1:]))
        plain = learner.predict(_frozen(block))
        for shift in (1, 7, size // 2 + 1):
            moved = learner.predict(_frozen(np.roll(block, shift, axis=0)))
            _same(np.roll(plain, shift, axis=0), moved, f"rows moved by {shift} in a block of {size}")
        padded = np.concatenate([block[:3], np.repeat(block[:1], size - 3, axis=0)])
        _same(plain[:3], learner.predict(_frozen(padded))[:3], f"three rows padded to {size}")


def _refuses_bad_rows_and_changes_nothing(make: Make, X: Array, y: Array | None) -> None:
    row, learner = len(X) // 3, _learned(make, _cuts(X, y))
    bad = {"infinite": _with(X, row, np.inf), "NaN": _with(X, row, np.nan)}
    if traits_of(learner).accepts_nan:
        learner.predict(_with(X, row, np.nan))
        del bad["NaN"]
    for what, rows in bad.items():
        _refused(learner, rows, y, (row,), f"X is {what} in row {row}")
    everything = tuple(range(len(X)))
    _refused(learner, np.hstack([X, X[:, :1]]), y, everything, "X has a column too many")
    _refused(learner, X[:, 0], y, everything, "X has one dimension")
    _refused(learner, X.astype(str), y, everything, "X is text")
    if y is not None and y.dtype.kind == "f":
        _refused(learner, X, _with(y, row, np.nan), (row,), f"y is NaN in row {row}", asked=False)


def _survives_hostile_rows(make: Make, X: Array, y: Array | None) -> None:
    """Check that rows on which a learner fails are refused as a pipeline refuses them, and leave no trace."""
    cuts, fresh = _cuts(X, y), make()
    n, row = len(cuts[0][0]), len(cuts[0][0]) // 3
    for number, value in enumerate(_HOSTILE):
        rows = np.array(cuts[0][0], np.float64)
        rows[row, number % X.shape[1]] = value
        _handed_over(fresh, [(_frozen(rows), cuts[0][1]), *cuts[1:]], X, f"X holds {value!r} in row {row}")
    if y is not None and y.dtype.kind == "f":
        targets = np.array(cuts[0][1], np.float64)
        targets[row] = _HOSTILE[0]
        _handed_over(fresh, [(cuts[0][0], _frozen(targets)), *cuts[1:]], X, f"y is {_HOSTILE[0]!r} in row {row}")
    _handed_over(fresh, [(_frozen(np.full((n, X.shape[1]), 1e200)), cuts[0][1]), *cuts], X, "every row is 1e200")


def _handed_over(fresh: Learner, cuts: list[MiniBatch], X: Array, what: str) -> None:
    """Hand rows over as a pipeline does: none raises, those refused leave no trace, no prediction is NaN unsaid."""
    handover, straight = Handover(copy.deepcopy(fresh)), copy.deepcopy(fresh)
    for rows, targets in cuts:
        found = handover.learn(Block(rows, targets))
        keep = np.setdiff1d(np.arange(len(rows)), list(found.refused))
        _require(all(found.refused.values()), f"{what}: a row was refused without a reason")
        if traits_of(straight).deterministic and len(keep):
            _learn(straight, [_cut(rows[keep], None if targets is None else targets[keep])])
    learner = handover.learner
    if traits_of(straight).deterministic:
        _same_state(straight, learner, f"{what}: the other rows alone, and with those refused")
    if learner.ready:
        asked = np.array(np.resize(X, (64, X.shape[1])), np.float64)
        asked[:: 64 // len(_HOSTILE)][: len(_HOSTILE), 0] = _HOSTILE
        values, failed = predict_rows(learner.predict, asked)
        _require(values is not None, f"{what}: nothing is predicted for any row: {next(iter(failed.values()), '')}")


def _accepts_empty_batches(make: Make, X: Array, y: Array | None) -> None:
    empty = _frozen(X[:0]), None if y is None else _frozen(y[:0])
    learner = make()
    before = learner.ready
    learner.learn(*empty)
    _require(learner.ready == before, "an empty batch made the learner ready")
    _learn(learner, _cuts(X, y))
    learner.learn(*empty)
    _require(learner.ready, "an empty batch made the learner not ready")
    learner.predict(_frozen(X))
    if traits_of(learner).deterministic:
        again = _restored(make, _learned(make, [empty, *_cuts(X, y)]))
        again.learn(*empty)
        _same_state(learner, again, "empty batches learned twice")


def _learns_a_cut_in_pieces_bit_for_bit(make: Make, X: Array, y: Array | None) -> None:
    _same_state(_learned(make, [_cut(X, y)]), _learned(make, _cuts(X, y)), "one call and several")


def _merges_parts_to_what_learn_gives(make: Make, X: Array, y: Array | None) -> None:
    unit = traits_of(make()).part_rows
    n = len(X) if unit is None else max(len(X), 2 * unit + unit // 2)
    rows, targets = np.resize(X, (n, *X.shape[1:])), None if y is None else np.resize(y, n)
    for start in (make(), _learned(make, _cuts(X, y))):
        whole = _restored(make, start)
        _learn(whole, [_cut(rows, targets)])
        uneven = _merged(make, start, rows, targets, [n // 5, n // 5 + 1, n // 2])
        _close_state(whole, uneven, "learn, and parts of uneven length")
        if unit is not None:
            for ends in ([], [unit], [unit, 2 * unit]):
                exact = _merged(make, start, rows, targets, ends)
                _same_state(whole, exact, f"learn, and parts cut at {ends}")
        nothing = _restored(make, start)
        _learn(nothing, [_cut(X[:0], None if y is None else y[:0])])
        _same_state(nothing, _merged(make, start, X[:0], None if y is None else y[:0], []), "an empty batch")


def _unlearns_what_it_learned(make: Make, X: Array, y: Array | None) -> None:
    cuts = _cuts(X, y)
    learner = _learned(make, cuts[:-1])
    before = learner.predict(_frozen(X))
    _learn(learner, cuts[-1:])
    unlearn: Any = learner
    unlearn.unlearn(*cuts[-1])
    after = learner.predict(_frozen(X))
    alike = np.allclose(before, after, rtol=1e-6, atol=1e-9) if after.dtype.kind in "fc" else (before == after).all()
    _require(bool(alike), "predictions after learning and unlearning a cut are not those before")


def _gives_probabilities_of_its_classes(make: Make, X: Array, y: Array | None) -> None:
    learner: Any = _learned(make, _cuts(X, y))
    before, classes = state_hash(learner.state()), traits_of(learner).classes
    _require(classes is not None, "it offers «predict_proba», and says no «classes»")
    found, width = np.asarray(learner.predict_proba(_frozen(X))), len(np.asarray(classes))
    _require(found.shape == (len(X), width), f"probabilities of shape {found.shape} for {len(X)} rows")
    _require(bool(((found >= 0) & (found <= 1)).all()), "a probability is not between 0 and 1")
    _require(state_hash(learner.state()) == before, "predict_proba changed the state")


def _weighs_rows_by_sample_weight(make: Make, X: Array, y: Array | None) -> None:
    plain, weighted = make(), make()
    taking: Any = weighted
    for rows, targets in _cuts(X, y):
        plain.learn(rows, targets)
        taking.learn(rows, targets, sample_weight=_frozen(np.ones(len(rows))))
    alike = plain.predict(_frozen(X)), weighted.predict(_frozen(X))
    numbers = alike[0].dtype.kind == "f"
    _require(np.allclose(*alike, rtol=1e-4) if numbers else bool((alike[0] == alike[1]).all()), "weights of 1 count")


def _is_trained_anew_by_fit(make: Make, X: Array, y: Array | None) -> None:
    fresh: Any = make()
    used: Any = make() if traits_of(fresh).cannot_learn else _learned(make, _cuts(X, y))
    for learner in (fresh, used):
        learner.fit(*_cut(X, y))
        _require(learner.ready is True, "not ready after fit")
    if traits_of(fresh).deterministic:
        _same(
            fresh.predict(_frozen(X)), used.predict(_frozen(X)), "fit of a fresh learner, and of one that had learned"
        )


def _says_its_largest_number(make: Make, X: Array, y: Array | None) -> None:
    learner: Any = _learned(make, _cuts(X, y))
    _require(0.0 <= float(learner.largest()) < np.inf, f"largest() is {learner.largest()} after ordinary rows")


def _learns_the_same_in_its_context(make: Make, X: Array, y: Array | None) -> None:
    learner = make()
    with pinned(learner):
        _learn(learner, _cuts(X, y))
    if traits_of(learner).deterministic:
        _same_state(_learned(make, _cuts(X, y)), learner, "learned with «pinned» entered once, and without")


_CHECKS: dict[Check, str] = {
    _offers_what_the_contract_names: "",
    _learns_the_same_bits_again: "deterministic",
    _restores_its_state_bit_for_bit: "",
    _continues_after_restore_bit_for_bit: "deterministic",
    _continues_in_another_process_bit_for_bit: "deterministic",
    _gives_copies_of_its_state: "",
    _copies_learn_apart: "",
    _leaves_its_input_alone: "",
    _predicts_without_change: "",
    _predicts_one_value_a_row: "",
    _predicts_a_row_alike_among_any_neighbours: "",
    _refuses_bad_rows_and_changes_nothing: "",
    _survives_hostile_rows: "",
    _accepts_empty_batches: "",
    _learns_a_cut_in_pieces_bit_for_bit: "exact splits",
    _merges_parts_to_what_learn_gives: "partial",
    _unlearns_what_it_learned: "unlearn",
    _gives_probabilities_of_its_classes: "predict_proba",
    _weighs_rows_by_sample_weight: "sample_weight",
    _is_trained_anew_by_fit: "fit",
    _says_its_largest_number: "largest",
    _learns_the_same_in_its_context: "pinned",
}


_HOSTILE = (1e200, 3.4e38, -0.1, 5e-324)


# -- what they are made of ---------------------------------------------------------------------------------------


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def _same(expected: Array, given: Array, what: str) -> None:
    expected, given = np.asarray(expected), np.asarray(given)
    alike = expected.shape == given.shape and expected.dtype == given.dtype
    if alike and expected.dtype.kind != "O":
        alike = expected.tobytes() == given.tobytes()
    elif alike:
        alike = bool((expected == given).all())
    _require(alike, f"{what}: expected {expected!r}, got {given!r}")


def _same_state(expected: Learner, given: Learner, what: str) -> None:
    one, other = expected.state(), given.state()
    if state_hash(one) != state_hash(other):
        names = [
            name for name in sorted({*one, *other}) if state_hash(_one(one, name)) != state_hash(_one(other, name))
        ]
        shown = {name: (one.get(name), other.get(name)) for name in names}
        raise AssertionError(f"{what}: the states differ in {shown}")


def _one(state: dict[str, Any], name: str) -> dict[str, Any]:
    return {name: state[name]} if name in state else {}


def _close_state(expected: Learner, given: Learner, what: str) -> None:
    one, other = expected.state(), given.state()
    _require(one.keys() == other.keys(), f"{what}: {sorted(one)} and {sorted(other)}")
    for name, value in one.items():
        found = other[name]
        if isinstance(value, (np.ndarray, float)) and isinstance(found, (np.ndarray, float)):
            alike = np.allclose(value, found, rtol=1e-9, atol=1e-9, equal_nan=True)
        else:
            alike = type(value) is type(found) and value == found
        _require(bool(alike), f"{what}: {name} is {value!r} and {found!r}")


def _frozen(array: Array) -> Array:
    """Return a C-contiguous copy that refuses to be written into, as arrays over Arrow's memory do."""
    copied = np.array(array, order="C")
    copied.flags.writeable = False
    return copied


def _cut(X: Array, y: Array | None) -> MiniBatch:
    return _frozen(X), None if y is None else _frozen(y)


def _cuts(X: Array, y: Array | None) -> list[MiniBatch]:
    """Half the rows, one row, some, and the rest."""
    n = len(X)
    bounds = [0, n // 2, n // 2 + 1, 3 * n // 4, n]
    return [_cut(X[start:end], None if y is None else y[start:end]) for start, end in itertools.pairwise(bounds)]


def _learn(learner: Learner, cuts: list[MiniBatch]) -> None:
    for rows, targets in cuts:
        learner.learn(rows, targets)


def _learned(make: Make, cuts: list[MiniBatch]) -> Learner:
    learner = make()
    _learn(learner, cuts)
    return learner


def _restored(make: Make, learner: Learner) -> Learner:
    """Return a new learner in the state of another, by way of bytes."""
    other = make()
    other.restore(load_state(dump_state(learner.state())))
    return other


def _merged(make: Make, start: Learner, X: Array, y: Array | None, ends: list[int]) -> Learner:
    """Return a learner like ``start`` that merged parts of these rows, each made by another learner in that state."""
    bounds, parts = [0, *ends, len(X)], []
    for first, last in itertools.pairwise(bounds):
        worker: Any = _restored(make, start)
        part = worker.partial(*_cut(X[first:last], None if y is None else y[first:last]))
        _same_state(start, worker, "after partial")
        parts.append(load_state(dump_state(part)))
    place: Any = _restored(make, start)
    place.merge(parts)
    merged: Learner = place
    return merged


def _with(array: Array, row: int, value: float) -> Array:
    changed = array.astype(np.float64)
    changed[row, ...] = value
    return changed


def _scribble(state: dict[str, Any]) -> None:
    for value in state.values():
        if isinstance(value, np.ndarray) and value.size:
            value.reshape(-1).view(np.uint8)[:] = 0x55


def _refused(
    learner: Learner, X: Array, y: Array | None, rows: tuple[int, ...], what: str, *, asked: bool = True
) -> None:
    """Return whether learn, and predict when it is ``asked`` too, refuse these rows by their indexes."""
    before = state_hash(learner.state())
    calls: list[tuple[str, Callable[[], Any]]] = [("learn", lambda: learner.learn(X, y))]
    if asked:
        calls.append(("predict", lambda: learner.predict(X)))
    for name, call in calls:
        try:
            call()
        except BadRows as error:
            _require(error.rows == rows, f"{what}: {name} refused rows {error.rows}, expected {rows}")
        else:
            raise AssertionError(f"{what}, but {name} took it")
        _require(state_hash(learner.state()) == before, f"{what}: {name} refused it, but changed the state")


_CHILD = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from headrace.testing.learners import _in_another_process
_in_another_process()
"""


def _in_another_process() -> None:
    make, state, cuts, X = pickle.load(sys.stdin.buffer)
    learner = make()
    learner.restore(load_state(state))
    _learn(learner, cuts)
    sys.stdout.buffer.write(pickle.dumps((dump_state(learner.state()), learner.predict(_frozen(X)))))
