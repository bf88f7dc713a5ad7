"""Pickles of arrays: what holds only arrays comes back as it was, and nothing that a pickle names is ever run."""

import codecs
import os
import pickle
import resource
import struct
from pathlib import Path

import numpy as np
import pytest

from extraction.evaluation.array_pickles import ArrayPickleError, load_arrays


class Runs:
    """Pickled as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def write(path, content, protocol=4):
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def everything():
    rng = np.random.default_rng(0)
    return {
        "video": rng.integers(0, 256, (2, 3, 5, 3), dtype=np.uint8),
        "points": rng.random((4, 2, 2)).astype(np.float32),
        "columns first": np.asfortranarray(rng.random((3, 4))),
        "not contiguous": np.arange(20)[::3],
        "big-endian": np.arange(5, dtype=">i4"),
        "occluded": rng.random((4, 2)) < 0.5,
        "pictures": np.array([b"abc", b"de"]),
        "objects": np.array([b"abc", "de", None, np.arange(3)], dtype=object),
        "none of it": np.zeros((0, 3)),
        "no axis": np.array(2.5),
        "numbers": (1, 2.5, True, None, 10**30, np.float32(0.25), np.int64(-3)),
        "texts": ["é", b"\xff\x00", b""],
        7: {"deep": [[[(1,)]]]},
    }


def assert_same(a, b):
    assert type(a) is type(b)
    if isinstance(a, np.ndarray):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        for x, y in zip(a.ravel(), b.ravel(), strict=True):
            assert_same(x, y) if a.dtype == object else np.testing.assert_array_equal(x, y)
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    else:
        assert a == b


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_and_containers_come_back(tmp_path, protocol):
    content = everything()
    assert_same(load_arrays(write(tmp_path / "a.pkl", content, protocol)), content)


def test_numpy_1_s_names_are_known(tmp_path):
    content = everything()
    data = pickle.dumps(content, protocol=3)
    assert data.count(b"cnumpy._core.") >= 2
    (tmp_path / "a.pkl").write_bytes(data.replace(b"cnumpy._core.", b"cnumpy.core."))
    assert_same(load_arrays(tmp_path / "a.pkl"), content)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("eval", lambda touched: Runs(eval, f"open({str(touched)!r}, 'w')")),
        ("open", lambda touched: Runs(open, str(touched), "w")),
        ("system", lambda touched: Runs(os.system, f"touch '{touched}'")),
        ("memmap", lambda touched: Runs(np.memmap, str(touched), "u1", "w+", 0, (4,))),
    ],
)
def test_what_else_a_pickle_names_is_refused_and_not_run(tmp_path, name, call, protocol):
    touched = tmp_path / "touched"
    hostile = write(tmp_path / "davis.pkl", {"bear": {"video": [1, call(touched)]}}, protocol)
    with pytest.raises(ArrayPickleError, match=rf"davis\.pkl: asks for \S+\.{name}, which"):
        load_arrays(hostile)
    assert not touched.exists()
    pickle.loads(hostile.read_bytes())  # it would have run
    assert touched.exists()


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    "named",
    [
        Runs(getattr, np.zeros(2), "tofile"), Runs(bytes, 10**15), Runs(codecs.encode, "x", "rot13"), Path("a"),
        Runs(np.ndarray, (3,)), Runs(np.dtype, "V16"), np.tile, np.ndarray, np.random.default_rng(0), {1, 2},
        RuntimeError("x"),
    ],
    ids=lambda named: type(named).__name__,
)  # fmt: skip
def test_harmless_or_not_only_arrays_are_taken(tmp_path, named, protocol):
    with pytest.raises(ArrayPickleError, match=r"kinetics\.pkl"):
        load_arrays(write(tmp_path / "kinetics.pkl", [{"video": np.zeros(3), "points": named}], protocol))


def array_bytes(code, state_of_type, shape, data):
    """A forged array: numpy 2's own calls, with this type and state."""
    kind = np.dtype("u1").__reduce__()[0]
    reconstruct, arguments, _ = np.zeros(1).__reduce__()

    class Kind:
        def __reduce__(self):
            return kind, (code, False, True), state_of_type

    class Array:
        def __reduce__(self):
            return reconstruct, arguments, (1, shape, Kind(), False, data)

    return Array()


PLAIN = (3, "<", None, None, None, -1, -1, 0)


