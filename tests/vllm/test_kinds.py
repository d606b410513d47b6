"""Every kind of reward model that is trained here, on a real vLLM server: of one output and of several, all weights or
adapters. The same numbers as from its folder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import httpx2
import numpy as np
import pytest
import torch

from assent.config import LoraConfig, ModelConfig, RemoteConfig
from assent.data.chat import Chat
from assent.errors import ConfigError
from assent.models.heads import WantedHead, load_score_model, save_reward_model
from assent.models.loading import load_tokenizer
from assent.models.reward_head import SCALAR, HeadRule
from assent.rewards.group import WeightedSum

from ..served import groups, source
from .conftest import LONGEST, RealServer, policy
from .test_rewards import Served, tokenizer

RULES = {"scalar": SCALAR, "attributes": HeadRule(("helpfulness", "verbosity", "tone"), (0.5, -1.25, 2.0))}
KINDS = [("scalar", 0), ("scalar", 4), ("attributes", 0), ("attributes", 4)]


class Kind(NamedTuple):
    served: Served
    rule: HeadRule


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: f"{kind[0]}{' lora' if kind[1] else ''}")
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kind]:
    name, rank = request.param
    folder, words = tmp_path_factory.mktemp(name), tokenizer("plain")
    policy(5).model.save_pretrained(folder / "policy")
    words.save_pretrained(folder / "policy")
    start = ModelConfig(str(folder / "policy"), precision="fp32", lora=LoraConfig(rank=rank))
    scorer = load_score_model(start, load_tokenizer(start), max_length=LONGEST, seed=1, head=WantedHead(RULES[name]))
    with torch.no_grad():
        for weight_name, weight in scorer.named_parameters():
            if "lora_B" in weight_name or (weight_name.endswith("score.weight") and weight.requires_grad):
                weight.normal_(std=0.3)
            elif "score" in weight_name:
                weight.normal_(std=0.3)
    save_reward_model(scorer.eval(), Chat(words), folder / "reward")
    real = RealServer(folder / "reward", folder / "log", "--served-model-name rm")
    real.start()
    try:
        real.wait()
        yield Kind(Served(real.url, folder / "reward", folder / "policy"), RULES[name])
    finally:
        real.kill()


def local(kind: Kind) -> WeightedSum:
    return source(kind.served.policy, model=(str(kind.served.folder),))


def test_the_server_gives_what_the_folder_gives(kind: Kind) -> None:
    mine = groups(kind.served.policy)
    weights = kind.rule.weights if len(kind.rule) > 1 else ()
    there = source(
        kind.served.policy, RemoteConfig(weights=weights, budget=120.0), servers=(f"vllm={kind.served.url}",)
    )
    there.check([group.example for group in mine])
    want = local(kind).score(mine)
    np.testing.assert_allclose(there.score(mine).values, want.values, atol=3e-4)
    assert want.values.std() > 0.05
    if weights:
        ids = [[*group.prompt_ids.tolist(), *one.tolist()] for group in mine for one in group.ids]
        reply = httpx2.post(kind.served.url + "/classify", json={"input": ids}, timeout=120).json()  # a regression: raw
        parts = np.stack([want.parts[f"model/{name}"] for name in kind.rule.names], 1)
        np.testing.assert_allclose([entry["probs"] for entry in reply["data"]], parts, atol=3e-4)
        assert {entry["label"] for entry in reply["data"]} <= set(kind.rule.names)
        with pytest.raises(ConfigError, match="gives 3 numbers for a text .* Give --remote.weights, one for each"):
            source(kind.served.policy, servers=(f"vllm={kind.served.url}",)).check([group.example for group in mine])


def test_the_folder_is_that_of_adapters(kind: Kind) -> None:
    """Where it was trained with them, they are in the served weights, and change the rewards."""
    config = ModelConfig(str(kind.served.folder), precision="fp32")
    trained = load_score_model(config, load_tokenizer(config), max_length=LONGEST, trainable=False, new_head=False)
    base = policy(5).model.state_dict()
    moved = any(
        not torch.allclose(weight, base[name.removeprefix("model.")], atol=1e-4)
        for name, weight in trained.named_parameters()
        if name.removeprefix("model.") in base
    )
    assert moved == (kind.served.folder / "adapter").is_dir()
