"""export-encoder: from a run's folder to a folder that others read."""

import json

import pytest
import torch
from safetensors.torch import load_file
from small_vit import SMALL

from training import export_cli
from training.export_cli import main
from training.interchange import load_encoder
from training.model import MaskedVideoModel, ModelConfig
from training.recipe import load_recipe

MOTION = ModelConfig(size=SMALL, heads={"displacement": 48, "trajectory_hog": 27}, frames=4, input_size=(32, 48))
PIXELS = ModelConfig(size=SMALL, heads={"pixels": 1536}, frames=4, input_size=(32, 48), decoder="separate")


def write_run(folder, config=MOTION, steps=(9, 100, 20), **changes):
    """Checkpoints as pretraining writes them; returns the models by step."""
    models = {}
    for step in steps:
        torch.manual_seed(step)
        models[step] = MaskedVideoModel(config)
        file = folder / "checkpoints" / f"step-{step:08d}.pt"
        file.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "format": "motion-targets/checkpoint",
            "version": 1,
            "step": step,
            "model": models[step].state_dict(),
            "model_config": config.to_json(),
            "recipe": load_recipe("mme").to_json(),
            **{name: {} for name in ("optimizer", "scaler", "schedule", "random", "data")},
        }
        torch.save({**content, **changes}, file)
    (folder / "checkpoints" / ".tmp-1-step-00000900.pt").write_bytes(b"unfinished")
    return models


def same_encoder(path, model):
    """Whether the exported encoder is the model's."""
    other = MaskedVideoModel(model.config)
    load_encoder(other, path)
    return all(torch.equal(a, b) for a, b in zip(other.encoder.parameters(), model.encoder.parameters(), strict=True))


@pytest.mark.parametrize(("to", "weights"), [("hf", "."), ("videomae", "videomae.pth")])
def test_the_newest_step_is_exported(to, weights, tmp_path, capsys):
    models = write_run(tmp_path / "run")
    assert main([str(tmp_path / "run"), "--to", to, "--out", str(tmp_path / "deep" / "out")]) == 0
    out = tmp_path / "deep" / "out"
    assert same_encoder(out / weights, models[100]) and not same_encoder(out / weights, models[20])
    record = json.loads((out / "export.json").read_text())
    assert record == {
        "to": to,
        "whole": False,
        "source": str(tmp_path / "run" / "checkpoints" / "step-00000100.pt"),
        "step": 100,
        "recipe": load_recipe("mme").to_json(),
        "model_config": MOTION.to_json(),
    }
    assert "vit_test, step 100 of" in capsys.readouterr().out
    assert [f.name for f in out.parent.iterdir()] == ["out"]


def test_another_step_or_a_file_can_be_named(tmp_path):
    models = write_run(tmp_path / "run")
    assert main([str(tmp_path / "run"), "--to", "hf", "--out", str(tmp_path / "a"), "--step", "9"]) == 0
    file = tmp_path / "run" / "checkpoints" / "step-00000020.pt"
    assert main([str(file), "--to", "hf", "--out", str(tmp_path / "b")]) == 0
    assert same_encoder(tmp_path / "a", models[9]) and same_encoder(tmp_path / "b", models[20])


def test_whole_models_predict_pixels(tmp_path, capsys):
    models = write_run(tmp_path / "run", PIXELS, [5])
    assert main([str(tmp_path / "run"), "--to", "hf", "--out", str(tmp_path / "hf"), "--whole"]) == 0
    assert main([str(tmp_path / "run"), "--to", "videomae", "--out", str(tmp_path / "pth"), "--whole"]) == 0
    head = models[5].heads["pixels"].weight
    assert torch.equal(load_file(tmp_path / "hf" / "model.safetensors")["decoder.head.weight"], head)
    weights = torch.load(tmp_path / "pth" / "videomae.pth", weights_only=True)["model"]
    assert torch.equal(weights["decoder.head.weight"], head)

    write_run(tmp_path / "motion", MOTION, [5])
    for to in ("hf", "videomae"):
        assert main([str(tmp_path / "motion"), "--to", to, "--out", str(tmp_path / "no"), "--whole"]) == 2
        error = capsys.readouterr().err
        assert "step-00000005.pt" in error and "predicts pixels alone" in error and "'trajectory_hog': 27" in error
    assert sorted(f.name for f in tmp_path.iterdir()) == ["hf", "motion", "pth", "run"]


