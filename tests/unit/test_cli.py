"""The command line as a person meets it: what it prints, where, with which exit code, and how soon."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import assent
from assent import cli, config
from assent.errors import DataError, NonFiniteError

SOURCE = Path(assent.__file__).parents[1]
DPO = ["dpo", "--model.path", "m", "--data.train", "t", "--out", "o"]


def shell(*args: str, code: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code] if code else [sys.executable, "-m", "assent", *args]
    env = {**os.environ, "PYTHONPATH": str(SOURCE), "COLUMNS": "100"}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Stands for every command's function; holds the configurations that reached it."""
    seen: list[object] = []
    monkeypatch.setattr(cli, "_function", lambda target: seen.append)
    return seen


def failing(error: BaseException):
    def function(_: object) -> None:
        raise error

    return function


@pytest.mark.parametrize(
    "args",
    [[], ["--help"], ["sft", "--help"], ["kto", "--help"], ["ppo", "--help"], ["sft", "--optim.lrr", "1"]],
    ids=" ".join,
)
def test_help_and_refusals_are_quick_and_load_no_torch(args: list[str]):
    heavy = "torch transformers datasets numpy matplotlib".split()
    code = (
        f"import sys\nfrom assent.cli import main\n"
        f"try: main({args!r})\nexcept SystemExit: pass\n"
        f"print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr)"
    )
    before = os.times()
    result = shell(code=code)
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    assert spent < 2.0  # seconds of one core, which a busy machine does not change much; 0.2 on an idle one
    assert result.stderr.splitlines()[-1] == "[]"


def test_no_arguments_print_the_commands():
    result = shell()
    assert result.returncode == 0
    for name, command in cli.COMMANDS.items():
        assert f"{name} " in result.stdout and command.help in result.stdout


def test_every_command_stands_under_one_heading():
    names = [name for group in cli.GROUPS.values() for name in group]
    assert sorted(names) == sorted(cli.COMMANDS)
    lines = cli.overview().splitlines()
    headings = [line for line in lines if line in cli.GROUPS]
    assert headings == list(cli.GROUPS)
    place = {line.split()[0]: number for number, line in enumerate(lines) if line.startswith("  ")}
    assert (
        lines.index("Directly from pairs") < place["simpo"] < lines.index("Directly from yes/no labels") < place["kto"]
    )
    assert (
        place["nca"]
        < lines.index("From rewards of sampled answers")
        < place["ppo"]
        < lines.index("Evaluation")
        < place["compare"]
    )


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"assent {assent.__version__}\n"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["stf"], "error: Unknown command 'stf'. Perhaps you meant 'sft'."),
        (
            ["sft", "--optim.lrr", "1"],
            "error: Unknown option '--optim.lrr' of assent sft. Perhaps you meant '--optim.lr'.",
        ),
        (["sft", "--lr=1"], "Unknown option '--lr' of assent sft. Perhaps you meant '--optim.lr'."),
        ([*DPO, "--loss.beta", "-0.1"], "error: --loss.beta must be > 0. Got -0.1."),
        ([*DPO, "--config", "nothing.yaml"], "error: Cannot read the configuration file nothing.yaml: No such file"),
        ([*DPO, "--config"], "error: --config needs a YAML file."),
        (["data", "--file", "x"], "Unknown option '--file' of assent data."),
    ],
)
def test_mistakes_are_one_message_and_exit_2(args: list[str], message: str, capsys):
    assert cli.main(args) == 2
    out, err = capsys.readouterr()
    assert message in err and out == "" and "Traceback" not in err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["sft"], "--model.path, --data.train, --out must be given: no default fits."),
        (["sft", "--out", "o", "--data.train=t"], "--model.path must be given: no default fits."),
        (["data"], "FILE must be given: no default fits."),
        (["data", "a", "b"], "assent data takes one FILE. Got a b."),
        (["report", "--out", "x"], "RUNS must be given: no default fits."),
        ([*DPO, "--model.lora.rank", "x"], "--model.lora.rank must be a whole number. Got 'x'."),
        ([*DPO, "--model.lora.rank", "1.5"], "--model.lora.rank must be a whole number. Got '1.5'."),
        ([*DPO, "--model.lora.rank"], "--model.lora.rank needs a value: a whole number."),
        ([*DPO, "--loss.beta", "--data.strict"], "--loss.beta needs a value: a number."),
        ([*DPO, "--loss.beta=big"], "--loss.beta must be a number. Got 'big'."),
        ([*DPO, "--train.max_steps", "few"], "--train.max_steps must be a whole number or None. Got 'few'."),
        (
            [*DPO, "--model.precision", "fp23"],
            "--model.precision must be one of auto, bf16, fp32. Got 'fp23'. Perhaps you meant 'fp32'.",
        ),
        ([*DPO, "--report_to", "wandb", "wb"], "--report_to must be one of tensorboard, wandb, trackio. Got 'wb'."),
        ([*DPO, "--data.columns", "prompt"], "--data.columns must be KEY:VALUE pairs, each key once. Got 'prompt'."),
        ([*DPO, "--data.columns", "a:b", "a:c"], "--data.columns must be KEY:VALUE pairs, each key once. Got a:b a:c."),
        ([*DPO, "--plus", "sft:much"], "--plus must be KEY:NUMBER pairs, each key once. Got 'sft:much'."),
        ([*DPO, "--data.strict=yes"], "--data.strict takes no value; --data.no_strict is its opposite. Got 'yes'."),
        ([*DPO, "--data.strict", "yes"], "Unexpected 'yes': options of assent dpo begin with --."),
        ([*DPO, "stray"], "Unexpected 'stray': options of assent dpo begin with --."),
        ([*DPO, "-v"], "Unexpected '-v': options of assent dpo begin with --."),
        (
            [*DPO, "--optim.lerning-rate", "1"],
            "Unknown option '--optim.lerning-rate' of assent dpo. Perhaps you meant '--optim.lr'.",
        ),
        (
            [*DPO, "--per_device_train_batch_size", "8"],
            "--per_device_train_batch_size is --train.batch_size in assent: all examples of one optimiser step "
            "(online: all prompts of one rollout), over all ranks and accumulation.",
        ),
        (
            ["grpo", *DPO[1:], "--num-generations", "8"],
            "--num-generations is --rollout.responses in assent.",
        ),
    ],
)  # fmt: skip
def test_every_mistake_in_the_words_is_one_line(args: list[str], message: str, capsys):
    assert cli.main(args) == 2
    out, err = capsys.readouterr()
    assert err == f"error: {message} See: assent {args[0]} --help\n" and out == ""


