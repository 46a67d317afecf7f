"""A pipeline as a job of Flink's: what its operators in other processes have to know, and what they say at the end."""

from __future__ import annotations

import json
import os
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from headrace import errors
from headrace.errors import HeadraceError
from headrace.kafka.settings import CONFIG, PREFIX, read_settings
from headrace.plan.plan import Plan

OURS = "HEADRACE_"
VERDICT = "headrace says: "


@dataclass(frozen=True, slots=True)
class TopicDecoder:
    """How topics of a cluster are decoded: as `headrace.formats.topic_formats.ForeignFormats` is made."""

    cluster: str
    topics: tuple[str, ...]
    named: Mapping[str, str]
    numbered: bool


@dataclass(frozen=True, slots=True)
class FlinkJob:
    """What the operators are told.

    Attributes:
        plan: the plan, pickled: a user's own functions and classes with it.
        environment: settings of clients, secrets among them, under the names of this process's environment.
        clusters: the address that each source of the job reads from, by its number.
        decoders: of the topics that others write.
    """

    plan: bytes
    environment: Mapping[str, str] = field(repr=False)
    clusters: tuple[str, ...]
    decoders: tuple[TopicDecoder, ...]

    @classmethod
    def of(cls, plan: Plan, clusters: Iterable[str], decoders: Iterable[TopicDecoder]) -> FlinkJob:
        """Return the job of a plan, whose sources read from some clusters."""
        import cloudpickle

        # What the user has written is not installed where the job runs.
        own = [module for module in list(sys.modules.values()) if is_own(module)]
        for module in own:
            cloudpickle.register_pickle_by_value(module)
        try:
            return cls(cloudpickle.dumps(plan), settings_of(os.environ), tuple(clusters), tuple(decoders))
        finally:
            for module in own:
                cloudpickle.unregister_pickle_by_value(module)


def settings_of(environ: Mapping[str, str]) -> dict[str, str]:
    """Return settings for another machine: a file of Kafka's properties is read here.

    >>> settings_of({"HEADRACE_LOG_LEVEL": "DEBUG", "HOME": "/root"})
    {'HEADRACE_LOG_LEVEL': 'DEBUG'}
    """
    found = {name: value for name, value in environ.items() if name.startswith(OURS) and name != CONFIG}
    if environ.get(CONFIG):
        kafka = read_settings(environ)
        found |= {PREFIX + name.upper().replace(".", "_"): value for name, value in kafka.items()}
    return found


def is_own(module: ModuleType) -> bool:
    """Return whether a module is neither installed nor part of Python: a user's own.

    >>> is_own(json), is_own(errors)
    (False, False)
    """
    file = getattr(module, "__file__", None)  # of a built-in module there is none
    if not isinstance(file, str) or module.__name__ == "__main__":
        return False
    path = Path(file).resolve()
    installed = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib")}
    installed |= {Path(errors.__file__).resolve().parent, Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve()}
    folders = set(path.parents)
    return not (folders & installed) and not any(folder.name == "site-packages" for folder in folders)


def verdict(error: BaseException) -> bytes:
    """Return what ends the job for good, as text that survives the way through Java's exceptions."""
    known = isinstance(error, HeadraceError)
    about = {
        "error": type(error).__name__,
        "message": error.message if isinstance(error, HeadraceError) else f"{type(error).__name__}: {error}",
        "advice": error.advice if isinstance(error, HeadraceError) else "",
        "known": known,
    }
    return (VERDICT + json.dumps(about)).encode()


def error_of(text: str) -> HeadraceError | None:
    """Return the error that a job has ended with, from what Flink says of it; None where it is none of ours.

    >>> error = errors.LogTruncated("offset 7 is gone", advice="Restore it.")
    >>> found = error_of(f"java.lang.RuntimeException: {verdict(error).decode()}\\n at headrace.flink.Verdict")
    >>> type(found).__name__, found.message, found.advice
    ('LogTruncated', 'offset 7 is gone', 'Restore it.')
    """
    _, found, rest = text.partition(VERDICT)
    if not found:
        return None
    about, _ = json.JSONDecoder().raw_decode(rest)
    # An error of a library's has no class here.
    kind = getattr(errors, about["error"], None) if about["known"] else None
    if not (isinstance(kind, type) and issubclass(kind, HeadraceError)):
        kind = HeadraceError
    return kind(about["message"], advice=about["advice"])
