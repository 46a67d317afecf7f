"""A page of the documentation, followed as its reader does: typed into terminals, files written, output compared.

In a page, a ``console`` block is a terminal: lines that begin with ``$`` are typed (``>`` goes on), the lines after
them are what the terminal then shows, and ``^C`` is Ctrl-C. Its caption names the terminal. In expected output ``…``
stands for anything in a line, and a line of ``…`` for any lines. A block of another language with a caption is a file
of that name; ``pycon`` is what Python says. After ``<!-- slow -->`` a block is for the long form.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import shlex
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import pyte

from headrace.testing.servers import postgres_binaries
from tests.processes import HEADRACE, Child, run_python

DEADLINE = 60.0
COLUMNS = 80
_BLOCK = re.compile(
    r"(?P<slow>^<!-- slow -->\n+)?^```(?:\{code-block\} )?(?P<kind>\w+)\n(?::caption: (?P<caption>[^\n]+)\n)?"
    r"(?::[\w-]+:[^\n]*\n)*\n?(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_EVENTS = r"(?:\d\d:\d\d:\d\d [^\n]*\n)*"
_LOOKING = re.compile(
    r"headrace (topics (cat|list|show)|sql|models (list|show)|explain)|psql .*select|kcat .*-e|curl -s "
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    kind: str
    caption: str
    body: str
    slow: bool
    line: int


@dataclass
class Typed:
    """A command, or Ctrl-C, and what the terminal shows after it."""

    command: str
    expected: list[str] = field(default_factory=list)


def blocks_of(page: str) -> list[Block]:
    """Return a page's blocks, in order."""
    return [
        Block(
            found["kind"],
            found["caption"] or "",
            found["body"],
            found["slow"] is not None,
            page.count("\n", 0, found.start("kind")) + 1,
        )
        for found in _BLOCK.finditer(page)
    ]


def typed_in(body: str) -> list[Typed]:
    """Return what is typed in a block of a terminal.

    >>> typed_in("$ echo a\\\\\\n> b\\na\\n^C\\nended")
    [Typed(command='echo a\\\\\\nb', expected=['a']), Typed(command='^C', expected=['ended'])]
    """
    found: list[Typed] = []
    for line in body.splitlines():
        if line.startswith("$ ") or line == "^C":
            found.append(Typed(line.removeprefix("$ ")))
        elif line.startswith("> ") and not found[-1].expected:
            found[-1].command += f"\n{line[2:]}"
        else:
            found[-1].expected.append(line)
    return found


def pattern_of(expected: Sequence[str]) -> str:
    """Return a pattern of expected lines; blank lines count nothing, nor do events of a pipeline between them.

    >>> bool(re.fullmatch(pattern_of(["a …", "…", "c"]), "a 1\\n12:00:00 connected\\nb\\nb\\nc\\n"))
    True
    """
    parts = [_EVENTS]
    for line in expected:
        if line.strip() == "…":
            parts.append(r"(?:[^\n]*\n)*?")
        elif line.strip():
            parts.append(re.escape(line.rstrip()).replace("…", r"[^\n]*") + rf"\n{_EVENTS}")
    return "".join(parts)


class Screen:
    """A terminal of 80 columns, as an emulator shows it. What is longer than a line is not broken."""

    def __init__(self) -> None:
        self._screen = pyte.Screen(4000, 600)
        self._stream = pyte.ByteStream(self._screen)
        self._lock = threading.Lock()
        self._master, self.terminal = pty.openpty()
        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, COLUMNS, 0, 0))
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while data := os.read(self._master, 65536):
                with self._lock:
                    self._stream.feed(data)

    def started(self) -> None:
        """Let go of the program's end of the terminal: it has its own."""
        os.close(self.terminal)

    def ended(self) -> None:
        """Wait until all that was written is shown."""
        self._reader.join(DEADLINE)
        os.close(self._master)

    @property
    def text(self) -> str:
        """What is shown; no blank lines."""
        with self._lock:
            rows = [self._screen.buffer[number] for number in range(self._screen.cursor.y + 1)]
            lines = ["".join(row[x].data for x in range(max(row, default=-1) + 1)).rstrip() for row in rows]
        return "".join(f"{line}\n" for line in lines if line.strip())


