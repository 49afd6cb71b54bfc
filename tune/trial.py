"""A trial: an ordinary run that is trained, written and scored, and beside it a note of how that ended."""

import time
import traceback
from pathlib import Path
from typing import Any

from r2kg.attempts.lease import HeldError
from r2kg.config.run import Run
from r2kg.rundir import saved_run
from r2kg.scoring.choose import train
from r2kg.scoring.evaluate import evaluate
from r2kg.scoring.generate import generate
from r2kg.tracking import close_run, track_scores
from shards.errors import RetryableError, WaitedError, may_pass
from shards.privacy import OURS, fenced
from shards.tars.format import Manifest, read_manifest
from tune.plan import begun_note, decoding_key, write_note
from tune.rows import Trial

LOOK_AGAIN_SECONDS = 10.0
"""After which a run that another process holds is looked at again."""


def train_and_score(run: Run, shards: Path | str) -> dict[str, Any]:
    """Train a run, write its reports on the test split and score them; what is there already is not done again.

    Returns:
        what is in scores.json, and its "path".

    Raises:
        What training, generation and scoring raise.
    """
    train(run, writers_of(run))
    return write_and_score(run, shards, {})


def write_and_score(run: Run, shards: Path | str, changes: dict[str, Any]) -> dict[str, Any]:
    """`train_and_score` of a run that is trained, with changes of its decoding."""
    predictions = generate(saved_run(run.directory).change(changes), str(shards), writers=writers_of(run))
    scores = evaluate(predictions, run.protocols)
    print(track_scores(predictions, scores), flush=True)
    return scores | {"path": predictions.with_name("scores.json").resolve()}


def writers_of(run: Run) -> int:
    """As many GPUs as the run trains on, so that trials beside it keep theirs; 0, `generate`'s own choice, on CPUs."""
    return run.train.workers if run.train.gpus else 0


def carry_out(trial: Trial) -> None:
    """Train and score a trial, and note how that ended; what will fail again is noted and not raised.

    While another process trains or writes the same run this one waits, and goes on with what that has left.

    Raises:
        RetryableError: something was lost; the same call goes on from the newest checkpoint.
    """
    manifest, said = read_manifest(trial.run.data.shards), ""
    while True:
        try:
            return attempt(trial, manifest)
        except HeldError as error:
            if f"{error}" != said:
                said = f"{error}"
                print(f"{said}. Waiting for it.", flush=True)
            time.sleep(LOOK_AGAIN_SECONDS)


def attempt(trial: Trial, manifest: Manifest) -> None:
    """`carry_out`, once; HeldError, of which nothing is noted, where another process has the run."""
    run, errors = trial.run, dict[str, str]()

    def note(scores: dict[str, str]) -> None:
        begun = begun_note(trial, manifest)  # read anew: another table's trial may have written meanwhile
        write_note(run, {**begun, "scores": begun["scores"] | scores, "errors": errors})

    def failed(key: str, error: Exception) -> None:
        shown = fenced(error, manifest.licence, run.privacy.allow_text)
        errors[key] = f"{type(shown).__name__}: {shown}"
        run.directory.mkdir(parents=True, exist_ok=True)
        note({})
        close_run(run, "FAILED")
        if not isinstance(error, WaitedError) and (isinstance(error, RetryableError) or may_pass(error)):
            raise RetryableError(f"{run.name}: {shown}") from None
        if not isinstance(error, OURS) and shown is error:
            traceback.print_exception(error)

    if run.directory.exists():
        note({})  # what an earlier call failed of says nothing of this one
    try:
        train(run, writers_of(run))
    except HeldError:
        raise
    except Exception as error:
        return failed("", error)
    for changes in {decoding_key(one): one for one in trial.rows.values() or ({},)}.values():
        try:
            path = write_and_score(run, run.data.shards, changes)["path"]
            note({decoding_key(changes): str(path.relative_to(run.directory.resolve()))})
        except HeldError:
            raise
        except Exception as error:
            failed(decoding_key(changes), error)
