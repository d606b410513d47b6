from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from dataclasses import replace
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from assent.config import ReportConfig
from assent.data.records import Message
from assent.errors import RunFolderError
from assent.evaluate import plots, report
from assent.evaluate.alarms import alarm
from assent.evaluate.measured import Evaluated, evaluate_policies
from assent.evaluate.pages import number, template_source
from assent.evaluate.panels import PANELS, lengths
from assent.evaluate.plots import Curve, curves_svg, ema, palette, thin, track_svg
from assent.evaluate.report import Report, build_report, facts, write_report
from assent.evaluate.report_numbers import matrices
from assent.evaluate.report_samples import LONGEST
from assent.evaluate.results import PolicyTable, Track, TrackPoint
from assent.evaluate.runs import Series, read_run, track_of
from assent.foreign import printable
from assent.measures.aggregate import Difference
from assent.measures.answers import Answers, Prompts
from assent.statistics import Interval

NASTY = "<script>alert('x')</script><img src=http://evil.example/x onerror=alert(1)>\x00\ud800\u202e $a_{b$ &amp; \"q\""


class Page(HTMLParser):
    """Elements, attributes, text and table cells of a page; fails on elements that are not closed in order."""

    VOID = frozenset({"meta", "br", "img", "link", "input", "hr"})

    def __init__(self, html: str):
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.text = ""
        self.scripts: list[str] = []
        self.cells: list[list[str]] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert not self._open, self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in self.VOID:
            self._open.append(tag)
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        assert self._open and self._open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data):
        if "style" in self._open:
            assert "http" not in data and "@import" not in data
            return
        if "script" in self._open:
            self.scripts.append(data)
            return
        self.text += data
        if "td" in self._open or "th" in self._open:
            self.cells[-1][-1] += data


