"""Masks: exact counts, their shapes in space and time, and that chance is even where it should be."""

import numpy as np
import pytest
from scipy import ndimage, stats

from training.reading.masks import sample_mask, sample_tokens, split_tokens, token_counts
from training.recipe import HeadOptions, PretrainRecipe

GRID = (5, 6, 11)
MASKS = ["tube", "random", "cube"]


def recipe(**options):
    return PretrainRecipe(name="test", heads={"pixels": HeadOptions()}, frames=6, input_size=96, **options)


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize(
    ("mask", "ratio", "counts"),
    [
        ("tube", 0.7, (8 * 59, 8 * 137)),  # int(137.2), VideoMAE's count at 14 x 14
        ("tube", 0.9, (8 * 20, 8 * 176)),
        ("cube", 0.4, (8 * 118, 8 * 78)),  # MaskFeat's
        ("random", 0.7, (1568 - 1097, 1097)),
    ],
)
def test_the_papers_counts(mask, ratio, counts):
    masked = sample_mask((8, 14, 14), mask, ratio, rng())
    assert token_counts((8, 14, 14), mask, ratio) == counts
    assert (np.sum(~masked), masked.sum()) == counts


@pytest.mark.parametrize("grid", [GRID, (1, 7, 3), (4, 1, 9), (3, 2, 2)])
@pytest.mark.parametrize("ratio", [0.25, 0.4, 0.65, 0.9])
@pytest.mark.parametrize("mask", MASKS)
def test_counts_do_not_depend_on_chance(mask, ratio, grid):
    per_tubelet = int(ratio * grid[1] * grid[2])
    for seed in range(8):
        masked = sample_mask(grid, mask, ratio, rng(seed))
        assert masked.shape == grid
        if mask == "random":
            assert masked.sum() == int(ratio * np.prod(grid))
        else:
            assert masked.sum(axis=(1, 2)).tolist() == [per_tubelet] * grid[0]


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("drop", [0.0, 0.5, 0.33])
def test_tokens_are_split_without_overlap(mask, drop):
    options = recipe(mask=mask, mask_ratio=0.6, drop_tokens=drop)
    visible, predict = sample_tokens(options, rng(3))
    masked = 3 * int(0.6 * 36) if mask != "random" else int(0.6 * 108)
    assert len(visible) == (108 - masked) - int(drop * (108 - masked))
    assert len(predict) == masked - int(drop * masked)
    assert (len(visible), len(predict)) == token_counts((3, 6, 6), mask, 0.6, drop)
    for tokens in (visible, predict):
        assert tokens.dtype == np.int64
        assert np.all(np.diff(tokens) > 0)
        assert tokens[0] >= 0 and tokens[-1] < 108
    assert not set(visible) & set(predict)
    if drop == 0:
        assert set(visible) | set(predict) == set(range(108))


def test_tokens_are_counted_row_major():
    masked = np.zeros(GRID, dtype=bool)
    masked[1, 2, 3] = masked[4, 5, 10] = True
    visible, predict = split_tokens(masked, 0.0, rng())
    assert predict.tolist() == [1 * 66 + 2 * 11 + 3, 329]
    assert len(visible) == 328


def test_a_tube_is_the_same_in_every_tubelet():
    masks = [sample_mask(GRID, "tube", 0.5, rng(seed)) for seed in range(5)]
    for mask in masks:
        assert (mask == mask[0]).all()
    assert any((a != masks[0]).any() for a in masks[1:])
    random = sample_mask(GRID, "random", 0.5, rng())
    assert (random != random[0]).any()


@pytest.mark.parametrize("mask", ["tube", "random"])
def test_every_token_is_masked_equally_often(mask):
    draws = 3000
    generator = rng(11)
    times = sum(sample_mask(GRID, mask, 0.4, generator).astype(int) for _ in range(draws))
    cells = times[0] if mask == "tube" else times
    share = int(0.4 * cells.size) / cells.size
    # the numbers of all tokens add up to draws * masked, which leaves one degree of freedom less
    spread = np.sum((cells - draws * share) ** 2) / (draws * share * (1 - share)) * (cells.size - 1) / cells.size
    low, high = stats.chi2(cells.size - 1).ppf([1e-4, 1 - 1e-4])
    assert low < spread < high


