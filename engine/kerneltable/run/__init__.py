"""Doing: probe the device, bind layers, read checkpoints, hold results against the float64 reference."""
