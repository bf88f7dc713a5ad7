"""What the heads must predict: the papers' formulas, written out token by token, and what released codes get wrong."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from training.losses import constant_error, moments, squared_errors
from training.recipe import HeadOptions, PretrainRecipe, RecipeError, load_recipe, recipe_names
from training.targets import check_normalisation, compute_targets, head_sizes

CLIPS, STEPS, CHANNELS = 2, 3, 1


def recipe(name="displacement", normalise="patch", floor=0.0, **fields):
    """Clips of 6 frames of 48 x 48: tokens (3, 3, 3), points (6, 6)."""
    heads = {name: HeadOptions(normalise=normalise, floor=floor)}
    return PretrainRecipe(name="test", heads=heads, **{"frames": 6, "input_size": 48, **fields})


def make_batch(seed=0, valid_share=0.8, per_side=2):
    rng = np.random.default_rng(seed)
    grid = (CLIPS, 3, 3 * per_side, 3 * per_side)

    def floats(*inner):
        return torch.from_numpy(rng.normal(size=(*grid, *inner)).astype(np.float32))

    def bools(*inner):
        return torch.from_numpy(rng.random((*grid, *inner)) < valid_share)

    tokens = np.stack([rng.permutation(27)[:17] for _ in range(CLIPS)])
    return {
        "frames": torch.from_numpy(rng.integers(0, 256, (CLIPS, 6, 48, 48, 3), dtype=np.uint8)),
        "predict": torch.from_numpy(np.sort(tokens, axis=1)),
        "displacement": floats(STEPS, 2),
        "displacement_valid": bools(STEPS),
        "trajectory_hog": floats(STEPS, 9 * CHANNELS).abs(),
        "trajectory_hog_valid": bools(STEPS),
        "flow": floats(2),
        "hof": floats(9).abs(),
        "mbh": floats(2, 8).abs(),
        "cell_valid": bools(),
    }


def tokens_of(batch):
    """Each predicted token: (clip, its place in `predict`, t, h, w)."""
    for b, predicted in enumerate(batch["predict"].tolist()):
        for n, token in enumerate(predicted):
            yield b, n, *(int(i) for i in np.unravel_index(token, (3, 3, 3)))


def patch_of(field, b, t, h, w, per_side=2):
    """The K points of a token's patch, row-major: (K, ...)."""
    rows, columns = slice(h * per_side, (h + 1) * per_side), slice(w * per_side, (w + 1) * per_side)
    found = field[b, t, rows, columns].double().numpy()
    return found.reshape(-1, *found.shape[2:])


def full(target):
    values = target.values.double().numpy()
    return values, np.broadcast_to(target.weights.double().numpy(), values.shape)


@pytest.mark.parametrize("name", ["displacement", "trajectory_hog", "flow", "hof", "mbh"])
@pytest.mark.parametrize("per_side", [1, 2, 4])
def test_each_token_gets_its_own_trajectories(name, per_side):
    batch = make_batch(per_side=per_side)
    values, weights = full(compute_targets(batch, recipe(name, "none", points_per_side=per_side))[name])
    valid = batch[f"{name}_valid" if f"{name}_valid" in batch else "cell_valid"]
    for b, n, t, h, w in tokens_of(batch):
        counts = patch_of(valid, b, t, h, w, per_side) == 1
        measured = counts.reshape(counts.shape + (1,) * (values.ndim - 2 - counts.ndim))
        np.testing.assert_array_equal(weights[b, n], np.broadcast_to(measured, values[b, n].shape))
        np.testing.assert_allclose(values[b, n], np.where(measured, patch_of(batch[name], b, t, h, w, per_side), 0))


