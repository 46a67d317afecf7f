"""The options of the fish demo, as the command line names them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Options:
    """See `headrace.cli.demo.demo_fish`.

    Attributes:
        speed: seconds of event time in a second; 0 as fast as it can; None: `LIVE_SPEED` where figures are drawn anew
            in a terminal, else 0.
    """

    source: str = "topics"
    data: Path | None = None
    log: str | None = None
    postgres: str | None = None
    speed: float | None = None
    online: bool = False
    png: Path | None = None
    keep: bool = False


LIVE_SPEED = 60.0
