"""The processes of one run: what torchrun says of them, and what they do together.

Without torchrun's environment there is one process, and torch.distributed is not touched.
"""

import dataclasses
import datetime
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist


@dataclasses.dataclass(frozen=True)
class Group:
    """This process among the run's."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0


@contextmanager
def open_group(device: str = "auto") -> Iterator[Group]:
    """Join the processes that torchrun started (NCCL on CUDA, gloo on the CPU), and leave them at the end.

    device: auto (CUDA where there is one), cpu, or cuda. Raises ValueError for a device that is not there.
    """
    rank, world_size, local_rank = (int(os.environ.get(n, d)) for n, d in _TORCHRUN.items())
    chosen = _device(device, local_rank)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    together = world_size > 1
    if together:
        dist.init_process_group(
            "nccl" if chosen.type == "cuda" else "gloo",
            device_id=chosen if chosen.type == "cuda" else None,
            timeout=_PATIENCE,
        )
    try:
        yield Group(rank, world_size, chosen)
    finally:
        if together:
            dist.destroy_process_group()


_PATIENCE = datetime.timedelta(hours=1)
"""How long processes wait for one another. In a test they meet at its end only, and one may have had the longer videos;
NCCL's own ten minutes would end it there."""
_TORCHRUN = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}


def _device(name: str, local_rank: int) -> torch.device:
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"--device {name}: take auto, cpu or cuda")
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError("--device cuda: PyTorch finds no CUDA device here; take --device cpu")
    if local_rank >= torch.cuda.device_count():
        raise ValueError(
            f"process {local_rank} of this machine has no CUDA device: there are {torch.cuda.device_count()}; "
            "give torchrun no more with --nproc_per_node"
        )
    return torch.device("cuda", local_rank)


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's sum over all processes, in place; every process must call it with one shape and dtype."""
    if _together():
        dist.all_reduce(tensor)
    return tensor


def gather_objects(value: Any) -> list[Any]:
    """Every process's value, by rank, in every process. Small things only: they are pickled."""
    if not _together():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def barrier() -> None:
    """Wait until every process is here."""
    if _together():
        dist.barrier()


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()
