"""What a model is before its first row, as a user says it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from headrace.errors import DeclarationError
from headrace.learn.adapters import adapted
from headrace.learn.base import Learner
from headrace.learn.rows_file import CsvRows
from headrace.learn.state import state_hash
from headrace.pipeline.derivable import Rowset
from headrace.pipeline.stream import Stream
from headrace.plan.operators import Initial


def initial_of(given: Any, learner: Learner, *, classes: Iterable[Any] | None, names: list[str] | None) -> Initial:
    """Check what a user gave.

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
        one = given if type(given) is type(learner) else adapted(given, classes=classes, names=names)
    except DeclarationError as error:
        raise DeclarationError(
            f"initial={type(given).__name__}: {error.message}",
            advice="Give hr.csv(…), a table, SQL over topics, (model, version), or a fitted estimator.",
        ) from error
    if not one.ready or one.parameters() != learner.parameters():
        what = "is not fitted" if not one.ready else "has other parameters than the model's learner"
        raise DeclarationError(f"initial={type(given).__name__} {what}")
    state = dict(one.state())
    return Initial({"fitted": state_hash(state)}, state=state)