@pytest.mark.parametrize(
    ("code", "state", "shape", "data"),
    [
        ("u1", PLAIN, (1000,), b"abc"),
        ("u1", PLAIN, (2**62, 4), b""),
        ("u1", PLAIN, (-3,), b"abc"),
        ("u1", PLAIN, (3.0,), b"abc"),
        ("u1", PLAIN, (1,) * 60, b"a"),
        ("O8", PLAIN, (1,), b"\x10\x20\x30\x40\x50\x60\x70\x00"),
        ("O8", PLAIN, (5,), [1]),
        ("u1", PLAIN, (3,), [1, 2, 3]),
        ("V16", (3, "|", None, ("a",), {"a": (np.dtype("O"), 4096)}, 16, 1, 0), (1,), b"0" * 16),
        ("u1", (3, "|", None, ("a",), {"a": (np.dtype("O"), 4096)}, 16, 1, 0), (1,), b"0"),
        ("u1", (3, "|", (np.dtype("u1"), (9,)), None, None, 9, 1, 0), (1,), b"0"),
        ("S0", PLAIN, (10**9,), b""),
        ("u1,O", PLAIN, (1,), b"0"),
    ],
)
def test_forged_arrays_are_refused(tmp_path, code, state, shape, data):
    genuine = load_arrays(write(tmp_path / "a.pkl", [array_bytes("u1", PLAIN, (3,), b"abc")]))
    assert genuine[0].tolist() == [97, 98, 99]
    with pytest.raises(ArrayPickleError, match=r"b\.pkl"):
        load_arrays(write(tmp_path / "b.pkl", [array_bytes(code, state, shape, data)]))
    assert np.dtype("u1").itemsize == 1
    assert np.arange(3, dtype="i4").tolist() == [0, 1, 2]


def test_containers_that_hold_themselves_or_each_other_a_million_times(tmp_path):
    itself = []
    itself.append(itself)
    with pytest.raises(ArrayPickleError, match="holds itself"):
        load_arrays(write(tmp_path / "a.pkl", itself))
    laughs = [0]
    for _ in range(60):
        laughs = [laughs] * 10
    read = load_arrays(write(tmp_path / "b.pkl", laughs))
    assert read[0] is read[9]


def test_damaged_files_say_so(tmp_path):
    whole = pickle.dumps(everything(), protocol=4)
    file = tmp_path / "cut.pkl"
    for length in range(0, len(whole), 7):
        file.write_bytes(whole[:length])
        with pytest.raises(ArrayPickleError, match=r"cut\.pkl: .*fetch it again"):
            load_arrays(file)
    rng = np.random.default_rng(1)
    for number in range(300):
        damaged = bytearray(whole)
        for _ in range(3):
            damaged[rng.integers(len(whole))] = rng.integers(256)
        file.write_bytes(damaged if number % 2 else rng.bytes(50))
        try:
            load_arrays(file)  # within an array's bytes nothing shows
        except ArrayPickleError as error:
            assert "cut.pkl" in str(error)
    file.write_bytes(b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"abc.")
    with pytest.raises(ArrayPickleError, match=r"cut\.pkl"):
        load_arrays(file)


def test_no_more_than_files_is_opened(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_arrays(tmp_path / "missing.pkl")
    os.mkfifo(tmp_path / "pipe.pkl")
    for name in ("pipe.pkl", "."):
        with pytest.raises(ArrayPickleError, match="not a file"):
            load_arrays(tmp_path / name)


@pytest.mark.parametrize("index", [2**24, 2**31 - 1])
def test_a_pickle_that_numbers_its_things_far_apart_takes_no_memory(tmp_path, index):
    """The unpickler that is written in C makes room for twice as many: 34 GB for eight bytes."""
    (tmp_path / "a.pkl").write_bytes(b"\x80\x04Nr" + index.to_bytes(4, "little") + b".")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert load_arrays(tmp_path / "a.pkl") is None
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


def test_a_key_whose_hash_takes_for_ever_is_refused(tmp_path):
    """A tuple of a tuple twice, of a tuple twice, …: 120 bytes, and 2⁴⁰ steps to hash or to print."""
    bomb = b"K\x01" + b"2\x86" * 40
    for content in (b"}" + bomb + b"Ns", b"}(" + bomb + b"Nu", b"(" + bomb + b"Nd", b"\x8f(" + bomb + b"\x90",
                    b"cnumpy\ndtype\n(" + bomb + b"tR"):  # fmt: skip
        (tmp_path / "a.pkl").write_bytes(b"\x80\x04" + content + b".")
        with pytest.raises(ArrayPickleError, match=r"asks for (a dictionary whose keys|a set|arrays of type tuple)"):
            load_arrays(tmp_path / "a.pkl")


@pytest.mark.parametrize("opcode", [b"T", b"B", b"\x8e", b"\x8d", b"\x96", b"\x8b"])
def test_a_length_that_the_file_has_not_is_refused(tmp_path, opcode):
    size = 4 if opcode in (b"T", b"B", b"\x8b") else 8
    (tmp_path / "a.pkl").write_bytes(b"\x80\x05" + opcode + (2**31 - 1).to_bytes(size, "little") + b"abc.")
    with pytest.raises(ArrayPickleError, match="2147483647 bytes follow"):
        load_arrays(tmp_path / "a.pkl")
