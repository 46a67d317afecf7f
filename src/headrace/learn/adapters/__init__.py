"""Models of other libraries as learners: what `App.model` takes.

Models, losses and layers of these libraries, and of their users, share no types: adapters ask for attributes that not
every one has with `getattr` and a default.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headrace.errors import DeclarationError
from headrace.learn.base import Learner, one_line


def __dir__() -> list[str]:
    return ["keras", "torch"]


def adapted(model: Any, *, classes: Iterable[Any] | None = None, names: Sequence[str] | None = None) -> Learner:
    """Return a model as a learner; a learner is one already.

    Args:
        model: a learner, an estimator of scikit-learn, a model of River, a compiled model of Keras, or what `keras` or
            `torch` gave.
        classes: every label, for classifiers.
        names: of the features, for models that know them by name.

    Raises:
        DeclarationError: nothing here can make it learn as rows arrive.

    >>> from sklearn.linear_model import SGDRegressor
    >>> type(adapted(SGDRegressor())).__name__
    'SklearnLearner'
    """
    if isinstance(model, type):
        raise DeclarationError(
            f"{model.__name__} is a class, not a model", advice=f"Make one of it: {model.__name__}(…)."
        )
    if isinstance(model, WithOptions):
        return model.learner(classes=classes)
    if isinstance(model, Learner):
        if classes is not None:
            raise DeclarationError(f"{type(model).__name__} takes no classes=", advice="Leave it out.")
        return model
    if hasattr(model, "get_params") and hasattr(model, "__sklearn_tags__"):
        from headrace.learn.adapters.sklearn import SklearnLearner

        return SklearnLearner(model, classes=classes)
    if any(kind.__module__.startswith("river.") for kind in type(model).__mro__):
        from headrace.learn.adapters.river import RiverLearner

        return RiverLearner(model, classes=classes, names=names)
    if _is_a("keras", "Model", model):
        return keras(model).learner(classes=classes)
    if _is_a("torch", "Module", model):
        raise DeclarationError(
            f"{type(model).__name__} does not say how it learns",
            advice="hr.adapters.torch(module, optimizer=…, loss=…)",
        )
    raise DeclarationError(
        f"{type(model).__name__} is not a learner",
        advice="Take an estimator of scikit-learn with partial_fit, a model of River, a compiled model of Keras, a "
        "PyTorch module in hr.adapters.torch(…), or a class with learn, predict, ready, parameters, state and restore "
        "(headrace.Learner).",
    )


@dataclass(frozen=True, repr=False)
class WithOptions:
    """A model and how it is to learn, for `App.model`."""

    model: Any
    make: Callable[..., Learner]
    options: Mapping[str, Any]

    def __repr__(self) -> str:
        given = {name: option for name, option in self.options.items() if option is not None}
        texts = [f"{name}={getattr(option, '__qualname__', None) or repr(option)}" for name, option in given.items()]
        return one_line(f"{type(self.model).__name__} with {', '.join(texts)}")

    def learner(self, *, classes: Iterable[Any] | None = None) -> Learner:
        """Return the learner.

        Raises:
            DeclarationError: the model, or the options, cannot be taken.
        """
        return self.make(self.model, classes=classes, **self.options)


def keras(
    model: Any,
    *,
    shape: tuple[int, ...] | None = None,
    batch_size: int | None = None,
    epochs: int = 1,
    pretrained: bool = False,
) -> WithOptions:
    """Return a compiled model of Keras 3 with options; without any, the model itself does.

    Args:
        model: compiled and built.
        shape: of one row, where the model does not say it, or leaves a size open.
        batch_size: rows of one update; None: each cut is one update.
        epochs: how often each cut is learned.
        pretrained: it predicts before it has learned here, as a model does whose weights were loaded.
    """
    from headrace.learn.adapters.keras_model import KerasLearner

    options = {"shape": shape, "batch_size": batch_size, "epochs": epochs, "pretrained": pretrained}
    return WithOptions(model, KerasLearner, options)


def torch(
    module: Any,
    *,
    optimizer: Any,
    loss: Any,
    shape: tuple[int, ...] | None = None,
    batch_size: int | None = None,
    epochs: int = 1,
    seed: int = 0,
    pretrained: bool = False,
) -> WithOptions:
    """Return a `torch.nn.Module` with what it needs to learn.

    Args:
        module: the network.
        optimizer: made of its parameters, or a function that makes one of parameters.
        loss: as ``loss(outputs, targets)``.
        shape: of one row, where the network does not begin with a `torch.nn.Linear`.
        batch_size: rows of one update; None: each cut is one update.
        epochs: how often each cut is learned.
        seed: of the generator that Dropout draws from.
        pretrained: it predicts before it has learned here, as a module does whose weights were loaded.
    """
    from headrace.learn.adapters.torch_module import TorchLearner

    options = {"optimizer": optimizer, "loss": loss, "shape": shape, "seed": seed}
    more = {"batch_size": batch_size, "epochs": epochs, "pretrained": pretrained}
    return WithOptions(module, TorchLearner, {**options, **more})


def _is_a(library: str, name: str, model: Any) -> bool:
    """Return whether a class of this name of a library is among a model's; nothing is imported for it."""
    kinds = type(model).__mro__
    return any(kind.__name__ == name and kind.__module__.partition(".")[0] == library for kind in kinds)
