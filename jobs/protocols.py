"""List the scoring protocols, or print one."""

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from jobs.cli import run
from r2kg.config.protocol import EQUALS, PROTOCOLS, protocol_named


def main(name: Annotated[str, typer.Argument(help="print this one in full; default: list all")] = "") -> None:
    """Print every protocol's name, hash, task and rules, and which published numbers it equals."""
    if name:
        protocol = protocol_named(name)
        print(f"{protocol.name} {protocol.hash}: {EQUALS[name]}")
        print(json.dumps(protocol.model_dump(), indent=1))
        return
    table = Table(caption="`r2kg protocols NAME` prints one in full; equal hashes, comparable scores", show_lines=True)
    for column in ("name", "hash", "task", "section", "reference cleaned", "cut", "equals"):
        table.add_column(column, no_wrap=column in ("name", "hash"))
    for protocol in PROTOCOLS.values():
        cut = {"none": "–", "r2gen": f"{(protocol.max_length or 1) - 1} words, rarer than {protocol.threshold}: <unk>"}
        cut["tokens"] = f"{protocol.max_length} tokens"
        of_reports = protocol.task == "report"
        cells = [protocol.section, protocol.cleaning] if of_reports else ["–", "–"]
        words = [
            protocol.name,
            protocol.hash,
            protocol.task,
            *cells,
            cut[protocol.reference_cut],
            EQUALS[protocol.name],
        ]
        table.add_row(*words)
    Console(width=150).print(table)


if __name__ == "__main__":
    run(main)