def test_patch_norm_of_displacements_is_the_papers_over_what_was_measured():
    """Per component and step over the patch's trajectories, unbiased; the loss mask is each trajectory's own."""
    batch = make_batch()
    values, weights = full(compute_targets(batch, recipe())["displacement"])
    lonely = 0
    for b, n, t, h, w in tokens_of(batch):
        steps = patch_of(batch["displacement"], b, t, h, w)  # (4, L, 2)
        valid = patch_of(batch["displacement_valid"], b, t, h, w) == 1
        for k in range(STEPS):
            x = steps[valid[:, k], k]
            if len(x) < 2:  # one value has no deviation
                lonely += 1
                assert weights[b, n, :, k].max() == 0
                continue
            np.testing.assert_array_equal(weights[b, n, :, k, 0] == 1, valid[:, k])
            expected = (x - x.mean(0)) / (x.std(0, ddof=1) + 1e-6)
            np.testing.assert_allclose(values[b, n, valid[:, k], k], expected, atol=2e-4)
    assert lonely
    assert np.isfinite(values).all()


def test_patch_norm_of_hog_is_joint_over_trajectories_steps_and_bins():
    batch = make_batch()
    values, weights = full(compute_targets(batch, recipe("trajectory_hog"))["trajectory_hog"])
    for b, n, t, h, w in tokens_of(batch):
        hog = patch_of(batch["trajectory_hog"], b, t, h, w)
        valid = patch_of(batch["trajectory_hog_valid"], b, t, h, w) == 1
        x = hog[valid]
        np.testing.assert_array_equal(weights[b, n, ..., 0] == 1, valid)
        np.testing.assert_allclose(values[b, n][valid], (x - x.mean()) / (x.std(ddof=1) + 1e-6), atol=1e-4)


def test_clip_norm_is_over_the_whole_clip_and_keeps_relative_speeds():
    batch = make_batch()
    values, _ = full(compute_targets(batch, recipe(normalise="clip"))["displacement"])
    for b, n, t, h, w in tokens_of(batch):
        everything = batch["displacement"][b].double().numpy()[batch["displacement_valid"][b].numpy()]
        valid = patch_of(batch["displacement_valid"], b, t, h, w) == 1
        expected = (patch_of(batch["displacement"], b, t, h, w) - everything.mean(0)) / everything.std(0, ddof=1)
        np.testing.assert_allclose(values[b, n][valid], expected[valid], atol=1e-4)


def still_and_moving(noise, speed):
    """A clip whose left half stands still and whose right half moves as one, seen by a tracker with noise."""
    batch = make_batch(valid_share=1.1)
    steps = noise * np.random.default_rng(3).normal(size=batch["displacement"].shape)
    steps[:, :, :, 3:, :, 0] += speed
    return batch | {"displacement": torch.from_numpy(steps.astype(np.float32))}


def test_patch_norm_hides_speed_and_the_other_norms_keep_it():
    """An exact 10-px pan and a still scene are the same target to the papers' patch norm."""
    still, moving = still_and_moving(0, 0), still_and_moving(0, 10)
    for normalise, floor, hidden in [
        ("patch", 0, True),
        ("patch-floor", 0.1, True),
        ("none", 0, False),
        ("clip", 0, False),
    ]:
        options = recipe(normalise=normalise, floor=floor)
        a, b = (full(compute_targets(x, options)["displacement"])[0] for x in (still, moving))
        of_movers = np.array([w == 2 for _, _, _, _, w in tokens_of(moving)]).reshape(CLIPS, -1)
        assert (np.abs(a - b)[of_movers].max() < 1e-3) == hidden, normalise


def test_a_noise_floor_keeps_the_trackers_noise_small():
    """0.05 px of noise on a still scene becomes a target as large as a moving object's, unless there is a floor."""
    noise = still_and_moving(0.05, 0)
    size = {
        normalise: np.sqrt(
            np.square(full(compute_targets(noise, recipe(normalise=normalise, floor=floor))["displacement"])[0]).mean()
        )
        for normalise, floor in [("patch", 0.0), ("patch-floor", 0.5)]
    }
    np.testing.assert_allclose(size["patch"], np.sqrt(3 / 4), rtol=0.01)  # unbiased: (K - 1) / K
    assert size["patch-floor"] < 0.1
    loud = still_and_moving(20, 0)
    near = full(compute_targets(loud, recipe(normalise="patch-floor", floor=0.5))["displacement"])[0]
    np.testing.assert_allclose(near, full(compute_targets(loud, recipe())["displacement"])[0], rtol=0.05, atol=0.05)


