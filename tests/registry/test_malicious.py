"""What somebody else put into a log is refused before any of it runs."""

from __future__ import annotations

import base64
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import headrace as hr
from headrace.errors import HeadraceError
from headrace.learn.state import LIMIT, dump_pieces, dump_state, load_state
from headrace.log import open_log
from headrace.plan.blueprint import blueprint, task_from
from headrace.registry import models as registry


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """A file that is there when something was run."""
    return tmp_path / "headrace-was-here"


def bomb(mark: Path) -> bytes:
    """A pickle that runs a command when it is opened."""
    return b"cos\nsystem\n(V" + f"touch {mark}".encode() + b"\ntR."


def test_the_bomb_is_one(mark: Path) -> None:
    pickle.loads(bomb(mark))
    assert mark.exists()


def classifier(log: Path) -> hr.App:
    from sklearn.linear_model import SGDClassifier

    app = hr.App("shop", log=log)
    data = app.topic("rows", append=True)
    model = app.model("m", SGDClassifier(), features=["x"], target="t", classes=[0, 1], versions=4)
    model.learn(data)
    return app


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "shop.headrace"
    with classifier(path).start() as running:
        for i in range(4):
            running.append("rows", [{"x": float(i), "t": 0}, {"x": float(9 - i), "t": 1}])
        running.wait()
    return path


def crafted(state: dict[str, Any], node: dict[str, Any]) -> bytes:
    """A state whose tree of skops names something else, its digests all right."""
    tree = json.loads(state["estimator.tree"])
    tree["content"]["content"]["loss"] = node
    return dump_state({**state, "estimator.tree": json.dumps(tree)})


SYSTEM = {
    "__class__": "system",
    "__module__": "os",
    "__loader__": "FunctionNode",
    "__id__": 900,
    "content": {"module_path": "os", "function": "system"},
}
FOREIGN = {
    "__class__": "Popen",
    "__module__": "subprocess",
    "__loader__": "ObjectNode",
    "__id__": 901,
    "content": None,
    "is_json": False,
}
REDUCED = {
    "__class__": "Popen",
    "__module__": "subprocess",
    "__loader__": "ReduceNode",
    "__id__": 902,
    "content": None,
    "args": {"__class__": "tuple", "__module__": "builtins", "__loader__": "TupleNode", "content": [], "__id__": 903},
    "constructor": {"__class__": "Popen", "__module__": "subprocess", "__loader__": "TypeNode", "__id__": 904},
}


@pytest.mark.parametrize("what", ["pickle", "function", "class", "reduce"])
def test_an_artifact_that_was_replaced_is_refused(log: Path, what: str, mark: Path) -> None:
    held = open_log(log, writer=True)
    name = "m/000001"
    state = load_state(held.records("artifact", name)[name])
    bad = {
        "pickle": lambda: bomb(mark),
        "function": lambda: crafted(dict(state), SYSTEM),
        "class": lambda: crafted(dict(state), FOREIGN),
        "reduce": lambda: crafted(dict(state), REDUCED),
    }[what]()
    with held.transaction() as txn:
        txn.put("artifact", name, bad)
    held.close()
    with classifier(log).start() as running:
        before = running["m"].hash
        with pytest.raises(HeadraceError):
            running.rollback("m", 1)
        assert running["m"].hash == before
        running.append("rows", [{"x": 1.0, "t": 0}])  # the pipeline lives
    assert not mark.exists()


@pytest.mark.parametrize("what", ["pickle", "function"])
def test_a_checkpoint_that_was_replaced_stops_the_start(log: Path, what: str, mark: Path) -> None:
    held = open_log(log, writer=True)
    found = held.records("checkpoint", "m/")
    with held.transaction() as txn:
        for name, value in found.items():
            values = load_state(value)
            own = {
                key.removeprefix("current.learner."): one
                for key, one in values.items()
                if key.startswith("current.learner.")
            }
            others = {key: one for key, one in values.items() if not key.startswith("current.learner.")}
            bad = load_state(crafted(dict(own), SYSTEM))
            data = dump_state({**others, **{f"current.learner.{key}": one for key, one in bad.items()}})
            txn.put("checkpoint", name, bomb(mark) if what == "pickle" else data)
    held.close()
    with pytest.raises(HeadraceError):
        classifier(log).start()
    assert not mark.exists()


def test_a_blueprint_that_was_replaced_is_refused(tmp_path: Path, mark: Path) -> None:
    task = classifier(tmp_path / "x.headrace").plan().models[0]
    made = blueprint(task)
    assert made is not None
    state = load_state(base64.b64decode(made["learner"]["state"]))
    for bad in (bomb(mark), crafted(dict(state), SYSTEM), crafted(dict(state), FOREIGN)):
        made["learner"]["state"] = base64.b64encode(bad).decode()
        with pytest.raises(HeadraceError):
            task_from("m", made)
    assert not mark.exists()


def test_a_state_that_is_too_large_is_refused() -> None:
    data = dump_state({"w": np.zeros(1000)})
    with pytest.raises(HeadraceError, match="more than the 100 allowed"):
        load_state(data, limit=100)
    assert LIMIT == 1 << 30


def test_lengths_in_a_state_are_believed_only_after_they_were_compared() -> None:
    head, *rest = dump_pieces({"w": np.zeros(4)})
    lying = bytes(head).replace(b"[4]", b"[4000000000000]")
    with pytest.raises(HeadraceError):
        load_state(lying + b"".join(rest))


def test_a_reset_with_another_class_needs_its_own_states(log: Path) -> None:
    """A version that was declared otherwise is not loaded, were its bytes good."""
    held = open_log(log, writer=True)
    with held.transaction() as txn:
        registry.reset(held, txn, "m", relearn=False, ts_us=1)
    held.close()
    app = hr.App("shop", log=log)
    model = app.model("m", hr.KMeans(k=2, initial_centers=[[0.0], [9.0]]), features=["x"])
    model.learn(app.topic("rows", append=True))
    with app.start() as running, pytest.raises(HeadraceError, match="was declared differently"):
        running.rollback("m", 1)
