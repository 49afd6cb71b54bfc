"""What shards and sides hold and lack, in words: counts beside the published ones, what was left out and why."""

from collections import defaultdict
from collections.abc import Iterator

from rich.table import Table

from shards.privacy import terms_of
from shards.study import SPLITS
from shards.tars.format import DROPS_FILE, WARNINGS_FILE, Manifest, dropped_in, warned_in
from shards.tars.kinds import SideManifest
from shards.tars.place import Place, place

SHOWN = 20


def counts_table(manifest: Manifest) -> Table:
    """Studies, films and patients of every split, ours beside the published ones where there are any."""
    published = manifest.published
    citation = f"published: {published.citation}" if published else "no published counts to compare with"
    table = Table(title=f"{manifest.source}, {manifest.cleaning}, {manifest.licence}", caption=citation)
    table.add_column("split")
    for what in ("studies", "films", "patients"):
        table.add_column(what, justify="right")
        if published:
            table.add_column(f"published {what}", justify="right")
    for split in SPLITS:
        ours, theirs = manifest.splits[split], published.splits.get(split) if published else None
        cells = []
        for field in ("studies", "images", "patients"):
            cells.append(f"{getattr(ours, field):,}" if getattr(ours, field) else "–")
            if published:
                cells.append(f"{getattr(theirs, field):,}" if theirs and getattr(theirs, field) else "–")
        table.add_row(split, *cells)
    return table


def receipt_lines(root: str | Place, manifest: Manifest) -> Iterator[str]:
    """Drops by reason with the first of each named, warnings, notes, terms, and the sum that must hold."""
    root, drops, warned = place(root), defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)
    for drop in dropped_in(root):
        if len(drops[drop.reason]) < SHOWN:
            drops[drop.reason].append(f"  {drop.id}{f' ({drop.split})' if drop.split else ''}: {drop.detail}")
    for remark in warned_in(root):
        if len(warned[remark.warning]) < SHOWN:
            warned[remark.warning].append(remark.of)
    for reason, count in manifest.drops.items():
        yield f"Dropped {count:,}: {reason}"
        yield from drops[reason]
        if count > SHOWN:
            yield f"  and {count - SHOWN:,} more, all named in {DROPS_FILE}"
    for what, count in manifest.warnings.items():
        more = f" and {count - SHOWN:,} more, all named in {WARNINGS_FILE}" if count > SHOWN else ""
        yield f"Warning: {what} ({count:,}): {'; '.join(warned[what])}{more}"
    for note in manifest.notes:
        yield f"Note: {note}"
    yield f"Terms: {manifest.licence} ({terms_of(manifest.licence).summary})."
    used = manifest.given - manifest.dropped
    yield f"{manifest.given:,} studies given, {used:,} used, {manifest.dropped:,} dropped."
    yield f"Fingerprint {manifest.fingerprint[:12]}; content {manifest.content[:12]}, the same under any salt."


def side_lines(side: SideManifest) -> list[str]:
    """What a side holds and lacks, in sentences; studies given = with + without."""
    lines = []
    for split in dict.fromkeys(shard.split for shard in side.shards):
        mine = [shard for shard in side.shards if shard.split == split]
        given, held = sum(shard.studies for shard in mine), sum(shard.held for shard in mine)
        lines.append(f"{split:6} {given:>8,} studies {held:>8,} with {side.kind} {given - held:>8,} without")
    lines += [f"Without: {cause}: {count:,}" for cause, count in side.without.items()]
    lines += [f"{what}: {count:,}" for what, count in side.totals.items()]
    lines += [f"Largest, {what}: {count:,}" for what, count in side.largest.items()]
    lines += [f"Warning: {what}: {len(names)} ({', '.join(names[:9])})" for what, names in side.warnings.items()]
    return [*lines, f"Fingerprint {side.fingerprint[:12]}, of shards {side.parent[:12]}."]
