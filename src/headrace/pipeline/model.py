"""A declared model: what it learns, what it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from headrace.batch import Batch, as_records
from headrace.errors import DeclarationError
from headrace.grade.metrics import Metric, as_metric
from headrace.grade.scores import WINDOW_ROWS, score_spec
from headrace.inspect.rows import Rows
from headrace.learn.base import Learner, offers_probabilities, scored_as, takes_sample_weight
from headrace.learn.category import Category
from headrace.pipeline.declared import Declared, Host
from headrace.pipeline.derivable import Rowset
from headrace.pipeline.stream import Stream
from headrace.plan.operators import Grade, Initial, Node, Predicted, Read, RetrainPlan, Selection
from headrace.plan.plan import served_topic
from headrace.plan.task import Cut, EvaluatePlan, ModelTask, OutputPlan, PredictPlan, StreamPlan, Versions, parse_cut
from headrace.serve.parameters import Endpoint, declare
from headrace.transform.expressions import Operation

if TYPE_CHECKING:
    from headrace.learn.features import Features
    from headrace.pipeline.app import App


class Answers(Host):
    """What is derived from a model's answers, which the model's own task runs."""

    def __init__(self, app: App, name: str, model: Model) -> None:
        super().__init__(name)
        self.app, self.model = app, model

    def plans(self) -> tuple[Node, ...]:
        """As the model's task holds them; none where nothing is made of its answers."""
        plain = all(isinstance(one.what, Predicted) for one in self.nodes)
        return () if plain and not self.model._trained_on else super().plans()


def served_column(feature: Any, missing: str) -> tuple[str, Any, tuple[str, ...] | None, bool] | None:
    """A feature as a parameter of a query: name, type, the only words taken, whether NULL is; None where it fits none.

    >>> served_column("Length", "reject")
    ('Length', 'number', None, False)
    """
    if isinstance(feature, str):
        return feature, "number", None, missing == "pass"
    if isinstance(feature, Category):
        return feature.column, "text", feature.words if feature.unseen == "error" else None, False
    return None


