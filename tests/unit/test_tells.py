"""What a run tells at its start, while it goes and at its end, compared with its own files; which step is in model/."""

from __future__ import annotations

import io
import json
import math
import random
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM

from assent import cli, messages
from assent.algorithms.online.train import train_online
from assent.algorithms.preference.train import train_preference
from assent.algorithms.reward.pairs import train_reward
from assent.algorithms.sft import SFT, train_sft
from assent.config import (
    METHODS,
    OBJECTIVES,
    CriticConfig,
    DataConfig,
    LoraConfig,
    ModelConfig,
    OptimConfig,
    ProbeConfig,
    RewardConfig,
    RewardsConfig,
    RolloutConfig,
    RunConfig,
    SamplingConfig,
    SFTConfig,
    TrainConfig,
    online_config,
    preference_config,
)
from assent.data.packing import EpochStream
from assent.data.tree import Branch, TokenTree
from assent.distributed import World
from assent.errors import CheckpointError, ConfigError, OutputError, RunFolderError
from assent.models.loading import load_policy
from assent.statistics import paired_difference
from assent.train import checkpoint
from assent.train.closing import Summary, closing, write_summary
from assent.train.commands import FOLLOWED, SPAN, Live, command_of
from assent.train.facts import LABEL, Line, layout, measured, percent, rounded
from assent.train.held_out import held_out
from assent.train.log import read_metrics
from assent.train.measured import Each, Measured, change
from assent.train.run import RunResult

WORDS = "red green blue paris egg water seven minutes boil cool answer question sentence thank welcome".split()
STEPS = 6


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    """Pairs, one of which is too long and one without a chosen answer; one answer is cut."""
    draw = random.Random(0)

    def text(low: int, high: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(low, high)))

    rows = [{"prompt": f"{i} {text(1, 6)}?", "chosen": text(1, 6), "rejected": f"no {text(1, 6)}"} for i in range(24)]
    rows += [{"prompt": "egg " * 90, "chosen": "a", "rejected": "b"}, {"prompt": "x?", "chosen": "", "rejected": "b"}]
    rows += [{"prompt": "How?", "chosen": "water " * 90, "rejected": "no"}]
    file = tmp_path_factory.mktemp("data") / "my pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


Make = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def make(tiny_model_dir: Path, scorer_dir: Path, teacher_dir: Path, pairs: Path) -> Make:
    """The configuration of a short run of a command."""

    def build(command: str, out: Path, *, lr: float = 3e-3, lora: int = 0, **train) -> RunConfig:
        shared = {
            "model": ModelConfig(str(tiny_model_dir), precision="fp32", lora=LoraConfig(rank=lora)),
            "data": DataConfig(str(pairs), eval_fraction=0.3, max_length=64, max_bad=0.1),
            "out": str(out),
            "optim": OptimConfig(lr=lr, warmup=0.2),
            "train": TrainConfig(**{"batch_size": 4, "max_steps": STEPS, "eval_every": 2, "threads": 1} | train),
        }
        command, *variant = command.split()
        if command == "sft":
            return SFTConfig(**shared)
        if command == "reward":
            return RewardConfig(**shared)
        if command in OBJECTIVES:
            return preference_config(command, **shared, probe=ProbeConfig(prompts=2, max_new_tokens=4))
        own = CriticConfig(start="policy", shared=True) if variant == ["shared"] else CriticConfig(lr=lr)
        critic = {"critic": own} if METHODS[command].has_critic else {}
        if METHODS[command].needs_teacher:
            critic["distill"] = {"teacher": str(teacher_dir)}
        return online_config(
            command,
            **shared,
            **critic,
            rewards=RewardsConfig((str(scorer_dir),), rules=("length=4,8",), weights={"length": 0.5}),
            rollout=vars(RolloutConfig(responses=2, epochs=1, minibatches=2)),
            sampling=SamplingConfig(max_new_tokens=6),
        )

    return build


def train(config: RunConfig) -> RunResult:
    command = command_of(config).key
    trainers = {"sft": train_sft, "reward": train_reward, **dict.fromkeys(METHODS, train_online)}
    return trainers.get(command, train_preference)(config)