def write_run(folder: Path, rows: list[dict] | str, command: str = "ppo", samples: list[dict] = ()) -> Path:
    (folder / "model").mkdir(parents=True)
    text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(text)
    (folder / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    (folder / "resolved.yaml").write_text(f"model:\n  path: base  # {NASTY[:30]}\n")
    (folder / "environment.json").write_text(json.dumps({"command": command, "versions": {"torch": "2.13.0"}}))
    counts = {"rows": 1234, "rows_used": 1225, "rows_skipped": 9, "rows_unused": 0}
    file = {"file": "pairs.jsonl", "format": "preference", **counts, "skipped": {"prompt: too long": 9}, "unused": {}}
    data = {"fingerprint": "ab", "files": [file], "train": {"pairs": 5000}}
    (folder / "data.json").write_text(json.dumps(data))
    return folder


def steps(count: int) -> list[dict]:
    return [{"step": i, "loss": 1 / i, "kl": 0.1 * i, "reward": float(i), "lr": 1e-5} for i in range(1, count + 1)]


@pytest.fixture(scope="module")
def table() -> PolicyTable:
    rng = np.random.default_rng(0)
    prompts = [(Message("user", f"question {i} {NASTY}"),) for i in range(40)]
    columns = known(prompts)

    def answers(name: str, gold: float) -> Evaluated:
        proxy = 2 * (gold + rng.normal(size=40))
        scored = np.where(np.arange(40) == 3, np.nan, proxy / 2)
        return Evaluated(
            Answers(
                name,
                columns,
                np.arange(40),
                (f"{NASTY} {name}",) * 40,
                tokens=np.arange(10, 50),
                finished=np.arange(40) % 5 > 0,
                log_prob=np.full(40, -2.5),
                reference_log_prob=np.full(40, -3.0),
                scores={"gold": scored, "proxy": proxy},
                unscored={"gold": tuple("no opinion" if i == 3 else "" for i in range(40))},
            )
        )

    policies = [answers("SFT", 0.0), answers("PPO <b>", 2.0)]
    return evaluate_policies(policies, prompts, "SFT").table


def known(prompts: list[tuple[Message, ...]]) -> Prompts:
    texts = tuple(prompt[-1].content for prompt in prompts)
    return Prompts(texts, texts, ((),) * len(texts), ("",) * len(texts))


def test_the_page_is_well_formed_and_asks_nobody_for_anything(tmp_path: Path, table: PolicyTable):
    sample = {"step": 5, "prompt": [{"role": NASTY, "content": NASTY}], "response": NASTY, "reward": 0.5}
    run = write_run(tmp_path / "ppo $x$", steps(40), samples=[sample])
    data = {NASTY: [NASTY, {"a": NASTY}], "files": [NASTY, {"file": NASTY, "rows": NASTY, "skipped": {NASTY: NASTY}}]}
    (run / "data.json").write_text(json.dumps(data))
    html = build_report(Report(NASTY, NASTY, table, (), (read_run(run),)))
    html.encode("utf-8")
    page = Page(html)
    assert not {"img", "link", "iframe", "object", "embed", "form", "base"} & set(page.tags)
    own = template_source("report.js")
    data, script = page.scripts
    assert script == own and "http" not in own and not {"<", "&"} & set(data) and json.loads(data)["sets"]
    (allowed,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
    digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
    assert f"script-src &#39;sha256-{digest}&#39;" in allowed and allowed.startswith("default-src &#39;none&#39;")
    for _, name, value in page.attributes:
        assert not name.startswith("on") and name not in ("src", "srcset", "action", "xmlns", "xlink:href")
        if name == "href":
            assert value is not None and value.startswith("#")
        assert "http" not in (value or "") or name in ("aria-label",)
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    targets = {value[1:] for _, name, value in page.attributes if name == "href" and value}
    targets |= set(re.findall(r"url\(#([^)]*)\)", html))
    assert targets <= set(ids)
    assert "<script>alert('x')</script>" in page.text  # shown as text, not lost
    assert "\\x00\\ud800\\u202e" in page.text
    assert not re.search("[\x00\ud800\u202e]", html)


def numbers_of(html: str) -> dict[str, list[str]]:
    """Rows of the table of all numbers by their key."""
    (table,) = re.findall(r'<table class="numbers" id="policy-table">.*?</table>', html, flags=re.S)
    return {row[0].strip(): [" ".join(cell.split()) for cell in row[1:]] for row in Page(table).cells if len(row) > 1}


def read(cell: str) -> list[float]:
    return [float(n.replace("\N{MINUS SIGN}", "-")) for n in re.findall(r"\N{MINUS SIGN}?[\d.]+", cell)]


def test_every_number_of_the_table_is_on_the_page_under_its_heading(table: PolicyTable):
    html = build_report(Report("t", policies=table))
    page, shown = Page(html), numbers_of(html)
    for key in table.keys:
        unit = table.measures[key.partition("/")[0]].unit
        cells = shown[key + (unit if unit not in ("", "share", key) else "")]
        for policy, cell in zip(table.policies, cells, strict=True):
            if key not in policy.numbers:
                assert cell == "baseline"
                continue
            value, scale = policy.interval(key), 100 if unit == "share" else 1
            expected = [scale * n for n in (value.mean, value.half_width, value.low, value.high)]
            expected = [n for n in expected if not math.isnan(n)]
            assert read(cell.replace("*", ""))[: len(expected)] == pytest.approx(expected, rel=0.01, abs=0.06)
    assert shown["reward/gold"][1].endswith("1 left out") and "left out" not in shown["reward/proxy"][1]
    text = " ".join(page.text.split())
    assert "PPO <b>: 1 × no opinion (reward/gold, win-rate/gold" in text
    assert (
        text.index("Rewards and wins")
        < text.index("reward/gold")
        < text.index("Answers length")
        < text.index("Variety")
    )
    assert "mc1" in text and "choices in the prompt file" in text, "what is left out is said"


def test_verdicts_are_sentences_with_intervals_wins_and_failures(table: PolicyTable):
    text = " ".join(Page(build_report(Report("t", policies=table))).text.split())
    ppo = table.policies[1]
    wins, gain = table.wins(ppo), table.gain(ppo)
    assert wins is not None and gain is not None and gain.difference.n == 39
    low, high = gain.difference.low, gain.difference.high
    assert (
        f"PPO <b> is better than SFT by gold: +{gain.difference.value:.2f} in mean gold (95 % interval +{low:.2f} to "
        f"+{high:.2f}). Better on {wins.wins} of 39 comparisons, worse on {wins.losses}, equal on {wins.ties}. "
        "Left out: 1 × no opinion." in text
    )
    assert "Does PPO <b> answer 40 prompts better than SFT, by gold?" in text


def test_sure_differences_are_starred_and_the_best_score_is_marked(table: PolicyTable):
    html = build_report(Report("t", policies=table))
    ppo = table.policies[1]
    starred = {key for key, cells in numbers_of(html).items() if any("*" in cell for cell in cells)}
    assert starred == {key for key, one in ppo.differences.items() if one.p_holm < 0.05}
    best = re.findall(r'<td class="n better best"[^>]*>\s*<span class="mean">([^<]*)<', html)
    assert best == [f"{ppo.scores['gold'].mean:.2f}"], "more proxy is not best"
    worse = evaluate_worse(table)
    (own,) = re.findall(r'<table class="numbers" id="policy-table">.*?</table>', worse, flags=re.S)
    assert 'class="n worse"' in own and 'class="n better' not in own


def evaluate_worse(table: PolicyTable) -> str:
    """The page with every difference turned round."""

    def turned(one: Difference) -> Difference:
        d = one.difference
        assert d.value is not None and d.low is not None and d.high is not None
        return replace(one, difference=replace(d, value=-d.value, low=-d.high, high=-d.low))

    ppo = table.policies[1]
    lost = replace(ppo, differences={key: turned(one) for key, one in ppo.differences.items()})
    return build_report(Report("t", policies=replace(table, policies=(table.policies[0], lost))))


def test_the_matrix_has_every_policy_against_every_policy_by_each_source(table: PolicyTable):
    (gold, proxy) = matrices(table)
    assert (gold.source, proxy.source) == ("gold", "proxy") and gold.names == ("SFT", "PPO <b>")
    wins = table.wins(table.policies[1])
    assert wins is not None and gold.fields[0][0] is None
    ours, theirs = gold.fields[1][0], gold.fields[0][1]
    assert ours is not None and theirs is not None
    assert (
        ours.middle == f"{100 * wins.rate.mean:.1f} %" and ours.counted == f"{wins.wins} / {wins.ties} / {wins.losses}"
    )
    assert read(theirs.middle)[0] == pytest.approx(100 - read(ours.middle)[0], abs=0.11)
    assert read(theirs.bounds) == pytest.approx([100 - n for n in reversed(read(ours.bounds))], abs=0.11)
    assert theirs.counted == f"{wins.losses} / {wins.ties} / {wins.wins}"
    assert (ours.failures, ours.tone, theirs.tone) == ("1 left out", "good", "bad")
    few = replace(table, prompts=29)
    assert {field.tone for row in matrices(few)[0].fields for field in row if field} == {""}


@pytest.mark.parametrize(
    ("count", "shift", "words"),
    [
        (40, 0.0, "not clearly different from SFT"),
        (40, -3.0, "worse than SFT"),
        (2, 3.0, "too few prompts (2) to tell from SFT"),
    ],
)
def test_findings_say_no_more_than_the_interval(count: int, shift: float, words: str):
    prompts = [(Message("user", "?"),)] * count
    noise, columns = np.random.default_rng(1).normal(size=(2, count)), known(prompts)
    noise -= noise.mean(axis=1, keepdims=True)
    policies = [
        Evaluated(Answers(name, columns, np.arange(count), ("",) * count, scores={"taste": values}))
        for name, values in (("SFT", noise[0]), ("PPO", noise[1] + shift))
    ]
    page = Page(html := build_report(Report("t", policies=evaluate_policies(policies, prompts, "SFT").table)))
    assert words in page.text and "is better than SFT" not in page.text
    assert ("best" in "".join(re.findall('<td class="([^"]*)', html))) == (count >= 30)
    assert "gold" not in page.text.lower(), "nothing is called gold without gold"


def test_write_report_from_a_folder_of_runs(tmp_path: Path, table: PolicyTable, capsys):
    write_run(tmp_path / "demo" / "ppo", steps(50))
    write_run(tmp_path / "demo" / "sft", steps(30), command="sft")
    table.save(tmp_path / "demo" / "evaluation.json")
    out = tmp_path / "deep" / "report.html"
    assert write_report(ReportConfig(runs=(str(tmp_path / "demo"),), out=str(out), title="My run")) == out
    assert str(out) in capsys.readouterr().out
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]
    page = Page(out.read_text(encoding="utf-8"))
    assert page.text.count("My run") == 2  # title and heading
    assert page.text.index("sft\nSFT") < page.text.index("ppo\nPPO")  # the pipeline's order
    for words in (
        "Verdict",
        "1,234",
        "9 × prompt: too long",
        "5,000",
        "versions.torch",
        "path: base",
        "50 steps",
    ):
        assert words in page.text
    assert "Gold against proxy" not in page.text
    data = [row for row in page.cells if row and row[0] == "ppo" and len(row) == 8]
    assert [cell.strip() for cell in data[0][1:]] == (
        ["pairs.jsonl", "preference", "1,234", "1,225", "9", "0", "9 × prompt: too long"]
    )


def test_runs_of_one_name_are_told_apart(tmp_path: Path):
    folders = [write_run(tmp_path / parent / "ppo", steps(3)) for parent in ("a", "b")]
    out = tmp_path / "r.html"
    write_report(ReportConfig(runs=(*map(str, folders), str(folders[0])), out=str(out)))
    text = Page(out.read_text()).text
    assert text.count("a/ppo\nPPO") == text.count("b/ppo\nPPO") == 1


def test_missing_and_broken_files_are_reported_not_fatal(tmp_path: Path):
    folder = tmp_path / "killed"
    folder.mkdir()
    lines = ['{"step": 1, "loss": 2.0}', "oops", '{"loss": 1}', '{"step": 2, "loss": "nan"}', '{"step": 3, "lo']
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    (folder / "environment.json").write_text('{"command": "sf')
    (folder / "data.json").write_bytes(b"\xff\xfe")
    run = read_run(folder)
    assert run.metrics["loss"].steps.tolist() == [1, 2] and math.isnan(run.metrics["loss"].values[1])
    problems = "\n".join(run.problems)
    for words in (
        "metrics.jsonl: the last line is broken off",
        "metrics.jsonl: 2 lines are not JSON objects with a step (line 2, 3)",
        "1 values are not finite",
        "samples.jsonl is missing",
        "resolved.yaml is missing",
        "environment.json is not complete JSON",
        "data.json is not complete JSON",
        "model/ is missing",
    ):
        assert words in problems
    write_report(ReportConfig(runs=(str(folder),), out=str(tmp_path / "r.html")))
    text = Page((tmp_path / "r.html").read_text()).text
    assert all(problem in text for problem in run.problems) and "not finished" in text


def test_a_finished_run_has_no_problems(tmp_path: Path):
    assert read_run(write_run(tmp_path / "run", steps(3))).problems == ()


def test_a_broken_evaluation_is_left_out_and_named(tmp_path: Path):
    run = write_run(tmp_path / "run", steps(3))
    (run / "evaluation.json").write_text("{")
    write_report(ReportConfig(runs=(str(run),), out=str(tmp_path / "r.html")))
    text = Page((tmp_path / "r.html").read_text()).text
    assert "evaluation.json is not an evaluation table" in text and "Verdict" not in text


def test_what_is_no_run_folder_is_refused(tmp_path: Path):
    with pytest.raises(RunFolderError, match="does not exist"):
        write_report(ReportConfig(runs=(str(tmp_path / "no"),), out=str(tmp_path / "r.html")))
    with pytest.raises(RunFolderError, match="metrics.jsonl"):
        write_report(ReportConfig(runs=(str(tmp_path),), out=str(tmp_path / "r.html")))
    with pytest.raises(RunFolderError, match="at least one"):
        write_report(ReportConfig(runs=(), out=str(tmp_path / "r.html")))
    run = write_run(tmp_path / "run", steps(3))
    with pytest.raises(RunFolderError, match="cannot be written"):
        write_report(ReportConfig(runs=(str(run),), out=str(run / "metrics.jsonl" / "r.html")))
    with pytest.raises(RunFolderError, match="no report of assent"):
        write_report(ReportConfig(runs=(str(run),), out=str(run)))


def test_rows_of_one_step_are_joined_and_later_ones_hold(tmp_path: Path):
    rows = [{"step": 1, "loss": 5.0}, {"step": 2, "loss": 4.0}, {"step": 1, "loss": 3.0, "ok": True, "note": "x"}]
    run = read_run(write_run(tmp_path / "run", [*rows, {"step": 2, "eval/nll": None}]))
    assert run.metrics["loss"].values.tolist() == [3.0, 4.0] and run.last_step == 2
    assert set(run.metrics) == {"loss", "eval/nll"} and math.isnan(run.metrics["eval/nll"].values[0])
    assert any("1 rows repeat earlier steps" in problem for problem in run.problems)


def test_gold_against_proxy_comes_from_the_metrics(tmp_path: Path):
    rows = [
        {"step": step, "eval/gold": gold, "eval/gold_low": gold - 0.1, "eval/gold_high": gold + 0.1}
        | {"eval/reward": float(step), "eval/kl": 2.0 * step}
        for step, gold in ((0, 1.0), (10, 3.0), (20, 1.5))
    ]
    run = read_run(write_run(tmp_path / "ppo", [*rows, {"step": 25, "eval/reward": 1.0}]))
    track = track_of(run)
    assert track is not None and track.name == "ppo"
    assert [(p.step, p.kl, p.gold.mean, p.proxy.mean) for p in track.points] == [
        (0, 0.0, 1.0, 0.0),
        (10, 20.0, 3.0, 10.0),
        (20, 40.0, 1.5, 20.0),
    ]
    text = Page(build_report(Report("t", tracks=(track,)))).text
    assert "Over-optimised" not in text, "of how many prompts it is nobody knows"
    assert "gold +0.50, proxy +20.00. No verdict from an unknown number of prompts; it takes 30." in text
    assert track_of(read_run(write_run(tmp_path / "sft", steps(3)))) is None


def test_before_and_after_from_samples(tmp_path: Path):
    prompt = [{"role": "user", "content": "Who?"}]
    samples = [{"step": s, "prompt": prompt, "response": f"answer at {s}", "reward": s / 7} for s in (0, 50, 100)]
    run = read_run(write_run(tmp_path / "ppo", steps(3), samples=samples))
    html = build_report(Report("t", runs=(run,)))
    assert "answer at<del> 0</del> <ins>100</ins>" in html and "step 100" in html and "14.29" in html
    assert "answer at 0</div>" in html and "answer at 50</div>" not in html, "50 is in the data, for the script"
    assert "answer at 50" in json.loads(Page(html).scripts[0])["sets"][0]["rows"][0][3][1][0]


def test_long_answers_are_cut_and_say_so(table: PolicyTable):
    answers = {"SFT": replace(table.comparisons[0].answers["SFT"], text="a" * (LONGEST + 3800))}
    long = replace(table, comparisons=(replace(table.comparisons[0], answers=answers),))
    html = build_report(Report("t", policies=long))
    assert "(3,800 more characters)" in html and "a" * (LONGEST + 1) not in html


def test_every_logged_metric_of_the_algorithms_finds_its_panel():
    expected = {
        "loss": "Loss",
        "nll": "Loss",
        "objective": "Loss",
        "accuracy": "Accuracy",
        "margin": "Margin",
        "margin_p5": "Margins of all pairs",
        "auc": "Told apart",
        "reward/chosen": "Implicit reward",
        "reward/undesirable": "Implicit reward",
        "logprob/rejected": "Log-probability",
        "logprob/best": "Log-probability",
        "agreement": "Agreement",
        "spearman/length_reward": "Correlation with length",
        "spearman/length_likelihood": "Correlation with length",
        "reference_point": "Reference point",
        "score": "Score",
        "reward": "Reward",
        "kl": "KL from the reference",
        "teacher_kl": "KL from the teacher",
        "teacher_agreement": "Agreement with the teacher",
        "distill_loss": "Divergence",
        "approx_kl": "KL of one update",
        "clip_fraction": "Clip fraction",
        "entropy": "Entropy",
        "win_rate": "Win rate",
        "explained_variance": "Explained variance",
        "policy_loss": "Policy loss",
        "value_loss": "Value loss",
        "length": "Answer length",
        "unfinished": "Unfinished answers",
        "grad_norm/critic": "Gradient norm",
        "lr": "Learning rate",
        "time/tokens_per_second": "Speed",
    }
    for metric, title in expected.items():
        assert [panel.title for panel in PANELS if re.search(panel.pattern, metric)] == [title]
    assert {panel.title for panel in PANELS} == set(expected.values())


def feedback_run(folder: Path, last: dict, command: str = "DPOConfig", sides=("chosen", "rejected")) -> Path:
    """A run with two evaluations; `last` adds to the second."""
    first, second = sides
    start = {"step": 0, "eval/alarm/both_fall": 0.0, "eval/length": 20.0, f"eval/logprob/{first}": -1.0}
    end = {"step": 9, "eval/alarm/both_fall": 0.0, "eval/length": 33.0, f"eval/logprob/{first}": -1.5}
    rows = [{**row, f"eval/logprob/{second}": -2.0 - row["step"]} for row in (start, end)]
    return write_run(folder, [rows[0], {**rows[1], **last}], command)


def test_the_alarm_is_a_box_in_its_own_run_and_only_while_it_holds(tmp_path: Path):
    fell = feedback_run(tmp_path / "fell", {"eval/alarm/both_fall": 1.0})
    fine = feedback_run(tmp_path / "fine", {})
    recovered = feedback_run(tmp_path / "recovered", {"eval/alarm/both_fall": 1.0})
    with (recovered / "metrics.jsonl").open("a") as file:
        file.write('{"step": 12, "eval/alarm/both_fall": 0.0}\n')
    runs = {path.name: read_run(path) for path in (fell, fine, recovered)}
    assert [bool(alarm(run)) for run in runs.values()] == [True, False, False]
    html = build_report(Report("t", runs=tuple(runs.values())))
    assert html.count('<p class="problems alarm">') == 1
    text = " ".join(Page(html).text.split())
    shown = text.index(
        "Both kinds of answers are less likely than at the start (chosen −1.00 → −1.50, rejected −2.00 →"
    )
    assert text[shown - 6 : shown] == "fell: " and "No alarm in fine, recovered." in text
    assert "--plus sft:0.2" in alarm(runs["fell"])


def test_the_alarm_of_labels_names_no_option_of_pairs(tmp_path: Path):
    path = feedback_run(tmp_path / "kto", {"eval/alarm/both_fall": 1.0}, "KTOConfig", ("desirable", "undesirable"))
    text = alarm(read_run(path))
    assert "desirable −1.00 → −1.50, undesirable" in text and "--plus" not in text and "--loss.beta" in text


def test_length_of_sampled_answers_before_and_after(tmp_path: Path):
    run = read_run(feedback_run(tmp_path / "run", {}))
    words = "Sampled answers: 20 tokens at the start, 33 at the end."
    assert lengths(run) == words and words in Page(build_report(Report("t", runs=(run,)))).text
    assert lengths(read_run(write_run(tmp_path / "sft", steps(3)))) == ""


def test_margins_are_drawn_with_their_middle_half_and_without_its_edges(tmp_path: Path):
    names = [f"eval/margin_p{percent}" for percent in (5, 25, 50, 75, 95)]
    rows = [{"step": s, "eval/margin": 1.0 + s, **{n: i - 2.0 + s for i, n in enumerate(names)}} for s in range(3)]
    html = build_report(Report("t", runs=(read_run(write_run(tmp_path / "run", rows)),)))
    figures = re.findall(r"<figure>.*?</figure>", html, flags=re.S)
    plain, spread = (
        Page(next(f for f in figures if f'<h4 class="title">{t}</h4>' in f)) for t in ("Margin", "Margins of all pairs")
    )
    assert "eval/margin" in plain.text and "eval/margin_p" not in plain.text
    assert [name in spread.text for name in names] == [True, False, True, False, True]
    band = next(f for f in figures if "Margins of all pairs</h4>" in f)
    assert band.count("opacity: 0.13") == 1


def test_runs_of_the_preference_family_follow_in_the_order_of_the_table(tmp_path: Path):
    commands = {"a": "kto", "b": "robust-dpo", "c": "simpo", "d": "reward", "e": "sft"}
    for name, command in commands.items():
        write_run(tmp_path / "runs" / name, steps(3), command)
    write_report(ReportConfig(runs=(str(tmp_path / "runs"),), out=str(tmp_path / "r.html")))
    text = Page((tmp_path / "r.html").read_text()).text
    places = [text.index(words) for words in ("e\nSFT", "d\nReward", "b\nRobust DPO", "c\nSimPO", "a\nKTO")]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("environment", "kind"),
    [
        ({"command": "reinforce++"}, "REINFORCE++"),
        ({"command": "of-my-own"}, "of-my-own"),
        ({"configuration": "DPOConfig", "command": "assent dpo --out x"}, "DPO"),  # of an earlier version
        ({"command": 3}, ""),
        ([], ""),
    ],
)
def test_what_a_run_is_called(environment: object, kind: str, tmp_path: Path):
    assert replace(read_run(write_run(tmp_path / "run", steps(3))), environment=environment).kind == kind


