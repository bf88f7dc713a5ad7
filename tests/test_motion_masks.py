"""Motion-guided masks: how the visible patches are drawn, on given motion and on rendered motion from a store."""

import dataclasses
import itertools
import shutil

import numpy as np
import pytest
import torch
from scipy import stats
from stores import only_file
from tracked_stores import TRACKMAE, Film, make_tracked_store

from data_specs.geometry import apply_homography
from data_specs.scene import Disc, Scene, moving, still
from data_specs.track_store import StoreError
from data_specs.view import View
from training.reading.clip_stream import choose_start, rng_for
from training.reading.clips import ClipDataset, clip_loader
from training.reading.masks import sample_tokens, token_counts
from training.reading.motion_masks import STILL_PX, patch_motion, sample_visible
from training.reading.multi_scale_crop import multi_scale_crop
from training.reading.store_fit import StoreFitError
from training.recipe import HeadOptions, PretrainRecipe, RecipeError
from training.targets import compute_targets

MASKS = ["motion-bins", "motion-proportional", "motion-inverse"]
HALF = (0.5, 0.5)


def rng(seed=0):
    return np.random.default_rng(seed)


def ramp(height, width, seed=4):
    """A motion of its own for each patch, in no order: (h, w), 0.5 px apart."""
    return 0.5 * (1 + rng(seed).permutation(height * width)).reshape(height, width)


