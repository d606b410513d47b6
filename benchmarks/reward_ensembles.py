"""Whether ensembles of reward models delay over-optimisation in the assistant world, whose gold reward is known:

    python -m benchmarks.reward_ensembles best-of-n ppo --out FOLDER [--figure docs/ensembles.svg]
    python -m benchmarks.reward_ensembles best-of-n --setting halves --seeds 3 4 5 --out ANOTHER

For each seed one policy (SFT), four reward models from it by the same few noisy pairs (they differ in their seed), and
one with four heads. Then gold along best-of-n, n up to 256, and along PPO with a loose KL: by a single model, and by
the mean, the lowest and the lower bound of all. `halves`: a quarter of the labels is wrong, as where others found
ensembles to help (arXiv 2310.02743), each model has seen a half of the pairs of its own, and one has seen all. What is
there already in FOLDER is kept, and a PPO run goes on from its checkpoint. The numbers and the figure stand in
docs/reward-models.md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from assent import distributed
from assent.algorithms.online.train import train_online
from assent.algorithms.reward.ensemble import train_ensemble
from assent.algorithms.reward.pairs import train_reward
from assent.algorithms.sft import train_sft
from assent.config import (
    DataConfig,
    EnsembleConfig,
    EnsembleSection,
    InitConfig,
    ModelConfig,
    OptimConfig,
    RewardConfig,
    RewardsConfig,
    SamplingConfig,
    SFTConfig,
    TrainConfig,
    online_config,
)
from assent.data.chat import Chat
from assent.data.formats import load_examples
from assent.data.records import Example, Message, Response
from assent.data.tree import TokenTree
from assent.evaluate import plots
from assent.lab.annotators import Annotator
from assent.lab.artifacts import WorldPaths, build_world
from assent.lab.world import load_world
from assent.measures.best_of import expected_best
from assent.models.annotate import BatchColumns, columns_of
from assent.models.heads import load_score_model
from assent.models.init import random_model, train_tokenizer, write_new_model
from assent.models.loading import load_policy, load_tokenizer, quiet_transformers
from assent.rewards.ensemble import COMBINE
from assent.rollout.build import torch_engine
from assent.train.log import read_metrics
from benchmarks.reward_lab import ONE, SEEDS, over_seeds

MEMBERS = 4


@dataclass(frozen=True)
class Setting:
    """Who labels how many pairs, and whether each model learns from a half of its own or from all."""

    annotator: Annotator
    pairs: int
    halves: bool


SETTINGS = {
    "shared": Setting(Annotator("hasty", temperature=0.8, careless=0.3), 400, halves=False),
    "halves": Setting(Annotator("coin", temperature=0.05, careless=0.5), 800, halves=True),
}
"""Four labels in five are those of gold; three in four, the others by chance alone."""
PROMPTS, POOL, LONGEST = 40, 256, 192
NS = tuple(2**k for k in range(9))
SAMPLING = SamplingConfig(max_new_tokens=32, max_batch=256)
PPO = {
    "kl": {"coef": 0.01},
    "critic": {"start": "policy"},
    "shaping": {"missing_eos_penalty": 1.0, "normalise": "running"},
}
ALL = "one, of all pairs"
ROLLOUTS, ROLLOUT, STEPS, LR = 20, 32, 4, 1e-3
LOGGED = '''"""The gold reward of sampled answers, which PPO only logs."""

from pathlib import Path

from assent.data.records import Message
from assent.lab.world import load_world

WORLD = load_world(Path(__file__).with_name("world") / "world.json")


def gold(prompts, completions):
    asked = [[Message(turn["role"], turn["content"]) for turn in prompt] for prompt in prompts]
    return [WORLD.gold(prompt, said[0]["content"]).reward for prompt, said in zip(asked, completions)]
'''
BEST_OF, ROLLED = "n, of which the answer with the highest reward is kept", "answers that PPO has learnt from"
KINDS = ("models, mean", "models, min", "models, lcb", "heads, mean")
"""What the figure shows beside the single model."""
SMOOTH = 5
"""Rollouts of PPO whose gold is averaged to one point."""


def once(path: Path, make: Callable[[], Any]) -> Path:
    """The file or folder, made where it is not there yet."""
    if not path.exists():
        begun = time.process_time()
        make()
        print(f"{path}: {time.process_time() - begun:.0f} CPU s", flush=True)
    return path


def common(model: Path, data: Path, out: Path, lr: float, seed: int, **train: Any) -> dict[str, Any]:
    return {
        "model": ModelConfig(str(model), precision="fp32"),
        "data": DataConfig(str(data), max_length=LONGEST),
        "out": str(out),
        "optim": OptimConfig(lr=lr),
        "train": TrainConfig(seed=seed, threads=1, log_every=10, **train),
    }


def write_base(world: WorldPaths, out: Path, seed: int) -> None:
    examples = load_examples(str(world.sft)).examples
    texts = [m.content for e in examples for m in (*e.prompt, *e.responses[0].messages)]
    size = InitConfig(data="", out="", vocab_size=768, hidden_size=64, layers=2, heads=4, kv_heads=2, seed=seed)
    tokenizer = train_tokenizer([*texts, "user assistant system"], size.vocab_size)
    write_new_model(tokenizer, random_model(tokenizer, size), out)


def write_start(root: Path, seed: int, scale: float, epochs: int = 5) -> WorldPaths:
    """A world in `root`, and in root/start a small model that has learnt its demonstrations, with them its facts."""
    world = WorldPaths(root / "world")
    once(world.world, lambda: build_world(world.root, seed=seed, scale=scale))
    base = once(root / "base", lambda: write_base(world, root / "base", seed))
    given = common(base, world.sft, root / "start", 4e-3, seed, batch_size=32, epochs=epochs)
    once(root / "start" / "summary.json", lambda: train_sft(SFTConfig(**given)))
    return world


@dataclass(frozen=True)
class Models:
    """What is made for a seed before gold is asked for. `every` are the folders of models that learnt from all pairs:
    one of a single output where the members had halves, and where they had not, one of several heads."""

    world: WorldPaths
    policy: Path
    members: list[Path]
    every: Path


def models(root: Path, seed: int, setting: Setting) -> Models:
    world = WorldPaths(root / "world")
    once(world.world, lambda: build_world(world.root, seed=seed, scale=0.4, annotators=[setting.annotator]))
    base = once(root / "base", lambda: write_base(world, root / "base", seed))
    once(
        root / "sft" / "summary.json",
        lambda: train_sft(SFTConfig(**common(base, world.sft, root / "sft", 4e-3, seed, batch_size=32, epochs=5))),
    )
    rows = world.preferences.read_text().splitlines(keepends=True)[: setting.pairs]
    pairs = root / "pairs.jsonl"
    pairs.write_text("".join(rows))
    trained = {"batch_size": 16, "epochs": 3}

    def single(out: Path, data: Path, own: int) -> Path:
        given = common(root / "sft", data, out, 1e-3, own, **trained)
        return once(out / "summary.json", lambda: train_reward(RewardConfig(**given))).parent

    def share(own: int) -> Path:
        """The pairs of one member."""
        if not setting.halves:
            return pairs
        chosen = np.random.default_rng([seed, own]).permutation(len(rows))[: len(rows) // 2]
        half = root / f"pairs-{own}.jsonl"
        half.write_text("".join(rows[index] for index in sorted(chosen)))
        return half

    members = [single(root / f"reward-{own}", share(own), own) for own in range(MEMBERS)]
    if setting.halves:
        return Models(world, root / "sft", members, single(root / "reward-all", pairs, MEMBERS))
    given = common(root / "sft", pairs, root / "heads", 1e-3, seed, **trained)
    section = EnsembleSection(heads=MEMBERS)
    once(root / "heads" / "summary.json", lambda: train_ensemble(EnsembleConfig(**given, ensemble=section)))
    return Models(world, root / "sft", members, root / "heads")


def write_pool(examples: Sequence[Example], policy: Path, out: Path, seed: int) -> None:
    """Answers of the policy to each prompt, as lists of texts."""
    config = ModelConfig(str(policy / "model"), precision="fp32")
    chat = Chat(load_tokenizer(config))
    engine = torch_engine(load_policy(config, max_length=LONGEST, trainable=False), chat)
    ids = [chat.prompt_ids(example) for example in examples]
    answers = engine.generate(ids, POOL, SAMPLING, seed)
    pool = [
        [chat.decode(one.ids, prompt, finished=one.finished) for one in own]
        for prompt, own in zip(ids, answers, strict=True)
    ]
    out.write_text(json.dumps(pool))


def with_answers(example: Example, texts: Sequence[str]) -> Example:
    return replace(example, responses=tuple(Response((Message("assistant", text),)) for text in texts))


def rewards(folders: Sequence[Path], examples: Sequence[Example], out: Path) -> np.ndarray:
    """[K, S] outputs of all models for all answers: scored once, and one for answers that are the same."""

    def make() -> None:
        texts = [list(dict.fromkeys(one.text for one in each.responses)) for each in examples]
        distinct = [with_answers(each, own) for each, own in zip(examples, texts, strict=True)]
        tokenizer = load_tokenizer(ModelConfig(str(folders[0] / "model")))
        trees, _ = Chat(tokenizer).trees(distinct, LONGEST)
        assert [len(tree.branches) for tree in trees] == [len(own) for own in texts], "an answer was left out"
        outputs = np.concatenate([columns(folder, tokenizer, trees) for folder in folders])
        starts = np.cumsum([0, *map(len, texts)])
        place = [
            start + own.index(one.text)
            for each, own, start in zip(examples, texts, starts, strict=False)
            for one in each.responses
        ]
        np.save(out, outputs[:, place])

    return np.load(once(out, make))


def columns(folder: Path, tokenizer: Any, trees: Sequence[TokenTree]) -> np.ndarray:
    """[K, S] the K outputs of a model."""
    config = ModelConfig(str(folder / "model"), precision="fp32")
    scorer = load_score_model(config, tokenizer, max_length=LONGEST, trainable=False, new_head=False)
    found = columns_of(
        trees,
        lambda batch: BatchColumns(per_response={"outputs": scorer(batch, batch.last)}),
        micro_tokens=8192,
        flat=False,
        world=ONE,
    )
    return found.per_response["outputs"].reshape(sum(len(tree.branches) for tree in trees), -1).T


def ensembles(members: np.ndarray) -> dict[str, np.ndarray]:
    """[K, S] -> rewards [S] of each way to make one of them."""
    return {"mean": COMBINE["mean"](members), "min": COMBINE["min"](members), "lcb": COMBINE["lcb"](members, k=1.0)}


def best_of(root: Path, seed: int, setting: Setting) -> dict[str, list[float]]:
    """Mean gold of the best of n, for each n, by each reward; "single" is the mean over the members by themselves."""
    made = models(root, seed, setting)
    prompts = load_examples(str(made.world.prompts_eval)).examples[:PROMPTS]
    pool = once(root / "pool.json", lambda: write_pool(prompts, made.policy, root / "pool.json", seed))
    examples = [with_answers(*each) for each in zip(prompts, json.loads(pool.read_text()), strict=True)]
    truth = load_world(made.world.world)
    gold = np.array([[truth.gold(e.prompt, one.text).reward for one in e.responses] for e in examples])
    singles = rewards(made.members, examples, root / "models.npy")
    of_all = rewards([made.every], examples, root / f"{'all' if setting.halves else 'heads'}.npy")

    def curve(reward: np.ndarray) -> list[float]:
        own = reward.reshape(gold.shape)
        return [float(np.mean([expected_best(r, g, n) for r, g in zip(own, gold, strict=True)])) for n in NS]

    found = {"single": np.mean([curve(one) for one in singles], axis=0).tolist()}
    found |= {f"models, {name}": curve(reward) for name, reward in ensembles(singles).items()}
    if setting.halves:
        found |= {ALL: curve(of_all[0])}
    else:
        found |= {f"heads, {name}": curve(reward) for name, reward in ensembles(of_all).items()}
    print(
        f"seed {seed}: rewards of members correlate at", np.round(np.corrcoef(singles)[np.triu_indices(MEMBERS, 1)], 2)
    )
    return found | {"gold itself": curve(gold)}


def ppo(root: Path, seed: int, setting: Setting, rollouts: int) -> dict[str, dict[str, list[float]]]:
    """Gold and reward of the answers that PPO samples while it learns, by each reward."""
    made = models(root, seed, setting)
    members = tuple(map(str, made.members))
    kinds = {
        "single": RewardsConfig((str(made.every if setting.halves else made.members[0]),)),
        **{f"models, {how}": RewardsConfig(members, ensemble=how) for how in COMBINE},
    }
    logged_gold = root / "logged.py"
    logged_gold.write_text(LOGGED)
    found = {}
    for name, rewarded in kinds.items():
        run = root / f"ppo-{name.replace(', ', '-')}"
        logged = replace(rewarded, functions=(f"{logged_gold}:gold",), weights={"gold": 0.0})
        steps = {"batch_size": ROLLOUT, "max_steps": STEPS * rollouts, "save_every": STEPS * SMOOTH}
        given = common(made.policy, made.world.prompts, run, LR, seed, **steps)
        given["optim"] = OptimConfig(lr=LR, schedule="constant")
        config = online_config("ppo", **given, **PPO, rewards=logged, sampling=SAMPLING, resume="auto")
        once(run / "summary.json", partial(train_online, config))
        rows = read_metrics(run / "metrics.jsonl")
        found[name] = {key: [row[key] for row in rows if key in row] for key in ("step", "reward", "reward/gold", "kl")}
    return found


def smooth(values: Sequence[float]) -> np.ndarray:
    """Means of `SMOOTH` rollouts in a row."""
    kept = len(values) // SMOOTH * SMOOTH
    return np.asarray(values[:kept], float).reshape(-1, SMOOTH).mean(1)


def table(found: Sequence[Mapping[str, Sequence[float]]], header: Sequence[str]) -> str:
    """Markdown: a row for each kind, at each point the mean over seeds with its interval; below it the differences from
    "single" of the same seed."""
    lines = [f"| | {' | '.join(header)} |", "|---" * (len(header) + 1) + "|"]
    for name in found[0]:
        runs = np.array([seed[name] for seed in found])
        lines.append(f"| {name} | {' | '.join('{:.2f} ± {:.2f}'.format(*over_seeds(x)) for x in runs.T)} |")
        if name != "single":
            gaps = runs - [seed["single"] for seed in found]
            lines.append(f"| less single | {' | '.join('{:+.2f} ± {:.2f}'.format(*over_seeds(x)) for x in gaps.T)} |")
    return "\n".join(lines)


def figure(panels: Sequence[tuple[str, Sequence[float], Sequence[Mapping[str, Sequence[float]]]]], out: Path) -> None:
    """An SVG of its own: for each (label of x, x, a mapping of kinds to gold for each seed) the means over seeds, and
    thin and pale each seed."""
    colors = {"single": plots.BASELINE_COLOR, **dict(zip(KINDS, plots.COLORS, strict=False))}
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "assent", "font.size": 8}):
        drawing = Figure(figsize=(7.2, 2.9), layout="constrained")
        for axes, (label, x, found) in zip(drawing.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            for name in [name for name in colors if name in found[0]]:
                for seed in found:
                    axes.plot(x, seed[name], color=colors[name], linewidth=0.6, alpha=0.35)
                axes.plot(x, np.mean([seed[name] for seed in found], 0), color=colors[name], linewidth=1.8, label=name)
            axes.set_xlabel(label)
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(frameon=False, fontsize=7)
            if label == BEST_OF:
                axes.set_xscale("log", base=2)
                axes.set_xticks(x, [str(n) for n in x])
        drawing.axes[0].set_ylabel("gold reward")
        drawing.savefig(out, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["best-of-n", "ppo"], nargs="+")
    parser.add_argument("--setting", choices=list(SETTINGS), default="shared")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--rollouts", type=int, default=ROLLOUTS, help="of PPO")
    parser.add_argument("--figure", type=Path, help="SVG to write")
    given = parser.parse_args()
    quiet_transformers()
    distributed.init()
    panels = []
    for what in given.what:
        setting = SETTINGS[given.setting]
        found = [measured(what, given.out / str(seed), seed, setting, given.rollouts) for seed in given.seeds]
        if what == "best-of-n":
            print(table(found, [str(n) for n in NS]))
            panels.append((BEST_OF, NS, found))
            continue
        gold = [{name: smooth(run["reward/gold"]).tolist() for name, run in seed.items()} for seed in found]
        x = [ROLLOUT * SMOOTH * (k + 1) for k in range(len(gold[0]["single"]))]
        print(table(gold, [str(n) for n in x]))
        for key in ("reward", "kl"):
            last = {name: over_seeds([smooth(seed[name][key])[-1] for seed in found]) for name in found[0]}
            print(
                key, "at the end:", "; ".join("{} {:.2f} ± {:.2f}".format(name, *value) for name, value in last.items())
            )
        panels.append((ROLLED, x, gold))
    if given.figure is not None:
        figure(panels, given.figure)


def measured(what: str, root: Path, seed: int, setting: Setting, rollouts: int) -> dict[str, Any]:
    """What a seed gives; kept in the folder."""
    path = root / f"{what}.json"
    root.mkdir(parents=True, exist_ok=True)

    def make() -> None:
        found = best_of(root, seed, setting) if what == "best-of-n" else ppo(root, seed, setting, rollouts)
        path.write_text(json.dumps(found))

    return json.loads(once(path, make).read_text())


if __name__ == "__main__":
    main()
