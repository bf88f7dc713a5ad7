"""Mixup, cutmix, random erasing and the loss of soft labels against their formulas, timm's and torch's."""

import random

import numpy as np
import pytest
import torch
from timm.loss import SoftTargetCrossEntropy
from torch.nn import functional

from training.finetuning.classification import Classification
from training.finetuning.erasing import ClipErasing
from training.finetuning.mixing import ClipMixing
from training.frames import normalise_frames

# timm draws from NumPy's global generator
seed_numpy, uniform, beta = np.random.seed, np.random.rand, np.random.beta
T, H, W, CLASSES = 2, 10, 14, 5
OFF = dict(classes=CLASSES, mixup=0.0, cutmix=0.0, prob=1.0, switch_prob=0.5, label_smoothing=0.1)


def mixing(**changes):
    return ClipMixing(**{**OFF, **changes})


def clips(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((count, 3, T, H, W), generator=generator), torch.arange(count) % CLASSES


def smooth(labels, smoothing=0.1):
    """By hand: 1 - s + s / C for the class, s / C for the others."""
    return torch.stack([
        torch.tensor([smoothing / CLASSES + (1 - smoothing) * (c == label) for c in range(CLASSES)])
        for label in labels.tolist()
    ])  # fmt: skip


def test_labels_are_smoothed():
    _, labels = clips(4)
    video, soft = mixing()(torch.zeros(4, 3, T, H, W), labels)
    torch.testing.assert_close(soft, smooth(labels))
    assert not video.any()
    hard = mixing(label_smoothing=0.0).labels(labels)
    torch.testing.assert_close(hard, functional.one_hot(labels, CLASSES).float())


@pytest.mark.parametrize("count", [4, 5, 1])
def test_mixup_is_the_formula(count):
    """lam from the same generator, with timm's order of draws: whether to mix, then the Beta distribution."""
    video, labels = clips(count)
    seed_numpy(3)
    uniform()
    lam = beta(0.8, 0.8)
    seed_numpy(3)
    mixed, soft = mixing(mixup=0.8)(video.clone(), labels)
    assert 0.01 < lam < 0.99
    torch.testing.assert_close(mixed, lam * video + (1 - lam) * video.flip(0))
    torch.testing.assert_close(soft, lam * smooth(labels) + (1 - lam) * smooth(labels.flip(0)))


@pytest.mark.parametrize("seed", range(6))
def test_cutmix_takes_one_box_of_every_frame_and_labels_by_its_area(seed):
    video, labels = clips(4)
    seed_numpy(seed)
    mixed, soft = mixing(cutmix=1.0)(video.clone(), labels)
    other = video.flip(0)
    taken = (mixed == other).all(dim=1)  # (B, T, H, W)
    assert torch.equal(mixed, torch.where(taken[:, None], other, video))
    box = taken[0, 0]
    assert torch.equal(taken, box.expand(4, T, H, W))  # the same in every clip and frame
    rows, columns = box.any(dim=1), box.any(dim=0)
    assert torch.equal(box, rows[:, None] & columns[None])
    share = box.float().mean().item()
    torch.testing.assert_close(soft, (1 - share) * smooth(labels) + share * smooth(labels.flip(0)))


def test_both_are_mixed_as_by_timm_s_own_mixup():
    from timm.data import Mixup

    video, labels = clips(6)
    theirs = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, prob=0.7, switch_prob=0.4, label_smoothing=0.1, num_classes=5)
    ours = mixing(mixup=0.8, cutmix=1.0, prob=0.7, switch_prob=0.4)
    kinds = set()
    for seed in range(12):
        seed_numpy(seed)
        expected, expected_labels = theirs(video.reshape(6, 3 * T, H, W).clone(), labels)
        seed_numpy(seed)
        found, found_labels = ours(video.clone(), labels)
        torch.testing.assert_close(found.reshape(6, 3 * T, H, W), expected, rtol=0, atol=0)
        torch.testing.assert_close(found_labels, expected_labels, rtol=0, atol=0)
        changed = found != video
        kinds.add("none" if not changed.any() else "mixup" if changed.all() else "cutmix")
    assert kinds == {"none", "mixup", "cutmix"}


