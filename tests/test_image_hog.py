"""HOG of whole frames, in torch: against closed forms, the store's histograms, and a definition in numpy."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from extraction.hog import gradient_map, window_histograms
from training.image_hog import image_hog, middle_frames

HEIGHT, WIDTH = 40, 56


def pictures(clips=2, times=3, height=HEIGHT, width=WIDTH):
    noise = np.random.default_rng(0).normal(size=(clips, times, height, width, 3))
    smooth = ndimage.gaussian_filter(noise, (0, 0, 1.5, 1.5, 0))
    return torch.from_numpy(np.clip(128 + 250 * smooth, 0, 255).astype(np.uint8))


def ramps(degrees):
    """One clip (1, N, H, W, 3) whose n-th frame climbs 1.5 per pixel towards degrees[n], a colour k in k + 1 times."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    angles = np.radians(degrees)[:, None, None]
    values = 1.5 * (x * np.cos(angles) + y * np.sin(angles))
    return torch.from_numpy((values[..., None] * [1, 2, 3]).astype(np.float32))[None]


@pytest.mark.parametrize("bins", [9, 6])
def test_a_ramp_of_any_direction_is_shared_between_its_two_bins(bins):
    degrees = np.arange(0, 360, 2.5)
    histograms = image_hog(ramps(degrees), bins=bins)
    assert histograms.shape == (1, len(degrees), HEIGHT // 8, WIDTH // 8, 3, bins)
    inner = histograms[0, :, 1:-1, 1:-1]  # cells at the border see the mirrored ramp
    place = (degrees % 180) / (180 / bins)
    low = place.astype(int)
    expected = np.zeros((len(degrees), bins))
    np.add.at(expected, (range(len(degrees)), low % bins), 1 - (place - low))
    np.add.at(expected, (range(len(degrees)), (low + 1) % bins), place - low)
    expected = expected[:, None, None, None] * (8 * 1.5 * np.array([1, 2, 3])[:, None])  # Sobel's gain of 8
    np.testing.assert_allclose(inner, np.broadcast_to(expected, inner.shape), atol=36 * 2e-4)


@pytest.mark.parametrize("cell", [8, 4])
def test_cells_are_windows_of_the_track_store(cell):
    frames = pictures()
    ours = image_hog(frames, cell=cell)
    rows, columns = HEIGHT // cell, WIDTH // cell
    y, x = np.mgrid[0:rows, 0:columns] * cell + (cell - 1) / 2
    centres = np.stack([x.ravel(), y.ravel()], axis=-1)
    for b in range(2):
        for t in range(3):
            gradients = gradient_map(frames[b, t].numpy(), 3)
            stored = window_histograms(gradients, centres, np.ones(len(centres), bool), cell)
            expected = stored.reshape(rows, columns, 3, 9) / cell**2
            np.testing.assert_allclose(ours[b, t], expected, rtol=1e-4, atol=1e-4)


def test_no_magnitude_is_lost():
    """The sum over bins is the mean gradient magnitude, by scipy's Sobel."""
    frames = pictures(1, 2, 19, 30)  # neither a multiple of the cell
    histograms = image_hog(frames, cell=8)
    assert histograms.shape == (1, 2, 2, 3, 3, 9)
    grey = frames[0].numpy().astype(np.float64)
    # plane by plane, for scipy's Sobel smooths along all other axes
    planes = np.moveaxis(grey, -1, 1).reshape(-1, 19, 30)
    magnitude = np.stack([np.hypot(*(ndimage.sobel(plane, axis=a, mode="mirror") for a in (0, 1))) for plane in planes])
    cells = magnitude[:, :16, :24].reshape(2, 3, 2, 8, 3, 8).mean(axis=(3, 5))
    np.testing.assert_allclose(histograms[0].sum(-1), np.moveaxis(cells, 1, -1), rtol=1e-5)


@pytest.mark.parametrize("unit_length", [False, True])
def test_a_flip_maps_bin_k_to_bin_nine_minus_k(unit_length):
    frames = pictures()
    ours = image_hog(frames, unit_length=unit_length)
    flipped = image_hog(frames.flip(3), unit_length=unit_length)
    mirrored = ours.flip(3)[..., [(9 - k) % 9 for k in range(9)]]
    torch.testing.assert_close(flipped, mirrored, rtol=1e-4, atol=1e-4)
    assert (flipped - ours.flip(3)).abs().max() > 0.1


def test_colours_and_frames_are_kept_apart():
    frames = torch.zeros(2, 2, 16, 24, 3)
    frames[1, 0, :, 13:, 2] = 100  # one blue edge, in the second cell, of one frame
    histograms = image_hog(frames)
    seen = histograms.nonzero().tolist()
    assert {tuple(place[:2]) for place in seen} == {(1, 0)}
    assert {tuple(place[3:]) for place in seen} == {(1, 2, 0)}
    # two columns of eight, each with a gradient of 4 * 100
    torch.testing.assert_close(histograms[1, 0, :, 1, 2, 0], torch.full((2,), 100.0))


def test_unit_length():
    histograms = image_hog(pictures(), unit_length=True)
    torch.testing.assert_close(histograms.norm(dim=-1), torch.ones(2, 3, HEIGHT // 8, WIDTH // 8, 3))
    plain = image_hog(pictures())
    torch.testing.assert_close(histograms * plain.norm(dim=-1, keepdim=True), plain)


def test_unit_length_of_the_weakest_gradient_and_of_none():
    frames = torch.full((1, 1, 16, 24, 3), 77, dtype=torch.uint8)
    assert not image_hog(frames, unit_length=True).any()
    frames[0, 0, 0, 0, 0] += 1
    histograms = image_hog(frames, unit_length=True)
    assert histograms[0, 0, 0, 0, 0].norm() == pytest.approx(1)
    assert not histograms[0, 0, 0, 0, 1:].any()


def test_integer_frames_are_float_frames():
    frames = pictures()
    torch.testing.assert_close(image_hog(frames), image_hog(frames.float()), rtol=0, atol=0)
    torch.testing.assert_close(image_hog(frames) / 255, image_hog(frames / 255.0), rtol=1e-4, atol=1e-5)


def test_a_batch_is_its_clips(monkeypatch):
    frames = pictures()
    whole = image_hog(frames)
    monkeypatch.setattr("training.image_hog._PIXELS_AT_ONCE", 5 * HEIGHT * WIDTH)
    torch.testing.assert_close(image_hog(frames), whole, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(image_hog(frames[1:]), whole[1:], rtol=1e-6, atol=1e-5)


def test_bfloat16_around_it_changes_nothing():
    frames = pictures()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        histograms = image_hog(frames, unit_length=True)
    assert histograms.dtype == torch.float32
    torch.testing.assert_close(histograms, image_hog(frames, unit_length=True), rtol=0, atol=0)


@pytest.mark.parametrize(("tubelet", "numbers"), [(1, [0, 1, 2, 3, 4, 5]), (2, [1, 3, 5]), (3, [1, 4]), (6, [3])])
def test_the_middle_frame_of_each_tubelet(tubelet, numbers):
    frames = torch.arange(6).reshape(1, 6, 1, 1, 1).expand(2, 6, 4, 5, 3)
    assert middle_frames(frames, tubelet)[1, :, 0, 0, 0].tolist() == numbers


def test_frames_without_a_whole_cell_are_refused():
    with pytest.raises(ValueError, match="frames of 7 x 30 pixels have no whole cell of 8"):
        image_hog(torch.zeros(1, 1, 7, 30, 3))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu():
    frames = pictures()
    ours = image_hog(frames.cuda())
    torch.testing.assert_close(ours.cpu(), image_hog(frames), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(image_hog(frames.cuda()), ours, rtol=0, atol=0)
