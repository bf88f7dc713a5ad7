"""extract-tracks: a list of videos in, a track store out."""

import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import jsonargparse

from data_specs.dataset import DatasetError, VideoList, dataset_names, load_videos
from data_specs.interrupts import EXIT_INTERRUPTED
from data_specs.recipe import Flow, Recipe, RecipeError, load_recipe, recipe_names
from data_specs.track_store import StoreError
from data_specs.video_files import check_links
from extraction.array_plan import add_plan_options, array_line, check_plan_options
from extraction.commit import begin_store, check_store
from extraction.extract import Extraction, extract
from extraction.motion.cotracker3.weights import OFFLINE_WINDOW, CoTrackerError, Weights, check_package, find_weights
from extraction.motion.gpu.device import check_recipe, parse_device, why_missing
from extraction.plan import ShardPlan, estimate, parse_part, parse_shards, plan_shards, store_info
from extraction.run import MAX_TRIES, WorkerLostError
from extraction.stopping import GraceOverError, stopping_on_signals

logger = logging.getLogger(__name__)

EXIT_DONE, EXIT_SOME_FAILED, EXIT_NOTHING_DONE = 0, 1, 2


def build_parser() -> jsonargparse.ArgumentParser:
    """The command line's options."""
    parser = jsonargparse.ArgumentParser(
        prog="extract-tracks",
        allow_abbrev=False,  # slurm/extract_array.sbatch and plan know options by their names
        description="Extract the motion trajectories of a list of videos into a track store. Run the same command "
        "again after an interruption: what is done is not done again. `extract-tracks plan` with the same options "
        "prints the sbatch line for what is left.",
        epilog="Exit status: 0 all done, 1 some videos failed (inspect-tracks STORE --failures names them), "
        "2 usage error or nothing done, 75 not finished (SIGTERM, SIGUSR1, or another run works on some shards): "
        "the same command goes on.",
    )
    add = parser.add_argument
    add(
        "--dataset", type=str, required=True, metavar="NAME|SPEC.yaml|LIST",
        help=f"a data set known by name ({', '.join(dataset_names())}), a spec file, or a list of videos: "
        "`path label` lines, comma-separated with a header, or one path per line",
    )  # fmt: skip
    add(
        "--root", type=str | None, metavar="DIR",
        help="folder that the list's paths are relative to; without it the data set's environment variable, "
        "e.g. K400_ROOT",
    )  # fmt: skip
    add(
        "--split",
        type=str | None,
        metavar="NAME",
        help="which of the data set's lists; default: its own, train",
    )
    add("--list", type=str | None, metavar="FILE", help="a list in place of the data set's own")
    add("--shards", type=int, required=True, metavar="N", help="number of shards of the store")
    add("--out", type=Path | None, metavar="STORE", help="the store; default: ./DATASET-RECIPE.tracks")
    add(
        "--recipe", type=str, default="mme-object", metavar="NAME|FILE.yaml",
        help=f"what to extract: {', '.join(recipe_names())}, or a recipe file",
    )  # fmt: skip
    add(
        "--flow",
        type=Flow | None,
        help="optical flow in place of the recipe's; docs/methods.md compares them",
    )
    add(
        "--start-stride",
        type=int | None,
        metavar="N",
        help="frames between start rows, in place of the recipe's",
    )
    add(
        "--only-shards",
        type=str | None,
        metavar="0,3-5",
        help="do these shards only; several tasks share a store so",
    )
    add(
        "--part", type=str | None, metavar="I/N",
        help="do part I of N, from 0 on: shards I, I + N, I + 2N ...; for the tasks of an array",
    )  # fmt: skip
    add("--workers", type=int, default=0, metavar="N", help="videos at a time; 0 for one on each core")
    add(
        "--executor", type=Literal["ray", "local"], default="ray",
        help="ray: worker processes, or a cluster's if RAY_ADDRESS is set; local: one after the other in this process",
    )  # fmt: skip
    add(
        "--device", type=str, default="cpu", metavar="cpu|cuda[:N]",
        help="where the motion is measured; cuda takes a recipe such as mme-object-gpu",
    )  # fmt: skip
    add(
        "--checkpoint", type=str | None, metavar="FILE|hub",
        help="weights of tracker cotracker3, or hub for its published ones (CC-BY-NC 4.0: not for commercial use); the "
        "store keeps their SHA-256",
    )  # fmt: skip
    add(
        "--workers-per-gpu", type=int, default=4, metavar="N",
        help="with --executor ray: videos that share a CUDA device, so that it need not wait for the decoding",
    )  # fmt: skip
    add(
        "--stall-seconds", type=float, default=600.0, metavar="S",
        help="give a video up on which nothing has gone forward for so long, for a decoder can hang; with --executor "
        "local that ends the run, and the same command then goes on without the video",
    )  # fmt: skip
    add(
        "--max-tries", type=int, default=MAX_TRIES, metavar="N",
        help="so often a video may take its process with it, by a crash or out of memory, before it counts as failed",
    )  # fmt: skip
    add(
        "--grace-seconds", type=float, default=60.0, metavar="S",
        help="after SIGTERM or SIGUSR1 no video is begun any more; those at work have so long to be finished",
    )  # fmt: skip
    add(
        "--verify", action="store_true",
        help="read the complete shards back, compare the videos with those that they were made from, and extract again "
        "what is damaged or has changed",
    )  # fmt: skip
    add("--limit", type=int | None, metavar="N", help="take only the list's first N videos")
    add(
        "--follow-links", action="store_true",
        help="take videos that symbolic links below the root lead to outside of it; without it they are refused",
    )  # fmt: skip
    add("--retry-failed", action="store_true", help="try the videos again that failed before")
    add("--dry-run", action="store_true", help="say what would be done, and do nothing")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    planning = arguments[:1] == ["plan"]
    parser = build_parser()
    if planning:
        arguments = arguments[1:]
        add_plan_options(parser)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        if planning:
            check_plan_options(options)
            options.dry_run = True
            return extract_tracks(options, lambda plans: array_line(plans, options, arguments))
        return extract_tracks(options)
    except (DatasetError, RecipeError, StoreError, ValueError) as error:
        sys.stderr.write(f"extract-tracks: {error}\n")
        return EXIT_NOTHING_DONE
    except (KeyboardInterrupt, GraceOverError):
        sys.stderr.write("extract-tracks: interrupted; the same command goes on from here\n")
        return EXIT_INTERRUPTED
    except (OSError, WorkerLostError) as error:
        sys.stderr.write(f"extract-tracks: {error}; the same command goes on from here once that is mended\n")
        return EXIT_SOME_FAILED


