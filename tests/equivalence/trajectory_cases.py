"""The short runs that trajectories.py compares: their commands, and the files that they read."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TRAIN = (
    "--model.path MADE/sft/model --model.precision fp32 --data.max_length 96 --optim.lr 3e-3 "
    "--optim.warmup 0 --optim.weight_decay 0.01 --train.batch_size 4 --train.micro_tokens 150 --train.max_steps 4 "
    "--train.threads 1"
)
HELD_OUT = "--data.eval MADE/held_out.jsonl --train.eval_every 2"
PAIRS = "--data.train MADE/pairs.jsonl --probe.prompts 0"
ONLINE = (
    "--data.train MADE/prompts.jsonl --train.batch_size 2 --rewards.functions MADE/rewards.py:vowels "
    "--rewards.rules length=5,6 contains=gold --sampling.max_new_tokens 6 --rollout.responses 3 --rollout.epochs 1 "
    "--rollout.minibatches 2"
)
CRITIC = ONLINE + " --critic.start policy"
ONE_STEP = "--rollout.minibatches 1"
KEPT = ONE_STEP + " --train.micro_tokens 4096"
"""A rollout is one step in one micro-batch: the forward pass that annotated it is kept."""
RARE = "--rewards.weights vowels:0 length:0"
"""Rewards of 0 and 1, the same for all answers to many prompts."""
TEACHER = "--distill.teacher MADE/start"
TAUGHT = (
    f"--data.train MADE/prompts.jsonl --train.batch_size 2 --sampling.max_new_tokens 6 --rollout.responses 3 {TEACHER}"
)
"""A teacher without rewards."""
SEVERAL = "--rollout.epochs 2 --train.max_steps 8"

CASES: Mapping[str, str] = {
    "sft": f"sft --data.train MADE/sft.jsonl {HELD_OUT}",
    "sft each": "sft --data.train MADE/sft.jsonl --data.turns each --model.activation_checkpointing",
    "reward last": f"reward --data.train MADE/pairs.jsonl {HELD_OUT}",
    "reward mean": "reward --data.train MADE/pairs.jsonl --reward.readout mean --reward.margin",
    "reward ranking": "reward --data.train MADE/rankings.jsonl",
    "dpo": f"dpo {PAIRS}",
    "dpo held out": f"dpo {PAIRS} {HELD_OUT} --probe.prompts 3 --probe.max_new_tokens 6 --train.final best",
    "dpo flat": f"dpo {PAIRS} --model.layout flat",
    "dpo lora": f"dpo {PAIRS} --model.lora.rank 2",
    "dpo cached": f"dpo {PAIRS} --reference.mode cached",
    "dpo moving": f"dpo {PAIRS} --reference.mode moving --reference.rate 0.5 --reference.every 2",
    "dpo plus": f"dpo {PAIRS} --plus sft:0.5 ipo:0.1 aot:2.0",
    "simpo": f"simpo {PAIRS}",
    "odpo": f"odpo {PAIRS}",
    "tdpo": f"tdpo {PAIRS}",
    "ld-dpo": f"ld-dpo {PAIRS}",
    "aot": f"aot {PAIRS} --train.batch_size 16",
    "aot-unpaired": f"aot-unpaired {PAIRS}",
    "kto": f"kto --data.train MADE/labels.jsonl {HELD_OUT} --probe.prompts 0 --optim.lr 1e-2 --train.max_steps 8",
    "kto rated": "kto --data.train MADE/ratings.jsonl --threshold 3 --probe.prompts 0",
    "bco": "bco --data.train MADE/labels.jsonl --probe.prompts 0",
    "pl-dpo": "pl-dpo --data.train MADE/rankings.jsonl --probe.prompts 0",
    "nca": "nca --data.train MADE/ratings.jsonl --probe.prompts 0",
    "ppo": f"ppo {ONLINE} --rewards.model MADE/reward-1/model {SEVERAL} {HELD_OUT}",
    "ppo none": f"ppo {CRITIC} --loss.objective none --kl.estimator k3",
    "ppo penalty": f"ppo {CRITIC} --loss.objective penalty --loss.penalty_target 1e-3 {ONE_STEP} --rollout.epochs 2",
    "ppo k1 in the loss": f"ppo {CRITIC} --kl.place loss --kl.estimator k1 --kl.reference MADE/start",
    "ppo k3 in the loss": f"ppo {CRITIC} --kl.place loss --kl.estimator k3",
    "ppo full": f"ppo {CRITIC} --kl.estimator full",
    "ppo full in the loss": f"ppo {CRITIC} --kl.place loss --kl.estimator full",
    "ppo adaptive KL": f"ppo {CRITIC} --kl.target 0.1 --kl.horizon 8 {ONE_STEP}",
    "ppo moving anchor": f"ppo {CRITIC} --kl.anchor ema --kl.anchor_rate 0.3",
    "ppo kept": f"ppo {CRITIC} {KEPT} --loss.entropy 0.01",
    "ppo shared": f"ppo {CRITIC} --critic.shared --critic.warmup 1 --critic.coef 0.1",
    "ppo shared kept": f"ppo {CRITIC} --critic.shared --critic.coef 0.1 {KEPT}",
    "ppo warm-up": f"ppo {CRITIC} --critic.warmup 1 --critic.lr 3e-3 --loss.steps 2",
    "ppo ewma": f"ppo {CRITIC} --loss.ewma 0.5 --loss.tuned_batch 8",
    "ppo ahead": f"ppo {CRITIC} --rollout.ahead",
    "ppo ptx": f"ppo {CRITIC} --ptx.data MADE/text.jsonl --ptx.batch_size 2",
    "ppo ptx kept": f"ppo {CRITIC} {KEPT} --ptx.data MADE/sft.jsonl --ptx.batch_size 2",
    "ppo lora": f"ppo {CRITIC} --model.lora.rank 2",
    "ppo target_kl": f"ppo {CRITIC} {SEVERAL} --rollout.target_kl 1e-4",
    "ppo dual clip": f"ppo {CRITIC} {SEVERAL} --loss.dual_clip 1.5 --loss.clip 0.01 --loss.clip_high 0.02",
    "ppo demonstrations": f"ppo {CRITIC} --given.source row --given.when always",
    "grpo": f"grpo {ONLINE} {SEVERAL} {HELD_OUT}",
    "grpo one step": f"grpo {ONLINE} {KEPT}",
    "grpo kept": f"grpo {ONLINE} {KEPT} --kl.place reward",
    "grpo full": f"grpo {ONLINE} {KEPT} --kl.estimator full",
    "grpo full kept": f"grpo {ONLINE} {KEPT} --kl.estimator full --kl.target 1",
    "grpo moving anchor": f"grpo {ONLINE} {SEVERAL} --kl.anchor ema --kl.anchor_rate 0.3 --model.lora.rank 2",
    "grpo row": f"grpo {ONLINE} --given.source row --given.when always",
    "grpo row better": f"grpo {ONLINE} --given.source row --given.when better {KEPT}",
    "grpo hint": f"grpo {ONLINE} --given.source hint --given.hint {{answer}} --given.when always --rollout.ahead",
    "grpo ensemble": f"grpo {ONLINE} --rewards.model MADE/reward-1/model MADE/reward-2/model "
    "--rewards.ensemble lcb --rewards.weights contains:0.2",
    "grpo unscored": f"grpo {ONLINE} --rewards.functions MADE/rewards.py:some --rewards.rules",
    "dr-grpo": f"dr-grpo {ONLINE}",
    "dapo": f"dapo {ONLINE} {RARE} --curriculum.rest 1 --rollout.ahead",
    "gspo": f"gspo {ONLINE} --train.batch_size 4 --rollout.minibatches 4 --train.max_steps 8",
    "cispo": f"cispo {ONLINE} {SEVERAL}",
    "reinforce": f"reinforce {ONLINE}",
    "reinforce row": f"reinforce {ONLINE} --shaping.baseline row --shaping.normalise batch "
    "--shaping.missing_eos_penalty 0.5",
    "reinforce++": f"reinforce++ {ONLINE} --kl.estimator k3",
    "reinforce++-baseline": f"reinforce++-baseline {ONLINE} --shaping.overlong 0.5",
    "rloo": f"rloo {ONLINE} --shaping.baseline running --shaping.normalise running --shaping.clip 1.0",
    "rloo easy": f"rloo {ONLINE} {RARE} --curriculum.order easy --curriculum.rest 1 --train.max_steps 6",
    "rloo hard": f"rloo {ONLINE} --curriculum.order hard --curriculum.column level",
    "remax": f"remax {ONLINE} --rollout.responses 2",
    "online-dpo": f"online-dpo {ONLINE} {HELD_OUT}",
    "online-dpo two": f"online-dpo {ONLINE} --rollout.responses 2 {KEPT} --rollout.ahead",
    "online-dpo ties": f"online-dpo {ONLINE} {RARE} --loss.ties first --loss.pairs ipo --loss.beta 0.5 {SEVERAL}",
    "online-dpo tdpo": f"online-dpo {ONLINE} --loss.pairs tdpo --model.lora.rank 2",
    "online-dpo moving anchor": f"online-dpo {ONLINE} {SEVERAL} --kl.anchor ema --kl.anchor_rate 0.3",
    "online-dpo wpo": f"online-dpo {ONLINE} --loss.pairs wpo --model.layout flat",
    "xpo": f"xpo {ONLINE} --rollout.responses 2 --loss.alpha 0.1 {SEVERAL}",
    "xpo lora": f"xpo {ONLINE} --rollout.responses 2 --loss.alpha 0.1 --model.lora.rank 2",
    "nash-md": f"nash-md {ONLINE} --rollout.responses 2 --kl.reference MADE/start",
    "nash-md lora": f"nash-md {ONLINE} --rollout.responses 2 --model.lora.rank 2 --loss.preference order {KEPT}",
    "online-kto": f"online-kto {ONLINE} {SEVERAL}",
    "online-kto threshold": f"online-kto {ONLINE} --loss.threshold 0.4 --loss.desirable_weight 2",
    "online-simpo": f"online-simpo {ONLINE} --loss.options gamma:0.5 --shaping.missing_eos_penalty 0.5",
    "remax ahead": f"remax {ONLINE} --rollout.ahead --loss.whiten",
    "gkd": f"gkd {TAUGHT}",
    "gkd rows": f"gkd {TAUGHT} --distill.beta 0.5 --distill.on_policy 0.5 --distill.temperature 2 --rollout.ahead "
    "--sampling.max_new_tokens 24",
    "gkd rewards": f"gkd {ONLINE} {TEACHER} --distill.beta 0 {HELD_OUT}",
    "reinforce teacher": f"reinforce {TAUGHT} --loss.gamma 0 {KEPT}",
    "grpo teacher": f"grpo {ONLINE} {TEACHER} --distill.coef 0.2 {KEPT}",
    "reinforce credit": f"reinforce {ONLINE} --rewards.model MADE/reward-1/model --rewards.credit gradient",
    "ppo credit": f"ppo {CRITIC} --rewards.model MADE/reward-1/model MADE/reward-2/model --rewards.ensemble lcb "
    "--rewards.credit absolute --rewards.credit_share 0.5 --shaping.normalise batch",
}
"""Name -> command, besides `TRAIN` and `--out`. MADE is the folder of what all read."""

RESUMED: Mapping[str, str] = {
    "dpo resumed": "dpo moving",
    "ppo resumed": "ppo ahead",
    "ppo resumed ewma": "ppo ewma",
    "grpo resumed moving anchor": "grpo moving anchor",
    "rloo resumed": "rloo easy",
    "online-dpo resumed": "online-dpo ties",
    "xpo resumed": "xpo",
}
"""Name -> the case that is stopped after three steps and continued to its end."""
CHEAP = ("dpo held out", "grpo kept", "ppo resumed")
"""What CI runs, twice from one checkout (test_trajectories.py)."""

REWARDS = '''"""A reward that differs from answer to answer."""


def vowels(completions, **columns):
    return [sum(letter in "aeiou" for letter in str(text)) / (1 + len(str(text))) for text in completions]


def some(completions, **columns):
    return [None if i % 4 == 2 else score for i, score in enumerate(vowels(completions))]
'''
WORDS = "red green blue paris egg water seven minutes boil cool answer question sentence thank welcome".split()


def commands(name: str, made: Path, out: Path) -> list[list[str]]:
    """The words of a case's commands, one after the other."""
    if name not in RESUMED:
        return [words(CASES[name], made, out)]
    case = CASES[RESUMED[name]]
    return [words(f"{case} --train.max_steps 3", made, out), words(f"{case} --resume auto", made, out)]