class Model:
    """A declared model."""

    def __init__(
        self,
        app: App,
        name: str,
        learner: Learner,
        features: Features,
        target: str | None,
        *,
        missing: str = "reject",
        versions: Versions | None = None,
        initial: Initial | None = None,
    ) -> None:
        self._app = app
        self.name = name
        self._learner = learner
        self._features = features
        self._target = target
        self._cut: Cut | None = None
        self._missing = missing
        self._versions = versions or Versions()
        self._weight: str | None = None
        self._learns: list[StreamPlan] = []
        self._evaluates: list[EvaluatePlan] = []
        self._predicts: list[tuple[StreamPlan, list[OutputPlan], bool]] = []
        self._served: list[Endpoint] = []
        self._initial = initial
        self._host = Answers(app, name, self)
        self._predicted_nodes: dict[int, Declared] = {}
        self._learned_nodes: list[tuple[Declared, tuple[Operation, ...]]] = []
        self._retrain: RetrainPlan | None = None
        self._trained_on: list[Declared] = []

    def learn(
        self, stream: Stream, *, every: str | int | timedelta = "transaction", sample_weight: str | None = None
    ) -> Model:
        """Learn from a stream.

        Args:
            stream: rows to learn, in commit order.
            every: where learning is cut: ``"transaction"``, a row count, or a duration of commit time (``"1 s"``).
            sample_weight: a column that says how much a row counts, for learners that take weights. A row whose weight
                is NULL, negative or no finite number is refused.
        """
        if cannot := getattr(self._learner, "cannot_learn", ""):
            raise DeclarationError(
                f"«{self.name}»: {cannot}",
                advice="Train it anew on chosen rows (retrain), or take an estimator with partial_fit.",
            )
        if sample_weight is not None and not takes_sample_weight(self._learner):
            raise DeclarationError(
                f"«{self.name}»: its learner takes no sample_weight", advice="Leave it out, or take one that does."
            )
        if self._learns and sample_weight != self._weight:
            raise DeclarationError(
                f"«{self.name}» learns with sample_weight={self._weight!r} and {sample_weight!r}",
                advice="Give all learn(…) the same.",
            )
        self._weight = sample_weight
        cut = parse_cut(every)
        if self._cut is not None and self._cut != cut:
            raise DeclarationError(
                f"«{self.name}» is cut every {self._cut} and every {cut}", advice="Give all learn(…) the same every=."
            )
        self._cut = cut
        if self._retrain is not None:
            raise _learns_and_retrains(self.name)
        root = stream._origin if isinstance(stream, Stream) else None
        if root is not None and root[0].host is self._host:
            if not isinstance(root[0].what, Grade):
                raise DeclarationError(
                    f"«{self.name}» would learn what is made of its own answers", advice="Let it learn their grades."
                )
            self._learned_nodes.append((root[0], stream._plan.operations))
        else:
            self._learns.append(self._input(stream))
        return self

    def predict(self, stream: Stream, *, proba: bool = False) -> Stream:
        """Answer every row of a stream; ``.to(topic)`` says where the answers go.

        Args:
            stream: rows to answer.
            proba: add ``probability``, for each row a list in the order of the model's classes, which is sorted; as the
                model gives them, uncalibrated.
        """
        if proba and not offers_probabilities(self._learner):
            raise DeclarationError(
                f"«{self.name}» gives no probabilities", advice="Take a classifier that has predict_proba."
            )
        plan = self._input(stream)
        self._predicts.append((plan, [], proba))
        return Stream(self._app, StreamPlan(plan.topic), (self, len(self._predicts) - 1))

    def evaluate(
        self,
        stream: Stream | Any,
        *,
        metrics: Sequence[Any] | None = None,
        window: int = WINDOW_ROWS,
        every: int | None = None,
        name: str | None = None,
    ) -> Stream:
        """Score the model, into the topic ``<model>-metrics``; the model is never changed by it.

        Args:
            stream: labelled rows, each answered by the model before the row's own cut (test, then train), where
                they are predicted anyway by that very answer. Or a fixed set (an Arrow table, a DataFrame, a list of
                dicts, rows of `Stream.read`), which is answered anew after every cut.
            metrics: names (``"accuracy"``, ``"balanced_accuracy"``, ``"macro_f1"``, ``"cohen_kappa"``; ``"mae"``,
                ``"mse"``, ``"rmse"``, ``"r2"``), functions of `sklearn.metrics` that take (y_true, y_pred), or, for
                classifiers, metric objects of `river.metrics`. Accuracy and macro F1, or MAE, RMSE and R², by default.
            window: over how many of the newest rows ``window_…`` is taken.
            every: rows (of a fixed set: learned rows) between two lines of the topic. By default a line for each
                transaction in the first 100 rows, then for each hundredth more, for each 1,000 at the most; of a
                fixed set for each cut.
            name: of these rows, in the column ``stream``; the topic's name, or ``held out``, by default.

        Returns:
            The stream of the topic: ``rows`` scored, ``learned``, each metric and ``window_…`` of it, the model's
            version and position, for classifiers ``labels`` and ``confusion`` (rows are the truth).
        """
        if self._target is None:
            raise DeclarationError(f"«{self.name}» has no target to be compared with", advice='Say target="…".')
        if every is not None and every < 1:
            raise DeclarationError(f"every={every}", advice="Give a positive number of rows.")
        live = isinstance(stream, Stream)
        plan = self._input(stream) if live else None
        rows = None if live else Batch.of(as_records(stream))
        chosen = name or (plan.topic if plan else "held out")
        if any(one.spec.name == chosen for one in self._evaluates):
            raise DeclarationError(f"«{self.name}» is evaluated on «{chosen}» twice", advice="Give each a name=.")
        if rows is not None and self._target not in rows.schema.names:
            raise DeclarationError(f"the fixed set has no column «{self._target}»")
        spec = score_spec(chosen, scored_as(self._learner), metrics, window)
        self._evaluates.append(EvaluatePlan(spec, plan, rows, every or 0))
        return Stream(self._app, StreamPlan(f"{self.name}-metrics"))

    def retrain(
        self,
        *,
        rows: Rowset | str,
        on: Stream | None = None,
        swap: Literal["barrier", "when_ready"] = "barrier",
        gate: Metric | Any | None = None,
        holdout: float = 0.2,
        shadow: bool = False,
        promote: int = 50,
        epochs: int = 1,
    ) -> Model:
        """Train the model anew on chosen rows, and let that one take the old one's place as a new version.

        What came of each training is told in the topic ``<model>-training``. Where one fails, or would learn the very
        rows of the last one, the old model stays.

        Args:
            rows: what to train on, as it is then: ``graded.last(50)``, ``graded.since("1 h")``, ``table.all()``, or SQL
                over topics.
            on: each row of this stream begins a training: alarms. Without one only `Running.retrain` does, or
                ``POST /train``.
            swap: ``"barrier"``: rows after the alarm's wait for the new version, so that replaying gives the same.
                ``"when_ready"``: the old one answers until the new one is there; where that was is recorded.
            gate: a metric of `headrace.metrics`. The new model is then trained on all but the newest rows (``holdout``)
                whose labels were known when those were answered, and does not take over when it is worse on them.
            holdout: that share; of at least 10 rows.
            shadow: the new model answers beside the current one (``shadow_prediction``), is graded likewise
                (``shadow_error``), and takes over when it was no worse over ``promote`` rows.
            promote: so many.
            epochs: how often a learner that only learns online is given the rows.
        """
        if self._retrain is not None:
            raise DeclarationError(f"«{self.name}» is retrained twice", advice="Say one retrain(…).")
        if self._learns or self._learned_nodes:
            raise _learns_and_retrains(self.name)
        if swap not in ("barrier", "when_ready"):
            raise DeclarationError(f"swap={swap!r}", advice='Give "barrier" or "when_ready".')
        if not 0 < holdout < 1 or promote < 1 or epochs < 1:
            raise DeclarationError(
                f"holdout={holdout}, promote={promote}, epochs={epochs}",
                advice="holdout is a share below 1, the others are positive numbers.",
            )
        if self._target is None and gate is not None:
            raise DeclarationError(f"«{self.name}» has no target to be compared with", advice='Say target="…".')
        trigger, after = self._taken_from(on) if on is not None else (None, ())
        self._retrain = RetrainPlan(
            self._selection(rows),
            None if trigger is None else trigger.number,
            after,
            swap,
            None if gate is None else as_metric(gate),
            holdout,
            shadow,
            promote,
            epochs,
        )
        return self

    def metrics_rows(self) -> Rows:
        """Return what `evaluate` has written to the topic ``<model>-metrics``, as the log holds it now."""
        return self._app.topic(f"{self.name}-metrics").read()

    def _selection(self, rows: Rowset | str) -> Selection:
        if isinstance(rows, str):
            return Selection("query", query=rows)
        if not isinstance(rows, Rowset):
            raise DeclarationError(
                f"«{self.name}»: {type(rows).__name__} are no rows to train on",
                advice='Give graded.last(50), graded.since("1 h"), table.all() or a query.',
            )
        if rows.kind == "all":
            return Selection("all", stream=rows.stream._plan)
        node, after = self._taken_from(rows.stream)
        return Selection(rows.kind, node.number, after, rows.rows, rows.span_us)

    def _taken_from(self, stream: Stream) -> tuple[Declared, tuple[Operation, ...]]:
        """A node of this model's own: rows that its answers lead to, or those of a topic."""
        if not isinstance(stream, Stream):
            raise DeclarationError(f"«{self.name}» wants a stream, got {type(stream).__name__}")
        root = stream._derived_from()
        if root is not None and root[0].host is self._host:
            node, after = root
        else:
            stream._refuse_unwritten()
            node, after = self._host.add(Declared(self._host, Read(stream._plan))), ()
        self._trained_on.append(node)
        return node, after

    def _predicted_node(self, number: int) -> Declared:
        """What is derived from one stream's answers begins here."""
        if number not in self._predicted_nodes:
            declared = Declared(self._host, Predicted(number), value="prediction")
            self._predicted_nodes[number] = self._host.add(declared)
        return self._predicted_nodes[number]

    def serve(
        self,
        path: str = "/prediction",
        *,
        inputs: Mapping[str, Any] | None = None,
        output: str | None = None,
        digits: int | None = None,
        model_time: bool = True,
        log_to: str | None = None,
    ) -> Model:
        """Answer ``GET path?length=…&height=…`` where the app is served: ``{"Weight": 3.6789, "ModelTime": "…"}``.

        Args:
            path: where; the Open Inference Protocol and batches have paths of their own.
            inputs: parameter -> feature's column; the columns in lower case by default. Others go along into
                ``log_to``: ``{"fish_id": ("Fish_Id", str), …}``.
            output: the prediction's name; the target by default.
            digits: round it.
            model_time: say when the model's version was made.
            log_to: a topic that answers are appended to, as rows of `predict` would be; a request is answered when
                its row is durable.
        """
        features = () if callable(self._features) else self._features
        columns = [served_column(one, self._missing) for one in features]
        if not columns or None in columns:
            raise DeclarationError(
                f"«{self.name}» has features that are neither numbers nor categories: they fit no query",
                advice="Ask it by POST /v2/models/NAME/infer, or /models/NAME/predict, which need no declaration.",
            )
        declared = declare(
            path,
            self.name,
            [one for one in columns if one is not None],
            inputs,
            output or self._target or "prediction",
            digits=digits,
            model_time=model_time,
            log_to=log_to,
        )
        if any(one.path == path for model in self._app._models for one in model._served):
            raise DeclarationError(f"two models are served at {path}", advice="Give each a path of its own.")
        self._served.append(declared)
        if log_to is not None:
            self._app.topic(log_to, append=True)
        return self

    def _input(self, stream: Stream) -> StreamPlan:
        if not isinstance(stream, Stream):
            raise DeclarationError(
                f"«{self.name}» wants a stream, got {type(stream).__name__}", advice='For example db["public.orders"].'
            )
        if stream._predicted is not None or stream._node is not None:
            raise DeclarationError(
                f"«{self.name}» reads rows that go nowhere", advice="Write them to a topic first: .to(topic)."
            )
        return stream._plan

    def _task(self) -> ModelTask:
        return ModelTask(
            name=self.name,
            learner=self._learner,
            features=self._features,
            target=self._target,
            cut=self._cut or Cut(transaction=True),
            learn=tuple(self._learns),
            predict=tuple(self._predict_plan(*one) for one in self._predicts),
            evaluate=tuple(self._evaluates),
            sample_weight=self._weight,
            missing=self._missing,
            versions=self._versions,
            nodes=self._host.plans(),
            learn_nodes=tuple((node.number, after) for node, after in self._learned_nodes),
            retrain=self._retrain,
            initial=self._initial,
        )

    def _predict_plan(self, stream: StreamPlan, outputs: list[OutputPlan], proba: bool) -> PredictPlan:
        topics = {output.topic for output in outputs}
        served = topics & {endpoint.log_to for endpoint in self._served}
        plan = StreamPlan(served_topic(self._app.name, served.pop())) if served else None
        return PredictPlan(stream, tuple(outputs), proba, plan)

    def __repr__(self) -> str:
        return f"Model({self.name}, {self._learner!r})"


def _learns_and_retrains(name: str) -> DeclarationError:
    return DeclarationError(
        f"«{name}» both learns a stream and is retrained",
        advice="Take one: learn(graded) learns every graded row, retrain(on=alarm) all chosen rows anew.",
    )
