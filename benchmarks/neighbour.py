"""Measures steps beside busy processes, for ways in which OpenMP's threads may wait: assent and its peer, quiet and
with neighbours, each in a process of its own that is started beside them.

    python -m benchmarks.neighbour --settings default auto spin=GOMP_SPINCOUNT=1000 one=OMP_NUM_THREADS=1
    python -m benchmarks.neighbour --rows sft --models tiny --busy 0,1 --quick --ours

A setting is NAME=VARIABLE=VALUE,VARIABLE=VALUE, or one of: default (OpenMP's own), auto (what assent chooses). Prints a
line for each row and setting: median seconds of a step with each number of neighbours, of both sides. --out writes the
steps as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import plan
from benchmarks.__main__ import choice, data_folder, interpreters_of
from benchmarks.plan import SPINS, Length, Row
from benchmarks.sides import ROOT, Side, SideFailed

ROWS = ("sft", "grpo", "generate-32")
KNOWN: Mapping[str, Mapping[str, str]] = {"default": {"GOMP_SPINCOUNT": SPINS}, "auto": {}}
SETTLED = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
"""Variables of this process that must not reach the sides."""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.neighbour", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--settings", nargs="+", type=setting, default=[("default", KNOWN["default"])])
    parser.add_argument("--rows", type=choice(list(plan.WHATS)), default=list(ROWS), metavar="NAMES")
    parser.add_argument("--models", type=choice(plan.MODELS), default=list(plan.MODELS), metavar="NAMES")
    parser.add_argument("--precision", type=choice(plan.PRECISIONS), default=["fp32"], metavar="NAMES")
    parser.add_argument("--busy", type=numbers, default=[0, 1, 3], metavar="0,1,3", help="busy processes beside it")
    parser.add_argument("--quick", action="store_true", help="one warm-up step and few timed ones: a trial")
    parser.add_argument("--ours", action="store_true", help="without the peer")
    parser.add_argument("--out", type=Path, help="JSON file for all steps")
    args = parser.parse_args()
    rows = plan.rows(args.rows, args.models, args.precision)
    interpreters = interpreters_of(parser, [] if args.ours else rows)
    found = run(rows, dict(args.settings), args.busy, args.quick, interpreters, data_folder(parser))
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return int(any("error" in result for result in found))


def run(
    rows: Sequence[Row],
    settings: Mapping[str, Mapping[str, str]],
    busy: Sequence[int],
    quick: bool,
    interpreters: Mapping[str, str],
    data: Path,
) -> list[dict[str, Any]]:
    """Every row with every setting, printed as it is done; the peer only where its interpreter is named."""
    env = {name: value for name, value in os.environ.items() if name not in SETTLED}
    env |= {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")]), "CUDA_VISIBLE_DEVICES": ""}
    env |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRL_EXPERIMENTAL_SILENCE": "1"}
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        prepare = [interpreters["ours"], "-m", "benchmarks.prepare", str(data), folder]
        subprocess.run(prepare, env=env, cwd=ROOT, check=True)
        for row in rows:
            length = plan.length(row, quick)
            for name, variables in settings.items():
                result = {"row": str(row), "setting": name, "variables": dict(variables)}
                try:
                    sides = measure(row, length, {**env, **variables}, busy, interpreters, Path(folder))
                    result |= {side: {str(n): steps for n, steps in of.items()} for side, of in sides.items()}
                except SideFailed as error:
                    result["error"] = str(error)
                results.append(result)
                print(line(result, busy), flush=True)
    return results


def measure(
    row: Row,
    length: Length,
    env: Mapping[str, str],
    busy: Sequence[int],
    interpreters: Mapping[str, str],
    folder: Path,
) -> dict[str, dict[int, list[float]]]:
    """Seconds of each timed step, of each side, by the number of neighbours. A side starts when they are at work."""
    found: dict[str, dict[int, list[float]]] = {}
    for name, module in row.modules.items():
        environment = "ours" if name == "ours" else row.kind.environment
        if environment not in interpreters:
            continue
        arguments = (row.tasks[name], row.model, row.precision, str(length.warmup), str(folder))
        command = [interpreters[environment], "-m", f"benchmarks.{module}", *arguments]
        for number in busy:
            with neighbours(number), Side(command, env, folder / f"{name}.log") as side:
                side.read()
                turns = [side.turn(length.steps) for _ in range(length.turns)]
            found.setdefault(name, {})[number] = [step["seconds"] for turn in turns for step in turn["steps"]]
    return found


@contextmanager
def neighbours(number: int) -> Iterator[None]:
    """This many processes that never rest."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def line(result: Mapping[str, Any], busy: Sequence[int]) -> str:
    """One row and setting: median seconds by the number of neighbours, of each side."""
    if "error" in result:
        return f"{result['row']}  {result['setting']}: {result['error']}"
    cells = []
    for side in ("ours", "peer"):
        if side in result:
            medians = [f"{statistics.median(result[side][str(number)]):.3f}" for number in busy]
            cells.append(f"{side} {' / '.join(medians)}")
    return "  ".join([result["row"], result["setting"], *cells])


def setting(text: str) -> tuple[str, Mapping[str, str]]:
    """NAME, or NAME=VARIABLE=VALUE,..."""
    name, _, rest = text.partition("=")
    if not rest:
        if name not in KNOWN:
            raise argparse.ArgumentTypeError(f"{name} is none of {', '.join(KNOWN)}, nor NAME=VARIABLE=VALUE,...")
        return name, KNOWN[name]
    variables = dict(part.partition("=")[::2] for part in rest.split(","))
    if not all(variables.values()):
        raise argparse.ArgumentTypeError(f"{text}: write NAME=VARIABLE=VALUE,VARIABLE=VALUE")
    return name, variables


def numbers(text: str) -> list[int]:
    """Numbers with commas."""
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
