"""CoTracker3 (Karaev et al., ICCV 2025) on many windows of one video: each frame's features once, windows in batches.

The weights and the three parts that have any (feature network, correlation MLP, update transformer) are the `cotracker`
package's. What runs them is written here from the paper, section 3: the package computes the features of every frame
anew for each window, and samples 49 places of 4 levels where 64 would do for all of them.

Axis legend: F frames held, B windows, N points, T frames of a window, C feature channels, (h, w) sizes of a level.
Points are (x, y) in pixels of the network's own resolution, pixel centres at whole numbers.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

Precision = Literal["fp32", "bf16"]

_POSITION_SCALES = 10  # powers of two of the positional encoding of displacements
_MOST_GATHERED = 128 << 20  # values that are gathered at a time for the correlation


class CoTrackerModules(Protocol):
    """What we use of the package's model, `CoTrackerThreeOffline` or `CoTrackerThreeOnline`."""

    fnet: nn.Module
    """(F, 3, H, W) of -1 to 1 to features (F, C, H / stride, W / stride)."""
    corr_mlp: nn.Module
    """(…, r**4) correlations, r = 2 corr_radius + 1, to (…, 256)."""
    updateformer: nn.Module
    """(B, N, T, D) tokens to (B, N, T, 4): steps of x, y, of visibility's and of confidence's logit."""
    time_emb: Tensor
    """(1, T of training, D)."""
    stride: int
    corr_radius: int
    corr_levels: int
    latent_dim: int
    model_resolution: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class WindowTracks:
    """What the network says of the points of B windows; float32, on its device.

    `points` (B, N, T, 2), x and y in pixels of the network's resolution; `visibility` and `confidence` (B, N, T), 0 to
    1. In the frame in which a point is queried this is the network's estimate as well, not the query.
    """

    points: Tensor
    visibility: Tensor
    confidence: Tensor


class FrameFeatures:
    """Feature pyramids of some frames of a video, in places that are used again when a frame is dropped.

    Channels come last, so that the features of one place lie together in memory.
    """

    def __init__(self, places: int, sizes: Sequence[tuple[int, int]], channels: int, like: Tensor) -> None:
        self.sizes = list(sizes)
        self.levels = [like.new_empty((places * h * w, channels)) for h, w in sizes]
        self._free = list(range(places))[::-1]
        self._place: dict[int, int] = {}

    def put(self, frames: Sequence[int], pyramid: Sequence[Tensor]) -> None:
        """Keep the frames' features, (F, h, w, C) for each level."""
        for f, frame in enumerate(frames):
            place = self._place[frame] = self._free.pop()
            for level, (h, w), features in zip(self.levels, self.sizes, pyramid, strict=True):
                level[place * h * w : (place + 1) * h * w] = features[f].reshape(h * w, -1)

    def places(self, frames: Sequence[int]) -> list[int]:
        """Where the frames' features are."""
        return [self._place[frame] for frame in frames]

    def drop_before(self, frame: int) -> None:
        """Forget the frames before this one."""
        for old in [kept for kept in self._place if kept < frame]:
            self._free.append(self._place.pop(old))


