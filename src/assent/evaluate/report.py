"""One self-contained HTML page from run folders and an evaluation: what was asked, verdicts, every number, wins,
figures, alarms, answers side by side, training curves, data, configuration. No request to anywhere; one script of its
own, without which all but search is there.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from markupsafe import Markup

from assent import __version__
from assent.config import OBJECTIVES, ReportConfig
from assent.config.objectives import CUSTOM
from assent.errors import DataError, RunFolderError
from assent.evaluate import plots, report_numbers
from assent.evaluate.alarms import alarms_of
from assent.evaluate.frontier import over_optimised
from assent.evaluate.pages import SIGNATURE, check_page, page_environment, template_source
from assent.evaluate.panels import lengths, metric_ends, run_charts
from assent.evaluate.plots import Chart, Key
from assent.evaluate.policy_charts import ANSWER_CHARTS, CHARTS
from assent.evaluate.report_samples import LIMIT, first_page, fitting, page_data
from assent.evaluate.results import ANSWERS, EVALUATION, FEWEST, PolicyTable, Track, TrackPoint
from assent.evaluate.rounds import Rounds, read_rounds
from assent.evaluate.runs import LOOP, NAMES, Run, find_runs, read_run, track_of
from assent.evaluate.samples import SampleSet, evaluation_samples, run_samples
from assent.foreign import printable
from assent.outputs import write_text

_POINTS = 30_000  # drawn in the whole page, so that many runs keep it small


@dataclass(frozen=True)
class Report:
    """What goes on the page; a part that is empty leaves its section out."""

    title: str
    subtitle: str = ""
    policies: PolicyTable | None = None
    tracks: tuple[Track, ...] = ()
    runs: tuple[Run, ...] = ()
    loops: tuple[Rounds, ...] = ()
    created: datetime | None = None
    """Default: now."""
    folder: Path | None = None
    """Where the evaluation lies, with its answers.jsonl."""


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
    loops = tuple(read_rounds(folder) for folder in folders if (folder / LOOP).is_file())
    newest = [place for loop in loops for place in loop.evaluations[:1]]
    places = dict.fromkeys((*folders, *(run.path for run in runs), *newest))
    tables = [place / EVALUATION for place in places if (place / EVALUATION).is_file()]
    subtitle, policies = "", None
    if tables:
        try:
            policies = PolicyTable.load(tables[0])
        except DataError as error:
            subtitle = f"{error} It is left out."
    if len(tables) > 1:
        subtitle += f" Of {len(tables)} evaluations that of {tables[0].parent} is shown."
    tracks: dict[str, Track] = {}
    for track in (
        *(policies.tracks if policies else ()),
        *filter(None, map(track_of, (*runs, *(loop.as_run() for loop in loops)))),
    ):
        tracks.setdefault(track.name.casefold(), track)
    folder = tables[0].parent if policies is not None else None
    report = Report(config.title, subtitle.strip(), policies, tuple(tracks.values()), runs, loops, folder=folder)
    path = save_report(report, config.out)
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
    table = report.policies
    samples = fitting(_samples(report), LIMIT)
    names = [policy.name for policy in table.policies] if table else []
    names += [track.name for track in report.tracks] + [run.name for run in report.runs]
    names += [each.name for each in report.loops]
    colors = plots.palette(names, table.baseline if table else None)
    script = template_source("report.js")
    alarms = [(run, said) for run in report.runs for said in alarms_of(run)]
    raised = {run.name for run, _ in alarms}
    return (
        page_environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            created=(report.created or datetime.now()).strftime("%d %B %Y, %H:%M").lstrip("0"),
            version=__version__,
            signature=SIGNATURE,
            policy=_allowed(script),
            script=Markup(script),
            table=table,
            **(_evaluated(table, report) if table else {}),
            policy_charts=_charts(table, samples),
            tracks=[(track, _track_chart(track), over_optimised(track)) for track in report.tracks],
            runs=report.runs,
            loops=[
                (each, each.rows(), run_charts(each.as_run(), colors[each.name], 400, "round")) for each in report.loops
            ],
            commands=_commands(report),
            trained=_trained(report.runs, colors),
            alarms=alarms,
            watched=[run.name for run in report.runs if run.name not in raised and _is_watched(run)],
            samples=samples,
            limit=LIMIT,
            data=Markup(page_data(samples, colors)),
            cards=first_page(samples[0], colors) if samples else [],
            lengths=lengths,
            points_shown=_points_shown,
            data_rows=[(run, row) for run in report.runs for row in _data_rows(run)],
            colors=colors,
            facts=facts,
            isnan=math.isnan,
            svg=Markup,
        )
    )


def _allowed(script: str) -> str:
    """The page's Content-Security-Policy: its own script and styles, and nothing from anywhere."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; base-uri 'none'; "
        "form-action 'none'"
    )


def _evaluated(table: PolicyTable, report: Report) -> dict[str, object]:
    """What the sections on an evaluation show."""
    rows = report_numbers.rows(table)
    abouts = {row.key.partition("/")[0]: row.about for _, own in rows for row in own if row.about}
    return {
        "question": report_numbers.question(table),
        "again": report_numbers.again(table.command, str(report.folder or "evaluation")),
        "sources": list(dict.fromkeys([table.by, *table.scorers, *(match.source for match in table.matches)]))
        if table.by
        else list(table.scorers),
        "verdicts": report_numbers.verdicts(table),
        "fewest": FEWEST,
        "numbers": rows,
        "abouts": list(abouts.items()),
        "without": report_numbers.left_out(table),
        "failed": report_numbers.failures(table),
        "probes": report_numbers.probes(table),
        "notes": [(policy.name, note) for policy in table.policies for note in policy.notes],
        "matrices": report_numbers.matrices(table),
    }


def _samples(report: Report) -> list[SampleSet]:
    """Answers of the evaluation, then of each run."""
    found: list[SampleSet | None] = []
    if report.policies is not None:
        file = None if report.folder is None else report.folder / ANSWERS
        found.append(evaluation_samples(report.policies, file))
    return [each for each in (*found, *map(run_samples, report.runs)) if each is not None]


def _charts(table: PolicyTable | None, samples: Sequence[SampleSet]) -> list[Chart]:
    if table is None:
        return []
    charts = [chart for make in CHARTS for chart in make(table)]
    own = next((each for each in samples if each.baseline is not None), None)
    return charts if own is None else charts + [chart for make in ANSWER_CHARTS for chart in make(table, own)]


def _commands(report: Report) -> list[str]:
    """What started the runs, each once, but for what repeats the evaluation anyway."""
    known = report.policies.command if report.policies else ""
    return [line for line in dict.fromkeys(run.command_line for run in report.runs) if line not in ("", known)]


def _is_watched(run: Run) -> bool:
    """Whether anything in the run would have raised an alarm."""
    return any(key.startswith("alarm/") or "/alarm/" in key for key in run.metrics)


def _trained(runs: Sequence[Run], colors: Mapping[str, str]) -> list[tuple[Run, list[Chart], list]]:
    curves = max(1, sum(len(run.metrics) for run in runs))
    limit = min(400, max(40, _POINTS // curves))
    return [(run, run_charts(run, colors[run.name], limit), metric_ends(run)) for run in runs]


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
