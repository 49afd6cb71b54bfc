"""Tracking: records go to metrics.jsonl beside the run first, and from there to MLflow.

A thread forwards them, so training never waits for a server. What a lost server did not take stays in the file behind
a cursor, one for every server, and is sent by the next `Tracker` of the same run or by `r2kg track RUN`.
"""

import json
import os
import re
import secrets
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock

from r2kg import STACK, __version__
from r2kg.config.needs import CARD
from r2kg.config.run import Run
from r2kg.rundir import RunFiles, directory_of, read_json, record_of, saved_run
from shards.errors import RetryableError
from shards.privacy import terms_of
from shards.tars.place import write_atomic

# Without a bound, an MLflow client waits minutes for a server that is gone (MLflow retries 7 times by default).
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
RETRY_SECONDS = 15.0
BATCH = 500
PARAMS = 100
"""As many as MLflow takes at once."""


def tracking_uri(run: Run) -> str:
    """Where this run is tracked: its own setting, MLFLOW_TRACKING_URI, or an SQLite file beside the runs."""
    default = f"sqlite:///{run.directory.parent / 'mlflow.db'}"
    return run.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI", "") or default


class Tracker:
    """Writes a run's records and forwards them to MLflow.

    Rank 0 writes while training goes on, and what is done with the run after it. Two at a time send some records
    twice, which MLflow keeps as one: nothing else is lost.
    """

    def __init__(self, run: Run, running: bool = False):
        """Open (or continue) the records of `run`; the directory must exist.

        `running` says that training goes on, in MLflow too; else the run there keeps the status it ended with.
        """
        self.run, self.uri, self.files = run, tracking_uri(run), RunFiles(run.directory)
        self.problem, self._lock = "", threading.Lock()
        self.attached: list[tuple[Path, str]] = []
        """Files that become artefacts of the MLflow run when this is closed, beside run.json and the log; and where."""
        self._file = self.files.metrics.open("a")
        if cut_off(self.files.metrics):  # by a kill: what it has left stays a line of its own
            self._file.write("\n")
        self._reopen, self._stop = running, threading.Event()
        self.missing = list[str]()
        """Files that did not become artefacts; `problem` says why."""
        if running:
            self._note(status="RUNNING", made=made_with())
        self._thread = threading.Thread(target=self._forward_until_stopped, name="mlflow", daemon=True)
        self._thread.start()

    def log(self, step: int, **values: float) -> None:
        """Record values at an optimiser step; returns at once."""
        row = {"step": step, "time_ms": int(time.time() * 1000), "metrics": values}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def say(self, sentence: str) -> None:
        """One sentence per event, into log.txt; the driver prints it."""
        self.files.say(sentence)

    def close(self, status: str = "", patience: float = 60.0) -> int:
        """Send what is left, for at most `patience` seconds, and end the MLflow run.

        Args:
            status: FINISHED, FAILED or KILLED; empty: what it was closed with before, FINISHED where it never was.

        Returns:
            records that MLflow has not taken; `problem` then says why.
        """
        self._file.close()
        if status:
            self._note(status=status)
        self._stop.set()
        self._thread.join(timeout=patience)
        return self.unsent()

    def unsent(self) -> int:
        """Records in the file that MLflow has not acknowledged."""
        start, records = self._state().get("bytes", 0), self.files.metrics
        return records.read_bytes()[start:].count(b"\n") if records.exists() else 0

    def _forward_until_stopped(self) -> None:
        """Every second, and once more at the end. A failure is remembered, never raised: it must not stop training."""
        ending = False
        while not ending:
            ending = self._stop.wait(1.0)
            try:
                self._forward(ending)
            except Exception as error:
                self.problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                self._stop.wait(RETRY_SECONDS)

    def _forward(self, ending: bool) -> None:
        """Send the records behind the cursor, at most BATCH at a time; when `ending`, end the MLflow run."""
        state = self._state()
        if state and not ending and not self._reopen and not self.unsent():
            return
        from mlflow.entities import Metric

        client = client_of(self.uri)
        if not state.get("params"):
            with suppress(NotImplementedError), FileLock(self.files.directory / ".mlflow.lock", fallback_to_soft=False):
                state = self._state() if self._state().get("params") else self._open_run(client)  # one of two makes it
            state = state if state.get("params") else self._open_run(client)  # no locks on this file system
        if self._reopen:
            client.update_run(state["run_id"], status="RUNNING")
            began = client.get_run(state["run_id"]).data
            then, made = began.params | began.tags, self._notes().get("made", {})
            for key, value in (self._params() | made).items():  # MLflow never changes a parameter
                if value != then.get(key, value) or f"now.{key}" in then:
                    client.set_tag(state["run_id"], f"now.{key}", value)
            self._reopen = False
        while True:
            with self.files.metrics.open("rb") as file:
                file.seek(state["bytes"])
                lines = [line for line in (file.readline() for _ in range(BATCH)) if line.endswith(b"\n")]
            if not lines:
                break
            metrics = [
                Metric(name.replace(".", "/"), float(value), row["time_ms"], row["step"])
                for row in filter(None, map(record_of, lines))  # not those that a kill, or another writer, has torn
                for name, value in row["metrics"].items()
            ]
            client.log_batch(state["run_id"], metrics=metrics)
            state["bytes"] += sum(map(len, lines))
            self._note(bytes=state["bytes"])
        if not ending:
            return
        if (status := self._notes().get("status", "FINISHED")) != "RUNNING":
            client.set_terminated(state["run_id"], status)
        self.missing = []
        for path, beneath in ((self.files.run, ""), (self.files.log, ""), *self.attached):
            try:
                if path.exists():
                    client.log_artifact(state["run_id"], str(path), beneath or None)
            except Exception as error:  # of the artefacts' store, which is another server than MLflow's
                self.missing.append(path.name)
                self.problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"

    def _open_run(self, client: Any) -> dict[str, Any]:
        """Make the MLflow run, and its experiment and parent where they are missing; returns the cursor.

        Begun again wherever it broke off: a run that was made is known by its key, which is noted before.
        """
        from mlflow.entities import Param

        run, state = self.run, self._state()
        experiment_id = experiment_of(client, run)
        if not state:
            state = self._note(key=secrets.token_hex(16), bytes=0)
        tags = {"mlflow.runName": run.name, "recipe": run.recipe, "r2kg_key": state["key"]}
        tags |= self._notes().get("made", {})
        if (card := Path(run.train.init_from) / CARD).is_file():
            tags["init"] = json.dumps(json.loads(card.read_text())["settings"]["chain"])[:5000]
        if run.tracking.parent:
            tags["mlflow.parentRunId"] = group_of(client, run)
        if made := list(client.search_runs([experiment_id], f"tags.r2kg_key = '{state['key']}'")):
            run_id = made[0].info.run_id
        else:
            run_id = client.create_run(experiment_id, run_name=run.name, tags=tags).info.run_id
        self._note(run_id=run_id, experiment_id=experiment_id)
        params = [Param(key, value) for key, value in self._params().items()]
        for first in range(0, len(params), PARAMS):
            client.log_batch(run_id, params=params[first : first + PARAMS])
        return self._note(params=len(params))

    def _params(self) -> dict[str, str]:
        """Dotted fields of the run, as MLflow takes them: of a name like "train.init_map.*" the sign becomes "_"."""
        told = _flat(self.run.model_dump(mode="json")).items()
        return {re.sub(r"[^\w. :/-]", "_", key, flags=re.ASCII)[:250]: str(value)[:500] for key, value in told}

    def _notes(self) -> dict[str, Any]:
        """{"status": how training ended, "made": with what, "servers": {uri: cursor}} as noted beside it."""
        try:
            notes = json.loads(self.files.cursor.read_text())
        except (OSError, ValueError):
            return {"servers": {}}
        return notes if "servers" in notes else {"servers": {}}

    def _state(self) -> dict[str, Any]:
        """The cursor of this server; {} before anything was made there. With "params" in it the MLflow run is whole."""
        return self._notes()["servers"].get(self.uri, {})

    def _note(self, status: str = "", made: dict[str, str] | None = None, **cursor: Any) -> dict[str, Any]:
        """Note how training stands and with what it is done, or what this server has; returns its cursor."""
        with self._lock:
            notes = self._notes()
            if status:
                notes["status"] = status
            if made:
                notes["made"] = made
            if cursor:
                notes["servers"][self.uri] = notes["servers"].get(self.uri, {}) | cursor
            write_atomic(self.files.cursor, json.dumps(notes).encode())
            return notes["servers"].get(self.uri, {})