def test_several_mistakes_are_told_at_once(capsys):
    assert cli.main([*DPO, "--optim.lrr", "1", "--loss.beta", "big"]) == 2
    first, second, third = capsys.readouterr().err.splitlines()
    assert "--optim.lrr" in first and "--loss.beta" in second and third == "See: assent dpo --help"


def test_what_a_file_gives_need_not_be_on_the_command_line(tmp_path, ran, capsys):
    (tmp_path / "run.yaml").write_text("model: {path: m}\nout: o\n")
    assert cli.main(["dpo", "--config", str(tmp_path / "run.yaml")]) == 2
    assert capsys.readouterr().err.startswith("error: --data.train must be given")
    assert cli.main(["dpo", "--config", str(tmp_path / "run.yaml"), "--data.train", "t"]) == 0 and len(ran) == 1


@pytest.mark.parametrize("args", ["--help", "sft --help", "dpo --model.path m --data.train t --out o --dry_run"])
def test_a_reader_who_leaves_early_ends_it_quietly(args: str):
    """As in `assent --help | head -1`, also when the pipe closes before anything is written."""
    process = subprocess.Popen(
        [sys.executable, "-m", "assent", *args.split()],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    said = process.stderr.read().decode()
    assert process.wait(timeout=60) == 141 and said == ""


def test_command_line_wins_over_yaml_and_yaml_over_defaults(tmp_path, ran):
    file = tmp_path / "run.yaml"
    file.write_text("model: {path: m}\ndata: {train: t, max_length: 77}\nout: o\noptim: {lr: 1e-4, eps: 1e-6}\n")
    assert (
        cli.main(["sft", "--config", str(file), "--optim.lr", "3e-4", "--data.columns", "prompt:q", "response:a"]) == 0
    )
    (got,) = ran
    assert type(got) is config.SFTConfig
    assert (got.optim.lr, got.optim.eps, got.optim.beta1) == (3e-4, 1e-6, 0.9)
    assert got.data.max_length == 77 and got.data.columns == {"prompt": "q", "response": "a"}


def test_yaml_errors_name_file_and_line(tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text("out: o\noptim:\n  lrr: 1\n")
    assert cli.main(["sft", "--config", str(file)]) == 2
    assert capsys.readouterr().err == f"error: {file}:3: unknown key 'optim.lrr'. Perhaps you meant 'optim.lr'.\n"


def test_dashes_and_underscores_are_the_same(ran):
    assert cli.main([*DPO, "--data.max-length", "9", "--data.strict", "--train.max_steps", "3"]) == 0
    assert ran[0].data.max_length == 9 and ran[0].data.strict and ran[0].train.max_steps == 3


def test_positionals(ran):
    assert cli.main(["data", "--show", "3", "rows.jsonl"]) == 0
    assert cli.main(["report", "a", "b", "--out", "x.html"]) == 0
    assert cli.main(["generate", "model", "--sampling.temperature", "0"]) == 0
    data, report, generate = ran
    assert type(data) is config.InspectConfig and (data.file, data.show) == ("rows.jsonl", 3)
    assert report == config.ReportConfig(runs=("a", "b"), out="x.html")
    assert generate.model == "model" and generate.sampling.temperature == 0


def test_dry_run_prints_what_would_run_and_can_be_read_back(tmp_path, ran, capsys):
    assert cli.main([*DPO, "--dry_run", "--loss.beta", "0.25"]) == 0
    assert ran == []
    file = tmp_path / "again.yaml"
    file.write_text(capsys.readouterr().out)
    assert cli.main(["dpo", "--config", str(file)]) == 0
    assert ran[0].loss.beta == 0.25 and ran[0].data.train == "t"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (DataError("rows.jsonl:3: broken"), 2, "error: rows.jsonl:3: broken\n"),
        (NonFiniteError("step 4: loss is nan"), 3, "error: step 4: loss is nan\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_exit_codes(error, code, message, monkeypatch, capsys):
    monkeypatch.setattr(cli, "_function", lambda target: failing(error))
    assert cli.main(DPO) == code
    assert capsys.readouterr().err == message


def test_bugs_keep_their_traceback(monkeypatch):
    monkeypatch.setattr(cli, "_function", lambda target: failing(ZeroDivisionError("ours")))
    with pytest.raises(ZeroDivisionError):
        cli.main(DPO)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_its_function(name: str):
    function = cli._function(cli.COMMANDS[name].target)
    assert callable(function) and function.__doc__


def test_every_public_name_exists():
    for name in assent.__all__:
        assert getattr(assent, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = assent.nothing


def test_env_reports_without_measuring(capsys):
    assert cli.main(["env", "--no_matmul"]) == 0
    out = capsys.readouterr().out
    assert "native precision" in out and assent.__version__ in out and "GFLOP" not in out
