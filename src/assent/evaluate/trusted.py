"""What a trust report holds: the measures of each file, as `trust.json`, the page and the printed table show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from assent import __version__
from assent.evaluate.benchmark import Result
from assent.measures.trust import Trust, without_nan
from assent.measures.verdicts import Finding, findings

KIND = "assent trust report"


def shown(words: Sequence[str]) -> tuple[str, ...]:
    """The words of a source as they may be written down: an address may hold a password."""
    return tuple(word.partition("=")[0] if "://" in word else word for word in words)


@dataclass(frozen=True, slots=True)
class FileTrust:
    """The measures of one file."""

    file: str
    trust: Trust
    result: Result | None
    unused: Mapping[str, int]
    """Why rows are not used, and how many."""

    @property
    def findings(self) -> list[Finding]:
        return findings(self.trust)


@dataclass(frozen=True, slots=True)
class Report:
    """A source, and how far it can be trusted on each file."""

    source: tuple[str, ...]
    files: tuple[FileTrust, ...]

    def as_json(self) -> dict[str, object]:
        """Plain JSON; what is not defined is null."""
        files = [
            {
                "file": each.file,
                "unused": dict(each.unused),
                **asdict(each.trust),
                "findings": [asdict(finding) for finding in each.findings],
                "benchmark": None if each.result is None else asdict(each.result),
            }
            for each in self.files
        ]
        found = without_nan({"kind": KIND, "assent": __version__, "source": list(self.source), "files": files})
        assert isinstance(found, dict)
        return found
