"""`--help` shows what people set, `--help-all` everything."""

from __future__ import annotations

import re

import pytest

from assent import cli, shorthelp
from assent.config import settings

OPTIONS = {name: settings.options(row.config) for name, row in cli.COMMANDS.items()}


def shown(*words: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main([*words]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_every_name_in_the_table_is_an_option_of_its_kind_of_command():
    for mark, listed in shorthelp.BASIC.items():
        kind = [options for options in OPTIONS.values() if mark in {option.name for option in options}]
        there = {name for options in kind for o in options for name in (o.name, f"{o.name.rpartition('.')[0]}.*")}
        assert set(listed.split()) <= there and len(listed.split()) == len(set(listed.split())), mark
    sections = {option.name.partition(".")[0] for options in OPTIONS.values() for option in options}
    headed = [name for names in shorthelp.HEADINGS.values() for name in names.split()]
    assert set(headed) <= sections and len(headed) == len(set(headed))


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_a_dozen_options_each_with_its_meaning(name: str, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    options, positional = OPTIONS[name], cli.COMMANDS[name].positional
    basic = shorthelp.basic(options)
    assert 8 <= len(basic) <= 17 if len(options) > 10 else basic == options
    assert {option.name for option in options if option.default is settings.REQUIRED} <= {o.name for o in basic}
    page = shown(name, "--help", capsys=capsys)
    assert page.splitlines()[-1] == f"assent {name} --help-all lists all {len(options)} options."
    assert max(map(len, page.splitlines())) <= 80
    entries = re.findall(r"^  (?:--([\w.]+)|([A-Z]+)\b)", page, re.M)
    entries = [flag or word.lower() for flag, word in entries if flag not in ("config", "dry_run")]
    assert sorted(entries) == sorted(option.name for option in basic)
    for option in basic:
        assert shorthelp.doc(option).split()[0] in page, option.name
    assert " ".join(["usage: assent", name, *map(str.upper, positional)]) in page


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_option_has_a_meaning(name: str):
    assert all(shorthelp.doc(option).endswith((".", ")")) for option in OPTIONS[name])


def test_what_stands_in_an_entry(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    page = shown("grpo", "--help", capsys=capsys)
    assert "  --rollout.responses N        Answers sampled to each prompt. [8]\n" in page  # the method's own default
    assert (
        "  --kl.coef X                  Weight of the KL to the reference; 0 needs no\n"
        + 31 * " "
        + "reference. [0.04]\n"
        in page
    )
    assert re.search(r"  --out TEXT +Run folder: [^[]*\(required\)\n", page)
    assert "\nusage" not in page and page.startswith(
        "usage: assent grpo --model.path TEXT --data.train TEXT --out TEXT"
    )
    assert "--reference.mode frozen|cached|moving\n" in shown("dpo", "--help", capsys=capsys)


def test_a_file_gives_its_values(tmp_path, capsys):
    (tmp_path / "run.yaml").write_text("optim: {lr: 3e-4}\nout: here\n")
    page = shown("dpo", "--config", str(tmp_path / "run.yaml"), "--help", capsys=capsys)
    assert "Peak learning rate. [0.0003]" in page and "[here]" in page


def test_a_narrow_terminal_breaks_no_option(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    page = shown("ppo", "--help", capsys=capsys)
    assert "  --sampling.max_new_tokens N" in page and "--rewards.functions TEXT ..." in page


@pytest.mark.parametrize("flag", ["--help-all", "--help_all"])
def test_help_all_lists_every_option(flag: str, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("sft", "kto", "grpo", "generate"):
        page = shown(name, flag, capsys=capsys)
        for option in OPTIONS[name]:
            named = option.name.upper() if option.name in cli.COMMANDS[name].positional else f"--{option.name}"
            assert named in page, option.name
