"""The run folder's own files: what is written, who may go on, and what is said of every difference."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from assent import cli, lock
from assent.config import (
    DataConfig,
    ModelConfig,
    OnlineConfig,
    OptimConfig,
    RunConfig,
    SFTConfig,
    TrainConfig,
    preference_config,
    settings,
)
from assent.errors import CheckpointError, OutputError, RunFolderError
from assent.outputs import write_text
from assent.train import checkpoint
from assent.train.history import MAY_CHANGE, command_key, options_hash, resolved_options
from assent.train.runfolder import RunFolder

READ = {"model.path": {"weights": "a" * 64}, "data.train": {"rows": f"10 rows {'b' * 64}"}}


def config(**changes: Any) -> SFTConfig:
    base = SFTConfig(model=ModelConfig("model"), data=DataConfig("rows.jsonl"), out="run")
    for name, value in changes.items():
        section, _, option = name.partition("__")
        value = dataclasses.replace(getattr(base, section), **{option: value}) if option else value
        base = dataclasses.replace(base, **{section: value})
    return base


def begun(path: Path, read: dict[str, dict[str, str]] = READ, **changes: Any) -> RunFolder:
    """A run that has written its files, and no step."""
    folder = RunFolder.create(path, config(**changes))
    folder.record({"rows": 10}, read)
    folder.close()
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that was stopped after step 4."""
    folder = begun(tmp_path / "run")
    checkpoint.save(folder.checkpoints, 4, {"x": 1}, meta=folder.meta())
    folder.metrics.write_text('{"step": 4, "loss": 1.0}\n')
    return folder.path


def again(path: Path, read: dict[str, dict[str, str]] = READ, ranks: int = 1, **changes: Any) -> RunFolder:
    """The same run, resumed."""
    changed = config(resume="auto", **changes)
    folder = RunFolder.create(path, changed, "auto", ranks)
    try:
        folder.record({"rows": 10}, read)
    finally:
        folder.close()
    return folder


def written(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(path.iterdir()) if file.is_file()}


# ---- what is written


def test_a_new_folder_records_options_and_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/local/bin/assent", "sft", "--out", "my run"])
    folder = RunFolder.create(tmp_path / "a" / "run", config(optim__lr=3e-4), ranks=2)
    assert folder.checkpoint is None and lock.content(folder.path) == set(), "nothing before the data are read"
    folder.record({"rows": 10}, READ)
    folder.close()
    assert settings.read(SFTConfig, folder.path / "resolved.yaml") == config(optim__lr=3e-4)
    found = json.loads((folder.path / "environment.json").read_text())
    assert found["command"] == "sft" and found["command_line"] == "assent sft --out 'my run'"
    assert found["ranks"] == 2 and found["run_id"] == folder.run_id
    assert found["versions"]["torch"] == torch.__version__ and found["cores"] >= 1
    text = (folder.path / "environment.json").read_text()
    assert str(tmp_path) not in text and str(Path.home()) + "/" not in text
    assert json.loads((folder.path / "data.json").read_text()) == {"rows": 10, "inputs": READ}
    assert {path.name for path in folder.path.iterdir()} == {"resolved.yaml", "environment.json", "data.json"}


def test_files_are_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "data.json"
    write_text(file, "old")
    monkeypatch.setattr(Path, "replace", lambda self, target: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OutputError, match="data.json cannot be written: No space"):
        write_text(file, "new")
    assert file.read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["data.json"]
    monkeypatch.undo()
    write_text(file, json.dumps({"file": "a\udcff.jsonl"}, ensure_ascii=False))  # a byte that is no UTF-8
    assert json.loads(file.read_text()) == {"file": "a\udcff.jsonl"}


# ---- who may begin


def test_an_existing_folder_is_never_reused_silently(run: Path, tmp_path: Path) -> None:
    before = written(run)
    with pytest.raises(RunFolderError, match="earlier run is there. Continue it with --resume auto"):
        RunFolder.create(run, config(optim__lr=1.0))
    assert written(run) == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    for resume in (None, "auto"):
        with pytest.raises(RunFolderError, match="not empty and is no run folder"):
            RunFolder.create(tmp_path / "other", config(), resume)
    for out in (tmp_path / "other" / "thesis.tex", tmp_path / ("x" * 300), tmp_path / "nul\0"):
        with pytest.raises(RunFolderError, match="cannot be used|it is a file"):
            RunFolder.create(out, config())
    assert sorted(p.name for p in (tmp_path / "other").iterdir()) == ["thesis.tex"]


