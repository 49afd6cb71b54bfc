"""MedCLIP's tower: the vector of encode_image, the mean of a study's films, from films and from features alike."""

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from r2kg.config.parts import Data
from r2kg.modules.config import Vision
from r2kg.modules.vision import VisionEncoder
from r2kg.systems.vlm_kg.config import VlmKgConfig
from r2kg.systems.vlm_kg.parts import MEDCLIP, Vector
from r2kg.systems.vlm_kg.vector import FilmVector
from shards.errors import ConfigError
from tests.r2kg.modules.test_medclip import SWIN, drawn, swin_file

VIT = {"name": "test_vit", "weights": "random", "image_px": 64, "merge": "separate"}


class Tower(nn.Module):
    """Encoder and vector, as VLM-KG has them."""

    def __init__(self, vision: Vision, config: Vector) -> None:
        super().__init__()
        self.vision = VisionEncoder(vision)
        self.vector = FilmVector(config, vision, self.vision.width)

    def vectors(self, batch: dict[str, Tensor], dtype: torch.dtype) -> Tensor:
        tokens, there = self.vision.see(batch, dtype)
        return self.vector(tokens, there)


def tower(vision: dict, **changes) -> Tower:
    torch.manual_seed(0)
    return Tower(Vision(**vision), Vector(**{"projection": 12, **changes})).eval()


def batch(images: Tensor, mask: list[list[bool]]) -> dict[str, Tensor]:
    return {"images": images, "view_mask": torch.tensor(mask)}


@pytest.fixture
def medclip(tmp_path):
    """A random MedCLIP as transformers has it, its tensors, and the configuration of a tower that reads its file."""
    model, state = swin_file(tmp_path)
    torch.save(state, tmp_path / "pytorch_model.bin")
    read = {"weights": str(tmp_path / "pytorch_model.bin"), "grey": MEDCLIP.grey, "merge": "separate"}
    return model, state, {**SWIN, **read, "tuning": "frozen"}


@torch.no_grad()
def test_a_film_has_the_vector_that_medclip_gives_it(medclip):
    theirs, state, vision = medclip
    ours, films = tower(vision), drawn(112)
    found = ours.vectors(batch(films[:, None], [[True]] * 3), torch.float32)
    mean, deviation = MEDCLIP.grey
    pixels = ((films.float() / 255 - mean) / deviation)[:, None].expand(-1, 3, -1, -1)
    wanted = theirs(pixel_values=pixels).pooler_output @ state["vision_model.projection_head.weight"].T
    torch.testing.assert_close(found, F.normalize(wanted, dim=-1), rtol=1e-5, atol=1e-5)
    assert ours.vector.width == 12 and not any(p.requires_grad for p in ours.parameters())
    plain = tower(vision, normalise=False).vectors(batch(films[:, None], [[True]] * 3), torch.float32)
    torch.testing.assert_close(plain, wanted, rtol=1e-5, atol=1e-4)
    pooled = tower(vision, projection=0, normalise=False)
    torch.testing.assert_close(
        pooled.vectors(batch(films[:, None], [[True]] * 3), torch.float32),
        theirs(pixel_values=pixels).pooler_output,
        rtol=1e-5,
        atol=1e-5,
    )
    assert pooled.vector.width == 16 and pooled.vector.projection is None


