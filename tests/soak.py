"""Runs under whatever happens around them, hour after hour: killed, interrupted, paused, without room on the disk, with
their output closed, with a second process on their folder, with their reward server dead for a while. Each is then
continued to its end, and must have computed the bytes of a run that was left alone.

    make soak                     two hours; make soak HOURS=0.2 SEED=3 for a shorter one, another one
    python tests/soak.py --show   the table of the last soak's log

Every attempt is a line of soak.jsonl in the folder --out: the run, what was done to it when, its exit code, what it
said last, how long it took to end, what it was continued from. The bytes of each finished run are compared at its end.
A difference, a traceback, an exit code that does not fit or a run that does not end within its limit stops the soak
with exit code 1; its folder is kept.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))
sys.path.insert(0, str(ROOT / "tests"))

LIMIT = 180.0
"""Seconds in which an attempt must have ended by itself."""
QUICK = 5.0
"""Seconds from a signal to the end of the process, beyond which a stop counts as slow."""
COMMON = (
    "--optim.lr 3e-3 --train.batch_size 4 --train.micro_tokens 100 --train.eval_every 2 --train.threads 1 "
    "--data.eval_fraction 0.2 --data.max_length 64 --model.precision fp32"
)
RUNS: Mapping[str, str] = {
    "sft": "sft --train.max_steps 8 --train.save_every 3",
    "reward": "reward --train.max_steps 8",
    "tr-dpo": "tr-dpo --train.max_steps 8 --reference.mode moving --reference.rate 0.5 --reference.every 2",
    "kto lora": "kto --train.max_steps 8 --model.lora.rank 2",
    "grpo": "grpo --train.max_steps 8 --rollout.responses 2 --sampling.max_new_tokens 6 "
    "--rewards.functions {rewards}:slow",
    "ppo": "ppo --train.max_steps 12 --rollout.responses 2 --rollout.epochs 2 --rollout.minibatches 2 "
    "--sampling.max_new_tokens 6 --rewards.servers openrlhf=http://127.0.0.1:{port} --critic.start policy",
    "rloo workers": "rloo --train.max_steps 8 --rollout.responses 2 --sampling.max_new_tokens 6 "
    "--rewards.functions {rewards}:slow --rewards.workers 2",
}
REWARDS = """
import time


def slow(completions, **columns):
    time.sleep(0.05)
    return [float(len(str(answer)) % 7) for answer in completions]
