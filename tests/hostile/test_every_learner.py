"""Every learner of the conformance suite with every column type as a feature, and as its target.

All rows come in one topic, whose column changes its type with every append. Each row is answered and learned, or has a
dead letter with a reason; the good rows among them are never refused; after a restart nothing changes.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import headrace as hr
from headrace.log import open_log
from headrace.log.base import walk
from headrace.replay.verify import verify
from tests.contract.test_learner import CASES as OWN
from tests.learn.test_river import CASES as RIVER
from tests.learn.test_sklearn import CASES as SKLEARN

from .conftest import Captured
from .test_every_type import gathered

Case = tuple[Callable[[], Any], Any]
LEARNERS: dict[str, Case] = {
    **{name: (make, y) for name, (make, _, y) in OWN.items()},
    **{f"scikit-learn's {name}": case for name, case in SKLEARN.items()},
    **{f"River's {name}": case for name, case in RIVER.items()},
}
GOOD_EVERY = 8  # after so many types a row that all learners can take


def target_of(y: Any) -> str | None:
    """The column with labels such as these."""
    if y is None:
        return None
    kind = np.asarray(y).dtype.kind
    return {"f": "number", "i": "whole", "b": "truth"}.get(kind, "word")


def declare(log: Path, learners: dict[str, Case], hostile: str) -> hr.App:
    app = hr.App("learners", log=log)
    rows = app.topic("rows", append=True)
    for number, (make, y) in enumerate(learners.values()):
        target = target_of(y)
        if hostile == "target" and target is None:
            continue
        features = ["a", "b", "c", "v" if hostile == "feature" else "d"]
        named = target if hostile == "feature" else "v"
        model = app.model(f"m{number}", make(), features=features, target=named)
        model.learn(rows)
        scored = model.predict(rows).to(f"p{number}")
        if named is not None:
            model.evaluate(rows)
            scored.grade(rows, on="id", within="1 h").to(f"g{number}")
    return app


def table(batch: pa.Array, first: int, words: dict[str, Any]) -> pa.Table:
    n = len(batch)
    number = np.arange(first, first + n, dtype=np.float64)
    return pa.table(
        {
            "id": pa.array(np.arange(first, first + n)),
            **{name: pa.array(1.0 + (number * prime) % 7) for name, prime in (("a", 2), ("b", 3), ("c", 5), ("d", 11))},
            "v": batch,
            "number": pa.array(number % 5),
            "whole": pa.array(np.arange(first, first + n) % 3),
            "truth": pa.array(np.arange(first, first + n) % 2 == 0),
            **{name: pa.array([value] * n) for name, value in words.items()},
        }
    )


@pytest.mark.parametrize("hostile", ["feature", "target"])
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["some", "every"])
def test_learners_go_on(captured: Captured, tmp_path: Path, every: bool, hostile: str) -> None:
    log = tmp_path / "learners.headrace"
    kinds = captured.kinds(every=every)
    # A step of each learner for each type costs; the long form has all of both.
    learners = LEARNERS if every else dict(list(LEARNERS.items())[::5])
    appended = unlabelled = 0
    with declare(log, learners, hostile).start() as running:
        for i, kind in enumerate(kinds):
            batch = captured.batches[kind][0]
            running.append("rows", table(batch.column("v"), appended, {"word": "setosa"}))
            appended += batch.num_rows
            unlabelled += batch.column("v").null_count if hostile == "target" else 0
            if i % GOOD_EVERY == 0:
                fine = pa.array([1.0]) if hostile == "feature" else pa.array(["setosa"])
                running.append("rows", table(fine, appended, {"word": "setosa"}))
                appended += 1
        running.wait(120)
        learned = {name: running[name].learned for name in running.models}
    app = declare(log, learners, hostile)
    with app.start() as running:
        running.wait(120)
        assert {name: running[name].learned for name in running.models} == learned
    with contextlib.closing(open_log(log, writer=False)) as held, gathered() as check:
        report = verify(app.plan(), held)
        check("verify", lambda: _equal(report))
        letters = [row for entry in walk(held, "rows.dlq") for row in entry.records.to_pylist()]
        assert all(row["reason"] for row in letters)
        told = Counter((row["model"], row["stage"]) for row in letters)
        topics = held.topics()
        for number, name in enumerate(learners):
            model = f"m{number}"
            if f"p{number}" in topics:
                rows = topics[f"p{number}"].rows
                check(name, lambda rows=rows: _all(rows, appended))
                count = learned[model] + told[model, "learn"]
                check(name, lambda count=count: _all(count, appended - unlabelled))


def _all(count: int, appended: int) -> None:
    assert count == appended, f"{count} of {appended}"


def _equal(report: Any) -> None:
    assert report.result == "equal", [(task.task, task.differences) for task in report.tasks if task.differences]
