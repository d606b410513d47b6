"""The rollout engine that runs wherever torch does: continuous batching around any Hugging Face decoder's own forward.

A prompt is computed once for all its responses, packed with others. Sequences are decoded side by side in the slots of
a `SlotCache`; one that ends is replaced by the next. Python works per step, never per token of a sequence.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from assent.config import SamplingConfig
from assent.data.tree import Segment
from assent.errors import ModelError, NonFiniteError
from assent.models.attention import Attend, TreeAttend, attention_of, inexact_reason, install, use_attention
from assent.rollout.cache import PromptCapture, SlotCache
from assent.rollout.compiled import CompiledStep
from assent.rollout.draw import sample, uniforms
from assent.rollout.engine import Completion
from assent.rollout.packed_linear import PackedLinears

_PREFILL_TOKENS = 2048  # prompts computed in one forward
_FIRST_COLUMNS = 256  # columns for responses in a new cache; it grows when they are full
_FULL = 0.875  # share of slots in use above which a step puts up with free ones
_CHECK_EVERY = 4  # steps between looks for ended responses on an accelerator


class TorchEngine:
    """Samples from a Hugging Face causal language model, whose weights it shares with whoever trains it.

    model        runs its own forward; only its attention is replaced, while it samples
    eos_ids      tokens that end a response
    precision    of matrix products; weights stay as they are
    on_progress  called with (finished responses, all responses) as responses finish
    compiled     decoding steps are compiled when the first is due, which takes a while and on a CPU a C++ compiler
    unused       ids that no token has, of a padded vocabulary: never drawn. Log-probs are of the whole vocabulary, as
                 training sees them, so the draws are from that distribution without the mass of these ids
    """

    def __init__(
        self,
        model: PreTrainedModel,
        eos_ids: Collection[int],
        precision: str = "fp32",
        on_progress: Callable[[int, int], None] | None = None,
        *,
        compiled: bool = False,
        unused: Collection[int] = (),
    ) -> None:
        self.model = model
        self.unused = sorted(unused)
        self.eos_ids = sorted(eos_ids)
        self.precision = precision
        self.on_progress = on_progress
        self._compiled = CompiledStep(model) if compiled else None
        self._linears: PackedLinears | None = None

    def generate(
        self, prompts: Sequence[np.ndarray], n: int, sampling: SamplingConfig, seed: int, first: int = 0
    ) -> list[list[Completion]]:
        """`n` responses to each of P prompts (token ids): P lists of n. The uniforms of a response depend on (seed,
        `first` + prompt index, response index) alone, so neither batching nor splitting the prompts over ranks changes
        anything but rounding. Raises ModelError where a sequence cannot fit the model, NonFiniteError where a
        log-probability is not a number."""
        self._check(prompts, sampling)
        if not prompts or n == 0:
            return [[] for _ in prompts]
        with self._ready():
            return _Generation(self, prompts, n, sampling, seed, first).run()

    def logits(self, ids: Tensor, positions: Tensor, cache: SlotCache) -> Tensor:
        """Of one more token, `ids` and `positions` [B, 1], for each sequence in `cache`: [B, V]."""
        if self._compiled is not None and len(ids) > 1:
            return self._compiled(ids, positions, *cache.windows())
        return self.forward(ids, positions, cache)[:, 0]

    def forward(self, ids: Tensor, positions: Tensor, attend: Attend, **options: Any) -> Tensor:
        """Logits of these tokens, `ids` and `positions` [B, T], by the model that is sampled from."""
        out = self.model(input_ids=ids, position_ids=positions, use_cache=False, attend=attend, **options)
        logits: Tensor = out.logits
        return logits

    def update_weights(self, state_dict: Mapping[str, Tensor]) -> None:
        """Copies new weights into the model. Not needed where a trainer changes this very model in place."""
        self.model.load_state_dict(dict(state_dict))

    @property
    def compiles(self) -> bool:
        return self._compiled is not None

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _check(self, prompts: Sequence[np.ndarray], sampling: SamplingConfig) -> None:
        assert sampling.max_new_tokens >= 1 and sampling.max_batch >= 1, sampling
        assert all(len(prompt) > 0 for prompt in prompts), "a prompt needs at least one token to predict from"
        prompt = max((len(prompt) for prompt in prompts), default=0)
        longest = prompt + sampling.max_new_tokens
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if limit is not None and longest > limit:
            raise ModelError(
                f"The longest prompt has {prompt} tokens; with sampling.max_new_tokens {sampling.max_new_tokens} that "
                f"is {longest}, more than the {limit} positions of {type(self.model).__name__}. Shorten the prompts "
                f"or set sampling.max_new_tokens to at most {max(limit - prompt, 0)}."
            )
        reason = inexact_reason(self.model, longest)
        if reason is not None:
            raise ModelError(f"{type(self.model).__name__} cannot be sampled by the torch engine: {reason}.")

    @contextmanager
    def _ready(self) -> Iterator[None]:
        """Evaluation mode, no autograd, our attention, weights laid out for decoding; all undone on leaving."""
        device = self.device.type
        dtype = torch.bfloat16 if self.precision == "bf16" else next(self.model.parameters()).dtype
        autocast: AbstractContextManager[Any] = nullcontext()
        if self.precision == "bf16":
            autocast = torch.autocast(device, torch.bfloat16, cache_enabled=False)
        training, attention = self.model.training, attention_of(self.model)
        install(self.model)
        self.model.eval()
        try:
            with torch.no_grad(), autocast, self._packed(dtype):
                yield
        finally:
            self.model.train(training)
            use_attention(self.model, attention)

    def _packed(self, dtype: torch.dtype) -> PackedLinears:
        """The model's linear layers, whose products a compiled step knows by number: so these stay the same, and are
        found by a pass over one token and not while responses are computed, which would make the first call another
        than the later ones."""
        if self._compiled is None:
            return PackedLinears(self.model, dtype)
        if self._linears is None:
            self._linears = PackedLinears(self.model, dtype)
            token = torch.zeros(1, 1, dtype=torch.int64, device=self.device)
            with self._linears:
                attend = TreeAttend([Segment(0, 1, ())], 1)
                self.model(input_ids=token, position_ids=token, use_cache=False, attend=attend)
                self._linears.settle()
        return self._linears


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A response that has not begun: its prompt's keys and values, and the logits [V] of its first token."""

    prompt: int
    response: int
    layers: Mapping[int, tuple[Tensor, Tensor]]
    logits: Tensor


