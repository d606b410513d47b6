"""Measures of docs/evaluation.md on the answers that a run samples at its evaluations."""

from __future__ import annotations

from collections.abc import Sequence

from assent.algorithms.answers import prompt_columns
from assent.config import MeasuresConfig
from assent.data.records import Example
from assent.errors import ConfigError
from assent.measures.aggregate import of_column, of_statistic
from assent.measures.answers import Answers
from assent.measures.shapes import NEEDS, Each, Need, Whole
from assent.measures.table import required

FLAG = "--eval.measures"


def wanted(options: MeasuresConfig) -> tuple[Each | Whole, ...]:
    """The rows of the table that a run asks for. Raises ConfigError for a name that is none, for what is no number of
    one policy's answers, for a package that is missing, and for a best one without a direction that is better."""
    rows = []
    for name in options.measures:
        row = required(name, FLAG)
        if not isinstance(row, Each | Whole):
            raise ConfigError(
                f"{FLAG} {name}: it is not a number of the answers of one policy alone, which is what there is during "
                "training. assent eval measures it."
            )
        if name == options.best and row.better is None:
            raise ConfigError(f"--eval.best {name}: neither more of it nor less is better. Choose another measure.")
        rows.append(row)
    return tuple(rows)


class Measures:
    """The measures of a run on answers to `examples`. `reference` says whether their log-probs by a reference
    are known.

    Raises ConfigError where a measure needs what is not there."""

    def __init__(self, rows: Sequence[Each | Whole], examples: Sequence[Example], *, reference: bool) -> None:
        self.rows = tuple(rows)
        self.prompts = prompt_columns([[example] for example in examples], "the held-out data")
        there: dict[Need, bool] = dict.fromkeys(("tokens", "finished", "log_prob", "entropy"), True)
        there |= {"reference": reference, "references": any(self.prompts.references), "kinds": any(self.prompts.kinds)}
        for row in self.rows:
            if lack := next((need for need in row.needs if not there.get(need, False)), None):
                raise ConfigError(
                    f"{FLAG} {row.name} needs {NEEDS[lack]}. The held-out data and the options give none."
                )

    def __call__(self, answers: Answers) -> dict[str, float]:
        """`eval/NAME` with the bounds of its 95 % interval, `_low` and `_high`, where there are any; and `_failed`, how
        many answers it could not be had of, which are left out. A measure that could be had of none is not there."""
        metrics: dict[str, float] = {}
        for row in self.rows:
            found = (
                of_column(row, row.of(answers), answers)
                if isinstance(row, Each)
                else of_statistic(row, row.prepare(answers), answers)
            )
            bounds = {"": found.number.value, "_low": found.number.low, "_high": found.number.high}
            metrics |= {f"eval/{row.name}{part}": value for part, value in bounds.items() if value is not None}
            metrics[f"eval/{row.name}_failed"] = float(sum(found.failures.values()))
        return metrics