def extract_tracks(options: jsonargparse.Namespace, report: Callable[[Sequence[ShardPlan]], str] | None = None) -> int:
    """Do what the parsed options say; returns the exit status. Raises ValueError or OSError with the way out.

    report: what a dry run prints of its plans, in place of `describe`.
    """
    for name, least in [
        ("shards", 1), ("workers", 0), ("limit", 1), ("start_stride", 1), ("stall_seconds", 1), ("workers_per_gpu", 1),
        ("max_tries", 1), ("grace_seconds", 0),
    ]:  # fmt: skip
        value = getattr(options, name)
        if value is not None and value < least:
            raise ValueError(f"--{name.replace('_', '-')} is {value}, must be {least} or more")
    if options.executor == "local" and options.workers > 1:
        raise ValueError("--executor local does one video at a time; leave --workers out or take --executor ray")
    if options.part is not None and options.only_shards is not None:
        raise ValueError("--part and --only-shards both choose shards; leave one of them out")
    shards = parse_shards(options.only_shards, options.shards)
    if options.part is not None:
        shards = parse_part(options.part, options.shards)
    videos = load_videos(options.dataset, options.root, options.split, options.list)
    if options.limit is not None:
        videos = videos.limited(options.limit)
    check_links(videos.root, [entry.path for entry in videos.entries[:100]], follow_links=options.follow_links)
    recipe = _chosen_recipe(options, videos)
    device = _checked_device(options, recipe)
    weights = _checked_weights(options, recipe)
    store = options.out or Path(f"{videos.dataset}-{recipe.name}.tracks")
    info = store_info(videos, recipe, options.shards, device, weights_sha256=weights.sha256 if weights else None)
    if options.dry_run:
        check_store(store, info)
        chosen = {"retry_failed": options.retry_failed, "verify": options.verify}
        plans = plan_shards(store, videos, options.shards, shards, **chosen)
        sys.stdout.write(
            report(plans) if report else describe(plans, videos, recipe, store, follow_links=options.follow_links)
        )
        return EXIT_DONE
    begin_store(store, info)
    with stopping_on_signals(options.grace_seconds) as stopping:
        done = extract(Extraction(options, videos, info, store, device, weights), shards, stopping)
    if done is None:
        logger.warning("the same command goes on from here")
        return EXIT_INTERRUPTED
    return _exit_status(done)


