"""MedCLIP's file: the same pooled vectors as the models it was made with, and every tensor in its place or an error."""

from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import SwinConfig, SwinModel

from r2kg.modules.config import Vision
from r2kg.modules.medclip import into_timm, swin_names
from r2kg.modules.vision import VisionEncoder
from shards.errors import ConfigError

DEPTHS, HEADS, CHANNELS, WIDTH = (2, 1), (1, 2), 8, 16
SWIN = {
    "name": "swin_tiny_patch4_window7_224",
    "options": {"embed_dim": CHANNELS, "depths": DEPTHS, "num_heads": HEADS},
    "image_px": 112,
}
START = "vision_model.model."
RESNET = {"name": "resnet50", "options": {"layers": (1, 1, 1, 1)}, "image_px": 64}


def beside(projection: dict[str, Tensor]) -> dict[str, Tensor]:
    """What else stands in MedCLIP's file."""
    return projection | {"text_model.model.embeddings.position_ids": torch.arange(4), "logit_scale": torch.tensor(2.6)}


def swin_file(folder: Path) -> tuple[SwinModel, dict[str, Tensor]]:
    """A random Swin of transformers, and its tensors as MedCLIP's file has them: saved, they have their old names."""
    torch.manual_seed(0)
    config = SwinConfig(image_size=112, embed_dim=CHANNELS, depths=list(DEPTHS), num_heads=list(HEADS), window_size=7)
    model = SwinModel(config).eval()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.5)  # biases and tables of zeros would hide that they were lost
    model.save_pretrained(folder / "swin")
    state = load_file(folder / "swin" / "model.safetensors")
    state |= {"encoder.layers.0.blocks.0.attention.self.relative_position_index": torch.zeros(49, 49, dtype=torch.long)}
    named = {f"{START}{name}": tensor for name, tensor in state.items()}
    return model, named | beside({"vision_model.projection_head.weight": torch.randn(12, WIDTH)})


def resnet_file() -> tuple[torch.nn.Module, dict[str, Tensor]]:
    """A random ResNet of torchvision with MedCLIP's last layer, and its tensors as MedCLIP's file has them."""
    torch.manual_seed(0)
    model = torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [1, 1, 1, 1])
    model.fc = torch.nn.Linear(2048, 12, bias=False)
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point():
            buffer.data.normal_(float(name.endswith("var")), 0.1)
    return model.eval(), beside({f"{START}{name}": value for name, value in model.state_dict().items()})


