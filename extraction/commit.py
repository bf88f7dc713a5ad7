"""The store's files as extraction changes them, so that a reader never sees half of anything and nothing done is lost.

    store.json               written once, when the store is begun
    locks                    empty; its bytes are locked, see `shard_locks`
    partial/00007/           000012.tracks      a finished video (12 is its place in the shard)
                             000012.failed      a video that failed, one line of JSON
                             000012.tries       how often one was begun that is not done, see `tries`
                             holder             which run works on the shard
                             commit/            the finished shard and its failures, about to be put in place
    shards/00007.zarr/       failures/00007.jsonl

A shard is put in place by renames that can be done again from the start: `commit/` appears in one rename, and from
then on any run, after any crash, rolls it forward.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from data_specs.durable import sync, sync_tree, temporary_sibling, write_file
from data_specs.failures import Failure, failures_path, failures_problems, to_lines
from data_specs.shard_files import file_problems
from data_specs.store_metadata import read_attributes, read_root
from data_specs.track_store import StoreError, StoreInfo, TrackStore
from data_specs.untrusted_files import MOST_METADATA_BYTES, read_bounded
from extraction.motion.gpu.device import SOME_DEVICE
from extraction.shard_locks import holder_file, sign

logger = logging.getLogger(__name__)


def begin_store(path: Path, info: StoreInfo) -> None:
    """Create the store where there is none yet, and check that it is ours: another task may have been faster."""
    file = path / "store.json"
    is_lost = _is_lost(path, info)
    if not is_lost:
        check_store(path, info)
        if file.exists():
            return
    temporary = temporary_sibling(file)
    try:
        path.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(info.to_json(), indent=2) + "\n", encoding="utf-8")
        sync(temporary)
        if is_lost:
            temporary.replace(file)
        else:
            with contextlib.suppress(FileExistsError):
                os.link(temporary, file)  # unlike a rename, never in the place of another task's
        sync(path)
    except OSError as error:
        raise StoreError(f"{path}: cannot be created: {error.strerror}; give another folder with --out") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    check_store(path, info)


def _is_lost(path: Path, info: StoreInfo) -> bool:
    """Whether store.json is missing or damaged, and all shards that are there say that it was as `info` is."""
    try:
        TrackStore(path)
    except StoreError:
        shards = sorted((path / "shards").glob("*.zarr"))
        try:
            is_ours = bool(shards) and all(
                read_attributes(shard).get("settings_sha256") == info.settings_sha256 for shard in shards
            )
        except (OSError, ValueError):
            is_ours = False
        if is_ours:
            logger.warning(
                "%s is missing or damaged; it is written again, as the shards say it was", path / "store.json"
            )
        return is_ours
    return False


class StoreGoneError(OSError):
    """The store is not the one any more that the run began with."""


def store_digest(path: Path) -> str:
    """SHA-256 of the store's settings as they stand in store.json. Raises OSError."""
    return hashlib.sha256((path / "store.json").read_bytes()).hexdigest()


def check_unchanged(path: Path, digest: str | None) -> None:
    """Raise StoreGoneError where the store was deleted or moved, or another one has taken its place.

    digest: `store_digest` of what it was; None leaves the check out.
    """
    if digest is None:
        return
    try:
        is_same = store_digest(path) == digest
    except FileNotFoundError:
        is_same = False
    if not is_same:
        raise StoreGoneError(f"{path} is gone: it was deleted, moved or begun anew while this run wrote to it")


def check_store(path: Path, info: StoreInfo) -> None:
    """Check that a folder is free, or a store that was begun with the same videos, recipe, weights and shards.

    Raises StoreError naming both values of everything that differs. Other software versions are only warned of.
    """
    file = path / "store.json"
    if not file.exists():
        # a temporary file is that of a task that is just beginning this store, or was killed while it did
        others = path.is_file() or (path.exists() and any(not p.name.startswith(".tmp-") for p in path.iterdir()))
        if not file.exists():  # still: another task may have begun it meanwhile
            if others:
                raise StoreError(f"{path}: is not empty and not a track store; give another folder with --out")
            return
    there = TrackStore(path).info
    for name in ("locks", "partial", "failures"):
        _check_no_link(path / name)
    differing = [
        f"{name}: the store has {old}, this run {new}" for name, old, new in _settings(there, info) if old != new
    ]
    if differing:
        raise StoreError(
            f"{path}: was begun with other settings; go on with those, or give another folder with --out\n  "
            + "\n  ".join(differing)
        )
    for package in sorted(there.software.keys() | info.software.keys()):
        old_version, new_version = there.software.get(package), info.software.get(package)
        if old_version == new_version or (package == "device" and SOME_DEVICE in (old_version, new_version)):
            continue
        begun = f"with {package} {old_version}" if old_version else f"without {package}"
        now = new_version or "without"
        logger.warning("%s was begun %s, this is %s: videos may differ from those already in it", path, begun, now)


def _check_no_link(path: Path) -> None:
    """Raise StoreError for a link, by which files outside the store would be written or removed."""
    if path.is_symlink():
        raise StoreError(f"{path}: is a symbolic link; a store has none: put what it leads to in its place")


def _settings(a: StoreInfo, b: StoreInfo) -> list[tuple[str, object, object]]:
    recipe_a, recipe_b = a.recipe.to_json(), b.recipe.to_json()
    return [
        ("data set", a.dataset, b.dataset),
        ("split", a.split, b.split),
        ("videos in the list", a.num_videos, b.num_videos),
        ("SHA-256 of the list", a.list_sha256, b.list_sha256),
        ("shards", a.num_shards, b.num_shards),
        ("SHA-256 of the tracker's weights", a.weights_sha256 or "none", b.weights_sha256 or "none"),
        *((f"recipe.{field}", recipe_a[field], recipe_b[field]) for field in recipe_a),
    ]


