"""How well points are tracked: TAP-Vid's metrics, data to measure them on, and the trackers under one interface."""
