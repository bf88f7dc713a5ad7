"""Options that the commands which train have in common, and what their numbers must be."""

from pathlib import Path
from typing import Literal

import jsonargparse

from training.task import Precision

EXIT_TEXT = (
    "Exit status: 0 done, 1 stopped (numbers that are not finite, a file that cannot be read or written), "
    "2 usage error, 75 interrupted by SIGTERM or SIGUSR1 after saving: the same command with --resume goes on."
)
_LARGEST_SEED = 2**63 - 1  # of PyTorch's generators
_LEAST = {
    "epochs": 1, "steps": 1, "batch_size": 1, "accumulate": 1, "warmup_steps": 0, "seed": 0, "workers": 0,
    "clips_per_video": 1, "clip_stride": 1, "save_every": 1, "keep": 1, "figure_every": 0, "validate_every": 1,
    "test_clips": 1, "test_crops": 1,
}  # fmt: skip


def add_model_option(parser: jsonargparse.ArgumentParser, default: str | None) -> None:
    """--model; a default of None is that of --init."""
    sizes = "vit_micro, vit_tiny, vit_small, vit_base, vit_large, vit_huge"
    text = "" if default is not None else "; default: that of the run given with --init, else vit_base"
    parser.add_argument("--model", type=str | None, default=default, metavar="NAME", help=f"{sizes}{text}")


def add_length_options(parser: jsonargparse.ArgumentParser, *, batch_size: int | None) -> None:
    """How long, in what portions and at what rate; a batch size of None is the recipe's, of fine-tuning."""
    add = parser.add_argument
    default, counted, changed = "", "clips", "not the result"
    if batch_size is None:  # fine-tuning
        default, counted, changed = "; default: the recipe's", "videos", "and which clips are mixed with which"
    add("--epochs", type=int | None, metavar="N", help="times that each video is seen; default: the recipe's")
    add("--steps", type=int | None, metavar="N", help="optimisation steps, in place of --epochs")
    add(
        "--batch-size", type=int | None, default=batch_size, metavar="N",
        help=f"clips of one optimisation step, over all processes{default}",
    )  # fmt: skip
    add(
        "--accumulate", type=int, default=1, metavar="N",
        help=f"micro-batches that a process takes one after the other in a step; changes memory, {changed}",
    )  # fmt: skip
    add(
        "--lr", type=float | None, metavar="X",
        help=f"base learning rate, for a batch of 256 {counted}, in place of the recipe's: the rate is X * {counted} "
        "of a step / 256",
    )  # fmt: skip
    add(
        "--warmup-steps", type=int | None, metavar="N",
        help="steps of linear warm-up; default: the recipe's epochs, in a short run at most a tenth of it, "
        "or their share of the recipe's",
    )  # fmt: skip


def add_run_options(parser: jsonargparse.ArgumentParser, *, seed: str, out: str) -> None:
    """The run's folder, and how it is computed; seed and out: what these are of."""
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="RUN", help=out)
    add(
        "--resume", action="store_true",
        help="go on from the run's newest checkpoint, also with more --steps; starts a run that has none yet",
    )  # fmt: skip
    add("--seed", type=int, default=0, metavar="N", help=seed)
    add("--workers", type=int | None, metavar="N", help="processes that read clips, for each GPU; default: one a core")
    add("--device", type=Literal["auto", "cpu", "cuda"], default="auto")
    add(
        "--precision", type=Precision | None,
        help="of the model's products: bf16 (default on CUDA), fp32 (default on the CPU), fp16 with a scaled loss",
    )  # fmt: skip
    add("--clip-stride", type=int | None, metavar="N", help="frames of the video from one of a clip's to the next")
    add("--flip", type=bool | None, metavar="true|false", help="flip half of the clips; default: the recipe's")
    add(
        "--follow-links", action="store_true",
        help="take videos that symbolic links below the root lead to outside of it; without it they are skipped",
    )  # fmt: skip
    add("--compile", action="store_true", help="compile the model (torch.compile)")
    add("--checkpoint-activations", action="store_true", help="less memory for a third more time")
    add("--save-every", type=int, default=500, metavar="N", help="steps from one checkpoint to the next")
    add("--keep", type=int, default=3, metavar="N", help="checkpoints that stay")


def check_numbers(options: jsonargparse.Namespace, *, world_size: int, batch_size: int, clips_per_video: int) -> None:
    """Raise ValueError with all that is wrong with an option's number. batch_size: the option's, or the recipe's."""
    problems = [
        f"--{name.replace('_', '-')} is {value}, must be {least} or more"
        for name, least in _LEAST.items()
        if (value := getattr(options, name, None)) is not None and value < least
    ]
    if options.seed > _LARGEST_SEED:
        problems.append(f"--seed is {options.seed}, must be {_LARGEST_SEED} or less")
    if options.epochs is not None and options.steps is not None:
        problems.append("--epochs and --steps both say how long: give one of them")
    if options.lr is not None and not 0 < options.lr < float("inf"):
        problems.append(f"--lr is {options.lr}, must be more than 0")
    if not problems and batch_size % (world_size * options.accumulate * clips_per_video):
        problems.append(
            f"--batch-size is {batch_size}, must be a multiple of {world_size} processes x "
            f"{options.accumulate} micro-batches x {clips_per_video} clips of a video"
        )
    if problems:
        raise ValueError("; ".join(problems))
