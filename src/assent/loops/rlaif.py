"""What Constitutional AI and RLCD have in common: the runs that are trained, and a round's way from pairs to a reward
model to a policy."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from assent.config import TRAINERS, EvalConfig, OnlineConfig, SamplingConfig, settings
from assent.config.composed import composed
from assent.config.rlaif import RLAIFConfig
from assent.config.sections import keywords
from assent.config.training import START
from assent.data.formats import load_examples, to_row
from assent.data.jsonl import json_line
from assent.data.records import Example, Pair, Ranking
from assent.distributed import on_main
from assent.errors import ConfigError, DataError
from assent.loops.evaluated import evaluate_round
from assent.loops.loop import Loop, here, seed_of
from assent.names import suggestion
from assent.outputs import write_text
from assent.people.asked import write_examples

log = logging.getLogger(__name__)

REWARD, SFT = "reward", "sft"
PROMPTS, CACHE = "prompts.jsonl", "cache"
"""In the loop's folder: what is asked, and what models wrote already."""
PLAIN = {"format": "auto", "columns": {}, "split": "train"}
"""How files are read that the loop itself has written."""


def check_runs(config: RLAIFConfig, names: Sequence[str] = (REWARD,)) -> None:
    """Raises ConfigError for a method that learns from no rewards, and for options of runs that cannot be: before any
    work. `names` are the runs beside that of `config.method`."""
    if config.method not in TRAINERS or not TRAINERS[config.method].is_online:
        online = [name for name, row in TRAINERS.items() if row.is_online]
        raise ConfigError(
            f"--method: '{config.method}' does not learn from rewards.{suggestion(config.method, online)} Known: "
            f"{', '.join(online)}."
        )
    runs = (*names, config.method)
    for option in config.options:
        if option.partition(".")[0] not in runs:
            raise ConfigError(f"--options {option}: begins with none of the runs ({', '.join(runs)}).")
    for name in names:
        of_file(config, name, "data.jsonl", config.model.path, "stage")
    policy(config, config.model.path, "reward", "stage")


def of_file(config: RLAIFConfig, command: str, file: str | Path, model: str | Path, stage: str, **more: Any) -> Any:
    """The run of `assent COMMAND` on a file that the loop has written, from `model`."""
    shared = _shared(config, model, stage)
    shared["data"] |= {**PLAIN, "train": str(file), "eval": None, "eval_fraction": 0.0}
    shared["train"] |= {"eval_every": 0, "final": "last"}
    return _composed(config, command, {**shared, **more})


def policy(config: RLAIFConfig, model: str | Path, reward: str | Path, stage: str) -> OnlineConfig:
    """The run of `config.method` from `model` by a reward model."""
    shared = {**_shared(config, model, stage), "rewards": {"model": [str(reward)]}}
    made: OnlineConfig = _composed(config, config.method, shared)
    return made


def _shared(config: RLAIFConfig, model: str | Path, stage: str) -> dict[str, Any]:
    found = settings.plain(config)
    names = ("model", "data", "optim", "train", "sampling", "engine", "report_to")
    tree: dict[str, Any] = {name: found[name] for name in names}
    tree["model"] = {**tree["model"], "path": str(model)}
    if str(model) != config.model.path:
        tree["model"]["revision"] = None
    tree["train"] = {**tree["train"], "seed": seed_of(config.train.seed, stage)}
    tree["data"] = dict(tree["data"])
    return {**tree, "out": str(Path(config.out) / stage)}


def _composed(config: RLAIFConfig, command: str, shared: Mapping[str, Any]) -> Any:
    own = {
        key: value
        for option, value in config.options.items()
        for run, _, key in [option.partition(".")]
        if run == command
    }
    return composed(command, shared, own, prefix=f"{command}.", taken=("model.path", "data.train"))


# ---- stages


def prompts(loop: Loop, config: RLAIFConfig) -> Path:
    """The rows of `data.train`, read as its options say, in assent's own shape. Numbers: `rows`. Raises DataError."""
    data = config.data

    def write(path: Path) -> Mapping[str, float]:
        loaded = load_examples(data.train, format=data.format, columns=data.columns, split=data.split, limit=data.limit)
        for problem in loaded.problems[:10]:
            log.warning(f"left out: {problem}")
        write_text(path, "".join(json_line(to_row(example)) for example in loaded.examples))
        return {"rows": len(loaded.examples)}

    reads = here(data.train)
    return loop.stage(PROMPTS, lambda path: on_main(lambda: write(path)), reads=reads, about="prompts of all rounds")


