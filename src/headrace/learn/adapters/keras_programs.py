"""A compiled Keras model as something that is run on variables held elsewhere.

On JAX a model is a function of its variables: copies of a learner share the compiled functions, and each has arrays of
its own, which no update changes. Other back ends keep variables in the model; there one learner's are in it at a time.
"""

from __future__ import annotations

import contextlib
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import numpy as np

from headrace.arrays import Array
from headrace.errors import DeclarationError, LearnError

# Of what Keras finds by itself, and of what is no part of a description.
_KNOWN_MODULES = frozenset({"keras", "builtins", "numpy", "jax", "jaxlib", "torch", "tensorflow"})


class Program(ABC):
    """A model that is run on values of its variables.

    Attributes:
        model: Headrace's own copy, compiled.
        backend: of Keras.
        names: of the variables, in the order of ``arrays``.
    """

    backend: str

    def __init__(self, model: Any, loss: Any, shape: tuple[int, ...], *, rows: int | None, padded: bool) -> None:
        self.model = model
        self.names = _names(model)
        self._loss, self._shape, self._rows, self._padded = loss, shape, rows, padded

    @abstractmethod
    def begin(self) -> Any:
        """Return the values the model came with."""

    @abstractmethod
    def copied(self, values: Any) -> Any:
        """Return values that change apart from these."""

    @abstractmethod
    def holding(self, arrays: list[Array]) -> Any:
        """Return values equal to these arrays, which are copied."""

    @abstractmethod
    def arrays(self, values: Any) -> list[Array]:
        """Copies of the variables' values."""

    @abstractmethod
    def seen(self, values: Any) -> list[Array]:
        """Return the variables' values, to be read at once."""

    @abstractmethod
    def updated(self, values: Any, X: Array, y: Array, weights: Array | None) -> Any:
        """Return the values after one update; those given are not to be used any more."""

    @abstractmethod
    def outputs(self, values: Any, X: Array) -> Array:
        """Return the model's outputs for some rows."""

    def plain(self, values: Any) -> Any:
        """Return a model with these values, compiled with the user's loss."""
        kept = self.model.optimizer
        made = _compile(_copy(self.model, self._shape), _again(kept), self._loss, _options(self.model), kept)
        variables = [variable for group in _groups(made) for variable in group]
        for variable, array in zip(variables, self.arrays(values), strict=True):
            variable.assign(array)
        return made

    def recipe(self) -> Recipe:
        """Return what another process makes an equal program from."""
        import keras

        model, loss = self.model, self._loss
        described = keras.saving.serialize_keras_object(model)
        described.pop("compile_config", None)  # it may be with a loss of ours
        return Recipe(
            model=described,
            optimizer=keras.saving.serialize_keras_object(model.optimizer),
            loss=keras.saving.serialize_keras_object(loss),
            own=_own_objects(model, loss),
            options=_options(model),
            shape=self._shape,
            rows=self._rows,
            padded=self._padded,
            backend=self.backend,
        )


@dataclass(frozen=True, slots=True)
class Recipe:
    """A program as Keras' own descriptions of what it is made of; values of its variables are not in it.

    Attributes:
        own: classes and functions that are not Keras', by their names, and those that were registered with Keras.
    """

    model: Any
    optimizer: Any
    loss: Any
    own: Mapping[str, Any]
    options: Mapping[str, Any]
    shape: tuple[int, ...]
    rows: int | None
    padded: bool
    backend: str

    def program(self) -> Program:
        """Return the program.

        Raises:
            LearnError: Keras runs on another back end here.
        """
        os.environ.setdefault("KERAS_BACKEND", self.backend)  # read by Keras when it is first imported
        import keras

        if keras.backend.backend() != self.backend:
            raise LearnError(
                f"a model of Keras on {self.backend} cannot be made where Keras runs on {keras.backend.backend()}",
                advice=f"Set KERAS_BACKEND={self.backend} there, too.",
            )
        model, optimizer, loss = (
            keras.saving.deserialize_keras_object(described, custom_objects=dict(self.own), safe_mode=False)
            for described in (self.model, self.optimizer, self.loss)
        )
        if not model.built or not _is_layered(model):
            model(keras.ops.zeros((1, *self.shape)))
        judged = keras.losses.get(only_loss(loss))
        _compile(model, optimizer, _counting(judged) if self.padded else judged, self.options)
        return _program(model, loss, self.shape, self.rows, padded=self.padded)


