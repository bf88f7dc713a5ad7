"""A little of benchmarks/fuzz.py in every run of the tests, from the same seeds; docs/security.md has the long runs."""

import fuzz
import fuzz_targets
import pytest

INPUTS = {"lists": 150, "labels": 100,
          "store.json": 15, "zarr.json, plain reader": 12, "zarr.json, --verify": 10,
          "chunks, plain reader": 10, "zarr.json, training's reader": 25, "chunks, training's reader": 25,
          "training recipes": 25, "fine-tuning recipes": 25, "extraction recipes": 30,
          "data set specs": 50}  # fmt: skip
NAMES = ["array pickles", "checkpoints", "failures, a file", "failures, a line", "partial files", "paths of videos",
         "TAP-Vid files", *INPUTS]  # fmt: skip


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz") / "f"
    fuzz_targets.make_store(folder)
    return {target.name: target for target in fuzz_targets.all_targets(folder)}


def test_every_target_is_tried(targets):
    assert sorted(targets) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_no_input_gets_anything_but_a_documented_error(targets, name):
    inputs = INPUTS.get(name, 100)
    outcome = fuzz.fuzz(targets[name], begin=1, inputs=inputs, seconds=60)
    assert outcome.crashes == []
    assert outcome.tried == inputs
    assert outcome.refused > 0 or name == "zarr.json, --verify"


def test_a_crash_is_noticed():
    def read(value):
        raise KeyError(value)

    target = fuzz_targets.Target("broken", lambda rng: rng.randrange(9), read, (ValueError,))
    outcome = fuzz.fuzz(target, begin=0, inputs=50, seconds=60)
    assert outcome.crashes
    assert "KeyError" in outcome.crashes[0]
