"""The two-pass flow and its camera for batches of frame pairs, in torch, with Triton where the time goes."""
