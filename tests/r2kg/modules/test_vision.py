"""The image encoder: layouts, views, tuning modes, weights."""

import io
import pickle

import huggingface_hub.constants
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from r2kg.modules.config import Lora, Vision
from r2kg.modules.vision import SplitQkv, VisionEncoder, read_weights
from shards.errors import ConfigError

SWIN = {
    "name": "swin_tiny_patch4_window7_224",
    "options": {"embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2), "drop_path_rate": 0.0},
    "image_px": 56,
}
CNN = {"name": "test_resnet", "image_px": 64}
VIT = {"name": "test_vit", "image_px": 64}


def encoder(kind: dict, **changes) -> VisionEncoder:
    torch.manual_seed(0)
    return VisionEncoder(Vision(**{"weights": "random", **kind, **changes}))


def films(model: VisionEncoder, kind: dict, batch: int = 2, views: int = 2) -> torch.Tensor:
    side = kind["image_px"]
    return torch.randint(
        0, 256, (batch, views, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


def normalised(model: VisionEncoder, images: torch.Tensor) -> torch.Tensor:
    """What the timm model gets for films [N, S, S]."""
    received = []
    inner = model.encoder.forward_features
    model.encoder.forward_features = lambda x: received.append(x) or inner(x)
    model.encode(images)
    del model.encoder.forward_features
    return received[0]


def everything(images: torch.Tensor) -> torch.Tensor:
    return torch.ones(images.shape[:2], dtype=torch.bool)


@pytest.mark.parametrize("kind", [SWIN, CNN, VIT], ids=["NHWC", "NCHW", "class token"])
def test_tokens_are_the_grid_row_by_row_in_every_layout(kind):
    model = encoder(kind).eval()
    images = films(model, kind, batch=1, views=1)
    tokens, _ = model(images, everything(images))
    assert tokens.shape == (1, model.patches, model.width)
    # timm's own uniform view of the last feature map, channels first and without class token
    grid = model.encoder.forward_intermediates(normalised(model, images[0]), indices=1, norm=kind is not CNN)[1][0]
    torch.testing.assert_close(tokens[0], grid[0].flatten(1).T)


def test_grey_bytes_get_the_models_own_mean_and_deviation():
    model = encoder(CNN)
    x = normalised(model, torch.full((1, 64, 64), 255, dtype=torch.uint8))
    mean, std = (torch.tensor(model.encoder.pretrained_cfg[key]) for key in ("mean", "std"))
    torch.testing.assert_close(x[0, :, 0, 0], (1 - mean) / std)
    x = normalised(encoder(CNN, grey=(0.6, 0.25)), torch.full((1, 64, 64), 255, dtype=torch.uint8))
    torch.testing.assert_close(x[0, :, 0, 0], torch.full((3,), 1.6))


def test_one_channel_models_get_one_channel():
    model = encoder(CNN, options={"in_chans": 1}).eval()
    images = films(model, CNN)
    assert model(images, everything(images))[0].isfinite().all()


def test_views_are_averaged_and_absent_films_do_not_count():
    model = encoder(SWIN).eval()
    images = films(model, SWIN)
    both, present = model(images, everything(images))
    assert present is None
    alone = [model(images[:, [v]], everything(images[:, [v]]))[0] for v in (0, 1)]
    torch.testing.assert_close(both, (alone[0] + alone[1]) / 2)
    mask = torch.tensor([[True, False], [True, True]])
    partly, _ = model(images, mask)
    torch.testing.assert_close(partly[0], alone[0][0])
    torch.testing.assert_close(partly[1], both[1])


@pytest.mark.parametrize("kind", [SWIN, CNN, VIT], ids=["NHWC", "NCHW", "class token"])
def test_films_stand_in_a_row_or_each_alone_and_absent_ones_are_masked(kind):
    alone, row, average = (encoder(kind, merge=way).eval() for way in ("separate", "concatenate", "average"))
    images, mask = films(alone, kind), torch.tensor([[True, False], [True, True]])
    grids, films_there = alone(images, mask)
    assert grids.shape == (2, 2, alone.patches, alone.width) and torch.equal(films_there, mask)
    for study, view in ((0, 0), (1, 0), (1, 1)):
        torch.testing.assert_close(grids[study, view], alone.encode(images[study, [view]])[0])
    assert (grids[0, 1] == 0).all()
    tokens, present = row(images, mask)
    assert torch.equal(tokens, torch.cat((grids[:, 0], grids[:, 1]), dim=1))
    patches = row.patches
    assert present.tolist() == [[True] * patches + [False] * patches, [True] * 2 * patches]
    torch.testing.assert_close(average(images, mask)[0], torch.stack((grids[0, 0], grids[1].mean(0))))
    for model in (alone, row, average):  # from features it is the same as from films
        assert torch.equal(model.merge(grids, mask)[0], model(images, mask)[0])


def test_a_crop_smaller_than_what_the_encoder_sees_is_refused():
    with pytest.raises(ValueError, match=r"augment.resize_px=224 is below image_px=256.*Use 256 or more, such as 293"):
        Vision(image_px=256, augment={"resize_px": 224})
    assert Vision(augment={"resize_px": 256}).augment.resize_px == 256


@pytest.mark.parametrize("grey", [(150, 70), (0.5, 0), (-0.1, 0.2), (0.5, float("nan"))])
def test_grey_values_that_are_none_are_refused(grey):
    with pytest.raises(ValueError, match=r"grey.* must be a mean from 0 to 1|finite number"):
        Vision(grey=grey)


@pytest.mark.parametrize("mask", [[[False, False], [True, True]], [[False, False], [False, False]]])
def test_a_study_without_films_is_finite_zeros_with_finite_gradients(mask):
    model = encoder(SWIN)
    images = films(model, SWIN)
    tokens, _ = model(images, torch.tensor(mask))
    assert (tokens[0] == 0).all()
    tokens.sum().backward()
    gradients = [p.grad for p in model.parameters()]
    assert all(g is not None and g.isfinite().all() for g in gradients)


def test_frozen_stays_in_eval_mode_without_gradients():
    model = encoder(CNN, tuning="frozen")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    images = films(model, CNN)
    tokens, _ = model(images, everything(images))
    assert not tokens.requires_grad and not model.encoder.training
    assert not [name for name, p in model.named_parameters() if p.requires_grad]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_batch_norm_uses_and_keeps_its_stored_statistics_when_tuned():
    model = encoder(CNN, tuning="full").train()
    images = films(model, CNN, batch=3)
    before = {name: value.clone() for name, value in model.named_buffers()}
    assert before
    together, _ = model(images, everything(images))
    one, _ = model(images[:1], everything(images[:1]))
    torch.testing.assert_close(together[:1], one)  # a row does not depend on its micro-batch
    assert all(torch.equal(before[name], value) for name, value in model.named_buffers())
    together.sum().backward()
    assert all(p.grad is not None for m in model.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters())


def test_split_qkv_equals_the_fused_layer():
    fused = nn.Linear(12, 36)
    x = torch.randn(3, 5, 12)
    torch.testing.assert_close(SplitQkv(fused)(x), fused(x))


def test_lora_changes_nothing_at_first_and_trains_query_and_value_only():
    full = encoder(SWIN).eval()
    model = encoder(SWIN, tuning="lora", lora=Lora(rank=2, alpha=4, dropout=0.0))
    images = films(model, SWIN)
    torch.testing.assert_close(model.eval()(images, everything(images))[0], full(images, everything(images))[0])
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert names and all(".lora_" in name and (".query." in name or ".value." in name) for name in names)
    model.train()(images, everything(images))[0].square().sum().backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if name in names)


def test_swin_base_has_the_papers_parameter_counts():
    with torch.device("meta"):
        full, lora = (VisionEncoder(Vision(tuning=tuning)) for tuning in ("full", "lora"))
    trained = [sum(p.numel() for p in model.parameters() if p.requires_grad) for model in (full, lora)]
    assert trained == [86_743_224, 770_048]
    assert (full.patches, full.width) == (49, 1024)


def test_lora_on_a_model_without_attention_names_the_way_out():
    with pytest.raises(ConfigError, match="no attention to adapt; choose full or frozen"):
        encoder(CNN, tuning="lora")
    with pytest.raises(ConfigError, match="cannot split the attention"):
        encoder({"name": "swinv2_tiny_window8_256", "image_px": 64}, tuning="lora", options={"depths": (1,)})


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_local_weights_are_loaded_strictly_but_for_the_classifier(tmp_path, ending):
    donor = timm.create_model("test_resnet", num_classes=7)
    path = tmp_path / f"weights.{ending}"
    save_file(donor.state_dict(), path) if ending == "safetensors" else torch.save(donor.state_dict(), path)
    model = VisionEncoder(Vision(weights=str(path), **CNN))
    torch.testing.assert_close(model.encoder.conv1.state_dict(), donor.conv1.state_dict())

    state = {name: value for name, value in donor.state_dict().items() if name != "layer1.0.conv1.weight"}
    save_file(state, tmp_path / "short.safetensors")
    with pytest.raises(ConfigError, match=r"does not fit test_resnet[\s\S]*layer1.0.conv1.weight"):
        VisionEncoder(Vision(weights=str(tmp_path / "short.safetensors"), **CNN))


class Command:
    """Runs when it is unpickled."""

    def __reduce__(self):
        return print, ("ran",)


def test_weights_that_carry_code_are_refused(tmp_path, capsys):
    path = tmp_path / "weights.bin"
    torch.save({"model": Command()}, path)
    with pytest.raises(ConfigError, match="cannot be read as plain tensors"):
        VisionEncoder(Vision(weights=str(path), **CNN))
    path.write_bytes(pickle.dumps(Command(), protocol=2))
    with pytest.raises(ConfigError, match="cannot be read as plain tensors"):
        VisionEncoder(Vision(weights=str(path), **CNN))
    assert capsys.readouterr().out == ""


WHOLE = io.BytesIO()
torch.save({"conv1.weight": torch.ones(2)}, WHOLE, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "does not fit"),
        (torch.ones(2), "does not fit"),
        ({"model": 5}, "does not fit"),
        ({5: torch.ones(2), "conv1.weight": "text"}, "does not fit"),
        ({"state_dict": {"patch_embed.proj.weight": torch.ones(1)}}, "does not fit"),
        ({"pos_embed": torch.ones(3)}, "does not fit"),
        (b"", "cannot be read as plain tensors"),
        (b"hello", "cannot be read as plain tensors"),
        (b"\x80\x02}q\x00X\x02\x00\x00\x00\xff\xffq\x01.", "cannot be read as plain tensors"),
        (WHOLE.getvalue()[:-40], "cannot be read as plain tensors"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_weights_that_are_none_are_an_error_of_ours(tmp_path, content, message):
    path = tmp_path / "weights.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    for name in ("test_resnet", "test_vit"):
        with pytest.raises(ConfigError, match=rf"model.vision.weights=.*{message}"):
            VisionEncoder(Vision(name=name, image_px=64, weights=str(path)))
    if isinstance(content, bytes):
        with pytest.raises(ConfigError, match=r"train.init_from=.*cannot be read as plain tensors"):
            read_weights(path, "train.init_from")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "swin_base_patch4"}, "is not a timm model; near: .*swin_base_patch4_window7_224"),
        ({"weights": "/no/such/file.safetensors"}, "is not a file"),
        ({"options": {"nonsense": 1}}, "timm cannot build test_resnet"),
        ({**SWIN, "image_px": 50, "options": {"img_size": 56}}, "does not take films of 50 px"),
    ],
)
def test_what_cannot_be_built_is_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        VisionEncoder(Vision(**{"weights": "random", **CNN, **changes}))


