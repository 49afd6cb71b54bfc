"""Image encoder: any timm model as a grid of tokens; the films of a study averaged, in a row or each alone.

Shapes: B batch, V views, S side in pixels, P patches, D width, N films that are present.
"""

import difflib
import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from r2kg.modules.adapters import add_adapters
from r2kg.modules.config import Vision
from r2kg.modules.hub import may_come
from r2kg.modules.medclip import into_timm, is_medclip
from r2kg.modules.packaged import PACKAGE, file_of, renamed, vision_package
from shards.errors import ConfigError, RetryableError


class SplitQkv(nn.Module):
    """timm's fused attention input as three Linears with the same output, so that LoRA can take query and value alone.

    R2GenGPT's delta mode adapts the `query` and `value` of the Hugging Face Swin, which are separate there.
    """

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear

    def __init__(self, fused: nn.Linear) -> None:
        super().__init__()
        width = fused.out_features // 3
        device, dtype = fused.weight.device, fused.weight.dtype
        for part, name in enumerate(("query", "key", "value")):
            linear = nn.Linear(fused.in_features, width, bias=fused.bias is not None, device=device, dtype=dtype)
            rows = slice(part * width, (part + 1) * width)
            with torch.no_grad():
                linear.weight.copy_(fused.weight[rows])
                if fused.bias is not None:
                    linear.bias.copy_(fused.bias[rows])
            self.add_module(name, linear)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] → [..., 3D]: query, key and value side by side, as the fused layer returns them."""
        return torch.cat((self.query(x), self.key(x), self.value(x)), dim=-1)


class VisionEncoder(nn.Module):
    """Films → the tokens of a study: each film is encoded alone, then they are merged as config.merge says.

    BatchNorm layers, where a model has them, always use their stored statistics and never update them: batch statistics
    would depend on the micro-batch and differ between workers, and a run would no longer be the same at another world
    size. Models trained from random weights should therefore have LayerNorm or GroupNorm (timm's ResNets take
    options={"norm_layer": "groupnorm"}; ConvNeXt has LayerNorm, but wants options={"ls_init_value": 1.0}: its default
    of 1e-6 silences every block until hundreds of thousands of films have been seen).

    Attributes:
        width: D, channels of a token.
        patches: P, tokens of a film at config.image_px.

    Raises:
        ConfigError: unknown model or option, weights that cannot be had or do not fit, nothing to put LoRA on.
    """

    encoder: Any
    width: int
    patches: int

    def __init__(self, config: Vision) -> None:
        super().__init__()
        self.config, self.tuning, self.how = config, config.tuning, config.merge
        self.encoder = _build_encoder(config)
        mean_and_std = (self.encoder.pretrained_cfg[key] for key in ("mean", "std"))
        own = list(zip(*mean_and_std, strict=True))[: config.options.get("in_chans", 3)]
        self.scale = [config.grey or pair for pair in own]
        self.encoder.eval()
        empty = torch.zeros(1, config.image_px, config.image_px, device=next(self.encoder.parameters()).device)
        try:
            with torch.no_grad():
                self.patches, self.width = self.encode(empty).shape[1:]
        except (AssertionError, RuntimeError) as error:
            raise ConfigError(
                f"model.vision.name={config.name} does not take films of {config.image_px} px: {error}"
            ) from error
        if config.tuning == "frozen":
            self.encoder.requires_grad_(False)
        if config.tuning == "lora":
            _add_lora(self.encoder, config)
        self.train()

    def forward(self, images: Tensor, view_mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """Encode the films that exist and `merge` them; where there is no film, tokens are zeros.

        Args:
            images: uint8 [B, V, S, S], grey.
            view_mask: bool [B, V], True where there is a film.

        Returns:
            tokens in the encoder's dtype, and which of them are there.
        """
        batch, views = view_mask.shape
        present = view_mask.flatten().nonzero().squeeze(1)
        if len(present) == 0:
            # One film is always run: under ZeRO every worker must call the same modules or the collectives hang.
            present = torch.zeros(1, dtype=torch.long, device=images.device)
        films = images.flatten(0, 1)[present]  # [N, S, S]
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.tuning != "frozen"):
            tokens = self.encode(films)  # [N, P, D]
        grid = tokens.new_zeros(batch * views, self.patches, self.width).index_copy(0, present, tokens)
        return self.merge(grid.view(batch, views, self.patches, self.width), view_mask)

    def collate(self, rows: Mapping[str, Any]) -> dict[str, Tensor]:
        """What `see` wants of the stream's rows: view_mask, and images or features.

        Args:
            rows: images uint8 [n, V, S, S] or features uint16 [n, V, P, D] (bits of bf16), view_mask bool [n, V].

        Raises:
            ConfigError: films or features are of another size than the encoder's.
        """
        batch = {"view_mask": torch.tensor(rows["view_mask"])}  # copies: the stream's arrays are read-only
        if "features" in rows:
            shape, own_shape = rows["features"].shape[2:], (self.patches, self.width)
            if shape != own_shape:
                raise ConfigError(f"features are {shape} a film, this encoder makes {own_shape}: write them again")
            return batch | {"features": torch.tensor(rows["features"]).view(torch.bfloat16)}
        side, own = rows["images"].shape[-1], self.config.image_px
        if side != own:
            raise ConfigError(f"films are {side} px, model.vision.image_px={own}: make them equal")
        return batch | {"images": torch.tensor(rows["images"])}

    def see(self, batch: Mapping[str, Any], dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """The tokens of studies in `dtype` and which of them are there, as `merge` gives them, from either input."""
        if "images" in batch:
            tokens, present = self(batch["images"], batch["view_mask"])
            return tokens.to(dtype), present
        return self.merge(batch["features"].to(dtype), batch["view_mask"])

    def encode(self, films: Tensor) -> Tensor:
        """Every film alone: uint8 [N, S, S] → [N, P, D] in the encoder's dtype.

        Grey values get config.grey, or else the mean and deviation of the model's own channels. Class and register
        tokens are left out.
        """
        grey = films.float() / 255
        x = torch.stack([(grey - mean) / std for mean, std in self.scale], dim=1)  # [N, channels, S, S]
        features = self.encoder.forward_features(x.to(next(self.encoder.parameters()).dtype))
        if features.ndim == 3:
            return features[:, getattr(self.encoder, "num_prefix_tokens", 0) :]
        if getattr(self.encoder, "output_fmt", "NCHW") == "NHWC":
            return features.flatten(1, 2)
        return features.flatten(2).transpose(1, 2)

    def merge(self, features: Tensor, view_mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """The tokens of a study from those of its films, and which of them are there (None: all).

        - average: the mean over the films that are there, [B, P, D] (R2GenKG §1.1); zeros without any film
        - concatenate: the films' tokens one after the other, [B, V·P, D], and bool [B, V·P]
        - separate: as they are, [B, V, P, D], and bool [B, V]

        Args:
            features: [B, V, P, D], zeros where there is no film.
            view_mask: bool [B, V], True where there is a film.
        """
        if self.how == "concatenate":
            return features.flatten(1, 2), view_mask.repeat_interleave(features.shape[2], dim=1)
        if self.how == "separate":
            return features, view_mask
        weight = view_mask / view_mask.sum(1, keepdim=True).clamp(min=1)  # [B, V], 0 where there is no film
        return (features * weight.to(features.dtype)[..., None, None]).sum(1), None

    def train(self, mode: bool = True) -> "VisionEncoder":
        """As nn.Module.train, but a frozen encoder and every BatchNorm stay in eval mode."""
        super().train(mode)
        if self.tuning == "frozen":
            self.encoder.eval()
        for module in self.encoder.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def fingerprint(self) -> str:
        """SHA-256 of what is not trained, and so is in no checkpoint; "" where nothing is left.

        It is over timm's name, its options, and names, types, shapes and bytes of the tensors, as they were loaded: to
        be asked before an engine casts or shards them (Swin-B: under a second). What lies beneath LoRA is called as
        timm calls it, so that adapters change nothing. Of an encoder trained in full BatchNorm's statistics are left.
        """
        trained = {name for name, parameter in self.encoder.named_parameters() if parameter.requires_grad}
        state = self.encoder.state_dict()
        kept = {name.replace(".base_layer.", "."): state[name] for name in state.keys() - trained}
        for path in [path for path, module in self.encoder.named_modules() if isinstance(module, SplitQkv)]:
            for leaf in ("weight", "bias"):
                parts = [f"{path}.{part}.{leaf}" for part in ("query", "key", "value")]
                if kept.keys() >= set(parts):
                    kept[f"{path}.{leaf}"] = torch.cat([kept.pop(part) for part in parts])
        digest = hashlib.sha256(json.dumps([self.config.name, self.config.options], sort_keys=True).encode())
        for name, tensor in sorted(kept.items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest() if kept else ""

    def gradient_checkpointing(self, on: bool = True) -> None:
        """Recompute activations in backward, where the timm model supports it and something is trained."""
        if self.tuning != "frozen" and hasattr(self.encoder, "set_grad_checkpointing"):
            self.encoder.set_grad_checkpointing(on)


def refuse_unknown(config: Vision) -> None:
    """ConfigError for a name that timm does not know, with the nearest, or weights that are not here."""
    if not timm.is_model(config.name):
        near = ", ".join(difflib.get_close_matches(config.name, timm.list_models())) or "see timm.list_models()"
        raise ConfigError(f"model.vision.name={config.name!r} is not a timm model; near: {near}")
    if config.weights == PACKAGE:
        file_of(vision_package(config.name), "model.vision.weights=package")
    elif config.weights not in {"timm", "random"} and not Path(config.weights).expanduser().is_file():
        raise ConfigError(
            f'model.vision.weights={config.weights} is not a file; "timm", "random", "package" or a local file is '
            "expected"
        )


def _build_encoder(config: Vision) -> nn.Module:
    """The timm model without its classifier, with the weights that config.weights names."""
    refuse_unknown(config)
    options = dict(config.options)
    known = timm.get_pretrained_cfg(config.name)
    if known is not None and known.fixed_input_size:
        options.setdefault("img_size", config.image_px)
    on_meta = torch.get_default_device().type == "meta"  # shapes only: there is nothing to load weights into
    try:
        pretrained = config.weights == "timm" and not on_meta
        encoder = timm.create_model(config.name, pretrained=pretrained, num_classes=0, **options)
    except (TypeError, AssertionError, ValueError, KeyError) as error:
        raise ConfigError(f"timm cannot build {config.name} with model.vision.options={options}: {error}") from error
    except (OSError, RuntimeError) as error:
        kind = RetryableError if may_come(error) else ConfigError
        raise kind(
            f"the pretrained weights of {config.name} cannot be had ({' '.join(str(error).split())}): connect once, "
            "or set model.vision.weights to a local safetensors file, or to random"
        ) from error
    if config.weights not in {"timm", "random"} and not on_meta:
        _load_weights(encoder, config)
    return encoder


def _load_weights(encoder: Any, config: Vision) -> None:
    """Load a file strictly. Only the classifier, which the encoder does not have, may be left over."""
    if config.weights == PACKAGE:
        packaged, field = vision_package(config.name), "model.vision.weights=package"
        state = renamed(read_weights(file_of(packaged, field), field), packaged, field)
    else:
        state = read_weights(Path(config.weights).expanduser(), "model.vision.weights")
    remap = getattr(sys.modules[type(encoder).__module__], "checkpoint_filter_fn", None)
    if is_medclip(state):
        state, remap = into_timm(state, encoder.state_dict(), config), None
    try:
        if remap is not None:  # timm renames and resizes what older files hold
            state = remap(state, encoder)
    except Exception as error:  # it takes shapes for granted
        raise ConfigError(
            f"model.vision.weights={config.weights} does not fit {config.name}: {type(error).__name__}: {error}"
        ) from error
    classifier = encoder.pretrained_cfg.get("classifier") or ()
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    state = {name: value for name, value in state.items() if name.rpartition(".")[0] not in heads}
    try:
        encoder.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise ConfigError(f"model.vision.weights={config.weights} does not fit {config.name}: {error}") from error


def read_weights(file: Path, field: str) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a PyTorch file that holds nothing but plain data, by name.

    Raises:
        ConfigError: it is neither; `field` is the run's field that names it.
    """
    tree: Any
    try:
        if not file.is_file():
            raise FileNotFoundError("no regular file")
        tree = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
    except Exception as error:  # the unpickler raises whatever damaged bytes lead it to
        cause = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
        raise ConfigError(
            f"{field}={file} cannot be read as plain tensors ({cause}): save it as .safetensors where it can be trusted"
        ) from error
    for level in ("model", "state_dict"):
        if isinstance(tree, Mapping) and isinstance(tree.get(level), Mapping):
            tree = tree[level]
    tensors = tree.items() if isinstance(tree, Mapping) else ()
    return {name: tensor for name, tensor in tensors if isinstance(name, str) and isinstance(tensor, Tensor)}


def _add_lora(encoder: nn.Module, config: Vision) -> None:
    """Freeze the encoder and add trainable low-rank updates, to every attention's query and value unless told."""
    name = config.name
    fused = [path for path, m in encoder.named_modules() if path.endswith(".qkv") and isinstance(m, nn.Linear)]
    for path in fused:
        attention: Any = encoder.get_submodule(path.rpartition(".")[0])
        if getattr(attention, "q_bias", None) is not None:  # such models read qkv.weight instead of calling qkv
            raise ConfigError(f"model.vision.tuning=lora cannot split the attention of {name}: choose full or frozen")
        attention.qkv = SplitQkv(attention.qkv)
    targets = [f"{path}.{part}" for path in fused for part in ("query", "value")]
    targets = targets or [path for path, _ in encoder.named_modules() if path.endswith((".q_proj", ".v_proj"))]
    if not targets and not config.lora.targets:
        raise ConfigError(f"model.vision.tuning=lora: {name} has no attention to adapt; choose full or frozen")
    add_adapters(encoder, config.lora, "model.vision.lora", targets)
