"""The writer's lease: one process at a time writes a log, and the kernel takes the lease back when it dies.

The lock is `flock` on a file beside the log. The log's file itself must not be opened here: closing any
descriptor of a file drops the POSIX locks that SQLite holds on it in this process.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import weakref
from collections.abc import Iterable
from pathlib import Path

from headrace.errors import LogError, LogLocked

_NETWORK = frozenset({"afs", "cifs", "fuse.sshfs", "ncpfs", "nfs", "nfs4", "smb2", "smb3", "smbfs"})
_held: weakref.WeakSet[Lease] = weakref.WeakSet()


class Lease:
    """The exclusive right to write the log at ``path``, from construction to `release` or the process's end.

    Raises:
        LogLocked: someone holds it; the message names the process.
        LogError: the lock's file cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path.with_name(path.name + ".lock")
        try:
            self._descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise LogError(
                f"cannot write beside {path}: {error.strerror} ({self.file.name})",
                advice="The log's folder must exist and be writable by this user.",
            ) from error
        try:
            self._lock()
        except BaseException:
            self.release()
            raise
        _held.add(self)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise LogError(f"cannot lock {self.file}: {error.strerror}") from error
            raise self._refusal() from error
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def _refusal(self) -> LogLocked:
        holder = os.pread(self._descriptor, 32, 0).decode("ascii", "replace").strip()
        own = " (this one)" if holder == str(os.getpid()) else ""
        return LogLocked(
            f"the log {self.path} is being written by process {holder or 'unknown'}{own}",
            advice="Stop that process, or open the log for reading only; a log has one writer.",
        )

    def release(self) -> None:
        """Let others write. The lock's file stays: removing it would race with the next holder."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _forget_after_fork() -> None:
    """Close a forked child's copy: it would keep its parent's lock alive after the parent's death."""
    for lease in list(_held):
        lease.release()


os.register_at_fork(after_in_child=_forget_after_fork)


def filesystem_of(path: Path, mounts: Iterable[str]) -> str:
    """Return the type of the file system that holds ``path``, by lines as in ``/proc/mounts``; "" when none does.

    >>> filesystem_of(Path("/srv/data/a.headrace"), ["/dev/vda / ext4 rw 0 0", "nas:/v /srv/data nfs4 rw 0 0"])
    'nfs4'
    """
    found, depth = "", -1
    for line in mounts:
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        # Spaces in a mount point are written as octal escapes.
        point = Path(re.sub(r"\\([0-7]{3})", lambda escape: chr(int(escape[1], 8)), fields[1]))
        # The later of two mounts on one point lies on top.
        if len(point.parts) >= depth and path.is_relative_to(point):
            found, depth = fields[2], len(point.parts)
    return found


def refuse_network_filesystem(path: Path, mounts: Iterable[str] | None = None) -> None:
    """Refuse a network file system: SQLite's write-ahead log is shared memory, which none of them keeps coherent.

    Args:
        path: the log, resolved.
        mounts: lines as in ``/proc/mounts``; the machine's own by default.

    Raises:
        LogError: ``path`` lies on NFS, SMB, SSHFS or AFS.
    """
    if mounts is None:
        table = Path("/proc/self/mounts")
        mounts = table.read_text(errors="replace").splitlines() if table.exists() else []
    kind = filesystem_of(path, mounts)
    if kind in _NETWORK:
        raise LogError(
            f"the log {path} lies on a network file system ({kind}), where locks and shared memory cannot be trusted",
            advice="Put the log on a local disk, or use log='kafka://…' to share it between machines.",
        )