def client_of(uri: str) -> Any:
    """An MLflow client; an SQLite file that is not there yet is made."""
    from mlflow import MlflowClient  # heavy: only the thread waits for it

    store = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:///") and not store.exists():
        # A new file whose making a kill ended would be of no use for ever: it is made aside, then named.
        aside = store.with_name(f".{store.name}-{os.getpid()}-{time.time_ns()}")
        MlflowClient(tracking_uri=f"sqlite:///{aside}").search_experiments(max_results=1)
        try:
            os.link(aside, store)
        except OSError:  # it is there by now, or the file system has no hard links
            if not store.exists():
                aside.rename(store)
        aside.unlink(missing_ok=True)
    return MlflowClient(tracking_uri=uri)


def experiment_of(client: Any, run: Run) -> str:
    """The id of a run's experiment, which is made where it is missing."""
    if experiment := client.get_experiment_by_name(run.tracking.experiment):
        return str(experiment.experiment_id)
    # artefacts of an SQLite-tracked experiment stand beside its file, not in the working directory
    beside = (run.directory.parent / "mlartifacts").as_uri() if tracking_uri(run).startswith("sqlite:") else None
    return str(client.create_experiment(run.tracking.experiment, artifact_location=beside))


def group_of(client: Any, run: Run) -> str:
    """The id of the MLflow run that `tracking.parent` names, which is made where it is missing."""
    name, experiment_id = run.tracking.parent, experiment_of(client, run)
    query = f"tags.`mlflow.runName` = '{name}' and tags.r2kg_parent = 'yes'"
    parents = list(client.search_runs([experiment_id], query))
    if not parents:
        parents = [client.create_run(experiment_id, run_name=name, tags={"r2kg_parent": "yes"})]
        client.set_terminated(parents[0].info.run_id)  # nothing runs in it
    return str(parents[0].info.run_id)