def words(case: str, made: Path, out: Path) -> list[str]:
    """A command with `TRAIN` and `--out`; of an option that is named twice only the last."""
    command, *rest = case.split()
    options: dict[str, list[str]] = {}
    for word in (*TRAIN.split(), *rest, "--out", str(out)):
        if word.startswith("--"):
            options[word] = values = []
        else:
            values.append(word.replace("MADE", str(made)))
    return [command, *(word for name, values in options.items() for word in (name, *values))]


def write_files(folder: Path) -> None:
    """The data files and the reward function, MADE/..."""
    for name, rows in _rows(random.Random(0)).items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "rewards.py").write_text(REWARDS, encoding="utf-8")


def _rows(draw: random.Random) -> dict[str, list[dict[str, Any]]]:
    def text(low: int = 1, high: int = 9) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(low, high)))

    def prompt() -> str:
        return f"{draw.randrange(100)} {text(1, 6)}?"

    def asked(number: int) -> dict[str, Any]:
        answers = [[{"role": "assistant", "content": f"{i} {text()}"}] for i in range(number)]
        return {
            "prompt": [{"role": "user", "content": prompt()}],
            "responses": [{"messages": turns} for turns in answers],
        }

    def talk(turns: int) -> list[dict[str, str]]:
        return [{"role": role, "content": text()} for _ in range(turns) for role in ("user", "assistant")]

    def pair(i: int) -> dict[str, Any]:
        return {"kind": "pair", "chosen": i % 2, "rejected": 1 - i % 2, "strength": 1.0 + i % 3}

    def rating(i: int) -> dict[str, Any]:
        return {"kind": "rating", "response": i, "scores": {"overall": draw.randint(1, 5)}}

    ranking = {"kind": "ranking", "levels": [[2], [0, 3], [1]]}
    return {
        "pairs": [asked(2) | {"feedback": [pair(i)]} for i in range(16)],
        "rankings": [asked(4) | {"feedback": [ranking]} for _ in range(16)],
        "ratings": [asked(4) | {"feedback": [rating(i) for i in range(4)]} for _ in range(16)],
        "labels": [{"prompt": prompt(), "completion": text(), "label": i % 3 > 0} for i in range(16)],
        "held_out": [{"prompt": prompt(), "chosen": text(), "rejected": f"no {text()}", "gold": "e"} for _ in range(5)],
        "sft": [{"messages": talk(1 + i % 2)} for i in range(16)],
        "text": [{"text": text(4, 12)} for _ in range(8)],
        "prompts": [
            {"prompt": prompt(), "completion": text(1, 2), "answer": text(1, 1), "level": i % 4, "gold": "e"}
            for i in range(7)
        ],
    }
