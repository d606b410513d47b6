"""What vLLM's worker processes are given beside their own methods, as --worker-extension-cls."""

from __future__ import annotations

from typing import Any


class HeadRefresh:
    """vLLM for CPUs multiplies with packed copies of its weights. When it loads weights again, it forgets (in 0.32) to
    pack an output head that is tied to the embedding: without this, new layers would go on with the old head."""

    def refresh_head(self: Any) -> None:
        """Packs output heads anew. Does nothing where there are no packed copies."""
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

        for module in self.get_model().modules():
            if isinstance(module, ParallelLMHead) and hasattr(module, "cpu_linear"):
                module.quant_method.process_weights_after_loading(module)


HEAD_REFRESH = f"{HeadRefresh.__module__}.{HeadRefresh.__name__}"
