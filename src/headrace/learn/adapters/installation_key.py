"""The key of this installation: what it signs, it will load again; what others wrote, it refuses.

`sealed` makes signed pickles of objects that nothing else can hold.

32 random bytes in ``~/.local/share/headrace/key``, or in the file that HEADRACE_KEY_FILE names, made on first use and
readable by their owner only. Machines that share states share the file.
"""

from __future__ import annotations

import hmac
import os
import pickle
import secrets
from pathlib import Path
from typing import Any

from headrace.errors import LearnError
from headrace.learn.adapters import canonical_pickle

LENGTH = 32
_PURPOSE = "sealed"
_SIGNATURE = 64


def signature(purpose: str, data: bytes) -> str:
    """Return the HMAC-SHA256 of some bytes under this installation's key, in hexadecimal digits.

    Raises:
        LearnError: the key's file cannot be made or read, holds no key, or is open to others.
    """
    return hmac.digest(_key(), purpose.encode() + b"\0" + data, "sha256").hex()


def is_ours(purpose: str, data: bytes, signed: str) -> bool:
    """Return whether this installation signed these bytes.

    Raises:
        LearnError: as for `signature`.
    """
    return hmac.compare_digest(signature(purpose, data).encode(), signed.encode())


def key_file() -> Path:
    """Return where the key is."""
    return Path(os.environ.get("HEADRACE_KEY_FILE") or Path.home() / ".local/share/headrace/key")


def _key() -> bytes:
    path = key_file()
    try:
        if not path.exists():
            _make(path)
        with path.open("rb") as file:
            mode, key = os.fstat(file.fileno()).st_mode, file.read(LENGTH + 1)
    except OSError as error:
        raise LearnError(
            f"the key of this installation, {path}, cannot be made or read: {error}",
            advice="Name a file that can be in HEADRACE_KEY_FILE.",
        ) from error
    if len(key) != LENGTH:
        raise LearnError(f"{path} holds no key of {LENGTH} bytes", advice="Restore it, or remove it for a new one.")
    if mode & 0o077:
        raise LearnError(f"others can read or write the key {path}", advice=f"chmod 600 {path}")
    return key


def _make(path: Path) -> None:
    """Make a key by a link, which appears at once and whole, and never over another process's key."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(secrets.token_bytes(LENGTH))
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink()


def sealed(value: Any) -> bytes:
    """Return a signature, then a pickle: equal values give equal bytes.

    >>> unsealed(sealed([1, 2]))
    [1, 2]
    """
    data = canonical_pickle.dumps(value)
    return signature(_PURPOSE, data).encode() + data


def unsealed(data: bytes) -> Any:
    """Return the inverse of `sealed`.

    Raises:
        LearnError: another installation wrote it, or nobody did.
    """
    signed, rest = data[:_SIGNATURE], data[_SIGNATURE:]
    if not is_ours(_PURPOSE, rest, signed.decode("ascii", "replace")):
        raise LearnError(
            "a detector's stored state was not written by this installation",
            advice="Take the installation's key along (HEADRACE_KEY_FILE), or learn again from the log.",
        )
    return pickle.loads(rest)
