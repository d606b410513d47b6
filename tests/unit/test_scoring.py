"""All that options name as sources of rewards: how it is put together, shared over ranks, and refused."""

from __future__ import annotations

import json
import os
import pickle
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from assent import distributed
from assent.carried import raised_by_all
from assent.config import (
    DataConfig,
    ModelConfig,
    OnlineConfig,
    RemoteConfig,
    RewardsConfig,
    SamplingConfig,
    TrainConfig,
    online_config,
    settings,
)
from assent.data.chat import Chat
from assent.data.records import Example, Message, Origin, Response, RowError
from assent.data.tree import TokenTree, collate
from assent.distributed import World
from assent.errors import ConfigError, DataError, ModelError, NonFiniteError
from assent.models.heads import load_score_model
from assent.models.loading import load_tokenizer
from assent.models.saving import save_model
from assent.rewards.build import reward_source
from assent.rewards.ensemble import Ensemble
from assent.rewards.group import Group, RewardError, Scores
from assent.rewards.groups import groups_of
from assent.rewards.model import ModelReward
from assent.rewards.pool import PooledReward
from assent.rewards.remote import RemoteReward, WrittenAnswer
from assent.rewards.rules import RuleReward
from assent.rewards.served import ServedModel
from assent.rewards.shared import Shared
from assent.rollout.engine import Completion
from assent.rollout.rollout import Rollout, rollout_of
from assent.train.session import Session

UNCHANGED = RemoteConfig()
ALONE = World(0, 1, 0, torch.device("cpu"))
FUNCTION = """
def length(completions: list[str], **columns):
    return [len(text) / 10 for text in completions]

def wants(completions: list[str], level):
    return [float(number) for number in level]

def unsure(completions: list[str], **columns):
    return [None if text == "red" else 1.0 for text in completions]
"""
TEXTS = (("red", "green blue", ""), ("The answer is 42.",), ("#### 7", "seven"))


