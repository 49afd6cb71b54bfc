"""Write a table of a sweep, or of what there is of it."""

from pathlib import Path
from typing import Annotated

import typer

from jobs.cli import run
from tune.rows import directory_name
from tune.tables import find_table


def main(
    table: Annotated[str, typer.Argument(help="a name that `r2kg sweep` lists")],
    tiny: Annotated[bool, typer.Option("--tiny", help="that of `r2kg sweep TABLE --tiny`")] = False,
    root: Annotated[Path, typer.Option(help="directory of the runs")] = Path("runs"),
) -> None:
    """Row, the paper's figure, ours with its interval over seeds, whether they agree within noise, the floor.

    As Markdown, HTML, LaTeX and a plot in ROOT/TABLE, and in MLflow. Rows that failed or are lacking say so.
    """
    asked = find_table(table)
    from tune.report import write_table  # a second of scipy and matplotlib

    written = write_table(asked, root.expanduser().resolve() / directory_name(asked, tiny))
    print(written.markdown)
    print(written.note)
    print(written.files[0])


if __name__ == "__main__":
    run(main)
