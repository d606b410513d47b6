"""YAML in and out, and the checks on values."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
import yaml
from annotated_types import Gt, Interval
from hypothesis import example, given
from hypothesis import settings as limits
from hypothesis import strategies as st
from typing_extensions import Doc

from assent import config
from assent.cli import COMMANDS
from assent.config import (
    METHODS,
    DPOConfig,
    GenerateConfig,
    GRPOConfig,
    InitConfig,
    InspectConfig,
    OptimConfig,
    PPOConfig,
    SamplingConfig,
    SFTConfig,
    nodes,
    ranges,
    settings,
)
from assent.errors import ConfigError

MINIMAL = "model: {path: m}\ndata: {train: t.jsonl}\nout: run\n"
PPO = MINIMAL + "rewards: {model: [r]}\n"


def fails(text: str, cls: type = SFTConfig) -> str:
    with pytest.raises(ConfigError) as caught:
        settings.load(cls, text, "run.yaml")
    return str(caught.value)


def test_nested_keys_reach_their_fields_and_the_rest_keeps_its_default():
    text = MINIMAL + ("optim:\n  lr: 1e-4\n  warmup: 1\ntrain: {max_steps: 7}\nreport_to: [wandb]\nresume: null\n")
    loaded = settings.load(SFTConfig, text)
    assert loaded.model.path == "m"
    assert loaded.optim == OptimConfig(lr=1e-4, warmup=1.0)
    assert isinstance(loaded.optim.lr, float) and isinstance(loaded.optim.warmup, float)
    assert loaded.train.max_steps == 7
    assert loaded.report_to == ("wandb",)
    assert loaded.resume is None
    assert loaded.data.eval is None


def test_column_maps_and_empty_sections():
    loaded = settings.load(SFTConfig, "out: o\nmodel: {path: m}\ndata: {train: t, columns: {prompt: q}}\noptim:\n")
    assert loaded.data.columns == {"prompt": "q"}
    assert loaded.optim == OptimConfig()


def test_unknown_key_names_line_and_nearest():
    assert fails(MINIMAL + "optim:\n  lrr: 1\n") == "run.yaml:5: unknown key 'optim.lrr'. Perhaps you meant 'optim.lr'."
    assert fails(MINIMAL + "lr: 1\n") == "run.yaml:4: unknown key 'lr'. Perhaps you meant 'optim.lr'."
    assert "Perhaps you meant 'optim'." in fails(MINIMAL + "optimizer: {lr: 1}\n")
    assert fails(MINIMAL + "zzzz: 1\n") == "run.yaml:4: unknown key 'zzzz'."
    assert "nested keys: 'optim:'" in fails(MINIMAL + "optim.lr: 1\n")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("optim: {lr: fast}", "'optim.lr' must be a number. Got 'fast' (text)."),
        ("optim: {lr: true}", "'optim.lr' must be a number. Got 'true' (true or false)."),
        ("train: {epochs: 1.5}", "'train.epochs' must be a whole number. Got '1.5' (number)."),
        ("train: {epochs: true}", "'train.epochs' must be a whole number. Got 'true' (true or false)."),
        ("train: {max_steps: x}", "'train.max_steps' must be a whole number or null. Got 'x' (text)."),
        ("train: 3", "'train' must hold `key: value` lines. Got '3' (whole number)."),
        ("train: [epochs]", "'train' must hold `key: value` lines. Got a list."),
        ("resume: 3", "'resume' must be text (in quotes where it looks like something else) or null. Got '3'"),
        (
            "report_to: wandb",
            "'report_to' must be a list of values, each one of tensorboard, wandb, trackio. Got 'wandb'",
        ),
        ("report_to: [mlflow]", "each one of tensorboard, wandb, trackio. Got 'mlflow' (text)."),
        ("optim: {schedule: cosin}", "'optim.schedule' must be one of cosine, linear, constant. Got 'cosin' (text)."),
        ("optim: {lr: null}", "'optim.lr' must be a number. Got 'null' (nothing)."),
        ("optim: {lr: !!python/object/apply:os.getcwd []}", "'optim.lr' must be a number. Got a list."),
    ],
)
def test_wrong_type_names_line_expected_and_got(line: str, message: str):
    text = fails(MINIMAL + line + "\n")
    assert text.startswith("run.yaml:4: ")
    assert message in text


def test_repeated_keys_are_errors():
    assert fails(MINIMAL + "out: again\n") == "run.yaml:4: the key 'out' is there already (run.yaml:3)."
    assert "the key 'optim' is there already" in fails(MINIMAL + "optim: {lr: 1}\noptim: {eps: 1}\n")
    assert "'prompt' twice" in fails("out: o\nmodel: {path: m}\ndata: {train: t, columns: {prompt: a, prompt: b}}\n")


def test_every_problem_is_reported_at_once():
    assert len(fails(MINIMAL + "bad: 1\noptim: {lr: x}\n").splitlines()) == 2


def test_missing_options_are_listed_together():
    assert fails("train: {epochs: 2}\n").splitlines() == [
        "run.yaml: 'model.path' is missing, and it has no default.",
        "run.yaml: 'data.train' is missing, and it has no default.",
        "run.yaml: 'out' is missing, and it has no default.",
    ]


def test_broken_yaml_and_unreadable_files(tmp_path):
    assert fails("out: [\n").startswith("run.yaml:2: not valid YAML")
    assert "the file must hold `key: value` lines" in fails("- a\n")
    with pytest.raises(ConfigError, match="Cannot read the configuration file .*nothing.yaml: No such file"):
        settings.read(SFTConfig, tmp_path / "nothing.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        settings.read(SFTConfig, tmp_path / "bytes.yaml")


@limits(deadline=None)
@example(lr=1e-5, out="a\x85 b\u2028", seed=0, columns={"\u2029": "\n x"}, resume=None)
@given(
    lr=st.floats(allow_nan=False, allow_infinity=False),
    out=st.text(),
    seed=st.integers(),
    columns=st.dictionaries(st.text(), st.text(), max_size=3),
    resume=st.none() | st.sampled_from(["auto", "null", "1e-5", "yes", "~", "2024-01-01", "0x10", ""]),
)
def test_dump_and_load_are_inverse(lr, out, seed, columns, resume):
    start = settings.load(SFTConfig, MINIMAL)
    full = dataclasses.replace(
        start,
        out=out,
        resume=resume,
        optim=OptimConfig(lr=lr),
        train=config.TrainConfig(seed=seed),
        data=dataclasses.replace(start.data, columns=columns),
        report_to=("wandb", "tensorboard"),
    )
    assert settings.load(SFTConfig, settings.dump(full)) == full
    assert repr(settings.plain(full)) == repr(yaml.safe_load(settings.dump(full))), "types too"


# ---- ranges


def test_messages_say_what_was_expected_and_got():
    bad = settings.load(DPOConfig, MINIMAL + "loss: {beta: -0.1}\noptim: {lr: .nan}\n")
    with pytest.raises(ConfigError) as caught:
        settings.validate(bad)
    assert str(caught.value).splitlines() == [
        "--optim.lr must be > 0. Got nan.",
        "--loss.beta must be > 0. Got -0.1.",
    ]


@pytest.mark.parametrize(
    ("line", "holds"),
    [
        ("loss: {clip: 0}", False),
        ("loss: {clip: 1}", False),
        ("loss: {clip: 0.99}", True),
        ("loss: {lam: 1}", True),
        ("loss: {lam: 1.01}", False),
        ("critic: {lr: 0}", False),
        ("critic: {start: ''}", False),
        ("sampling: {top_p: 0}", False),
        ("sampling: {top_p: 1}", True),
        ("sampling: {top_p: 0.9}", False),
        ("sampling: {top_k: 5}", False),
        ("sampling: {temperature: 0}", False),
        ("optim: {beta1: 1}", False),
        ("optim: {max_grad_norm: .inf}", False),
        ("train: {batch_size: 0}", False),
        ("train: {eval_every: 5}", False),
        ("report_to: [wandb, wandb]", False),
    ],
)
def test_ranges(line: str, holds: bool):
    loaded = settings.load(PPOConfig, PPO + line + "\n")
    if holds:
        settings.validate(loaded)
    else:
        with pytest.raises(ConfigError, match="^--"):
            settings.validate(loaded)


def test_cuts_of_the_distribution_are_for_generate_alone():
    for options, flag in [
        ("top_p: 0.3", "top_p 0.3"),
        ("top_k: 40", "top_k 40"),
        ("top_k: 4, top_p: 0.5", "top_p 0.5"),
    ]:
        for method in ("grpo", "ppo", "remax"):
            loaded = settings.load(METHODS[method].config, PPO + f"sampling: {{{options}}}\n")
            with pytest.raises(
                ConfigError, match=rf"^--sampling.{flag} is for assent generate. In training every token"
            ):
                settings.validate(loaded)
    sampling = SamplingConfig(top_k=40, top_p=0.9)
    settings.validate(GenerateConfig("m", prompts="p", sampling=sampling))
    huge = settings.load(PPOConfig, PPO + f"sampling: {{top_k: {10**400}}}\n")  # no float holds it
    with pytest.raises(ConfigError, match=r"--sampling.top_k must be below 2\*\*63"):
        settings.validate(huge)


def test_contradictions():
    both = "out: o\nmodel: {path: m}\ndata: {train: t, eval: e, eval_fraction: 0.1}\n"
    with pytest.raises(ConfigError, match="--data.eval and --data.eval_fraction exclude each other"):
        settings.validate(settings.load(SFTConfig, both))
    with pytest.raises(ConfigError, match="--hidden_size must be a multiple of 2 x --heads"):
        settings.validate(InitConfig(data="d", out="o", hidden_size=100, heads=8))
    with pytest.raises(ConfigError, match="--heads must be a multiple of --kv_heads"):
        settings.validate(InitConfig(data="d", out="o", heads=4, kv_heads=3))


def _word(kind: Any) -> str:
    """A text that the option may be."""
    return get_args(kind)[0] if get_origin(kind) is Literal else "x"


def test_defaults_pass_every_check():
    for name, command in COMMANDS.items():
        given_values = {
            option.name: ("x",) if "tuple" in str(option.kind) else _word(option.kind)
            for option in settings.options(command.config)
            if option.default is settings.REQUIRED
            or option.name in ("rewards.model", "scorer", "prompts", "steering.model")
            or (name, option.name) in {("gkd", "distill.teacher"), ("constitution", "data.eval"), ("rlcd", "data.eval")}
        }
        settings.validate(settings._build(command.config, "", settings.REQUIRED, given_values, None))


def test_something_must_say_what_answers_are_worth():
    grpo = settings.load(GRPOConfig, MINIMAL)
    with pytest.raises(ConfigError, match="what an answer is worth. Give --rewards.model"):
        settings.validate(grpo)
    alone = settings.load(GRPOConfig, PPO + "rollout: {responses: 1}\n")
    with pytest.raises(ConfigError, match="--rollout.responses must be at least 2 for grpo: .* Got 1."):
        settings.validate(alone)


def test_every_number_has_a_range_that_admits_no_nan():
    for command in COMMANDS.values():
        for option in settings.options(command.config):
            if option.kind in (int, float, int | None, float | None):
                assert option.range is not None, option.name
                assert not option.range.holds(math.nan) and not option.range.holds(math.inf), option.name


@pytest.mark.parametrize(
    ("kind", "words", "within", "outside"),
    [
        (ranges.Positive, "> 0", (1e-9, 7), (0, -1, math.inf)),
        (ranges.NotNegative, ">= 0", (0, 1e9), (-1e-9, math.inf)),
        (ranges.Finite, "a finite number", (-3, 0.5), (math.inf, -math.inf)),
        (ranges.Share, "from 0 to 1", (0, 1), (-0.01, 1.01)),
        (ranges.NonzeroShare, "above 0 and at most 1", (1e-9, 1), (0, 1.01)),
        (ranges.BelowOne, "at least 0 and below 1", (0, 0.99), (-0.01, 1)),
        (ranges.Count, "at least 1", (1, 10**400), (0, -1)),
        (ranges.Seed, "from 0 to 2**63 - 1", (0, 2**63 - 1), (-1, 2**63)),
        (ranges.Named, "given, not empty", ("x",), ("",)),
        (ranges.Names, "given, not empty", (("x",),), ((),)),
        (Annotated[float, Gt(1)], "above 1", (1.5,), (1, 0.5)),
        (Annotated[float, Interval(gt=0, lt=1)], "between 0 and 1, both excluded", (0.5,), (0, 1)),
        (Annotated[float, Interval(ge=0, lt=0.5)], "at least 0 and below 0.5", (0, 0.49), (0.5,)),
    ],
)
def test_a_range_stands_beside_the_type(kind: Any, words: str, within: tuple, outside: tuple):
    for hint in (kind, kind | None, Annotated[kind, Doc("help")]):
        found = ranges.range_of(hint)
        assert found.words == words
        assert all(map(found.holds, within)) and not any(map(found.holds, outside))
    assert ranges.range_of(get_args(kind)[0]) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "file: a\nrendered: !!bool maybe\n",
            "c.yaml:2: 'rendered' must be true or false. Got 'maybe', which is no bool",
        ),
        ('file: a\nlimit: !!int ""\n', "c.yaml:2: 'limit' must be a whole number or null. Got '', which is no int"),
        (
            "file: a\ntemplate_kwargs: {a: !!bool maybe}\n",
            "c.yaml:2: 'template_kwargs' .* Got 'maybe', which is no bool",
        ),
        (
            "file: a\ntemplate_kwargs: {a: !!python/name:os.system x}\n",
            r"c.yaml:2: .* Got 'x' \(python/name:os.system\)",
        ),
        ("file: a\nx: " + "[" * 20_000, "c.yaml:2: not valid YAML: lists and mappings are nested too deeply"),
        ("file: &a [*a]\ncolumns: &b {a: *b}\n", "c.yaml:1: 'file' must be text .* Got a list"),
        ("file: a\n\tlimit: 3\n", "c.yaml:2: not valid YAML: found character"),
        ("file: a\nlimit: \0 3\n", "c.yaml:2: not valid YAML: a character stands there that is no text"),
        ("? [a, b]\n: c\n", "c.yaml:1: a key must be a word. Got a list"),
        ("".join(f"k{n}: c\n" for n in range(5000)), "There may be more"),
        ("x" * 300_000, "a configuration has at most 262,144 characters"),
        ("file: a\nlimit: 1" + "0" * 5000, "c.yaml:2: 'limit' must be a whole number or null. Got '1000"),
    ],
)
def test_yaml_that_is_no_configuration_is_told_with_its_line(text: str, message: str):
    with pytest.raises(ConfigError, match=message) as caught:
        settings.load(InspectConfig, text, "c.yaml")
    assert len(str(caught.value)) < 3000


def test_a_billion_laughs_are_never_expanded():
    names = [f"a{n}" for n in range(30)]
    laughs = "a0: &a0 [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip(names, names[1:], strict=False))
    with pytest.raises(ConfigError, match="unknown key 'a0'"):
        settings.load(InspectConfig, laughs + f"file: *{names[-1]}\n")


@pytest.mark.parametrize("word", ["[", "{a", "!!bool maybe", "a: b", "&x", "*a", "[" * 5000, "! x", "\0"])
def test_a_word_of_the_command_line_that_is_no_value_is_text(word: str):
    assert nodes.scalar(word) == word
