"""extract-tracks by CoTracker3 from the command line, with a stand-in for its package."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import run_command, store_bytes
from cotracker_stand_in import use_stand_in, with_stand_in, write_weights

from data_specs.demo_clips import write_clip
from data_specs.scene import random_scene
from data_specs.track_store import TrackStore
from data_specs.validate import validate_store
from extraction import cli
from extraction.motion.cotracker3 import package, weights
from extraction.motion.gpu.device import DeviceError

RECIPE = """
extends: trackmae
name: short
length: 3
frame_step: 2
hog: true
remove_camera: true
support_grid: 2
min_inliers: 8
"""
SCENES = {"a.avi": (72, 104), "b.avi": (88, 64)}


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """Two clips, a list that names one more, a recipe, and weights."""
    root = tmp_path_factory.mktemp("clips")
    for number, (name, size) in enumerate(SCENES.items()):
        write_clip(root / name, random_scene(number, 1.0, size), 15 + 2 * number)
    (root / "list.txt").write_text("a.avi\nmissing.avi\nb.avi\n")
    (root / "short.yaml").write_text(RECIPE)
    write_weights(root / "weights.pth")
    return root


def arguments(material, store, *more):
    return [
        "--dataset", str(material / "list.txt"), "--root", str(material), "--shards", "2", "--out", str(store),
        "--recipe", str(material / "short.yaml"), "--checkpoint", str(material / "weights.pth"), *map(str, more),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def store(material, tmp_path_factory):
    """Extracted by two workers of Ray's; one video is missing."""
    path = tmp_path_factory.mktemp("ray") / "s"
    result = run_command(["extract-tracks", *arguments(material, path, "--workers", 2)], env=with_stand_in())
    assert result.returncode == 1, result.stderr
    assert re.search(r"ms per frame by stage: .*\btrack \d", result.stderr)
    return path


def test_the_store_is_sound_and_says_where_it_comes_from(material, store):
    assert validate_store(store) == []
    info = TrackStore(store).info
    assert info.weights_sha256 == weights.find_weights(str(material / "weights.pth")).sha256
    assert info.software["torch"] == torch.__version__
    assert "cotracker" in info.software
    shard, number = TrackStore(store).find("b.avi")
    assert shard.metas[number].num_starts == 3, "of 17 frames, 7 for a row, 4 apart"


def test_tracks_of_a_video_are_where_its_points_are(store):
    """Through decoding, resizing, the network's pixels and the store's: rendered motion, not square."""
    for number, (name, size) in enumerate(SCENES.items()):
        scene = random_scene(number, 1.0, size)
        shard, video = TrackStore(store).find(name)
        for row_number in shard.rows(video):
            row = shard.read_row(video, row_number)
            true, visible = scene.track(row.positions[:, 0], row.frame, 3, 2)
            counted = row.valid & visible
            error = np.linalg.norm(row.positions - true, axis=-1)[counted]
            still = np.linalg.norm(row.positions[:, :1] - true, axis=-1)[counted]
            assert np.median(error) < min(0.6, 0.5 * np.median(still[still > 0]))
            assert row.estimated.any()
            assert row.hog.max() > 0


def test_one_process_writes_the_same_bytes_and_goes_on_after_an_interruption(material, store, tmp_path, monkeypatch):
    use_stand_in(monkeypatch)
    package.open_network.cache_clear()
    assert cli.main(arguments(material, tmp_path / "s", "--executor", "local", "--only-shards", "1")) == 2, (
        "one, missing"
    )
    assert cli.main(arguments(material, tmp_path / "s", "--executor", "local")) == 1
    assert store_bytes(tmp_path / "s") == store_bytes(store)
    package.open_network.cache_clear()


def test_a_store_takes_no_tracks_of_other_weights(material, store, tmp_path, monkeypatch, capsys):
    use_stand_in(monkeypatch)
    state = torch.load(material / "weights.pth", weights_only=True)
    torch.save({"model": {name: 2 * values for name, values in state.items()}}, tmp_path / "other.pth")
    assert cli.main([*arguments(material, store), "--checkpoint", str(tmp_path / "other.pth")]) == 2
    said = capsys.readouterr().err
    assert TrackStore(store).info.weights_sha256 in said
    assert weights.find_weights(str(tmp_path / "other.pth")).sha256 in said


# --- what is missing or wrong -----------------------------------------------------------------------------------------


