"""kerneltable run --generate: a whole model loaded with transformers continues a text, with tokens per second."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kerneltable.cli.output import print_json
from kerneltable.cli.run_text import memory_line
from kerneltable.errors import CheckpointError

if TYPE_CHECKING:
    from kerneltable.model import Table
    from kerneltable.run.checkpoints.generation import Generated

TOKENS = 64
"""Default of --tokens."""


def answer(folders: Sequence[tuple[str, Path]], skipped: Sequence[str], table: Table, args: argparse.Namespace) -> int:
    """Load each model, continue args.generate greedily and print it: 0, or 1 when there was no model to load.

    returns  1 too when samples were left out
    errors   CheckpointError (transformers is not installed, or a checkpoint cannot be loaded), NoKernelError
    """
    generate, load = _with_transformers()
    answers: list[dict[str, Any]] = []
    for label, folder in folders:
        with _quiet_transformers():
            model = load(
                folder, table, args.device, kernel=args.force, verify=args.verify, keep_checkpoint=not args.release
            )
            found = generate(model, folder, args.generate, args.tokens or TOKENS)
        where = str(model.device)
        answers.append(as_json(label, where, found))
        if args.format == "text":
            print("\n".join(text_lines(label, where, args.generate, found)))
    if args.format == "json":
        print_json({"format": 1, "generated": answers, "skipped": list(skipped)})
    elif skipped:
        print("\n".join(skipped))
    return 0 if answers and not skipped else 1


def as_json(label: str, where: str, found: Generated) -> dict[str, Any]:
    """One model's answer as JSON-able values."""
    return {
        "checkpoint": label,
        "device": where,
        "text": found.text,
        "prompt_ids": list(found.prompt),
        "ids": list(found.tokens),
        "tokenizer": found.tokenizer,
        "seconds": round(found.seconds, 6),
        "tokens_per_second": round(found.tokens_per_second, 2),
        "kernels": dict(found.kernels),
        "weight_bytes": found.weight_bytes,
        "packed_bytes": found.packed_bytes,
    }


def text_lines(label: str, where: str, prompt: str, found: Generated) -> list[str]:
    """One model's answer as lines: the text, then how fast, how read, by which kernels."""
    kernels = ", ".join(f"{kernel} {count}" for kernel, count in found.kernels.items()) or "none"
    rate = f"{len(found.tokens)} tokens in {found.seconds:.2f} s, {found.tokens_per_second:.1f} tokens/s"
    return [
        label,
        f"  {prompt}{found.text}",
        f"  {rate} (prompt of {len(found.prompt)} included) on {where}",
        f"  tokenizer: {found.tokenizer}",
        f"  kernels: {kernels}",
        f"  {memory_line([found])}",
    ]


def _with_transformers() -> tuple[Any, Any]:
    try:
        from kerneltable.run.checkpoints.generation import generate
        from kerneltable.run.checkpoints.model_loading import load
    except ImportError as error:
        if (error.name or "").split(".")[0] != "transformers":
            raise
        raise CheckpointError(
            f"--generate: wanted transformers 5; found: {error}; pip install 'kerneltable[transformers]'"
        ) from None
    return generate, load


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No progress bars where stderr is not a terminal."""
    from transformers.utils import logging

    if sys.stderr.isatty() or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()  # type: ignore[no-untyped-call, unused-ignore]
    try:
        yield
    finally:
        logging.enable_progress_bar()  # type: ignore[no-untyped-call, unused-ignore]
