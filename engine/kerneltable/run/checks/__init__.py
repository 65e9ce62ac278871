"""Checks of kernels: on this device against float64, and of their code for every chip without one."""
