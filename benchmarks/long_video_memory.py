"""Peak memory of extract-tracks on one very long video: flow DIS, HOG on, a start row at every frame.

    python benchmarks/long_video_memory.py --frames 20000 --height 1080 --width 1920

Renders the video (H.264, a moving crop of a random texture), extracts it in a process of its own, and prints that
process's peak resident memory, the size of the store and the time. The command's other processes (Ray) are left out by
`--executor local`; the work is the same.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
import cv2
import numpy as np


def write_video(path: Path, frames: int, height: int, width: int) -> None:
    """A crop that wanders over a texture: every frame differs from the one before."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (height // 4 + 60, width // 4 + 60, 3), dtype=np.uint8)
    texture = cv2.resize(cv2.GaussianBlur(coarse, (0, 0), 1), None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "ultrafast", "crf": "30"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for t in range(frames):
            x, y = int(100 + 90 * np.sin(t / 30)), int(100 + 90 * np.sin(t / 47))
            crop = np.ascontiguousarray(texture[y : y + height, x : x + width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(crop, format="rgb24")))
        container.mux(stream.encode())


def main() -> None:
    """Run the benchmark and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=20000)
    parser.add_argument("--height", type=int, default=1080)
    parser.add_argument("--width", type=int, default=1920)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_video(root / "long.mp4", options.frames, options.height, options.width)
        (root / "list.txt").write_text("long.mp4\n")
        command = [
            str(Path(sys.executable).parent / "extract-tracks"), "--dataset", str(root / "list.txt"),
            "--root", folder, "--shards", "1", "--out", str(root / "store"), "--flow", "dis", "--start-stride", "1",
            "--executor", "local",
        ]  # fmt: skip
        begun = time.monotonic()
        process = subprocess.Popen(command)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - begun
        stored = sum(f.stat().st_size for f in (root / "store").rglob("*") if f.is_file())
        exit_status = os.waitstatus_to_exitcode(status)
        print(
            f"{options.frames} frames of {options.height}x{options.width}, exit status {exit_status}: "
            f"peak memory {usage.ru_maxrss / 2**20:.2f} GiB, {seconds:.0f} s, store {stored / 1e6:.0f} MB"
        )


if __name__ == "__main__":
    main()
