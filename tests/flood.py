"""10,000 small requests to `assent serve` from eight threads, by hand: `python tests/flood.py MODEL`. Says how many
were answered, how fast, and what memory the server held before, in between and after."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path

REQUESTS, THREADS = 10_000, 8


def rss(pid: int) -> float:
    """MiB that a process holds (Linux)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def client(host: str, count: int, number: int) -> tuple[Counter[int], list[float]]:
    """So many requests one after the other; statuses and seconds."""
    statuses, times = Counter[int](), []
    connection = HTTPConnection(host, timeout=120)
    for turn in range(count):
        text = f"<|im_start|>user\n{number}?<|im_end|>\n<|im_start|>assistant\n{turn}<|im_end|>"
        begun = time.perf_counter()
        body = json.dumps({"query": [text]})
        connection.request("POST", "/get_reward", body, {"Content-Type": "application/json"})
        reply = connection.getresponse()
        reply.read()
        times.append(time.perf_counter() - begun)
        statuses[reply.status] += 1
    return statuses, times


def main() -> None:
    command = [sys.executable, "-m", "assent", "serve", sys.argv[1], "--port", "0", "--threads", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        host = server.stdout.readline().strip().removeprefix("http://")
        client(host, 100, 0)
        print(f"before: {rss(server.pid):.0f} MiB")
        for _ in range(2):
            begun = time.perf_counter()
            with ThreadPoolExecutor(THREADS) as pool:
                done = list(pool.map(lambda number: client(host, REQUESTS // THREADS, number), range(THREADS)))
            seconds, times = time.perf_counter() - begun, sorted(one for _, own in done for one in own)
            statuses = sum((found for found, _ in done), Counter[int]())
            print(
                f"{dict(statuses)} in {seconds:.1f} s, {REQUESTS / seconds:.0f} a second, half within "
                f"{1e3 * times[len(times) // 2]:.0f} ms, 99 % within {1e3 * times[int(0.99 * len(times))]:.0f} ms; "
                f"after: {rss(server.pid):.0f} MiB"
            )
        os.kill(server.pid, signal.SIGTERM)
        print(f"exit code {server.wait(60)}")


if __name__ == "__main__":
    main()
