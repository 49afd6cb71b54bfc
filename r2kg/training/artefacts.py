"""What a run needs and does not train: made once before workers start, for all runs of a root, in ROOT/artefacts.

Weights of an earlier stage are one of them: a run that begins with another run's weights keeps its own copy.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import ray
import torch
from filelock import FileLock, Timeout
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from typing_extensions import TypedDict

from r2kg.config.needs import CARD, Artefact
from r2kg.config.run import Run, load_run, local_fields
from r2kg.modules.vision import read_weights
from r2kg.rundir import RunFiles, read_json
from r2kg.systems.contract import Model, build_model, fill, load_stored, other_weights, to_bf16
from r2kg.training.checkpoint import MANIFEST, complaints, find_checkpoint, read_state, read_tensors, weights_of
from shards.errors import CheckpointError, ConfigError, DataError, RetryableError
from shards.privacy import fence
from shards.session import connect_ray, in_our_words
from shards.tars.format import Manifest
from shards.tars.place import sha256_of, size_of, write_atomic

WEIGHTS = "weights.safetensors"
"""In an artefact "init": tensors under the names of this run's model; its metadata has the names they had before."""


class Card(TypedDict):
    """artefact.json."""

    name: str
    settings: dict[str, Any]
    files: dict[str, tuple[int, str]]
    fingerprint: str


def prepared(run: Run, manifest: Manifest) -> tuple[Run, dict[str, dict[str, Any]]]:
    """Make what the system asks for and is not there yet, and compare what is there with its hashes.

    Returns:
        the run with the artefacts' directories in its fields, which is what run.json then names, and for every
        artefact {"path", "settings", "fingerprint"}, for the checkpoint's state.

    Raises:
        ConfigError, CheckpointError: the weights that train.init_from names cannot be had.
        DataError: an artefact is damaged, or its maker's own error.
    """
    run = with_init(run)
    folders = dict[str, Path]()
    with fence(manifest.licence, run.privacy.allow_text):
        while artefact := next(iter(run.model.prepare(run, manifest)), None):  # the next may need the one before
            if artefact.into in folders:
                raise TypeError(f"prepare() asks for {artefact.name} again, though {artefact.into} has its directory")
            folders[artefact.into] = make_artefact(artefact, run, manifest.licence)
            run = run.change({artefact.into: str(folders[artefact.into])})
    # a run.json names directories that were made when the run began
    folders |= {field: Path(value) for field, value in local_fields(run) if value and (Path(value) / CARD).is_file()}
    made = {}
    for folder in folders.values():
        card = checked_card(folder, hashes=True)
        made[card["name"]] = {"path": str(folder), "settings": card["settings"], "fingerprint": card["fingerprint"]}
    return run, made


