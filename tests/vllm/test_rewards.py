"""A reward model of ours on a real vLLM server: the same numbers as from its folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from assent.config import ModelConfig, RemoteConfig
from assent.data.records import Example
from assent.errors import ConfigError
from assent.models.heads import load_score_model
from assent.models.init import train_tokenizer
from assent.models.loading import load_tokenizer
from assent.models.saving import save_model

from ..served import TALKS, groups, source
from .conftest import LONGEST, RealServer, policy

TEXT = ("What is the capital of France? Paris. One two three, be brief. <user> <assistant> [1] 42",) * 3
WITH_BOS = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}> {{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)
OTHER_TEMPLATE = (
    "{% for m in messages %}[{{ m.content }}]{{ eos_token }}{% endfor %}{% if add_generation_prompt %}[{% endif %}"
)


class Served(NamedTuple):
    url: str
    folder: Path
    policy: Path


def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """ChatML without BOS; or one that puts a BOS before every text, as Llama's does, with a template that writes it."""
    made = train_tokenizer(TEXT, 380)
    if kind == "bos":
        made.add_special_tokens({"bos_token": "<s>"})
        made.backend_tokenizer.post_processor = TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", made.bos_token_id)]
        )
        made.chat_template = WITH_BOS
        assert made("a")["input_ids"][0] == made.bos_token_id
    return made


@pytest.fixture(scope="module", params=["plain", "bos"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp(request.param)
    words = tokenizer(request.param)
    policy(5).model.save_pretrained(folder / "policy")
    words.save_pretrained(folder / "policy")
    start = ModelConfig(str(folder / "policy"), precision="fp32")
    scorer = load_score_model(start, load_tokenizer(start), max_length=LONGEST, seed=1)
    with torch.no_grad():
        scorer.model.score.weight.normal_(std=0.3)
    save_model(scorer, words, folder / "reward")
    if request.param == "bos":  # both kinds of folders there are: with and without an activation of their own
        config = json.loads((folder / "reward" / "config.json").read_text())
        (folder / "reward" / "config.json").write_text(json.dumps(config | {"problem_type": "regression"}))
    real = RealServer(folder / "reward", folder / "log", "--served-model-name rm")
    real.start()
    try:
        real.wait()
        yield Served(real.url, folder / "reward", folder / "policy")
    finally:
        real.kill()


def test_the_server_gives_what_its_folder_gives(served: Served) -> None:
    mine = groups(served.policy)
    there, here = (
        source(served.policy, servers=(f"vllm={served.url}",)),
        source(served.policy, model=(str(served.folder),)),
    )
    there.check([group.example for group in mine])
    want = here.score(mine).values
    np.testing.assert_allclose(there.score(mine).values, want, atol=2e-4)
    assert want.std() > 0.05
    cut = [replace(group, ids=tuple(ids[:-1] for ids in group.ids)) for group in mine]
    assert np.abs(here.score(cut).values - want).max() > 0.01  # the last token matters


def test_a_policy_with_another_tokenizer_needs_to_be_told_the_servers(served: Served, tmp_path: Path) -> None:
    policy(5).model.save_pretrained(tmp_path)
    train_tokenizer(("quite other words stand in here, of other lengths",) * 3, 290).save_pretrained(tmp_path)
    url = f"vllm={served.url}/v1"
    mine = groups(tmp_path)
    examples = [group.example for group in mine]
    with pytest.raises(
        ConfigError, match="reads with another tokenizer: .* Give the folder that it serves as --remote"
    ):
        source(tmp_path, servers=(url,)).check(examples)
    remote = RemoteConfig(retries=1, budget=120.0, tokenizer=str(served.folder))
    told = source(tmp_path, remote, servers=(url,))
    told.check(examples)
    here = source(tmp_path, model=(str(served.folder),))
    np.testing.assert_allclose(told.score(mine).values, here.score(mine).values, atol=2e-4)


def test_what_the_server_is_not(served: Served, tmp_path: Path) -> None:
    examples = [Example(talk) for talk in TALKS]
    url = f"vllm={served.url}"
    with pytest.raises(ConfigError, match=r"has no model 'judge' \(--remote.model\). It has: rm."):
        source(served.policy, RemoteConfig(model="judge"), servers=(url,)).check(examples)
    with pytest.raises(ConfigError, match=f"at most {LONGEST} tokens; --data.max_length allows 200. .*--max-model-len"):
        source(served.policy, length=200, servers=(url,)).check(examples)
    policy(5).model.save_pretrained(tmp_path)
    words = load_tokenizer(ModelConfig(str(served.policy)))
    words.chat_template = OTHER_TEMPLATE
    words.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="has another chat template"):
        source(tmp_path, servers=(url,)).check(examples)
