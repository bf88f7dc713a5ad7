"""extract-tracks plan: which tasks of an array are left, and the line that submits them."""

import itertools
import shlex
import shutil

import pytest
from conftest import REPOSITORY

from extraction import array_plan, cli
from extraction.array_plan import array_list, max_array_size, number_of_parts, run_arguments
from extraction.plan import parse_part


@pytest.fixture
def options(clips, tmp_path):
    """A run of six shards of which five hold a video."""
    store = tmp_path / "the store"
    return ["--dataset", str(clips / "list.txt"), "--root", str(clips), "--shards", "6", "--out", str(store),
            "--flow=dis", "--executor", "local"]  # fmt: skip


def plan(capsys, *arguments):
    """Status, the words of the line, and what was said beside it."""
    status = cli.main(["plan", *arguments])
    out, err = capsys.readouterr()
    assert out.count("\n") <= 1
    return status, shlex.split(out), err


def test_the_line_is_the_run_s_options_as_an_array(options, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    status, words, _ = plan(capsys, *options, "--throttle", "2")
    assert status == 0
    assert words == ["sbatch", "--array=0-5%2", "slurm/extract_array.sbatch", "--parts", "6", *options]
    assert not (tmp_path / "the store").exists()


def test_elsewhere_the_script_is_named_in_full(options, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert plan(capsys, *options)[1][2] == str(REPOSITORY / "slurm" / "extract_array.sbatch")


def test_only_tasks_with_something_left_are_in_it(options, capsys, caplog):
    caplog.set_level("INFO")
    assert cli.main([*options, "--only-shards", "0,2-3"]) == 0
    status, words, _ = plan(capsys, *options)
    assert (status, words[1], words[3:5]) == (0, "--array=1,4-5", ["--parts", "6"])
    assert "3 of 6 shards are left, with 2 videos to do: 3 of 6 tasks" in caplog.text
    # parts 0/4 ... 3/4 are shards 0 4, 1 5, 2, 3
    assert plan(capsys, *options, "--tasks", "4")[1][1] == "--array=0-1"
    assert plan(capsys, *options, "--tasks=1")[1][1] == "--array=0"


def test_nothing_left_is_said_so_and_prints_no_line(options, capsys, caplog):
    caplog.set_level("INFO")
    assert cli.main(options) == 0
    status, words, _ = plan(capsys, *options)
    assert (status, words) == (0, [])
    assert "nothing is left: 6 of 6 shards are complete" in caplog.text


def test_failed_videos_are_left_only_to_retry(options, clips, tmp_path, capsys, caplog):
    caplog.set_level("INFO")
    listing = tmp_path / "list.txt"
    listing.write_text((clips / "list.txt").read_text() + "missing.avi\n")
    options[1] = str(listing)
    assert cli.main(options) == 1
    status, words, _ = plan(capsys, *options)
    assert (status, words) == (0, [])
    assert "1 videos have failed before; --retry-failed tries them again" in caplog.text
    _, words, _ = plan(capsys, *options, "--retry-failed")
    assert words[1] == "--array=5"
    assert words[-1] == "--retry-failed"


def test_a_damaged_shard_is_left(options, tmp_path, capsys):
    assert cli.main(options) == 0
    shutil.rmtree(tmp_path / "the store" / "shards" / "00003.zarr" / "displacement")
    assert plan(capsys, *options)[1][1] == "--array=3"


def test_another_list_is_refused_as_by_the_run(options, clips, tmp_path, capsys):
    assert cli.main([*options, "--part", "0/6"]) == 0
    status, words, said = plan(capsys, *options, "--limit", "3")
    assert (status, words) == (2, [])
    assert "was begun with other settings" in said


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--tasks", "0"], "--tasks is 0, must be 1 or more"),
        (["--throttle", "0"], "--throttle is 0"),
        (["--part", "0/2"], "the array chooses the shards: leave --part out"),
        (["--only-shards", "1"], "leave --only-shards out"),
        (["--tasks", "5", "--max-array-size", "4"], "--tasks is 5, but an array may have 4 tasks here"),
    ],
)
def test_usage_errors(options, capsys, arguments, problem):
    status, words, said = plan(capsys, *options, *arguments)
    assert (status, words) == (2, [])
    assert problem in said


@pytest.mark.parametrize(
    ("shards", "tasks", "largest", "parts"),
    [
        (512, None, 1001, 512),
        (1001, None, 1001, 1001),
        (1002, None, 1001, 501),  # two each, not one for most and two for one
        (10_000, None, 1001, 1000),
        (7, None, 3, 3),
        (12, 5, 1001, 5),
        (4, 9, 1001, 4),
    ],
)
def test_parts_are_as_many_as_an_array_can_have(shards, tasks, largest, parts):
    assert number_of_parts(shards, tasks, largest) == parts
    shared = [parse_part(f"{part}/{parts}", shards) for part in range(parts)]
    assert sorted(itertools.chain(*shared)) == list(range(shards))
    sizes = [len(part) for part in shared]
    assert max(sizes) - min(sizes) <= 1


def test_numbers_in_a_row_are_a_range():
    assert array_list([]) == ""
    assert array_list([3]) == "3"
    assert array_list([3, 17, 18, 19, 31, 32]) == "3,17-19,31-32"


def test_plan_s_own_options_do_not_go_on():
    own = ["--tasks", "3", "--throttle=2", "--max-array-size", "9", "--dry-run"]
    assert run_arguments(["--out", "--x y", *own, "--shards=4"]) == ["--out", "--x y", "--shards=4"]


def test_the_largest_array_is_what_slurm_says(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert max_array_size() == 1001
    scontrol = tmp_path / "scontrol"
    scontrol.write_text("#!/bin/sh\necho 'Configuration data'\necho 'MaxArraySize            = 77'\n")
    scontrol.chmod(0o755)
    assert max_array_size() == 77
    scontrol.write_text("#!/bin/sh\nexit 1\n")
    assert max_array_size() == 1001


def test_a_cluster_without_arrays_is_said_to_be_one(options, capsys, monkeypatch):
    monkeypatch.setattr(array_plan, "max_array_size", lambda: 0)
    status, words, said = plan(capsys, *options)
    assert (status, words) == (2, [])
    assert "this cluster takes no arrays" in said


@pytest.mark.parametrize("abbreviated", ["--task=2", "--thro=1", "--onl=1"])
def test_options_are_given_by_their_whole_names(options, capsys, abbreviated):
    """Otherwise plan's own would go on to the tasks."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["plan", *options, abbreviated])
    assert ended.value.code == 2
    assert capsys.readouterr().out == ""


def test_help_names_its_options_and_the_run_s(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["plan", "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: extract-tracks plan ")
    for word in ["--tasks N", "--throttle N", "--max-array-size N", "--dataset", "--shards", "Exit status"]:
        assert word in text