def test_pixels_are_videomaes_targets():
    """Per patch and colour, unbiased, in the order (frame of the tubelet, row, column, colour)."""
    batch = make_batch()
    values, weights = full(compute_targets(batch, recipe("pixels"))["pixels"])
    assert weights.min() == 1
    raw, _ = full(compute_targets(batch, recipe("pixels", "none"))["pixels"])
    for b, n, t, h, w in tokens_of(batch):
        patch = batch["frames"][b, 2 * t : 2 * t + 2, 16 * h : 16 * h + 16, 16 * w : 16 * w + 16].double().numpy() / 255
        np.testing.assert_allclose(raw[b, n], patch.reshape(-1, 3), atol=1e-6)
        x = patch.reshape(-1, 3)
        np.testing.assert_allclose(values[b, n], (x - x.mean(0)) / (x.std(0, ddof=1) + 1e-6), atol=1e-4)


def test_image_hog_is_that_of_the_tubelets_middle_frame():
    """Changing another frame changes nothing; changing one patch of the middle frame changes the tokens around it."""
    options = recipe("hog", "none")
    batch = make_batch()
    values, _ = full(compute_targets(batch, options)["hog"])
    assert values.shape[2:] == (4, 3, 9)
    other = batch | {"frames": batch["frames"].clone()}
    other["frames"][:, 0::2] = 0
    np.testing.assert_array_equal(full(compute_targets(other, options)["hog"])[0], values)
    one = batch | {"frames": batch["frames"].clone()}
    one["frames"][:, 3, 4:12, 36:44, 1] //= 2  # tubelet 1, token (0, 2), green
    changed = np.abs(full(compute_targets(one, options)["hog"])[0] - values).max((2, 4)) > 1e-4  # (B, Np, colour)
    for b, n, t, h, w in tokens_of(batch):
        assert changed[b, n].tolist() == [False, (t, h, w) == (1, 0, 2), False]


def test_merged_trajectories():
    batch = make_batch(valid_share=0.7)
    mean, mean_weights = full(compute_targets(batch, recipe(normalise="none", merge="mean"))["displacement"])
    longest, longest_weights = full(compute_targets(batch, recipe(normalise="none", merge="longest"))["displacement"])
    hog, hog_weights = full(compute_targets(batch, recipe("trajectory_hog", "none", merge="longest"))["trajectory_hog"])
    for b, n, t, h, w in tokens_of(batch):
        steps = patch_of(batch["displacement"], b, t, h, w)
        valid = patch_of(batch["displacement_valid"], b, t, h, w) == 1
        for k in range(STEPS):
            assert mean_weights[b, n, 0, k].max() == valid[:, k].any()
            if valid[:, k].any():
                np.testing.assert_allclose(mean[b, n, 0, k], steps[valid[:, k], k].mean(0), atol=1e-6)
        path = (np.linalg.norm(steps, axis=-1) * valid).sum(-1)
        best = max(range(4), key=lambda i: (valid[i].sum(), path[i]))
        np.testing.assert_array_equal(longest_weights[b, n, 0, :, 0] == 1, valid[best])
        np.testing.assert_allclose(longest[b, n, 0][valid[best]], steps[best][valid[best]], atol=1e-6)
        hog_valid = patch_of(batch["trajectory_hog_valid"], b, t, h, w)[best] == 1
        np.testing.assert_array_equal(hog_weights[b, n, 0, :, 0] == 1, hog_valid)
        expected = patch_of(batch["trajectory_hog"], b, t, h, w)[best][hog_valid]
        np.testing.assert_allclose(hog[b, n, 0][hog_valid], expected, atol=1e-6)


