"""What tells who is who: the user's salts, outside all shards, and private/ below shards, with the owner's identifiers.

There is one salt for a user and a licence, so a study has the same key in whatever directory it is written to, and a
directory that is copied to a bucket does not carry it. `R2KG_SALT` takes its place, as on a cluster's head, whose home
lasts no longer than itself.
"""

import json
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from shards.errors import ConfigError, DataError, patiently
from shards.privacy import Names, terms_of
from shards.session import joining
from shards.study import SPLITS, Drop, key_of
from shards.tars.format import MAX_JSON_BYTES, SHARDS_FILE, UNFINISHED, Manifest
from shards.tars.place import Place, config_directory, is_local, make_directory, names_in, read_whole, write_atomic

PRIVATE = "private"
SALT_VARIABLE = "R2KG_SALT"
SALT_BYTES = 16
"""Shortest salt: names made with less can be found out by trying, and with none they are the owner's own."""


def salt_path(licence: str) -> Path:
    """Where this user's salt for a licence lies."""
    return config_directory() / "salts" / key_of(licence)


def begin_names(root: Place, licence: str) -> Names:
    """The names for shards to be written at `root`: salted with R2KG_SALT, else with the user's salt, made if need be.

    Raises:
        ConfigError: a salt that is too short or cannot be read; shards at `root` that were begun with another one.
    """
    if not terms_of(licence).credentialed:
        return Names()
    begun = str(begun_at(root).get("names", ""))
    if not begun and joining() and not (_given() or _users(licence)):
        raise ConfigError(
            f"no salt for data under {licence}: on a cluster none is made, for the home of its head goes with it, and "
            f"then no one could go on with these shards. Set {SALT_VARIABLE} to 32 characters that you keep (openssl "
            "rand -hex 16), in the job's runtime_env"
        )
    names = Names(_given() or _users(licence, make=not begun))
    if begun not in ("", names.digest):
        ours = f"another salt ({begun}) than {_origin(licence)} has ({names.digest})" if names.salt else f"salt {begun}"
        way = f"Set {SALT_VARIABLE} to it, bring it back as {salt_path(licence)}, or choose another directory"
        raise ConfigError(f"the shards at {root} were begun with {ours}: every name in them would change. {way}")
    return names


def names_of(manifest: Manifest) -> Names:
    """The names used in these shards; DataError when they are salted and this user has not their salt."""
    if not terms_of(manifest.licence).credentialed:
        return Names()
    for salt in filter(None, (_given(), _users(manifest.licence))):
        if Names(salt).digest == manifest.names:
            return Names(salt)
    raise DataError(
        f"neither {SALT_VARIABLE} nor {salt_path(manifest.licence)} holds the salt of these shards ({manifest.names}): "
        f"without it the owner's identifiers cannot be turned into their keys. Set {SALT_VARIABLE}, or use the keys"
    )


def _given() -> bytes:
    """R2KG_SALT; b"" where it is not set."""
    if SALT_VARIABLE not in os.environ:
        return b""
    salt = os.environb[SALT_VARIABLE.encode()].strip()
    if len(salt) < SALT_BYTES:
        raise ConfigError(f"{SALT_VARIABLE} has {len(salt)} bytes: unset it, or give at least {SALT_BYTES}")
    return salt


def _users(licence: str, make: bool = False) -> bytes:
    """The user's salt for a licence; b"" where there is none and none is to be made."""
    path = salt_path(licence)
    try:
        if make and not path.exists():
            _make_salt(path, licence)
        salt = patiently(str(path), path.read_bytes).strip()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise ConfigError(
            f"the salt {path} cannot be read or made ({error.strerror}): mend that, or set {SALT_VARIABLE}"
        ) from None
    if len(salt) < SALT_BYTES:
        raise ConfigError(
            f"{path} holds {len(salt)} bytes; a salt has at least {SALT_BYTES}. Bring it back as it was, or delete it "
            "if no shards were written with it"
        )
    return salt


def _make_salt(path: Path, licence: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_hex(SALT_BYTES).encode())
            file.flush()
            os.fsync(file.fileno())
        os.link(fresh, path)  # where two make one at a time, both get the first
        print(
            f"Made a salt for data under {licence}: {path}. Keep it, and give it to nobody. With it a study has the "
            "same key in all your shards; without it nobody can tell which study a key is."
        )
    except FileExistsError:
        pass
    finally:
        fresh.unlink(missing_ok=True)


def _origin(licence: str) -> str:
    return SALT_VARIABLE if SALT_VARIABLE in os.environ else str(salt_path(licence))


def begun_at(root: Place) -> dict[str, Any]:
    """What the mark of unfinished shards at `root` says of them, else their manifest: names, asked; {} for nothing."""
    for file in (root / UNFINISHED[SHARDS_FILE], root / SHARDS_FILE):
        try:
            said = json.loads(read_whole(file, MAX_JSON_BYTES))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(said, dict) and isinstance(said.get("asked", {}), dict):
            return said
    return {}


def write_private(root: Place, name: str, data: bytes) -> None:
    """Write a file that only its owner may read, below private/."""
    folder = root / PRIVATE
    make_directory(folder)
    if is_local(folder):
        folder.chmod(0o700)
    write_atomic(folder / name, data)
    if is_local(folder):
        (folder / name).chmod(0o600)


def forget(root: Place, tars: Iterable[str]) -> None:
    """Take away what is told of tars that are not among these."""
    keep = {f"{tar.removesuffix('.tar')}.jsonl" for tar in tars}
    for name in names_in(root / PRIVATE):
        if name.startswith(SPLITS) and name not in keep:
            (root / PRIVATE / name).unlink()


def write_private_lines(root: Place, name: str, lines: Iterable[dict]) -> None:
    """The same for JSON lines."""
    write_private(root, name, "".join(json.dumps(line) + "\n" for line in lines).encode())


def private_line(names: Names, drop: Drop) -> dict:
    """The line that tells what `Names.drop` withholds."""
    return {"key": names.key(drop.id), **drop.model_dump()}
