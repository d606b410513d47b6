"""Serving a reward model: `assent serve` beside `vllm serve` for CPUs, the same folder, the same requests, in turns.
It is no row of `python -m benchmarks`: what matters is how long requests take, by the number of clients.

    python -m benchmarks.serving                 measures, and prints a table
    python -m benchmarks.serving --requests 200 --clients 1,8 --out serving.json

Both servers are up at the same time and are asked one after the other, for each number of clients. Each of C clients
sends its next request (the answers to one prompt, as texts, to /classify) when the last is answered. Reported are
answers a second, and the times within which half and 99 % of the requests were answered. A request that is refused or
fails is counted as dropped, and the two sides must give the same numbers. Memory is the largest resident size of a
server and of what it started, so far. VLLM_PYTHON names the interpreter of vLLM's environment (default: .venv-vllm);
--ours measures assent alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np

from benchmarks.plan import SPINS
from benchmarks.turns import peak_rss

ROOT = Path(__file__).resolve().parents[1]
WORDS = "the reward of an answer is what people who read it would say that it is worth to them here".split()
ANSWERS, PROMPT, ANSWER = 4, 120, 60
"""Answers in a request, and about how many words the prompt and each answer have."""
STARTS = 600.0
WARMUP = 16
"""Requests, all at once, that are not timed."""
REST = 1.5
"""Seconds before each turn: vLLM's worker looks for work for a second before it sleeps."""
CLOSE = 2e-2
"""Furthest that the two sides' numbers may be apart, in units of their spread."""
SIZES = {"tiny": (64, 2, 4), "small": (512, 8, 8)}
"""Width, layers and heads."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One side with that many clients."""

    side: str
    clients: int
    requests: int
    dropped: int
    answers_per_second: float
    p50_ms: float
    p99_ms: float
    peak_rss: int


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=list(SIZES), default="small")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--clients", default="1,8,64")
    parser.add_argument("--requests", type=int, default=400, help="for each number of clients, and each side")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--ours", action="store_true", help="assent alone")
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    args = parser.parse_args()
    clients = [int(number) for number in args.clients.split(",")]
    with tempfile.TemporaryDirectory() as place:
        folder = make_folder(Path(place) / "model", args.model)
        bodies = requests(args.requests)
        sides = ["ours"] if args.ours else ["ours", "vllm"]
        found: list[Measured] = []
        numbers: dict[str, np.ndarray] = {}
        with ExitStack() as stack:
            up = {side: stack.enter_context(started(side, folder, args.precision, args.threads)) for side in sides}
            for side, (url, pid) in up.items():
                asyncio.run(measure(side, url, pid, bodies[:WARMUP], WARMUP))
            for count in clients:
                for side, (url, pid) in up.items():
                    time.sleep(REST)
                    measured, numbers[side] = asyncio.run(measure(side, url, pid, bodies, count))
                    found.append(measured)
        print(table(found))
        apart = 0.0
        if len(sides) == 2:
            apart = float(np.abs(numbers["ours"] - numbers["vllm"]).max() / numbers["ours"].std())
            print(f"furthest apart: {apart:.2g} of the rewards' standard deviation; load {os.getloadavg()[0]:.1f}")
        if args.out:
            report = {"date": time.strftime("%Y-%m-%d"), "model": args.model, "precision": args.precision}
            report |= {"threads": args.threads, "load": os.getloadavg()[0], "apart": apart}
            args.out.write_text(json.dumps({**report, "rows": [asdict(one) for one in found]}, indent=1) + "\n")
    return int(any(one.dropped for one in found) or apart > CLOSE)


# ---- what is served, and what is asked


