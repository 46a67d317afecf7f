"""What hangs on a task, as JSON values: the streams it predicts and is scored on, operators, outputs, trainings.

None of it is what a model has learned, so that it may change while the model goes on. A log keeps what hung on a task
from which step on. `task_as` makes the task again as it was then, as far as its parts have a form that is safe to load,
or are in the pipeline's file still. Operators and expressions are found there by their texts.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from headrace.batch import to_ipc
from headrace.errors import HeadraceError
from headrace.grade import metrics as own_metrics
from headrace.grade.alarm import AlarmSpec
from headrace.grade.compare import CompareSpec
from headrace.grade.metrics import Aggregate, Metric
from headrace.grade.scores import ScoreSpec
from headrace.grade.windows.window import WindowSpec
from headrace.plan.operators import (
    Alarms,
    Grade,
    Node,
    OperatorPlan,
    OutputPlan,
    Predicted,
    Read,
    RetrainPlan,
    Selection,
    StreamPlan,
    Windows,
)
from headrace.plan.task import EvaluatePlan, ModelTask, OperatorTask, PredictPlan, StreamTask, Task
from headrace.transform.expressions import Operation

Attached = dict[str, Any]
"""What hangs on a task: JSON values, as `attachments` makes them."""

_NOWHERE = StreamPlan("")
_STREAM = " │ "
_KINDS = {"grade": "grade", "window": "window", "alarm": "alarm", "drift": "drift detector", "read": "rows of"}


def attachments(task: Task) -> Attached:
    """Return what hangs on a task.

    >>> attachments(StreamTask("s", StreamPlan("rows"), (OutputPlan("copy"),)))["outputs"]
    [{'topic': 'copy', 'after': []}]
    """
    found: dict[str, Any] = {"topics": list(task.topics)}
    if isinstance(task, StreamTask):
        found |= {"stream": str(task.stream), "outputs": _outputs(task.outputs)}
    else:
        found["nodes"] = [{**node.describe(), "outputs": _outputs(node.outputs)} for node in task.nodes]
    if isinstance(task, ModelTask):
        found["predict"] = [_predict(plan) for plan in task.predict]
        found["evaluate"] = [_evaluate(plan) for plan in task.evaluate]
        found["retrain"] = None if task.retrain is None else _retrain(task.retrain)
    return dict(json.loads(json.dumps(found, default=str)))


def _outputs(outputs: Sequence[OutputPlan]) -> list[dict[str, Any]]:
    return [{"topic": output.topic, "after": list(map(str, output.operations))} for output in outputs]


def _predict(plan: PredictPlan) -> dict[str, Any]:
    served = None if plan.served is None else plan.served.topic
    return {"stream": str(plan.stream), "outputs": _outputs(plan.outputs), "proba": plan.proba, "served": served}


def _evaluate(plan: EvaluatePlan) -> dict[str, Any]:
    spec = plan.spec
    about: dict[str, Any] = {"name": spec.name, "kind": spec.kind, "window": spec.window, "metrics": list(spec.metrics)}
    about |= {"functions": sorted(spec.functions), "every": plan.every}
    about["stream"] = None if plan.stream is None else str(plan.stream)
    if plan.rows is not None:
        about["rows"] = [plan.rows.num_rows, hashlib.blake2b(to_ipc(plan.rows.records), digest_size=8).hexdigest()]
    return about


def _retrain(plan: RetrainPlan) -> dict[str, Any]:
    rows = plan.rows
    stream = None if rows.stream is None else str(rows.stream)
    selection = {"kind": rows.kind, "rows": rows.rows, "span_us": rows.span_us, "stream": stream, "query": rows.query}
    return {**plan.describe(), "selection": selection, "on_after": list(map(str, plan.operations))}


# -- what earlier logs know -------------------------------------------------------------------------------------------


def legacy(attached: Attached) -> dict[str, Any]:
    """Return what a log of earlier versions knows of what hangs on a task, in its fingerprint.

    >>> legacy({"nodes": [], "predict": [{"served": "t"}], "retrain": None})
    {'served': ['t']}
    """
    nodes = [{key: value for key, value in node.items() if key != "outputs"} for node in attached.get("nodes", ())]
    served = [plan["served"] for plan in attached.get("predict", ()) if plan["served"]]
    retrain = attached.get("retrain")
    found: dict[str, Any] = {"served": served} if served else {}
    found |= {"derived": nodes} if nodes else {}
    if retrain:
        found["retrain"] = {key: value for key, value in retrain.items() if key not in ("selection", "on_after")}
    return found


def attached_before(fingerprint: Mapping[str, Any], now: Attached) -> Attached:
    """Return what hung on a task of which a log knows the fingerprint of an earlier version only.

    It did not say where rows went and which streams were predicted: that is taken to be as it is ``now``.
    """
    known = {key: fingerprint[key] for key in ("derived", "retrain", "served") if fingerprint.get(key)}
    if known == legacy(now):
        return now
    outputs: dict[str, list[Any]] = {}
    for identity, node in zip(identities(now), now["nodes"], strict=True):
        outputs.setdefault(identity, []).append(node["outputs"])
    found = {**now, "partial": True, "nodes": [dict(node) for node in known.get("derived", ())]}
    for identity, node in zip(identities(found), found["nodes"], strict=True):
        node["outputs"] = outputs[identity].pop(0) if outputs.get(identity) else []
    if "predict" in now:
        served = list(known.get("served", ()))
        found["predict"] = [
            {**plan, "served": plan["served"] if plan["served"] in served else None} for plan in now["predict"]
        ]
        found["retrain"] = _retrain_before(known["retrain"]) if "retrain" in known else None
    return found


def _retrain_before(known: Mapping[str, Any]) -> dict[str, Any]:
    """Return how a model was trained anew, where only the words are known: the newest rows have a form in these."""
    words = str(known["rows"]).split()
    selection: dict[str, Any] = {"kind": "unknown", "rows": 0, "span_us": 0, "stream": None, "query": ""}
    if words[:2] == ["the", "last"] and len(words) == 4:
        last = words[3] == "rows"
        selection |= {"kind": "last", "rows": int(words[2])} if last else {"kind": "since"}
        selection |= {} if last else {"span_us": round(float(words[2]) * 1e6)}
    return {**known, "selection": selection, "on_after": []}


# -- what stayed the same ---------------------------------------------------------------------------------------------


def identities(attached: Attached) -> list[str]:
    """Return what each operator is, with all that its rows come from: another number or topic changes nothing."""
    found: list[str] = []
    for node in attached.get("nodes", ()):
        about = {key: value for key, value in node.items() if key not in ("source", "outputs")}
        if "predicted" in about and "predict" in attached:
            about["predicted"] = attached["predict"][about["predicted"]]["stream"]
        source = node["source"]
        found.append(json.dumps([about, None if source is None else found[source]], sort_keys=True))
    return found


def kept_nodes(before: Attached, after: Attached) -> dict[int, int]:
    """Return number now -> number before, of operators that are the same."""
    return dict(_pairs(identities(before), identities(after)))


def _pairs(before: Sequence[Any], after: Sequence[Any]) -> Iterator[tuple[int, int]]:
    free: dict[Any, list[int]] = {}
    for number, key in enumerate(before):
        free.setdefault(key, []).append(number)
    for number, key in enumerate(after):
        if free.get(key):
            yield number, free[key].pop(0)


# -- what has changed, in words ---------------------------------------------------------------------------------------


def changes(before: Attached, after: Attached) -> list[str]:
    """Return what has changed, a line each; nothing where nothing has.

    >>> old = {"nodes": [{"alarm": {"above": 2.0}, "source": None, "after": [], "outputs": []}]}
    >>> new = {"nodes": [{"alarm": {"above": 3.0}, "source": None, "after": [], "outputs": []}]}
    >>> changes(old, new)
    ['alarm 0: above 2.0 -> 3.0; begins anew']
    """
    return [
        *_stream_lines(before, after),
        *_node_lines(before, after),
        *_evaluate_lines(before, after),
        *_retrain_lines(before, after),
    ]


def _stream_lines(before: Attached, after: Attached) -> Iterator[str]:
    """Yield what has changed of the streams that are predicted, or copied, and where they go."""
    if "outputs" in after:
        yield from _output_lines(f"rows of «{after['stream']}»", before, after)
    old, new = before.get("predict", []), after.get("predict", [])
    pairs = dict(_pairs([plan["stream"] for plan in old], [plan["stream"] for plan in new]))
    for number, plan in enumerate(new):
        was = old[pairs[number]] if number in pairs else None
        if was is None:
            yield f"predictions of «{plan['stream']}» are new; they begin here"
            continue
        yield from _output_lines(f"predictions of «{plan['stream']}»", was, plan)
        if was["proba"] != plan["proba"]:
            yield f"predictions of «{plan['stream']}»: proba {was['proba']} -> {plan['proba']}"
        if was["served"] != plan["served"]:
            how = "go to their topics too" if plan["served"] else "go to no topic any more"
            yield f"predictions of «{plan['stream']}» that are given over HTTP {how}"
    for number, plan in enumerate(old):
        if number not in pairs.values():
            yield f"predictions of «{plan['stream']}» are gone"


def _output_lines(what: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    old, new = ({output["topic"]: output["after"] for output in side["outputs"]} for side in (before, after))
    for topic in new.keys() - old.keys():
        yield f"{what} go to «{topic}» too, from here on"
    for topic in old.keys() - new.keys():
        yield f"{what} go to «{topic}» no longer"
    for topic in new.keys() & old.keys():
        if old[topic] != new[topic]:
            yield f"{what} for «{topic}»: {_shown(old[topic])} -> {_shown(new[topic])}"


def _node_lines(before: Attached, after: Attached) -> Iterator[str]:
    same = kept_nodes(before, after)
    old, new = before.get("nodes", []), after.get("nodes", [])
    gone = {number: node for number, node in enumerate(old) if number not in same.values()}
    for number, node in enumerate(new):
        kind, name = _kind_of(node), _node_name(node, number)
        if number in same:
            yield from _output_lines(f"{name}: rows", old[same[number]], node)
            continue
        at = _meant(node, gone)
        was = None if at is None else gone.pop(at)
        if kind == "predicted":
            continue
        if was is None:
            yield f"{name} is new; begins here"
            continue
        own = _fields_that_differ(was, node)
        yield f"{name}: {', '.join(own) or 'what it is made of has changed'}; begins anew"
        if "partial" not in before:
            yield from _output_lines(f"{name}: rows", was, node)
    for number, node in gone.items():
        if _kind_of(node) != "predicted":
            yield f"{_node_name(node, number)} is gone"


def _kind_of(node: Mapping[str, Any]) -> str:
    return next(kind for kind in ("predicted", *_KINDS) if kind in node)


def _node_name(node: Mapping[str, Any], number: int) -> str:
    kind = _kind_of(node)
    if node["outputs"]:
        return f"{_KINDS[kind]} «{node['outputs'][0]['topic']}»"
    return f"{_KINDS[kind]} «{node[kind]}»" if kind == "read" else f"{_KINDS.get(kind, kind)} {number}"


def _meant(node: Mapping[str, Any], gone: Mapping[int, Mapping[str, Any]]) -> int | None:
    """Return which operator that is no more was this one: of its kind, and its topic where it has one."""
    alike = {number: other for number, other in gone.items() if _kind_of(other) == _kind_of(node)}
    topics = {output["topic"] for output in node["outputs"]}
    by_topic = [n for n, other in alike.items() if topics & {output["topic"] for output in other["outputs"]}]
    plain = [n for n, other in alike.items() if not other["outputs"] or not topics]
    return next(iter(by_topic or plain), None)


def _fields_that_differ(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    old, new = (_flat({k: v for k, v in node.items() if k not in ("source", "outputs")}) for node in (before, after))
    return [
        f"{key.removesuffix('_us')} {_shown(old.get(key), key)} -> {_shown(new.get(key), key)}"
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key)
    ]


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value) if isinstance(value, Mapping) else {key: value}
    return found


def _shown(value: Any, key: str = "") -> str:
    if isinstance(value, int) and (key.endswith("_us") or key in ("within", "lateness")):
        return f"{value / 1e6:g} s"
    if isinstance(value, list):
        return ", ".join(map(_shown, value)) or "nothing"
    return "nothing" if value is None else str(value)


def _evaluate_lines(before: Attached, after: Attached) -> Iterator[str]:
    old, new = ({plan["name"]: plan for plan in side.get("evaluate", ())} for side in (before, after))
    for name, plan in new.items():
        if name not in old:
            yield f"evaluation on «{name}» is new; begins here"
        elif old[name] != plan:
            yield f"evaluation on «{name}»: {', '.join(_fields_that_differ(old[name], plan))}; begins anew"
    for name in old.keys() - new.keys():
        yield f"evaluation on «{name}» is gone"


def same_evaluations(before: Attached, after: Attached) -> set[str]:
    """Return the names of evaluations that have not changed."""
    old = {plan["name"]: plan for plan in before.get("evaluate", ())}
    return {plan["name"] for plan in after.get("evaluate", ()) if old.get(plan["name"]) == plan}


def _trains(attached: Attached) -> dict[str, Any] | None:
    """Return how a model is trained anew, its operators by what they are."""
    plan, nodes = attached.get("retrain"), identities(attached)
    if not plan:
        return None
    return {**plan, **{key: None if plan[key] is None else nodes[plan[key]] for key in ("on", "node")}}


def same_training(before: Attached, after: Attached) -> bool:
    """Return whether a model is trained anew as before: when, on which rows, and how."""
    return _trains(before) == _trains(after)


def same_training_rows(before: Attached, after: Attached) -> bool:
    """Return whether the rows that are kept for a training are of the same operator still."""
    old, new = _trains(before), _trains(after)
    if old is None or new is None:
        return False
    same = all(old[key] == new[key] for key in ("node", "after"))
    return bool(same and old["selection"]["kind"] == new["selection"]["kind"])


def _retrain_lines(before: Attached, after: Attached) -> Iterator[str]:
    old, new = _trains(before), _trains(after)
    if old == new:
        return
    if old is None or new is None:
        yield "it is trained anew from here on" if old is None else "it is not trained anew any more"
        return
    words = [key for key in new if key not in ("selection", "on", "node")]
    told = [f"{key} {_shown(old.get(key))} -> {_shown(new[key])}" for key in words if old.get(key) != new[key]]
    told += ["the operator that sets it off has changed"] if old["on"] != new["on"] else []
    told += ["the operator whose rows it takes has changed"] if old["node"] != new["node"] else []
    yield f"training anew: {', '.join(told) or 'the rows have changed'}"


# -- the task as it was -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AsDeclared:
    """A task as it was declared, as far as it can be made again.

    Attributes:
        unknown: what cannot, in words; it is left out, and so are its rows.
        training_unknown: why it is not known when the model was trained anew, and on what; empty where it is.
    """

    task: Task
    unknown: tuple[str, ...] = ()
    training_unknown: str = ""

    def compared(self, topic: str) -> bool:
        """Return whether the rows of a topic are all known."""
        return not self.unknown or (
            topic in {output.topic for output in self.task.outputs} and not topic.endswith(".dlq")
        )


def task_as(task: Task, attached: Attached) -> AsDeclared:
    """Return a task with what hung on it at some time.

    Args:
        task: as it is declared now: parts of it are found again by their texts.
    """
    if attached == attachments(task):
        return AsDeclared(task)
    return _Maker(task, attached).made()


class _Maker:
    """Makes a task of what hung on it once, and of the parts of what it is now."""

    def __init__(self, task: Task, attached: Attached) -> None:
        self._task, self._attached = task, attached
        self._unknown: list[str] = ["rows of operators that an earlier version did not record"] * (
            "partial" in attached
        )
        self._operations = {str(operation): operation for operation in _operations_of(task)}
        self._streams = {str(stream): stream for stream in _streams_of(task)}
        self._nodes = getattr(task, "nodes", ())  # of a stream that is only copied there are none

    def made(self) -> AsDeclared:
        task, attached = self._task, self._attached
        reads = () if "partial" in attached else tuple(attached["topics"])
        if isinstance(task, StreamTask):
            return AsDeclared(replace(task, outputs=self._outputs_of(attached)), tuple(self._unknown))
        if isinstance(task, OperatorTask):
            return AsDeclared(replace(task, nodes=self._made_nodes([]), reads=reads), tuple(self._unknown))
        predict = [self._predict_plan(plan) for plan in attached["predict"]]
        evaluate = tuple(made for plan in attached["evaluate"] if (made := self._evaluation(plan)) is not None)
        nodes = self._made_nodes([plan.stream for plan in predict])
        retrain, reason = self._training(nodes)
        then = replace(
            task, predict=tuple(predict), evaluate=evaluate, nodes=nodes, retrain=retrain, reads=reads,
            learn_nodes=self._learned_nodes(task),
        )  # fmt: skip
        return AsDeclared(then, tuple(self._unknown), reason)

    def _learned_nodes(self, task: ModelTask) -> tuple[tuple[int, tuple[Operation, ...]], ...]:
        """Return the operators whose rows are learned, which are the same, by their numbers then."""
        numbers = kept_nodes(self._attached, attachments(task))
        return tuple((numbers.get(number, number), operations) for number, operations in task.learn_nodes)

    def _found(self, texts: Sequence[str]) -> tuple[Operation, ...] | None:
        found = [self._operations.get(text) for text in texts]
        return None if None in found else tuple(operation for operation in found if operation is not None)

    def _stream(self, text: str | None) -> StreamPlan | None:
        if text is None or text in self._streams:
            return None if text is None else self._streams[text]
        topic, *texts = text.split(_STREAM)
        operations = self._found(texts)
        return None if operations is None else StreamPlan(topic, operations)

    def _outputs_of(self, about: Mapping[str, Any]) -> tuple[OutputPlan, ...]:
        found = []
        for output in about["outputs"]:
            operations = self._found(output["after"])
            if operations is None:
                self._unknown.append(f"what was done to the rows of «{output['topic']}»")
            else:
                found.append(OutputPlan(output["topic"], operations))
        return tuple(found)

    def _predict_plan(self, about: Mapping[str, Any]) -> PredictPlan:
        stream = self._stream(about["stream"])
        if stream is None:
            self._unknown.append(f"the stream «{about['stream']}» that was predicted")
            return PredictPlan(_NOWHERE)
        served = None if about["served"] is None else StreamPlan(about["served"])
        return PredictPlan(stream, self._outputs_of(about), about["proba"], served)

    def _evaluation(self, about: Mapping[str, Any]) -> EvaluatePlan | None:
        assert isinstance(self._task, ModelTask)
        for plan in self._task.evaluate:
            if json.loads(json.dumps(_evaluate(plan))) == about:
                return plan
        stream = self._stream(about["stream"])
        if stream is None or about["functions"]:
            self._unknown.append(f"the evaluation on «{about['name']}»")
            return None
        spec = ScoreSpec(about["name"], about["kind"], about["window"], tuple(about["metrics"]))
        return EvaluatePlan(spec, stream, None, about["every"])

    # Operators that cannot be made again stay in their places, without rows, so that numbers mean what they meant.
    def _made_nodes(self, predicted: Sequence[StreamPlan]) -> tuple[Node, ...]:
        found: list[Node] = []
        lost: set[int] = set()
        known = {_text_of(node): node for node in self._nodes}
        for number, about in enumerate(self._attached["nodes"]):
            outputs = self._outputs_of(about)
            after, source = self._found(about["after"]), about["source"]
            same = known.get(json.dumps({k: v for k, v in about.items() if k != "outputs"}, sort_keys=True))
            operator = self._operator(about, predicted, same)
            if operator is None or after is None or source in lost:
                self._unknown.append(_node_name(about, number))
                lost.add(number)
                found.append(Node(Read(_NOWHERE)))
            else:
                found.append(Node(operator, source, after, outputs))
        return tuple(found)

    def _operator(
        self, about: Mapping[str, Any], predicted: Sequence[StreamPlan], same: Node | None
    ) -> OperatorPlan | None:
        kind = _kind_of(about)
        if kind == "predicted":
            stream = predicted[about[kind]]
            return None if stream is _NOWHERE else Predicted(about[kind], stream)
        if same is not None:
            return same.operator
        try:
            made = self._made_operator(kind, about)
        except (TypeError, ValueError, KeyError, SyntaxError, HeadraceError):  # whatever another version wrote
            return None
        if made is None:
            return None
        own = json.loads(json.dumps(made.describe(), default=str))
        return made if all(about.get(key) == value for key, value in own.items()) else None

    def _made_operator(self, kind: str, about: Mapping[str, Any]) -> OperatorPlan | None:
        fields = about[kind]
        if kind == "read":
            stream = self._stream(fields)
            return None if stream is None else Read(stream)
        if kind == "alarm":
            return Alarms(AlarmSpec(**{**fields, "by": tuple(fields["by"])}))
        if kind == "window":
            aggregates = tuple((name, _aggregate(text)) for name, text in fields["aggregates"])
            more: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
            }
            return Windows(WindowSpec(**{**more, "aggregates": aggregates}), about["time"])
        return self._grade(about) if kind == "grade" else None

    def _grade(self, about: Mapping[str, Any]) -> Grade | None:
        stream, metric = self._stream(about["grade"]), self._metric(about["metric"][0])
        if stream is None or metric is None:
            return None
        left, right = map(tuple, about["on"])
        compare = CompareSpec(about["target"], left, right, metric, round=about["metric"][1])
        left_time, right_time = about["time"]
        return Grade(stream, about["within"], compare, about["lateness"], about["limit"], (left_time, right_time))

    def _metric(self, name: str | None) -> Metric | None:
        own = [node.operator.metric for node in self._nodes]
        if isinstance(self._task, ModelTask) and self._task.retrain is not None:
            own.append(self._task.retrain.gate)
        plain = [value for value in vars(own_metrics).values() if type(value) is Metric]
        return next((metric for metric in (*own, *plain) if metric is not None and metric.name == name), None)

    def _training(self, nodes: Sequence[Node]) -> tuple[RetrainPlan | None, str]:
        about = self._attached["retrain"]
        if about is None:
            return None, ""
        lost = [number for number, node in enumerate(nodes) if node.operator == Read(_NOWHERE)]
        reason = "how the model was trained anew then is not known any more"
        after, on_after = self._found(about["after"]), self._found(about["on_after"])
        gate, shadow = about["gate"], about["shadow"]
        metric = self._metric(gate[0]) if gate else None
        chosen = dict(about["selection"])
        stream = self._stream(chosen.pop("stream"))
        wanted = about["selection"]["stream"] is not None and stream is None
        if about["on"] in lost or about["node"] in lost or wanted or chosen["kind"] == "unknown":
            return None, reason
        if after is None or on_after is None or (gate and metric is None):
            return None, reason
        rows = Selection(node=about["node"], operations=after, stream=stream, **chosen)
        more: dict[str, Any] = {"holdout": gate[1]} if gate else {}
        more |= {"shadow": True, "promote": shadow} if shadow is not None else {}
        made = RetrainPlan(rows, about["on"], on_after, about["swap"], metric, epochs=about["epochs"], **more)
        return made, ""


def _text_of(node: Node) -> str:
    return json.dumps(json.loads(json.dumps(node.describe(), default=str)), sort_keys=True)


def _aggregate(text: str) -> Aggregate:
    """Return an aggregate of its `repr`: a name, and arguments that are texts, numbers or None.

    >>> _aggregate("Aggregate(kind='mean', column='error', q=None)")
    Aggregate(kind='mean', column='error', q=None)
    """
    call = ast.parse(text, mode="eval").body
    if not isinstance(call, ast.Call):
        raise ValueError(f"{text!r} is no aggregate")
    return Aggregate(**{str(word.arg): ast.literal_eval(word.value) for word in call.keywords})


def _streams_of(task: Task) -> Iterator[StreamPlan]:
    if isinstance(task, StreamTask):
        yield task.stream
        return
    for node in task.nodes:
        yield from node.operator.streams
    if isinstance(task, ModelTask):
        yield from task.learn
        yield from (plan.stream for plan in task.predict)
        yield from (plan.stream for plan in task.evaluate if plan.stream is not None)
        if task.retrain is not None and task.retrain.rows.stream is not None:
            yield task.retrain.rows.stream


def _operations_of(task: Task) -> Iterator[Operation]:
    for stream in _streams_of(task):
        yield from stream.operations
    for output in task.outputs:
        yield from output.operations
    for node in () if isinstance(task, StreamTask) else task.nodes:
        yield from node.operations
    if isinstance(task, ModelTask):
        for _, operations in task.learn_nodes:
            yield from operations
        if task.retrain is not None:
            yield from (*task.retrain.operations, *task.retrain.rows.operations)
