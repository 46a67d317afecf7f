"""Requests of people to a pipeline from outside: another version of a model, a tag, rows of a table.

A pipeline that is stopped finds a request in its log (record ``request`` NAME). One that runs holds its log's file:
requests lie in a folder beside it, and so do their answers.

==========================  =======================================================================
file in ``<log>.requests``  holds
==========================  =======================================================================
ID.json                     a request; whoever asks puts it there whole (by renaming)
ID.state                    the state that goes with it, where there is one; written before
ID.taken                    a request that the pipeline has taken (by renaming): it will be answered
ID.reply                    the answer (JSON): ``{"result": …}`` or ``{"error": …, "advice": …}``
==========================  =======================================================================
"""

from __future__ import annotations

import contextlib
import getpass
import json
import secrets
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from headrace.errors import HeadraceError, LogError, WaitTimeout
from headrace.registry.versions import Pieces, Reads, Writes

KIND = "request"
CONTINUE = "continue"
FOLDER = ".requests"
LOOK_SECONDS = 0.05
TAKEN_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Request:
    """One wish.

    Attributes:
        version: a number or a tag.
        by: who asks, as user@host.
        tag, delete: the tag to give, or to take away.
        model: the model; of a snapshot the source, "" for the only one.
        snapshot: of a snapshot: ``tables``, ``where``, ``surrogate`` and ``id``.
        rebuilt: of a version at a position: ``position``, ``rows`` and ``known`` of the state that goes with it.
    """

    action: Literal["rollback", "tag", "retrain", "promote", "tick", "snapshot"]
    model: str
    version: int | str
    by: str
    tag: str = ""
    delete: bool = False
    rebuilt: dict[str, Any] = field(default_factory=dict)
    snapshot: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the stored text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Request:
        """Return what `to_json` was made of."""
        return cls(**json.loads(text))


def whoami() -> str:
    """Return the user and the machine.

    >>> "@" in whoami()
    True
    """
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in some containers
        user = "somebody"
    return f"{user}@{socket.gethostname()}"


def put_request(txn: Writes, request: Request) -> None:
    """Leave a request for the pipeline's next start; one that lies there for the same model is replaced."""
    txn.put(KIND, request.model, request.to_json().encode())


def read_requests(log: Reads) -> list[Request]:
    """Requests that lie in a log."""
    return [Request.from_json(value) for value in log.records(KIND).values()]


def put_continue(txn: Writes, model: str, by: str, ts_us: int) -> None:
    """Let a model go on from what it has learned at its pipeline's next start, though it is declared differently."""
    txn.put(CONTINUE, model, json.dumps({"by": by, "ts_us": ts_us}).encode())


def read_continue(log: Reads, model: str) -> dict[str, Any] | None:
    """Return who lets a model go on under another declaration, and when; None where nobody does."""
    value = log.records(CONTINUE, model).get(model)
    return None if value is None else dict(json.loads(value))


# -- asking -----------------------------------------------------------------------------------------------------------


def ask(folder: Path, request: Request, state: Pieces | None = None, *, timeout: float = 30.0) -> dict[str, Any]:
    """Ask the pipeline that runs, and wait for its answer.

    Raises:
        WaitTimeout: nobody took the request, which was withdrawn.
        HeadraceError: as the pipeline says.
    """
    name = secrets.token_hex(8)
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if state is not None:
            (folder / f"{name}.state").write_bytes(b"".join(state))
        draft = folder / f"{name}.draft"
        draft.write_text(json.dumps({"until": time.time() + timeout, "request": request.to_json()}))
        draft.replace(folder / f"{name}.json")
        return _answer(folder, name, timeout)
    finally:
        for end in ("draft", "state", "reply"):
            (folder / f"{name}.{end}").unlink(missing_ok=True)


def _answer(folder: Path, name: str, timeout: float) -> dict[str, Any]:
    reply, deadline, taken = folder / f"{name}.reply", time.monotonic() + timeout, False
    while not reply.exists():
        if time.monotonic() > deadline:
            with contextlib.suppress(FileNotFoundError):
                (folder / f"{name}.json").unlink()
                raise WaitTimeout(
                    f"the process that writes the log took no request within {timeout:g} s; it was withdrawn",
                    advice="Is it a pipeline of this Headrace, and not waiting for its database? Or stop it, and ask "
                    "again: the request then waits in the log.",
                )
            if taken:
                raise WaitTimeout(
                    "the pipeline has taken the request and not answered", advice="Look: headrace models show."
                )
            taken, deadline = True, time.monotonic() + TAKEN_SECONDS
        time.sleep(LOOK_SECONDS)
    answer = json.loads(reply.read_text())
    if "error" in answer:
        raise LogError(answer["error"], advice=answer.get("advice", ""))
    return dict(answer["result"])


# -- answering --------------------------------------------------------------------------------------------------------


class Inbox:
    """The pipeline's side of the folder.

    Args:
        folder: where requests come; None for a log that has none.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def take(self) -> Iterator[tuple[str, Request, bytes | None]]:
        """Requests that have come: name, request, and the state that goes with it."""
        if self._folder is None or not self._folder.is_dir():
            return
        for file in sorted(self._folder.glob("*.json")):
            taken = file.with_suffix(".taken")
            try:
                file.replace(taken)
                envelope = json.loads(taken.read_text())
            except (FileNotFoundError, ValueError):  # withdrawn, or none of ours
                continue
            if envelope.get("until", 0) < time.time():
                taken.unlink(missing_ok=True)
                continue
            state = file.with_suffix(".state")
            yield file.stem, Request.from_json(envelope["request"]), state.read_bytes() if state.exists() else None

    def reply(self, name: str, answer: Mapping[str, Any] | HeadraceError) -> None:
        """Answer a request."""
        assert self._folder is not None
        if isinstance(answer, HeadraceError):
            content: dict[str, Any] = {"error": answer.message, "advice": answer.advice}
        else:
            content = {"result": dict(answer)}
        (self._folder / f"{name}.taken").unlink(missing_ok=True)
        draft = self._folder / f"{name}.answer"
        with contextlib.suppress(FileNotFoundError):  # whoever asked has gone, and the folder with him
            draft.write_text(json.dumps(content))
            draft.replace(self._folder / f"{name}.reply")

    def clear(self) -> None:
        """Forget what an earlier run had taken and not answered."""
        if self._folder is not None and self._folder.is_dir():
            for end in ("taken", "answer"):
                for file in self._folder.glob(f"*.{end}"):
                    file.unlink(missing_ok=True)