def test_pretrained_weights_offline_name_the_model_and_the_local_file(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match=r"pretrained weights of test_resnet .* set model.vision.weights to a local"):
        VisionEncoder(Vision(weights="timm", **CNN))


def test_gradient_checkpointing_changes_no_gradient():
    gradients = []
    for on in (False, True):
        model = encoder(SWIN)
        model.gradient_checkpointing(on)
        images = films(model, SWIN)
        model(images, everything(images))[0].square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert model.encoder.layers[0].grad_checkpointing
    torch.testing.assert_close(*gradients)


def test_bf16_gives_bf16_tokens():
    model = encoder(SWIN).to(torch.bfloat16).eval()
    images = films(model, SWIN)
    tokens, _ = model(images, everything(images))
    assert tokens.dtype == torch.bfloat16 and tokens.isfinite().all()


@pytest.mark.parametrize("kind", [SWIN, VIT, CNN], ids=["swin", "vit", "cnn"])
def test_a_fingerprint_is_that_of_the_weights_that_are_not_trained(kind):
    known = encoder(kind, tuning="frozen").fingerprint()
    assert len(known) == 64 and encoder(kind, tuning="frozen").fingerprint() == known
    if kind is not CNN:
        adapted = encoder(kind, tuning="lora")
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data += 1.0  # as training would
        assert adapted.fingerprint() == known, "LoRA leaves what is beneath it"
    changed = encoder(kind, tuning="frozen")
    list(changed.encoder.state_dict().values())[-1].flatten()[0] += 1  # one value of one tensor
    assert changed.fingerprint() != known
    assert encoder(kind, tuning="frozen", options={**kind.get("options", {}), "drop_rate": 0.1}).fingerprint() != known


def test_of_an_encoder_trained_in_full_nothing_but_statistics_is_left():
    assert encoder(VIT, tuning="full").fingerprint() == encoder(SWIN, tuning="full").fingerprint() == ""
    model = encoder(CNN, tuning="full")
    known = model.fingerprint()
    for parameter in model.parameters():
        parameter.data += 1.0
    assert model.fingerprint() == known != ""
    next(buffer for name, buffer in model.encoder.named_buffers() if "running_var" in name).mul_(2.0)
    assert model.fingerprint() != known


def test_another_file_under_the_same_name_has_another_fingerprint(tmp_path):
    path = tmp_path / "weights.safetensors"
    drawn = encoder(VIT, tuning="frozen")
    save_file(drawn.encoder.state_dict(), path)
    read = encoder(VIT | {"weights": str(path)}, tuning="frozen")
    assert read.fingerprint() == drawn.fingerprint(), "the same weights, however they came here"
    save_file({name: tensor + 1 for name, tensor in drawn.encoder.state_dict().items()}, path)
    assert encoder(VIT | {"weights": str(path)}, tuning="frozen").fingerprint() != drawn.fingerprint()
