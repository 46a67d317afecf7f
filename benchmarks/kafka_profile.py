"""Where the time goes: this process sampled by py-spy, its busiest functions as text."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

RATE = 200
SHOWN = 25
_FRAME = re.compile(r"(?P<function>.+) \((?P<file>.+?)(:\d+)?\)$")


class Sampler(contextlib.AbstractContextManager["Sampler"]):
    """Samples all threads that work, 200 times a second, while the block runs; does nothing unless ``wanted``.

    Attributes:
        text: after the block, the functions in which the time went: of their own, and with what they called.
    """

    def __init__(self, *, wanted: bool) -> None:
        self.text = ""
        self._wanted = wanted

    def __enter__(self) -> Sampler:
        if not self._wanted:
            return self
        beside = Path(sys.executable).with_name("py-spy")
        program = str(beside) if beside.exists() else shutil.which("py-spy")
        if program is None:
            raise SystemExit("--profile needs py-spy: pip install py-spy")
        self._folder = tempfile.TemporaryDirectory()
        self._file = Path(self._folder.name) / "samples"
        command = [program, "record", "--pid", str(os.getpid()), "--rate", str(RATE), "--format", "raw"]
        command += ["--function", "--threads", "--output", str(self._file)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        return self

    def __exit__(self, *exception: object) -> None:
        if not self._wanted:
            return
        self._process.send_signal(signal.SIGINT)
        _, complaint = self._process.communicate(timeout=60)
        text = self._file.read_text() if self._file.exists() else ""
        self.text = report(text) or f"  py-spy found nothing: {complaint.decode(errors='replace')}"
        self._folder.cleanup()


def report(samples: str) -> str:
    """py-spy's raw samples as a table.

    >>> print(report("main (a.py);work (b.py) 3\\nmain (a.py) 1"))
      own %   all %  function
       75.0    75.0  b.py work
       25.0   100.0  a.py main
    """
    own: Counter[str] = Counter()
    every: Counter[str] = Counter()
    for line in samples.splitlines():
        stack, _, number = line.rpartition(" ")
        frames = [_shown(frame) for frame in stack.split(";") if not frame.startswith(("thread (", "process "))]
        if not frames:
            continue
        own[frames[-1]] += int(number)
        for frame in set(frames):
            every[frame] += int(number)
    total = sum(own.values())
    if not total:
        return ""
    most = [*own.most_common(SHOWN), *((frame, own[frame]) for frame, _ in every.most_common(SHOWN))]
    rows = [
        f"{100 * self_ / total:7.1f} {100 * every[frame] / total:7.1f}  {frame}" for frame, self_ in dict(most).items()
    ]
    return "\n".join(["  own %   all %  function", *rows])


def _shown(frame: str) -> str:
    found = _FRAME.match(frame)
    if found is None:
        return frame
    parts = Path(found["file"]).parts
    return f"{'/'.join(parts[-3:])} {found['function']}"
