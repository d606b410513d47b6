"""The model card of a finished run."""

from __future__ import annotations

from assent.config import settings
from assent.data.dataset import summary as data_summary
from assent.models.recipe import Usage
from assent.models.reward_head import HeadRule
from assent.train.closing import Summary, gained
from assent.train.commands import words

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
    if len(usage.rule) > 1:
        code = _of_several(code, usage.rule)
    if not usage.pads:
        code = code.replace("for answer in answers]", "for answer in answers[:1]]").replace("padding=True, ", "")
    outputs = "reward is the one logit" if len(usage.rule) == 1 else f"{len(usage.rule)} outputs are the logits"
    facts = [
        f"The {outputs} at the token that ends the answer, without a sigmoid. The folder's chat template "
        "writes nothing behind that token where a conversation ends with an answer.",
        "An answer that was cut off has no such token: assent reads it at its last token, as it was sampled; rendered "
        "by a chat template it is read as if it had ended there.",
        "The head is computed in fp32: load it with dtype=torch.float32, as below. In bf16 near answers tie.",
        *(f"Not exact: {note}." for note in usage.notes),
    ]
    if usage.rule.offset:
        offsets = ", ".join(f"{offset:g}" for offset in usage.rule.offset)
        facts.append(f"assent adds {offsets} to the logits, as the head that it was made of does: the same order.")
    if usage.own:
        facts.insert(
            0,
            "transformers has no sequence-classification class that reads this model so: the folder holds "
            f"the decoder's weights and `{usage.head}`. `assent` reads it wherever it takes a reward model.",
        )
    return "\n".join(f"- {fact}" for fact in facts) + f"\n\n{code}"


def _of_several(code: str, rule: HeadRule) -> str:
    """The code for one output, for K and their rule."""
    for one, several in {
        "rewards = ": "outputs = ",
        ".logits[:, 0]": ".logits",
        "head[0].float()": "head.float().T",
        "\n```": f"  # {', '.join(rule.names)}\n```",
    }.items():
        code = code.replace(one, several)
    rewards = f"rewards = outputs @ torch.tensor({list(rule.weights)})\n" if rule.weights else ""
    return code.removesuffix("```") + rewards + "```"


def model_card(run: Summary, usage: Usage | None = None, checked: str = "") -> str:
    """Markdown with the hub's front matter: what was trained from what, on what, how well, how to load it, and how the
    folder was `checked`. `usage` is that of a reward model's folder."""
    config = run.config
    pipeline = "text-classification" if run.command.scores else "text-generation"
    loader = "AutoModelForSequenceClassification" if run.command.scores else "AutoModelForCausalLM"
    which = f"the best of {run.steps} steps" if run.final == "best" else "the last"
    data = f"Data: {data_summary(run.data)}\n" if run.data else ""
    return f"""---
library_name: transformers
pipeline_tag: {pipeline}
tags: [assent, {run.command.key}]
---
# {run.out.name}

`{config.model.path}` after {run.step} steps ({which}) of {run.command.name} on `{config.data.train}` with assent.

{data}
{_held_out(run)}

{PLAIN.format(loader=loader) if usage is None else reward_usage(usage)}
{checked}

## Configuration
```yaml
{settings.dump(config).strip()}
```
"""


def _held_out(run: Summary) -> str:
    """Held-out metrics of the start and of the weights in the folder, and what was gained."""
    if run.end is None:
        return "No held-out data was given."
    start = {} if run.start is None else run.start.metrics
    rows = [
        f"| {name.removeprefix('eval/')} | {f'{start[name]:.4g}' if name in start else ''} | {value:.4g} |"
        for name, value in run.end.metrics.items()
    ]
    table = "\n".join([f"| held-out metric | start | step {run.end.step} |", "|---|---|---|", *rows])
    gain = gained(run)
    best = run.value(run.best)
    lines = [f"{words(run.command.followed.held_out[0])}{gain}." if gain else ""]
    if run.best is not None and best is not None:
        lines.append(f"Best step by held-out {words(run.command.followed.best)}: {run.best.step} ({best:.4g}).")
    return "\n\n".join([table, *filter(None, lines)])