def _chosen_recipe(options: jsonargparse.Namespace, videos: VideoList) -> Recipe:
    """The recipe, with what the command line says in its place and the data set where it leaves that to it."""
    recipe = load_recipe(options.recipe, videos.clip_stride)
    if options.start_stride is not None:
        recipe = replace(recipe, start_stride=options.start_stride)
    if options.flow is not None:
        if recipe.tracker != "flow":
            raise ValueError(f"--flow {options.flow}: recipe {recipe.name} has none, its tracker is {recipe.tracker}")
        recipe = replace(recipe, flow=options.flow)
    return recipe.resolved(videos.start_stride)


def _checked_device(options: jsonargparse.Namespace, recipe: Recipe) -> str:
    """The device's name; raises ValueError where it is not there or cannot do what the recipe says."""
    device = parse_device(options.device)
    check_recipe(recipe, device)
    if device == "cpu" or options.dry_run:
        return device
    if options.executor == "ray" and os.environ.get("RAY_ADDRESS"):
        if ":" in device:
            raise ValueError(f"--device {device}: on a Ray cluster, Ray says which; take --device cuda")
        return device  # its nodes have the devices, not this machine
    missing = why_missing(device)
    if missing:
        raise ValueError(missing)
    return device


def _checked_weights(options: jsonargparse.Namespace, recipe: Recipe) -> Weights | None:
    """The weights of the recipe's tracker; raises ValueError where they, or what they are for, are not there."""
    if recipe.tracker == "flow":
        if options.checkpoint is not None:
            raise ValueError(f"--checkpoint {options.checkpoint}: recipe {recipe.name} has no tracker with weights")
        return None
    try:
        check_package()
        weights = find_weights(options.checkpoint)
        from extraction.motion.cotracker3.package import load_model  # noqa: PLC0415 (it imports torch)

        model = load_model(weights.path, weights.sha256)  # anything else is refused before there is a store
    except CoTrackerError as error:
        raise ValueError(str(error)) from error
    trained_on = model.time_emb.shape[1]
    if trained_on < OFFLINE_WINDOW:
        logger.warning(
            "--checkpoint %s: trained on windows of %d frames, as the online model is; its tracks are those of the "
            "offline model with these weights, see docs/tracks.md", options.checkpoint, trained_on,
        )  # fmt: skip
    return weights


def _exit_status(plans: Sequence[ShardPlan]) -> int:
    videos, failed = sum(len(plan.entries) for plan in plans), sum(plan.failed for plan in plans)
    if videos and failed == videos:
        logger.error("nothing done: %d of %d videos failed", failed, videos)
        return EXIT_NOTHING_DONE
    if failed:
        logger.warning("%d of %d videos failed", failed, videos)
        return EXIT_SOME_FAILED
    return EXIT_DONE


def describe(
    plans: Sequence[ShardPlan], videos: VideoList, recipe: Recipe, store: Path, *, follow_links: bool = False
) -> str:
    """What a run would do, for --dry-run."""
    todo = sum(len(plan.todo) for plan in plans)
    guess = estimate(plans, videos.root, recipe, follow_links=follow_links)
    lines = [
        f"store      {store}{'' if store.exists() else ' (new)'}",
        f"videos     {sum(len(p.entries) for p in plans)} of {videos.dataset} {videos.split} in {videos.root}",
        f"shards     {len(plans)}, {sum(p.complete for p in plans)} of them complete",
        f"to do      {todo} videos; {sum(p.failed for p in plans)} have failed before"
        + ("" if not any(p.failed for p in plans) else " (--retry-failed tries those again)"),
        f"recipe     {recipe.name}, {recipe.motion}, {recipe.length + 1} positions {recipe.frame_step} frames apart, a "
        f"start row every {recipe.start_stride} frames",
        f"estimate   {guess.frames:,.0f} frames, {guess.stored_bytes / 1e6:,.1f} MB, from {guess.sampled} of them",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
