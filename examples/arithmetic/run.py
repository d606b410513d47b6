"""Learning from a rule that checks answers (RLVR): a small model from scratch, calculations, demonstrations, then GRPO
on word problems in GSM8K's shape, and held-out accuracy before and after.

    python examples/arithmetic/run.py --out runs/arithmetic
    python examples/arithmetic/run.py --out runs/arithmetic --methods grpo rloo dr-grpo easy-first rest given

Every stage is an `assent` command, and is shown before it runs. What is in --out already is not done again: after
Ctrl-C the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from arithmetic import problems

from assent import messages
from assent.cli import main as command
from assent.errors import AssentError, UserError
from assent.rewards.rules import numeric
from assent.statistics import Interval, proportion_interval
from assent.train.log import read_jsonl
from assent.train.progress import clock

log = logging.getLogger("assent.arithmetic")

SIZES = {"calculations": 12_000, "sft": 1800, "rl": 20_000, "test": 500}
"""Rows of each file at scale 1."""
METHODS: dict[str, tuple[str, ...]] = {
    "grpo": ("grpo",),
    "rloo": ("rloo", "--rollout.responses", "8"),
    "dr-grpo": ("dr-grpo",),
    "easy-first": ("grpo", "--curriculum.order", "easy", "--curriculum.column", "steps"),
    "rest": ("grpo", "--curriculum.rest", "1"),
    "given": ("grpo", "--given.source", "row"),
}
"""What --methods can name: the command, and its options beside `SHARED`."""
LONGEST = 64
"""Tokens of the longest answer."""
SHARED = (
    *("--model.precision", "fp32", "--data.max_length", "256", "--resume", "auto"),
    *("--train.save_every", "50", "--train.log_every", "1"),
)
"""Of every training command."""
ONLINE = (
    *("--rewards.rules", "numeric", "--kl.coef", "0", "--rollout.minibatches", "2", "--train.batch_size", "64"),
    *("--optim.lr", "2e-4", "--optim.schedule", "constant"),
    *("--sampling.max_new_tokens", str(LONGEST), "--sampling.max_batch", "256"),
)
"""Of every command that learns from rewards."""
TEMPERATURES = {"greedy": 0, "sampled": 1}


def main(arguments: Sequence[str] | None = None) -> int:
    messages.show()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of data, runs and the table")
    parser.add_argument(
        "--methods", nargs="+", default=["grpo"], choices=METHODS, metavar="METHOD", help=f"of {', '.join(METHODS)}"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the rows of every file; 0.05 is a try")
    parser.add_argument("--seed", type=int, default=0, help="of the problems, the model and all training")
    args = parser.parse_args(arguments)
    if not args.scale > 0:
        parser.error(f"--scale: expected a number above 0, got {args.scale:g}")
    try:
        run(args.out, args.methods, args.scale, args.seed)
    except KeyboardInterrupt:
        log.info(f"Stopped. Give the same command again to go on from what is in {args.out}.")
        return 130
    except AssentError as error:
        log.error(error)
        return error.exit_code
    return 0


def run(out: Path, methods: Sequence[str], scale: float, seed: int) -> None:
    """Does what is not in `out` yet, then writes and prints the table of all methods in it.

    Raises UserError where `out` was made with another scale or seed, KeyboardInterrupt where a command was stopped."""
    began = time.monotonic()
    claim(out, {"scale": scale, "seed": seed})
    data = out / "data"
    if not (data / "words.jsonl").exists():
        problems.write(data, {file: max(8, round(rows * scale)) for file, rows in SIZES.items()}, seed)
    base, first, sft = out / "base", out / "calculations", out / "sft"
    if not base.exists():
        assent("init", "--data", data / "words.jsonl", "--out", base, "--vocab_size", 600, "--hidden_size", 96,
               "--context", 512, "--seed", seed)  # fmt: skip
    train("sft", "--model.path", base, "--data.train", data / "calculations.jsonl", "--out", first,
          "--train.seed", seed, "--train.batch_size", 32, "--train.epochs", 3, "--optim.lr", 3e-3)  # fmt: skip
    train("sft", "--model.path", first, "--data.train", data / "sft.jsonl", "--out", sft,
          "--train.seed", seed, "--train.batch_size", 32, "--train.epochs", 6, "--optim.lr", 1e-3)  # fmt: skip
    for method in methods:
        name, *options = METHODS[method]
        train(name, "--model.path", sft, "--data.train", data / "rl.jsonl", "--out", out / method, "--train.seed", seed,
              *ONLINE, *options)  # fmt: skip
    done = ["sft", *(method for method in METHODS if finished(out / method))]
    page = table({name: answers(out / name, data / "test.jsonl", seed) for name in done})
    (out / "table.md").write_text(page, encoding="utf-8")
    print(page, end="")
    log.info(f"Done in {clock(time.monotonic() - began)}.")


def claim(out: Path, options: Mapping[str, float]) -> None:
    """Marks `out` as made with these options."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / "options.json"
    if file.exists() and (before := json.loads(file.read_text(encoding="utf-8"))) != options:
        raise UserError(f"--out {out} was made with {before}, not with {dict(options)}: give those, or another folder")
    if not file.exists():
        file.write_text(json.dumps(options) + "\n", encoding="utf-8")


