"""Sampling speed: the torch engine and `transformers.generate` on the same model and prompts, taking turns in one
process; the best of several turns of each counts.

    python benchmarks/bench_generate.py MODEL_FOLDER... [--precision fp32 bf16] [--threads 2]

`tok/s` counts sampled tokens. `MFU` is the share of the machine's own matrix-product rate (measured here, in the same
precision) that the engine's arithmetic amounts to: 2 x weights + 4 x attended columns x width, per token.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from assent.config import SamplingConfig
from assent.rollout.torch_engine import TorchEngine

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="Hugging Face model folders")
    parser.add_argument("--precision", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--prompt-tokens", type=int, default=24)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: all")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    print(f"{'model':<16}{'prec':<6}{'engine tok/s':>14}{'generate tok/s':>16}{'ratio':>8}{'MFU':>8}")
    for folder in args.models:
        for precision in args.precision:
            ours, theirs, flops = compare(folder, precision, args)
            share = flops * ours / matmul_rate(DTYPES[precision])
            name = Path(folder).name
            print(
                f"{name:<16}{precision:<6}{ours:>14.0f}{theirs:>16.0f}{ours / theirs:>7.2f}x{share:>8.1%}", flush=True
            )


def compare(folder: str, precision: str, args: argparse.Namespace) -> tuple[float, float, float]:
    """Tokens per second of the engine and of `transformers.generate`, and floating-point operations per token."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    peer = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[precision]).eval()
    rng = np.random.default_rng(0)
    ids = rng.integers(10, model.config.vocab_size, (args.prompts, args.prompt_tokens))
    engine = TorchEngine(model, (), precision)
    sampling = SamplingConfig(max_new_tokens=args.new_tokens, max_batch=args.prompts)

    def ours() -> None:
        engine.generate(list(ids), 1, sampling, seed=0)

    def theirs() -> None:
        tokens = torch.from_numpy(ids)
        with torch.no_grad():
            peer.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                max_new_tokens=args.new_tokens,
                min_new_tokens=args.new_tokens,
            )

    best = best_times((ours, theirs), args.repeats)
    count = args.prompts * args.new_tokens
    return count / best[0], count / best[1], flops_per_token(model, args.prompt_tokens + args.new_tokens / 2)


def best_times(jobs: tuple[Callable[[], None], ...], repeats: int) -> list[float]:
    """Shortest time of each job in seconds; they take turns, so that a disturbance meets all of them."""
    best = [float("inf")] * len(jobs)
    for turn in range(repeats + 1):
        for index, job in enumerate(jobs):
            start = time.perf_counter()
            job()
            if turn > 0:  # the first turn warms up
                best[index] = min(best[index], time.perf_counter() - start)
    return best


def flops_per_token(model: PreTrainedModel, context: float) -> float:
    """Two per weight that is multiplied (the input embedding is only looked up), and for attention two products of
    `context` columns times the heads' width in each layer."""
    config = model.config.get_text_config()
    weights = sum(p.numel() for p in model.parameters()) - model.get_input_embeddings().weight.numel()
    head = model.get_output_embeddings().weight
    if head is model.get_input_embeddings().weight:
        weights += head.numel()
    width = config.num_attention_heads * getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
    return 2 * weights + 4 * config.num_hidden_layers * context * width


def matmul_rate(dtype: torch.dtype, size: int = 1536) -> float:
    """The machine's floating-point operations per second in a large square matrix product."""
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    seconds = best_times((lambda: torch.mm(a, b),), 10)[0]
    return 2 * size**3 / seconds


if __name__ == "__main__":
    main()
