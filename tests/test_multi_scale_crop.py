"""The crops that can be drawn, against the published rule written out by hand for one frame."""

from collections import Counter

import numpy as np
import pytest

from training.reading.multi_scale_crop import multi_scale_crop

SCALES = (1.0, 0.875, 0.75, 0.66)


def draw(frame_size, size, flip=True, draws=4000, seed=0):
    rng = np.random.default_rng(seed)
    return [multi_scale_crop(frame_size, size, SCALES, flip, rng) for _ in range(draws)]


def test_the_crops_are_those_of_the_published_rule():
    """A frame of 340 x 256: sides 256, 224, 192 and int(168.96) = 168; ten pairs of neighbours, 13 places each.

    What is left of the frame is cut into quarters, rounded down: 340 - 256 = 84 -> 21, 340 - 168 = 172 -> 43, ...
    """
    quarter_x = {256: 21, 224: 29, 192: 37, 168: 43}
    quarter_y = {256: 0, 224: 8, 192: 16, 168: 22}
    pairs = [(256, 256), (256, 224), (224, 256), (224, 224), (224, 192),
             (192, 224), (192, 192), (192, 168), (168, 192), (168, 168)]  # fmt: skip
    places = [(0, 0), (4, 0), (0, 4), (4, 4), (2, 2), (0, 2), (4, 2), (2, 4), (2, 0), (1, 1), (3, 1), (1, 3), (3, 3)]
    published = {(w, h, x * quarter_x[w], y * quarter_y[h]) for w, h in pairs for x, y in places}
    views = draw((256, 340), (224, 224))
    assert {(v.width, v.height, v.left, v.top) for v in views} == published
    for drawn, choices in [
        (Counter((v.width, v.height) for v in views), 10),
        (Counter((v.left / quarter_x[v.width], v.top / quarter_y[v.height]) for v in views if v.height < 256), 13),
    ]:
        assert len(drawn) == choices
        share = np.array(list(drawn.values())) / sum(drawn.values())
        np.testing.assert_allclose(share, 1 / choices, atol=0.02, err_msg="5 standard deviations are 0.024")


def test_height_and_width_are_not_confused():
    """A tall frame and a wide view: the offsets have room along y, and each side meets its own side of the view."""
    views = draw((300, 200), (150, 176))
    assert {v.size for v in views} == {(150, 176)}
    # 0.875 * 200 = 175 is next to the view's width, 0.75 * 200 = 150 is its height
    assert {v.width for v in views} == {200, 176, 150, 132}
    assert {v.height for v in views} == {200, 175, 150, 132}
    assert max(v.top for v in views) == 4 * ((300 - 132) // 4)
    assert max(v.left for v in views) == 4 * ((200 - 132) // 4)


@pytest.mark.parametrize("frame_size", [(256, 340), (144, 176), (222, 395), (223, 223), (256, 455), (2, 5)])
def test_the_crop_lies_in_the_frame(frame_size):
    for view in draw(frame_size, (224, 224), draws=500):
        assert 0 <= view.top <= view.top + view.height <= frame_size[0]
        assert 0 <= view.left <= view.left + view.width <= frame_size[1]


def test_the_same_generator_draws_the_same_crops():
    assert draw((256, 340), (224, 224), draws=50) == draw((256, 340), (224, 224), draws=50)
    assert draw((256, 340), (224, 224), draws=50) != draw((256, 340), (224, 224), draws=50, seed=1)


def test_half_of_the_views_are_flipped_and_none_where_that_is_not_wanted():
    views = draw((256, 340), (224, 224))
    assert np.mean([v.flip for v in views]) == pytest.approx(0.5, abs=0.04)
    plain = draw((256, 340), (224, 224), flip=False)
    assert not any(v.flip for v in plain)
    # flips change nothing else
    assert [(v.top, v.left, v.height, v.width) for v in plain] == [(v.top, v.left, v.height, v.width) for v in views]
