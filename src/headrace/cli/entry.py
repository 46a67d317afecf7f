"""The command ``headrace``: until its modules are imported a signal simply ends it."""

from __future__ import annotations

import signal


def main() -> None:
    """Import the command line, which takes a second, and run a command."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from headrace.cli.main import main as run

    run()
