"""Drawn shards written in this process by what the tasks of a run call, without a cluster."""

from pathlib import Path

from shards.sources.phantom.source import Phantom
from shards.tars.format import Manifest, Shard, Tally, described, write_manifest
from shards.tars.shards import Settings, plan_shards, recipe_of, write_shard


def plain_shards(root: Path, studies: int = 12, per_tar: int = 4, licence: str = "synthetic") -> Manifest:
    """Studies of two 64 px films, said to be under `licence`."""
    source, tally, shards = Phantom(studies=studies, size=64), Tally(), []
    settings = Settings(out=str(root), cleaning=source.cleaning, size=64)
    for job in plan_shards(source.listing().items, per_tar, recipe_of(source, settings)):
        write_shard(source, settings, job)
        index, tar = described(root, job.name)
        shards.append(Shard(images=tally.add(index), **tar))
    manifest = Manifest(
        source=source.name, licence=licence, cleaning=source.cleaning, size_px=64, quality=95,
        splits=tally.splits(), shards=tuple(shards), content=tally.content(),
    )  # fmt: skip
    return write_manifest(root, manifest)
