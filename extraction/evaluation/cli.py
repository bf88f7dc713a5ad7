"""evaluate-tracks: how well trackers follow points, by TAP-Vid's metrics."""

import json
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import get_args

import cv2
import jsonargparse

from data_specs.durable import write_file
from extraction.evaluation.annotated_video import AnnotatedVideo
from extraction.evaluation.evaluate import Evaluation, VideoFigures, evaluate_video, table
from extraction.evaluation.point_tracker import NETWORKS, make_point_tracker, point_tracker_names
from extraction.evaluation.rendered import rendered_videos
from extraction.evaluation.tapvid_data import read_tapvid
from extraction.evaluation.tapvid_metrics import RASTER, QueryMode
from extraction.motion.cotracker3.weights import check_package, find_weights
from extraction.motion.gpu.device import parse_device

logger = logging.getLogger(__name__)

EXIT_DONE, EXIT_INTERRUPTED, EXIT_NOTHING_DONE = 0, 1, 2
RENDERED = "rendered"
_LEAST_SIDE = 16


def build_parser() -> jsonargparse.ArgumentParser:
    """The command line's options."""
    parser = jsonargparse.ArgumentParser(
        prog="evaluate-tracks",
        description="Measure how well trackers follow points, by TAP-Vid's metrics: a row for each tracker and way of "
        "asking, in per cent, means over the videos. docs/evaluation.md says what they mean.",
        epilog="Exit status: 0 done, 1 interrupted, 2 usage error, unreadable data or nothing to evaluate.",
    )
    add = parser.add_argument
    add(
        "--tracker", type=str, nargs="+", required=True, metavar="NAME",
        help=f"one or more of {', '.join(point_tracker_names())}",
    )  # fmt: skip
    add(
        "--data", type=str, nargs="+", required=True, metavar="rendered|FILE.pkl",
        help="rendered: scenes whose motion is known, nothing else is needed; or TAP-Vid's pickle files (DAVIS, "
        "RGB-Stacking, Kinetics, RoboTAP), the shards of one data set together",
    )  # fmt: skip
    add(
        "--queries", type=str, nargs="+", default=["first"], metavar="first|strided",
        help="first: each point is asked for where it is first visible, and followed forward; strided: in every fifth "
        "frame, and followed both ways; or both",
    )  # fmt: skip
    add(
        "--size", type=str | None, metavar="256|none",
        help="side that frames are resized to before they are tracked; none leaves them as they are. Default: 256 for "
        "files, as TAP-Vid evaluates, and none for rendered scenes. Distances are always in pixels of 256 x 256",
    )  # fmt: skip
    add(
        "--checkpoint", type=str | None, metavar="FILE|hub",
        help="weights of cotracker3 and cotracker3-joint, or hub for the published ones (CC-BY-NC 4.0: not for "
        "commercial use)",
    )  # fmt: skip
    add("--device", type=str, default="cpu", metavar="cpu|cuda[:N]", help="where cotracker3's network computes")
    add("--videos", type=int | None, metavar="N", help="take only the first N videos")
    add("--json", type=Path | None, metavar="OUT.json", help="write every figure there, each video's too")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        evaluations = evaluate_tracks(options)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"evaluate-tracks: {error}\n")
        return EXIT_NOTHING_DONE
    except KeyboardInterrupt:
        sys.stderr.write("evaluate-tracks: interrupted; nothing is kept\n")
        return EXIT_INTERRUPTED
    sys.stdout.write(table(evaluations))
    return EXIT_DONE


