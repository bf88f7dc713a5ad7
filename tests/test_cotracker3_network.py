"""CoTracker3's windows against the same written out plainly: one window, one point, one level at a time, by SciPy."""

import math

import numpy as np
import pytest
import torch
from cotracker_stand_in import use_stand_in
from scipy import ndimage
from torch import nn

from extraction.motion.cotracker3.network import CoTracker3, to_network


class Update(nn.Module):
    """Mixes points and frames, so that neither may be out of place."""

    def __init__(self, width):
        super().__init__()
        self.inner, self.outer = nn.Linear(width, 24), nn.Linear(24, 4)

    def forward(self, tokens, add_space_attn=True):
        assert add_space_attn
        hidden = torch.tanh(self.inner(tokens))
        rank = torch.arange(1, tokens.shape[2] + 1, dtype=hidden.dtype)[:, None] / tokens.shape[2]
        return self.outer(hidden + hidden.mean(1, keepdim=True) + (rank * hidden).mean(2, keepdim=True))


class Modules:
    """A network of random weights with the interface of the package's: 3 levels, surroundings of 5 x 5."""

    def __init__(self, seed=0):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.stride, self.corr_radius, self.corr_levels, self.latent_dim = 4, 2, 3, 12
            self.model_resolution = (48, 72)
            self.fnet = nn.Sequential(nn.Conv2d(3, 12, 5, stride=4, padding=2), nn.InstanceNorm2d(12))
            self.corr_mlp = nn.Sequential(nn.Linear(5**4, 16), nn.GELU(), nn.Linear(16, 7))
            width = 2 + 3 * 7 + 84
            self.updateformer = Update(width)
            self.time_emb = torch.randn(1, 11, width)


