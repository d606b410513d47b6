"""What the logs get of a rollout: numbers about the whole, and rows of single responses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from assent.data.chat import Chat
from assent.data.formats import message_row
from assent.data.records import Example
from assent.rewards.group import NonFiniteReward
from assent.rollout.rollout import Rollout

KL_ANCHOR = "kl_anchor"
"""The KL that counts, where it is measured from an average of the policy; "kl" is from the reference always."""
TEACHER = {"reverse": "teacher_kl", "forward": "teacher_kl_forward", "agrees": "teacher_agreement"}
"""What the parts of a `Divergence` from a teacher are called in metrics: means over answers of means over tokens."""


def rollout_metrics(rollout: Rollout, *, rewarded: bool = True) -> dict[str, float]:
    """What people look at first: reward (where answers are `rewarded`), KL from the reference and from the average of
    the policy (nats per answer), entropy and KL from the teacher (nats per token), length. As far as it is known."""
    metrics: dict[str, float] = {}
    if not len(rollout):
        return metrics
    if rewarded and rollout.reward is not None:
        reward = rollout.reward.astype(np.float64)  # float32 could not hold the sum of large ones
        metrics = {"reward": float(reward.mean()), "reward_std": float(reward.std())}
    for name, values in rollout.parts.items():
        if not np.isnan(part := values.astype(np.float64)).all():
            metrics[f"reward/{name}"] = float(np.nanmean(part))  # of a part that abstained from some, the others
    if rollout.old is not None and rollout.reference is not None:
        metrics["kl"] = float(rollout.sums(rollout.old - rollout.reference).mean())
    if rollout.old is not None and rollout.anchor is not None:
        metrics[KL_ANCHOR] = float(rollout.sums(rollout.old - rollout.anchor).mean())
    if rollout.entropy is not None:
        metrics["entropy"] = float(rollout.entropy.mean())
    for column, name in TEACHER.items():
        if (values := getattr(rollout, f"teacher_{column}")) is not None:
            metrics[name] = float((rollout.sums(values) / rollout.lengths).mean())
    metrics["length"] = float(rollout.lengths.mean())
    metrics["unfinished"] = float(1 - rollout.finished.astype(np.float32).mean())
    return metrics


def rows_of(
    rollout: Rollout, examples: Sequence[Example], chat: Chat, *, demonstrations: bool, rewarded: bool = True
) -> list[dict[str, object]]:
    """Rows for samples.jsonl; `examples` [P] are the prompts. `demonstrations`: a row says whether the policy did not
    sample it. Where answers are compared, it says whether it was preferred (None: it is in no comparison)."""
    log_ratio = None if rollout.old is None or rollout.reference is None else rollout.old - rollout.reference
    rows = []
    for i, (ids, start) in enumerate(zip(rollout.answers, rollout.starts, strict=True)):
        prompt, tokens = int(rollout.prompt[i]), slice(start, start + len(ids))
        finished = bool(rollout.finished[i])
        row: dict[str, object] = {
            "prompt": [message_row(message) for message in examples[prompt].prompt],
            "response": chat.decode(ids, rollout.prompts[prompt], finished=finished),
        }
        if rewarded and rollout.reward is not None:
            row["reward"] = float(rollout.reward[i])
        row |= {f"reward/{name}": float(values[i]) for name, values in rollout.parts.items()}
        if rollout.advantages is not None:
            row["advantage"] = float(rollout.advantages[tokens].mean())
        if rollout.side is not None:
            row["preferred"] = {1.0: True, -1.0: False}.get(float(rollout.side[i]))
        if demonstrations:
            row["given"] = bool(rollout.demonstration[i])
        if rollout.teacher_reverse is not None:
            row["teacher_kl"] = float(rollout.teacher_reverse[tokens].mean())
        if log_ratio is not None:
            row["kl"] = float(log_ratio[tokens].sum())
        rows.append(row | {"length": len(ids), "finished": finished} | dict(rollout.notes[i] if rollout.notes else {}))
    return rows


def means(metrics: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, float]:
    """The mean of each metric of the sources of rewards over all that was said."""
    names = dict.fromkeys(name for said in metrics for name in said)
    return {
        f"reward/{name}": float(np.mean([value for said in metrics for value in said.get(name, ())])) for name in names
    }


def require_finite(rollout: Rollout, examples: Sequence[Example]) -> None:
    """Raises NonFiniteReward where a shaped reward, an advantage or a return is not finite: float32 cannot hold what
    was made of a reward. `examples` [P] are the prompts."""
    per_token = {"advantages": rollout.advantages, "returns": rollout.returns}
    columns = {"shaped": (rollout.shaped, np.arange(len(rollout)))}
    columns |= {name: (values, rollout.response) for name, values in per_token.items()}
    for name, (values, response) in columns.items():
        if values is None or np.isfinite(values).all():
            continue
        first = int(np.flatnonzero(~np.isfinite(values))[0])
        answer = int(response[first])
        prompt = int(rollout.prompt[answer])
        number, of = answer - int(np.searchsorted(rollout.prompt, prompt)) + 1, int(rollout.sizes[prompt])
        assert rollout.reward is not None
        raise NonFiniteReward(
            f"{examples[prompt].origin}: answer {number} of {of}: {name} is {values[first]}, made of the reward "
            f"{rollout.reward[answer]:.6g}; expected a number within float32. Rewards, --shaping, --kl.coef and the "
            "critic's values are what it is made of."
        )