def pairs(loop: Loop, name: str, feedback: Path, comparisons: str | None) -> Path:
    """A file of what a reward model learns from: the rows of `feedback` with a comparison, and those of a file of
    comparisons by people. Numbers: rows of each. Raises DataError where there is no comparison by AI at all."""

    def make(path: Path) -> Mapping[str, float]:
        def write() -> Mapping[str, float]:
            ours = [example for example in load_examples(str(feedback)).examples if compares(example)]
            if not ours:
                raise DataError(f"{feedback}: no row says which of two answers is better, so no reward can be learnt.")
            theirs = [] if comparisons is None else [*load_examples(comparisons).examples]
            write_examples([*ours, *theirs], str(path))
            return {"feedback": len(ours), "comparisons": len(theirs)}

        return on_main(lambda: _anew(path, write))

    return loop.stage(name, make, reads=[feedback, *([comparisons] if comparisons else [])])


def joined(loop: Loop, name: str, files: Sequence[str | Path]) -> Path:
    """A file of the rows of several. Numbers: how many of each."""

    def make(path: Path) -> Mapping[str, float]:
        def write() -> Mapping[str, float]:
            found = [load_examples(str(file)).examples for file in files]
            write_examples([example for examples in found for example in examples], str(path))
            return {f"rows {number}": len(examples) for number, examples in enumerate(found, 1)}

        return on_main(lambda: _anew(path, write))

    return loop.stage(name, make, reads=files)


def _anew(path: Path, write: Any) -> Mapping[str, float]:
    """What is there of a stage that was interrupted does not count."""
    path.unlink(missing_ok=True)
    found: Mapping[str, float] = write()
    return found


def compares(example: Example) -> bool:
    """Whether any feedback says which of two answers is better."""
    return any(isinstance(f, Pair) or (isinstance(f, Ranking) and len(f.levels) > 1) for f in example.feedback)


def learnt(config: RLAIFConfig, loop: Loop, number: int, file: Path, model: str | Path, votes: bool) -> Path:
    """The round's reward model from a file of pairs, and the policy from it: its run folder. Where there are held-out
    prompts the policy is evaluated beside the start."""
    place = f"round-{number}"
    stage = f"{place}/{REWARD}"
    more = {"reward": {"votes": True}} if votes else {}
    reward = loop.train(stage, of_file(config, REWARD, file, model, stage, **more), reads=[file, model])
    stage = f"{place}/{config.method}"
    made = loop.train(stage, policy(config, model, reward, stage), reads=[reward, model, config.data.train])
    if config.data.eval is not None:
        _evaluated(config, loop, number, made, reward)
    return made


def _evaluated(config: RLAIFConfig, loop: Loop, number: int, made: Path, reward: Path) -> None:
    options = EvalConfig(
        policies=(f"{START}={config.model.path}", f"round-{number}={made}"),
        prompts=str(config.data.eval),
        out=str(loop.folder),
        baseline=START,
        reference=config.model.path,
        rewards=(f"{REWARD}={reward}",),
        scorer=config.scorer,
        format=config.data.format,
        columns=config.data.columns,
        measures=config.measures,
        answers=config.eval_answers,
        seed=seed_of(config.train.seed, "evaluation"),
        precision=config.model.precision,
        trust_remote_code=config.model.trust_remote_code,
        sampling=SamplingConfig(**keywords(config.sampling)),
    )
    known = loop.folder / f"round-{number - 1}" / "eval" if number > 1 else None
    evaluate_round(loop, f"round-{number}/eval", options, known=known)


def cached(loop: Loop, given: str | None) -> str:
    """The folder of what models wrote already: that of the options, or one in the loop's."""
    return given or str(loop.folder / CACHE)


def local(word: str) -> str | None:
    """The folder in [NAME=]judge=FOLDER; None for a server."""
    _, given, where = word.rpartition("judge=")
    return where if given else None


def again(path: Path) -> bool:
    """Whether a stage is done again: what it wrote is written anew, from the cache."""
    return path.exists()