@pytest.fixture(scope="module")
def models(tiny_model_dir: Path, tokenizer, tmp_path_factory) -> dict[str, str]:
    """Reward models: two that read the policy's tokens, one with a chat template that refuses the answer "seven"."""
    folder = tmp_path_factory.mktemp("rewards")
    made = {}
    for seed, name in enumerate(("one", "two", "other")):
        scorer = load_score_model(
            ModelConfig(str(tiny_model_dir), precision="fp32"), tokenizer, max_length=64, seed=seed
        )
        with torch.no_grad():
            scorer.model.score.weight.mul_(20)
        save_model(scorer, tokenizer, folder / name / "model")
        made[name] = str(folder / name / "model")
    own = Path(made["other"])
    for file in own.glob("chat_template*"):
        file.unlink()
    text = (own / "tokenizer_config.json").read_text()
    template = (
        "{% for m in messages %}{% if m.content == 'seven' and m.role == 'assistant' %}{{ raise_exception('no') }}"
        "{% endif %}[{{ m.role }}] {{ m.content }}{{ eos_token }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    (own / "tokenizer_config.json").write_text(json.dumps(json.loads(text) | {"chat_template": template}))
    return made


@pytest.fixture(scope="module")
def functions(tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("functions") / "mine.py"
    file.write_text(FUNCTION)
    return str(file)


@pytest.fixture
def build(tiny_model_dir: Path, tokenizer) -> Callable[..., tuple[Any, OnlineConfig]]:
    """The source that options name, and the configuration, checked as a command does."""

    def make(remote: RemoteConfig = UNCHANGED, max_length: int = 64, world: World = ALONE, **rewards):
        config = online_config(
            "grpo",
            model=ModelConfig(str(tiny_model_dir), precision="fp32"),
            data=DataConfig("unused", max_length=max_length),
            out="unused",
            train=TrainConfig(micro_tokens=40),
            sampling=SamplingConfig(max_new_tokens=8),
            rewards=RewardsConfig(**rewards),
            remote=remote,
        )
        settings.validate(config)
        return reward_source(Session(config, world, None, tokenizer, Chat(tokenizer)), config), config

    return make


def sampled(chat: Chat) -> tuple[Rollout, list[Example]]:
    """Sampled answers whose tokens are not those that their text would be given."""
    examples, groups = [], []
    for row, texts in enumerate(TEXTS, 1):
        prompt = (Message("user", f"{row} what?"),)
        meta = {"answer": "42", "level": row}
        examples.append(Example(prompt, origin=Origin("rows.jsonl", row), meta=meta, prompt_text=prompt[0].content))
        ids = [[i for letter in text for i in chat.tokenizer.encode(letter)] + [min(chat.eos_ids)] for text in texts]
        groups.append(
            [Completion(np.array(own, np.int32), np.zeros(len(own), np.float32), i != 1) for i, own in enumerate(ids)]
        )
    prompts = [chat.prompt_ids(example.prompt) for example in examples]
    return rollout_of(prompts, np.arange(len(prompts)), groups), examples


@pytest.fixture
def groups(tokenizer) -> list[Group]:
    chat = Chat(tokenizer)
    return groups_of(*sampled(chat), chat)


def model_scores(folder: str, trees: Sequence[TokenTree]) -> np.ndarray:
    """Each answer alone, without any packing."""
    scorer = load_score_model(
        ModelConfig(folder, precision="fp32"), load_tokenizer(ModelConfig(folder)), max_length=64, trainable=False,
        new_head=False,
    )  # fmt: skip
    found = []
    for tree in trees:
        for branch in tree.branches:
            batch = collate([TokenTree(tree.prompt, (branch,))])
            with torch.no_grad():
                found.append(float(scorer(batch, batch.last)))
    return np.array(found)


def test_groups_show_what_was_sampled(tokenizer) -> None:
    chat = Chat(tokenizer)
    rollout, examples = sampled(chat)
    groups = groups_of(rollout, examples, chat)
    assert [group.texts for group in groups] == [*TEXTS]
    assert groups[0].finished == (True, False, True) and groups[0].lengths == (4, 11, 1)
    assert groups[1].example is examples[1] and groups[2].prompt_ids is rollout.prompts[2]
    assert [ids.tolist() for group in groups for ids in group.ids] == [ids.tolist() for ids in rollout.answers]
    assert [len(group.ids) for group in groups] == [3, 1, 2]


def test_a_prompt_without_responses_is_an_empty_group(tokenizer) -> None:
    chat = Chat(tokenizer)
    rollout, examples = sampled(chat)
    first, none, last = groups_of(rollout.take(np.array([0, 2, 4])), examples, chat)
    assert first.texts == ("red", "") and first.lengths == (4, 1) and len(first.ids) == 2
    assert len(none) == 0 and none.ids == () and none.example is examples[1]
    assert last.texts == ("#### 7",) and last.finished == (True,)


# ---- reward models


def test_a_model_with_the_policys_tokens_reads_those_sampled(build, models, groups, tokenizer) -> None:
    source, _ = build(model=(models["one"],))
    rollout, _ = sampled(Chat(tokenizer))
    scores = source.score(groups)
    np.testing.assert_allclose(scores.values, model_scores(models["one"], rollout.trees()), atol=1e-5)
    assert list(scores.parts) == ["model"] and not scores.failures
    assert np.std(scores.values) > 0.01
    written = [replace(group, texts=("other words",) * len(group)) for group in groups]
    np.testing.assert_array_equal(source.score(written).values, scores.values)


def test_a_model_with_another_template_reads_the_text_in_its_own_words(build, models, groups) -> None:
    source, _ = build(model=(models["other"],))
    readable = [*groups[:2], groups[2].alone(0)]
    own = Chat(load_tokenizer(ModelConfig(models["other"])))
    trees = [
        own.tree(Example(g.example.prompt, tuple(Response((Message("assistant", t),)) for t in g.texts)), 64)
        for g in readable
    ]
    want = model_scores(models["other"], trees)
    np.testing.assert_allclose(source.score(readable).values, want, atol=1e-5)
    forgotten = [replace(group, ids=(), prompt_ids=()) for group in readable]
    np.testing.assert_allclose(source.score(forgotten).values, want, atol=1e-5)


def test_an_answer_that_the_models_template_refuses_is_unscored(build, models, groups) -> None:
    source, _ = build(model=(models["other"],))
    scores = source.score(groups)
    np.testing.assert_array_equal(np.isnan(scores.values), [False] * 5 + [True])
    assert scores.failures == {"model: its chat template cannot write the answer": 1}
    np.testing.assert_allclose(scores.values[:5], source.score([*groups[:2], groups[2].alone(0)]).values, atol=1e-5)
    assert np.isnan(source.score([groups[2].alone(1)]).values).all()


def test_prompts_that_a_model_cannot_read_are_named_before_training(build, models, groups) -> None:
    examples = [group.example for group in groups]
    for name, length in (("one", 16), ("other", 64)):
        build(model=(models[name],), max_length=length)[0].check(examples)
    source, _ = build(model=(models["other"],), max_length=16)
    with pytest.raises(DataError, match=r"'model' cannot read 3 of 3 prompts:\n  rows.jsonl:1: prompt: .*16"):
        source.check(examples)


@pytest.mark.parametrize(
    ("combine", "expected"),
    [
        ("mean", lambda a: a.mean(0)),
        ("min", lambda a: a.min(0)),
        ("lcb", lambda a: a.mean(0) - 0.5 * np.abs(a[0] - a[1]) / 2),
    ],
)
def test_several_models_are_one_ensemble(combine: str, expected, build, models, groups) -> None:
    source, _ = build(model=(models["one"], models["two"]), ensemble=combine, deviations=0.5)
    scores = source.score(groups)
    members = np.stack([build(model=(models[name],))[0].score(groups).values for name in ("one", "two")])
    np.testing.assert_allclose(scores.values, expected(members), atol=1e-6)
    # Both folders are called "model".
    assert list(scores.parts) == ["model", "model/model-1", "model/model-2"]
    np.testing.assert_array_equal(scores.parts["model/model-2"], members[1])


def test_a_reward_that_is_not_finite_names_model_row_and_answer(build, models, groups) -> None:
    source, _ = build(model=(models["one"],))
    with torch.no_grad():
        source.sources[0].scorer.model.score.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match=r"The reward model 'model' gave nan for the answer 'red' to rows.jsonl:1"):
        source.score(groups)


def test_a_folder_that_is_no_reward_model(build, tiny_model_dir) -> None:
    with pytest.raises(ModelError):
        build(model=(str(tiny_model_dir),))


# ---- the sum


def test_a_sum_of_everything(build, models, functions, groups) -> None:
    source, _ = build(
        model=(models["one"],),
        rules=("contains", "length=2,12", "regex=^r", "regex=u"),
        functions=(f"{functions}:length", f"{functions}:unsure"),
        weights={"model": 0.5, "length-1": 2.0, "length-2": -1.0, "regex-2": 0.0, "unsure": 0.0},
    )
    names = ["contains", "length-1", "regex-1", "regex-2", "length-2", "unsure", "model"]
    assert [part.name for part in source.sources] == names
    source.check([group.example for group in groups])
    scores = source.score(groups)
    assert list(scores.parts) == names
    np.testing.assert_array_equal(scores.parts["contains"], [0, 0, 0, 1, 0, 0])
    np.testing.assert_allclose(scores.parts["length-1"], [-0.2, -0.9, 0, -1, -0.5, -0.4])
    np.testing.assert_array_equal(scores.parts["regex-1"], [1, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(scores.parts["regex-2"], [0, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(scores.parts["length-2"], [0.3, 1.0, 0.0, 1.7, 0.6, 0.5])
    weights = dict(zip(names, source.weights, strict=True))
    assert weights == {
        "contains": 1, "length-1": 2, "regex-1": 1, "regex-2": 0, "length-2": -1, "unsure": 0, "model": 0.5
    }  # fmt: skip
    total = sum(weights[name] * scores.parts[name] for name in names if name != "unsure")
    np.testing.assert_allclose(scores.values, total)
    assert scores.failures == {"unsure: returned None": 1}


def test_functions_with_workers_run_elsewhere(build, functions, groups, tmp_path) -> None:
    file = tmp_path / "where.py"
    file.write_text("import os\ndef pid(completions, **columns):\n    return [os.getpid()] * len(completions)\n")

    here, _ = build(functions=(f"{file}:pid",))
    assert set(here.score(groups).values) == {os.getpid()}
    there, _ = build(functions=(f"{file}:pid",), workers=1, time_limit=60.0)
    assert os.getpid() not in there.score(groups).values
    np.testing.assert_array_equal(
        build(functions=(f"{functions}:length",), workers=1, time_limit=60.0)[0].score(groups).values,
        build(functions=(f"{functions}:length",))[0].score(groups).values,
    )


def test_slow_rules_have_a_time_limit(build) -> None:
    pytest.importorskip("math_verify")
    source, _ = build(rules=("math",), time_limit=3.0)
    (pool,) = [part.source for part in source.sources]
    assert isinstance(pool, PooledReward) and (pool.count, pool.limit) == (1, 3.0)


def test_missing_columns_are_named_before_training(build, functions, groups) -> None:
    bare = [Example(group.example.prompt, origin=group.example.origin, meta={"topic": "x"}) for group in groups]
    for options, words in [
        ({"rules": ("numeric",)}, "rows.jsonl:1: answer: the rule 'numeric' needs the right answer.* topic"),
        ({"rules": ("exact=gold",)}, "rows.jsonl:1: gold: .* there is no such column"),
        ({"functions": (f"{functions}:wants",)}, "wants needs 'level', which no row has. It can have: .*topic"),
        ({"functions": (f"{functions}:wants",), "workers": 1}, "wants needs 'level', which no row has"),
        (
            {"servers": ("openrlhf=http://localhost:1",), "remote": RemoteConfig(label="gold")},
            "openrlhf: no row has the column 'gold', which is to be sent as the label.* topic",
        ),
    ]:
        source, _ = build(**options)
        with pytest.raises((ConfigError, DataError), match=words):
            source.check(bare)


REMOTE = RemoteConfig(1.0, 2, 3.0, 5, 7, "judge", "answer", "REWARD_KEY")


def test_every_remote_option_arrives(build, monkeypatch) -> None:
    monkeypatch.setenv("REWARD_KEY", "secret")
    source, _ = build(servers=("vllm=http://localhost:1", "openrlhf=http://localhost:1/x"), remote=REMOTE)
    served, other = [part.source for part in source.sources]
    assert (type(served), type(other)) == (ServedModel, RemoteReward)
    assert (served.name, other.name) == ("vllm", "openrlhf")
    remote = [served.remote, other]
    server = remote[0].server
    assert (server.shape, server.url) == ("vllm", "http://localhost:1")
    assert (server.timeout, server.retries, server.budget, server.concurrency, server.batch) == (1.0, 2, 3.0, 5, 7)
    assert (server.model, server.label, server.key) == ("judge", "answer", "secret")
    assert served.reading.same_tokens and served.reading.max_length == 64


def test_a_server_with_a_tokenizer_of_its_own_is_sent_its_ids(build, models, groups) -> None:
    source, _ = build(servers=("vllm=http://localhost:1",), remote=RemoteConfig(tokenizer=models["other"]))
    (served,) = [part.source for part in source.sources]
    assert not served.reading.same_tokens
    own = Chat(load_tokenizer(ModelConfig(models["other"])))
    written = served.remote.write(groups[2])
    assert written[1] is None  # "seven", which its template refuses
    answer = Response((Message("assistant", groups[2].texts[0]),))
    tree = own.tree(Example(groups[2].example.prompt, (answer,)), 64)
    assert written[0].whole == [*tree.prompt.tolist(), *tree.branches[0].ids.tolist()]


@pytest.mark.parametrize("shape", ["openrlhf", "llamafactory"])
def test_text_servers_are_sent_every_token_as_it_is_spelt(build, groups, shape: str, tokenizer) -> None:
    source, _ = build(servers=(f"{shape}=http://localhost:1",))
    (remote,) = [part.source for part in source.sources]
    chat = Chat(tokenizer)
    cut = replace(groups[0], ids=(groups[0].ids[0], groups[0].ids[1][:-1]), texts=TEXTS[0][:2], finished=(True, False),
                  lengths=(4, 10))  # fmt: skip
    prompt = chat.tokenizer.apply_chat_template(
        [{"role": "user", "content": "1 what?"}], tokenize=False, add_generation_prompt=True
    )
    end = chat.tokenizer.convert_ids_to_tokens(min(chat.eos_ids))
    assert [*remote.write(cut)] == [
        WrittenAnswer(prompt, f"{prompt}red{end}", same=False),  # finished; its tokens are letters
        WrittenAnswer(prompt, f"{prompt}green blue", same=False),  # cut
    ]


def test_every_option_of_rewards_has_an_effect(build, models, functions, groups) -> None:
    base = {"rules": ("contains",), "functions": (f"{functions}:length",), "workers": 0}

    def made(**changes) -> str:
        source, _ = build(**{**base, **changes})
        parts = [getattr(part, "source", part) for part in source.sources]
        return repr(
            [(type(part).__name__, part.name, getattr(part, "limit", 0), getattr(part, "count", 0)) for part in parts]
            + [
                [*source.weights],
                [(vars(p)["_combine"].__name__, vars(p)["_options"]) for p in parts if isinstance(p, Ensemble)],
            ]
        )

    pair = (models["one"], models["two"])
    for one, other in [
        ({}, {"model": pair[:1]}),
        ({"model": pair}, {"model": pair, "ensemble": "min"}),
        ({"model": pair, "ensemble": "lcb"}, {"model": pair, "ensemble": "lcb", "deviations": 2.0}),
        ({}, {"rules": ("exact",)}),
        ({}, {"functions": (f"{functions}:unsure",)}),
        ({}, {"workers": 2}),
        ({"workers": 2}, {"workers": 2, "time_limit": 3.0}),
        ({}, {"servers": ("vllm=http://localhost:1",)}),
        ({}, {"weights": {"length": 0.5}}),
    ]:
        assert made(**one) != made(**other), other


# ---- refusals


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {},
            "Nothing says what an answer is worth. Give --rewards.model FOLDER .* --rewards.rules, --rewards.functions",
        ),
        ({"model": "runs/reward"}, "--rewards.model must be a list of values, each text"),
        ({"rules": ("exact", "exact")}, "--rewards.rules: one is empty, or there twice. Got 2, 1 different."),
        ({"model": ("",)}, "--rewards.model: one is empty"),
        ({"rules": ("exact",), "ensemble": "min"}, "--rewards.ensemble min is about several reward models.* Got 0"),
        ({"model": ("a",), "ensemble": "lcb"}, "--rewards.ensemble lcb is about several reward models.* Got 1"),
        ({"rules": ("exact",), "weights": {"exact": float("nan")}}, "--rewards.weights exact:nan: .* finite"),
        ({"rules": ("exact",), "time_limit": 0.0}, "--rewards.time_limit must be > 0"),
        ({"rules": ("exact",), "workers": -1}, "--rewards.workers must be >= 0"),
        (
            {"rules": ("exact",), "weights": {"exat": 1.0}},
            "called 'exat'. Perhaps you meant 'exact'. There are: exact.",
        ),
        ({"rules": ("exact",), "weights": {"exact": 0.0}}, "--rewards.weights: .* not all of them 0"),
        ({"rules": ("numerc",)}, "--rewards.rules: There is no rule 'numerc'. Perhaps you meant 'numeric'."),
        ({"rules": ("regex",)}, "regex: The rule 'regex' needs the option 'pattern'.* It is written regex=PATTERN."),
        ({"rules": ("regex=(",)}, "--rewards.rules: regex=\\(: .*It is written regex=PATTERN."),
        ({"rules": ("length=5",)}, "length=5: expected two whole numbers; got '5'. It is written length=TARGET,LIMIT."),
        ({"rules": ("length=5,3",)}, "expected 0 <= target < limit"),
        ({"rules": ("format",)}, "needs the option 'tags'.* It is written format=TAG,TAG."),
        ({"rules": ("format=a b",)}, "expected a list of names such as think, answer"),
        ({"functions": ("nowhere.py:f",)}, "--rewards.functions nowhere.py:f: .*cannot be imported"),
        ({"servers": ("http://me:word@host",)}, "--rewards.servers: expected SHAPE=URL"),
        (
            {"servers": ("sglang=http://me:word@host",)},
            "--rewards.servers: sglang: the reward server must.* a user name",
        ),
        ({"servers": ("openai=http://host",)}, "--rewards.servers: openai: there is no server shape 'openai'"),
        ({"servers": ("vllm=http://me:word@host",)}, "--rewards.servers: vllm: the reward server must.* a user name"),
        (
            {"servers": ("vllm=http://host",), "remote": RemoteConfig(key_env="NO_SUCH_KEY")},
            "--remote.key_env: the environment variable NO_SUCH_KEY is not set",
        ),
        (
            {"servers": ("openrlhf=http://host",), "remote": RemoteConfig(weights=(1.0,))},
            "--remote.weights is read only with the servers vllm=URL and sglang=URL",
        ),
        (
            {"servers": ("vllm=http://host",), "remote": RemoteConfig(weights=(0.0, 0.0))},
            "--remote.weights: expected numbers that float32 holds, not all of them 0",
        ),
    ],
)
def test_wrong_options(options: dict, words: str, build) -> None:
    with pytest.raises(ConfigError, match=words) as refused:
        build(**options)
    assert "word@" not in str(refused.value)


@pytest.mark.parametrize("model", [(), ("a", "b")])
def test_a_critic_copies_one_reward_model(model: tuple[str, ...]) -> None:
    text = "model: {path: m}\ndata: {train: t}\nout: o\n"
    cls = type(online_config("ppo", model=ModelConfig("m"), data=DataConfig("t"), out="o"))
    config = settings.load(cls, text)
    config = replace(config, rewards=RewardsConfig(model, rules=("exact",)))
    with pytest.raises(ConfigError, match=rf"exactly one .*Got {len(model)}. Use --critic.start policy"):
        settings.validate(config)
    settings.validate(replace(config, critic=replace(config.critic, start="policy")))
    settings.validate(replace(config, rewards=RewardsConfig(("a",))))


# ---- ranks


class Ranks:
    """Ranks as threads: what each gives to `gather_objects`, all get."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.barrier = threading.Barrier(size, timeout=60)
        self.box = [b""] * size
        self.own = threading.local()

    def gather(self, value: object) -> list[object]:
        self.box[self.own.rank] = pickle.dumps(value)
        self.barrier.wait()
        gathered = [pickle.loads(content) for content in self.box]
        self.barrier.wait()
        return gathered

    def run(self, task: Callable[[World], object]) -> list[object]:
        outcomes: list[object] = [None] * self.size

        def work(rank: int) -> None:
            self.own.rank = rank
            try:
                outcomes[rank] = task(World(rank, self.size, rank, torch.device("cpu")))
            except Exception as error:
                outcomes[rank] = error

        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return outcomes


class Counting:
    """The row's number times ten and the answer's place; what it was asked is kept."""

    name = "counting"

    def __init__(self, bad: int = 0, error: Exception | None = None) -> None:
        self.asked: list[int] = []
        self.bad = bad
        self.error = error

    def check(self, examples: Sequence[Example]) -> None:
        pass

    def score(self, groups: Sequence[Group]) -> Scores:
        assert groups, "nobody is asked about nothing"
        rows = [group.example.origin.row for group in groups]
        self.asked += rows
        if self.bad in rows:
            raise self.error
        values = [10.0 * row + i for row, group in zip(rows, groups, strict=True) for i in range(len(group))]
        return Scores(np.array(values), failures={"odd": sum(row % 2 for row in rows)})


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_ranks_share_the_groups(size: int, groups, monkeypatch) -> None:
    ranks = Ranks(size)
    monkeypatch.setattr(distributed, "gather_objects", ranks.gather)
    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: True)
    sources = [Counting() for _ in range(size)]
    for scores in ranks.run(lambda world: Shared(sources[world.rank], world).score(groups)):
        np.testing.assert_array_equal(scores.values, [10, 11, 12, 20, 30, 31])
        assert scores.failures == {"odd": 2}
    assert [row for source in sources for row in source.asked] == [1, 2, 3]
    if size > 1:
        assert max(len(source.asked) for source in sources) == (2 if size == 2 else 1)


@pytest.mark.parametrize(
    "error", [RewardError("the third row is bad"), NonFiniteError("nan"), ZeroDivisionError("no"), RowError("a", "no")]
)
def test_what_one_rank_raises_all_raise(error: Exception, groups, monkeypatch) -> None:
    ranks = Ranks(2)
    monkeypatch.setattr(distributed, "gather_objects", ranks.gather)
    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: True)
    first, second = ranks.run(lambda world: Shared(Counting(3, error), world).score(groups))
    assert type(first) is type(second) and str(first) == str(second) and str(error) in str(first)
    assert raised_by_all(first) and raised_by_all(second)
    assert second.__cause__ is error  # where it happened, the reason is kept
    monkeypatch.undo()
    with pytest.raises(type(error)):
        Shared(Counting(3, error), ALONE).score(groups)


def test_the_pieces_are_what_they_seem(build, models) -> None:
    source, _ = build(model=(models["one"],), rules=("exact",))
    rule, model = source.sources
    assert isinstance(rule, Shared) and isinstance(rule.source, RuleReward) and isinstance(model, ModelReward)
