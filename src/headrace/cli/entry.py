"""The command ``headrace``: until its modules are imported a signal simply ends it.

Neither this module nor the package's root imports anything of ours or of others: that takes the first second.
"""

from __future__ import annotations

import signal


def main() -> None:
    """Import the command line, and run a command."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from headrace.cli.main import main as run

    run()
