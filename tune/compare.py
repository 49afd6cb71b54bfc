"""Runs compared in pairs on the same studies: differences with intervals, and p-values corrected for their number."""

import glob
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from r2kg.config.needs import CARD
from r2kg.config.protocol import METRICS, Protocol, metric_named, protocol_named, protocols_of, refuse_unfit
from r2kg.config.run import Run, local_fields
from r2kg.rundir import directory_of, newest_predictions, read_json, saved_run
from r2kg.scoring.evaluate import context_beside, protocols_beside, read_predictions, whole_references
from r2kg.scoring.metrics.labels import score_labels
from r2kg.scoring.metrics.meteor import Meteor
from r2kg.scoring.metrics.resample import (
    DRAWS,
    LEVEL,
    SEED,
    SWAPS,
    drawn,
    half_width,
    holm,
    interval,
    p_of_swaps,
    patients_of,
)
from r2kg.scoring.metrics.samples import Samples, sample_labels, sample_reports, sample_triples
from r2kg.tracking import Tracker, split_named, tracking_note
from shards.errors import ConfigError, DataError
from shards.tars.place import write_atomic
from tune.rows import STAGES, begun_with, field_of

DECIMALS = 6


@dataclass(frozen=True)
class Member:
    """One predictions file and the run that wrote it."""

    path: Path
    name: str
    seed: int | None
    """`train.seed` of the run; None for a file outside a run."""
    like: str
    """All else that the run is: equal for runs that differ in seed and name alone."""

    @property
    def told(self) -> dict[str, Any]:
        """What was written, by content: SHA-256 of the file; checkpoint, decoding and split as context.json says."""
        context, content = context_beside(self.path), self.path.read_bytes()
        facts = {name: context.get(name) for name in ("checkpoint", "checkpoint_sha256", "decoding", "split")}
        return {"sha256": hashlib.sha256(content).hexdigest(), **facts}

    @classmethod
    def of(cls, place: Path) -> "Member":
        """The newest predictions of a run, or a predictions file; DataError where there is none."""
        path = newest_predictions(place)
        if not (directory := directory_of(path)):
            return cls(path, path.parent.name or path.name, None, str(path.resolve()))
        run, told = saved_run(directory), context_beside(path).get("decoding")
        return cls(path, run.name, run.train.seed, json.dumps([like(run), told], sort_keys=True))


def like(run: Run, deep: int = STAGES) -> dict[str, Any]:
    """All that a run is but for its seed, name and places, as JSON: of what was made for it, what decides its content,
    and of the run that it begins with the same again, where that is there.
    """
    fields = run.model_dump(mode="json", exclude={"name": True, "root": True, "tracking": True, "protocols": True})
    fields["train"].pop("seed")
    made = dict[str, Any]()
    for name, value in local_fields(run):
        if value and (Path(value) / CARD).is_file():
            with suppress(ValueError, LookupError, TypeError):  # a damaged one is as good as its place
                made[name] = {**read_json(Path(value) / CARD)["settings"], "seed": None}
    if deep and (begun := begun_with(run)):
        made["train.init_from"] = [like(begun[0], deep - 1), begun[1]]
    for name, what in made.items():
        node, last = field_of(fields, name)
        node[last] = what
    return fields


