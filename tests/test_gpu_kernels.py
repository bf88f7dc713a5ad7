"""TV-L1's inner loops in torch and in Triton against the CPU's, which are compiled by numba, and against OpenCV.

Where there is no CUDA device the Triton kernels are run by Triton's interpreter, and compiled for a card that is not
there.
"""

import dataclasses
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from extraction.motion import tvl1_kernels
from extraction.motion.gpu import eager
from extraction.motion.gpu.batched_tvl1 import BatchedTVL1
from extraction.motion.tvl1 import FAST, HALF

triton = pytest.importorskip("triton", reason="no Triton on this platform: only the torch twin is used")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZE = (17, 31)
STEPS = (0.045, 0.3, 0.25 / 0.3)
FLAT = 1e-6
MODULES = ["extraction.motion.gpu.triton_kernels", "extraction.motion.gpu.kernels"]


def import_kernels(*, interpret):
    """Fresh modules, whose functions the interpreter runs or the compiler takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1" if interpret else "0")
        for name in MODULES:
            patch.delitem(sys.modules, name, raising=False)
        found = [importlib.import_module(name) for name in MODULES]
        for name in MODULES:
            del sys.modules[name]
    return found


@pytest.fixture(scope="module")
def kernels():
    return import_kernels(interpret=DEVICE == "cpu")[1]


@pytest.fixture(params=["eager", "kernels"])
def loops(request):
    return eager if request.param == "eager" else request.getfixturevalue("kernels")


def random(seed, *shape, scale=1.0, offset=0.0):
    values = np.random.default_rng(seed).normal(offset, scale, shape)
    return values.astype(np.float32)


def on_device(array):
    return torch.from_numpy(array).to(DEVICE)


def plane(image):
    made = tvl1_kernels.new_plane(*image.shape)
    tvl1_kernels.image_of(made, *image.shape)[:] = image
    return made


def images(planes, size=SIZE):
    return np.stack([tvl1_kernels.image_of(p, *size) for p in planes])


@pytest.mark.parametrize("side", [3, 5])
def test_the_median_is_opencv_s(loops, side):
    flow = random(0, 2, 2, *SIZE)
    expected = [[cv2.medianBlur(component, side) for component in pair] for pair in flow]
    np.testing.assert_array_equal(loops.median(on_device(flow), side).cpu().numpy(), expected)


def test_edge_weights_are_the_cpu_s(loops):
    """The border too, whose pixels have nothing but black for neighbours."""
    image = random(1, 2, *SIZE, scale=30, offset=120)
    image[:, 4:9, 7:20] = 100
    expected = []
    for one in image:
        weight = tvl1_kernels.new_plane(*SIZE)
        tvl1_kernels.edge_weight(plane(one), weight, SIZE, 20.0, 10.0)
        expected.append(tvl1_kernels.image_of(weight, *SIZE))
    found = loops.edge_weight(on_device(image), 20.0, 10.0).cpu().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert len(np.unique(found)) > 100
    assert (found == 10).any()


def test_linearisation_is_the_cpu_s(loops):
    """Flows that lead far out of the image and pixels that say nothing are among them."""
    a, b = random(2, 2, *SIZE, scale=30, offset=120), random(3, 2, *SIZE, scale=30, offset=120)
    a[:, 4:9, 7:20] = b[:, 4:9, 7:20] = 100
    flow = random(4, 2, 2, *SIZE, scale=4)
    flow[:, :, 5:8, 9:17] = 0.25
    y, x = np.mgrid[: SIZE[0], : SIZE[1]].astype(np.float32)
    expected = []
    for i in range(2):
        warped = cv2.remap(b[i], x + flow[i, 0], y + flow[i, 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        linear, mean = tuple(tvl1_kernels.new_plane(*SIZE) for _ in range(4)), tvl1_kernels.new_plane(*SIZE)
        of_flow = plane(flow[i, 0]), plane(flow[i, 1])
        tvl1_kernels.linearise(plane(a[i]), plane(warped), of_flow, linear, mean, SIZE)
        expected.append(images(linear))
    found = loops.linearise(on_device(a), on_device(b), on_device(flow), FLAT).cpu().numpy()
    expected = np.stack(expected)
    for part in (0, 1, 3):
        np.testing.assert_allclose(found[:, part], expected[:, part], atol=2e-3)
    # one over a square: where that is small, so is the number of digits that agree
    sure = expected[:, 2] < 1
    assert 0.9 < sure.mean() < 1
    np.testing.assert_allclose(found[:, 2][sure], expected[:, 2][sure], rtol=2e-3)
    assert (found[:, 2] == 0).sum() == (expected[:, 2] == 0).sum() > 10


def state(size):
    flow, dual = random(5, 2, 2, *size, scale=3), random(6, 2, 4, *size, scale=0.3)
    linear = random(7, 2, 4, *size, scale=20)
    linear[:, 2] = np.where(random(8, 2, *size) > 1, 0, 1 / (linear[:, 0] ** 2 + linear[:, 1] ** 2))
    weight = 1 + 9 * np.random.default_rng(9).random((2, *size)).astype(np.float32)
    return flow, dual, linear, weight


def cpu_iterations(flow, dual, linear, weight, count):
    size = flow.shape[2:]
    results = []
    for i in range(len(flow)):
        u, p = tuple(map(plane, flow[i])), tuple(map(plane, dual[i]))
        steps = tuple(np.float32(step) for step in STEPS)
        tvl1_kernels.iterate(u, p, tuple(map(plane, linear[i])), plane(weight[i]), size, count, steps, -1.0)
        results.append((images(u, size), images(p, size)))
    return (np.stack(parts) for parts in zip(*results, strict=True))


@pytest.mark.parametrize("count", [1, 7])
def test_iterations_are_the_cpu_s(loops, count):
    """Seven are more than one launch of the kernel does, and the image is wider than its tile."""
    arrays = state(SIZE)
    expected_flow, expected_dual = cpu_iterations(*arrays, count)
    flow, dual = loops.iterate(*map(on_device, arrays), count, STEPS)
    np.testing.assert_allclose(flow.cpu().numpy(), expected_flow, atol=2e-5)
    np.testing.assert_allclose(dual.cpu().numpy(), expected_dual, atol=2e-5)


@pytest.mark.parametrize(("size", "per_launch", "strips", "rows"), [((29, 33), 2, 8, 2), ((7, 40), 3, 4, 2)])
def test_tiles_of_any_shape_give_the_same(kernels, size, per_launch, strips, rows):
    """Several tiles along both axes, and tiles that are larger than the image."""
    arrays = state(size)
    expected_flow, expected_dual = cpu_iterations(*arrays, 5)
    tile = {"per_launch": per_launch, "strips": strips, "rows": rows}
    flow, dual = kernels.iterate(*map(on_device, arrays), 5, STEPS, **tile)
    np.testing.assert_allclose(flow.cpu().numpy(), expected_flow, atol=2e-5)
    np.testing.assert_allclose(dual.cpu().numpy(), expected_dual, atol=2e-5)


def test_a_tile_that_its_overlap_uses_up_is_refused(kernels):
    with pytest.raises(ValueError, match="16 iterations leave nothing of a tile of 64 x 32 pixels"):
        kernels.iterate(*map(on_device, state(SIZE)), 30, STEPS, per_launch=16)


@pytest.mark.parametrize("options", [FAST, HALF], ids=["fast", "half"])
def test_the_solver_is_the_same_with_either(kernels, options):
    short = dataclasses.replace(options, scales=2, warps=1, iterations=2)
    a, b = (on_device(random(seed, 2, 37, 53, scale=30, offset=120)) for seed in (10, 11))
    with_kernels, in_torch = BatchedTVL1(short, kernels)(a, b), BatchedTVL1(short, eager)(a, b)
    torch.testing.assert_close(with_kernels, in_torch, atol=1e-4, rtol=0)
    assert with_kernels.abs().mean() > 0.1


COMPILE = """
import sys
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction
from extraction.motion.gpu import kernels

