"""A sweep's scores beside the paper's figures: Markdown, HTML, LaTeX and a plot, a pure function of files.

"Within noise" says whether the paper's figure lies in the interval of ours, where the runs are the paper's: its data
set, and nothing changed that decides what is learnt. It is the interval of the mean over seeds
(Student's t, 95 %); of one seed that of its studies, where scores.json has one. It knows nothing of the noise in the
paper's own figure, of which papers print no interval.
"""

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import count
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Required

from jinja2 import Environment
from matplotlib.figure import Figure
from pydantic import ConfigDict
from scipy import stats
from typing_extensions import TypedDict

from r2kg.config.protocol import protocol_named
from r2kg.rundir import read_json, saved_run
from r2kg.tracking import track_group
from shards.errors import DataError
from shards.tars.place import write_atomic
from tune.plan import NOTE, PLAN, Plan, decoding_key, error_of, read_note
from tune.rows import IDLE, Table

HEADS = ("row", "paper", "ours", "within noise?", "floor: one answer for all")
TINY = "Tiny: drawn films and small sizes, which show that the way works. The paper's figures are of other films."
PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{{ title }}</title>
<style>body { font: 15px/1.5 sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 0 0 1.5rem } td, th { border: 1px solid #bbb; padding: .25rem .6rem }
td:nth-child(n+2) { text-align: right } img { max-width: 100% }</style>
<h1>{{ title }}</h1>{% for line in words %}<p>{{ line }}</p>{% endfor %}
<img alt="Our means with their intervals, the paper's figures and the floor" src="data:image/png;base64,{{ plot }}">
{% for metric, lines in sections.items() %}<h2>{{ metric }}</h2>
<table><tr>{% for head in heads %}<th>{{ head }}</th>{% endfor %}</tr>
{% for line in lines %}<tr>{% for cell in line.cells %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table>
{% endfor %}</html>
"""
LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "γ": r"$\gamma$",
    "–": "--",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}
MARKDOWN = {"|": r"\|", "&": "&amp;", "<": "&lt;", ">": "&gt;", "[": r"\[", "`": r"\`", "*": r"\*", "_": r"\_"}


Numbers = dict[str, float | None]


class Scored(TypedDict, total=False):
    """What is used of a protocol in scores.json."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    score: Required[Numbers]
    floor: Numbers | None
    intervals: dict[str, tuple[float, float] | None]
    """Of one run, over its studies; metric → its ends."""


class Scores(TypedDict):
    """What is used of scores.json."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    protocols: dict[str, Scored]


@dataclass(frozen=True)
class Line:
    """A row under one metric."""

    name: str
    paper: float | None
    ours: float | None
    low: float | None
    high: float | None
    floor: float | None
    cells: tuple[str, ...]
    """As they are printed, under `HEADS`."""


@dataclass(frozen=True)
class Written:
    """What `write_table` wrote."""

    files: tuple[Path, ...]
    """Markdown, HTML, LaTeX, plot."""
    markdown: str
    note: str
    """What MLflow has of it; empty: nobody was asked."""
    lacking: tuple[str, ...]
    """Rows of which a seed failed or is missing."""


def write_table(table: Table, directory: Path, track: bool = True) -> Written:
    """Write a sweep's table into its directory, and keep it with the sweep's run in MLflow.

    Raises:
        DataError: there is no sweep in the directory, or a damaged one.
    """
    try:
        plan: Plan = read_json(directory / PLAN, Plan)
    except ValueError as error:
        raise DataError(f"no sweep at {directory} ({error}): run `r2kg sweep {table.name}` first") from None
    seeds, whys, run = scores_of(plan, directory), dict[str, list[str]](), None
    for line in plan["trials"]:
        why = " ".join(error_of(read_note(directory.parent / Path(line["run"]).name), line["decoding"]).split())
        whys.setdefault(line["row"], []).extend([f"seed {line['seed']}: {why}"] if why else [])
        if track and not why and run is None:
            run = saved_run(directory.parent / Path(line["run"]).name)
    sections = sections_of(table, plan, seeds, whys)
    plot = drawn(sections)
    words = [table.shows[:1].upper() + table.shows[1:], *([TINY] if plan["tiny"] else []), *words_of(table, plan)]
    words += [f"{row}: {why[:500]}" for row, each in whys.items() for why in each]
    page = Environment(autoescape=True).from_string(PAGE)
    encoded = base64.b64encode(plot).decode()
    markdown = as_markdown(directory.name, words, sections)
    texts = {
        "table.md": markdown.encode(),
        "table.html": page.render(
            title=directory.name, words=words, sections=sections, heads=HEADS, plot=encoded
        ).encode(),
        "table.tex": as_latex(words, sections).encode(),
        "table.png": plot,
    }
    for name, content in texts.items():
        write_atomic(directory / name, content)
    files, note = tuple(directory / name for name in texts), ""
    if run:
        numbers = {
            f"{metric}/{row}": line.ours
            for metric, lines in sections.items()
            for row, line in zip(map(plain, (line.name for line in lines)), lines, strict=True)
            if line.ours is not None
        }
        note = track_group(run.change({"tracking.parent": directory.name}), files, numbers)
    return Written(files, markdown, note, tuple(row for row, each in whys.items() if each))


def plain(name: str) -> str:
    """A name as MLflow takes it in a metric's."""
    return "".join(character if character.isalnum() or character in "_-. " else "_" for character in name)


def words_of(table: Table, plan: Plan) -> list[str]:
    """Sentences that say what a page is of: films, protocols, and what is not as in the recipes."""
    setting, names = plan["setting"], sorted({line["protocol"] for line in plan["trials"]})
    protocols = ", ".join(f"{name} ({protocol_named(name).hash[:8]})" for name in names)
    told = [f"{name}={json.dumps(value)}" for name, value in changes_of(table, plan).items()]
    return [
        f"Films: {setting.get('source', 'unknown')}, shards {setting.get('shards', '')!s:.12}. Protocol: {protocols}.",
        f"Changes of the recipes beside the rows' own: {', '.join(told) or 'none'}.",
    ]


def changes_of(table: Table, plan: Plan) -> dict[str, Any]:
    """The table's changes of all rows, and those of the command line; without fields that decide nothing (`IDLE`)."""
    asked, idle = plan["setting"].get("changes"), tuple(f"{name}." for name in IDLE)
    changes = {**(table.tiny if plan["tiny"] else table.changes), **(asked if isinstance(asked, dict) else {})}
    return {name: value for name, value in changes.items() if not f"{name}.".startswith(idle)}


def unlike(table: Table, plan: Plan) -> str:
    """Why our figures cannot be held against the paper's; "" where they can."""
    if plan["tiny"] or (table.source and plan["setting"].get("source", table.source) != table.source):
        return "other films"
    places = ("data.sides", "data.features")
    return "other settings" * any(
        not name.startswith(places) and not name.endswith(".place") for name in changes_of(table, plan)
    )


def scores_of(plan: Plan, directory: Path) -> dict[str, list[dict[str, Any]]]:
    """Row → what scores.json says under the row's protocol, of each seed that has one, in the order of seeds."""
    found = dict[str, list[dict[str, Any]]]()
    for line in sorted(plan["trials"], key=lambda line: line["seed"]):
        home = directory.parent / Path(line["run"]).name
        note = read_note(home)
        if note and (where := note["scores"].get(decoding_key(line["decoding"]))):
            try:
                found.setdefault(line["row"], []).append(read_json(home / where, Scores)["protocols"][line["protocol"]])
            except (ValueError, KeyError) as error:
                raise DataError(
                    f"{home / where} has no scores under {line['protocol']} ({error}): delete {home / NOTE}, and run "
                    "the sweep again"
                ) from None
    return found


def sections_of(
    table: Table, plan: Plan, seeds: dict[str, list[dict[str, Any]]], whys: dict[str, list[str]]
) -> dict[str, list[Line]]:
    """Metric → its rows: those of the table that were asked for, then the systems that are not trained here."""
    figures, asked = table.figures, {line["row"] for line in plan["trials"]}
    rows, other = [row.name for row in table.rows if row.name in asked], unlike(table, plan)
    sections = {}
    for metric in table.metrics:
        lines = [line_of(row, metric, table, seeds.get(row, []), other, whys.get(row, [])) for row in rows]
        for system in table.others:
            value = figures[system].get(metric)
            cells = (system, number(value), "not trained here", "", "")
            lines.append(Line(system, value, None, None, None, None, cells))
        sections[metric] = lines
    return sections


def line_of(
    row: str, metric: str, table: Table, scores: Sequence[dict[str, Any]], other: str, whys: Sequence[str]
) -> Line:
    """A row under a metric, with the interval that its seeds give; `other` as `unlike` says it."""
    paper = table.figures.get(row, {}).get(metric)
    told = [one for one in scores if one["score"].get(metric) is not None]
    values = [one["score"][metric] for one in told]
    floors = [value for one in told if (value := (one.get("floor") or {}).get(metric)) is not None]
    ours, floor = mean(values) if values else None, mean(floors) if floors else None
    low = high = None
    if len(values) > 1:
        half = float(stats.t.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5
        low, high = mean(values) - half, mean(values) + half
    elif values and (pair := (told[0].get("intervals") or {}).get(metric)):
        low, high = map(float, pair)
    n = f" ({len(values)} seed{'s' * (len(values) != 1)})"
    if ours is None:
        said = "failed or missing" if whys or not scores else "not available"
    elif low is None or high is None:
        said = number(ours) + n
    elif len(values) > 1:
        said = f"{ours:.3f} ± {high - ours:.3f}{n}"
    else:
        said = f"{ours:.3f} ({low:.3f}–{high:.3f} over studies){n}"
    if ours is not None and whys:
        said += f", {len(whys)} failed or missing"
    noise = "no interval"
    if ours is None or paper is None:
        noise = ""
    elif other:
        noise = other
    elif len(values) == 2:  # 12.7 standard errors: an interval that holds nearly any figure
        noise = "too few seeds"
    elif low is not None and high is not None:
        noise = "yes" if low <= paper <= high else "no"
    return Line(row, paper, ours, low, high, floor, (row, number(paper), said, noise, number(floor)))


def number(value: float | None) -> str:
    """Three decimals; empty for what is not there."""
    return "" if value is None else f"{value:.3f}"


def as_markdown(title: str, words: Sequence[str], sections: dict[str, list[Line]]) -> str:
    """The tables, one under the other."""
    say = escaper(MARKDOWN)
    parts = [f"# {say(title)}", *map(say, words)]
    for metric, lines in sections.items():
        rows = [f"| {' | '.join(map(say, line.cells))} |" for line in lines]
        parts += [
            f"## {say(metric)}",
            "\n".join([f"| {' | '.join(HEADS)} |", f"|---|{'---:|' * (len(HEADS) - 1)}", *rows]),
        ]
    return "\n\n".join(parts) + "\n"


def as_latex(words: Sequence[str], sections: dict[str, list[Line]]) -> str:
    """A tabular for each metric, to be included; needs no package."""
    say = escaper(LATEX)
    parts = [f"% {say(line)}" for line in words]
    for metric, lines in sections.items():
        rows = [" & ".join(map(say, line.cells)) + r" \\" for line in lines]
        head = " & ".join(map(say, HEADS)) + r" \\"
        columns = f"l{'r' * (len(HEADS) - 1)}"
        parts += [
            rf"\paragraph{{{say(metric)}}}",
            "\n".join([rf"\begin{{tabular}}{{{columns}}}", r"\hline", head, r"\hline", *rows, r"\hline"]),
            r"\end{tabular}",
            "",
        ]
    return "\n".join(parts)


def escaper(signs: dict[str, str]) -> Callable[[str], str]:
    """A function that writes a text on one line, each of the signs as given."""
    return lambda text: "".join(signs.get(sign, sign) for sign in " ".join(text.split()))


def drawn(sections: dict[str, list[Line]]) -> bytes:
    """A PNG with a panel for each metric: our means with their intervals, the papers' figures, the floor."""
    columns = min(4, len(sections))
    height = -(-len(sections) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.6 * height), layout="constrained")
    for at, (metric, lines) in zip(count(1), sections.items(), strict=False):
        panel = figure.add_subplot(height, columns, at)
        places = range(len(lines))
        for place, line in zip(places, lines, strict=True):
            if line.ours is not None:
                low, high = line.low, line.high
                spread = None if low is None or high is None else [[line.ours - low], [high - line.ours]]
                panel.bar(place, line.ours, color="#6b8fb8", yerr=spread, capsize=4)
            if line.paper is not None:
                panel.plot(place, line.paper, "D", color="#b5482f")
            if line.floor is not None:
                panel.hlines(line.floor, place - 0.4, place + 0.4, colors="#444444", linestyles="dashed")
        panel.set_title(metric, parse_math=False)
        panel.set_xticks(list(places), [line.name[:40] for line in lines], rotation=40, ha="right", parse_math=False)
    figure.suptitle("bars: ours with interval   diamonds: the paper   dashes: floor", fontsize=10)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
