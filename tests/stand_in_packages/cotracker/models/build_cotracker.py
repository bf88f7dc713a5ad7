"""A network of the same parts as CoTracker3's, whose correlation part finds shifts and whose update part makes them."""

import itertools

import torch
from torch import nn
from torch.nn import functional

STRIDE, RADIUS, LEVELS, CHANNELS = 4, 3, 3, 48
SIDE = 2 * RADIUS + 1
VALUES = 3
"""Of a correlation: shift in x and y in pixels of its level, and how much alike the surroundings are then."""


class Features(nn.Module):
    """Fixed random filters, smooth enough that what lies between two places of the features can be interpolated."""

    def __init__(self):
        super().__init__()
        distance = (torch.arange(15) - 7.0) / 3.5
        window = torch.exp(-0.5 * (distance[:, None] ** 2 + distance**2))
        random = torch.randn(CHANNELS, 3, 15, 15, generator=torch.Generator().manual_seed(3)) * window
        kernels = random - window * (random.sum((2, 3), keepdim=True) / window.sum())
        self.kernels = nn.Parameter(kernels)

    def forward(self, video):
        # place (i, j) of the features is pixel (4 i, 4 j): the package's features are as much aligned with its pixels
        padded = functional.pad(video, (7, 7, 7, 7), mode="replicate")
        return functional.conv2d(padded, self.kernels, stride=STRIDE)


class Shift(nn.Module):
    """The shift under which the surroundings of a point, x outer and y inner, are most like those of its query."""

    def __init__(self):
        super().__init__()
        means = torch.zeros(SIDE, SIDE, SIDE, SIDE, SIDE, SIDE)  # of the products of places that lie so far apart
        for dx, dy in itertools.product(range(-RADIUS, RADIUS + 1), repeat=2):
            common = itertools.product(range(max(0, -dx), SIDE - max(0, dx)), range(max(0, -dy), SIDE - max(0, dy)))
            for i, j in common:
                means[i + dx, j + dy, i, j, dx + RADIUS, dy + RADIUS] = 1
        means = means.flatten(0, 3).flatten(1)
        self.register_buffer("means", means / means.sum(0), persistent=False)

    def forward(self, volume):
        scores = (volume.float().flatten(-1) @ self.means).unflatten(-1, (SIDE, SIDE))
        flat = scores.flatten(0, -3)
        best = flat.flatten(-2).argmax(-1)
        dx, dy, rows = best // SIDE, best % SIDE, torch.arange(len(best))
        within = [axis.clamp(1, SIDE - 2) for axis in (dx, dy)]
        fraction = [
            _vertex(*(flat[rows, within[0] + k, dy] for k in (-1, 0, 1))),
            _vertex(*(flat[rows, dx, within[1] + k] for k in (-1, 0, 1))),
        ]
        shifts = [centre + found - RADIUS for centre, found in zip(within, fraction, strict=True)]
        return torch.stack([*shifts, flat.flatten(-2).amax(-1)], dim=-1).reshape(*scores.shape[:-2], VALUES)


def _vertex(before, at, after):
    """Where the parabola through three neighbouring scores is highest, from the one in the middle, at most one away."""
    return (0.5 * (after - before) / (2 * at - before - after).clamp(min=1e-6)).clamp(-1, 1)


class Update(nn.Module):
    """Moves each point by its shift at the finest level, or at the coarsest where that one sees more likeness."""

    def forward(self, tokens, add_space_attn=True):
        seen = tokens[..., 2 : 2 + VALUES * LEVELS].unflatten(-1, (LEVELS, VALUES))
        scale = 2.0 ** torch.arange(LEVELS, dtype=seen.dtype)
        best = seen[..., 2].argmax(-1, keepdim=True)[..., None]
        shift = (seen[..., :2] * scale[:, None]).gather(-2, best.expand(*best.shape[:-1], 2))[..., 0, :]
        likeness = seen[..., 2].amax(-1)
        wanted = 30 * (likeness - 0.25)
        return torch.cat([shift, (wanted - tokens[..., 0])[..., None], (wanted - tokens[..., 1])[..., None]], dim=-1)


class StandIn(nn.Module):
    """The attributes and modules that are used of the package's model."""

    def __init__(self, window_len):
        super().__init__()
        self.stride, self.corr_radius, self.corr_levels, self.latent_dim = STRIDE, RADIUS, LEVELS, CHANNELS
        self.model_resolution = (96, 128)
        self.fnet, self.corr_mlp, self.updateformer = Features(), Shift(), Update()
        self.register_buffer("time_emb", torch.zeros(1, window_len, 2 + VALUES * LEVELS + 4 + 4 * 20))


def build_cotracker(checkpoint=None, offline=True, window_len=16, v2=False):
    """As the package's; it takes no checkpoint here."""
    assert checkpoint is None
    assert offline
    assert not v2
    torch.manual_seed(0)  # as importing the package does
    return StandIn(window_len)
