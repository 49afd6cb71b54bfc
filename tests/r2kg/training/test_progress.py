"""The driver prints each sentence of the log once, when it is whole."""

import json
import re
import time

from r2kg.rundir import RunFiles
from r2kg.training.progress import Lines, newest_record, progress


def test_only_what_is_new_and_whole_is_printed(tmp_path, capsys):
    files = RunFiles(tmp_path)
    files.log.write_text("of an earlier attempt\n")
    with progress(files, steps=3), files.log.open("a") as log:
        log.write("Checkpoint at step 1.\nCheckpo")
    assert capsys.readouterr().out == "Checkpoint at step 1.\n"


def test_the_newest_record_with_a_loss_counts(tmp_path):
    records = tmp_path / "metrics.jsonl"
    assert newest_record(records) is None
    rows = [(1, {"train.loss": 3.0}), (2, {"train.loss": 2.0}), (2, {"val.loss": 4.0})]
    records.write_text(
        "".join(json.dumps({"step": step, "time_ms": 0, "metrics": metrics}) + "\n" for step, metrics in rows)
    )
    assert newest_record(records) == (2, {"train.loss": 2.0})
    with records.open("a") as file:
        file.write('{"step": 3, "metr\n\0\0\n')
    assert newest_record(records) == (2, {"train.loss": 2.0})


def test_how_far_it_is_is_said_now_and_then_where_no_bar_is_drawn():
    lines, metrics = Lines(1000), {"train.loss": 2.3456, "train.lr": 0.003, "train.studies_per_s": 41.27}
    metrics |= {"train.peak_gb": 1.23456, "train.padding": 0.0612}
    assert lines.next(300, metrics, 0.0) == "", "it may be of an earlier attempt"
    told = "step 310 of 1000: loss 2.346, lr 0.003, 41.3 studies/s, at most 1.23 GB, 6 % padding, 69 s left"
    assert lines.next(310, metrics, 1.0) == told
    assert lines.next(320, metrics, 9.0) == ""
    assert lines.next(320, metrics, 12.0).startswith("step 320 of 1000")
    assert lines.next(320, metrics, 60.0) == "", "nothing is new in a long validation"
    assert lines.next(400, {"train.loss": 2.0}, 100.0) == "step 400 of 1000: loss 2.000, 10 min left"
    assert lines.next(401, {"train.loss": 2.0}, 2000.0).endswith("3.3 h left")


def test_steps_that_are_taken_again_after_a_loss_count_from_where_they_begin():
    lines, metrics = Lines(1000), {"train.loss": 2.0}
    assert lines.next(990, metrics, 0.0) == "" == lines.next(510, metrics, 60.0)
    assert lines.next(520, metrics, 70.0) == "step 520 of 1000: loss 2.000, 8 min left"


def test_a_run_that_is_piped_says_how_far_it_is(tmp_path, capsys):
    files = RunFiles(tmp_path)
    with progress(files, steps=40):
        for step in (10, 20):
            record = {"step": step, "time_ms": 0, "metrics": {"train.loss": 3.0}}
            with files.metrics.open("a") as file:
                file.write(json.dumps(record) + "\n")
            time.sleep(1.3)
    assert re.fullmatch(r"step 20 of 40: loss 3.000, \d+ s left\n", capsys.readouterr().out)