@pytest.mark.parametrize("drop", [0.5, 0.2])
def test_dropped_tokens_are_spread_evenly(drop):
    masked = sample_mask(GRID, "tube", 0.5, rng())
    times = np.zeros(masked.size)
    generator, draws = rng(5), 2000
    for _ in range(draws):
        for tokens in split_tokens(masked, drop, generator):
            times[tokens] += 1
    for group in (times[masked.ravel()], times[~masked.ravel()]):
        share = 1 - int(drop * len(group)) / len(group)
        assert group.sum() == pytest.approx(draws * share * len(group))
        assert np.abs(group - draws * share).max() < 4.5 * np.sqrt(draws * share * (1 - share))


def test_cubes_are_few_large_pieces_in_space_and_time():
    """Pieces by scipy's labels, six neighbours: of cube masks a few of hundreds of tokens, of random ones crumbs."""
    grid = (8, 14, 18)
    pieces, largest = {}, {}
    for mask in ("cube", "random"):
        labelled = [ndimage.label(sample_mask(grid, mask, 0.3, rng(seed))) for seed in range(20)]
        pieces[mask] = np.mean([count for _, count in labelled])
        largest[mask] = np.mean([np.bincount(labels.ravel())[1:].max() for labels, _ in labelled])
    assert pieces["cube"] < 8
    assert pieces["random"] > 10 * pieces["cube"]
    assert largest["cube"] > 2 * largest["random"]


def test_cubes_are_blocks_in_each_tubelet_and_last_for_a_while():
    grid, generator = (8, 14, 18), rng(2)
    runs, pieces, filled = [], [], []
    for _ in range(50):
        mask = sample_mask(grid, "cube", 0.1, generator)
        runs.append(1 + np.any(mask[1:] != mask[:-1], axis=(1, 2)).sum())
        for tubelet in mask:
            labels, count = ndimage.label(tubelet)
            pieces.append(count)
            box = ndimage.find_objects(labels)[0]
            filled.append((labels[box] == 1).mean())
    assert set(runs) - {1, 8}  # neither tubes nor a new mask in every tubelet
    assert 2 < np.mean(runs) < 6
    assert np.mean(pieces) < 2.5
    assert np.mean(filled) > 0.8  # rectangles


def test_cubes_match_the_statistics_of_the_published_masks():
    """Measured with the released MaskFeat-style generator, 14 x 14, 40 %: a corner is masked in 5 % of the tubelets,
    the middle of a side in 20 %, the centre in 73 %; a clip has 4.2 different masks."""
    generator = rng(1)
    masks = np.stack([sample_mask((8, 14, 14), "cube", 0.4, generator) for _ in range(400)])
    often = masks.mean(axis=(0, 1))
    assert often[[0, 0, -1, -1], [0, -1, 0, -1]].mean() == pytest.approx(0.05, abs=0.03)
    assert often[0, 5:9].mean() == pytest.approx(0.20, abs=0.05)
    assert often[6:8, 6:8].mean() == pytest.approx(0.73, abs=0.06)
    changes = np.any(masks[:, 1:] != masks[:, :-1], axis=(2, 3)).sum(axis=1)
    assert 1 + changes.mean() == pytest.approx(4.2, abs=0.3)


@pytest.mark.parametrize("mask", MASKS)
def test_one_seed_one_mask(mask):
    options = recipe(mask=mask, mask_ratio=0.5, drop_tokens=0.25)
    first, again, other = (sample_tokens(options, rng(seed)) for seed in (7, 7, 8))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any((a != b).any() for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize(
    "options", [{"mask_ratio": 0.02}, {"mask_ratio": 0.02, "mask": "cube"}, {"mask_ratio": 0.005, "mask": "random"}]
)
def test_nothing_to_predict_is_refused(options):
    with pytest.raises(ValueError, match=r"mask_ratio 0\.0.* leave 108 visible and 0 predicted of the 3 x 6 x 6"):
        sample_tokens(recipe(**options), rng())


def test_nothing_to_see_is_refused():
    with pytest.raises(ValueError, match=r"mask random, mask_ratio 1\.0 and drop_tokens 0\.0 leave 0 visible and 4"):
        token_counts((1, 2, 2), "random", 1.0)