def drawn(side: int) -> Tensor:
    return torch.randint(0, 256, (3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("ending", ["bin", "safetensors"])
def test_a_swin_pools_what_transformers_pools(tmp_path, ending):
    theirs, state = swin_file(tmp_path)
    path = tmp_path / f"pytorch_model.{ending}"
    torch.save(state, path) if ending == "bin" else save_file(state, path)
    ours, films = VisionEncoder(Vision(weights=str(path), grey=(0.5862785803, 0.2795008897), **SWIN)).eval(), drawn(112)
    with torch.no_grad():
        found = ours.encode(films).mean(1)
        pixels = ((films.float() / 255 - 0.5862785803) / 0.2795008897)[:, None].expand(-1, 3, -1, -1)
        wanted = theirs(pixel_values=pixels).pooler_output
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert found.std() > 0.05, "a network that says nothing would agree too"


def test_a_resnet_pools_what_torchvision_pools(tmp_path):
    theirs, state = resnet_file()
    torch.save(state, tmp_path / "medclip.bin")
    ours, films = VisionEncoder(Vision(weights=str(tmp_path / "medclip.bin"), grey=(0.5, 0.25), **RESNET)), drawn(64)
    with torch.no_grad():
        found = ours.encode(films).mean(1) @ state["vision_model.model.fc.weight"].T
        wanted = theirs(((films.float() / 255 - 0.5) / 0.25)[:, None].expand(-1, 3, -1, -1))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert found.std() > 0.05


def test_every_tensor_of_the_whole_swin_has_its_name_in_timm():
    """The file's names, written out from the architecture, are timm's; query, key and value are one."""
    names = ["embeddings.patch_embeddings.projection.weight", "embeddings.patch_embeddings.projection.bias"]
    norms, linears = ("layernorm_before", "layernorm_after"), ("attention.output.dense", "intermediate.dense")
    linears += ("output.dense", *(f"attention.self.{part}" for part in ("query", "key", "value")))
    for stage, depth in enumerate((2, 2, 6, 2)):
        for block in range(depth):
            start = f"encoder.layers.{stage}.blocks.{block}"
            names += [f"{start}.{part}.{leaf}" for part in norms + linears for leaf in ("weight", "bias")]
            names += [f"{start}.attention.self.relative_position_bias_table"]
        if stage < 3:
            names += [f"encoder.layers.{stage}.downsample.{leaf}" for leaf in ("norm.weight", "norm.bias")]
            names += [f"encoder.layers.{stage}.downsample.reduction.weight"]
    names += [f"{norm}.{leaf}" for norm in ("embeddings.norm", "layernorm") for leaf in ("weight", "bias")]
    with torch.device("meta"):
        own = timm.create_model("swin_tiny_patch4_window7_224", num_classes=0).state_dict()
    assert sorted(source for name in own for source in swin_names(name)) == sorted(names)


LOST = "encoder.layers.0.blocks.1.attention.self.key.bias"
FAULTS = [
    (lambda state: state.pop(LOST), f"it lacks vision_model.model.{LOST}. Its names"),
    (lambda state: state.update({"queue": torch.ones(2)}), "it has besides vision_model.model.queue. Its names"),
    (
        lambda state: [state.pop(name) for name in [*state] if ".blocks.1." in name],
        r"it lacks vision_model.model.encoder.layers.0.blocks.1.\S+, \S+, \S+ and 14 more\. Its names",
    ),
    (
        lambda state: state.update({"layernorm.bias": torch.ones(15)}),
        r"vision_model.model.layernorm.bias is torch.float32 \[15\], not \[16\]",
    ),
    (lambda state: state.update({"layernorm.bias": torch.ones(16).long()}), r"layernorm.bias is torch.int64 \[16\]"),
    (lambda state: state.update({"layernorm.bias": torch.ones(16).to_sparse()}), "layernorm.bias is torch.float32"),
    (
        lambda state: state.update({LOST: torch.ones(24)}),  # of the fused layer's shape, but a third of it
        rf"shapes differ vision_model.model.{LOST} is torch.float32 \[24\], not \[8\]",
    ),
]


@pytest.mark.parametrize(("change", "message"), FAULTS)
def test_a_file_that_does_not_fill_the_encoder_is_told(tmp_path, change, message):
    _, state = swin_file(tmp_path)
    encoder = {name.removeprefix(START): value for name, value in state.items() if name.startswith(START)}
    change(encoder)
    torch.save({f"{START}{name}": value for name, value in encoder.items()}, tmp_path / "medclip.bin")
    with pytest.raises(ConfigError, match=rf"medclip.bin is MedCLIP's and does not fill swin_tiny.*{message}"):
        VisionEncoder(Vision(weights=str(tmp_path / "medclip.bin"), **SWIN))


def test_a_file_of_the_other_variant_names_the_model_that_it_is_of(tmp_path):
    _, swin = swin_file(tmp_path)
    _, resnet = resnet_file()
    for state, other, wanted in ((swin, RESNET, SWIN), (resnet, SWIN, RESNET)):
        own = VisionEncoder(Vision(weights="random", **other)).encoder.state_dict()
        with pytest.raises(
            ConfigError, match=f"does not fill {other['name']}: .*set model.vision.name to that"
        ) as told:
            into_timm(state, own, Vision(weights="medclip.bin", **other))
        assert f"those of {wanted['name']}" in str(told.value) and len(str(told.value)) < 1500


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04 no archive", "cannot be read as plain tensors"),
        (b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.", "cannot be read as plain tensors"),
        ({"vision_model." + "x" * 10_000: torch.ones(1)}, "does not fill swin_tiny"),
        ({"vision_model": {"model": torch.ones(1)}}, "does not fit swin_tiny"),
        ({"vision_model.model.layernorm.bias": "text", "text_model.x": torch.ones(1)}, "does not fit swin_tiny"),
    ],
    ids=("torn", "code", "long name", "nested", "no tensors"),
)
def test_hostile_files_are_an_error_of_ours(tmp_path, content, message):
    path = tmp_path / "medclip.bin"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(ConfigError, match=rf"model.vision.weights=.*{message}") as told:
        VisionEncoder(Vision(weights=str(path), **SWIN))
    assert len(str(told.value)) < 10_000
