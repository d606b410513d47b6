"""From measurements to the table of docs/benchmarks.md."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.plan import MFU, MODELS, PRECISIONS, SHARE_ANSWER, SHARE_ANSWERS, SHARE_PROMPT, WHATS, rows

BEGIN, END = "<!-- made by python -m benchmarks -->", "<!-- end of the table -->"
CACHED = (
    "The peer of *DPO, cached reference* is assent's own DPO with the reference beside the policy. The cache is "
    "computed before the first step, in one pass of the reference over the data: its memory is in the numbers, its "
    "time is not."
)
SHARED = (
    f"The peer of *GRPO step* is assent's own step with every prompt once for each answer: {SHARE_ANSWERS} answers of "
    f"{SHARE_ANSWER} tokens to prompts of {SHARE_PROMPT}, forward and backward. Seconds of a step divided by "
    f"{SHARE_ANSWERS} are the time per answer."
)
HEADER = (
    "what",
    "model",
    "precision",
    "ours tok/s",
    "peer tok/s",
    "ratio (range)",
    "wanted",
    "MFU",
    "MFU computed",
    "ours s/step",
    "peer s/step",
    "ours GiB",
    "peer GiB",
    "reached",
    "run",
)


Report = dict[str, Any]
"""What one run of the benchmarks measured: when, where, and `rows`."""


def merged(runs: Sequence[Report], new: Report) -> list[Report]:
    """The runs with one more. What it measured is dropped from the others, and so are those with nothing left."""
    again = {_key(result) for result in new["rows"]}
    older = [{**run, "rows": [result for result in run["rows"] if _key(result) not in again]} for run in runs]
    return [run for run in (*older, new) if run["rows"]]


def _key(result: Mapping[str, Any]) -> tuple[str, str, str]:
    return result["what"], result["model"], result["precision"]


def summary(result: Mapping[str, Any], rate: float) -> dict[str, Any]:
    """What one row says: medians over its timed steps, the ratio with its lowest and highest turn, and whether it is
    as wanted. Both sides took the same examples in the same steps, so our count of tokens is used for both."""
    ours, peer = (result[name]["turns"] for name in ("ours", "peer"))
    mine, theirs = ([step for turn in turns for step in turn] for turns in (ours, peer))
    tokens = [step["tokens"] for step in mine]
    per_second = {
        "ours": median(t / step["seconds"] for t, step in zip(tokens, mine)),
        "peer": median(t / step["seconds"] for t, step in zip(tokens, theirs)),
    }
    by_turn = [sum(s["seconds"] for s in b) / sum(s["seconds"] for s in a) for a, b in zip(ours, peer)]
    shares = {
        name: median(step[name] / step["seconds"] for step in mine) / rate for name in ("flops", "computed_flops")
    }
    ratio = per_second["ours"] / per_second["peer"]
    enough_mfu = WHATS[result["what"]].or_mfu and shares["computed_flops"] >= MFU
    target = result["target"]
    return {
        "ours": per_second["ours"],
        "peer": per_second["peer"],
        "ratio": ratio,
        "low": min(by_turn),
        "high": max(by_turn),
        "mfu": shares["flops"],
        "mfu_computed": shares["computed_flops"],
        "seconds": {"ours": median(s["seconds"] for s in mine), "peer": median(s["seconds"] for s in theirs)},
        "speed": "" if target is None else "ratio" if ratio >= target else "MFU" if enough_mfu else "no",
        "memory": result["ours"]["peak_rss"] <= result["peer"]["peak_rss"],
    }


def cells(result: Mapping[str, Any], rate: float, run: int) -> list[str]:
    """One line of the table."""
    name = [WHATS[result["what"]].name, result["model"], result["precision"]]
    if "error" in result:
        return [*name, *["-"] * (len(HEADER) - 5), "failed", str(run)]
    s = summary(result, rate)
    gib = [f"{result[side]['peak_rss'] / 2**30:.2f}" for side in ("ours", "peer")]
    return [
        *name,
        f"{s['ours']:,.0f}",
        f"{s['peer']:,.0f}",
        f"{s['ratio']:.2f} ({s['low']:.2f}–{s['high']:.2f})",
        "-" if result["target"] is None else f"{result['target']:g}",
        f"{s['mfu']:.0%}",
        f"{s['mfu_computed']:.0%}",
        f"{s['seconds']['ours']:.3f}",
        f"{s['seconds']['peer']:.3f}",
        *gib,
        ", ".join(part for part in (s["speed"], "" if s["memory"] else "more memory") if part),
        str(run),
    ]


def rates(run: Report) -> dict[str, float]:
    """The machine's matrix-product rate in each precision: the higher of the two measured, so that MFU is not
    flattered."""
    return {name: max(machine["matmul"][name] for machine in run["machine"]) for name in ("fp32", "bf16")}


def markdown(runs: Sequence[Report]) -> str:
    """The generated section of docs/benchmarks.md."""
    lines = [f"{number}. {machine_line(run)}" for number, run in enumerate(runs, 1)]
    lines += ["", "| " + " | ".join(HEADER) + " |", "|" + "---|" * 3 + "--:|" * 10 + "---|--:|"]
    found = {
        _key(result): cells(result, rates(run)[result["precision"]], number)
        for number, run in enumerate(runs, 1)
        for result in run["rows"]
    }
    for row in rows(list(WHATS), MODELS, PRECISIONS):
        if (row.what, row.model, row.precision) in found:
            lines.append("| " + " | ".join(found[row.what, row.model, row.precision]) + " |")
    if any(what == "dpo-cached" for what, _, _ in found):
        lines += ["", CACHED]
    if any(what.startswith("share-") for what, _, _ in found):
        lines += ["", SHARED]
    return "\n".join(lines)


def machine_line(run: Report) -> str:
    """When, where and with what it was measured."""
    before, after = run["machine"]
    cpu = before["cpu"]
    matmul = "; ".join(
        f"{name} {before['matmul'][name] / 1e9:,.0f} before and {after['matmul'][name] / 1e9:,.0f} after"
        for name in ("fp32", "bf16")
    )
    done = [result for result in run["rows"] if "error" not in result]
    versions = {
        name: "; ".join(sorted({_versions(result[side]["versions"]) for result in done}))
        for name, side in (("assent", "ours"), ("peers", "peer"))
    }
    load = ", ".join(f"{value:.1f}" for value in run["load"])
    return (
        f"Measured on {run['date']}{', a short trial' if run['quick'] else ''}: {cpu['model']}, "
        f"{run['threads']} threads, {cpu['memory']}, {cpu['vector instructions']}; load average {load} before the "
        f"first and after the last row. Matrix products in GFLOP/s: {matmul}. assent {before['assent']} with "
        f"{versions['assent'] or '-'}. Peers: {versions['peers'] or '-'}."
    )


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def rewrite(page: Path, runs: Sequence[Report]) -> None:
    """Puts the section between the markers of `page`."""
    text = page.read_text(encoding="utf-8")
    assert BEGIN in text and END in text, f"{page} has lost its markers"
    head, tail = text.split(BEGIN)[0], text.split(END)[1]
    page.write_text(f"{head}{BEGIN}\n{markdown(runs)}\n{END}{tail}", encoding="utf-8")


def load(path: Path) -> list[Report]:
    """The runs in a file; none where there is no file."""
    return json.loads(path.read_text(encoding="utf-8"))["runs"] if path.exists() else []


def save(path: Path, runs: Sequence[Report]) -> None:
    path.write_text(json.dumps({"runs": runs}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
