"""How rewards become advantages, or sides of a comparison: one row for each estimator. What a method needs besides
sampled responses (a critic, the most likely response, several responses to a prompt) follows from its row. Nothing
heavy is imported here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Need = Literal["critic", "greedy", "groups"]


@dataclass(frozen=True, slots=True)
class Estimator:
    """`function` is a name in `assent.losses.ADVANTAGES`. Its tensors are token_rewards [N] or rewards [S], values [N],
    greedy [S], response [N] and prompt [S]; it gives [N] or [S]. Where answers are compared it gives the side of
    each: 1 preferred, -1 not, 0 neither."""

    function: str
    words: str
    needs: frozenset[Need] = frozenset()

    @property
    def by_token(self) -> bool:
        """Whether it reads the rewards of tokens; others read those of whole responses."""
        return not self.needs & {"groups", "greedy"}


ESTIMATORS: Mapping[str, Estimator] = {
    "gae": Estimator(
        function="gae",
        words="generalised advantage estimation over the critic's values",
        needs=frozenset({"critic"}),
    ),
    "return": Estimator(
        function="discounted_returns",
        words="all rewards still to come",
    ),
    "group": Estimator(
        function="group_advantages",
        words="each response against the mean of its prompt's",
        needs=frozenset({"groups"}),
    ),
    "leave_one_out": Estimator(
        function="leave_one_out",
        words="each response against the mean of the others to its prompt",
        needs=frozenset({"groups"}),
    ),
    "greedy": Estimator(
        function="greedy_baseline",
        words="each response against the prompt's most likely one",
        needs=frozenset({"greedy"}),
    ),
    "pair": Estimator(
        function="best_and_worst",
        words="the best response of a prompt against its worst, as a pair",
        needs=frozenset({"groups"}),
    ),
    "label": Estimator(
        function="desirability",
        words="each response above or below a level, as a label",
        needs=frozenset({"groups"}),
    ),
}
