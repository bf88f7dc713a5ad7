"""Pickles of arrays, read without running what else a pickle may name.

A pickle is a program: `pickle.load` calls whatever it says. Here it can only say numbers, texts, bytes, lists, tuples,
dictionaries and numpy arrays of plain types; anything else is refused by name. Not even numpy's own ways of
restoring its objects are called, for a forged type or state could make them read beyond an array's memory: what the
pickle gives for an array is collected, checked, and built anew from its bytes.
"""

import math
import pickle
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
from numpy.typing import NDArray

_PLAIN = re.compile(r"b1|[iu][1248]|f[248]|c(?:8|16)|[SU][1-9]\d{0,8}|O8?")
_MOST_AXES = 8
_DAMAGED = (
    pickle.UnpicklingError, EOFError, ValueError, LookupError, TypeError, AttributeError, ImportError, OverflowError,
    RecursionError, struct.error,
)  # fmt: skip
"""What an unpickler trips over in bytes that are not a pickle, or a damaged one."""


class ArrayPickleError(ValueError):
    """A pickle that cannot be read, or that asks for more than arrays; the message names the file."""


def load_arrays(file: Path) -> Any:
    """What a pickle holds: lists, tuples, dictionaries, numbers, texts, bytes and numpy arrays, those of objects too.

    Raises ArrayPickleError where it is damaged or names anything else, FileNotFoundError where it is not there.
    """
    if file.exists() and not file.is_file():
        raise ArrayPickleError(f"{file}: not a file")  # a pipe would never end
    with file.open("rb") as stream:
        try:
            return _Builder().build(_ArrayUnpickler(_Bounded(stream, file.stat().st_size)).load())
        except _RefusedError as error:
            raise ArrayPickleError(
                f"{file}: asks for {error}, which is no array, number or text. A pickle can run anything as it is "
                "opened, so this one is not opened further; take the file from where TAP-Vid publishes it"
            ) from error
        except MemoryError as error:
            raise ArrayPickleError(f"{file}: asks for more memory than there is") from error
        except _DAMAGED as error:
            raise ArrayPickleError(f"{file}: not a whole pickle of arrays ({error}); fetch it again") from error


class _RefusedError(Exception):
    """The message is the name that was asked for."""


class _Dtype:
    """An array's type, as the pickle gives it."""

    def __init__(self, code: object, _align: object = False, _copy: object = False) -> None:
        if not isinstance(code, str) or not _PLAIN.fullmatch(code):
            raise _RefusedError(f"arrays of type {_shown(code)}")
        self.code = code
        self.big = False

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _version, order, subarray, names, fields, *_ = state
        if (subarray, names, fields) != (None, None, None):
            raise _RefusedError("arrays of structures")
        self.big = order == ">"

    def built(self) -> np.dtype[Any]:
        return np.dtype("O") if self.code.startswith("O") else np.dtype(f"{'>' if self.big else '<'}{self.code}")


class _Array:
    """An array, as the pickle gives it; `built` once the pickle is read."""

    def __init__(self) -> None:
        self._state: tuple[Any, ...] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _version, shape, dtype, fortran, data = state
        self._state = shape, dtype, bool(fortran), data

    def built(self, build: Callable[[Any], Any]) -> NDArray[Any]:
        if self._state is None:
            raise ValueError("an array without content")
        shape, dtype, fortran, data = self._state
        if not isinstance(dtype, _Dtype) or not isinstance(shape, tuple) or len(shape) > _MOST_AXES:
            raise ValueError("an array without type or shape")
        if any(type(side) is not int or side < 0 for side in shape):
            raise ValueError("an array of a shape that is none")
        kind = dtype.built()
        count = math.prod(shape)
        if kind.hasobject and isinstance(data, list) and len(data) == count:
            flat: NDArray[Any] = np.empty(count, object)
            for index, value in enumerate(data):
                flat[index] = build(value)
        elif not kind.hasobject and isinstance(data, (bytes, bytearray)) and len(data) == count * kind.itemsize:
            flat = np.frombuffer(data, kind)
        else:
            raise ValueError(f"an array of shape {shape} and type {kind} with other content")
        return flat.reshape(shape, order="F" if fortran else "C")


class _Scalar:
    """A number with numpy's type."""

    def __init__(self, dtype: object, data: object) -> None:
        self._array = _Array()
        self._array.__setstate__((1, (1,), dtype, False, data))

    def built(self, build: Callable[[Any], Any]) -> Any:
        return self._array.built(build)[0]


