"""Files that cannot be written: one message with place and cause, and the file whole or not there."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from safetensors.numpy import save_file

from assent.cli import main
from assent.errors import OutputError
from assent.outputs import append, free_bytes, try_file, write_text, writing

Limit = Callable[[int], object]


@pytest.fixture
def files_up_to() -> Limit:
    """Inside of it, files end at so many bytes, as on a full disk."""

    @contextmanager
    def limited(size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_text_is_replaced_whole_or_not_at_all(tmp_path: Path, files_up_to: Limit):
    file = tmp_path / "deep" / "page.html"
    write_text(file, "old")
    with files_up_to(1000), pytest.raises(OutputError, match=r"The page cannot be written: File too large.*ulimit -f"):
        write_text(file, "n" * 5000, "The page")
    assert file.read_text() == "old" and everything(tmp_path) == {"deep", "deep/page.html"}
    write_text(file, "new \ud800".encode("utf-8", "replace").decode())
    assert file.read_text().startswith("new")


def test_a_row_is_appended_whole_or_not_at_all(tmp_path: Path, files_up_to: Limit):
    with (tmp_path / "rows").open("wb", buffering=0) as file:
        append(file, b"one\n")
        with files_up_to(10), pytest.raises(OutputError, match="rows cannot be written: File too large"):
            append(file, b"a longer row that does not fit\n")
        append(file, b"two\n")
    assert (tmp_path / "rows").read_bytes() == b"one\ntwo\n"


def test_a_full_device_is_named():
    with Path("/dev/full").open("wb", buffering=0) as file:
        with pytest.raises(
            OutputError, match=r"/dev/full cannot be written: No space left on device. Make room there."
        ):
            append(file, b"row\n")


def test_what_rust_says_of_the_disk_is_heard(tmp_path: Path, files_up_to: Limit, tokenizer):
    import numpy as np

    with files_up_to(4096):
        with pytest.raises(OutputError, match="cannot be written: File too large"), writing(tmp_path / "x.safetensors"):
            save_file({"x": np.zeros(5000)}, tmp_path / "x.safetensors")
        with pytest.raises(OutputError, match="cannot be written: File too large"), writing(tmp_path / "tokenizer"):
            tokenizer.save_pretrained(tmp_path / "tokenizer")


@pytest.mark.parametrize("command", ["init", "export"])
def test_model_folders_are_whole_or_absent(
    command: str, files_up_to: Limit, tiny_model_dir: Path, tmp_path: Path, capsys
):
    (tmp_path / "text.jsonl").write_text('{"text": "red green blue red green blue"}\n' * 20)
    made = ["--data", str(tmp_path / "text.jsonl"), "--hidden_size", "32", "--heads", "4", "--kv_heads", "2"]
    options = {"init": made, "export": [str(tiny_model_dir)]}[command]
    with files_up_to(30_000):
        assert main([command, *options, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert f"error: --out {tmp_path / 'out'} cannot be written: File too large." in said and "Traceback" not in said
    assert everything(tmp_path) == {"text.jsonl"}


def test_other_errors_pass(tmp_path: Path):
    with pytest.raises(ValueError, match="mine"), writing(tmp_path / "file"):
        raise ValueError("mine")
    with pytest.raises(OSError, match="elsewhere"), writing(tmp_path / "a" / "file", inside=tmp_path / "a"):
        raise OSError(errno.EIO, "elsewhere", str(tmp_path / "b" / "file"))


def test_trying_a_place_leaves_nothing(tmp_path: Path):
    (tmp_path / "there.txt").write_text("mine")
    try_file(tmp_path / "there.txt")
    try_file(tmp_path / "not" / "yet" / "there.txt")
    assert everything(tmp_path) == {"there.txt"} and (tmp_path / "there.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("folder", "it is a folder"),
        ("pipe", "it is no regular file"),
        ("full", "it is no regular file"),
        ("file/inside", "a file is in the way"),
        ("dangling", "No such file"),
        ("x" * 300, "File name too long"),
        ("folder/" + "y" * 300, "Choose a shorter name"),
    ],
)
def test_places_that_cannot_be_written_are_named(name: str, reason: str, tmp_path: Path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "full").symlink_to("/dev/full")
    (tmp_path / "dangling").symlink_to(tmp_path / "gone" / "file")
    with pytest.raises(OutputError, match=reason) as caught:
        try_file(tmp_path / name, "--out")
    assert str(caught.value).startswith("--out cannot be written: ")


def test_room_is_that_of_the_nearest_folder(tmp_path: Path):
    assert abs(free_bytes(tmp_path / "a" / "b") - free_bytes(tmp_path)) < 1 << 30
