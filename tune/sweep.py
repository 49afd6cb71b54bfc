"""A table's trials by Ray Tune: as many at once as the cluster can place, each an ordinary run.

A trial's driver holds no CPU: it starts the Ray Train workers, which do. What is finished is not repeated, and what
broke off goes on from its newest checkpoint, so that the same command goes on wherever it was killed.
"""

import os
import shutil
import time
from itertools import groupby
from pathlib import Path
from typing import Any

import ray
from filelock import FileLock
from ray import tune
from ray.tune import Callback, FailureConfig, RunConfig, TuneConfig

from r2kg.attempts.lease import lease, stop_main
from r2kg.rundir import new_attempt
from r2kg.tracking import close_run, track_group
from r2kg.training.launch import each_worker
from shards.session import connect_ray, joining, most_there_can_be
from shards.tars.format import Manifest, read_manifest
from tune import prepare
from tune.driver import drive
from tune.plan import Sweep, error_of, is_finished, note_error, read_note, write_plan
from tune.rows import Table, Trial
from tune.tables import STUDIES

HOLDS = {"CPU": 0.0, "memory": 1.0}
"""What a trial's driver takes: Tune places nothing that takes nothing, so it is one byte."""


def sweep(asked: Sweep) -> list[Trial]:
    """Carry out what is lacking of a table; each trial fails alone, and its run's directory says why.

    Returns:
        the trials, whether they are finished or not (`tune.plan.read_note` tells).

    Raises:
        ConfigError: the same sweep is under way, or as `Sweep.trials`.
        DataError: no shards.
    """
    trials = asked.trials()
    if not joining():  # as `r2kg train` has it: on two cores every second of CPU counts
        os.environ |= {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0", "RAY_TRAIN_METRICS_ENABLED": "0"}
    os.environ |= {"RAY_CHDIR_TO_TRIAL_DIR": "0", "RAY_AIR_NEW_OUTPUT": "0", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1"}
    with lease(asked.directory, f"the sweep {asked.directory.name} is under way", stop_main):
        shutil.rmtree(asked.directory / "ray", ignore_errors=True)  # what Tune kept of a call that was killed
        connect_ray(asked.directory)
        if asked.tiny:
            prepare_tiny(asked.table, Path(asked.shards))
        manifest = read_manifest(asked.shards)
        write_plan(asked, trials, manifest)
        track_group(trials[0].run)  # before two trials at once would make it
        lacking = [one for one in trials if not is_finished(one, manifest.fingerprint)]
        done = len(trials) - len(lacking)
        print(f"{asked.directory.name}: {len(trials)} trials, {done} finished before.", flush=True)
        failed = set[str]()
        for first in (True, False):
            wave = [one for one in lacking if one.first == first]
            for one in wave:
                if (begin := one.run.train.init_from.rpartition("@")[0]) in failed:
                    note_error(one, manifest, f"{begin}, which it begins with, has failed")
            ready = [one for one in wave if one.run.train.init_from.rpartition("@")[0] not in failed]
            for _, alike in groupby(sorted(ready, key=takes), key=takes):
                _run(asked, [*alike], manifest)
            failed |= {one.name for one in wave if not is_finished(one, manifest.fingerprint)}
    return trials


def prepare_tiny(table: Table, shards: Path) -> None:
    """Drawn shards, and beside them what the table's rows need; both once for all tables of a root."""
    with FileLock(shards.parent / ".prepare.lock", fallback_to_soft=False):  # it waits for another table's
        prepare.drawn(shards, STUDIES)
        for need in table.needs:
            if not (made := shards / f"made-for-{need}").exists():
                print(f"Making what {need} needs.", flush=True)
                getattr(prepare, need)(shards.parent, shards)
                made.touch()


def takes(trial: Trial) -> list[tuple[str, float]]:
    """What a trial takes of a cluster, by kind: its workers, and a CPU to read films."""
    amounts = {kind: trial.run.train.workers * amount for kind, amount in each_worker(trial.run).items()}
    return sorted((amounts | {"CPU": amounts["CPU"] + 1}).items())


def at_once(trials: list[Trial]) -> int:
    """How many of these, which take as much, the cluster can place at once as it is now; at least one."""
    have, most = ray.cluster_resources(), most_there_can_be()
    counts = [max(have.get(kind, 0), most.get(kind, 0)) // amount for kind, amount in takes(trials[0])]
    return max(1, int(min(len(trials), *counts)))


def _run(asked: Sweep, trials: list[Trial], manifest: Manifest) -> None:
    """Trials that take as much and of which none waits for another, by Ray Tune.

    A trial whose process was lost starts again as often as `train.max_restarts` allows its workers to.
    """
    by_name, name = {one.name: one for one in trials}, new_attempt()
    limits = [one.run.train.max_restarts for one in trials]
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(drive, trials=by_name), HOLDS),
        param_space={"run": tune.grid_search(list(by_name))},
        tune_config=TuneConfig(
            max_concurrent_trials=at_once(trials),
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=RunConfig(
            name=name,
            storage_path=str(asked.directory / "ray"),
            failure_config=FailureConfig(max_failures=-1 if -1 in limits else max(limits)),
            callbacks=[told := Told(by_name)],
            verbose=0,
        ),
    )
    tuner.fit()
    for lost in told.lost:
        if not is_finished(one := by_name[lost], manifest.fingerprint):
            if not (note := read_note(one.run.directory)) or not note["errors"]:
                note_error(one, manifest, "its process was lost more often than train.max_restarts allows")
            close_run(one.run, "FAILED")
    shutil.rmtree(asked.directory / "ray" / name, ignore_errors=True)


class Told(Callback):
    """Says of each trial how it ended, when it does."""

    def __init__(self, trials: dict[str, Trial]):
        """Trials by name."""
        self.trials, self.ended, self.began, self.lost = trials, 0, dict[str, float](), set[str]()

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Note the time."""
        self.began.setdefault(trial.config["run"], time.monotonic())

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Print what its note says."""
        name = trial.config["run"]
        self.ended += 1
        one = self.trials[name]
        note = read_note(one.run.directory)
        error = next(filter(None, (error_of(note, changes) for changes in one.rows.values() or ({},))), "")
        how = f"has failed: {error}" if error else "is scored"
        seconds = time.monotonic() - self.began.get(name, time.monotonic())
        print(f"{self.ended} of {len(self.trials)}: {name} {how} ({seconds:.0f} s).", flush=True)

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """As one that came to its end; Ray's own result of it does not always know which it was."""
        self.lost.add(trial.config["run"])
        self.on_trial_complete(iteration, trials, trial)
