"""Where a list's videos are: below the root and nowhere else, whatever the list, a store or a link says."""

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from data_specs.dataset import DatasetError
from data_specs.list_names import path_problem
from data_specs.video import VideoOpenError, check_file

_LOOKED_AT = 20


class VideoOutsideRootError(VideoOpenError):
    """A path, or a symbolic link, that leads out of the data set's root."""


def video_path(root: str | Path, relative: str, *, follow_links: bool) -> Path:
    """The file of the video at the path `relative` of a list or a store, below the folder `root`.

    follow_links: whether symbolic links below the root may lead out of it. The root itself may be a link.
    Raises VideoOutsideRootError where it would lie outside; VideoOpenError where there is no file, or one that is no
    regular file or empty: pipes and devices are never opened.
    """
    path = Path(root) / relative
    if problem := path_problem(relative):
        raise VideoOutsideRootError(ascii(str(path)), f"the path {problem}")
    if not follow_links and _led_out(root, relative):
        raise VideoOutsideRootError(
            path, "a symbolic link leads out of the root; where that is meant, --follow-links takes it"
        )
    check_file(path)
    return path


def check_links(root: str | Path, paths: Sequence[str], *, follow_links: bool) -> None:
    """Raise DatasetError where links lead the first of a list's videos out of the root, as in a farm of links.

    So that a run ends before it begins, and not with a failure for each video. Looks at the first few; where only some
    of them lead out, each is a failure of its own.
    """
    if follow_links:
        return
    first = [path for path in paths[:_LOOKED_AT] if os.path.isfile(f"{root}/{path}")]  # noqa: PTH113 (of any length)
    outside = [path for path in first if _led_out(root, path)]
    if first and len(outside) == len(first):
        raise DatasetError(
            f"root {root}: symbolic links lead out of it: {outside[0]} is {os.path.realpath(Path(root) / outside[0])}; "
            "--follow-links takes such videos, or give the folder where they are with --root"
        )


def _led_out(root: str | Path, relative: str) -> bool:
    """Whether links lead a path below the root out of it. Where no part of it is a link, the root is not resolved."""
    place = str(root)
    for part in relative.split("/"):
        place = f"{place}/{part}"
        try:
            is_link = stat.S_ISLNK(os.lstat(place).st_mode)
        except OSError:
            return False  # it cannot be opened either
        if is_link:
            return not Path(os.path.realpath(f"{root}/{relative}")).is_relative_to(os.path.realpath(root))
    return False