@pytest.mark.filterwarnings("error")
def test_many_long_runs_stay_small(tmp_path: Path):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(5000, 12)).cumsum(axis=0)
    names = ("loss", "reward", "kl", "entropy", "length", "approx_kl", "clip_fraction", "value_loss", "policy_loss")
    names += ("explained_variance", "unfinished", "grad_norm")
    metrics = {name: Series(np.arange(5000), values[:, i]) for i, name in enumerate(names)}
    run = replace(read_run(write_run(tmp_path / "run", steps(3))), metrics=metrics)
    html = build_report(Report("t", runs=tuple(replace(run, name=f"run {i}") for i in range(2))))
    assert html.count("<svg") == 24 and len(html.encode()) < 500_000


def test_thin_keeps_spikes_ends_and_gaps():
    values = np.zeros(10_000)
    values[1234], values[4321], values[7000] = 9.0, -9.0, math.nan
    thinned = thin(Series(np.arange(10_000), values), 400)
    assert len(thinned.steps) <= 400 and (np.diff(thinned.steps) > 0).all()
    assert np.nanmax(thinned.values) == 9.0 and np.nanmin(thinned.values) == -9.0
    assert thinned.steps[np.isnan(thinned.values)].tolist() == [7000]
    short = Series(np.arange(3), np.zeros(3))
    assert thin(short, 400) is short


