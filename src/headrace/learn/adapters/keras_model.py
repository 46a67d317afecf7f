"""Compiled models of Keras 3 as learners, on any of its back ends.

Keras itself takes its back end from the environment before it is first imported: ``KERAS_BACKEND=jax``.

A model's declaration is JSON values that are equal in every process: Keras numbers the layers that have no name by
what the process has made before (``dense_7``), here they are numbered by their place.

Source: https://keras.io/api/models/model_training_apis/
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from headrace.arrays import Array
from headrace.errors import DeclarationError, LearnError
from headrace.learn.adapters.estimator import class_name, refuse_other_meaning, sorted_classes
from headrace.learn.adapters.keras_programs import Program, only_loss, program_of
from headrace.learn.adapters.network import Coding, Network, Outputs, Scale, matching, row_shape
from headrace.learn.base import State, as_json, largest_in

# What a loss makes of labels, and what makes probabilities of the outputs it judges (with from_logits).
_LOSSES: dict[str, tuple[Coding, Scale | None]] = {
    "sparse_categorical_crossentropy": ("integers", "softmax"),
    "categorical_crossentropy": ("one_hot", "softmax"),
    "categorical_focal_crossentropy": ("one_hot", "softmax"),
    "kl_divergence": ("one_hot", "as they are"),
    "categorical_hinge": ("one_hot", None),
    "binary_crossentropy": ("binary", "sigmoid"),
    "binary_focal_crossentropy": ("binary", "sigmoid"),
    "hinge": ("binary", None),
    "squared_hinge": ("binary", None),
}


# Parameters beside the network that only say how it goes on learning.
_OPTIONS = frozenset({"optimizer", "batch_size", "epochs"})

# References to layers are under these; elsewhere an equal text ("relu", "float32") means something else.
_NAMING = frozenset({"name", "keras_history", "input_layers", "output_layers"})


class KerasLearner(Network):
    """A compiled model with one input and one output.

    Each cut is one update (``train_on_batch``), or one for every ``batch_size`` rows. JAX compiles anew for each
    number of rows; there the rows of an update are padded to ``batch_size``, or to the next power of two, with rows
    that count nothing, and the loss is reduced over the rows that count: up to rounding, and apart from the noise that
    Dropout draws, what the update of the rows alone gives. Where rows may influence one another, or the loss depends
    on more than a row at a time (`BatchNormalization`, activity regularizers, Lambda, layers and losses of one's own),
    nothing is padded: every number of rows is compiled by itself, so that a cut by rows is advisable.

    What is kept: weights, the optimizer's variables and the generators of Dropout and noise, whose open seeds become
    0, 1, …; on PyTorch, where Keras' Dropout leaves its seed aside, each update begins at the seed of its number.
    Metrics of ``compile`` are not computed. One process repeats another's bits on the same back end and CPU with the
    same number of threads, which JAX and TensorFlow take from the machine; on a GPU sums may differ in their last bits
    from run to run, and on TensorFlow's CPU those of `BatchNormalization` did between processes (2.21).

    Args:
        model: compiled and built; copied, never changed. One that was trained before predicts at once.
        classes: every label there is, for a classifier: where the loss is a cross-entropy or a hinge, and for other
            losses with an output for each class.
        shape: of one row, where the model does not say it, or leaves a size open.
        batch_size: rows of one update.
        epochs: how often each cut is learned.
        pretrained: it predicts before it has learned here, as a model does whose weights were loaded.

    Raises:
        DeclarationError: it is not compiled or not built, has several inputs or outputs, cannot be copied, or
            ``classes`` do not fit.

    >>> import os
    >>> _ = os.environ.setdefault("KERAS_BACKEND", "jax")  # before the first import of Keras
    >>> import keras
    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, "sigmoid", kernel_initializer="ones")])
    >>> model.compile("sgd", "binary_crossentropy")
    >>> learner = KerasLearner(model, classes=["no", "yes"])
    >>> learner.learn(np.array([[-1.0], [1.0]]), np.array(["no", "yes"]))
    >>> learner.predict(np.array([[3.0], [-2.0]])).tolist()
    ['yes', 'no']
    """

    def __init__(
        self,
        model: Any,
        *,
        classes: Iterable[Any] | None = None,
        shape: tuple[int, ...] | None = None,
        batch_size: int | None = None,
        epochs: int = 1,
        pretrained: bool = False,
    ) -> None:
        name = f"the Keras model «{type(model).__name__}»"
        loss = _compiled_loss(model, name)
        shape = _input_shape(model, shape, name)
        outputs = _meaning(loss, classes, _output_size(model, shape, name), name)
        trained = model.optimizer.built and int(model.optimizer.iterations) > 0
        super().__init__(
            name,
            outputs,
            shape,
            _input_dtype(model),
            batch_size=batch_size,
            epochs=epochs,
            learned=pretrained or trained,
            offers=frozenset({"largest", "adopt", "declared_with"}),
        )
        self._program: Program = program_of(model, loss, shape, pin_seeds=not trained, rows=batch_size)
        self._values = self._program.begin()
        self._declared = {
            "model": described(model),
            "optimizer": described_optimizer(self._program.model.optimizer),
            "loss": described_loss(loss),
            "backend": self._program.backend,
        }

    def _update(self, X: Array, y: Array, weights: Array | None) -> None:
        self._values = self._program.updated(self._values, X, y, weights)

    def _forward(self, X: Array) -> Array:
        outputs = self._program.outputs(self._values, X)
        return outputs.reshape(len(X), -1)

    def largest(self) -> float:
        """Return the largest absolute number of its variables; infinite where one is."""
        return largest_in(self._program.seen(self._values))

    def state(self) -> State:
        """Return every variable under its number and name; bfloat16 as the bits of unsigned integers."""
        named: State = dict(zip(self._program.names, map(_storable, self._program.arrays(self._values)), strict=True))
        return named | {"learned": self._learned}

    def restore(self, state: State) -> None:
        """Take over a ``state``.

        Raises:
            LearnError: it is one of another network.
        """
        own = self.state()
        fitting = matching(state, own, self._name)
        kinds = [array.dtype for array in self._program.arrays(self._values)]
        arrays = [np.array(fitting[name]) for name in self._program.names]
        self._values = self._program.holding([a.view(kind) for a, kind in zip(arrays, kinds, strict=True)])
        self._learned = bool(fitting["learned"])

    def adopt(self, state: State, parameters: Mapping[str, Any]) -> None:
        """Take over the state of the same network with the same loss and classes, which was to learn otherwise.

        Another optimizer, or one whose options change what it keeps of each weight, begins without what it knew.

        Raises:
            LearnError: architecture, loss, classes or the shape of a row differ; nothing has been changed then.
        """
        now = as_json(self.parameters())
        refuse_other_meaning(parameters, now, _goes_on, self._name)
        own = self.state()
        of_optimizer = [name for name in own if name.startswith("optimizer.")]
        kept = [
            name
            for name in of_optimizer
            if not name.endswith(".learning_rate") or parameters["optimizer"] == now["optimizer"]
        ]
        same = parameters["optimizer"]["class"] == now["optimizer"]["class"] and _alike(of_optimizer, state, own)
        learned = {name: state.get(name) for name in own if name not in of_optimizer or (same and name in kept)}
        self.restore({**own, **learned})

    def declared_with(self, parameters: Mapping[str, Any]) -> KerasLearner:
        """Return a learner of the same network that was to learn otherwise.

        Raises:
            LearnError: architecture, loss, classes or the shape of a row differ, or Keras cannot make the optimizer.
        """
        own = as_json(self.parameters())
        refuse_other_meaning(parameters, own, lambda path: path[0] in _OPTIONS, self._name)
        model = self.plain()
        described = dict(parameters["optimizer"])
        model.compile(
            optimizer=_made_optimizer(described, model.optimizer, self._name),
            loss=model.loss,
            loss_weights=(model.get_compile_config() or {}).get("loss_weights"),
            run_eagerly=model.run_eagerly,
            jit_compile=model.jit_compile,
        )
        options = {name: parameters[name] for name in ("batch_size", "epochs")}
        return KerasLearner(model, classes=self._labels, shape=self._shape, **options, pretrained=self._learned)

    def plain(self) -> Any:
        """Return a model of Keras with these weights, compiled as it was declared."""
        return self._program.plain(self._values)

    def save_to(self, directory: Path) -> list[str]:
        """Write files that Keras loads without Headrace, and say their names.

        ``model.keras`` for ``keras.saving.load_model`` (which wants ``safe_mode=False`` where there are Lambda layers):
        architecture, weights, optimizer and loss, ready to be trained on. It does not keep where Dropout's generators
        are; ``weights.npz`` does: every variable, by number and name, for ``numpy.load``.
        """
        directory.mkdir(parents=True, exist_ok=True)
        self.plain().save(directory / "model.keras")
        arrays = {name: value for name, value in self.state().items() if isinstance(value, np.ndarray)}
        with (directory / "weights.npz").open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        return ["model.keras", "weights.npz"]

    def __deepcopy__(self, memo: dict[int, Any]) -> KerasLearner:
        """Return a copy that shares the program, which learning does not change: it need not be compiled again."""
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__, _values=self._program.copied(self._values))
        return made

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process needs: Keras' own pickles do not know a loss that Keras was not told of."""
        kept = {name: value for name, value in vars(self).items() if name not in ("_program", "_values")}
        return {**kept, "recipe": self._program.recipe(), "arrays": self._program.arrays(self._values)}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        """Become the learner that `__getstate__` was asked of.

        Raises:
            LearnError: Keras runs on another back end here.
        """
        kept = dict(state)
        recipe, arrays = kept.pop("recipe"), kept.pop("arrays")
        self.__dict__.update(kept)
        self._program = recipe.program()
        self._values = self._program.holding(arrays)

    def __repr__(self) -> str:
        return f"{type(self._program.model).__name__}({self._program.model.count_params():,} parameters)"


