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
from assent.errors import ConfigError
from assent.models.alike import Part, check_alike, open_part
from assent.models.digests import TOKENIZER
from assent.models.loading import quiet_transformers
from assent.models.merged import Merge, Sphere, steps
from assent.models.saving import DTYPES, check_new, complete_or_absent, stored_dtype
from assent.models.shards import Reader
from assent.models.sources import Source, ask_hub, resolve
from assent.models.stored import CONFIG, configuration, read_object
from assent.train.progress import ProgressDisplay

log = logging.getLogger(__name__)

_BESIDE = (*TOKENIZER, "generation_config.json", "*.py", "*processor_config.json", "LICENSE*", "NOTICE*", "USE_POLICY*")
"""What goes into the merged folder with the weights, from that of the first model."""


def merge(config: MergeConfig) -> Path:
    """Writes the model that `config` merges to `config.out`, complete or not at all.

    Raises ConfigError for options that contradict each other, RunFolderError where `config.out` holds something, and
    ModelError where models are not there, do not fit together, or hold numbers that are not finite."""
    validate(config)
    out = check_new(config.out)
    quiet_transformers()
    sources = {path: _found(path) for path in config.models}
    config = _with_base(config, sources)
    if config.base is not None:
        sources[config.base] = _found(config.base)
    with complete_or_absent(out) as partial:
        scratch = partial / ".whole"
        parts = [_whole(path, source, scratch, config) for path, source in sources.items()]
        by_path = dict(zip(sources, parts, strict=True))
        models, base = [by_path[path] for path in config.models], by_path.get(config.base or "")
        check_alike([models[0], *(part for part in parts if part is not models[0])])
        sphere = _write(config, models, base, partial, _dtype(config, sources[config.models[0]]))
        shutil.rmtree(scratch, ignore_errors=True)
        (partial / "README.md").write_text(_card(config, out.name, sphere), encoding="utf-8")
    for line in _findings(config, sphere):
        log.info(f"{out}: {line}")
    return out


def _with_base(config: MergeConfig, sources: Mapping[str, Source]) -> MergeConfig:
    """With the base that adapters themselves name, where none is given and the method needs one. Raises
    ConfigError."""
    if config.base is not None or not MERGES[config.method].base:
        return config
    bases = {
        source.base for source in sources.values() if len(source.layers) == 1 and isinstance(source.layers[0], Path)
    }
    if len(bases) != 1 or any(source.is_plain for source in sources.values()):
        raise ConfigError(
            f"--method {config.method} merges what models have learnt since they were one. Give that model as --base."
        )
    log.info(f"the base is that of the adapters, {min(bases)}")
    return replace(config, base=min(bases))


def _found(path: str) -> Source:
    source = resolve(path)
    ask_hub(source)
    return source


def _whole(path: str, source: Source, scratch: Path, config: MergeConfig) -> Part:
    """The model as a plain folder, made for the merge where a checkpoint or adapters are laid on a base."""
    if source.is_plain:
        return open_part(path, source, config.trust_remote_code)
    log.info(f"{path} is put together first, which takes as much memory as this model in fp32")
    scratch.mkdir(exist_ok=True)
    folder = scratch / f"{len(list(scratch.iterdir()))}"
    export(ExportConfig(path, str(folder), dtype="fp32", trust_remote_code=config.trust_remote_code))
    return open_part(path, resolve(str(folder)), config.trust_remote_code)


def _dtype(config: MergeConfig, source: Source) -> torch.dtype | None:
    """The dtype to write; None: each tensor in that of the first model."""
    if config.dtype != "auto":
        return DTYPES[config.dtype]
    if source.is_plain:
        return None
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
            first.copied, progress.update, reader,
        )  # fmt: skip
        sphere = work.write(folder)
    raw = read_object(first.folder / CONFIG)
    if dtype is not None:
        raw.pop("torch_dtype", None)
        raw["dtype"] = str(dtype).removeprefix("torch.")
    (folder / CONFIG).write_text(json.dumps(raw, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for file in sorted({file for pattern in _BESIDE for file in first.folder.glob(pattern) if file.is_file()}):
        there = folder / file.relative_to(first.folder)
        there.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, there)
    return sphere


# ---- what is told


def _findings(config: MergeConfig, sphere: Sphere | None) -> list[str]:
    """What is to be known of the merge, a sentence each."""
    lines = []
    if config.method == "linear" and config.normalize is False:
        lines.append(
            f"The weights add up to {sum(config.weights or [1] * len(config.models)):g}, and are not normalised."
        )
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