def test_ema_known_numbers_and_gaps():
    assert ema(np.array([1.0, 2.0, 3.0]), span=3.0).tolist() == pytest.approx([1.0, 5 / 3, 17 / 7])
    smooth = ema(np.array([1.0, math.nan, 1.0]), span=3.0)
    assert smooth[0] == smooth[2] == 1.0 and math.isnan(smooth[1])


def test_gaps_are_left_open_and_marked():
    values = np.arange(20.0)
    whole = curves_svg([Curve("loss", Series(np.arange(20), values), "#0072B2")], "Loss")
    values = values.copy()
    values[10] = math.nan
    broken = curves_svg([Curve("loss", Series(np.arange(20), values), "#0072B2")], "Loss")
    line = re.search(r'd="(M[^"]*)"[^>]*stroke: #0072b2', broken, flags=re.S)
    assert line is not None and line[1].count("M") == 2
    assert "#c62828" in broken and "#c62828" not in whole and "nan" not in broken.lower()


def test_a_metric_that_is_never_finite_and_a_track_without_intervals_are_drawn():
    never = Series(np.arange(5), np.full(5, math.nan))
    assert "<svg" in curves_svg([Curve("loss", never, "#0072B2")], "Loss")
    points = tuple(TrackPoint(i, None, Interval(1.0, math.nan, math.nan, 0), Interval(2.0, 2, 2, 0)) for i in range(3))
    assert ">step</text>" in track_svg(Track("flat", points))


