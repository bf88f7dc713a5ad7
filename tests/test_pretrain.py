"""pretrain-motion's options, refusals and exit statuses, around the stand-in for store and model."""

import dataclasses
import json
import os
import signal

import pytest
import torch
from stand_in_training import (
    VIDEOS,
    Clips,
    TinyModel,
    log_lines,
    numbers,
    stand_in_loader,
    stand_in_objective,
)

from data_specs.track_store import StoreError
from training import checkpoint, pretrain
from training.run_lock import only_trainer
from training.task import Task


@pytest.fixture
def built(monkeypatch):
    """Takes the place of `build_task`; gives the choices that it was called with, and takes what the clips shall do."""
    told = {"choices": [], "clips": {}, "store": "ab12"}

    def build_task(choices, group):
        told["choices"].append(choices)
        torch.manual_seed(choices.seed)
        return Task(
            model=TinyModel(),
            objective=stand_in_objective({"pixels": 1.0, "flow": 0.5}),
            model_config={"size": choices.model, "heads": {"pixels": 4, "flow": 2}},
            recipe=choices.recipe.to_json(),
            clip_grad=None,
            loader=lambda position: stand_in_loader(
                position, batch_size=choices.batch_size // choices.accumulate, **told["clips"]
            ),
            clips_per_epoch=VIDEOS * choices.clips_per_video,
            data={"store": told["store"], "seed": choices.seed, "batch_size": choices.batch_size},
            draw=told.get("draw"),
        )

    monkeypatch.setattr(pretrain, "build_task", build_task)
    return told


def run(out, *more, recipe="videomae"):
    arguments = [
        "--store",
        "some.tracks",
        "--recipe",
        recipe,
        "--model",
        "vit_tiny",
        "--batch-size",
        "4",
        "--device",
        "cpu",
    ]
    return pretrain.main([*arguments, "--out", str(out), *more])


def test_a_run_leaves_what_it_was(built, tmp_path):
    assert run(tmp_path, "--steps", "20", "--lr", "0.01", "--keep", "1", "--seed", "3") == 0
    (choices,) = built["choices"]
    assert (choices.batch_size, choices.seed, choices.model, choices.workers >= 1) == (4, 3, "vit_tiny", True)
    said = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert said["recipe"] == choices.recipe.to_json()
    assert said["options"]["lr"] == 0.01
    assert said["settings"]["warmup_steps"] == 2  # a tenth of the run, for the recipe's 40 epochs are longer
    assert said["settings"]["peak_lr"] == pytest.approx(0.01 * 4 / 256)
    assert said["settings"]["figure_every"] == 5
    assert {"python", "torch", "timm", "numpy"} <= set(said["software"])
    rates = [line["lr"] for line in log_lines(tmp_path)]
    assert max(rates) == rates[2] == pytest.approx(0.01 * 4 / 256)
    assert checkpoint.load(checkpoint.latest(tmp_path))["recipe"] == choices.recipe.to_json()


def test_epochs_are_clips_by_the_batch(built, tmp_path):
    assert run(tmp_path, "--epochs", "3") == 0
    assert len(log_lines(tmp_path)) == 9  # 3 x 11 clips in fours, and none is seen less often than asked
    assert log_lines(tmp_path)[-1]["epoch"] == pytest.approx(36 / 11, abs=1e-5)


def test_without_a_length_the_recipe_s_epochs_count(built, tmp_path):
    recipe = tmp_path / "short.yaml"
    recipe.write_text("extends: videomae\nname: short\nepochs: 2\n", encoding="utf-8")
    assert run(tmp_path / "run", recipe=str(recipe)) == 0
    assert len(log_lines(tmp_path / "run")) == 6


def test_resume_goes_on_with_more_steps(built, tmp_path, caplog):
    caplog.set_level("INFO")
    assert run(tmp_path, "--steps", "4", "--resume") == 0  # nothing there yet: it begins
    assert run(tmp_path, "--steps", "7", "--resume", "--keep", "9") == 0
    assert [line["step"] for line in log_lines(tmp_path)] == list(range(1, 8))
    assert json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))["from_step"] == 4
    before = numbers(tmp_path)
    assert run(tmp_path, "--steps", "7", "--resume") == 0
    assert f"{tmp_path} is done: 7 steps" in caplog.text
    assert numbers(tmp_path) == before


def test_an_interrupted_run_ends_with_75_and_resumes_to_the_same(built, tmp_path, capsys):
    def draw(step, *_):
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    assert run(tmp_path / "whole", "--steps", "6") == 0
    built["draw"] = draw
    assert run(tmp_path / "parts", "--steps", "6", "--figure-every", "1") == 75
    assert run(tmp_path / "parts", "--steps", "6", "--resume") == 0
    assert numbers(tmp_path / "parts") == numbers(tmp_path / "whole")


def test_a_folder_that_holds_a_run_is_refused(built, tmp_path, capsys):
    assert run(tmp_path, "--steps", "2") == 0
    before = numbers(tmp_path)
    assert run(tmp_path, "--steps", "4") == 2
    assert "holds a run already (run.json, log.jsonl, checkpoints); --resume goes on with it" in capsys.readouterr().err
    assert numbers(tmp_path) == before


