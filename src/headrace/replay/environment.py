"""Within what "bit for bit" holds: the CPU's kernels, the thread count and the numeric libraries' versions."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from headrace.registry.versions import Reads, Writes

LIBRARIES = ("numpy", "pyarrow", "scikit-learn", "river", "keras", "jax", "torch")
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def environment_fingerprint() -> dict[str, Any]:
    """Return what the bits of a model may depend on, besides the log."""
    return {
        "machine": platform.machine(),
        "cpu_kernels": _cpu_kernels(),
        "threads": {name: os.environ.get(name, "default") for name in THREADS} | {"cpus": os.cpu_count()},
        "libraries": {name: found for name in LIBRARIES if (found := _version(name))},
    }


def libraries_of(learner: object) -> dict[str, str]:
    """Return versions of Python and of the libraries that a learner is made of.

    >>> sorted(libraries_of(object()))
    ['numpy', 'python']
    """
    made_of = {kind.__module__.rpartition(".")[2] for kind in type(learner).__mro__}
    names = ["numpy", *(name for part, found in _OF_ADAPTERS.items() if part in made_of for name in found)]
    return {"python": platform.python_version()} | {name: found for name in names if (found := _version(name))}


_OF_ADAPTERS = {
    "sklearn": ("scikit-learn", "skops"),
    "river": ("river",),
    "keras_model": ("keras", "jax", "tensorflow"),
    "torch_module": ("torch",),
}


def record_environment(log: Reads, txn: Writes, app: str, fingerprint: dict[str, Any]) -> None:
    """Note in the log that the app ran on this machine."""
    text = json.dumps(fingerprint, sort_keys=True)
    name = f"{app}/{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"
    if name not in log.records("machine", name):
        txn.put("machine", name, text.encode())


def foreign_environments(log: Reads, app: str, fingerprint: dict[str, Any]) -> list[dict[str, Any]]:
    """Machines other than this one on which the app ran on this log."""
    machines = [json.loads(value) for value in log.records("machine", f"{app}/").values()]
    return [machine for machine in machines if machine != fingerprint]


def _cpu_kernels() -> str:
    # What `numpy.show_config()` reports as SIMD found; the module has no public name.
    module = importlib.import_module("numpy._core._multiarray_umath" if np.__version__ >= "2" else "numpy.core")
    features: dict[str, bool] = getattr(module, "__cpu_features__", {})
    return ",".join(sorted(name for name, there in features.items() if there))


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
