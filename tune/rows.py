"""Rows and tables as types, and the trainings that a table comes down to: rows × seeds, equal ones once."""

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from r2kg.config.needs import CARD
from r2kg.config.overrides import assign
from r2kg.config.protocol import protocols_of
from r2kg.config.run import Run, local_fields
from r2kg.recipes import find_recipe
from r2kg.rundir import RunFiles, read_json, saved_run
from shards.errors import ConfigError
from shards.tars.kinds import FILE as SIDE
from shards.tars.place import is_local, names_in, place, sha256_of, size_of
from tune.ablations import ablated

NLG = ("bleu1", "bleu2", "bleu3", "bleu4", "meteor", "rouge_l", "cider_d")
"""In the order of CKNet's tables."""
IDLE = (
    "name", "recipe", "root", "tracking", "privacy", "protocols", "data.shards", "data.verify", "engine.zero",
    "engine.offload_optimizer", "engine.offload_parameters", "engine.gradient_checkpointing", "engine.compile",
    "train.workers", "train.micro_batch", "train.gpus", "train.cpus_per_worker", "train.max_restarts",
    "train.stop_seconds", "train.wait_minutes", "train.accept_changes", "train.max_skipped", "train.log_every",
    "train.record_studies", "train.checkpoints_kept",
)  # fmt: skip
"""Fields that change nothing of what a run learns: with others of these it is the same trial, which goes on."""
BESIDE = {
    ("r2genkg", "model.graph.place"): "graph",
    ("r2genkg", "model.queries.bank.place"): "bank",
    ("gcn", "model.graph.place"): "finding-graph",
    ("cknet", "model.knowledge.place"): "knowledge",
    ("cknet_llm", "model.knowledge.place"): "knowledge",
}
"""(system, field that names no place) → where in the shards' directory the system looks then."""
SEALED = (SIDE, "graph.json", "bank.json", "matrix.json", CARD)
"""Files that hold the hashes of all that lies beside them."""
STAGES = 8
"""Runs that begin with one another are followed so far back."""


@dataclass(frozen=True)
class Row:
    """A line of a table: a recipe, an ablation of it, and what its paper says."""

    name: str
    """As the paper calls it."""
    ablation: str = "full"
    """Name in `tune/ablations/SYSTEM.py`; full: the recipe as it is."""
    recipes: tuple[str, str] = ("", "")
    """(of the paper, tiny) in place of the table's."""
    paper: tuple[float, ...] = ()
    """The paper's figures, in the order of the table's metrics; empty: none are known."""
    decoding: Mapping[str, Any] = field(default_factory=dict)
    """What generation changes of the trained run: rows that differ in this alone share one training."""
    tiny: Mapping[str, Any] | None = field(default_factory=dict)
    """Changes that bring the row to tiny sizes; None: there is no such row at tiny sizes."""
    tiny_decoding: Mapping[str, Any] = field(default_factory=dict)
    """The tiny row's changes of generation."""


@dataclass(frozen=True)
class Table:
    """What one table asks, of which runs, and what else is printed in it."""

    name: str
    shows: str
    """What it asks, in words."""
    recipes: tuple[str, str]
    """(recipe of the paper, tiny recipe) that the rows change."""
    rows: tuple[Row, ...]
    metrics: tuple[str, ...] = NLG
    """Names in scores.json; what is not there is said to be not available."""
    protocol: str = ""
    """Scoring protocol; empty: the first of the run."""
    others: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Systems that are not trained here → figures in the paper, NaN where it says nothing."""
    first: tuple[str, str] = ("", "")
    """(paper, tiny) recipe of the stage that rows begin with, once for each seed; rows that name it in train.init_from
    get their seed's."""
    needs: tuple[str, ...] = ()
    """What the tiny variant needs made beside the drawn films: functions of `tune.prepare`."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Of all rows, e.g. one budget for all systems."""
    tiny: Mapping[str, Any] = field(default_factory=dict)
    """Of all tiny rows, first stages included, where they have such a field."""
    begin: Mapping[str, Any] = field(default_factory=dict)
    """Of all tiny rows, but not of first stages: the encoder they begin with."""
    seeds: tuple[int, int] = (3, 2)
    """How many by default (paper, tiny)."""
    scale: float = 1.0
    """The paper's figures by this are ours: 0.01 for a paper that prints per cent."""

    @property
    def source(self) -> str:
        """The data set that the paper's figures are of, as `r2kg shard` calls it; empty: any."""
        ends = {"iu": "iu_xray", "mimic_cxr": "mimic_cxr", "chexpert_plus": "chexpert_plus"}
        return next((source for end, source in ends.items() if self.recipes[0].endswith(end)), "")

    @property
    def figures(self) -> dict[str, dict[str, float]]:
        """Row or other system → metric → the paper's figure, as a fraction; what the paper does not say is left out."""
        told = {row.name: row.paper for row in self.rows} | dict(self.others)
        return {
            name: {
                metric: self.scale * value for metric, value in zip(self.metrics, values, strict=True) if value == value
            }
            for name, values in told.items()
            if values
        }