def heard(config: RunConfig, terminal: int = 0) -> tuple[RunResult, str]:
    """The result of a run and what it said, on a terminal of so many columns or on none."""
    text = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        width = {"width": terminal} if terminal else {}
        console = Console(file=text, force_terminal=bool(terminal), highlight=False, **width)
        patch.setattr(messages, "console", lambda: console)
        return train(config), text.getvalue()


@pytest.fixture(scope="module")
def run(make: Make, tmp_path_factory) -> Callable[[str], tuple[RunConfig, RunResult, str]]:
    """A finished run of a command, each made once."""
    known: dict[str, tuple[RunConfig, RunResult, str]] = {}

    def of(command: str) -> tuple[RunConfig, RunResult, str]:
        if command not in known:
            config = make(command, tmp_path_factory.mktemp("runs") / f"a {command}")
            known[command] = (config, *heard(config))
        return known[command]

    return of


def line(text: str, label: str) -> str:
    """What stands at a label."""
    found = [row for row in text.splitlines() if row.startswith(f"{label} ")]
    assert len(found) == 1, (label, text)
    return found[0].removeprefix(label).strip()


COMMANDS = ("sft", "reward", "dpo", "kto", "ppo", "grpo")


# ---- the start


@pytest.mark.parametrize("command", COMMANDS)
def test_a_run_begins_with_what_it_will_do(command: str, run, tiny_model_dir: Path, pairs: Path) -> None:
    config, _, text = run(command)
    data = json.loads((Path(config.out) / "data.json").read_text())
    start = text[: text.index("held out at step 0")]
    used = f"{data['files'][0]['rows_used']} of 27 rows used, "
    assert used in line(start, "Data") and f"{data['eval']['examples']} held out" in line(start, "Data")
    assert f"\n            assent data {shlex.quote(str(pairs))} --problems 0 --model " in start
    sizes = [weight.numel() for weight in AutoModelForCausalLM.from_pretrained(tiny_model_dir).parameters()]
    whole = f"all {rounded(sum(sizes))} parameters trained"
    if command != "reward":  # its head is another
        assert line(start, "Model") == f"{tiny_model_dir} (llama), {whole}"
    assert ("Critic " in start) == (command == "ppo")
    assert line(start, "Optimiser") == "AdamW, learning rate 0.003, cosine after 1 step of warm-up"
    assert line(start, "Machine") == "cpu, 1 thread, fp32"
    assert line(start, "Held out").endswith("examples, every 2 steps; model/ will be the last step")
    assert shlex.quote(config.out) in line(start, "Run folder")
    assert line(start, "Steps").startswith("6 (")
    before = start[: start.index("Method ")].splitlines()
    assert all(row.startswith("warning: ") or "is new and untrained" in row for row in before), before


def test_tokens_and_answers_of_a_step_are_counted(run) -> None:
    config, _, text = run("sft")
    data = json.loads((Path(config.out) / "data.json").read_text())
    steps = math.ceil(data["train"]["examples"] / 4)
    tokens = data["train"]["tokens_trained"]
    each = f"about {rounded(tokens / steps)} trained tokens each ({rounded(tokens)} an epoch)"
    assert line(text, "Steps").endswith(f"epochs of {steps} steps) of 4 examples, {each}")
    config, _, text = run("kto")  # answers to other prompts, which it reads as well, are not trained
    tokens = json.loads((Path(config.out) / "data.json").read_text())["train"]["tokens_trained"]
    assert f"({rounded(tokens)} an epoch)" in line(text, "Steps")
    config, _, text = run("ppo")
    assert "2 on each rollout of 4 prompts x 2 answers, at most 48 tokens" in line(text, "Steps")
    assert line(text, "Rewards") == f"0.5 x length + model {config.rewards.model[0]}"
    assert line(text, "Engine") == "torch, from the policy itself; temperature 1, at most 6 tokens"
    assert line(text, "Reference") == "the start, frozen; 0.05 x KL in the reward"


