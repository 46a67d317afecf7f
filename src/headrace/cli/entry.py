"""The command ``headrace``: until its modules are imported a signal simply ends it.

Neither this module nor the package's root imports anything of ours or of others: that takes the first second.
"""

import _signal  # type: ignore[import-not-found]  # built in; what `signal` adds to it takes longer to import


def main() -> None:
    """Import the command line, and run a command."""
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    from headrace.cli.main import main as run

    run()
