"""How often a video was begun and took its process with it: a small file in `partial/`, as long as it is not done.

A process that is killed, or crashes in native code, cannot count itself. So a worker notes that it begins, and
takes the note away when it is done. What is left is a try that was lost: the video's, where its driver lived on or the
process crashed by itself (`faulthandler` writes the crash into the file); or that of a run that was killed as a whole,
which need not have been the video's fault.
"""

import dataclasses
import faulthandler
import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_specs.durable import temporary_sibling
from data_specs.untrusted_files import MOST_METADATA_BYTES, parse_json, read_bounded

logger = logging.getLogger(__name__)

MAX_ENDED = 10
"""So often a video may have been at work when its whole run was killed. Those that were are done last."""


@dataclasses.dataclass(frozen=True)
class Tries:
    """Tries that were lost: `lost`, the video's own; `ended`, with the whole run. `cause`: how the last one crashed."""

    lost: int = 0
    ended: int = 0
    cause: str = ""

    def are_spent(self, max_tries: int) -> bool:
        """Whether the video is not to be tried again."""
        return self.lost >= max_tries or self.ended >= MAX_ENDED

    def __str__(self) -> str:
        ended = f", {self.ended} with its whole run" if self.ended else ""
        cause = f": {self.cause}" if self.cause else ""
        return f"its process was lost {self.lost + self.ended} times{ended}{cause}"


NO_TRIES = Tries()


def read_tries(path: Path) -> Tries:
    """The lost tries that the file `path` tells of, the one included that it says has begun; none without a file."""
    tries, begun, crash = _read(path)
    if crash:
        return dataclasses.replace(tries, lost=tries.lost + 1, cause=crash)
    return dataclasses.replace(tries, ended=tries.ended + 1) if begun else tries


def count_lost(path: Path) -> Tries:
    """Count a try whose process was lost while its driver looked on; returns what that makes."""
    tries, _, crash = _read(path)
    tries = dataclasses.replace(tries, lost=tries.lost + 1, cause=crash or tries.cause)
    _write(path, tries, begun=False)
    return tries


def forgive(path: Path) -> None:
    """Take back that a try has begun: the run itself gave it up."""
    tries, begun, crash = _read(path)
    if begun and not crash:
        _put_back(path, tries)


@contextmanager
def counting(path: Path) -> Iterator[None]:
    """Note in the file `path` that a try begins, and take that back when the body ends, whichever way."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tries = read_tries(path)
    _write(path, tries, begun=True)
    was_enabled = faulthandler.is_enabled()
    try:
        with path.open("a", encoding="utf-8") as crash:
            faulthandler.enable(crash, all_threads=False)
            try:
                yield
            finally:
                faulthandler.disable()
                if was_enabled and sys.__stderr__ is not None:
                    faulthandler.enable(sys.__stderr__)
    except BaseException:
        _put_back(path, tries)
        raise
    path.unlink(missing_ok=True)


def _put_back(path: Path, tries: Tries) -> None:
    if tries == NO_TRIES:
        path.unlink(missing_ok=True)
    else:
        _write(path, tries, begun=False)


def _read(path: Path) -> tuple[Tries, bool, str]:
    """What was counted before, whether a try has begun since, and the first line of its crash."""
    try:
        text = read_bounded(path, MOST_METADATA_BYTES, links=False).decode(errors="replace")
        first, _, crash = text.partition("\n")
        fields = parse_json(first)
        tries = Tries(int(fields["lost"]), int(fields["ended"]), str(fields["cause"]))
        return tries, fields["begun"] is True, crash.partition("\n")[0].strip()
    except FileNotFoundError:
        pass
    except (ValueError, KeyError, TypeError) as error:
        logger.warning("%s: is no count of tries (%s), begun anew", path, error)
    return NO_TRIES, False, ""


def _write(path: Path, tries: Tries, *, begun: bool) -> None:
    """Whole or not at all, but not flushed: it is about processes that end, not about machines."""
    temporary = temporary_sibling(path)
    try:
        temporary.write_text(json.dumps({**dataclasses.asdict(tries), "begun": begun}) + "\n", encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
