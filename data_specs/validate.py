"""Reads a whole store back against its spec and reports every problem, each with its place."""

from collections.abc import Iterator
from pathlib import Path

from data_specs.dataset import list_digest
from data_specs.track_store import StoreError, TrackStore
from data_specs.validate_shard import shard_damage


def validate_store(path: str | Path, root: Path | None = None) -> list[str]:
    """Every problem of a store's complete shards, as `place: what is wrong`; an empty list for a sound store.

    Shards that are still missing are not a problem.
    root: folder of the videos, to compare them with those that the store was made from; None leaves that out.
    """
    try:
        store = TrackStore(path)
    except StoreError as error:
        return [str(error)]
    problems: list[str] = []
    videos: dict[int, tuple[str, str]] = {}
    for number in store.complete_shards:
        if number >= store.info.num_shards:
            problems.append(f"{store.shard_path(number)}: the store has {store.info.num_shards} shards")
            continue
        damage = shard_damage(store, number, root)
        problems += damage.problems
        videos.update({index: (video_id, video_path) for index, video_id, video_path in damage.listed})
    if not problems and store.complete_shards == list(range(store.info.num_shards)):
        problems += _check_list(videos, store)
    return problems


def _check_list(videos: dict[int, tuple[str, str]], store: TrackStore) -> Iterator[str]:
    digest = list_digest([videos[index] for index in sorted(videos)])
    if digest != store.info.list_sha256:
        yield (
            f"{store.path}/store.json: list.sha256 is {store.info.list_sha256}, that of the videos and failures "
            f"in the store is {digest}"
        )