@dataclass(frozen=True)
class Trial:
    """One training with a seed, and the rows that are written with it."""

    run: Run
    hash: str
    rows: dict[str, dict[str, Any]]
    """Row → what generation changes of the run; empty for a first stage that is no row."""
    seed: int
    first: bool = False
    """Whether others begin with it."""

    @property
    def name(self) -> str:
        """Its run's directory below the root."""
        return self.run.name


def content_hash(run: Run, shards: str, read: Mapping[str, str] | None = None) -> str:
    """Hash of all that decides what a run learns and how it writes: nothing of `IDLE`.

    Args:
        shards: fingerprint of the shards, or what they are drawn from.
        read: dotted field → what lies at the place that it names, in place of the place (`contents_of`).

    Returns:
        64 hexadecimal digits.
    """
    tree = run.model_dump(mode="json")
    for name, digest in (read or {}).items():
        node, last = field_of(tree, name)
        node[last] = digest
    for name in (*IDLE, *(() if run.train.patience else ("train.validate_every",))):
        node, last = field_of(tree, name)
        del node[last]
    if run.train.choose != "loss":  # by the first protocol
        tree["protocols"] = protocols_of(run.protocols, run.model.task)[:1]
    return hashlib.sha256(json.dumps([tree, shards], sort_keys=True).encode()).hexdigest()


def field_of(tree: dict[str, Any], name: str) -> tuple[dict[str, Any], str]:
    """The dictionary in a dump of a run that holds a dotted field, and the field's name in it."""
    *above, last = name.split(".")
    for key in above:
        tree = tree[key]
    return tree, last


def begun_with(run: Run) -> tuple[Run, str] | None:
    """The run that another begins with, as it is saved, and which of its checkpoints; None where there is none."""
    words = run.train.init_from
    if words and (Path(words) / CARD).is_file():  # the copy of its weights
        with suppress(ValueError, LookupError, TypeError):
            words = str(read_json(Path(words) / CARD)["settings"]["from"])
    before, _, which = words.rpartition("@")
    homes = (run.directory.parent / before, Path(before))
    found = next((home for home in homes if before and RunFiles(home).run.is_file()), None)
    return (saved_run(found), which) if found else None


def contents_of(run: Run, deep: int = STAGES) -> dict[str, str]:
    """Dotted field → hash of what a run reads there, beside its shards: sides, graph, bank, matrix, files of weights,
    the run that it begins with. What is not there, or a name of a hub, has no entry.
    """
    places = {f"data.sides.{kind}": where for kind, where in run.sides.items() if kind != "features"}
    places |= {"data.features": run.data.features}
    knowledge = getattr(run.model, "knowledge", None)
    for name, value in local_fields(run):
        beside = BESIDE.get((run.model.system, name), "")
        if beside == "knowledge" and knowledge:
            beside = f"knowledge{'-other' * (knowledge.control == 'other')}" if knowledge.matrix == "graph" else ""
        places[name] = value or (beside and f"{run.data.shards}/{beside}")
    found = {name: digest for name, where in places.items() if where and (digest := _content(where))}
    if "train.init_from" not in found and deep and (begun := begun_with(run)):
        earlier, shards = begun[0], ""
        with suppress(ValueError):  # shards that are gone
            shards = earlier.manifest().fingerprint
        found["train.init_from"] = f"{content_hash(earlier, shards, contents_of(earlier, deep - 1))}@{begun[1]}"
    return found


def _content(where: str) -> str:
    """SHA-256 of a file, or of what says of a directory what is in it; "" where there is none."""
    home = place(where)
    if is_local(home) and home.is_file():
        return sha256_of(home)
    for name in SEALED:
        if size_of(home / name) >= 0:
            return sha256_of(home / name)
    files = [(name, sha256_of(home / name)) for name in names_in(home)] if is_local(home) and home.is_dir() else []
    return hashlib.sha256(json.dumps(files).encode()).hexdigest() if files else ""


