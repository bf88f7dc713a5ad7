"""From a track store and its videos to batches: which clip is next, its frames, its motion in its view, its mask."""
