"""predictions.jsonl → cases.html: one file with films, both reports and their findings, study by study.

It holds no address of anything: styles, script and pictures are in it, and its policy forbids the browser to ask for
more. Nothing is computed by a model.
"""

import base64
import hashlib
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from r2kg.config.protocol import METRICS, PROTOCOLS, Task, protocol_named
from r2kg.graph.extract.rules import Rules
from r2kg.graph.schema import Annotation
from r2kg.rundir import directory_of, read_json, saved_run, withheld
from r2kg.scoring.evaluate import context_beside, read_predictions
from r2kg.scoring.metrics.nlg import rouge_l
from r2kg.scoring.pages import PICTURES
from r2kg.scoring.pages.films import Budget, Films
from r2kg.scoring.pages.marks import MAX_READ, Compared, Mention, compared, mentions_of, pieces_of, shown
from shards.clean import VERSIONS
from shards.errors import ConfigError
from shards.privacy import fence, terms_of
from shards.study import KEY
from shards.tars.place import write_atomic

NAME = "cases.html"
MAX_PAGE_BYTES = 100_000_000
"""Of the whole page; a browser holds a few times as much."""
SCORES = {"finding_f1": "F1 of names", "rouge_l": "ROUGE-L", "triple_f1": "triple F1"}
"""Scores of a study, 0..1, and what a page calls them; the first one chooses the studies that are shown."""
COMPARED_UNDER: dict[Task, str] = {"report": "full-text", "triples": "triples", "labels": "labels"}
"""Task → the protocol whose texts ROUGE-L of a study compares: the one that cuts nothing."""
LABELS = {1: "present", 0: "absent", -1: "uncertain"}
EVIDENCE_ROWS, EVIDENCE_TEXT, EVIDENCE_DEPTH = 60, 300, 6
"""Rows of a study's table of evidence, characters of a cell, and levels of lists and names that are gone down."""
FILTER_NAMES = 500
"""Findings to filter by, the most frequent ones; a system that writes triples may have invented thousands."""


class CasePage(NamedTuple):
    """A page that was written."""

    path: Path
    credentialed: bool
    """It shows patients, and stays where it is."""
    notes: list[str]
    """What it does not show, and why."""


class Case(NamedTuple):
    """A study with what its two texts say."""

    line: dict[str, Any]
    """Of predictions.jsonl."""
    given: list[Mention]
    said: list[Mention]
    findings: Compared
    triples: Compared
    """By names: "head · relation · tail"."""
    scores: dict[str, float]
    """By the keys of `SCORES`, those that the task has."""


def write_cases(
    predictions: Path,
    shards: str = "",
    out: Path | None = None,
    most: int = 200,
    seed: int = 0,
    allow_text: bool = False,
) -> CasePage:
    """Write the page of a predictions file, beside it or into `out`.

    Args:
        shards: of the predictions; default: the run's own. Where those are not there any more, no films are shown.
        out: directory of cases.html.
        most: studies that are shown: of more, a third are the worst, a third the best, the others a sample by `seed`.
        allow_text: credentialed data may be written outside the run; a run's own privacy.allow_text does too.

    Raises:
        ConfigError: `out` lies outside the run's directory, and the data is credentialed; a page of too many bytes.
        DataError: no predictions; `shards` are not those of the predictions.
    """
    lines, context = read_predictions(predictions), context_beside(predictions)
    directory = directory_of(predictions)
    run = saved_run(directory) if directory else None
    films = Films.of(shards or (run.data.shards if run else ""), context, named=bool(shards))
    licences = [context.get("licence") or "unknown", *([films.licence] if films.licence else [])]
    licence = next((one for one in licences if terms_of(one).credentialed), licences[0])
    credentialed = terms_of(licence).credentialed
    home, out = (directory or predictions.resolve().parent).resolve(), (out or predictions.parent).resolve()
    allow_text = allow_text or bool(run and run.privacy.allow_text)
    if credentialed and not (out.is_relative_to(home) or allow_text):
        raise ConfigError(
            f"the page shows films and reports of credentialed data ({licence}) and is written below {home} alone, not "
            f"into {out}: leave --out out, or say privacy.allow_text=true where that place may hold the data"
        )
    with fence(licence, allow_text):
        task: Task = context.get("task") or "report"
        cases = read_cases(lines, task, context.get("cleaning") or "raw")
        picked, budget = chosen(cases, most, seed), Budget()
        notes = [] if films.why == "" else [f"No films are shown: {films.why}."]
        if len(picked) < len(cases):
            notes.append(
                f"{len(picked)} of {len(cases)} studies are shown: a third of them the worst by "
                f"{SCORES['finding_f1']}, a third the best, the others a sample by seed {seed}. --most N shows more."
            )
        rows = [row_of(case, why, task, films, predictions, budget) for case, why in picked]
        notes += budget.notes
        page = render(rows, head_of(predictions, context, task, len(cases), licence), notes)
    if len(page) > MAX_PAGE_BYTES:
        raise ConfigError(
            f"the page would have {len(page):,} bytes, at most {MAX_PAGE_BYTES:,}: ask for fewer by --most"
        )
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / NAME, page)
    return CasePage(out / NAME, credentialed, notes)


