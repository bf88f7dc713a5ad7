"""Inputs for benchmarks/fuzz.py: texts, JSON and bytes that are nearly sound, and wrong in every way that is known.

Each function makes one, by a random generator that hypothesis gives (drawing every choice through hypothesis is twenty
times slower).
"""

import copy
import json
import math
import random
from typing import Any

import google_crc32c
import numpy as np

INDEX_ENTRY, CRC, BLOSC_HEADER = 16, 4, 16

_ODD_TEXTS = [
    "", " ", ".", "..", "/", "//", "a/../b", "../x", "/etc/passwd", "./a", "a/./b", "a//b", "a\x00b", "a\nb",
    "a\tb", "a\x85b", "a\u2028b", "a\x0cb", "\u202egnp.mp4", "-rf", "é.mp4", "a" * 300, "b" * 5000, '"', '""',
    "'", ",", "path", "path,path", "17", "-1", "1e400", "0x10", "nan", "~", "$HOME", "%s", "{a}", "{a.b}",
    "{a[0]}", "{a:>1000000000}", "{a!r}", "{", "}", "{}", "{{}}", "{a:06d}", "{0}", "\ufeff", "x.mp4", "\ud800",
    "*", "&a", "- a", "[", "]", "a: b", "null", "true", "!!python/object:os.system", "mme", "mme-object",
]  # fmt: skip
_ODD_NUMBERS = [
    0, 1, -1, 2, 7, 255, 4096, 10**6, 2**31 - 1, 2**31, 2**32, 2**48, 2**62, 2**63, 2**64, 10**12, 10**30, -(2**63),
    0.5, -0.5, 1e-300, 1e300, math.inf, -math.inf, math.nan,
]  # fmt: skip
_PLAIN_VALUES: list[Any] = [None, True, False, [], {}, [[]], {"a": {}}, [0] * 50]


def odd_text(rng: random.Random) -> str:
    """A text that is trouble in some place, or any."""
    if rng.random() < 0.7:
        return rng.choice(_ODD_TEXTS)
    points = [rng.choice([rng.randrange(128), rng.randrange(0xD800), rng.randrange(0x110000)]) for _ in range(6)]
    return "".join(map(chr, points[: rng.randrange(7)]))


def odd_number(rng: random.Random) -> float:
    """A number that is trouble in some place, or a small one."""
    return rng.choice([rng.choice(_ODD_NUMBERS), rng.choice(_ODD_NUMBERS), rng.randint(-10, 1000), rng.gauss(0, 100)])


def odd_value(rng: random.Random) -> Any:
    """Any value that JSON has."""
    kind = rng.randrange(8)
    if kind < 3:
        return odd_number(rng)
    if kind < 5:
        return odd_text(rng)
    if kind == 5:
        return [odd_number(rng) for _ in range(rng.randrange(5))]
    return copy.deepcopy(rng.choice(_PLAIN_VALUES)) if kind == 6 else _nested(rng.choice([5, 100, 900]))


def _nested(depth: int) -> Any:
    value: Any = 0
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