def test_adapters_and_resumption_are_told(make: Make, tmp_path: Path) -> None:
    _, text = heard(make("dpo", tmp_path / "run", lora=2, max_steps=2))
    told = line(text, "Model")
    assert "LoRA of rank 2 on 14 layers (q_proj, k_proj, v_proj, o_proj and 3 more kinds)" in told
    assert re.search(r"2,432 of 40 k parameters trained \([\d.]+ %\)", told)
    assert line(text, "Reference") == "the model without its adapters"
    _, text = heard(replace(make("dpo", tmp_path / "run", lora=2, max_steps=4), resume="auto"))
    assert line(text, "Resumes") == "after step 2 of 4"
    assert "after 4 steps, 2 of them now, in " in line(text, "Finished")


# ---- while it goes


@pytest.mark.parametrize("command", COMMANDS)
def test_the_line_shows_means_of_what_matters(command: str, run) -> None:
    config, _, text = run(command)
    rows = read_metrics(Path(config.out) / "metrics.jsonl")
    last = next(row for row in text.splitlines() if f"{STEPS}/{STEPS}" in row)
    for name in FOLLOWED[
        {"dpo": "pairs", "kto": "binary", "ppo": "critic", "grpo": "online"}.get(command, command)
    ].steps:
        values = [row[name] for row in rows if name in row][-SPAN:]
        if name == "unscored":
            assert not any(values) and "unscored" not in last
        else:
            assert f"{name.replace('_', ' ')} {measured(np.mean(values))}" in last, name
    evaluations = [row for row in text.splitlines() if row.startswith("held out at step")]
    assert [int(row.split()[4].rstrip(":")) for row in evaluations] == [0, 2, 4, 6]


def test_the_last_evaluation_stays_in_view() -> None:
    live = Live(FOLLOWED["reward"])
    for step in range(30):
        live.take({"nll": float(step), "accuracy": 0.5, "other": 1.0})
    assert str(live) == "nll 24.5  accuracy 0.500"
    live.measure(Measured(20, {"eval/accuracy": 0.625, "eval/nll": 0.61}))
    assert str(live) == "nll 24.5  accuracy 0.500  (held out at step 20: accuracy 0.625)"


def test_a_terminal_shows_bar_and_numbers_at_any_width(make: Make, tmp_path: Path) -> None:
    for width in (80, 120):
        _, text = heard(make("grpo", tmp_path / str(width), max_steps=2), terminal=width)
        plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
        rows = [row for row in plain.replace("\r", "\n").splitlines() if "/" not in row.replace("/2", "")]
        assert max(map(len, rows)) <= width
        assert "2/2" in plain and "reward " in plain and "held out at step 2" in plain


# ---- the end


@pytest.mark.parametrize("command", COMMANDS)
def test_a_run_ends_with_what_it_gained(command: str, run) -> None:
    config, result, text = run(command)
    out, followed = Path(config.out), command_of(config).followed
    rows = [row for row in read_metrics(out / "metrics.jsonl") if f"eval/{followed.best}" in row]
    found = json.loads((out / "summary.json").read_text())
    best = followed.better(rows, key=lambda row: row[f"eval/{followed.best}"])
    assert found["best"]["step"] == best["step"] == result.best_step
    assert found["start"]["metrics"] == {name: v for name, v in rows[0].items() if name.startswith("eval/")}
    assert found["end"]["metrics"] == {name: v for name, v in rows[-1].items() if name.startswith("eval/")}
    assert (found["step"], found["final"], found["command"]) == (STEPS, "last", command)
    name = f"eval/{followed.held_out[0]}"
    told = line(text[text.index("Finished") :], "Held out")
    assert told.startswith(f"{followed.held_out[0]} {measured(rows[0][name])} -> {measured(rows[-1][name])}: ")
    assert math.isclose(found["gain"]["mean"], rows[-1][name] - rows[0][name], abs_tol=1e-5)
    assert found["gain"]["low"] <= found["gain"]["mean"] <= found["gain"]["high"]
    assert f"the same {found['gain']['n']} examples" in told
    assert found["gain"]["n"] == json.loads((out / "data.json").read_text())["eval"]["examples"]
    steps = [row for row in read_metrics(out / "metrics.jsonl") if "tokens" in row]
    assert found["pace"]["tokens"] == sum(row["tokens"] for row in steps)
    assert result.end.metrics == found["end"]["metrics"] and result.start.step == 0 and result.step == STEPS
    card = (out / "model" / "README.md").read_text()
    assert f"| {followed.held_out[0]} | {rows[0][name]:.4g} | {rows[-1][name]:.4g} |" in card
    assert f"held-out {followed.best}: {best['step']} (" in card


