"""Measures assent and its peers on the same models and data, in turns, and writes docs/benchmarks.json and the table of
docs/benchmarks.md (a whole run only; part of the rows, or a quick trial, is printed, and written where --out says).

    make bench                                    sets the peers' environments up, then runs everything
    python -m benchmarks --rows dpo --models tiny --precision bf16
    python -m benchmarks --render                 only the table, from docs/benchmarks.json

The data is dpo_en_demo.json, kto_en_demo.json and alpaca_en_demo.json (from LLaMA-Factory's data folder) in the folder
ASSENT_REAL_DATA.
TRL_PYTHON and TRL_PPO_PYTHON name the peers' interpreters; by default .venv-trl and .venv-trl-ppo.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import plan
from benchmarks.plan import Row
from benchmarks.sides import ROOT, SideFailed, measure
from benchmarks.table import HEADER, cells, machine_line, rates, rewrite, save

JSON, PAGE = ROOT / "docs" / "benchmarks.json", ROOT / "docs" / "benchmarks.md"
DATA_FILES = ("dpo_en_demo.json", "kto_en_demo.json", "alpaca_en_demo.json")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=_choice(plan.WHATS), default=list(plan.WHATS), metavar=",".join(plan.WHATS))
    parser.add_argument("--models", type=_choice(plan.MODELS), default=list(plan.MODELS), metavar=",".join(plan.MODELS))
    parser.add_argument(
        "--precision", type=_choice(plan.PRECISIONS), default=list(plan.PRECISIONS), metavar=",".join(plan.PRECISIONS)
    )
    parser.add_argument("--quick", action="store_true", help="one warm-up step and one or two timed ones: a trial")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of both sides; 0: all usable cores")
    parser.add_argument("--out", type=Path, help="JSON file; default: docs/benchmarks.json for a whole run, else none")
    parser.add_argument("--render", action="store_true", help="rewrite the table from --out, measure nothing")
    args = parser.parse_args()
    if args.render:
        rewrite(PAGE, json.loads((args.out or JSON).read_text(encoding="utf-8")))
        return 0
    rows = plan.rows(args.rows, args.models, args.precision)
    whole = not args.quick and len(rows) == len(plan.RATIO) * len(plan.PRECISIONS)
    out = args.out or (JSON if whole else None)
    interpreters = _interpreters(parser, rows)
    report = run(rows, args.quick, args.threads, interpreters, _data(parser))
    if out:
        save(out, report)
    if whole:
        rewrite(PAGE, report)
    return int(any("error" in result for result in report["rows"]))


def run(rows: Sequence[Row], quick: bool, threads: int, interpreters: Mapping[str, str], data: Path) -> dict[str, Any]:
    """All rows, printed as they are done, with the machine's speed before and after."""
    threads = threads or _cores()
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")])}
    env |= {"OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    env |= {"TOKENIZERS_PARALLELISM": "false", "TRL_EXPERIMENTAL_SILENCE": "1"}
    load = [os.getloadavg()[0]]
    machine = [_json(interpreters["ours"], "benchmarks.machine", env)]
    results: list[dict[str, Any]] = []
    report = {"date": time.strftime("%Y-%m-%d"), "quick": quick, "threads": threads, "load": load}
    report |= {"machine": machine, "rows": results}
    with tempfile.TemporaryDirectory() as folder:
        command = [interpreters["ours"], "-m", "benchmarks.prepare", str(data), folder]
        subprocess.run(command, env=env, cwd=ROOT, check=True)
        print("  ".join(HEADER), flush=True)
        for row in rows:
            try:
                results.append(measure(row, plan.length(row, quick), interpreters, Path(folder), env))
            except SideFailed as error:
                results.append({"what": row.what, "model": row.model, "precision": row.precision, "error": str(error)})
                print(error, file=sys.stderr)
            print("  ".join(cells(results[-1], rates(report)[row.precision])), flush=True)
    machine.append(_json(interpreters["ours"], "benchmarks.machine", env))
    load.append(os.getloadavg()[0])
    print(machine_line(report))
    return report


def _json(python: str, module: str, env: Mapping[str, str]) -> dict[str, Any]:
    done = subprocess.run(
        [python, "-m", module], env=dict(env), cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout)


def _choice(names: Sequence[str]) -> Any:
    """An argparse type: some of `names`, with commas."""

    def parse(text: str) -> list[str]:
        chosen = text.split(",")
        if unknown := set(chosen) - set(names):
            raise argparse.ArgumentTypeError(f"no such thing: {', '.join(sorted(unknown))} (of {', '.join(names)})")
        return [name for name in names if name in chosen]

    return parse


def _interpreters(parser: argparse.ArgumentParser, rows: Sequence[Row]) -> dict[str, str]:
    """Python of each environment that the rows need."""
    homes = {"trl": ("TRL_PYTHON", ".venv-trl"), "trl-ppo": ("TRL_PPO_PYTHON", ".venv-trl-ppo")}
    found = {"ours": sys.executable}
    for name in {row.environment for row in rows} - {"ours"}:
        variable, venv = homes[name]
        found[name] = os.environ.get(variable) or str(ROOT / venv / "bin" / "python")
        if not Path(found[name]).exists():
            parser.error(f"{found[name]} does not exist; make it with `make {venv}`, or set {variable}")
    return found


def _data(parser: argparse.ArgumentParser) -> Path:
    """The folder of the data files."""
    folder = Path(os.environ.get("ASSENT_REAL_DATA") or "data")
    for name in DATA_FILES:
        if not (folder / name).is_file():
            parser.error(
                f"{folder / name} does not exist; put {', '.join(DATA_FILES)} (from the data folder of "
                "github.com/hiyouga/LLaMA-Factory) into a folder and set ASSENT_REAL_DATA to it"
            )
    return folder.resolve()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    sys.exit(main())