def _places(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something stands in a JSON value."""
    found = [place]
    items = value.items() if isinstance(value, dict) else enumerate(value[:8]) if isinstance(value, list) else ()
    for key, inner in items:
        found += _places(inner, (*place, key))
    return found


def changed_values(rng: random.Random, sound: Any) -> Any:
    """A value as JSON has them, changed in one to three places: other values, fields gone, doubled, or new."""
    value = copy.deepcopy(sound)
    for _ in range(rng.randint(1, 3)):
        places = [place for place in _places(value) if place]
        if not places:
            return value
        *path, last = rng.choice(places)
        holder = value
        for key in path:
            holder = holder[key]
        how = rng.choice(["set", "set", "set", "nudge", "remove", "add", "repeat"])
        if how == "nudge" and isinstance(holder[last], int | float):
            holder[last] += rng.choice([-1, 1, 2, 1000])
        elif how == "remove":
            del holder[last]
        elif how == "add":
            if isinstance(holder, dict):
                holder[odd_text(rng)] = odd_value(rng)
            else:
                holder.append(odd_value(rng))
        elif how == "repeat" and isinstance(holder[last], list):
            holder[last] = holder[last] * rng.randint(2, 5)
        else:
            holder[last] = odd_value(rng)
    return value


def changed_json(rng: random.Random, sound: Any) -> bytes:
    """A JSON text with other values, or with other bytes."""
    if rng.randint(0, 4):
        text = json.dumps(changed_values(rng, sound))
        return text.replace("Infinity", rng.choice(["Infinity", "1e400"])).encode()
    return changed_bytes(rng, json.dumps(sound).encode())


def changed_bytes(rng: random.Random, sound: bytes) -> bytes:
    """Bytes of which some are flipped, removed, doubled, put in, or the end cut off."""
    data = bytearray(sound)
    for _ in range(rng.randint(1, 4)):
        place = rng.randint(0, len(data))
        size = rng.choice([1, 2, 4, 8, 16, 64])
        how = rng.choice(["flip", "remove", "double", "put", "cut", "fill"])
        if how == "flip" and place < len(data):
            data[place] ^= 1 << rng.randint(0, 7)
        elif how == "remove":
            del data[place : place + size]
        elif how == "double":
            data[place:place] = data[place : place + size]
        elif how == "put":
            data[place:place] = rng.randbytes(rng.randrange(17))
        elif how == "fill":
            data[place : place + size] = bytes([rng.choice([0, 1, 127, 128, 255])]) * size
        else:
            del data[place:]
    return bytes(data)


def changed_frames(rng: random.Random, sound: bytes) -> bytes:
    """A frame of blosc with another header or other content."""
    frame = bytearray(sound)
    if rng.random() < 0.5:
        place = rng.choice([0, 1, 2, 3, 4, 8, 12, 16, 20])
        size = 1 if place < 4 else 4
        number = rng.choice([0, 1, 255, 2**31 - 1, 2**31, 2**32 - 1, rng.randrange(2**32), rng.randrange(2**32)])
        frame[place : place + size] = (number % 256**size).to_bytes(size, "little")
        return bytes(frame)
    body = changed_bytes(rng, bytes(frame[BLOSC_HEADER:]))
    frame[BLOSC_HEADER:] = body
    if rng.random() < 0.5:  # a header that goes with it
        frame[12:16] = len(frame).to_bytes(4, "little")
    return bytes(frame)


def changed_chunk_files(rng: random.Random, sound: bytes, chunks: int) -> bytes:
    """A zarr shard with another index, or another chunk, and sound checksums: what one who means harm would write."""
    if not rng.randint(0, 5):
        return changed_bytes(rng, sound)
    size = chunks * INDEX_ENTRY
    data, index = sound[: -size - CRC], np.frombuffer(sound[-size - CRC : -CRC], "<u8").copy()
    if rng.random() < 0.5:
        for _ in range(rng.randint(1, 2)):
            index[rng.randint(0, len(index) - 1)] = rng.choice(
                [0, 1, 20, 2**31, 2**32, 2**63, 2**64 - 2, 2**64 - 1, *(rng.randrange(5000) for _ in range(4))]
            )
    else:
        written = [n for n in range(chunks) if index[2 * n] != 2**64 - 1]
        chunk = rng.choice(written)
        offset, length = (int(n) for n in index[2 * chunk : 2 * chunk + 2])
        frame = with_crc(changed_frames(rng, data[offset : offset + length - CRC]))
        index[2 * chunk : 2 * chunk + 2] = len(data), len(frame)
        data += frame
    return data + with_crc(index.tobytes())


def with_crc(data: bytes) -> bytes:
    """Data with its crc32c behind it."""
    return data + int(google_crc32c.value(data)).to_bytes(CRC, "little")


def yaml_texts(rng: random.Random, sound: dict[str, Any]) -> bytes:
    """YAML of changed fields, or with fragments of YAML's darker corners, or with other bytes."""
    how = rng.randint(0, 3)
    if how < 2:
        changed = changed_values(rng, sound)
        items = changed.items() if isinstance(changed, dict) else [("a", changed)]
        lines = [f"{key}: {json.dumps(value)}" for key, value in items]
    else:
        lines = [f"{key}: {json.dumps(value)}" for key, value in sound.items()]
    if how == 2:
        for _ in range(rng.randint(1, 3)):
            fragment = rng.choice(

                    [
                        "a: &a [x, x]", "b: [*a, *a]", "<<: {a: 1}", "name: x", "extends: mme", "extends: [mme]",
                        "extends: ../x.yaml", "extends: here.yaml", "extends: /etc/x.yaml", "? [1, 2]", "? a", "--- a",
                        "...", "%YAML 1.1", "!!binary a", "a: !!set {b}", "length: !!int ''", "length: 0x" + "f" * 100,
                        "length: " + "9" * 5000, "length: 1:2:3", "hog: !!bool x", "name: 2001-99-99", "a: |", "a: >",
                        "name: \"\\ud800\"", "name: \"\\x00\"", "lists: {train: \"\\0\"}", "length: '[1, {a: b}]'",
                        "length: 1.0e+400", "ransac_px: .inf", "[" * 500, "{" * 500, "- " * 50, "\t", "root: ''",
                        "length: 1000000000", "grid_stride: 0", "heads: {pixels: {weight: 1.0e+400}}", "heads: []",
                        "frames: 1000000000", "crop_scales: [.nan]", "input_size: 16000000", "epochs: -1",
                    ]

            )  # fmt: skip
            lines.insert(rng.randint(0, len(lines)), fragment)
    text = "\n".join(lines).encode("utf-8", "surrogatepass") + b"\n"
    return (changed_bytes(rng, text)) if how == 3 else text


def list_texts(rng: random.Random) -> bytes:
    """Lists of all formats, with odd names, separators and ends of lines."""
    words = ["a.mp4", "b/c.avi", "label", "youtube_id", "time_start", "20", "x y"]
    ends = ["\n", "\n", "\n", "\r\n", "\r", "\x0b", "\x1c", "\u2028", ""]
    between = [" ", ",", "\t", ", ", " , ", "  ", ""]
    lines = []
    for _ in range(rng.randint(0, 6)):
        cells = [rng.choice([odd_text(rng), rng.choice(words)]) for _ in range(rng.randint(1, 4))]
        lines.append(rng.choice(between).join(cells) + rng.choice(["", " 17", ",3", " -1"]) + rng.choice(ends))
    text = rng.choice(["", "\ufeff", "path,label\n", "label,youtube_id,time_start\n"]) + "".join(lines)
    return text.encode("utf-8", "surrogatepass")


PICKLE_OPS = [
    b"(", b".", b"0", b"1", b"2", b"N", b"\x88", b"\x89", b"]", b"}", b")", b"a", b"e", b"s", b"u", b"t", b"l", b"d",
    b"\x85", b"\x86", b"\x87", b"\x8f", b"\x90", b"\x91", b"\x94", b"b", b"R", b"\x81", b"\x92", b"\x93", b"o", b"Q",
    b"K\x01", b"M\xff\xff", b"J\xff\xff\xff\x7f", b"G" + bytes(8), b"I10\n", b"L10L\n", b"F1.5\n", b"Vx\n", b"S'x'\n",
    b"U\x01x", b"C\x01x", b"X\x01\x00\x00\x00x", b"\x8c\x01x", b"h\x00", b"j\x00\x00\x00\x00", b"q\x05",
    b"r\xff\xff\xff\x7f", b"p99999999999\n", b"g0\n", b"T\xff\xff\xff\x7f", b"B\xff\xff\xff\x7f",
    b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x8d\x00\x00\x00\x00\x01\x00\x00\x00", b"\x96" + b"\x00\x00\x00\x01" * 2,
    b"\x8b\xff\xff\xff\x7f", b"\x8a\x01\x01", b"cos\nsystem\n", b"cnumpy\ndtype\n", b"cnumpy\nndarray\n",
    b"cnumpy.core.multiarray\n_reconstruct\n", b"cnumpy.core.multiarray\nscalar\n", b"c_codecs\nencode\n",
    b"cbuiltins\nbytes\n", b"cbuiltins\ngetattr\n", b"inumpy\ndtype\n", b"Px\n", b"\x82\x01", b"\x80\x04",
    b"\x95\x08\x00\x00\x00\x00\x00\x00\x00", b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x97", b"\x98",
]  # fmt: skip
"""Opcodes of pickles with their arguments, hostile ones among them."""


def pickles(rng: random.Random, sound: bytes) -> bytes:
    """A pickle with other bytes, or with opcodes put in, or of opcodes alone."""
    how = rng.randint(0, 2)
    if how == 0:
        return changed_bytes(rng, sound)
    ops = b"".join(rng.choices(PICKLE_OPS, k=rng.randint(1, 12)))
    if how == 1:
        place = rng.randint(0, len(sound))
        return sound[:place] + ops + sound[place:]
    return b"\x80\x04" + ops + b"."