def finished(folder: Path) -> bool:
    """Whether a run is: its model card is written last."""
    return (folder / "model" / "README.md").is_file()


def train(name: str, *options: object) -> None:
    """A training command, unless its run is finished."""
    if not finished(Path(str(options[options.index("--out") + 1]))):
        assent(name, *options, *SHARED)


def assent(*words: object) -> None:
    """An `assent` command. Raises KeyboardInterrupt when that was stopped, UserError when it failed."""
    written = [str(word) for word in words]
    log.info(f"\n$ assent {shlex.join(written)}")
    code = command(written)
    if code in (130, 143):
        raise KeyboardInterrupt
    if code:
        raise UserError(f"`assent {written[0]}` failed with exit code {code}; what it said stands above")


# ---- held-out accuracy


def answers(folder: Path, test: Path, seed: int) -> dict[str, list[tuple[int, bool]]]:
    """For each of `TEMPERATURES` and every held-out problem: its steps, and whether the answer is right."""
    judged = {}
    for way, temperature in TEMPERATURES.items():
        file = folder / f"{way}.jsonl"
        if not file.exists():
            assent("generate", folder, "--prompts", test, "--out", file, "--precision", "fp32", "--seed", seed,
                   "--sampling.temperature", temperature, "--sampling.max_new_tokens", LONGEST)  # fmt: skip
        rows = list(zip(read_jsonl(test), read_jsonl(file), strict=True))
        judged[way] = [(row["steps"], numeric(said["response"], row["answer"]) == 1.0) for row, said in rows]
    return judged


def accuracy(judged: Sequence[tuple[int, bool]], steps: int | None = None) -> Interval:
    """Share of right answers, to all problems or to those of so many steps, with Wilson's interval."""
    right = [is_right for of, is_right in judged if steps in (None, of)]
    return proportion_interval(sum(right), len(right))


def table(policies: Mapping[str, Mapping[str, Sequence[tuple[int, bool]]]]) -> str:
    """Markdown: accuracy in percent with its 95 % interval, and that of problems of each number of steps."""
    heads = ["policy", *TEMPERATURES, *(f"{steps} step{'s'[: steps > 1]}" for steps in problems.STEPS)]
    lines = [heads, ["---"] * len(heads)]
    for name, judged in policies.items():
        cells = [_percent(accuracy(judged[way])) for way in TEMPERATURES]
        cells += [f"{100 * accuracy(judged['greedy'], steps).mean:.0f}" for steps in problems.STEPS]
        lines.append([name, *cells])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _percent(share: Interval) -> str:
    return f"{100 * share.mean:.1f} ({100 * share.low:.1f} to {100 * share.high:.1f})"


if __name__ == "__main__":
    sys.exit(main())
