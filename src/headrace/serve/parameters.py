"""Endpoints as `Model.serve` declares them: a path at which a model predicts one row, with names of the user's."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from headrace.errors import DeclarationError
from headrace.serve.models import Column

Type = Literal["number", "integer", "text"]
_TYPES: Mapping[Any, Type] = {float: "number", int: "integer", str: "text"}
AT_LEAST, DEADLINE = "at_least", "deadline"
# Paths that the server has itself.
RESERVED = ("/v2", "/models", "/train", "/metrics", "/docs", "/redoc", "/openapi.json", "/static-offline-docs")


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of the query, and the column it is.

    Attributes:
        feature: whether the model wants it; others go along, into the topic of served predictions.
        words: the only ones taken.
        optional: whether it may be left out.
    """

    name: str
    column: str
    type: Type
    feature: bool
    words: tuple[str, ...] | None = None
    optional: bool = False

    def parse(self, text: str) -> Any:
        """The value in a query.

        Raises:
            ValueError: why it is none; the message is for whoever asked.

        >>> Parameter("length", "Length", "number", True).parse("86.37")
        86.37
        """
        if self.type == "text":
            return text
        try:
            value = int(text) if self.type == "integer" else float(text)
        except ValueError:
            raise ValueError(f"Input should be a valid {self.type}, unable to parse the text as one") from None
        if "_" in text or text != text.strip():  # Python's own taste
            raise ValueError(f"Input should be a valid {self.type}, unable to parse the text as one")
        if self.type == "integer" and not -(2**63) <= value < 2**63:
            raise ValueError("Input should be an integer of 64 bits")
        if not math.isfinite(value):
            raise ValueError("Input should be a finite number")
        return value


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A path at which a model answers.

    Attributes:
        output: the name of the prediction in the answer; ``digits`` it is rounded to, None: not.
        model_time: whether ``ModelTime`` stands beside it.
        log_to: the topic that answers are appended to, empty: none.
    """

    path: str
    model: str
    parameters: tuple[Parameter, ...]
    output: str
    digits: int | None = None
    model_time: bool = True
    log_to: str = ""


def declare(
    path: str,
    model: str,
    columns: Sequence[Column],
    inputs: Mapping[str, Any] | None,
    output: str,
    *,
    digits: int | None,
    model_time: bool,
    log_to: str | None,
) -> Endpoint:
    """An endpoint as the user wrote it.

    Args:
        columns: of the features, numbers or words.
        inputs: parameter -> column, or (column, type) where it is no feature.

    Raises:
        DeclarationError: it cannot work.

    >>> declare("/p", "m", [Column("Length", "number")], None, "Weight", digits=4, model_time=True, log_to=None)
    Endpoint(path='/p', model='m', parameters=(Parameter(name='length', column='Length', type='number', feature=True,
    words=None, optional=False),), output='Weight', digits=4, model_time=True, log_to='')
    """
    where = f"serve({path!r}) of «{model}»"
    if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", path) or any(path == o or path.startswith(f"{o}/") for o in RESERVED):
        raise DeclarationError(
            f"{where}: not a path that can be served", advice=f"Such as /prediction; taken are {', '.join(RESERVED)}."
        )
    if not output or (model_time and output == "ModelTime"):
        raise DeclarationError(f"{where}: output={output!r} cannot name the prediction")
    if digits is not None and not 0 <= digits <= 15:
        raise DeclarationError(f"{where}: digits={digits}", advice="Give 0 to 15, or nothing.")
    named = dict(inputs) if inputs is not None else {column.name.lower(): column.name for column in columns}
    features = {column.name: column for column in columns}
    parameters = tuple(_parameter(where, name, given, features) for name, given in named.items())
    have = [parameter.column for parameter in parameters]
    for name in features:
        if have.count(name) != 1:
            raise DeclarationError(
                f"{where}: {have.count(name)} parameters are the feature «{name}»",
                advice=f"Say inputs={{…}} with one for each of {', '.join(features)}.",
            )
    if len(set(have)) != len(have):
        raise DeclarationError(f"{where}: two parameters are one column")
    return Endpoint(path, model, parameters, output, digits, model_time, log_to or "")


def _parameter(where: str, name: str, given: Any, features: Mapping[str, Column]) -> Parameter:
    column, kind = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
    if not isinstance(name, str) or not name or not isinstance(column, str) or kind not in (None, *_TYPES):
        raise DeclarationError(
            f"{where}: inputs={{{name!r}: {given!r}}}", advice='Give a column, or (column, type): ("Fish_Id", str).'
        )
    if name in (AT_LEAST, DEADLINE):
        raise DeclarationError(f"{where}: the parameter «{name}» is Headrace's own", advice="Give it another name.")
    if column in features:
        of = features[column]
        return Parameter(name, column, "text" if of.kind == "text" else "number", True, of.words, of.nullable)
    return Parameter(name, column, _TYPES[kind or str], False, None, True)
