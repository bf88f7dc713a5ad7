"""What every reader of lists shares: the options of a spec, the rows that a list is taken apart into, its columns."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

from data_specs.path_template import template_fields

ListFormat = Literal["auto", "path_label", "csv", "paths", "json"]
PATH_COLUMNS = ("path", "video_path", "video", "filename", "file")
LABEL_COLUMNS = ("label", "class", "category")


class ListOptions(Protocol):
    """What of a data set's spec says how its lists are read."""

    @property
    def format(self) -> ListFormat: ...

    @property
    def path_template(self) -> str | None: ...

    @property
    def id_column(self) -> str | None: ...

    @property
    def label_column(self) -> str | None: ...


class ListRow(NamedTuple):
    """A video as its list names it; nothing has been checked."""

    place: int | str
    """Number of its line, or words such as `entry 3`."""
    id: str | None
    path: str
    label: str | None


def path_source(columns: Sequence[str], spec: ListOptions) -> tuple[str | None, str]:
    """What gives a list's paths: the spec's template, where the list has its columns, else a path column's name.

    Template and name; the name is empty where there is none, and the template None where the name is taken.
    """
    named = next((column for column in columns if column.lower() in PATH_COLUMNS), "")
    template = spec.path_template
    fits = template is not None and set(template_fields(template)) <= set(columns)
    return (template, "") if fits or not named else (None, named)


def label_column(columns: Sequence[str], spec: ListOptions) -> str | None:
    """The column that holds the labels: the spec's, else the first with a usual name; None where the list has none.

    A list without labels is a sound one: only what needs them complains (`labels.py`).
    """
    if spec.label_column is not None:
        return spec.label_column if spec.label_column in columns else None
    return next((column for column in columns if column.lower() in LABEL_COLUMNS), None)