def read_cases(lines: Sequence[dict[str, Any]], task: Task, cleaning: str) -> list[Case]:
    """Findings, triples and scores of every prediction line.

    Args:
        cleaning: that of the shards, by which ROUGE-L's protocol cleans predictions.
    """
    read = dict[str, Annotation]()
    if task == "report":
        texts = {line[side][:MAX_READ] for line in lines for side in ("reference", "prediction")}
        read = dict(zip(texts, Rules().annotate([*texts]), strict=True))
    protocol, cases = protocol_named(COMPARED_UNDER[task]), list[Case]()
    cleaning = cleaning if cleaning in VERSIONS else "raw"
    pairs = [(protocol.reference(line), protocol.hypothesis(line, cleaning)) for line in lines]
    alike = rouge_l([given for given, _ in pairs], [said for _, said in pairs])
    for line, rouge in zip(lines, alike, strict=True):
        sides, said_triples = list[list[Mention]](), list[list[Mention]]()
        for side in ("reference", "prediction"):
            text = line[side][:MAX_READ]
            annotation, broken = read.get(text, Annotation()), side == "prediction" and line.get("truncated") is True
            sides.append(mentions_of(task, text, annotation, broken))
            names = [" · ".join(triple) for triple in annotation.triples("present", "uncertain")]
            said_triples.append([Mention(0, 0, name, "present") for name in names])
        findings, triples = compared(sides[0], sides[1]), compared(said_triples[0], said_triples[1])
        scores = {"finding_f1": findings.f1}
        if task != "labels":
            scores |= {"rouge_l": float(rouge), "triple_f1": triples.f1 if task == "report" else findings.f1}
        cases.append(Case(line, sides[0], sides[1], findings, triples, scores))
    return cases


def chosen(cases: Sequence[Case], most: int, seed: int) -> list[tuple[Case, str]]:
    """The cases that are shown, in the order of the file, and why each is: "" where all are."""
    if len(cases) <= most:
        return [(case, "") for case in cases]
    order = sorted(range(len(cases)), key=lambda at: (*cases[at].scores.values(), cases[at].line["id"]))
    ends = most // 3
    worst, best, rest = order[:ends], order[len(order) - ends :], order[ends : len(order) - ends]
    why = dict.fromkeys(worst, "worst") | dict.fromkeys(best, "best")
    why |= dict.fromkeys(random.Random(seed).sample(rest, most - 2 * ends), "sample")
    return [(cases[at], why[at]) for at in sorted(why)]


def row_of(case: Case, why: str, task: Task, films: Films, predictions: Path, budget: Budget) -> dict[str, Any]:
    """What the template shows of a study; its pictures are taken from the budget."""
    line, key = case.line, case.line.get("key")
    key = key if isinstance(key, str) and KEY.fullmatch(key) else ""
    pictures, trouble = films.of_study(key, str(line.get("split")), budget)
    attention, name = "", f"{PICTURES}/{key}.png"
    if key and (file := predictions.with_name(PICTURES) / f"{key}.png").is_file():
        attention = budget.picture(file)
    read = [(kind, getattr(case.triples, kind)) for kind in ("hit", "missed", "invented")]
    told: dict[str, Any] = dict(extra) if isinstance(extra := line.get("extra"), dict) else {}
    if isinstance(labels := line.get("labels"), dict):
        told["labels of the data"] = [[name, LABELS[value]] for name, value in labels.items() if value in (1, 0, -1)]
    if task == "report" and isinstance(triples := line.get("triples"), list):
        told["triples of the data"] = [[" · ".join(map(str, one))] for one in triples if isinstance(one, list)]
    rows, left = evidence_rows({what: value for what, value in told.items() if value})
    return {
        "id": line["id"],
        "why": why,
        "films": pictures,
        "trouble": trouble,
        "scores": {SCORES[score]: value for score, value in case.scores.items()},
        "data": {score.replace("_", "-"): f"{value:.6f}" for score, value in case.scores.items()},
        "findings": case.findings,
        "reference": pieces_of(line["reference"], case.given, case.said, True),
        "prediction": pieces_of(line["prediction"], case.said, case.given, False),
        "cut": {side: max(0, len(line[side]) - MAX_READ) for side in ("reference", "prediction")},
        "truncated": line.get("truncated") is True,
        "triples": read if any(names for _, names in read) else [],
        "evidence": rows,
        "evidence_left": left,
        "attention": attention,
        "attention_file": name if not attention and key and file.is_file() else "",
    }