def fails(capsys, *given):
    assert cli.main([str(a) for a in given]) == 2
    return capsys.readouterr().err


def test_without_the_package_the_way_to_get_it_is_named(material, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(weights.importlib.util, "find_spec", lambda name: None)
    said = fails(capsys, *arguments(material, tmp_path / "s"))
    assert "pip install 'cotracker @ git+https://github.com/facebookresearch/co-tracker@" in said
    assert "CC-BY-NC" in said
    assert not (tmp_path / "s").exists()


def test_weights_must_be_given_and_be_weights(material, tmp_path, capsys, monkeypatch):
    use_stand_in(monkeypatch)
    given = arguments(material, tmp_path / "s")
    without = given[: given.index("--checkpoint")]
    said = fails(capsys, *without)
    assert "--checkpoint FILE" in said
    assert "hub" in said
    assert "CC-BY-NC" in said
    (tmp_path / "text.pth").write_text("no weights")
    torch.save({"a": torch.zeros(1)}, tmp_path / "others.pth")
    state = torch.load(material / "weights.pth", weights_only=True)
    torch.save({**state, "fnet.kernels": torch.zeros(3)}, tmp_path / "shape.pth")
    torch.save({**state, "time_emb": torch.zeros(8)}, tmp_path / "axes.pth")
    torch.save({**state, 5: torch.zeros(3)}, tmp_path / "number.pth")
    torch.save({**state, "fnet.kernels": state["fnet.kernels"] / 0}, tmp_path / "nan.pth")
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "short.pth").write_bytes(b"a0")  # a pickle that takes from an empty stack
    for name, problem in [
        ("nowhere.pth", "No such file"),
        ("text.pth", "cannot be read as weights"),
        ("empty.pth", "not a file of torch.save"),
        ("short.pth", "not a file of torch.save"),
        ("others.pth", "no time_emb"),
        ("axes.pth", "no time_emb"),
        ("shape.pth", "fnet.kernels"),
        ("number.pth", "do not fit"),
        ("nan.pth", "not all values are finite in fnet.kernels"),
    ]:
        said = fails(capsys, *without, "--checkpoint", tmp_path / name)
        assert str(tmp_path / name) in said
        assert problem in said
        assert "weights_only=False" not in said, "torch recommends to run what is in the file"
    assert not (tmp_path / "s").exists()


def test_weights_run_no_code(tmp_path, monkeypatch):
    use_stand_in(monkeypatch)

    class Hostile:
        def __reduce__(self):
            return (open, (str(tmp_path / "was here"), "w"))

    torch.save({"time_emb": Hostile()}, tmp_path / "hostile.pth")
    with pytest.raises(weights.CoTrackerError, match="cannot be read as weights"):
        package.load_model(tmp_path / "hostile.pth")
    assert not (tmp_path / "was here").exists()


def test_a_hub_out_of_reach_is_said_with_a_way_out(capsys, material, tmp_path, monkeypatch):
    use_stand_in(monkeypatch)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    said = fails(capsys, *arguments(material, tmp_path / "s"), "--checkpoint", "hub")
    assert "facebook/cotracker3" in said
    assert "give the file" in said


def test_flow_takes_no_weights(material, tmp_path, capsys):
    said = fails(capsys, *arguments(material, tmp_path / "s"), "--recipe", "mme-object")
    assert "has no tracker with weights" in said


@pytest.mark.parametrize("flow", ["tvl1", "dis"])
def test_a_tracker_takes_no_flow(material, tmp_path, capsys, flow):
    """Not even the one that a recipe has where it says none."""
    said = fails(capsys, *arguments(material, tmp_path / "s"), "--flow", flow)
    assert f"--flow {flow}" in said
    assert "its tracker is cotracker3" in said


def test_weights_that_change_while_a_run_goes_on_stop_it(material, tmp_path, monkeypatch):
    """Every worker reads the file for itself."""
    use_stand_in(monkeypatch)
    file = write_weights(tmp_path / "w.pth")
    found = weights.find_weights(str(file))
    write_weights(file, window=9)
    package.open_network.cache_clear()
    with pytest.raises(weights.CoTrackerError, match="has changed since the run began"):
        package.open_network(found, "cpu", 6, "fp32", False)


