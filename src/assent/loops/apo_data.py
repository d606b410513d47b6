"""What adversarial preference optimisation learns from and is measured on: golden answers, one row a prompt, and pairs;
each with its held-out part, as assent's own rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from assent.config import ApoConfig, DataConfig
from assent.data.dataset import prompt_hash, prompt_id
from assent.data.formats import load_examples, to_row
from assent.data.formats.fields import same_answer
from assent.data.jsonl import json_line
from assent.data.records import Binary, Example, Response
from assent.data.views import Projected, pair_view, sft_view
from assent.distributed import on_main
from assent.errors import DataError
from assent.outputs import write_text

TRAIN_GOLDEN, HELD_GOLDEN = "golden.jsonl", "golden_held_out.jsonl"
TRAIN_PAIRS, HELD_PAIRS = "pairs.jsonl", "pairs_held_out.jsonl"


def write_data(config: ApoConfig, folder: Path) -> dict[str, float]:
    """Writes the four files into `folder` (without held-out pairs where there are none), and counts their rows. Every
    rank may call it. Raises DataError for files without golden answers or pairs, or with too many bad rows, and where
    nothing would be held out or trained on."""

    def write() -> dict[str, float]:
        data, share = config.data, config.data.eval_fraction
        golden, held_golden = _parts(data.train, data.eval, share, sft_view, data)
        bare = DataConfig(config.pairs, strict=data.strict, max_bad=data.max_bad)
        pairs, held_pairs = _parts(config.pairs, config.pairs_eval, share, pair_view, bare)
        files = {
            TRAIN_GOLDEN: by_prompt(golden),
            HELD_GOLDEN: by_prompt(held_golden),
            TRAIN_PAIRS: pairs,
            HELD_PAIRS: held_pairs,
        }
        for name, flag in ((TRAIN_GOLDEN, "--data.train"), (HELD_GOLDEN, "--data.eval"), (TRAIN_PAIRS, "--pairs")):
            if not files[name]:
                raise DataError(
                    f"{flag}: of the prompts of {data.train if flag != '--pairs' else config.pairs}, the share "
                    f"--data.eval_fraction {share:g} leaves none for {name}. Change it, or give what is held out as a "
                    "file (--data.eval, --pairs_eval)."
                )
        folder.mkdir(parents=True, exist_ok=True)
        for name, examples in files.items():
            if examples:
                write_text(folder / name, "".join(json_line(to_row(example)) for example in examples))
        return {name.removesuffix(".jsonl"): len(examples) for name, examples in files.items()}

    return on_main(write)


def _parts(
    file: str, held_out: str | None, share: float, view: Callable[[Sequence[Example]], Projected], options: DataConfig
) -> tuple[list[Example], list[Example]]:
    """What is trained on, and what is held out: the rows of `held_out`, or else the prompts of a hash below `share`."""
    rows = _usable(file, view, options)
    if held_out is not None:
        return rows, _usable(held_out, view, options)
    return [each for each in rows if prompt_hash(each) >= share], [each for each in rows if prompt_hash(each) < share]


def _usable(file: str, view: Callable[[Sequence[Example]], Projected], options: DataConfig) -> list[Example]:
    """The rows of a file. Raises DataError where too many are bad."""
    loaded = load_examples(
        file, format=options.format, columns=options.columns, split=options.split, limit=options.limit
    )
    examples, unfit = view(loaded.examples)
    faults = [problem for problem in (*loaded.problems, *unfit) if problem.fault]
    if faults and (options.strict or len(faults) > options.max_bad * loaded.num_rows):
        listed = "\n".join(f"  {problem}" for problem in faults[:10])
        raise DataError(
            f"{file}: {len(faults)} of {loaded.num_rows} rows cannot be used, more than --data.max_bad "
            f"{options.max_bad:g} or --data.strict allows.\n{listed}"
        )
    return [example for example in examples if example.prompt]


def by_prompt(examples: Sequence[Example]) -> list[Example]:
    """One example for each prompt, with all its answers, different ones; where there are several, all are desirable."""
    found: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        found[prompt_id(example)].append(example)
    made = []
    for same in found.values():
        answers: list[Response] = []
        for example in same:
            answers += [each for each in example.responses if not any(same_answer(each, one) for one in answers)]
        labels = tuple(Binary(index, True) for index in range(len(answers))) if len(answers) > 1 else ()
        made.append(replace(same[0], responses=tuple(answers), feedback=labels))
    return made
