"""Logistic regression on features: optimality by closed form and by SciPy, separable and constant features."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from training.finetuning.features import Features, fit_linear

D, C = 5, 3


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def made(videos, seed, noise=1.0):
    """Classes around centres of their own; the features have different units, and an offset."""
    rng = np.random.default_rng([1, seed])
    centres = np.random.default_rng(9).normal(size=(C, D))
    labels = rng.integers(0, C, videos)
    x = centres[labels] + noise * rng.normal(size=(videos, D))
    x = x * np.array([1, 100, 0.01, 3, 7]) + np.array([0, 5, -1, 0, 1000])
    return Features(features=x.astype(np.float32), labels=labels, ids=tuple(map(str, range(videos))))


def standardised(fit, part):
    return (part.features.astype(float) - fit.mean) / fit.std


def test_the_gradient_at_the_solution_is_zero_in_closed_form():
    train, validation = made(61, 0), made(37, 1)
    fit = fit_linear(train, validation, C)
    x = standardised(fit, train)
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(x.std(axis=0), 1, atol=1e-9)
    excess = softmax(x @ fit.weight.T + fit.bias, axis=1) - np.eye(C)[train.labels]
    np.testing.assert_allclose(excess.T @ x / 61 + fit.l2 * fit.weight, 0, atol=2e-7)
    np.testing.assert_allclose(excess.mean(axis=0), 0, atol=2e-7)
    assert np.abs(fit.weight).max() > 0.1
    assert fit.l2 in fit.validation_top1


def test_a_saved_classifier_gives_the_same_scores_by_numpy_alone(tmp_path):
    train = made(61, 0)
    fit = fit_linear(train, made(37, 1), C)
    fit.save(tmp_path / "linear.npz")
    kept = np.load(tmp_path / "linear.npz")
    scores = (train.features - kept["mean"]) / kept["std"] @ kept["weight"].T + kept["bias"]
    np.testing.assert_array_equal(scores, fit.logits(train.features))


@pytest.mark.parametrize("l2", [1.0, 1e-3])
def test_the_solution_is_scipy_s(l2):
    train = made(61, 0)
    fit = fit_linear(train, made(37, 1), C, l2_grid=[l2])
    x = standardised(fit, train)

    def loss(flat):
        weight, bias = flat[: C * D].reshape(C, D), flat[C * D :]
        logs = log_softmax(x @ weight.T + bias, axis=1)
        return -logs[np.arange(61), train.labels].mean() + l2 / 2 * (weight**2).sum()

    found = minimize(loss, np.zeros(C * (D + 1)), method="BFGS", options={"gtol": 1e-7})
    # SciPy's gradient is by differences here: half the digits of float64
    np.testing.assert_allclose(fit.weight, found.x[: C * D].reshape(C, D), atol=2e-4)


def test_separable_features_are_told_apart_also_at_weak_strengths():
    train, validation, held_out = made(50, 0, noise=0.01), made(30, 1, noise=0.01), made(40, 2, noise=0.01)
    fit = fit_linear(train, validation, C, l2_grid=[1e-1, 1e-3, 1e-6])
    assert set(fit.validation_top1.values()) == {1.0}
    assert fit.l2 == 1e-6  # of those with all right, the least cross-entropy
    assert np.isfinite(fit.weight).all()
    result = fit.test(held_out)
    assert (result.top1, result.top5, result.ids) == (1.0, 1.0, held_out.ids)
    np.testing.assert_allclose(result.probabilities.sum(axis=1), 1, atol=1e-6)


def test_the_strength_is_the_one_of_which_validation_gets_most_right():
    """Of many features of noise, the weak strength fits the training videos alone."""
    rng = np.random.default_rng(3)

    def noisy(videos):
        labels = rng.integers(0, C, videos)
        x = np.concatenate([np.eye(C)[labels] + 0.5 * rng.normal(size=(videos, C)), rng.normal(size=(videos, 40))], 1)
        return Features(features=x.astype(np.float32), labels=labels, ids=("",) * videos)

    train, validation = noisy(90), noisy(400)
    fit = fit_linear(train, validation, C, l2_grid=[1e-6, 0.3])
    assert fit.l2 == 0.3
    assert fit.validation_top1[0.3] > fit.validation_top1[1e-6] + 0.05
    weak = fit_linear(train, validation, C, l2_grid=[1e-6])
    assert weak.test(train).top1 == 1.0
    again = fit_linear(train, validation, C, l2_grid=[0.3, 1e-6])
    assert np.array_equal(again.weight, fit.weight)
    assert np.array_equal(again.bias, fit.bias)


def test_a_constant_feature_has_no_say_and_a_class_without_videos_is_improbable():
    train, validation = made(61, 0), made(37, 1)
    with_constant = [
        Features(features=np.insert(p.features, 2, np.float32(0.1), axis=1), labels=p.labels, ids=p.ids)
        for p in (train, validation)
    ]
    fit, plain = fit_linear(*with_constant, C + 1), fit_linear(train, validation, C + 1)
    np.testing.assert_allclose(fit.weight[:, 2], 0, atol=1e-6)
    assert fit.std[2] == 1
    np.testing.assert_allclose(np.delete(fit.weight, 2, axis=1), plain.weight, atol=1e-5)
    assert fit.test(with_constant[0]).probabilities[:, C].max() < 0.01


def test_what_does_not_belong_together_is_refused():
    train, validation = made(20, 0), made(10, 1)
    with pytest.raises(ValueError, match=r"strengths of L2 are 0\.0; all must be above 0"):
        fit_linear(train, validation, C, l2_grid=[0.0])
    with pytest.raises(ValueError, match="training labels run from 0 to 2, there are 2 classes"):
        fit_linear(train, validation, 2)
    short = Features(features=validation.features[:, :3], labels=validation.labels, ids=validation.ids)
    with pytest.raises(ValueError, match="validation features have 3 values, training features 5"):
        fit_linear(train, short, C)
    broken = Features(features=validation.features * np.nan, labels=validation.labels, ids=validation.ids)
    with pytest.raises(ValueError, match="validation features are not all finite"):
        fit_linear(train, broken, C)
