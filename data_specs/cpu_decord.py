"""decord without CUDA.

On import decord loads every library of the pip packages `nvidia-*`, which torch brings along, into the process's global
names: half a gigabyte for each worker, and NVBLAS among them takes the place of torch's own BLAS and then fails (seen
with decord2 3.4 and torch 2.15: the first matrix product on the CPU crashes). Frames are decoded on the CPU, so decord
is told that there are no such packages.
"""

import sys

_found = sys.modules.get("nvidia")
sys.modules["nvidia"] = None  # type: ignore[assignment]  # how the import system marks what is not to be found
try:
    import decord
finally:
    del sys.modules["nvidia"]
    if _found is not None:
        sys.modules["nvidia"] = _found

__all__ = ["decord"]
