"""Labels of a data set's videos: what a list, a folder or a class file says of them becomes numbers from 0 on.

The classes are those of the spec's class file, or else the labels of the training list, sorted: as numbers where all of
them are (VideoMAE's lists), as texts otherwise. The list of another split never makes a numbering of its own. None of
these files need be trusted.
"""

import dataclasses
import re
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from data_specs.class_names import ClassNames, read_class_names
from data_specs.dataset import DatasetError, DatasetSpec, VideoEntry, VideoList, load_videos, root_folder, spec_of
from data_specs.list_names import text_problem
from data_specs.list_problems import Problems, shown
from data_specs.video_lists import split_label

_NUMBER = re.compile(r"[0-9]+")
_NEGATIVE = re.compile(r"-[0-9]+")
_TEST_SPLIT = re.compile(r"^(validation|val|test)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelledVideos:
    """The videos of a split and their classes."""

    videos: VideoList
    labels: NDArray[np.int64]
    """(V,), of each video in list order: an index into `classes`."""
    classes: tuple[str, ...]
    """Names of the classes by number; numbers as texts where nothing names them."""


def load_labelled(
    dataset: str,
    root: str | None = None,
    split: str | None = None,
    list_file: str | None = None,
    classes: Sequence[str] | None = None,
    *,
    list_option: str = "--list",
) -> LabelledVideos:
    """Load the videos of a split with their labels; dataset, root, split, list_file, list_option: as `load_videos`.

    classes: the classes by number, of a trained model for example, which no file changes then. Without it they are
    those of the class file or of the training list. That is the list taken here where the split is one for training (so
    is a list_file for which no split is named); otherwise the spec's list of the split that belongs to it (`train2` for
    `test2`), or else of the spec's own split.

    Raises DatasetError as `load_videos` does, and with every video that has no label or one that the classes lack.
    """
    spec = spec_of(dataset)
    videos = load_videos(dataset, root, split, list_file, list_option=list_option)
    source = f"the {videos.split} list of {videos.dataset}" if list_file is None else f"list {list_file}"
    named = _class_names(spec, root)
    names = _names(videos.entries, spec, named, source)
    if classes is None and named is not None:
        classes = named.names
    elif classes is None and (training := _training_split(spec, videos.split)) is None:
        classes = _sorted(names)
    elif classes is None:
        try:
            of_training = load_videos(dataset, root, training)
            training_source = f"the {training} list of {spec.name}"
            classes = _sorted(_names(of_training.entries, spec, named, training_source))
        except DatasetError as error:
            raise DatasetError(
                f"{source}: its classes are those of the training list, which cannot be had: {error}"
            ) from error
    numbers = {name: number for number, name in enumerate(classes)}
    if len(numbers) < len(classes):
        raise DatasetError(f"{source}: a class is named twice among the {len(classes)} that were given")
    problems = Problems()
    for entry, name in zip(videos.entries, names, strict=True):
        if name not in numbers:
            problems.add(_place(entry), f"{shown(entry.path)} has the label {shown(name)}, which {_lacking(classes)}")
    problems.check(source)
    labels = np.array([numbers[name] for name in names], dtype=np.int64)
    return LabelledVideos(videos=videos, labels=labels, classes=tuple(classes))


def _class_names(spec: DatasetSpec, root: str | None) -> ClassNames | None:
    if spec.classes is None:
        return None
    return read_class_names(root_folder(spec, root) / spec.classes)


def _training_split(spec: DatasetSpec, split: str) -> str | None:
    """The split whose list numbers the classes of `split`; None where that is its own."""
    if split == spec.split or split.startswith("train"):
        return None
    same = _TEST_SPLIT.sub("train", split)
    return same if same in spec.lists and same != split else spec.split


def _names(entries: Sequence[VideoEntry], spec: DatasetSpec, named: ClassNames | None, source: str) -> list[str]:
    """The class of each video by name, or by number where nothing names them. Raises DatasetError with all problems."""
    problems = Problems()
    if spec.label_from == "list" and (odd := _odd_ones_out(entries)):
        for entry in odd:
            problems.add(_place(entry), f"{shown(entry.path)} has no label after the path, as other lines have")
        problems.check(source)
    known = set(named.names) if named else set()
    names: list[str] = []
    for entry in entries:
        if spec.label_from == "folder":
            name = entry.path.rpartition("/")[0].rpartition("/")[2]
            if not name:
                problems.add(_place(entry), f"{shown(entry.path)} is in no folder, which would name its class")
                continue
        elif entry.label is None:
            problems.add(_place(entry), f"{shown(entry.path)} has no label; {_way_out(spec)}")
            continue
        elif wrong := text_problem(entry.label) or _no_class(entry.label):
            problems.add(_place(entry), f"the label {shown(entry.label)} of {shown(entry.path)} {wrong}")
            continue
        else:
            name = _canonical(entry.label)
            if named and name not in known:
                name = named.named(name) or name
        names.append(name)
    problems.check(source)
    return names


def _odd_ones_out(entries: Sequence[VideoEntry]) -> list[VideoEntry]:
    """The entries for which a list of `path label` lines was taken for one of paths alone; none where it is neither."""
    if any(entry.label is not None for entry in entries):
        return []
    odd = [entry for entry in entries if split_label(entry.path) is None]
    return odd if len(odd) < len(entries) else []


def _canonical(label: str) -> str:
    """A label's text; of a number without leading zeros."""
    return label.lstrip("0") or "0" if _NUMBER.fullmatch(label) else label


def _no_class(label: str) -> str | None:
    return "stands for no class; leave the video out of the list" if _NEGATIVE.fullmatch(label) else None


def _way_out(spec: DatasetSpec) -> str:
    column = f"a column {spec.label_column}" if spec.label_column else "`path label` lines, or a csv column label"
    return f"lists with labels have {column}; where folders are the classes, a spec says label_from: folder"


def _place(entry: VideoEntry) -> int | str:
    return entry.line if entry.line is not None else f"video {entry.index + 1}"


def _sorted(names: Iterable[str]) -> tuple[str, ...]:
    found = set(names)
    if all(_NUMBER.fullmatch(name) for name in found):
        return tuple(sorted(found, key=lambda number: (len(number), number)))
    return tuple(sorted(found))


def _lacking(classes: Sequence[str]) -> str:
    few = ", ".join(shown(name) for name in classes[:5]) + (", …" if len(classes) > 5 else "")
    return f"is none of the {len(classes)} classes: {few}"