def test_figures_take_the_pages_ink_and_names_are_text():
    rows = [(f"$x^{{ {NASTY}", Interval(1.0, 0.5, 1.5, 9), "#0072B2"), ("模型", Interval(2.0, 1.5, 2.5, 9), "#D55E00")]
    svg = plots.intervals_svg(rows, "gold reward")
    assert "currentColor" in svg and plots.INK not in svg and "var(--grid)" in svg
    assert "http" not in svg.replace("http://evil", "") and "<script" not in svg and "模型" in svg


def test_colours_follow_the_name_whatever_its_case():
    colors = palette(["SFT", "PPO", "DPO", "ppo", "sft", "reward"], baseline="SFT")
    assert colors["PPO"] == colors["ppo"] and colors["SFT"] == colors["sft"] == plots.BASELINE_COLOR
    assert len({colors[name] for name in ("SFT", "PPO", "DPO", "reward")}) == 4


def test_the_page_is_the_same_every_time(tmp_path: Path, table: PolicyTable):
    run = read_run(write_run(tmp_path / "run", steps(30)))
    report = Report("t", policies=table, runs=(run,), created=datetime(2030, 1, 2, 3, 4))
    assert build_report(report) == build_report(report)
    assert "2 January 2030, 03:04" in build_report(report)