class CoTracker3:
    """The network on its device.

    model: the package's, with weights. refinements: how often the tracks are updated (the package's predictor: 6).
    precision: `bf16` runs the network's products in bfloat16; coordinates stay float32. compiled: torch.compile.
    """

    def __init__(
        self,
        model: CoTrackerModules,
        device: torch.device,
        *,
        refinements: int = 6,
        precision: Precision = "fp32",
        compiled: bool = False,
    ) -> None:
        self.device, self.refinements, self.precision = device, refinements, precision
        self.resolution = (int(model.model_resolution[0]), int(model.model_resolution[1]))
        self.stride, self.radius, self.channels = model.stride, model.corr_radius, model.latent_dim
        h, w = self.resolution[0] // self.stride, self.resolution[1] // self.stride
        self.sizes = [(h >> level, w >> level) for level in range(model.corr_levels)]
        for module in (model.fnet, model.corr_mlp, model.updateformer):
            module.to(device).eval().requires_grad_(False)
        self._features, self._correlation_mlp, self._update = model.fnet, model.corr_mlp, model.updateformer
        self._time_embedding = model.time_emb.detach().float().to(device)
        self._refine_once: Any = torch.compile(self._refine) if compiled else self._refine
        self._features_of: Any = torch.compile(self._pyramid) if compiled else self._pyramid

    @property
    def feature_dtype(self) -> torch.dtype:
        """Of the features that are kept."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    def new_features(self, places: int) -> FrameFeatures:
        """Room for the features of so many frames."""
        like = torch.empty(0, dtype=self.feature_dtype, device=self.device)
        return FrameFeatures(places, self.sizes, self.channels, like)

    @torch.inference_mode()
    def pyramid(self, frames: Tensor) -> list[Tensor]:
        """Features of frames uint8 (F, H, W, 3), RGB of any size: (F, h, w, C) of each level, unit length in the first.

        The frames are brought to the network's resolution with corners aligned, as the package does: see `to_network`.
        """
        video = frames.to(self.device).permute(0, 3, 1, 2).float()
        video = functional.interpolate(video, self.resolution, mode="bilinear", align_corners=True)
        found: list[Tensor] = self._features_of(2 * (video / 255.0) - 1.0)
        return found

    def _pyramid(self, video: Tensor) -> list[Tensor]:
        with self._autocast():
            features = self._features(video)
        features = features.float()
        features = features / features.square().sum(1, keepdim=True).clamp(min=1e-12).sqrt()
        levels = [features]
        while len(levels) < len(self.sizes):
            levels.append(functional.avg_pool2d(levels[-1], 2, stride=2))
        return [level.permute(0, 2, 3, 1).to(self.feature_dtype) for level in levels]

    @torch.inference_mode()
    def track(self, features: FrameFeatures, places: Tensor, queries: Tensor) -> WindowTracks:
        """Track the points of some windows.

        places: int64 (B, T), where in `features` the windows' frames are. queries: float32 (B, N, 3): the frame of the
        window in which a point is given, and its x and y in pixels of the network's resolution.
        """
        places, queries = places.to(self.device), queries.to(self.device)
        frames = places.shape[1]
        start = queries[..., 1:] / self.stride
        at_query = torch.gather(places, 1, queries[..., 0].long())  # (B, N)
        support = [
            self._around(features, level, at_query[..., None], start[:, :, None])[:, :, 0]
            for level in range(len(self.sizes))
        ]
        points = start[:, :, None].expand(-1, -1, frames, -1).contiguous()
        states = points.new_zeros((*points.shape[:3], 2))  # logits of visibility and confidence
        time = self._time_embedding
        if frames != time.shape[1]:
            time = functional.interpolate(time.permute(0, 2, 1), size=frames, mode="linear").permute(0, 2, 1)
        for _ in range(self.refinements):
            seen = [self._correlate(features, level, places, points, support[level]) for level in range(len(support))]
            points, states = self._refine_once(points, states, torch.cat(seen, dim=-1), time)
        certain = torch.sigmoid(states)
        return WindowTracks(points * float(self.stride), certain[..., 0], certain[..., 1])

    def _refine(self, points: Tensor, states: Tensor, seen: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """One update of points and states, each (B, N, T, 2), from what is seen around the points, (B, N, T, …)."""
        steps = points[:, :, 1:] - points[:, :, :-1]
        nothing = torch.zeros_like(points[:, :, :1])
        # first to the next frame, seen from there, then from the frame before
        motion = torch.cat([torch.cat([-steps, nothing], 2), torch.cat([nothing, steps], 2)], -1)
        scale = motion.new_tensor([self.resolution[1], self.resolution[0]] * 2) / self.stride
        tokens = torch.cat([states, seen, _encoded(motion / scale)], dim=-1) + time[:, None]
        with self._autocast():
            change = self._update(tokens, add_space_attn=True)
        change = change.float()
        return points + change[..., :2], states + change[..., 2:]

    def _correlate(
        self, features: FrameFeatures, level: int, places: Tensor, points: Tensor, support: Tensor
    ) -> Tensor:
        """What the surroundings of points (B, N, T, 2) have in common with those of their queries: (B, N, T, 256).

        support: (B, N, r * r, C). A few points at a time, so that memory is bounded.
        """
        b, n, frames = points.shape[:3]
        side = 2 * self.radius + 1
        at_a_time = max(1, _MOST_GATHERED // (b * frames * (side + 1) ** 2 * self.channels))
        found = []
        for first in range(0, n, at_a_time):
            some, like = points[:, first : first + at_a_time], support[:, first : first + at_a_time]
            where = places[:, None].expand(-1, some.shape[1], -1)
            corners, fraction = self._gather(features, level, where, some)
            # the products come before the interpolation, which is linear: 49 values to interpolate in place of 128
            products = torch.matmul(corners.flatten(2, 3), like.transpose(-1, -2)).float()
            products = products.view(b, some.shape[1], frames, side + 1, side + 1, side * side)
            volume = _interpolated(products, fraction)
            with self._autocast():
                found.append(self._correlation_mlp(volume.reshape(b, some.shape[1], frames, side**4)).float())
        return torch.cat(found, dim=1)

    def _around(self, features: FrameFeatures, level: int, places: Tensor, points: Tensor) -> Tensor:
        """Features at the r x r whole-pixel offsets around points (B, N, T, 2) of level 0: (B, N, T, r * r, C)."""
        corners, fraction = self._gather(features, level, places, points)
        side = 2 * self.radius + 2
        values = corners.float().view(*corners.shape[:3], side, side, -1)
        return _interpolated(values, fraction).flatten(3, 4).to(corners.dtype)

    def _gather(self, features: FrameFeatures, level: int, places: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """The pixels of a level that the r x r places around points lie between, and how far they lie between them.

        places: (B, N, T), points (B, N, T, 2) of level 0. Returns features (B, N, T, (r + 1)**2, C), x outer and y
        inner, the border's beyond the border, and fractions (B, N, T, 2): all r x r places have the same.
        """
        h, w = features.sizes[level]
        margin = 2 * self.radius + 2  # further out there is only border
        scaled = points / 2**level
        scaled = torch.stack(
            [scaled[..., 0].clamp(-margin, w + margin), scaled[..., 1].clamp(-margin, h + margin)], dim=-1
        )
        whole = scaled.floor()
        offsets = torch.arange(-self.radius, self.radius + 2, device=points.device)
        x = (whole[..., 0, None].long() + offsets).clamp(0, w - 1)
        y = (whole[..., 1, None].long() + offsets).clamp(0, h - 1)
        index = (places[..., None, None] * h + y[..., None, :]) * w + x[..., :, None]
        corners = features.levels[level].index_select(0, index.flatten())
        return corners.view(*points.shape[:3], len(offsets) ** 2, -1), scaled - whole

    def _autocast(self) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")


def _interpolated(values: Tensor, fraction: Tensor) -> Tensor:
    """Bilinear interpolation of (B, N, T, r + 1, r + 1, …), x then y, by fractions (B, N, T, 2): (B, N, T, r, r, …)."""
    fx, fy = (fraction[..., axis, None, None, None] for axis in (0, 1))
    along_x = torch.lerp(values[:, :, :, :-1], values[:, :, :, 1:], fx)
    return torch.lerp(along_x[:, :, :, :, :-1], along_x[:, :, :, :, 1:], fy)


def _encoded(motion: Tensor) -> Tensor:
    """The values themselves, then sine and cosine of 1, 2, 4, … times them: (…, D) to (…, D + 20 D)."""
    scales = 2.0 ** torch.arange(_POSITION_SCALES, dtype=motion.dtype, device=motion.device)
    angles = (motion[..., None, :] * scales[:, None]).flatten(-2)
    return torch.cat([motion, torch.sin(torch.cat([angles, angles + 0.5 * math.pi], dim=-1))], dim=-1)


def to_network(frame_size: tuple[int, int], resolution: tuple[int, int]) -> tuple[float, float]:
    """(x, y) factors from pixels of a frame to pixels of the network's resolution, which come with corners aligned.

    Both count from the centre of the first pixel to that of the last, so this is a factor alone, (W' - 1) / (W - 1),
    where the contract's half-pixel rule has an offset as well.
    """
    (height, width), (rows, columns) = frame_size, resolution
    return (columns - 1) / max(width - 1, 1), (rows - 1) / max(height - 1, 1)
