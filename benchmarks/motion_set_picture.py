"""The picture of docs/motion-set.md: one clip with each of its twelve motions, a row for each, time to the right.

python benchmarks/motion_set_picture.py --out docs/motion-set.png [--index 295]
"""

import argparse
from pathlib import Path

from PIL import Image, ImageDraw

from data_specs.motion_set import MOTIONS, motion_clip

SIZE, FRAMES = (48, 64), 23
SHOWN = (2, 5, 8, 11, 14, 17, 20)
"""Frames of a row: the middle one, 11, is the same picture for all motions."""
MARGIN, GAP, HEAD = 150, 4, 18
COLOURS = 48


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the picture, a PNG file")
    parser.add_argument(
        "--index", type=int, default=295, help="which clip of the training split; this one stays near the middle"
    )
    options = parser.parse_args()
    draw_motions(options.index).save(options.out, optimize=True)


def draw_motions(index: int) -> Image.Image:
    """The clip `index` of the training split with every label, in a palette, which halves the file."""
    height, width = SIZE
    picture = Image.new(
        "RGB", (MARGIN + len(SHOWN) * (width + GAP), HEAD + len(MOTIONS) * (height + GAP)), (255, 255, 255)
    )
    pen = ImageDraw.Draw(picture)
    for column, frame in enumerate(SHOWN):
        pen.text((MARGIN + column * (width + GAP), 2), f"{frame}", fill=(0, 0, 0))
    for label, name in enumerate(MOTIONS):
        clip = motion_clip("train", index, label=label, size=SIZE, num_frames=FRAMES)
        top = HEAD + label * (height + GAP)
        pen.text((2, top + height // 2 - 6), name, fill=(0, 0, 0))
        for column, frame in enumerate(SHOWN):
            picture.paste(Image.fromarray(clip.render(frame)), (MARGIN + column * (width + GAP), top))
    return picture.quantize(COLOURS, dither=Image.Dither.NONE)


if __name__ == "__main__":
    main()
