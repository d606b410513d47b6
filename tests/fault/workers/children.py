"""Runs `assent` commands in forked children, so that a test pays for the imports once.

Reads JSON lines: {"run": [arguments], "log": file, "env": variables} starts a child, whose output goes to that file (or
pipe, or terminal), and answers its process id; {"wait": pid} answers how it ended: an exit code, or minus the number of
the signal that killed it.
"""

from __future__ import annotations

import json
import os
import sys

import torch

from assent import cli
from assent.algorithms import sft  # noqa: F401  (what a child would import)
from assent.algorithms.online import train  # noqa: F401
from assent.algorithms.preference import train as preference  # noqa: F401
from assent.algorithms.reward import pairs  # noqa: F401


def run(arguments: list[str], log: str, env: dict[str, str]) -> None:
    code = 1
    os.environ.update(env)
    try:
        file = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_NOCTTY)
        for stream in (1, 2):
            os.dup2(file, stream)
        sys.argv = ["assent", *arguments]
        cli.entry()
    except SystemExit as end:
        code = end.code
    finally:
        os._exit(code)


def main() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        request = json.loads(line)
        if "run" in request:
            answer = os.fork()
            if answer == 0:
                run(request["run"], request["log"], request.get("env", {}))
        else:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