def test_another_store_recipe_model_or_batch_is_refused_with_both_values(built, tmp_path, capsys):
    assert run(tmp_path, "--steps", "2") == 0
    built["store"] = "cd34"
    again = [
        "--steps",
        "4",
        "--resume",
        "--model",
        "vit_small",
        "--batch-size",
        "8",
        "--seed",
        "1",
        "--clip-stride",
        "3",
    ]
    assert run(tmp_path, *again) == 2
    text = capsys.readouterr().err
    for expected in [
        "step-00000002.pt is of another run",
        "clips' store: the checkpoint has 'ab12', asked for is 'cd34'",
        "clips' batch_size: the checkpoint has 4, asked for is 8",
        "clips' seed: the checkpoint has 0, asked for is 1",
        "recipe's clip_stride: the checkpoint has None, asked for is 3",
        "model's size: the checkpoint has 'vit_tiny', asked for is 'vit_small'",
    ]:
        assert expected in text


def test_a_folder_of_fine_tuning_is_refused(built, tmp_path, capsys):
    assert run(tmp_path, "--steps", "2") == 0
    newest = checkpoint.latest(tmp_path)
    torch.save({**torch.load(newest, weights_only=True), "kind": "fine-tuning"}, newest)
    assert run(tmp_path, "--steps", "4", "--resume") == 2
    assert "step-00000002.pt is of fine-tuning, not of pretraining" in capsys.readouterr().err


def test_a_truncated_checkpoint_names_the_one_to_go_on_from(built, tmp_path, capsys):
    assert run(tmp_path, "--steps", "4", "--save-every", "2") == 0
    newest = checkpoint.latest(tmp_path)
    newest.write_bytes(newest.read_bytes()[:1000])
    assert run(tmp_path, "--steps", "6", "--resume") == 2
    assert "step-00000002.pt can be read: remove the broken file" in capsys.readouterr().err
    newest.unlink()
    assert run(tmp_path, "--steps", "6", "--resume") == 0
    assert [line["step"] for line in log_lines(tmp_path)] == list(range(1, 7))


def test_bad_numbers_end_with_1_and_name_step_videos_and_checkpoint(built, tmp_path, capsys):
    built["clips"] = {"bad": 9}
    assert run(tmp_path, "--steps", "5", "--save-every", "1", "--workers", "0") == 1
    text = capsys.readouterr().err
    assert "step 3: stopped by numbers that are not finite" in text
    assert "video-8, video-9, video-10, video-0" in text
    assert "step-00000002.pt" in text


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--steps", "0"], "--steps is 0, must be 1 or more"),
        (["--steps", "3", "--epochs", "2"], "--epochs and --steps both say how long"),
        (["--steps", "3", "--lr", "-1"], "--lr is -1.0"),
        (["--steps", "3", "--seed", str(2**63)], "--seed is 9223372036854775808, must be 9223372036854775807 or less"),
        (
            ["--steps", "3", "--accumulate", "3"],
            "--batch-size is 4, must be a multiple of 1 processes x 3 micro-batches",
        ),
        (["--steps", "3", "--clips-per-video", "3"], "x 3 clips of a video"),
        (["--steps", "3", "--warmup-steps", "3"], "--warmup-steps is 3"),
        (["--steps", "3", "--recipe", "mmme"], "recipe mmme: unknown; shipped are"),
        (["--steps", "3", "--keep", "0", "--save-every", "0"], "--save-every is 0, must be 1 or more; --keep is 0"),
    ],
)
def test_usage_errors_end_with_2_and_write_nothing(built, tmp_path, capsys, options, says):
    assert run(tmp_path / "run", *options) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_folder_in_which_another_process_trains_is_left_alone(built, tmp_path, capsys):
    assert run(tmp_path, "--steps", "2") == 0
    before = numbers(tmp_path)
    with only_trainer(tmp_path):
        assert run(tmp_path, "--steps", "4", "--resume") == 2
    assert "another process trains there now" in capsys.readouterr().err
    assert numbers(tmp_path) == before
    assert run(tmp_path, "--steps", "4", "--resume") == 0


def test_a_damaged_store_ends_with_1_and_says_which_file(built, tmp_path, capsys, monkeypatch):
    def damaged(*_):
        raise StoreError(
            "Caught StoreError in DataLoader worker\n  File ...\nx.StoreError: a/c/0: its checksum is wrong"
        )

    monkeypatch.setattr(Clips, "batch", damaged)
    assert run(tmp_path, "--steps", "2", "--workers", "0") == 1
    assert capsys.readouterr().err.startswith("pretrain-motion: a/c/0: its checksum is wrong; --resume goes on from")


def test_options_take_the_place_of_the_recipe_s(built, tmp_path):
    assert run(tmp_path, "--steps", "1", "--clip-stride", "2", "--flip", "false") == 0
    (choices,) = built["choices"]
    assert (choices.recipe.clip_stride, choices.recipe.flip) == (2, False)
    assert dataclasses.replace(choices.recipe, clip_stride=None, flip=None) == pretrain.load_recipe("videomae")


def test_help_names_every_option_and_the_exit_status(capsys):
    with pytest.raises(SystemExit) as ended:
        pretrain.main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for word in ["--store", "--root", "--recipe", "--out", "--lr X", "batch of 256", "--resume", "Exit status", "75"]:
        assert word in text
