"""The log has each step once, and every line of it is JSON."""

import json
import math

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training.run_log import RunLog, cut_back, json_line, summary


def line(step, **changed):
    return {
        "step": step, "epoch": step / 7, "loss": 1 / step, "flow": 2 / step, "lr": 1e-4, "grad_norm": 3.0, "clips": 4,
        "skipped": 0, "clips_per_s": 2.5, "wait_share": 0.125, "seconds": 1.6, **changed,
    }  # fmt: skip


def steps_of(path):
    return [json.loads(text)["step"] for text in path.read_text(encoding="utf-8").splitlines()]


def test_lines_are_json_whatever_the_numbers():
    found = json.loads(json_line({"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1.5, "e": None, "id": "ü"}))
    assert found == {"a": None, "b": None, "c": None, "d": 1.5, "e": None, "id": "ü"}


def test_a_resumed_log_has_no_step_twice(tmp_path):
    with RunLog(tmp_path, step=0, steps=5) as log:
        for step in (1, 2, 3):
            log.write(line(step))
            log.write_skipped(step, [(f"clip {step}", "decode: no frame")])
    with RunLog(tmp_path, step=2, steps=5) as log:
        assert steps_of(tmp_path / "log.jsonl") == [1, 2]
        assert steps_of(tmp_path / "skipped.jsonl") == [1, 2]
        log.write(line(3, flow=None))
        log.sync()
    lines = [json.loads(text) for text in (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines == [line(1), line(2), line(3, flow=None)]
    assert not list(tmp_path.glob(".tmp-*"))


@pytest.mark.parametrize("rest", ['{"step": 3, "lo', '{"step": 3}', "null\n", "\0\0\0"])
def test_a_line_that_a_crash_cut_off_is_dropped(tmp_path, rest):
    log = tmp_path / "log.jsonl"
    log.write_text(json_line(line(1)) + json_line(line(2)) + rest, encoding="utf-8")
    cut_back(log, 9)
    assert steps_of(log) == [1, 2]


def test_cutting_back_a_log_that_is_not_there_does_nothing(tmp_path):
    cut_back(tmp_path / "log.jsonl", 3)
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_has_the_curves_of_the_run_as_it_went_on(tmp_path):
    with RunLog(tmp_path, step=0, steps=4) as log:
        for step in (1, 2, 3):
            log.write(line(step, flow=100.0 * step))
    with RunLog(tmp_path, step=1, steps=4) as log:
        log.write(line(2, flow=7.0))
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert {"loss", "flow", "lr", "grad_norm", "clips_per_s", "wait_share"} <= set(board.Tags()["scalars"])
    assert [(event.step, event.value) for event in board.Scalars("flow")] == [(1, 100.0), (2, 7.0)]


def test_a_summary_compares_the_ends_with_the_best_constant(tmp_path):
    log = tmp_path / "log.jsonl"
    lines = [{"step": n, "flow": None if n == 20 else 30.0 - n, "flow_trivial": 7.0, "hof": None} for n in range(1, 21)]
    log.write_text("".join(json_line(line) for line in lines), encoding="utf-8")
    assert summary(log, ["flow", "hof"]) == (
        "flow 28.5000 -> 11.0000 (best constant 7.0000); "
        "hof nothing measured -> nothing measured (best constant nothing measured)"
    )