def _goes_on(path: tuple[str, ...]) -> bool:
    """Return whether a parameter only says how learning goes on."""
    within = path[0] == "model" and any(part.endswith(("_regularizer", "_initializer")) for part in path)
    return path[0] in _OPTIONS or within


def _alike(names: Iterable[str], state: Mapping[str, Any], own: Mapping[str, Any]) -> bool:
    """Return whether stored values of some names have the shapes and types of one's own, and there are no others."""
    stored = {name for name in state if name.startswith("optimizer.")}
    return stored == set(names) and all(
        (np.shape(state[name]), np.asarray(state[name]).dtype) == (np.shape(own[name]), np.asarray(own[name]).dtype)
        for name in names
    )


def _made_optimizer(described: Mapping[str, Any], now: Any, name: str) -> Any:
    """Return an optimizer as it was described.

    Args:
        now: the one that is declared now: its class may be anybody's.

    Raises:
        LearnError: it is not Keras', or Keras makes another one of it.
    """
    import keras

    config = {key: option for key, option in described.items() if key != "class"}
    kind: Any = type(now)
    if described["class"] != class_name(now):
        kind = getattr(keras.optimizers, described["class"].rpartition(".")[2], None)
    try:
        made = kind.from_config(config)
        found = as_json(described_optimizer(made))
    except Exception as error:  # what an optimizer of somebody's own raises, too
        raise LearnError(f"the optimizer {described['class']} of {name} cannot be made again: {error}") from error
    if found != described:
        raise LearnError(f"the optimizer {described['class']} of {name} cannot be made again with its options")
    return made


