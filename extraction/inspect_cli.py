"""inspect-tracks: what is in a track store, whether it is sound, and what its trajectories look like."""

import logging
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import jsonargparse
import numpy as np

from data_specs.dataset import DatasetError, dataset_names, load_spec, root_folder
from data_specs.failures import Failure, read_failures
from data_specs.schema import array_specs
from data_specs.track_store import StoreError, TrackStore
from data_specs.validate import validate_store
from data_specs.video import VideoError
from data_specs.video_files import video_path
from extraction.commit import ShardFolder
from extraction.render import FORMATS, render

_VALID_ROWS_PER_SHARD = 64

logger = logging.getLogger(__name__)


def build_parser() -> jsonargparse.ArgumentParser:
    """The command line's options."""
    parser = jsonargparse.ArgumentParser(
        prog="inspect-tracks",
        description="Print what is in a track store, verify it, list its failures, or draw its trajectories.",
        epilog="Exit status: 0 sound, 1 --verify found problems, 2 usage error or not a store.",
    )
    add = parser.add_argument
    add("store", type=Path, metavar="STORE", help="the store's folder")
    add(
        "--verify", action="store_true",
        help="read everything back against the spec, and print every problem; with --root also which videos "
        "have changed since they were extracted",
    )  # fmt: skip
    add("--failures", action="store_true", help="print the videos that failed, one JSON line each")
    add(
        "--render", type=str | None, metavar="VIDEO",
        help="draw the trajectories of this video: its file, or its id, path or file name in the store",
    )  # fmt: skip
    add("--out", type=Path | None, metavar=f"FILE{'|'.join(FORMATS)}", help="where --render draws to")
    add(
        "--root",
        type=Path | None,
        metavar="DIR",
        help="folder of the videos: for --verify, and where --render names no file",
    )
    add("--follow-links", action="store_true", help="take a video that a symbolic link below --root leads out to")
    add("--frame", type=int | None, metavar="N", help="the start row that a .png shows; default: a lively one")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        return inspect_tracks(options)
    except (StoreError, DatasetError, VideoError, ValueError, OSError) as error:
        sys.stderr.write(f"inspect-tracks: {error}\n")
        return 2


def inspect_tracks(options: jsonargparse.Namespace) -> int:
    """Do what the parsed options say; returns the exit status."""
    if (options.render is None) != (options.out is None):
        raise ValueError("--render VIDEO and --out FILE go together")
    store = TrackStore(options.store)
    if options.render is not None:
        file, name = _locate(store, options.render)
        shard, video = store.find(name)
        sys.stdout.write(
            render(
                shard,
                video,
                file or _below_root(store, shard.paths[video], options.root, options.follow_links),
                options.out,
                options.frame,
            )
            + "\n"
        )
    if options.failures:
        for _, failure in _failures(store):
            sys.stdout.write(failure.to_line() + "\n")
    if options.verify:
        problems = validate_store(options.store, options.root)
        sys.stdout.write("".join(f"{problem}\n" for problem in problems))
        missing = store.info.num_shards - len(store.complete_shards)
        sys.stdout.write(
            f"{len(problems)} problem(s) in {len(store.complete_shards)} shards"
            + (f"; {missing} of {store.info.num_shards} shards are not complete yet\n" if missing else "\n")
        )
        return 1 if problems else 0
    if options.render is None and not options.failures:
        sys.stdout.write(summarise(store))
    return 0


def _locate(store: TrackStore, video: str) -> tuple[Path | None, str]:
    """The file that --render names, if it is one, and the name to look for in the store."""
    file = Path(video)
    if not file.is_file():
        return None, video
    paths = {path for _, shard in store.shards() for path in shard.paths}
    # the longest path of the store that the file's own path ends in
    tails = ["/".join(file.absolute().parts[-n:]) for n in range(len(file.absolute().parts), 0, -1)]
    return file, next((tail for tail in tails if tail in paths), file.name)


