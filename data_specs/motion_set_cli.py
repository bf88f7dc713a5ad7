"""render-motion-set: the controlled motion set as a data set of video files."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import jsonargparse

from data_specs.interrupts import EXIT_INTERRUPTED
from data_specs.motion_set import MOTIONS
from data_specs.motion_set_files import MotionSetError, MotionSetSettings, render_motion_set

EXIT_DONE, EXIT_USAGE = 0, 2


def build_parser() -> jsonargparse.ArgumentParser:
    """The command line's options."""
    parser = jsonargparse.ArgumentParser(
        prog="render-motion-set",
        description="Render clips whose label is how an object moves and nothing else: " + ", ".join(MOTIONS) + ". "
        "The same options give the same files; clips that are there already stay.",
        epilog="DIR/dataset.yaml is then a data set: extract-tracks --dataset DIR/dataset.yaml --root DIR. Exit "
        "status: 0 done, 2 usage error, 75 interrupted (the same command goes on).",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to render into")
    parser.add_argument("--workers", type=int | None, metavar="N", help="processes that render; default: one a core")
    parser.add_class_arguments(MotionSetSettings)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = vars(build_parser().parse_args(argv))
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    root, workers = options.pop("out"), options.pop("workers")
    try:
        if workers is not None and workers < 1:
            raise MotionSetError(f"--workers is {workers}, must be 1 or more")
        spec = render_motion_set(root, MotionSetSettings(**options), workers)
    except (MotionSetError, OSError) as error:
        sys.stderr.write(f"render-motion-set: {error}\n")
        return EXIT_USAGE
    except KeyboardInterrupt:
        sys.stderr.write("render-motion-set: interrupted; the same command goes on\n")
        return EXIT_INTERRUPTED
    sys.stdout.write(f"{spec}\n")
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
