"""What an engine is to whoever starts a pipeline, and what its user then holds.

An engine is a package with a module ``startup`` that has one function, ``start(plan, settings)``. It is imported when
it is chosen, and imports what it stands on (pyspark, pyflink) only then: see `headrace.engines.startup`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

import pyarrow as pa

from headrace.log.base import Log

if TYPE_CHECKING:
    from headrace.serve.server import Server


class RunningPipeline(Protocol):
    """A pipeline that an engine runs; leave the ``with`` block, or call `stop`, to end it.

    Its methods may be called from any thread; `interrupt` also by a signal's handler. `headrace.Running` is the one of
    the engines whose rounds run in this process, and offers more.

    Attributes:
        at_end: called with the open log before that is closed, where nothing has failed.
        page: the dashboard's address where this process shows it, else of the engine's own page; empty without either.
    """

    at_end: Callable[[Log], None] | None
    page: str

    @property
    def server(self) -> Server | None:
        """The HTTP server in this process, if there is one."""
        ...

    @property
    def log(self) -> Log | None:
        """The log where it is open in this process; None where another one writes it."""
        ...

    @property
    def tables(self) -> Mapping[str, pa.Schema]:
        """Columns of the tables that are captured in this process, by their topics."""
        ...

    @property
    def models(self) -> list[str]:
        """Names of the pipeline's models."""
        ...

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        ...

    @property
    def status(self) -> str:
        """One line for people."""
        ...

    @property
    def captured(self) -> dict[str, int]:
        """Rows taken in since the start, by topic."""
        ...

    @property
    def learned(self) -> int:
        """Rows that its models have learned."""
        ...

    @property
    def dead_letters(self) -> dict[str, int]:
        """Rows that went to dead letters since the start, by their topic."""
        ...

    def wait(self, timeout: float | None = 30.0) -> None:
        """Wait until everything committed before now is taken in, predicted and, in complete cuts, learned.

        Raises:
            WaitTimeout: the deadline came first.
            HeadraceError: the pipeline has failed, or was stopped.
        """
        ...

    def tick(self, model: str, *, timeout: float | None = 30.0) -> None:
        """Close a model's cut after everything that has arrived, as a recorded tick; returns when that is durable."""
        ...

    def join(self, timeout: float | None = None) -> bool:
        """Wait until it ends by itself; False when the time-out came first. Raises what it died of."""
        ...

    def interrupt(self) -> None:
        """Let it end after what it is doing; returns at once."""
        ...

    def stop(self) -> None:
        """End it in good order, and wait for that; raises what it died of. Calling it twice is harmless."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class StoppedAtExit(ABC):
    """Leaving the ``with`` block stops a pipeline; an error that ends the block is not hidden by one of stopping."""

    @abstractmethod
    def stop(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.stop()
        except BaseException:
            if error is None:
                raise
