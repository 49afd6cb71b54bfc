"""CKNet: what tokens take of a matrix, R2Gen's Transformer and its cache, the words, and the whole model."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from r2kg.config.parts import Data, Decoding
from r2kg.config.run import Run
from r2kg.graph.matrix.artefact import MatrixManifest, save_matrix
from r2kg.modules.beams import Generated, decode
from r2kg.modules.config import Vision
from r2kg.recipes import find_recipe
from r2kg.systems.cknet.config import CKNetConfig
from r2kg.systems.cknet.knowledge import FILE, NAMES, KnowledgeMemory, artefact
from r2kg.systems.cknet.model import CKNet, WordDecoder
from r2kg.systems.cknet.parts import Knowledge, Transformer
from r2kg.systems.cknet.transformer import EncoderDecoder, Norm, places
from r2kg.systems.cknet.vocabulary import encode, read_vocabulary, write_vocabulary
from r2kg.systems.contract import build_model, stored, to_bf16
from shards.clean import vocabulary
from shards.errors import ConfigError, DataError
from shards.tars.format import read_manifest
from tests.r2kg.modules.decoder_checks import check_cached_equals_uncached

REPORTS = ["the heart is large .", "no effusion is seen . the lungs are clear .", "clear lungs ."]
SIDE, NODES = 56, 6
SWIN = {"embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2), "drop_path_rate": 0.0}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Directories of a vocabulary and of a matrix, as `prepare` leaves them."""
    words, matrix = tmp_path_factory.mktemp("words"), tmp_path_factory.mktemp("matrix")
    write_vocabulary(vocabulary(REPORTS * 3, 2), words)
    vectors = torch.randn(NODES, 12, generator=torch.Generator().manual_seed(3))
    save_file({"vectors": F.normalize(vectors, dim=-1)}, matrix / FILE)
    (matrix / NAMES).write_text(json.dumps([f"finding {at}" for at in range(NODES)]))
    return words, matrix


def config_of(made, knowledge: dict | None = {}, **changes) -> CKNetConfig:  # noqa: B006
    words, matrix = made
    settings = {"matrix_at": str(matrix), "top_gamma": 3, "heads": 4}
    part = None if knowledge is None else Knowledge(**settings | knowledge)
    vision = Vision(
        name="swin_tiny_patch4_window7_224", weights="random", options=SWIN, image_px=SIDE, merge="concatenate"
    )
    transformer = Transformer(width=32, hidden=24, layers=2, heads=4)
    return CKNetConfig(vision=vision, knowledge=part, transformer=transformer, words_at=str(words), **changes)


def tiny(made, knowledge: dict | None = {}, **changes) -> CKNet:  # noqa: B006
    torch.manual_seed(0)
    return build_model(config_of(made, knowledge, **changes))


def stream_rows(valid: tuple[bool, ...] = (True, True, True)) -> dict:
    rng = np.random.default_rng(0)
    return {
        "images": rng.integers(0, 256, (3, 2, SIDE, SIDE), dtype=np.uint8),
        "view_mask": np.array([[True, True], [True, False], [True, True]]) & np.array(valid)[:, None],
        "valid": np.array(valid),
        "index": np.arange(3),
        "step": np.zeros(3, dtype=np.int64),
        "record": np.array([json.dumps({"target": t}) if v else "" for t, v in zip(REPORTS, valid, strict=True)]),
    }


