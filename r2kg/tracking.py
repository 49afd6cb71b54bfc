"""Tracking: records go to metrics.jsonl beside the run first, and from there to MLflow.

A thread forwards them, so training never waits for a server. What a lost server did not take stays in the file behind
a cursor and is sent by the next `Tracker` of the same run.
"""

import json
import os
import threading
import time
from pathlib import Path

from r2kg.config import Run, saved_run

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
        self.run, self.uri = run, tracking_uri(run)
        self.records = run.directory / "metrics.jsonl"
        self.cursor = run.directory / "mlflow.json"
        self.problem = ""
        self._file = self.records.open("a")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._forward_until_stopped, name="mlflow", daemon=True)
        self._thread.start()

    def log(self, step: int, **values: float) -> None:
        """Record values at an optimiser step; returns at once."""
        row = {"step": step, "time_ms": int(time.time() * 1000), "metrics": values}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def say(self, sentence: str) -> None:
        """One sentence per event, into log.txt; the driver prints it."""
        with (self.run.directory / "log.txt").open("a") as log:
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {sentence}\n")

    def close(self, status: str = "FINISHED", patience: float = 60.0) -> int:
        """Send what is left, for at most `patience` seconds, and end the MLflow run with `status`.

        Returns:
            records that MLflow has not taken; `problem` then says why.
        """
        self._file.close()
        self._stop.set()
        self._thread.join(timeout=patience)
        if not self._thread.is_alive() and not self.unsent():
            self._try(lambda: self._client().set_terminated(self._state()["run_id"], status))
        return self.unsent()

    def unsent(self) -> int:
        """Records in the file that MLflow has not acknowledged."""
        start = self._state().get("bytes", 0)
        return self.records.read_bytes()[start:].count(b"\n") if self.records.exists() else 0

    def _forward_until_stopped(self) -> None:
        while not self._stop.wait(1.0):
            if not self._try(self._forward):
                self._stop.wait(RETRY_SECONDS)
        self._try(self._forward)

    def _forward(self) -> None:
        if not self.unsent() and self._state():
            return
        from mlflow.entities import Metric

        client, state = self._client(), self._state() or self._open_run()
        while True:
            lines, end = self._lines(state["bytes"])
            if not lines:
                return
            metrics = [
                Metric(name.replace(".", "/"), float(value), row["time_ms"], row["step"])
                for row in map(json.loads, lines)
                for name, value in row["metrics"].items()
            ]
            client.log_batch(state["run_id"], metrics=metrics)
            state["bytes"] = end
            self._save(state)

    def _lines(self, start: int) -> tuple[list[bytes], int]:
        """At most BATCH whole lines from byte `start` on, and the byte after them."""
        if not self.records.exists():
            return [], start
        with self.records.open("rb") as file:
            file.seek(start)
            lines = [line for line in (file.readline() for _ in range(BATCH)) if line.endswith(b"\n")]
        return lines, start + sum(map(len, lines))

    def _open_run(self) -> dict:
        client = self._client()
        experiment = client.get_experiment_by_name(self.run.tracking.experiment)
        experiment_id = experiment.experiment_id if experiment else self._make_experiment(client)
        tags = {"mlflow.runName": self.run.name, "recipe": self.run.recipe}
        if self.run.tracking.parent:
            tags["mlflow.parentRunId"] = self._parent(client, experiment_id)
        run_id = client.create_run(experiment_id, run_name=self.run.name, tags=tags).info.run_id
        for key, value in _flat(self.run.model_dump(mode="json")).items():
            client.log_param(run_id, key, str(value)[:500])
        state = {"run_id": run_id, "experiment_id": experiment_id, "uri": self.uri, "bytes": 0}
        self._save(state)
        return state

    def _make_experiment(self, client) -> str:
        """Artefacts of an SQLite-tracked experiment stand beside its file rather than in the working directory."""
        local = self.uri.startswith("sqlite:")
        folder = (self.run.directory.parent / "mlartifacts").as_uri() if local else None
        return client.create_experiment(self.run.tracking.experiment, artifact_location=folder)

    def _parent(self, client, experiment_id: str) -> str:
        name = self.run.tracking.parent
        found = client.search_runs([experiment_id], f"tags.`mlflow.runName` = '{name}' and tags.r2kg_parent = 'yes'")
        if found:
            return found[0].info.run_id
        return client.create_run(experiment_id, run_name=name, tags={"r2kg_parent": "yes"}).info.run_id

    def _client(self):
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=self.uri)

    def _state(self) -> dict:
        """{} until the MLflow run exists on this server."""
        try:
            state = json.loads(self.cursor.read_text())
        except (OSError, ValueError):
            return {}
        return state if state["uri"] == self.uri else {}

    def _save(self, state: dict) -> None:
        partial = self.cursor.with_suffix(".partial")
        partial.write_text(json.dumps(state))
        os.replace(partial, self.cursor)

    def _try(self, action) -> bool:
        """Run `action`; a tracking failure is remembered and never stops training."""
        try:
            action()
        except Exception as error:
            self.problem = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
            return False
        return True


def tracking_note(unsent: int, tracker: Tracker) -> str:
    """One sentence on where the records are."""
    if not unsent:
        return f"MLflow at {tracker.uri} holds all records of {tracker.run.name}."
    return (
        f"MLflow at {tracker.uri} has not taken {unsent} records of {tracker.run.name} ({tracker.problem}); they are "
        f"kept in {tracker.records} and are sent when the run is submitted again with a server that answers."
    )


def _flat(tree: dict, prefix: str = "") -> dict:
    flat = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat


def track_scores(predictions: Path, scores: dict) -> str:
    """Record scores with the run that wrote `predictions` (RUN/predictions/SPLIT/…); a note, empty for a bare file."""
    directory = predictions.resolve().parents[2] if len(predictions.resolve().parents) > 2 else predictions
    if not (directory / "run.json").is_file():
        return ""
    run = saved_run(directory)
    context = json.loads(predictions.with_name("context.json").read_text())
    tracker, split = Tracker(run), context["split"]
    for protocol, result in scores["protocols"].items():
        for kind in ("score", "floor", "shuffled"):
            values = {m: v for m, v in (result[kind] or {}).items() if v is not None}
            tracker.log(context["step"], **{f"{split}.{protocol}.{kind}.{name}": v for name, v in values.items()})
    return tracking_note(tracker.close(), tracker)
