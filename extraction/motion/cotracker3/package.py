"""CoTracker3's network: the `cotracker` package's modules with the weights of a file, imported when they are needed."""

import functools
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from extraction.motion.cotracker3.network import CoTracker3, CoTrackerModules, Precision
from extraction.motion.cotracker3.weights import (
    HUB_FILE,
    HUB_REPOSITORY,
    INSTALL,
    CoTrackerError,
    Weights,
    check_package,
    find_weights,
    package_version,
)
from extraction.motion.gpu.device import open_device

_SEAM = ("fnet", "corr_mlp", "updateformer", "time_emb", "stride", "corr_radius", "corr_levels", "latent_dim")


@functools.lru_cache(maxsize=1)
def open_network(weights: Weights, device: str, refinements: int, precision: Precision, compiled: bool) -> CoTracker3:
    """The network with these weights on a device, kept for the next video of this process.

    Raises CoTrackerError for a missing package, for weights that have changed since, or that are not CoTracker3's.
    """
    check_package()
    path, sha256 = weights
    if find_weights(str(path)).sha256 != sha256:
        raise CoTrackerError(f"{path}: has changed since the run began; its SHA-256 was {sha256}")
    where = open_device(device)
    return CoTracker3(load_model(path), where, refinements=refinements, precision=precision, compiled=compiled)


def load_model(path: Path) -> CoTrackerModules:
    """The package's model, with the weights of a file of a `state_dict`, of the offline or the online model."""
    try:
        # nothing of the file is run
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError) as error:
        raise CoTrackerError(f"--checkpoint {path}: cannot be read as weights: {error}") from error
    state = state.get("model", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not isinstance(state.get("time_emb"), Tensor):
        raise CoTrackerError(
            f"--checkpoint {path}: are not CoTracker3's weights (no time_emb); {HUB_REPOSITORY} has them: {HUB_FILE}"
        )
    model = build_model(state["time_emb"].shape[1])
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise CoTrackerError(f"--checkpoint {path}: do not fit CoTracker3: {error}") from error
    return model  # type: ignore[no-any-return]


def build_model(window: int = 60) -> Any:
    """The package's offline model, not trained; window: frames that it is, or was, trained on.

    The random state is left as it was: importing the package seeds it.
    """
    check_package()
    with torch.random.fork_rng(devices=[]):
        from cotracker.models.build_cotracker import build_cotracker  # noqa: PLC0415

        model = build_cotracker(checkpoint=None, offline=True, window_len=window)
    missing = [name for name in (*_SEAM, "model_resolution") if not hasattr(model, name)]
    if missing:
        raise CoTrackerError(
            f"the installed cotracker package ({package_version()}) has no {', '.join(missing)}: it is not the one "
            f"that this was written for. Install that:\n  {INSTALL}"
        )
    return model
