"""Models of other libraries as learners: what `App.model` takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from headrace.errors import DeclarationError
from headrace.learn.base import Learner


def adapted(model: Any, *, classes: Iterable[Any] | None = None, names: Sequence[str] | None = None) -> Learner:
    """A model as a learner; a learner is one already.

    Args:
        model: a learner, an estimator of scikit-learn, or a model of River.
        classes: every label, for classifiers.
        names: of the features, for models that know them by name.

    Raises:
        DeclarationError: nothing here can make it learn as rows arrive.

    >>> from sklearn.linear_model import SGDRegressor
    >>> type(adapted(SGDRegressor())).__name__
    'SklearnLearner'
    """
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
    raise DeclarationError(
        f"{type(model).__name__} is not a learner",
        advice="Take an estimator of scikit-learn with partial_fit, a model of River, or a class with learn, predict, "
        "ready, parameters, state and restore (headrace.Learner).",
    )
