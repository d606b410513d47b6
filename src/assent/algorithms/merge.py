"""`assent merge`: one model of several, by their weights."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from assent.algorithms.export import export
from assent.config import MERGES, ExportConfig, MergeConfig
from assent.config.settings import dump, validate
from assent.errors import ConfigError, ModelError
from assent.models.alike import Part, check_alike, check_tokens, open_part
from assent.models.digests import TOKENIZER
from assent.models.loading import quiet_transformers
from assent.models.merged import Merge, Sphere, factors_of, group_of, steps, weights_of
from assent.models.merged_adapters import Adapters, gram, modules_of, read_adapters, write_adapters
from assent.models.merged_adapters import check_alike as same_products
from assent.models.merging import Factors
from assent.models.saving import DTYPES, check_new, complete_or_absent, stored_dtype
from assent.models.shards import Reader
from assent.models.sources import Source, ask_hub, resolve
from assent.models.stored import CONFIG, configuration, read_object
from assent.models.stored_heads import RULE_FILE
from assent.train.progress import ProgressDisplay

log = logging.getLogger(__name__)

_BESIDE = (*TOKENIZER, "generation_config.json", "*.py", "*processor_config.json", "LICENSE*", "NOTICE*", "USE_POLICY*")
"""What goes into the merged folder with the weights, from that of the first model."""


def merge(config: MergeConfig) -> Path:
    """Writes the model that `config` merges to `config.out`, complete or not at all: in one process; of several
    ranks one calls it.

    Raises ConfigError for options that contradict each other, RunFolderError where `config.out` holds something, and
    ModelError where models are not there, do not fit together, or hold numbers that are not finite."""
    validate(config)
    out = check_new(config.out)
    quiet_transformers()
    sources = {path: _found(path) for path in config.models}
    config = _with_base(config, sources)
    if config.base is not None:
        sources[config.base] = _found(config.base)
    adapters = _adapters(config, sources)
    with complete_or_absent(out) as partial:
        sphere = _write_adapters(config, adapters, sources, partial) if adapters else _merge(config, sources, partial)
        (partial / "README.md").write_text(_card(config, out.name, sphere), encoding="utf-8")
    for line in _findings(config, sphere):
        log.info(f"{out}: {line}")
    return out


def _with_base(config: MergeConfig, sources: Mapping[str, Source]) -> MergeConfig:
    """With the model that adapters, or checkpoints, are laid on, where no base is given and the method needs one.
    Raises ConfigError."""
    if config.base is not None or not MERGES[config.method].base:
        return config
    bases = {_place(source): source.base for source in sources.values()}
    if len(bases) != 1 or any(source.is_plain for source in sources.values()):
        raise ConfigError(
            f"--method {config.method} merges what models have learnt since they were one. Give that model as --base."
        )
    (base,) = bases.values()
    log.info(f"the base is the model that all of them are laid on, {base}")
    return replace(config, base=base)


def _found(path: str) -> Source:
    source = resolve(path)
    ask_hub(source)
    return source


def _merge(config: MergeConfig, sources: Mapping[str, Source], folder: Path) -> Sphere | None:
    """A whole model."""
    scratch = folder / ".whole"
    parts = {path: _part(path, source, scratch, config) for path, source in sources.items()}
    models, base = [parts[path] for path in config.models], parts.get(config.base or "")
    check_alike([models[0], *(part for part in parts.values() if part is not models[0])])
    dtype = _dtype(config, sources[config.models[0]], models[0])
    sphere = _write(config, models, base, folder, dtype)
    shutil.rmtree(scratch, ignore_errors=True)
    return sphere


def _part(path: str, source: Source, scratch: Path, config: MergeConfig) -> Part:
    """The model as it is read tensor by tensor; where what is laid on its base cannot be read so, a plain folder made
    for the merge."""
    part = open_part(path, source, config.trust_remote_code)
    if part is None:
        log.info(f"{path} is put together first, which takes as much memory as this model in fp32")
        scratch.mkdir(exist_ok=True)
        whole = scratch / f"{len(list(scratch.iterdir()))}"
        export(ExportConfig(path, str(whole), dtype="fp32", trust_remote_code=config.trust_remote_code))
        part = open_part(path, resolve(str(whole)), config.trust_remote_code)
    assert part is not None
    return part


def _dtype(config: MergeConfig, source: Source, first: Part) -> torch.dtype | None:
    """The dtype to write; None: each tensor in that of the first model. `source` is where that comes from."""
    if config.dtype != "auto":
        return DTYPES[config.dtype]
    if source == first.source:
        return None  # else it was put together, in fp32
    below = configuration(source.base, source.revision, config.trust_remote_code)
    return stored_dtype(source.base, source.revision, below)


def _write(
    config: MergeConfig, models: Sequence[Part], base: Part | None, folder: Path, dtype: torch.dtype | None
) -> Sphere | None:
    """The merged weights, and beside them the configuration and the tokenizer of the first model."""
    first = models[0]
    names = list(first.tensors)
    dtypes = {
        name: tensor.dtype if dtype is None or name in first.exact | first.copied else dtype
        for name, tensor in first.tensors.items()
    }
    total = steps(config, names)
    with Reader() as reader, ProgressDisplay(total, f"merge ({config.method})") as progress:
        work = Merge(
            config, names, [part.tensors for part in models], None if base is None else base.tensors, dtypes,
            first.copied, first.buffers, progress.update, reader,
        )  # fmt: skip
        sphere = work.write(folder)
    raw = read_object(first.folder / CONFIG)
    if dtype is not None:
        raw.pop("torch_dtype", None)
        raw["dtype"] = str(dtype).removeprefix("torch.")
    (folder / CONFIG).write_text(json.dumps(raw, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    _copy_beside(first.folder, folder, _BESIDE)
    spoken = Path(first.source.tokenizer()[0])
    if spoken.is_dir() and spoken != first.folder:  # adapters that bring one
        _copy_beside(spoken, folder, TOKENIZER)
    return sphere


def _copy_beside(source: Path, folder: Path, patterns: Sequence[str]) -> None:
    for file in sorted({file for pattern in patterns for file in source.glob(pattern) if file.is_file()}):
        there = folder / file.relative_to(source)
        there.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, there)


# ---- adapters alone


def _adapters(config: MergeConfig, sources: Mapping[str, Source]) -> list[Adapters]:
    """The adapters, where all models are some and their merge is again, exactly; none where a whole model is to be
    written. Raises ConfigError where --adapters keep cannot be had."""
    if config.adapters == "merge" or (
        config.adapters == "auto" and any(sources[path].is_plain for path in config.models)
    ):
        return []
    try:
        found = _kept(config, [(path, sources[path]) for path in config.models])
        base = sources.get(config.base or "")
        if base is not None and (not base.is_plain or _place(base) != _place(sources[config.models[0]])):
            raise ModelError(f"--base {config.base} is not the model that they belong to")
        return found
    except ModelError as error:
        reason = str(error).removesuffix(".")
        if config.adapters == "keep":
            raise ConfigError(f"--adapters keep: no merged adapters can be written: {reason}.") from None
        log.info(f"a whole model is written, not adapters: {reason}")
        return []


def _kept(config: MergeConfig, models: Sequence[tuple[str, Source]]) -> list[Adapters]:
    """Raises ModelError, with the reason, where the merge of these would not be adapters on their base."""
    row = MERGES[config.method]
    if "density" in row.options:
        raise ModelError(
            f"--method {config.method} looks at single weights, and what it gives is no product of matrices"
        )
    found = []
    for path, source in models:
        match source.layers:
            case [Path() as folder]:
                found.append(read_adapters(path, folder))
            case _:
                raise ModelError(f"{path} is not one set of adapters on a whole model")
    if len({_place(source) for _, source in models}) > 1:
        raise ModelError("they belong to different models")
    shared = config.method == "ema" or (config.method == "linear" and config.normalize)
    if not row.base and not shared:
        raise ModelError("weights that are not normalised multiply the base as well")
    if found[0].whole and not shared:
        raise ModelError(f"{min(found[0].whole)} was saved with them, and there is none in the base")
    same_products(found)
    rules = {
        (folder / RULE_FILE).read_bytes() if (folder / RULE_FILE).is_file() else b"" for folder in _folders(models)
    }
    if len(rules) > 1:
        raise ModelError("their reward heads have other outputs, weights or scales")
    for other in models[1:]:
        check_tokens(models[0], other)
    return found


def _folders(models: Sequence[tuple[str, Source]]) -> list[Path]:
    return [layer for _, source in models for layer in source.layers if isinstance(layer, Path)]


def _place(source: Source) -> tuple[str, str | None]:
    """The base that adapters belong to."""
    there = Path(source.base)
    return (str(there.resolve()) if there.is_dir() else source.base), source.revision


def _write_adapters(
    config: MergeConfig, adapters: Sequence[Adapters], sources: Mapping[str, Source], folder: Path
) -> Sphere | None:
    """Adapters with the sum of the ranks, and beside them what else lies in the first folder."""
    modules = modules_of(adapters)

    def grams() -> Mapping[str, Factors]:
        groups: dict[str, list[str]] = {}
        for module in modules:
            groups.setdefault(group_of(f"{module}.weight", config.granularity), []).append(module)
        return {group: gram(adapters, of_group) for group, of_group in groups.items()}

    sphere, factors = factors_of(config, len(adapters), grams)
    assert factors is not None
    write_adapters(adapters, lambda name: factors(f"{name}.weight"), folder, DTYPES.get(config.dtype, torch.float32))
    first = _folders([(path, sources[path]) for path in config.models])[0]
    _copy_beside(first, folder, (*_BESIDE, RULE_FILE))
    return sphere


# ---- what is told


def _findings(config: MergeConfig, sphere: Sphere | None) -> list[str]:
    """What is to be known of the merge, a sentence each."""
    lines = []
    if config.method == "linear" and not config.normalize:
        lines.append(f"The weights add up to {sum(weights_of(config)):g}, and are not normalised.")
    if sphere is None:
        return lines
    angles = sphere.angles()
    if angles:
        mean = sum(angles) / len(angles)
        lines.append(
            f"Angles between task vectors, by {config.granularity or 'layer'}: {mean:.1f} degrees on average, from "
            f"{min(angles):.1f} to {max(angles):.1f}."
        )
    if sphere.averaged:
        some = ", ".join(sphere.averaged[:3]) + (
            f" and {len(sphere.averaged) - 3} more" if len(sphere.averaged) > 3 else ""
        )
        lines.append(
            f"Task vectors are opposite, or cancel, in {len(sphere.averaged)} of {len(sphere.grams)} parts ({some}): "
            "no arc between them is defined, and they were averaged there."
        )
    return lines


def _card(config: MergeConfig, name: str, sphere: Sphere | None) -> str:
    """Markdown with the hub's front matter: what was merged, how."""
    row = MERGES[config.method]
    weights = config.weights or (None,) * len(config.models)
    merged = [
        f"- `{path}`" + ("" if w is None else f", weight {w:g}") for path, w in zip(config.models, weights, strict=True)
    ]
    base = [] if config.base is None else [f"\nwith the base `{config.base}`"]
    found = ["", *_findings(config, sphere)] if _findings(config, sphere) else []
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "tags: [assent, merge]",
            "---",
            f"# {name}",
            "",
            f"Merged by `assent merge`, {row.name} (arXiv {row.paper}), of",
            "",
            *merged,
            *base,
            "",
            f"{row.formula} (θ_0 the base, θ_i a model, δ_i = θ_i − θ_0, w_i its weight)",
            *found,
            "",
            "## Configuration",
            "```yaml",
            dump(config).strip(),
            "```",
            "",
        ]
    )
