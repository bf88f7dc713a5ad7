"""Fixtures and helpers of the tests. Frames are never square, and no two axes have one size."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from data_specs.demo_clips import write_clip
from data_specs.scene import Disc, Scene, Texture, moving

REPOSITORY = Path(__file__).parent.parent


def make_scene(seed: int, speed: float, size: tuple[int, int] = (136, 184), noise: float = 2.0) -> Scene:
    """A random scene: a camera that pans, turns, zooms and tilts, and three discs; `speed` in px per frame."""
    rng = np.random.default_rng(seed)
    height, width = size

    def direction(length: float) -> tuple[float, float]:
        angle = rng.random() * 2 * np.pi
        return length * np.cos(angle), length * np.sin(angle)

    camera = moving(
        direction(0.6 * speed),
        about=(width / 2, height / 2),
        turn=rng.normal() * 0.004 * speed,
        zoom=1 + rng.normal() * 0.003 * speed,
        tilt=tuple(rng.normal(size=2) * 1e-5 * speed),
    )
    discs = tuple(
        Disc(
            texture=Texture(10 * seed + i, shortest=4, longest=30),
            centre=(width * (0.2 + 0.3 * i), height * (0.3 + 0.2 * i)),
            radius=0.14 * height,
            motion=moving(direction(0.7 * speed), about=(width * (0.2 + 0.3 * i), height * (0.3 + 0.2 * i))),
        )
        for i in range(3)
    )
    return Scene(
        size=size, background=Texture(10 * seed + 9), camera=camera, discs=discs, noise=noise, seed=seed
    )


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small clips of different sizes and lengths, with the list `list.txt`; all of them are good."""
    root = tmp_path_factory.mktemp("clips")
    sizes = {"a.avi": (72, 104), "sub folder/b.avi": (64, 88), "c.avi": (80, 56), "d.avi": (72, 104), "e.avi": (61, 93)}
    for number, (name, size) in enumerate(sizes.items()):
        (root / name).parent.mkdir(exist_ok=True)
        write_clip(root / name, make_scene(number, 1.5, size), 12 + 3 * number)
    (root / "list.txt").write_text("".join(f"{name}\n" for name in sizes), encoding="utf-8")
    return root


def run_command(arguments: Sequence[str], **options: object) -> subprocess.CompletedProcess[str]:
    """Run one of the project's commands in a process of its own."""
    command = [str(Path(sys.executable).parent / arguments[0]), *arguments[1:]]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **options)  # type: ignore[call-overload]


def store_bytes(store: Path) -> dict[str, bytes]:
    """Every file of a store, by its path in it."""
    return {str(f.relative_to(store)): f.read_bytes() for f in sorted(store.rglob("*")) if f.is_file()}