@pytest.mark.parametrize("resume", [None, "auto"])
@pytest.mark.parametrize(
    "names", [[], ["environment.json"], [".1.part"], [".resolved.yaml.77"], ["environment.json", "data.json"]]
)
def test_a_run_killed_before_its_options_were_written_can_be_begun(
    names: list[str], resume: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    path.mkdir()
    for name in [*names, lock.NAME]:
        (path / name).write_text('{"command": "dpo"}')
    folder = RunFolder.create(path, config(), resume)
    folder.record({}, READ)
    folder.close()
    assert {each.name for each in path.iterdir()} == {"resolved.yaml", "environment.json", "data.json"}


def test_a_run_of_an_earlier_version_is_refused(run: Path) -> None:
    file = run / "environment.json"
    found = json.loads(file.read_text())
    file.write_text(json.dumps(found | {"command": "assent sft --out x", "configuration": "SFTConfig"}))
    with pytest.raises(
        RunFolderError, match="made by an earlier version of assent and cannot be continued by this one"
    ):
        RunFolder.create(run, config(), "auto")


def test_a_run_of_another_command_is_refused(run: Path) -> None:
    file = run / "environment.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"command": "robust-dpo"}))
    with pytest.raises(RunFolderError, match="made with assent robust-dpo, not with assent sft"):
        RunFolder.create(run, config(), "auto")


def test_the_command_of_every_configuration() -> None:
    for name, row in cli.COMMANDS.items():
        if issubclass(row.config, RunConfig) and name != "compare":
            own = {"objective": "my.py:objective"} if name == "custom" else {}
            assert command_key(row.config(ModelConfig("m"), DataConfig("d"), "o", **own)) == name


def test_a_run_that_stopped_before_its_first_step(tmp_path: Path) -> None:
    """May be begun again with other options, but is not resumed as another."""
    path = begun(tmp_path / "run").path
    assert again(path).checkpoint is None
    with pytest.raises(RunFolderError, match=r"--optim.lr: 1e-05 -> 1.0\nGive the same options, or leave --resume"):
        again(path, optim__lr=1.0)
    dpo = preference_config("dpo", model=ModelConfig("model"), data=DataConfig("rows.jsonl"), out="run")
    with pytest.raises(RunFolderError, match="made with assent sft, not with assent dpo"):
        RunFolder.create(path, dpo, "auto")
    begun(path, optim__lr=1.0)
    assert yaml.safe_load((path / "resolved.yaml").read_text())["optim"]["lr"] == 1.0
    (path / "metrics.jsonl").touch()
    with pytest.raises(RunFolderError, match="an earlier run is there"):
        RunFolder.create(path, config())


def test_a_log_without_a_checkpoint_is_put_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = begun(tmp_path / "run").path
    (path / "metrics.jsonl").write_text('{"step": 0, "eval/nll": 2.0}\n')
    again(path)
    assert "starts over" not in capsys.readouterr().err, "no step was taken"
    rows = '{"step": 0, "eval/nll": 2.0}\n{"step": 1, "loss": 2.0}\n{"step": 12, "lo'
    for number in (1, 2):
        (path / "metrics.jsonl").write_text(rows)
        (path / "samples.jsonl").write_text("{}\n")
        again(path)
        said = " ".join(capsys.readouterr().err.split())
        assert "reached step 12 without a checkpoint; this one starts over from step 0" in said
        assert (path / f"metrics.before-{number}.jsonl").read_text() == rows
        assert (path / f"samples.before-{number}.jsonl").read_text() == "{}\n"
        assert not (path / "metrics.jsonl").exists()


# ---- who may go on


def test_resume_continues_the_newest_and_keeps_the_id(run: Path) -> None:
    first = json.loads((run / "environment.json").read_text())["run_id"]
    folder = again(run)
    assert folder.checkpoint == run / "checkpoints" / "step-000004" and folder.run_id == first
    assert RunFolder.create(run, config(), str(folder.checkpoint)).checkpoint == folder.checkpoint
    folder.close()
    (run / "environment.json").unlink()
    assert again(run).run_id == first, "the checkpoint knows it as well"


def test_every_resume_is_in_the_history(run: Path) -> None:
    again(run, train__max_steps=9)
    other = READ | {"data.train": {"rows": f"9 rows {'c' * 64}"}}
    again(run, other, ranks=2, train__max_steps=9, resume_changed=("data.train",))
    first, second = json.loads((run / "environment.json").read_text())["history"]
    assert first["from"] == second["from"] == "step-000004" and first["when"] <= second["when"]
    assert first["options"] == {"train.max_steps": [None, 9]} and first["inputs"] == {}
    assert second["inputs"] == {"data.train, rows": [READ["data.train"]["rows"], other["data.train"]["rows"]]}
    assert second["options"] == {} and second["environment"]["ranks"] == [1, 2]


CHANGES = {
    "data__max_length": 7,
    "data__columns": {"prompt": "q"},
    "data__eval": "more.jsonl",
    "optim__lr": 1.0,
    "optim__schedule": "linear",
    "train__seed": 5,
    "train__batch_size": 3,
    "model__precision": "bf16",
    "model__chat_template": "chatml",
}


@pytest.mark.parametrize("name", CHANGES)
def test_resume_refuses_what_would_be_another_run(run: Path, name: str) -> None:
    before = written(run)
    with pytest.raises(RunFolderError, match=rf"--{name.replace('__', '.')}.*->"):
        again(run, **{name: CHANGES[name]}, train__max_steps=9)
    assert written(run) == before


def test_resume_allows_and_tells_how_long_and_how_often(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again(run, train__max_steps=100, train__save_every=3, train__keep=5)
    said = capsys.readouterr().err
    assert "--train.max_steps: None -> 100" in said and "--train.save_every: 0 -> 3" in said
    assert "--resume" not in said
    assert yaml.safe_load((run / "resolved.yaml").read_text())["train"]["max_steps"] == 100


def test_every_changeable_option_exists() -> None:
    of_every_run, online = ({o.name for o in settings.options(kind)} for kind in (SFTConfig, OnlineConfig))
    assert of_every_run | {"judge.cache"} >= MAY_CHANGE and online >= MAY_CHANGE


def test_of_a_checkpoint_of_another_folder_or_run(run: Path, tmp_path: Path) -> None:
    mine = run / "checkpoints" / "step-000004"
    with pytest.raises(RunFolderError, match="belongs to another run folder"):
        RunFolder.create(tmp_path / "new", config(), str(mine))
    other = begun(tmp_path / "other")
    with pytest.raises(RunFolderError, match="not a checkpoint of --out"):
        RunFolder.create(other.path, config(), str(mine))
    other.checkpoints.mkdir()
    mine.rename(other.checkpoints / mine.name)
    with pytest.raises(
        CheckpointError, match=rf"step-000004: a checkpoint of the run .*folder of the run {other.run_id}"
    ):
        again(other.path)


def test_resume_tells_of_another_environment(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again(run, ranks=2)
    said = capsys.readouterr().err
    assert "another environment" in said and "ranks: 1 -> 2" in said


def test_options_hash_ignores_only_what_may_change() -> None:
    def made(**changes: Any) -> str:
        return options_hash(resolved_options(config(**changes)))

    assert made() == made(train=TrainConfig(max_steps=5, keep=9), out="elsewhere") == made(model__path="moved")
    assert len({made(), made(optim=OptimConfig(lr=1.0)), made(train=TrainConfig(seed=1))}) == 3


# ---- what has been read


def test_other_content_is_refused_by_name(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In one message, with the way on; nothing is written before that is settled."""
    before = written(run)
    other = {
        "model.path": {"weights": "d" * 64},
        "data.train": {"rows": f"9 rows {'c' * 64}", "held-out rows": "2 rows"},
    }
    with pytest.raises(RunFolderError) as refused:
        again(run, other)
    assert str(refused.value) == (
        "--resume: this is not what the run has read so far:\n"
        "  --model.path, weights: aaaaaaaa -> dddddddd\n"
        "  --data.train, rows: 10 rows bbbbbbbb -> 9 rows cccccccc\n"
        "  --data.train, held-out rows: none -> 2 rows\n"
        "Restore it, start a new run in another --out, or go on with what is there now: --resume_changed model.path "
        "data.train"
    )
    with pytest.raises(
        RunFolderError, match=r"--data\.train, rows(.|\n)*--resume_changed model\.path data\.train$"
    ) as half:
        again(run, other, resume_changed=("model.path",))
    assert "--model.path, weights" not in str(half.value)
    assert written(run) == before
    capsys.readouterr()
    again(run, other, resume_changed=("model.path", "data.train"))
    assert "--data.train, rows: 10 rows bbbbbbbb -> 9 rows cccccccc" in capsys.readouterr().err


def test_the_same_content_may_lie_elsewhere(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again(run, model__path="moved", data__train="elsewhere.jsonl")
    assert "--data.train: 'rows.jsonl' -> 'elsewhere.jsonl'" in capsys.readouterr().err
    assert yaml.safe_load((run / "resolved.yaml").read_text())["model"]["path"] == "moved"


def test_what_counts_is_what_the_checkpoint_was_made_with(run: Path) -> None:
    """Not what a later part of the run was told to go on with."""
    other = READ | {"model.path": {"weights": "d" * 64}}
    folder = again(run, other, resume_changed=("model.path",))
    checkpoint.save(folder.checkpoints, 8, {"x": 1}, meta=folder.meta())
    assert again(run, other).checkpoint.name == "step-000008"
    early = RunFolder.create(run, config(), str(run / "checkpoints" / "step-000004"))
    with pytest.raises(RunFolderError, match="dddddddd"):
        early.record({}, other)
    early.close()


def test_a_checkpoint_of_an_earlier_version_is_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = begun(tmp_path / "run")
    checkpoint.save(folder.checkpoints, 4, {"x": 1}, meta={"config": "c0ffee", "ranks": 1})
    plain = yaml.safe_load((folder.path / "resolved.yaml").read_text())
    del plain["resume_changed"]
    (folder.path / "resolved.yaml").write_text(yaml.safe_dump(plain))
    assert again(folder.path, {"data.train": {"rows": "others"}}).checkpoint is not None
    assert "was written by an earlier version: what its run has read cannot be compared" in capsys.readouterr().err
    with pytest.raises(RunFolderError, match=r"--data\.train: 'rows\.jsonl' -> 'b\.jsonl'"):
        again(folder.path, data__train="b.jsonl")


# ---- damage

DAMAGED = [
    ("environment.json", b"[]", "expected an object"),
    ("environment.json", b'{"run_id": "a", "ver', "not valid JSON"),
    ("environment.json", b"\xff\x00\x80" * 50, "not valid JSON"),
    ("environment.json", b'{"threads": "four"}', "'threads' is 'four'"),
    ("environment.json", b'{"history": {}}', "'history' is {}"),
    ("environment.json", b"[" * 100_000, "not valid JSON"),
    ("data.json", b"[]", "expected an object"),
    ("data.json", b"", "not valid JSON"),
    ("resolved.yaml", b"model: [", "not readable as the run's options"),
    ("resolved.yaml", b"- a\n- b\n", "not readable as the run's options"),
    ("resolved.yaml", b"\xff\xfe\x00", "not readable as the run's options"),
    ("resolved.yaml", None, "cut, or edited"),
]


@pytest.mark.parametrize(("name", "content", "reason"), DAMAGED)
def test_damage_of_a_file_is_named(name: str, content: bytes | None, reason: str, run: Path) -> None:
    file = run / name
    whole = file.read_text()
    file.write_bytes(whole[: whole.index("optim:")].encode() if content is None else content)
    before = written(run)
    with pytest.raises(RunFolderError) as refused:
        again(run)
    assert str(file) in str(refused.value) and reason in str(refused.value) and "\n" not in str(refused.value)
    assert written(run) == before


def test_damaged_checkpoints_are_never_started_over(run: Path) -> None:
    folder = run / "checkpoints"
    checkpoint.save(folder, 8, {"x": 1})
    (folder / "step-000004" / "state.json").write_text("")
    (folder / "step-000008" / "manifest.json").unlink()
    before = written(run)
    with pytest.raises(CheckpointError) as refused:
        again(run)
    first, eight, four, last = str(refused.value).split("\n")
    assert first == f"--resume auto: no checkpoint in {folder} is whole:"
    assert "step-000008/manifest.json: missing" in eight and "step-000004/state.json: 0 bytes" in four
    assert "another --out" in last and written(run) == before
    with pytest.raises(CheckpointError, match="state.json: 0 bytes"):
        RunFolder.create(run, config(), str(folder / "step-000004"))
    for path in folder.iterdir():
        for child in path.iterdir():
            child.unlink()
        path.rmdir()
        path.touch()  # a file where a checkpoint was
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        again(run)


def test_lost_options_are_named(run: Path) -> None:
    (run / "resolved.yaml").unlink()
    for resume in (None, "auto"):
        with pytest.raises(RunFolderError, match=r"resolved\.yaml is missing"):
            RunFolder.create(run, config(), resume)
