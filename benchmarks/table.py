"""From measurements to the table of docs/benchmarks.md."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.plan import MFU

BEGIN, END = "<!-- made by python -m benchmarks -->", "<!-- end of the table -->"
NAMES = {
    "sft": "SFT",
    "dpo": "DPO",
    "dpo-cached": "DPO, cached reference",
    "lora-dpo": "DPO, LoRA",
    "kto": "KTO",
    "simpo": "SimPO",
    "orpo": "ORPO",
    "cpo": "CPO",
    "reward": "reward model",
    "ppo": "PPO",
    "generate": "sampling",
}
CACHED = (
    "The peer of *DPO, cached reference* is assent's own DPO with the reference beside the policy. The cache is "
    "computed before the first step, in one pass of the reference over the data: its memory is in the numbers, its "
    "time is not."
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
)


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
    enough_mfu = result["what"] not in ("ppo", "generate") and shares["computed_flops"] >= MFU
    return {
        "ours": per_second["ours"],
        "peer": per_second["peer"],
        "ratio": ratio,
        "low": min(by_turn),
        "high": max(by_turn),
        "mfu": shares["flops"],
        "mfu_computed": shares["computed_flops"],
        "seconds": {"ours": median(s["seconds"] for s in mine), "peer": median(s["seconds"] for s in theirs)},
        "speed": "ratio" if ratio >= result["target"] else "MFU" if enough_mfu else "no",
        "memory": result["ours"]["peak_rss"] <= result["peer"]["peak_rss"],
    }


def cells(result: Mapping[str, Any], rate: float) -> list[str]:
    """One line of the table."""
    name = [NAMES[result["what"]], result["model"], result["precision"]]
    if "error" in result:
        return [*name, *["-"] * (len(HEADER) - 4), "failed"]
    s = summary(result, rate)
    gib = [f"{result[side]['peak_rss'] / 2**30:.2f}" for side in ("ours", "peer")]
    return [
        *name,
        f"{s['ours']:,.0f}",
        f"{s['peer']:,.0f}",
        f"{s['ratio']:.2f} ({s['low']:.2f}–{s['high']:.2f})",
        f"{result['target']:g}",
        f"{s['mfu']:.0%}",
        f"{s['mfu_computed']:.0%}",
        f"{s['seconds']['ours']:.3f}",
        f"{s['seconds']['peer']:.3f}",
        *gib,
        f"{s['speed']}{'' if s['memory'] else ', more memory'}",
    ]


def rates(report: Mapping[str, Any]) -> dict[str, float]:
    """The machine's matrix-product rate in each precision: the higher of the two measured, so that MFU is not
    flattered."""
    return {name: max(machine["matmul"][name] for machine in report["machine"]) for name in ("fp32", "bf16")}


def markdown(report: Mapping[str, Any]) -> str:
    """The generated section of docs/benchmarks.md."""
    best = rates(report)
    lines = [machine_line(report), "", "| " + " | ".join(HEADER) + " |", "|" + "---|" * 3 + "--:|" * 10 + "---|"]
    for result in report["rows"]:
        lines.append("| " + " | ".join(cells(result, best[result["precision"]])) + " |")
    if any(result["what"] == "dpo-cached" for result in report["rows"]):
        lines += ["", CACHED]
    return "\n".join(lines)


def machine_line(report: Mapping[str, Any]) -> str:
    """When, where and with what it was measured."""
    before, after = report["machine"]
    cpu = before["cpu"]
    matmul = "; ".join(
        f"{name} {before['matmul'][name] / 1e9:,.0f} before and {after['matmul'][name] / 1e9:,.0f} after"
        for name in ("fp32", "bf16")
    )
    done = [result for result in report["rows"] if "error" not in result]
    versions = {
        name: "; ".join(sorted({_versions(result[side]["versions"]) for result in done}))
        for name, side in (("assent", "ours"), ("peers", "peer"))
    }
    load = ", ".join(f"{value:.1f}" for value in report["load"])
    return (
        f"Measured on {report['date']}{', a short trial' if report['quick'] else ''}: {cpu['model']}, "
        f"{report['threads']} threads, {cpu['memory']}, {cpu['vector instructions']}; load average {load} before the "
        f"first and after the last row. Matrix products in GFLOP/s: {matmul}. assent {before['assent']} with "
        f"{versions['assent'] or '-'}. Peers: {versions['peers'] or '-'}."
    )


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def rewrite(page: Path, report: Mapping[str, Any]) -> None:
    """Puts the section between the markers of `page`."""
    text = page.read_text(encoding="utf-8")
    assert BEGIN in text and END in text, f"{page} has lost its markers"
    head, tail = text.split(BEGIN)[0], text.split(END)[1]
    page.write_text(f"{head}{BEGIN}\n{markdown(report)}\n{END}{tail}", encoding="utf-8")


def save(path: Path, report: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
