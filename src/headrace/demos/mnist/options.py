"""The options of the MNIST demo, as the command line names them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from headrace.demos.servers import ServerOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(ServerOptions):
    """See `headrace.cli.demo.demo_mnist`."""

    model: str | None = None
    idx: Path | None = None
    epochs: int | None = None
    every: int | None = None
    delay_ms: float | None = None
    png: Path | None = None
    pause: float = 0.0
