"""Homographies of a batch of frame pairs by RANSAC, all hypotheses at once (Fischler & Bolles 1981).

Homographies are float64 (..., 3, 3) and act on (x, y, 1) column vectors, points float64 (..., 2), x and y in px. Point
pairs come in a fixed number of slots K for each pair of frames, of which the first `count` are real.
"""

import functools

import numpy as np
import torch
from torch import Tensor

from data_specs.recipe import Recipe
from extraction.camera import LARGEST_SHIFT

_HYPOTHESES = 512
_AT_ONCE = 128  # hypotheses that are scored in one go: bounds the memory
_REFINEMENTS = 10
_SEED = 20220611


def estimate_homographies(
    in_a: Tensor, in_b: Tensor, count: Tensor, frame_size: tuple[int, int], recipe: Recipe
) -> tuple[Tensor, Tensor]:
    """G from a to b for each pair, (B, 3, 3), and whether it was estimated, bool (B,); the identity where not.

    in_a, in_b: (B, K, 2). count: (B,). Of 512 homographies through four point pairs, the same slots for every pair of
    frames, the one with the best score is refined: reprojection errors are minimised over its inliers (Gauss-Newton),
    and the inliers found anew, ten times. Support is too weak where `extraction.camera.estimate_camera` says so.
    """
    identity = torch.eye(3, dtype=torch.float64, device=in_a.device).expand(len(in_a), 3, 3)
    if in_a.shape[1] < 4:
        return identity.clone(), torch.zeros(len(in_a), dtype=torch.bool, device=in_a.device)
    # in units of half the diagonal about the frame's centre the equations are well posed
    scale = 2 / float(np.hypot(*frame_size))
    x, y = (frame_size[1] - 1) / 2, (frame_size[0] - 1) / 2
    centre = in_a.new_tensor([x, y])
    unit_a, unit_b = (in_a - centre) * scale, (in_b - centre) * scale
    real = torch.arange(in_a.shape[1], device=in_a.device) < count[:, None]
    bound = (recipe.ransac_px * scale) ** 2
    best = _best_hypothesis(unit_a, unit_b, real, count, bound)
    for _ in range(_REFINEMENTS):
        best = _refined(best, unit_a, unit_b, _inliers(best, unit_a, unit_b, real, bound))
    inliers = _inliers(best, unit_a, unit_b, real, bound).sum(1)
    to_unit = in_a.new_tensor([[scale, 0, -scale * x], [0, scale, -scale * y], [0, 0, 1]])
    from_unit = in_a.new_tensor([[1 / scale, 0, x], [0, 1 / scale, y], [0, 0, 1]])
    homographies = from_unit @ best @ to_unit
    homographies = homographies / homographies[:, 2:, 2:]
    good = (count >= recipe.min_inliers) & (inliers >= recipe.min_inliers) & are_plausible(homographies, frame_size)
    return torch.where(good[:, None, None], homographies, identity), good


def apply_homographies(homographies: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """x and y (B, ...) under each pair's homography (B, 3, 3)."""
    h = homographies.reshape(len(homographies), 9, *[1] * (x.ndim - 1)).unbind(1)
    w = h[6] * x + h[7] * y + h[8]
    return (h[0] * x + h[1] * y + h[2]) / w, (h[3] * x + h[4] * y + h[5]) / w


def are_plausible(homographies: Tensor, frame_size: tuple[int, int]) -> Tensor:
    """`extraction.camera.is_plausible` of each of (B, 3, 3): bool (B,)."""
    height, width = frame_size
    corners = homographies.new_tensor([[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]])
    x, y = corners.T.expand(len(homographies), 2, 4).unbind(1)
    inverses = adjugate(homographies)  # times the determinant, which has to be positive anyway
    depths = [h[:, 2, :1] * x + h[:, 2, 1:2] * y + h[:, 2, 2:] for h in (homographies, inverses)]
    moved_x, moved_y = apply_homographies(homographies, x, y)
    shift = torch.sqrt((moved_x - x) ** 2 + (moved_y - y) ** 2)
    stays = (shift < LARGEST_SHIFT * float(np.hypot(height, width))).all(1)  # false for NaN
    return (
        homographies.isfinite().all(2).all(1)
        & (torch.minimum(*depths) > 0).all(1)
        & (_determinant(homographies) > 0)
        & stays
    )


def _determinant(m: Tensor) -> Tensor:
    determinant: Tensor = torch.linalg.vecdot(m[..., 0, :], torch.linalg.cross(m[..., 1, :], m[..., 2, :]))
    return determinant


@functools.cache
def _draws(device: torch.device) -> Tensor:
    """Four numbers within 0 ... 1 for each hypothesis, always the same."""
    return torch.from_numpy(np.random.default_rng(_SEED).random((_HYPOTHESES, 4))).to(device)


def _four_of(count: Tensor) -> Tensor:
    """Four different slots below each count, int64 (B, hypotheses, 4); where there are not four, some repeat."""
    drawn: list[Tensor] = []
    for number, draws in enumerate(_draws(count.device).unbind(1)):
        slot = (draws * (count[:, None] - number).clamp(min=1)).long()
        # the slot-th of those not drawn yet: step over the drawn ones in ascending order
        for before in torch.stack(drawn, -1).sort(-1).values.unbind(-1) if drawn else ():
            slot = slot + (slot >= before)
        drawn.append(slot)
    return torch.stack(drawn, -1)


def _through_four(points: Tensor) -> Tensor:
    """The homography (..., 3, 3) that takes the projective basis to four points (..., 4, 2)."""
    p = torch.cat([points, torch.ones_like(points[..., :1])], -1)
    p1, p2, p3, p4 = p.unbind(-2)
    # p4 = sum of weight_i p_i, by Cramer's rule; the common factor drops out
    weights = [(p4 * torch.linalg.cross(q, r)).sum(-1, keepdim=True) for q, r in ((p2, p3), (p3, p1), (p1, p2))]
    return torch.stack([weight * q for weight, q in zip(weights, (p1, p2, p3), strict=True)], -1)


def adjugate(m: Tensor) -> Tensor:
    """The inverse but for a factor."""
    a, b, c = m.unbind(-1)
    return torch.stack([torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)], -2)


