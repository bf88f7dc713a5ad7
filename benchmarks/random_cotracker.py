"""Writes random weights for CoTracker3, for trying and for measuring where its own are not at hand.

    python benchmarks/random_cotracker.py weights.pth

The tracks mean nothing; the arithmetic, the sizes and the time are CoTracker3's.
"""

import argparse
from pathlib import Path

import torch

from extraction.motion.cotracker3.weights import check_package


def random_weights(seed: int, motion: float) -> dict[str, torch.Tensor]:
    """The package's own initialisation; motion: factor of what moves the points, which starts near nothing."""
    check_package()
    from cotracker.models.build_cotracker import build_cotracker  # noqa: PLC0415 (not a dependency)

    torch.manual_seed(seed)  # importing the package has seeded it too
    state: dict[str, torch.Tensor] = build_cotracker(checkpoint=None, offline=True, window_len=60).state_dict()
    for head in ("flow_head", "vis_conf_head"):
        state[f"updateformer.{head}.weight"] *= motion
    return state


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--motion", type=float, default=4.0)
    options = parser.parse_args()
    torch.save(random_weights(options.seed, options.motion), options.file)


if __name__ == "__main__":
    main()
