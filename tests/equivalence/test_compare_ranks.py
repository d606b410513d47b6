"""`assent compare` on two ranks gives the table of one: trained, sampled and scored by all ranks, written once. So does
`assent score`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from assent import distributed as d
from assent.algorithms.reward.pairs import train_reward
from assent.config import (
    CompareConfig,
    DataConfig,
    EvalConfig,
    ModelConfig,
    OptimConfig,
    RewardConfig,
    SamplingConfig,
    ScoreConfig,
    TrainConfig,
    settings,
)
from assent.evaluate import answers
from assent.evaluate.compare import compare, evaluation_config
from assent.evaluate.evaluation import answers_of, evaluate, prompts_of
from assent.evaluate.results import PolicyTable
from assent.evaluate.score import score
from assent.rewards import outside

WORKER = Path(__file__).parent / "workers" / "commands.py"
SCORER = "def score(prompt, answer):\n    return float(len(answer))\n"


@pytest.fixture(scope="module")
def configs(tiny_model_dir: Path, tmp_path_factory) -> dict[str, CompareConfig]:
    """DPO and PPO for two steps, three held-out prompts and a reward model; for one rank and for two."""
    folder = tmp_path_factory.mktemp("compare")
    rows = [{"prompt": f"Egg {i}?", "chosen": "Yes, boil it.", "rejected": f"No {i}."} for i in range(9)]
    for name, part in {"train": rows[:6], "held": rows[6:]}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    (folder / "gold.py").write_text(SCORER)
    model = ModelConfig(str(tiny_model_dir), precision="fp32")
    data = DataConfig(str(folder / "train.jsonl"), max_length=96)
    optim, train = OptimConfig(lr=1e-2, eps=1e-4), TrainConfig(batch_size=3, max_steps=2, threads=1)
    train_reward(RewardConfig(model, data, str(folder / "reward"), optim, train))
    one = CompareConfig(
        model,
        replace(data, eval=str(folder / "held.jsonl")),
        str(folder / "one"),
        optim,
        train,
        methods=("dpo", "ppo"),
        scorer=f"{folder / 'gold.py'}:score",
        reward_model=str(folder / "reward"),
        sampling=SamplingConfig(max_new_tokens=6),
        answers=2,
    )
    return {"one": one, "two": replace(one, out=str(folder / "two"))}


def test_two_ranks_compare_as_one(program_ranks, configs: dict[str, CompareConfig]):
    files = {
        "compare": configs["two"],
        "score": scoring(configs, "two"),
        "eval": evaluating(configs, "two"),
    }
    for name, config in files.items():
        Path(configs["two"].out).with_name(f"{name}.yaml").write_text(settings.dump(config))
    asked = [f"{name}:{Path(configs['two'].out).with_name(f'{name}.yaml')}" for name in files]
    ranks = program_ranks(Path(configs["two"].out).parent, [str(WORKER), *asked])
    ranks.join()
    assert "".join(ranks.said).count("[3/3] answers of 3 policies to 3 prompts") == 1
    assert Path(compare(configs["one"])).is_file() and (Path(configs["two"].out) / "report.html").is_file()
    one, two = (PolicyTable.load(Path(configs[name].out) / "evaluation.json") for name in ("one", "two"))
    assert one.scorers == two.scorers == ("gold", "proxy")
    for a, b in zip(one.policies, two.policies, strict=True):
        assert (a.name, a.length, a.unfinished, a.scores["gold"]) == (b.name, b.length, b.unfinished, b.scores["gold"])
        assert b.kl.n == a.kl.n == 6 and a.numbers.keys() == b.numbers.keys() >= {"elo/proxy", "kl-per-token"}
        for key, found in a.numbers.items():
            other = b.numbers[key]
            assert other.failures == found.failures and other.number.n == found.number.n
            if key == "budget/seconds":
                continue
            assert other.number.value == pytest.approx(found.number.value, abs=1e-4), key
    for a, b in zip(one.comparisons, two.comparisons, strict=True):
        assert {n: x.text for n, x in a.answers.items()} == {n: x.text for n, x in b.answers.items()}
    evaluate(evaluating(configs, "one"))
    made = [json.loads((Path(evaluating(configs, name).out) / "evaluation.json").read_text()) for name in configs]
    alike(made[0], made[1])
    assert {"toxicity", "expected-max-toxicity", "claims"} <= made[0]["policies"][1]["numbers"].keys()
    assert {"mc1", "preference-accuracy", "win-rate/reward", "kl"} <= made[0]["policies"][1]["numbers"].keys()
    score(scoring(configs, "one"))
    rows = [
        [json.loads(line) for line in Path(scoring(configs, name).out).read_text().splitlines()]
        for name in ("one", "two")
    ]
    for mine, theirs in zip(*rows, strict=True):
        assert theirs.pop("reward") == pytest.approx(mine.pop("reward"), abs=1e-5) and len(rows[0]) == 6
        assert theirs.pop("parts") == pytest.approx(mine.pop("parts"), abs=1e-5) and theirs == mine
    assert "".join(ranks.said).count("Spearman with length") == 1, "one rank speaks"


def alike(one: object, two: object) -> None:
    """The same, numbers but for what another order of sums does to them."""
    if isinstance(one, dict) and isinstance(two, dict):
        assert one.keys() == two.keys()
        for key in one:
            alike(one[key], two[key])
    elif isinstance(one, list) and isinstance(two, list):
        assert len(one) == len(two)
        for pair in zip(one, two, strict=True):
            alike(*pair)
    elif isinstance(one, float) and isinstance(two, float):
        assert two == pytest.approx(one, abs=2e-4, rel=1e-3)
    else:
        assert one == two


def evaluating(configs: dict[str, CompareConfig], name: str) -> EvalConfig:
    """The start and the reward model's policy, a file of answers, pairs and choices of the prompt file."""
    config = configs[name]
    folder = Path(config.out).parent
    rows = [json.loads(line) for line in Path(str(config.data.eval)).read_text().splitlines()]
    choices = {"choices": ["Yes.", "No.", "Boil it."], "labels": [1, 0, 0]}
    prompts, theirs = folder / "asked.jsonl", folder / "theirs.jsonl"
    more = {"mc1_targets": choices, "context": "Boil the egg. It is white."}
    prompts.write_text("".join(json.dumps(row | more) + "\n" for row in rows))
    theirs.write_text("".join(json.dumps({"prompt": row["prompt"], "response": "Yes."}) + "\n" for row in rows[1:]))
    return EvalConfig(
        (f"start={config.model.path}", f"dpo={folder / 'two' / 'dpo'}", str(theirs)),
        str(prompts),
        str(folder / f"eval-{name}"),
        reference=config.model.path,
        rewards=(f"reward={config.reward_model}",),
        scorer=config.scorer,
        toxicity=classifier(config, folder / "toxic", ("neutral", "toxic")),
        consistency=classifier(config, folder / "inference", ("entailment", "neutral", "contradiction")),
        answers=2,
        precision="fp32",
        micro_tokens=128,
        sampling=config.sampling,
    )


