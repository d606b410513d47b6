"""Several objectives under one budget, end to end on a tiny world, and what `assent compare` refuses before it
trains."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from assent.algorithms.reward.pairs import train_reward
from assent.cli import main
from assent.config import (
    CompareConfig,
    DataConfig,
    ModelConfig,
    OptimConfig,
    RewardConfig,
    SamplingConfig,
    TrainConfig,
    settings,
)
from assent.errors import ConfigError, DataError, OutputError, RunFolderError, ShutdownRequested, UserError
from assent.evaluate import compare as module
from assent.evaluate.compare import compare, method_config
from assent.evaluate.results import PolicyTable
from assent.interrupt import Interrupt
from assent.train.log import read_metrics

SCORER = """
def score(prompt, answer):
    assert prompt[-1].role == "user" and prompt[-1].content.startswith("Egg")
    return float(len(answer))

number = 3
"""


@pytest.fixture
def config(tmp_path: Path, tiny_model_dir: Path) -> CompareConfig:
    """DPO and KTO for two steps, on six pairs and two held-out ones."""
    rows = [{"prompt": f"Egg {i}?", "chosen": "Yes, boil it.", "rejected": f"No {i}."} for i in range(8)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:6]))
    (tmp_path / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows[6:], rows[7]]))
    (tmp_path / "gold.py").write_text(SCORER)
    return CompareConfig(
        ModelConfig(str(tiny_model_dir), precision="fp32"),
        DataConfig(str(tmp_path / "train.jsonl"), eval=str(tmp_path / "held.jsonl"), max_length=96),
        str(tmp_path / "out"),
        OptimConfig(lr=1e-2),
        TrainConfig(batch_size=3, max_steps=2),
        methods=("dpo", "kto"),
        scorer=f"{tmp_path / 'gold.py'}:score",
        options={"kto.loss.beta": "0.5", "dpo.probe.prompts": "1"},
        sampling=SamplingConfig(max_new_tokens=6),
        answers=2,
    )


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the runs that were trained."""
    names: list[str] = []
    found = module._function

    def function(target):
        train = found(target)

        def trained(run):
            if Path(run.out).parent.name != module.REHEARSAL:
                names.append(Path(run.out).name)
            return train(run)

        return trained

    monkeypatch.setattr(module, "_function", function)
    return names


def refused(config: CompareConfig, error: type[Exception] = ConfigError) -> str:
    with pytest.raises(error) as caught:
        compare(config)
    return str(caught.value)


# ---- the whole way


def test_every_objective_is_trained_answered_scored_and_reported(config: CompareConfig, trained, capsys):
    report = compare(config)
    out = Path(config.out)
    assert trained == ["dpo", "kto"] and report == out / "report.html"
    table = PolicyTable.load(out / "evaluation.json")
    assert [policy.name for policy in table.policies] == ["start", "dpo", "kto"]
    assert table.baseline == "start" and table.scorers == ("gold",)
    start, dpo, kto = table.policies
    assert [policy.length.n for policy in table.policies] == [4] * 3  # two prompts, the repeated one once
    assert start.kl.mean == 0.0 and abs(dpo.kl.mean) > 0 and table.wins(kto) is not None
    answers = [answer for comparison in table.comparisons for answer in comparison.answers.values()]
    assert answers and all(answer.scores["gold"] == len(answer.text) for answer in answers)
    text = report.read_text()
    assert "2 methods on" in text and ">DPO</span>" in text and ">KTO</span>" in text
    printed = capsys.readouterr()
    assert "dpo" in printed.out and "[3/3] answers of 3 policies to 2 prompts" in printed.err
    beta = {name: yaml.safe_load((out / name / "resolved.yaml").read_text())["loss"]["beta"] for name in trained}
    assert beta == {"dpo": 0.1, "kto": 0.5}


