"""Decode speed of a random model of Qwen3-8B's shapes: bf16, transformers' own FP8 layers, and kerneltable's.

    python bench/qwen3_8b.py                                  about two minutes on one GPU; no download
    python bench/qwen3_8b.py --compile model --only bf16,kerneltable-block      whole model through torch.compile
    python bench/qwen3_8b.py --device cpu --tiny              every code path, in seconds, without a GPU

One step takes one token a sequence through the model, with a static cache already `--context` tokens long, and chooses
the next token greedily. On a GPU the step is captured in one CUDA graph, so what is timed is the device's work. Weights
are normal numbers made on the device; each quantized variant quantizes the same bf16 weights.
"""

from __future__ import annotations

import argparse
import copy
import gc
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
import transformers
from transformers import Qwen3Config, Qwen3ForCausalLM, StaticCache

from kerneltable import QuantLinear
from kerneltable.ops.torch_fp8 import round_to_e4m3
from kerneltable.run.checkpoints.generation import kernels_of

QWEN3_8B = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": False,
}
"""source: config.json of Qwen/Qwen3-8B"""

TINY = QWEN3_8B | {"vocab_size": 512, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}

BLOCK = 128
E4M3_LARGEST = 448.0
Build = Callable[[torch.nn.Linear], torch.nn.Module]


# --- Layers --------------------------------------------------------------------------------------------------------


