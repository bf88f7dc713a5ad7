"""Files that name a data set's classes and number them. They need not be trusted. Three kinds are known:

JSON       `{"Approaching something with your camera": "0", …}`: Something-Something V2's labels.json
numbered   `1 ApplyEyeMakeup`: UCF101's classInd.txt
names      one name per line, in the order of their numbers from 0
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_specs.list_names import text_problem
from data_specs.list_problems import DatasetError, Problems, shown
from data_specs.untrusted_files import parse_json, read_bounded

MOST_CLASSES = 1_000_000
_MOST_BYTES = 64 << 20
_NUMBERED = re.compile(r"([0-9]{1,9})[ \t]+(\S.*)")
_NUMBER = re.compile(r"[0-9]{1,9}")


@dataclasses.dataclass(frozen=True)
class ClassNames:
    """The classes of a data set in the order of their numbers."""

    names: tuple[str, ...]
    first: int
    """The number of the first of them, as the file has it: 0 or 1."""

    def named(self, number: str) -> str | None:
        """The class that the file gives this number, without leading zeros, or None."""
        if not _NUMBER.fullmatch(number):
            return None
        index = int(number) - self.first
        return self.names[index] if 0 <= index < len(self.names) else None


def read_class_names(path: Path) -> ClassNames | None:
    """Read a file of class names; None where there is none. Raises DatasetError with every problem of it."""
    where = f"class file {path}"
    try:
        text = read_bounded(path, _MOST_BYTES).decode("utf-8-sig")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DatasetError(f"{where}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{where}: is not UTF-8 text ({error.reason} at byte {error.start})") from error
    return parse_class_names(text, where)


def parse_class_names(text: str, where: str) -> ClassNames:
    """The classes that a text names; `where` names it in an error. Raises DatasetError with every problem of it."""
    problems = Problems()
    if text.lstrip().startswith("{"):
        numbered = _of_json(text, where, problems)
    else:
        lines = [(number, line.strip(" \t\r")) for number, line in enumerate(text.split("\n"), 1)]
        lines = [(number, line) for number, line in lines if line]
        matches = [_NUMBERED.fullmatch(line) for _, line in lines]
        if matches and all(matches):
            numbered = [(place, m[2], int(m[1])) for (place, _), m in zip(lines, matches, strict=True) if m]
        else:
            numbered = [(place, name, index) for index, (place, name) in enumerate(lines)]
    if not numbered:
        problems.check(where)
        raise DatasetError(f"{where}: names no class")
    if len(numbered) > MOST_CLASSES:
        raise DatasetError(f"{where}: names {len(numbered)} classes, more than {MOST_CLASSES}")
    names: dict[str, int | str] = {}
    by_number: dict[int, str] = {}
    for place, name, number in numbered:
        wrong = text_problem(name)
        if wrong:
            problems.add(place, f"the class {shown(name)} {wrong}")
        elif name in names:
            problems.add(place, f"the class {shown(name)} is already named")
        elif number in by_number:
            problems.add(place, f"the number {number} is already that of {shown(by_number[number])}")
        else:
            names[name] = place
            by_number[number] = name
    problems.check(where)
    first = min(by_number)
    missing = [str(n) for n in range(first, first + len(by_number)) if n not in by_number]
    if first > 1 or missing:
        raise DatasetError(
            f"{where}: classes must be numbered without gaps from 0 or 1; "
            + (f"none has the number {', '.join(missing[:5])}" if missing else f"the first has the number {first}")
        )
    return ClassNames(tuple(by_number[number] for number in sorted(by_number)), first)


def _of_json(text: str, where: str, problems: Problems) -> list[tuple[int | str, str, int]]:
    try:
        found: Any = parse_json(text)
    except ValueError as error:
        raise DatasetError(f"{where}: is not JSON: {error}") from error
    assert isinstance(found, Mapping)
    numbered: list[tuple[int | str, str, int]] = []
    for place, (name, number) in enumerate(found.items(), 1):
        digits = str(number) if isinstance(number, (str, int)) and not isinstance(number, bool) else ""
        if _NUMBER.fullmatch(digits):
            numbered.append((f"entry {place}", name, int(digits)))
        else:
            what = shown(digits) if digits else f"a {type(number).__name__}"
            problems.add(f"entry {place}", f"the class {shown(name)} must have a number from 0 on, has {what}")
    return numbered