def test_a_reward_model_scores_beside_or_instead(config: CompareConfig, tmp_path: Path):
    reward = RewardConfig(config.model, replace(config.data, eval=None), str(tmp_path / "reward"), train=config.train)
    train_reward(reward)
    both = replace(config, methods=("simpo",), options={}, reward_model=reward.out)
    compare(both)
    table = PolicyTable.load(Path(config.out) / "evaluation.json")
    assert table.by == "gold" and set(table.scorers) == {"gold", "proxy"}
    compare(replace(both, scorer=None, out=str(tmp_path / "alone")))
    alone = PolicyTable.load(tmp_path / "alone" / "evaluation.json")
    assert alone.by == "reward" and alone.scorers == ("reward",)
    assert [p.scores["reward"].mean for p in alone.policies] == [p.scores["proxy"].mean for p in table.policies]


def stopped_in(monkeypatch, trained: list[str], number: int, config: CompareConfig) -> None:
    """Compares, and asks the run of that number to stop when it begins."""
    enter = Interrupt.__enter__

    def stopped(interrupt):
        if len(trained) == number:
            interrupt.requested = True
        return enter(interrupt)

    with monkeypatch.context() as inner, pytest.raises(ShutdownRequested):
        inner.setattr(Interrupt, "__enter__", stopped)
        compare(config)


def test_resume_keeps_what_is_finished_and_goes_on_with_the_rest(config: CompareConfig, trained, monkeypatch):
    longer = replace(config, train=replace(config.train, max_steps=4))

    stopped_in(monkeypatch, trained, 2, longer)
    assert trained == ["dpo", "kto"]
    out = Path(config.out)
    assert (out / "dpo" / "model" / "README.md").is_file() and not (out / "kto" / "model").exists()
    assert "not empty. Continue it with --resume auto" in refused(longer, RunFolderError)
    trained.clear()
    finished = (out / "dpo" / "model" / "model.safetensors").read_bytes()
    compare(replace(longer, resume="auto"))
    for name in ("dpo", "kto"):
        steps = [row["step"] for row in read_metrics(out / name / "metrics.jsonl") if "loss" in row]
        assert steps == [1, 2, 3, 4]
    assert (out / "dpo" / "model" / "model.safetensors").read_bytes() == finished
    assert len(PolicyTable.load(out / "evaluation.json").policies) == 3
    assert not (out / "run.lock").exists()


def test_a_finished_run_of_other_data_is_not_compared(config: CompareConfig, trained):
    compare(config)
    data = Path(config.data.train)
    data.write_text(data.read_text().replace("No 1.", "No, no."))
    again = replace(config, resume="auto")
    assert "--data.train, rows: 6 rows" in refused(again, RunFolderError)
    compare(replace(again, resume_changed=("data.train",)))


# ---- methods of every kind


@pytest.fixture
def several(config: CompareConfig, scorer_dir: Path) -> CompareConfig:
    """SFT, PPO and DPO twice."""
    options = {"ppo.kl.coef": "0.1", "ppo.rollout.minibatches": "2", "dpo-small.loss.beta": "0.5"}
    return replace(
        config, methods=("sft", "dpo", "dpo-small=dpo", "ppo"), reward_model=str(scorer_dir), options=options
    )


