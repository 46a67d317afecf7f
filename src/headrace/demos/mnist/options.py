"""The options of the MNIST demo, as the command line names them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Options:
    """See `headrace.cli.demo.demo_mnist`."""

    model: str | None = None
    idx: Path | None = None
    log: str | None = None
    postgres: str | None = None
    keep: bool = False
    epochs: int | None = None
    every: int | None = None
    delay_ms: float | None = None
    png: Path | None = None
    pause: float = 0.0