"""
WORDS = "red green blue paris egg water seven minutes boil cool answer question sentence thank welcome".split()


@dataclass
class Attempt:
    """One start of a run, and what became of it."""

    run: str
    number: int
    event: str
    at: float
    code: int | None = None
    seconds: float = 0.0
    to_end: float = 0.0
    """Seconds from the event to the end of the process."""
    checkpoint: str = ""
    said: str = ""


class Server:
    """A reward server that can be away."""

    def __init__(self) -> None:
        self.port = 0
        self.server: ThreadingHTTPServer | None = None
        self.start()

    def start(self) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                rewards = [float(len(text) % 7) for text in asked["query"]]
                body = json.dumps({"rewards": rewards}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def away(self, seconds: float) -> None:
        """Stops it, and starts it again after a while."""
        assert self.server is not None
        self.server.shutdown()
        self.server.server_close()
        timer = threading.Timer(seconds, self.start)
        timer.daemon = True
        timer.start()
        timer.join()


class Soak:
    """The folder of a soak: data, model, straight runs, attempts."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.draw = folder, random.Random(seed)
        folder.mkdir(parents=True, exist_ok=True)
        self.log = (folder / "soak.jsonl").open("a", encoding="utf-8")
        self.server = Server()
        self._prepare()
        self.straight: dict[str, dict[str, str]] = {}
        self.takes: dict[str, float] = {}

    def _prepare(self) -> None:
        from conftest import TEXTS

        from assent.config import InitConfig
        from assent.models.init import random_model, train_tokenizer, write_new_model

        draw = random.Random(0)

        def text(low: int, high: int) -> str:
            return " ".join(draw.choices(WORDS, k=draw.randint(low, high)))

        rows = [
            {"prompt": f"{i} {text(1, 8)}?", "chosen": text(1, 9), "rejected": f"no {text(1, 9)}"} for i in range(24)
        ]
        (self.folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (self.folder / "rewards.py").write_text(REWARDS)
        tokenizer = train_tokenizer(TEXTS * 3, 400)
        config = InitConfig(data="", out="", hidden_size=32, layers=2, heads=4, kv_heads=2, context=512, seed=0)
        write_new_model(tokenizer, random_model(tokenizer, config), self.folder / "tiny")

    # ---- one attempt

    def command(self, run: str, out: Path) -> list[str]:
        words = RUNS[run].format(rewards=self.folder / "rewards.py", port=self.server.port)
        paths = f"--model.path {self.folder / 'tiny'} --data.train {self.folder / 'pairs.jsonl'} --out {out}"
        return [sys.executable, "-m", "assent", *words.split(), *COMMON.split(), *paths.split()]

    def start(self, command: list[str], **options: Any) -> subprocess.Popen[str]:
        env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
        return subprocess.Popen(command, env=env, start_new_session=True, **{**output, **options})

    def run_straight(self, run: str) -> None:
        out = self.folder / "straight" / run.replace(" ", "-")
        begun = time.monotonic()
        process = self.start(self.command(run, out))
        said, _ = process.communicate(timeout=LIMIT)
        if process.returncode:
            raise SystemExit(f"{run}, left alone, ended with {process.returncode}:\n{said}")
        self.takes[run] = time.monotonic() - begun
        self.straight[run] = bytes_of(out)

    def hostile(self, run: str, name: str) -> None:
        """One run, disturbed a few times, then left to end."""
        out = self.folder / "runs" / name
        times = self.draw.choice((1, 1, 2, 3))
        for number in range(times + 1):
            event = self.draw.choice([*EVENTS]) if number < times else "none"
            at = self.takes[run] * self.draw.triangular(0.1, 1.0, 0.8)  # the first half of so short a run is its start
            attempt = Attempt(run, number, event, round(at, 2))
            begun = time.monotonic()
            process, happened = EVENTS[event](self, run, out, at)
            try:
                said, _ = process.communicate(timeout=LIMIT)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                said, _ = process.communicate()
                said = f"{said or ''}\nDID NOT END"
            attempt.seconds = round(time.monotonic() - begun, 2)
            attempt.to_end = round(time.monotonic() - happened, 2) if happened else 0.0
            attempt.code, attempt.said = process.returncode, "\n".join((said or "").strip().splitlines()[-4:])
            newest = sorted((out / "checkpoints").glob("step-*")) if (out / "checkpoints").is_dir() else []
            attempt.checkpoint = newest[-1].name if newest else ""
            self.record(asdict(attempt))
            fault = wrong(attempt, said or "")
            if fault:
                raise Failure(f"{name}: {fault}\n{json.dumps(asdict(attempt), indent=1)}\n{said}")
            if attempt.code == 0 and number < times:
                break
        found, wanted = bytes_of(out), self.straight[run]
        different = sorted(key for key in wanted.keys() | found.keys() if found.get(key) != wanted.get(key))
        if different:
            raise Failure(f"{name}: other bytes than the run left alone: {', '.join(different)}")
        shutil.rmtree(out)

    def record(self, row: Mapping[str, Any]) -> None:
        self.log.write(json.dumps(row) + "\n")
        self.log.flush()


class Failure(Exception):
    """What must not happen, happened."""


# ---- what happens around a run: each starts it and says when it happened


def resumed(soak: Soak, run: str, out: Path) -> list[str]:
    return [*soak.command(run, out), "--resume", "auto"]


def none(soak: Soak, run: str, out: Path, at: float) -> tuple[subprocess.Popen[str], float]:
    return soak.start(resumed(soak, run, out)), 0.0


def signalled(*numbers: int, pause: float = 0.0) -> Callable[..., tuple[subprocess.Popen[str], float]]:
    def event(soak: Soak, run: str, out: Path, at: float) -> tuple[subprocess.Popen[str], float]:
        process = soak.start(resumed(soak, run, out))
        wait(process, at)
        happened = time.monotonic()
        for number in numbers:
            if process.poll() is None:
                os.kill(process.pid, number)
                time.sleep(pause)
        return process, happened

    return event


def paused(soak: Soak, run: str, out: Path, at: float) -> tuple[subprocess.Popen[str], float]:
    """Stopped for some seconds, as when a laptop sleeps."""
    process = soak.start(resumed(soak, run, out))
    wait(process, at)
    with suppress(ProcessLookupError):  # it may have ended
        os.killpg(process.pid, signal.SIGSTOP)
        time.sleep(soak.draw.uniform(0.5, 4.0))
        os.killpg(process.pid, signal.SIGCONT)
    return process, 0.0


def broken_output(soak: Soak, run: str, out: Path, at: float) -> tuple[subprocess.Popen[str], float]:
    """Whoever read its output leaves."""
    read, write = os.pipe()
    process = soak.start(resumed(soak, run, out), stdout=write, stderr=write)
    os.close(write)
    wait(process, at)
    os.close(read)
    return process, 0.0


def full_output(soak: Soak, run: str, out: Path, at: float) -> tuple[subprocess.Popen[str], float]:
    with open("/dev/full", "w") as full:
        return soak.start(resumed(soak, run, out), stdout=full, stderr=full), 0.0


def no_room(soak: Soak, run: str, out: Path, at: float) -> tuple[subprocess.Popen[str], float]:
    """No file may be larger than some bytes, which the weights are: as on a full disk."""
    size = soak.draw.choice((2_000, 20_000, 100_000))

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    process = soak.start(resumed(soak, run, out), preexec_fn=limit)
    return process, 0.0


def second_process(soak: Soak, run: str, out: Path, at: float) -> tuple[subprocess.Popen[str], float]:
    """Another process wants the same folder."""
    process = soak.start(resumed(soak, run, out))
    wait(process, at)
    alive = process.poll() is None
    other = soak.start(resumed(soak, run, out))
    said, _ = other.communicate(timeout=LIMIT)
    if alive and process.poll() is None and other.returncode != 2:
        raise Failure(f"{out}: a second process ended with {other.returncode} beside the first:\n{said}")
    return process, 0.0


def server_away(soak: Soak, run: str, out: Path, at: float) -> tuple[subprocess.Popen[str], float]:
    process = soak.start(resumed(soak, run, out))
    wait(process, at)
    soak.server.away(soak.draw.uniform(0.2, 3.0))
    return process, 0.0


def wait(process: subprocess.Popen[str], seconds: float) -> None:
    """That long, or until it has ended; its output is not read meanwhile, it is short."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return


EVENTS: Mapping[str, Callable[..., tuple[subprocess.Popen[str], float]]] = {
    "none": none,
    "SIGKILL": signalled(signal.SIGKILL),
    "SIGTERM": signalled(signal.SIGTERM),
    "SIGINT": signalled(signal.SIGINT),
    "SIGHUP": signalled(signal.SIGHUP),
    "SIGTERM twice": signalled(signal.SIGTERM, signal.SIGTERM, pause=0.3),
    "SIGTERM, then SIGKILL": signalled(signal.SIGTERM, signal.SIGKILL, pause=0.2),
    "paused": paused,
    "output closed": broken_output,
    "output full": full_output,
    "no room": no_room,
    "second process": second_process,
    "server away": server_away,
}
STOPPING = {"SIGTERM": 143, "SIGINT": 130, "SIGHUP": 129, "SIGTERM twice": 143}
HARMLESS = ("none", "paused", "output closed", "output full", "second process", "server away")


def wrong(attempt: Attempt, said: str) -> str:
    """What is wrong with how an attempt ended; nothing where it is as it should be."""
    if "DID NOT END" in said:
        return f"did not end within {LIMIT:g} s"
    if "Traceback (most recent call last)" in said:
        return "ended with a traceback"
    if attempt.event in HARMLESS:
        return "" if attempt.code == 0 else f"ended with {attempt.code} though nothing stopped it"
    if attempt.event == "no room":
        return "" if attempt.code in (0, 2) else f"ended with {attempt.code} where there was no room"
    if attempt.event in STOPPING:
        number = STOPPING[attempt.event]
        # Before its handlers are set up a process ends by the signal itself; nothing is lost then.
        if attempt.code not in (0, number, 128 - number):
            return f"ended with {attempt.code}, expected {number}"
        if attempt.code == number and attempt.to_end > QUICK + 5.0:
            return f"took {attempt.to_end} s to stop"
    return ""


def bytes_of(out: Path) -> dict[str, str]:
    """Hashes of all that a run computed: newest checkpoint, final models, metrics without times, samples."""
    from assent.train import checkpoint
    from assent.train.log import read_metrics

    newest = checkpoint.newest_complete(out / "checkpoints")
    assert newest is not None, f"{out} has no checkpoint"
    files = [
        *newest.glob("*.safetensors"),
        *(f for f in out.glob("*/**/*.safetensors") if "checkpoints" not in f.parts),
    ]
    found = {str(file.relative_to(out)): sha(file.read_bytes()) for file in files}
    state = json.loads((newest / "state.json").read_text())
    state["run"].pop("positions")  # bytes of metrics.jsonl, whose times differ in length
    found["state"] = sha(json.dumps(state, sort_keys=True).encode())
    found["metrics"] = sha(repr(read_metrics(out / "metrics.jsonl", times=False)).encode())
    samples = out / "samples.jsonl"
    found["samples"] = sha(samples.read_bytes()) if samples.exists() else "none"
    return found


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def table(log: Path) -> str:
    """What a soak did, and how long runs took to stop."""
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    lines = ["| event | times | exit codes | seconds to the end: median, most |", "|---|--:|---|---|"]
    for event in EVENTS:
        own = [row for row in rows if row["event"] == event]
        codes = Counter(row["code"] for row in own)
        told = ", ".join(f"{code}: {count}" for code, count in sorted(codes.items()))
        took = sorted(row["to_end"] for row in own if row["code"] == STOPPING.get(event))
        times = f"{took[len(took) // 2]:.1f}, {took[-1]:.1f}" if took else ""
        lines.append(f"| {event} | {len(own)} | {told} | {times} |")
    runs = Counter(row["run"] for row in rows if row["code"] == 0)
    lines.append(f"\n{len(rows)} starts; runs carried to their end: {', '.join(f'{n} {c}' for n, c in runs.items())}.")
    return "\n".join(lines)


def main() -> int:
    for number in (signal.SIGINT, signal.SIGHUP):  # ignored by what a shell starts in the background, and its children
        signal.signal(number, signal.SIG_DFL)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "assent-soak")
    parser.add_argument("--show", action="store_true", help="the table of the log in --out, nothing else")
    args = parser.parse_args()
    if args.show:
        print(table(args.out / "soak.jsonl"))
        return 0
    ends = time.monotonic() + args.hours * 3600
    shutil.rmtree(args.out, ignore_errors=True)
    soak = Soak(args.out, args.seed)
    for run in RUNS:
        soak.run_straight(run)
        print(f"{run}: {soak.takes[run]:.1f} s left alone", flush=True)
    number = 0
    while time.monotonic() < ends:
        run = soak.draw.choice([*RUNS])
        try:
            soak.hostile(run, f"{number:04d}-{run.replace(' ', '-')}")
        except Failure as failure:
            print(f"FAILED after {number} runs: {failure}", flush=True)
            return 1
        number += 1
        if number % 10 == 0:
            print(f"{number} runs, {max(0.0, ends - time.monotonic()) / 60:.0f} minutes left", flush=True)
    print(f"{number} runs, each with the bytes of one left alone\n\n{table(args.out / 'soak.jsonl')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
