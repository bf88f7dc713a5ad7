"""Time of one training clip's frames, beside the way of the released loaders, in one run and one thread.

    python benchmarks/clip_decoding.py CLIP... --clips 12 --repeats 5

A clip is 16 frames at stride 4 from anywhere in the video, in one MultiScaleCrop view of 224 x 224. `released` is what
VideoMAE's and MME's loaders do: decord opens the file, `get_batch` of the frames at their own size, each cropped and
resized with Pillow (bilinear), all put into one tensor. They go on to floats on the CPU, which is the last column and
not counted: here it is left to the device. Both ways take turns over the same clips and views; of each clip the
least time of the repeats counts, of a video the median of its clips; the ratio is what counts.

Beside the files given, H.264 of a drawn scene: 340 x 256, as K400 is stored, and 1280 x 720, with key frames every
`--groups` frames. Of our time, by stage: `open` reads the file's packets, `decode` makes pictures, `convert` makes
RGB of those wanted, `resize` the view. `decoded` counts pictures: 16 are wanted, those between key frame and clip
are needed for them, those that no other needs are left out.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import cv2
import numpy as np
import torch
from PIL import Image

from data_specs.clip_frames import ClipFrames
from data_specs.container import RgbConverter
from data_specs.cpu_decord import decord
from data_specs.frame_access import FrameAccess
from data_specs.frame_resampling import BoxResampler
from data_specs.video import Video
from data_specs.view import View
from training.reading.multi_scale_crop import multi_scale_crop

FRAMES, STRIDE, SIZE, SCALES, SHORT_SIDE = 16, 4, (224, 224), (1.0, 0.875, 0.75, 0.66), 256


def released_way(path: str, indices: Sequence[int], view: View) -> torch.Tensor:
    """uint8 (16, 224, 224, 3), from a view in the video's own pixels."""
    pictures = decord.VideoReader(path, num_threads=1).get_batch(indices).asnumpy()
    box = (view.left, view.top, view.left + view.width, view.top + view.height)
    size = view.size[::-1]
    shown = [Image.fromarray(p).convert("RGB").crop(box).resize(size, Image.Resampling.BILINEAR) for p in pictures]
    return torch.from_numpy(np.stack([np.asarray(picture) for picture in shown]))


def seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


class TimedVideo:
    """The clips of one video, and how long each way takes for them."""

    def __init__(self, path: str, clips: int, seed: int) -> None:
        self.path = path
        video = Video(path, SHORT_SIDE)
        self.count = sum(1 for _ in video)
        self.source_size, self.frame_size = video.source_size, video.frame_size
        rng = np.random.default_rng(seed)
        last_start = max(1, self.count - FRAMES * STRIDE + 1)
        self.clips = []
        for _ in range(clips):
            indices = np.minimum(rng.integers(last_start) + STRIDE * np.arange(FRAMES), self.count - 1).tolist()
            state = rng.bit_generator.state
            view = multi_scale_crop(self.frame_size, SIZE, SCALES, False, rng)
            rng.bit_generator.state = state
            # the released loaders crop at the video's own size, whatever it is
            self.clips.append((indices, view, multi_scale_crop(self.source_size, SIZE, SCALES, False, rng)))

    def ours(self, indices: Sequence[int], view: View) -> torch.Tensor:
        with ClipFrames(
            self.path, source_size=self.source_size, num_frames=self.count, short_side=SHORT_SIDE
        ) as frames:
            return torch.from_numpy(frames.read(indices, view))

    def stages(self, indices: Sequence[int], view: View) -> dict[str, float]:
        """Seconds by stage, and the number of pictures decoded."""
        clock = time.perf_counter
        begun = clock()
        access = FrameAccess(self.path, self.count)
        spent = {"open": clock() - begun, "decode": 0.0, "convert": 0.0, "resize": 0.0}
        decoded = 0
        decode = access._decode

        def counting(*arguments: object) -> object:
            nonlocal decoded
            for picture in decode(*arguments):
                decoded += 1
                yield picture

        access._decode = counting
        down, right = np.array(self.source_size) / self.frame_size
        box = (view.top * down, view.left * right, view.height * down, view.width * right)
        resample, convert = BoxResampler(self.source_size, box, view.size, view.flip), RgbConverter()
        shown = np.empty((*view.size, 3), np.uint8)
        pictures = access.frames(indices)
        while True:
            start = clock()
            item = next(pictures, None)
            spent["decode"] += clock() - start
            if item is None:
                break
            start = clock()
            rows, _ = convert(item[1])
            middle = clock()
            resample(rows, shown)
            spent["convert"] += middle - start
            spent["resize"] += clock() - middle
        access.close()
        return {**spent, "decoded": decoded}

    def measure(self, repeats: int) -> dict[str, float]:
        """Medians over the clips of the least times in ms."""
        least: list[dict[str, float]] = []
        for indices, view, source_view in self.clips:
            best: dict[str, float] = {}
            for repeat in range(repeats + 1):
                frames = released_way(self.path, indices, source_view)
                times = {
                    "released": seconds(lambda: released_way(self.path, indices, source_view)),  # noqa: B023
                    "ours": seconds(lambda: self.ours(indices, view)),  # noqa: B023
                    "floats": seconds(lambda: frames.permute(0, 3, 1, 2).contiguous().float().div(255)),  # noqa: B023
                    **self.stages(indices, view),
                }
                if repeat:
                    best = {name: min(value, best.get(name, value)) for name, value in times.items()}
            least.append(best)
        medians = {name: 1e3 * statistics.median(best[name] for best in least) for name in least[0]}
        return {**medians, "decoded": medians["decoded"] / 1e3, "ratio": medians["released"] / medians["ours"]}


