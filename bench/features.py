"""What streaming features costs beside streaming films: studies per second of the two, in turn, and their ratio.

The features have the shape that Swin-Base makes of 224 px films and random content; no encoder runs here. What a run
gains beside this is the encoder's time. Only ratios within a round are compared, as in `bench.ingest`.

    python -m bench.features
"""

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import ray
import typer

from bench.ingest import IMAGE_PX, MICRO_BATCH, SIZE, VIEWS, machine, make_films, start_ray, timed
from jobs.cli import run
from shards.stream.blocks import read_batches, rows_per_block, stream_blocks
from shards.stream.index import Index, open_splits
from shards.stream.order import plan
from shards.tars.format import read_manifest
from shards.tars.kinds import KINDS
from shards.tars.sides import Maker, write_side
from shards.tars.write import Made

PATCHES, WIDTH = 49, 1024
FILM_BYTES = 2 * PATCHES * WIDTH


def drawn_features(index: Index, rows: range, given: bytes) -> Iterator[Made]:
    """Random bits of the right shape for every study."""
    rng = np.random.default_rng(rows.start)
    return (Made({KINDS["features"].suffix: rng.bytes(VIEWS * FILM_BYTES)}) for _ in rows)


def make_features(root: Path) -> Path:
    """A side of features of the shards at `root`; whole tars are kept."""
    manifest, out = read_manifest(root), root / "side" / "drawn"
    description = {"views": VIEWS, "patches": PATCHES, "width": WIDTH, "dtype": "bf16", "encoder": "none: random bits"}

    def build() -> Maker:
        return drawn_features

    write_side(root, out, "features", manifest, open_splits(root, manifest), description, build)
    return out


def streamed(root: Path, index: Index, epochs: int, features: Path | None) -> Iterator[int]:
    """Several epochs in the planned order, one rank."""
    rows = len(index) * epochs
    block = rows_per_block(IMAGE_PX, VIEWS, rows, FILM_BYTES if features else 0)
    blocks = plan(len(index), 0, 0, rows // MICRO_BATCH, MICRO_BATCH, 1, block)
    stream = stream_blocks(
        root, "train", blocks, IMAGE_PX, VIEWS, index=index, sides={"features": features} if features else None
    )
    for batch in read_batches(stream, MICRO_BATCH):
        yield len(batch["valid"])


def main(
    shards: Annotated[Path, typer.Option(help="directory in which the films are kept")] = Path("runs/bench-films"),
    studies: Annotated[int, typer.Option(help="studies of two films; a multiple of 8")] = 2000,
    distinct: Annotated[int, typer.Option(help="different drawings among them")] = 64,
    epochs: Annotated[int, typer.Option(help="passes of a round over films; features make four times as many")] = 2,
    rounds: Annotated[int, typer.Option(help="rounds of both")] = 5,
    cores: Annotated[int, typer.Option(help="cores that the stream gets")] = 2,
) -> None:
    """Measure; the last line is features / films, the median of the rounds' steady ratios."""
    facts, ratios = machine(), []
    start_ray(cores)
    root = make_films(shards.resolve(), studies, distinct, SIZE)
    index, features = Index.open(root, "train"), make_features(root)
    for number in range(rounds):
        films = timed(lambda: streamed(root, index, epochs, None), studies * epochs)
        stored = timed(lambda: streamed(root, index, 4 * epochs, features), studies * 4 * epochs)
        ratios.append(stored.steady / films.steady)
        print(f"round {number + 1}: films {films.steady:,.0f}, features {stored.steady:,.0f} studies/s")
    ray.shutdown()
    print(f"{facts}; {VIEWS} films of {IMAGE_PX} px or [{PATCHES}, {WIDTH}] bf16 a film, on {cores} cores")
    print(f"features_to_films={statistics.median(ratios):.2f}")


if __name__ == "__main__":
    run(main)
