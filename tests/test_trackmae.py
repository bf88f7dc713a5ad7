"""TrackMAE from a store to a run and its encoder: heads, logs, resuming, pictures, and the switches."""

import dataclasses
import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_vit import SMALL
from tracked_stores import TRACKMAE, Film, make_tracked_store

from data_specs.scene import random_scene
from training import checkpoint, clip_tower
from training.clip_tower import build_tower
from training.export_cli import main as export
from training.pretrain import main

SIZE = "frames: 6\nclip_stride: 1\ninput_size: 64\n"  # tokens (3, 4, 4), and two steps from the clip's first frame


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A tracker's store of films of three sizes; trajectories have two steps of a tubelet each."""
    films = {
        f"{number}.avi": Film((random_scene(number, 1.5, size), 11 + 2 * number))
        for number, size in enumerate([(80, 104), (72, 88), (96, 72)])
    }
    recipe = dataclasses.replace(TRACKMAE, length=2, frame_step=2)
    return make_tracked_store(tmp_path_factory.mktemp("trackmae"), films, recipe)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """One thread, and towers of their real width one block deep."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(clip_tower, "build_tower", lambda name, size: build_tower(name, size, depth=1, num_heads=4))
    yield
    torch.set_num_threads(before)


@pytest.fixture
def pretrain(store, tmp_path):
    def run(out, recipe, *options, steps=2):
        file = tmp_path / f"{recipe}.yaml"
        file.write_text(f"extends: {recipe}\nname: small\n{SIZE}")
        return main(
            ["--store", str(store), "--root", str(store.parent / "videos"), "--recipe", str(file),
             "--model", SMALL, "--device", "cpu", "--batch-size", "4", "--workers", "0", "--steps", str(steps),
             "--out", str(tmp_path / out), *options]
        )  # fmt: skip

    return run


def log_of(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_pixels_and_motion_have_a_decoder_each(pretrain, tmp_path, capsys):
    assert pretrain("run", "trackmae") == 0
    lines = log_of(tmp_path / "run")
    for line in lines:
        assert line["loss"] == pytest.approx(line["pixels"] + line["displacement"], rel=1e-5)
        assert line["displacement_trivial"] > 0.1 and line["pixels_trivial"] > 0.1
    kept = checkpoint.load(checkpoint.latest(tmp_path / "run"))
    assert kept["model_config"]["heads"] == {"pixels": 1536, "displacement": 8}  # 2 x 2 points, one step, x and y
    assert {key.split(".")[1] for key in kept["model"] if key.startswith("decoders.")} == {"pixels", "displacement"}
    assert "clip_weights" not in kept["data"]
    assert len(list((tmp_path / "run" / "figures").iterdir())) == 2
    assert export([str(tmp_path / "run"), "--to", "hf", "--out", str(tmp_path / "encoder")]) == 0
    assert not any("decoder" in key for key in load_file(tmp_path / "encoder" / "model.safetensors"))


def test_features_of_clip_are_targets_and_nothing_of_the_tower_is_kept(pretrain, tmp_path, caplog):
    assert pretrain("run", "trackmae-clip", "--clip-weights", "random") == 0
    assert "weights are random: what the head clip learns from it means nothing" in caplog.text
    for line in log_of(tmp_path / "run"):
        assert line["loss"] == pytest.approx(line["clip"] + 0.25 * line["displacement"], rel=1e-5)
        assert 0.5 < line["clip_trivial"] < 1  # standardised over all tokens, of which some are seen
    kept = checkpoint.load(checkpoint.latest(tmp_path / "run"))
    assert kept["model_config"]["heads"] == {"clip": 768, "displacement": 8}
    assert {key.split(".")[0] for key in kept["model"]} == {"encoder", "decoders", "heads", "mask_token"}
    assert kept["data"]["clip_weights"] == "random"
    assert export([str(tmp_path / "run"), "--to", "videomae", "--out", str(tmp_path / "encoder")]) == 0


def test_a_run_goes_on_with_the_same_tower_only(pretrain, tmp_path, capsys):
    """Its targets are those of a run that was not interrupted; other weights would be other targets."""
    model = build_tower("vit_base_patch16", (64, 64), depth=1, num_heads=4)
    for name in ("a", "b"):
        save_file(model.state_dict(), tmp_path / f"{name}.safetensors")
        torch.nn.init.normal_(model.pos_embed)
    weights, other = (["--clip-weights", str(tmp_path / f"{name}.safetensors")] for name in ("a", "b"))
    assert pretrain("whole", "trackmae-clip", *weights, steps=2) == 0
    assert pretrain("parts", "trackmae-clip", *weights, steps=1) == 0
    assert pretrain("parts", "trackmae-clip", *other, "--resume", steps=2) == 2
    assert re.search("clips' clip_weights: the checkpoint has '[0-9a-f]{64}', asked for is", capsys.readouterr().err)
    assert pretrain("parts", "trackmae-clip", *weights, "--resume", steps=2) == 0
    whole, parts = ([line["clip_trivial"] for line in log_of(tmp_path / run)] for run in ("whole", "parts"))
    assert whole == parts and len(parts) == 2


@pytest.mark.parametrize(
    ("recipe", "heads", "figures"),
    [("trackmae", "displacement", 1), ("trackmae", "pixels", 1), ("trackmae-clip", "clip", 0)],
)
def test_trajectories_alone_and_spatial_targets_alone(pretrain, tmp_path, recipe, heads, figures):
    weights = ["--clip-weights", "random"] if heads == "clip" else []
    assert pretrain("run", recipe, "--heads", heads, *weights, steps=1) == 0
    kept = checkpoint.load(checkpoint.latest(tmp_path / "run"))
    assert list(kept["model_config"]["heads"]) == list(kept["recipe"]["heads"]) == [heads]
    (line,) = log_of(tmp_path / "run")
    assert {"pixels", "clip", "displacement"} & set(line) == {heads}
    assert len(list((tmp_path / "run").glob("figures/*.png"))) == figures


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        ("trackmae-clip", [], "--clip-weights hub fetches"),
        ("trackmae", ["--clip-weights", "random"], "there is no head clip"),
        ("trackmae-clip", ["--clip-weights", "random", "--heads", "displacement"], "there is no head clip"),
        ("trackmae-clip", ["--clip-weights", "none.pt"], "none.pt: there is no such file"),
        ("trackmae", ["--heads", "displacement,clip"], "has no head 'clip'; it has pixels, displacement"),
    ],
)
def test_usage_errors_say_what_to_give(pretrain, tmp_path, capsys, recipe, options, message):
    assert pretrain("run", recipe, *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_checkpoints_from_before_an_option_was_there_go_on(pretrain, tmp_path, capsys):
    assert pretrain("run", "trackmae", steps=1) == 0
    file = checkpoint.latest(tmp_path / "run")
    content = torch.load(file, weights_only=True)
    del content["recipe"]["clip_model"]
    torch.save(content, file)
    assert pretrain("run", "trackmae", "--resume", steps=2) == 0
    assert [line["step"] for line in log_of(tmp_path / "run")] == [1, 2]
