"""Commands as real processes, for the tests of faults."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import assent

SOURCE = Path(assent.__file__).parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.fault)


class Children:
    """Commands as processes of their own."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "children.log"
        env = {**os.environ, "PYTHONPATH": str(SOURCE), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        worker = Path(__file__).parent / "workers" / "children.py"
        pipe = subprocess.PIPE
        self.server = subprocess.Popen([sys.executable, str(worker)], stdin=pipe, stdout=pipe, text=True, env=env)

    def ask(self, **request) -> int:
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())

    def start(self, arguments: list[str], log: Path | None = None, **env: str) -> int:
        """Its output goes to `self.log`, or to `log`; `env` are further environment variables."""
        self.log.write_text("")
        return self.ask(run=arguments, log=str(log or self.log), env=env)

    def wait(self, pid: int) -> int:
        return self.ask(wait=pid)


@pytest.fixture(scope="session")
def children(tmp_path_factory) -> Iterator[Children]:
    made = Children(tmp_path_factory.mktemp("children"))
    assert made.wait(made.start(["--version"])) == 0  # the imports are done
    yield made
    made.server.stdin.close()
    made.server.wait(30)
