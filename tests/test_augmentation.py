"""Crops, flips and RandAugment of clips, against torchvision's and timm's own of single frames."""

import pickle
import random
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from torchvision.transforms import v2
from videos import noise_frames, write_video

from data_specs.clip_frames import ClipFrames
from training.finetuning.augmentation import RandAugment, random_resized_crop, spread_views, training_view
from training.finetuning.recipe import FinetuneRecipe

CONFIG = "rand-m9-mstd0.5-inc1"


class Torch:
    """A generator that draws from torch's global one, as torchvision does."""

    def uniform(self, low, high):
        return torch.empty(1).uniform_(low, high).item()

    def integers(self, end):
        return torch.randint(0, end, (1,)).item()


@pytest.mark.parametrize("frame_size", [(240, 426), (320, 180), (1, 1), (40, 400), (300, 20)])
@pytest.mark.parametrize(("area", "aspect"), [((0.08, 1.0), (3 / 4, 4 / 3)), ((0.9, 1.0), (0.9, 1.5))])
def test_crops_are_torchvision_s(frame_size, area, aspect):
    """With the same random numbers; long frames take the crop in the middle now and then."""
    theirs = v2.RandomResizedCrop((9, 9), scale=area, ratio=aspect)
    blank = torch.empty((3, *frame_size), device="meta")
    for seed in range(60):
        torch.manual_seed(seed)
        expected = theirs.make_params([blank])
        torch.manual_seed(seed)
        found = random_resized_crop(frame_size, area, aspect, Torch())
        assert dict(zip(("top", "left", "height", "width"), found, strict=True)) == expected


def recipe(**fields):
    return FinetuneRecipe(name="test", input_size=112, **{"flip": True, **fields})


def test_views_flip_half_of_the_clips_and_stay_inside():
    rng = np.random.default_rng(0)
    views = [training_view((96, 140), recipe(), rng) for _ in range(400)]
    assert 160 < sum(view.flip for view in views) < 240, "200 on average, deviation 10"
    assert all(view.top + view.height <= 96 and view.left + view.width <= 140 for view in views)
    assert {view.size for view in views} == {(112, 112)}
    unflipped = [training_view((96, 140), recipe(flip=False), rng) for _ in range(50)]
    assert not any(view.flip for view in unflipped)
    rng, other = np.random.default_rng(7), np.random.default_rng(7)
    with_flips, without = (training_view((96, 140), recipe(flip=f), r) for f, r in ((True, rng), (False, other)))
    assert (with_flips.top, with_flips.width) == (without.top, without.width), "a flip changes nothing else"


def test_scale_jitter_is_a_square_of_the_resized_frame():
    rng = np.random.default_rng(0)
    views = [training_view((240, 320), recipe(jitter=(128, 160)), rng) for _ in range(300)]
    sides = [view.height for view in views]
    assert all(view.height == view.width for view in views)
    # 112 pixels of a short side of 128 ... 160, in pixels of one of 240
    assert min(sides) in (168, 169)
    assert max(sides) in (209, 210)
    assert {view.left + view.width for view in views} <= set(range(168, 321))
    assert max(view.top + view.height for view in views) == 240


def test_three_views_of_a_test():
    assert [(v.top, v.left, v.height, v.width) for v in spread_views((240, 426), 224, 3)] == [
        (0, 0, 240, 240),
        (0, 93, 240, 240),
        (0, 186, 240, 240),
    ]
    assert [(v.top, v.left) for v in spread_views((320, 181), 224, 3)] == [(0, 0), (70, 0), (139, 0)]
    assert [(v.top, v.left) for v in spread_views((320, 180), 224, 1)] == [(70, 0)]
    assert [(v.top, v.left) for v in spread_views((100, 100), 224, 3)] == [(0, 0)] * 3
    assert {v.size for v in spread_views((320, 180), 96, 2)} == {(96, 96)}


@pytest.mark.parametrize("flip", [False, True])
def test_the_crop_of_a_frame_is_torchvision_s(tmp_path, flip):
    """But at the crop's edges, where the frame goes on: torchvision cuts first and knows nothing of that."""
    frames = noise_frames(1, 180, 260)
    path = write_video(tmp_path / "v.mkv", frames)
    rng = np.random.default_rng(3)
    with ClipFrames(path) as opened:
        for _ in range(6):
            view = training_view(opened.frame_size, recipe(flip=flip, crop_area=(0.2, 1.0)), rng)
            shown = opened.read([0], view)[0].astype(int)
            expected = v2.functional.resized_crop(
                Image.fromarray(frames[0]), view.top, view.left, view.height, view.width, [112, 112]
            )
            expected = np.asarray(v2.functional.hflip(expected) if view.flip else expected).astype(int)
            edge = int(np.ceil(max(view.scale))) + 1
            difference = np.abs(shown - expected)[edge:-edge, edge:-edge]
            assert difference.max() <= 1, "each of the two rounds twice, to 8 bits"


def test_the_same_for_every_frame_of_a_clip():
    """A clip of one frame, repeated, stays one; another frame in it is augmented alike."""
    clip = np.stack([noise_frames(1, 64, 80, seed=1)[0]] * 5 + [noise_frames(1, 64, 80, seed=2)[0]])
    augment, changed = RandAugment(CONFIG, 64), 0
    for seed in range(40):
        augmented = clip.copy()
        augment(augmented, np.random.default_rng(seed))
        assert (augmented[:5] == augmented[0]).all()
        alone = clip[5:].copy()
        augment(alone, np.random.default_rng(seed))
        np.testing.assert_array_equal(alone[0], augmented[5])
        changed += not np.array_equal(augmented, clip)
    assert 22 < changed < 38, "two operations, each in half of the clips: three of four clips, some not to be seen"


def test_operations_are_timm_s():
    frame = noise_frames(1, 64, 80)[0]
    options = {"interpolation": Image.Resampling.BICUBIC, "translate_const": int(0.45 * 64)}
    theirs, ours = rand_augment_transform(CONFIG, options), RandAugment(CONFIG, 64)
    for seed in range(60):
        rng = np.random.default_rng(seed)
        chosen = rng.integers(len(theirs.ops), size=2)
        random.seed(int(rng.integers(1 << 63)))
        expected = Image.fromarray(frame)
        for number in chosen:
            expected = theirs.ops[number](expected)
        found = frame[None].copy()
        ours(found, np.random.default_rng(seed))
        np.testing.assert_array_equal(found[0], np.asarray(expected))


def test_numbers_of_the_process_are_neither_used_nor_changed():
    clip = np.stack(noise_frames(2, 64, 80))
    augment = RandAugment(CONFIG, 64)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002 (timm's)
    before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    one, other = clip.copy(), clip.copy()
    augment(one, np.random.default_rng(5))
    assert before == (random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002
    random.seed(2)
    np.random.seed(2)  # noqa: NPY002
    pickle.loads(pickle.dumps(augment))(other, np.random.default_rng(5))
    np.testing.assert_array_equal(one, other)


def test_augmenting_in_two_threads():
    clips = [np.stack(noise_frames(6, 64, 80, seed)) for seed in range(2)]
    augments = [RandAugment(CONFIG, 64) for _ in clips]
    expected = []
    for clip, augment in zip(clips, augments, strict=True):
        expected.append([clip.copy() for _ in range(6)])
        for seed, one in enumerate(expected[-1]):
            augment(one, np.random.default_rng(seed))
    found = [[clip.copy() for _ in range(6)] for clip in clips]

    def run(k):
        for seed, one in enumerate(found[k]):
            augments[k](one, np.random.default_rng(seed))

    threads = [threading.Thread(target=run, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(found, expected)
