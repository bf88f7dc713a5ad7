"""The contract between extraction and training: data sets, recipes, frames, and the track store.

Both halves import this package; it imports neither of them.
"""
