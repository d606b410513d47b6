"""What every training command does before and after its algorithm: ranks, run folder, tokenizer, data, models."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from assent import cpus, distributed
from assent.config import LoraConfig, ModelConfig, OnlineConfig, RunConfig, settings
from assent.data.chat import Chat
from assent.data.dataset import Prepared, prepare
from assent.data.packing import EpochStream
from assent.data.tree import TokenTree
from assent.distributed import World
from assent.models.heads import AS_IT_IS, WantedHead, load_score_model
from assent.models.loading import load_policy, load_tokenizer, quiet_transformers
from assent.models.policy import Policy, ScoreModel
from assent.models.shared_ids import check_shared_ids
from assent.models.vocabulary import check_vocabulary
from assent.train.digests import digests
from assent.train.runfolder import RunFolder

log = logging.getLogger(__name__)


class SharesPrompts(Protocol):
    """Whatever reads batches; `tree` says whether prompts may be shared in them."""

    @property
    def tree(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Session:
    """A training command under way."""

    config: RunConfig
    world: World
    folder: RunFolder
    tokenizer: Any
    chat: Chat

    def prepare(self, view: Callable[..., Any], reserve: int = 0) -> Prepared:
        """The data as trees, training and held-out; the counts, and digests of all that the run reads, go into the run
        folder. `reserve` tokens of the length limit are kept for answers that are still to be sampled. Raises
        RunFolderError where the run is resumed and something else is read than before."""
        limits = replace(self.config.data, max_length=self.config.data.max_length - reserve)

        def read() -> Prepared:
            data = prepare(limits, self.chat, view)
            self.folder.record(data.report, digests(self.config, self.chat, data))
            return data

        return distributed.on_main(read)

    def stream(self, trees: Sequence[TokenTree], *models: SharesPrompts, batch_size: int | None = None) -> EpochStream:
        """Windows of these trees for this rank, in a layout that all these models can read; of `train.batch_size` where
        no other size is given."""
        train = self.config.train
        return EpochStream(
            trees,
            batch_size=batch_size or train.batch_size,
            micro_tokens=train.micro_tokens,
            seed=train.seed,
            flat=not all(model.tree for model in models),
            rank=self.world.rank,
            ranks=self.world.size,
        )

    def total_steps(self, steps_per_epoch: int) -> int:
        """Optimiser steps of the whole run."""
        train = self.config.train
        return train.max_steps if train.max_steps is not None else train.epochs * steps_per_epoch

    def policy(self, *, value_head: bool = False) -> Policy:
        """The trained policy, on its device, sharded over the ranks; with a critic that shares its layers."""
        policy = load_policy(self.config.model, max_length=self.config.data.max_length, device=self.world.device)
        check_vocabulary(policy.plain, self.tokenizer, self.config.model.path)
        if value_head:
            policy.add_value_head()
        return self._shard(policy)

    def reference(self, path: str | None, *, adapters: bool = False) -> Policy:
        """A frozen policy: `path`, or the start of the trained one; with `adapters` it has LoRA layers as that one.
        Raises ModelError where `path` has another vocabulary."""
        if path is not None:
            self._check_shared_ids(
                "--kl.reference" if isinstance(self.config, OnlineConfig) else "--reference.path", path
            )
        config = self._frozen(path or self.config.model.path)
        if adapters:
            config = replace(config, lora=self.config.model.lora)
        policy = load_policy(
            config, max_length=self.config.data.max_length, device=self.world.device, trainable=adapters
        )
        return self._shard(policy.requires_grad_(False).eval())

    def check_teacher(self, path: str) -> None:
        """Raises ModelError where a teacher has another vocabulary than the policy, whose ids it reads."""
        trust = self.config.model.trust_remote_code
        distributed.on_main(
            lambda: check_shared_ids("--distill.teacher", path, self.tokenizer, revision=None, trust_remote_code=trust)
        )

    def plain_policy(self) -> Policy:
        """The policy's start as a model without adapters, whole on every rank: for an engine to sample from."""
        config = self._frozen(self.config.model.path)
        return load_policy(
            config, max_length=self.config.data.max_length, device=self.world.device, trainable=False
        ).eval()

    def frozen_policy(self, path: str, revision: str | None = None) -> Policy:
        """Any other policy, of which nothing is trained; it may speak in other tokens."""
        config = replace(self._frozen(path), revision=revision)
        policy = load_policy(config, max_length=self.config.data.max_length, device=self.world.device, trainable=False)
        return self._shard(policy.eval())

    def score_model(
        self,
        path: str | None = None,
        *,
        trainable: bool,
        new_head: bool,
        head: WantedHead = AS_IT_IS,
    ) -> ScoreModel:
        """A reward model or critic from `path`, or from the model of the run, as `load_score_model`. Raises ModelError
        where a critic has another vocabulary than the policy, whose ids it reads."""
        if trainable and path is not None:
            self._check_shared_ids("--critic.start", path)
        config = self.config.model if trainable else self._frozen(path or self.config.model.path)
        model = load_score_model(
            replace(config, path=path or config.path),
            self.tokenizer,
            max_length=self.config.data.max_length,
            device=self.world.device,
            trainable=trainable,
            seed=self.config.train.seed,
            new_head=new_head,
            head=head,
        )
        if trainable:  # a frozen reward model reads its own tokenizer's ids
            check_vocabulary(model.plain, self.tokenizer, path or config.path)
        sharded: ScoreModel = self._shard(model)
        return sharded

    def _check_shared_ids(self, option: str, path: str) -> None:
        model = self.config.model
        revision, trust = model.revision, model.trust_remote_code
        check_shared_ids(option, path, self.tokenizer, revision=revision, trust_remote_code=trust)

    def _frozen(self, path: str) -> ModelConfig:
        return replace(self.config.model, path=path, lora=LoraConfig(), activation_checkpointing=False)

    def _shard(self, model: Any) -> Any:
        return distributed.shard(model, self.world, blocks=model.blocks, heads=model.heads, precision=model.precision)


def open_session(config: RunConfig) -> Session:
    """Sets a command up."""
    settings.validate(config)
    quiet_transformers()
    world = distributed.init(config.train.threads)
    torch.manual_seed(config.train.seed)
    folder = distributed.on_main(lambda: RunFolder.create(config.out, config, config.resume, world.size))
    if cpus.shares():
        log.info(f"Other processes are at work here: threads that wait for one another sleep ({cpus.said()}).")
    if folder.checkpoint is not None:
        torch.set_num_threads(folder.threads)
    tokenizer = load_tokenizer(config.model)
    model = config.model
    chat = Chat(tokenizer, model.chat_template, model.template_kwargs, rendered=config.data.rendered)
    return Session(config, world, folder, tokenizer, chat)
