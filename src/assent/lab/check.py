"""`assent check`: whether a loss, an objective or an estimator of advantages of the user's own learns. It is trained by
the production algorithms where the exact optimum is known, beside DPO, PPO or REINFORCE under the same steps and seeds.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from assent.algorithms.online.method import REWARDS, TOKENS
from assent.algorithms.own import OwnFunction, listed
from assent.algorithms.preference.objective import objective_with, offered
from assent.config import (
    CheckConfig,
    CustomConfig,
    DataConfig,
    OnlineConfig,
    OptimConfig,
    PreferenceConfig,
    RewardsConfig,
    SamplingConfig,
    TrainConfig,
    online_config,
    preference_config,
    settings,
)
from assent.data.tree import TokenTree
from assent.errors import ConfigError
from assent.lab.enumerable import optimum, regret_closed
from assent.lab.learning import Follow, Setting, build_setting
from assent.losses.functions import Quantity, options_of
from assent.models.loading import quiet_transformers
from assent.outputs import try_file, write_text
from assent.train.facts import plural
from assent.train.progress import ProgressDisplay

BETA = 2.0
"""Weight of the KL in what is maximised, where the function has no option `beta` of its own."""
LEARNS = 0.1
"""Share of the way to the optimum's reward that what learns has gone at least, with every seed."""
RESPONSES = 32
OBJECTIVE, LOSS, ESTIMATOR = "an objective", "a policy loss", "an estimator of advantages"
FLAG = "assent check"

Train = Callable[[Setting, int, Follow], Tensor]
"""Log-probs [X, Y] after so many steps."""


@dataclass(frozen=True, slots=True)
class Following:
    """Moves the bar on from `done`."""

    bar: ProgressDisplay
    done: int

    def __call__(self, step: int) -> None:
        self.bar.update(self.done + step)


@dataclass(frozen=True, slots=True)
class Trained:
    """One function on one seed: the share of regret to the optimum that it closes, the share of the way to the
    optimum's expected reward that it goes, and KL(policy || reference) in nats."""

    name: str
    seed: int
    closed: float
    reward: float
    kl: float


@dataclass(frozen=True, slots=True)
class Check:
    """What `check` found; `learns` says whether the function raises the expected reward with every seed."""

    function: str
    kind: str
    options: Mapping[str, float]
    beta: float
    steps: int
    learns: bool
    trained: tuple[Trained, ...]


def check(config: CheckConfig) -> Check:
    """Trains the function and those beside it, prints a table and a verdict, and writes `config.out`. Raises
    ConfigError for a function that is of no kind, or of several."""
    settings.validate(config)
    quiet_transformers()
    kind, options, rows = _contest(config)
    beta = options.get("beta", BETA) if kind == OBJECTIVE else BETA
    if config.out is not None:
        try_file(config.out, f"--out {config.out}")
    trained: list[Trained] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # models of this size are slower with more
    try:
        with (
            tempfile.TemporaryDirectory() as out,
            ProgressDisplay(config.seeds * len(rows) * config.steps, FLAG) as bar,
        ):
            for seed in range(config.seeds):
                setting = build_setting(Path(out, str(seed)), seed)
                for name, train in rows.items():
                    logp = train(setting, config.steps, Following(bar, len(trained) * config.steps))
                    trained.append(_measured(name, setting, logp, beta))
    finally:
        torch.set_num_threads(threads)
    own = [each.reward for each in trained if each.name == config.function]
    found = Check(config.function, kind, options, beta, config.steps, min(own) >= LEARNS, tuple(trained))
    print(report(found))
    if config.out is not None:
        write_text(config.out, json.dumps(asdict(found), indent=1) + "\n", f"--out {config.out}")
    return found


# ---- what is compared


def kind_of(function: OwnFunction) -> str:
    """What a function is, from the tensors that it asks for. Raises ConfigError where none has them all, or several
    have."""
    tables: dict[str, Mapping[str, Quantity]] = {OBJECTIVE: offered(), LOSS: TOKENS, ESTIMATOR: REWARDS}
    fits = [kind for kind, there in tables.items() if function.sizes.keys() <= there.keys()]
    if len(fits) == 1:
        return fits[0]
    asked = ", ".join(function.sizes)
    problem = f"as {' and '.join(fits)} may" if fits else "which are not of one kind"
    may = " ".join(f"{kind.capitalize()} may ask for {listed(there)}." for kind, there in tables.items())
    raise ConfigError(f"{function.who} asks for {asked}, {problem}, so what it is does not follow. {may}")


def _contest(config: CheckConfig) -> tuple[str, Mapping[str, float], dict[str, Train]]:
    """The kind of the function, its options, and what is trained, the function first."""
    function = OwnFunction(config.function, FLAG, {**offered(), **TOKENS, **REWARDS})
    kind = kind_of(function)
    if kind != OBJECTIVE:
        return kind, config.options, _online(config, kind, function)
    beta = config.options.get("beta", BETA)
    options = {"beta": beta, **config.options} if "beta" in options_of(function) else config.options
    own = CustomConfig(**_shared(""), objective=config.function, options=options)
    row, (term,) = objective_with(own)
    dpo = preference_config("dpo", **_shared(""), loss={"beta": beta})
    rows = {config.function: _preference(own, row.feedback, "margin" in term.inputs)}
    return kind, options, {**rows, "DPO": _preference(dpo, "pairs", False)}