def test_which_trajectory_is_the_longest_is_not_the_other_clips_affair():
    """A batch of one has the targets that the clip has beside another one, in which something moves very fast."""
    options = recipe(normalise="none", merge="longest")
    batch = make_batch(valid_share=1.1)
    batch["displacement"][:] = torch.rand(batch["displacement"].shape, generator=torch.Generator().manual_seed(2)) / 50
    batch["displacement"][1] *= 1e6
    together = compute_targets(batch, options)["displacement"].values[0]
    alone = compute_targets({name: values[:1] for name, values in batch.items()}, options)["displacement"].values[0]
    torch.testing.assert_close(together, alone, rtol=0, atol=0)


class Colours:
    """Stands in for CLIP's tower: five numbers of each patch's colours. Remembers what it was asked for."""

    def __init__(self):
        self.asked = []

    def __call__(self, frames):
        self.asked.append(frames)
        patches = frames.double().reshape(len(frames), 3, 16, 3, 16, 3).mean((2, 4)).flatten(1, 2) / 255
        return torch.cat([patches, patches[..., :2] ** 2 - 1], dim=-1).float()


def colours_of(frame):
    """(3, 3, 5), patch by patch in NumPy."""
    found = np.empty((3, 3, 5))
    for h, w in np.ndindex(3, 3):
        mean = frame[16 * h : 16 * h + 16, 16 * w : 16 * w + 16].double().numpy().mean((0, 1)) / 255
        found[h, w] = [*mean, mean[0] ** 2 - 1, mean[1] ** 2 - 1]
    return found


def test_features_are_those_of_each_tubelets_first_frame():
    batch, options = make_batch(), recipe("clip", "none")
    target = compute_targets(batch, options, Colours())["clip"]
    values, weights = full(target)
    assert values.shape == (CLIPS, 17, 5) and weights.min() == 1
    for b, n, t, h, w in tokens_of(batch):
        np.testing.assert_allclose(values[b, n], colours_of(batch["frames"][b, 2 * t])[h, w], atol=1e-6)


@pytest.mark.parametrize("floor", [0.0, 0.05])
def test_clip_norm_of_features_is_the_released_code_s_over_all_tokens_of_the_clip(floor):
    """For each channel, unbiased, and the visible tokens take part."""
    batch = make_batch()
    values, _ = full(compute_targets(batch, recipe("clip", "clip", floor), Colours())["clip"])
    for b in range(CLIPS):
        everything = np.stack([colours_of(batch["frames"][b, 2 * t]) for t in range(3)]).reshape(27, 5)
        deviation = np.sqrt(everything.var(0, ddof=1) + floor**2) + 1e-6
        expected = ((everything - everything.mean(0)) / deviation)[batch["predict"][b]]
        np.testing.assert_allclose(values[b], expected, atol=1e-3)


def test_token_norm_of_features_is_over_the_channels_of_each():
    batch = make_batch()
    values, _ = full(compute_targets(batch, recipe("clip", "token"), Colours())["clip"])
    for b, n, t, h, w in tokens_of(batch):
        x = colours_of(batch["frames"][b, 2 * t])[h, w]
        np.testing.assert_allclose(values[b, n], (x - x.mean()) / (x.std(ddof=1) + 1e-6), atol=1e-5)


@pytest.mark.parametrize("normalise", ["none", "clip", "token"])
def test_features_are_computed_once_for_each_tubelet_and_weighed_once_for_each_token(normalise):
    """A weight for each of 768 channels would take as much memory as the target."""
    batch, colours = make_batch(), Colours()
    target = compute_targets(batch, recipe("clip", normalise), colours)["clip"]
    (asked,) = colours.asked
    assert torch.equal(asked, batch["frames"][:, ::2].flatten(0, 1))
    assert target.weights.shape == (CLIPS, 17, 1) and target.values.shape == (CLIPS, 17, 5)


def test_a_clip_has_the_same_features_whatever_is_beside_it():
    """So any number of ranks and micro-batches has the same targets."""
    batch, options = make_batch(), recipe("clip", "clip")
    together = compute_targets(batch, options, Colours())["clip"].values
    for b in range(CLIPS):
        alone = compute_targets({name: values[b : b + 1] for name, values in batch.items()}, options, Colours())
        torch.testing.assert_close(together[b : b + 1], alone["clip"].values)


