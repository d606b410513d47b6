"""HelpSteer2's comparison (arXiv 2406.08673) in the assistant world: SFT, DPO, iterative DPO, PPO and SteerLM with one
reward model and equal numbers of labels, measured by a gold reward that no method sees.

    python examples/helpsteer/run.py --out runs/helpsteer [--seed 0] [--scale 1] [--methods dpo ppo]

Every stage is an `assent` command, and is shown before it runs. What is in --out already is not done again: after
Ctrl-C the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from assent import messages
from assent.cli import main as command
from assent.data.formats import load_examples, to_row
from assent.data.jsonl import write_rows
from assent.data.records import Example, Message, Rating, Response
from assent.errors import AssentError, UserError
from assent.evaluate.results import EVALUATION, PolicyTable
from assent.lab.annotators import PANEL, labelled
from assent.lab.answers import COMPARISON_MIX, draw_style
from assent.lab.artifacts import WorldPaths, build_world
from assent.lab.world import AssistantWorld, load_world
from assent.statistics import Interval
from assent.train.log import read_jsonl

log = logging.getLogger("assent.helpsteer")

HERE = Path(__file__).resolve().parent
METHODS = ("dpo", "iterative-dpo", "ppo", "steerlm")
PROMPTS, RATED, DEMONSTRATIONS = 800, 2500, 3200
"""Rows at scale 1: prompts of every method, rated pairs of answers, demonstrations that SteerLM labels."""
PPO_BATCH = 64


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0, help="of the world and of everything in it")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies all rows")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    given = parser.parse_args(words)
    messages.show()
    try:
        compare(given.out, given.seed, given.scale, given.methods)
    except KeyboardInterrupt:
        return 130
    except AssentError as error:
        log.error(error)
        return error.exit_code
    return 0


def compare(out: Path, seed: int, scale: float, methods: Sequence[str]) -> None:
    """All stages, and the table."""
    paths = files(out, seed, scale)
    sft, reward = out / "sft", out / "reward"
    own = {
        "dpo": ("iterate", "--labels.source", reward),
        "iterative-dpo": ("iterate", "--labels.source", reward),
        "ppo": ("ppo", "--rewards.model", reward, "--train.batch_size", min(PPO_BATCH, rows(PROMPTS, scale))),
        "steerlm": (
            *("steerlm", "--steering.model", reward, "--prompts", out / "prompts.jsonl"),
            *("--steering.prompts", paths.prompts_eval, "--data.limit", rows(DEMONSTRATIONS, scale)),
        ),
    }
    train("sft", "sft", "--model.path", paths.base, "--data.train", paths.sft, "--out", sft, seed=seed)
    ratings = out / "ratings.jsonl"
    train("reward-attributes", "attributes", "--model.path", sft, "--data.train", ratings, "--out", reward, seed=seed)
    for method in methods:
        name, *options = own[method]
        data = paths.sft if method == "steerlm" else out / "prompts.jsonl"
        train(name, method, "--model.path", sft, "--data.train", data, "--out", out / method, *options, seed=seed)
    policies = [f"sft={sft}", *(f"{method}={policy(out / method)}" for method in methods)]
    place = out / "evaluation"
    assent("eval", *policies, "--config", HERE / "eval.yaml", "--prompts", paths.prompts_eval, "--out", place,
           "--baseline", "sft", "--reference", sft, "--rewards", f"proxy={reward}", "--scorer", f"{paths.gold}:gold",
           "--precision", "fp32", "--seed", seed, *(["--resume"] if place.exists() else []))  # fmt: skip
    page = table(out, methods)
    (out / "table.md").write_text(page, encoding="utf-8")
    print(page, end="")


def rows(count: int, scale: float) -> int:
    return max(4, round(count * scale))


def files(out: Path, seed: int, scale: float) -> WorldPaths:
    """The world, prompts and ratings; made once, for one seed and scale."""
    out.mkdir(parents=True, exist_ok=True)
    paths, options = WorldPaths(out / "world"), out / "options.json"
    made = {"seed": seed, "scale": scale}
    if options.exists():
        if (before := json.loads(options.read_text(encoding="utf-8"))) != made:
            raise UserError(f"--out {out} was made with {before}, not with {made}: give those, or another folder.")
        return paths
    if not paths.base.exists():
        build_world(paths.root, seed=seed, scale=scale)
    world, rng = load_world(paths.root), np.random.default_rng([seed, 12])
    held = {example.prompt for example in load_examples(paths.prompts_eval).examples}
    for name, made_rows in (
        ("ratings.jsonl", [to_row(rated(world, held, rng)) for _ in range(rows(RATED, scale))]),
        ("prompts.jsonl", [to_row(e) for e in load_examples(paths.prompts, limit=rows(PROMPTS, scale)).examples]),
    ):
        (out / name).unlink(missing_ok=True)
        write_rows(made_rows, str(out / name))
    options.write_text(json.dumps(made) + "\n", encoding="utf-8")
    return paths


def rated(world: AssistantWorld, held: set[tuple[Message, ...]], rng: np.random.Generator) -> Example:
    """A prompt with two answers in mixed styles, each rated by one annotator."""
    while (prompt := world.draw_prompt(rng)) in held:
        pass
    task = world.lookup(prompt)
    texts: dict[str, None] = {}
    while len(texts) < 2:
        texts[world.respond(prompt, draw_style(task, COMPARISON_MIX, rng), rng)] = None
    example = Example(prompt, tuple(Response((Message("assistant", text),)) for text in texts))
    judged = labelled(world, example, [PANEL[int(rng.integers(len(PANEL)))]], rng, ratings=True)
    return Example(prompt, example.responses, tuple(item for item in judged.feedback if isinstance(item, Rating)))


# ---- commands


def train(name: str, options: str, *words: object, seed: int) -> None:
    """A command that trains, with the options of a file here; a finished one is only looked at."""
    assent(name, "--config", HERE / f"{options}.yaml", *words, "--model.precision", "fp32", "--train.seed", seed,
           "--train.log_every", 10, "--resume", "auto")  # fmt: skip


def assent(*words: object) -> None:
    """An `assent` command. Raises KeyboardInterrupt when that was stopped, UserError when it failed."""
    written = [str(word) for word in words]
    log.info(f"\n$ assent {shlex.join(written)}")
    code = command(written)
    if code in (130, 143):
        raise KeyboardInterrupt
    if code:
        raise UserError(f"`assent {written[0]}` failed with exit code {code}; what it said stands above.")


def policy(folder: Path) -> Path:
    """The run that is evaluated: the folder itself, or the last run of a loop."""
    stages = [row["stage"] for row in state(folder)]
    runs = [stage for stage in stages if stage.endswith(("/dpo", "/sft"))]
    return folder / runs[-1] if runs else folder


def state(folder: Path) -> list[dict]:
    """The finished stages of a loop; nothing of a run."""
    file = folder / "loop.jsonl"
    return read_jsonl(file) if file.exists() else []


# ---- the table


def spent(folder: Path) -> tuple[int, int]:
    """Answers that a method sampled to learn from them, and labels that it was given by the reward model."""
    stages = {row["stage"]: row["numbers"] for row in state(folder)}
    if not stages:
        prompts = json.loads((folder / "data.json").read_text(encoding="utf-8"))["train"]["examples"]
        passes = max(row.get("passes", 0.0) for row in read_jsonl(folder / "metrics.jsonl"))
        return round(passes * prompts), round(passes * prompts)
    learnt = {name: own for name, own in stages.items() if "asked-" not in name and "answers" in own}
    sampled = sum(own["answers"] for name, own in learnt.items() if name.endswith("/answers.jsonl"))
    return int(sampled), int(sum(own["answers"] for own in learnt.values()) - sampled)


def table(out: Path, methods: Sequence[str]) -> str:
    """Markdown: gold and proxy reward, wins against SFT by gold, KL, length; samples and labels."""
    found = PolicyTable.load(out / "evaluation" / EVALUATION)
    lines = [["policy", "gold reward", "wins by gold, %", "reward model", "KL", "tokens", "answers sampled", "labels"]]
    lines.append(["---"] * len(lines[0]))
    for each in found.policies:
        wins = found.wins(each)
        budget = ("0", "0") if each.name == "sft" else [f"{count:,}" for count in spent(out / each.name)]
        cells = [
            _cell(each.scores["gold"]),
            "–" if wins is None else _cell(wins.rate, 100, 1),
            _cell(each.scores["proxy"]),
        ]
        lines.append([each.name, *cells, _cell(each.kl), _cell(each.length, digits=1), *budget])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(value: Interval, factor: float = 1.0, digits: int = 2) -> str:
    return f"{factor * value.mean:.{digits}f} ± {factor * value.half_width:.{digits}f}"


if __name__ == "__main__":
    sys.exit(main())
