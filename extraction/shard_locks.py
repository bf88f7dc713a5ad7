"""One run at a time for each shard: two would extract the same videos, and take away each other's partial files."""

import errno
import fcntl
import logging
import os
import socket
from pathlib import Path
from types import TracebackType

from data_specs.durable import write_file

logger = logging.getLogger(__name__)


class ShardLocks:
    """Locks of a store's shards, held until this is closed, or the process is gone, however that ends.

    They are POSIX locks on the bytes of the file STORE/locks, byte i for shard i: these work between the hosts of a
    network file system, need no clock, and child processes (Ray's daemons outlive a killed driver) do not inherit them.
    A file system without locks is taken as it is, with a warning.
    """

    def __init__(self, store: Path) -> None:
        self._store = store
        self._descriptor = os.open(store / "locks", os.O_RDWR | os.O_CREAT, 0o666)
        self._unlockable = False

    def __enter__(self) -> "ShardLocks":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._descriptor)

    def take(self, shard: int) -> str | None:
        """Lock a shard, without waiting; None, or who else holds it."""
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, shard)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return self._holder(shard)
            if not self._unlockable:
                self._unlockable = True
                logger.warning(
                    "%s cannot be locked (%s): see that no other run works on the same shards", self._store / "locks",
                    error.strerror,
                )  # fmt: skip
        return None

    def _holder(self, shard: int) -> str:
        try:
            return holder_file(self._store, shard).read_text(encoding="utf-8").strip()
        except OSError:
            return "another process"


def sign(store: Path, shard: int) -> None:
    """Say in the shard's partial folder who works on it, for those who find it locked."""
    text = f"process {os.getpid()} on {socket.gethostname()}\n"
    write_file(holder_file(store, shard), text)  # never through a link


def holder_file(store: Path, shard: int) -> Path:
    """Where it says who works on a shard; there as long as somebody does, or has not finished."""
    return store / "partial" / f"{shard:05d}" / "holder"
