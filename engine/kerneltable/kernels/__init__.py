"""Adapters: one file a kernel, the file name is the kernel id of the table."""
