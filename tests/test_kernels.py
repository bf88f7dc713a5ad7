"""Workers find every kernel compiled."""

import os
import subprocess
import sys

from videos import write_video

from data_specs.scene import random_scene

COMPILE = """
from data_specs.recipe import load_recipe
from extraction.kernels import compile_kernels
compile_kernels(load_recipe("mme-object"))
"""

EXTRACT = """
import sys
from data_specs.recipe import load_recipe
from data_specs.video import Video
from extraction.cuts import ShotFrames
from extraction.process_video import process_video
from extraction.stages import untimed
recipe = load_recipe("mme-object").resolved(4)
assert len(list(process_video(ShotFrames(Video(sys.argv[1], 256), True, untimed), recipe, untimed))) == 2
"""


def test_what_is_compiled_ahead_is_all_that_extraction_needs(tmp_path):
    """A video of another size, decoded, adds nothing to numba's cache on disk."""
    clip = write_video(tmp_path / "clip.avi", random_scene(3, 2.0, (72, 104)).frames(11))
    cache = tmp_path / "cache"
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache)}

    def kernels():
        return sorted(p.relative_to(cache) for p in cache.rglob("*.nbc"))

    subprocess.run([sys.executable, "-c", COMPILE], check=True, env=environment)
    ahead = kernels()
    assert len(ahead) > 10
    subprocess.run([sys.executable, "-c", EXTRACT, str(clip)], check=True, env=environment)
    assert kernels() == ahead