class _Generation:
    """One call of `generate`.

    A slot's state is a row of the tensors below. On the host, `owner` says which (prompt, response) a slot holds and
    `age` how many tokens it has, so only ends by EOS have to be asked of the device.
    """

    def __init__(
        self,
        engine: TorchEngine,
        prompts: Sequence[np.ndarray],
        n: int,
        sampling: SamplingConfig,
        seed: int,
        first: int,
    ) -> None:
        self.engine, self.prompts, self.n, self.sampling = engine, prompts, n, sampling
        self.seed, self.first = seed, first
        device, longest = engine.device, max(len(prompt) for prompt in prompts)
        slots, length = min(sampling.max_batch, len(prompts) * n), sampling.max_new_tokens
        self.device = device
        columns = longest + min(length, _FIRST_COLUMNS)
        self.cache = SlotCache(slots, longest, columns, device, in_order=engine.compiles)
        # longest first: neighbours of like length waste few columns, and long ones do not come last and alone
        self.unread = deque(sorted(range(len(prompts)), key=lambda prompt: -len(prompts[prompt])))
        self.waiting: deque[_Waiting] = deque()
        self.results: list[list[Completion | None]] = [[None] * n for _ in prompts]
        self.num_done = 0
        self.num_steps = 0
        self.owner: list[tuple[int, int] | None] = [None] * slots
        self.age = np.zeros(slots, dtype=np.int64)
        self.eos = torch.tensor(engine.eos_ids, dtype=torch.int64, device=device)
        self.unused = torch.tensor(engine.unused, dtype=torch.int64, device=device) if engine.unused else None
        self.rows = torch.arange(slots, device=device)
        self.ids = torch.zeros(slots, length, dtype=torch.int64, device=device)
        self.logprobs = torch.zeros(slots, length, device=device)
        self.uniform = torch.zeros(slots, length, dtype=torch.float64, device=device)
        self.token = torch.zeros(slots, dtype=torch.int64, device=device)
        self.position = torch.zeros(slots, dtype=torch.int64, device=device)
        self.count = torch.zeros(slots, dtype=torch.int64, device=device)
        self.ended = torch.zeros(slots, dtype=torch.bool, device=device)

    def run(self) -> list[list[Completion]]:
        while True:
            while (free := self._free()) and (self.waiting or self.unread):
                if not self.waiting:
                    self._read_prompts()
                self._admit(free)
                self._retire()
            self._compact()
            if self.cache.active == 0:
                return self.results  # type: ignore[return-value]
            self._step()
            self._retire()

    def _free(self) -> list[int]:
        return [slot for slot, owner in enumerate(self.owner) if owner is None]

    def _read_prompts(self) -> None:
        """Computes the next prompts in one packed forward; their responses wait for slots."""
        segments: list[Segment] = []
        chosen: list[int] = []
        total = 0
        while self.unread and (not chosen or total + len(self.prompts[self.unread[0]]) <= _PREFILL_TOKENS):
            chosen.append(self.unread.popleft())
            width = len(self.prompts[chosen[-1]])
            segments.append(Segment(total, total + width, ()))
            total += width
        tokens = torch.from_numpy(np.concatenate([self.prompts[p] for p in chosen]).astype(np.int64))
        positions = torch.cat([torch.arange(s.end - s.start) for s in segments])
        ends = torch.tensor([s.end - 1 for s in segments])
        capture = PromptCapture(TreeAttend(segments, total))
        ids, places = tokens[None].to(self.device), positions[None].to(self.device)
        logits = self.engine.forward(ids, places, capture, logits_to_keep=ends.to(self.device))[0]
        for index, (prompt, segment) in enumerate(zip(chosen, segments, strict=True)):
            layers = capture.prompt(segment.start, segment.end)
            self.waiting.extend(_Waiting(prompt, i, layers, logits[index]) for i in range(self.n))

    def _admit(self, free: list[int]) -> None:
        """Puts waiting responses into free slots and draws their first tokens."""
        slots = free[: len(self.waiting)]
        entering = [self.waiting.popleft() for _ in slots]
        groups: dict[int, list[int]] = {}
        for slot, item in zip(slots, entering, strict=True):
            groups.setdefault(item.prompt, []).append(slot)
            self.owner[slot] = (item.prompt, item.response)
        for item in {item.prompt: item for item in entering}.values():
            self.cache.admit(groups[item.prompt], item.layers)
        length = self.sampling.max_new_tokens
        drawn = np.stack([uniforms(self.seed, self.first + item.prompt, item.response, length) for item in entering])
        rows = torch.tensor(slots, device=self.device)
        self.uniform[rows] = torch.from_numpy(drawn).to(self.device)
        self.position[rows] = torch.tensor([len(self.prompts[item.prompt]) for item in entering], device=self.device)
        self.count[rows] = 0
        self.ended[rows] = False
        self.age[slots] = 0
        self.cache.active = max(self.cache.active, slots[-1] + 1)
        self._draw(rows, torch.stack([item.logits for item in entering]))
        self.age[slots] = 1

    def _step(self) -> None:
        """Feeds every slot its last token and draws the next."""
        active = self.cache.active
        self.cache.begin_step()
        logits = self.engine.logits(self.token[:active, None], self.position[:active, None], self.cache)
        self.cache.end_step()
        self.position[:active] += 1
        self._draw(self.rows[:active], logits)
        self.age[:active] += 1
        self.num_steps += 1

    def _draw(self, rows: Tensor, logits: Tensor) -> None:
        config, count = self.sampling, self.count[rows]
        ids, logprobs = sample(
            logits,
            self.uniform[rows, count],
            temperature=config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
            unused=self.unused,
        )
        self.token[rows] = ids
        self.ids[rows, count] = ids
        self.logprobs[rows, count] = logprobs
        self.count[rows] = count + 1
        self.ended[rows] |= (ids[:, None] == self.eos).any(-1)

    def _retire(self) -> None:
        """Collects the responses that have ended and frees their slots. Where asking the device means waiting for it,
        it is asked every few steps; what was drawn after an EOS in between is cut off here."""
        active, length = self.cache.active, self.sampling.max_new_tokens
        full = self.age[:active] >= length
        if self.device.type != "cpu" and self.num_steps % _CHECK_EVERY and not full.any():
            return
        slots = np.flatnonzero(self.ended[:active].cpu().numpy() | full)
        slots = slots[[self.owner[slot] is not None for slot in slots]]
        if len(slots) == 0:
            return
        rows, ages = torch.from_numpy(slots).to(self.device), self.age[slots]
        ids = self.ids[rows, : int(ages.max())].cpu().numpy()
        logprobs = self.logprobs[rows, : int(ages.max())].cpu().numpy()
        self.cache.release(slots.tolist())
        self.age[slots] = 0
        self.count[rows] = 0  # until a free slot is filled or left out, its draws count for nothing
        self.position[rows] = 0
        for row, slot in enumerate(slots.tolist()):
            ends = np.flatnonzero(np.isin(ids[row, : ages[row]], self.engine.eos_ids))
            size = int(ends[0]) + 1 if len(ends) else int(ages[row])
            self._finish(slot, ids[row, :size].copy(), logprobs[row, :size].copy(), len(ends) > 0)

    def _finish(self, slot: int, ids: np.ndarray, logprobs: np.ndarray, finished: bool) -> None:
        owner = self.owner[slot]
        assert owner is not None
        prompt, response = owner
        if not np.isfinite(logprobs).all():
            where = int(np.flatnonzero(~np.isfinite(logprobs))[0])
            raise NonFiniteError(
                f"Log-probability {logprobs[where]} at token {where} of response {response} to prompt {prompt}: the "
                "model's logits are not finite numbers. Its weights have probably diverged."
            )
        self.results[prompt][response] = Completion(ids, logprobs, finished)
        self.owner[slot] = None
        self.num_done += 1
        if self.engine.on_progress is not None:
            self.engine.on_progress(self.num_done, len(self.prompts) * self.n)

    def _compact(self) -> None:
        """Moves the last live slots into free ones, so that a step computes live slots only. Not for a few: a new batch
        size costs oneDNN new kernels."""
        live = [slot for slot, owner in enumerate(self.owner) if owner is not None]
        if len(live) > self.cache.active * _FULL:
            return
        source = [slot for slot in live if slot >= len(live)]
        target = [slot for slot in range(len(live)) if self.owner[slot] is None]
        if source:
            self.cache.move(source, target)
            for state in (self.ids, self.logprobs, self.uniform, self.token, self.position, self.count, self.ended):
                state[target] = state[source]
            self.age[target] = self.age[source]
            for old, new in zip(source, target, strict=True):
                self.owner[new], self.owner[old] = self.owner[old], None
        self.cache.active = len(live)
