"""Which device measures the motion: its name on the command line, what it can do, and whether it is there.

Importing this imports no torch, which takes seconds and is not wanted on the CPU.
"""

import importlib.metadata
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from data_specs.recipe import Recipe

if TYPE_CHECKING:
    import torch

BATCH = 64
"""Frame pairs that are queued for a device."""

MOST_PIXELS = BATCH * 256 * 340
"""Pixels of a side of the pairs that are measured at a time; a worker then takes some 2 GB of the device's memory."""


SOME_DEVICE = "cuda"
"""A device's name where only a cluster's nodes see it."""


_OF_CUDA = re.compile(r"\b(cuda|cudnn|cublas|cusolver|cufft|nvrtc)", re.IGNORECASE)


class DeviceError(OSError):
    """The device is not there, or gave up. No video's fault: the run stops."""


def parse_device(name: str) -> str:
    """The name, if it is `cpu`, `cuda` or `cuda:N`; raises ValueError."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ValueError(f"--device is {name}, must be cpu, cuda or cuda:N")
    return name


def check_recipe(recipe: Recipe, device: str) -> None:
    """Raises ValueError for what a device cannot compute: a store holds what its recipe says, or is not begun."""
    if device == "cpu" or recipe.tracker != "flow":  # a tracker's network computes on either
        return
    problems = []
    if recipe.flow != "tvl1-pyramid":
        problems.append(f"flow is {recipe.flow}, must be tvl1-pyramid")
    if recipe.remove_camera and recipe.camera_features != ("corners",):
        problems.append(f"camera_features is [{', '.join(recipe.camera_features)}], must be [corners]")
    if problems:
        raise ValueError(
            f"--device {device}: recipe {recipe.name}: {'; '.join(problems)}. Take --recipe mme-object-gpu, or change "
            "these fields in a recipe of your own"
        )


def why_missing(device: str) -> str | None:
    """What keeps torch from using the device, with the way out; None if it is there."""
    import torch  # noqa: PLC0415

    if device == "cpu":
        return None
    if not torch.cuda.is_available():
        built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is built without CUDA"
        return (
            f"--device {device}: torch sees no CUDA device; torch {torch.__version__} {built}. See whether nvidia-smi "
            "lists one and CUDA_VISIBLE_DEVICES does not hide it, or leave --device out"
        )
    count = torch.cuda.device_count()
    if torch.device(device).index is not None and torch.device(device).index >= count:
        return f"--device {device}: torch sees {count} CUDA device(s), cuda:0 to cuda:{count - 1}"
    return None


def open_device(device: str) -> "torch.device":
    """The device, ready; raises DeviceError if it is not there."""
    import torch  # noqa: PLC0415

    missing = why_missing(device)
    if missing:
        raise DeviceError(missing)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False  # the same for convolutions, where it is not torch's default
    torch.set_num_threads(1)  # on the host: workers share the machine
    if ":" in device:
        torch.cuda.set_device(device)  # Triton launches on the current one, whatever its tensors are on
    return torch.device(device)


@contextmanager
def device_errors(device: "torch.device", over: str) -> Iterator[None]:
    """Raise DeviceError where the device runs out of memory over something, breaks down, or cannot be compiled for."""
    import torch  # noqa: PLC0415

    # what CUDA's errors are raised as; older versions of torch have no class for them
    accelerator: type[Exception] = getattr(torch, "AcceleratorError", torch.OutOfMemoryError)
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DeviceError(
            f"--device {device}: out of memory over {over}; give it fewer at a time (extract-tracks: "
            f"--workers-per-gpu): {str(error).splitlines()[0]}"
        ) from error
    except RuntimeError as error:
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise DeviceError(f"torch.compile, which `compiled: true` asks for, fails: {str(error).strip()}") from error
        # those of CUDA's libraries are RuntimeErrors in every version
        if not isinstance(error, accelerator) and (device.type == "cpu" or not _OF_CUDA.search(str(error))):
            raise
        raise DeviceError(f"--device {device}: {str(error).splitlines()[0]}") from error


def device_count(device: str) -> int:
    """How many CUDA devices that name stands for on this machine: 1 for `cuda:N`, 0 for `cpu`."""
    import torch  # noqa: PLC0415

    return 0 if device == "cpu" else 1 if ":" in device else torch.cuda.device_count()


def device_versions(device: str) -> dict[str, str]:
    """What the device adds to `plan.software_versions`: nothing for the CPU, which needs no torch.

    A cluster's driver may see no device; then its name is `cuda`.
    """
    if device == "cpu":
        return {}
    import torch  # noqa: PLC0415

    name = torch.cuda.get_device_name(device) if why_missing(device) is None else SOME_DEVICE
    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:  # a driver's torch may be one for the CPU
        triton = "none"
    return {"device": name, "torch": torch.__version__, "triton": triton}