def channel_scaled(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """codes [n, k] e4m3 and scale [n, 1] f32, one a row."""
    scale = weight.float().abs().amax(dim=1, keepdim=True) / E4M3_LARGEST
    return round_to_e4m3(weight.float() / scale), scale


def block_scaled(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """codes [n, k] e4m3 and scale [n / 128, k / 128] f32, n and k multiples of 128."""
    n, k = weight.shape
    tiles = weight.float().reshape(n // BLOCK, BLOCK, k // BLOCK, BLOCK)
    scale = tiles.abs().amax(dim=(1, 3)) / E4M3_LARGEST
    codes = round_to_e4m3(tiles / scale[:, None, :, None])
    return codes.reshape(n, k), scale


def kerneltable_block(linear: torch.nn.Linear) -> torch.nn.Module:
    codes, scale = block_scaled(linear.weight)
    return QuantLinear.from_tensors("fp8_block_w8a8", {"weight": codes, "weight_scale_inv": scale})


def kerneltable_channel(linear: torch.nn.Linear, scheme: str = "fp8_w8a8") -> torch.nn.Module:
    codes, scale = channel_scaled(linear.weight)
    return QuantLinear.from_tensors(scheme, {"weight": codes, "weight_scale": scale})


def transformers_channel(linear: torch.nn.Linear) -> torch.nn.Module:
    from transformers.integrations.compressed_tensors import CompressedTensorsFP8Linear

    codes, scale = channel_scaled(linear.weight)
    with torch.device("meta"):
        layer = CompressedTensorsFP8Linear(linear.in_features, linear.out_features)
    layer.weight = torch.nn.Parameter(codes, requires_grad=False)
    layer.weight_scale = torch.nn.Parameter(scale.reshape(1, -1), requires_grad=False)
    return layer


def transformers_block(linear: torch.nn.Linear) -> torch.nn.Module:
    from transformers.integrations.finegrained_fp8 import FP8Linear

    codes, scale = block_scaled(linear.weight)
    with torch.device("meta"):
        layer = FP8Linear(linear.in_features, linear.out_features, block_size=(BLOCK, BLOCK))
    layer.weight = torch.nn.Parameter(codes, requires_grad=False)
    layer.weight_scale_inv = torch.nn.Parameter(scale, requires_grad=False)
    return layer


VARIANTS: dict[str, Build | None] = {
    "bf16": None,
    "transformers-block": transformers_block,
    "transformers-channel": transformers_channel,
    "kerneltable-block": kerneltable_block,
    "kerneltable-channel": kerneltable_channel,
    "kerneltable-w8a16": partial(kerneltable_channel, scheme="w8a16_fp8"),
}


# --- The model and one step of it ----------------------------------------------------------------------------------


def random_model(sizes: dict[str, object], device: str) -> Qwen3ForCausalLM:
    """A bf16 model with normal weights, made on the device."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = Qwen3ForCausalLM(Qwen3Config(**sizes, dtype=torch.bfloat16, attn_implementation="sdpa"))
    finally:
        torch.set_default_dtype(torch.float32)
    return model.eval().requires_grad_(False)


def projections(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Linear]]:
    """The linears that checkpoints quantize: those of the decoder layers."""
    for name, module in list(model.named_modules()):
        if name.endswith("_proj") and isinstance(module, torch.nn.Linear):
            yield name, module


def variant_of(base: Qwen3ForCausalLM, build: Build | None) -> Qwen3ForCausalLM:
    """The same model with its projections quantized. The first layer runs once, so that what cannot run fails early."""
    if build is None:
        return base
    first = build(next(projections(base))[1])
    first(torch.zeros(1, 1, base.config.hidden_size, dtype=torch.bfloat16, device=base.device))
    memo = {id(linear.weight): linear.weight for _, linear in projections(base)}  # not copied: replaced below
    model = copy.deepcopy(base, memo)
    for name, linear in projections(model):
        model.set_submodule(name, build(linear))
    return model


class Step:
    """One decoding step in buffers of its own: ids and position in, the next ids and position in the same place."""

    def __init__(self, model: Qwen3ForCausalLM, batch: int, context: int, room: int) -> None:
        config, device = model.config, model.device
        self.model, self.context, self.room = model, context, room
        self.cache = StaticCache(config=config, max_cache_len=room)
        heads, size = config.num_key_value_heads, config.head_dim
        self.cache.early_initialization(batch, heads, size, torch.bfloat16, device)
        self.ids = torch.zeros(batch, 1, dtype=torch.int64, device=device)
        self.position = torch.zeros(1, 1, dtype=torch.int64, device=device)
        self.places = torch.arange(room, device=device)
        self.reset()

    def reset(self) -> None:
        """Back to the first token after the context, whose keys and values are random but always the same."""
        generator = torch.Generator(self.ids.device).manual_seed(1)
        for layer in self.cache.layers:
            layer.keys.normal_(generator=generator)
            layer.values.normal_(generator=generator)
            layer.cumulative_length.fill_(self.context)
        self.position.fill_(self.context)
        self.ids.fill_(7)

    def __call__(self) -> None:
        seen = (self.places <= self.position)[None, None]
        out = self.model(
            self.ids,
            attention_mask={"full_attention": seen.expand(self.ids.shape[0], 1, 1, self.room)},
            position_ids=self.position,
            past_key_values=self.cache,
            use_cache=True,
        )
        self.ids.copy_(out.logits[:, -1].argmax(-1, keepdim=True))
        self.position.add_(1)


def compile_parts(model: Qwen3ForCausalLM, how: str) -> None:
    """regions: each norm and MLP, compiled once for all layers; model: everything in one graph."""
    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit = 64
    if how == "model":
        model.forward = torch.compile(model.forward, fullgraph=True, dynamic=False)
    elif how == "regions":
        for module in model.modules():
            if type(module).__name__ in ("Qwen3MLP", "Qwen3RMSNorm"):
                module.compile(fullgraph=True, dynamic=False)


def captured(step: Step) -> Callable[[], None]:
    """The step as one CUDA graph; without CUDA, the step itself."""
    if step.ids.device.type != "cuda":
        step()
        return step
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def tokens_of(step: Step, run: Callable[[], None], count: int) -> list[list[int]]:
    step.reset()
    made = []
    for _ in range(count):
        run()
        made.append(step.ids[:, 0].tolist())
    return made


def seconds_of(step: Step, run: Callable[[], None], steps: int) -> float:
    """The best of three times for all steps."""
    times = []
    for _ in range(3):
        step.reset()
        step.ids.tolist()  # waits for the device
        start = time.perf_counter()
        for _ in range(steps):
            run()
        step.ids.tolist()
        times.append(time.perf_counter() - start)
    return min(times)


def measure(model: Qwen3ForCausalLM, args: argparse.Namespace) -> list[str]:
    """Tokens a second for each batch, each checked to repeat its own tokens."""
    cells = []
    for batch in args.batches:
        run = captured(step := Step(model, batch, args.context, args.context + args.steps + 8))
        same = tokens_of(step, run, 4) == tokens_of(step, run, 4)
        rate = batch * args.steps / seconds_of(step, run, args.steps)
        cells.append(f"{rate:.1f}" + ("" if same else " (does not repeat)"))
        del step, run
    return cells


def gigabytes(model: torch.nn.Module) -> float:
    """Bytes of all distinct tensors of the model, the packed copies of kernels not counted."""
    tensors = {t.data_ptr(): t.nbytes for t in [*model.parameters(), *model.buffers()]}
    return sum(tensors.values()) / 1e9


def row_of(name: str, base: Qwen3ForCausalLM, args: argparse.Namespace) -> list[str]:
    """One line of the table; what cannot run here says why."""
    start = time.perf_counter()
    try:
        with torch.inference_mode():
            model = variant_of(base, VARIANTS[name])
            compile_parts(model, args.compile)
            cells = measure(model, args)
        used = ", ".join(f"{kernel} {count}" for kernel, count in kernels_of(model).items()) or "-"
    except Exception as error:  # a variant may fail in any way; the others still count
        reason = (str(error).splitlines() or [""])[0]
        return [name, *["-"] * (len(args.batches) + 1), f"not available: {type(error).__name__}: {reason[:110]}"]
    return [name, *cells, f"{gigabytes(model):.1f}", f"{used}; {time.perf_counter() - start:.0f} s in all"]


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="small shapes, to try the script")
    parser.add_argument("--only", default=",".join(VARIANTS), help=f"a comma list of {', '.join(VARIANTS)}")
    parser.add_argument("--compile", default="regions", choices=("no", "regions", "model"))
    parser.add_argument("--batches", default="1,16", help="sequences at once, a comma list")
    parser.add_argument("--context", type=int, default=512, help="tokens in the cache at the start")
    parser.add_argument("--steps", type=int, default=64, help="tokens a sequence")
    args = parser.parse_args()
    args.batches = [int(batch) for batch in args.batches.split(",")]
    return args


def main() -> None:
    args = options()
    on_gpu = args.device.startswith("cuda")
    device = torch.cuda.get_device_name() if on_gpu else args.device
    print(f"{device}, torch {torch.__version__}, transformers {transformers.__version__}")
    print(f"compile {args.compile}, {int(on_gpu)} CUDA graphs a step, context {args.context}, {args.steps} steps")
    torch.backends.cuda.enable_cudnn_sdp(False)  # its last bits differ from run to run, and so do tokens after a tie
    base = random_model(TINY if args.tiny else QWEN3_8B, args.device)
    heads = ["variant", *[f"tokens/s at {batch}" for batch in args.batches], "GB", "kernels"]
    widths = [22, *[max(18, len(head)) for head in heads[1:-2]], 7, 0]
    print("".join(f"{head:<{width}}" for head, width in zip(heads, widths, strict=True)))
    for name in args.only.split(","):
        cells = row_of(name, base if name != "bf16" else copy.deepcopy(base), args)
        print("".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)), flush=True)
        gc.collect()
        if on_gpu:
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
