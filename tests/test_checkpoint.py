"""Checkpoints are whole, readable without pickle's dangers, and say what is wrong with them."""

import os
import random
import time

import numpy
import pytest
import torch

from training import checkpoint
from training.checkpoint import (
    CheckpointError,
    check_kind,
    checkpoint_path,
    checkpoints,
    differences,
    latest,
    load,
    save,
)
from training.random_states import random_states, restore_random_states, seed_rank


def state_of(step, **changed):
    return {
        "step": step,
        "model": {"weight": torch.full((3, 5), float(step))},
        "model_config": {"size": "tiny", "heads": {"flow": 2}},
        "recipe": {"name": "stand-in", "betas": [0.9, 0.95], "clip_grad": None},
        "optimizer": {},
        "scaler": {},
        "schedule": {"steps": 9},
        "random": [random_states()],
        "data": {"position": 4 * step},
        **changed,
    }


def test_what_is_saved_is_what_is_loaded(tmp_path):
    kept = state_of(12)
    path = save(tmp_path, kept, keep=3)
    assert path == tmp_path / "checkpoints" / "step-00000012.pt"
    found = torch.load(path, weights_only=True)
    assert (found.pop("format"), found.pop("version")) == ("motion-targets/checkpoint", 1)
    torch.testing.assert_close(found.pop("model"), kept["model"], rtol=0, atol=0)
    assert {k: v for k, v in found.items() if k != "random"} == {
        k: v for k, v in kept.items() if k not in ("random", "model")
    }
    assert load(path)["step"] == 12


def draw():
    legacy = numpy.random.normal  # libraries draw from it
    return torch.rand(3)[0].item(), random.gauss(0, 1), legacy()


def test_random_states_survive_a_file(tmp_path):
    seed_rank(3, 0, 1)
    draw()  # the generators keep half of a pair of normals
    path = save(tmp_path, state_of(1), keep=1)
    expected = draw()
    seed_rank(4, 0, 1)
    restore_random_states(load(path)["random"][0])
    assert draw() == expected


def test_ranks_and_steps_have_random_numbers_of_their_own():
    drawn = set()
    for key in [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)]:
        seed_rank(*key)
        drawn |= set(draw())
    assert len(drawn) == 4 * 3


def test_the_newest_stay(tmp_path):
    for step in (1, 2, 3, 100_000_000, 5):
        save(tmp_path, state_of(step), keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000005.pt", "step-100000000.pt"]
    assert latest(tmp_path) == checkpoint_path(tmp_path, 100_000_000)
    assert latest(tmp_path / "nothing") is None


def test_a_crash_while_writing_leaves_the_old_one(tmp_path, monkeypatch):
    save(tmp_path, state_of(1), keep=1)

    def fail(state, path):
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", fail)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path, state_of(2), keep=1)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000001.pt"]
    assert load(latest(tmp_path))["step"] == 1


def test_what_a_killed_process_left_is_removed_once_it_is_old(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    fresh, stale = (tmp_path / "checkpoints" / f".tmp-{name}-step-00000001.pt" for name in ("fresh", "stale"))
    for path, age in ((fresh, 0), (stale, 7200)):
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age,) * 2)
    assert checkpoints(tmp_path) == []
    save(tmp_path, state_of(1), keep=1)
    assert fresh.exists()
    assert not stale.exists()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_checkpoint_is_named_and_the_one_before_it(tmp_path, share):
    for step in (1, 2, 3):
        save(tmp_path, state_of(step), keep=3)
    for step in (2, 3):
        content = checkpoint_path(tmp_path, step).read_bytes()
        checkpoint_path(tmp_path, step).write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r"step-00000003\.pt: .*cut off.*step-00000001\.pt can be read: remove"):
        load(checkpoint_path(tmp_path, 3))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"model": {}}, "not one of pretrain-motion"),
        (torch.zeros(2), "not one of pretrain-motion"),
        ({"format": "motion-targets/checkpoint", "version": 2}, "version 2; this software reads version 1"),
        ({"format": "motion-targets/checkpoint", "version": 1, "step": 3}, "lacks model, model_config, recipe"),
    ],
)
def test_other_files_are_refused(tmp_path, content, says):
    torch.save(content, tmp_path / "file.pt")
    with pytest.raises(CheckpointError, match=says):
        load(tmp_path / "file.pt")


def test_checkpoints_from_before_there_were_kinds_are_pretraining_s(tmp_path):
    old = load(save(tmp_path, state_of(1), keep=9))
    new = load(save(tmp_path, state_of(2, kind="fine-tuning"), keep=9))
    check_kind(old, "pretraining", None)
    check_kind(new, "fine-tuning", None)
    with pytest.raises(CheckpointError, match=r"checkpoint x\.pt is of pretraining, not of fine-tuning; take another"):
        check_kind(old, "fine-tuning", "x.pt")
    with pytest.raises(CheckpointError, match="is of fine-tuning, not of pretraining"):
        check_kind(new, "pretraining", "x.pt")


class Runs:
    """A file that runs a command when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_a_file_that_would_run_code_is_refused_and_does_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(Runs(), tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match=r"evil\.pt"):
        load(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()
    with pytest.raises(CheckpointError, match="No such file"):
        load(tmp_path / "missing.pt")


def test_differences_name_both_values():
    kept = {"seed": 0, "batch_size": 8, "position": 80}
    assert differences(kept, {"seed": 0, "batch_size": 16, "store": "ab"}, "clips'") == [
        "clips' batch_size: the checkpoint has 8, asked for is 16",
        "clips' store: the checkpoint has None, asked for is 'ab'",
    ]
