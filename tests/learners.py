"""The conformance suite of learners, as parameters of a test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from headrace.testing.learners import learner_checks


def contract(cases: Mapping[str, tuple[Callable[[], Any], Any, Any]]) -> list[Any]:
    """Return every check of every case (how to make a learner, X, y), ready for `pytest.mark.parametrize`.

    A library that learns on in another process bit for bit does so for one learner as for the next: the first case says
    so, the others in the long form. Each of these starts an interpreter, and imports and compiles everything again.
    """
    found = []
    for number, (case, (make, features, targets)) in enumerate(cases.items()):
        for name, check in learner_checks(make, features, targets):
            long = number > 0 and "another process" in name
            found.append(pytest.param(check, id=f"{case}: {name}", marks=[pytest.mark.slow] if long else []))
    return found
