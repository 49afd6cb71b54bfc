"""Train and score a paper's table, row by row and seed by seed."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from jobs.cli import run, without_gpu_warning
from r2kg.config.overrides import parse_overrides
from tune.plan import Sweep
from tune.tables import TABLES, find_table


def main(
    table: Annotated[str, typer.Argument(help="a table's name; without one they are listed")] = "",
    changes: Annotated[
        list[str] | None, typer.Argument(help="key=value for every row that has such a field, e.g. data.shards=iu")
    ] = None,
    tiny: Annotated[bool, typer.Option("--tiny", help="on drawn films at small sizes, with what that needs")] = False,
    seeds: Annotated[int, typer.Option(min=0, help="runs of each row; 0: as many as the table has")] = 0,
    rows: Annotated[list[str] | None, typer.Option(help="this row alone; may be given more than once")] = None,
    root: Annotated[Path, typer.Option(help="directory of the runs")] = Path("runs"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the trials and their hashes, train none")] = False,
) -> None:
    """Every trial is an ordinary run, trained, written and scored; then the table is written as by `r2kg table`.

    The same command goes on after a kill: trials that have scores are not repeated, others continue from their newest
    checkpoint. A trial that fails is named in the table, and the others go on; exit code 1 then.
    """
    if not table:
        for one in TABLES.values():
            print(f"{one.name:22} {one.shows}")
        return
    asked = find_table(table)
    own = {"root": str(root)} | parse_overrides(changes or [])
    root = Path(own.pop("root"))
    whole = Sweep(asked, tiny, seeds, rows or (), root, own)
    if dry_run:
        for trial in whole.trials():
            named = [f"{row} {json.dumps(how)}" if how else row for row, how in trial.rows.items()]
            print(f"{trial.hash[:16]}  {trial.name}  {', '.join(named) or 'first stage'}")
        return
    without_gpu_warning(tiny)
    if tiny:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    whole.trials()
    # Ray and torch take seconds, for which what is refused without them need not wait
    from tune.report import write_table
    from tune.sweep import sweep

    sweep(whole)
    written = write_table(asked, whole.directory)
    print(written.markdown)
    print(written.note)
    print(written.files[0])
    sys.exit(1 if written.lacking else 0)


if __name__ == "__main__":
    run(main)
