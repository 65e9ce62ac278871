"""Checkpoints: reading their tensors and configurations, layer by layer or as a whole model."""
