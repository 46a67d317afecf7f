"""Modules of PyTorch as learners: the contract, what is refused, and that they learn as PyTorch alone does.

PyTorch is 5 GB: these run in an environment of their own, ``make test-torch``.
"""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.learners import contract  # noqa: E402

import headrace as hr  # noqa: E402
from headrace.errors import BadRows, DeclarationError, LearnError  # noqa: E402
from headrace.learn.adapters import adapted  # noqa: E402
from headrace.learn.adapters import torch as with_options  # noqa: E402
from headrace.learn.base import adopt, declared_with  # noqa: E402
from headrace.learn.state import dump_state, load_state, state_hash  # noqa: E402

nn, optim = torch.nn, torch.optim
RNG = np.random.default_rng(7)
X = RNG.normal(size=(96, 36))
LABELS = (X[:, 0] + X[:, 1] > 0).astype(np.int64) + (X[:, 2] > 0)
WORDS = np.array(["few", "some", "tons"])[LABELS]


def mlp(rate: float = 0.3, outputs: int = 3) -> Any:
    return nn.Sequential(nn.Linear(36, 16), nn.ReLU(), nn.Dropout(rate), nn.Linear(16, outputs))


def cnn() -> Any:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


def adam(parameters: Any) -> Any:
    return optim.Adam(parameters, 0.01)


def momentum(parameters: Any) -> Any:
    return optim.SGD(parameters, 0.05, momentum=0.9)


def lbfgs(parameters: Any) -> Any:
    return optim.LBFGS(parameters, max_iter=3)


def make(
    build: Callable[[], Any],
    optimizer: Any = adam,
    loss: Any = torch.nn.functional.cross_entropy,
    classes: Any = None,
    **options: Any,
) -> hr.Learner:
    torch.manual_seed(5)
    return adapted(with_options(build(), optimizer=optimizer, loss=loss, **options), classes=classes)


CASES: dict[str, tuple[Callable[[], hr.Learner], Any]] = {
    "dropout and Adam": (partial(make, mlp, classes=("few", "some", "tons")), WORDS),
    "in mini-batches": (partial(make, mlp, loss=nn.CrossEntropyLoss(), classes=range(3), batch_size=16), LABELS),
    "convolution, momentum": (partial(make, cnn, momentum, classes=range(3), shape=(1, 6, 6)), LABELS),
    "regressor": (partial(make, partial(mlp, 0.3, 1), loss=nn.MSELoss()), X[:, 0] * 2),
    "LBFGS": (partial(make, partial(mlp, 0.0, 1), lbfgs, nn.HuberLoss()), X[:, 0] * 2),
    "two classes": (partial(make, partial(mlp, 0.3, 1), loss=nn.BCEWithLogitsLoss(), classes=(0, 1)), LABELS > 0),
}


@pytest.mark.parametrize("check", contract({case: (build, X, y) for case, (build, y) in CASES.items()}))
def test_contract(check: Callable[[], None]) -> None:
    check()