@pytest.mark.parametrize("command", COMMANDS)
def test_what_comes_next_can_be_copied(command: str, run) -> None:
    config, _, text = run(command)
    end = text[text.index("Finished") :]
    lines = [row[LABEL:] for row in end.splitlines() if row[LABEL:].startswith("assent ")]
    assert len(lines) >= 4
    for words in map(shlex.split, lines):
        name, *rest = words[1:]
        cli.parse(name, rest)
    again = next(words for words in map(shlex.split, lines) if "--resume" in words)
    _, longer = cli.parse(again[1], again[2:])
    assert type(longer) is type(config) and longer.train.max_steps == 2 * STEPS and longer.out == config.out
    places = re.findall(r"^(?:Wrote|     ) +(\S+): ", end, re.M)
    assert set(places) >= {"model/", "checkpoints/"} and ("critic/" in places) == (command == "ppo")
    assert all((Path(config.out) / place).exists() for place in places if place.endswith("/"))


def test_without_held_out_rows_the_last_steps_are_told(make: Make, tmp_path: Path) -> None:
    config = make("sft", tmp_path / "run", max_steps=2, eval_every=0)
    config = replace(config, data=replace(config.data, eval_fraction=0.0))
    result, text = heard(config)
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    mean = np.mean([row["nll"] for row in rows])
    assert line(text, "Training") == f"nll {measured(mean)} (of the last steps; nothing was held out)"
    assert line(text, "Held out").startswith("nothing (--data.eval_fraction")
    assert result.best is result.start is result.end is None
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["gain"] is None


def test_the_gain_is_that_of_paired_values() -> None:
    draw = np.random.default_rng(0)
    first, last = draw.normal(size=40), draw.normal(0.3, 1, size=40)
    ones, there = np.ones(40), np.arange(40) != 7
    gain = change(Measured(0, {}, Each(first, ones)), Measured(9, {}, Each(np.where(there, last, 0.0), ones * there)))
    expected = paired_difference(first[there].tolist(), last[there].tolist()).difference
    assert (gain.n, gain.missing) == (39, 1)
    np.testing.assert_allclose(
        [gain.mean, gain.low, gain.high], [-expected.mean, -expected.high, -expected.low], atol=0.02
    )
    assert change(Measured(0, {}), Measured(1, {}, Each(last, ones))) is None
    assert change(Measured(0, {}, Each(first, ones)), Measured(1, {}, Each(last, 2 * ones))) is None


def test_each_example_is_weighted_by_its_tokens(run) -> None:
    _, result, _ = run("sft")
    each = result.end.each
    assert math.isclose(each.sums.sum() / each.counts.sum(), result.end.metrics["eval/nll"], rel_tol=1e-5)


def test_what_each_example_has_does_not_depend_on_its_batch(tiny_model_dir: Path) -> None:
    """Micro-batches hold the longest first; the values stand in the order of the examples."""
    draw = np.random.default_rng(3)

    def tree(key: int) -> TokenTree:
        sizes = draw.integers(1, 20, 2)
        branches = tuple(Branch(draw.integers(3, 260, size), np.ones(size, bool)) for size in sizes)
        return TokenTree(draw.integers(3, 260, 4), branches, ((0, 1, 1.0),), key=key)

    trees = [tree(key) for key in range(9)]
    policy = load_policy(ModelConfig(str(tiny_model_dir), precision="fp32"), max_length=64)
    world = World(0, 1, 0, torch.device("cpu"))

    def each(held: list[TokenTree]) -> Each:
        stream = EpochStream(held, batch_size=4, micro_tokens=60, seed=0, flat=not policy.tree)
        return held_out(SFT(policy, stream), held, stream, world).each

    together = each(trees)
    alone = [each([replace(one, key=0)]) for one in trees]
    np.testing.assert_array_equal(together.counts, [one.counts[0] for one in alone])
    np.testing.assert_allclose(together.sums, [one.sums[0] for one in alone], rtol=1e-5)


