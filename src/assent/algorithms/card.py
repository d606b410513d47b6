"""The model card of a finished run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from assent import settings
from assent.config import PreferenceConfig, RunConfig
from assent.methods import METHODS
from assent.models.recipe import Usage
from assent.objectives import OBJECTIVES, objective_of
from assent.online import OnlineConfig, method_of

TASKS = {
    "SFTConfig": ("supervised fine-tuning", "text-generation", "AutoModelForCausalLM"),
    "RewardConfig": ("reward modelling (Bradley-Terry)", "text-classification", "AutoModelForSequenceClassification"),
}


PLAIN = """```python
from transformers import AutoTokenizer, {loader}

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = {loader}.from_pretrained("FOLDER")
```"""

RENDER = """tokenizer = AutoTokenizer.from_pretrained("FOLDER")
answers = ["Paris.", "I do not know, sorry."]
question = {"role": "user", "content": "What is the capital of France?"}
chats = [[question, {"role": "assistant", "content": answer}] for answer in answers]
inputs = tokenizer.apply_chat_template(chats, padding=True, return_dict=True, return_tensors="pt")
ids, mask = inputs["input_ids"], inputs["attention_mask"]
"""

REWARD = f"""```python
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

{RENDER}
model = AutoModelForSequenceClassification.from_pretrained("FOLDER", dtype=torch.float32)
with torch.no_grad():
    rewards = model(input_ids=ids, attention_mask=mask).logits[:, 0]
```"""

OWN_REWARD = f"""```python
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

{RENDER}
backbone = AutoModel.from_pretrained("FOLDER", dtype=torch.float32)
weights = [load_file(file) for file in Path("FOLDER").glob("*.safetensors")]
head = next(tensors["HEAD"] for tensors in weights if "HEAD" in tensors)
with torch.no_grad():
    states = backbone(input_ids=ids, attention_mask=mask).last_hidden_state
    last = mask.shape[1] - 1 - mask.flip(1).argmax(1)
    rewards = states[torch.arange(len(last)), last] @ head[0].float()
```"""


def reward_usage(usage: Usage) -> str:
    """How to get rewards from the folder without assent, and what to know of them."""
    code = OWN_REWARD.replace("HEAD", usage.head) if usage.own else REWARD
    if not usage.pads:
        code = code.replace("for answer in answers]", "for answer in answers[:1]]").replace("padding=True, ", "")
    facts = [
        "The reward is the one logit at the token that ends the answer, without a sigmoid. The folder's chat template "
        "writes nothing behind that token where a conversation ends with an answer.",
        "An answer that was cut off has no such token: assent reads it at its last token, as it was sampled; rendered "
        "by a chat template it is read as if it had ended there.",
        "The head is computed in fp32: load it with dtype=torch.float32, as below. In bf16 near answers tie.",
        *(f"Not exact: {note}." for note in usage.notes),
    ]
    if usage.own:
        facts.insert(
            0,
            "transformers has no sequence-classification class that reads this model so: the folder holds "
            f"the decoder's weights and `{usage.head}`. `assent` reads it wherever it takes a reward model.",
        )
    return "\n".join(f"- {fact}" for fact in facts) + f"\n\n{code}"


def model_card(
    config: RunConfig, metrics: Mapping[str, float], steps: int, usage: Usage | None = None, checked: str = ""
) -> str:
    """Markdown with the hub's front matter: what was trained from what, on what, how well, how to load it, and how the
    folder was `checked`. `usage` is that of a reward model's folder."""
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

{PLAIN.format(loader=loader) if usage is None else reward_usage(usage)}
{checked}

## Configuration
```yaml
{settings.dump(config).strip()}
```
"""
