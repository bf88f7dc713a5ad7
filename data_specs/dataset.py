"""Data sets: where the videos are and which of them, in which order.

A data set is a YAML spec (shipped by name, or a file) or simply a list file. Lists come in four formats, see
`video_lists.py`, or as one file for each class, see `class_file_lists.py`. What their labels mean is in `labels.py`.

The order of the list decides which video is in which shard, so a store remembers the list's digest. What of specs and
lists is refused is in docs/security.md.
"""

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import jsonargparse

from data_specs.class_file_lists import class_file_rows, names_class_files
from data_specs.demo_clips import render_demo_clips
from data_specs.list_problems import DatasetError, Problems
from data_specs.list_rows import ListFormat
from data_specs.path_template import template_fields
from data_specs.plain_yaml import PlainYamlError, parse_yaml, read_yaml
from data_specs.untrusted_files import read_bounded
from data_specs.video_lists import VideoEntry, entries_of, parse_list
from data_specs.yaml_recipes import checked_fields, name_problem

__all__ = [
    "DatasetError",
    "DatasetSpec",
    "ListFormat",
    "VideoEntry",
    "VideoList",
    "dataset_names",
    "list_digest",
    "load_spec",
    "load_videos",
    "parse_list",
    "root_folder",
    "spec_of",
]

MOST_LIST_BYTES = 16 << 30
"""Of a list, which is read as a whole: 100 million videos."""
_MOST_FRAMES = 100_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """Where a data set's videos and lists are."""

    name: str
    """Name under which the data set is written into the store."""
    lists: dict[str, str]
    """List file of each split, relative to the root; or one file for each class, as `folder/*_split1.txt:1`."""
    split: str = "train"
    """The split that is taken where none is asked for."""
    format: ListFormat = "auto"
    """Format of the lists; `auto` tells them apart by their lines."""
    root_env: str | None = None
    """Environment variable that holds the root folder where `--root` is not given."""
    root: str | None = None
    """Root folder where neither `--root` nor the environment variable is given."""
    path_template: str | None = None
    """For csv and JSON lists with these columns: the path from them, e.g. `{label}/{youtube_id}.mp4`;
    numbers may be formatted, e.g. `{time_start:06d}`."""
    id_column: str | None = None
    """For csv and JSON lists: the column that holds the video's id; otherwise the path is the id."""
    label_column: str | None = None
    """For csv and JSON lists: the column that holds the label; otherwise one called label, class or category."""
    label_from: Literal["list", "folder"] = "list"
    """What gives a video its label: its line of the list, or the name of the folder that it lies in."""
    classes: str | None = None
    """File that names the classes in the order of their numbers, relative to the root (`class_names.py`). Where it is
    not there, the labels of the training list take its place, sorted."""
    start_stride: int = 4
    """Start stride for recipes that leave it to the data set: it must divide the training clip's tubelet size times
    its frame stride (2 x 4 for Kinetics, 2 x 3 for Something-Something V2)."""
    clip_stride: int = 4
    """Frames from one frame of a training clip to the next, for recipes that leave it to the data set."""
    flip: bool = True
    """Whether a video's mirror image is as good a training sample: not where labels tell left from right."""
    rendered: bool = False
    """The videos are rendered into the root folder when they are not there (the demo)."""

    def __post_init__(self) -> None:
        if problem := name_problem(self.name):
            raise DatasetError(f"name {problem}")
        for name in ("start_stride", "clip_stride"):
            if not 1 <= getattr(self, name) <= _MOST_FRAMES:
                raise DatasetError(f"{name} is {getattr(self, name)}, must be 1 or more, at most {_MOST_FRAMES}")
        if self.split not in self.lists:
            raise DatasetError(f"split {self.split} has no list; lists has {', '.join(self.lists) or 'none'}")
        template_fields(self.path_template or "")


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoList:
    """The videos of one split, in list order, and where they are."""

    dataset: str
    split: str
    root: Path
    entries: tuple[VideoEntry, ...]
    start_stride: int
    clip_stride: int = 4
    flip: bool = True

    @property
    def digest(self) -> str:
        """SHA-256 of the ids and paths in list order: two lists with one digest shard the same way."""
        return list_digest([(e.id, e.path) for e in self.entries])

    def shard(self, shard: int, num_shards: int) -> tuple[VideoEntry, ...]:
        """The videos of shard `shard` of `num_shards`: every num_shards-th entry, in list order."""
        return self.entries[shard::num_shards]

    def limited(self, limit: int) -> "VideoList":
        """The list's first `limit` videos."""
        return dataclasses.replace(self, entries=self.entries[:limit])


