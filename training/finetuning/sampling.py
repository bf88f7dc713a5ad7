"""Which frames of a labelled video a clip shows, in training and in the test.

A clip that reaches past the end of its video repeats the last frame, as in pretraining. VideoMAE's released loader does
so in training; in its test it repeats the last frame of those a stride apart. Other differences from it are said where
they are.
"""

from collections.abc import Sequence

import numpy as np

from training.finetuning.recipe import FinetuneRecipe
from training.reading.clip_stream import choose_start


def training_times(num_frames: int, recipe: FinetuneRecipe, rng: np.random.Generator) -> list[int]:
    """T frames of a video of `num_frames`, as indices 0 ... num_frames - 1, in the recipe's `frame_order`.

    recipe: resolved, so that it has a stride where clips are dense.

    Dense: from a start drawn uniformly from those at which the clip fits, else from 0. VideoMAE spreads the T frames
    over T strides, so that some of its steps are a frame longer. Segment: of each of T equal parts of the video a frame
    drawn uniformly (Wang et al., ECCV 2016, section 3.1). VideoMAE's parts are whole frames, so that it never shows the
    last num_frames mod T; and of a video of fewer than T frames it shows the first one T times, where here each frame
    is shown about equally often, in order, as in its test.
    """
    if recipe.sampling == "dense":
        start = choose_start(num_frames, _span(recipe), 1, rng)
        times = _dense(num_frames, start, recipe)
    else:
        within = np.arange(recipe.frames) + rng.random(recipe.frames)
        times = np.minimum(np.floor(within * num_frames / recipe.frames).astype(int), num_frames - 1).tolist()
    return in_order(times, recipe, rng)


def spread_times(num_frames: int, recipe: FinetuneRecipe, clips: int) -> list[list[int]]:
    """The T frames of each of `clips` clips spread evenly over a video of `num_frames`, in the order of the video.

    recipe: resolved.

    Dense: the first clip at the video's start, the last at its end, the others evenly between, all at multiples of the
    stride (VideoMAE's test; 5 clips on Kinetics-400). One clip is in the middle. Segment: clip i shows the frame
    i/clips of the way through each of the T parts (VideoMAE's two clips show the parts' beginnings and middles). One
    clip shows the middles.
    """
    frames, stride = recipe.frames, recipe.clip_stride or 1
    if recipe.sampling == "dense":
        left = max(-(-num_frames // stride) - frames, 0)  # strides that the clip can be put later
        starts = [left * i // (clips - 1) for i in range(clips)] if clips > 1 else [left // 2]
        return [_dense(num_frames, start * stride, recipe) for start in starts]
    # in whole numbers, for a product of floats may fall below one
    offsets = [(i, clips) for i in range(clips)] if clips > 1 else [(1, 2)]
    return [[(k * of + i) * num_frames // (frames * of) for k in range(frames)] for i, of in offsets]


def in_order(times: Sequence[int], recipe: FinetuneRecipe, rng: np.random.Generator) -> list[int]:
    """A clip's frames in the recipe's `frame_order`: as given, in random order, or one drawn at random T times."""
    if recipe.frame_order == "shuffled":
        return [times[k] for k in rng.permutation(len(times))]
    if recipe.frame_order == "single":
        return [times[int(rng.integers(len(times)))]] * len(times)
    return list(times)


def _span(recipe: FinetuneRecipe) -> int:
    """Frames of the video from a dense clip's first to its last, both counted."""
    return (recipe.frames - 1) * (recipe.clip_stride or 1) + 1


def _dense(num_frames: int, start: int, recipe: FinetuneRecipe) -> list[int]:
    return [min(start + k * (recipe.clip_stride or 1), num_frames - 1) for k in range(recipe.frames)]