def fingerprints(artefacts: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Name → fingerprint of what `prepared` made."""
    return {name: made["fingerprint"] for name, made in artefacts.items()}


def checked_card(folder: Path, hashes: bool = False) -> dict[str, Any]:
    """An artefact's card, after comparing its files with it: always their sizes, their bytes with `hashes`.

    Raises:
        DataError: it is no artefact, or not what was made; the files are named.
    """
    faults = []
    try:
        card = dict(read_json(folder / CARD, Card))
        for name, (size, digest) in card["files"].items():
            if Path(name).is_absolute() or ".." in Path(name).parts:
                faults.append(f"{name[:80]!r} leads out of it")
            elif (found := size_of(folder / name)) < 0:
                faults.append(f"{name[:80]} is missing")
            elif found != size:
                faults.append(f"{name} has {found} of {size} bytes")
            elif hashes and sha256_of(folder / name) != digest:
                faults.append(f"{name} has another sha256")
    except (OSError, ValueError) as error:
        faults, card = [f"{CARD} cannot be read ({error})"], {}
    if faults:
        raise DataError(
            f"{folder} is not what was made for this run: {'; '.join(faults)}. Way out: put it back, or delete the "
            "directory and submit the run again, which makes it again"
        )
    return card


def make_artefact(artefact: Artefact, run: Run, licence: str = "synthetic") -> Path:
    """The artefact's directory, filled under a lock that dies with its process and renamed when it is whole.

    Raises:
        Whatever the maker raised, as the data under `licence` that it reads may be shown; nothing of it is left.
        RetryableError: the Ray job was lost.
    """
    if artefact.into not in dict(local_fields(run)):
        raise ConfigError(
            f"artefact {artefact.name} goes into {artefact.into}, which must be a `Local` field of the run"
        )
    where = run.directory.parent / "artefacts"
    settings = json.dumps(artefact.settings, sort_keys=True)
    folder = where / f"{artefact.name}-{hashlib.sha256(settings.encode()).hexdigest()[:12]}"
    where.mkdir(parents=True, exist_ok=True)
    lock = FileLock(where / f".{folder.name}.lock", fallback_to_soft=False)  # a marker would outlive a killed process
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        print(f"Waiting for another process, which makes {folder}.")
        held = lock.acquire()
    except NotImplementedError as error:
        raise ConfigError(f"the file system of {where} has no locks: set root= to one that has") from error
    with held, in_our_words(f"the Ray job that makes {artefact.name}"):
        if (folder / CARD).is_file():
            return folder
        print(f"{artefact.sentence}, into {folder}.")
        for torn in where.glob(f".{folder.name}-*"):
            shutil.rmtree(torn, ignore_errors=True)
        shop = Path(mkdtemp(prefix=f".{folder.name}-", dir=where))  # the maker's own temporary files fall in here too
        partial = shop / folder.name
        try:
            partial.mkdir()
            work = (artefact.make, partial, licence, run.privacy.allow_text)
            if artefact.resources:  # tried once: another try would find what a lost one left
                connect_ray(run.directory)
                files = ray.get(ray.remote(_fill).options(max_retries=0, **artefact.resources).remote(*work))
            else:
                files = _fill(*work)
            if not files:
                raise DataError(f"what makes {artefact.name} wrote no file: its `make` must fill the directory it gets")
            digests = {name: digest for name, (_, digest) in files.items()}
            fingerprint = hashlib.sha256(json.dumps(digests).encode()).hexdigest()
            card = {"name": artefact.name, "settings": artefact.settings, "files": files, "fingerprint": fingerprint}
            write_atomic(partial / CARD, json.dumps(card, indent=1).encode())
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
        except Exception as error:
            error.add_note(f"{artefact.name} was not made, nothing of it is left in {where}")
            raise
        finally:
            shutil.rmtree(shop, ignore_errors=True)
    return folder


def _fill(make: Callable[[Path], None], folder: Path, licence: str, allow_text: bool) -> dict[str, tuple[int, str]]:
    """Size and sha256 of the files that `make` wrote, seen where it ran: another node may not list them yet."""
    with fence(licence, allow_text):
        make(folder)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (size_of(path), sha256_of(path)) for path in paths}


def with_init(run: Run) -> Run:
    """The run with a directory in train.init_from: the weights it names, copied once, after train.init_map.

    What becomes of stage 1 after that changes nothing here. A run that began with the same words keeps the weights it
    began with, even if the words would mean another checkpoint by now.

    Raises:
        ConfigError: no such run or file, it cannot be read, or a prefix of the map is none of its tensors'.
        CheckpointError: no such checkpoint, or a damaged one.
    """
    words, names, saved = run.train.init_from, run.train.init_map, RunFiles(run.directory).run
    if not words or (Path(words) / CARD).is_file():
        return run
    if saved.is_file() and (begun := load_run(saved).train.init_from):
        folder = run.directory.parent / "artefacts" / Path(begun).name
        if (folder / CARD).is_file():
            settings = checked_card(folder)["settings"]
            if (settings["from"], settings["map"]) == (words, names):
                return run.change({"train.init_from": str(folder)})
    file, (name, _, which) = Path(words).expanduser(), words.rpartition("@")
    places = [run.directory.parent / name, Path(name).expanduser().resolve()]
    directory = next((path for path in places if name and RunFiles(path).run.is_file()), None)
    read: Callable[[], dict[str, Tensor]]
    if file.is_file():
        chain, read = [{"file": file.name, "sha256": sha256_of(file)}], partial(_read_file, file)
    elif directory and directory.resolve() != run.directory:
        checkpoint = find_checkpoint(directory, which)
        state, read = read_state(checkpoint), partial(_read_checkpoint, checkpoint)
        chain = state.get("artefacts", {}).get("init", {}).get("settings", {}).get("chain", [])
        fingerprint = sha256_of(checkpoint / MANIFEST)
        chain = [*chain, {"run": directory.name, "step": state["step"], "checkpoint": fingerprint}]
    else:
        raise ConfigError(
            f"train.init_from={words} is neither a file nor a checkpoint of another run: give RUN@best, RUN@last or "
            f"RUN@STEP with a run's directory or its name in {run.directory.parent}, or a .safetensors, .pth, .pt or "
            ".bin file"
        )

    def make(folder: Path) -> None:
        tensors, old = _renamed(read(), names, words)
        save_file(tensors, folder / WEIGHTS, metadata=old)

    artefact = Artefact(
        name="init",
        settings={"from": words, "map": names, "chain": chain},
        make=make,
        into="train.init_from",
        sentence=f"Copying the weights of {words}",
    )
    return run.change({artefact.into: str(make_artefact(artefact, run))})


def begin(model: nn.Module, run: Run, inside: str = "") -> str:
    """Copy the weights that the run begins with, if any, into its model, or into the part of it called `inside`.

    Returns:
        what was copied, a sentence; "" when the run begins with its own.

    Raises:
        ConfigError: a tensor has no place in the model, or another shape there.
        DataError: the copy made for this run is damaged or gone.
    """
    if not run.train.init_from:
        return ""
    folder, start = Path(run.train.init_from), f"{inside}." if inside else ""
    settings = checked_card(folder)["settings"]
    with safe_open(folder / WEIGHTS, "pt") as file:
        old = file.metadata()
        names = [name for name in file.keys() if name.startswith(start)]  # noqa: SIM118  # it is no mapping
        given = {name.removeprefix(start): (old[name], file.get_tensor(name)) for name in names}
    filled, whole = fill(model, given, settings["from"])
    steps = " → ".join(f"{one['run']}@{one['step']}" if "run" in one else one["file"] for one in settings["chain"])
    return (
        f"{run.name} begins with {settings['from']} ({steps}): {filled} of {whole} tensors of its model are filled, "
        f"{whole - filled} keep their own values."
    )


def built(run: Run) -> Model:
    """The run's model with the weights it begins with: what everyone starts from who then loads a checkpoint or not.

    Raises:
        ConfigError: as `build_model` and `begin`.
        DataError: a file of an artefact is missing or of another size.
    """
    for folder in (Path(value) for _, value in local_fields(run) if value):
        if (folder / CARD).is_file():
            checked_card(folder)
    model = build_model(run.model)
    begin(model, run)  # type: ignore[arg-type]  # a Model is an nn.Module
    return model


def trained_model(run: Run, checkpoint: Path, device: str) -> Model:
    """The run's model with the trained weights of a checkpoint over its frozen ones, to write with.

    Raises:
        CheckpointError: it was trained over other frozen weights.
    """
    torch.manual_seed(run.train.seed)
    model = built(run)
    if told := other_weights(read_state(checkpoint)["frozen"], model.fingerprint()):
        raise CheckpointError(
            f"{checkpoint} was trained over other frozen weights than are found here: {'; '.join(told)}. Restore them, "
            "or train again"
        )
    load_stored(model, weights_of(read_tensors(checkpoint)))
    if run.engine.precision == "bf16":
        to_bf16(model)
    model.to(device).eval()
    return model


def _read_checkpoint(checkpoint: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint of a run that may be going on."""
    tensors = weights_of(read_tensors(checkpoint))
    if gone := complaints(checkpoint, hashes=False):
        raise RetryableError(f"{checkpoint} was deleted while it was read ({gone[0]}): submit the run again")
    return tensors


def _read_file(file: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a PyTorch file that holds nothing but plain data."""
    if file.suffix not in {".safetensors", ".pth", ".pt", ".bin"}:
        raise ConfigError(f"train.init_from={file} must end in .safetensors, .pth, .pt or .bin")
    return read_weights(file, "train.init_from")


def _begins(name: str, prefix: str) -> list[str] | None:
    """What the stars of `prefix` stand for where a tensor's name begins with it, part by part; None where it does not.

    A star stands for one part between dots; alone, it begins every name.
    """
    parts, wanted = name.split("."), prefix.split(".")
    pairs = list(zip(parts, wanted, strict=False))
    if len(parts) < len(wanted) or any(want not in ("*", part) for part, want in pairs):
        return None
    return [part for part, want in pairs if want == "*"]


def _filled(target: str, starred: list[str]) -> list[str]:
    """The parts of a new name, its stars replaced in their order; those that are too many stay."""
    given = iter(starred)
    return [next(given, "*") if part == "*" else part for part in target.split(".")]


def _renamed(
    tensors: dict[str, Tensor], names: dict[str, str | None], words: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors under their new names, without those left out, and what each was called before."""
    new = {prefix.rstrip("."): (target or "").rstrip(".") for prefix, target in names.items()}
    unused = {prefix for prefix, target in new.items() if target}  # what is left out need not be there
    kept, old = dict[str, Tensor](), dict[str, str]()
    for name, tensor in tensors.items():
        prefixes = {prefix: starred for prefix in new if (starred := _begins(name, prefix)) is not None}
        prefix = max(prefixes, key=len, default="")
        unused -= prefixes.keys()
        if not prefix or new[prefix]:
            rest = name.split(".")[len(prefix.split(".")) :] if prefix else [name]
            renamed = ".".join([*_filled(new[prefix], prefixes[prefix]), *rest]) if prefix else name
            if renamed in old:
                raise ConfigError(f"train.init_map gives {old[renamed]} and {name} of {words} one name, {renamed}")
            kept[renamed], old[renamed] = tensor.clone().contiguous(), name
    if unused or not kept:
        wrong = f"train.init_map.{min(unused)} is no name in {words}" if unused else f"nothing is left of {words}"
        tops = ", ".join(sorted({name.partition(".")[0] for name in tensors})[:12]) or "no tensor at all"
        way_out = " (train.init_map={} takes all names as they are)" if names else ""
        raise ConfigError(f"{wrong}; what it holds begins with: {tops}{way_out}")
    return kept, old
