"""Which checkpoint is the best one, by a metric of what each writes about validation studies."""

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from r2kg.config.protocol import FINDING_METRICS, parse_choice, protocol_named, protocols_of
from r2kg.config.run import Run
from r2kg.rundir import RunFiles, read_json, saved_run
from r2kg.scoring.context import Answers, References
from r2kg.scoring.evaluate import score_protocol
from r2kg.scoring.metrics.meteor import Meteor, MeteorUnavailable, program
from r2kg.scoring.metrics.rule_labeler import LABELER
from r2kg.scoring.writing.writer import lines_of, write_reports
from r2kg.tracking import Tracker, tracking_note
from r2kg.training import launch
from r2kg.training.checkpoint import MANIFEST, checkpoints, complaints, find_checkpoint, prune, scored
from r2kg.training.features import features_or_films
from r2kg.training.plan import checked_manifest
from shards.errors import ConfigError, DataError
from shards.stream.index import Index
from shards.tars.place import sha256_of, write_atomic


def refuse_choice(run: Run) -> None:
    """ConfigError when `train.choose` asks for METEOR and this machine, which will choose, cannot compute it."""
    if "meteor" in parse_choice(run.train.choose, run.model.task):
        try:
            program()
        except MeteorUnavailable as error:
            raise ConfigError(
                f"train.choose={run.train.choose}: {error}, or choose by another metric. Nothing was trained"
            ) from error


def train(run: Run, writers: int = 0) -> dict:
    """`r2kg.training.launch.train`, then the choice of the best checkpoint, so that its reports can be had.

    Args:
        writers: as of `choose_checkpoint`.

    Raises:
        As the two do.
    """
    refuse_choice(run)
    summary = launch.train(run)
    if "stopped" not in summary:
        choose_checkpoint(run.absolute().directory, writers)
    return summary


def choose_checkpoint(run_directory: Path, writers: int = 0) -> Path | None:
    """Score every checkpoint of a trained run as `train.choose` says, then delete those that are no longer wanted.

    Each is generated with on the first `train.validation_studies` of the validation split and scored under the run's
    first protocol; RUN/validation/step-STEP.json holds what came out, and a choice that was killed goes on behind the
    last of them. The scores are recorded as val.METRIC at the checkpoint's step.

    Args:
        writers: actors that hold the model, as of `r2kg.scoring.generate.generate`.

    Returns:
        the best checkpoint; None under train.choose=loss, where training itself has measured it.

    Raises:
        ConfigError: no such metric.
        DataError: no study could be read, or a metric that is asked for cannot be computed here.
    """
    run = saved_run(run_directory)
    train, task, files = run.train, run.model.task, RunFiles(run.directory)
    if not (choice := parse_choice(train.choose, task)):
        return None
    protocol = protocol_named(protocols_of(run.protocols, task)[0])
    manifest = checked_manifest(run)
    of_data: dict[str, Any] = {"split": "val", "shards": manifest.fingerprint, "studies": train.validation_studies}
    of_data |= {"task": task, "protocol": protocol.name, "hash": protocol.hash}
    if not choice.keys().isdisjoint(FINDING_METRICS):
        of_data["labeler"] = LABELER
    if references := References.of(run.reference, manifest):
        references.refuse_lacking("val")
        of_data["reference"] = references.named
    waiting = []
    for checkpoint in checkpoints(run.directory):
        path, same = files.validation / f"{checkpoint.name}.json", False
        with suppress(ValueError):  # of a damaged one nothing is known
            same = read_json(path).items() >= of_data.items()
        if (not same or scored(checkpoint, train.choose) is None) and not complaints(checkpoint):
            path.unlink(missing_ok=True)  # of other weights, studies or rules
            waiting.append(checkpoint)
    if waiting:
        run = features_or_films(run, manifest)
        index = Index.open(run.data.shards, "val", run.data.on_bad)
        rows = references.rows(index, manifest, run.data.on_bad) if references else np.arange(len(index))
        rows = rows[: train.validation_studies]
        context = {"cleaning": manifest.cleaning, "floor": {}}
        if protocol.threshold:
            answers = Answers(run.data.shards, manifest, task, run.data.on_bad)
            context["vocabulary"] = answers.vocabulary(protocol.threshold)
        files.validation.mkdir(exist_ok=True)
        tracker = Tracker(run)
        try:
            with Meteor() as meteor:
                for checkpoint in waiting:
                    print(f"{run.name}: scoring {checkpoint.name} by {train.choose}, {len(waiting)} in all.")
                    sha256 = sha256_of(checkpoint / MANIFEST)
                    side = "".join(f"-{digest[:8]}" for digest in of_data.get("reference", {}).values())
                    parts = files.validation / f"{checkpoint.name}-{sha256[:8]}-{train.validation_studies}{side}"
                    write_reports(run, index, manifest.licence, checkpoint, writers, parts, rows)
                    lines = [line for _, line in lines_of(parts) if "unread" not in line]
                    shutil.rmtree(parts)
                    if not lines:
                        raise DataError(f"no validation study of {run.data.shards} can be read: nothing to choose by")
                    result = score_protocol(protocol, lines, None, context, meteor)
                    values = {name: value for name, value in result["score"].items() if value is not None}
                    if missing := [name for name in choice if name not in values]:
                        raise DataError(
                            f"train.choose={train.choose} cannot be computed here: "
                            f"{result['unavailable'].get(missing[0], missing[0])}; submit the run again where it can, "
                            "or with another train.choose"
                        )
                    tracker.log(
                        int(checkpoint.name.removeprefix("step-")), **{f"val.{k}": v for k, v in values.items()}
                    )
                    record = {"checkpoint_sha256": sha256, "scored": len(lines)}
                    content = json.dumps(of_data | record | {"values": values}, indent=1, sort_keys=True)
                    write_atomic(files.validation / f"{checkpoint.name}.json", content.encode())
        finally:
            print(tracking_note(tracker.close(), tracker))
    best = find_checkpoint(run.directory, "best")
    prune(run.directory, train.checkpoints_kept, chosen=True)
    print(f"The best checkpoint by {train.choose} is {best.name}: {scored(best, train.choose):.4f}.")
    return best
