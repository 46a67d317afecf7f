"""API keys: a file that holds their hashes, made and read for its owner only.

A key is ``hr_ID_SECRET``. The secret has 256 random bits, so that one SHA-256 keeps it at rest: nobody guesses it, and
a slow hash, made for what people choose, would only slow each request down.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from headrace.errors import DeclarationError, HeadraceError

SCOPES = ("predict", "train", "metrics", "read", "produce", "admin")
LOOK_SECONDS = 1.0
_NOBODY = hashlib.sha256(b"nobody").hexdigest()


@dataclass(frozen=True, slots=True)
class Key:
    """One key, without its secret.

    Attributes:
        id: names it, in the key too; ``name``: what people call it.
        sha256: of the secret.
        created: ISO 8601.
    """

    id: str
    name: str
    scopes: tuple[str, ...]
    sha256: str
    created: str


def keys_beside(log: str) -> Path | None:
    """The file of keys beside a log; None where the log is no file.

    >>> str(keys_beside("fish.headrace")), keys_beside("memory://")
    ('fish.headrace.keys', None)
    """
    return None if "://" in log else Path(f"{log}.keys")


class KeyFile:
    """The keys in a file, read again when it changes.

    Args:
        clock: seconds that only grow; the file is looked at once in one of them.

    While the file cannot be read, every method that looks at keys raises, until it can be read again.

    Raises:
        DeclarationError: it is no file of keys, or others may read it.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self._clock = clock
        self._seen: tuple[int, ...] | None = None
        self._looked_at = 0.0
        self._unreadable: DeclarationError | None = None
        self._keys: dict[str, Key] = {}
        self._load()

    def some(self) -> bool:
        """Return whether there is a key."""
        self._look()
        return bool(self._keys)

    def identity(self) -> str:
        """Return the file's state: another text after every change, and none where there is no file."""
        self._look()
        return "" if self._seen is None else ":".join(map(str, self._seen))

    def all(self) -> list[Key]:
        """Every key."""
        return list(self._keys.values())

    def find(self, text: str) -> Key | None:
        """The key that a request brought, if it is one of these. Takes as long whichever part of it is wrong."""
        self._look()
        prefix, _, rest = text.partition("_")
        number, _, secret = rest.partition("_")
        key = self._keys.get(number)
        given = hashlib.sha256(secret.encode()).hexdigest()
        same = hmac.compare_digest(given, key.sha256 if key is not None else _NOBODY)
        return key if same and prefix == "hr" else None

    def create(self, name: str, scopes: Iterable[str]) -> tuple[Key, str]:
        """Make a key; returns it, and its text, which is nowhere else.

        Raises:
            DeclarationError: there is no such scope.
        """
        wanted = tuple(dict.fromkeys(scopes))
        if not wanted or set(wanted) - set(SCOPES):
            raise DeclarationError(f"--scope {' '.join(wanted) or '(none)'}", advice=f"There are {', '.join(SCOPES)}.")
        number, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
        when = datetime.now(UTC).isoformat(timespec="seconds")
        key = Key(number, name, wanted, hashlib.sha256(secret.encode()).hexdigest(), when)
        with self._alone():
            self._keys[number] = key
            self._store()
        return key, f"hr_{number}_{secret}"

    def revoke(self, number: str) -> Key:
        """Take a key away; servers that run know it within a second.

        Raises:
            HeadraceError: there is none of this id.
        """
        with self._alone():
            if number not in self._keys:
                raise HeadraceError(f"there is no key {number} in {self.path}", advice="headrace keys list shows them.")
            key = self._keys.pop(number)
            self._store()
        return key

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Read the file, and let nobody else change it: two at once would bring a key back that was revoked."""
        lock = os.open(self.path.with_name(f"{self.path.name}.lock"), os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._load()
            yield
        finally:
            os.close(lock)

    def _store(self) -> None:
        draft = self.path.with_name(f"{self.path.name}.draft")
        draft.unlink(missing_ok=True)
        content = json.dumps({"keys": [asdict(key) for key in self._keys.values()]}, indent=1)
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self.path)
        self._load()

    def _look(self) -> None:
        now = self._clock()
        if now - self._looked_at >= LOOK_SECONDS:
            self._looked_at = now
            try:
                found = self.path.stat()
                changed = self._unreadable is not None or _seen(found) != self._seen
            except FileNotFoundError:
                changed = self._unreadable is not None or self._seen is not None
            except OSError:
                changed = True
            if changed:
                self._load()
        if self._unreadable is not None:
            raise self._unreadable

    def _load(self) -> None:
        try:
            self._seen, self._keys = self._read()
        except DeclarationError as error:
            # What was read before does not count any more: a key may have been revoked since.
            self._unreadable, self._keys = error, {}
            raise
        self._unreadable = None

    def _read(self) -> tuple[tuple[int, ...] | None, dict[str, Key]]:
        try:
            found = self.path.stat()
            text = self.path.read_text()
        except FileNotFoundError:
            return None, {}
        except (OSError, UnicodeDecodeError) as error:
            raise DeclarationError(f"{self.path} cannot be read: {error}") from error
        if found.st_mode & 0o077:
            raise DeclarationError(f"others may read {self.path}, which holds keys", advice=f"chmod 600 {self.path}")
        try:
            keys = [Key(**{**load, "scopes": tuple(load["scopes"])}) for load in json.loads(text)["keys"]]
            by_id = {key.id: key for key in keys}
            complete = all(isinstance(key.sha256, str) and isinstance(key.id, str) for key in keys)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DeclarationError(f"{self.path} is no file of keys: {error}") from error
        if not complete:
            raise DeclarationError(f"{self.path} is no file of keys: an id or a hash is no text")
        return _seen(found), by_id


def _seen(found: os.stat_result) -> tuple[int, ...]:
    """Return a file's state; its mode too: others may read it from now on."""
    return found.st_mtime_ns, found.st_ino, found.st_mode
