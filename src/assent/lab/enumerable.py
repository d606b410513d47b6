"""A world so small that the optimum of KL-regularised alignment is computed exactly.

The vocabulary is EOS and a few letters, prompts are two letters, an answer ends at EOS or is cut at
`max_new_tokens`. So *everything* a policy can sample at temperature 1 is in the list of responses (with 7 letters and
2 tokens: 1 + 7 + 49 = 57 for each prompt), no probability lies outside, and by scoring the list

    J(pi)     = mean over prompts of  sum_y pi(y|x) r(x,y) - beta KL(pi(.|x) || pi_ref(.|x))
    pi*(y|x)  = pi_ref(y|x) exp(r(x,y) / beta) / Z(x)

(arXiv 2305.18290, equations 3 and 4) are exact. The files are an ordinary model folder and prompts.jsonl.

PPO with `kl_coef` = beta and `TableReward` maximises J. DPO with the same beta has the same optimum: its labels are
Bradley-Terry on the reward, P(i before j) = sigmoid(r_i - r_j), so its expected loss is the cross-entropy between these
probabilities and sigmoid(beta (log(pi_i/ref_i) - log(pi_j/ref_j))). It is least where the two are equal for every pair
that is compared, that is where beta log(pi/ref) = r + a constant of the prompt: pi = pi*. The labels' temperature
stays 1 whatever beta is. All this needs every response to be linked to all others by comparisons: independent draws
from pi_ref, which gives every response some probability, do that.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from assent.config import InitConfig
from assent.data.records import Example
from assent.data.tree import Branch, TokenTree, TreeBatch, collate
from assent.models.init import random_model, write_model

EOS = "</s>"
EMBEDDING_SCALE = 4.0  # gives the random model an entropy of about 2.8 nats a prompt; uniform is 4.04
CHAT_TEMPLATE = (
    "{%- for message in messages -%}{{- message['content'] -}}"
    "{%- if message['role'] == 'assistant' -%}{{- eos_token -}}{%- endif -%}{%- endfor -%}"
)


@dataclass(frozen=True)
class EnumerableWorld:
    """`prompts` [X] as token ids, `responses` [Y] as token ids (with EOS unless cut), `rewards` [X, Y] float64."""

    letters: str
    prompts: tuple[tuple[int, ...], ...]
    responses: tuple[tuple[int, ...], ...]
    rewards: Tensor
    max_new_tokens: int
    root: Path | None = None
    eos: int = 0

    @property
    def model(self) -> Path:
        """The model folder that `build_enumerable` wrote."""
        assert self.root is not None, "a world that was not written has no files"
        return self.root / "model"

    @property
    def prompts_file(self) -> Path:
        """The prompts as rows."""
        assert self.root is not None, "a world that was not written has no files"
        return self.root / "prompts.jsonl"

    def text(self, ids: Sequence[int]) -> str:
        """Letters of a prompt or response, without EOS."""
        return "".join(self.letters[i - 1] for i in ids if i != self.eos)

    @cached_property
    def _rows(self) -> tuple[dict[tuple[int, ...], int], dict[tuple[int, ...], int]]:
        return {x: i for i, x in enumerate(self.prompts)}, {y: i for i, y in enumerate(self.responses)}

    def index(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> tuple[int, int]:
        """Row and column of a prompt and a sampled answer; KeyError for ids that cannot occur."""
        prompts, responses = self._rows
        return prompts[tuple(map(int, prompt_ids))], responses[tuple(map(int, completion_ids))]

    def reward(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> float:
        """Gold reward of a sampled answer (with its EOS, or cut at `max_new_tokens`)."""
        return float(self.rewards[self.index(prompt_ids, completion_ids)])

    def trees(self) -> list[TokenTree]:
        """For every prompt the tree of all its responses, [Y] branches in order."""
        return [self._tree(x, range(len(self.responses))) for x in range(len(self.prompts))]

    def _tree(self, x: int, branches: Sequence[int], pairs: tuple[tuple[int, int, float], ...] = ()) -> TokenTree:
        ids = [np.array(self.responses[y], dtype=np.int32) for y in branches]
        return TokenTree(
            prompt=np.array(self.prompts[x], dtype=np.int32),
            branches=tuple(Branch(y, np.ones(len(y), dtype=bool)) for y in ids),
            pairs=pairs,
            key=x,
        )

    @torch.no_grad()
    def logprobs(self, score: Callable[[TreeBatch], Tensor]) -> Tensor:
        """log pi(y|x) of every response, [X, Y] float64. `score` gives the log-probs [N] of a batch's trained tokens at
        temperature 1. As the list is complete, the probabilities of each prompt must add up to 1 by themselves."""
        rows = []
        for tree in self.trees():
            batch = collate([tree])
            rows.append(batch.sum_by_response(score(batch).double().cpu()))
        logp = torch.stack(rows)
        total = logp.logsumexp(dim=1)
        assert total.abs().max() < 1e-2, f"the policy's probabilities add up to {total.exp().tolist()}, not to 1"
        return logp - total[:, None]

    def preference_trees(
        self, ref_logp: Tensor, num_pairs: int, rng: np.random.Generator, votes: int = 1
    ) -> list[TokenTree]:
        """Preference data for DPO: `num_pairs` times a prompt and two different responses drawn from pi_ref, each
        compared `votes` times, with labels from Bradley-Terry on the gold reward; one tree of two branches and one
        pair per vote. votes=1 samples every label; with more votes the wins are votes * sigmoid(r_i - r_j) rounded up
        or down at random, which has the same mean and less noise."""
        probs = ref_logp.exp().numpy()
        rewards = self.rewards.numpy()
        trees = []
        for n in range(num_pairs):
            x = n % len(self.prompts)
            p = probs[x] / probs[x].sum()
            i, j = (int(y) for y in rng.choice(len(p), size=2, p=p))
            while i == j:
                i, j = (int(y) for y in rng.choice(len(p), size=2, p=p))
            win = 1.0 / (1.0 + np.exp(rewards[x, j] - rewards[x, i]))
            wins = int(np.floor(votes * win + rng.random()))
            trees += [self._tree(x, (i, j) if vote < wins else (j, i), ((0, 1, 0.0),)) for vote in range(votes)]
        return trees


class TableReward:
    """The gold reward as a source of rewards (`assent.rewards.source.RewardSource`)."""

    def __init__(self, world: EnumerableWorld) -> None:
        self.world = world

    @property
    def tree(self) -> bool:
        return True

    def trees(self, prompts: Sequence[Example], trees: Sequence[TokenTree]) -> list[TokenTree]:
        """The rollout trees themselves."""
        return list(trees)

    def score(self, batch: TreeBatch) -> Tensor:
        """One reward for each response of a batch, [S] float32."""
        tokens = batch.tokens.tolist()
        rewards = [
            self.world.reward(tokens[segment.start : segment.prompt_end], tokens[start:end])
            for segment in batch.segments
            for start, end in segment.branches
        ]
        return torch.tensor(rewards, dtype=torch.float32, device=batch.tokens.device)


def _reward_table(
    prompts: Sequence[tuple[int, ...]], responses: Sequence[tuple[int, ...]], eos: int, rng: np.random.Generator
) -> Tensor:
    """[X, Y] float64 in [-1, 1]: half structure (take up the prompt's letters in order, do end), half chance."""
    structure = np.zeros((len(prompts), len(responses)))
    for (i, x), (j, y) in product(enumerate(prompts), enumerate(responses)):
        same = sum(a == b for a, b in zip(x, y, strict=False)) / len(x)
        structure[i, j] = 2.0 * same - 1.0 + (0.5 if y[-1] == eos else 0.0) - (1.0 if y[0] == eos else 0.0)
    table = np.clip(structure, -1.0, 1.0) / 2 + rng.uniform(-0.5, 0.5, structure.shape)
    return torch.from_numpy(table)


def make_enumerable(
    *, seed: int = 0, num_prompts: int = 8, letters: str = "abcdefg", max_new_tokens: int = 2
) -> EnumerableWorld:
    """The world without its files, the same for the same arguments."""
    rng = np.random.default_rng([seed, 2])
    ids = range(1, len(letters) + 1)
    everything = list(product(ids, ids))
    prompts = tuple(everything[i] for i in sorted(rng.choice(len(everything), num_prompts, replace=False)))
    ended = [(*word, 0) for length in range(max_new_tokens) for word in product(ids, repeat=length)]
    responses = (*ended, *product(ids, repeat=max_new_tokens))
    return EnumerableWorld(letters, prompts, responses, _reward_table(prompts, responses, 0, rng), max_new_tokens)


def build_enumerable(
    out: str | Path,
    *,
    seed: int = 0,
    num_prompts: int = 8,
    letters: str = "abcdefg",
    max_new_tokens: int = 2,
    hidden_size: int = 32,
) -> EnumerableWorld:
    """Writes `model/` (a tokenizer of single letters, a random two-layer Llama) and `prompts.jsonl` into `out`.

    Sample with temperature 1, without top-k or top-p, at most `max_new_tokens`: then every answer is in `responses`.
    """
    world = make_enumerable(seed=seed, num_prompts=num_prompts, letters=letters, max_new_tokens=max_new_tokens)
    root = Path(out)
    root.mkdir(parents=True, exist_ok=True)
    tokenizer = _letter_tokenizer(letters)
    size = InitConfig(data="", out="", hidden_size=hidden_size, layers=2, heads=2, kv_heads=2, context=64, seed=seed)
    model = random_model(tokenizer, size)
    with torch.no_grad():
        # a random model is almost uniform; larger embeddings make it prefer some answers, other ones for each prompt
        model.get_input_embeddings().weight.mul_(EMBEDDING_SCALE)
    write_model(tokenizer, model, root / "model")
    rows = ({"prompt": [{"role": "user", "content": world.text(prompt)}]} for prompt in world.prompts)
    (root / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return EnumerableWorld(letters, world.prompts, world.responses, world.rewards, max_new_tokens, root)


def _letter_tokenizer(letters: str) -> PreTrainedTokenizerFast:
    """EOS (also the padding) has id 0, the letters follow; other characters are dropped."""
    vocabulary = {EOS: 0, **{letter: i for i, letter in enumerate(letters, 1)}}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=EOS, pad_token=EOS, clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def objective(logp: Tensor, ref_logp: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """J = E_pi[r] - beta KL(pi || pi_ref), the mean over prompts; log-probs and rewards [X, Y], a scalar."""
    return (logp.exp() * (rewards - beta * (logp - ref_logp))).sum(dim=1).mean()


def optimum(ref_logp: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """log pi* [X, Y]: pi* = pi_ref exp(r / beta) / Z."""
    return torch.log_softmax(ref_logp + rewards / beta, dim=1)


def regret_closed(logp: Tensor, ref_logp: Tensor, rewards: Tensor, beta: float) -> float:
    """(J(pi) - J(pi_ref)) / (J(pi*) - J(pi_ref)): 0 for the reference, 1 for the optimum, negative if worse."""
    start = objective(ref_logp, ref_logp, rewards, beta)
    best = objective(optimum(ref_logp, rewards, beta), ref_logp, rewards, beta)
    return float((objective(logp, ref_logp, rewards, beta) - start) / (best - start))