# -- what is taken -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "classes", "words"),
    [
        (mlp, range(3), r"does not say how it learns.*hr\.adapters\.torch"),
        (lambda: with_options(object(), optimizer=adam, loss=nn.MSELoss()), None, r"no torch\.nn\.Module"),
        (lambda: with_options(nn.LazyLinear(1), optimizer=adam, loss=nn.MSELoss()), None, "no parameters yet"),
        (lambda: with_options(mlp(), optimizer=adam(mlp().parameters()), loss=nn.MSELoss()), None, "not the module's"),
        (lambda: with_options(mlp(), optimizer="adam", loss=nn.MSELoss()), None, "optimizer='adam'"),
        (lambda: with_options(mlp(), optimizer=adam, loss="mse"), None, "loss='mse'"),
        (
            lambda: with_options(mlp(), optimizer=adam, loss=nn.CrossEntropyLoss()),
            None,
            r"tells classes apart.*classes=",
        ),
        (lambda: with_options(mlp(), optimizer=adam, loss=nn.CrossEntropyLoss()), range(4), "3 outputs for 4 classes"),
        (lambda: with_options(mlp(), optimizer=adam, loss=nn.MSELoss()), None, "3 outputs for one number"),
        (lambda: with_options(mlp(), optimizer=adam, loss=nn.MSELoss()), range(3), "is not known"),
        (lambda: with_options(mlp(), optimizer=adam, loss=nn.BCEWithLogitsLoss()), range(3), "by one output"),
        (lambda: with_options(mlp(), optimizer=adam, loss=nn.MSELoss(reduction="none")), None, "not reduced"),
        (lambda: with_options(cnn(), optimizer=adam, loss=nn.CrossEntropyLoss()), range(3), "shape of its rows"),
        (
            lambda: with_options(mlp(), optimizer=adam, loss=nn.CrossEntropyLoss(), shape=(5,)),
            range(3),
            "rows of shape",
        ),
        (lambda: with_options(mlp(), optimizer=adam, loss=nn.CrossEntropyLoss(), epochs=0), range(3), "epochs=0"),
    ],
    ids=(
        *("a module alone", "no module", "a lazy layer", "another's optimizer", "no optimizer", "no loss"),
        *("no classes", "too many classes", "three numbers", "squares of labels", "two classes", "not reduced"),
        *("no shape", "another shape", "no epochs"),
    ),
)
def test_what_cannot_be_taken_is_refused_when_it_is_declared(
    build: Callable[[], Any], classes: Any, words: str
) -> None:
    with pytest.raises(DeclarationError, match=f"(?s){words}"):
        hr.App("x", log="memory://").model("m", build(), features=["a"], classes=classes)


def by_hand(module: Any, optimizer: Any, loss: Any, *cuts: Any) -> None:
    """PyTorch as its tutorial has it."""
    module.train()
    for rows, y in cuts:
        optimizer.zero_grad()
        loss(module(torch.tensor(rows, dtype=torch.float32)), torch.tensor(y)).backward()
        optimizer.step()


def parameters(learner: hr.Learner) -> list[Any]:
    return [value for name, value in learner.state().items() if name.startswith("module.")]


CUTS = [(X[s], LABELS[s]) for s in (slice(0, 32), slice(32, 33), slice(33, 96))]


@pytest.mark.parametrize("declare", ["an optimizer", "a function"])
def test_a_learner_equals_the_library_called_directly(declare: str) -> None:
    module = mlp()
    optimizer = optim.AdamW(module.parameters(), 0.01, weight_decay=0.1)
    taken = optimizer if declare == "an optimizer" else partial(optim.AdamW, lr=0.01, weight_decay=0.1)
    learner: Any = adapted(with_options(module, optimizer=taken, loss=nn.CrossEntropyLoss(), seed=3), classes=range(3))
    for rows, y in CUTS:
        learner.learn(rows, y)
    torch.manual_seed(3)
    by_hand(module, optimizer, nn.CrossEntropyLoss(), *CUTS)
    own = [parameter.detach().numpy() for parameter in module.parameters()]
    assert all((a == b).all() for a, b in zip(own, parameters(learner), strict=True))
    module.eval()
    with torch.no_grad():
        expected = torch.softmax(module(torch.tensor(X, dtype=torch.float32)), 1).numpy()
    assert np.allclose(learner.predict_proba(X), expected, atol=1e-6)


def test_the_users_module_optimizer_and_generator_stay_as_they_are() -> None:
    module = mlp()
    optimizer = adam(module.parameters())
    before = [parameter.detach().numpy().copy() for parameter in module.parameters()]
    drawn, threads = torch.get_rng_state().numpy().copy(), torch.get_num_threads()
    learner = adapted(with_options(module, optimizer=optimizer, loss=nn.CrossEntropyLoss()), classes=range(3))
    learner.learn(X, LABELS)
    learner.predict(X)
    assert all((a == b.detach().numpy()).all() for a, b in zip(before, module.parameters(), strict=True))
    assert not optimizer.state
    assert (torch.get_rng_state().numpy() == drawn).all()
    assert torch.get_num_threads() == threads


def test_what_was_trained_before_goes_on() -> None:
    module = mlp(0.0)
    optimizer = adam(module.parameters())
    by_hand(module, optimizer, nn.CrossEntropyLoss(), CUTS[0])
    learner = adapted(with_options(module, optimizer=optimizer, loss=nn.CrossEntropyLoss()), classes=range(3))
    assert learner.ready
    learner.learn(*CUTS[2])
    by_hand(module, optimizer, nn.CrossEntropyLoss(), CUTS[2])  # with the moments of the optimizer
    own = [parameter.detach().numpy() for parameter in module.parameters()]
    assert all((a == b).all() for a, b in zip(own, parameters(learner), strict=True))


