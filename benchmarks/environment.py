"""Environments of their own for what is measured beside Headrace, made at the first use and kept."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import venv
from pathlib import Path


def environment(*packages: str) -> Path:
    """The interpreter of an environment with these packages, made when it is not there.

    It lies in ``$HEADRACE_CACHE``, or in ``headrace`` in the user's cache directory, under the first package's name and
    a hash of them all: two benchmarks with different packages never share one.

    Raises:
        subprocess.CalledProcessError: they cannot be installed; what pip said is in its ``stderr``.
    """
    root = os.environ.get("HEADRACE_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "headrace"
    name = packages[0].split("==")[0].split("[")[0]
    digest = hashlib.sha256("\n".join(packages).encode()).hexdigest()[:8]
    home = Path(root).expanduser() / f"{name}-{digest}"
    python = home / "bin" / "python"
    home.parent.mkdir(parents=True, exist_ok=True)
    with home.with_name(f".{home.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / "complete").exists():
            venv.create(home, clear=True, with_pip=True)
            install = [str(python), "-m", "pip", "install", "--quiet", *packages]
            subprocess.run(install, check=True, capture_output=True, text=True)
            (home / "complete").touch()
    return python
