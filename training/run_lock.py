"""One trainer in a run's folder at a time: two would cut back each other's log and remove each other's checkpoints."""

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)


@contextmanager
def only_trainer(run: Path) -> Iterator[None]:
    """Hold the lock RUN/lock; it is gone with the process, however that ends.

    Raises ValueError where another process holds it, OSError where the folder cannot be written. A file system without
    locks is taken as it is, with a warning.
    """
    run.mkdir(parents=True, exist_ok=True)
    with (run / "lock").open("a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"--out {run}: another process trains there now ({file.name} is locked); wait for its end, or take "
                "another folder"
            ) from error
        except OSError as error:
            logger.warning("%s cannot be locked (%s): see that nobody else trains there", file.name, error.strerror)
        yield
