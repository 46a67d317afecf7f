"""Python programs as processes of their own, forked from one that has imported everything already.

A start of `headrace` costs a second, nearly all of it imports. `Child` and `run_python` are `subprocess.Popen` and
`subprocess.run` for Python programs: a server, one for each process of pytest, imports once and forks. A child is a
process like any other: it has its own standard streams, directory, environment, signals and exit code, and dies of
SIGKILL alone. What it has not is another seed of hashes, other flags of the interpreter, or imports of its own: tests
of these use `subprocess`.

This file is the server too: `python -P tests/processes.py SOCKET`.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import select
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HEADRACE = str(Path(sys.executable).parent / "headrace")
"""The command, as it is installed beside this interpreter."""
LIBRARIES = (
    "confluent_kafka.admin",
    "duckdb",
    "matplotlib.pyplot",
    "river.drift",
    "sklearn.cluster",
    "sklearn.linear_model",
    "skops.io",
)
"""What programs of the tests import beside every module of Headrace."""
_HEADER = struct.Struct("!I")


class Child(subprocess.Popen[Any]):
    """`subprocess.Popen` of `[HEADRACE, …]` or `[sys.executable, FILE | "-c" CODE | "-m" MODULE, …]`.

    Args:
        more: what `subprocess.Popen` takes, but for options about descriptors, users and shells.
    """

    def __init__(self, command: Sequence[str | Path], **more: Any) -> None:
        super().__init__([str(word) for word in command], **more)

    def _execute_child(self, args: Any, *more: Any) -> None:
        # The positions are those of CPython 3.11 to 3.14.
        _, _, _, _, cwd, env, _, _, _, *pipes = more[:15]
        standard = [pipes[0], pipes[3], pipes[5]]
        streams = [given if given != -1 else number for number, given in enumerate(standard)]
        job = (args, str(Path(cwd or ".").resolve()), dict(os.environ if env is None else env))
        self._status, theirs = socket.socketpair()
        with theirs:
            _server().start(job, [*streams, theirs.fileno()])
        self.pid = _HEADER.unpack(_exactly(self._status, _HEADER.size))[0]
        self._child_created = True
        self._close_pipe_fds(*pipes)

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        """The pid and its status, once it has ended; (0, 0) as long as it has not."""
        if wait_flags & os.WNOHANG and not select.select([self._status], [], [], 0)[0]:
            return 0, 0
        (status,) = _HEADER.unpack(_exactly(self._status, _HEADER.size))
        self._status.close()
        return self.pid, status

    def _internal_poll(self, *_: Any, **__: Any) -> int | None:
        if self.returncode is None and self._waitpid_lock.acquire(False):
            try:
                if self.returncode is None:
                    pid, status = self._try_wait(os.WNOHANG)
                    if pid:
                        self._handle_exitstatus(status)
            finally:
                self._waitpid_lock.release()
        return self.returncode


def run_python(
    command: Sequence[str | Path],
    *,
    input: Any = None,
    capture_output: bool = False,
    timeout: float | None = 120,
    check: bool = False,
    **more: Any,
) -> subprocess.CompletedProcess[Any]:
    """`subprocess.run` with a `Child`; it is killed when the time is up."""
    if capture_output:
        more |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    if input is not None:
        more["stdin"] = subprocess.PIPE
    with Child(command, **more) as child:
        try:
            out, err = child.communicate(input, timeout=timeout)
        except BaseException:
            child.kill()
            raise
    done = subprocess.CompletedProcess(child.args, child.returncode, out, err)
    if check:
        done.check_returncode()
    return done


def headrace(*arguments: str, cwd: Path, code: int = 0, timeout: float = 120) -> str:
    """Run a command as a user would; its standard output, or what it said of its failure."""
    done = run_python([HEADRACE, *arguments], cwd=cwd, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == code, done.stderr
    return str(done.stdout if code == 0 else done.stderr)


def worked() -> float:
    """Return the processor's time, in seconds, of every child that has ended."""
    return _server().worked() if _server.cache_info().currsize else 0.0


# -- the server, seen from pytest -------------------------------------------------------------------------------------