def test_the_trivial_predictor_of_features_knows_the_mean_of_each_channel():
    batch = make_batch()
    target = compute_targets(batch, recipe("clip", "none"), Colours())["clip"]
    flat = target.values.reshape(-1, 5).double()
    summed = moments(target)
    assert summed.shape == (3, 5) and summed[0].tolist() == [34] * 5
    np.testing.assert_allclose(float(constant_error(summed)), float(((flat - flat.mean(0)) ** 2).sum()), rtol=1e-5)
    with_mean = flat.mean(0).expand(CLIPS, 17, 5)
    np.testing.assert_allclose(
        float(squared_errors({"clip": with_mean}, {"clip": target})["clip"]), float(constant_error(summed)), rtol=1e-5
    )


@pytest.mark.parametrize(
    ("name", "normalise"),
    [
        *itertools.product(
            ["displacement", "trajectory_hog", "pixels", "hog", "flow", "hof", "mbh"],
            ["patch", "none", "clip", "patch-floor"],
        ),
        *itertools.product(["clip"], ["none", "clip", "token"]),
    ],
)
def test_denormalising_gives_the_raw_values_back(name, normalise):
    batch = make_batch()
    options = recipe(name, normalise, floor=0.2 if normalise == "patch-floor" else 0)
    target = compute_targets(batch, options, Colours())[name]
    raw = compute_targets(batch, recipe(name, "none"), Colours())[name]
    counts = full(target)[1] == 1
    assert counts.mean() > 0.5
    flat = target.values.flatten(2)  # as a prediction comes
    np.testing.assert_allclose(target.denormalised(flat).numpy()[counts], raw.values.numpy()[counts], atol=1e-5)


def test_numbers_where_nothing_was_measured_never_count():
    """Whatever stands there, targets, weights and losses are the same: no zero is taken for a measurement."""
    batch = make_batch()
    options = dataclasses.replace(
        recipe(), heads={name: HeadOptions() for name in ("displacement", "trajectory_hog", "flow", "hof", "mbh")}
    )
    other = dict(batch)
    for name in options.heads:
        valid = batch[f"{name}_valid" if f"{name}_valid" in batch else "cell_valid"]
        field = batch[name].clone()
        field[~valid] = 777.0
        other[name] = field
    rng = torch.Generator().manual_seed(0)
    targets, changed = compute_targets(batch, options), compute_targets(other, options)
    predictions = {name: torch.randn(t.values.flatten(2).shape, generator=rng) for name, t in targets.items()}
    losses, changed_losses = squared_errors(predictions, targets), squared_errors(predictions, changed)
    for name in options.heads:
        torch.testing.assert_close(targets[name].values, changed[name].values)
        torch.testing.assert_close(losses[name], changed_losses[name])


@pytest.mark.parametrize("name", ["displacement", "trajectory_hog"])
def test_without_validity_what_was_not_measured_stands_still(name):
    batch = make_batch(valid_share=0.5)
    found = compute_targets(batch, recipe(name, "none", validity=False))[name]
    zeroed = torch.where(batch[f"{name}_valid"][..., None], batch[name], 0.0)
    for b, n, t, h, w in tokens_of(batch):
        np.testing.assert_array_equal(found.values[b, n].numpy(), patch_of(zeroed, b, t, h, w).astype(np.float32))
    assert (found.weights == 1).all()


def test_validity_is_an_option_of_trajectories():
    with pytest.raises(RecipeError, match=r"validity: only displacement and trajectory_hog"):
        recipe("pixels", validity=False)
    assert recipe("displacement", validity=False).predicting({"pixels": HeadOptions()}).validity


def test_losses_are_means_over_what_counts():
    batch = make_batch()
    targets = compute_targets(batch, recipe())
    values, weights = full(targets["displacement"])
    prediction = torch.randn(CLIPS, 17, 4 * STEPS * 2, generator=torch.Generator().manual_seed(1))
    total = squared_errors({"displacement": prediction}, targets)["displacement"]
    count = moments(targets["displacement"])[0].sum()
    errors = (prediction.double().numpy().reshape(values.shape) - values)[weights == 1]
    assert int(count) == (weights == 1).sum()
    np.testing.assert_allclose(float(total) / float(count), np.mean(errors**2), rtol=1e-5)


