"""One process needs no torch.distributed; what several do together is in test_training_loop."""

import pytest
import torch
import torch.distributed as dist

from training import distributed
from training.distributed import barrier, gather_objects, open_group, sum_over_ranks


@pytest.fixture(autouse=True)
def _no_torchrun(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


def test_one_process_is_a_group_by_itself():
    with open_group("cpu") as group:
        assert (group.rank, group.world_size, group.is_main, group.device) == (0, 1, True, torch.device("cpu"))
        assert not dist.is_initialized()
        assert sum_over_ranks(torch.tensor([1.5, 2.0])).tolist() == [1.5, 2.0]
        assert gather_objects("a") == ["a"]
        barrier()


def test_the_device_is_what_is_there(monkeypatch):
    with open_group("auto") as group:
        assert group.device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="--device cuda: PyTorch finds no CUDA device"), open_group("cuda"):
        pass
    with pytest.raises(ValueError, match="--device tpu: take auto, cpu or cuda"), open_group("tpu"):
        pass
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with (
        pytest.raises(ValueError, match="process 2 of this machine has no CUDA device: there are 2"),
        open_group("auto"),
    ):
        pass


def test_the_group_is_left_also_after_an_error(monkeypatch):
    left = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(distributed.dist, "init_process_group", lambda backend, **_: left.append(backend))
    monkeypatch.setattr(distributed.dist, "destroy_process_group", lambda: left.append("left"))
    with pytest.raises(RuntimeError, match="on the way"), open_group("cpu"):
        raise RuntimeError("on the way")
    assert left == ["gloo", "left"]
