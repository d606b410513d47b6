"""Measures assent and its peers on the same models and data, in turns, and writes docs/benchmarks.json and the table of
docs/benchmarks.md. That is for a whole run: part of the rows, or a quick trial, is printed, and put in place of the
same rows where --out says. After Ctrl-C, the rows that are done are what was measured.

    make bench                                    sets the peers' environments up, then runs everything
    python -m benchmarks --rows dpo --models tiny --precision bf16
    python -m benchmarks --rows grpo --out docs/benchmarks.json
    python -m benchmarks --render                 only the table, from docs/benchmarks.json

The data is dpo_en_demo.json, kto_en_demo.json and alpaca_en_demo.json (from LLaMA-Factory's data folder) in the folder
ASSENT_REAL_DATA.
TRL_PYTHON, TRL_PPO_PYTHON and VLLM_PYTHON name the peers' interpreters; by default those of .venv-trl, .venv-trl-ppo
and .venv-vllm.
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
from benchmarks.table import HEADER, Report, cells, load, machine_line, merged, rates, rewrite, save

JSON, PAGE = ROOT / "docs" / "benchmarks.json", ROOT / "docs" / "benchmarks.md"
DATA_FILES = ("dpo_en_demo.json", "kto_en_demo.json", "alpaca_en_demo.json")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rows",
        type=choice(list(plan.WHATS)),
        default=list(plan.WHATS),
        metavar="NAMES",
        help=f"some of {', '.join(plan.WHATS)}",
    )
    parser.add_argument("--models", type=choice(plan.MODELS), default=list(plan.MODELS), metavar=",".join(plan.MODELS))
    parser.add_argument(
        "--precision", type=choice(plan.PRECISIONS), default=list(plan.PRECISIONS), metavar=",".join(plan.PRECISIONS)
    )
    parser.add_argument("--quick", action="store_true", help="one warm-up step and one or two timed ones: a trial")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of both sides; 0: all usable cores")
    parser.add_argument(
        "--out", type=Path, help="JSON file that the results go into; default: docs/benchmarks.json for a whole run"
    )
    parser.add_argument("--render", action="store_true", help="rewrite the table from --out, measure nothing")
    args = parser.parse_args()
    if args.render:
        rewrite(PAGE, load(args.out or JSON))
        return 0
    rows = plan.rows(args.rows, args.models, args.precision)
    whole = not args.quick and rows == plan.rows(list(plan.WHATS), plan.MODELS, plan.PRECISIONS)
    out = args.out or (JSON if whole else None)
    interpreters = interpreters_of(parser, rows)
    report = run(rows, args.quick, args.threads, interpreters, data_folder(parser))
    if out:
        save(out, merged(load(out), report))
        if out.resolve() == JSON:
            rewrite(PAGE, load(JSON))
    return int(any("error" in result for result in report["rows"]))


def run(rows: Sequence[Row], quick: bool, threads: int, interpreters: Mapping[str, str], data: Path) -> Report:
    """All rows, printed as they are done, with the machine's speed before and after."""
    threads = threads or _cores()
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")])}
    env |= {"OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    # libgomp's own default, said aloud: the side that starts second must not take the first for a neighbour.
    env |= {"GOMP_SPINCOUNT": plan.SPINS, "TOKENIZERS_PARALLELISM": "false", "TRL_EXPERIMENTAL_SILENCE": "1"}
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
            except KeyboardInterrupt:
                print(f"stopped before {row}")
                break
            print("  ".join(cells(results[-1], rates(report)[row.precision], 1)), flush=True)
    machine.append(_json(interpreters["ours"], "benchmarks.machine", env))
    load.append(os.getloadavg()[0])
    print(machine_line(report))
    return report


def _json(python: str, module: str, env: Mapping[str, str]) -> dict[str, Any]:
    done = subprocess.run(
        [python, "-m", module], env=dict(env), cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout)


def choice(names: Sequence[str]) -> Any:
    """An argparse type: some of `names`, with commas."""

    def parse(text: str) -> list[str]:
        chosen = text.split(",")
        if unknown := set(chosen) - set(names):
            raise argparse.ArgumentTypeError(f"no such thing: {', '.join(sorted(unknown))} (of {', '.join(names)})")
        return [name for name in names if name in chosen]

    return parse


def interpreters_of(parser: argparse.ArgumentParser, rows: Sequence[Row]) -> dict[str, str]:
    """Python of each environment that the rows need."""
    found = {"ours": sys.executable}
    for name in {row.kind.environment for row in rows} - {"ours"}:
        variable, venv = f"{name.upper().replace('-', '_')}_PYTHON", f".venv-{name}"
        found[name] = os.environ.get(variable) or str(ROOT / venv / "bin" / "python")
        if not Path(found[name]).exists():
            parser.error(f"{found[name]} does not exist; `make bench` makes it; or set {variable}")
    return found


def data_folder(parser: argparse.ArgumentParser) -> Path:
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