def test_every_token_takes_the_gamma_nearest_vectors_in_every_head(made):
    """Eq. 4-8 written out, a head and a token at a time."""
    torch.manual_seed(1)
    memory = KnowledgeMemory(Knowledge(matrix_at=str(made[1]), top_gamma=3, heads=4), 32)
    tokens = torch.randn(2, 5, 32)
    answer, taken = memory.ask(tokens)
    q, k, g = tokens @ memory.query.weight.T, memory.matrix @ memory.key.weight.T, memory.matrix @ memory.value.weight.T
    for study in range(2):
        for at in range(5):
            shares = torch.zeros(NODES)
            for head in range(4):
                part = slice(8 * head, 8 * head + 8)
                scores = [(q[study, at, part] @ k[n, part]).item() / math.sqrt(8) for n in range(NODES)]
                best = sorted(range(NODES), key=lambda n: -scores[n])[:3]
                total = sum(math.exp(scores[n]) for n in best)
                weights = {n: math.exp(scores[n]) / total for n in best}
                expected = sum(weights[n] * g[n, part] for n in best)
                torch.testing.assert_close(answer[study, at, part], expected)
                for n, weight in weights.items():
                    shares[n] += weight / 4
            torch.testing.assert_close(taken[study, at], shares)


def test_the_answer_is_fused_as_the_setting_says(made):
    tokens = torch.randn(1, 4, 32)
    for how in ("concat", "add", "released", "none"):
        memory = KnowledgeMemory(
            Knowledge(matrix_at=str(made[1]), top_gamma=3, heads=4, fuse_film=how, fuse_words="add"), 32
        )
        answer, _ = memory.ask(tokens)
        if how in ("concat", "released"):
            taken = tokens + answer if how == "released" else tokens
            expected = memory.film(torch.cat((taken, answer), -1))
        else:
            expected = tokens + answer if how == "add" else tokens
        torch.testing.assert_close(memory(tokens, "film")[0], expected)


def test_ratio_is_never_nan():
    """Eq. 6 where scores are negative, cancel out, or are all 0."""
    memory = KnowledgeMemory(Knowledge(matrix="random", width=8, rows=4, top_gamma=3, heads=1, weights="ratio"), 8)
    scores = torch.tensor([[3.0, 1.0, 0.0], [2.0, -1.0, -1.0], [-1.0, -2.0, -3.0], [0.0, 0.0, 0.0]], requires_grad=True)
    weights = memory._weigh(scores)
    expected = [[0.75, 0.25, 0.0], [1.0, 0.0, 0.0], [1 / 3] * 3, [1 / 3] * 3]
    torch.testing.assert_close(weights, torch.tensor(expected))
    (weights * torch.arange(3.0)).sum().backward()
    assert scores.grad.isfinite().all()


def test_more_vectors_than_there_are_cannot_be_taken(made):
    with pytest.raises(ValueError, match=r"top_gamma=41 of rows=40"):
        Knowledge(matrix="random", top_gamma=41)
    with pytest.raises(ConfigError, match=r"top_gamma=7, and the matrix has 6 vectors"):
        KnowledgeMemory(Knowledge(matrix_at=str(made[1]), top_gamma=7), 32)
    with pytest.raises(ValueError, match="ask in vain"):
        Knowledge(fuse_film="none", fuse_words="none")
    with pytest.raises(ConfigError, match="matrix_at is empty"):
        KnowledgeMemory(Knowledge(), 512)


def test_norm_divides_by_the_unbiased_deviation_and_survives_equal_channels():
    norm, x = Norm(6), torch.randn(4, 6, requires_grad=True)
    expected = torch.stack([(row - row.mean()) / (row.std(correction=1) + 1e-6) for row in x])
    torch.testing.assert_close(norm(x), expected)
    equal = torch.ones(2, 6, requires_grad=True)
    norm(equal).sum().backward()
    assert equal.grad.isfinite().all()


def attended(x, y, attention, width, heads, keep):
    """Eq. 2 and 3 a head and a token at a time; `keep(t, s)` says whether t may see s."""
    d = width // heads
    q, k, v = (
        F.linear(z, m.weight, m.bias) for z, m in ((x, attention.query), (y, attention.key), (y, attention.value))
    )
    out = torch.zeros(len(x), width)
    for t in range(len(x)):
        for head in range(heads):
            part = slice(d * head, d * head + d)
            seen = [s for s in range(len(y)) if keep(t, s)]
            scores = torch.stack([q[t, part] @ k[s, part] / math.sqrt(d) for s in seen]).softmax(0)
            out[t, part] = sum(w * v[s, part] for w, s in zip(scores, seen, strict=True))
    return F.linear(out, attention.out.weight, attention.out.bias)