def evaluate_tracks(options: jsonargparse.Namespace) -> list[Evaluation]:
    """Do what the parsed options say: a row for each tracker and way of asking, also written to --json.

    Raises ValueError or OSError with the way out, as far as possible before anything is tracked.
    """
    modes = _modes(options.queries)
    names = _distinct(options.tracker, "--tracker")
    networks = [name for name in names if name in NETWORKS]
    device = parse_device(options.device)
    if options.checkpoint is not None and not networks:
        raise ValueError(f"--checkpoint {options.checkpoint}: none of {', '.join(names)} has weights")
    if device != "cpu" and not networks:
        raise ValueError(
            f"--device {device}: {', '.join(names)} measure on the CPU; only {' and '.join(NETWORKS)} do not"
        )
    weights = None
    if networks:
        check_package()
        weights = find_weights(options.checkpoint)
    trackers = {name: make_point_tracker(name, weights, device) for name in names}
    side = _side(options.size, options.data)
    if options.videos is not None and options.videos < 1:
        raise ValueError(f"--videos is {options.videos}, must be 1 or more")
    out: Path | None = options.json
    if out is not None:
        _make_room(out)
    cv2.setNumThreads(1)  # as extraction has it: a sum's order, hence its last bit, stays the same
    figures: dict[tuple[str, QueryMode], list[VideoFigures]] = {(name, mode): [] for name in names for mode in modes}
    for video in islice(_videos(options.data), options.videos):
        sized = video if side is None else video.resized((side, side))
        for (name, mode), so_far in figures.items():
            begun = time.monotonic()
            result = evaluate_video(trackers[name], sized, mode)
            so_far.append(result)
            logger.info("%s", _progress(name, mode, sized, result, time.monotonic() - begun))
    evaluations = [Evaluation(name, mode, tuple(videos)) for (name, mode), videos in figures.items()]
    for evaluation in evaluations:
        if not evaluation.counted:
            raise ValueError(
                f"nothing to evaluate with queries {evaluation.mode}: in none of the {len(evaluation.videos)} videos "
                "is a point visible in a frame other than its query's"
            )
    if out is not None:
        made_from = {"data": list(options.data), "size": side, "device": device}
        digest = {"weights_sha256": weights.sha256} if weights else {}
        written = [
            {**made_from, **(digest if evaluation.tracker in NETWORKS else {}), **evaluation.to_json()}
            for evaluation in evaluations
        ]
        write_file(out, json.dumps(written, indent=1) + "\n")
    return evaluations


def _modes(names: Sequence[str]) -> list[QueryMode]:
    known = get_args(QueryMode)
    for name in names:
        if name not in known:
            raise ValueError(f"--queries {name}: must be {' or '.join(known)}")
    modes: list[QueryMode] = [mode for mode in known if mode in names]
    return modes


def _distinct(names: Sequence[str], option: str) -> list[str]:
    if len(set(names)) != len(names):
        raise ValueError(f"{option} {' '.join(names)}: names one twice")
    return list(names)


def _side(size: str | None, data: Sequence[str]) -> int | None:
    """The side that frames are resized to, None where they are left."""
    if size is None:
        return None if list(data) == [RENDERED] else RASTER
    if size == "none":
        return None
    if not size.isdecimal() or int(size) < _LEAST_SIDE:
        raise ValueError(
            f"--size {size}: must be none or a number of pixels, {_LEAST_SIDE} or more; TAP-Vid's is {RASTER}"
        )
    return int(size)


def _make_room(out: Path) -> None:
    if out.is_dir():
        raise ValueError(f"--json {out}: is a folder; name a file in it")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--json {out}: cannot be written ({error}); name another file") from error


def _videos(data: Sequence[str]) -> Iterator[AnnotatedVideo]:
    names = _distinct(data, "--data")
    if RENDERED in names:
        if len(names) > 1:
            raise ValueError("--data rendered and files do not go into one mean; call the command twice")
        return rendered_videos()
    for name in names:
        if not Path(name).exists():
            raise ValueError(f"--data {name}: no such file; `--data rendered` needs none")
    return chain.from_iterable(read_tapvid(Path(name)) for name in names)


def _progress(name: str, mode: QueryMode, video: AnnotatedVideo, result: VideoFigures, seconds: float) -> str:
    height, width = video.size
    line = f"{name}, {mode}: {video.name}, {len(video.frames)} frames of {height} x {width}, {result.points} points, "
    if result.metrics is None:
        return f"{line}left out: no point is visible in a frame other than its query's"
    return f"{line}{seconds:.1f} s, AJ {100 * result.metrics.average_jaccard:.1f}"


if __name__ == "__main__":
    sys.exit(main())