def grouped(words: Sequence[str], each: bool = False) -> dict[str, list[Member]]:
    """Name → the runs that stand together because they differ in `train.seed` alone, in the order given.

    Args:
        words: runs, predictions files, or patterns such as runs/base-* that no shell has resolved.
        each: every run stands by itself.

    Raises:
        ConfigError: a pattern without a match; fewer than two groups.
        DataError: no predictions.
    """
    groups = list[list[Member]]()
    for word in words:
        places = [word]
        if glob.has_magic(word) and not os.path.exists(word):  # runs and predictions, not what lies beside them
            places = sorted(one for one in glob.glob(word) if os.path.isdir(one) or one.endswith(".jsonl"))
        if not places:
            raise ConfigError(f"{word} matches no run: give directories that `r2kg train` printed")
        for place in places:
            one = Member.of(Path(place))
            same = (
                group
                for group in groups
                if not each and group[0].like == one.like and one.seed not in {other.seed for other in group}
            )
            if (group := next(same, None)) is not None:
                group.append(one)
            else:
                groups.append([one])
    if len(groups) < 2:
        many = len(groups[0]) > 1
        told = f"all {len(groups[0])} runs differ in train.seed alone" if many else "one run is named"
        raise ConfigError(f"{told}, and two are needed to compare: name another{', or say --each' if many else ''}")
    named = dict[str, list[Member]]()
    for group in groups:
        shared = re.sub(r"[-_.]*(seed)?[-_.]*\d*$", "", re.sub(r"(-seed\d+)-[0-9a-f]{8}$", r"\1", group[0].name))
        name = group[0].name if len(group) == 1 else shared or group[0].name
        name = f"{name} {group[0].path.resolve().parent.name}" if name in named else name
        named[name if name not in named else f"{name} #{len(named) + 1}"] = group
    return named


def compare(
    words: Sequence[str], protocols: Sequence[str] = (), metrics: Sequence[str] = (), each: bool = False
) -> dict[str, Any]:
    """Every further group of runs beside the first, under each protocol: a pure function of their files.

    Values are means over the runs of a group. A difference has a paired interval (the same drawn patients for both)
    and the p of paired approximate randomisation; of groups of unequal size there is no p. p is corrected by Holm over
    all comparisons in the result.

    Args:
        protocols: default: the first of the first run's.
        metrics: those to compare, as `metric_named` reads them; none: all of the task that can be computed.

    Raises:
        ConfigError: fewer than two groups, a protocol or a metric that is unknown or of another task.
        DataError: other studies or references than the first run's, with their number.
    """
    groups = grouped(words, each)
    first = next(iter(groups.values()))[0]
    names = list(protocols) or list(protocols_beside(first.path)[:1])
    task = context_beside(first.path).get("task") or protocol_named(names[0]).task
    metrics = [metric_named(metric, task, "--metric") for metric in metrics]
    used = [protocol_named(name) for name in protocols_of(names, task)]
    asked = not metrics or "meteor" in metrics  # a Java process, and most of the time
    with Meteor() if asked else nullcontext() as meteor:
        found = {protocol.name: _under(protocol, groups, metrics, meteor) for protocol in used}
    cells = [cell for one in found.values() for group in one["compared"] for cell in group["difference"].values()]
    tested = [cell for cell in cells if cell["p"] is not None]
    for cell, p in zip(tested, holm([cell["p"] for cell in tested]), strict=True):
        cell["p_holm"] = round(p, DECIMALS)
    how = {"draws": DRAWS, "swaps": SWAPS, "level": LEVEL, "seed": SEED, "correction": "holm"}
    return {"baseline": next(iter(groups)), "how": how | {"comparisons": len(tested)}, "protocols": found}


