"""Named points where a test may kill the process, as a power cut would, or stop it.

``HEADRACE_FAULT=log.before-commit`` kills the process at its first passage of that point,
``HEADRACE_FAULT=log.before-commit:3`` at its third; ``log.before-commit:3:stop`` stops it there. The variable is read
once, when this module is imported; unset, a point costs one comparison.
"""

from __future__ import annotations

import os
import signal

VARIABLE = "HEADRACE_FAULT"


def parse_fault(text: str) -> tuple[str, int, signal.Signals]:
    """Return the name of a fault point, the passage at which it strikes, and how; an empty name strikes nowhere.

    >>> parse_fault("log.before-commit:3:stop"), parse_fault("log.before-commit"), parse_fault("")[0]
    (('log.before-commit', 3, <Signals.SIGSTOP: 19>), ('log.before-commit', 1, <Signals.SIGKILL: 9>), '')
    """
    name, _, rest = text.partition(":")
    passage, _, how = rest.partition(":")
    return name, int(passage or 1), signal.SIGSTOP if how == "stop" else signal.SIGKILL


_name, _left, _signal = parse_fault(os.environ.get(VARIABLE, ""))


def fault(name: str) -> None:
    """Pass a fault point: return at once, unless this passage is the one that the environment asks for.

    Then the process gets SIGKILL: no handler runs, no buffer is flushed; or SIGSTOP. Called from any thread.
    """
    if name != _name:
        return
    _strike()


def _strike() -> None:
    global _left
    _left -= 1
    if _left == 0:
        os.kill(os.getpid(), _signal)
