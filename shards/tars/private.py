"""private/ below the shards: the salt, the owner's identifiers and the details of drops."""

import json
import os
import secrets
from collections.abc import Iterable

from shards.errors import ConfigError, DataError, patiently
from shards.privacy import Names, terms_of
from shards.study import Drop
from shards.tars.place import Place, is_local, make_directory, names_in, size_of, write_atomic

PRIVATE = "private"
SALT = "salt"
SALT_VARIABLE = "R2KG_SALT"
SALT_BYTES = 16
"""Shortest salt: names made with less can be found out by trying, and with none they are the owner's own."""


def names_for(root: Place, licence: str) -> Names:
    """The names used in the shards at `root`; DataError when they are salted and the salt is not there."""
    if not terms_of(licence).credentialed:
        return Names()
    path = root / PRIVATE / SALT
    if size_of(path) < 0:
        raise DataError(
            f"{path} is missing: without the salt the owner's identifiers cannot be turned into keys of these shards. "
            "Copy it from where they were written, or use the keys"
        )
    if len(salt := patiently(str(path), path.read_bytes).strip()) < SALT_BYTES:
        raise DataError(f"{path} holds {len(salt)} bytes; a salt has at least {SALT_BYTES}. Copy it again")
    return Names(salt)


def begin_names(root: Place, licence: str) -> Names:
    """The names for shards to be written at `root`: with the salt there, else R2KG_SALT's, else a new one.

    Raises:
        ConfigError: R2KG_SALT is set and is too short, or not the salt the shards were begun with; tars without one.
    """
    if not terms_of(licence).credentialed:
        return Names()
    wanted = os.environb.get(SALT_VARIABLE.encode(), b"").strip()
    if SALT_VARIABLE in os.environ and len(wanted) < SALT_BYTES:
        raise ConfigError(f"{SALT_VARIABLE} has {len(wanted)} bytes: unset it, or give at least {SALT_BYTES}")
    if size_of(root / PRIVATE / SALT) < 0:
        if tars := [name for name in names_in(root) if name.endswith(".tar")]:
            raise ConfigError(
                f"{root} holds {len(tars)} tars and its private/{SALT} is missing: with another salt every name in "
                "them would change. Put it back, or choose another directory"
            )
        write_private(root, SALT, wanted or secrets.token_hex(16).encode())
    names = names_for(root, licence)
    if wanted and wanted != names.salt:
        raise ConfigError(
            f"{SALT_VARIABLE} is not the salt that the shards at {root} were begun with: every name in them would "
            "change. Unset it, or choose another directory"
        )
    return names


def write_private(root: Place, name: str, data: bytes) -> None:
    """Write a file that only its owner may read, below private/."""
    folder = root / PRIVATE
    make_directory(folder)
    if is_local(folder):
        folder.chmod(0o700)
    write_atomic(folder / name, data)
    if is_local(folder):
        (folder / name).chmod(0o600)


def write_private_lines(root: Place, name: str, lines: Iterable[dict]) -> None:
    """The same for JSON lines."""
    write_private(root, name, "".join(json.dumps(line) + "\n" for line in lines).encode())


def private_line(names: Names, drop: Drop) -> dict:
    """The line that tells what `Names.drop` withholds."""
    return {"key": names.key(drop.id), **drop.model_dump()}