class Card:
    def get_current_target(self):
        return GPUTarget("cuda", int(sys.argv[1]), 32)
    def get_current_device(self):
        return 0
    def get_current_stream(self, device):
        return 0

def compile_only(self, grid):
    def launch(*arguments, **options):
        compiled = self.warmup(*arguments, grid=grid, **options)
        assert compiled.metadata.shared <= 48 << 10
        with open(f"{sys.argv[2]}/{self.__name__}-{len(found)}.cubin", "wb") as file:
            file.write(compiled.asm["cubin"])
        found.append(self.__name__)
    return launch

found = []
driver.set_active(Card())
JITFunction.__getitem__ = compile_only
flow, dual, images = (torch.zeros(2, count, 256, 340) for count in (2, 4, 2))
kernels.iterate(flow, dual, dual, images[0], kernels.ITERATIONS_PER_LAUNCH, (0.045, 0.3, 0.83))
kernels.linearise(images[0], images[1], flow, 1e-6)
kernels.edge_weight(images[0], 20.0, 10.0)
kernels.median(flow, 3)
kernels.median(flow, 5)
assert found == ["iterate_tile", "linearise_tile", "edge_weight_block", "median_block", "median_block"], found
"""


def test_launches_compile_for_a_card_that_is_not_there_and_keep_to_its_registers(tmp_path):
    """The interpreter takes what the compiler does not. Spilled registers would cost what the tiles save."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-c", COMPILE, "90", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    cubins = sorted(tmp_path.glob("*.cubin"))
    assert len(cubins) == 5
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    if not tool.exists():
        pytest.skip("compiled, but this Triton comes without the cuobjdump that tells registers")
    for cubin in cubins:
        usage = subprocess.run([tool, "--dump-resource-usage", cubin], capture_output=True, text=True, check=True)
        registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage.stdout).groups())
        assert (registers <= 128, stack) == (True, 0), f"{cubin.stem}: {usage.stdout}"


@pytest.mark.cuda
@pytest.mark.skipif(DEVICE == "cpu", reason="torch sees no CUDA device")
def test_full_size_iterations_on_a_card(kernels):
    arrays = state((256, 340))
    expected_flow, expected_dual = cpu_iterations(*arrays, 30)
    flow, dual = kernels.iterate(*map(on_device, arrays), 30, STEPS)
    np.testing.assert_allclose(flow.cpu().numpy(), expected_flow, atol=1e-3)
    np.testing.assert_allclose(dual.cpu().numpy(), expected_dual, atol=1e-3)
