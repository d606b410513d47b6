"""One rollout after the other: which prompts are next, what is sampled to them, and the stages that make it ready to be
trained on."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from assent.algorithms.drift import DriftSeries
from assent.algorithms.online import demonstrations
from assent.algorithms.online.method import OnlineMethod
from assent.algorithms.online.models import ForwardCache, Models, keeps
from assent.algorithms.online.prompts import Prompts, difficulty
from assent.algorithms.online.samples import means, require_finite, rollout_metrics, rows_of
from assent.algorithms.online.stages import (
    Annotation,
    Scored,
    annotate,
    centred,
    compare,
    credit,
    score,
    shape,
)
from assent.config.online import OnlineConfig
from assent.data.records import Example
from assent.deferred import Deferred
from assent.errors import UserError
from assent.losses import RunningMoments
from assent.rewards.credit import credit_of
from assent.rewards.group import GroupReward, Progress, RewardError
from assent.rollout.rollout import Rollout, beside, joined, rollout_of
from assent.rollout.sampler import Ask, Sampler
from assent.train.finite import require_numbers
from assent.train.session import Session

log = logging.getLogger(__name__)

ROUNDS = 4
"""Most times that a rollout samples further prompts, where it wants no zero-variance groups."""
LAMBDA = 1 << 20
"""Tells the draws of on-policy prompts from those of answers."""
STUCK = 10
"""Rollouts of nothing but zero-variance groups in a row after which a person is warned."""
FAINT = "Lower --optim.lr, or look at the rewards and the KL."


@dataclass(slots=True)
class Pending:
    """The rows of the data that are being sampled to. `found` are the responses (of training, then an opponent's,
    greedy ones, hinted ones, where the method has them), None until they are there; `seconds` is how long it took."""

    rows: np.ndarray
    found: list[Rollout] | None = None
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Made:
    """A rollout with advantages, and what the logs get of it."""

    rollout: Rollout
    metrics: dict[str, float]
    samples: tuple[dict[str, object], ...]


class Rollouts:
    """The state between rollouts: the queue of prompts, the moments of rewards, and what was sampled but not used yet.
    `step`, the number of optimiser steps taken, is kept by whoever trains; `drift` measures what the alarm is told."""

    def __init__(
        self,
        session: Session,
        models: Models,
        source: GroupReward,
        sampler: Sampler,
        examples: Sequence[Example],
        config: OnlineConfig,
        method: OnlineMethod,
    ) -> None:
        self.session, self.models, self.source, self.sampler = session, models, source, sampler
        self.examples, self.config, self.method = examples, config, method
        self.prompt_ids = [session.chat.prompt_ids(example) for example in examples]
        column = config.curriculum.column
        hardness = None if column is None else difficulty(examples, column)
        self.prompts = Prompts(len(examples), config.curriculum, config.train.seed, hardness)
        self.credit = credit_of(source, config.rewards)
        self.moments = RunningMoments()
        self.answers = demonstrations.answers_by_row(session.chat, examples, config)
        self.hints = demonstrations.hints_by_row(session.chat, examples, config)
        self.row_rewards = np.full(len(examples), np.nan)
        self.number = 0
        self.step = 0
        self.pending: Pending | None = None
        self.stuck = 0
        self.drift: DriftSeries | None = None

    # ---- sampling

    def _asks(self, rows: np.ndarray, number: int = 0) -> list[Ask]:
        """What is sampled to these rows: `number` tells the rounds of one rollout apart."""
        rows = rows[self._on_policy(rows)]
        if not len(rows):
            return []
        prompts, seed = [self.prompt_ids[row] for row in rows], self._seed(number)
        others = 0 if self.method.opponent is None else 1
        asks = [Ask(prompts, rows, self.config.rollout.responses - others, seed)]
        if others:  # other numbers than the policy's, whose answers these would be where the two are the same
            asks.append(Ask(prompts, rows, 1, self._seed(number, ROUNDS + 1), opponent=True))
        if self.method.needs_greedy:
            asks.append(Ask(prompts, rows, 1, seed, temperature=0.0))
        hinted = [row for row in rows.tolist() if self.hints and self.hints[row] is not None]
        if hinted:
            hints = [hint for row in hinted if (hint := self.hints[row]) is not None]
            asks.append(Ask(hints, np.array(hinted), 1, self._seed(number, ROUNDS)))
        return asks

    def _seed(self, *numbers: int) -> int:
        """A seed for each rollout of each run and each of its rounds; neighbouring run seeds share none."""
        entropy = (self.config.train.seed, self.number, *(number for number in numbers if number))
        return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)

    def _on_policy(self, rows: np.ndarray) -> np.ndarray:
        """Which of a rollout's rows the policy answers, [P] bool; to the others the data's own answers are learnt."""
        if self.method.distilled is None or self.method.distilled.on_policy == 1:
            return np.ones(len(rows), bool)
        draw = np.random.default_rng(np.random.SeedSequence((self.config.train.seed, self.number, LAMBDA)))
        return draw.random(len(rows)) < self.method.distilled.on_policy

    def _next(self) -> np.ndarray:
        return self.prompts.next(self.config.train.batch_size)

    def sample(self) -> None:
        """Sees to it that there are responses to the next prompts: those that are being sampled, or new ones."""
        begun = time.perf_counter()
        if self.pending is None:
            self.pending = Pending(self._next())
        if self.pending.found is None:
            new = not self.sampler.busy
            self.pending.found = self.sampler.sample(self._asks(self.pending.rows)) if new else self.sampler.finish()
        self.pending.seconds = time.perf_counter() - begun

    def look_ahead(self) -> None:
        """Begins to sample the rollout after this one."""
        if self.config.rollout.ahead:
            self.pending = Pending(self._next())
            self.sampler.begin(self._asks(self.pending.rows))

    # ---- a rollout

    def make(self, kl_coef: float, *, steps: int, warming: bool, cache: ForwardCache) -> Made:
        """The next rollout, for `steps` optimiser steps; `warming`: only the critic learns from it. `cache` gets the
        forward passes that its one step can use again. Raises UserError where a source of rewards gives up; the
        responses are kept, and scored when this is called again."""
        self.sample()
        pending, ready = self.pending, time.perf_counter()
        assert pending is not None and pending.found is not None
        before = self.prompts.state_dict()
        try:
            seen, rollout, metrics = self._scored(pending)
            if self.drift is not None and len(rollout):
                metrics |= self.drift(rollout.sampled(), [self.examples[row] for row in rollout.rows], self.progress)
            demonstrated = self._demonstrations(rollout, pending) if self.config.given.source != "none" else None
            taught = pending.rows[~self._on_policy(pending.rows)]
            rollout = demonstrations.with_answers(rollout, self.prompt_ids, taught, self.answers)
            baseline, greedy = self._baseline(rollout.rows), self._greedy(rollout, pending.found)
        except UserError:
            self.prompts.load_state_dict(before)
            raise
        assert seen.reward is not None
        self.prompts.record(seen.rows, seen.by_prompt(seen.reward))
        if demonstrated is not None:
            rollout, metrics["given"] = demonstrations.with_demonstrations(self.config.given, rollout, demonstrated)
        if self.credit is not None:
            rollout = replace(rollout, credit=self.credit(rollout.trees()))
        rollout, judged = compare(self._shaped(rollout, baseline, greedy), self.method, self.stuck)
        rollout = annotate(rollout, self.models, self._annotation(rollout, steps, warming, cache), self.session.world)
        metrics |= rollout_metrics(rollout.sampled(), rewarded=self.config.rewards.named)
        rollout, used, credited = credit(rollout, self.method, self.config.kl, kl_coef)
        prompts = [self.examples[row] for row in rollout.rows]
        require_finite(rollout, prompts)
        metrics |= judged | credited | {"rollout": float(self.number + 1), "passes": float(self.prompts.passes)}
        if self.config.curriculum.rest:
            metrics["resting"] = self.prompts.skipped
        require_numbers(f"rollout {self.number + 1}", metrics, FAINT)
        self._watch(metrics)
        metrics |= {"time/sample": pending.seconds, "time/score": time.perf_counter() - ready}
        self.number, self.pending = self.number + 1, None
        return Made(replace(used, notes=()), metrics, tuple(self._shown(rollout, prompts)))

    def _scored(self, pending: Pending) -> tuple[Rollout, Rollout, dict[str, float]]:
        """All prompts with a scored response; of these what is trained on: without zero-variance groups, where the
        method wants that."""
        if not pending.found:  # all are learnt from the data's own answers
            nothing = replace(rollout_of((), np.zeros(0), ()), reward=np.zeros(0, np.float32))
            return nothing, nothing, {}
        size, dynamic = self.config.train.batch_size, self.method.dynamic
        seen: list[Rollout] = []
        found: list[Rollout] = []
        failures: Counter[str] = Counter()
        said: list[Mapping[str, Sequence[float]]] = []
        scored, total = 0, 0
        for number in range(ROUNDS if dynamic else 1):
            rollout = self._further(number) if number else self._answers(pending.found)
            made = self._score(rollout)
            said.append(made.metrics)
            failures.update(made.failures)
            total, scored = total + len(rollout), scored + len(made.rollout)
            there = made.rollout.of_prompts(np.flatnonzero(made.rollout.sizes))
            seen.append(there)
            found.append(there.of_prompts(np.flatnonzero(~there.zero_variance)) if dynamic else there)
            if sum(len(one.prompts) for one in found) >= size:
                break
        reasons = counted(failures)
        everything, useful = joined(seen), joined(found)
        if total > scored:
            log.warning(f"rollout {self.number + 1}: {total - scored} of {total} answers have no reward ({reasons})")
        if not everything.prompts:
            raise RewardError(f"rollout {self.number + 1}: not one of {total} answers could be scored ({reasons}).")
        if not useful.prompts:
            log.warning(f"rollout {self.number + 1}: no group of {ROUNDS * size} had answers of different rewards")
        trained = useful if useful.prompts else everything
        metrics = {"unscored": (total - scored) / total, **means(said)}
        return everything, trained.of_prompts(np.arange(min(size, len(trained.prompts)))), metrics

    def _answers(self, found: Sequence[Rollout]) -> Rollout:
        """The policy's answers, and behind them the opponent's."""
        return found[0] if self.method.opponent is None else beside(found[0], found[1])

    def _further(self, number: int) -> Rollout:
        return self.sampler.sample(self._asks(self._next(), number))[0]

    def _score(self, rollout: Rollout) -> Scored:
        return score(rollout, self.source, self.examples, self.session.chat, self.progress)

    @property
    def progress(self) -> Progress:
        """Where the run stands."""
        rollouts = -(-len(self.examples) // self.config.train.batch_size)
        steps = rollouts * self.config.rollout.epochs * self.config.rollout.minibatches
        return Progress(self.step, self.session.total_steps(steps), steps)

    def _demonstrations(self, rollout: Rollout, pending: Pending) -> Rollout:
        """Scored demonstrations, at most one to each prompt of the rollout."""
        if self.config.given.source == "row":
            found = demonstrations.of_rows(self.prompt_ids, rollout.rows, self.answers)
        else:
            hinted = any(self.hints[row] is not None for row in pending.rows)
            found = demonstrations.of_hints(rollout, pending.found[-1] if hinted and pending.found else None)
        return self._score_some(found)

    def _score_some(self, rollout: Rollout) -> Rollout:
        """Scored, though only some of the prompts have a response."""
        there = np.flatnonzero(rollout.sizes)
        if not len(there):
            return rollout
        made = self._score(rollout.of_prompts(there)).rollout
        return replace(made, prompts=rollout.prompts, rows=rollout.rows, prompt=there[made.prompt])

    def _baseline(self, rows: np.ndarray) -> np.ndarray:
        """What `shaping.baseline` subtracts for each of these rows, [P]."""
        kind = self.config.shaping.baseline
        if kind == "running":
            return self.prompts.means()[rows]
        if kind == "row":
            new = [row for row in dict.fromkeys(rows.tolist()) if np.isnan(self.row_rewards[row])]
            made = self._score_some(demonstrations.of_rows(self.prompt_ids, new, self.answers))
            self.row_rewards = self.row_rewards.copy()  # a state may hold it as it was
            self.row_rewards[new] = 0.0
            if made.reward is not None:
                self.row_rewards[made.rows[made.prompt]] = made.reward
            return self.row_rewards[rows]
        return np.zeros(len(rows))

    def _greedy(self, rollout: Rollout, found: Sequence[Rollout]) -> Rollout | None:
        """The most likely response to each prompt of the rollout, scored, where responses are compared with that."""
        if not self.method.needs_greedy:
            return None
        made = self._score(found[1]).rollout
        place = {row: number for number, row in enumerate(made.rows.tolist())}
        best = made.of_prompts([place[row] for row in rollout.rows.tolist()])
        if not best.sizes.all():
            raise RewardError(f"rollout {self.number + 1}: the most likely answer to a prompt could not be scored.")
        return best

    def _annotation(self, rollout: Rollout, steps: int, warming: bool, cache: ForwardCache) -> Annotation:
        """What the models say of it before the first step. Where there is but one step, and no reward or value depends
        on the policy's log-probs, they are those of the step itself: a forward pass less."""
        config, models, train = self.config, self.models, self.config.train
        kl = config.kl
        distilled = self.method.distilled
        in_reward = kl.coef > 0 and (kl.place == "reward" or kl.target is not None)
        in_reward = in_reward or (distilled is not None and not distilled.in_loss)
        compares = self.method.comparison
        before = compares is not None and compares.reads_before(rollout)
        policy = steps > 1 or self.method.ewma is not None or in_reward or models.has_critic or before
        flat, ranks, micro_tokens = not models.tree, self.session.world.size, train.micro_tokens
        kept = (
            policy
            and compares is None
            and keeps(rollout, steps=steps, warming=warming, micro_tokens=micro_tokens, flat=flat, ranks=ranks)
        )
        cache.passes.clear()
        return Annotation(
            config.sampling.temperature,
            micro_tokens,
            policy=policy,
            values=models.has_critic,
            kl=kl.estimator == "full" and (kl.place == "reward" or kept),
            teacher=distilled if distilled is not None and (kept or not distilled.in_loss) else None,
            cache=cache if kept else None,
        )

    def _shaped(self, rollout: Rollout, baseline: np.ndarray, greedy: Rollout | None) -> Rollout:
        """With shaped rewards, by the moments of all rewards so far."""
        config, longest = self.config.shaping, self.config.sampling.max_new_tokens
        if config.normalise == "batch":
            self.moments = RunningMoments()
        if config.normalise != "none":
            self.moments.update(torch.from_numpy(centred(rollout, baseline)))
        rollout = shape(rollout, config, self.moments, baseline, longest)
        if greedy is None:
            return rollout
        best = shape(greedy, config, self.moments, baseline, longest).shaped
        assert best is not None
        return replace(rollout, greedy=best[rollout.prompt])

    def _shown(self, rollout: Rollout, prompts: Sequence[Example]) -> list[dict[str, object]]:
        """Rows of the first prompts, for samples.jsonl."""
        first = rollout.of_prompts(np.arange(min(self.config.rollout.show, len(rollout.prompts))))
        distilled = self.method.distilled
        given = self.config.given.source != "none" or bool(first.demonstration.any())
        given = given or (distilled is not None and distilled.on_policy < 1)
        rewarded = self.config.rewards.named
        return rows_of(first, prompts, self.session.chat, demonstrations=given, rewarded=rewarded)

    def _watch(self, metrics: Mapping[str, float]) -> None:
        self.stuck = self.stuck + 1 if metrics.get("no_signal") == 1.0 else 0
        if self.stuck == STUCK and self.method.comparison is not None:
            raise RewardError(
                f"rollout {self.number + 1}: for {STUCK} rollouts no answers to a prompt could be told apart, and no "
                "step was taken. Are the rewards constant, or does the judge decide nothing?"
            )
        if self.stuck == STUCK:
            log.warning(
                f"rollout {self.number + 1}: for {STUCK} rollouts all answers to a prompt were worth the same, so "
                "nothing is learnt. Are the prompts too easy or too hard, or the rewards constant?"
            )

    # ---- state

    def state_dict(self) -> dict[str, Any]:
        pending = self.pending
        found = Deferred(lambda: None if pending is None else self._kept(pending))
        return {
            "number": self.number,
            "prompts": self.prompts.state_dict(),
            "moments": self.moments.state_dict(),
            "row_rewards": self.row_rewards if self.config.shaping.baseline == "row" else None,
            "stuck": self.stuck,
            "pending": None if pending is None else {"rows": pending.rows, "found": found},
        }

    def _kept(self, pending: Pending) -> list[dict[str, Any]] | None:
        """What was sampled; None for what did not come in time, whose prompts are then sampled to again."""
        found = pending.found
        if found is None:
            found = pending.found = self.sampler.finish_in_time()
        if found is None:
            log.warning(
                f"Answers to {len(pending.rows)} prompts were still being sampled, and are given up: a continued run "
                "samples them anew, by the policy as it then is."
            )
        return None if found is None else [one.state_dict() for one in found]

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.number, self.stuck = int(state["number"]), int(state["stuck"])
        self.prompts.load_state_dict(state["prompts"])
        self.moments.load_state_dict(state["moments"])
        if state["row_rewards"] is not None:
            self.row_rewards = np.array(state["row_rewards"])
        if (pending := state["pending"]) is not None:
            found = pending["found"]
            kept = None if found is None else [Rollout.from_state(one) for one in found]
            self.pending = Pending(np.array(pending["rows"]), kept)


def counted(failures: Mapping[str, int]) -> str:
    """Reasons with their numbers."""
    return ", ".join(f"{reason}: {number}" for reason, number in failures.items())