class ShardFolder:
    """The files of one shard of a store, finished or not."""

    def __init__(self, store: Path, shard: int) -> None:
        self.store, self.shard = store, shard
        self.complete_path = store / "shards" / f"{shard:05d}.zarr"
        self.partial_path = store / "partial" / f"{shard:05d}"
        self._commit_path = self.partial_path / "commit"

    @property
    def is_complete(self) -> bool:
        """Whether the shard is in place."""
        return self.complete_path.exists()

    def begin(self) -> None:
        """Make the folder of an unfinished shard; who does that must hold the shard's lock."""
        _check_no_link(self.partial_path)
        self.partial_path.mkdir(parents=True, exist_ok=True)
        sign(self.store, self.shard)

    def tracks_path(self, place: int) -> Path:
        """The partial file of the shard's video number `place`."""
        return self.partial_path / f"{place:06d}.tracks"

    def failed_path(self, place: int) -> Path:
        """The failure of the shard's video number `place`."""
        return self.partial_path / f"{place:06d}.failed"

    def tries_path(self, place: int) -> Path:
        """Where the lost tries of the shard's video number `place` are counted, as long as it is not done."""
        return self.partial_path / f"{place:06d}.tries"

    def partial_names(self) -> set[str]:
        """Names of what is there of the unfinished shard."""
        try:
            return {path.name for path in self.partial_path.iterdir()}
        except FileNotFoundError:
            return set()

    def problems(self) -> Iterator[str]:
        """What a look at the names and sizes of the complete shard's files finds wrong."""
        try:
            _, attributes = read_root(self.complete_path)
        except StoreError as error:
            yield str(error)
            return
        yield from file_problems(self.complete_path, attributes, contents=False)
        yield from failures_problems(self.store, self.shard, attributes, contents=False)

    def write_failed(self, place: int, failure: Failure) -> None:
        """Record a failure."""
        write_file(self.failed_path(place), failure.to_line() + "\n")
        self.tries_path(place).unlink(missing_ok=True)

    def read_failed(self, place: int) -> Failure | None:
        """The failure recorded for a video since the shard was last complete, or None; one that is damaged is none."""
        path = self.failed_path(place)
        try:
            return Failure.from_line(read_bounded(path, MOST_METADATA_BYTES, links=False).decode(), str(path))
        except FileNotFoundError:
            return None
        except ValueError as error:
            logger.warning("%s: the record is damaged, as if there was none: %s", path, error)
            return None

    def staging_path(self) -> Path:
        """A fresh temporary folder in which the shard is written before `commit`."""
        path = temporary_sibling(self._commit_path)
        path.mkdir(parents=True)
        return path

    def commit(self, staging: Path, failures: list[Failure]) -> None:
        """Put the shard written at `staging`/shard.zarr in place, and its failures; drop the partial files."""
        (staging / "failures.jsonl").write_bytes(to_lines(failures))
        if not self.is_complete:
            (staging / "former" / "none").mkdir(parents=True)
        sync_tree(staging)
        staging.rename(self._commit_path)
        sync(self.partial_path)
        self.roll_forward()

    def roll_forward(self) -> bool:
        """Finish a commit that was begun; returns whether there was one.

        A worker that outlives its driver may do the same at the same time: each rename works for one of them alone, and
        none takes away what another has put in place, for `commit/former` is taken by the former shard, or from the
        start where there was none.
        """
        _check_no_link(self.partial_path)
        _check_no_link(self._commit_path)
        if not self._commit_path.exists():
            return False
        staged_failures, staged_shard = self._commit_path / "failures.jsonl", self._commit_path / "shard.zarr"
        listed = failures_path(self.store, self.shard)
        with contextlib.suppress(FileNotFoundError):
            if staged_failures.stat().st_size:
                listed.parent.mkdir(exist_ok=True)
                staged_failures.replace(listed)
                sync(listed.parent)
            else:
                listed.unlink(missing_ok=True)
        if staged_shard.exists():
            self.complete_path.parent.mkdir(exist_ok=True)
            with _others_may_be_faster():
                self.complete_path.rename(self._commit_path / "former")
            with _others_may_be_faster():
                staged_shard.rename(self.complete_path)
            sync(self.complete_path.parent)
        self.remove_partial()
        return True

    def was_put_in_place(self) -> bool:
        """Whether another worker has put the shard in place since `begin`; a commit that it began is finished first."""
        return self.roll_forward() or (self.is_complete and not holder_file(self.store, self.shard).exists())

    def remove_partial(self) -> None:
        """Remove what is left of a shard's making, once it is in place."""
        # the holder goes first, see `was_put_in_place`; commit/ last: as long as it is there, the next run comes by
        # here again
        order = {holder_file(self.store, self.shard): 0, self._commit_path: 2}
        with _others_may_be_faster():
            for leftover in sorted(self.partial_path.iterdir(), key=lambda path: order.get(path, 1)):
                if not leftover.is_dir():
                    leftover.unlink(missing_ok=True)
                    continue
                # from here on who works in it, or looks for commit/former, finds nothing, rather than some of it
                gone = temporary_sibling(self._commit_path)
                with _others_may_be_faster():
                    leftover.rename(gone)
                    shutil.rmtree(gone)
            self.partial_path.rmdir()


@contextlib.contextmanager
def _others_may_be_faster() -> Iterator[None]:
    """Pass over what another process has done meanwhile: what was to be moved or removed is gone, or something is in
    its place.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST):
            raise
