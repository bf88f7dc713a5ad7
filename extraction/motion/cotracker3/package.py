"""CoTracker3's network: the `cotracker` package's modules with the weights of a file, imported when they are needed."""

import functools
import hashlib
import io
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
    OFFLINE_WINDOW,
    CoTrackerError,
    Weights,
    check_package,
    package_version,
)
from extraction.motion.gpu.device import device_errors, open_device

_TIME_AXES = 3  # of the time embedding: 1, frames, channels
_SEAM = ("fnet", "corr_mlp", "updateformer", "time_emb", "stride", "corr_radius", "corr_levels", "latent_dim")


@functools.lru_cache(maxsize=1)
def open_network(weights: Weights, device: str, refinements: int, precision: Precision, compiled: bool) -> CoTracker3:
    """The network with these weights on a device, kept for the next video of this process.

    Raises CoTrackerError for a missing package, for weights that have changed since, or that are not CoTracker3's;
    DeviceError where there is no such device, or no room on it.
    """
    where = open_device(device)
    model = load_model(weights.path, weights.sha256)
    with device_errors(where, "the network's weights"):
        return CoTracker3(model, where, refinements=refinements, precision=precision, compiled=compiled)


def load_model(path: Path, sha256: str | None = None) -> CoTrackerModules:
    """The package's offline model, with the weights of a file of a `state_dict`; those of the online model fit too.

    sha256: what the file's bytes must have; those that are checked are those that are used.
    """
    check_package()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CoTrackerError(f"--checkpoint {path}: cannot be read: {error.strerror}") from error
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise CoTrackerError(f"{path}: has changed since the run began; its SHA-256 was {sha256}")
    state = _tensors(content, path)
    time_embedding = state.get("time_emb")
    if not isinstance(time_embedding, Tensor) or time_embedding.ndim != _TIME_AXES:
        raise CoTrackerError(
            f"--checkpoint {path}: are not CoTracker3's weights (no time_emb); {HUB_REPOSITORY} has them: {HUB_FILE}"
        )
    model = build_model(time_embedding.shape[1])
    try:
        model.load_state_dict(state)
    except (RuntimeError, AttributeError) as error:
        raise CoTrackerError(f"--checkpoint {path}: do not fit CoTracker3: {error}") from error
    broken = [name for name, values in model.state_dict().items() if not values.isfinite().all()]
    if broken:
        raise CoTrackerError(f"--checkpoint {path}: not all values are finite in {', '.join(broken[:3])}")
    return model  # type: ignore[no-any-return]


def _tensors(content: bytes, path: Path) -> dict[Any, Any]:
    """What a file of `torch.save` holds by name; empty where it holds no names. Nothing of it is run."""
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        EOFError,
        LookupError,
    ) as error:  # torch's own text recommends to run what the file says
        raise CoTrackerError(
            f"--checkpoint {path}: cannot be read as weights: not a file of torch.save, or with more in it than tensors"
        ) from error
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise CoTrackerError(f"--checkpoint {path}: cannot be read as weights: {error}") from error
    state = state.get("model", state) if isinstance(state, dict) else state
    return state if isinstance(state, dict) else {}


def build_model(window: int = OFFLINE_WINDOW) -> Any:
    """The package's offline model, not trained; window: frames that it is, or was, trained on.

    The random state is left as it was: importing the package seeds it.
    """
    check_package()
    try:
        with torch.random.fork_rng(devices=[]):
            from cotracker.models.build_cotracker import build_cotracker  # noqa: PLC0415

            model = build_cotracker(checkpoint=None, offline=True, window_len=window)
    except (ImportError, TypeError) as error:
        raise _another_package(f"cannot be used: {error}") from error
    missing = [name for name in (*_SEAM, "model_resolution") if not hasattr(model, name)]
    if missing:
        raise _another_package(f"has no {', '.join(missing)}")
    return model


def _another_package(problem: str) -> CoTrackerError:
    return CoTrackerError(
        f"the installed cotracker package ({package_version()}) {problem}: it is not the one that this was written "
        f"for. Install that:\n  {INSTALL}"
    )