def classifier(config: CompareConfig, place: Path, labels: tuple[str, ...]) -> str:
    """A random one, of the start's shape and with its tokenizer."""
    if not place.exists():
        torch.manual_seed(len(labels))
        numbers = {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
        made = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(config.model.path, **numbers))
        made.save_pretrained(place)
        AutoTokenizer.from_pretrained(config.model.path).save_pretrained(place)
    return str(place)


def scoring(configs: dict[str, CompareConfig], name: str) -> ScoreConfig:
    """The held-out pairs by the reward model and a function."""
    config = configs[name]
    size = Path(config.out).with_name("size.py")
    size.write_text("def size(completions, **columns):\n    return [float(len(text)) for text in completions]\n")
    out = f"{config.out}.jsonl"
    return ScoreConfig((config.reward_model, f"{size}:size"), config.data.eval, out=out, precision="fp32")


def test_evaluation_runs_on_the_device_of_the_run(
    configs: dict[str, CompareConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """Every model of it: policy, reference and reward model."""
    asked = []

    def on(load):
        def loaded(*arguments, device, **options):
            asked.append(device)
            return load(*arguments, device="cpu", **options)

        return loaded

    monkeypatch.setattr(answers, "load_policy", on(answers.load_policy))
    monkeypatch.setattr(outside, "load_score_model", on(outside.load_score_model))
    config, device = configs["one"], torch.device("cpu", 0)
    asked_of = replace(evaluation_config(config, ()), out=str(tmp_path))
    (made,) = answers_of(asked_of, d.World(0, 1, 0, device), prompts_of(asked_of))
    assert asked == [device] * 3 and len(made) == 6