def drawn_frames(size: tuple[int, int], count: int) -> list[np.ndarray]:
    """Texture under a turning and panning camera, a disc that crosses it, and a sensor's noise."""
    height, width = size
    rng = np.random.default_rng(0)
    canvas = np.zeros((2 * height, 2 * width, 3), np.float32)
    for cell in (4, 16, 64):
        coarse = rng.normal(scale=12 * cell**0.4, size=(2 * height // cell + 2, 2 * width // cell + 2, 3))
        canvas += cv2.resize(coarse.astype(np.float32), canvas.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    disc = np.roll(canvas, width, axis=1)
    frames = []
    for t in range(count):
        camera = cv2.getRotationMatrix2D((float(width), float(height)), 4 * np.sin(t / 40), 1 + 0.1 * np.sin(t / 60))
        camera[:, 2] += (-width / 2 + 0.1 * width * np.sin(t / 50), -height / 2 + 0.1 * height * np.cos(t / 70))
        frame = cv2.warpAffine(canvas, camera, (width, height))
        centre = (int(width * (0.5 + 0.4 * np.sin(t / 25))), height // 2)
        mask = cv2.circle(np.zeros(size, np.uint8), centre, height // 5, 1, -1).astype(bool)
        frame[mask] = disc[:height, :width][mask]
        frames.append(np.clip(frame + 128 + rng.normal(scale=2, size=frame.shape), 0, 255).astype(np.uint8))
    return frames


def write_h264(path: Path, size: tuple[int, int], count: int, groups: Sequence[int]) -> list[str]:
    """One file for each length of a group of pictures; x264's preset fast."""
    frames = drawn_frames(size, count)
    files = []
    for group in groups:
        file = path / f"{size[1]}x{size[0]}_group{group}.mp4"
        with av.open(str(file), "w") as container:
            stream = container.add_stream("libx264", rate=30)
            stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
            stream.options = {"g": str(group), "crf": "26", "preset": "fast"}
            for pixels in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode())
        files.append(str(file))
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="*", metavar="CLIP")
    parser.add_argument("--clips", type=int, default=12, help="clips of each video")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--groups", type=int, nargs="*", default=[12, 50, 250], help="frames from key frame to key frame"
    )
    parser.add_argument("--frames", type=int, nargs=2, default=[300, 150], help="of the small and the large drawn clip")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    columns = ["released", "ours", "ratio", "open", "decode", "convert", "resize", "decoded", "floats"]
    print(f"{'ms for a clip':28s}" + "".join(f"{column:>9s}" for column in columns))
    with tempfile.TemporaryDirectory() as folder:
        drawn = []
        for size, count in zip([(256, 340), (720, 1280)], arguments.frames, strict=True):
            if arguments.groups and count:
                drawn += write_h264(Path(folder), size, count, arguments.groups)
        for number, path in enumerate([*arguments.videos, *drawn]):
            result = TimedVideo(path, arguments.clips, seed=number).measure(arguments.repeats)
            print(f"{Path(path).name[:27]:28s}" + "".join(f"{result[column]:9.2f}" for column in columns), flush=True)


if __name__ == "__main__":
    main()