def only_loss(loss: Any) -> Any:
    """Return the one loss of what a model is compiled with, as it was given; several as they are."""
    if isinstance(loss, dict | list | tuple) and len(loss) == 1:
        return next(iter(loss.values() if isinstance(loss, dict) else loss))
    return loss


def program_of(model: Any, loss: Any, shape: tuple[int, ...], *, pin_seeds: bool, rows: int | None) -> Program:
    """Return a copy of a compiled model.

    Args:
        model: the user's, which stays as it is.
        loss: its loss.
        shape: of a row.
        pin_seeds: give generators whose seed is open the seeds 0, 1, ….
        rows: of an update, where all are alike.

    Raises:
        DeclarationError: it cannot be copied.
    """
    import keras

    own = _copy(model, shape)
    if pin_seeds:
        _pin_seeds(own)
    padded = keras.backend.backend() == "jax" and rows_are_apart(own, loss)
    kept = model.optimizer
    _compile(own, _again(kept), _counting(loss) if padded else loss, _options(model), kept)
    return _program(own, model.loss, shape, rows, padded=padded)


def _program(own: Any, loss: Any, shape: tuple[int, ...], rows: int | None, *, padded: bool) -> Program:
    import keras

    backend = keras.backend.backend()
    if backend == "jax":
        return JaxProgram(own, loss, shape, rows=rows, padded=padded)
    return HeldProgram(own, loss, shape, backend, rows=rows)


class JaxProgram(Program):
    """Pure functions of lists of arrays; see `Program`.

    The step that is compiled is the model's own ``train_step``: https://keras.io/guides/custom_train_step_in_jax/
    """

    backend = "jax"

    def __init__(self, model: Any, loss: Any, shape: tuple[int, ...], *, rows: int | None, padded: bool) -> None:
        import jax

        super().__init__(model, loss, shape, rows=rows, padded=padded)
        self._metrics = [variable.value for variable in model.metrics_variables]
        eager = bool(model.run_eagerly)
        self._step = self._trained if eager else jax.jit(self._trained)
        self._compute = self._computed if eager else jax.jit(self._computed)

    def begin(self) -> Any:
        model = self.model
        return tuple([v.value for v in group] for group in _groups(model))

    def copied(self, values: Any) -> Any:
        return values

    def holding(self, arrays: list[Array]) -> Any:
        import jax.numpy as jnp

        given, groups = iter(arrays), _groups(self.model)
        return tuple([jnp.array(next(given), copy=True) for _ in group] for group in groups)

    def arrays(self, values: Any) -> list[Array]:
        return [np.array(variable) for group in values for variable in group]

    def seen(self, values: Any) -> list[Array]:
        return [np.asarray(variable) for group in values for variable in group]

    def updated(self, values: Any, X: Array, y: Array, weights: Array | None) -> Any:
        if self._padded:
            X, y, weights = _padded(X, y, weights, self._rows or _power_of_two(len(X)))
        found = self._step(values, X, y, weights)
        for group in found:  # an update runs in the background: an error of it, and the caller's arrays, belong here
            for array in group:
                array.block_until_ready()
        return found

    def outputs(self, values: Any, X: Array) -> Array:
        n = len(X)
        size = _power_of_two(n)
        if size > n:
            X = np.concatenate([X, np.broadcast_to(X[:1], (size - n, *X.shape[1:]))])
        return np.asarray(self._compute(values[0], values[1], X), np.float32)[:n]

    def _trained(self, values: Any, X: Any, y: Any, weights: Any) -> Any:
        _, state = self.model.train_step((*values, self._metrics), (X, y, weights))
        return tuple(list(group) for group in state[:3])

    def _computed(self, trainable: Any, others: Any, X: Any) -> Any:
        return self.model.predict_step((trainable, others), (X,))[0]


