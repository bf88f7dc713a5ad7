import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_specs.encoding import (
    MAX_STEP_PX,
    decode_flow,
    decode_histograms,
    decode_positions,
    encode_flow,
    encode_histograms,
    encode_positions,
)
from data_specs.schema import UNIT_PX


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), length=st.integers(1, 40), speed=st.sampled_from([0.01, 0.3, 8.0, 400.0]))
def test_positions_are_half_a_unit_off_at_most_however_long_the_trajectory(seed, length, speed):
    rng = np.random.default_rng(seed)
    first = rng.random((5, 1, 2)) * [300, 200]
    positions = np.concatenate([first, first + np.cumsum(rng.uniform(-1, 1, (5, length, 2)) * speed, axis=1)], axis=1)
    displacement = encode_positions(positions)
    assert displacement.dtype == np.int16
    assert displacement.shape == (5, length, 2)
    decoded = decode_positions(displacement, positions[:, 0])
    assert np.abs(decoded - positions).max() <= UNIT_PX / 2 + 1e-9


def test_a_slow_drift_is_not_rounded_away():
    """A quarter of a unit per step: rounding each step would lose all of it."""
    positions = np.zeros((1, 41, 2))
    positions[0, :, 0] = np.arange(41) * UNIT_PX / 4
    assert encode_positions(positions)[0, :, 0].sum() == 10


def test_steps_of_both_signs_up_to_the_limit_fit_and_longer_ones_are_refused():
    positions = np.array([[[0.0, 0.0], [MAX_STEP_PX, -MAX_STEP_PX]]])
    np.testing.assert_array_equal(decode_positions(encode_positions(positions), positions[:, 0]), positions)
    with pytest.raises(ValueError, match=r"600\.0 px; the longest"):
        encode_positions(np.array([[[0.0, 0.0], [0.0, 600.0]]]))
    with pytest.raises(ValueError, match="nan"):
        encode_positions(np.array([[[0.0, 0.0], [0.0, np.nan]]]))


def test_histograms_keep_small_bins_better_than_linear_codes():
    rng = np.random.default_rng(0)
    hog = (rng.random((11, 6, 9)) ** 4 * 3000).astype(np.float32)
    codes, scale = encode_histograms(hog)
    decoded = decode_histograms(codes, float(scale))
    assert scale == hog.max()
    assert codes.max() == 254, "255 is the fill value"
    # half a level of the square root: |error| <= sqrt(value * scale) / 254 and a little
    assert (np.abs(decoded - hog) <= np.sqrt(hog * scale) / 254 + scale / 254**2).all()
    linear = np.rint(hog / scale * 254) / 254 * scale
    small = hog < scale / 20
    assert np.abs(decoded - hog)[small].mean() < 0.5 * np.abs(linear - hog)[small].mean()


def test_flow_is_half_a_unit_off_at_most_and_too_long_a_flow_is_refused():
    flow = np.array([[0.3, -7.1], [MAX_STEP_PX, -MAX_STEP_PX]])
    codes = encode_flow(flow)
    assert codes.dtype == np.int16
    assert np.abs(decode_flow(codes) - flow).max() <= UNIT_PX / 2
    for value in (512.1, np.nan):
        with pytest.raises(ValueError, match="the longest that fits"):
            encode_flow(np.array([[0.0, value]]))


def test_an_empty_histogram_decodes_to_zeros():
    codes, scale = encode_histograms(np.zeros((3, 6, 9), np.float32))
    assert scale == 0
    assert not decode_histograms(codes, float(scale)).any()
