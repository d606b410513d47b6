"""The implicit reward of a policy that was aligned by DPO or its relatives, as a source of rewards."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from assent.config import OBJECTIVES, PreferenceConfig, keywords, loss_of, reference_of, settings
from assent.data.chat import Chat
from assent.data.records import Example
from assent.data.tree import TokenTree, TreeBatch
from assent.distributed import World
from assent.errors import ConfigError
from assent.models.annotate import BatchColumns, columns_of
from assent.models.policy import Policy
from assent.rewards.group import Group, Scores
from assent.rewards.reading import REWARD, Numbers, Reading, scores_of

OPTIONS, ABOUT = "resolved.yaml", "environment.json"
"""What a run folder says of its run: its options, and which command it was."""


@dataclass(frozen=True, slots=True)
class Implicit:
    """How a policy is read as a reward model: `beta` times its log-prob of an answer, less that of the `reference`
    (None: without one), of the whole answer or `per_token` of it."""

    reference: str | None
    reference_revision: str | None
    beta: float
    per_token: bool


def implicit_of(
    folder: str, *, reference: str | None, beta: float | None, flags: tuple[str, str], revision: str | None = None
) -> Implicit:
    """What is known of the policy in `folder`: a run of an objective of the table, or its `model`, says it itself;
    `reference` and `beta` win. `flags` are the options by which these two are given, for messages.

    Raises ConfigError for a folder of another kind of run, and where a reference or beta is needed and not known."""
    run = run_of(Path(folder).expanduser())
    if run is None:
        wanted = {flag: value for flag, value in zip(flags, (reference, beta), strict=True) if value is None}
        if wanted:
            raise ConfigError(
                f"{folder} is no run of assent that says with which beta and against which reference it was trained. "
                f"Give {' and '.join(wanted)}."
            )
        assert beta is not None
        return Implicit(reference, revision, beta, False)
    key, config = run
    options = keywords(loss_of(config))
    row = OBJECTIVES[key].as_trained(options)
    if row.needs_reference and reference is None:
        reference, revision = _reference(folder, config, flags[0])
    elif reference is not None and not row.needs_reference:
        raise ConfigError(f"{folder}: a policy of {key} is compared with no reference. Leave {flags[0]} away.")
    own = options.get("beta")
    scale = beta if beta is not None else float(own) if isinstance(own, int | float) else 1.0
    return Implicit(reference, revision, scale, row.per_token)


def run_of(folder: Path) -> tuple[str, PreferenceConfig] | None:
    """The objective and the options of the run whose folder, model or checkpoint this is; None where it is of none.
    Raises ConfigError for a run of another kind, or one whose options cannot be read."""
    place = next((each for each in (folder, *[*folder.absolute().parents][:2]) if (each / OPTIONS).is_file()), None)
    if place is None:
        return None
    try:
        key = json.loads((place / ABOUT).read_text(encoding="utf-8"))["command"]
        text = (place / OPTIONS).read_text(encoding="utf-8")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{place}: {ABOUT} and {OPTIONS} of its run are needed, and cannot be read: {error}"
        ) from None
    if key not in OBJECTIVES:
        raise ConfigError(
            f"{folder} is of a run of assent {key}: only what was trained directly from feedback (assent dpo and its "
            "relatives) is a reward model in itself."
        )
    return key, settings.load(OBJECTIVES[key].config, text, str(place / OPTIONS))


def _reference(folder: str, config: PreferenceConfig, flag: str) -> tuple[str, str | None]:
    """The reference of a run, and its revision."""
    section = reference_of(config)
    assert section is not None, "its objective has a reference"
    if section.mode == "moving":
        raise ConfigError(
            f"{folder}: the reference of its run followed the policy (--reference.mode moving, as in tr-dpo), and was "
            "not kept. Give the model to compare it with, for example the one that the run began with: "
            f"{flag} {config.model.path}"
        )
    path = section.path or config.model.path
    looks_local = path.startswith(("/", ".", "~")) or path.count("/") > 1
    if looks_local and not Path(path).expanduser().exists():
        raise ConfigError(f"{folder}: the reference of its run, {path}, is not there. Give it: {flag}.")
    return path, None if section.path else config.model.revision


class ImplicitReward:
    """r(x, y) = beta * (log pi(y | x) - log pi_ref(y | x)), the reward under which pi is optimal but for a term of the
    prompt alone (arXiv 2305.18290), so it compares answers to one prompt, not to different ones. Without a reference
    r = beta * log pi(y | x); per token, both divided by the trained tokens of y (arXiv 2405.14734).

    What is read is as of `ModelReward`; the two models read the same token ids."""

    def __init__(
        self,
        name: str,
        policy: Policy,
        reference: Policy | None,
        chat: Chat,
        policy_chat: Chat,
        *,
        beta: float,
        per_token: bool,
        max_length: int,
        micro_tokens: int,
        world: World,
    ) -> None:
        """`chat` is that of the policy that is asked, `policy_chat` of the one that sampled."""
        self.name = name
        self.policy, self.reference = policy, reference
        self.reading = Reading(chat, policy_chat, max_length)
        self.beta, self.per_token = beta, per_token
        self.micro_tokens = micro_tokens
        self.world = world

    def check(self, examples: Sequence[Example]) -> None:
        """Raises DataError for prompts that are too long for it or that its chat template refuses."""
        self.reading.check(f"The policy '{self.name}'", examples)

    def score(self, groups: Sequence[Group]) -> Scores:
        read = [self.reading.read(group) for group in groups]
        return scores_of(f"The policy '{self.name}'", groups, read, self._rewards)[0]

    def _rewards(self, trees: Sequence[TokenTree]) -> Numbers:
        """[S] over all trees."""

        def rewards(batch: TreeBatch) -> BatchColumns:
            logprobs = self.policy(batch).logprobs
            if self.reference is not None:
                logprobs = logprobs - self.reference(batch).logprobs
            ratio = batch.sum_by_response(logprobs)
            if self.per_token:
                ratio = ratio / batch.tokens_by_response()
            return BatchColumns(per_response={REWARD: self.beta * ratio})

        flat = not (self.policy.tree and (self.reference is None or self.reference.tree))
        return columns_of(trees, rewards, micro_tokens=self.micro_tokens, flat=flat, world=self.world).per_response
