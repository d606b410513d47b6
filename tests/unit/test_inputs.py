"""Digests of what a run reads: the files behind a function, models, rows."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from assent.code import sources
from assent.data.records import Example, Message, Origin, Rating
from assent.models import digests
from assent.train import digests as inputs


def test_the_files_behind_a_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is imported, directly or not, by any spelling; not Python's own modules, installed packages or assent."""
    texts = {
        "code.py": "import json, numpy, assent.errors\nimport pack.deep\nfrom beside import x\nfrom pack import inner",
        "beside.py": "def late():\n    import circle",
        "circle.py": "import beside, code",
        "pack/__init__.py": "from . import sibling",
        "pack/sibling.py": "",
        "pack/deep.py": "from .inner import a\nfrom .. import nothing",
        "pack/inner.py": "from .nested.leaf import b",
        "pack/nested/leaf.py": "",
        "pack/unused.py": "",
        "unused.py": "",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    expected = {name for name in texts if "unused" not in name} - {"code.py"}
    found = sources(f"{tmp_path / 'code.py'}:score")
    assert found["score"] == tmp_path / "code.py" and found.keys() == expected | {"score"}
    monkeypatch.chdir(tmp_path)
    assert sources("code.py:score").keys() == expected | {"score"}
    monkeypatch.syspath_prepend(str(tmp_path))
    assert sources("code:score").keys() == expected | {"score"}
    assert sources("pack.deep:f").keys() == {"f", "__init__.py", "sibling.py", "inner.py", "nested/leaf.py"}
    assert sources("json.decoder:f")["f"].name == "decoder.py"
    assert sources("no.such:f") == sources("absent.py:f") == {}
    (tmp_path / "broken.py").write_text("def (")
    assert sources("broken.py:f").keys() == {"f"}


def test_an_edit_is_never_missed(tmp_path: Path) -> None:
    """Also where size, mtime and inode are as before."""
    file = tmp_path / "weights"
    file.write_bytes(b"a" * 100)
    before = file.stat()
    first = digests.file_digest(file)
    for letter in b"bcdefgh":
        with file.open("r+b") as stream:
            stream.write(bytes([letter]) * 100)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert (second := digests.file_digest(file)) != first
        first = second


def test_content_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"a" * 100)
    monkeypatch.setattr(time, "time_ns", lambda: file.stat().st_ctime_ns + 10 * digests.SETTLED)
    first = digests.file_digest(file)
    monkeypatch.setattr(Path, "open", None)
    assert digests.file_digest(file) == first


def test_parts_of_a_model(tiny_model_dir: Path, tmp_path: Path) -> None:
    parts = digests.model_digests(str(tiny_model_dir))
    assert parts.keys() == {"weights", "configuration", "tokenizer"} and len(set(parts.values())) == 3
    moved = tmp_path / "moved"
    moved.mkdir()
    for file in tiny_model_dir.iterdir():
        os.link(file, moved / file.name)
    (moved / "README.md").write_text("about")
    assert digests.model_digests(str(moved)) == parts
    (moved / "modeling_own.py").write_text("x = 1")
    changed = digests.model_digests(str(moved))
    assert {part for part in parts if changed[part] != parts[part]} == {"configuration"}


def test_rows_by_all_that_they_hold() -> None:
    example = Example((Message("user", "Hi"),), origin=Origin("a.jsonl", 1), meta={"a": 1, "b": [date(2026, 1, 1)]})

    def digest(*examples: Example) -> str:
        return inputs._rows("", examples, [])["rows"]

    assert digest(example) == digest(replace(example, origin=Origin("b.jsonl", 7)))
    assert digest(example) == digest(replace(example, meta={"b": [date(2026, 1, 1)], "a": 1}))
    others = [
        replace(example, meta={"a": 1, "b": [date(2026, 1, 2)]}),
        replace(example, meta={"a": float("nan")}),
        replace(example, meta={"a": "\ud800"}),
        replace(example, meta={"a": b"\xff"}),
        replace(example, prompt_text="Hi"),
        replace(example, feedback=(Rating(0, {"x": 1.0}),)),
        replace(example, prompt=(Message("user", "Hi", name="me"),)),
        replace(example, tools="[]"),
    ]
    assert len({digest(each) for each in [example, *others]}) == len(others) + 1
    assert digest(example, others[0]) != digest(others[0], example) and digest(example).startswith("1 rows ")
