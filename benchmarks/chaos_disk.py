"""A small file system for a chaos run's store: it can be full, and it can be read-only."""

import contextlib
import errno
import os
import subprocess
import tempfile
import time
from pathlib import Path


def can_mount() -> bool:
    """Whether this process may mount file systems."""
    if os.geteuid() != 0:
        return False
    with tempfile.TemporaryDirectory() as folder:  # root of a container may not
        try:
            Disk(Path(folder) / "trial", 1 << 20).close()
        except (OSError, subprocess.CalledProcessError):
            return False
    return True


class Disk:
    """A tmpfs of so many bytes at `folder`, which is created; a context that unmounts it."""

    def __init__(self, folder: Path, num_bytes: int) -> None:
        self.folder = folder
        self._filler = folder / "filler"
        folder.mkdir(parents=True)
        _run("mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(folder))

    def __enter__(self) -> "Disk":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmount it; what still writes there keeps its files open in vain."""
        _run("umount", "--lazy", str(self.folder))

    def fill(self, leave: int = 0) -> None:
        """Leave no byte free, or so many."""
        with self._filler.open("ab", buffering=0) as file:
            size = 16 << 20
            while size:
                there = os.fstatvfs(file.fileno())
                free = there.f_bavail * there.f_frsize - leave
                try:
                    if free <= 0:
                        return
                    os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), min(size, free))
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    size //= 2

    def free(self) -> None:
        """Make the space free again."""
        self._filler.unlink(missing_ok=True)

    def set_read_only(self, patience: float = 10.0) -> bool:
        """Let nothing be written; False where after so many seconds there is still a file open for writing."""
        deadline = time.monotonic() + patience
        while True:
            with contextlib.suppress(subprocess.CalledProcessError):
                _run("mount", "-o", "remount,ro", str(self.folder))
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)

    def set_writable(self) -> None:
        """Let it be written again."""
        _run("mount", "-o", "remount,rw", str(self.folder))


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
