"""Video list -> frames -> motion -> trajectories -> HOG -> track store. Writes; never imports `training`."""

import numcodecs.blosc

# Blosc's own threads write the blocks of a frame in the order in which they happen to finish: a store's bytes must not
# depend on that.
numcodecs.blosc.use_threads = False