def high_half(motion):
    """The ceil(N / 2) patches that move most, of motions that are all different."""
    return motion >= np.sort(motion, axis=None)[motion.size // 2]


def draws(motion, count, mask, share=HALF, times=2000, seed=0):
    """How often each patch is visible."""
    generator = rng(seed)
    return sum(sample_visible(motion, count, mask, share, generator).astype(int) for _ in range(times))


def is_even(often, times, count):
    """Whether patches are visible equally often, by chi-squared; often: of those among which `count` are drawn."""
    share = count / often.size
    spread = np.sum((often - times * share) ** 2) / (times * share * (1 - share)) * (often.size - 1) / often.size
    low, high = stats.chi2(often.size - 1).ppf([1e-4, 1 - 1e-4])
    return bool(low < spread < high)


@pytest.mark.parametrize("shape", [(7, 9), (6, 10), (3, 1)])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.77, 1.0])
def test_visible_patches_are_split_as_rho_says(shape, share):
    """int(ρ K) of the half that moves more, to the patch, and the rest of the other one."""
    motion = ramp(*shape)
    high, size = high_half(motion), motion.size
    assert high.sum() == -(-size // 2)
    for count in range(1, size // 2 + 1):
        visible = sample_visible(motion, count, "motion-bins", (share, share), rng(count))
        assert visible.dtype == np.bool_ and visible.shape == shape
        assert visible.sum() == count
        assert (visible & high).sum() == int(share * count)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_within_a_bin_all_patches_are_equally_likely(share):
    motion = ramp(6, 10)
    often = draws(motion, 14, "motion-bins", (share, share))
    for half, count in (high_half(motion), int(14 * share)), (~high_half(motion), 14 - int(14 * share)):
        assert often[half].sum() == 2000 * count
        assert is_even(often[half], 2000, count) if count else not often[half].any()


def test_rho_is_drawn_from_its_range_for_each_clip():
    motion, generator = ramp(9, 11), rng()
    of_high = [
        (sample_visible(motion, 40, "motion-bins", (0.2, 0.7), generator) & high_half(motion)).sum()
        for _ in range(1500)
    ]
    counts = np.bincount(of_high, minlength=41)
    assert counts[:8].sum() == counts[28:].sum() == 0
    assert stats.chisquare(counts[8:28]).pvalue > 1e-3


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_bin_that_is_too_small_is_shown_whole_and_no_patch_twice(share):
    """The released code draws some patches of such a bin twice, and shows fewer."""
    motion = ramp(5, 7)
    high = high_half(motion)
    for count in range(18, 35):
        visible = sample_visible(motion, count, "motion-bins", (share, share), rng(count))
        assert visible.sum() == count
        of_high, of_low = (visible & high).sum(), (visible & ~high).sum()
        wanted = int(share * count)
        assert of_high == wanted or (of_high == 18 and wanted > 18) or (of_low == 17 and count - wanted > 17)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(
    "motion",
    [
        np.zeros((6, 11)),
        np.full((6, 11), 6.25),
        np.full((6, 11), np.nan),
        # what resampling makes of an exact pan, and a tracker of a still scene
        6.25 * (1 + 1e-7 * np.linspace(-1, 1, 66).reshape(6, 11)),
        np.linspace(0.02, 0.09, 66).reshape(6, 11),
    ],
    ids=["still", "pan", "unknown", "pan with noise", "still with noise"],
)
def test_what_moves_alike_is_masked_evenly(motion, mask):
    """A still scene, a pan, or nothing known at all: uniform at random, at every place of the frame."""
    with np.errstate(all="raise"):
        often = draws(motion, 20, mask, (1.0, 1.0) if mask == "motion-bins" else HALF)
    assert is_even(often, 2000, 20)


def test_the_released_order_of_ties_would_be_found():
    """Sorted by motion alone, the first patches in row-major order are the half of a still scene that moves more."""
    generator, often = rng(), np.zeros(66, int)
    for _ in range(2000):
        high = np.argsort(-np.zeros(66), kind="stable")[:33]
        often[generator.permutation(high)[:20]] += 1
    assert not is_even(often, 2000, 20)


def test_some_ties():
    """A quarter moves: it is all in the half that moves more, whose other half is any of the still patches."""
    motion = np.zeros((8, 10))
    motion[2:6, 3:8] = 5.0
    often = draws(motion, 20, "motion-bins", (0.5, 0.5), times=4000)
    # 10 of 20 are drawn from 40 patches, of which 20 move; the other 10 from 40, which are still
    assert often[motion > 0].mean() / 4000 == pytest.approx(10 / 40, abs=0.01)
    assert often[motion == 0].mean() / 4000 == pytest.approx((20 - 5) / 60, abs=0.01)
    assert is_even(often[motion == 0], 4000, 15)


@pytest.mark.parametrize(("share", "expected"), [(1.0, 0.5), (0.0, 0.5)])
def test_unknown_patches_count_neither_as_moving_nor_as_still(share, expected):
    """A third is unknown: of those, half is in either bin, and any of them."""
    motion = ramp(6, 10)
    unknown = rng(8).permutation(60).reshape(6, 10) < 20
    low, high = (~unknown & (motion < np.median(motion[~unknown]))), (~unknown & (motion > np.median(motion[~unknown])))
    motion[unknown] = np.nan
    often = draws(motion, 15, "motion-bins", (share, share), times=4000)
    assert often[unknown].sum() / (4000 * 15) == pytest.approx(20 * expected / 30, abs=0.02)
    assert is_even(often[unknown], 4000, often[unknown].sum() / 4000)
    assert not often[high if share == 0 else low].any()


@pytest.mark.parametrize("mask", MASKS[1:])
def test_unknown_patches_are_drawn_like_the_median(mask):
    motion = np.array([[0.5, 2.0, 8.0, np.nan], [2.0, np.nan, 0.5, 8.0]])
    often = draws(motion, 2, mask, times=5000)
    known = often[motion == 2.0].mean()
    assert often[np.isnan(motion)].mean() == pytest.approx(known, rel=0.07)


def successive(weights, count):
    """The chance of each to be among `count` drawn one after the other without replacement, by all orders there are."""
    chances = np.zeros(len(weights))
    for order in itertools.permutations(range(len(weights)), count):
        left, chance = weights.sum(), 1.0
        for n in order:
            chance *= weights[n] / left
            left -= weights[n]
        chances[list(order)] += chance
    return chances


@pytest.mark.parametrize("count", [1, 3])
def test_drawn_with_a_chance_proportional_to_motion_or_its_inverse(count):
    motion = np.array([[0.0, 0.04, 1.0], [2.5, 0.3, 7.0]])
    floored = np.array([STILL_PX, STILL_PX, 1.0, 2.5, 0.3, 7.0])
    for mask, weights in ("motion-proportional", floored), ("motion-inverse", 1 / floored):
        expected = successive(weights, count)
        found = draws(motion, count, mask, times=6000).ravel() / 6000
        np.testing.assert_allclose(found, expected, atol=4.5 * np.sqrt(0.25 / 6000))
        assert expected.max() > 1.5 * expected.min()


def test_the_motion_of_a_patch_is_the_mean_length_of_its_valid_steps():
    """Over its points, its steps and all tubelets; NaN where there is none."""
    generator = rng(3)
    moved = generator.normal(size=(3, 4, 10, 5, 2)).astype(np.float32)
    valid = generator.random((3, 4, 10, 5)) < 0.6
    valid[:, 2:4, 4:6] = False
    motion = patch_motion(np.where(valid[..., None], moved, 1e6).astype(np.float32), valid, 2)
    assert motion.shape == (2, 5) and motion.dtype == np.float64
    for i, j in itertools.product(range(2), range(5)):
        place = slice(None), slice(2 * i, 2 * i + 2), slice(2 * j, 2 * j + 2)
        lengths = np.hypot(*np.moveaxis(moved[place], -1, 0).astype(float))[valid[place]]
        assert np.isnan(motion[i, j]) if (i, j) == (1, 2) else motion[i, j] == pytest.approx(lengths.mean())


def tokens_recipe(**options):
    return PretrainRecipe(name="test", heads={"pixels": HeadOptions()}, frames=6, input_size=96, **options)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("ratio", "drop"), [(0.9, 0.0), (0.33, 0.0), (0.6, 0.5)])
def test_tokens_are_tubes_of_as_many_as_the_options_say(mask, ratio, drop):
    options = tokens_recipe(mask=mask, mask_ratio=ratio, drop_tokens=drop)
    masked = 3 * int(ratio * 36)
    counts = (108 - masked) - int(drop * (108 - masked)), masked - int(drop * masked)
    assert token_counts((3, 6, 6), mask, ratio, drop) == counts
    for seed, motion in enumerate([ramp(6, 6), np.zeros((6, 6)), np.full((6, 6), np.nan)]):
        visible, predict = sample_tokens(options, rng(seed), motion)
        assert (len(visible), len(predict)) == counts
        assert visible.dtype == predict.dtype == np.int64
        assert (np.diff(visible) > 0).all() and (np.diff(predict) > 0).all()
        assert not set(visible) & set(predict)
        if drop == 0:
            assert len(set(visible) | set(predict)) == 108
            assert (visible.reshape(3, -1) % 36 == visible[: len(visible) // 3]).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mask": "motion"}, "mask"),
        ({"mask": "motion-bins", "high_motion_share": [0.6, 0.4]}, r"high_motion_share is \[0.6, 0.4\], must be"),
        ({"mask": "motion-bins", "high_motion_share": [-0.1, 0.4]}, r"high_motion_share is \[-0.1, 0.4\]"),
        ({"mask": "motion-bins", "high_motion_share": [0.5, 1.1]}, r"high_motion_share is \[0.5, 1.1\]"),
        ({"mask": "motion-bins", "high_motion_share": [0.5]}, "high_motion_share"),
        ({"mask": "motion-bins", "high_motion_share": [float("nan"), 0.5]}, "high_motion_share"),
        ({"mask": "motion-inverse", "high_motion_share": [1, 1]}, "only mask motion-bins has .*mask is motion-inverse"),
        ({"high_motion_share": [0.0, 0.5]}, "only mask motion-bins has .*; mask is tube"),
        ({"mask": "motion-bins", "merge": "mean"}, "^recipe mine.yaml: recipe test: merge: only"),
        ({"remove_camera": False, "anchoring": "clip"}, "anchoring, remove_camera: only displacement"),
    ],
)
def test_options_without_effect_or_sense_are_refused(fields, message):
    with pytest.raises(RecipeError, match=message):
        PretrainRecipe.from_json({**tokens_recipe().to_json(), **fields}, "recipe mine.yaml")


def test_options_of_trajectories_are_those_of_the_mask_too():
    fields = {"mask": "motion-bins", "high_motion_share": [0.25, 1], "remove_camera": False, "anchoring": "clip"}
    recipe = PretrainRecipe.from_json({**tokens_recipe().to_json(), **fields}, "recipe mine.yaml")
    assert recipe.high_motion_share == (0.25, 1.0)
    assert PretrainRecipe.from_json(recipe.to_json(), "a checkpoint") == recipe


def plain(points):
    """A surface of one grey, where only motion counts."""
    return np.full((*points.shape[:-1], 3), 128.0)


SIZE = (136, 184)
GRID = 8  # stride of the stores' grids
ABOUT = (91.3, 63.7)
SCENES = {
    # everything moves, by what grows with its distance from a point, and nothing leaves the frame
    "zoom.avi": (Scene(size=SIZE, background=plain, camera=moving(about=ABOUT, zoom=0.99)), 61),
    "disc.avi": (
        Scene(
            size=SIZE,
            background=plain,
            camera=still,
            discs=(Disc(texture=plain, centre=(70, 66), radius=44, motion=moving((0.5, 0.1))),),
        ),
        70,
    ),
    # the disc stands still in the image, before a background that moves
    "followed.avi": (
        Scene(
            size=SIZE,
            background=plain,
            camera=moving((-0.5, 0)),
            discs=(Disc(texture=plain, centre=(92, 68), radius=44, motion=moving((0.5, 0))),),
        ),
        61,
    ),
    "short.avi": (Scene(size=SIZE, background=plain, camera=moving((0.2, 0))), 57),
}
CLIP = PretrainRecipe(
    name="test",
    heads={"pixels": HeadOptions()},
    frames=16,
    clip_stride=4,
    input_size=128,
    flip=True,
    anchoring="clip",
    remove_camera=False,
    mask="motion-bins",
    mask_ratio=0.8,
)
TUBELET = dataclasses.replace(CLIP, anchoring="tubelet")
VISIBLE = 64 - 51


FILMS = {name: Film(shot) for name, shot in SCENES.items()}


@pytest.fixture(scope="module")
def clip_store(tmp_path_factory):
    """Seven steps of eight frames, as TrackMAE has them."""
    recipe = dataclasses.replace(TRACKMAE, grid_stride=GRID)
    return make_tracked_store(tmp_path_factory.mktemp("clip"), FILMS, recipe)


@pytest.fixture(scope="module")
def tubelet_store(tmp_path_factory):
    """Six steps of one frame, as MME has them, and the cameras."""
    recipe = dataclasses.replace(TRACKMAE, grid_stride=GRID, length=6, frame_step=1, start_stride=8, remove_camera=True)
    return make_tracked_store(tmp_path_factory.mktemp("tubelet"), FILMS, recipe)


@pytest.fixture(scope="module")
def root(clip_store):
    return clip_store.parent / "videos"


def clips_of(dataset, name, count):
    """So many clips of one video: (clip, visible patches as bool (8, 8))."""
    found = []
    for position in itertools.count():
        if dataset.reader.videos[dataset.stream[position].video].path == name:
            batch = dataset[position]
            visible = np.zeros(8 * 64, bool)
            visible[batch["visible"][0].numpy()] = True
            tubes = visible.reshape(8, 8, 8)
            assert (tubes == tubes[0]).all() and tubes[0].sum() == VISIBLE
            found.append((batch["clip"][0], tubes[0]))
            if len(found) == count:
                return found


def in_frame(view):
    """Where the points (16, 16, 2) of the view's patches are in the frame."""
    x = 8 * np.arange(16) + 3.5
    y, x = np.meshgrid(x, 127 - x if view.flip else x, indexing="ij")
    return np.stack(
        [(x + 0.5) * view.width / 128 - 0.5 + view.left, (y + 0.5) * view.height / 128 - 0.5 + view.top], axis=-1
    )


def true_motion(scene, clip, starts, length, frame_step):
    """The mean length (8, 8) of the true steps of the four points of each patch, in pixels of the view."""
    view, where = clip.view, in_frame(clip.view)
    # beyond the outermost points of the grid there is their motion
    where = np.clip(where, (GRID - 1) / 2, [n - (GRID + 1) / 2 for n in SIZE[::-1]])
    lengths = []
    for start in starts:
        positions, visible = scene.track(where.reshape(-1, 2), start, length, frame_step)
        assert visible.all()
        moved = np.diff(positions, axis=1) * [128 / view.width, 128 / view.height]
        lengths.append(np.linalg.norm(moved, axis=-1).mean(1))
    return np.mean(lengths, axis=0).reshape(8, 2, 8, 2).mean((1, 3))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("anchoring", ["clip", "tubelet"])
def test_visible_tokens_are_split_as_rho_says_on_rendered_motion(root, clip_store, tubelet_store, anchoring, share):
    by_clip = anchoring == "clip"
    recipe = dataclasses.replace(CLIP if by_clip else TUBELET, high_motion_share=(share, share))
    dataset = ClipDataset(clip_store if by_clip else tubelet_store, root, recipe, seed=3)
    scene, flips = SCENES["zoom.avi"][0], set()
    for clip, visible in clips_of(dataset, "zoom.avi", 6):
        steps = ([clip.start], 7, 8) if by_clip else (range(clip.start, clip.start + 56, 8), 6, 1)
        motion = true_motion(scene, clip, *steps)
        # patches whose motion the store's rounding may take for that of the other half
        limit, unsure = np.median(motion), 0.03
        high, near = motion > limit + unsure, np.abs(motion - limit) <= unsure
        assert near.sum() < 16 and motion.max() > 1.5 * limit > 10 * unsure
        least = (visible & high).sum()
        assert least <= int(share * VISIBLE) <= least + (visible & near).sum()
        flips.add(clip.view.flip)
    assert flips == {True, False}


def on_and_off(scene, clip):
    """Which patches (8, 8) are wholly on the scene's disc in the clip's first frame, and which wholly off it."""
    (disc,) = scene.discs
    (centre,) = apply_homography(scene.camera(clip.start) @ disc.motion(clip.start), np.array([disc.centre]))
    distance = np.linalg.norm(in_frame(clip.view) - centre, axis=-1).reshape(8, 2, 8, 2)
    return distance.max((1, 3)) < disc.radius - 12, distance.min((1, 3)) > disc.radius + 12


@pytest.mark.parametrize(
    ("mask", "share", "of_on", "of_off"),
    [
        ("motion-bins", 1.0, 13 / 32, None),
        ("motion-bins", 0.5, 6 / 32, None),
        ("motion-bins", 0.0, 0, None),
        ("motion-proportional", 0.5, None, 0.02),
        ("motion-inverse", 0.5, 0.02, None),
    ],
)
def test_a_moving_disc_is_seen_as_often_as_asked(root, clip_store, mask, share, of_on, of_off):
    """It covers less than half: ρ = 1 shows it twice as often as chance, ρ = 0 never; so do the other distributions."""
    options = {"high_motion_share": (share, share)} if mask == "motion-bins" else {}
    recipe = dataclasses.replace(CLIP, mask=mask, crop_scales=(1.0,), **options)
    dataset = ClipDataset(clip_store, root, recipe, seed=1)
    seen, there = np.zeros(2), np.zeros(2)
    for clip, visible in clips_of(dataset, "disc.avi", 40):
        places = on_and_off(SCENES["disc.avi"][0], clip)
        assert places[0].sum() > 5 and places[1].sum() > 5
        seen += [(visible & place).sum() for place in places]
        there += [place.sum() for place in places]
    for found, expected in zip(seen / there, (of_on, of_off), strict=True):
        if expected == 0:
            assert found == 0
        elif expected is not None:
            assert found == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("remove_camera", [True, False])
def test_motion_is_the_cameras_too_unless_it_is_removed(root, tubelet_store, remove_camera):
    """The camera follows the disc: in the image the background moves, in the world the disc."""
    recipe = dataclasses.replace(TUBELET, remove_camera=remove_camera, high_motion_share=(0.0, 0.0), crop_scales=(1.0,))
    dataset = ClipDataset(tubelet_store, root, recipe, seed=1)
    seen = np.zeros(2, int)
    for clip, visible in clips_of(dataset, "followed.avi", 5):
        seen += [(visible & place).sum() for place in on_and_off(SCENES["followed.avi"][0], clip)]
    assert (seen > 0).tolist() == ([False, True] if remove_camera else [True, False])


def same(a, b, but=()):
    """Two batches, of the same arrays with the same values but for those called `but`."""
    assert a.keys() == b.keys()
    assert a["clip"] == b["clip"]
    for name, values in a.items():
        if isinstance(values, torch.Tensor) and name not in but:
            torch.testing.assert_close(values, b[name], rtol=0, atol=0)
    return True


def test_the_mask_is_all_that_changes(root, tubelet_store):
    """The same clips and targets as with any other mask, and of displacements that only the mask needs, nothing."""
    tokens = ("visible", "predict")
    masks = []
    for heads in (("pixels",), ("displacement", "pixels")):
        recipe = dataclasses.replace(TUBELET, heads={name: HeadOptions() for name in heads}, remove_camera=True)
        tube = dataclasses.replace(recipe, mask="tube", remove_camera=True, anchoring="tubelet")
        moving, plain_tubes = (ClipDataset(tubelet_store, root, r, seed=2).read_batch(range(6)) for r in (recipe, tube))
        assert same(moving, plain_tubes, but=tokens)
        assert ("displacement" in moving) == ("displacement" in heads)
        assert {name: moving[name].shape for name in tokens} == {name: plain_tubes[name].shape for name in tokens}
        assert not torch.equal(moving["visible"], plain_tubes["visible"])
        assert compute_targets(moving, recipe).keys() == set(heads)
        masks.append(moving["visible"])
    assert torch.equal(*masks)


def test_one_seed_gives_one_mask_whatever_the_workers_and_batches(root, clip_store):
    recipe = dataclasses.replace(CLIP, high_motion_share=(0.2, 0.8), drop_tokens=0.25)

    def clips(seed=5, position=0, **options):
        dataset = ClipDataset(clip_store, root, recipe, seed=seed)
        batches = itertools.islice(clip_loader(dataset, position=position, **options), 16 // options["batch_size"])
        return torch.cat([torch.cat([b["visible"], b["predict"]], dim=1) for b in batches])

    alone = clips(batch_size=4)
    assert len(alone) == 16
    torch.testing.assert_close(clips(batch_size=2, workers=1), alone, rtol=0, atol=0)
    torch.testing.assert_close(clips(batch_size=1, position=8)[:8], alone[8:], rtol=0, atol=0)
    ranks = [clips(batch_size=2, rank=rank, world_size=2)[:8].reshape(4, 2, -1) for rank in range(2)]
    torch.testing.assert_close(torch.stack(ranks, 1).reshape(16, -1), alone, rtol=0, atol=0)
    assert not torch.equal(clips(seed=6, batch_size=4), alone)


def test_the_masks_of_other_recipes_stay_as_they_were(root, clip_store):
    """Drawn last, of a clip's own generator, before anything is read."""
    for options in ({"mask": "tube"}, {"mask": "random"}, {"mask": "cube", "mask_ratio": 0.5, "drop_tokens": 0.3}):
        recipe = dataclasses.replace(CLIP, anchoring="tubelet", remove_camera=True, **options)
        dataset = ClipDataset(clip_store, root, recipe, seed=9)
        batch = dataset.read_batch(range(5))
        for n, clip in enumerate(batch["clip"]):
            generator, video = (
                rng_for(9, clip.epoch, clip.index, clip.repeat, "clip"),
                dataset.reader.videos[clip.index],
            )
            start = choose_start(video.num_frames, 61, 4, generator)
            view = multi_scale_crop(video.frame_size, (128, 128), recipe.crop_scales, True, generator)
            assert (start, view) == (clip.start, clip.view)
            visible, predict = sample_tokens(recipe, generator)
            np.testing.assert_array_equal(batch["visible"][n], visible)
            np.testing.assert_array_equal(batch["predict"][n], predict)


def test_clips_past_the_end_are_masked_by_what_there_is(root, clip_store, tubelet_store):
    """57 frames: the last tubelet's trajectories do not exist; and past the end there is nothing to go by."""
    for store, recipe in ((clip_store, CLIP), (tubelet_store, TUBELET)):
        dataset = ClipDataset(store, root, recipe)
        clip, _ = clips_of(dataset, "short.avi", 1)[0]
        video = next(v for v in dataset.reader.videos if v.path == "short.avi")
        assert clip.start == 0 and video.num_frames == 57
        whole = View(top=4, left=20, height=128, width=128, size=(128, 128))
        per_step = 0.2 * (8 if recipe is CLIP else 1)
        motion = dataset.motion.fill({}, video, list(range(0, 64, 4)), whole)
        np.testing.assert_allclose(motion, per_step, atol=1 / 64)
        nothing = dataset.motion.fill({}, video, list(range(64, 128, 4)), whole)
        assert nothing.shape == (8, 8) and np.isnan(nothing).all()


def test_a_clip_that_cannot_be_read_changes_no_other_mask(root, clip_store, tmp_path):
    for name in SCENES:
        if name != "disc.avi":
            (tmp_path / name).symlink_to(root / name)
    whole, part = (
        ClipDataset(clip_store, folder, CLIP, seed=4, follow_links=True).read_batch(range(8))
        for folder in (root, tmp_path)
    )
    assert {skipped.id for skipped in part["skipped"]} == {"disc.avi"}
    kept = [n for n, clip in enumerate(whole["clip"]) if clip.id != "disc.avi"]
    assert len(kept) == 6
    assert same(part, {**{k: v[kept] for k, v in whole.items() if isinstance(v, torch.Tensor)},
                       "clip": part["clip"], "skipped": []})  # fmt: skip


@pytest.mark.parametrize(
    ("store", "fields", "message"),
    [
        (
            "clip_store",
            {"remove_camera": True},
            r"cameras were not estimated .*train with remove_camera: false, or ext",
        ),
        ("clip_store", {"clip_stride": 2}, r"anchoring at the clip .* = 4 frames; its frame_step is 8"),
        ("tubelet_store", {}, r"anchoring at the clip .* = 8 frames; its frame_step is 1"),
        ("tubelet_store", {"anchoring": "tubelet", "clip_stride": 2}, r"start_stride is 8, which does not divide"),
        ("tubelet_store", {"anchoring": "tubelet", "trajectory_length": 7}, r"its trajectories have 6 steps"),
        ("tubelet_store", {"anchoring": "tubelet", "interpolate": False}, r"interpolate: false .* at the clip stride"),
    ],
)
def test_a_store_that_cannot_serve_the_mask_is_refused(root, request, store, fields, message):
    """As it is for heads; the same recipe with another mask needs nothing of the store but its list."""
    path, recipe = request.getfixturevalue(store), dataclasses.replace(CLIP, **fields)
    with pytest.raises(StoreFitError, match=f"cannot serve recipe test:.*\\n.*{message}"):
        ClipDataset(path, root, recipe)
    without = {"anchoring": "tubelet", "trajectory_length": None, "interpolate": True, "remove_camera": True}
    ClipDataset(path, root, dataclasses.replace(recipe, mask="tube", **without))


def test_only_what_the_mask_needs_is_read(root, tubelet_store, tmp_path):
    """Displacements and, where they are removed, the cameras; nothing where the mask is another."""
    bare = shutil.copytree(tubelet_store, tmp_path / "bare")
    for shard in (bare / "shards").iterdir():
        only_file(shard / "camera" / "homography").unlink()
    recipes = {flag: dataclasses.replace(TUBELET, remove_camera=flag) for flag in (True, False)}
    assert same(*(ClipDataset(store, root, recipes[False])[0] for store in (bare, tubelet_store)))
    with pytest.raises(StoreError, match=r"camera/homography/c/.*: cannot be opened"):
        ClipDataset(bare, root, recipes[True])[0]
    for shard in (bare / "shards").iterdir():
        only_file(shard / "displacement").unlink()
    with pytest.raises(StoreError, match=r"displacement/c/.*: cannot be opened"):
        ClipDataset(bare, root, recipes[False])[0]
    tube = dataclasses.replace(recipes[True], mask="tube")
    assert same(*(ClipDataset(store, root, tube)[0] for store in (bare, tubelet_store)))