def test_encoder_and_decoder_are_r2gens_formulas():
    """Pre-norm layers written out, one study at a time, without any fused kernel."""
    torch.manual_seed(0)
    config = Transformer(width=16, hidden=12, layers=2, heads=2)
    model = EncoderDecoder(config, 9).eval()
    film, words = torch.randn(2, 5, 16), torch.randn(2, 4, 16)
    present = torch.tensor([[True] * 5, [True, True, True, False, False]])
    states, mask = model.encode(film, present)
    logits, _ = model.decode(words, model.read(states), mask)
    for row in range(2):
        there, x = present[row], film[row]
        for layer in model.encoder:
            n = layer.norms[0](x)
            x = x + attended(n, n, layer.own, 16, 2, lambda t, s, there=there: bool(there[s]))
            x = x + layer.forwards(layer.norms[1](x))
        memory, y = model.encoded(x), words[row]
        torch.testing.assert_close(states[row][there], memory[there])
        for layer in model.decoder:
            n = layer.norms[0](y)
            y = y + attended(n, n, layer.own, 16, 2, lambda t, s: s <= t)
            y = y + attended(layer.norms[1](y), memory, layer.film, 16, 2, lambda t, s, there=there: bool(there[s]))
            y = y + layer.forwards(layer.norms[2](y))
        torch.testing.assert_close(logits[row], F.linear(model.decoded(y), model.logits.weight, model.logits.bias))


def test_places_are_sines_and_cosines():
    told = places(3, 6, start=4)
    for at in range(3):
        for channel in range(6):
            angle = (4 + at) / 10000 ** ((channel - channel % 2) / 6)
            assert told[at, channel] == pytest.approx(math.cos(angle) if channel % 2 else math.sin(angle), abs=1e-5)


def test_vocabulary_has_r2gens_ids(made, tmp_path):
    tokenizer = read_vocabulary(str(made[0]))
    words = ["<end>", *vocabulary(REPORTS * 3, 2)]
    assert tokenizer.convert_tokens_to_ids(words) == [*range(len(words))]
    read, wanted = encode(tokenizer, ["the heart is strange .", None, "clear lungs ."], 5)
    the, heart, is_, unknown = (words.index(word) for word in ("the", "heart", "is", "<unk>"))
    clear, lungs, period = (words.index(word) for word in ("clear", "lungs", "."))
    assert read.tolist() == [[0, the, heart, is_], [0, 0, 0, 0], [0, clear, lungs, period]]
    assert wanted.tolist() == [[the, heart, is_, unknown], [-100] * 4, [clear, lungs, period, 0]]
    assert tokenizer.decode([the, heart, unknown], skip_special_tokens=True) == "the heart <unk>"
    with pytest.raises(DataError, match=r"lower model\.min_count"):
        write_vocabulary(vocabulary(REPORTS, 9), tmp_path)
    with pytest.raises(DataError, match="holds no vocabulary"):
        read_vocabulary(str(tmp_path / "none"))