def track_group(run: Run, files: Sequence[Path] = (), metrics: dict[str, float] | None = None) -> str:
    """Make the MLflow run that `tracking.parent` of `run` names, and keep files and numbers with it.

    In bounded time and without an error of the server's. Returns a note, a sentence.
    """
    uri, name = tracking_uri(run), run.tracking.parent
    try:
        client = client_of(uri)
        group = group_of(client, run)
        for path in files:
            client.log_artifact(group, str(path))
        for key, value in (metrics or {}).items():
            client.log_metric(group, key, value)
    except Exception as error:  # whatever a server and its clients may raise
        cause = " ".join(str(error).split())[:200]
        return f"MLflow at {uri} has not taken all of {name} ({type(error).__name__}: {cause}): run the same again."
    return f"MLflow at {uri} holds {name}."


def cut_off(path: Path) -> bool:
    """Whether the last line of a file has no end."""
    with path.open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def tracking_note(unsent: int, tracker: Tracker) -> str:
    """One sentence on where the records are."""
    if not unsent and tracker.missing:
        return (
            f"MLflow at {tracker.uri} holds all records of {tracker.run.name}, and not its artefacts "
            f"{', '.join(tracker.missing)} ({tracker.problem}): `r2kg track {tracker.files.directory}` sends them"
        )
    if not unsent:
        return f"MLflow at {tracker.uri} holds all records of {tracker.run.name}."
    return (
        f"MLflow at {tracker.uri} has not taken {unsent} records of {tracker.run.name} "
        f"({tracker.problem or 'it gave no answer in time'}); they are "
        f"kept in {tracker.files.metrics}: `r2kg track {tracker.files.directory}` sends them once a server answers."
    )


