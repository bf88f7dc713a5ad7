"""Where trajectories come from: the tracker interface and what fills it."""
