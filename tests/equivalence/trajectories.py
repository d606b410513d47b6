"""Two revisions of assent train the same: short runs of every kind, whose metrics, samples and final weights are equal
to the bit. For changes of structure, which leave every number as it is.

    make same-as REV=HEAD~3                                              this checkout beside another revision
    python tests/equivalence/trajectories.py HEAD~3 --only "dpo,ppo shared"

Both run the same commands (trajectory_cases.py) on the same model and data, in fp32 on one thread, each in one process
that calls its own `assent.cli.main` case after case. What the other revision refuses because it has no such option or
command is said, and not compared. Exit code 1: something differs, a case does not run, or none could be compared.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from trajectory_cases import CASES, CHEAP, RESUMED, commands, words, write_files

ROOT = Path(__file__).resolve().parents[2]
SPELLINGS: Mapping[str, str] = {}
"""What older revisions call otherwise, new -> old: --OPTION, or a key in a row of metrics or samples."""
Jobs = Mapping[str, Sequence[Sequence[str]]]
"""Name -> commands, one after the other."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a case's last command ended: its exit code and what it printed."""

    code: int
    said: str

    @property
    def is_unknown_there(self) -> bool:
        return self.code == 2 and ("Unknown option" in self.said or "Unknown command" in self.said)

    def __str__(self) -> str:
        lines = self.said.strip().splitlines() or [""]
        return f"exit code {self.code}: {next((x for x in lines if x.startswith('error:')), lines[-1])}"


# ---- one process for all cases of a checkout


class Worker:
    """The cases of one checkout, under way in a process of its own; `folder` gets one run folder for each."""

    def __init__(self, checkout: Path, folder: Path, jobs: Jobs) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.checkout, self.folder = checkout, folder
        (folder / "jobs.json").write_text(json.dumps(jobs))
        source = str(checkout / "src")
        settings = {"PYTHONPATH": source, "ASSENT_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, __file__, "--worker", str(folder), "--source", source]
        with (folder / "log.txt").open("w") as log:
            env = {**os.environ, **settings, "OMP_NUM_THREADS": "1"}
            self.process = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)

    def join(self) -> dict[str, Ended]:
        """Waits for the end."""
        try:
            code = self.process.wait()
        finally:
            self.process.kill()
        if code:
            raise SystemExit(f"{self.checkout}: the process of its cases ended with {code}:\n{self._log()[-3000:]}")
        return {name: Ended(**ended) for name, ended in json.loads((self.folder / "ended.json").read_text()).items()}

    def _log(self) -> str:
        return (self.folder / "log.txt").read_text(errors="replace")


def work(folder: Path, source: str) -> None:
    """The whole of a worker."""
    import assent
    from assent import cli

    assert Path(assent.__file__).is_relative_to(source), f"{assent.__file__} is not that of {source}"
    ended = {}
    for name, case in json.loads((folder / "jobs.json").read_text()).items():
        begun = time.monotonic()
        for command in case:
            code, said = _call(cli.main, command, folder / "log.txt")
            if code == 2 and "Unknown option" in said and set(command) & set(SPELLINGS):
                code, said = _call(cli.main, [SPELLINGS.get(word, word) for word in command], folder / "log.txt")
            if code:
                break
        ended[name] = {"code": code, "said": said}
        print(f"{name}: {time.monotonic() - begun:.1f} s")
    (folder / "ended.json").write_text(json.dumps(ended))


def _call(main: Any, command: Sequence[str], log: Path) -> tuple[int, str]:
    """The exit code of a command and what it wrote to standard output and error, which both are `log`."""
    begun = log.stat().st_size
    try:
        code = main(command)
    except SystemExit as end:  # of the parser: a value that it does not take
        code = end.code if isinstance(end.code, int) else 1
    except Exception:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code, log.read_bytes()[begun:].decode(errors="replace")


# ---- what is compared


def first_difference(here: Path, there: Path) -> str | None:
    """The first thing that two runs do not have in common: rows of metrics and samples in their order, then weights.
    None where all is equal to the bit."""
    for name in ("metrics.jsonl", "samples.jsonl"):
        ours, theirs = rows(here / name), [_renamed(row) for row in rows(there / name)]
        for one, other in zip(ours, theirs):
            for key in (*one, *(other.keys() - one.keys())):
                if repr(one.get(key)) != repr(other.get(key)):  # of floats, all digits
                    return f"{name}, step {one['step']}, {key}: {one.get(key)!r} here, {other.get(key)!r} there"
        if len(ours) != len(theirs):
            return f"{name}: {len(ours)} rows here, {len(theirs)} there"
    ours, theirs = weights(here), weights(there)
    for name in (*ours, *(theirs.keys() - ours.keys())):
        if name not in ours or name not in theirs:
            return f"{name} is only {'here' if name in ours else 'there'}"
        if (difference := _apart(ours[name], theirs[name])) is not None:
            return f"{name}: {difference}"
    return None


