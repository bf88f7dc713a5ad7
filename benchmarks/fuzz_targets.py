"""What benchmarks/fuzz.py tries: each reader of files that need not be trusted, and the errors that it may raise."""

import dataclasses
import io
import json
import pickle
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fuzz_inputs as inputs
import numcodecs.blosc
import numpy as np
import torch

from data_specs.dataset import DatasetError, DatasetSpec, list_digest, load_spec, parse_list
from data_specs.demo_clips import write_clip
from data_specs.failures import Failure, failures_path, read_failures
from data_specs.labels import load_labelled
from data_specs.list_names import path_problem, text_problem
from data_specs.recipe import RecipeError, load_recipe
from data_specs.scene import random_scene
from data_specs.schema import array_specs
from data_specs.track_store import StoreError, TrackStore
from data_specs.validate import validate_store
from data_specs.video import VideoError
from data_specs.video_files import video_path
from extraction.evaluation.array_pickles import ArrayPickleError, load_arrays
from extraction.evaluation.tapvid_data import TapVidDataError, read_tapvid
from extraction.partial import PartialError, PartialFile
from training.checkpoint import CheckpointError, load, save
from training.finetuning.recipe import load_finetune_recipe
from training.reading.track_reader import TrackReader
from training.recipe import load_recipe as load_training_recipe

RECIPE = "extends: mme-object\nname: everything\ndescriptors: [flow, hof, mbh]\nlength: 3\ngrid_stride: 16\n"


@dataclasses.dataclass(frozen=True)
class Target:
    """One reader. `make`: an input; `read`: what is done with it; `errors`: what that may raise."""

    name: str
    make: Callable[[random.Random], Any]
    read: Callable[[Any], None]
    errors: tuple[type[Exception], ...]


def make_store(folder: Path) -> Path:
    """A small store of every array that there is, made by the extractor; a partial file of it beside it."""
    from extraction import cli, commit  # noqa: PLC0415 (compiles kernels; only where a store is needed)

    root = folder / "videos"
    root.mkdir(parents=True)
    for number, (name, size) in enumerate({"a.avi": (48, 72), "b.avi": (56, 40)}.items()):
        write_clip(root / name, random_scene(number, 1.5, size), 9 + 3 * number)
    (root / "list.txt").write_text("a.avi\nmissing.avi\nb.avi\n", encoding="utf-8")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    original = commit.ShardFolder.commit

    def keep(self: commit.ShardFolder, *arguments: Any) -> None:
        shutil.copy(self.tracks_path(0), folder / "partial.tracks")
        original(self, *arguments)

    commit.ShardFolder.commit = keep  # type: ignore[method-assign]
    try:
        arguments = ["--dataset", folder / "videos/list.txt", "--root", root, "--shards", 1, "--out", folder / "store",
                     "--recipe", folder / "recipe.yaml", "--flow", "dis", "--executor", "local"]  # fmt: skip
        assert cli.main([str(a) for a in arguments]) == 1
    finally:
        commit.ShardFolder.commit = original  # type: ignore[method-assign]
    return folder / "store"


def all_targets(folder: Path) -> list[Target]:
    """Every target; they write below `folder`, where `make_store` has made the store."""
    store = folder / "store"
    _both(store)  # compiles what it needs
    return [
        *_texts(folder),
        _labels(folder / "labels"),
        *_store(store),
        *_chunks(store),
        _partial(folder / "partial.tracks", store),
        *_failures(store),
        *_pickles(folder),
        _paths(folder / "videos"),
    ]


