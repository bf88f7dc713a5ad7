"""Which ids and paths a list or a store may name: one line of text each, and paths that stay below their root."""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

MOST_BYTES = 4096
"""Of an id or a path, in UTF-8: no system opens longer paths."""
# Line ends among them would make two lines of one in the list's digest and in logs, NUL ends a path, a tab parts id and
# path in the digest, the others steer terminals; lone surrogates are no text.
_REFUSED = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
# The same over many paths at once, joined by line feeds.
_REFUSED_IN_LINES = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_LEAVES_IN_LINES = re.compile(r"^/|^$|(?:^|/)\.{0,2}(?:/|$)", re.MULTILINE)


def text_problem(text: str) -> str | None:
    """Why a text can be neither id nor path: None, or words to follow it, such as `is empty`."""
    if not text:
        return "is empty"
    found = _REFUSED.search(text)
    if found:
        return f"holds the character {found[0]!a}, which cannot be part of a name here; rename the file"
    if len(text) > MOST_BYTES // 4 and len(text.encode()) > MOST_BYTES:
        return f"is longer than {MOST_BYTES} bytes"
    return None


def path_problem(path: str) -> str | None:
    """Why a path cannot be one of a video below a root: None, or words to follow it.

    Paths are relative, with forward slashes, and normal: no `..`, `.` or empty part.
    """
    problem = text_problem(path)
    if problem:
        return problem
    pure = PurePosixPath(path)
    if path.startswith("/") or ".." in pure.parts:
        return "is not below the root"
    return None if str(pure) == path != "." else "is not in its shortest form"


def columns_problem(ids: Sequence[str], paths: Sequence[str]) -> str | None:
    """As `text_problem` and `path_problem`, for the ids and paths of a shard's videos: the first that is refused.

    A few searches through all of the text, so that a store with a million videos opens as fast as ever.
    """
    for what, texts in (("id", ids), ("path", paths)):
        lines = "\n".join(texts)
        suspicious = (
            lines.count("\n") != max(len(texts) - 1, 0)
            or _REFUSED_IN_LINES.search(lines)
            or max(map(len, texts), default=0) > MOST_BYTES // 4
            or (_LEAVES_IN_LINES.search(lines) if what == "path" else "" in texts)
        )
        if suspicious:
            for number, text in enumerate(texts):
                problem = text_problem(text) if what == "id" else path_problem(text)
                if problem:
                    return f"attribute {what} of video {number}, {_short(text)}, {problem}"
    return None


def _short(text: str) -> str:
    """A text as it can be shown in one line."""
    return ascii(text if len(text) <= 200 else text[:200] + "…")
