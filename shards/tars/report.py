"""What shards and sides hold and lack, in words: counts beside the published ones, what was left out and why."""

from collections.abc import Iterator

from rich.table import Table

from shards.privacy import terms_of
from shards.study import SPLITS
from shards.tars.format import Manifest
from shards.tars.kinds import SideManifest

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


def receipt_lines(manifest: Manifest) -> Iterator[str]:
    """Drops by reason with the first of each named, warnings, notes, terms, and the sum that must hold."""
    for reason, count in manifest.drop_counts().items():
        named = [drop for drop in manifest.drops if drop.reason == reason][:SHOWN]
        yield f"Dropped {count:,}: {reason}"
        for drop in named:
            yield f"  {drop.id}{f' ({drop.split})' if drop.split else ''}: {drop.detail}"
        if count > len(named):
            yield f"  and {count - len(named):,} more, all named in manifest.json"
    for what, found in manifest.warnings.items():
        more = f" and {len(found) - SHOWN:,} more" if len(found) > SHOWN else ""
        yield f"Warning: {what} ({len(found):,}): {'; '.join(found[:SHOWN])}{more}"
    for note in manifest.notes:
        yield f"Note: {note}"
    yield f"Terms: {manifest.licence} ({terms_of(manifest.licence).summary})."
    used = manifest.given - len(manifest.drops)
    yield f"{manifest.given:,} studies given, {used:,} used, {len(manifest.drops):,} dropped."
    yield f"Fingerprint {manifest.fingerprint[:12]}."


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