class _Bounded:
    """A file that is never asked for more than it has, whatever length a pickle says that a text of it has."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self.readline, self._stream, self._left = stream.readline, stream, size

    def read(self, size: int) -> bytes:
        if size > self._left:
            raise EOFError(f"it says that {size} bytes follow")
        return self._stream.read(size)

    def readinto(self, buffer: bytearray) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


# The one that is written in Python: the other makes room for as many things as a pickle says that it has.
_PlainUnpickler: Any = pickle._Unpickler


class _ArrayUnpickler(_PlainUnpickler):  # type: ignore[misc]
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(_PlainUnpickler.dispatch)

    def load_keys(self) -> None:
        """Before a dictionary takes keys: the hash of a tuple of tuples of tuples can take for ever."""
        if not all(isinstance(key, (str, int, bytes)) for key in self.stack[::2]):
            raise _RefusedError("a dictionary whose keys are no texts or numbers")

    def load_dict(self) -> None:
        self.load_keys()
        super().load_dict()

    def load_setitems(self) -> None:
        self.load_keys()
        super().load_setitems()

    def load_setitem(self) -> None:
        if not isinstance(self.stack[-2], (str, int, bytes)):
            raise _RefusedError("a dictionary whose keys are no texts or numbers")
        super().load_setitem()

    def load_bytearray8(self) -> None:
        self.append(bytearray(self.read(int.from_bytes(self.read(8), "little"))))

    def load_refused(self) -> None:
        raise _RefusedError("a set, or a buffer that is not in it")

    dispatch[pickle.DICT[0]] = load_dict
    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8
    for _code in (pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET, pickle.NEXT_BUFFER):
        dispatch[_code[0]] = load_refused

    def find_class(self, module: str, name: str) -> Any:
        numpy_1 = re.sub(r"^numpy\._core\b", "numpy.core", module)
        # new functions each time: a pickle can set attributes of what it is given
        found = _constructors().get((numpy_1.replace("__builtin__", "builtins"), name))
        if found is None:
            raise _RefusedError(f"{module}.{name}")
        return found


def _shown(value: object) -> str:
    """A value in one line; of what is no text its type, for a tuple of tuples can be shorter than what it says."""
    return ascii(value[:40]) if isinstance(value, str) else type(value).__name__


def _constructors() -> dict[tuple[str, str], Callable[..., Any]]:
    """What arrays are pickled with, by module (numpy 1's name) and name."""

    def ndarray() -> None:
        raise _RefusedError("an array made in an unusual way")  # only ever an argument of the next

    def empty_array(*_: object) -> _Array:
        return _Array()

    def from_buffer(data: object, dtype: object, shape: object, order: object) -> _Array:
        array = _Array()
        array.__setstate__((1, shape, dtype, order == "F", data))
        return array

    def dtype(*arguments: object) -> _Dtype:
        return _Dtype(*arguments)

    def scalar(kind: object, data: object) -> _Scalar:
        return _Scalar(kind, data)

    def encode(text: str, encoding: str) -> bytes:
        if encoding not in ("latin1", "latin-1"):
            raise _RefusedError(f"the encoding {_shown(encoding)}")
        return text.encode("latin-1")  # bytes, in pickles of protocol 2 and before

    def no_bytes() -> bytes:
        return b""

    return {
        ("numpy", "ndarray"): ndarray,
        ("numpy", "dtype"): dtype,
        ("numpy.core.multiarray", "_reconstruct"): empty_array,
        ("numpy.core.multiarray", "scalar"): scalar,
        ("numpy.core.numeric", "_frombuffer"): from_buffer,
        ("_codecs", "encode"): encode,
        ("builtins", "bytes"): no_bytes,
    }


class _Builder:
    """Puts the arrays into the containers that the pickle has them in."""

    def __init__(self) -> None:
        self._built: dict[int, Any] = {}  # by id: what is named a thousand times is built once
        self._building: set[int] = set()

    def build(self, value: Any) -> Any:
        if value is None or isinstance(value, (bool, int, float, complex, str, bytes, bytearray)):
            return value
        if id(value) not in self._built:
            if id(value) in self._building:
                raise ValueError(f"a {type(value).__name__} that holds itself")
            self._building.add(id(value))
            self._built[id(value)] = self._new(value)
        return self._built[id(value)]

    def _new(self, value: Any) -> Any:
        if isinstance(value, (_Array, _Scalar)):
            return value.built(self.build)
        if isinstance(value, dict) and all(isinstance(key, (str, int, bytes)) for key in value):
            return {key: self.build(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(self.build(item) for item in value)
        raise ValueError(f"an unexpected {type(value).__name__}")
