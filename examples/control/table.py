"""From episodes to the table: a run's score, scores on one scale for all tasks, ranks, and the paper's beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from control.training import SETTINGS
from scipy.stats import rankdata, spearmanr

LAST = 100
"""Episodes at the end of a run that count."""


def score(episodes: Sequence[tuple[int, float]], steps: int) -> float:
    """Mean total reward of the last 100 episodes, of those that ended in the last tenth of the run.

    The paper's runs are so long that its last 100 episodes always lie there; a short run's would be most of it.

    episodes  (step it ended at, total reward) of each episode, in order
    steps     length of the run

    Raises ValueError when none ended there.
    """
    last = [reward for end, reward in episodes if end > 0.9 * steps][-LAST:]
    if not last:
        raise ValueError(f"score: no episode ended in the last tenth of {steps:,} steps.")
    return float(np.mean(last))


def normalised(result: Mapping[str, Any]) -> np.ndarray:
    """Scores of one task, [settings, seeds], on the paper's scale: the random policy is 0, the best run 1."""
    scores = np.array([result["scores"][setting.name] for setting in SETTINGS])
    return (scores - result["random"]) / (scores.max() - result["random"])


def markdown(results: Sequence[Mapping[str, Any]]) -> str:
    """The table over all tasks, the agreement with the paper's order, and a table of each task's own scores."""
    seeds = np.mean([normalised(result) for result in results], axis=0)
    ours, spread = seeds.mean(1), seeds.std(1, ddof=1)
    paper = np.array([setting.paper for setting in SETTINGS])
    lines = ["| setting | paper | rank | here | rank | KL |", "|---|--:|--:|--:|--:|--:|"]
    for setting, value, deviation, theirs, rank in zip(SETTINGS, ours, spread, ranks(paper), ranks(ours)):
        kl = np.mean([result["kl"][setting.name] for result in results])
        row = f"{setting.paper:.2f} | {theirs} | {value:.2f} ± {deviation:.2f} | {rank} | {kl:.2g} |"
        lines.append(f"| {setting.name} | {row}")
    alone = ", ".join(f"{correlation(paper, one):.2f}" for one in seeds.T)
    lines += [
        "",
        f"{results[0]['steps']:,} steps a run, {seeds.shape[1]} seeds, {len(results)} tasks. ± is the standard"
        " deviation of the seeds' averages over the tasks; KL is KL(old \\|\\| new) of a segment's update, in nats.",
        f"Spearman's correlation with the paper's scores: {correlation(paper, ours):.2f} (each seed alone: {alone});"
        f" without the first row {correlation(paper[1:], ours[1:]):.2f}.",
        "",
        "Mean total reward on each task ± standard deviation over seeds:",
        "",
        "| setting |" + "".join(f" {result['task']} |" for result in results),
        "|---|" + "--:|" * len(results),
        "| untrained |" + "".join(f" {result['random']:,.1f} |" for result in results),
    ]
    for setting in SETTINGS:
        cells = (np.array(result["scores"][setting.name]) for result in results)
        lines.append(f"| {setting.name} |" + "".join(f" {x.mean():,.1f} ± {x.std(ddof=1):,.1f} |" for x in cells))
    return "\n".join([*lines, ""])


def ranks(values: np.ndarray) -> list[str]:
    """1 for the highest; equal values share the mean of their ranks."""
    return [f"{rank:g}" for rank in rankdata(-values)]


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(spearmanr(a, b).statistic)