def test_folders_are_not_overwritten(tmp_path, capsys):
    models, out = write_run(tmp_path / "run"), tmp_path / "out"
    command = [str(tmp_path / "run"), "--out", str(out)]
    out.mkdir()
    assert main([*command, "--to", "hf", "--step", "9"]) == 0  # an empty folder is nobody's
    assert main([*command, "--to", "videomae"]) == 2
    assert f"{out}: holds an export already; --force" in capsys.readouterr().err
    assert same_encoder(out, models[9])
    assert main([*command, "--to", "videomae", "--force"]) == 0
    assert sorted(f.name for f in out.iterdir()) == ["export.json", "videomae.pth"]
    assert same_encoder(out / "videomae.pth", models[100])

    thesis = tmp_path / "mine"
    thesis.mkdir()
    (thesis / "thesis.tex").write_text("years of work")
    for target, message in [(thesis, "has thesis.tex, and is no earlier export"), (thesis / "thesis.tex", "is a file")]:
        assert main([str(tmp_path / "run"), "--to", "hf", "--out", str(target), "--force"]) == 2
        assert message in capsys.readouterr().err
    assert (thesis / "thesis.tex").read_text() == "years of work"


def test_a_failure_leaves_what_was_there(tmp_path, capsys, monkeypatch):
    models, out = write_run(tmp_path / "run"), tmp_path / "out"
    command = [str(tmp_path / "run"), "--to", "hf", "--out", str(out)]
    assert main([*command, "--step", "9"]) == 0

    def full(model, folder, whole):
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device", str(folder))

    monkeypatch.setattr(export_cli, "export_huggingface", full)
    assert main([*command, "--force"]) == 2
    assert "No space left" in capsys.readouterr().err
    assert same_encoder(out, models[9])
    assert sorted(f.name for f in tmp_path.iterdir()) == ["out", "run"]


def test_what_is_no_checkpoint_is_refused(tmp_path, capsys):
    run = tmp_path / "run"
    write_run(run)
    write_run(tmp_path / "later", version=2)
    write_run(tmp_path / "alien", format="lightning")
    write_run(tmp_path / "other", model_config=PIXELS.to_json())
    write_run(tmp_path / "odd", model_config={"size": "vit_tiny"})
    (tmp_path / "empty").mkdir()
    text = tmp_path / "notes.txt"
    text.write_text("hello")
    file = run / "checkpoints" / "step-00000020.pt"
    for arguments, message in [
        ([run, "--step", "21"], f"{run}: no checkpoint of step 21; there are 9, 20, 100"),
        ([file, "--step", "20"], f"{file}: is one checkpoint"),
        ([tmp_path / "empty"], "no checkpoints/step-*.pt in it"),
        ([tmp_path / "nowhere"], "nowhere: no checkpoints"),
        ([text], f"checkpoint {text}: is cut off, damaged or not a checkpoint"),
        ([tmp_path / "later"], "version 2; this software reads version 1"),
        ([tmp_path / "alien"], "is not one of pretrain-motion's"),
        ([tmp_path / "other"], "step-00000100.pt: its weights are not those of its model_config"),
        ([tmp_path / "odd"], "step-00000100.pt: not a model's configuration"),
    ]:
        assert main([*map(str, arguments), "--to", "hf", "--out", str(tmp_path / "out")]) == 2
        captured = capsys.readouterr()
        assert message in captured.err and captured.out == ""
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit) as caught:
        main([str(run), "--to", "onnx", "--out", str(tmp_path / "out")])
    assert caught.value.code == 2


def test_a_fine_tuned_classifier_is_refused(tmp_path, capsys):
    write_run(tmp_path / "run", kind="fine-tuning")
    assert main([str(tmp_path / "run"), "--to", "hf", "--out", str(tmp_path / "out")]) == 2
    assert "step-00000100.pt is of fine-tuning, not of pretraining" in capsys.readouterr().err