def test_small_helpers():
    assert number(-1234.5678) == "\N{MINUS SIGN}1235" and number(math.nan) == number(None) == "–"
    assert number(0.5, 2, "+") == "+0.50"
    assert facts({"a": {"b": 1000}, "c": [1, 2], "bad": [{"row": "f:7", "reason": "empty"}], "z": None}) == [
        ("a.b", "1,000"),
        ("c", "1, 2"),
        ("bad 1.row", "f:7"),
        ("bad 1.reason", "empty"),
        ("z", "–"),
    ]
    assert facts({"bad": [f"row {i}" for i in range(25)], "gpus": []})[18:] == [
        ("bad 19", "row 18"),
        ("bad 20", "row 19"),
        ("bad", "… 5 more"),
        ("gpus", "–"),
    ]
    assert printable("a\nb\tü\x1b") == "a\nb\tü\\x1b"


def test_what_does_not_fit_into_the_page_is_said(table: PolicyTable, monkeypatch):
    monkeypatch.setattr(report, "LIMIT", 9_000)
    long = replace(table, comparisons=table.comparisons * 5)
    html = build_report(Report("t", policies=long))
    (kept,) = re.findall(
        r"Of evaluation (\d+) of 40 rows are in this\s+page, drawn by chance; (\d+) are left out", html
    )
    rows = json.loads(Page(html).scripts[0])["sets"][0]["rows"]
    assert (len(rows), 40 - len(rows)) == (int(kept[0]), int(kept[1])) and 0 < len(rows) < 40


