"""The model card of a finished run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from assent import settings
from assent.config import PreferenceConfig, RunConfig
from assent.objectives import OBJECTIVES, objective_of
from assent.online import METHODS, OnlineConfig, method_of

TASKS = {
    "SFTConfig": ("supervised fine-tuning", "text-generation", "AutoModelForCausalLM"),
    "RewardConfig": ("reward modelling (Bradley-Terry)", "text-classification", "AutoModelForSequenceClassification"),
}


def model_card(config: RunConfig, metrics: Mapping[str, float], steps: int, checked: str = "") -> str:
    """Markdown with the hub's front matter: what was trained from what, on what, how well, how to load it, and how the
    folder was `checked`."""
    if isinstance(config, PreferenceConfig):
        method, pipeline, loader = OBJECTIVES[objective_of(config)].name, "text-generation", "AutoModelForCausalLM"
    elif isinstance(config, OnlineConfig):
        method, pipeline, loader = METHODS[method_of(config)].name, "text-generation", "AutoModelForCausalLM"
    else:
        method, pipeline, loader = TASKS[type(config).__name__]
    held_out = {name: value for name, value in metrics.items() if name.startswith("eval/")}
    rows = "\n".join(f"| {name.removeprefix('eval/')} | {value:.4g} |" for name, value in held_out.items())
    table = f"| held-out metric | value |\n|---|---|\n{rows}" if rows else "No held-out data was given."
    return f"""---
library_name: transformers
pipeline_tag: {pipeline}
tags: [assent, {type(config).__name__.removesuffix("Config").lower()}]
---
# {Path(config.out).name}

`{config.model.path}` after {steps} steps of {method} on `{config.data.train}` with assent.

{table}

```python
from transformers import AutoTokenizer, {loader}

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = {loader}.from_pretrained("FOLDER")
```
{checked}

## Configuration
```yaml
{settings.dump(config).strip()}
```
"""