def test_the_trivial_predictor_is_the_mean_of_each_value_over_all_batches():
    options = recipe(normalise="none")
    targets = [compute_targets(make_batch(seed), options)["displacement"] for seed in range(3)]
    summed = torch.stack([moments(target) for target in targets]).sum(0)
    every = [full(target) for target in targets]
    x = np.concatenate([values.reshape(-1, 24) for values, _ in every])
    w = np.concatenate([weights.reshape(-1, 24) for _, weights in every])
    mean = (w * x).sum(0) / w.sum(0)
    np.testing.assert_allclose(float(constant_error(summed)), (w * (x - mean) ** 2).sum(), rtol=1e-6)
    assert float(summed[0].sum()) == w.sum()


def test_head_sizes_are_those_of_the_targets():
    heads = {name: HeadOptions() for name in ("displacement", "trajectory_hog", "pixels", "hog", "flow", "hof", "mbh")}
    options = dataclasses.replace(recipe(), heads=heads)
    targets = compute_targets(make_batch(), options)
    assert head_sizes(options, STEPS, CHANNELS) == {name: t.values.flatten(2).shape[2] for name, t in targets.items()}
    for model, width in ("vit_base_patch16", 768), ("vit_large_patch14", 1024):
        assert head_sizes(recipe("clip", "none", input_size=224, clip_model=model), STEPS, 1) == {"clip": width}


def test_a_single_value_cannot_be_standardised():
    with pytest.raises(RecipeError, match="points_per_side"):
        check_normalisation(recipe(points_per_side=1), length=1)
    check_normalisation(recipe(points_per_side=1), length=2)
    check_normalisation(recipe(points_per_side=1, normalise="clip"), length=1)
    with pytest.raises(RecipeError, match="flow"):
        check_normalisation(recipe("flow", points_per_side=1), length=6)


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_load_and_survive_json(name):
    loaded = load_recipe(name)
    assert loaded.name == name
    assert PretrainRecipe.from_json(loaded.to_json(), "test") == loaded


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mask_ratio": 1.0}, "mask_ratio is 1.0"),
        ({"frames": 5}, "multiple of tubelet"),
        ({"input_size": 50}, "multiple of patch"),
        ({"points_per_side": 3}, "must divide patch"),
        ({"heads": {}}, "name at least one target"),
        ({"heads": {"pixels": {"normalise": "patch-floor"}}}, "must be more than 0"),
        ({"heads": {"pixels": {"weight": 0}}}, "weight is 0"),
        ({"heads": {"wheels": {}}}, "wheels"),
        ({"crop_scales": [1.5]}, "crop_scales"),
        ({"anchoring": "frame"}, "anchoring"),
        ({"anchoring": "clip", "shuffle_frames": True}, "shuffle_frames"),
        ({"anchoring": "clip", "trajectory_length": 3}, "trajectory_length"),
        ({"heads": {"hog": {}}, "patch": 12, "input_size": 96}, "patch is 12.*multiple of 8"),
        ({"hog_l2": True}, "hog_l2"),
        ({"heads": {"pixels": {}}, "merge": "mean", "trajectory_length": 3}, "trajectory_length, merge: only"),
        ({"heads": {"flow": {}}, "remove_camera": False}, "remove_camera"),
        ({"clip_grad": 0.0}, "clip_grad is 0.0"),
        ({"base_lr": -1e-4}, "base_lr is -0.0001"),
        ({"heads": {"clip": {}}}, "clip is normalised by patch, but a patch has one feature: take clip, token or none"),
        ({"heads": {"clip": {"normalise": "patch-floor", "floor": 1}}}, "clip is normalised by patch-floor"),
        ({"heads": {"pixels": {"normalise": "token"}}}, "pixels is normalised by token"),
        ({"heads": {"clip": {"normalise": "token", "floor": 0.1}}}, "token, which has no floor"),
        (
            {"clip_model": "vit_large_patch14"},
            "clip_model: only clip would use that; the heads are displacement, trajectory_hog",
        ),
        ({"clip_model": "vit_huge"}, "clip_model"),
        (
            {"heads": {"clip": {"normalise": "none"}}, "clip_model": "vit_large_patch14", "input_size": 192},
            "input_size is 192, with clip_model vit_large_patch14 it must be a multiple of 14",
        ),
    ],
)
def test_wrong_recipes_are_refused_by_field_and_value(fields, message):
    with pytest.raises(RecipeError, match=message):
        PretrainRecipe.from_json({**load_recipe("mme").to_json(), **fields}, "recipe mine.yaml")