FEEDBACK: Mapping[str, Callable[[Setting], list[TokenTree]]] = {
    "pairs": lambda setting: setting.pairs,
    "binary": lambda setting: setting.labels,
    "ranking": lambda setting: setting.rankings,
    "rating": lambda setting: setting.ratings,
}


def _preference(config: PreferenceConfig, feedback: str, strengths: bool) -> Train:
    def train(setting: Setting, steps: int, follow: Follow) -> Tensor:
        trees: Sequence[TokenTree] = FEEDBACK[feedback](setting)
        if strengths:  # a response against itself has none
            trees = [replace(tree, pairs=tuple(pair for pair in tree.pairs if pair[2] > 0)) for tree in trees]
        return setting.train_preference(config, trees, steps, OptimConfig(lr=1e-2, beta2=0.95), follow)

    return train


def _online(config: CheckConfig, kind: str, function: OwnFunction) -> dict[str, Train]:
    """A policy loss beside those of PPO and REINFORCE, twice on each rollout; an estimator beside the one of its
    method, once."""
    options = config.options
    if kind == LOSS:
        own = {"function": config.function, "options": options}
        twice = {"responses": RESPONSES, "epochs": 2}
        return {
            config.function: _method("reinforce++", own, twice),
            "PPO's clip": _method("reinforce++", {}, twice),
            "REINFORCE": _method("reinforce", {"whiten": True}, twice),
        }
    own = {"estimator": config.function, "options": options}
    once = {"responses": RESPONSES}
    if "values" not in function.sizes:
        whiten = {"whiten": True}
        return {
            config.function: _method("reinforce", {**whiten, **own}, once),
            "REINFORCE": _method("reinforce", whiten, once),
        }
    lam = {"lam": 1.0}
    theirs = lam if "lam" in options_of(function) else {}
    return {config.function: _method("ppo", {**theirs, **own}, once), "PPO (GAE)": _method("ppo", lam, once)}


def _method(method: str, loss: Mapping[str, Any], rollout: Mapping[str, Any]) -> Train:
    def train(setting: Setting, steps: int, follow: Follow) -> Tensor:
        world = setting.world
        config: OnlineConfig = online_config(
            method,
            **_shared(str(world.prompts_file), setting),
            rewards=RewardsConfig(("the table",)),
            kl={"coef": BETA},
            loss=loss,
            rollout=rollout,
            sampling=SamplingConfig(max_new_tokens=world.max_new_tokens, max_batch=512),
        )
        return setting.train_online(config, steps, OptimConfig(lr=1e-2, schedule="linear", beta2=0.95), follow)

    return train


# ---- what comes of it


def _measured(name: str, setting: Setting, logp: Tensor, beta: float) -> Trained:
    ref, rewards = setting.ref, setting.rewards
    start, best = setting.gold(ref), setting.gold(optimum(ref, rewards, beta))
    return Trained(
        name,
        setting.seed,
        closed=regret_closed(logp, ref, rewards, beta),
        reward=(setting.gold(logp) - start) / (best - start),
        kl=float((logp.exp() * (logp - ref)).sum(dim=1).mean()),
    )


def report(found: Check) -> str:
    """The table, and what it says."""
    names = list(dict.fromkeys(each.name for each in found.trained))
    cells = [["", "regret closed", "reward", "KL"]]
    closed: dict[str, float] = {}
    for name in names:
        rows = [each for each in found.trained if each.name == name]
        closed[name] = float(np.mean([each.closed for each in rows]))
        kl = np.mean([each.kl for each in rows])
        cells.append([name, _spread([r.closed for r in rows]), _spread([r.reward for r in rows]), f"{kl:.2f}"])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]
    seeds = len({each.seed for each in found.trained})
    options = "".join(f", {name} {value:g}" for name, value in found.options.items())
    runs = f"{plural(seeds, 'seed')} of {found.steps} steps"
    about = f"{found.function} is {found.kind}{options}. KL weight {found.beta:g}; {runs}."
    return "\n".join([about, "", *lines, "", _verdict(found, closed, names)])


def _verdict(found: Check, closed: Mapping[str, float], names: Sequence[str]) -> str:
    own, *others = names
    rewards = [each.reward for each in found.trained if each.name == own]
    if not found.learns:
        fell = "fell. Is a sign the wrong way round?" if max(rewards) < 0 else "did not rise with every seed."
        return f"{own} does not learn: the expected reward {fell}"
    if closed[own] <= 0:
        return f"{own} raises the reward, but pays more KL for it than it is worth at this weight: no regret is closed."
    best = max(others, key=lambda name: closed[name])
    return f"{own} learns: it closes {closed[own]:.0%} of the regret to the exact optimum, {best} {closed[best]:.0%}."


def _spread(values: Sequence[float]) -> str:
    mean = f"{np.mean(values):.0%}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.0%} to {max(values):.0%})"


def _shared(prompts: str, setting: Setting | None = None) -> dict[str, Any]:
    """The sections that every configuration has. What a run reads and writes is not read here."""
    if setting is None:
        return {"model": {"path": "unused"}, "data": DataConfig("unused"), "out": "unused"}
    return {
        "model": setting.model,
        "data": DataConfig(prompts, max_length=16),
        "out": "unused",
        "train": TrainConfig(batch_size=len(setting.world.prompts), seed=setting.seed),
    }