def _under(
    protocol: Protocol, groups: Mapping[str, Sequence[Member]], metrics: Sequence[str], meteor: Meteor | None
) -> dict[str, Any]:
    """What one protocol says of all groups."""
    members = [(name, at, one) for name, group in groups.items() for at, one in enumerate(group)]
    wanted, order, patients = dict[str, str](), list[str](), list[dict[str, Any]]()
    systems, unavailable, labels = dict[str, Samples](), dict[str, str](), tuple[str, ...]()
    for name, at, one in members:
        context, read = context_beside(one.path), {line["id"]: line for line in read_predictions(one.path)}
        if context.get("cleaning"):
            refuse_unfit([protocol], context["cleaning"])
        order = order or list(read)
        words = None if context.get("vocabulary") is None else frozenset(context["vocabulary"])
        references = {key: protocol.reference(line, words) for key, line in read.items()}
        wanted = wanted or references
        first = f"{members[0][2].path}"
        if other := len(references.keys() ^ wanted.keys()):
            raise DataError(
                f"{one.path} and {first} differ in {other} studies: compare predictions of one split of the same shards"
            )
        if other := sum(references[key] != wanted[key] for key in order):
            raise DataError(
                f"{one.path} and {first} have other references in {other} of {len(order)} studies under "
                f"{protocol.name}: compare predictions of the same shards, or give another --protocol"
            )
        lines = [read[key] for key in order]
        patients = patients if any(line.get("patient") for line in patients) else lines
        hypotheses = [protocol.hypothesis(line, context.get("cleaning") or "raw") for line in lines]
        if protocol.task == "report":
            told = [wanted[key] for key in order]
            whole = whole_references(protocol, lines, told)
            samples, reasons = sample_reports(told, hypotheses, whole, hypotheses, meteor)
            unavailable |= reasons if meteor else {}
        elif protocol.task == "triples":
            samples = sample_triples([wanted[key] for key in order], hypotheses)
        else:
            own = tuple(score_labels(lines, protocol.uncertain).by_label)
            labels = labels or own
            if {*own} != {*labels}:
                raise DataError(f"{one.path} scores {len(own)} labels and {first} {len(labels)}, not the same ones")
            samples = sample_labels(lines, protocol.uncertain, labels)
        systems[f"{name}\n{at}"] = samples
    together, by = patients_of(patients)
    if len(set(together.tolist())) < 2:
        raise DataError(f"{members[0][2].path} is of one of the {by}: intervals are drawn from two or more")
    draws, values = drawn(systems, together), {name: samples.values() for name, samples in systems.items()}
    keys = {name: [f"{name}\n{at}" for at in range(len(group))] for name, group in groups.items()}
    shown = [
        metric
        for metric in metrics or METRICS[protocol.task]
        if all(not np.isnan(own.get(metric, np.nan)) for own in values.values())
    ]
    unavailable |= {metric: "not all runs have it" for metric in metrics if metric not in {*shown, *unavailable}}
    entries = list[dict[str, Any]]()
    baseline, *others = groups
    for name in groups:
        entry: dict[str, Any] = {"name": name, "seeds": [one.seed for one in groups[name]]}
        entry["members"] = [{"run": one.name, **one.told} for one in groups[name]]
        runs = {metric: [values[key][metric] for key in keys[name]] for metric in shown}
        entry["values"] = {metric: round(float(np.mean(own)), DECIMALS) for metric, own in runs.items()}
        widths = {metric: half_width(own) for metric, own in runs.items()}
        entry["half_width"] = {metric: round(width, DECIMALS) for metric, width in widths.items() if width is not None}
        entries.append(entry)
    for entry, name in zip(entries[1:], others, strict=True):
        sides = [[systems[key] for key in keys[side]] for side in (name, baseline)]
        p = p_of_swaps(sides[0], sides[1], together) if len(sides[0]) == len(sides[1]) else {}
        if not p:
            unavailable[f"p of {name}"] = f"it has {len(sides[0])} runs and {baseline} {len(sides[1])}: give as many"
        entry["difference"] = {}
        for metric in shown:
            mean = [np.mean([draws[key][metric] for key in keys[side]], axis=0) for side in (name, baseline)]
            exact = [np.mean([values[key][metric] for key in keys[side]]) for side in (name, baseline)]
            ends = interval(mean[0] - mean[1])
            entry["difference"][metric] = {
                "value": round(float(exact[0] - exact[1]), DECIMALS),
                "interval": ends and [round(end, DECIMALS) for end in ends],
                "p": p.get(metric),
                "p_holm": None,
            }
    studies = {"n": len(order), "by": by, "drawn": int(together.max()) + 1}
    return {
        "hash": protocol.hash,
        **studies,
        "unavailable": unavailable,
        "baseline": entries[0],
        "compared": entries[1:],
    }