def _texts(folder: Path) -> list[Target]:
    specs = [
        DatasetSpec(name="x", lists={"train": "t"}),
        DatasetSpec(name="x", lists={"train": "t"}, format="path_label"),
        DatasetSpec(name="x", lists={"train": "t"}, format="paths"),
        DatasetSpec(name="x", lists={"train": "t"}, format="csv", id_column="label"),
        DatasetSpec(
            name="x", lists={"train": "t"}, path_template="{label}/{youtube_id}_{time_start:06d}.mp4",
            id_column="youtube_id",
        ),
    ]  # fmt: skip

    def read_list(given: tuple[bytes, int]) -> None:
        try:
            text = given[0].decode("utf-8-sig")
        except UnicodeDecodeError:
            return  # refused before it is parsed
        entries = parse_list(text, specs[given[1]], "a list", Path("/data"))
        assert [entry.index for entry in entries] == list(range(len(entries)))
        assert len({entry.id for entry in entries}) == len({entry.path for entry in entries}) == len(entries)
        for entry in entries:
            assert text_problem(entry.id) is None
            assert path_problem(entry.path) is None
            assert len(f"{entry.id}\t{entry.path}\n".splitlines()) == 1
        list_digest([(entry.id, entry.path) for entry in entries])

    def from_file(load_file: Callable[[str], Any]) -> Callable[[bytes], None]:
        def read(text: bytes) -> None:
            (folder / "input.yaml").write_bytes(text)
            load_file(str(folder / "input.yaml"))

        return read

    extraction, training = load_recipe("mme-object").to_json(), load_training_recipe("trackmae").to_json()
    finetuning = load_finetune_recipe("mme-ssv2").to_json()
    (folder / "here.yaml").write_text("extends: input.yaml\n", encoding="utf-8")
    spec = {
        "name": "mine", "lists": {"train": "t.csv"}, "split": "train", "format": "csv", "root_env": "X", "root": "/d",
        "path_template": "{a}/{b:06d}.mp4", "id_column": "b", "start_stride": 4, "clip_stride": 4, "flip": True,
    }  # fmt: skip
    return [
        Target("lists", lambda rng: (inputs.list_texts(rng), rng.randrange(len(specs))), read_list, (DatasetError,)),
        Target("data set specs", lambda rng: inputs.yaml_texts(rng, spec), from_file(load_spec), (DatasetError,)),
        Target(
            "extraction recipes",
            lambda rng: inputs.yaml_texts(rng, extraction),
            from_file(load_recipe),
            (RecipeError,),
        ),
        Target(
            "training recipes",
            lambda rng: inputs.yaml_texts(rng, training),
            from_file(load_training_recipe),
            (RecipeError,),
        ),
        Target(
            "fine-tuning recipes",
            lambda rng: inputs.yaml_texts(rng, finetuning),
            from_file(load_finetune_recipe),
            (RecipeError,),
        ),
    ]


def _labels(folder: Path) -> Target:
    """Lists in every format, and files of class names, up to the numbers of the classes."""
    folder.mkdir()
    videos = [{"id": str(n), "label": "x", "template": f"Holding [something] {n % 3}"} for n in range(4)]
    lists = {"train": "train.csv", "files": "*_split.txt:1"}
    spec = {"name": "x", "lists": lists, "path_template": "{id}.webm", "label_column": "template", "classes": "classes"}
    for origin in ("list", "folder"):
        text = json.dumps(spec | {"label_from": origin})
        (folder / f"{origin}.yaml").write_text(text, encoding="utf-8")

    sound_lists = [json.dumps(videos).encode(), b"c/a.avi 1\nc/b d.avi 0\n", b"path,template\nx/a.avi,a\nb/b.avi,b\n"]
    sound_names = [b"1 a\n2 Holding something 0\n", b"a\nb\n", b'{"a": "0", "Holding something 1": 1, "b": 2}']

    def changed(rng: random.Random, sound: list[bytes]) -> bytes:
        chosen = rng.choice(sound)
        return inputs.changed_bytes(rng, chosen) if rng.randrange(3) == 0 else chosen

    def make(rng: random.Random) -> tuple[bytes, bytes, bytes, str, str]:
        odd = [inputs.changed_json(rng, videos), inputs.list_texts(rng)]
        listed = changed(rng, sound_lists) if rng.randrange(3) else rng.choice(odd)
        names = changed(rng, sound_names) if rng.randrange(3) else inputs.changed_json(rng, {"a": "0", "b": 1})
        split = changed(rng, [b"a.avi 1 \nb c.avi 2\n[d].avi 1\n"])
        return listed, names, split, rng.choice(["list", "folder"]), rng.choice(["train", "train", "files"])

    def read(given: tuple[bytes, bytes, bytes, str, str]) -> None:
        listed, names, split, origin, chosen = given
        (folder / "train.csv").write_bytes(listed)
        (folder / "classes").write_bytes(names)
        (folder / "a_split.txt").write_bytes(split)
        found = load_labelled(str(folder / f"{origin}.yaml"), str(folder), chosen)
        assert len(found.labels) == len(found.videos.entries)
        assert all(0 <= label < len(found.classes) for label in found.labels)
        assert all(text_problem(name) is None for name in found.classes)

    return Target("labels", make, read, (DatasetError,))