def test_some_of_a_recipe_s_heads():
    """Options that the others alone use are as if they were not given: the rest is a recipe that could be written."""
    clip = dataclasses.replace(load_recipe("trackmae-clip-l14"), mask="tube")
    motion = clip.with_heads(["displacement"])
    assert motion.heads == {"displacement": HeadOptions(weight=0.25)}
    assert (motion.anchoring, motion.remove_camera, motion.mask_ratio) == ("clip", False, 0.8)
    assert motion.clip_model == "vit_base_patch16"
    spatial = clip.with_heads(["clip"])
    assert spatial.heads == {"clip": HeadOptions(normalise="clip")}
    assert (spatial.clip_model, spatial.decoder, spatial.decoder_depth) == ("vit_large_patch14", "separate", 4)
    assert (spatial.anchoring, spatial.remove_camera) == ("tubelet", True)
    by_motion = dataclasses.replace(clip, mask="motion-bins").with_heads(["clip"])  # the mask's trajectories
    assert (by_motion.anchoring, by_motion.remove_camera) == ("clip", False)
    assert clip.with_heads(["displacement", "clip"]) == clip  # in the recipe's order
    assert load_recipe("maskfeat").with_heads(["hog"]).hog_l2
    others = clip.predicting({"pixels": HeadOptions()})
    assert others == dataclasses.replace(spatial, heads={"pixels": HeadOptions()}, clip_model="vit_base_patch16")
    for names in ["pixels"], ["clip", "wheels"], [""]:
        with pytest.raises(RecipeError, match=f"has no head '{names[-1]}'; it has clip, displacement"):
            clip.with_heads(names)


def test_trackmae_s_recipes_are_the_paper_s():
    """L = L_spatial + lambda * L_motion with lambda 1 (pixels) and 0.25 (CLIP); masks of 0.9 and 0.8; two decoders."""
    pixels, clip, large = (load_recipe(name) for name in ("trackmae", "trackmae-clip", "trackmae-clip-l14"))
    assert {name: (head.weight, head.normalise) for name, head in pixels.heads.items()} == {
        "pixels": (1.0, "patch"),
        "displacement": (1.0, "patch"),
    }
    assert {name: (head.weight, head.normalise) for name, head in clip.heads.items()} == {
        "clip": (1.0, "clip"),
        "displacement": (0.25, "patch"),
    }
    assert (pixels.mask_ratio, clip.mask_ratio, large.mask_ratio) == (0.9, 0.8, 0.8)
    assert (clip.clip_model, large.clip_model) == ("vit_base_patch16", "vit_large_patch14")
    assert dataclasses.replace(large, name=clip.name, clip_model=clip.clip_model) == clip
    for each in pixels, clip:
        assert (each.anchoring, each.remove_camera, each.point_grid) == ("clip", False, (28, 28))
        assert (each.decoder, each.decoder_depth, each.epochs, each.warmup_epochs) == ("separate", 4, 800, 40)
        assert (each.base_lr, each.weight_decay, each.betas) == (1.5e-4, 0.05, (0.9, 0.95))
        assert (each.frames, each.tubelet, each.crop_scales) == (16, 2, (1.0, 0.875, 0.75, 0.66))