# ---- which step is in model/


def weights(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in sorted(folder.glob("*.safetensors")))


@pytest.mark.parametrize("command", ("sft lora", "reward", "reward lora", "ppo lora", "ppo shared"))
def test_the_best_step_is_what_its_checkpoint_exports(command: str, make: Make, tmp_path: Path) -> None:
    lora = 2 if "lora" in command else 0
    config = make(command, tmp_path / "run", lr=0.3, lora=lora, final="best", max_steps=4, eval_every=1)
    if command == "sft lora":
        config = replace(config, model=replace(config.model, save_dtype="bf16"))
    result, text = heard(config)
    assert result.step == result.best_step < result.steps == 4
    assert result.end is result.best
    assert "the one in model/" in line(text, "Best")
    dtype = ["--dtype", "bf16"] if command == "sft lora" else []
    for part in ("model", *(("critic",) if command == "ppo lora" else ())):
        to = tmp_path / f"exported {part}"
        words = ["export", config.out, "--checkpoint", "best", "--part", part, "--out", str(to), *dtype]
        assert cli.main(words) == 0
        assert weights(to) == weights(tmp_path / "run" / part), part
    card = (result.model / "README.md").read_text()
    assert f"after {result.step} steps (the best of 4 steps)" in card


def test_the_best_may_be_the_start(make: Make, tmp_path: Path, tiny_model_dir: Path) -> None:
    config = make("sft", tmp_path / "run", lr=3.0, final="best", keep=1, max_steps=4)
    result, text = heard(config)
    assert result.step == result.best_step == 0
    assert weights(result.model) == weights(tiny_model_dir)
    last = measured(result.metrics["eval/nll"])
    assert line(text, "Best").startswith("the start (step 0) by lowest held-out nll (")
    assert line(text, "Best").endswith(f"the one in model/; the last step, 4, has {last}")
    assert [*checkpoint.by_step(tmp_path / "run" / "checkpoints")] == [0, 4]
    assert "checkpoints/: of steps 0, 4, to go on from" in text
    assert f"nll {measured(result.end.metrics['eval/nll'])}\n" in text[text.index("Finished") :]


def test_a_resumed_run_finds_the_same_best(make: Make, tmp_path: Path) -> None:
    """Stopped after two steps, or finished with the last step: the best is the same as that of a straight run."""
    straight = train(make("sft", tmp_path / "straight", lr=0.3, final="best", max_steps=4, eval_every=1))
    last = train(make("sft", tmp_path / "late", lr=0.3, max_steps=4, eval_every=1))
    assert last.step == 4 and weights(last.model) != weights(straight.model)
    late = train(
        replace(make("sft", tmp_path / "late", lr=0.3, final="best", max_steps=4, eval_every=1), resume="auto")
    )
    assert late.step == straight.step and weights(late.model) == weights(straight.model)


def test_a_best_start_that_was_not_kept_is_named(make: Make, tmp_path: Path) -> None:
    config = make("sft", tmp_path / "run", lr=3.0, max_steps=2)
    assert train(config).best_step == 0
    with pytest.raises(RunFolderError, match=r"the best was the start, .* no checkpoint is there\. --resume auto"):
        train(replace(config, resume="auto", train=replace(config.train, final="best")))


def test_best_is_refused_where_nothing_could_be_chosen(make: Make, tmp_path: Path, capsys) -> None:
    config = make("sft", tmp_path / "run", eval_every=0, final="best")
    with pytest.raises(ConfigError, match=r"--train\.final best chooses among the evaluations .* --train\.eval_every"):
        train(config)
    assert not (tmp_path / "run").exists()


def test_a_damaged_best_checkpoint_costs_nothing_else(make: Make, tmp_path: Path) -> None:
    config = make("sft", tmp_path / "run", lr=0.3, final="best", max_steps=4, eval_every=1)
    result = train(config)
    file = checkpoint.by_step(tmp_path / "run" / "checkpoints")[result.best_step] / "policy.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(
        CheckpointError, match=r"--train\.final best: .*policy\.safetensors.* --resume auto --train\.final last"
    ):
        train(replace(config, resume="auto"))
    ended = train(replace(config, resume="auto", train=replace(config.train, final="last")))
    assert ended.step == 4