def evidence_rows(told: Mapping[str, Any]) -> tuple[list[dict[str, Any]], int]:
    """Rows of a table of whatever a system gave beside its answer (`extra`), and how many more there are.

    Every item of a list is a row: its path, its first text as name, its first number as value where that is a share
    (0..1), and what else it holds.
    """
    rows, left = list[dict[str, Any]](), 0
    stack: list[tuple[list[str], Any]] = [([], told)]
    while stack:
        path, item = stack.pop()
        nested = isinstance(item, list) and all(isinstance(one, list | dict) for one in item)
        if len(path) < EVIDENCE_DEPTH and (nested or isinstance(item, dict)):
            below = [("", one) for one in item] if nested else item.items()
            stack.extend(reversed([([*path, str(name)], value) for name, value in below]))
        elif len(rows) == EVIDENCE_ROWS:
            left += 1
        else:
            cells, path = item if isinstance(item, list) else [item], [name for name in path if name]
            name = next((cell for cell in cells if isinstance(cell, str)), None)
            share = next((cell for cell in cells if isinstance(cell, float) and 0 <= cell <= 1), None)
            more = [cell for cell in cells if cell is not name and cell is not share]
            if name is None and len(path) > 1:
                name = path.pop()
            words = {"of": " › ".join(path), "name": name or "", "more": " · ".join(map(_brief, more))}
            rows.append({what: text[:EVIDENCE_TEXT] for what, text in words.items()} | {"share": share})
    return rows, left


def head_of(predictions: Path, context: Mapping[str, Any], task: Task, studies: int, licence: str) -> dict[str, Any]:
    """What the page says of its predictions as a whole: where they are from, their scores beside the floors."""
    facts = {"run": context.get("run"), "split": context.get("split"), "checkpoint": context.get("checkpoint")}
    protocol, tables, trouble = PROTOCOLS[COMPARED_UNDER[task]], list[dict[str, Any]](), "there is no scores.json"
    if (beside := predictions.with_name("scores.json")).is_file():
        try:
            scores = read_json(beside)
            if scores["predictions"]["sha256"] != hashlib.sha256(predictions.read_bytes()).hexdigest():
                raise ValueError("scores.json is of other predictions")
            for name, result in scores["protocols"].items():
                names = [metric for metric in METRICS[task] if metric in result["score"]]
                by_system = [
                    (told, ["–" if (value := (result[system] or {}).get(m)) is None else f"{value:.3f}" for m in names])
                    for system, told in (("score", "ours"), ("floor", "floor: one answer for all"),
                                         ("shuffled", "shuffled: other films"))
                ]  # fmt: skip
                tables.append({"name": f"{name} {result['hash'][:8]}", "metrics": names, "systems": by_system})
            trouble = ""
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            tables, trouble = [], str(error) if type(error) is ValueError else "scores.json is damaged"
    return {
        "facts": {name: str(value) for name, value in facts.items() if value},
        "studies": studies,
        "task": task,
        "rouge": "" if task == "labels" else f"{protocol.name} {protocol.hash[:8]}",
        "tables": tables,
        "unscored": trouble and f"{trouble}; r2kg evaluate writes them",
        "withheld": " and ".join(map(str, withheld(predictions))),
        "licence": licence,
        "terms": terms_of(licence).summary,
        "credentialed": terms_of(licence).credentialed,
    }


def render(rows: Sequence[Mapping[str, Any]], head: Mapping[str, Any], notes: Sequence[str]) -> bytes:
    """The page as UTF-8. Whatever comes from files is escaped; the policy lets run the one script that is ours."""
    here = Path(__file__).parent
    css, js = ((here / f"cases.{kind}").read_text("utf-8") for kind in ("css", "js"))
    named = Counter(name for row in rows for side in row["findings"] for name in side)
    frequent = sorted(sorted(named, key=lambda name: (-named[name], name))[:FILTER_NAMES])
    sources = {
        kind: "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for kind, text in (("style", css), ("script", js))
    }
    environment = Environment(
        loader=FileSystemLoader(here), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["shown"] = shown
    template = environment.get_template("cases.html")
    scores = [name for name in SCORES if any(SCORES[name] in row["scores"] for row in rows)]
    return template.render(
        rows=rows, head=head, notes=notes, css=Markup(css), js=Markup(js), sources=sources,
        names=[(name, named[name]) for name in frequent], max_read=MAX_READ,
        sortable={name.replace("_", "-"): SCORES[name] for name in scores},
    ).encode()  # fmt: skip


def _brief(cell: Any) -> str:
    if isinstance(cell, list):
        return ", ".join("…" if isinstance(one, list | dict) else str(one)[:EVIDENCE_TEXT] for one in cell[:20])
    return "…" if isinstance(cell, dict) else f"{cell:.3g}" if isinstance(cell, float) else str(cell)