class _Server:
    """A process that has imported everything, and forks for each job."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket, theirs = socket.socketpair()
        command = [sys.executable, "-P", __file__, str(theirs.fileno())]
        with theirs:
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)

    def start(self, job: tuple[list[str], str, dict[str, str]], descriptors: Sequence[int]) -> None:
        body = pickle.dumps(job)
        with self._lock:
            socket.send_fds(self._socket, [_HEADER.pack(len(body))], descriptors)
            self._socket.sendall(body)

    def worked(self) -> float:
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[13:15])) / os.sysconf("SC_CLK_TCK")


@functools.cache
def _server() -> _Server:
    return _Server()


def _exactly(connection: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        more = connection.recv(size - len(found))
        if not more:
            raise EOFError("the server of forks is gone: see standard error")
        found += more
    return found


# -- the server -------------------------------------------------------------------------------------------------------


def _serve(connection: socket.socket) -> tuple[list[str], str, dict[str, str]]:
    """Fork for each job; returns in the child, with its job and its standard streams.

    Between the two stands a process that waits for the child, and says how it ended.
    """
    import signal

    def reap(*_: Any) -> None:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, reap)  # not SIG_IGN: what their children's times are added to is this process
    while True:
        header, descriptors, _, _ = socket.recv_fds(connection, _HEADER.size, 4)
        if not header:
            os._exit(0)
        job = pickle.loads(_exactly(connection, _HEADER.unpack(header)[0]))
        if os.fork() == 0:
            connection.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            child = os.fork()
            if child == 0:
                signal.signal(signal.SIGINT, signal.default_int_handler)
                for number, descriptor in enumerate(descriptors[:3]):
                    os.dup2(descriptor, number)
                _close(descriptors)
                return job
            _close(descriptors[:3])
            with contextlib.suppress(OSError):
                os.write(descriptors[3], _HEADER.pack(child))
                os.write(descriptors[3], _HEADER.pack(os.waitpid(child, 0)[1]))
            os._exit(0)
        _close(descriptors)


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _become(command: list[str], cwd: str, environment: dict[str, str]) -> None:
    """Make of this process what a start of the interpreter would make, and run the program."""
    import importlib
    import runpy
    import time
    import types

    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        buffering = 1 if number == 2 or os.isatty(number) else -1
        encoding = environment.get("PYTHONIOENCODING")
        errors = "backslashreplace" if number == 2 else None
        stream = open(number, mode, buffering, encoding=encoding, errors=errors, closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", getattr(sys, name))
    importlib.reload(sys.modules["headrace.faults"])  # it looks at the environment when it is imported,
    from rich.console import Console

    from headrace.cli.console import talk

    vars(talk).update(vars(Console(stderr=True)))  # and so does this, and at its stream
    first, *words = command
    sys.path[:0] = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    main = types.ModuleType("__main__")
    main.__dict__["__builtins__"] = __builtins__
    sys.modules["__main__"] = main
    if first == HEADRACE or words[:1] == [HEADRACE]:
        sys.argv[:] = [HEADRACE, *(words if first == HEADRACE else words[1:])]
        from headrace.cli.main import main as start

        raise SystemExit(start())
    if words[0] == "-m":
        sys.path.insert(0, cwd)
        sys.argv[:] = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        return
    if words[0] == "-c":
        sys.path.insert(0, "")
        sys.argv[:] = ["-c", *words[2:]]
        code = compile(words[1], "<string>", "exec")
    else:
        sys.path.insert(0, str(Path(words[0]).resolve().parent))
        sys.argv[:] = words
        main.__file__ = words[0]
        code = compile(Path(words[0]).read_bytes(), words[0], "exec")
    exec(code, main.__dict__)


def _end(program: Callable[..., None], *job: Any) -> None:
    """Run a program and end as the interpreter does, but for taking three thousand modules apart, which takes long."""
    import atexit

    code: Any = 0
    try:
        program(*job)
    except SystemExit as end:
        code = end.code
        if not isinstance(code, int | None):
            print(code, file=sys.stderr)
            code = 1
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        code = -2 if isinstance(error, KeyboardInterrupt) else 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    if code == -2:
        import signal

        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit((code or 0) & 255)


if __name__ == "__main__":
    import gc
    import importlib
    import pkgutil

    import headrace

    for _module in pkgutil.walk_packages(headrace.__path__, "headrace."):
        # What stands on Spark or Flink is imported by whoever chooses it.
        _chosen = _module.name.startswith(("headrace.engines.spark.", "headrace.engines.flink."))
        if not _chosen and not _module.name.endswith("__main__"):
            importlib.import_module(_module.name)
    for _name in LIBRARIES:
        importlib.import_module(_name)
    gc.collect()
    gc.freeze()
    _job = _serve(socket.socket(fileno=int(sys.argv[1])))
    _end(_become, *_job)
