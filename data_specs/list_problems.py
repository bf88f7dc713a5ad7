"""What is wrong with a list, all of it at once, and how a text of it is shown."""


class DatasetError(ValueError):
    """A spec, list or root that cannot be used; the message names the file, the line and the way out."""


class Problems:
    """What is wrong with a list: all of it counted, the first few kept."""

    def __init__(self) -> None:
        self._count = 0
        self._first: list[str] = []

    def add(self, place: int | str, problem: str) -> None:
        """Note a problem; place: the number of its line, or words such as `entry 3`."""
        self._count += 1
        if len(self._first) < 20:
            self._first.append(f"{f'line {place}' if isinstance(place, int) else place}: {problem}")

    def check(self, where: str) -> None:
        """Raise DatasetError if there are any; `where` names the list."""
        if self._count:
            listed, more = "\n  ".join(self._first), self._count - len(self._first)
            raise DatasetError(
                f"{where}: {self._count} problem(s)\n  {listed}" + (f"\n  and {more} more" if more else "")
            )


def shown(text: str) -> str:
    """A text of a list as it can be shown: in one line, and not a long one."""
    return repr(text if len(text) <= 200 else text[:200] + "…")
