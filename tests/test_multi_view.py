"""The multi-view test: hand-computed averages, timm's accuracy, and two ranks as one."""

import csv
import json
import os
import socket
import subprocess
import sys

import cv2
import multi_view_ranks as small
import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from small_vit import SMALL
from timm.utils import accuracy
from torch import nn

from training.distributed import Group
from training.finetuning import features, testing
from training.finetuning.confusion_figure import draw_confusion
from training.finetuning.testing import TestResult, write_test
from training.finetuning.video_outputs import TestingError
from training.model import ModelConfig, VideoEncoder

ALONE = Group(0, 1, torch.device("cpu"))
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])  # ImageNet's, as published


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def expected_logits(item, model):
    """In NumPy, from the frames on: (views, C)."""
    colours = (item["frames"].numpy() / 255 - MEAN) / STD  # views, T, H, W, 3
    flat = colours.mean(axis=(2, 3)).transpose(0, 2, 1).reshape(len(colours), -1)  # colours before frames
    return flat @ model.linear.weight.detach().numpy().astype(float).T + model.linear.bias.detach().numpy()


@pytest.mark.parametrize("most_views", [1, 4, 100])
def test_probabilities_are_averaged_over_the_views_of_a_video(most_views):
    model = small.Classifier().train()
    result = testing.test(model, small.items(), ALONE, most_views=most_views)
    assert model.training
    assert model.largest == min(most_views, small.VIEWS)
    read = [n for n in range(small.VIDEOS) if n not in small.UNREAD]
    assert result.ids == tuple(f"video {n}.mp4" for n in read)
    assert result.skipped == tuple((f"video {n}.mp4", "no frame could be decoded") for n in small.UNREAD)
    assert result.views == small.VIEWS
    logits = [expected_logits(small.video(n), model) for n in read]
    exponentials = [np.exp(own) for own in logits]
    expected = np.stack([(own / own.sum(axis=1, keepdims=True)).mean(axis=0) for own in exponentials])
    np.testing.assert_allclose(result.probabilities, expected, rtol=0, atol=2e-6)  # float32 of logits up to 10
    # the mean of the logits gives another class to one of these videos at least: the rule can be seen
    assert any(own.mean(axis=0).argmax() != mean.argmax() for own, mean in zip(logits, expected, strict=True))
    assert result.labels.tolist() == [small.video(n)["label"] for n in read]


def test_accuracies_are_those_of_timm():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.full(9, 0.3), size=203).astype(np.float32)
    labels = rng.integers(0, 8, 203)  # class 8 has no video
    result = TestResult(ids=("",) * 203, labels=labels, probabilities=probabilities)
    top1, top5 = accuracy(torch.from_numpy(probabilities), torch.from_numpy(labels), topk=(1, 5))
    assert 100 * result.top1 == pytest.approx(float(top1), abs=1e-4)
    assert 100 * result.top5 == pytest.approx(float(top5), abs=1e-4)
    assert result.top1 < result.top5 < 1
    own = [(result.predicted[labels == c] == c).mean() for c in range(8)]
    assert result.mean_class_accuracy == pytest.approx(np.mean(own), abs=1e-12)
    assert result.confusion[3, 5] == ((labels == 3) & (result.predicted == 5)).sum()
    assert result.confusion.sum(axis=1).tolist() == np.bincount(labels, minlength=9).tolist()
    assert result.confusion.sum(axis=0).tolist() == np.bincount(result.predicted, minlength=9).tolist()


def test_accuracies_by_hand():
    """Four videos, of three classes; the last video's probabilities are all alike, and it counts as the first class."""
    probabilities = np.array([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [0.6, 0.3, 0.1], [1 / 3] * 3], dtype=np.float32)
    result = TestResult(ids=tuple("abcd"), labels=np.array([0, 2, 1, 1]), probabilities=probabilities)
    assert result.predicted.tolist() == [0, 2, 0, 0]
    assert result.ranks.tolist() == [0, 0, 1, 1]
    assert (result.top1, result.top5) == (0.5, 1.0)
    assert result.mean_class_accuracy == pytest.approx(2 / 3)
    assert result.confusion.tolist() == [[1, 0, 0], [2, 0, 0], [0, 0, 1]]


def test_two_ranks_find_what_one_finds(tmp_path):
    """11 videos, of which two cannot be read: ranks have 6 and 5, of which 5 and 4 can be."""
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        port = own.getsockname()[1]
    environment = {
        **os.environ, "PYTHONPATH": str(REPOSITORY), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, str(REPOSITORY / "tests" / "multi_view_ranks.py"), str(tmp_path / f"{rank}.npz")],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in (0, 1)
    ]
    assert [process.wait(120) for process in processes] == [0, 0]
    result = testing.test(small.Classifier(), small.items(), ALONE, most_views=4)
    encoded = features.encode(small.Encoder(), small.items(), ALONE)
    for rank in (0, 1):
        found = np.load(tmp_path / f"{rank}.npz")
        assert found["ids"].tolist() == list(result.ids)
        assert found["labels"].tolist() == result.labels.tolist()
        assert [tuple(row) for row in found["skipped"].tolist()] == list(result.skipped)
        assert np.array_equal(found["probabilities"], result.probabilities)
        assert np.array_equal(found["features"], encoded.features)


def test_features_are_means_of_tokens_over_views():
    model = small.Encoder()
    found = features.encode(model, small.items(), ALONE, most_views=4)
    assert (found.features.dtype, found.features.shape) == (np.float32, (9, small.CLASSES))
    expected = (3 * expected_logits(small.video(7), model).mean(axis=0) + 1) / 2
    np.testing.assert_allclose(found.features[found.ids.index("video 7.mp4")], expected, atol=1e-5)
    assert found.labels[found.ids.index("video 7.mp4")] == small.video(7)["label"]
    assert [name for name, _ in found.skipped] == ["video 4.mp4", "video 9.mp4"]


