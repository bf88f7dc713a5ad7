"""zarr's blosc codec for chunks that need not be trusted.

A frame of blosc says how many bytes it has and how many it makes, and blosc believes both: it would read on behind the
frame, and make two gigabytes for a chunk of a few.
"""

import contextlib
import math
import struct
from collections.abc import Iterator
from typing import Any

import zarr
from zarr.codecs import BloscCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer
from zarr.registry import register_codec

HEADER = struct.Struct("<4B3I")
"""Version, version of the compressor, flags, size of a type; decoded bytes, bytes of a block, coded bytes."""
_NAME = "data_specs.checked_blosc.CheckedBloscCodec"


class CheckedBloscCodec(BloscCodec):
    """Decodes what is exactly one chunk; ValueError for anything else."""

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer:
        expected = math.prod(chunk_spec.shape) * chunk_spec.dtype.to_native_dtype().itemsize
        if problem := frame_problem(chunk_bytes.as_numpy_array().data, expected):
            raise ValueError(problem)
        return await super()._decode_single(chunk_bytes, chunk_spec)


def frame_problem(frame: bytes | memoryview, decoded_bytes: int) -> str | None:
    """Why a frame of blosc is not decoded to so many bytes; None where its header says just that."""
    if len(frame) < HEADER.size:
        return f"has {len(frame)} coded bytes, a header alone has {HEADER.size}"
    _, _, _, _, decoded, _, coded = HEADER.unpack_from(frame)
    if decoded != decoded_bytes:
        return f"holds {decoded} bytes, must hold {decoded_bytes}"
    if coded != len(frame):
        return f"has {len(frame)} coded bytes, its header says {coded}"
    return None


@contextlib.contextmanager
def checked_blosc() -> Iterator[None]:
    """Within, zarr opens arrays so that they are decoded by `CheckedBloscCodec`."""
    with zarr.config.set({"codecs.blosc": _NAME}):
        yield


def _register() -> None:
    codec: Any = CheckedBloscCodec
    register_codec("blosc", codec, qualname=_NAME)


_register()
