"""The states of a process's random generators, as a checkpoint keeps them.

The loader's randomness is not among them: clips follow from the seed and their position alone.
"""

import random
from typing import Any

import numpy as np
import torch


def seed_rank(seed: int, step: int, rank: int) -> None:
    """Seed PyTorch, Python and NumPy for a rank that begins at a step; different ranks draw different numbers."""
    own = int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])
    torch.manual_seed(own)
    random.seed(own)
    np.random.seed(own)  # noqa: NPY002 (libraries may draw from it)


def random_states() -> dict[str, Any]:
    """The states of this process, in types that torch.load(weights_only=True) takes."""
    version, numbers, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "python": [version, list(numbers), gauss],
        "numpy": [
            str(kind),
            torch.tensor(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(cached),
        ],
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Go back to the states that `random_states` gave. CUDA's is left alone where there is none on either side."""
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
