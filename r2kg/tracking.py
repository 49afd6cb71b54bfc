"""Tracking: records go to metrics.jsonl beside the run first, and from there to MLflow.

A thread forwards them, so training never waits for a server. What a lost server did not take stays in the file behind
a cursor and is sent by the next `Tracker` of the same run.
"""

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

from r2kg.config.needs import CARD
from r2kg.config.run import Run
from r2kg.rundir import RunFiles, directory_of, saved_run
from shards.tars.place import write_atomic

# Without a bound, an MLflow client waits minutes for a server that is gone (MLflow retries 7 times by default).
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
RETRY_SECONDS = 15.0
BATCH = 500


def tracking_uri(run: Run) -> str:
    """Where this run is tracked: its own setting, MLFLOW_TRACKING_URI, or an SQLite file beside the runs."""
    default = f"sqlite:///{run.directory.parent / 'mlflow.db'}"
    return run.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI", "") or default


class Tracker:
    """Writes a run's records and forwards them to MLflow. One writer per run directory: rank 0, then the driver."""

    def __init__(self, run: Run):
        """Open (or continue) the records of `run`; the directory must exist."""
        self.run, self.uri, self.files = run, tracking_uri(run), RunFiles(run.directory)
        self.problem = ""
        self._file = self.files.metrics.open("a")
        self._status, self._stop = "FINISHED", threading.Event()
        self._thread = threading.Thread(target=self._forward_until_stopped, name="mlflow", daemon=True)
        self._thread.start()

    def log(self, step: int, **values: float) -> None:
        """Record values at an optimiser step; returns at once."""
        row = {"step": step, "time_ms": int(time.time() * 1000), "metrics": values}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def say(self, sentence: str) -> None:
        """One sentence per event, into log.txt; the driver prints it."""
        with self.files.log.open("a") as log:
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {sentence}\n")

    def close(self, status: str = "FINISHED", patience: float = 60.0) -> int:
        """Send what is left, for at most `patience` seconds, and end the MLflow run with `status`.

        Returns:
            records that MLflow has not taken; `problem` then says why.
        """
        self._file.close()
        self._status = status
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
                self.problem = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
                self._stop.wait(RETRY_SECONDS)

    def _forward(self, ending: bool) -> None:
        """Send the records behind the cursor, at most BATCH at a time; when `ending`, end the MLflow run."""
        state = self._state()
        if state and not ending and not self.unsent():
            return
        from mlflow import MlflowClient  # heavy: only the thread waits for it
        from mlflow.entities import Metric

        store = Path(self.uri.removeprefix("sqlite:///"))
        if self.uri.startswith("sqlite:///") and not store.exists():
            # A new file whose making a kill ended would be of no use for ever: it is made aside, then named.
            aside = store.with_name(f".{store.name}-{os.getpid()}-{time.time_ns()}")
            MlflowClient(tracking_uri=f"sqlite:///{aside}").search_experiments(max_results=1)
            try:
                os.link(aside, store)
            except OSError:  # it is there by now, or the file system has no hard links
                if not store.exists():
                    aside.rename(store)
            aside.unlink(missing_ok=True)
        client = MlflowClient(tracking_uri=self.uri)
        state = state or self._open_run(client)
        while True:
            with self.files.metrics.open("rb") as file:
                file.seek(state["bytes"])
                lines = [line for line in (file.readline() for _ in range(BATCH)) if line.endswith(b"\n")]
            if not lines:
                break
            metrics = [
                Metric(name.replace(".", "/"), float(value), row["time_ms"], row["step"])
                for row in map(json.loads, lines)
                for name, value in row["metrics"].items()
            ]
            client.log_batch(state["run_id"], metrics=metrics)
            state["bytes"] += sum(map(len, lines))
            write_atomic(self.files.cursor, json.dumps(state).encode())
        if ending:
            client.set_terminated(state["run_id"], self._status)

    def _open_run(self, client: Any) -> dict[str, Any]:
        """Make the MLflow run, and its experiment and parent where they are missing; returns the cursor at 0."""
        run, tracking = self.run, self.run.tracking
        experiment = client.get_experiment_by_name(tracking.experiment)
        if experiment:
            experiment_id = experiment.experiment_id
        else:  # artefacts of an SQLite-tracked experiment stand beside its file, not in the working directory
            beside = (run.directory.parent / "mlartifacts").as_uri() if self.uri.startswith("sqlite:") else None
            experiment_id = client.create_experiment(tracking.experiment, artifact_location=beside)
        tags = {"mlflow.runName": run.name, "recipe": run.recipe}
        if (card := Path(run.train.init_from) / CARD).is_file():
            tags["init"] = json.dumps(json.loads(card.read_text())["settings"]["chain"])[:5000]
        if name := tracking.parent:
            query = f"tags.`mlflow.runName` = '{name}' and tags.r2kg_parent = 'yes'"
            parents = list(client.search_runs([experiment_id], query))
            if not parents:
                parents = [client.create_run(experiment_id, run_name=name, tags={"r2kg_parent": "yes"})]
            tags["mlflow.parentRunId"] = parents[0].info.run_id
        run_id = client.create_run(experiment_id, run_name=run.name, tags=tags).info.run_id
        for key, value in _flat(run.model_dump(mode="json")).items():
            client.log_param(run_id, key, str(value)[:500])
        state = {"run_id": run_id, "experiment_id": experiment_id, "uri": self.uri, "bytes": 0}
        write_atomic(self.files.cursor, json.dumps(state).encode())
        return state

    def _state(self) -> dict[str, Any]:
        """The cursor; {} until the MLflow run exists on this server."""
        try:
            state = json.loads(self.files.cursor.read_text())
        except (OSError, ValueError):
            return {}
        return state if state["uri"] == self.uri else {}


def tracking_note(unsent: int, tracker: Tracker) -> str:
    """One sentence on where the records are."""
    if not unsent:
        return f"MLflow at {tracker.uri} holds all records of {tracker.run.name}."
    return (
        f"MLflow at {tracker.uri} has not taken {unsent} records of {tracker.run.name} ({tracker.problem}); they are "
        f"kept in {tracker.files.metrics} and are sent when the run is submitted again with a server that answers."
    )


def track_scores(predictions: Path, scores: dict) -> str:
    """Record scores with the run that wrote `predictions` (RUN/predictions/SPLIT/…); a note, empty for a bare file."""
    if not (directory := directory_of(predictions)):
        return ""
    context = json.loads(predictions.with_name("context.json").read_text())
    tracker, split = Tracker(saved_run(directory)), context["split"]
    for protocol, result in scores["protocols"].items():
        for kind in ("score", "floor", "shuffled"):
            values = {m: v for m, v in (result[kind] or {}).items() if v is not None}
            tracker.log(context["step"], **{f"{split}.{protocol}.{kind}.{name}": v for name, v in values.items()})
    return tracking_note(tracker.close(), tracker)


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted fields of a Run."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat
