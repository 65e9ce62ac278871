"""Whole models: importing this module lets transformers load quantized checkpoints with kerneltable's kernels.

    import kerneltable.transformers
    model = AutoModelForCausalLM.from_pretrained(folder)      # every quantized linear is a QuantLinear; print(model)

Hugging Face FP8, compressed-tensors and ModelOpt checkpoints whose formats a scheme covers; others are refused by name.
`load` does the same with a table, a device or a kernel of one's own; `unregister` gives transformers its loaders back.
Needs transformers 5: pip install 'kerneltable[transformers]'.
"""

from __future__ import annotations

from importlib.util import find_spec

if find_spec("transformers") is None:
    raise ImportError(
        "kerneltable.transformers: wanted transformers 5; found none; pip install 'kerneltable[transformers]'"
    )

from kerneltable.run.checkpoints.model_loading import load
from kerneltable.run.checkpoints.model_quantizer import register, registered, unregister

__all__ = ["load", "register", "registered", "unregister"]

register()  # the one thing that importing does, and what this module is imported for
