"""A reward model that `assent serve` has and the same from its folder: the same float32 rewards by every request shape,
and the same bytes of a whole run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from assent.cli import main
from assent.config import InitConfig, ModelConfig, RemoteConfig, ServeConfig
from assent.data.chat import Chat
from assent.errors import ConfigError
from assent.http import ServerAnswerError
from assent.models.heads import WantedHead, load_score_model, save_reward_model
from assent.models.init import CHAT_TEMPLATE, random_model, write_new_model
from assent.models.loading import load_tokenizer
from assent.models.reward_head import HeadRule
from assent.rewards.group import Group
from assent.rewards.remote import OTHER_TOKENS
from assent.serve.app import Service
from assent.serve.run import service_of
from assent.train.log import read_jsonl, read_metrics

from ..served import groups, source

SHAPES = ("openrlhf", "llamafactory", "vllm", "sglang")


def letters() -> PreTrainedTokenizerFast:
    """A token for each letter: whatever is sampled reads back as the same tokens."""
    specials = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    alphabet = [*map(chr, range(32, 60)), *map(chr, range(61, 127)), "\n"]  # without "<"
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*specials, *alphabet])}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(specials)
    made = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=specials[0], eos_token=specials[2])
    made.chat_template = CHAT_TEMPLATE
    return made


@pytest.fixture(scope="module")
def policy_dir(tmp_path_factory) -> Path:
    words = letters()
    config = InitConfig(data="", out="", hidden_size=32, layers=2, heads=4, kv_heads=2, context=256, seed=3)
    return write_new_model(words, random_model(words, config), tmp_path_factory.mktemp("models") / "policy")


@pytest.fixture(scope="module")
def reward_dir(policy_dir: Path, tmp_path_factory) -> Path:
    start = ModelConfig(str(policy_dir), precision="fp32")
    words = load_tokenizer(start)
    scorer = load_score_model(start, words, max_length=64, seed=7)
    with torch.no_grad():
        scorer.model.score.weight.mul_(20)
    folder = tmp_path_factory.mktemp("models") / "reward"
    save_reward_model(scorer, Chat(words), folder)
    return folder


@pytest.fixture(scope="module")
def served(reward_dir: Path) -> Service:
    return service_of(ServeConfig(str(reward_dir), precision="fp32", threads=1, micro_tokens=4096))


@pytest.fixture(scope="module")
def url(served: Service, serving) -> Iterator[str]:
    with serving(served) as found:
        yield found


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_gives_the_bits_of_the_folder(shape: str, policy_dir: Path, reward_dir: Path, url: str) -> None:
    mine = groups(policy_dir)
    there, here = source(policy_dir, servers=(f"{shape}={url}",)), source(policy_dir, model=(str(reward_dir),))
    there.check([group.example for group in mine])
    want = here.score(mine).values
    assert there.score(mine).values.astype(np.float32).tobytes() == want.astype(np.float32).tobytes()
    assert want.std() > 0.05
    one_each = source(policy_dir, RemoteConfig(batch=1, concurrency=3), servers=(f"{shape}={url}",)).score(mine).values
    np.testing.assert_allclose(one_each, want, atol=1e-6)  # packed otherwise


ATTRIBUTES = HeadRule(("helpfulness", "verbosity", "tone"), (0.5, -1.25, 2.0))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    """In letters that the policy's tokenizer has."""
    file = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    rows = [{"prompt": f"What is {n}?", "chosen": f"It is {n}.", "rejected": "no" * (n % 3 + 1)} for n in range(12)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def attributes(policy_dir: Path, tmp_path_factory) -> Path:
    start = ModelConfig(str(policy_dir), precision="fp32")
    scorer = load_score_model(start, load_tokenizer(start), max_length=64, seed=7, head=WantedHead(ATTRIBUTES))
    with torch.no_grad():
        scorer.model.score.weight.mul_(20)
    folder = tmp_path_factory.mktemp("models") / "attributes"
    save_reward_model(scorer.eval(), Chat(load_tokenizer(start)), folder)
    return folder


@pytest.fixture(scope="module", params=["attributes", "gated", "ensemble"])
def several(request, attributes: Path, policy_dir: Path, pairs: Path, tmp_path_factory) -> Path:
    """A folder of several outputs: weighed by its rule, by a gate that reads the prompt, or the least of its heads."""
    if request.param == "attributes":
        return attributes
    command = {
        "gated": f"reward-gate --model.path {attributes} --gate.width 8 --gate.layers 1",
        "ensemble": f"reward-ensemble --model.path {policy_dir} --ensemble.heads 3 --ensemble.combine min "
        "--optim.lr 1e-2 --train.batch_size 4",
    }[request.param]
    out = tmp_path_factory.mktemp("runs") / request.param
    more = f"--model.precision fp32 --data.train {pairs} --train.max_steps 4 --train.threads 1 --out {out}"
    assert main(f"{command} {more} --data.max_length 64".split()) == 0
    return out / "model"


def test_several_outputs_are_the_one_reward_of_the_folder(
    several: Path, policy_dir: Path, pairs: Path, serving, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the shapes that give one number: in a run, and for a file of answers."""
    mine = groups(policy_dir)
    want = source(policy_dir, model=(str(several),)).score(mine).values
    assert want.std() > 0.01

    def rewards(word: str, *more: str) -> list[float]:
        out = tmp_path / f"{word.partition('=')[0].strip('/').replace('/', '-')}.jsonl"
        words = ["score", word, str(pairs), "--out", str(out), "--precision", "fp32", *more]
        assert main(words) == 0, capsys.readouterr().err
        return [row["reward"] for row in read_jsonl(out)]

    scored = rewards(str(several))
    assert len(scored) == 24 and np.std(scored) > 0.01
    with serving(service_of(ServeConfig(str(several), precision="fp32", threads=1))) as url:
        for shape in ("openrlhf", "llamafactory", "sglang"):
            asked = source(policy_dir, servers=(f"{shape}={url}",))
            asked.check([group.example for group in mine])
            assert asked.score(mine).values.astype(np.float32).tobytes() == want.astype(np.float32).tobytes()
            there = rewards(f"{shape}={url}", "--tokenizer", str(policy_dir), "--max_length", "256")
            assert there == pytest.approx(scored, abs=1e-6)
        assert main(["score", f"sglang={url}", str(pairs), "--tokenizer", str(policy_dir)]) == 2
        assert "reads at most 256 tokens; --max_length allows 8192. " in capsys.readouterr().err
        with pytest.raises(ConfigError, match="gives 3 numbers for a text .* Give --remote.weights"):
            source(policy_dir, servers=(f"vllm={url}",)).check([group.example for group in mine])


def test_outputs_by_weights_of_the_clients(attributes: Path, policy_dir: Path, serving) -> None:
    """/classify gives all of them: --remote.weights says what they are worth."""
    mine = groups(policy_dir)
    want = source(policy_dir, model=(str(attributes),)).score(mine).values
    with serving(service_of(ServeConfig(str(attributes), precision="fp32", threads=1))) as url:
        weighed = source(policy_dir, RemoteConfig(weights=ATTRIBUTES.weights), servers=(f"vllm={url}",))
        weighed.check([group.example for group in mine])
        np.testing.assert_allclose(weighed.score(mine).values, want, atol=1e-6)


@pytest.mark.parametrize("shape", ["openrlhf", "llamafactory"])
def test_what_text_cannot_carry_is_counted_and_said(
    shape: str, tiny_model_dir: Path, scorer_dir: Path, serving, caplog: pytest.LogCaptureFixture
) -> None:
    """Of five answers three are other tokens when their text is read: letters that the tokenizer puts together, half a
    character, and a control token spelled out. Their reward is that of what the text reads as; sent as token ids they
    have that of the tokens."""
    words = load_tokenizer(ModelConfig(str(tiny_model_dir)))
    plain = groups(tiny_model_dir)[0]
    whole = {token: id for token, id in words.get_vocab().items() if len(token) > 3 and token.isalpha()}
    letters, half = [words.convert_tokens_to_ids(letter) for letter in max(whole, key=len)], words("é")["input_ids"][:1]
    spelled = [words.convert_tokens_to_ids(letter) for letter in "<|im_end|>"]
    ids = tuple(map(np.array, ([*plain.ids[0]], letters, half, [*letters[:1], *spelled], [*plain.ids[1]])))
    sampled = Group(plain.example, ("",) * 5, (True,) * 5, tuple(map(len, ids)), ids, plain.prompt_ids)
    sent = [words.decode([*plain.prompt_ids, *one]) for one in ids]
    begins = len(plain.prompt_ids)
    again = tuple(np.array(words(text, add_special_tokens=False)["input_ids"][begins:]) for text in sent)
    assert [a.tolist() == b.tolist() for a, b in zip(ids, again, strict=True)] == [True, False, False, False, True]
    with serving(service_of(ServeConfig(str(scorer_dir), precision="fp32", threads=1))) as url:
        there, here = (
            source(tiny_model_dir, servers=(f"{shape}={url}",)),
            source(tiny_model_dir, model=(str(scorer_dir),)),
        )
        got = there.score([sampled])
        there.score([sampled])
        exact = source(tiny_model_dir, servers=(f"vllm={url}",)).score([sampled])
    want, read = here.score([sampled]).values, here.score([replace(sampled, ids=again)]).values
    np.testing.assert_allclose(got.values, read, atol=1e-6)
    np.testing.assert_allclose(exact.values, want, atol=1e-6)
    assert (np.abs(want - read) > 1e-3).tolist() == [False, True, True, True, False]
    assert got.metrics == {f"{shape}/{OTHER_TOKENS}": [0.0, 1.0, 1.0, 1.0, 0.0]} and not exact.metrics
    said = [record.getMessage() for record in caplog.records if OTHER_TOKENS in record.getMessage()]
    assert len(said) == 1 and "3 of 5 answers are other tokens when they are written as text" in said[0]


def test_our_own_checks_of_a_vllm_server_hold_here(policy_dir: Path, url: str, tiny_model_dir: Path) -> None:
    examples = [group.example for group in groups(policy_dir)]
    for shape in ("vllm", "sglang"):
        with pytest.raises(ConfigError, match="another tokenizer"):
            source(tiny_model_dir, servers=(f"{shape}={url}",)).check(examples)
    with pytest.raises(ConfigError, match="has no model 'judge'"):
        source(policy_dir, RemoteConfig(model="judge"), servers=(f"vllm={url}",)).check(examples)
    with pytest.raises(ServerAnswerError, match="answered 400 .* does not support Score API"):
        source(policy_dir, servers=(f"vllm-score={url}",)).score(groups(policy_dir))


@pytest.mark.parametrize(
    "method", ["ppo --critic.start policy --rollout.epochs 1 --rollout.minibatches 1", "grpo --rollout.responses 3"]
)
def test_a_run_by_a_served_model_is_that_by_its_folder(
    method: str, policy_dir: Path, reward_dir: Path, url: str, tmp_path: Path
) -> None:
    rows = tmp_path / "prompts.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"What is {n} + {n}?"}) + "\n" for n in range(4)))
    told = []
    for name, how in (
        ("local", f"--rewards.model {reward_dir}"),
        ("openrlhf", f"--rewards.servers openrlhf={url}"),
        ("vllm", f"--rewards.servers vllm={url}"),
    ):
        out = tmp_path / name
        words = (
            f"{method} --model.path {policy_dir} --model.precision fp32 --data.train {rows} --data.max_length 96 {how} "
            f"--train.batch_size 2 --train.max_steps 3 --sampling.max_new_tokens 12 --train.threads 1 "
            f"--optim.lr 1e-2 --train.micro_tokens 4096 --out {out}"
        )
        assert main(words.split()) == 0
        weights = hashlib.sha256((out / "model" / "model.safetensors").read_bytes()).hexdigest()
        told.append((weights, numbers(out), samples(out)))
    counted = [row.pop(f"reward/openrlhf/{OTHER_TOKENS}") for row in told[1][1] if "reward" in row]
    assert set(counted) == {"0.0"} and told[0] == told[1] == told[2]
    assert len({row["reward"] for row in told[0][1] if "reward" in row}) == 3


def numbers(out: Path) -> list[dict[str, float]]:
    """The metrics of each step. NaN, which is not even itself, as text."""
    rows = read_metrics(out / "metrics.jsonl", times=False)
    return [{name: repr(value) for name, value in row.items()} for row in rows]


def samples(out: Path) -> list[Any]:
    return read_jsonl(out / "samples.jsonl")
