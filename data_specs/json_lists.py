"""Lists in JSON, as Something-Something V2's are published: a list of objects, one for each video.

    [{"id": "78687", "label": "holding potato next to vicks vaporub bottle",
      "template": "Holding [something] next to [something]", "placeholders": […]}, …]

The paths come of the spec's `path_template` (`{id}.webm`) or of a field named as a path column of a csv list. A list
need not be trusted.
"""

import re
from typing import Any

from data_specs.list_problems import DatasetError, Problems
from data_specs.list_rows import PATH_COLUMNS, ListOptions, ListRow, label_column, path_source
from data_specs.path_template import fill_template
from data_specs.untrusted_files import parse_json

MOST_JSON_BYTES = 256 << 20
"""Of a list in JSON, whose values take ten times its room: 1.5 million videos of Something-Something V2."""
_OPENS = re.compile(r"\s*\[\s*\{")


def is_json_list(text: str) -> bool:
    """Whether a list's text is one of objects in JSON."""
    return _OPENS.match(text) is not None and text[-100:].rstrip().endswith("]")


def json_rows(text: str, spec: ListOptions, where: str, problems: Problems) -> list[ListRow]:
    """The rows of a list in JSON; texts and whole numbers of an object are its columns, anything else is passed over.

    Raises DatasetError where it is no list of objects at all.
    """
    if len(text) > MOST_JSON_BYTES:
        raise DatasetError(
            f"{where}: has {len(text)} characters, more than the {MOST_JSON_BYTES} that are read of JSON; "
            "make a csv list of it"
        )
    try:
        videos = parse_json(text)
    except ValueError as error:
        raise DatasetError(f"{where}: is not JSON: {error}") from error
    if not isinstance(videos, list) or not videos:
        raise DatasetError(f"{where}: must be a JSON list of objects, one for each video")
    rows: list[ListRow] = []
    for number, video in enumerate(videos, 1):
        place = f"entry {number}"
        if not isinstance(video, dict):
            problems.add(place, f"is a {type(video).__name__}, not an object")
            continue
        columns = _columns(video)
        template, path_column = path_source(list(columns), spec)
        if not template and not path_column:
            problems.add(place, f"has no path ({', '.join(PATH_COLUMNS)}); give the spec a path_template")
            continue
        if spec.id_column is not None and spec.id_column not in columns:
            problems.add(place, f"has no {spec.id_column}")
            continue
        try:
            path = fill_template(template, columns) if template else columns[path_column]
        except ValueError as error:
            problems.add(place, str(error))
            continue
        listed_id = columns[spec.id_column] if spec.id_column else None
        rows.append(ListRow(place, listed_id, path, _label(columns, spec)))
    return rows


def _label(columns: dict[str, str], spec: ListOptions) -> str | None:
    """The label; a template's placeholders lose their brackets, as in the names of Something-Something V2's classes."""
    column = label_column(list(columns), spec)
    if column is None:
        return None
    label = columns[column].strip()
    return (label.replace("[", "").replace("]", "") if column == "template" else label) or None


def _columns(video: dict[str, Any]) -> dict[str, str]:
    return {
        name: value if isinstance(value, str) else str(value)
        for name, value in video.items()
        if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63)
    }