def list_digest(ids_and_paths: Sequence[tuple[str, str]]) -> str:
    """SHA-256, in hex, of `id<TAB>path<NEWLINE>` for each video in list order, in UTF-8."""
    digest = hashlib.sha256()
    for video_id, path in ids_and_paths:
        digest.update(f"{video_id}\t{path}\n".encode())
    return digest.hexdigest()


def dataset_names() -> list[str]:
    """Names of the data set specs that ship with the project."""
    return sorted(p.name.removesuffix(".yaml") for p in _shipped().iterdir() if p.name.endswith(".yaml"))


def load_spec(file: str) -> DatasetSpec:
    """Load a shipped spec by name or a YAML file by path; raises DatasetError with every problem of the file."""
    where = f"data set {file}"
    try:
        if file in dataset_names():
            fields = parse_yaml((_shipped() / f"{file}.yaml").read_text(encoding="utf-8"))
        else:
            fields = read_yaml(file)
    except OSError as error:
        raise DatasetError(f"{where}: cannot be read: {error.strerror}") from error
    except PlainYamlError as error:
        raise DatasetError(f"{where}: {error}") from error
    if not isinstance(fields, dict):
        raise DatasetError(f"{where}: must be a mapping of fields, is {type(fields).__name__}")
    try:
        return DatasetSpec(**checked_fields(DatasetSpec, fields))
    except (jsonargparse.ArgumentError, DatasetError, TypeError) as error:
        raise DatasetError(f"{where}: {error}") from error


def load_videos(
    dataset: str,
    root: str | None = None,
    split: str | None = None,
    list_file: str | None = None,
    *,
    list_option: str = "--list",
) -> VideoList:
    """Load the list of a data set given as NAME, SPEC.yaml or LIST.

    root: folder that the paths are relative to; without it the spec's environment variable, then the spec's own.
    list_file: takes the place of the spec's list of that split; list_option: how a command is given one.
    Raises DatasetError for an unknown name, a missing root or list, a path outside the root, a duplicate id.
    """
    spec = spec_of(dataset)
    split = split or spec.split
    if list_file is None and split not in spec.lists:
        raise DatasetError(f"data set {spec.name} has no split {split}: it has {', '.join(spec.lists)}")
    folder = root_folder(spec, root)
    if spec.rendered and not folder.exists():
        render_demo_clips(folder)
    if not folder.is_dir():
        raise DatasetError(f"root {folder} of data set {spec.name} is not a folder; give it with --root")
    path = Path(list_file) if list_file else folder / spec.lists[split]
    if names_class_files(path):
        problems = Problems()
        entries = entries_of(class_file_rows(path, problems), problems, f"lists {path}", folder)
    else:
        hint = "" if list_file else f" (the {split} list of {spec.name}; another one is given with {list_option})"
        entries = parse_list(_read(path, f"list {path}{hint}"), spec, where=f"list {path}", root=folder)
    return VideoList(
        dataset=spec.name,
        split=split,
        root=folder,
        entries=entries,
        start_stride=spec.start_stride,
        clip_stride=spec.clip_stride,
        flip=spec.flip,
    )


def root_folder(spec: DatasetSpec, root: str | None = None) -> Path:
    """The folder of a data set's videos: `root`, else its environment variable's, else its own; absolute.

    Raises DatasetError where none of them is given.
    """
    from_env = os.environ.get(spec.root_env) if spec.root_env else None
    chosen = root or from_env or spec.root
    if not chosen:
        variable = f" or set {spec.root_env}" if spec.root_env else ""
        raise DatasetError(f"data set {spec.name}: where are its videos? Give --root DIR{variable}")
    return Path(chosen).expanduser().absolute()


def spec_of(dataset: str) -> DatasetSpec:
    """The spec of a data set given as NAME, SPEC.yaml or LIST (whose one split is `train`). Raises DatasetError."""
    if dataset in dataset_names() or dataset.endswith((".yaml", ".yml")):
        return load_spec(dataset)
    path = Path(dataset)
    if path.is_file():
        return DatasetSpec(name=path.stem, lists={"train": str(path.absolute())})
    raise DatasetError(
        f"data set {dataset}: neither a shipped name ({', '.join(dataset_names())}) nor a file; "
        "give a name, a SPEC.yaml or a list file"
    )


def _read(path: Path, where: str) -> str:
    try:
        return read_bounded(path, MOST_LIST_BYTES).decode("utf-8-sig")
    except OSError as error:
        raise DatasetError(f"{where}: cannot be read: {error.strerror}: {path}") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{where}: is not UTF-8 text ({error.reason} at byte {error.start})") from error


def _shipped() -> Any:
    return resources.files("data_specs") / "datasets"
