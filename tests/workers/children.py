"""Runs commands and programs in forked children, so that the tests pay for the imports once.

Reads JSON lines and answers each with one. {"run": [arguments], "log": file, "env": variables} starts `assent`,
{"program": [file, arguments], ...} a Python file; the output goes to `log` (or pipe, or terminal), the answer is the
process id. {"wait": pid, "seconds": number} answers how it ended: an exit code, or minus the number of the signal that
killed it, SIGKILL where it took longer than that.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import gc
import json
import os
import runpy
import signal
import sys
import time
import traceback

import torch
import torch.distributed.fsdp
from transformers import AutoModelForCausalLM  # noqa: F401  (this and what follows: what a child would import)
from transformers.models.llama import modeling_llama  # noqa: F401

from assent import cli
from assent.algorithms import sft  # noqa: F401
from assent.algorithms.online import train  # noqa: F401
from assent.algorithms.preference import train as preference  # noqa: F401
from assent.algorithms.reward import pairs  # noqa: F401
from assent.evaluate import compare  # noqa: F401
from assent.loops import apo, constitution, iterate, rlcd, steerlm, warp  # noqa: F401

LOOK = 0.005


def child(request: dict) -> None:
    """Never returns."""
    code = 1
    os.environ.update(request.get("env", {}))
    try:
        file = os.open(request["log"], os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_NOCTTY)
        for stream in (1, 2):
            os.dup2(file, stream)
        faulthandler.enable()  # a crash says where
        if "run" in request:
            sys.argv = ["assent", *request["run"]]
            cli.entry()
        else:
            sys.argv = request["program"]
            runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):  # streams may be broken
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def ended(pid: int, seconds: float | None) -> int:
    """The exit code."""
    if seconds is not None:
        end = time.monotonic() + seconds
        while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            if time.monotonic() > end:
                os.kill(pid, signal.SIGKILL)
                break
            time.sleep(LOOK)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main() -> None:
    torch.set_num_threads(1)
    os.fsync = lambda handle: None  # as in the tests' own process
    gc.collect()
    gc.freeze()  # children that collect garbage do not look at what was imported, again and again
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = ended(request["wait"], request.get("seconds"))
        else:
            answer = os.fork()
            if answer == 0:
                child(request)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
