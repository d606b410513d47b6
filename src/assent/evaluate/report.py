"""One self-contained HTML page from run folders and an evaluation: policies with intervals, gold against proxy,
training curves, answers side by side, data, configuration. No script, no request to anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from markupsafe import Markup

from assent import __version__
from assent.config import OBJECTIVES, ReportConfig
from assent.config.objectives import CUSTOM
from assent.data.records import Message
from assent.errors import DataError, RunFolderError
from assent.evaluate import plots
from assent.evaluate.alarms import alarm
from assent.evaluate.frontier import over_optimised
from assent.evaluate.pages import SIGNATURE, check_page, page_environment
from assent.evaluate.panels import lengths, metric_ends, run_charts
from assent.evaluate.plots import Chart, Key
from assent.evaluate.results import EVALUATION, FEWEST, Answer, Comparison, PolicyTable, Track, TrackPoint, as_interval
from assent.evaluate.runs import NAMES, Run, find_runs, read_run, track_of
from assent.foreign import printable
from assent.measures.shapes import Measured
from assent.outputs import write_text
from assent.statistics import Interval

_SHOWN_PROMPTS = 8
_SHOWN_CHARACTERS = 1200
_POINTS = 30_000  # drawn in the whole page, so that many runs keep it small


@dataclass(frozen=True)
class Report:
    """What goes on the page; a part that is empty leaves its section out."""

    title: str
    subtitle: str = ""
    policies: PolicyTable | None = None
    tracks: tuple[Track, ...] = ()
    runs: tuple[Run, ...] = ()
    created: datetime | None = None
    """Default: now."""


def write_report(config: ReportConfig) -> Path:
    """`assent report RUN...`: read the run folders (or folders of run folders) and write `config.out`.

    An `evaluation.json` (`PolicyTable.save`) in a given folder or a run gives the table of policies; several are not
    mixed: the first is shown. Raises `RunFolderError` for a folder that is none, or when the page cannot be written;
    what stands at `config.out` is replaced only where it is such a page.
    """
    check_page(config.out)
    if not config.runs:
        raise RunFolderError("assent report needs at least one run folder, for example: assent report runs/sft")
    folders = [Path(run) for run in config.runs]
    runs = _read_runs(folders)
    places = dict.fromkeys((*folders, *(run.path for run in runs)))
    tables = [place / EVALUATION for place in places if (place / EVALUATION).is_file()]
    subtitle, policies = "", None
    if tables:
        try:
            policies = PolicyTable.load(tables[0])
        except DataError as error:
            subtitle = f"{error} It is left out."
    tracks: dict[str, Track] = {}
    for track in (*(policies.tracks if policies else ()), *filter(None, map(track_of, runs))):
        tracks.setdefault(track.name.casefold(), track)
    path = save_report(Report(config.title, subtitle, policies, tuple(tracks.values()), runs), config.out)
    print(f"Report of {len(runs)} runs: {path}")
    return path


def _read_runs(folders: list[Path]) -> tuple[Run, ...]:
    """Every run once; those of one folder in the order of the pipeline; two of one name told apart by their parent."""
    stages = ("SFT", "Reward", "PPO", *(row.name for row in OBJECTIVES.values()), NAMES[CUSTOM])
    found: dict[Path, Run] = {}
    for folder in folders:
        inside = [read_run(path) for path in find_runs(folder)]
        inside.sort(key=lambda run: (stages.index(run.kind) if run.kind in stages else len(stages), run.name))
        found |= {run.path.resolve(): run for run in inside if run.path.resolve() not in found}
    names = [run.name for run in found.values()]
    return tuple(
        replace(run, name=printable(f"{path.parent.name}/{run.name}")) if names.count(run.name) > 1 else run
        for path, run in found.items()
    )


def save_report(report: Report, path: str | Path) -> Path:
    """Write the page; the file appears whole or not at all. Raises `RunFolderError` as `check_page`, `OutputError`
    when it cannot be written."""
    check_page(path)
    write_text(path, build_report(report), f"The report {path}")
    return Path(path)


def build_report(report: Report) -> str:
    """The page as a string."""
    environment = page_environment()
    table = report.policies
    names = [policy.name for policy in table.policies] if table else []
    names += [track.name for track in report.tracks] + [run.name for run in report.runs]
    colors = plots.palette(names, table.baseline if table else None)
    curves = max(1, sum(len(run.metrics) for run in report.runs))
    limit = min(400, max(40, _POINTS // curves))
    return environment.get_template("report.html.j2").render(
        report=report,
        created=(report.created or datetime.now()).strftime("%d %B %Y, %H:%M").lstrip("0"),
        version=__version__,
        signature=SIGNATURE,
        table=table,
        findings=_findings(table) if table else [],
        best=_best(table) if table else {},
        policy_charts=_policy_charts(table, colors) if table else [],
        tracks=[(track, _track_chart(track), over_optimised(track)) for track in report.tracks],
        runs=[(run, run_charts(run, colors[run.name], limit), metric_ends(run)) for run in report.runs],
        alarm=alarm,
        lengths=lengths,
        points_shown=_points_shown,
        comparisons=_comparisons(report),
        data_rows=[(run, row) for run in report.runs for row in _data_rows(run)],
        colors=colors,
        answer_text=_cut,
        facts=facts,
        isnan=math.isnan,
        svg=Markup,
    )


def _findings(table: PolicyTable) -> list[dict[str, object]]:
    """What each policy gained over the baseline, in words."""
    findings = []
    for policy in table.policies:
        wins, gain, verdict = table.wins(policy), table.gain(policy), table.verdict(policy)
        if wins is None or gain is None or not verdict:
            continue
        tone = {"better than": "good", "worse than": "bad"}.get(verdict, "unclear")
        found = as_interval(Measured(gain.difference))
        findings.append({"policy": policy, "gain": found, "wins": wins, "verdict": verdict, "tone": tone})
    return findings


def _best(table: PolicyTable) -> dict[str, str]:
    """Policies to highlight by column: the score that decides, and win rate. More of another score, KL or length is not
    better. On too few prompts none is."""
    best: dict[str, str] = {}
    if (name := table.best(table.by)) is not None:
        best[table.by] = name
    rated = {p.name: wins.rate.mean for p in table.policies if (wins := table.wins(p)) is not None}
    known = {name: rate for name, rate in rated.items() if not math.isnan(rate)}
    if known and not 0 < table.prompts < FEWEST:
        best["win_rate"] = max(known, key=lambda name: known[name])
    return best


def _policy_charts(table: PolicyTable, colors: Mapping[str, str]) -> list[Chart]:
    def rows(values: Mapping[str, Interval]) -> list[tuple[str, Interval, str]]:
        return [(name, value, colors[name]) for name, value in values.items()]

    score = {policy.name: table.score(policy) for policy in table.policies}
    wins = {policy.name: found.rate for policy in table.policies if (found := table.wins(policy)) is not None}
    label = f"{table.by} reward"
    charts = []
    if table.by in table.scorers:
        caption = "The dot is the mean, the bar its 95 % interval. Bars that do not overlap are a real difference."
        charts.append(Chart(f"Mean {label}", caption, plots.intervals_svg(rows(score), label)))
    if wins:
        caption = f"Share of prompts answered better than by {table.baseline}, a tie counting half. Dashed: no better."
        charts.append(Chart("Win rate", caption, plots.intervals_svg(rows(wins), "win rate", reference=0.5)))
    if table.by in table.scorers and any(not math.isnan(policy.kl.mean) for policy in table.policies):
        points = [(p.name, p.kl, table.score(p), colors[p.name]) for p in table.policies]
        caption = "What was gained, and how far the policy had to move for it. Higher and further left is better."
        charts.append(Chart("Gain for distance", caption, plots.frontier_svg(points, label)))
    return charts


def _track_chart(track: Track) -> Chart:
    keys = (Key("gold reward, left axis", plots.GOLD_COLOR), Key("proxy, right axis", plots.PROXY_COLOR, "dashed"))
    caption = (
        "Both lines begin at the same height. As long as they climb together, the reward model leads to the truth; "
        "where proxy goes on and gold stays or falls, it is being exploited. Shaded: 95 % intervals."
    )
    return Chart(track.name, caption, plots.track_svg(track), keys)


def _points_shown(track: Track, limit: int = 11) -> list[TrackPoint]:
    """Evenly spaced points, first and last among them."""
    count = min(limit, len(track.points))
    return [track.points[round(i * (len(track.points) - 1) / max(1, count - 1))] for i in range(count)]


def _comparisons(report: Report) -> list[Comparison]:
    """Answers to the same prompts: of the evaluated policies, else of each run's samples, first against last."""
    if report.policies is not None and report.policies.comparisons:
        return list(report.policies.comparisons[:_SHOWN_PROMPTS])
    shown: list[Comparison] = []
    for run in report.runs:
        by_prompt: dict[tuple[Message, ...], list[dict]] = {}
        for sample in run.samples:
            by_prompt.setdefault(_messages(sample.get("prompt")), []).append(sample)
        repeated = [(p, rows) for p, rows in by_prompt.items() if rows[0]["step"] != rows[-1]["step"]]
        chosen = (repeated or list(by_prompt.items()))[-max(2, _SHOWN_PROMPTS // len(report.runs)) :]
        for prompt, rows in chosen:
            ends = {f"{run.name}, step {row['step']}": _sample_answer(row) for row in (rows[0], rows[-1])}
            shown.append(Comparison(prompt, ends))
    return shown


def _messages(prompt: object) -> tuple[Message, ...]:
    if isinstance(prompt, list):
        turns = [turn for turn in prompt if isinstance(turn, dict)]
        return tuple(Message(str(turn.get("role", "user")), str(turn.get("content", ""))) for turn in turns)
    return (Message("user", "" if prompt is None else str(prompt)),)


def _sample_answer(row: dict) -> Answer:
    scores = {key: float(value) for key, value in row.items() if key != "step" and type(value) in (int, float)}
    tokens = scores.pop("length", math.nan)
    finished = row.get("finished", True) is not False
    return Answer(str(row.get("response", "")), None if math.isnan(tokens) else int(tokens), finished, scores)


def _cut(text: str) -> tuple[str, int]:
    """The text as far as it is shown, and how many characters are not."""
    return text[:_SHOWN_CHARACTERS], max(0, len(text) - _SHOWN_CHARACTERS)


def _data_rows(run: Run) -> list[dict[str, object]]:
    """What became of each file's rows, from data.json: file, format, rows, used, skipped and unused, and why."""
    files = run.data.get("files") if isinstance(run.data, dict) else None
    rows = []
    for entry in files if isinstance(files, list) else ():
        if not isinstance(entry, dict):
            continue
        counts = [reasons for key in ("skipped", "unused") if isinstance(reasons := entry.get(key), dict)]
        why = [f"{count} × {reason}" for reasons in counts for reason, count in reasons.items()]
        numbers = {key: entry.get(f"rows_{key}") for key in ("used", "skipped", "unused")}
        rows.append({"file": entry.get("file"), "format": entry.get("format"), "rows": entry.get("rows"), **numbers})
        rows[-1]["why"] = why[:6] + ([f"and {len(why) - 6} more reasons"] if len(why) > 6 else [])
    return rows


def facts(value: object, prefix: str = "") -> list[tuple[str, str]]:
    """Nested JSON as flat (name, text) rows, such as ("versions.torch", "2.13.0"); long lists are cut."""
    if isinstance(value, Mapping):
        items = [(f"{prefix}.{key}" if prefix else str(key), entry) for key, entry in value.items()]
    elif isinstance(value, list) and value and not all(isinstance(entry, int | float) for entry in value):
        items = [(f"{prefix} {index}", entry) for index, entry in enumerate(value[:20], start=1)]
        if len(value) > 20:
            items.append((prefix, f"… {len(value) - 20} more"))
    elif isinstance(value, list):
        return [(prefix, ", ".join(map(str, value[:40])) + (", …" if len(value) > 40 else "") or "–")]
    else:
        return [(prefix, "–" if value is None else f"{value:,}" if type(value) is int else str(value))]
    return [row for name, entry in items for row in facts(entry, name)]
