"""The driver prints each sentence of the log once, when it is whole."""

import json
import math

from r2kg.rundir import RunFiles
from r2kg.training.progress import newest_loss, progress


def test_only_what_is_new_and_whole_is_printed(tmp_path, capsys):
    files = RunFiles(tmp_path)
    files.log.write_text("of an earlier attempt\n")
    with progress(files, steps=3), files.log.open("a") as log:
        log.write("Checkpoint at step 1.\nCheckpo")
    assert capsys.readouterr().out == "Checkpoint at step 1.\n"


def test_the_newest_record_with_a_loss_counts(tmp_path):
    records = tmp_path / "metrics.jsonl"
    assert newest_loss(records)[0] == 0 and math.isnan(newest_loss(records)[1])
    rows = [(1, {"train.loss": 3.0}), (2, {"train.loss": 2.0}), (2, {"val.loss": 4.0})]
    records.write_text(
        "".join(json.dumps({"step": step, "time_ms": 0, "metrics": metrics}) + "\n" for step, metrics in rows)
    )
    assert newest_loss(records) == (2, 2.0)
    with records.open("a") as file:
        file.write('{"step": 3, "metr\n\0\0\n')
    assert newest_loss(records) == (2, 2.0)