def trials_of(
    table: Table,
    tiny: bool,
    seeds: int,
    changes: Mapping[str, Any],
    shards: str,
    rows: Sequence[str] = (),
) -> list[Trial]:
    """The trainings that a table comes down to, first stages before what begins with them; equal ones are one.

    One that lies under the root already, whichever table had it trained, keeps the name it has there. What the tiny
    variant reads is made by the sweep itself, and known by its places.

    Args:
        seeds: how many; 0: the table's. The n-th is the recipe's train.seed + n.
        changes: of every row that has such a field; data.shards and root among them.
        shards: fingerprint of the shards, for the hash.
        rows: names of rows or of their ablations; none: all that there are at this size.

    Raises:
        ConfigError: no such row; a change that no row can have.
    """
    chosen = _chosen(table, tiny, rows)
    lacking = {key: list[ConfigError]() for key in changes}
    runs = {row.name: _changed(_run_of(table, row, tiny), changes, lacking) for row in chosen}
    stage = _changed(_sized(table, find_recipe(table.first[tiny]), tiny), changes) if table.first[tiny] else None
    for errors in lacking.values():
        if len(errors) == len(runs):
            raise errors[-1]
    trials = dict[str, Trial]()

    def add(run: Run, seed: int, rows: dict[str, dict[str, Any]], first: bool = False, begins: str = "") -> Trial:
        run = run.change({"train.seed": run.train.seed + seed, "tracking.parent": directory_name(table, tiny)})
        read = ({} if tiny else contents_of(run)) | ({"train.init_from": begins} if begins else {})
        digest = content_hash(run, shards, read)
        end = f"-seed{run.train.seed}-{digest[:8]}"
        there = sorted(path.name for path in run.directory.parent.glob(f"*{end}"))
        run = run.change({"name": there[0] if there and run.name + end not in there else run.name + end})
        before = trials.get(digest, Trial(run, digest, {}, run.train.seed))
        trials[digest] = Trial(before.run, digest, before.rows | rows, before.seed, first or before.first)
        return trials[digest]

    for seed in range(seeds or table.seeds[tiny]):
        for row in chosen:
            run = runs[row.name]
            (begins_with, _, checkpoint), begins = run.train.init_from.rpartition("@"), ""
            if stage and begins_with == find_recipe(table.first[tiny]).name:
                first = add(stage, seed, {}, first=True)
                begins, run = (
                    f"{first.hash}@{checkpoint}",
                    run.change({"train.init_from": f"{first.name}@{checkpoint}"}),
                )
            add(run, seed, {row.name: dict(row.tiny_decoding if tiny else row.decoding)}, begins=begins)
    return list(trials.values())


def directory_name(table: Table, tiny: bool) -> str:
    """What a sweep's directory, and its run in MLflow, is called."""
    return table.name + "-tiny" * tiny


def _chosen(table: Table, tiny: bool, names: Sequence[str]) -> list[Row]:
    there = [row for row in table.rows if not (tiny and row.tiny is None)]
    known = {name: row for row in reversed(there) for name in (row.ablation, row.name)}
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
            hint = f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(row.name for row in there)}"
            raise ConfigError(f"{directory_name(table, tiny)} has no row {name[:80]!r}; {hint}")
    return [row for row in there if not names or row in [known[name] for name in names]]


def _run_of(table: Table, row: Row, tiny: bool) -> Run:
    """A row's run before any change of the command line; called as its recipe where it is nothing else."""
    base = find_recipe(row.recipes[tiny] or table.recipes[tiny])
    run, whole = base if row.ablation == "full" else ablated(base, row.ablation), _sized(table, base, tiny, table.begin)
    run = _sized(table, run, tiny, {**table.begin, **(row.tiny or {})})
    same = run.change({"name": base.name, "recipe": base.recipe})
    return same if same == whole else run


def _sized(table: Table, run: Run, tiny: bool, begin: Mapping[str, Any] | None = None) -> Run:
    """A run with the table's changes of all rows; of a tiny one also with those of `begin`."""
    run = _changed(run, table.tiny if tiny else table.changes)
    return run.change(dict(begin)) if tiny and begin else run


def _changed(run: Run, changes: Mapping[str, Any], lacking: dict[str, list[ConfigError]] | None = None) -> Run:
    """The run with those changes that it has a field for; the others are noted under `lacking`."""
    own = {}
    for key, value in changes.items():
        try:
            assign(run.model_dump(), Run, key, value)
            own[key] = value
        except ConfigError as error:
            if lacking is not None:
                lacking[key].append(error)
    return run.change(own)