@pytest.mark.parametrize("knowledge", [None, {}, {"matrix": "random", "width": 7, "trained": True}])
def test_gradients_reach_all_that_is_trained_and_a_frozen_matrix_stays(made, knowledge):
    model = tiny(made, knowledge)
    before = model.knowledge.matrix.clone() if model.knowledge else None
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    (term,) = model(model.collate(stream_rows())).values()
    (term.sum / term.count).backward()
    named = [(name, p) for group in model.trainable().values() for name, p in group]
    assert sorted(n for n, _ in named) == sorted(n for n, p in model.named_parameters() if p.requires_grad)
    without = [name for name, p in named if p.grad is None or not p.grad.abs().sum() > 0]
    assert not [name for name in without if not name.endswith("key.bias")]  # softmax does not feel a bias of keys
    optimizer.step()
    groups = {"vision", "film", "transformer"} | ({"knowledge"} if knowledge is not None else set())
    assert set(model.trainable()) == groups <= {*CKNetConfig.trains}
    if model.knowledge:
        same = torch.equal(before, model.knowledge.matrix)
        assert same != bool(knowledge) and ("knowledge.matrix" in stored(model)) == bool(knowledge)


def test_what_is_to_come_and_what_only_fills_change_nothing(made):
    """No word tells of those behind it; neither a film that is not there nor an invalid row changes the others."""
    model = tiny(made).eval()
    batch = model.collate(stream_rows())
    states, mask, taken, _ = model.see(batch)

    def logits_of(words):
        return model.transformer.decode(model.words_of(words)[0], model.transformer.read(states), mask)[0]

    words = batch["words"]
    for t in range(1, words.shape[1]):
        other = words.clone()
        other[:, t:] = (other[:, t:] + 3) % 9
        torch.testing.assert_close(logits_of(other)[:, :t], logits_of(words)[:, :t])
        assert not torch.allclose(logits_of(other)[:, t:], logits_of(words)[:, t:])
    assert not taken[1, taken.shape[1] // 2 :].any() and taken[1].any()
    rows = stream_rows()
    rows["images"][1, 1] = 255
    torch.testing.assert_close(model.loss(model.collate(rows))["report"].sum, model.loss(batch)["report"].sum)
    alone = model.loss(model.collate(stream_rows((True, True, False))))["report"]
    rows = stream_rows((True, True, False))
    rows["images"][2] = 7
    torch.testing.assert_close(model.loss(model.collate(rows))["report"].sum, alone.sum)
    assert alone.count == 6 + 11 and torch.isfinite(alone.sum)


def test_films_have_places_where_the_setting_says_so(made):
    """Without places an encoder cannot tell which film is the frontal one."""
    rows = stream_rows()
    turned = rows | {"images": rows["images"][:, ::-1].copy()}
    for film_places in (True, False):
        model = tiny(made).eval()
        settings = model.config.transformer.model_copy(update={"film_places": film_places})
        model.config = model.config.model_copy(update={"transformer": settings})
        rows["view_mask"][1, 1] = turned["view_mask"][1, 1] = True
        first, other = (model.loss(model.collate(given))["report"].sum for given in (rows, turned))
        assert torch.isclose(first, other, rtol=1e-5) == (not film_places)


def test_cached_decoding_is_decoding_from_scratch(made):
    model = tiny(made).eval()
    states, mask, *_ = model.see(model.collate(stream_rows()))
    decoder = WordDecoder(model)

    def uncached(row, written):
        words, _ = model.words_of(torch.tensor([[0, *written]]))
        film = model.transformer.read(states[row : row + 1])
        return model.transformer.decode(words, film, None if mask is None else mask[row : row + 1])[0][0, -1]

    check_cached_equals_uncached(decoder, (states, mask), uncached)


def beam_search(model, states, mask, beams, most):
    """R2Gen's: summed log-probabilities, an ended beam is set aside and goes on at -1000; the best set aside wins."""
    held, done = [(0.0, [])], []
    for step in range(most):
        grown = []
        for score, written in held:
            words, _ = model.words_of(torch.tensor([[0, *written]]))
            logits, _ = model.transformer.decode(words, model.transformer.read(states), mask)
            logp = logits[0, -1].log_softmax(-1)
            grown += [(score + float(p), [*written, at]) for at, p in enumerate(logp)]
        held = sorted(grown, key=lambda one: -one[0])[:beams]
        for at, (score, written) in enumerate(held):
            if written[-1] == 0 or step == most - 1:
                done.append((score, written))
                held[at] = (score - 1000, written)
    best = max(done, key=lambda one: one[0])[1]
    return best[: best.index(0)] if 0 in best else best


def test_beam_search_is_r2gens(made):
    model = tiny(made).eval()
    with torch.no_grad():
        model.transformer.logits.weight.mul_(3)
        states, mask, *_ = model.see(model.collate(stream_rows()))
        how = Decoding(beams=3, length_rule="r2gen", repetition_penalty=1.0, max_new_tokens=7)
        written = decode(WordDecoder(model), (states, mask), how, model.tokenizer)
        for row in range(3):
            expected = beam_search(model, states[row : row + 1], None if mask is None else mask[row : row + 1], 3, 7)
            assert written[row].text == model.tokenizer.decode(expected) and written[row].tokens == len(expected)


def test_a_report_comes_with_the_nodes_it_took(made):
    model = tiny(made, evidence=2)
    how = Decoding(beams=2, length_rule="r2gen", repetition_penalty=1.0, max_new_tokens=6)
    written = model.generate(model.collate(stream_rows()), how)
    assert model.training and all(isinstance(one, Generated) for one in written)
    told = written[1].extra["knowledge"]
    assert {len(nodes) for nodes in told.values()} == {2} and set(told) >= {"film"}
    assert all(name.startswith("finding ") and 0 < share <= 1 for nodes in told.values() for name, share in nodes)
    assert json.loads(json.dumps(told, allow_nan=False)).keys() == told.keys()
    assert tiny(made, None).generate(model.collate(stream_rows()), how)[0].extra == {}


def test_the_released_code_asks_other_things_in_training_than_in_inference(made):
    """Node states of a study's own films by weights that are drawn anew; words in inference a matrix of their own."""
    code = {"matrix": "released", "rows": 31, "width": 32, "top_gamma": 15, "fuse_film": "released"}
    model = tiny(made, code | {"fuse_words": "add"})
    batch = model.collate(stream_rows())
    assert not torch.equal(model.see(batch).read[0], model.see(batch).read[0]), "the same batch, other weights"
    model.eval()
    first, again = model.loss(batch)["report"].sum, model.loss(batch)["report"].sum
    assert torch.equal(first, again), "a checkpoint's loss must be found again"
    seen = model.see(batch)
    words = batch["words"]
    trained, written = (model.words_of(words, read=read)[0] for read in (seen.read, None))
    assert seen.read[0].shape == (3, 4, 31, 8) and not torch.allclose(trained, written)
    first.backward()
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not any(name.startswith("released") for name in stored(model))
    with pytest.raises(ValueError, match=r"set model\.knowledge\.rows=31 and model\.knowledge\.width=32"):
        config_of(made, {"matrix": "released"})


def test_bf16_keeps_the_matrix_and_learns(made):
    model = tiny(made)
    to_bf16(model)
    assert model.knowledge.matrix.dtype == torch.float32
    (term,) = model(model.collate(stream_rows())).values()
    term.sum.backward()
    assert torch.isfinite(term.sum) and model.knowledge.query.weight.grad.isfinite().all()


def test_fingerprint_tells_matrix_and_words(made, tmp_path):
    whole = tiny(made).fingerprint()
    assert set(whole) == {"vision", "words", "knowledge"}
    random = {"matrix": "random", "width": 12, "rows": NODES}
    assert tiny(made, random | {"seed": 1}).fingerprint()["knowledge"] != whole["knowledge"]
    assert tiny(made, random).fingerprint() == tiny(made, random).fingerprint()
    assert "knowledge" not in tiny(made, random | {"trained": True}).fingerprint()


def test_paper_size(monkeypatch):
    """DenseNet-121, 98 tokens of two films, 512 channels, 761 ids; BERT's 768 channels under a map to 512."""
    with torch.device("meta"):
        model = build_model(find_recipe("cknet.iu").model)
        cmn = build_model(find_recipe("cknet.cmn_iu").model)
    sizes = {name: sum(p.numel() for _, p in group) for name, group in model.trainable().items()}
    attention, forwards, norm = 4 * (512 * 512 + 512), 2 * (512 * 512 + 512), 2 * 512
    layers = 3 * (attention + forwards + 2 * norm) + 3 * (2 * attention + forwards + 3 * norm) + 2 * norm
    assert sizes["knowledge"] == 3 * 512 * 512 + 2 * (1024 * 512 + 512)
    assert sizes["film"] == 1024 * 512 + 512 and sizes["vision"] == 6_953_856
    assert sizes["transformer"] == layers + (512 * 761 + 761) + (768 * 512 + 512)
    assert model.knowledge.matrix.shape == (40, 512) and not model.knowledge.matrix.requires_grad
    assert (model.vision.patches, model.vision.width) == (49, 1024)
    memory = {name: p.shape for name, p in cmn.knowledge.named_parameters()}
    assert memory["matrix"] == (2048, 512) and memory["out.weight"] == (512, 512) and "film.weight" not in memory
    assert (cmn.vision.patches, cmn.vision.width) == (49, 2048)
    films, mask = torch.zeros(1, 2, 49, 1024), torch.tensor([[True, False]])
    tokens, present = model.vision.merge(films, mask)
    assert tokens.shape == (1, 98, 1024) and present.sum() == 49


def test_controls_take_the_meaning_out(phantom_shards, tmp_path):
    shards, manifest = tmp_path / "phantom", read_manifest(phantom_shards)
    told = MatrixManifest(
        licence=manifest.licence, parent=manifest.fingerprint, graph="0" * 64, nodes=tuple("abcdefgh"), description={}
    )
    vectors = np.random.default_rng(7).normal(size=(8, 5))
    kept = save_matrix(shards / "knowledge", told, vectors).vectors
    run = Run(name="x", data=Data(shards=str(shards)), model=CKNetConfig())

    def taken(**changes):
        """What the artefact is decided by, and the matrix that a model has of it."""
        made = artefact(Knowledge(**changes), run, manifest, "model.knowledge.matrix_at")
        (folder := tmp_path / str(len([*tmp_path.iterdir()]))).mkdir()
        made.make(folder)
        return made.settings, KnowledgeMemory(Knowledge(matrix_at=str(folder), **changes), 32).matrix.detach().numpy()

    plain, own = taken()
    np.testing.assert_array_equal(own, kept)
    dealt, mixed = taken(control="values")
    assert dealt != plain and not np.array_equal(mixed, kept)
    np.testing.assert_array_equal(np.sort(mixed, 0), np.sort(kept, 0))
    _, drawn = taken(control="random")
    assert drawn.shape == kept.shape and not np.isclose(drawn, kept).all(1).any()
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=1), 1, rtol=1e-6)
    assert (taken(control="random", seed=1)[1] != drawn).all() and (
        taken(control="random", trained=True)[1] == drawn
    ).all()
    with pytest.raises(DataError, match=r"no knowledge matrix at .*knowledge-other.*--classifier RUN"):
        taken(control="other")
    save_matrix(shards / "knowledge-other", told, vectors[::-1])
    with pytest.raises(DataError, match=r"are of the same graph, and model\.knowledge\.control=other asks for another"):
        taken(control="other")
    another = save_matrix(shards / "knowledge-other", told.model_copy(update={"graph": "2" * 64}), vectors[::-1])
    np.testing.assert_array_equal(taken(control="other")[1], another.vectors)
    with pytest.raises(ConfigError, match=r"top_gamma=9, and the matrix at .* has 8 vectors"):
        taken(top_gamma=9)
    save_matrix(shards / "knowledge", told.model_copy(update={"parent": "1" * 64}), vectors)
    with pytest.raises(DataError, match="may know their test reports"):
        taken()
