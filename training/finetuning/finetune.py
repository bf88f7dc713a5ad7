"""finetune-motion: a pretrained encoder and labelled videos in, a classifier and its accuracy out."""

import functools
import sys
from collections.abc import Sequence

import jsonargparse

from training.command import run_command
from training.finetuning import command

COMMAND = command.Command(
    name="finetune-motion",
    description="Fine-tune a pretrained video transformer to classify labelled videos, then test it on several views "
    "of each.",
    recipes={"ssv2": "mme-ssv2", "k400": "mme-k400", "": "mme-ucf101"},
    freezes=False,
)


def build_parser() -> jsonargparse.ArgumentParser:
    """The command line's options."""
    return command.build_parser(COMMAND)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = build_parser().parse_args(argv)
    return run_command(COMMAND.name, options, functools.partial(command.prepare, COMMAND), command.carry_out)


if __name__ == "__main__":
    sys.exit(main())