def test_a_module_that_learned_nothing_does_not_answer_unless_it_is_said_to() -> None:
    with pytest.raises(LearnError, match=r"learned nothing yet(?s:.*)pretrained"):
        make(mlp, classes=range(3)).predict(X)
    assert len(make(mlp, classes=range(3), pretrained=True).predict(X)) == 96


@pytest.mark.parametrize(
    ("loss", "last", "classes"),
    [
        (nn.CrossEntropyLoss(), None, ("few", "some", "tons")),
        (torch.nn.functional.cross_entropy, None, (0, 1, 2)),
        (nn.NLLLoss(), nn.LogSoftmax(1), (0, 1, 2)),
        (nn.MultiMarginLoss(), None, (0, 1, 2)),
        (nn.BCEWithLogitsLoss(), None, ("no", "yes")),
        (nn.BCELoss(), nn.Sigmoid(), (False, True)),
    ],
    ids=["cross-entropy", "its function", "log-probabilities", "margins", "binary", "binary probabilities"],
)
def test_labels_are_mapped_to_what_the_loss_takes(loss: Any, last: Any, classes: tuple[Any, ...]) -> None:
    torch.manual_seed(2)
    layers = [nn.Linear(36, 3 if len(classes) == 3 else 1), *([] if last is None else [last])]
    module = nn.Sequential(*layers)
    options = with_options(module, optimizer=partial(optim.Adam, lr=0.05), loss=loss, epochs=60)
    learner: Any = adapted(options, classes=classes)
    labels = np.array(classes)[LABELS if len(classes) == 3 else (LABELS > 0).astype(int)]
    learner.learn(X, labels)
    assert (learner.predict(X) == labels).mean() > 0.75
    if isinstance(loss, nn.MultiMarginLoss):
        assert "predict_proba" not in learner.traits.offers
        return
    chances = learner.predict_proba(X)
    assert np.allclose(chances.sum(axis=1), 1, atol=1e-5)
    assert (learner.classes[chances.argmax(axis=1)] == learner.predict(X)).all()


# -- weights -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(),
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 5.0])),
        nn.CrossEntropyLoss(reduction="sum"),
        torch.nn.functional.cross_entropy,
    ],
    ids=["mean", "weights of classes", "sum", "function"],
)
def test_weights_multiply(loss: Any) -> None:
    plain, ones, doubled, twice = (make(mlp, momentum, loss, range(3)) for _ in range(4))
    plain.learn(X, LABELS)
    ones.learn(X, LABELS, sample_weight=np.ones(96))  # type: ignore[call-arg]  # optional in the contract
    assert all(np.allclose(a, b, atol=1e-6) for a, b in zip(parameters(plain), parameters(ones), strict=True))
    if getattr(loss, "reduction", "") == "sum":
        rows = np.r_[np.arange(10), np.arange(10)]
        doubled, twice = (make(partial(mlp, 0.0), momentum, loss, range(3)) for _ in range(2))
        doubled.learn(X[:10], LABELS[:10], sample_weight=np.full(10, 2.0))  # type: ignore[call-arg]  # as above
        twice.learn(X[rows], LABELS[rows])
        assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(parameters(doubled), parameters(twice), strict=True))


def test_a_loss_that_takes_no_weights_says_so() -> None:
    learner: Any = make(partial(mlp, 0.0, 1), loss=lambda given, y: ((given - y) ** 2).mean())
    learner.learn(X, X[:, 0])
    with pytest.raises(LearnError, match="takes no weights"):
        learner.learn(X, X[:, 0], sample_weight=np.ones(96))


# -- states and declarations -------------------------------------------------------------------------------------


def test_a_state_of_another_network_is_refused() -> None:
    learner = make(mlp, classes=range(3))
    learner.learn(X, LABELS)
    before, state = state_hash(learner.state()), learner.state()
    for other in (
        {**state, "module.0.bias": np.zeros(3, np.float32)},
        make(cnn, shape=(1, 6, 6), classes=range(3)).state(),
    ):
        with pytest.raises(LearnError, match=r"shape|missing"):
            learner.restore(other)
    assert state_hash(learner.state()) == before


