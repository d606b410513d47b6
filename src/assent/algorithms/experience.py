"""Rollouts ready to be trained on: prompts are asked, answers scored, rewards shaped and credited to tokens."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from assent.algorithms.credit import credit, no_signal
from assent.algorithms.given import hinted, row_trees, sampled_only, with_given
from assent.algorithms.models import Models, Reader
from assent.algorithms.prompts import Prompts, difficulty
from assent.algorithms.rollouts import (
    GIVEN,
    attach,
    describe,
    drift,
    pack_state,
    response_field,
    unpack_state,
)
from assent.algorithms.sampling import Ask, Sampler
from assent.algorithms.scored import Notes, Rewarded, means, note, require_finite, rewarded
from assent.algorithms.shaping import Shaper
from assent.data.formats import message_row
from assent.data.records import Example
from assent.data.tree import TokenTree
from assent.deferred import Deferred
from assent.errors import DataError, UserError
from assent.methods import METHODS
from assent.online import OnlineConfig, method_of
from assent.rewards.group import GroupReward, Progress, RewardError
from assent.statistics import mean_interval
from assent.train.finite import require_numbers
from assent.train.measured import Each, Evaluation
from assent.train.session import Session

log = logging.getLogger(__name__)

EVAL_SEED = 1 << 40
"""Evaluations sample with a seed of their own, the same each time."""
ROUNDS = 4
"""Most times that a rollout asks further prompts, where it wants groups with signal."""
SILENCE = 10
"""Rollouts in a row without any signal after which a person is told."""


@dataclass(slots=True)
class Asked:
    """Prompts that were asked: `trees` are the answers (of training, then greedy ones, then hinted ones, where the
    method has them), None until they are there; `seconds` is how long it took."""

    indices: np.ndarray
    trees: list[list[TokenTree]] | None = None
    seconds: float = 0.0


Groups = list[tuple[int, TokenTree]]
"""Prompts by number, with their scored answers."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """Trees with advantages, and what the logs get."""

    trees: list[TokenTree]
    metrics: dict[str, float]
    samples: tuple[dict[str, object], ...]


class Experience:
    """The state between rollouts: the queue of prompts, moments of rewards, and what was asked but not used yet.
    `step`, the number of optimiser steps taken, is kept by whoever trains."""

    def __init__(
        self,
        session: Session,
        models: Models,
        source: GroupReward,
        sampler: Sampler,
        examples: Sequence[Example],
        config: OnlineConfig,
    ) -> None:
        self.session, self.source, self.sampler = session, source, sampler
        self.reader = Reader(models, config, session.world)
        self.examples, self.config = examples, config
        self.row = METHODS[method_of(config)]
        self.options: Mapping[str, Any] = vars(config.loss)  # type: ignore[attr-defined]
        chat, column, longest = session.chat, config.curriculum.column, config.sampling.max_new_tokens
        self.prompt_ids = [chat.prompt_ids(example) for example in examples]
        hardness = None if column is None else difficulty(examples, column)
        self.prompts = Prompts(len(examples), config.curriculum, config.train.seed, hardness)
        self.shaper = Shaper(config.shaping, longest)
        wants_rows = config.given.source == "row" or config.shaping.baseline == "row"
        self.rows = row_trees(chat, examples, longest) if wants_rows else []
        if wants_rows and not any(self.rows):
            raise DataError(
                f"{config.data.train}: no row has an answer of at most {longest} tokens, which --given.source row and "
                "--shaping.baseline row ask for. See: assent data FILE"
            )
        self.row_rewards = np.full(len(examples), np.nan)
        self.hints = self._hints() if config.given.source == "hint" else []
        self.number = 0
        self.step = 0
        self.asked: Asked | None = None
        self.silent = 0

    def _hints(self) -> list[np.ndarray | None]:
        room = self.config.data.max_length - self.config.sampling.max_new_tokens
        hints = hinted(self.session.chat, self.examples, self.config.given.hint or "", room)
        without = sum(hint is None for hint in hints)
        count = f"{self.config.data.train}: {without} of {len(hints)} prompts"
        told = f"{count} have more than {room} tokens with --given.hint"
        if without == len(hints):
            raise DataError(
                f"{told} (--data.max_length less --sampling.max_new_tokens). Shorten the hint, or raise the former."
            )
        if without:
            log.warning(f"{told} and get no hint")
        return hints

    # ---- asking

    def _asks(self, indices: np.ndarray, number: int = 0) -> list[Ask]:
        """What the engine is asked about these prompts: `number` tells the rounds of one rollout apart."""
        config, prompts, seed = self.config, [self.prompt_ids[i] for i in indices], self._seed(number)
        asks = [Ask(prompts, config.rollout.responses, seed)]
        if self.row.advantage == "greedy":
            asks.append(Ask(prompts, 1, seed, temperature=0.0))
        if self.hints:
            told = [hint for i in indices if (hint := self.hints[i]) is not None]
            asks += [Ask(told, 1, self._seed(number, ROUNDS))] if told else []
        return asks

    def _seed(self, *numbers: int) -> int:
        """A seed for each rollout of each run and each of its rounds; neighbouring run seeds share none."""
        entropy = (self.config.train.seed, self.number, *(number for number in numbers if number))
        return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)

    def _next(self) -> np.ndarray:
        return self.prompts.next(self.config.train.batch_size)

    def sample(self) -> None:
        """Sees to it that there are answers to the next prompts: those that are being sampled, or new ones."""
        begun = time.perf_counter()
        if self.asked is None:
            self.asked = Asked(self._next())
        if self.asked.trees is None:
            new = not self.sampler.busy
            self.asked.trees = self.sampler.sample(self._asks(self.asked.indices)) if new else self.sampler.finish()
        self.asked.seconds = time.perf_counter() - begun

    def look_ahead(self) -> None:
        """Begins to sample the rollout after this one."""
        if self.config.rollout.ahead:
            self.asked = Asked(self._next())
            self.sampler.begin(self._asks(self.asked.indices))

    # ---- a rollout

    def make(self, kl_coef: float, *, keep: bool = False) -> Rollout:
        """`keep` is that of `Reader.read`. Raises UserError where a source of rewards gives up; the answers are kept,
        and scored when this is called again."""
        self.sample()
        asked, sampled = self.asked, time.perf_counter()
        assert asked is not None
        before = self.prompts.state_dict()
        try:
            seen, found, metrics, notes = self._scored(asked)
            indices, trees = np.array([i for i, _ in found]), [tree for _, tree in found]
            given = self._given(indices, asked) if self.config.given.source != "none" else None
            baseline, greedy = self._baseline(indices), self._greedy(indices, asked)
        except UserError:
            self.prompts.load_state_dict(before)
            raise
        self.prompts.record([i for i, _ in seen], [tree.per_response["reward"] for _, tree in seen])
        if given is not None:
            trees, metrics["given"] = with_given(self.config.given, trees, given)
        trees = [replace(tree, key=key) for key, tree in enumerate(trees)]
        trees = self.reader.read(trees, policy=self.reader.needs_old, critic=True, keep=keep)
        metrics |= describe(sampled_only(trees))
        self.shaper.learn(trees, baseline)
        trees = self.shaper.shape(trees, baseline)
        if greedy is not None:
            trees = _against(trees, self.shaper.shape(greedy, baseline))
        trees, credited = credit(trees, self.config, kl_coef)
        require_finite(trees, [self.examples[i] for i in indices], "shaped", "advantages", "returns")
        metrics |= credited | {"rollout": float(self.number + 1), "passes": float(self.prompts.passes)}
        if self.config.curriculum.rest:
            metrics["resting"] = self.prompts.resting
        require_numbers(f"rollout {self.number + 1}", metrics, "Lower --optim.lr, or look at the rewards and the KL.")
        self._watch(metrics)
        metrics |= {"time/sample": asked.seconds, "time/score": time.perf_counter() - sampled}
        shown = self.config.rollout.show
        samples = self.samples(trees[:shown], [self.examples[i] for i in indices[:shown]], notes)
        self.number, self.asked = self.number + 1, None
        return Rollout(trees, metrics, tuple(samples))

    def _scored(self, asked: Asked) -> tuple[Groups, Groups, dict[str, float], Notes]:
        """All groups that were scored; of these what is trained on: with signal only, where the method wants that; and
        what the sources say beside rewards."""
        size, dynamic = self.config.train.batch_size, self.options.get("dynamic", False)
        seen, found = Groups(), Groups()
        missing: Counter[str] = Counter()
        said: list[Rewarded] = []
        unscored, total = 0, 0
        for number in range(ROUNDS if dynamic else 1):
            now = asked if number == 0 else self._further(number)
            assert now.trees is not None
            said.append(made := self._rewarded(now.trees[0], now.indices))
            trees = made.trees
            missing.update(made.failures)
            total += len(now.indices) * self.config.rollout.responses
            unscored += len(now.indices) * self.config.rollout.responses - sum(len(tree.branches) for tree in trees)
            scored = [(int(i), tree) for i, tree in zip(now.indices, trees, strict=True) if tree.branches]
            silent = no_signal([tree for _, tree in scored]) if dynamic else np.zeros(len(scored), bool)
            seen += scored
            found += [pair for pair, quiet in zip(scored, silent, strict=True) if not quiet]
            if len(found) >= size:
                break
        reasons = _listed(missing)
        if unscored:
            log.warning(f"rollout {self.number + 1}: {unscored} of {total} answers have no reward ({reasons})")
        if not seen:
            raise RewardError(f"rollout {self.number + 1}: not one of {total} answers could be scored ({reasons}).")
        if not found:
            log.warning(f"rollout {self.number + 1}: no group of {ROUNDS * size} had answers of different rewards")
        metrics = {"unscored": unscored / total, **means([made.metrics for made in said])}
        return seen, (found or seen)[:size], metrics, {at: row for made in said for at, row in made.notes.items()}

    def _further(self, number: int) -> Asked:
        indices = self._next()
        return Asked(indices, self.sampler.sample(self._asks(indices, number)))

    def _rewarded(self, trees: Sequence[TokenTree], indices: Sequence[int] | np.ndarray) -> Rewarded:
        return rewarded(self.source, trees, [self.examples[i] for i in indices], self.session.chat, self.progress)

    @property
    def progress(self) -> Progress:
        """Where the run stands."""
        rollouts = -(-len(self.examples) // self.config.train.batch_size)
        steps = rollouts * self.config.rollout.epochs * self.config.rollout.minibatches
        return Progress(self.step, self.session.total_steps(steps), steps)

    def _given(self, indices: np.ndarray, asked: Asked) -> list[TokenTree | None]:
        """A scored answer from elsewhere for each prompt, where there is one."""
        if self.config.given.source == "row":
            candidates = [self.rows[i] for i in indices]
        else:
            assert asked.trees is not None
            told = [i for i in asked.indices.tolist() if self.hints[i] is not None]
            found = dict(zip(told, asked.trees[-1], strict=True)) if told else {}
            candidates = [
                None if i not in found else replace(found[i], prompt=self.prompt_ids[i]) for i in indices.tolist()
            ]
        there = [number for number, tree in enumerate(candidates) if tree is not None]
        trees = self._rewarded([candidates[n] for n in there], indices[there]).trees if there else []
        scored: dict[int, TokenTree] = dict(zip(there, trees, strict=True))
        return [scored.get(number) for number in range(len(indices))]

    def _baseline(self, indices: np.ndarray) -> np.ndarray:
        """What `shaping.baseline` subtracts for each of these prompts, [P]."""
        kind = self.config.shaping.baseline
        if kind == "running":
            return self.prompts.means()[indices]
        if kind == "row":
            new = [i for i in dict.fromkeys(indices.tolist()) if np.isnan(self.row_rewards[i])]
            trees = [tree for i in new if (tree := self.rows[i]) is not None]
            known = [i for i in new if self.rows[i] is not None]
            scored = self._rewarded(trees, known).trees if trees else []
            self.row_rewards = self.row_rewards.copy()  # a state may hold it as it was
            self.row_rewards[new] = 0.0
            for i, tree in zip(known, scored, strict=True):
                if tree.branches:
                    self.row_rewards[i] = tree.per_response["reward"][0]
            return self.row_rewards[indices]
        return np.zeros(len(indices))

    def _greedy(self, indices: np.ndarray, asked: Asked) -> list[TokenTree] | None:
        """Each prompt's most likely answer, scored, where answers are compared with that."""
        if self.row.advantage != "greedy":
            return None
        assert asked.trees is not None
        found = dict(zip(asked.indices.tolist(), self._rewarded(asked.trees[1], asked.indices).trees, strict=True))
        best = [found[i] for i in indices.tolist()]
        if any(not tree.branches for tree in best):
            raise RewardError(f"rollout {self.number + 1}: the most likely answer to a prompt could not be scored.")
        return best

    def _watch(self, metrics: Mapping[str, float]) -> None:
        self.silent = self.silent + 1 if metrics.get("no_signal") == 1.0 else 0
        if self.silent == SILENCE:
            log.warning(
                f"rollout {self.number + 1}: for {SILENCE} rollouts all answers to a prompt were worth the same, so "
                "nothing is learnt. Are the prompts too easy or too hard, or the rewards constant?"
            )

    # ---- state, samples, evaluation

    def state_dict(self) -> dict[str, Any]:
        asked = self.asked
        trees = Deferred(lambda: None if asked is None else self._kept(asked))
        return {
            "number": self.number,
            "prompts": self.prompts.state_dict(),
            "shaper": self.shaper.state_dict(),
            "row_rewards": self.row_rewards if self.config.shaping.baseline == "row" else None,
            "silent": self.silent,
            "asked": None if asked is None else {"indices": asked.indices, "trees": trees},
        }

    def _kept(self, asked: Asked) -> list[dict[str, Any]] | None:
        """The answers; None for such as did not come in time, whose prompts are then asked again."""
        if asked.trees is None:
            asked.trees = self.sampler.finish_in_time()
        if asked.trees is None:
            log.warning(
                f"Answers to {len(asked.indices)} prompts were still being sampled, and are given up: a continued run "
                "samples them anew, by the policy as it then is."
            )
        return None if asked.trees is None else [pack_state(trees) for trees in asked.trees]

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.number, self.silent = int(state["number"]), int(state["silent"])
        self.prompts.load_state_dict(state["prompts"])
        self.shaper.load_state_dict(state["shaper"])
        if state["row_rewards"] is not None:
            self.row_rewards = np.array(state["row_rewards"])
        if (asked := state["asked"]) is not None:
            trees = asked["trees"]
            kept = None if trees is None else [unpack_state(part) for part in trees]
            self.asked = Asked(np.array(asked["indices"]), kept)

    def samples(self, trees: Sequence[TokenTree], prompts: Sequence[Example], notes: Notes) -> list[dict[str, object]]:
        """Rows for samples.jsonl."""
        return [
            {
                "prompt": [message_row(message) for message in example.prompt],
                "response": self.session.chat.decode(
                    branch.ids, tree.prompt, finished=bool(tree.per_response["finished"][i])
                ),
                **{
                    name: float(values[i])
                    for name, values in tree.per_response.items()
                    if name == "reward" or name.startswith("reward/")
                },
                **({"advantage": float(a.mean())} if (a := branch.per_token.get("advantages")) is not None else {}),
                **({"given": bool(g[0])} if (g := branch.per_token.get(GIVEN)) is not None else {}),
                **drift(branch),
                "length": len(branch),
                "finished": bool(tree.per_response["finished"][i]),
                **note(notes, tree, branch),
            }
            for tree, example in zip(trees, prompts, strict=True)
            for i, branch in enumerate(tree.branches)
        ]

    def evaluate(self, examples: Sequence[Example]) -> Evaluation:
        """One answer of the policy to each held-out prompt, sampled as in training."""
        if self.sampler.busy:
            self.sample()
        prompts = [self.session.chat.prompt_ids(example) for example in examples]
        (trees,) = self.sampler.sample([Ask(prompts, 1, EVAL_SEED)])
        trees, missing, said, notes = rewarded(self.source, trees, examples, self.session.chat, self.progress)
        rewards = {n: (float(tree.per_response["reward"][0]), 1.0) for n, tree in enumerate(trees) if tree.branches}
        there = [(tree, example) for tree, example in zip(trees, examples, strict=True) if tree.branches]
        if not there:
            raise RewardError(f"evaluation: not one of {len(examples)} answers could be scored ({_listed(missing)}).")
        trees = self.reader.read([tree for tree, _ in there], policy=True)
        metrics = {f"eval/{name}": value for name, value in (describe(trees) | means([said])).items()}
        interval = mean_interval(response_field(trees, "reward").tolist())
        metrics |= {"eval/reward_low": interval.low, "eval/reward_high": interval.high}
        metrics["eval/unscored"] = 1 - len(there) / len(examples)
        samples = self.samples(trees, [example for _, example in there], notes)
        return Evaluation(metrics, samples, Each.of(rewards, len(examples)))


def _against(trees: Sequence[TokenTree], others: Sequence[TokenTree]) -> list[TokenTree]:
    """The trees with `baseline`: the shaped reward of the one answer to the same prompt in `others`."""
    return [
        attach(tree, {}, {"baseline": np.repeat(other.per_response["shaped"], len(tree.branches))})
        for tree, other in zip(trees, others, strict=True)
    ]


def _listed(failures: Mapping[str, int]) -> str:
    return ", ".join(f"{reason}: {number}" for reason, number in failures.items())