def test_a_rectangle_of_a_clip_becomes_noise_in_all_of_its_frames():
    """In as many clips as it should, with area and aspect in the ranges of the paper's code and timm's."""
    height, width, count = 40, 56, 400
    torch.manual_seed(0)
    random.seed(0)
    video = torch.full((count, 3, T, height, width), 9.0)  # N(0, 1) does not come to that
    shares, aspects, noise = [], [], []
    for clip in ClipErasing(0.25)(video):
        erased = clip != 9
        assert torch.equal(erased, erased[0, 0].expand_as(erased))
        if not erased.any():
            continue
        rows, columns = (erased[0, 0].any(dim=1 - axis) for axis in (0, 1))
        assert torch.equal(erased[0, 0], rows[:, None] & columns[None])
        shares.append(erased[0, 0].float().mean().item())
        aspects.append((rows.sum() / columns.sum()).item())
        noise.append(clip[erased])
    assert len(shares) == pytest.approx(0.25 * count, abs=3 * (0.25 * 0.75 * count) ** 0.5)
    assert 0.015 < min(shares) < 0.06  # of .02, to whole pixels
    assert 0.25 < max(shares) < 0.345
    assert 0.25 < min(aspects) < 0.5
    assert 2 < max(aspects) < 4
    values = torch.cat(noise)
    assert values.mean().item() == pytest.approx(0, abs=0.02)
    assert values.std().item() == pytest.approx(1, abs=0.02)


def test_erasing_is_off_by_0_and_comes_before_mixing():
    video, _ = clips(4)
    assert torch.equal(ClipErasing(0.0)(video.clone()), video)
    given, own = batch(4), objective(erase=1.0, mixup=0.8)
    torch.manual_seed(1)
    random.seed(1)
    seed_numpy(1)
    _, predictions = own.errors(linear, given, own.targets(given))
    torch.manual_seed(1)
    random.seed(1)
    seed_numpy(1)
    erased = ClipErasing(1.0)(normalise_frames(given["frames"]))
    assert (erased != normalise_frames(given["frames"])).flatten(1).any(dim=1).all()
    torch.testing.assert_close(predictions["scores"], linear(mixing(mixup=0.8)(erased, given["label"])[0]))


def objective(erase=0.0, **changes):
    return Classification(erasing=ClipErasing(erase), mixing=mixing(**changes), classes=CLASSES, clip_size=(T, H, W))


def batch(count, seed=0):
    frames = np.random.default_rng(seed).integers(0, 256, (count, T, H, W, 3), dtype=np.uint8)
    return {"frames": torch.from_numpy(frames), "label": torch.arange(count) % CLASSES}


def linear(video):
    """A model of one weight for each channel and class."""
    weights = torch.linspace(-1, 1, 3 * CLASSES).reshape(3, CLASSES)
    return video.mean(dim=(2, 3, 4)) @ weights


@pytest.mark.parametrize("changes", [{}, {"mixup": 0.8, "cutmix": 1.0}])
def test_the_error_is_the_cross_entropy_of_timm_and_torch(changes):
    given, own = batch(7), objective(**changes)
    seed_numpy(2)
    errors, predictions = own.errors(linear, given, own.targets(given))
    seed_numpy(2)
    video, labels = mixing(**changes)(normalise_frames(given["frames"]), given["label"])
    scores = linear(video)
    torch.testing.assert_close(predictions["scores"], scores)
    torch.testing.assert_close(errors, 7 * SoftTargetCrossEntropy()(scores, labels)[None])
    torch.testing.assert_close(errors, functional.cross_entropy(scores, labels, reduction="sum")[None])


def test_the_best_constant_is_found_in_no_matter_how_the_batch_is_divided():
    """The mean label's cross-entropy, whether the labels are mixed or not; the oracle tries out constants."""
    whole = batch(7)
    parts = [{name: value[part] for name, value in whole.items()} for part in (slice(0, 4), slice(4, 7))]
    own = objective(mixup=0.8)
    summed = sum(own.moments([own.targets(part)], torch.device("cpu")) for part in parts)
    summed += own.moments([], torch.device("cpu"))
    count, error = own.judge(summed)
    assert count.tolist() == [7]
    labels = own.targets(whole).double()
    torch.testing.assert_close(summed[1:], labels.sum(0))
    mean = labels.mean(0)
    best = -(labels @ mean.log()).sum()
    torch.testing.assert_close(error, best[None])
    for other in torch.eye(CLASSES).double() * 0.05:
        moved = (mean + other) / (mean + other).sum()
        assert -(labels @ moved.log()).sum() > best
    seed_numpy(0)
    _, mixed = mixing(mixup=0.8)(normalise_frames(whole["frames"]), whole["label"])
    torch.testing.assert_close(mixed.sum(0), labels.sum(0).float())


def test_labels_that_are_never_there_have_no_part_in_the_entropy():
    own = objective(label_smoothing=0.0)
    _, error = own.judge(own.moments([own.targets({"label": torch.tensor([1, 1, 3, 3])})], torch.device("cpu")))
    assert error.item() == pytest.approx(4 * np.log(2))
    assert own.judge(torch.zeros(6, dtype=torch.float64))[1].tolist() == [0]


def test_a_rank_without_a_clip_gives_gradients_of_0():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * T * H * W, CLASSES))
    objective().idle(model, torch.device("cpu")).backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