def test_sft_ppo_and_dpo_twice_beside_one_another(several: CompareConfig, trained, monkeypatch, capsys):
    """Interrupted in its last method and gone on with, it has the bytes of one that was left alone."""
    left = Path(several.out) / "rehearsal" / "sft"
    left.mkdir(parents=True)
    (left / "resolved.yaml").write_text("of a comparison that was killed")
    stopped_in(monkeypatch, trained, 4, several)
    out = Path(several.out)
    assert trained == ["sft", "dpo", "dpo-small", "ppo"] and not (out / "rehearsal").exists()
    assert main(["compare", "--config", written(several, out.parent / "c.yaml"), "--resume", "auto"]) == 0
    printed = capsys.readouterr().out
    table = PolicyTable.load(out / "evaluation.json")
    assert [policy.name for policy in table.policies] == ["start", "sft", "dpo", "dpo-small", "ppo"]
    start, *others = table.policies
    assert not any(key.startswith("budget/") for key in start.numbers)
    steps = [policy.numbers["budget/steps"].number.value for policy in others]
    assert steps == [2] * 4
    tokens = {policy.name: policy.numbers["budget/trained-tokens"].number.value for policy in others}
    sampled = table.policies[-1].numbers["budget/sampled-tokens"].number.value
    assert 0 < tokens["sft"] < tokens["dpo"] == tokens["dpo-small"] and 3 <= sampled <= 3 * 6
    (note,) = table.notes
    assert (
        note in " ".join(printed.split())
        and note.startswith("Equal for all methods: start (")
        and "optimiser steps (2)" in note
    )
    assert "prompts for one step: sft 3, dpo 3, dpo-small 3, ppo 0.75; tokens and seconds are not" in note
    resolved = {name: yaml.safe_load((out / name / "resolved.yaml").read_text()) for name in trained}
    assert resolved["ppo"]["rewards"]["model"] == [several.reward_model] and resolved["ppo"]["kl"]["coef"] == 0.1
    assert [resolved[name]["loss"]["beta"] for name in ("dpo", "dpo-small")] == [0.1, 0.5]
    straight = replace(several, out=str(out.parent / "straight"))
    compare(straight)
    for name in ("ppo", "dpo-small"):
        ours, theirs = (Path(each.out) / name / "model" / "model.safetensors" for each in (several, straight))
        assert ours.read_bytes() == theirs.read_bytes()
    answers = [(Path(each.out) / "answers.jsonl").read_bytes() for each in (several, straight)]
    assert answers[0] == answers[1]


def written(config: CompareConfig, file: Path) -> str:
    file.write_text(settings.dump(config))
    return str(file)


@pytest.mark.parametrize(
    ("methods", "options", "message"),
    [
        ("dpo odpo", {}, "all.jsonl: 6 of 6 pairs have no strength"),
        ("dpo custom", {"custom.objective": "GOLD:score"}, "GOLD:score"),
        ("dpo ppo", {"ppo.rewards.rules": "exact=answer"}, "answer"),
        ("dpo grpo", {"grpo.rollout.responses": "2", "grpo.kl.reference": "nowhere/at-all"}, "nowhere/at-all"),
        ("dpo rloo", {"rloo.rewards.functions": "GOLD:number"}, "has no function 'number'"),
    ],
)  # fmt: skip
def test_what_a_method_cannot_do_is_known_before_any_is_trained(
    config: CompareConfig, scorer_dir: Path, trained, tmp_path: Path, methods: str, options: dict, message: str
):
    """Of its data, its models, its rewards: things that only it looks at."""
    gold = str(tmp_path / "gold.py")
    options = {key: value.replace("GOLD", gold) for key, value in options.items()}
    asked = replace(config, methods=tuple(methods.split()), options=options, reward_model=str(scorer_dir))
    said = refused(asked, UserError)
    assert message.replace("GOLD", gold).replace("all.jsonl", config.data.train) in said
    assert trained == [] and not Path(config.out).exists()


@pytest.mark.parametrize(
    ("methods", "options", "sampling", "message"),
    [
        ("grpo", {}, {"temperature": 0.0}, "grpo: --sampling.temperature must be > 0 to train"),
        ("p=ppo", {"p.rewards.functions": "a.py:f", "p.rewards.model": "[]"}, {}, "p: --critic.start reward copies"),
        ("p=ppo", {"p.reference.mode": "cached"}, {}, "--options p.reference.mode: p has no option 'reference.mode'."),
        ("custom", {}, {}, "'objective' is missing"),
        ("grpo", {"grpo.rollout.responses": "1"}, {}, "grpo: --rollout.responses must be at least 2 for grpo"),
    ],
)  # fmt: skip
def test_options_that_a_method_cannot_take(
    config: CompareConfig, scorer_dir: Path, trained, methods: str, options: dict, sampling: dict, message: str
):
    asked = replace(config, methods=(methods,), options=options, reward_model=str(scorer_dir))
    assert message in refused(replace(asked, sampling=replace(config.sampling, **sampling)))
    assert trained == [] and not Path(config.out).exists()


