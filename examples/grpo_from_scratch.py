"""GRPO in one file: the whole loop, on assent's data, models, losses and engine, without its algorithms.

    python examples/grpo_from_scratch.py --model MODEL --prompts prompts.jsonl --steps 50

Change what you like: the reward, the advantage, the loss. Everything that is imported is a function or a class that
does one thing; `assent grpo` puts the same ones together, with checkpoints, ranks, logs and all the other methods.
Without --model and --prompts a tiny world is made, in which the right answer is to repeat the prompt's letters.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from assent.config import ModelConfig, SamplingConfig
from assent.data.chat import Chat
from assent.data.formats import load_examples
from assent.data.packing import order
from assent.data.records import Example
from assent.data.tree import TreeBatch
from assent.distributed import World
from assent.losses import group_advantages, kl_estimate, ppo_clip, token_weights
from assent.models.annotate import BatchColumns, columns_of
from assent.models.loading import load_policy, load_tokenizer
from assent.models.policy import Policy
from assent.models.saving import save_model, stop_ids
from assent.rollout.rollout import Fields as TokenFields
from assent.rollout.rollout import Rollout, pack, rollout_of
from assent.rollout.torch_engine import TorchEngine

ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))


def reward(prompt: str, answer: str) -> float:
    """What an answer is worth: yours to change. Here the share of the prompt's letters that it repeats in order."""
    return sum(a == b for a, b in zip(prompt, answer, strict=False)) / max(1, len(prompt))