class Held:
    """Values of a `HeldProgram`: in the model, or aside."""

    def __init__(self, arrays: list[Array] | None) -> None:
        self.arrays = arrays


class HeldProgram(Program):
    """A model that holds its variables (TensorFlow, PyTorch); see `Program`."""

    def __init__(self, model: Any, loss: Any, shape: tuple[int, ...], backend: str, *, rows: int | None) -> None:
        super().__init__(model, loss, shape, rows=rows, padded=False)
        self.backend = backend
        self._variables = [variable for group in _groups(model) for variable in group]
        self._inside = Held(None)
        self._lock = threading.RLock()

    def begin(self) -> Held:
        return self._inside

    def copied(self, values: Held) -> Held:
        return Held(self.arrays(values))

    def holding(self, arrays: list[Array]) -> Held:
        return Held([np.array(array) for array in arrays])

    def arrays(self, values: Held) -> list[Array]:
        with self._lock:
            if values.arrays is not None:
                return [array.copy() for array in values.arrays]
            return self._read()

    seen = arrays

    def updated(self, values: Held, X: Array, y: Array, weights: Array | None) -> Held:
        with self._having(values), self._draws():
            self.model.train_on_batch(X, y, weights)
        return values

    def outputs(self, values: Held, X: Array) -> Array:
        with self._having(values):
            return np.asarray(self.model.predict_on_batch(X), np.float32)

    @contextlib.contextmanager
    def _having(self, values: Held) -> Iterator[None]:
        """These values are in the model inside; those that were are put aside."""
        with self._lock, _threads(self.backend):
            if values is not self._inside:
                assert values.arrays is not None
                self._inside.arrays = self._read()
                for variable, array in zip(self._variables, values.arrays, strict=True):
                    variable.assign(array)
                self._inside, values.arrays = values, None
            yield

    def _draws(self) -> contextlib.AbstractContextManager[None]:
        """On PyTorch Keras' Dropout leaves its seed aside: it draws from PyTorch's generator, here update by update."""
        if self.backend != "torch":
            return contextlib.nullcontext()
        from headrace.learn.adapters.torch_module import drawing_from

        return drawing_from(int(self.model.optimizer.iterations), self._variables[0].value.device)

    def _read(self) -> list[Array]:
        return [_array(variable) for variable in self._variables]


def rows_are_apart(model: Any, loss: Any) -> bool:
    """Return whether rows that count nothing change nothing: no layer and no loss looks at several rows together."""
    if not _is_layered(model) or not _is_kerases(type(model)) or not _is_kerases(type(loss), loss):
        return False
    return not any(
        not _is_kerases(type(operation))
        or type(operation).__name__ in ("Lambda", "Masking", "BatchNormalization", "ActivityRegularization")
        or not hasattr(operation, "weights")  # a function of keras.ops, over any axis
        or getattr(operation, "activity_regularizer", None) is not None
        or getattr(operation, "mask_zero", False)
        or getattr(operation, "stateful", False)
        for operation in _operations(model)
    )


def _is_layered(model: Any) -> bool:
    """Return whether Keras knows of what it is made: it is no class of the user's own."""
    import keras

    return isinstance(model, keras.Sequential) or hasattr(model, "operations")


def _operations(model: Any) -> Iterator[Any]:
    """Yield layers and functions of a model, those of models and wrappers within it included."""
    inside = getattr(model, "operations", None) or getattr(model, "layers", None)
    for operation in model._flatten_layers(recursive=False, include_self=False) if inside is None else inside:
        yield operation
        if hasattr(operation, "_flatten_layers"):
            yield from _operations(operation)