@dataclass
class Program:
    """A program that runs in a terminal's foreground."""

    process: subprocess.Popen[bytes]
    screen: Screen

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        if isinstance(self.process, Child):
            self.process.send_signal(signal.SIGINT)
        else:
            os.killpg(self.process.pid, signal.SIGINT)


class Terminal:
    """A shell in the reader's directory, with an environment of its own."""

    def __init__(self, directory: Path, environment: Mapping[str, str], patience: float) -> None:
        self._directory, self._patience = directory, patience
        self.environment = dict(environment)
        self.program: Program | None = None

    def run(self, typed: Typed, *, stays: bool, repeat: bool) -> None:
        """Type a command, and compare what is shown.

        Args:
            stays: it goes on running; only what it shows first is compared.
            repeat: it is typed again until it shows what is expected, as by a reader who is faster than the pipeline.
        """
        deadline = time.monotonic() + self._patience
        while True:
            screen = Screen()
            process = self._start(typed.command, screen)
            screen.started()
            if stays:
                self.program = Program(process, screen)
                self._await(self.program, typed, deadline)
                return
            ended = self._ends(process, deadline)
            screen.ended()
            assert ended, f"it goes on after {self._patience:g} s\n{_difference(typed, screen.text)}"
            if re.fullmatch(pattern_of(typed.expected), screen.text):
                break
            assert repeat and time.monotonic() < deadline, _difference(typed, screen.text)
        self._keep_environment()

    def interrupt(self, typed: Typed) -> None:
        """Press Ctrl-C, and compare what the program shows at its end."""
        assert self.program is not None, "nothing runs in this terminal"
        program, self.program = self.program, None
        program.interrupt()
        program.process.wait(DEADLINE)
        program.screen.ended()
        # What was shown first may have been a line that changes, and is gone.
        whole = pattern_of(["…", *typed.expected])
        assert re.fullmatch(whole, program.screen.text), _difference(typed, program.screen.text)

    def close(self) -> None:
        """End what still runs."""
        if self.program is not None:
            self.program.interrupt()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.program.process.wait(20)
            self.program.process.kill()
            self.program = None

    def _ends(self, process: subprocess.Popen[bytes], deadline: float) -> bool:
        """Wait until a process has ended; one that goes on is killed."""
        try:
            process.wait(max(1.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(DEADLINE)
            return False
        return True

    def _start(self, command: str, screen: Screen) -> subprocess.Popen[bytes]:
        standard = {"stdin": screen.terminal, "stdout": screen.terminal, "stderr": screen.terminal}
        place = {"cwd": self._directory, "env": self.environment}
        words = self._words(command)
        if words is not None:
            program = HEADRACE if words[0] == "headrace" else sys.executable
            return Child([program, *words[1:]], **place, **standard)
        script = f"set -a\n{command}\nended=$?\nenv -0 > .environment\nexit $ended"
        return subprocess.Popen(["bash", "-c", script], **place, **standard, start_new_session=True)  # type: ignore[call-overload,no-any-return]

    def _words(self, command: str) -> list[str] | None:
        """Return the words of a plain call of `headrace` or `python`, which is forked; None of anything else."""
        if command.split()[0] not in ("headrace", "python"):
            return None
        plain = shlex.shlex(command, posix=True, punctuation_chars="();<>|&")
        if any(set(token) <= set("();<>|&") for token in plain):
            return None
        line = ["bash", "-c", f"printf '%s\\0' {command}"]
        done = subprocess.run(
            line, env=self.environment, cwd=self._directory, capture_output=True, check=True, text=True
        )
        return done.stdout.split("\0")[:-1]

    def _keep_environment(self) -> None:
        kept = self._directory / ".environment"
        if kept.exists():
            pairs = [pair.partition("=") for pair in kept.read_text().split("\0") if pair]
            self.environment = {name: value for name, _, value in pairs}
            kept.unlink()

    def _await(self, program: Program, typed: Typed, deadline: float) -> None:
        while not re.match(pattern_of(typed.expected), program.screen.text):
            assert program.process.poll() is None and time.monotonic() < deadline, _difference(
                typed, program.screen.text
            )
            time.sleep(0.02)


class Walkthrough:
    """A page that is followed in an empty directory.

    Args:
        given: the captions of blocks that are left out, each with variables of the environment that there are instead.
        slow: follow it to the end, in the long form.
    """

    def __init__(
        self, page: Path, directory: Path, *, given: Mapping[str, Mapping[str, str]] | None = None, slow: bool = False
    ) -> None:
        self._page, self._directory, self._slow = page, directory, slow
        self._given = given or {}
        folders = [str(Path(sys.executable).parent), os.environ["PATH"], str(postgres_binaries())]
        own = {name: value for name, value in os.environ.items() if not name.startswith(("HEADRACE_", "COLUMNS"))}
        self._environment = {**own, "PATH": ":".join(folders), "TERM": "xterm-256color", "PS1": "$ "}
        for variables in self._given.values():
            self._environment |= variables
        self._terminals: dict[str, Terminal] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for terminal in self._terminals.values():
            terminal.close()

    def follow(self) -> None:
        """Do what the page says, block by block.

        Raises:
            AssertionError: something else is shown than the page says; with the line of the page.
        """
        blocks = []
        for block in blocks_of(self._page.read_text()):
            if block.caption in self._given:
                self._give(block)
            elif self._slow or not block.slow:
                blocks.append(block)
        for number, block in enumerate(blocks):
            later = (
                other for other in blocks[number + 1 :] if (other.kind, other.caption) == ("console", block.caption)
            )
            try:
                self._do(block, next(later, None))
            except AssertionError as error:
                raise AssertionError(f"{self._page.name}:{block.line}: {error}") from None

    def _give(self, block: Block) -> None:
        """Write the file of variables that a block would make."""
        for name in re.findall(r"\| tee (\S+)", block.body):
            lines = [f"export {variable}={value!r}\n" for variable, value in self._given[block.caption].items()]
            (self._directory / name).write_text("".join(lines))

    def _do(self, block: Block, following: Block | None) -> None:
        if block.kind == "console":
            self._type(block, stays=following is not None and following.body.startswith("^C"))
        elif block.kind == "pycon":
            self._ask_python(block.body)
        elif block.caption:
            (self._directory / block.caption).write_text(block.body)

    def _type(self, block: Block, *, stays: bool) -> None:
        terminal = self._terminals.setdefault(
            block.caption, Terminal(self._directory, self._environment, 300 if self._slow else DEADLINE)
        )
        typed = typed_in(block.body)
        for number, entry in enumerate(typed):
            if entry.command == "^C":
                terminal.interrupt(entry)
                continue
            runs = any(other.program is not None for other in self._terminals.values())
            repeat = runs and _LOOKING.match(entry.command) is not None
            last = number == len(typed) - 1 or typed[number + 1].command == "^C"
            terminal.run(entry, stays=last and (stays or number < len(typed) - 1), repeat=repeat)

    def _ask_python(self, examples: str) -> None:
        page = self._directory / ".examples"
        page.write_text(examples.replace("…", "..."))
        code = (
            "import doctest, sys\n"
            "options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE\n"
            "sys.exit(doctest.testfile('.examples', module_relative=False, optionflags=options).failed)"
        )
        command = [sys.executable, "-c", code]
        done = run_python(command, cwd=self._directory, env=self._environment, capture_output=True, text=True)
        page.unlink()
        assert done.returncode == 0, done.stdout + done.stderr


def _difference(typed: Typed, shown: str) -> str:
    expected = "\n".join(typed.expected)
    return f"$ {typed.command}\n--- the page says\n{expected}\n--- the terminal shows\n{shown}---"


def unexecuted(page: str) -> Iterator[Block]:
    """Yield the blocks of code that no test runs: without a caption, and no terminal's."""
    for block in blocks_of(page):
        if block.kind not in ("console", "pycon", "text", "toctree") and not block.caption:
            yield block
