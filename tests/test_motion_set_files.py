import dataclasses
import json

import cv2
import numpy as np
import pytest

from data_specs import motion_set_cli
from data_specs.labels import load_labelled
from data_specs.motion_set import MOTIONS, motion_clip, split_labels
from data_specs.motion_set_files import MotionSetError, MotionSetSettings, render_motion_set

SETTINGS = MotionSetSettings(train=7, val=3, test=4, height=32, width=44, frames=5, seed=3)


def contents(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    root = tmp_path_factory.mktemp("motion") / "set"
    render_motion_set(root, SETTINGS, workers=1)
    return root


def test_the_set_is_a_data_set_with_labels(rendered):
    spec = str(rendered / "dataset.yaml")
    for split, count in (("train", 7), ("val", 3), ("test", 4)):
        labelled = load_labelled(spec, str(rendered), split)
        assert labelled.classes == MOTIONS
        np.testing.assert_array_equal(labelled.labels, split_labels(split, count, seed=3))
        assert [entry.path for entry in labelled.videos.entries] == [f"{split}/{i:06d}.avi" for i in range(count)]
        assert not labelled.videos.flip


def test_the_files_hold_the_clips(rendered):
    label = int(split_labels("test", 4, seed=3)[2])
    clip = motion_clip("test", 2, label=label, size=(32, 44), num_frames=5, seed=3)
    video = cv2.VideoCapture(str(rendered / "test" / "000002.avi"))
    for number in range(5):
        read, frame = video.read()
        assert read
        difference = frame[..., ::-1].astype(float) - clip.render(number)
        assert np.abs(difference).mean() < 8  # JPEG, with half the colours' resolution
    assert not video.read()[0]


def test_any_number_of_workers_renders_the_same_bytes(rendered, tmp_path):
    render_motion_set(tmp_path / "set", SETTINGS, workers=2)
    assert contents(tmp_path / "set") == contents(rendered)


def test_what_is_missing_is_rendered_again_and_the_rest_stays(rendered, tmp_path):
    root = tmp_path / "set"
    render_motion_set(root, SETTINGS, workers=1)
    before = contents(root)
    for name in ("train/000004.avi", "val.csv", "dataset.yaml"):
        (root / name).unlink()
    kept = (root / "train" / "000003.avi").stat().st_mtime_ns
    render_motion_set(root, SETTINGS, workers=1)
    assert contents(root) == before
    assert (root / "train" / "000003.avi").stat().st_mtime_ns == kept


def test_a_folder_of_other_settings_is_refused(rendered):
    with pytest.raises(MotionSetError, match=r"other settings.*'seed': 3.*'seed': 4.*another folder"):
        render_motion_set(rendered, dataclasses.replace(SETTINGS, seed=4))


def test_a_folder_of_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(MotionSetError, match="holds other things"):
        render_motion_set(tmp_path, SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_broken_settings_are_refused(tmp_path):
    (tmp_path / "motion-set.json").write_text("{")
    with pytest.raises(MotionSetError, match=r"motion-set\.json: is not JSON"):
        render_motion_set(tmp_path, SETTINGS)


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(MotionSetError, match=r"train is 0, must be 1.*height is 31, must be 32.*seed is -1"):
        MotionSetSettings(train=0, height=31, seed=-1)


def test_the_command(tmp_path, capsys):
    root = tmp_path / "set"
    sizes = ["--train", "2", "--val", "1", "--test", "1", "--height", "32", "--width", "40", "--frames", "3"]
    assert motion_set_cli.main(["--out", str(root), *sizes, "--workers", "1"]) == 0
    assert capsys.readouterr().out == f"{root / 'dataset.yaml'}\n"
    assert json.loads((root / "motion-set.json").read_text())["width"] == 40
    assert motion_set_cli.main(["--out", str(root), "--train", "3"]) == 2
    assert "other settings" in capsys.readouterr().err
    assert motion_set_cli.main(["--out", str(root), *sizes, "--workers", "0"]) == 2
    assert "--workers is 0" in capsys.readouterr().err