class GRPO:
    """The policy, its frozen start as the reference, and the engine, which samples from the policy's own weights."""

    def __init__(self, args: argparse.Namespace) -> None:
        model = ModelConfig(args.model, precision="fp32")
        self.args = args
        self.chat = Chat(load_tokenizer(model))
        self.policy = load_policy(model, max_length=args.max_length)
        self.reference = load_policy(model, max_length=args.max_length, trainable=False)
        stops = stop_ids(self.chat, self.policy.plain.generation_config)
        self.engine = TorchEngine(self.policy.model, stops, self.policy.precision)
        self.sampling = SamplingConfig(max_new_tokens=args.max_new_tokens, temperature=1.0)
        self.optimizer = torch.optim.AdamW(self.policy.parameters(), lr=args.lr, weight_decay=0.0)

    # ---- a rollout: columns that are filled in one after the other

    def sample(self, examples: Sequence[Example], rows: np.ndarray, step: int) -> Rollout:
        """`group` responses to each prompt. Uniforms depend on (seed, prompt, response, token) alone."""
        prompts = [self.chat.prompt_ids(examples[row]) for row in rows]
        groups = self.engine.generate(prompts, self.args.group, self.sampling, seed=self.args.seed * 1_000_003 + step)
        return rollout_of(prompts, rows, groups)

    def score(self, rollout: Rollout, examples: Sequence[Example]) -> Rollout:
        texts = [
            self.chat.decode(ids, rollout.prompts[prompt], finished=bool(finished))
            for ids, prompt, finished in zip(rollout.answers, rollout.prompt, rollout.finished, strict=True)
        ]
        questions = [examples[rollout.rows[prompt]].prompt[-1].content for prompt in rollout.prompt]
        rewards = [reward(question, text) for question, text in zip(questions, texts, strict=True)]
        return replace(rollout, reward=np.array(rewards, np.float32))

    def annotate(self, rollout: Rollout) -> Rollout:
        """Log-probs of every sampled token by the policy, before it is trained on them, and by the reference: packed
        trees, each prompt computed once for all of its responses."""

        def both(batch: TreeBatch) -> BatchColumns:
            return BatchColumns({"old": self.policy(batch).logprobs, "reference": self.reference(batch).logprobs})

        flat = not (self.policy.tree and self.reference.tree)
        columns = columns_of(rollout.trees(), both, micro_tokens=self.args.micro_tokens, flat=flat, world=ALONE)
        return replace(rollout, old=columns.per_token["old"], reference=columns.per_token["reference"])

    def advantages(self, rollout: Rollout) -> Rollout:
        """Each response against the others to its prompt; all of its tokens get the same."""
        assert rollout.reward is not None
        prompt = torch.from_numpy(rollout.prompt)
        per_response = group_advantages(torch.from_numpy(rollout.reward).double(), prompt, scale="group")
        return replace(rollout, advantages=np.repeat(per_response.float().numpy(), rollout.lengths))

    # ---- a step

    def step(self, rollout: Rollout) -> dict[str, float]:
        """One optimiser step on a rollout: sums over micro-batches, divided by the counts of the whole step."""
        window = pack(rollout, micro_tokens=self.args.micro_tokens, flat=not self.policy.tree, world=ALONE)
        sums = {"loss": 0.0, "kl": 0.0}
        for batch in window.batches:
            fields, logprobs = TokenFields.of(batch), self.policy(batch).logprobs
            losses = ppo_clip(logprobs, fields.old, fields.advantages, clip=self.args.clip)
            kl = kl_estimate(logprobs, fields.reference, estimator="k3")
            weights = token_weights(
                batch.tokens_by_response(),
                batch.response,
                reduction="response",
                num_tokens=window.counts.tokens,
                num_responses=window.counts.responses,
            )
            loss = (weights * (losses + self.args.beta * kl)).sum()
            loss.backward()
            sums["loss"] += float(loss.detach())
            sums["kl"] += float((weights * kl).sum().detach())
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return sums

    def train(self, examples: Sequence[Example]) -> list[float]:
        """The mean reward of each rollout."""
        rewards: list[float] = []
        for number in range(self.args.steps):
            rows = self.next_rows(len(examples), number)
            rollout = self.score(self.sample(examples, rows, number), examples)
            rollout = self.advantages(self.annotate(rollout))
            told: dict[str, float] = {}
            for _ in range(self.args.epochs):
                told = self.step(rollout)
            assert rollout.reward is not None
            rewards.append(float(rollout.reward.mean()))
            print(f"step {number + 1}: reward {rewards[-1]:.3f}  kl {told['kl']:.4f}  loss {told['loss']:.4f}")
        return rewards

    def next_rows(self, number: int, step: int) -> np.ndarray:
        """The prompts of a rollout, in a fresh order each pass."""
        batch = min(self.args.batch, number)
        per_pass = number // batch
        shuffled = order(number, seed=self.args.seed, epoch=step // per_pass)
        return shuffled[(step % per_pass) * batch :][:batch]


def tiny_world(folder: Path) -> tuple[str, str]:
    """A random model of a few letters and its prompts."""
    from assent.lab.enumerable import build_enumerable

    world = build_enumerable(folder, seed=0, num_prompts=8)
    return str(world.model), str(world.prompts_file)


def parsed(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="model folder or hub id")
    parser.add_argument("--prompts", help="file of prompts, in any shape that `assent data` reads")
    parser.add_argument("--out", type=Path, help="folder for the trained model")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=8, help="prompts of a rollout")
    parser.add_argument("--group", type=int, default=16, help="responses to each prompt")
    parser.add_argument("--epochs", type=int, default=2, help="optimiser steps on a rollout")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--beta", type=float, default=0.02, help="weight of the KL from the reference")
    parser.add_argument("--clip", type=float, default=0.2)
    parser.add_argument("--max_new_tokens", type=int, default=2)
    parser.add_argument("--max_length", type=int, default=64)
    parser.add_argument("--micro_tokens", type=int, default=4096, help="packed tokens of a micro-batch")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> list[float]:
    args = parsed(words)
    with tempfile.TemporaryDirectory() as folder:
        if args.model is None or args.prompts is None:
            args.model, args.prompts = tiny_world(Path(folder))
        torch.manual_seed(args.seed)
        algorithm = GRPO(args)
        rewards = algorithm.train(load_examples(args.prompts).examples)
        if args.out is not None:
            save(algorithm.policy, algorithm.chat, args.out)
    return rewards


def save(policy: Policy, chat: Chat, out: Path) -> None:
    """An ordinary Hugging Face folder."""
    stops = stop_ids(chat, policy.plain.generation_config)
    save_model(policy, chat.tokenizer, out, policy.model.state_dict(), stops=stops)
    print(f"saved as {out}")


if __name__ == "__main__":
    main()