def test_commands_of_evaluation_and_runs_each_once(table: PolicyTable, tmp_path: Path):
    runs = []
    for name, line in (("a", "assent ppo --x"), ("b", "assent ppo --x"), ("c", "assent demo"), ("d", 3)):
        run = read_run(write_run(tmp_path / name, steps(3)))
        runs.append(replace(run, environment={"command_line": line}))
    told = replace(table, command="assent demo")
    html = build_report(Report("t", policies=told, runs=tuple(runs), folder=Path("evals/my first")))
    commands = re.findall(r"<pre tabindex=\"0\"><code>(.*?)</code>", html)
    assert commands == ["assent demo --out &#39;evals/my first-again&#39;", "assent ppo --x"]


def test_a_gain_that_does_not_outlive_holms_correction_says_so(table: PolicyTable):
    ppo = table.policies[1]
    unsure = {key: replace(one, p_holm=0.08) for key, one in ppo.differences.items()}
    page = Page(
        build_report(
            Report("t", policies=replace(table, policies=(table.policies[0], replace(ppo, differences=unsure))))
        )
    )
    assert "Corrected for all tests of the table (Holm) it is not beyond chance: p = 0.08." in " ".join(
        page.text.split()
    )


def test_of_several_evaluations_the_first_is_shown_and_the_others_are_counted(table: PolicyTable, tmp_path: Path):
    for name in ("one", "two"):
        table.save(tmp_path / name / "evaluation.json")
    out = tmp_path / "r.html"
    write_report(ReportConfig((str(tmp_path / "one"), str(tmp_path / "two")), str(out)))
    assert f"Of 2 evaluations that of {tmp_path / 'one'} is shown." in Page(out.read_text()).text


def test_without_verdicts_or_others_there_is_no_verdict():
    prompts = [(Message("user", "?"),)] * 3
    alone = Evaluated(Answers("sft", known(prompts), np.arange(3), ("a", "b", "c")))
    text = " ".join(
        Page(build_report(Report("t", policies=evaluate_policies([alone], prompts, "sft").table))).text.split()
    )
    assert (
        "One policy alone: there is nothing to compare it with." in text
        and "How well does sft answer 3 prompts?" in text
    )
    both = [alone, replace(alone, answers=replace(alone.answers, policy="ppo"))]
    text = " ".join(
        Page(build_report(Report("t", policies=evaluate_policies(both, prompts, "sft").table))).text.split()
    )
    assert "Nothing says which answers are better" in text and "3 prompts are too few: below 30" in text
