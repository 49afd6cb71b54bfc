"""Options of the language model: quantised weights, kernels, load dtype, where adapters go and what is trained beside.

The model is of Llama's awkward shapes: tied weights, grouped queries, rotary positions, bf16 on disk.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from r2kg.config.parts import Decoding
from r2kg.config.run import Run
from r2kg.modules.config import Llm, Lora, TinyLm, Vision
from r2kg.modules.llm.writer import ReportWriter, frame
from r2kg.modules.tiny_lm import write_tiny_lm
from r2kg.modules.vision import VisionEncoder
from r2kg.systems.contract import build_model, load_stored, stored
from r2kg.systems.r2genkg.config import R2GenKGConfig
from r2kg.systems.r2genkg.model import R2GenKG
from shards.errors import ConfigError

REPORTS = ["the heart is large .", "no effusion is seen . the lungs are clear .", "clear lungs ."]
INSTRUCTION = "Describe the film."
QUANTISED = ("nf4", "int8")
GREEDY = Decoding(beams=1, max_new_tokens=5, repetition_penalty=1.0)


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lm") / "llama"
    config = TinyLm(width=32, layers=2, heads=2, vocabulary=320, epochs=1)
    write_tiny_lm(REPORTS * 4, folder, config, 0, INSTRUCTION)
    torch.manual_seed(0)
    shapes = LlamaConfig(
        vocab_size=len(AutoTokenizer.from_pretrained(folder)), hidden_size=64, intermediate_size=128,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
        initializer_range=0.1,
    )  # fmt: skip
    LlamaForCausalLM(shapes).to(torch.bfloat16).save_pretrained(folder)
    return folder


def writer(source: Path, **changes) -> ReportWriter:
    torch.manual_seed(1)
    return ReportWriter(Llm(source=str(source), **changes), frame(INSTRUCTION))


def whole_model(source: Path, **changes) -> R2GenKG:
    torch.manual_seed(1)
    vision = Vision(name="test_vit", weights="random", image_px=64, tuning="frozen")
    return build_model(R2GenKGConfig(vision=vision, llm=Llm(source=str(source), **changes), report_tokens=40))


def soft_tokens(model: ReportWriter) -> torch.Tensor:
    return torch.randn(3, 5, model.width, generator=torch.Generator().manual_seed(2)).requires_grad_()


def rows() -> dict:
    return {
        "images": np.random.default_rng(0).integers(0, 256, (3, 2, 64, 64), dtype=np.uint8),
        "view_mask": np.ones((3, 2), bool),
        "valid": np.ones(3, bool),
        "record": np.array([json.dumps({"target": text}) for text in REPORTS]),
    }


def names_trained(model: torch.nn.Module) -> set[str]:
    """Last component of the modules that are trained, adapters under the name of their layer."""
    trained = (name for name, p in model.named_parameters() if p.requires_grad)
    return {name.split(".lora_")[0].removesuffix(".weight").rpartition(".")[2] for name in trained}


def change(**changes) -> Run:
    return Run(name="x").change({key.replace("__", "."): value for key, value in changes.items()})


@pytest.mark.parametrize("quantization", QUANTISED)
def test_a_quantised_writer_learns_and_writes(llama, quantization):
    model = writer(llama, tuning="lora", lora=Lora(rank=4, dropout=0.0), quantization=quantization)
    matrices = [p for p in model.parameters() if not p.is_floating_point()]
    assert len(matrices) == 14 and {p.dtype.itemsize for p in matrices} == {1}
    whole = sum(p.numel() for p in writer(llama).parameters())
    stored_whole = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    assert stored_whole < whole if quantization == "nf4" else stored_whole == whole
    assert model.llm.lm_head.weight is model.llm.model.embed_tokens.weight
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}

    soft, (input_ids, labels) = soft_tokens(model), model.tokenize(REPORTS, 100)
    optimizer = torch.optim.AdamW(trained, lr=2e-2)
    losses = []
    for _ in range(20):
        loss = model.loss(soft, input_ids, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    written = model.eval().write(soft, GREEDY)
    assert len(written) == 3 and all(report.tokens for report in written)


@pytest.mark.parametrize("quantization", QUANTISED)
@pytest.mark.parametrize("tuning", ["frozen", "lora"])
def test_gradients_reach_the_soft_tokens_after_a_validation_too(llama, quantization, tuning):
    """A pass without gradients lets some CPUs repack 4-bit weights for products that have no backward."""
    model = writer(llama, tuning=tuning, quantization=quantization, lora=Lora(dropout=0.0))
    soft, targets = soft_tokens(model), model.tokenize(REPORTS, 100)
    (before,) = torch.autograd.grad(model.loss(soft, *targets), soft)
    model.eval()
    with torch.no_grad():
        model.loss(soft, *targets)
    model.train()
    (after,) = torch.autograd.grad(model.loss(soft, *targets), soft)
    assert before.abs().sum() > 0
    torch.testing.assert_close(after, before)


@pytest.mark.parametrize("quantization", QUANTISED)
def test_quantised_losses_are_near_the_whole_models(llama, quantization):
    whole, model = writer(llama), writer(llama, quantization=quantization)
    soft = soft_tokens(whole)
    one, two = (each.loss(soft, *each.tokenize(REPORTS, 100)) for each in (whole, model))
    assert one != two
    torch.testing.assert_close(two, one, rtol=0.05, atol=0.0)


@pytest.mark.parametrize("quantization", QUANTISED)
def test_the_whole_model_trains_is_restored_in_bf16_and_writes(llama, quantization):
    """As the writers of predictions do it: stored weights over a fresh model, all of it bf16."""
    changes = {"tuning": "lora", "quantization": quantization, "lora": Lora(rank=4, dropout=0.0)}
    model = whole_model(llama, **changes)
    trained = [p for pairs in model.trainable().values() for _, p in pairs]
    assert all(p.is_floating_point() for p in trained) and set(model.trainable()) == {"projection", "llm"}
    batch, optimizer, losses = model.collate(rows()), torch.optim.AdamW(trained, lr=2e-2), []
    for _ in range(10):
        (term,) = model(batch).values()
        optimizer.zero_grad()
        (term.sum / term.count).backward()
        optimizer.step()
        losses.append(float(term.sum.detach()))
    assert losses[-1] < 0.7 * losses[0]

    torch.manual_seed(1)  # the encoder is random and frozen
    fresh = build_model(model.config)
    load_stored(fresh, {name: tensor.clone() for name, tensor in stored(model).items()})
    fresh.to(torch.bfloat16)
    fresh.to("cpu").eval()
    written = fresh.generate(batch, GREEDY)
    with torch.no_grad():
        (restored,) = fresh(batch).values()
    assert len(written) == 3 and float(restored.sum) == pytest.approx(losses[-1], rel=0.15)
    assert float(restored.sum) < 0.7 * losses[0]


def test_shapes_alone_have_the_trained_names_of_the_quantised_model(llama):
    """What the checks before a run build: no weights, none quantised, the same names and numbers trained."""
    changes = {"tuning": "lora", "lora": Lora(targets=("all-linear",), save=("norm",))}
    found = []
    for quantization in ("none", *QUANTISED):
        with torch.device("meta"):
            shapes = whole_model(llama, quantization=quantization, **changes)
        for model in (shapes, whole_model(llama, quantization=quantization, **changes)):
            found.append([(name, p.shape) for pairs in model.trainable().values() for name, p in pairs])
    assert all(each == found[0] for each in found)


def test_fingerprint_is_that_of_the_files_however_they_are_loaded(llama):
    assert writer(llama, quantization="nf4").fingerprint() == writer(llama, dtype="fp32").fingerprint()


def test_nf4_under_zero_3_is_refused_by_name_and_int8_is_not(llama):
    zero_3 = {"engine.zero": 3, "model.llm.tuning": "lora"}
    with pytest.raises(ConfigError, match=r"quantization=nf4 with engine\.zero=3 .* set engine\.zero to 0, 1 or 2"):
        Run(name="x").change(zero_3 | {"model.llm.quantization": "nf4"})
    int8 = Run(name="x").change(zero_3 | {"model.llm.quantization": "int8"})
    with pytest.raises(ConfigError, match="keeps its weights on the device"):
        int8.change({"engine.offload_parameters": True})


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"quantization": "nf4", "tuning": "full"}, "nf4 cannot be trained in full: set model.llm.tuning to lora"),
        ({"quantization": "int8", "tuning": "full"}, "int8 cannot be trained in full"),
        ({"dtype": "fp16", "tuning": "full"}, "set model.llm.dtype to bf16 or fp32"),
        ({"dtype": "fp16", "tuning": "lora", "lora": {"save": ["norm"]}}, "set model.llm.dtype to bf16 or fp32"),
    ],
)
def test_trained_weights_need_their_bits(changes, error):
    with pytest.raises(ValidationError, match=error):
        Llm(**changes)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"model.llm.attention": "flash_attention_2", "train.gpus": False}, "attention=flash_attention_2 needs GPUs"),
        ({"model.llm.liger": True, "train.gpus": False}, "liger=true needs GPUs, and train.gpus=false"),
        ({"model.llm.attention": "flash_attention_2", "engine.precision": "fp32"}, "knows no fp32"),
        (
            {"model.llm.tuning": "lora", "model.llm.lora.save": ["norm"], "engine.precision": "fp32"},
            "set model.llm.dtype=fp32",
        ),
    ],
)
def test_what_engine_and_workers_cannot_give_is_said_before_they_start(changes, error):
    with pytest.raises(ConfigError, match=error):
        Run(name="x").change(changes)


@pytest.mark.parametrize(
    ("changes", "module", "error"),
    [
        ({"quantization": "nf4"}, "bitsandbytes", r"quantization=nf4 needs a package: pip install r2kg\[quantization"),
        ({"attention": "flash_attention_2"}, "flash_attn", "needs a package: pip install flash-attn"),
        ({"liger": True}, "liger_kernel", "liger=True needs a package: pip install liger-kernel"),
    ],
)
def test_a_missing_package_is_named_without_loading_weights(llama, monkeypatch, changes, module, error):
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    with torch.device("meta"), pytest.raises(ConfigError, match=error):
        writer(llama, **changes)


def test_attention_kernels_agree(llama):
    eager, sdpa = (writer(llama, attention=kernel, dtype="fp32") for kernel in ("eager", "sdpa"))
    assert [each.llm.config._attn_implementation for each in (eager, sdpa)] == ["eager", "sdpa"]
    soft = soft_tokens(eager)
    torch.testing.assert_close(*(each.loss(soft, *each.tokenize(REPORTS, 100)) for each in (eager, sdpa)))


def test_load_dtype(llama):
    found = {name: next(writer(llama, dtype=name).llm.parameters()).dtype for name in ("auto", "bf16", "fp16", "fp32")}
    wanted = {"auto": torch.bfloat16, "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    assert found == wanted


def test_adapters_go_where_they_are_told(llama):
    for targets, names in {
        ("k_proj", "up_proj"): {"k_proj", "up_proj"},
        ("all-linear",): {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
        (): {"q_proj", "v_proj"},
    }.items():
        assert names_trained(writer(llama, tuning="lora", lora=Lora(rank=2, targets=targets))) == names
    one = writer(llama, tuning="lora", lora=Lora(rank=2, targets=("layers.1.mlp.up_proj",)))
    assert len([p for p in one.parameters() if p.requires_grad]) == 2
    with pytest.raises(ConfigError, match=r"lora\.targets names 'q_porj', .*q_proj"):
        writer(llama, tuning="lora", lora=Lora(targets=("q_porj",)))
    with pytest.raises(ConfigError, match=r"lora\.targets names 'mlp'"):
        writer(llama, tuning="lora", lora=Lora(targets=("mlp",)))
    vision = Vision(name="test_vit", weights="random", image_px=64, tuning="lora", lora=Lora(targets=("fc1",)))
    assert names_trained(VisionEncoder(vision)) == {"fc1"}
    with pytest.raises(ConfigError, match=r"model\.vision\.lora\.targets names 'fc9', .*fc1"):
        VisionEncoder(vision.model_copy(update={"lora": Lora(targets=("fc9",))}))


@pytest.mark.parametrize("quantization", ("none", *QUANTISED))
def test_modules_beside_the_adapters_are_trained_stored_once_and_stay_tied(llama, quantization):
    lora = Lora(rank=2, dropout=0.0, save=("lm_head", "norm"))
    model = whole_model(llama, tuning="lora", lora=lora, quantization=quantization)
    whole = [name for name, _ in model.trainable()["llm"] if ".lora_" not in name]
    assert whole == ["writer.llm.model.embed_tokens.weight", "writer.llm.model.norm.weight"]
    (term,) = model(model.collate(rows())).values()
    term.sum.backward()
    with torch.no_grad():
        for _, parameter in model.trainable()["llm"]:
            parameter -= 0.1 * parameter.grad.sign()
    fresh = whole_model(llama, tuning="lora", lora=lora, quantization=quantization)
    load_stored(fresh, {name: tensor.clone() for name, tensor in stored(model).items()})
    assert fresh.writer.llm.lm_head.weight is fresh.writer.llm.model.embed_tokens.weight
    batch = model.eval().collate(rows())
    torch.testing.assert_close(fresh.eval()(batch)["report"].sum, model(batch)["report"].sum)
    if quantization != "none":
        for context in (torch.device("meta"), torch.device("cpu")):
            with context, pytest.raises(ConfigError, match="would train quantised matrices"):
                writer(llama, tuning="lora", lora=Lora(save=("o_proj",)), quantization=quantization)
    with pytest.raises(ConfigError, match=r"lora\.save names 'lmhead', .*lm_head"):
        writer(llama, tuning="lora", lora=Lora(save=("lmhead",)))


def test_weights_that_are_stored_quantised_are_refused(llama, tmp_path):
    model = writer(llama, quantization="nf4")
    model.llm.save_pretrained(tmp_path / "stored")
    model.tokenizer.save_pretrained(tmp_path / "stored")
    for context in (torch.device("meta"), torch.device("cpu")):
        with context, pytest.raises(ConfigError, match="are stored quantised: name their original"):
            writer(tmp_path / "stored")


@pytest.mark.slow
def test_two_workers_train_on_a_quantised_base_and_go_on_at_another_zero_stage(llama, tmp_path):
    """A validation lies between the steps; the weights of the last state are put over a fresh model, which writes."""
    script, out = Path(__file__).parents[1] / "training" / "qlora_worker.py", tmp_path / "figures.json"
    whole = ("nf4:2:fp32:", "nf4:2:bf16:", "int8:2:fp32:")
    settings = [*whole, "nf4:2:fp32:0", "nf4:2:bf16:2", "int8:3:fp32:"]
    ended = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         str(script), str(llama), str(out), *settings],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-4000:]
    figures = json.loads(out.read_text())
    for name in whole:
        *losses, restored, written = figures[name]
        assert restored < losses[-1] < losses[0] and written == 4
    assert figures["nf4:2:bf16:"] == pytest.approx(figures["nf4:2:fp32:"], abs=0.05)
    assert figures["nf4:2:fp32:0"] == pytest.approx(figures["nf4:2:fp32:"], abs=1e-3)
    assert figures["nf4:2:bf16:2"] == pytest.approx(figures["nf4:2:bf16:"], abs=1e-3)
    # int8 rounds activations too, which makes more of the last bits that the stages sum in another order.
    assert figures["int8:3:fp32:"] == pytest.approx(figures["int8:2:fp32:"], abs=0.01)