def test_another_version_of_the_package_is_named(monkeypatch):
    use_stand_in(monkeypatch)
    from cotracker.models import build_cotracker

    built = build_cotracker.build_cotracker()
    del built.corr_mlp
    monkeypatch.setattr(build_cotracker, "build_cotracker", lambda **_: built)
    with pytest.raises(weights.CoTrackerError, match=r"has no corr_mlp(.|\n)*pip install"):
        package.build_model()


@pytest.mark.parametrize("path", ["empty_folder", "unfinished"])
def test_a_package_that_cannot_be_used_stops_the_run(material, tmp_path, capsys, monkeypatch, path):
    """A folder of that name, or a package of which something is missing, is no video's fault."""
    use_stand_in(monkeypatch)
    monkeypatch.syspath_prepend(str(tmp_path / path))
    models = tmp_path / path / "cotracker" / "models"
    models.mkdir(parents=True)
    if path == "unfinished":
        (models.parent / "__init__.py").touch()
        (models / "__init__.py").touch()
        (models / "build_cotracker.py").write_text("import not_installed_anywhere\n")
    else:
        monkeypatch.setattr(sys, "path", [p for p in sys.path if "stand_in_packages" not in p])
    said = fails(capsys, *arguments(material, tmp_path / "s"))
    assert "cannot be used: No module named" in said
    assert "pip install" in said
    found = weights.find_weights(str(material / "weights.pth"))
    package.open_network.cache_clear()
    with pytest.raises(OSError, match="cannot be used"):
        package.open_network(found, "cpu", 6, "fp32", False)


def test_a_device_without_room_for_the_network_stops_the_run(material, monkeypatch):
    use_stand_in(monkeypatch)

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nand more")

    monkeypatch.setattr(package, "CoTracker3", full)
    package.open_network.cache_clear()
    with pytest.raises(DeviceError, match="out of memory over the network's weights"):
        package.open_network(weights.find_weights(str(material / "weights.pth")), "cpu", 6, "fp32", False)


def test_weights_trained_on_short_windows_are_warned_of(material, tmp_path, monkeypatch, caplog):
    use_stand_in(monkeypatch)
    for window, warned in [(16, True), (60, False)]:
        caplog.clear()
        file = write_weights(tmp_path / "w.pth", window)
        assert cli.main([*arguments(material, tmp_path / "s", "--dry-run"), "--checkpoint", str(file)]) == 0
        assert ("trained on windows of 16 frames" in caplog.text) == warned


def test_nothing_of_the_package_or_torch_is_imported_for_flow():
    """A worker that measures flow on the CPU starts without them."""
    code = (
        "import sys, extraction.jobs, extraction.run, extraction.plan; "
        "print([m for m in ('torch', 'cotracker', 'huggingface_hub') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_dry_run_needs_no_more_than_the_run(material, tmp_path, capsys, monkeypatch):
    use_stand_in(monkeypatch)
    assert cli.main(arguments(material, tmp_path / "s", "--dry-run")) == 0
    said = capsys.readouterr().out
    assert "cotracker3" in said
    assert re.search(r"videos +3 of list", said)
    assert "4 positions 2 frames apart" in said


def test_a_store_of_a_data_set_with_its_own_clip_stride_serves_the_trainer(material, tmp_path, monkeypatch):
    """Something-Something V2's 3: a tubelet is 6 frames, not Kinetics' 8."""
    use_stand_in(monkeypatch)
    write_clip(tmp_path / "long.avi", random_scene(3, 1.0, (72, 104)), 43)
    (tmp_path / "list.txt").write_text("long.avi\n")
    spec = f"name: own\nroot: {tmp_path}\nlists: {{train: {tmp_path}/list.txt}}\nstart_stride: 2\nclip_stride: 3\n"
    (tmp_path / "own.yaml").write_text(spec)
    given = [
        "--dataset", tmp_path / "own.yaml", "--shards", 1, "--out", tmp_path / "s", "--executor", "local",
        "--recipe", "trackmae", "--checkpoint", material / "weights.pth",
    ]  # fmt: skip
    package.open_network.cache_clear()
    assert cli.main([str(a) for a in given]) == 0
    package.open_network.cache_clear()
    assert validate_store(tmp_path / "s") == []
    shard, video = TrackStore(tmp_path / "s").find("long.avi")
    assert [shard.read_row(video, row).frame for row in shard.rows(video)] == [0], "43 frames are 7 steps of 6"
    info = TrackStore(tmp_path / "s").info
    assert info.recipe.frame_step == 2 * info.clip_stride, "what the trainer asks for"