def _compiled_loss(model: Any, name: str) -> Any:
    """Return its one loss, as Keras' function or object."""
    import keras

    if not getattr(model, "compiled", False) or getattr(model, "optimizer", None) is None:
        raise DeclarationError(f"{name} is not compiled", advice="Call model.compile(optimizer=…, loss=…) before.")
    loss = only_loss(model.loss)
    if loss is None or isinstance(loss, dict | list | tuple):
        raise DeclarationError(
            f"{name} is compiled with {'no loss' if loss is None else 'several losses'}", advice="Give it one loss."
        )
    if isinstance(loss, str) and loss.lower() in ("crossentropy", "ce"):
        raise DeclarationError(
            f"{name} is compiled with loss={loss!r}", advice="Say which cross-entropy: sparse_categorical_crossentropy."
        )
    found = keras.losses.get(loss)
    reduction = getattr(found, "reduction", "sum_over_batch_size")
    if reduction in (None, "none"):
        raise DeclarationError(f"the loss of {name} is not reduced to a number", advice='reduction="mean"')
    return found


def _input_shape(model: Any, shape: tuple[int, ...] | None, name: str) -> tuple[int, ...]:
    inputs = getattr(model, "inputs", None)
    if inputs is not None and len(inputs) > 1:
        raise DeclarationError(f"{name} has {len(inputs)} inputs", advice="Take a model with one input.")
    if not model.built or not model.weights:
        raise DeclarationError(
            f"{name} has no weights yet", advice="Begin it with keras.Input((…,)), or call it on a row."
        )
    if shape is not None:
        return row_shape(shape, name)
    if inputs:
        return row_shape(inputs[0].shape[1:], name)
    built = (model.get_build_config() or {}).get("input_shape")
    if not isinstance(built, tuple | list) or not built or isinstance(built[0], tuple | list):
        raise DeclarationError(
            f"{name} does not say the shape of its input", advice="hr.adapters.keras(model, shape=(…))"
        )
    return row_shape(built[1:], name)


