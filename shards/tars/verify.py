"""Shards compared with what their manifest says of them."""

from concurrent.futures import ThreadPoolExecutor
from typing import Literal, Protocol

from shards.errors import DataError
from shards.tars.archive import walk_tar
from shards.tars.manifest import FILE, Manifest, Shard, sha256_of
from shards.tars.place import Place, place, size_of
from shards.tars.shard_index import ShardIndex, index_path, read_shard_index
from shards.tars.tally import Tally

How = Literal["sha256", "size"]
THREADS = 8


def faults_of(root: str | Place, manifest: Manifest, how: How = "sha256") -> list[str]:
    """One sentence for every tar that is missing or changed and every index that is torn.

    "size" reads no tar, "sha256" every byte.
    """
    root = place(root)
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(lambda shard: [tar_fault(root, shard, how), _index_fault(root, shard)], manifest.shards)
        return [fault for pair in found for fault in pair if fault]


def verify(root: str | Place, manifest: Manifest, how: How = "sha256") -> None:
    """DataError naming everything that `faults_of` finds."""
    if faults := faults_of(root, manifest, how):
        raise DataError(
            f"shards under {root} differ from {FILE} in {len(faults)} places: {'; '.join(faults)}. A run on them would "
            f"not be the run of fingerprint {manifest.fingerprint[:12]}, and its scores could not be compared. Way "
            "out: run `r2kg shard` with the same settings again (whole shards are kept), or copy the named files from "
            "where they were made"
        )


def contents_faults(root: str | Place, manifest: Manifest) -> list[str]:
    """What `faults_of` finds, and whether every index points at its tar's members and all counts add up."""
    root = place(root)
    faults, tally = faults_of(root, manifest), Tally()
    for shard in manifest.shards:
        try:
            index = tally.add(index_path(root / shard.name))
            faults += _span_faults(root, shard, index)
        except DataError as error:
            faults.append(str(error)) if not any(shard.name.removesuffix(".tar") in f for f in faults) else None
    if not faults and (counted := tally.splits()) != manifest.splits:
        faults.append(f"{FILE} counts {_counts(manifest.splits)}, the indices hold {_counts(counted)}")
    return faults


class Described(Protocol):
    """What a manifest says of a tar."""

    name: str
    bytes: int
    sha256: str


def tar_fault(root: Place, shard: Described, how: How, manifest: str = "the manifest") -> str:
    """How a tar differs from what `manifest` says of it; "" when it does not."""
    path = root / shard.name
    if (size := size_of(path)) < 0:
        return f"{shard.name} is missing"
    if size != shard.bytes:
        return f"{shard.name} has {size} bytes, {manifest} says {shard.bytes}"
    if how == "sha256" and (found := sha256_of(path)) != shard.sha256:
        return f"{shard.name} has sha256 {found[:12]}, {manifest} says {shard.sha256[:12]}"
    return ""


def _index_fault(root: Place, shard: Shard) -> str:
    name = index_path(root / shard.name).name
    try:
        index = read_shard_index(root / name)
    except DataError:
        return f"{name} is missing or torn"
    if index.sha256 != shard.sha256 or len(index.studies) != shard.studies:
        return f"{name} describes another tar ({len(index.studies)} studies, sha256 {index.sha256[:12]})"
    return ""


def _span_faults(root: Place, shard: Shard, index: ShardIndex) -> list[str]:
    there = {member.name: (member.offset, member.size) for member in walk_tar(root / shard.name).members}
    said = {f"{entry.key}.{name}": span for entry in index.studies for name, span in entry.members.items()}
    wrong = sorted(name for name in there.keys() | said.keys() if there.get(name) != said.get(name))
    return [f"{shard.name} and its index differ in {len(wrong)} members, first {wrong[0]}"] if wrong else []


def _counts(splits: dict) -> str:
    return ", ".join(f"{split} {count.studies}/{count.images}/{count.patients}" for split, count in splits.items())
