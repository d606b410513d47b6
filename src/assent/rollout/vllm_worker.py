"""What vLLM's worker processes are given beside their own methods, as --worker-extension-cls."""

from __future__ import annotations

import os
import select
import signal
import threading
from contextlib import suppress
from typing import Any


class Extension:
    """Methods that vLLM's workers get; a client calls them by name."""

    def refresh_head(self: Any) -> None:
        """Packs output heads anew, which vLLM for CPUs multiplies with as packed copies. When it loads weights again,
        it forgets (in 0.32) a head that is tied to the embedding: new layers would go on with the old head. Does
        nothing where there are no packed copies."""
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

        for module in self.get_model().modules():
            if isinstance(module, ParallelLMHead) and hasattr(module, "cpu_linear"):
                module.quant_method.process_weights_after_loading(module)

    def end_with(self, run: int) -> None:
        """Ends this process, and vLLM's core between it and the process `run`, when that one ends, however it does: a
        run that was killed must not leave its engine behind, with its memory."""
        threading.Thread(target=_end_with, args=(os.pidfd_open(run), run, os.getppid()), daemon=True).start()


def _end_with(run: int, pid: int, parent: int) -> None:
    select.select([run], [], [])
    for process in (parent, os.getpid()):
        if process != pid:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


EXTENSION = f"{Extension.__module__}.{Extension.__name__}"
