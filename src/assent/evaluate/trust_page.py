"""A trust report as one self-contained HTML page: no script, no request to anywhere."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from markupsafe import Markup

from assent import __version__
from assent.evaluate.pages import SIGNATURE, page_environment
from assent.evaluate.plots import Chart
from assent.evaluate.trust_charts import (
    accuracy_chart,
    best_of_chart,
    bias_chart,
    calibration_chart,
    edits_chart,
)
from assent.evaluate.trusted import FileTrust, Report
from assent.measures.verdicts import plain, share

TONES = {"good": "as it should be", "bad": "worry", "unclear": "note"}


def trust_page(report: Report, created: datetime | None = None) -> str:
    """The page as a string; `created` is now where nothing else is given."""
    environment = page_environment()
    environment.filters |= {"share": share, "plain": plain}
    return environment.get_template("trust.html.j2").render(
        report=report,
        source=" ".join(report.source),
        files=[(each, charts(each)) for each in report.files],
        created=(created or datetime.now()).strftime("%d %B %Y, %H:%M").lstrip("0"),
        version=__version__,
        signature=SIGNATURE,
        tones=TONES,
        svg=Markup,
    )


def charts(each: FileTrust) -> dict[str, list[Chart]]:
    """The figures of each section."""
    trust = each.trust
    compared = trust.accuracy is not None and trust.accuracy.right.n > 0
    found: dict[str, Iterable[Chart | None]] = {
        "accuracy": [accuracy_chart(trust, by) for by in trust.parts] if compared else [],
        "calibration": [calibration_chart(trust.calibration)] if trust.calibration and trust.calibration.bins else [],
        "bias": [bias_chart(trust.bias, trust.gold)],
        "edits": [edits_chart(trust.sensitivity)],
        "best_of": [best_of_chart(trust.best_of, trust.gold)] if trust.best_of else [],
    }
    return {name: [chart for chart in made if chart is not None] for name, made in found.items()}