def comparison_table(result: Mapping[str, Any]) -> Table:
    """A row for every run and metric; the caption names what the intervals and p-values are."""
    how, said = result["how"], dict[str, None]()
    for name, one in result["protocols"].items():
        by = f"{one['drawn']} {one['by']}"
        why = ", as the lines name no patient" * (one["by"] == "studies")
        told = f"{how['level']:.0%} paired intervals, {how['draws']:,} draws of {by} of {one['n']} studies{why}"
        said[f"{name}: {told}"] = None
        said |= {f"{what}: {reason}": None for what, reason in sorted(one["unavailable"].items())}
    for one in result["protocols"].values():
        beside = {json.dumps(side["members"][0]["decoding"]) for side in (one["baseline"], *one["compared"])}
        if len(beside) > 1:
            said["not all were decoded alike: the result (--out) has the decoding of each"] = None
    said[f"p: paired approximate randomisation, {how['swaps']:,} swaps of the same"] = None
    said[f"p (Holm): corrected for all {how['comparisons']} comparisons shown"] = None
    sides = [side for one in result["protocols"].values() for side in (one["baseline"], *one["compared"])]
    if any(side["half_width"] for side in sides):
        said["±: 95 % interval of the mean over seeds (Student's t); differences are of means over seeds"] = None
    table = Table(title=f"beside {result['baseline']}", caption="\n".join(said))
    for column in ("protocol", "metric", "run", "baseline", "run's", "difference", "p", "p (Holm)"):
        table.add_column(column, justify="left" if column in ("protocol", "metric", "run") else "right")
    for name, one in result["protocols"].items():
        for group in one["compared"]:
            seeds = f" ({len(group['seeds'])} seeds)" if len(group["seeds"]) > 1 else ""
            for metric, cell in group["difference"].items():
                sides = [
                    f"{side['values'][metric]:.3f}"
                    + (f" ± {side['half_width'][metric]:.3f}" if metric in side["half_width"] else "")
                    for side in (one["baseline"], group)
                ]
                ends = cell["interval"]
                difference = f"{cell['value']:+.3f}" + (f" ({ends[0]:+.3f} to {ends[1]:+.3f})" if ends else "")
                p = ["–" if cell[kind] is None else f"{cell[kind]:.4f}" for kind in ("p", "p_holm")]
                table.add_row(f"{name} {one['hash'][:8]}", metric, group["name"] + seeds, *sides, difference, *p)
            table.add_section()
    return table


def track_comparison(words: Sequence[str], result: Mapping[str, Any], each: bool = False) -> list[str]:
    """Record differences with the runs that were compared: metrics SPLIT.PROTOCOL.above.BASELINE.METRIC, their ends and
    p, and the whole result as an artefact. Names of runs and numbers leave, no text and no study. Returns notes.
    """
    notes, baseline = list[str](), re.sub(r"[^\w-]", "-", result["baseline"])
    for name, group in [*grouped(words, each).items()][1:]:
        for one in group:
            if not (directory := directory_of(one.path)):
                continue
            run, context = saved_run(directory), context_beside(one.path)
            if "split" not in context:
                notes.append(f"{one.name} does not get it noted: no context.json beside {one.path} tells the split.")
                continue
            kept = one.path.with_name(f"compared-to-{baseline}.json")
            try:
                write_atomic(kept, (json.dumps(result, indent=1, sort_keys=True) + "\n").encode())
                tracker = Tracker(run)
            except OSError as error:  # a colleague's run
                notes.append(f"{one.name} does not get it noted: {directory} cannot be written ({error.strerror}).")
                continue
            split = split_named(run, one.path, context)
            for protocol, told in result["protocols"].items():
                (own,) = [entry for entry in told["compared"] if entry["name"] == name]
                for metric, cell in own["difference"].items():
                    numbers = {"": cell["value"], ".p": cell["p"], ".p_holm": cell["p_holm"]}
                    numbers |= dict(zip((".low", ".high"), cell["interval"] or (None, None), strict=True))
                    start = f"{split}.{protocol}.above.{baseline}.{metric}"
                    known = {f"{start}{end}": number for end, number in numbers.items() if number is not None}
                    tracker.log(int(context.get("step", 0)), **known)
            tracker.attached.append((kept, one.path.resolve().parent.relative_to(directory.resolve()).as_posix()))
            notes.append(tracking_note(tracker.close(), tracker))
    return notes