# ---- options of single methods


def test_options_reach_their_objective_with_their_type(config: CompareConfig):
    options = {
        "simpo.loss.gamma": "0",
        "simpo.loss.length_normalised": "false",
        "simpo.optim.lr": "1e-4",
        "simpo.plus": "{sft: 0.2}",
        "tr-dpo.reference.every": "7",
    }
    both = replace(config, methods=("simpo", "tr-dpo"), options=options)
    simpo, moving = (method_config(both, name) for name in both.methods)
    assert (simpo.loss.gamma, simpo.loss.length_normalised, simpo.optim.lr) == (0.0, False, 1e-4)
    assert simpo.plus == {"sft": 0.2} and moving.plus == {} and moving.optim.lr == config.optim.lr
    assert (moving.reference.mode, moving.reference.every) == ("moving", 7)
    assert simpo.out == str(Path(config.out) / "simpo") and simpo.data == config.data and simpo.resume is None
    assert method_config(replace(both, resume="auto"), "simpo").resume == "auto"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dpo.loss.bta": "1"}, "dpo.loss.bta: dpo has no option 'loss.bta'. Perhaps you meant 'dpo.loss.beta'."),
        ({"dpo.lr": "1"}, "--options dpo.lr: dpo has no option 'lr'. Perhaps you meant 'dpo.optim.lr'."),
        ({"dpo": "1"}, "--options dpo.OPTION: dpo has no option ''"),
        ({"kto.plus": "{sft: 1}"}, "--options kto.plus: kto has no option 'plus'"),
        ({"dpo.loss.beta": "big"}, "--options of dpo:"),
        ({"dpo.loss.beta": "-1"}, "dpo: --loss.beta must be > 0. Got -1.0. Options of dpo alone: --options dpo.OPTION"),
        ({"dpo.out": "there"}, "--options dpo.out: dpo has no option 'out'."),
    ],
)  # fmt: skip
def test_wrong_options_are_refused_before_anything_is_trained(config: CompareConfig, trained, options, message):
    assert message in refused(replace(config, options=options))
    assert trained == [] and not Path(config.out).exists()


# ---- what else is refused


@pytest.mark.parametrize(
    ("scorer", "message"),
    [
        ("nothing.py:score", "--scorer nothing.py:score: nothing.py cannot be imported:"),
        ("no_such_module:score", "no_such_module cannot be imported:"),
        ("GOLD:scoer", "has no function 'scoer'. It has: score."),
        ("GOLD:number", "has no function 'number'. It has: score."),
        ("GOLD", "--scorer must be FILE.py:function or module:function."),
        ("score", "--scorer must be FILE.py:function or module:function. Got 'score'."),
    ],
)
def test_scorers_that_are_not_there(config: CompareConfig, trained, tmp_path, scorer: str, message: str):
    assert message in refused(replace(config, scorer=scorer.replace("GOLD", str(tmp_path / "gold.py"))))
    assert trained == []


def test_a_broken_scorer_file_is_a_message(config: CompareConfig, tmp_path):
    (tmp_path / "gold.py").write_text("def score(:\n")
    assert "gold.py cannot be imported: " in refused(config)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise KeyError('no rule')", "raised KeyError: 'no rule' (GOLD:2) for the answer 'I do not know.' to HELD:1."),
        ("return float('nan')", "gave nan for the answer 'I do not know.' to HELD:1; expected a finite number"),
        ("return 1e39", "gave 1e+39 for the answer"),
        ("return 'good'", "gave 'good' for the answer"),
        ("return {}[answer] if answer != 'I do not know.' else 1.0", "raised KeyError: "),  # an answer of the start
    ],
)  # fmt: skip
def test_scorers_are_asked_before_anything_is_trained(config: CompareConfig, trained, tmp_path, body, message):
    (tmp_path / "gold.py").write_text(f"def score(prompt, answer):\n    {body}\n")
    said = refused(config, UserError)
    for name in ("gold", "held"):
        message = message.replace(name.upper(), str(next(tmp_path.glob(f"{name}.*"))))
    assert said.startswith(f"--scorer {config.scorer} ") and message in said
    assert trained == []