def _below_root(store: TrackStore, path: str, root: Path | None, follow_links: bool) -> Path:
    if root is None and store.info.dataset in dataset_names():
        root = root_folder(load_spec(store.info.dataset))
    if root is None:
        raise ValueError(f"where is {path}? Give --render its file, or the data set's folder with --root")
    return video_path(root, path, follow_links=follow_links)


def _failures(store: TrackStore) -> list[tuple[int, Failure]]:
    """(shard, failure) of every video that failed, in complete shards and unfinished ones."""
    found = [(shard, failure) for shard in store.complete_shards for failure in read_failures(store.path, shard)]
    complete = set(store.complete_shards)
    for file in sorted((store.path / "partial").glob("*/*.failed")):
        shard, place = int(file.parent.name), int(file.stem)
        if shard not in complete and (failure := ShardFolder(store.path, shard).read_failed(place)):
            found.append((shard, failure))
    return found


def summarise(store: TrackStore) -> str:
    """What is in the store: counts, bytes, share of valid steps, failures by kind."""
    info, complete = store.info, store.complete_shards
    videos = starts = points = cuts = edited = 0
    by_array: Counter[str] = Counter()
    valid_steps = all_steps = sampled = 0
    for _, shard in store.shards():
        videos, starts, points = (
            videos + shard.num_videos,
            starts + shard.num_starts,
            points + shard.num_points,
        )
        cuts, edited = cuts + shard.num_cuts, edited + sum(1 for own in shard.cuts if own)
        for folder, _, files in os.walk(shard.path):
            name = str(Path(folder).relative_to(shard.path)).split("/c/")[0].removesuffix("/c")
            array = name if name in array_specs(info.recipe) else "metadata of groups"
            by_array[array] += sum((Path(folder) / file).stat().st_size for file in files)
        count = min(_VALID_ROWS_PER_SHARD, shard.num_starts)
        for row in np.linspace(0, shard.num_starts - 1, count).astype(int).tolist():
            valid = shard.read("valid", int(shard.first_point[row]), int(shard.first_point[row + 1]))
            valid_steps, all_steps = valid_steps + int(valid[:, 1:].sum()), all_steps + valid[:, 1:].size
        sampled += count
    total = sum(by_array.values())
    missing = sorted(set(range(info.num_shards)) - set(complete))
    failures = Counter(failure.error for _, failure in _failures(store))
    lines = [
        f"store        {store.path}: {info.dataset} {info.split}, {info.num_videos} videos in {info.num_shards} shards",
        f"recipe       {info.recipe.name}: {info.recipe.motion}, L {info.recipe.length}, frame step "
        f"{info.recipe.frame_step}, start stride {info.recipe.start_stride}, grid {info.recipe.grid_stride} px, "
        f"positions in the {info.recipe.positions_in.replace('stabilised', 'stabilised frame')}",
        *([f"weights      SHA-256 {info.weights_sha256}"] if info.weights_sha256 else []),
        f"shards       {len(complete)} complete, {len(missing)} missing"
        + (f" ({_ranges(missing)})" if missing else ""),
        f"videos       {videos} done, {sum(failures.values())} failed",
        f"cuts         {cuts:,} in {edited:,} videos" if info.recipe.detect_cuts else "cuts         not looked for",
        f"start rows   {starts:,}",
        f"points       {points:,}",
        f"valid steps  {100 * valid_steps / max(all_steps, 1):.1f} % (of {sampled:,} start rows)",
        f"bytes        {total:,}: {total / max(videos, 1):,.0f} for each video, {total / max(starts, 1):,.0f} for each "
        "start row",
    ]
    lines += [
        f"  {name:20} {size:>14,}  {size / max(starts, 1):>10,.0f} for each start row"
        for name, size in sorted(by_array.items(), key=lambda item: -item[1])
    ]
    lines += [f"failed       {count} {error}" for error, count in failures.most_common()]
    return "\n".join(lines) + "\n"


def _ranges(numbers: list[int]) -> str:
    """[0, 3, 4, 5] as `0,3-5`, which --only-shards takes."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ",".join(f"{p[0]}-{p[-1]}" if len(p) > 1 else str(p[0]) for p in parts)


if __name__ == "__main__":
    sys.exit(main())
