"""Puts the stand-in for the `cotracker` package into place, here or for a command, and writes weights for it."""

import os
import sys
from pathlib import Path

import torch
from conftest import REPOSITORY

STAND_INS = REPOSITORY / "tests" / "stand_in_packages"


def use_stand_in(monkeypatch):
    """Import the stand-in as `cotracker` in this process, until the test is over."""
    monkeypatch.syspath_prepend(str(STAND_INS))
    for name in [name for name in sys.modules if name.split(".")[0] == "cotracker"]:
        monkeypatch.delitem(sys.modules, name)


def with_stand_in():
    """Environment of a command that imports the stand-in as `cotracker`."""
    path = os.pathsep.join([str(STAND_INS), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path}


def stand_in_model(window=8):
    """The stand-in's model; it need not be installed anywhere."""
    sys.path.insert(0, str(STAND_INS / "cotracker" / "models"))
    try:
        import build_cotracker
    finally:
        sys.path.pop(0)
    with torch.random.fork_rng():
        return build_cotracker.build_cotracker(window_len=window)


def write_weights(path: Path, window=8) -> Path:
    """The stand-in's weights as a file."""
    torch.save(stand_in_model(window).state_dict(), path)
    return path
