"""Counts over the indices of a directory of shards, one index in memory at a time."""

from collections import defaultdict
from dataclasses import dataclass, field

from shards.sources import SplitCount
from shards.study import SPLITS, Drop
from shards.tars.manifest import Shard
from shards.tars.place import Place
from shards.tars.shard_index import ShardIndex, read_shard_index

PATIENT_IN_TWO_SPLITS = "patient in two splits"
FILM_IN_TWO_SPLITS = "film in two splits"


@dataclass
class Tally:
    """What the manifest says of shards, summed up index by index."""

    shards: list[Shard] = field(default_factory=list)
    drops: list[Drop] = field(default_factory=list)
    twins: list[str] = field(default_factory=list)
    """"KEY (split) = KEY (split)" for every film whose stored bytes also stand in another split."""
    _repaired: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    _patients: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    _films: dict[bytes, tuple[str, str]] = field(default_factory=dict)

    def add(self, path: Place) -> ShardIndex:
        """Count one index; DataError when it cannot be read."""
        index = read_shard_index(path)
        images = sum(len(entry.members) - 1 for entry in index.studies)
        what = {"name": index.name, "split": index.split, "bytes": index.bytes, "sha256": index.sha256}
        self.shards.append(Shard(studies=len(index.studies), images=images, **what))
        self.drops += index.drops
        for reason, ids in index.warnings.items():
            self._repaired[reason] += ids
        for entry in index.studies:
            if entry.patient:
                self._patients[index.split].add(entry.patient)
            for digest in entry.films:
                key, split = self._films.setdefault(bytes.fromhex(digest), (entry.key, index.split))
                if split != index.split:
                    self.twins.append(f"{key} ({split}) = {entry.key} ({index.split})")
        return index

    def splits(self) -> dict[str, SplitCount]:
        """Studies, films and patients of every split."""
        mine = {split: [shard for shard in self.shards if shard.split == split] for split in SPLITS}
        return {
            split: SplitCount(
                studies=sum(shard.studies for shard in shards),
                images=sum(shard.images for shard in shards),
                patients=len(self._patients[split]),
            )
            for split, shards in mine.items()
        }

    def warnings(self) -> dict[str, tuple[str, ...]]:
        """What was repaired → the studies."""
        return {reason: tuple(ids) for reason, ids in self._repaired.items()}
