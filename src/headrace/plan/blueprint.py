"""A model's declaration as a log keeps it, so that commands can make the model again without the pipeline's file.

What has no form that is safe to load is not kept: functions, classes of one's own, PyTorch's modules, streams that are
transformed before they are learned. Nothing here is unpickled, but for River's models, which this installation signed.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from headrace.errors import DeclarationError, HeadraceError
from headrace.learn.base import Learner, declared_with, traits_of
from headrace.learn.category import Category
from headrace.learn.features import Feature
from headrace.learn.images import Image, Vector
from headrace.learn.kmeans import KMeans
from headrace.learn.linear import LinearRegression
from headrace.learn.state import dump_state, load_state
from headrace.plan.fingerprint import core, declaration_differences
from headrace.plan.plan import Plan
from headrace.plan.task import Cut, ModelTask, PredictPlan, StreamPlan, Versions
from headrace.registry.models import ModelRecord

LARGEST = 262_144
_FEATURES: dict[str, Any] = {"Image": Image, "Vector": Vector, "Category": Category}


def blueprint(task: ModelTask) -> dict[str, Any] | None:
    """Return what the model can be made of again, as JSON values; None where there is no such form.

    >>> task = ModelTask("m", KMeans(2), ("x",), learn=(StreamPlan("rows"),))
    >>> task_from("m", blueprint(task)).fingerprint() == task.fingerprint()
    True
    """
    if any(stream.operations for stream in task.learn):
        return None
    features, learner = _features(task), _learner(task.learner)
    if features is None or learner is None:
        return None
    learned = [stream.topic for stream in task.learn]
    made: dict[str, Any] = {
        "learner": learner,
        "features": features,
        "target": task.target,
        "cut": asdict(task.cut),
        "learn": learned,
        "reads": [topic for topic in task.topics if topic not in learned],
        "sample_weight": task.sample_weight,
        "missing": task.missing,
        "versions": asdict(task.versions),
    }
    if task.nodes or task.retrain or task.initial:
        # Enough for reading its versions, not for repeating its steps.
        made["derived"] = True
    return dict(json.loads(text)) if len(text := json.dumps(made, default=str)) <= LARGEST else None


def task_from(name: str, made: Mapping[str, Any]) -> ModelTask:
    """Make a model of its blueprint. It learns the same; where its predictions go is not known.

    Raises:
        HeadraceError: a part of it cannot be made here.
    """
    return ModelTask(
        name,
        _made_learner(made["learner"]),
        tuple(feature if isinstance(feature, str) else _feature(feature) for feature in made["features"]),
        made["target"],
        Cut(**made["cut"]),
        tuple(StreamPlan(topic) for topic in made["learn"]),
        tuple(PredictPlan(StreamPlan(topic)) for topic in made["reads"]),
        sample_weight=made["sample_weight"],
        missing=made["missing"],
        versions=Versions(**made["versions"]),
    )


def task_before(task: ModelTask, fingerprint: Mapping[str, Any], made: Mapping[str, Any] | None) -> ModelTask | None:
    """Return a model as it was declared; what hangs on it is as it is now. None where that cannot be made again.

    Args:
        task: as it is declared now: parts that were the same are taken from it.
        fingerprint, made: of then, as a log keeps them.
    """
    then, now = core(fingerprint), task.fingerprint()
    if then == now:
        return task
    same = {key for key in now if then.get(key) == now[key]}
    if "learns_derived" in then and "learns_derived" not in same:
        return None
    try:
        made_again = None if made is None else task_from(task.name, made)
    except HeadraceError:
        made_again = None
    known = {str(stream): stream for stream in (*task.learn, *(plan.stream for plan in task.predict))}
    streams = [known.get(text) or StreamPlan(text) for text in then["inputs"]]
    whole = made_again or task
    learner: Learner | None = task.learner
    if "learner" not in same or "parameters" not in same:
        by_itself = declared_with(task.learner, then["parameters"]) if "learner" in same else None
        learner = by_itself if made_again is None else made_again.learner
    other_features = "features" not in same and made_again is None
    if learner is None or other_features or any(" │ " in stream.topic for stream in streams):
        return None
    return replace(
        task,
        learner=learner,
        features=task.features if "features" in same else whole.features,
        target=then["target"],
        cut=_cut(then["cut"]) if made_again is None else whole.cut,
        learn=task.learn if "inputs" in same else tuple(streams),
        sample_weight=then.get("sample_weight"),
        missing=then.get("missing", "reject"),
        versions=Versions(then.get("versions", 0), task.versions.last),
        learn_nodes=task.learn_nodes if "learns_derived" in then else (),
    )


def _cut(text: str) -> Cut:
    """Return a cut of its text.

    >>> [str(_cut(str(cut))) for cut in (Cut(transaction=True), Cut(rows=32), Cut(duration_us=1_500_000))]
    ['transaction', '32 rows', '1.5 s']
    """
    number, _, unit = text.partition(" ")
    if not unit:
        return Cut(transaction=True)
    return Cut(rows=int(number)) if unit == "rows" else Cut(duration_us=round(float(number) * 1e6))


def declared_by_plan(plan: Plan, name: str, record: ModelRecord, *, where: str) -> ModelTask:
    """Return a model's task as a plan has it, where a log knows the model likewise.

    Args:
        record: what the log keeps of the model.
        where: the plan comes from, for messages.

    Raises:
        DeclarationError: the plan has no such model, or declares it differently.
    """
    task = next((model for model in plan.models if model.name == name), None)
    if task is None:
        raise DeclarationError(f"{where} declares no model «{name}»")
    fingerprint = record["fingerprint"]
    changed = declaration_differences(fingerprint, task.fingerprint()) if fingerprint else []
    if changed:
        raise DeclarationError(f"{where} declares «{name}» differently from the log: {'; '.join(changed)}")
    return task


def declared_by_log(name: str, record: ModelRecord, *, repeats: bool) -> tuple[Plan, ModelTask]:
    """Return the plan of a model alone, as a log keeps the declaration.

    Args:
        record: what the log keeps of the model.
        repeats: its steps are to be repeated, for which the log does not know enough of a model that is graded.

    Raises:
        DeclarationError: the log does not say how to make the model.
    """
    made, fingerprint = record.get("blueprint"), core(record["fingerprint"])
    reason = "it is made of what is not kept in a log (functions, classes of your own, transformed streams)"
    if made and made.get("derived") and repeats:
        reason = "it is graded or trained anew, which only its file says how"
    elif made:
        try:
            task = task_from(name, made)
        except HeadraceError as error:
            reason = error.message
        else:
            own = task.fingerprint()
            if {key: value for key, value in fingerprint.items() if key in own} == own:
                return Plan(record["app"], "", tasks=(task,)), task
            reason = "what the log keeps of it makes another one with these libraries"
    raise DeclarationError(
        f"the log alone does not say how to make «{name}»: {reason}", advice="Give the pipeline's file: --file FILE."
    )


def _features(task: ModelTask) -> list[Any] | None:
    if callable(task.features):
        return None
    found: list[Any] = []
    for feature in task.features:
        kind = type(feature)
        if isinstance(feature, str):
            found.append(feature)
        elif _FEATURES.get(kind.__name__) is kind:
            found.append({"feature": kind.__name__, **{f.name: getattr(feature, f.name) for f in _own(kind)}})
        else:
            return None
    return found


def _feature(made: Mapping[str, Any]) -> Feature:
    kind = _FEATURES[made["feature"]]
    values = {field.name: made[field.name] for field in _own(kind)}
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})  # type: ignore[no-any-return]  # one of three classes


def _own(kind: Any) -> list[Any]:
    return [field for field in fields(kind) if field.name != "dtype"]


def _learner(learner: Learner) -> dict[str, Any] | None:
    kind = f"{type(learner).__module__}.{type(learner).__qualname__}"
    parameters = learner.parameters()
    if kind == "headrace.learn.kmeans.KMeans":
        return {"kind": "kmeans", "parameters": parameters}
    if kind == "headrace.learn.linear.LinearRegression":
        return {"kind": "linear", "parameters": parameters}
    if kind == "headrace.learn.adapters.sklearn.SklearnLearner":
        more = {"classes": parameters["classes"], "stores_beginning": traits_of(learner).stores_beginning}
        return {"kind": "scikit-learn", **more, "state": _text(learner)}
    if kind == "headrace.learn.adapters.river.RiverLearner":
        more = {"classes": parameters["classes"], "names": parameters["names"]}
        more["stores_beginning"] = traits_of(learner).stores_beginning
        return {"kind": "river", **more, "state": _text(learner)}
    if kind == "headrace.learn.adapters.keras_model.KerasLearner":
        return _keras(learner, parameters)
    return None


def _made_learner(made: Mapping[str, Any]) -> Learner:
    if made["kind"] == "kmeans":
        return KMeans(**made["parameters"])
    if made["kind"] == "linear":
        return LinearRegression(**made["parameters"])
    if made["kind"] == "keras":
        return _made_keras(made)
    state = load_state(base64.b64decode(made["state"]), limit=LARGEST)
    learner: Any
    if made["kind"] == "river":
        from headrace.learn.adapters.river import made_again

        learner = made_again(state, classes=made["classes"], names=made["names"])
    else:
        from headrace.learn.adapters.sklearn import SklearnLearner, stored_estimator

        learner = SklearnLearner(stored_estimator(state), classes=made["classes"])
    # What it had learned before the log began is in the log's first checkpoint, not here.
    learner.traits = replace(learner.traits, stores_beginning=bool(made.get("stores_beginning")))
    return learner  # type: ignore[no-any-return]  # one of the two


def _text(learner: Any) -> str:
    """Return the declaration alone: what was learned before the log began is in its first checkpoint."""
    return base64.b64encode(dump_state(learner.unlearned().state())).decode()


def _keras(learner: Any, parameters: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return architecture and compilation; weights are in the states."""
    import keras

    try:
        config = keras.saving.serialize_keras_object(learner.plain())
        json.dumps(config)
    except (TypeError, ValueError):  # what Keras cannot write: functions, for example
        return None
    options = {name: parameters[name] for name in ("classes", "shape", "batch_size", "epochs")}
    return {"kind": "keras", "config": config, **options, "pretrained": learner.ready}


def _made_keras(made: Mapping[str, Any]) -> Learner:
    try:
        import keras
    except ImportError as error:
        raise HeadraceError("the model is one of Keras, which is not installed", advice="pip install keras") from error
    from headrace.learn.adapters.keras_model import KerasLearner

    try:
        model = keras.saving.deserialize_keras_object(dict(made["config"]), safe_mode=True)
    except Exception as error:  # Keras raises whatever its layers raise
        raise HeadraceError(f"Keras cannot make the model again: {error}") from error
    shape = tuple(made["shape"])
    options = {name: made[name] for name in ("classes", "batch_size", "epochs", "pretrained")}
    return KerasLearner(model, shape=shape, **options)
