"""`assent apo`: adversarial preference optimisation (arXiv 2311.08045), reward model and policy in turns.

    data/                   golden.jsonl and pairs.jsonl to train on, and what is held out of them
    round-1/held_out.jsonl  the policy's answers to held-out prompts of golden answers
    round-1/before.json     what the reward model of the round before says of these, and of held-out pairs
    round-1/answers.jsonl   the policy's answers to the other prompts of golden answers
    round-1/reward/         run: golden answers over the policy's, pairs, and the KL to the one before
    round-1/after.json      what it says of what is held out
    round-1/labelled.jsonl, chosen.jsonl
                            what the policy learns from, unless it samples by itself
    round-1/policy/         run

and so on; behind the last round held_out.jsonl and before.json once more, of the policy as it is then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from assent.config import ApoConfig, RunConfig, SourceConfig, settings
from assent.config.apo import REWARD_DEFAULTS, TAKEN_OF_POLICY, TAKEN_OF_REWARD
from assent.config.composed import composed
from assent.config.training import TRAINERS
from assent.distributed import on_main
from assent.errors import ConfigError, DataError
from assent.evaluate.scores import gold
from assent.loops.apo_data import HELD_GOLDEN, HELD_PAIRS, TRAIN_GOLDEN, TRAIN_PAIRS, write_data
from assent.loops.chosen import choose_from
from assent.loops.labelled import label
from assent.loops.loop import Loop, Numbers, here, opened, seed_of
from assent.loops.sampled import sample
from assent.loops.told_apart import at_chance, held_out, told_apart
from assent.models.mixtures import output_names
from assent.models.reward_head import shown
from assent.models.sources import resolve


def apo(config: ApoConfig) -> Path:
    """Trains in turns; gives the folder of the policy at the end. `config.out` is the folder of the loop.

    Raises ConfigError and DataError for what cannot be, before anything is sampled; DataError where no answer of a
    round came to an end, or the reward model prefers nothing."""
    with opened("apo", config) as loop:
        turns = Turns(config, loop)
        on_main(turns.check)
        return turns.take()


class Turns:
    """The rounds of a loop."""

    def __init__(self, config: ApoConfig, loop: Loop) -> None:
        self.config, self.loop, self.data = config, loop, loop.folder / "data"

    def check(self) -> None:
        """Raises ConfigError for options that cannot be, before the first round."""
        config = self.config
        names = output_names(resolve(config.reward_model, None))
        if not names:
            raise ConfigError(f"--reward_model {config.reward_model} has no reward head. Train one with: assent reward")
        if len(names) > 1 and "reward.output" not in config.reward_options:
            raise ConfigError(
                f"--reward_model {config.reward_model} has {len(names)} outputs ({shown(names)}), and golden answers "
                "train one. Say which: --reward_options reward.output:NAME"
            )
        if config.scorer is not None:
            gold(config.scorer, ())
        nowhere = self.loop.folder
        self.reward_run(1, nowhere, nowhere)
        self.policy_run(1, config.model.path, nowhere, nowhere)

    def take(self) -> Path:
        """All rounds; the policy at the end."""
        config, loop = self.config, self.loop
        self.prepare()
        policy, reward = config.model.path, config.reward_model
        for number in range(1, config.rounds + 1):
            place = f"round-{number}"
            self.look(number, policy, reward)
            answers = self.sample(f"{place}/answers.jsonl", policy, self.data / TRAIN_GOLDEN, number)
            reward = self.refresh(number, reward, answers)
            after = self.judge(f"{place}/after.json", number, reward)
            loop.say(f"[round {number} of {config.rounds}] reward model: {sentence(after)}")
            if config.stop and at_chance(after):
                loop.say(
                    f"[round {number} of {config.rounds}] The reward model tells golden answers from the policy's no "
                    "better than by chance, so the loop ends here (--stop)."
                )
                break
            policy = str(self.improve(number, policy, reward, answers))
        else:
            self.look(config.rounds + 1, policy, reward)
        loop.say(f"Policy: {policy}. Reward model: {reward}.")
        return Path(policy)

    def prepare(self) -> None:
        """The data of all rounds."""
        config = self.config
        reads = here(config.data.train, config.data.eval, config.pairs, config.pairs_eval)
        self.loop.stage("data", partial(write_data, config), reads=reads)

    # ---- what is measured

    def look(self, number: int, policy: str, reward: str) -> None:
        """The policy's answers to held-out prompts, and what the reward model that it learnt from says of them."""
        place = f"round-{number}"
        self.sample(f"{place}/held_out.jsonl", policy, self.data / HELD_GOLDEN, number)
        found = self.judge(f"{place}/before.json", number, reward)
        when = f"[round {number} of {self.config.rounds}]" if number <= self.config.rounds else "[at the end]"
        self.loop.say(f"{when} {sentence(found)}")

    def judge(self, name: str, number: int, reward: str) -> Numbers:
        golden, pairs = self.data / HELD_GOLDEN, self.data / HELD_PAIRS
        answers = self.loop.folder / f"round-{number}" / "held_out.jsonl"
        config = self.config

        def make(path: Path) -> Mapping[str, float]:
            held = on_main(lambda: held_out(golden, answers, pairs if pairs.exists() else None))
            return told_apart(path, held, self.source(reward), config.scorer, self.loop.world)

        reads = (golden, answers, *here(pairs, reward, config.scorer and config.scorer.rpartition(":")[0]))
        self.loop.stage(name, make, reads=reads, about="what the reward model says of held-out answers")
        return self.loop.numbers(name)

    def source(self, word: str) -> SourceConfig:
        model = self.config.model
        return SourceConfig(
            (word,),
            max_length=self.config.data.max_length,
            precision=model.precision,
            micro_tokens=self.config.train.micro_tokens,
            trust_remote_code=model.trust_remote_code,
        )

    # ---- what is made

    def sample(self, name: str, policy: str, prompts: str | Path, number: int) -> Path:
        """Answers of the policy. Raises DataError where none came to an end."""
        config = self.config
        path = sample(
            self.loop,
            name,
            model=replace(config.model, path=policy, revision=config.model.revision if number == 1 else None),
            prompts=prompts,
            answers=config.answers,
            sampling=config.sampling,
            engine=config.engine,
            seed=seed_of(config.train.seed, name),
        )
        found = self.loop.numbers(name)
        if found["answers"] == found["unfinished"]:
            raise DataError(
                f"{path}: not one of the policy's answers came to an end (of {found['answers']:,.0f} with a text), so "
                "there is nothing to learn from them. Let it write longer ones (--sampling.max_new_tokens), or begin "
                "with a policy that ends its answers (assent sft)."
            )
        return path

    def refresh(self, number: int, reward: str, answers: Path) -> str:
        """The reward model, trained on golden answers over these, on pairs, and held to the one before."""
        reads = (*here(reward), answers, self.data / TRAIN_GOLDEN, self.data / TRAIN_PAIRS)
        run = self.reward_run(number, reward, answers)
        return str(self.loop.train(f"round-{number}/reward", run, reads=reads))

    def improve(self, number: int, policy: str, reward: str, answers: Path) -> Path:
        """The policy, trained by the reward model."""
        config, loop, place = self.config, self.loop, f"round-{number}"
        if TRAINERS[config.method].is_online:
            learns_from: str | Path = config.prompts or self.data / TRAIN_GOLDEN
        else:
            if config.prompts is not None:
                answers = self.sample(f"{place}/more_answers.jsonl", policy, config.prompts, number)
            labelled = label(loop, f"{place}/labelled.jsonl", answers, self.source(reward))
            seed = seed_of(config.train.seed, place, "choose")
            options = {"answers": config.answers, "round": number, "seed": seed}
            learns_from = choose_from(loop, f"{place}/chosen.jsonl", labelled, config.choose, **options)
        run = self.policy_run(number, policy, reward, learns_from)
        return loop.train(f"{place}/policy", run, reads=here(policy, reward, learns_from))

    def reward_run(self, number: int, reward: str | Path, answers: Path) -> RunConfig:
        shared = self.shared(number, "reward", self.data / TRAIN_PAIRS)
        shared["model"] |= {"path": str(reward), "revision": None, "chat_template": None, "template_kwargs": {}}
        if (self.data / HELD_PAIRS).exists():
            shared["data"]["eval"] = str(self.data / HELD_PAIRS)
        shared["adversarial"] = {"golden": str(self.data / TRAIN_GOLDEN), "samples": str(answers)}
        own = REWARD_DEFAULTS | self.config.reward_options
        return composed("reward", shared, own, flag="--reward_options", taken=TAKEN_OF_REWARD)

    def policy_run(self, number: int, policy: str, reward: str | Path, learns_from: str | Path) -> RunConfig:
        shared = self.shared(number, "policy", learns_from)
        shared["model"] |= {"path": policy, "revision": self.config.model.revision if number == 1 else None}
        shared["rewards"] = {"model": [str(reward)]}
        return composed(self.config.method, shared, self.config.options, taken=TAKEN_OF_POLICY)

    def shared(self, number: int, what: str, file: str | Path) -> dict[str, Any]:
        """The sections of a run, as YAML would have them."""
        plain = settings.plain(self.config)
        found = {name: plain[name] for name in ("model", "optim", "train", "sampling", "engine", "report_to")}
        found["train"]["seed"] = seed_of(self.config.train.seed, number, what)
        limits = {name: plain["data"][name] for name in ("max_length", "long", "strict", "max_bad")}
        return found | {"data": {"train": str(file), **limits}, "out": str(self.loop.folder)}


def sentence(numbers: Numbers) -> str:
    """What was measured, for people."""
    words = {"golden": "golden answers told from samples", "pairs": "held-out pairs", "samples": "samples"}
    said = []
    for name, what in words.items():
        if (right := numbers.get(f"{name}/accuracy")) is not None:
            low, high = (100 * (numbers[f"{name}/accuracy_{side}"] or 0.0) for side in ("low", "high"))
            ece = numbers[f"{name}/ece"]
            said.append(f"{what} {100 * right:.1f} % right ({low:.1f} to {high:.1f}), ECE {ece:.3f}")
    if (gold := numbers.get("policy/gold")) is not None:
        said.append(f"the policy's reward by the scorer {gold:.3f}")
    return "; ".join(said)