def _input_dtype(model: Any) -> str:
    """Return the type of the input, in which rows are given; models of a smaller float type cast them themselves."""
    inputs = getattr(model, "inputs", None)
    dtype = str(inputs[0].dtype) if inputs else "float32"
    return dtype if dtype.startswith(("int", "uint")) else "float32"


def _output_size(model: Any, shape: tuple[int, ...], name: str) -> int:
    import keras

    outputs = getattr(model, "outputs", None)
    if outputs is not None and len(outputs) > 1:
        raise DeclarationError(f"{name} has {len(outputs)} outputs", advice="Take a model with one output.")
    given = keras.KerasTensor((None, *shape), "float32")
    found = getattr(outputs[0] if outputs else model.compute_output_spec(given), "shape", None)
    if not isinstance(found, tuple) or len(found) != 2 or not isinstance(found[1], int):
        raise DeclarationError(
            f"{name} gives {found}, and one vector a row is needed", advice="End with Flatten, pooling or Dense."
        )
    return found[1]


def _meaning(loss: Any, classes: Iterable[Any] | None, outputs: int, name: str) -> Outputs:
    """Return what the outputs mean, from the loss and the classes."""
    kind = getattr(getattr(loss, "fn", loss), "__name__", type(loss).__name__)
    known = _LOSSES.get(kind)
    if classes is None:
        if known is not None and kind != "kl_divergence":
            raise DeclarationError(
                f"the loss {kind} of {name} tells classes apart, and they are not named",
                advice="Say classes=[…] in app.model(…).",
            )
        meaning = Outputs(None, "number")
    else:
        labels = sorted_classes(classes, name)
        coding, scale = known or ("one_hot", None)
        logits = bool(getattr(loss, "from_logits", False) or getattr(loss, "_fn_kwargs", {}).get("from_logits"))
        if scale is not None and not logits:
            scale = "as they are"
        threshold = 0.5 if scale == "as they are" else 0.0
        meaning = Outputs(labels, coding, scale, threshold)
    meaning.check_number(outputs, name)
    return meaning


def _storable(array: Array) -> Array:
    """Return the array in NumPy's own types: bfloat16 and float8 become their bits."""
    return array.view(f"u{array.dtype.itemsize}") if array.dtype.kind == "V" else array


def described(model: Any) -> Any:
    """Return the architecture, without weights and without the layers' names. Functions are named, not compared."""
    layers = [model, *model._flatten_layers(include_self=False), *getattr(model, "operations", ())]
    known = {layer.name for layer in layers}
    trainable = [bool(variable.trainable) for variable in model.weights]
    config = {"class": class_name(model), "config": model.get_config(), "trainable": trainable}
    return _numbered(_values(config), known, {})


def described_optimizer(optimizer: Any) -> Any:
    """Return the optimizer's class and options."""
    config = {key: option for key, option in optimizer.get_config().items() if key != "name"}
    return _values({"class": class_name(optimizer), **config})


def described_loss(loss: Any) -> Any:
    """Return the loss' name and options."""
    if not hasattr(loss, "get_config"):
        return _values(loss)
    fn = getattr(loss, "fn", None)
    own = {} if fn is None else {"fn": _values(fn), **_values(getattr(loss, "_fn_kwargs", {}))}
    config = {} if fn is not None else {key: option for key, option in loss.get_config().items() if key != "name"}
    return _values({"class": class_name(loss), "reduction": loss.reduction, **config, **own})


def _values(value: Any) -> Any:
    """JSON values; what has none is named."""
    if isinstance(value, dict):
        if value.get("class_name") == "__lambda__":
            return "lambda"
        if value.get("class_name") == "SeedGenerator":
            return {"class_name": "SeedGenerator", "seed": _values(value.get("config", {}).get("seed"))}
        return {str(key): _values(item) for key, item in value.items() if key != "shared_object_id"}
    if isinstance(value, list | tuple):
        return [_values(item) for item in value]
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if hasattr(value, "get_config"):
        return {"class": class_name(value), "config": _values(value.get_config())}
    return getattr(value, "__qualname__", type(value).__qualname__)


def _numbered(value: Any, known: set[str], places: dict[str, int], *, naming: bool = False) -> Any:
    """Replace names of layers by their places in the order of their first appearance."""
    if isinstance(value, dict):
        return {key: _numbered(item, known, places, naming=key in _NAMING) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbered(item, known, places, naming=naming) for item in value]
    if naming and isinstance(value, str) and value in known:
        return f"#{places.setdefault(value, len(places))}"
    return value
