"""extract-tracks plan: the sbatch line that has a Slurm array do what is left of a store."""

import logging
import re
import shlex
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

import jsonargparse

from extraction.plan import ShardPlan

logger = logging.getLogger(__name__)

SCRIPT = Path("slurm") / "extract_array.sbatch"
DEFAULT_MAX_ARRAY_SIZE = 1001
"""Slurm's own: an array's tasks are numbered 0 to 1000."""

_OPTIONS = ("--tasks", "--throttle", "--max-array-size")


def add_plan_options(parser: jsonargparse.ArgumentParser) -> None:
    """Make extract-tracks' parser that of `extract-tracks plan`."""
    parser.prog = "extract-tracks plan"
    parser.description = (
        "Print the sbatch line that has a Slurm array do what is left of a store: it takes the options of the run, "
        "and looks at what the store holds already. Nothing is done."
    )
    parser.epilog = "Exit status: 0 the line is on standard output, or nothing is left; 2 usage error."
    group = parser.add_argument_group("the array")
    group.add_argument(
        "--tasks", type=int | None, metavar="N",
        help="parts that the shards are shared out to; default: one for each shard, or fewer of equal size where there "
        "are more shards than an array may have tasks",
    )  # fmt: skip
    group.add_argument("--throttle", type=int | None, metavar="N", help="tasks that run at a time; default: all")
    group.add_argument(
        "--max-array-size", type=int | None, metavar="N",
        help=f"Slurm's MaxArraySize; default: what scontrol says, {DEFAULT_MAX_ARRAY_SIZE} without it",
    )  # fmt: skip


def check_plan_options(options: jsonargparse.Namespace) -> None:
    """Raise ValueError for options that plan cannot take."""
    for name in ("tasks", "throttle", "max_array_size"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {value}, must be 1 or more")
    for name in ("only_shards", "part"):
        if getattr(options, name) is not None:
            raise ValueError(f"the array chooses the shards: leave --{name.replace('_', '-')} out")


def array_line(plans: Sequence[ShardPlan], options: jsonargparse.Namespace, arguments: Sequence[str]) -> str:
    """The line, ready for a shell and with its newline; empty where no shard is left.

    plans: of every shard. arguments: the words of plan's command line; all but plan's own go on to extract-tracks.
    Raises ValueError where there are more tasks than Slurm takes, or it takes no arrays.
    """
    left = [plan for plan in plans if not plan.is_done]
    failed = sum(plan.failed for plan in plans)
    if failed and not options.retry_failed:
        logger.info("%d videos have failed before; --retry-failed tries them again", failed)
    if not left:
        logger.info("nothing is left: %d of %d shards are complete", len(plans), len(plans))
        return ""
    largest = options.max_array_size or max_array_size()
    if largest < 1:
        raise ValueError("this cluster takes no arrays: its MaxArraySize is 0")
    parts = number_of_parts(len(plans), options.tasks, largest)
    tasks = sorted({plan.shard % parts for plan in left})
    logger.info(
        "%d of %d shards are left, with %d videos to do: %d of %d tasks",
        len(left), len(plans), sum(len(plan.todo) for plan in left), len(tasks), parts,
    )  # fmt: skip
    throttle = f"%{options.throttle}" if options.throttle else ""
    words = [
        "sbatch", f"--array={array_list(tasks)}{throttle}", str(script_path()), "--parts", str(parts),
        *run_arguments(arguments),
    ]  # fmt: skip
    return shlex.join(words) + "\n"


def number_of_parts(num_shards: int, tasks: int | None, largest: int) -> int:
    """To how many parts the shards are shared out, that is, an array's tasks before some are left out.

    tasks: so many, if the user says so. largest: Slurm's MaxArraySize, one more than an array's largest index.
    """
    if tasks is not None:
        if tasks > largest:
            raise ValueError(f"--tasks is {tasks}, but an array may have {largest} tasks here (MaxArraySize)")
        return min(tasks, num_shards)
    shards_each = -(-num_shards // largest)
    return -(-num_shards // shards_each)


def array_list(tasks: Iterable[int]) -> str:
    """Ascending numbers as sbatch's --array takes them: [3, 17, 18, 19, 31] to `3,17-19,31`."""
    runs: list[tuple[int, int]] = []
    for task in tasks:
        if runs and task == runs[-1][1] + 1:
            runs[-1] = runs[-1][0], task
        else:
            runs.append((task, task))
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def max_array_size() -> int:
    """MaxArraySize of the cluster that this machine belongs to; Slurm's default where there is none."""
    try:
        shown = subprocess.run(
            ["scontrol", "show", "config"], capture_output=True, text=True, timeout=60, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return DEFAULT_MAX_ARRAY_SIZE
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", shown, flags=re.M)
    return int(found[1]) if found else DEFAULT_MAX_ARRAY_SIZE


def script_path() -> Path:
    """extract_array.sbatch as seen from here, else where it lies beside this package."""
    beside = Path(__file__).parent.parent / SCRIPT
    return beside if beside.exists() and not SCRIPT.exists() else SCRIPT


def run_arguments(arguments: Sequence[str]) -> list[str]:
    """The words of a command line without plan's own options."""
    kept, words = [], iter(arguments)
    for word in words:
        if word in _OPTIONS:
            next(words, None)
        elif not word.startswith(tuple(f"{option}=" for option in _OPTIONS)) and word != "--dry-run":
            kept.append(word)
    return kept
