"""A profile: this process sampled by py-spy, its busiest functions as text."""

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
SHARE = 0.05  # of all samples, below which a thread is left out
_FRAME = re.compile(r"(?P<function>.+) \((?P<file>.+?)(:\d+)?\)$")


class Sampler(contextlib.AbstractContextManager["Sampler"]):
    """Samples all threads that work, 200 times a second, while the block runs; does nothing unless ``wanted``.

    Args:
        wanted: whether to.
        threads: what the names of the threads begin with that are shown: a pipeline's own by default.

    Attributes:
        text: after the block, the functions in which the time went: of their own, and with what they called.
    """

    def __init__(self, *, wanted: bool, threads: str = "headrace") -> None:
        self.text = ""
        self._threads = threads
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
        self.text = report(text, self._threads) or f"  py-spy found nothing: {complaint.decode(errors='replace')}"
        self._folder.cleanup()


def report(samples: str, shown: str = "") -> str:
    """py-spy's raw samples as a table for each thread that had a share worth naming, and whose name begins so.

    >>> print(report("thread (7): MainThread;main (a.py);work (b.py) 3\\nthread (7): MainThread;main (a.py) 1"))
      MainThread: 100 % of 4 samples
      own %   all %  function
       75.0    75.0  b.py work
       25.0   100.0  a.py main
    """
    threads: dict[str, list[tuple[list[str], int]]] = {}
    for line in samples.splitlines():
        stack, _, number = line.rpartition(" ")
        thread, *frames = stack.split(";")
        # A pool's worker that waits for work is not idle to py-spy.
        if frames and not frames[-1].startswith("_worker ("):
            name = thread.rpartition("): ")[2]
            if not name.startswith(shown):
                continue
            threads.setdefault(name, []).append(([_shown(frame) for frame in frames], int(number)))
    sizes = {name: sum(number for _, number in stacks) for name, stacks in threads.items()}
    total = sum(sizes.values())
    lines = []
    for name in sorted(sizes, key=lambda one: -sizes[one]):
        if sizes[name] >= SHARE * total:
            lines.append(f"  {name}: {100 * sizes[name] / total:.0f} % of {total} samples")
            lines += _table(threads[name], sizes[name])
    return "\n".join(lines)


def _table(stacks: list[tuple[list[str], int]], total: int) -> list[str]:
    """The functions that took most themselves, then those that took most with what they called."""
    own: Counter[str] = Counter()
    every: Counter[str] = Counter()
    for frames, number in stacks:
        own[frames[-1]] += number
        for frame in set(frames):
            every[frame] += number
    shown = dict.fromkeys(frame for frame, _ in (*own.most_common(SHOWN), *every.most_common(SHOWN)))
    rows = [f"{100 * own[frame] / total:7.1f} {100 * every[frame] / total:7.1f}  {frame}" for frame in shown]
    return ["  own %   all %  function", *rows]


def _shown(frame: str) -> str:
    found = _FRAME.match(frame)
    if found is None:
        return frame
    parts = Path(found["file"]).parts
    return f"{'/'.join(parts[-3:])} {found['function']}"