def read_plainly(store: Path) -> None:
    """All that the plain reader gives of a store, by zarr."""
    opened = TrackStore(store)
    for _, shard in opened.shards():
        for video, meta in enumerate(shard.metas):
            assert path_problem(meta.path) is None
            for row in list(shard.rows(video))[:1]:
                shard.read_row(video, row)


def read_for_training(store: Path) -> None:
    """All that training reads of a store."""
    reader = TrackReader(store)
    recipe = reader.info.recipe
    for video in reader.videos:
        assert path_problem(video.path) is None
        reader.rows(video, [0, 4], hog=recipe.hog, descriptors=recipe.descriptors)


def _store(store: Path) -> list[Target]:
    info = json.loads((store / "store.json").read_bytes())
    shard = store / "shards" / "00000.zarr"
    files = {
        str(file.relative_to(store)): json.loads(file.read_bytes()) for file in sorted(shard.rglob("zarr.json"))
    }  # fmt: skip

    def metadata(rng: random.Random) -> tuple[str, bytes]:
        name = rng.choice(sorted(files))
        return name, inputs.changed_json(rng, files[name])

    def changed(read: Callable[[Path], Any]) -> Callable[[tuple[str, bytes]], None]:
        return lambda given: with_changed(store, *given, read)

    def validated(path: Path) -> None:
        assert all(isinstance(problem, str) for problem in validate_store(path))

    def of_info(rng: random.Random) -> tuple[str, bytes]:
        return "store.json", inputs.changed_json(rng, info)

    return [
        Target("store.json", of_info, changed(_both), (StoreError,)),
        Target("zarr.json, plain reader", metadata, changed(read_plainly), (StoreError,)),
        Target("zarr.json, training's reader", metadata, changed(read_for_training), (StoreError,)),
        Target("zarr.json, --verify", metadata, changed(validated), ()),
    ]


def _both(store: Path) -> None:
    read_plainly(store)
    read_for_training(store)


def with_changed(store: Path, name: str, data: bytes, read: Callable[[Path], Any]) -> None:
    """Read a store in which one file is another."""
    sound = (store / name).read_bytes()
    (store / name).write_bytes(data)
    try:
        read(store)
    finally:
        (store / name).write_bytes(sound)