def close_run(run: Run, status: str) -> str:
    """End the MLflow run of a run that cannot do it itself any more, as FAILED or KILLED; returns a note.

    In bounded time and without an error of the server's; one that is not under way keeps the status it has.
    """
    try:
        if read_json(RunFiles(run.directory).cursor).get("status") != "RUNNING":
            return ""
    except (ValueError, RetryableError):  # there is none, or a damaged one
        return ""
    tracker = Tracker(run)
    return tracking_note(tracker.close(status, patience=30.0), tracker)


def track_scores(predictions: Path, scores: dict) -> str:
    """Record scores with the run that wrote `predictions` (RUN/predictions/SPLIT/…); a note, empty for a bare file."""
    if not (directory := directory_of(predictions)):
        return ""
    context = json.loads(predictions.with_name("context.json").read_text())
    run = saved_run(directory)
    tracker, split = Tracker(run), split_named(run, predictions, context)
    for protocol, result in scores["protocols"].items():
        for kind in ("score", "floor", "shuffled"):
            values = {m: v for m, v in (result[kind] or {}).items() if v is not None}
            tracker.log(context["step"], **{f"{split}.{protocol}.{kind}.{name}": v for name, v in values.items()})
    beneath = predictions.resolve().parent.relative_to(directory.resolve()).as_posix()
    tracker.attached.append((predictions.with_name("scores.json"), beneath))
    return tracking_note(tracker.close(), tracker)


def split_named(run: Run, predictions: Path, context: Mapping[str, Any]) -> str:
    """The split, by which scores are recorded; with the directory's name where not all is as the run itself says.

    Args:
        context: what context.json beside the predictions says.
    """
    usual = {"decoding": run.model.decoding.told(), "shards": context.get("trained_on")}
    usual |= {"reference_at": run.absolute().reference or None}
    if any(context.get(name) != value for name, value in usual.items()):
        return f"{context['split']}.{predictions.resolve().parent.name}"  # beside the usual ones, not in their place
    return str(context["split"])


def track_pictures(predictions: Path, pictures: Sequence[Path], credentialed: bool = False) -> str:
    """Keep pictures or pages of studies with the run that wrote `predictions`; of credentialed data none.

    What lies outside the run is kept beside its predictions. `credentialed` says what context.json may not know.
    Returns a note, "" for a file outside a run.
    """
    if (directory := directory_of(predictions)) is None:
        return ""
    home, beside = directory.resolve(), predictions.with_name("context.json")
    if credentialed or terms_of(json.loads(beside.read_text())["licence"]).credentialed:
        return "MLflow gets none of these: they show films and reports of credentialed data."
    tracker = Tracker(saved_run(directory))
    for picture in pictures:
        parent = picture.resolve().parent
        parent = parent if parent.is_relative_to(home) else predictions.resolve().parent
        tracker.attached.append((picture, parent.relative_to(home).as_posix()))
    return tracking_note(tracker.close(), tracker)


def made_with() -> dict[str, str]:
    """Tags that say with what a run was made: packages' versions and, of a checkout of this project, its commit."""
    tags = {f"version.{name}": version(name) for name in STACK} | {"version.r2kg": __version__}
    root = Path(__file__).resolve().parents[1]
    if commit := os.environ.get("R2KG_COMMIT", ""):  # Ray packs a job's directory without .git
        tags |= {"mlflow.source.git.commit": commit, "git": commit}
    elif (root / ".git").exists():
        asked = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
        with suppress(OSError, subprocess.SubprocessError):
            said = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
            tags |= {"mlflow.source.git.commit": said.removesuffix("-dirty"), "git": said}
    return tags


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted fields of a Run."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat
