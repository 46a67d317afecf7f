"""A declared model: what it learns, what it answers."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from headrace.errors import DeclarationError
from headrace.learn.base import Learner, offers_probabilities
from headrace.plan import Cut, ModelTask, OutputPlan, PredictPlan, StreamPlan, parse_cut
from headrace.streams import Stream

if TYPE_CHECKING:
    from headrace.app import App
    from headrace.learn.features import Features


class Model:
    """A declared model."""

    def __init__(self, app: App, name: str, learner: Learner, features: Features, target: str | None) -> None:
        self._app = app
        self.name = name
        self._learner = learner
        self._features = features
        self._target = target
        self._cut: Cut | None = None
        self._learns: list[StreamPlan] = []
        self._predicts: list[tuple[StreamPlan, list[OutputPlan], bool]] = []

    def learn(self, stream: Stream, *, every: str | int | timedelta = "transaction") -> Model:
        """Learn from a stream.

        Args:
            stream: rows to learn, in commit order.
            every: where learning is cut: ``"transaction"``, a row count, or a duration of commit time (``"1 s"``).
        """
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
        )

    def __repr__(self) -> str:
        return f"Model({self.name}, {self._learner!r})"