def _chunks(store: Path) -> list[Target]:
    shard = store / "shards" / "00000.zarr"
    files: list[tuple[Path, bytes, int]] = []
    for name in sorted(array_specs(TrackStore(store).info.recipe)):
        fields = json.loads((shard / name / "zarr.json").read_bytes())
        per_file, per_chunk = (
            fields["chunk_grid"]["configuration"]["chunk_shape"][0],
            fields["codecs"][0]["configuration"]["chunk_shape"][0],
        )
        for file in sorted(f for f in (shard / name / "c").rglob("*") if f.is_file()):
            files.append((file.relative_to(store), file.read_bytes(), per_file // per_chunk))

    def changed(rng: random.Random) -> tuple[str, bytes]:
        file, sound, chunks = rng.choice(files)
        return str(file), inputs.changed_chunk_files(rng, sound, chunks)

    def by(read: Callable[[Path], Any]) -> Callable[[tuple[str, bytes]], None]:
        return lambda given: with_changed(store, *given, read)

    return [
        Target("chunks, plain reader", changed, by(read_plainly), (StoreError,)),
        Target("chunks, training's reader", changed, by(read_for_training), (StoreError,)),
    ]


def _partial(file: Path, store: Path) -> Target:
    sound, recipe = file.read_bytes(), TrackStore(store).info.recipe
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    blosc = numcodecs.blosc.Blosc(cname="zstd", clevel=1)

    def make(rng: random.Random) -> bytes:
        if rng.random() < 0.3:
            return inputs.changed_bytes(rng, sound)
        changed = dict(members)
        name = rng.choice(["video.json", *members])
        if name == "video.json":
            changed[name] = inputs.changed_json(rng, json.loads(members[name]))
        elif rng.random() < 0.5:
            changed[name] = inputs.changed_frames(rng, members[name])
        else:
            changed[name] = blosc.encode(inputs.changed_bytes(rng, blosc.decode(members[name])))
        out = io.BytesIO()
        packing = rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
        with zipfile.ZipFile(out, "w", packing) as archive:
            for member, data in changed.items():
                archive.writestr(member, data)
        return out.getvalue()

    def read(data: bytes) -> None:
        file.write_bytes(data)
        partial = PartialFile(file, recipe)
        for name in array_specs(recipe):
            if name.partition("/")[0] not in ("video", "cut") and name != "start/first_point":
                for _ in partial.blocks(name):
                    pass

    return Target("partial files", make, read, (PartialError,))


def _failures(store: Path) -> list[Target]:
    sound = Failure(index=1, id="a", path="a.mp4", stage="decode", error="E", message="é\u2028", attempts=1)
    fields, line = dataclasses.asdict(sound), sound.to_line().encode() + b"\n"

    def read_line(line: bytes) -> None:
        text = line.decode("utf-8", "replace")
        failure = Failure.from_line(text, "a line")
        written = failure.to_line()
        assert len(written.splitlines()) == 1
        assert Failure.from_line(written.encode().decode(), "again") == failure

    def read_file(text: bytes) -> None:
        failures_path(store, 7).write_bytes(text)
        read_failures(store, 7)
        failures_path(store, 7).unlink()

    return [
        Target("failures, a line", lambda rng: inputs.changed_json(rng, fields), read_line, (ValueError,)),
        Target("failures, a file", lambda rng: inputs.changed_bytes(rng, 3 * line), read_file, (ValueError,)),
    ]


def _pickles(folder: Path) -> list[Target]:
    video = {
        "video": np.zeros((2, 16, 20, 3), np.uint8), "points": np.full((3, 2, 2), 0.5),
        "occluded": np.zeros((3, 2), np.bool_),
    }  # fmt: skip
    sound = pickle.dumps({"clip": video, "o": np.array([b"a", None], object)}, protocol=4)

    videos = pickle.dumps({"clip": video}, protocol=4)

    def read_pickle(data: bytes) -> None:
        (folder / "arrays.pkl").write_bytes(data)
        load_arrays(folder / "arrays.pkl")

    def read_videos(data: bytes) -> None:
        (folder / "tapvid.pkl").write_bytes(data)
        list(read_tapvid(folder / "tapvid.pkl"))

    names = ("optimizer", "scaler", "schedule", "recipe", "data", "model_config")
    fields: dict[str, Any] = {name: {} for name in names}
    path = save(folder / "run", {**fields, "step": 1, "model": {"w": torch.zeros(3)}, "random": [{}]}, keep=1)
    kept = path.read_bytes()

    def read_checkpoint(data: bytes) -> None:
        path.write_bytes(data)
        load(path)

    return [
        Target("array pickles", lambda rng: inputs.pickles(rng, sound), read_pickle, (ArrayPickleError,)),
        Target(
            "TAP-Vid files",
            lambda rng: inputs.pickles(rng, videos),
            read_videos,
            (ArrayPickleError, TapVidDataError),
        ),
        Target("checkpoints", lambda rng: inputs.changed_bytes(rng, kept), read_checkpoint, (CheckpointError,)),
    ]


def _paths(root: Path) -> Target:
    names = ["a.avi", "list.txt", "videos", "b.avi", "..", "."]

    def make(rng: random.Random) -> list[str]:
        return [rng.choice([inputs.odd_text(rng), rng.choice(names)]) for _ in range(rng.randrange(4))]

    def read(names: list[str]) -> None:
        found = video_path(root, "/".join(names), follow_links=False)
        assert found.resolve().is_relative_to(root.resolve())

    return Target("paths of videos", make, read, (VideoError,))
