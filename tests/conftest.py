"""Fixtures and helpers of the tests. Frames are never square, and no two axes have one size."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from data_specs.demo_clips import write_clip
from data_specs.scene import random_scene

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small clips of different sizes and lengths, with the list `list.txt`; all of them are good."""
    root = tmp_path_factory.mktemp("clips")
    sizes = {"a.avi": (72, 104), "sub folder/b.avi": (64, 88), "c.avi": (80, 56), "d.avi": (72, 104), "e.avi": (61, 93)}
    for number, (name, size) in enumerate(sizes.items()):
        (root / name).parent.mkdir(exist_ok=True)
        write_clip(root / name, random_scene(number, 1.5, size), 12 + 3 * number)
    (root / "list.txt").write_text("".join(f"{name}\n" for name in sizes), encoding="utf-8")
    return root


def run_command(arguments: Sequence[str], **options: object) -> subprocess.CompletedProcess[str]:
    """Run one of the project's commands in a process of its own."""
    command = [str(Path(sys.executable).parent / arguments[0]), *arguments[1:]]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **options)  # type: ignore[call-overload]


def store_bytes(store: Path) -> dict[str, bytes]:
    """Every file of a store, by its path in it."""
    return {str(f.relative_to(store)): f.read_bytes() for f in sorted(store.rglob("*")) if f.is_file()}
