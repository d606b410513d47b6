"""A world so small that the optimum of KL-regularised alignment is computed exactly.

The vocabulary is EOS and a few letters, prompts are two different letters (after "aa" and after "aaa" attention finds
the same values, whatever its weights: no policy could follow the optimum there), an answer ends at EOS or is cut at
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
do that, from pi_ref or from anything else that gives every response some probability.

`optimum`, `f_optimum` and `normalised` compute this and other objectives' optima; `comparisons`, `rankings`, `ratings`
and `labels` make the feedback to learn them from.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import permutations, product
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from assent.config import InitConfig
from assent.data.records import Example
from assent.data.tree import Branch, TokenTree, TreeBatch, collate
from assent.models.init import random_model, write_new_model
from assent.rewards.group import Group, Scores

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

    def _tree(self, x: int, branches: Sequence[int]) -> TokenTree:
        ids = [np.array(self.responses[y], dtype=np.int32) for y in branches]
        return TokenTree(
            prompt=np.array(self.prompts[x], dtype=np.int32),
            branches=tuple(Branch(y, np.ones(len(y), dtype=bool)) for y in ids),
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

    def comparisons(
        self, drawn: Tensor, number: int, rng: np.random.Generator, *, flipped: float = 0.0
    ) -> list[TokenTree]:
        """For every prompt the tree of all its responses with `number` pairs of independent draws: i before j with
        probability sigmoid(r_i - r_j), of which a share `flipped` is then turned round; the margin is |r_i - r_j|.
        `drawn` [X, Y] are log-probs of the draws, here and below. The same response twice makes a pair too."""
        trees = []
        for tree, rewards, share in zip(self.trees(), self.rewards.numpy(), drawn.exp().numpy(), strict=True):
            gap = rewards[:, None] - rewards
            wins = flipped + (1 - 2 * flipped) / (1 + np.exp(-gap))
            weight = share[:, None] * share * wins
            chosen, rejected = np.divmod(_draw(weight.ravel(), number, rng), len(rewards))
            margin = np.abs(gap[chosen, rejected])
            pairs = tuple(zip(chosen.tolist(), rejected.tolist(), margin.tolist(), strict=True))
            trees.append(replace(tree, pairs=pairs))
        return trees

    def rankings(self, drawn: Tensor, number: int, rng: np.random.Generator) -> list[TokenTree]:
        """For every prompt `number` draws ranked by Plackett-Luce on the reward: the field "level"."""

        def level(rewards: np.ndarray) -> np.ndarray:
            return np.argsort(np.argsort(-(rewards + rng.gumbel(size=len(rewards)))))

        return self._drawn(drawn, number, rng, "level", level)

    def ratings(self, drawn: Tensor, number: int, rng: np.random.Generator) -> list[TokenTree]:
        """For every prompt `number` draws with their reward as the field "rating"."""
        return self._drawn(drawn, number, rng, "rating", lambda rewards: rewards)

    def labels(self, drawn: Tensor, number: int, rng: np.random.Generator) -> list[TokenTree]:
        """For every prompt `number` draws, desirable with probability sigmoid(r - mean of the draws' r): "label"."""

        def label(rewards: np.ndarray) -> np.ndarray:
            return rng.random(len(rewards)) < 1 / (1 + np.exp(rewards.mean() - rewards))

        return self._drawn(drawn, number, rng, "label", label)

    def _drawn(
        self,
        drawn: Tensor,
        number: int,
        rng: np.random.Generator,
        name: str,
        feedback: Callable[[np.ndarray], np.ndarray],
    ) -> list[TokenTree]:
        trees = []
        for x, logp in enumerate(drawn):
            which = _draw(logp.exp().numpy(), number, rng)
            field = feedback(self.rewards[x].numpy()[which]).astype(np.float32)
            trees.append(replace(self._tree(x, which.tolist()), per_response={name: field}))
        return trees


class TableReward:
    """The gold reward as a source of rewards (`assent.rewards.group.GroupReward`). With `noise` a Gumbel draw is added
    to each, so that answers are ordered as Bradley-Terry labels: i before j with probability sigmoid(r_i - r_j)."""

    name = "table"

    def __init__(self, world: EnumerableWorld, noise: np.random.Generator | None = None) -> None:
        self.world = world
        self.noise = noise

    def check(self, examples: Sequence[Example]) -> None:
        """Every prompt of the world is in the table."""

    def score(self, groups: Sequence[Group]) -> Scores:
        rewards = [self.world.reward(list(group.prompt_ids), list(ids)) for group in groups for ids in group.ids]
        drawn = 0.0 if self.noise is None else self.noise.gumbel(size=len(rewards))
        return Scores(np.array(rewards) + drawn)


def _draw(weights: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
    """`number` indices in proportion to the weights, with little noise: one uniform number places an even comb over the
    cumulated weights, so each index comes as often as expected, rounded up or down."""
    shares = np.cumsum(weights) / np.sum(weights)
    return np.searchsorted(shares, (np.arange(number) + rng.random()) / number).clip(max=len(weights) - 1)


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
    everything = list(permutations(ids, 2))
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
    write_new_model(tokenizer, model, root / "model")
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


def distance_closed(logp: Tensor, ref_logp: Tensor, best: Tensor) -> float:
    """1 - KL(pi || best) / KL(pi_ref || best), of means over prompts: 0 for the reference, 1 for `best`.

    Where `best` is `optimum`, this is `regret_closed`, for J(best) - J(pi) = beta KL(pi || best)."""
    left, start = ((p.exp() * (p - best)).sum(dim=1).mean() for p in (logp, ref_logp))
    return float(1 - left / start)


def win_rates(rewards: Tensor, drawn: Tensor) -> Tensor:
    """Probability that a response is preferred to a draw, [X, Y]; two of the same: 1/2."""
    wins = torch.sigmoid(rewards[:, :, None] - rewards[:, None, :])
    return (wins * drawn.exp()[:, None, :]).sum(dim=2)


def equilibrium(ref_logp: Tensor, wins: Tensor, beta: float, mixture: float = 0.0, steps: int = 4000) -> Tensor:
    """log pi [X, Y] of pi = pi_ref exp(P(y wins against rho) / beta) / Z, rho = pi^(1 - mixture) pi_ref^mixture / Z'.

    Without a mixture it is the Nash equilibrium of the game in which both sides gain P(win) - beta KL(. || pi_ref)
    (arXiv 2312.00886), with one where its practical algorithm comes to rest; where Online IPO does is the former (arXiv
    2403.08635). `wins` [X, Y, Y] is P(y preferred to y'). By damped iteration, which a test finds at rest."""
    logp, damping = ref_logp, min(0.5, beta / 2)
    for _ in range(steps):
        rho = torch.softmax((1 - mixture) * logp + mixture * ref_logp, dim=1)
        answer = torch.log_softmax(ref_logp + (wins * rho[:, None, :]).sum(dim=2) / beta, dim=1)
        logp = torch.log_softmax((1 - damping) * logp + damping * answer, dim=1)
    return logp


def normalised(density: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
    """log pi = density(level), [X, Y], at that level [X, 1] where the probabilities of each prompt add up to 1, by
    bisection. They must fall with the level, from 1 or more in sum at `low` to 1 or less at `high`."""
    for _ in range(80):
        middle = (low + high) / 2
        heavy = density(middle).logsumexp(dim=1, keepdim=True) > 0
        low, high = torch.where(heavy, middle, low), torch.where(heavy, high, middle)
    return density(high)


DIVERGENCES: Mapping[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "forward_kl": (lambda t: -torch.log1p(-t), 1.0),
    "js": (lambda t: t - torch.log(2 - t.exp()), math.log(2)),
    "alpha": (lambda t: -2 * torch.log1p(-t / 2), 2.0),
}
"""Of f-divergences D_f(pi || pi_ref) = sum pi_ref f(u), u = pi/pi_ref: log u as a function of t = f'(u), and what t is
below. forward_kl f'(u) = 1 - 1/u, js f'(u) = log(2u / (1 + u)), alpha (of 1/2) f'(u) = 2 - 2 u^-1/2; all f'(1) = 0."""


def f_optimum(ref_logp: Tensor, rewards: Tensor, beta: float, divergence: str) -> Tensor:
    """log pi* [X, Y] for E_pi[r] - beta D_f(pi || pi_ref) (arXiv 2309.16240): beta f'(pi*/pi_ref) = r - level, where
    the level of each prompt makes the probabilities add up to 1."""
    log_ratio, bound = DIVERGENCES[divergence]
    least, most = rewards.amin(dim=1, keepdim=True), rewards.amax(dim=1, keepdim=True)
    # at `least` every ratio is 1 or more, at `most` 1 or less; at the bound the best response's would be infinite
    low = torch.maximum(least, most - beta * bound)
    return normalised(lambda level: ref_logp + log_ratio((rewards - level) / beta), low, most)
