"""Models as a user declares them: what they learn, what they predict, and what they begin with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from headrace.arguments import checked_methods
from headrace.arrays import Array
from headrace.batch import Batch, as_records
from headrace.errors import DeclarationError
from headrace.grade.metrics import Metric, as_metric
from headrace.grade.scores import WINDOW_ROWS, score_spec
from headrace.inspect.rows import Rows
from headrace.learn.adapters import adapted
from headrace.learn.base import Learner, learner_text, offers_probabilities, scored_as, takes_sample_weight, traits_of
from headrace.learn.rows_file import CsvRows
from headrace.learn.state import state_hash
from headrace.pipeline.declarations import Declarations, DeclaredModel, DeclaredPredictions, Root
from headrace.pipeline.stream import Rowset, Stream, check_topic
from headrace.plan.operators import Grade, Initial, Read, RetrainPlan, Selection
from headrace.plan.task import EvaluatePlan, StreamPlan, parse_cut, served_column
from headrace.serve.parameters import declare

if TYPE_CHECKING:
    import pandas as pd


@checked_methods
class Model:
    """A declared model: what it learns, what it predicts, and how it is trained anew. `App.model` returns it.

    >>> import headrace as hr
    >>> def learns_orders(model: hr.Model, db: hr.Database) -> hr.Stream:
    ...     return model.learn(db["public.orders"]).predict(db["public.orders"]).to("promised")
    """

    def __init__(self, app: Declarations, declared: DeclaredModel) -> None:
        self.name = declared.name
        self._app = app
        self._declared = declared

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
        if cannot := traits_of(self._declared.learner).cannot_learn:
            raise DeclarationError(
                f"«{self.name}»: {cannot}",
                advice="Train it anew on chosen rows (retrain), or take an estimator with partial_fit.",
            )
        if sample_weight is not None and not takes_sample_weight(self._declared.learner):
            raise DeclarationError(
                f"«{self.name}»: its learner takes no sample_weight", advice="Leave it out, or take one that does."
            )
        if self._declared.learn and sample_weight != self._declared.sample_weight:
            raise DeclarationError(
                f"«{self.name}» learns with sample_weight={self._declared.sample_weight!r} and {sample_weight!r}",
                advice="Give all learn(…) the same.",
            )
        self._declared.sample_weight = sample_weight
        cut = parse_cut(every)
        if self._declared.cut is not None and self._declared.cut != cut:
            raise DeclarationError(
                f"«{self.name}» is cut every {self._declared.cut} and every {cut}",
                advice="Give all learn(…) the same every=.",
            )
        self._declared.cut = cut
        if self._declared.retrain is not None:
            raise _learns_and_retrains(self.name)
        root = stream._origin if isinstance(stream, Stream) else None
        if root is not None and root[0].task is self._declared:
            if not isinstance(root[0].what, Grade):
                raise DeclarationError(
                    f"«{self.name}» would learn what is made of its own predictions",
                    advice="Let it learn their grades.",
                )
            self._declared.learn_nodes.append((root[0], stream._plan.operations))
        else:
            self._declared.learn.append(self._input(stream))
        return self

    def predict(self, stream: Stream, *, proba: bool = False) -> Stream:
        """Predict every row of a stream; ``.to(topic)`` says where the predictions go.

        Args:
            stream: rows to predict.
            proba: add ``probability``, for each row a list in the order of the model's classes, which is sorted; as the
                model gives them, uncalibrated.
        """
        if proba and not offers_probabilities(self._declared.learner):
            raise DeclarationError(
                f"«{self.name}» gives no probabilities", advice="Take a classifier that has predict_proba."
            )
        plan = self._input(stream)
        made = self._declared.predictions
        made.append(DeclaredPredictions(self._declared, len(made), plan, proba))
        return Stream(self._app, StreamPlan(plan.topic), made[-1])

    def evaluate(
        self,
        stream: Stream | Rows | pa.Table | pa.RecordBatch | pd.DataFrame | Sequence[Mapping[str, Any]],
        *,
        metrics: Sequence[Any] | None = None,
        window: int = WINDOW_ROWS,
        every: int | None = None,
        name: str | None = None,
    ) -> Stream:
        """Score the model, into the topic ``<model>-metrics``; the model is never changed by it.

        Args:
            stream: labelled rows, each predicted by the model before the row's own cut (test, then train); where
                they are predicted anyway, that very prediction is scored. Or a fixed set (an Arrow table, a DataFrame,
                a list of dicts, rows of `Stream.read`), which is predicted anew after every cut.
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
        if self._declared.target is None:
            raise DeclarationError(f"«{self.name}» has no target to be compared with", advice='Say target="…".')
        if every is not None and every < 1:
            raise DeclarationError(f"every={every}", advice="Give a positive number of rows.")
        plan = self._input(stream) if isinstance(stream, Stream) else None
        rows = None if isinstance(stream, Stream) else self._fixed_set(stream)
        chosen = name or (plan.topic if plan else "held out")
        if any(evaluated.spec.name == chosen for evaluated in self._declared.evaluate):
            raise DeclarationError(f"«{self.name}» is evaluated on «{chosen}» twice", advice="Give each a name=.")
        if rows is not None and self._declared.target not in rows.schema.names:
            raise DeclarationError(f"the fixed set has no column «{self._declared.target}»")
        spec = score_spec(chosen, scored_as(self._declared.learner), metrics, window)
        self._declared.evaluate.append(EvaluatePlan(spec, plan, rows, every or 0))
        return Stream(self._app, StreamPlan(f"{self.name}-metrics"))

    def retrain(
        self,
        *,
        rows: Rowset | str,
        on: Stream | None = None,
        swap: Literal["barrier", "when_ready"] = "barrier",
        gate: Metric | Callable[[Array, Array], Array] | None = None,
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
                ``"when_ready"``: the old one predicts until the new one is there; where that was is recorded.
            gate: a metric of `headrace.metrics`. The new model is then trained on all but the newest rows (``holdout``)
                whose labels were known when those were predicted, and does not take over when it is worse on them.
            holdout: that share; of at least 10 rows.
            shadow: the new model predicts beside the current one (``shadow_prediction``), is graded likewise
                (``shadow_error``), and takes over when it was no worse over ``promote`` rows.
            promote: so many.
            epochs: how often a learner that only learns online is given the rows.
        """
        if self._declared.retrain is not None:
            raise DeclarationError(f"«{self.name}» is retrained twice", advice="Say one retrain(…).")
        if self._declared.learn or self._declared.learn_nodes:
            raise _learns_and_retrains(self.name)
        if swap not in ("barrier", "when_ready"):
            raise DeclarationError(f"swap={swap!r}", advice='Give "barrier" or "when_ready".')
        if not 0 < holdout < 1 or promote < 1 or epochs < 1:
            raise DeclarationError(
                f"holdout={holdout}, promote={promote}, epochs={epochs}",
                advice="holdout is a share below 1, the others are positive numbers.",
            )
        if self._declared.target is None and gate is not None:
            raise DeclarationError(f"«{self.name}» has no target to be compared with", advice='Say target="…".')
        trigger, after = self._taken_from(on) if on is not None else (None, ())
        self._declared.retrain = RetrainPlan(
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
        return Stream(self._app, StreamPlan(f"{self.name}-metrics")).read()

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

    def _taken_from(self, stream: Stream) -> Root:
        """Return a node of this model's own: rows that its predictions lead to, or those of a topic."""
        if not isinstance(stream, Stream):
            raise DeclarationError(f"«{self.name}» wants a stream, got {type(stream).__name__}")
        root = stream._derived_from()
        if root is not None and root[0].task is self._declared:
            node, after = root
        else:
            stream._refuse_unwritten()
            node, after = self._declared.add(Read(stream._plan)), ()
        self._declared.training_nodes.append(node)
        return node, after

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
        """Serve ``GET path?length=…&height=…`` where the app is served: ``{"Weight": 3.6789, "ModelTime": "…"}``.

        Args:
            path: where; the Open Inference Protocol and batches have paths of their own.
            inputs: parameter -> feature's column; the columns in lower case by default. Others go along into
                ``log_to``: ``{"fish_id": ("Fish_Id", str), …}``.
            output: the prediction's name; the target by default.
            digits: round it.
            model_time: say when the model's version was made.
            log_to: a topic that predictions are appended to, as rows of `predict` would be; a request is answered when
                its row is durable.
        """
        features = () if callable(self._declared.features) else self._declared.features
        columns = [served_column(feature, self._declared.missing) for feature in features]
        if not columns or any(column.kind not in ("number", "text") for column in columns):
            raise DeclarationError(
                f"«{self.name}» has features that are neither numbers nor categories: they fit no query",
                advice="Ask it by POST /v2/models/NAME/infer, or /models/NAME/predict, which need no declaration.",
            )
        endpoint = declare(
            path,
            self.name,
            columns,
            inputs,
            output or self._declared.target or "prediction",
            digits=digits,
            model_time=model_time,
            log_to=log_to,
        )
        if any(other.path == path for model in self._app.models for other in model.endpoints):
            raise DeclarationError(f"two models are served at {path}", advice="Give each a path of its own.")
        self._declared.endpoints.append(endpoint)
        if log_to is not None:
            check_topic(log_to)
            self._app.append_to(log_to)
        return self

    def _fixed_set(self, rows: Any) -> Batch:
        try:
            return Batch.of(as_records(rows))
        except TypeError as error:
            raise DeclarationError(
                f"«{self.name}» cannot be evaluated: {error}",
                advice="Give a stream, or rows: an Arrow table, a DataFrame, a list of dicts.",
            ) from error

    def _input(self, stream: Stream) -> StreamPlan:
        if not isinstance(stream, Stream):
            raise DeclarationError(
                f"«{self.name}» wants a stream, got {type(stream).__name__}", advice='For example db["public.orders"].'
            )
        if stream._predictions is not None or stream._node is not None:
            raise DeclarationError(
                f"«{self.name}» reads rows that go nowhere", advice="Write them to a topic first: .to(topic)."
            )
        return stream._plan

    def __repr__(self) -> str:
        declared = self._declared
        done = {
            "learns": [*map(str, declared.learn), *(str(node) for node, _ in declared.learn_nodes)],
            "predicts": [str(predictions.stream) for predictions in declared.predictions],
            "evaluated on": [str(evaluated) for evaluated in declared.evaluate],
            "served at": [endpoint.path for endpoint in declared.endpoints],
        }
        said = [f"{word} {', '.join(names)}" for word, names in done.items() if names]
        return f"Model({', '.join([self.name, learner_text(declared.learner), *said])})"


def _learns_and_retrains(name: str) -> DeclarationError:
    return DeclarationError(
        f"«{name}» both learns a stream and is retrained",
        advice="Take one: learn(graded) learns every graded row, retrain(on=alarm) all chosen rows anew.",
    )


def initial_of(given: Any, learner: Learner, *, classes: Iterable[Any] | None, names: list[str] | None) -> Initial:
    """Return what a model is before its first row, as a user gives it.

    Raises:
        DeclarationError: it is nothing a model can begin with.
    """
    if isinstance(given, CsvRows):
        return Initial({"csv": given.describe()}, read=given.read)
    if isinstance(given, Rowset) and given.kind == "all":
        given = given.stream
    if isinstance(given, Stream):
        given._refuse_unwritten()
        return Initial({"table": str(given._plan)}, stream=given._plan)
    if isinstance(given, str):
        return Initial({"query": given}, query=given)
    if isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], str):
        return Initial({"model": given[0], "version": str(given[1])}, version=(given[0], str(given[1])))
    return _fitted(given, learner, classes=classes, names=names)


def _fitted(given: Any, learner: Learner, *, classes: Iterable[Any] | None, names: list[str] | None) -> Initial:
    try:
        fitted = given if type(given) is type(learner) else adapted(given, classes=classes, names=names)
    except DeclarationError as error:
        raise DeclarationError(
            f"initial={type(given).__name__}: {error.message}",
            advice="Give hr.csv(…), a table, SQL over topics, (model, version), or a fitted estimator.",
        ) from error
    if not fitted.ready or fitted.parameters() != learner.parameters():
        what = "is not fitted" if not fitted.ready else "has other parameters than the model's learner"
        raise DeclarationError(f"initial={type(given).__name__} {what}")
    state = dict(fitted.state())
    return Initial({"fitted": state_hash(state)}, state=state)