def test_types_that_numpy_lacks_are_kept() -> None:
    def half() -> Any:
        return mlp(0.0).to(torch.bfloat16)

    one = make(half, classes=range(3))
    one.learn(X, LABELS)
    other = make(half, classes=range(3))
    other.restore(load_state(dump_state(one.state())))
    assert state_hash(one.state()) == state_hash(other.state())
    for learner in (one, other):
        learner.learn(X[:20], LABELS[:20])
    assert state_hash(one.state()) == state_hash(other.state())


CHILD = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
import pickle
made = pickle.loads(sys.stdin.buffer.read())
print(json.dumps({name: build().parameters() for name, build in made.items()}))
"""


def test_a_declaration_is_the_same_in_another_process() -> None:
    makers = {name: build for name, (build, _) in CASES.items()}
    child = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(sys.path)],
        input=pickle.dumps(makers),
        capture_output=True,
        timeout=120,
    )
    assert child.returncode == 0, child.stderr.decode()
    assert json.loads(child.stdout) == json.loads(json.dumps({name: m().parameters() for name, m in makers.items()}))
    assert len({json.dumps(m().parameters()) for m in makers.values()}) == len(makers)


def test_bad_rows_change_nothing() -> None:
    learner = make(mlp, classes=("few", "some", "tons"))
    before = state_hash(learner.state())
    for y in (np.where(np.arange(96) == 5, "none", WORDS), None):
        with pytest.raises(BadRows):
            learner.learn(X, y)
    assert state_hash(learner.state()) == before


def test_layers_that_write_into_their_input_leave_the_callers_alone() -> None:
    learner = make(lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(36, 3)), classes=range(3), shape=(36,))
    mine = X.astype(np.float32)
    learner.learn(mine, LABELS)
    learner.predict(mine)
    assert (mine == X.astype(np.float32)).all()


def test_pytorch_loads_what_is_saved(tmp_path: Path) -> None:
    learner: Any = make(mlp, classes=range(3))
    learner.learn(X, LABELS)
    assert learner.save_to(tmp_path / "out") == ["state_dict.pt", "module.txt"]
    loaded = torch.load(tmp_path / "out" / "state_dict.pt", weights_only=True)
    module = mlp()
    module.load_state_dict(loaded["module"])
    adam(module.parameters()).load_state_dict(loaded["optimizer"])
    module.eval()
    with torch.no_grad():
        assert (module(torch.tensor(X, dtype=torch.float32)).argmax(1).numpy() == learner.predict(X)).all()
    assert "Dropout" in (tmp_path / "out" / "module.txt").read_text()


def test_copies_learn_apart_and_alike() -> None:
    one = make(mlp, classes=range(3))
    one.learn(X[:32], LABELS[:32])
    other = copy.deepcopy(one)
    before = state_hash(one.state())
    other.learn(X, LABELS)
    assert state_hash(one.state()) == before
    one.learn(X, LABELS)
    assert state_hash(one.state()) == state_hash(other.state())


# -- going on under other parameters --------------------------------------------------------------------------------

Optimizer = Callable[[Any], Any]
GOES_ON: dict[str, tuple[Optimizer, Optimizer, dict[str, Any], bool]] = {
    "a rate": (adam, lambda p: optim.Adam(p, 0.5), {}, True),
    "options that were on": (momentum, lambda p: optim.SGD(p, 0.05, momentum=0.5, weight_decay=0.1), {}, True),
    "an option that was off": (lambda p: optim.RMSprop(p), lambda p: optim.RMSprop(p, momentum=0.9), {}, False),
    "another kind of state": (adam, lambda p: optim.Adam(p, 0.01, amsgrad=True), {}, False),
    "another optimizer": (adam, momentum, {}, False),
    "batches, epochs, a seed": (adam, adam, {"batch_size": 8, "epochs": 2, "seed": 9}, True),
    "LBFGS": (adam, lbfgs, {}, False),
}


@pytest.mark.parametrize("case", GOES_ON)
def test_parameters_that_say_how_it_goes_on_may_change(case: str) -> None:
    """And the learner of before is made of the one of now: steps that were taken before can be repeated."""
    old, new, options, keeps = GOES_ON[case]
    before: Any = make(mlp, old, classes=range(3))
    now: Any = make(mlp, new, classes=range(3), **options)
    before.learn(X[:32], LABELS[:32])
    adopt(now, before.state(), before.parameters())
    assert now.predict_proba(X).tolist() == before.predict_proba(X).tolist()
    assert bool(now._optimizer.state) == keeps
    again = make(mlp, new, classes=range(3), **options)
    again.restore(load_state(dump_state(now.state())))
    made: Any = declared_with(now, before.parameters())
    assert made is not None and made.parameters() == before.parameters()
    made.restore(before.state())
    for learner in (before, now, again, made):
        learner.learn(X[32:64], LABELS[32:64])
    assert state_hash(now.state()) == state_hash(again.state()) != state_hash(before.state())
    assert state_hash(made.state()) == state_hash(before.state())


def test_weights_that_do_not_learn_any_more_keep_their_meaning() -> None:
    def frozen() -> Any:
        module = mlp()
        module[0].requires_grad_(False)
        return module

    before: Any = make(mlp, classes=range(3))
    now: Any = make(frozen, classes=range(3))
    before.learn(X[:32], LABELS[:32])
    adopt(now, before.state(), before.parameters())
    now.learn(X[32:], LABELS[32:])
    kept = [np.array_equal(now.state()[f"module.{n}"], before.state()[f"module.{n}"]) for n in ("0.weight", "3.weight")]
    assert kept == [True, False]
    made: Any = declared_with(now, before.parameters())
    assert made is not None and made.parameters() == before.parameters()


@pytest.mark.parametrize(
    ("build", "more", "words"),
    [
        (lambda: nn.Sequential(nn.Linear(36, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3)), {}, "out_features=8"),
        (lambda: nn.Sequential(nn.Linear(36, 16), nn.GELU(), nn.Dropout(0.3), nn.Linear(16, 3)), {}, r"ReLU.*GELU"),
        (mlp, {"loss": nn.MultiMarginLoss()}, r"«loss» .*MultiMarginLoss"),
        (mlp, {"classes": (0, 1, 3)}, r"the classes \[0, 1, 2\], and \[0, 1, 3\]"),
    ],
)
def test_parameters_that_decide_what_was_learned_are_refused(build: Any, more: Any, words: str) -> None:
    before: Any = make(mlp, classes=range(3))
    now: Any = make(build, **{"classes": range(3), **more})
    before.learn(X[:32], LABELS[:32])
    fresh = state_hash(now.state())
    with pytest.raises(LearnError, match=words):
        adopt(now, before.state(), before.parameters())
    assert state_hash(now.state()) == fresh
    assert declared_with(now, before.parameters()) is None


def test_a_pipeline_goes_on_with_another_rate_and_all_of_it_is_replayed(tmp_path: Path) -> None:
    from headrace.formats.topic_formats import codec_for
    from headrace.log import open_log
    from headrace.registry.requests import put_continue
    from headrace.replay.verify import verify

    def app(rate: float) -> hr.App:
        made = hr.App("net", log=tmp_path / "net.headrace")
        rows = made.topic("rows", append=True)
        torch.manual_seed(1)
        module = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
        learner = hr.adapters.torch(module, optimizer=optim.Adam(module.parameters(), rate), loss=nn.MSELoss())
        model = made.model("m", learner, features=["a", "b"], target="y")
        model.learn(rows, every=4)
        model.predict(rows).to("predictions")
        return made

    def feed(pipeline: hr.App, first: int) -> None:
        with pipeline.start() as running:
            running.append("rows", [{"a": i % 3, "b": i % 5, "y": i % 7} for i in range(first, first + 11)])
            running.wait(60)

    feed(app(0.01), 0)
    with closing(open_log(tmp_path / "net.headrace", writer=True)) as held, held.transaction() as txn:
        put_continue(txn, "m", "me@here", 1)
    feed(app(0.1), 11)
    with closing(open_log(tmp_path / "net.headrace", writer=False, codec=codec_for())) as held:
        assert verify(app(0.1).plan(), held).result == "equal"
