"""Whether CoTracker3 can be had: the `cotracker` package, and a file of weights. Importing this imports no torch.

The package, code and weights alike, is CC-BY-NC 4.0 (no commercial use). It is no dependency, and it is on no package
index: see `INSTALL`.
"""

import hashlib
import importlib.metadata
import importlib.util
import json
from pathlib import Path
from typing import NamedTuple

COMMIT = "82e02e8029753ad4ef13cf06be7f4fc5facdda4d"
"""The package's commit that this was written against and is tested with."""
INSTALL = f"pip install 'cotracker @ git+https://github.com/facebookresearch/co-tracker@{COMMIT}'"
OFFLINE_WINDOW = 60
"""Frames that the offline model was trained on at most; the online model: 16."""
HUB, HUB_REPOSITORY, HUB_FILE = "hub", "facebook/cotracker3", "scaled_offline.pth"


class CoTrackerError(OSError):
    """The package or its weights are missing or not what they should be; the message says what to do.

    No video's fault: the run stops.
    """


class Weights(NamedTuple):
    """A file of weights, and the SHA-256 of its bytes in hex."""

    path: Path
    sha256: str


def check_package() -> None:
    """Raise CoTrackerError, with the way out, where the package is not installed."""
    if importlib.util.find_spec("cotracker") is None:
        raise CoTrackerError(
            "tracker cotracker3 needs the package cotracker, which is on no package index. Install it with\n  "
            f"{INSTALL}\nIts code and weights are under CC-BY-NC 4.0: not for commercial use. Recipes with "
            "`tracker: flow` need neither"
        )


def package_version() -> str:
    """The installed package's version, with its commit where it was installed from one."""
    try:
        installed = importlib.metadata.distribution("cotracker")
    except importlib.metadata.PackageNotFoundError:  # on the path without having been installed
        return "unknown"
    origin = json.loads(installed.read_text("direct_url.json") or "{}")
    commit = origin.get("vcs_info", {}).get("commit_id")
    return f"{installed.version} ({commit})" if commit else installed.version


def network_versions() -> dict[str, str]:
    """What the network adds to a store's software versions."""
    import torch  # noqa: PLC0415

    return {"torch": torch.__version__, "cotracker": package_version()}


def find_weights(checkpoint: str | None) -> Weights:
    """The weights that `--checkpoint FILE` or `--checkpoint hub` names; those of the hub are downloaded once.

    Raises CoTrackerError for a file that is not there, or a hub that cannot be reached.
    """
    if checkpoint is None:
        raise CoTrackerError(
            f"tracker cotracker3 needs weights: --checkpoint FILE, or --checkpoint {HUB} for {HUB_REPOSITORY}'s "
            f"{HUB_FILE} from the Hugging Face hub (CC-BY-NC 4.0: not for commercial use)"
        )
    path = _from_hub() if checkpoint == HUB else Path(checkpoint)
    try:
        with path.open("rb") as file:
            return Weights(path.absolute(), hashlib.file_digest(file, "sha256").hexdigest())
    except OSError as error:
        raise CoTrackerError(f"--checkpoint {path}: cannot be read: {error.strerror}") from error


def _from_hub() -> Path:
    from huggingface_hub import hf_hub_download  # noqa: PLC0415 (seconds, and not always wanted)

    try:
        return Path(hf_hub_download(HUB_REPOSITORY, HUB_FILE))
    except Exception as error:
        raise CoTrackerError(
            f"--checkpoint {HUB}: {HUB_FILE} of {HUB_REPOSITORY} cannot be had from the Hugging Face hub: {error}. "
            f"Download it on a machine that reaches https://huggingface.co/{HUB_REPOSITORY} and give the file"
        ) from error