# ---- assent export


def test_any_checkpoint_of_a_run_is_exported(run, tmp_path: Path, capsys) -> None:
    config, result, _ = run("ppo")
    out = Path(config.out)
    assert cli.main(["export", config.out, "--checkpoint", "last", "--out", str(tmp_path / "last")]) == 0
    assert weights(tmp_path / "last") == weights(out / "model")
    by_number = ["export", config.out, "--checkpoint", str(STEPS), "--part", "critic", "--dtype", "bf16"]
    assert cli.main([*by_number, "--out", str(tmp_path / "number")]) == 0
    critic = ["export", config.out, "--part", "critic", "--dtype", "bf16", "--out", str(tmp_path / "critic")]
    assert cli.main(critic) == 0
    assert weights(tmp_path / "number") == weights(tmp_path / "critic")
    assert "last" not in (tmp_path / "last" / "README.md").read_text().splitlines()[0]
    capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--checkpoint", "5"], "has no such checkpoint. There are those of steps: "),
        (["--checkpoint", "new"], "expected best, last, or the number of a step"),
        (["--part", "critic"], "--part critic: "),
    ],
)
def test_what_a_run_does_not_have_is_not_exported(words: list[str], message: str, run, tmp_path: Path, capsys) -> None:
    config, _, _ = run("sft")
    assert cli.main(["export", config.out, *words, "--out", str(tmp_path / "x")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_folder_without_checkpoints_is_no_run(tiny_model_dir: Path, tmp_path: Path, capsys) -> None:
    words = ["export", str(tiny_model_dir), "--checkpoint", "best", "--out", str(tmp_path / "x")]
    assert cli.main(words) == 2
    assert "has no checkpoints/. Give the run folder" in capsys.readouterr().err


# ---- lines and numbers


def test_lines_fit_and_commands_stay_whole() -> None:
    facts = [Line("Data", "word " * 40), Line("", "assent data " + "x" * 90, command=True), Line("Next", "short")]
    for width in (80, 120):
        rows = layout(facts, width).splitlines()
        assert all(len(row) <= width for row in rows if "assent" not in row)
        assert [row for row in rows if "assent" in row] == [" " * 12 + "assent data " + "x" * 90]
        assert all(row.startswith(" " * 12) or row[:4] in ("Data", "Next") for row in rows)
    assert len(layout(facts).splitlines()) == 3


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (999.6, "1,000"), (9_999, "9,999"), (10_000, "10 k"), (999_600, "1.0 M"), (1_234_567, "1.2 M")]
    + [(134_515_008, "135 M"), (7_615_616_512, "7.6 B"), (9.96e6, "10 M"), (2e15, "2,000 T")],
)
def test_counts_as_people_say_them(number: float, text: str) -> None:
    assert rounded(number) == text


def test_shares_as_people_say_them() -> None:
    assert [percent(x) for x in (0.0, 0.00912, 0.12345, 0.9999, 1.0)] == ["0 %", "0.91 %", "12 %", "99.9 %", "100 %"]


def test_what_the_held_out_rows_cannot_tell_is_left_out(run) -> None:
    """Yes/no labels of one kind have no accuracy, a critic may know nothing yet."""
    config, result, _ = run("kto")
    end = Measured(6, {"eval/objective": 0.5})
    facts = closing(Summary(config, steps=6, step=6, start=result.start, best=end, last=end, end=end))
    assert [fact.text for fact in facts if fact.label == "Held out"] == [
        f"objective {measured(result.start.metrics['eval/objective'])} -> 0.500"
    ]


def test_a_summary_that_cannot_be_written_is_one_message(run, tmp_path: Path) -> None:
    config, _, _ = run("sft")
    (tmp_path / "summary.json").mkdir()
    with pytest.raises(OutputError, match=r"summary\.json"):
        write_summary(Summary(config), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]
