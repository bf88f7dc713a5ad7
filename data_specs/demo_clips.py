"""The demo's clips: small rendered scenes whose camera and object motion is known."""

import logging
import shutil
import uuid
from pathlib import Path
from typing import Protocol

import cv2

from data_specs.scene import Disc, Scene, Texture, moving, still
from data_specs.video import Frame

logger = logging.getLogger(__name__)

CLIP_FRAMES = 32
_FPS = 16


def demo_scenes() -> dict[str, Scene]:
    """The scenes by name. No two have one size; speeds are in pixels per frame."""
    red, grey, fine = (
        Texture(1, shortest=6),
        Texture(2, shortest=8, contrast=40),
        Texture(3, shortest=4, longest=30),
    )

    def ball(x: float, y: float, velocity: tuple[float, float], turn: float = 0.0, radius: float = 22) -> Disc:
        return Disc(texture=fine, centre=(x, y), radius=radius, motion=moving(velocity, about=(x, y), turn=turn))

    return {
        "still_camera": Scene(
            size=(112, 160), background=grey, camera=still, discs=(ball(40, 56, (2.0, 0.4)),), noise=1.5
        ),
        "pan": Scene(
            size=(120, 176),
            background=red,
            camera=moving((-1.5, 0.4)),
            discs=(ball(60, 60, (2.2, -0.6)),),
            noise=1.5,
        ),
        "zoom": Scene(
            size=(128, 168),
            background=grey,
            camera=moving(about=(84, 64), zoom=1.008),
            discs=(ball(50, 40, (0.6, 0.9)), ball(120, 84, (-0.9, -0.3), radius=18)),
            noise=1.5,
        ),
        "hand_held": Scene(
            size=(136, 184),
            background=red,
            camera=moving((0.7, -0.5), about=(92, 68), turn=0.004, tilt=(1e-5, -1e-5)),
            discs=(ball(92, 68, (-1.2, 0.8), turn=0.05, radius=26),),
            noise=1.5,
        ),
        "portrait": Scene(
            size=(176, 104),
            background=fine,
            camera=moving((0.0, 1.0)),
            discs=(ball(52, 50, (0.5, 1.6)),),
            noise=1.5,
        ),
    }


def render_demo_clips(root: Path) -> None:
    """Render the clips and their list, train.csv, into the folder `root`, which appears whole or not at all."""
    logger.info("rendering the demo's clips into %s", root)
    temporary = root.with_name(f".tmp-{uuid.uuid4().hex}-{root.name}")
    temporary.mkdir(parents=True)
    lines = []
    for label, (name, scene) in enumerate(demo_scenes().items()):
        write_clip(temporary / f"{name}.avi", scene, CLIP_FRAMES)
        lines.append(f"{name}.avi {label}\n")
    (temporary / "train.csv").write_text("".join(lines), encoding="utf-8")
    try:
        temporary.rename(root)
    except OSError:
        if not root.exists():
            raise
        shutil.rmtree(temporary)  # somebody else was faster


class Rendered(Protocol):
    """What can be rendered frame by frame."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""

    def render(self, frame: int, /) -> Frame:
        """A frame by its number, RGB uint8 (height, width, 3)."""


def write_clip(path: Path, scene: Rendered, frames: int) -> None:
    """Render a scene into a video file (Motion JPEG, so that every frame is decoded on its own)."""
    height, width = scene.size
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), _FPS, (width, height))
    if not writer.isOpened():
        raise OSError(f"{path}: OpenCV cannot write a Motion JPEG video there")
    for t in range(frames):
        writer.write(cv2.cvtColor(scene.render(t), cv2.COLOR_RGB2BGR))
    writer.release()
