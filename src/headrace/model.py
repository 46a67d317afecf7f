"""A declared model: what it learns, what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from headrace.batch import Batch, as_records
from headrace.errors import DeclarationError
from headrace.grade.scores import WINDOW_ROWS, score_spec
from headrace.learn.base import Learner, offers_probabilities, scored_as, takes_sample_weight
from headrace.streams import Stream
from headrace.task import Cut, EvaluatePlan, ModelTask, OutputPlan, PredictPlan, StreamPlan, Versions, parse_cut

if TYPE_CHECKING:
    from headrace.app import App
    from headrace.learn.features import Features


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

    def _input(self, stream: Stream) -> StreamPlan:
        if not isinstance(stream, Stream):
            raise DeclarationError(
                f"«{self.name}» wants a stream, got {type(stream).__name__}", advice='For example db["public.orders"].'
            )
        if stream._predicted is not None:
            raise DeclarationError(
                f"«{self.name}» reads predictions that go nowhere", advice="Write them to a topic first: .to(topic)."
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
            predict=tuple(PredictPlan(stream, tuple(outputs), proba) for stream, outputs, proba in self._predicts),
            evaluate=tuple(self._evaluates),
            sample_weight=self._weight,
            missing=self._missing,
            versions=self._versions,
        )

    def __repr__(self) -> str:
        return f"Model({self.name}, {self._learner!r})"