def _is_kerases(kind: type, value: Any = None) -> bool:
    """Return whether a class, or a function, is Keras' own."""
    modules = {kind.__module__, getattr(getattr(value, "fn", value), "__module__", None) or "keras"}
    return all(module.partition(".")[0] in ("keras", "builtins") for module in modules)


def _counting(loss: Any) -> Any:
    """Return a loss reduced over the rows that count, as Keras reduces it where there are no others.

    A weight of -1 says that a row does not count. ``sum_over_batch_size`` divides by the number of those that do.
    """
    import keras
    from keras import ops

    inner = loss if isinstance(loss, keras.losses.Loss) else None
    reduction = "sum_over_batch_size" if inner is None else inner.reduction

    class Counting(keras.losses.Loss):  # type: ignore[misc]  # Keras declares no types
        def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
            y_pred = ops.convert_to_tensor(y_pred, dtype=self.dtype)
            y_true = ops.convert_to_tensor(y_true, dtype=self.dtype)
            values = self.call(y_true, y_pred)
            given = ops.reshape(ops.cast(sample_weight, values.dtype), (-1,))
            counts = ops.cast(given >= 0, values.dtype)
            weights = given * counts
            total = ops.sum(values * weights)
            if reduction == "sum":
                return total
            return ops.divide_no_nan(total, ops.sum(weights if reduction == "mean_with_sample_weight" else counts))

        def call(self, y_true: Any, y_pred: Any) -> Any:
            return loss(y_true, y_pred) if inner is None else inner.call(y_true, y_pred)

    return Counting(name="counting", reduction=reduction, dtype=None if inner is None else inner.dtype)


def _copy(model: Any, shape: tuple[int, ...]) -> Any:
    """Return the same layers with the same values, in variables of its own."""
    import keras

    try:
        with keras.saving.custom_object_scope(_own_objects(model)):
            if _is_layered(model):
                made = _cloned(model)
            else:
                made = type(model).from_config(model.get_config())
                made(keras.ops.zeros((1, *shape)))  # a class of the user's own has its layers' weights by being called
    except Exception as error:  # what layers of one's own raise, too
        raise _no_copy(model, str(error)) from error
    _assign(model.variables, made.variables, model)
    return made


def _cloned(layer: Any) -> Any:
    """Copy a layer, or a model with all that is in it, not compiled: Keras' copies must be able to name the loss."""
    import keras

    if isinstance(layer, keras.Sequential):
        begin = keras.Input(batch_shape=layer.inputs[0].shape, dtype=layer.inputs[0].dtype)
        return keras.Sequential([begin, *map(_cloned, layer.layers)], name=layer.name)
    if hasattr(layer, "operations"):
        again = type(layer)(layer.input, layer.output, name=layer.name)
        return keras.models.clone_model(again, clone_function=_cloned)
    if isinstance(layer, keras.layers.Lambda):  # the function is in this process already
        return type(layer).from_config(layer.get_config(), safe_mode=False)
    return type(layer).from_config(layer.get_config())


def _assign(given: Any, own: Any, model: Any) -> None:
    alike = len(given) == len(own) and all(a.shape == b.shape for a, b in zip(given, own, strict=True))
    if not alike:
        raise _no_copy(model, f"{len(given)} variables became {len(own)}, or others")
    for a, b in zip(given, own, strict=True):
        b.assign(_array(a))  # not JAX's array itself: Keras gives its memory away when the user's model trains on


def _no_copy(model: Any, why: str) -> DeclarationError:
    return DeclarationError(
        f"the Keras model «{type(model).__name__}» cannot be copied: {why.splitlines()[0] if why else 'no reason'}",
        advice="Give layers and models of your own get_config(), and let no two layers share a variable.",
    )


