"""Rows at fault, found by halves: what fails for rows together is tried with each half, down to single rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from headrace.errors import HeadraceError

Fault = TypeVar("Fault")


def by_halves(count: int, attempt: Callable[[int, int], Fault | None]) -> dict[int, Fault]:
    """Try rows 0 to ``count``, halving what fails until only the rows at fault are left out.

    Args:
        attempt: tries rows from one index to another (exclusive), all or none; None, or what is wrong.

    Returns:
        What is wrong with each row at fault, in order. The others were taken in order.

    >>> taken = []
    >>> def attempt(a, b):
    ...     if a <= 2 < b:
    ...         return "no 2"
    ...     taken.extend(range(a, b))
    >>> by_halves(5, attempt), taken
    ({2: 'no 2'}, [0, 1, 3, 4])
    """
    faults: dict[int, Fault] = {}
    waiting = [(0, count)] if count else []
    while waiting:
        start, stop = waiting.pop()
        fault = attempt(start, stop)
        if fault is not None and stop - start > 1:
            middle = (start + stop) // 2
            waiting += [(middle, stop), (start, middle)]
        elif fault is not None:
            faults[start] = fault
    return faults


def tried_by_halves(
    count: int, attempt: Callable[[int, int], None], *, of_all: tuple[type[Exception], ...] = ()
) -> dict[int, Exception]:
    """Return the errors of rows for which an attempt raises, whatever it is.

    Args:
        attempt: as for `by_halves`; it leaves nothing behind where it raises.
        of_all: errors that hold for all rows with which it was tried.

    >>> tried_by_halves(4, lambda start, stop: print(start, stop, 1 // int(not start <= 2 < stop)))
    0 2 1
    3 4 1
    {2: ZeroDivisionError('integer division or modulo by zero')}
    """
    faults: dict[int, Exception] = {}

    def fault(start: int, stop: int) -> Exception | None:
        try:
            attempt(start, stop)
        except of_all as error:
            faults.update(dict.fromkeys(range(start, stop), error))
        except Exception as error:
            return error
        return None

    return faults | by_halves(count, fault)


def reason_of(error: Exception) -> str:
    """Return what an error says of a row."""
    return error.message if isinstance(error, HeadraceError) else f"{type(error).__name__}: {error}"