@torch.no_grad()
@pytest.mark.parametrize("normalise", [True, False])
def test_a_study_has_the_mean_over_its_films_and_zeros_without_one(normalise):
    model = tower(VIT, normalise=normalise)
    images = torch.stack([drawn(64)[:2], drawn(64)[1:], drawn(64)[:2]])
    found = model.vectors(batch(images, [[True, True], [False, True], [False, False]]), torch.bfloat16)
    assert found.shape == (3, 12) and found.dtype == torch.bfloat16
    alone = model.vectors(batch(drawn(64)[:, None], [[True]] * 3), torch.float32)
    torch.testing.assert_close(found[0].float(), (alone[0] + alone[1]) / 2, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(found[1].float(), alone[2], rtol=1e-2, atol=1e-2)
    assert not found[2].any()
    assert torch.allclose(alone.norm(dim=1), torch.ones(3), atol=1e-5) is normalise


def test_features_give_what_films_give_and_absent_films_no_gradient_that_is_none():
    model, mask = tower(VIT | {"tuning": "frozen"}), [[True, True], [True, False], [False, False]]
    images = torch.stack([drawn(64)[:2], drawn(64)[1:], drawn(64)[:2]])
    with torch.no_grad():
        tokens = model.vision.encode(images.flatten(0, 1)).unflatten(0, (3, 2))
    films, features = (
        model.vectors(given | {"view_mask": torch.tensor(mask)}, torch.float32)
        for given in ({"images": images}, {"features": tokens * torch.tensor(mask)[..., None, None]})
    )
    torch.testing.assert_close(films, features)
    films[2].sum().backward()
    assert not model.vector.projection.weight.grad.any() and model.vector.projection.weight.grad.isfinite().all()


def test_what_is_frozen_is_in_the_fingerprint_and_what_is_trained_is_not(medclip):
    _, state, vision = medclip
    model = tower(vision).train()
    assert not model.vision.encoder.training and len(model.vector.fingerprint()) == 64
    assert tower(vision).vector.fingerprint() == model.vector.fingerprint()
    torch.save(
        state | {"vision_model.projection_head.weight": state["vision_model.projection_head.weight"] + 1},
        vision["weights"],
    )
    changed = tower(vision)
    assert changed.vision.fingerprint() == model.vision.fingerprint()
    assert changed.vector.fingerprint() != model.vector.fingerprint()
    tuned = tower(vision | {"tuning": "full"})
    assert tuned.vector.projection.weight.requires_grad and tuned.vector.fingerprint() == ""
    torch.testing.assert_close(tuned.vector.projection.weight.data, changed.vector.projection.weight.data)
    random = tower(VIT | {"tuning": "frozen"})
    assert random.vector.projection.weight.requires_grad and random.vector.fingerprint() == ""


def test_without_memory_it_knows_what_will_be_trained(medclip):
    with torch.device("meta"):
        model = tower(medclip[2])
    assert not any(p.requires_grad for p in model.parameters()) and model.vector.projection.weight.shape == (12, 16)


def test_a_projection_of_another_shape_or_none_is_told(medclip):
    _, state, vision = medclip
    with pytest.raises(
        ConfigError, match=r"projection_head.weight, which is torch.float32 \[12, 16\], and \[512, 16\]"
    ):
        tower(vision, projection=512)
    name = "vision_model.projection_head.weight"
    for wrong in (torch.ones(()), torch.ones(12, 16).long(), torch.ones(16, 12)):
        torch.save(state | {name: wrong}, vision["weights"])
        with pytest.raises(ConfigError, match=rf"{name}, which is .* and \[12, 16\] is wanted: set projection to"):
            tower(vision)
    del state[name]
    torch.save(state, vision["weights"])
    with pytest.raises(ConfigError, match=f"MedCLIP's and has no {name}: give the whole file, or set projection=0"):
        tower(vision)
    assert tower(vision, projection=0).vector.width == 16


def test_its_configuration_is_medclips_and_films_stay_apart():
    inputs = VlmKgConfig().inputs(Data(views=2))
    assert (inputs.image_px, inputs.fit, inputs.merge, inputs.encoder) == (224, "pad", "separate", MEDCLIP)
    with pytest.raises(ValidationError, match=r"model.vision.merge=average: .* set model.vision.merge=separate"):
        VlmKgConfig(vision=Vision())
    with pytest.raises(ConfigError, match="model.vision.weights=medclip/pytorch_model.bin is not a file"):
        VisionEncoder(MEDCLIP)
