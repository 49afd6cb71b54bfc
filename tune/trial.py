"""A trial: an ordinary run that is trained, written and scored, and beside it a note of how that ended."""

import traceback
from pathlib import Path
from typing import Any

from r2kg.config.run import Run
from r2kg.rundir import saved_run
from r2kg.scoring.choose import choose_checkpoint
from r2kg.scoring.evaluate import evaluate
from r2kg.scoring.generate import generate
from r2kg.tracking import track_scores
from r2kg.training.launch import train
from shards.errors import RetryableError, may_pass
from shards.privacy import OURS, fenced
from shards.tars.format import read_manifest
from tune.plan import decoding_key, note_error, write_note
from tune.rows import Trial


def train_and_score(
    run: Run, shards: Path | str, decodings: tuple[dict[str, Any], ...] = ({},)
) -> dict[str, dict[str, Any]]:
    """Train a run, write its reports on the test split and score them; what is there already is not done again.

    Args:
        decodings: changes of the run for generation, one set of reports for each.

    Returns:
        decoding as JSON → what is in scores.json, and its "path".

    Raises:
        What training, generation and scoring raise.
    """
    train(run)
    choose_checkpoint(run.directory)
    done = {}
    for changes in decodings:
        predictions = generate(saved_run(run.directory).change(changes), str(shards))
        scores = evaluate(predictions, run.protocols)
        print(track_scores(predictions, scores), flush=True)
        path = predictions.with_name("scores.json").resolve()
        done[decoding_key(changes)] = scores | {"path": path}
    return done


def carry_out(trial: Trial) -> None:
    """Train and score a trial, and note how that ended; what will fail again is noted and not raised.

    Raises:
        RetryableError: something was lost; the same call goes on from the newest checkpoint.
    """
    run, manifest = trial.run, read_manifest(trial.run.data.shards)
    decodings = {decoding_key(changes): changes for changes in trial.rows.values()}
    try:
        done = train_and_score(run, run.data.shards, tuple(decodings.values()))
    except Exception as error:
        shown = fenced(error, manifest.licence, run.privacy.allow_text)
        note_error(trial, manifest, f"{type(shown).__name__}: {shown}")
        if isinstance(error, RetryableError) or may_pass(error):
            raise RetryableError(f"{run.name}: {shown}") from None
        if not isinstance(error, OURS) and shown is error:
            traceback.print_exc()
        return
    scores = {key: str(one["path"].relative_to(run.directory.resolve())) for key, one in done.items()}
    write_note(run, {"hash": trial.hash, "shards": manifest.fingerprint, "scores": scores, "error": ""})
