"""Whether the weights of several model folders can be merged: the same architecture, the same tensors, the same tokens,
and for reward models the same outputs. The things themselves are compared, not what they are called."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel

from assent.errors import ModelError
from assent.foreign import brief
from assent.models.digests import TOKENIZER
from assent.models.gate import SECTION as GATE
from assent.models.keys import HARMLESS
from assent.models.merged_adapters import AdaptedTensor, adapted, read_adapters
from assent.models.reward_head import HeadRule
from assent.models.shards import Reader, StoredTensor, stored_tensors
from assent.models.sources import Source
from assent.models.stored import configuration, fetched
from assent.models.stored_heads import stored_heads
from assent.models.value_heads import FILES

log = logging.getLogger(__name__)

_FREE = re.compile(
    r"^_|name_or_path|architectures|dtype$|transformers_version|use_cache|_token_id$|drop|initializer|id2label|label2id|"
    r"num_labels|problem_type|^output_|return_dict|auto_map|gradient_checkpointing|chunk_size_feed_forward"
)
"""Fields that say nothing of what weights do in a model: how it is loaded, trained and stopped."""
_TOLD = ("max_position_embeddings", "max_window_layers")
"""Fields in which models of one family differ that are merged all the same: it is said."""


@dataclass(frozen=True, slots=True)
class Part:
    """A model that takes part in a merge, as `path` on the command line: its configuration and where its weights lie.
    `tied` are names of weights that stand for two, `copied` tensors that are no weights to be merged (whole numbers,
    what older versions stored), `buffers` others that are no parameters, `exact` those that the architecture keeps in
    fp32."""

    path: str
    source: Source
    folder: Path
    config: PreTrainedConfig
    tensors: Mapping[str, StoredTensor | AdaptedTensor]
    tied: frozenset[str]
    copied: frozenset[str]
    buffers: frozenset[str]
    exact: frozenset[str]


def open_part(path: str, source: Source, trust: bool = False) -> Part | None:
    """What a `source` holds, from its headers: a plain folder, or adapters on one. None where what is laid on it cannot
    be read tensor by tensor. Raises ModelError where it is no whole folder of numbers that can be merged."""
    if not source.is_plain:
        return _adapted_part(path, source, trust)
    folder = fetched(source.base, source.revision, ("generation_config.json", *FILES))
    config = configuration(source.base, source.revision, trust)
    for section in (config, config.get_text_config()):
        quantised = getattr(section, "quantization_config", None)
        if quantised is not None:
            method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
            raise ModelError(
                f"{path}: its weights are stored quantised ({method}). Merge the folder with whole weights."
            )
    if getattr(config, GATE, None) is not None:
        raise ModelError(
            f"{path} has a gate, which belongs to its own weights alone. Merge the models that gates were trained on, "
            "then train a gate for the merged one: assent reward-gate"
        )
    for name in FILES:
        if (folder / name).is_file():
            raise ModelError(
                f"{path}: its value head lies in {name}, beside the weights. Put both into one folder first: assent "
                f"export {path} --out FOLDER"
            )
    tied, weights, buffers, kept = _traits(config)
    tensors = _without_tied(path, stored_tensors(folder), tied)
    odd = {name for name, tensor in tensors.items() if not tensor.dtype.is_floating_point}
    copied = {name for name in tensors if name in odd or (HARMLESS.search(name) and name not in weights)}
    head = (getattr(config, "assent_head", None) or {"weight": "score.weight"})["weight"].split(".")[0] + "."
    exact = {name for name in tensors if name.startswith(head) or kept & set(name.split("."))}
    if coded := sorted(odd - buffers):
        told = {name for name in coded if not HARMLESS.search(name) and not name.endswith("num_batches_tracked")}
        if told:
            raise ModelError(f"{path}: {min(told)} is stored as whole numbers: are they quantised? Give whole weights.")
    names = frozenset({*tied, *tied.values()})
    return Part(path, source, folder, config, tensors, names, frozenset(copied), frozenset(buffers), frozenset(exact))


def _adapted_part(path: str, source: Source, trust: bool) -> Part | None:
    layers = [layer for layer in source.layers if isinstance(layer, Path)]
    base = open_part(path, replace(source, layers=()), trust) if len(layers) == len(source.layers) else None
    if base is None or source.is_scorer:
        return None
    try:
        adapters = [read_adapters(path, layer) for layer in layers]
    except ModelError:  # other kinds of adapters: peft puts them together
        return None
    stored = {name: tensor for name, tensor in base.tensors.items() if isinstance(tensor, StoredTensor)}
    tensors = adapted(stored, adapters, base.tied)
    return None if tensors is None else replace(base, source=source, tensors=tensors)


def _traits(config: PreTrainedConfig) -> tuple[Mapping[str, str], set[str], set[str], set[str]]:
    """Of the class that reads it: weights that are tied to others, all weights, buffers, and modules that are kept in
    fp32. Nothing is known of classes that transformers does not have."""
    names = getattr(config, "architectures", None) or [""]
    cls = getattr(transformers, str(names[0]), None)
    if not isinstance(cls, type) or not issubclass(cls, PreTrainedModel):
        return {}, set(), set(), set()
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            shell: Any = cast(Any, cls)._from_config(config)
    except Exception as error:  # what classes raise about odd values differs from class to class
        raise ModelError(f"no {names[0]} can be built as config.json says: {brief(error)}") from error
    kept = {*(shell._keep_in_fp32_modules or ()), *(shell._keep_in_fp32_modules_strict or ())}
    tied: Mapping[str, str] = shell.get_expanded_tied_weights_keys(all_submodels=True)
    weights = {name for name, _ in shell.named_parameters(remove_duplicate=False)}
    return tied, weights, {name for name, _ in shell.named_buffers()}, kept


def _without_tied(
    path: str, tensors: Mapping[str, StoredTensor], tied: Mapping[str, str]
) -> Mapping[str, StoredTensor]:
    """Without second copies of tied weights. Raises ModelError where these are not the same."""
    double = {name for name, other in tied.items() if name in tensors and other in tensors}
    with Reader() as reader:
        for name in sorted(double):
            one, other = tensors[name], tensors[tied[name]]
            step = 1 << 20
            same = one.shape == other.shape and all(
                torch.equal(*(x.read(reader, at, min(at + step, one.size)) for x in (one, other)))
                for at in range(0, one.size, step)
            )
            if not same:
                raise ModelError(
                    f"{path}: config.json ties {name} to {tied[name]} (tie_word_embeddings), and the weights hold "
                    f"other numbers for each. Put tie_word_embeddings false there, or remove {name} from the weights."
                )
    return {name: tensor for name, tensor in tensors.items() if name not in double}


# ---- compared


def check_alike(parts: Sequence[Part]) -> None:
    """Raises ModelError, with what differs and where, unless all parts are of the same shape and read the same tokens.
    The first is what the others are compared with. What differs without harm is said."""
    first, *others = parts
    for other in others:
        _check_config(first, other)
        _check_heads(first, other)
        _check_tensors(first, other)
        check_tokens((first.path, first.source), (other.path, other.source))


def _check_config(first: Part, other: Part) -> None:
    one, two = first.config, other.config
    if type(one) is not type(two) or one.model_type != two.model_type:
        raise ModelError(
            f"{first.path} is a model of type {one.model_type}, {other.path} of type {two.model_type}: they do not "
            "merge."
        )
    here, there = _fields(one), _fields(two)
    for name in here.keys() | there.keys():
        a, b = here.get(name), there.get(name)
        if a == b:
            continue
        words = f"config.json: {name} is {_shown(a)} in {first.path}, {_shown(b)} in {other.path}"
        if name.rpartition(".")[2] not in _TOLD:
            raise ModelError(f"{words}: these weights work in other ways and do not merge.")
        log.warning(f"{words}: the merged model has the former")


def _fields(config: PreTrainedConfig, prefix: str = "") -> dict[str, Any]:
    """What decides how its weights are used, by dotted names: of configurations inside too."""
    own = (
        {field.name for field in dataclasses.fields(config)} if dataclasses.is_dataclass(config) else set(vars(config))
    )
    found: dict[str, Any] = {}
    for name in own | {"tie_word_embeddings"}:
        value = getattr(config, name, None)
        if isinstance(value, PreTrainedConfig):
            found |= _fields(value, f"{prefix}{name}.")
        elif not _FREE.search(name):
            found[prefix + name] = json.loads(json.dumps(value, default=str))
    return found


def _check_heads(first: Part, other: Part) -> None:
    one, two = _rule(first), _rule(other)
    if (one is None) != (two is None):
        scorer, plain = (first, other) if two is None else (other, first)
        raise ModelError(f"{scorer.path} is a reward model, {plain.path} a language model: they do not merge.")
    if one != two:
        raise ModelError(
            f"{first.path} and {other.path} are reward models of other outputs, weights or scales ({one} and {two}): a "
            "merged head would mean neither."
        )


def _rule(part: Part) -> HeadRule | None:
    heads = stored_heads(part.source)
    if heads.rule is not None and heads.value is not None and heads.value.names:
        return replace(heads.rule, offset=())  # which is merged with the other weights
    return heads.rule


def _check_tensors(first: Part, other: Part) -> None:
    for one, two in ((first, other), (other, first)):
        if lacking := [name for name in one.tensors if name not in two.tensors]:
            more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
            raise ModelError(f"{two.path} lacks {lacking[0]}{more}, which {one.path} has: they do not merge.")
    for name, tensor in first.tensors.items():
        there = other.tensors[name]
        if tensor.shape != there.shape:
            raise ModelError(
                f"{name} has the shape {list(tensor.shape)} in {first.path}, {list(there.shape)} in {other.path}: they "
                "do not merge."
            )
        if tensor.dtype.is_floating_point != there.dtype.is_floating_point:
            raise ModelError(f"{name} is {tensor.dtype} in {first.path}, {there.dtype} in {other.path}.")


# ---- tokens


def check_tokens(first: tuple[str, Source], other: tuple[str, Source]) -> None:
    """Raises ModelError where two models, each given by what it is called and its source, read text as other tokens."""
    places = [source.tokenizer() for _, source in (first, other)]
    if places[0] == places[1]:
        return
    names, there = (first[0], other[0]), [_tokenizer_files(Path(place)) for place, _ in places]
    if there[0] is not None and there[0] == there[1]:
        return
    for name, files in zip(names, there, strict=True):
        if files == {}:
            log.warning(f"{name} has no tokenizer: whether its tokens are those of the other models is not known")
            return
    a, b = (AutoTokenizer.from_pretrained(place, revision=revision) for place, revision in places)
    _check_vocabulary(a.get_vocab(), b.get_vocab(), *names)
    here, theirs = _reading(a), _reading(b)
    for part in here:
        if here[part] != theirs.get(part):
            raise ModelError(
                f"{names[0]} and {names[1]} turn text into other tokens: their tokenizers differ in their {part}. They "
                "do not merge."
            )
    _tell_differences(a, b, *names)


def _tokenizer_files(folder: Path) -> dict[str, bytes] | None:
    """Name -> content; None where the folder is not on this machine."""
    if not folder.is_dir():
        return None
    files = {file for pattern in TOKENIZER for file in folder.glob(pattern) if file.is_file()}
    return {file.name: file.read_bytes() for file in sorted(files)}


def _check_vocabulary(one: Mapping[str, int], two: Mapping[str, int], first: str, other: str) -> None:
    odd = sorted(one.items() ^ two.items(), key=lambda item: (item[1], item[0]))
    if odd:
        token = odd[0][0]
        words = [f"{vocabulary[token]}" if token in vocabulary else "none" for vocabulary in (one, two)]
        count = len({name for name, _ in odd})
        raise ModelError(
            f"the tokenizers of {first} and {other} have other vocabularies: the token {token!r} is {words[0]} in the "
            f"former, {words[1]} in the latter ({count:,} such tokens). Their embeddings do not merge."
        )


def _reading(tokenizer: Any) -> dict[str, Any]:
    """How text becomes tokens: the parts of a tokenizer that decide it."""
    if not getattr(tokenizer, "is_fast", False):
        return {"class": type(tokenizer).__name__}
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    return {"model": state["model"], "normaliser": state["normalizer"], "pre-tokeniser": state["pre_tokenizer"]}


def _tell_differences(a: Any, b: Any, first: str, other: str) -> None:
    pairs = {
        "chat template": (a.chat_template, b.chat_template),
        "end of text": (a.eos_token, b.eos_token),
        "padding token": (a.pad_token, b.pad_token),
    }
    odd = [name for name, (one, two) in pairs.items() if one != two and two is not None]
    if odd:
        log.warning(f"{first} and {other} differ in their {' and '.join(odd)}: the merged model has the former's")


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