def rows(file: Path) -> list[dict[str, Any]]:
    """The rows of a file without times; none where there is no file."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return [{key: x for key, x in json.loads(line).items() if not key.startswith("time/")} for line in lines]


def _renamed(row: Mapping[str, Any]) -> dict[str, Any]:
    new = {old: new for new, old in SPELLINGS.items()}
    return {new.get(key, key): x for key, x in row.items()}


def weights(run: Path) -> dict[str, np.ndarray]:
    """Every tensor of the final models: model/FILE:NAME, critic/FILE:NAME."""
    from safetensors.numpy import load_file

    files = sorted(file for part in ("model", "critic") for file in (run / part).rglob("*.safetensors"))
    return {f"{file.relative_to(run)}:{name}": x for file in files for name, x in sorted(load_file(file).items())}


def _apart(one: np.ndarray, other: np.ndarray) -> str | None:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return f"{one.dtype} {one.shape} here, {other.dtype} {other.shape} there"
    if one.tobytes() == other.tobytes():
        return None
    number = int((one.view(f"u{one.itemsize}") != other.view(f"u{one.itemsize}")).sum())
    most = np.abs(one.astype(np.float64) - other.astype(np.float64)).max()
    return f"{number} of {one.size} numbers differ, by up to {most:.3g}"


def verdict(name: str, here: Path, there: Path, ours: Ended, theirs: Ended) -> tuple[str, str]:
    """("equal", "DIFFERENT", "FAILED" or "not compared", details) of a case."""
    if ours.code == 0 and theirs.is_unknown_there:
        return "not compared", f"there, {theirs}"
    if ours.code or theirs.code:
        return "FAILED", "; ".join(f"{where}, {x}" for where, x in (("here", ours), ("there", theirs)) if x.code)
    if (difference := first_difference(here, there)) is not None:
        return "DIFFERENT", difference
    metrics, samples, tensors = rows(here / "metrics.jsonl"), rows(here / "samples.jsonl"), weights(here)
    if not tensors or not any(row[key] for row in metrics for key in row if key.startswith("grad_norm")):
        return "FAILED", "nothing was trained: no gradient, or no weights"
    return "equal", f"{len(metrics)} rows of metrics, {len(samples)} samples, {len(tensors)} tensors"


# ---- two checkouts


def make(folder: Path) -> None:
    """Writes what both train on: files, models and two reward models, by the commands of this checkout."""
    folder.mkdir()
    write_files(folder)
    size = "--vocab_size 400 --hidden_size 32 --layers 2 --heads 4 --kv_heads 2 --context 512"
    start = f"--model.path {folder / 'start'}"
    sft = (
        f"sft {start} --data.train MADE/prompts.jsonl --optim.lr 1e-2 --train.max_steps 30"  # so that some answers end
    )
    reward = f"reward {start} --data.train MADE/pairs.jsonl --train.max_steps 2 --train.seed"
    jobs = {
        "init": [["init", "--data", str(folder / "sft.jsonl"), "--out", str(folder / "start"), *size.split()]],
        "sft": [words(sft, folder, folder / "sft")],
        "reward-1": [words(f"{reward} 1", folder, folder / "reward-1")],
        "reward-2": [words(f"{reward} 2", folder, folder / "reward-2")],
    }
    for name, ended in Worker(ROOT, folder / "work", jobs).join().items():
        if ended.code:
            raise SystemExit(f"{name}, which the cases need: {ended}\n{ended.said}")


def run_both(folder: Path, here: Path, there: Path, names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """The verdicts on cases that two checkouts run side by side; their run folders are FOLDER/here/NAME and
    FOLDER/there/NAME."""
    folders = folder / "here", folder / "there"
    workers = [
        Worker(checkout, out, {name: commands(name, folder / "made", out / name) for name in names})
        for checkout, out in zip((here, there), folders)
    ]
    try:
        ours, theirs = (worker.join() for worker in workers)
    finally:
        for worker in workers:
            worker.process.kill()
    return {name: verdict(name, *(out / name for out in folders), ours[name], theirs[name]) for name in names}


@contextmanager
def worktree(revision: str, folder: Path) -> Iterator[Path]:
    """A checkout of another revision, which goes again."""
    git = ["git", "-C", str(ROOT), "worktree"]
    made = subprocess.run([*git, "add", "--detach", str(folder), revision], capture_output=True, text=True)
    if made.returncode:
        raise SystemExit(f"git worktree of '{revision}': {made.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True)


def chosen(only: str | None, cheap: bool) -> list[str]:
    """The cases to run."""
    every = [*CASES, *RESUMED]
    names = [name.strip() for name in only.split(",")] if only else [*CHEAP] if cheap else every
    if unknown := [name for name in names if name not in every]:
        raise SystemExit(f"--only {unknown[0]}: there is no such case. The cases are: {', '.join(every)}")
    return names


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision", nargs="?", metavar="REV", help="commit or branch")
    parser.add_argument("--only", metavar="NAME,...", help="only these cases")
    parser.add_argument("--cheap", action="store_true", help="only those that CI runs")
    parser.add_argument("--keep", metavar="FOLDER", type=Path, help="a new folder for all run folders, which stay")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--source", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker, options.source)
        return 0
    if options.revision is None:
        parser.error("what is this checkout to be compared with? Give a revision: make same-as REV=HEAD~1")
    names = chosen(options.only, options.cheap)
    folder = options.keep.resolve() if options.keep else Path(tempfile.mkdtemp(prefix="same-as-"))
    folder.mkdir(exist_ok=options.keep is None)
    try:
        make(folder / "made")
        with worktree(options.revision, folder / "checkout") as there:
            verdicts = run_both(folder, ROOT, there, names)
    finally:
        if options.keep is None:
            shutil.rmtree(folder)
    for name, (state, details) in verdicts.items():
        print(f"{name:<{max(map(len, names))}}  {state:<12}  {details}")
    counts = Counter(state for state, _ in verdicts.values())
    print(f"\n{options.revision}: " + ", ".join(f"{number} {state}" for state, number in counts.items()))
    return int(bool({"DIFFERENT", "FAILED"} & set(counts)) or "equal" not in counts)


if __name__ == "__main__":
    sys.exit(main())
