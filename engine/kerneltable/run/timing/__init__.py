"""Timing: kernels side by side, layers of a checkpoint, the host's share of a call."""
