"""What a run needs and does not train: made once before workers start, for all runs of a root, in ROOT/artefacts."""

import hashlib
import json
import shutil
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import ray
from filelock import FileLock

from r2kg.config.needs import Artefact
from r2kg.config.run import Run
from shards.session import connect_ray
from shards.tars.format import Manifest
from shards.tars.place import sha256_of, write_atomic

CARD = "artefact.json"
"""In an artefact's directory, written last: name, settings, sha256 of every file, fingerprint of all of them."""


def prepared(run: Run, manifest: Manifest) -> tuple[Run, dict[str, dict[str, Any]]]:
    """Make what the system asks for and is not there yet.

    Returns:
        the run with the artefacts' directories in its fields, which is what run.json then names, and for every
        artefact {"path", "settings", "fingerprint"}, for the checkpoint's state.
    """
    made = {}
    for artefact in run.model.prepare(run, manifest):
        folder = _make(artefact, run.directory.parent / "artefacts", run)
        card = json.loads((folder / CARD).read_text())
        made[artefact.name] = {"path": str(folder), "settings": card["settings"], "fingerprint": card["fingerprint"]}
        run = run.change({artefact.into: str(folder)})
    return run, made


def fingerprints(artefacts: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Name → fingerprint of what `prepared` made."""
    return {name: made["fingerprint"] for name, made in artefacts.items()}


def _make(artefact: Artefact, where: Path, run: Run) -> Path:
    """The artefact's directory, filled under a lock that dies with its process and renamed when it is whole."""
    settings = json.dumps(artefact.settings, sort_keys=True)
    folder = where / f"{artefact.name}-{hashlib.sha256(settings.encode()).hexdigest()[:12]}"
    where.mkdir(parents=True, exist_ok=True)
    with FileLock(where / f".{folder.name}.lock"):
        if (folder / CARD).is_file():
            return folder
        print(f"{artefact.sentence}, into {folder}.")
        for torn in where.glob(f".{folder.name}-*"):
            shutil.rmtree(torn, ignore_errors=True)
        partial = Path(mkdtemp(prefix=f".{folder.name}-", dir=where))
        if artefact.resources:
            connect_ray(run.directory)
            ray.get(ray.remote(artefact.make).options(**artefact.resources).remote(partial))
        else:
            artefact.make(partial)
        files = {
            str(file.relative_to(partial)): sha256_of(file) for file in sorted(partial.rglob("*")) if file.is_file()
        }
        fingerprint = hashlib.sha256(json.dumps(files).encode()).hexdigest()
        card = {"name": artefact.name, "settings": artefact.settings, "sha256": files, "fingerprint": fingerprint}
        write_atomic(partial / CARD, json.dumps(card, indent=1).encode())
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    return folder
