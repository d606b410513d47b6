"""Standard output and standard error that are closed, full, or know few letters: the right exit code, no traceback."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

import assent
from assent import cli, streams
from assent.data.jsonl import json_line

SOURCE = Path(assent.__file__).parents[1]


def shell(command: str) -> tuple[int, str, str]:
    """Exit code and what was written, of a command in which ASSENT stands for the program."""
    program = f"{sys.executable} -m assent"
    env = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run(["bash", "-c", command.replace("ASSENT", program)], env=env, capture_output=True, timeout=60)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("ASSENT --help >&-", 2, "error: standard output: it is closed. What was to be printed there is lost."),
        ("ASSENT --help >/dev/full", 2, "error: standard output: No space left on device."),
        ("ASSENT --version 2>&-", 0, ""),
        ("ASSENT nonsense 2>&-", 2, ""),
        ("ASSENT nonsense 2>/dev/full", 2, ""),
        ("ASSENT nonsense >&- 2>&- <&-", 2, ""),
        ("{ sleep 0.2; ASSENT --help; } | true; exit ${PIPESTATUS[0]}", 141, ""),
        ("{ sleep 0.2; ASSENT sft --help; } | true; exit ${PIPESTATUS[0]}", 141, ""),
        ("PYTHONUNBUFFERED=1 ASSENT --help > /dev/full", 2, "error: standard output: No space left on device."),
    ],
)
def test_closed_and_full_streams(command: str, code: int, said: str):
    found, out, err = shell(command)
    assert found == code and err.startswith(said) and bool(err) == bool(said)
    assert "Traceback" not in out + err and "Exception ignored" not in err


def test_a_file_never_takes_the_place_of_a_closed_stream(tmp_path: Path):
    lines = [
        "from assent import process, streams",
        "process.adopt()",
        "streams.prepare()",
        f"file = open({str(tmp_path / 'x')!r}, 'w')",
        "print('lost')",
        "file.write(str(file.fileno()))",
        "file.close()",
    ]
    code = "; ".join(lines)
    subprocess.run(
        ["bash", "-c", f'{sys.executable} -c "{code}" >&- 2>&-'],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        check=True,
        timeout=60,
    )
    assert int((tmp_path / "x").read_text()) > 2


def test_a_run_whose_result_is_in_files_is_no_failure(monkeypatch: pytest.MonkeyPatch, capsys):
    """The last words of a run are lost, its files are not."""
    monkeypatch.setattr(cli, "_run", lambda words: words == ["saved"])
    monkeypatch.setattr(streams, "broken", lambda: streams.Broken("No space left on device"))
    assert cli.main(["saved"]) == 0
    assert cli.main(["printed"]) == 2
    assert "standard output: No space left on device" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_what_a_run_prints_on_its_way_cannot_end_it(monkeypatch: pytest.MonkeyPatch):
    done: list[str] = []

    def run(options: object) -> None:
        print("prompts are not shared", flush=True)
        done.append("the rest")

    monkeypatch.setattr(cli, "_function", lambda target: run)
    code = None
    with suppress(OSError), open("/dev/full", "w") as full:  # closing it writes once more
        monkeypatch.setattr(sys, "stdout", full)
        code = cli.main(["init", "--data", "rows.jsonl", "--out", "model"])
    assert code == 0 and done == ["the rest"]


def test_an_error_while_printing_is_told_apart_from_others(monkeypatch: pytest.MonkeyPatch, capsys):
    def function(words: list[str]) -> bool:
        raise OSError("of something else")

    monkeypatch.setattr(cli, "_run", function)
    with pytest.raises(OSError, match="of something else"):
        cli.main([])


def test_few_letters_are_no_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "zwölf \N{SNOWMAN}.jsonl"
    file.write_text(json.dumps({"prompt": "Grüße \N{SMILING FACE WITH OPEN MOUTH}", "completion": "né"}) + "\n")
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    assert cli.main(["data", str(file)]) == 0
    out.flush()
    text = out.buffer.getvalue().decode("ascii")  # type: ignore[attr-defined]
    assert "zw\\u00f6lf \\u2603.jsonl" in text


def test_a_line_of_json_stays_one_with_few_letters(monkeypatch: pytest.MonkeyPatch):
    row = {"response": 'né \N{SNOWMAN} \N{SMILING FACE WITH OPEN MOUTH} "quoted" \\'}
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors=streams.ESCAPES)
    out.write(json_line(row))
    out.flush()
    assert json.loads(out.buffer.getvalue().decode("ascii")) == row  # type: ignore[attr-defined]


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
def test_a_name_that_is_no_text_can_be_printed(encoding: str, monkeypatch: pytest.MonkeyPatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", out)
    streams.prepare()
    print(os.fsdecode(b"\xff.jsonl"), flush=True)
    assert out.buffer.getvalue() == b"\\udcff.jsonl\n"  # type: ignore[attr-defined]
