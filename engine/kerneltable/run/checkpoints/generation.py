"""Greedy text from a loaded model, timed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch

from kerneltable.errors import CheckpointError
from kerneltable.run.checkpoints.blame import speaks_of_checkpoint
from kerneltable.run.faults import reason_of
from kerneltable.run.linear import QuantLinear

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
BYTES = "the checkpoint has no tokenizer: the text's UTF-8 bytes are the ids"


@dataclass(frozen=True, slots=True)
class Generated:
    """What a model wrote.

    prompt, tokens   ids given and ids made
    text             the made ids as text
    tokenizer        how text and ids were converted
    seconds          for all tokens, the pass over the prompt included
    kernels          kernel ids -> layers that they compute; see kernels_of
    weight_bytes     what the quantized layers hold of the checkpoint's weights and scales
    packed_bytes     what their kernels hold beside them
    """

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    text: str
    tokenizer: str
    seconds: float
    kernels: Mapping[str, int]
    weight_bytes: int = 0
    packed_bytes: int = 0

    @property
    def tokens_per_second(self) -> float:
        """Made tokens a second."""
        return len(self.tokens) / self.seconds


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """How text and ids are converted, and in which way, in words."""

    encode: Callable[[str], list[int]]
    decode: Callable[[Sequence[int]], str]
    name: str


def generate(model: PreTrainedModel, folder: Path, prompt: str, tokens: int) -> Generated:
    """Continue a text greedily.

    folder   where the tokenizer is; without one, bytes are the ids
    tokens   how many to make at most; fewer if the model ends the text
    errors   CheckpointError: no prompt, a prompt with ids outside the vocabulary, a tokenizer that cannot be read, or
             transformers cannot generate with the model, such as for values of generation_config.json
    """
    vocabulary = _embeddings(model).shape[0]
    tokenizer = read_tokenizer(folder, vocabulary)
    prompt_ids = tokenizer.encode(prompt)
    if not prompt_ids or max(prompt_ids) >= vocabulary:
        found = "no ids" if not prompt_ids else f"id {max(prompt_ids)}"
        step = "give another text" if prompt else "give a text"
        raise CheckpointError(
            f"prompt: wanted at least one id below the vocabulary's {vocabulary}, and none above; found {found} "
            f"({tokenizer.name}); next: {step}, or the model's own tokenizer in {folder}"
        )
    try:
        _continue(model, prompt_ids, min(tokens, 2))  # kernels are packed and compiled before the clock starts
        start = perf_counter()
        made = _continue(model, prompt_ids, tokens)
        seconds = perf_counter() - start
    except Exception as error:  # a model's code may raise anything
        if not speaks_of_checkpoint(error):
            raise
        raise CheckpointError(
            f"{folder}: transformers cannot generate with it: {reason_of(error)}; next: hold "
            "generation_config.json and config.json against the model"
        ) from error
    what = (tuple(prompt_ids), made, tokenizer.decode(made), tokenizer.name, seconds)
    return Generated(*what, kernels_of(model), *memory_of(model))


def kernels_of(model: torch.nn.Module) -> dict[str, int]:
    """Kernel ids -> number of layers that they compute, most used first; "a + b" where rows so far asked for both."""
    used = (" + ".join(layer.memory()) or layer.kernel or "none" for layer in _layers(model))
    return dict(Counter(used).most_common())


def memory_of(model: torch.nn.Module) -> tuple[int, int]:
    """Bytes that the quantized layers hold: of the checkpoint's weights and scales, and packed beside them."""
    held = sum(tensor.nbytes for layer in _layers(model) for tensor in layer.held().values())
    return held, sum(size for layer in _layers(model) for size in layer.memory().values())


def _layers(model: torch.nn.Module) -> list[QuantLinear]:
    return [module for module in model.modules() if isinstance(module, QuantLinear)]


def read_tokenizer(folder: Path, vocabulary: int) -> Tokenizer:
    """The folder's tokenizer, else bytes.

    errors   CheckpointError: it cannot be read, or there is none and the vocabulary is smaller than 256
    """
    if not any((folder / file).exists() for file in TOKENIZER_FILES):
        if vocabulary < 256:
            raise CheckpointError(
                f"{folder}: wanted one of {', '.join(TOKENIZER_FILES)}; found none, "
                f"and a vocabulary of {vocabulary} has no room for bytes"
            )
        return Tokenizer(lambda text: list(text.encode()), _bytes_to_text, BYTES)
    from transformers import AutoTokenizer

    try:
        found: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a tokenizer's reader may raise anything
        raise CheckpointError(f"{folder}: its tokenizer cannot be read: {reason_of(error)}") from error
    return Tokenizer(
        lambda text: [int(i) for i in found(text)["input_ids"]],
        lambda ids: str(found.decode(list(ids))),
        type(found).__name__,
    )


def _bytes_to_text(ids: Sequence[int]) -> str:
    """Bytes as UTF-8; ids that are no byte as <id>."""
    text, run = "", bytearray()
    for i in ids:
        if i < 256:
            run.append(i)
            continue
        text += run.decode(errors="replace") + f"<{i}>"
        run.clear()
    return text + run.decode(errors="replace")


def _continue(model: PreTrainedModel, prompt: Sequence[int], tokens: int) -> tuple[int, ...]:
    ids = torch.tensor([list(prompt)], device=_embeddings(model).device)
    greedy = {"max_new_tokens": tokens, "do_sample": False, "num_beams": 1, "pad_token_id": 0}
    anything: Any = model
    with torch.inference_mode():
        out = anything.generate(ids, attention_mask=torch.ones_like(ids), **greedy)
    made = out[0, len(prompt) :].tolist()  # .tolist() waits for the device
    return tuple(made)


def _embeddings(model: PreTrainedModel) -> torch.Tensor:
    """The table of the input embeddings, [vocabulary, hidden]."""
    found: Any = model.get_input_embeddings()
    weight: torch.Tensor = found.weight
    return weight