def _pin_seeds(model: Any) -> None:
    """Generators with an open seed get the seeds 0, 1, ….: otherwise each process would draw another."""
    import keras

    for layer in model._flatten_layers():
        for value in vars(layer).values():
            if isinstance(value, keras.random.SeedGenerator) and value.get_config()["seed"] is None:
                value.state.assign(np.array([_pinned(model, value), 0], value.state.dtype))


def _pinned(model: Any, generator: Any) -> int:
    states = [variable for variable in model.variables if variable.name == "seed_generator_state"]
    return next((i for i, state in enumerate(states) if state is generator.state), 0)


def _compile(own: Any, optimizer: Any, loss: Any, options: Mapping[str, Any], kept: Any = None) -> Any:
    """Compile without metrics: they take time and teach nothing.

    Args:
        optimizer: its own, new.
        options: of `_options`.
        kept: an optimizer like it, whose values it gets.
    """
    own.compile(
        optimizer=optimizer,
        loss=loss,
        **options,
        auto_scale_loss=False,  # the optimizer does it already, where it is to
    )
    optimizer.build(own.trainable_variables)
    if kept is not None and kept.built:
        _assign(kept.variables, optimizer.variables, own)
    return own


def _again(optimizer: Any) -> Any:
    return type(optimizer).from_config(optimizer.get_config())


def _options(model: Any) -> dict[str, Any]:
    """Return with what else a model is compiled."""
    return {
        "loss_weights": (model.get_compile_config() or {}).get("loss_weights"),
        "run_eagerly": model.run_eagerly,
        "jit_compile": model.jit_compile,
    }


def _own_objects(model: Any, loss: Any = None) -> dict[str, Any]:
    """Return what Keras must be told of to make a model again: classes and functions that are not its own."""
    import keras

    layers = [model, *_operations(model)]
    inside = [value for layer in layers for value in vars(layer).values()]
    judged = keras.losses.get(only_loss(loss))
    found: dict[str, Any] = dict(keras.saving.get_custom_objects())
    for value in [*layers, *inside, model.optimizer, judged, getattr(judged, "fn", None)]:
        named = value if isinstance(value, FunctionType) else type(value)
        if named.__module__.partition(".")[0] not in _KNOWN_MODULES:
            found.setdefault(named.__name__, named)
    return found


def _groups(model: Any) -> tuple[list[Any], list[Any], list[Any]]:
    """Variables in the order of JAX's state: https://keras.io/guides/custom_train_step_in_jax/"""
    return model.trainable_variables, model.non_trainable_variables, model.optimizer.variables


def _names(model: Any) -> list[str]:
    trainable, others, optimizer = _groups(model)
    of_model = [f"variable.{i:03d}.{variable.name}" for i, variable in enumerate([*trainable, *others])]
    return of_model + [f"optimizer.{i:03d}.{_last(variable.name)}" for i, variable in enumerate(optimizer)]


def _last(name: str) -> str:
    """Return the end of a variable's name: optimizers name by layers, which are numbered by the process' history."""
    return name.rpartition("_")[2] if "_" in name and name not in ("learning_rate",) else name


def _padded(X: Array, y: Array, weights: Array | None, rows: int) -> tuple[Array, Array, Array]:
    n = len(X)
    weights = np.ones(n, np.float32) if weights is None else weights
    if n == rows:
        return X, y, weights
    X, y = (np.concatenate([array, np.broadcast_to(array[:1], (rows - n, *array.shape[1:]))]) for array in (X, y))
    return X, y, np.concatenate([weights, np.full(rows - n, -1, np.float32)])


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _array(variable: Any) -> Array:
    import keras

    return np.array(keras.ops.convert_to_numpy(variable.value))  # a copy


def _threads(backend: str) -> contextlib.AbstractContextManager[None]:
    if backend != "torch":
        return contextlib.nullcontext()
    from headrace.learn.adapters.torch_module import one_torch_thread

    return one_torch_thread()