def test_a_scorer_may_have_no_opinion(config: CompareConfig, tmp_path):
    (tmp_path / "gold.py").write_text("def score(prompt, answer):\n    return None\n")
    compare(replace(config, methods=("dpo",), options={}))
    table = PolicyTable.load(Path(config.out) / "evaluation.json")
    assert [policy.scores["gold"].missing for policy in table.policies] == [4, 4]


@pytest.mark.parametrize("name", ["report.html", "evaluation.json"])
def test_results_have_their_places_before_anything_is_trained(config: CompareConfig, trained, name: str):
    for folder in ("dpo", name):
        (Path(config.out) / folder).mkdir(parents=True)
    said = refused(replace(config, resume="auto"), OutputError)
    assert said == f"--out {config.out}: {name} cannot be written: it is a folder. Choose another place."
    assert trained == []


def test_a_file_is_no_folder_for_runs(config: CompareConfig, trained):
    Path(config.out).write_text("mine")
    assert "it is a file. Choose another --out." in refused(config, RunFolderError)


def test_prompts_are_needed(config: CompareConfig, trained, tmp_path):
    without = replace(config, data=replace(config.data, eval=None, eval_fraction=0.3))
    assert "Give --prompts FILE or --data.eval FILE." in refused(without)
    (tmp_path / "text.jsonl").write_text('{"text": "An egg."}\n')
    assert "no row has a prompt to answer" in refused(replace(config, prompts=str(tmp_path / "text.jsonl")), DataError)
    assert trained == []


Args = Callable[..., tuple[int, str]]


@pytest.fixture
def command(capsys) -> Args:
    """`assent compare` with these options: exit code and error text."""

    def run(*options: str) -> tuple[int, str]:
        code = main(["compare", "--model.path", "m", "--data.train", "t", "--data.eval", "e", "--out", "o", *options])
        return code, capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "assent compare needs something that scores answers. Give --scorer FILE.py:function or --reward_model."),
        (["--scorer", "a:b", "--methods", "dpo", "dop"], "--methods: 'dop' trains no policy. Perhaps you meant 'dpo"),
        (["--scorer", "a:b", "--methods", "dpo", "dpo"], "--methods: two have one name. Got dpo dpo. Give names: NAME"),
        (["--scorer", "a:b", "--methods", "a=dpo", "a=kto"], "--methods: two have one name."),
        (["--scorer", "a:b", "--methods", "start=dpo"], "--methods: 'start' is no name of a run: letters, digits, _"),
        (["--scorer", "a:b", "--methods", "a/b=dpo"], "--methods: 'a/b' is no name of a run"),
        (["--scorer", "a:b", "--methods", "reward"], "--methods reward trains a reward model, which gives no answers."),
        (["--scorer", "a:b", "--options", "exo.loss.beta:1"], "exo.loss.beta: begins with none of --methods (dpo,"),
        (["--scorer", "a:b", "--methods", "sft", "p=ppo"], "--methods p: it learns from rewards, and --scorer is what"),
        (["--scorer", "a:b", "--objectives", "dpo"], "--objectives is --methods in assent: NAME=METHOD, or a method"),
        (["--scorer", "a:b", "--answers", "0"], "--answers must be at least 1."),
    ],
)  # fmt: skip
def test_the_command_line_is_checked_first(command: Args, options: list[str], message: str):
    code, said = command(*options)
    assert code == 2 and message in said
