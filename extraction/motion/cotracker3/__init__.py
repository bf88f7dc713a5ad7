"""CoTracker3's point tracks for start rows: its network is the `cotracker` package's, what surrounds it is ours."""
