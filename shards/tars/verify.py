"""Tars and indices compared with what their manifest says of them: shards and sides alike."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from shards.errors import DataError
from shards.sources.archive import walk_tar
from shards.tars.format import (
    DROPS_FILE,
    SHARDS_FILE,
    WARNINGS_FILE,
    Manifest,
    Tally,
    Tar,
    counted,
    counts_of,
    dropped_in,
    index_path,
    read_index,
    warned_in,
)
from shards.tars.place import Place, place, sha256_of, size_of

How = Literal["sha256", "size"]
THREADS = 8


def faults_of(root: str | Place, tars: Sequence[Tar], how: How = "sha256", fresh: bool = False) -> list[str]:
    """One sentence for every tar that is missing or changed and every index that is torn.

    "size" reads no tar, "sha256" every byte that this machine has not read before (`sha256_of`), with `fresh` all;
    indices are always read.
    """
    root = place(root)

    def faults(tar: Tar) -> list[str]:
        path, wrong = root / tar.name, ""
        try:
            if (size := size_of(path)) < 0:
                wrong = f"{tar.name} is missing"
            elif size != tar.bytes:
                wrong = f"{tar.name} has {size} bytes, the manifest says {tar.bytes}"
            elif how == "sha256" and (digest := sha256_of(path, fresh)) != tar.sha256:
                wrong = f"{tar.name} has sha256 {digest[:12]}, the manifest says {tar.sha256[:12]}"
        except OSError as error:
            wrong = f"{tar.name} cannot be read: {error.strerror or type(error).__name__}"
        try:
            read_index(root, tar)
        except DataError as error:
            return [wrong, str(error)] if wrong else [str(error)]
        return [wrong] if wrong else []

    with ThreadPoolExecutor(THREADS) as pool:
        return [fault for found in pool.map(faults, tars) for fault in found]


def verify(root: str | Place, manifest: Manifest, how: How = "sha256") -> None:
    """DataError naming everything that `faults_of` finds in shards."""
    if faults := faults_of(root, manifest.shards, how):
        raise DataError(
            f"shards under {root} differ from {SHARDS_FILE} in {len(faults)} places: {'; '.join(faults)}. A run on "
            f"them would not be that of fingerprint {manifest.fingerprint[:12]}, and its scores could not be compared. "
            "Way out: run `r2kg shard` with the same settings again (whole shards are kept), or copy the named files "
            "from where they were made"
        )


def contents_faults(root: str | Place, manifest: Manifest) -> list[str]:
    """What `faults_of` finds, and whether every index points at its tar's members and all counts add up."""
    root, tally = place(root), Tally()
    faults = faults_of(root, manifest.shards, fresh=True)
    for shard in manifest.shards:
        try:
            index = read_index(root, shard)
            tally.add(index)
            there = {member.name: (member.offset, member.size) for member in walk_tar(root / shard.name).members}
            spans = {f"{e.key}.{name}": span[:2] for e in index.studies for name, span in e.members.items()}
            if wrong := sorted(name for name in there.keys() | spans.keys() if there.get(name) != spans.get(name)):
                faults.append(f"{shard.name} and its index differ in {len(wrong)} members, first {wrong[0]}")
        except DataError as error:
            known = any(name in fault for fault in faults for name in (shard.name, index_path(root / shard.name).name))
            faults += [] if known else [str(error)]
    for name, said, lines in (
        (DROPS_FILE, manifest.drops, (drop.reason for drop in dropped_in(root))),
        (WARNINGS_FILE, manifest.warnings, (remark.warning for remark in warned_in(root))),
    ):
        if (named := counted(lines)) != said:
            faults.append(f"{name} names {sum(named.values())} of {sum(said.values())} that {SHARDS_FILE} counts")
    if not faults and (counts := tally.splits()) != manifest.splits:
        faults.append(f"{SHARDS_FILE} counts {counts_of(manifest.splits)}, the indices hold {counts_of(counts)}")
    return faults