def test_the_encoder_of_pretraining_is_one():
    torch.manual_seed(0)
    size = (32, 48)
    encoder = VideoEncoder(ModelConfig(size=SMALL, frames=4, input_size=size))
    frames = torch.randint(0, 256, (3, 4, *size, 3), dtype=torch.uint8)
    found = features.encode(encoder, [{"frames": frames, "label": 1, "id": "a"}], ALONE)
    with torch.no_grad():
        tokens = encoder(torch.from_numpy(((frames.numpy() / 255 - MEAN) / STD).transpose(0, 4, 1, 2, 3)).float())
    assert tokens.shape == (3, 2 * 2 * 3, 60)
    np.testing.assert_allclose(found.features[0], tokens.mean(dim=(0, 1)).numpy(), atol=1e-5)


class Broken(small.Classifier):
    def forward(self, video):
        logits = super().forward(video)
        return torch.where(video.mean(dim=(1, 2, 3, 4))[:, None] > 0, logits, torch.nan)


def test_what_cannot_be_counted_is_an_error():
    model = small.Classifier()
    unread = [item for item in small.items() if "skipped" in item]
    with pytest.raises(TestingError, match=r"no video could be read, of 2\n  video 4\.mp4: no frame could"):
        testing.test(model, unread, ALONE)
    with pytest.raises(TestingError, match="no video could be read, of 0"):
        testing.test(model, [], ALONE)
    with pytest.raises(TestingError, match=r"output is not finite for \d of 9 videos: video \d"):
        testing.test(Broken(), small.items(), ALONE)
    for label in (-1, 7):
        with pytest.raises(TestingError, match=rf"7 classes apart, and video video 0\.mp4 has the label {label}"):
            testing.test(model, [{**small.video(0), "label": label}], ALONE)
    with pytest.raises(TestingError, match="different numbers of views: 2, 6"):
        testing.test(model, [small.video(0), small.video(1, views=2)], ALONE)


def test_ranks_that_do_not_share_out_one_list_are_refused(monkeypatch):
    """Rank 1 takes what rank 0 has as well."""
    both = "training.finetuning.video_outputs.gather_objects"
    monkeypatch.setattr(both, lambda own: [own, own[:3]])
    with pytest.raises(TestingError, match="2 processes had 11, 3 videos, where 7, 7 of 14 are theirs"):
        testing.test(small.Classifier(), small.items(), ALONE)


def test_a_test_is_written_as_json_tables_and_a_picture(tmp_path):
    result = testing.test(small.Classifier(), small.items(), ALONE)
    names = ["a, b", "ü", 'say "x"', "d", "e", "f", "a name much longer than what fits at the axis of a picture"]
    content = write_test(tmp_path / "run", result, names, {"checkpoint": "x.pt"})
    run = tmp_path / "run"
    assert json.loads((run / "test.json").read_text(encoding="utf-8")) == content
    assert content["skipped"][1] == {"id": "video 9.mp4", "reason": "no frame could be decoded"}
    assert (content["videos"], content["views"], content["classes"]) == (9, 6, 7)
    assert (content["checkpoint"], content["top1"]) == ("x.pt", result.top1)
    with (run / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == list(result.ids)
    right = sum(row["true"] == row["predicted"] for row in rows)
    assert right / 9 == result.top1 == sum(row["rank"] == "1" for row in rows) / 9
    assert [names.index(row["true"]) for row in rows] == result.labels.tolist()
    for row, own in zip(rows, result.probabilities, strict=True):
        assert float(row["probability"]) == pytest.approx(own.max(), abs=1e-6)
        assert float(row["true_probability"]) == pytest.approx(own[names.index(row["true"])], abs=1e-6)
    assert np.array_equal(np.load(run / "probabilities.npy"), result.probabilities)
    with (run / "confusion.csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.reader(file))
    assert table[0][1:] == names == [row[0] for row in table[1:]]
    assert [[int(count) for count in row[1:]] for row in table[1:]] == result.confusion.tolist()
    assert cv2.imread(str(run / "confusion.png")) is not None
    with pytest.raises(ValueError, match="2 names for 7 classes"):
        write_test(run, result, names[:2])


def test_the_picture_has_rows_of_true_classes(tmp_path):
    """All three videos of class 0 are taken for class 2; class 1 has none; class 2's are right."""
    confusion = np.array([[0, 0, 3], [0, 0, 0], [0, 0, 2]])
    picture = draw_confusion(tmp_path / "x.png", confusion, ("i", "i", "i"))
    read = cv2.imread(str(tmp_path / "x.png"))[..., ::-1]
    assert np.array_equal(picture, read)
    cell, top = 48, 24
    left = picture.shape[1] - top - 3 * cell
    colours = [[tuple(picture[top + r * cell + 3, left + c * cell + 3].tolist()) for c in range(3)] for r in range(3)]
    assert colours[0][2] == colours[2][2]
    assert sum(colours[0][2]) > 400 > sum(colours[0][0])  # viridis: yellow, and dark violet
    assert colours[0][0] == colours[0][1] == colours[2][0]
    assert colours[1] == [(210, 210, 210)] * 3
    large = draw_confusion(tmp_path / "y.png", np.eye(700, dtype=np.int64), [str(n) for n in range(700)])
    assert large.shape[0] >= 700
    assert cv2.imread(str(tmp_path / "y.png")).shape == large.shape


def test_a_module_s_parameters_get_no_gradient():
    model = small.Classifier()
    testing.test(model, small.items(), ALONE)
    assert all(parameter.grad is None for parameter in nn.ModuleList([model]).parameters())