def plainly(modules, video, queries, refinements):
    """One window's tracks: video (T, 3, H, W) of 0 to 255 at the network's resolution, queries (N, 3) as t, x, y."""
    frames, stride, radius = len(video), modules.stride, modules.corr_radius
    offsets = [(dx, dy) for dx in range(-radius, radius + 1) for dy in range(-radius, radius + 1)]
    features = modules.fnet(2 * (video / 255) - 1).detach().numpy()
    features /= np.sqrt((features**2).sum(1, keepdims=True))
    levels = [features]
    for _ in range(modules.corr_levels - 1):
        f = levels[-1]
        f = f[:, :, : f.shape[2] // 2 * 2, : f.shape[3] // 2 * 2]
        levels.append(f.reshape(*f.shape[:2], f.shape[2] // 2, 2, f.shape[3] // 2, 2).mean((3, 5)))

    def around(level, t, x, y):
        """(r * r, C)"""
        xs, ys = np.array([[x / 2**level + dx, y / 2**level + dy] for dx, dy in offsets]).T
        of = [ndimage.map_coordinates(c, [ys, xs], order=1, mode="nearest") for c in levels[level][t].astype(float)]
        return np.stack(of, axis=-1)

    queries = queries.double().numpy()
    points = np.repeat(queries[:, None, 1:] / stride, frames, axis=1)  # (N, T, 2)
    states = np.zeros((len(queries), frames, 2))
    time = torch.nn.functional.interpolate(modules.time_emb.permute(0, 2, 1), size=frames, mode="linear")
    height, width = modules.model_resolution
    for _ in range(refinements):
        tokens = np.zeros((len(queries), frames, modules.time_emb.shape[-1]))
        for n, (t0, x0, y0) in enumerate(queries):
            for t in range(frames):
                seen = []
                for level in range(modules.corr_levels):
                    here = around(level, t, *points[n, t])
                    there = around(level, int(t0), x0 / stride, y0 / stride)
                    volume = torch.from_numpy((here @ there.T).reshape(-1)).float()
                    seen.append(modules.corr_mlp(volume).detach().numpy())
                ahead = points[n, t] - points[n, t + 1] if t + 1 < frames else np.zeros(2)
                behind = points[n, t] - points[n, t - 1] if t else np.zeros(2)
                motion = np.concatenate([ahead, behind]) / (np.array([width, height] * 2) / stride)
                waves = [f * 2.0**k for k in range(10) for f in motion]
                encoded = [*motion, *np.sin(waves), *np.sin(np.array(waves) + math.pi / 2)]
                tokens[n, t] = np.concatenate([states[n, t], *seen, encoded])
        tokens += time[0].T.numpy()
        change = modules.updateformer(torch.from_numpy(tokens).float()[None])[0].detach().numpy()
        points, states = points + change[..., :2], states + change[..., 2:]
    return points * stride, 1 / (1 + np.exp(-states))


@pytest.fixture(scope="module")
def clip():
    """Frames uint8 (9, 48, 72, 3) at the network's resolution."""
    return torch.randint(0, 256, (9, 48, 72, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))


def tracked(network, clip, windows, queries):
    features = network.new_features(len(clip))
    for frame in range(len(clip)):
        features.put([frame], network.pyramid(clip[frame : frame + 1]))
    return network.track(features, torch.tensor([features.places(window) for window in windows]), queries)


WINDOWS = [[0, 2, 4, 6], [3, 4, 5, 6], [8, 1, 7, 7]]
# beyond the border, on it, at whole and half pixels; given in different frames
QUERIES = torch.tensor([[0, 11.3, 20.9], [3, 70.9, 46.2], [1, 0.0, 0.0], [0, 71.0, 47.0], [2, 40.0, 5.5]])


@pytest.mark.parametrize("refinements", [1, 3])
def test_windows_in_a_batch_are_what_is_written_out_plainly(clip, refinements):
    modules = Modules()
    network = CoTracker3(modules, torch.device("cpu"), refinements=refinements)
    shift = torch.tensor([0.0, 1.25, -2.5])
    queries = torch.stack([QUERIES + number * shift for number in range(3)])
    found = tracked(network, clip, WINDOWS, queries)
    for b, window in enumerate(WINDOWS):
        points, certain = plainly(modules, clip[window].permute(0, 3, 1, 2).float(), queries[b], refinements)
        moved = np.abs(points - queries[b, :, None, 1:].numpy()).max()
        assert moved > 2, "the points must go somewhere for this to mean anything"
        np.testing.assert_allclose(found.points[b], points, atol=2e-3 * max(1, moved / 40))
        np.testing.assert_allclose(found.visibility[b], certain[..., 0], atol=1e-4)
        np.testing.assert_allclose(found.confidence[b], certain[..., 1], atol=1e-4)


def test_a_window_of_the_length_it_was_trained_on_keeps_its_time_embedding(clip):
    modules = Modules()
    modules.time_emb = modules.time_emb[:, :4]
    found = tracked(CoTracker3(modules, torch.device("cpu"), refinements=2), clip, WINDOWS[:1], QUERIES[None])
    points, _ = plainly(modules, clip[WINDOWS[0]].permute(0, 3, 1, 2).float(), QUERIES, 2)
    np.testing.assert_allclose(found.points[0], points, atol=2e-3)


def test_points_a_few_at_a_time_are_the_same(clip, monkeypatch):
    network = CoTracker3(Modules(), torch.device("cpu"))
    whole = tracked(network, clip, WINDOWS, QUERIES.expand(3, -1, -1))
    monkeypatch.setattr("extraction.motion.cotracker3.network._MOST_GATHERED", 3 * 4 * 36 * 12 * 2)
    torch.testing.assert_close(tracked(network, clip, WINDOWS, QUERIES.expand(3, -1, -1)).points, whole.points)


def test_a_dropped_frame_makes_room_and_others_stay(clip):
    network = CoTracker3(Modules(), torch.device("cpu"))
    features = network.new_features(3)
    for frame in (0, 2, 3):
        features.put([frame], network.pyramid(clip[frame : frame + 1]))
    features.drop_before(2)
    features.put([5], network.pyramid(clip[5:6]))
    window = torch.tensor([features.places([2, 3, 5])])
    expected = tracked(network, clip, [[2, 3, 5]], QUERIES[None, :1])
    torch.testing.assert_close(network.track(features, window, QUERIES[None, :1]).points, expected.points)
    with pytest.raises(KeyError):
        features.places([0])


def test_bfloat16_deviates_by_little_and_is_not_the_same(clip):
    """After one update: in the next, a random network blows differences up."""
    exact = tracked(CoTracker3(Modules(), torch.device("cpu"), refinements=1), clip, WINDOWS, QUERIES.expand(3, -1, -1))
    network = CoTracker3(Modules(), torch.device("cpu"), refinements=1, precision="bf16")
    assert network.new_features(1).levels[0].dtype == torch.bfloat16
    rounded = tracked(network, clip, WINDOWS, QUERIES.expand(3, -1, -1))
    assert rounded.points.dtype == torch.float32, "coordinates are never rounded"
    deviation = (rounded.points - exact.points).norm(dim=-1)
    assert 1e-4 < deviation.median() < 0.1


def test_a_compiled_network_gives_the_same_to_rounding(clip):
    exact = tracked(CoTracker3(Modules(), torch.device("cpu"), refinements=2), clip, WINDOWS, QUERIES.expand(3, -1, -1))
    network = CoTracker3(Modules(), torch.device("cpu"), refinements=2, compiled=True)
    found = tracked(network, clip, WINDOWS, QUERIES.expand(3, -1, -1))
    torch.testing.assert_close(found.points, exact.points, atol=2e-3, rtol=0)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_a_cuda_device_gives_what_the_cpu_gives(clip):
    exact = tracked(CoTracker3(Modules(), torch.device("cpu")), clip, WINDOWS, QUERIES.expand(3, -1, -1))
    found = tracked(CoTracker3(Modules(), torch.device("cuda")), clip, WINDOWS, QUERIES.expand(3, -1, -1))
    torch.testing.assert_close(found.points.cpu(), exact.points, atol=1e-2, rtol=0)
    torch.testing.assert_close(found.visibility.cpu(), exact.visibility, atol=1e-4, rtol=0)


def test_pixels_of_a_frame_and_of_the_network_are_those_of_an_aligned_resize():
    """A ramp of x and y, resized with corners aligned, has at the moved point what the frame has at the point."""
    frame_size, resolution = (37, 90), (96, 128)
    y, x = torch.meshgrid(torch.arange(37.0), torch.arange(90.0), indexing="ij")
    ramps = torch.nn.functional.interpolate(torch.stack([x, y])[None], resolution, mode="bilinear", align_corners=True)
    point = np.array([41.5, 20.25])
    moved = point * to_network(frame_size, resolution)
    found = [ndimage.map_coordinates(ramp.numpy(), moved[::-1, None], order=1)[0] for ramp in ramps[0]]
    np.testing.assert_allclose(found, point, atol=1e-4)


def test_importing_the_package_leaves_the_random_state(monkeypatch):
    use_stand_in(monkeypatch)
    from extraction.motion.cotracker3.package import build_model

    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    build_model()
    assert torch.equal(torch.rand(3), expected)