def _best_hypothesis(in_a: Tensor, in_b: Tensor, real: Tensor, count: Tensor, bound: float) -> Tensor:
    slots = _four_of(count).clamp(max=in_a.shape[1] - 1)
    batch = torch.arange(len(in_a), device=in_a.device)[:, None, None]
    hypotheses: Tensor = _through_four(in_b[batch, slots]) @ adjugate(_through_four(in_a[batch, slots]))
    hypotheses = hypotheses / torch.linalg.vector_norm(hypotheses, dim=(2, 3), keepdim=True)
    # to score them single precision will do, and is what the device is fast at
    points = torch.cat([in_a, torch.ones_like(in_a[..., :1])], -1).float().transpose(1, 2)
    targets = in_b.float()
    scores = []
    for first in range(0, _HYPOTHESES, _AT_ONCE):
        u, v, w = torch.matmul(hypotheses[:, first : first + _AT_ONCE].float(), points[:, None]).unbind(2)
        error = ((u - targets[:, None, :, 0] * w) ** 2 + (v - targets[:, None, :, 1] * w) ** 2) / (w * w)
        # by how near its inliers are (MSAC, Torr & Zisserman 2000); what is not a number is no inlier
        scores.append(torch.where((error <= bound) & real[:, None], bound - error, 0).sum(2))
    best = torch.cat(scores, 1).argmax(1)
    return hypotheses[torch.arange(len(in_a), device=in_a.device), best]


def _inliers(homographies: Tensor, in_a: Tensor, in_b: Tensor, real: Tensor, bound: float) -> Tensor:
    x, y = apply_homographies(homographies, in_a[..., 0], in_a[..., 1])
    return ((x - in_b[..., 0]) ** 2 + (y - in_b[..., 1]) ** 2 <= bound) & real


def _refined(homographies: Tensor, in_a: Tensor, in_b: Tensor, inliers: Tensor) -> Tensor:
    """One Gauss-Newton step on the eight entries before the last, which is 1, over the inliers."""
    h = homographies / homographies[:, 2:, 2:]
    x, y = in_a.unbind(-1)
    u, v = apply_homographies(h, x, y)
    w = h[:, 2, :1] * x + h[:, 2, 1:2] * y + 1
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    du = torch.stack([x, y, one, zero, zero, zero, -x * u, -y * u], -1)
    dv = torch.stack([zero, zero, zero, x, y, one, -x * v, -y * v], -1)
    jacobian = torch.stack([du, dv], 2) / w[..., None, None]
    residual = torch.stack([in_b[..., 0] - u, in_b[..., 1] - v], 2)
    used = inliers[..., None]
    jacobian = torch.where(used[..., None], jacobian, 0).flatten(1, 2)
    residual = torch.where(used, residual, 0).flatten(1, 2)
    normal = jacobian.transpose(1, 2) @ jacobian
    step, _ = torch.linalg.solve_ex(normal, (jacobian.transpose(1, 2) @ residual[..., None]))
    moved = h.flatten(1) + torch.cat([step[..., 0], torch.zeros_like(step[:, :1, 0])], 1)
    better = moved.isfinite().all(1) & (inliers.sum(1) >= 4)
    return torch.where(better[:, None, None], moved.reshape(-1, 3, 3), h)
