"""Tries that took their process with them are counted across runs, and only those."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from extraction.tries import MAX_ENDED, NO_TRIES, Tries, count_lost, counting, forgive, read_tries

BEGIN = """
import ctypes, os, signal, sys
from pathlib import Path
from extraction.tries import counting
with counting(Path(sys.argv[1])):
    {end}
"""


@pytest.fixture
def path(tmp_path):
    folder = tmp_path / "partial" / "00003"
    folder.mkdir(parents=True)
    return folder / "000012.tries"


def begin_in_a_process(path: Path, end: str) -> int:
    """The exit status of a process that begins a try and ends itself so."""
    code = BEGIN.format(end=end)
    return subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, check=False).returncode


def test_a_try_that_is_done_leaves_nothing(path):
    with counting(path):
        assert path.exists()
    assert not path.exists()
    assert read_tries(path) == NO_TRIES


def test_an_error_is_the_driver_s_to_see_and_no_lost_try(path):
    with pytest.raises(OSError, match="full"), counting(path):
        raise OSError("full")
    assert read_tries(path) == NO_TRIES
    count_lost(path)
    with pytest.raises(OSError, match="full"), counting(path):
        raise OSError("full")
    assert read_tries(path) == Tries(lost=1), "what was counted before stays counted"


def test_a_killed_process_is_counted_as_ended_with_its_run(path):
    for times in (1, 2, 3):
        assert begin_in_a_process(path, "os.kill(os.getpid(), signal.SIGKILL)") == -signal.SIGKILL
        assert read_tries(path) == Tries(ended=times)
        assert not read_tries(path).are_spent(max_tries=2), "that need not be the video's fault"
    assert Tries(ended=MAX_ENDED).are_spent(max_tries=3), "but it does not go on for ever"


def test_a_native_crash_is_the_video_s_and_says_what_it_was(path):
    for times in (1, 2):
        assert begin_in_a_process(path, "ctypes.string_at(0)") == -signal.SIGSEGV
        assert read_tries(path) == Tries(lost=times, cause="Fatal Python error: Segmentation fault")
    assert read_tries(path).are_spent(max_tries=2)
    assert not read_tries(path).are_spent(max_tries=3)
    assert "Segmentation fault" in str(read_tries(path))


def test_a_worker_that_its_driver_saw_go_is_the_video_s(path):
    begin_in_a_process(path, "os._exit(3)")
    assert count_lost(path) == Tries(lost=1)
    assert read_tries(path) == Tries(lost=1), "it is counted once"
    assert count_lost(path) == Tries(lost=2), "also where the worker went before it began"


def test_what_the_run_itself_gave_up_is_no_try(path):
    count_lost(path)
    begin_in_a_process(path, "os._exit(3)")
    forgive(path)
    assert read_tries(path) == Tries(lost=1)
    path.unlink()
    forgive(path)
    assert not path.exists()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"lost": "many"}', '{"lost": 1}', '{"lost": Infinity}', "[" * 100_000]
)
def test_a_damaged_count_begins_anew(path, text, caplog):
    path.write_text(text)
    assert read_tries(path) == NO_TRIES
    assert str(path) in caplog.text
