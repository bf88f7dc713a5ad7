"""Puts a shard together out of its videos' partial files, and looks at a complete one for damage."""

import contextlib
import logging
import shutil
import time

from data_specs.failures import Failure, failures_seal, read_failures
from data_specs.recipe import Recipe
from data_specs.track_store import StoreError, TrackShard, TrackStore
from data_specs.validate_shard import shard_damage
from extraction.commit import ShardFolder, check_unchanged
from extraction.job_records import CheckJob, CheckResult, ShardJob, ShardResult
from extraction.partial import PartialError, PartialFile
from extraction.shard_writer import ShardVideo, VideoSource, write_shard

logger = logging.getLogger(__name__)


def assemble_shard(job: ShardJob) -> ShardResult:
    """Write a shard out of its partial files, and put it in place.

    Videos that were done in an earlier commit of the shard (failures are tried again, or damage is mended) are taken
    from there. A shard that another worker has put in place already is left as it is. Where something of it cannot be
    read, nothing is written: `damaged` in the result says what to extract again.
    """
    begun = time.perf_counter()
    folder = ShardFolder(job.store, job.shard)
    check_unchanged(job.store, job.store_digest)
    if folder.was_put_in_place():
        return _put_in_place(job, folder)
    sources, failures, damaged = _what_is_there(job, folder)
    if not damaged:
        staging = folder.staging_path()
        try:
            more = {"settings_sha256": job.settings_sha256, "failures": failures_seal(failures)}
            write_shard(staging / "shard.zarr", job.shard, sources, job.recipe, job.software, more)
            check_unchanged(job.store, job.store_digest)
            folder.commit(staging, failures)
        except PartialError as error:
            logger.warning("%s; its video is extracted again", error)
            damaged = [p for p in range(len(job.entries)) if folder.tracks_path(p) == error.path]
        except StoreError as error:
            logger.warning("%s; its videos are extracted again", error)
            check = CheckJob(store=job.store, shard=job.shard, entries=job.entries, root=None)
            found = check_shard(check).damaged
            taken_over = [p for p in range(len(job.entries)) if not folder.tracks_path(p).exists()]
            damaged = [place for place in taken_over if place in found] or taken_over
        except OSError:
            check_unchanged(job.store, job.store_digest)
            if not folder.was_put_in_place():
                raise
            return _put_in_place(job, folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)  # gone already, if the shard is in place
    if damaged and folder.was_put_in_place():  # and its partial files removed, while they were read here
        return _put_in_place(job, folder)
    for place in damaged:
        folder.tracks_path(place).unlink(missing_ok=True)
    return ShardResult(
        num_videos=len(sources),
        num_failures=len(failures),
        damaged=tuple(damaged),
        seconds=time.perf_counter() - begun,
    )


def _what_is_there(job: ShardJob, folder: ShardFolder) -> tuple[list[VideoSource], list[Failure], list[int]]:
    """The shard's videos and failures, in list order, and the places of those of which there is nothing sound."""
    former, former_failures = _former(folder, job.recipe)
    partial = folder.partial_names()
    sources: list[VideoSource] = []
    failures: list[Failure] = []
    damaged: list[int] = []
    for place, entry in enumerate(job.entries):
        failure = folder.read_failed(place) if folder.failed_path(place).name in partial else None
        if folder.tracks_path(place).name in partial:
            try:
                sources.append(PartialFile(folder.tracks_path(place), job.recipe))
            except PartialError as error:
                logger.warning("%s; its video is extracted again", error)
                damaged.append(place)
        elif failure is None and entry.index in former:
            sources.append(former[entry.index])
        elif failure is not None or entry.index in former_failures:
            failures.append(failure or former_failures[entry.index])
        else:
            damaged.append(place)
    return sources, failures, damaged


def _put_in_place(job: ShardJob, folder: ShardFolder) -> ShardResult:
    """What came of a shard that another worker has put in place."""
    return ShardResult(
        num_videos=TrackShard(folder.complete_path, job.recipe).num_videos,
        num_failures=len(read_failures(job.store, job.shard)),
    )


def _former(folder: ShardFolder, recipe: Recipe) -> tuple[dict[int, VideoSource], dict[int, Failure]]:
    """The videos and failures of the shard as it was committed before, by their index in the list; what of it cannot be
    read is not among them.
    """
    former: dict[int, VideoSource] = {}
    failures: dict[int, Failure] = {}
    if folder.is_complete:
        with contextlib.suppress(StoreError):
            shard = TrackShard(folder.complete_path, recipe)
            former = {meta.index: ShardVideo(shard, number) for number, meta in enumerate(shard.metas)}
        with contextlib.suppress(ValueError, OSError):
            failures = {failure.index: failure for failure in read_failures(folder.store, folder.shard)}
    return former, failures


def check_shard(job: CheckJob) -> CheckResult:
    """Read a complete shard back. Raises StoreError where it is the store itself that cannot be read."""
    damage = shard_damage(TrackStore(job.store), job.shard, job.root)
    sound = set() if damage.videos is None else {index for index, _, _ in damage.listed} - damage.videos
    damaged = [place for place, entry in enumerate(job.entries) if entry.index not in sound]
    return CheckResult(problems=tuple(damage.problems), damaged=tuple(damaged))
