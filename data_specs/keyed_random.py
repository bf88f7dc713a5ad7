"""Random numbers that follow from a key, whatever else was drawn before or elsewhere."""

import hashlib

import numpy as np


def keyed_generator(*key: int | str) -> np.random.Generator:
    """A counter-based generator, keyed by a digest: no two keys share a stream, and none needs another's state.

    Integers must be Python's: NumPy's print differently.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