def make_folder(folder: Path, size: str) -> Path:
    """A reward model with random weights, as assent writes one."""
    import torch

    from assent.config import InitConfig, ModelConfig
    from assent.data.chat import Chat
    from assent.models.heads import load_score_model, save_reward_model
    from assent.models.init import random_model, train_tokenizer, write_new_model
    from assent.models.loading import load_tokenizer, quiet_transformers

    quiet_transformers()
    width, layers, heads = SIZES[size]
    words = train_tokenizer([" ".join(WORDS)] * 3, 512)
    shape = {"hidden_size": width, "layers": layers, "heads": width // max(32, width // heads)}
    config = InitConfig(data="", out="", kv_heads=shape["heads"], context=1024, **shape)
    base = write_new_model(words, random_model(words, config), folder.parent / "base")
    source = ModelConfig(str(base), precision="fp32")
    scorer = load_score_model(source, load_tokenizer(source), max_length=1024, seed=1)
    with torch.no_grad():
        scorer.head.weight.normal_(std=0.5)
    save_reward_model(scorer.eval(), Chat(load_tokenizer(source)), folder)
    return folder


def requests(count: int) -> list[bytes]:
    """Bodies for /classify, each with the answers to one prompt."""
    draw = np.random.default_rng(0)

    def text(size: int) -> str:
        return " ".join(draw.choice(WORDS, max(1, int(draw.normal(size, size / 4)))))

    made = []
    for _ in range(count):
        prompt = f"<|im_start|>user\n{text(PROMPT)}<|im_end|>\n<|im_start|>assistant\n"
        texts = [f"{prompt}{text(ANSWER)}<|im_end|>" for _ in range(ANSWERS)]
        made.append(json.dumps({"input": texts, "use_activation": False}).encode())
    return made


# ---- servers


@contextmanager
def started(side: str, folder: Path, precision: str, threads: int) -> Iterator[tuple[str, int]]:
    """The URL of a server, and its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    python = {"ours": sys.executable, "vllm": os.environ.get("VLLM_PYTHON") or str(ROOT / ".venv-vllm/bin/python")}[
        side
    ]
    command = [python, "-m", "assent", "serve", str(folder), "--port", str(port), "--precision", precision]
    command += ["--threads", str(threads)]
    if side == "vllm":
        command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--port", str(port)]
        command += ["--dtype", "bfloat16" if precision == "bf16" else "float32", "--max-model-len", "1024"]
        command += ["--host", "127.0.0.1", "--gpu-memory-utilization", "0.2"]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    env |= {"VLLM_NO_USAGE_STATS": "1", "CUDA_VISIBLE_DEVICES": ""}
    env |= {"GOMP_SPINCOUNT": SPINS}  # libgomp's default, said aloud: neither side is to take the other for a neighbour
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
        try:
            deadline = time.monotonic() + STARTS
            while True:
                try:
                    if httpx2.get(url + "/health", timeout=5).status_code == 200:
                        break
                except httpx2.HTTPError:
                    pass
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise SystemExit(f"{side} did not start:\n{log.read().decode(errors='replace')[-3000:]}")
                time.sleep(0.5)
            yield url, process.pid
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)


async def measure(side: str, url: str, pid: int, bodies: Sequence[bytes], clients: int) -> tuple[Measured, np.ndarray]:
    """All bodies by that many clients, and the numbers of all answers in their order."""
    times: list[float] = []
    found: list[list[float] | None] = [None] * len(bodies)
    waiting = iter(enumerate(bodies))
    limits = httpx2.Limits(max_connections=clients)
    headers = {"Content-Type": "application/json"}
    async with httpx2.AsyncClient(base_url=url, timeout=600, limits=limits, headers=headers) as http:

        async def client() -> None:
            for index, body in waiting:
                begun = time.perf_counter()
                try:
                    reply = await http.post("/classify", content=body)
                    data: Any = reply.json()["data"] if reply.status_code == 200 else []
                except httpx2.HTTPError:
                    data = []
                times.append(time.perf_counter() - begun)
                if len(data) == ANSWERS:
                    found[index] = [entry["probs"][0] for entry in data]

        begun = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        seconds = time.perf_counter() - begun
    dropped = sum(numbers is None for numbers in found)
    p50, p99 = np.quantile(times, [0.5, 0.99]) * 1e3
    per_second = ANSWERS * (len(bodies) - dropped) / seconds
    memory = peak_rss(str(pid))
    measured = Measured(side, clients, len(bodies), dropped, per_second, float(p50), float(p99), memory)
    return measured, np.array([numbers or [np.nan] * ANSWERS for numbers in found])


def table(rows: Sequence[Measured]) -> str:
    head = ("side", "clients", "requests", "dropped", "answers/s", "p50 ms", "p99 ms", "peak GiB")
    lines = [head] + [
        (
            one.side,
            str(one.clients),
            str(one.requests),
            str(one.dropped),
            f"{one.answers_per_second:,.0f}",
            f"{one.p50_ms:,.0f}",
            f"{one.p99_ms:,.0f}",
            f"{one.peak_rss / 2**30:.2f}",
        )
        for one in rows
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths)) for line in lines)


if __name__ == "__main__":
    sys.exit(main())
