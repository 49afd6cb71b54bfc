"""The ner-re extractor, trained on what the rules say of phantom reports, and RadGraph's files."""

import json
import pickle
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModel

from r2kg.graph.extract import spans
from r2kg.graph.extract.annotate import write_annotations
from r2kg.graph.extract.evaluate import Score
from r2kg.graph.extract.ner_re import CARD, NerRe, _loaded, _placed, named, read_radgraph, score_found, train_ner_re
from r2kg.graph.extract.rules import Rules
from r2kg.graph.extract.spans import BIOMEDBERT, MARKERS, POSITIONS, Fit, Inputs, NerReConfig, Tiny, build_tiny, tiny
from r2kg.graph.schema import Annotation, Entity, Extractor, Relation, pack, unpack
from shards.errors import ConfigError, DataError
from shards.sources.phantom.source import Phantom
from shards.sources.phantom.truth import truth_of
from shards.stream.index import read_studies

PHANTOM = Phantom(seed=0)
SMALL = NerReConfig(
    encoder="tiny",
    tiny=Tiny(width=64),
    context=0,
    entity=Fit(lr=2e-3, head_lr=2e-3, batch=8, epochs=25),
    relation=Fit(lr=2e-3, head_lr=2e-3, batch=32, epochs=8),
)
FEW = SMALL.model_copy(update={part: Fit(lr=1e-3, head_lr=1e-3, batch=8, epochs=1) for part in ("entity", "relation")})


def drawn(*indices: int) -> list[tuple[str, Annotation]]:
    """Phantom reports, and what the rules say of them."""
    reports = [PHANTOM.case(index)[2] for index in indices]
    return list(zip(reports, Rules().annotate(reports), strict=True))


@pytest.fixture(scope="module")
def examples() -> list[tuple[str, Annotation]]:
    return drawn(*range(12))


@pytest.fixture(scope="module")
def extractor(examples, tmp_path_factory) -> NerRe:
    return train_ner_re(examples, tmp_path_factory.mktemp("ner-re") / "models", SMALL)


def test_it_finds_again_what_it_was_trained_on(extractor, examples):
    entities, relations = score_found(extractor, examples)
    assert entities.recall >= 0.95 and entities.precision >= 0.95
    assert relations.f1 >= 0.8
    card = json.loads((Path(extractor.directory) / CARD).read_text())
    assert card["entities"] == sum(len(annotation.entities) for _, annotation in examples)
    assert card["relations"] == sum(len(annotation.relations) for _, annotation in examples)
    assert not (card["left_out_entities"] or card["left_out_relations"] or card["cut_sentences"])


def test_names_are_those_of_the_rules(extractor, examples):
    found = extractor.annotate([report for report, _ in examples])
    names = {(at, *e[:2]): e.name for at, annotation in enumerate(found) for e in annotation.entities}
    true = {(at, *e[:2]): e.name for at, (_, annotation) in enumerate(examples) for e in annotation.entities}
    shared = names.keys() & true.keys()
    assert shared and {key: names[key] for key in shared} == {key: true[key] for key in shared}


@pytest.mark.parametrize(
    ("words", "kind", "name"),
    [
        ("Pleural\n effusions", "disorder", "pleural effusion"),
        ("cardiac  silhouette", "anatomy", "heart"),
        ("right Lower lobe", "anatomy", "right lower lobe"),
        ("both lung bases", "anatomy", "both bases"),
        ("left infraclavicular  fossa", "anatomy", "left infraclavicular fossa"),
        ("left effusion", "anatomy", "left effusion"),
        ("3 x 2 cm", "size", "3 x 2 cm"),
    ],
)
def test_names_are_spelled_as_the_lexicon_does(words, kind, name):
    assert named(words, kind) == name


def test_loaded_again_it_says_the_same(extractor, examples):
    def as_protocol(extractor: Extractor) -> Extractor:
        return extractor

    reports = [report for report, _ in examples]
    said = as_protocol(extractor).annotate(reports)
    _loaded.cache_clear()
    again = NerRe.load(extractor.directory)
    copy = pickle.loads(pickle.dumps(extractor))
    assert again == extractor == copy and len(pickle.dumps(extractor)) < 5000
    assert again.annotate(reports) == said == copy.annotate(reports)
    assert again.settings() == extractor.settings() == json.loads(json.dumps(extractor.settings()))
    assert [unpack(pack(annotation)) for annotation in said] == said


def test_neither_batch_nor_padding_changes_an_answer(extractor, examples):
    reports = [report for report, _ in examples]
    whole = extractor.annotate(reports)
    assert NerRe.load(extractor.directory, batch=1).annotate(reports) == whole
    assert [extractor.annotate([report])[0] for report in reports] == whole
    assert extractor.annotate(reports[::-1]) == whole[::-1]


def test_of_overlapping_spans_the_most_probable_is_kept(extractor, monkeypatch):
    """Spans of three words in order: 0-1, 0-2, 0-3, 1-2, 1-3, 2-3. Class 7 is a disorder that is present."""
    said = [(1, 0.7), (7, 0.8), (0, 0.99), (0, 1.0), (7, 0.9), (0, 1.0)]
    monkeypatch.setattr(
        spans, "classify", lambda model, rows, *_: [said if len(row.spans) > 1 else [(1, 1.0)] for row in rows]
    )
    (annotation,) = extractor.annotate(["Small pleural  effusion"])
    assert [(e.start, e.end, e.name, e.kind, e.certainty) for e in annotation.entities] == [
        (0, 5, "small", "concept", "present"),
        (6, 23, "pleural effusion", "disorder", "present"),
    ]
    assert [relation[:3] for relation in annotation.relations] == [(0, "modify", 1), (1, "modify", 0)]


def test_the_same_examples_make_the_same_weights(examples, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, other = (train_ner_re(examples[:4], tmp_path / name, FEW) for name in "ab")
    assert torch.equal(torch.rand(3), expected)
    assert one.settings() == other.settings()
    changed = train_ner_re(examples[:4], tmp_path / "b", FEW.model_copy(update={"seed": 1}))
    assert changed.sha256 != one.sha256
    with pytest.raises(DataError, match="replaced since"):
        _loaded.cache_clear()
        other.annotate(["No effusion."])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize(
    "report", ["", " \n ", "…", "\u200b", "\ud800 effusion", "<S:disorder> [SEP] \x00 no effusion."]
)
def test_any_text_is_annotated(extractor, report):
    (annotation,) = extractor.annotate([report])
    assert all(report[e.start : e.end].strip() for e in annotation.entities)
    assert extractor.annotate([]) == [] and extractor.annotate(["", ""]) == [Annotation()] * 2


def test_a_long_sentence_is_cut_and_counted(extractor, examples, tmp_path):
    copy = pickle.loads(pickle.dumps(extractor))
    long = " ".join(["No pleural effusion or pneumothorax and so it is with the rest of it and"] * 40)
    first, second = copy.annotate([long + " edema. Normal heart size.", "Normal heart size."])
    assert copy.usage.cut_sentences == 1 and pickle.loads(pickle.dumps(copy)).usage.cut_sentences == 0
    assert [e[3:6] for e in first.entities if e.sentence == 1] == [e[3:6] for e in second.entities]
    assert 0 < max(e.end for e in first.entities if e.sentence == 0) < len(long)
    assert not any(abs(r.head - r.tail) > 12 for r in first.relations) and copy.usage.far_pairs > 0
    entity = Entity(len(long) + 1, len(long) + 6, 0, "edema", "disorder", "absent", "")
    taught = [*examples[:2], (long + " edema", Annotation((entity,)))]
    card = json.loads((Path(train_ner_re(taught, tmp_path / "cut", FEW).directory) / CARD).read_text())
    assert card["cut_sentences"] == card["left_out_entities"] == 1


def test_rows_hold_context_and_markers():
    report = "Small effusion. No edema, no air.\nHeart is large."
    tokenizer, _ = build_tiny([report] * 3, Tiny(vocabulary=300))
    tokenizer.add_tokens(MARKERS, special_tokens=True)
    (text,) = Inputs(tokenizer, 3, 0, 256).texts([report])
    (found,) = Rules().annotate([report])
    assert [report[slice(*place)] for place in text.places[3:6]] == ["No", "edema", ","]
    alone, words, cut = Inputs(tokenizer, 3, 0, 256).sentence(text, 1)
    assert tokenizer.decode(alone.ids) == "[CLS] no edema , no air . [SEP]" and not cut
    assert len(words) == 6 + 5 + 4 and max(last - first for first, last in words) == 3
    wide, same, _ = Inputs(tokenizer, 3, 8, 256).sentence(text, 1)
    assert tokenizer.decode(wide.ids) == "[CLS] . no edema , no air . heart [SEP]" and same == words
    assert wide.spans == tuple((a + 1, b + 1, width) for a, b, width in alone.spans)
    mentions = [mention for sentence, mention in _placed(text, found.entities).values() if sentence == 0]
    row = Inputs(tokenizer, 3, 0, 256).pair(text, 0, mentions, 0, 1)
    assert row is not None
    signs = tokenizer.convert_ids_to_tokens(list(row.ids))
    assert signs[1] == "<S:concept>" and "<O:disorder>" in signs and signs[-3:] == ["</O:disorder>", ".", "[SEP]"]
    assert [signs[at] for at in row.spans[0][:2]] == ["<S:concept>", "<O:disorder>"]
    apart = Inputs(tokenizer, 3, 0, 7).pair(text, 0, mentions, 0, 1)
    assert apart is None and POSITIONS == 512


@settings(deadline=None, max_examples=60)
@given(st.text(st.sampled_from("ab.,-\n é\u200b7"), max_size=300), st.integers(0, 40), st.integers(1, 9))
def test_rows_of_any_text_hold_its_words(extractor, report, context, max_span):
    inputs = replace(
        _loaded(extractor.directory, tuple(extractor.sha256.items()))[0], context=context, max_span=max_span
    )
    (text,) = inputs.texts([report])
    assert "".join(report[slice(*place)] for place in text.places) == "".join(report.split())
    for number, (first, last) in enumerate(text.sentences):
        row, words, cut = inputs.sentence(text, number)
        read = [token for pieces in text.pieces[first:last] for token in pieces]
        assert not cut and len(row.ids) <= POSITIONS and len(row.spans) == len(words) == len({*words})
        begin = row.spans[0][0]
        assert list(row.ids[begin : begin + len(read)]) == read
        for (start, end, width), (one, other) in zip(row.spans, words, strict=True):
            assert list(row.ids[start : end + 1]) == [t for pieces in text.pieces[one:other] for t in pieces]
            assert first <= one < other <= last and width == other - one - 1 < max_span


def test_what_cannot_be_trained_on_is_refused(tmp_path, examples):
    with pytest.raises(DataError, match="none of 1 reports has an entity"):
        train_ner_re([("Nothing.", Annotation()), (" ", Annotation())], tmp_path / "out", SMALL)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match="no directory of ner-re"):
        train_ner_re(examples, tmp_path / "mine", SMALL)
    assert (tmp_path / "mine" / "thesis.tex").exists()
    for encoder, says in ((str(tmp_path / "none"), "is no directory"), (str(tmp_path / "mine"), "cannot be had")):
        with pytest.raises(ConfigError, match=says):
            train_ner_re(examples, tmp_path / "out", SMALL.model_copy(update={"encoder": encoder}))
    assert not (tmp_path / "out").exists()


def test_an_encoder_of_a_directory_is_trained_on(tmp_path, examples):
    tokenizer, description = build_tiny([report for report, _ in examples], Tiny(width=32))
    AutoModel.from_config(description).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    config = FEW.model_copy(update={"encoder": str(tmp_path / "bert"), "context": 30})
    made = train_ner_re(examples[:2], tmp_path / "out", config)
    assert len(made.annotate(["No effusion."])) == 1
    weights = tmp_path / "bert" / "model.safetensors"
    torch.save({}, tmp_path / "bert" / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(ConfigError, match=r"cannot be had.*safetensors"):
        train_ner_re(examples[:3], tmp_path / "out", config)
    AutoModel.from_config(
        type(description)(**{**description.to_dict(), "max_position_embeddings": 64})
    ).save_pretrained(tmp_path / "bert")
    with pytest.raises(ConfigError, match="512 positions"):
        train_ner_re(examples[:3], tmp_path / "out", config)


@pytest.mark.parametrize("change", ["gone", "file", "empty", "card", "schema", "config", "torn", "missing"])
def test_a_directory_that_is_none_is_refused(extractor, tmp_path, change):
    folder = tmp_path / "models"
    shutil.copytree(extractor.directory, folder)
    card = json.loads((folder / CARD).read_text())
    says, kind = {
        "gone": ("is no directory", ConfigError), "file": ("is no directory", ConfigError),
        "empty": (f"holds no {CARD}", ConfigError), "card": ("not readable: the whole", DataError),
        "schema": ("another schema", DataError), "config": ("config.max_span", DataError),
        "torn": ("was changed", DataError), "missing": ("is missing", DataError),
    }[change]  # fmt: skip
    if change in ("gone", "file", "empty"):
        shutil.rmtree(folder)
    if change == "file":
        folder.write_text("x")
    elif change == "empty":
        folder.mkdir()
    elif change == "card":
        (folder / CARD).write_text("{")
    elif change == "schema":
        (folder / CARD).write_text(json.dumps({**card, "classes": card["classes"][:-1]}))
    elif change == "config":
        (folder / CARD).write_text(json.dumps({**card, "config": {**card["config"], "max_span": 10**6}}))
    elif change == "torn":
        (folder / "relation" / "model.safetensors").write_bytes(b"\0" * 64)
    elif change == "missing":
        (folder / "tokenizer.json").unlink()
    with pytest.raises(kind, match=says):
        NerRe.load(folder)


def test_weights_of_another_size_are_refused(extractor, tmp_path):
    """Where somebody has put a file of their own into the directory, and its hash into the card."""
    folder = tmp_path / "models"
    shutil.copytree(extractor.directory, folder)
    card = json.loads((folder / CARD).read_text())
    shutil.copy(folder / "entity" / "model.safetensors", folder / "relation" / "model.safetensors")
    card["sha256"]["relation/model.safetensors"] = card["sha256"]["entity/model.safetensors"]
    (folder / CARD).write_text(json.dumps(card))
    with pytest.raises(DataError, match="cannot be loaded"):
        NerRe.load(folder).annotate(["No effusion."])


TOKENS = "Small left pleural effusion . No pneumothorax , possible pneumonia ."
ENTITIES: dict[str, Any] = {
    "1": {"tokens": "Small", "label": "OBS-DP", "start_ix": 0, "end_ix": 0, "relations": [["modify", "3"]]},
    "2": {"tokens": "left pleural", "label": "ANAT-DP", "start_ix": 1, "end_ix": 2, "relations": []},
    "3": {
        "tokens": "effusion", "label": "OBS-DP", "start_ix": 3, "end_ix": 3,
        "relations": [["located_at", "2"], ["suggestive_of", "5"], ["modify", "3"]],
    },
    "4": {"tokens": "pneumothorax", "label": "OBS-DA", "start_ix": 6, "end_ix": 6, "relations": []},
    "5": {"tokens": "pneumonia", "label": "OBS-U", "start_ix": 9, "end_ix": 9, "relations": []},
}  # fmt: skip


def radgraph(path: Path, **changes: Any) -> Path:
    """A document of RadGraph; of entity 3 these fields are others."""
    entities = ENTITIES | {"3": ENTITIES["3"] | changes}
    path.write_text(json.dumps({"p10/s5.txt": {"text": TOKENS, "entities": entities, "data_split": "train"}}))
    return path


def test_radgraph_is_read(tmp_path):
    ((text, annotation),) = read_radgraph(radgraph(tmp_path / "train.json"))
    assert text == TOKENS
    assert [(text[e.start : e.end], *e[2:6]) for e in annotation.entities] == [
        ("Small", 0, "small", "disorder", "present"),
        ("left pleural", 0, "left pleura", "anatomy", "present"),
        ("effusion", 0, "pleural effusion", "disorder", "present"),
        ("pneumothorax", 1, "pneumothorax", "disorder", "absent"),
        ("pneumonia", 1, "pneumonia", "disorder", "uncertain"),
    ]
    assert annotation.relations == (
        Relation(0, "modify", 2, "radgraph"),
        Relation(2, "located_at", 1, "radgraph"),
        Relation(2, "suggestive_of", 4, "radgraph"),
    )
    assert unpack(pack(annotation)) == annotation


def test_of_two_labelers_the_one_that_is_named_is_read(tmp_path):
    path, one = tmp_path / "test.json", {"1": ENTITIES["1"] | {"relations": []}}
    both = {"text": TOKENS, "labeler_1": {"entities": one}, "labeler_2": {"entities": {}}}
    path.write_text(json.dumps({"a": both}))
    assert [len(read_radgraph(path)[0][1].entities), len(read_radgraph(path, "labeler_2")[0][1].entities)] == [1, 0]
    path.write_text(json.dumps({"a": {"text": TOKENS, "labeler_2": {"entities": one}}}))
    with pytest.raises(DataError, match="document 1: .* it has neither entities nor those of labeler_1"):
        read_radgraph(path)


MALFORMED = {
    "not at its tokens": {"tokens": "edema"},
    "does not have": {"end_ix": 99},
    r"relation to '7', which is none": {"relations": [["modify", "7"]]},
    r"document 1: .*: entities\.3\.label": {"label": "OBS-XX"},
    r"document 1: .*: entities\.3\.start_ix": {"start_ix": "3"},
    r"document 1: .*: entities\.3\.relations\.0": {"relations": [["causes", "2"]]},
}


@pytest.mark.parametrize("says", MALFORMED)
def test_what_is_none_of_radgraph_is_refused(tmp_path, says):
    with pytest.raises(DataError, match=says):
        read_radgraph(radgraph(tmp_path / "train.json", **MALFORMED[says]))


def test_files_that_are_none_of_radgraph_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.json"):
        read_radgraph(tmp_path / "none.json")
    for data in (b"", b"[1]", b"\xff", b"[" * 100_000, b'{"a": {"entities": {}}}'):
        (tmp_path / "file.json").write_bytes(data)
        with pytest.raises(DataError, match=r"file\.json"):
            read_radgraph(tmp_path / "file.json")


def test_defaults_are_those_of_the_papers():
    config = NerReConfig()
    assert config.encoder == BIOMEDBERT and config.max_span == 8 and config.context == 100 and tiny().context == 0
    assert (config.entity.lr, config.entity.head_lr, config.entity.batch, config.entity.epochs) == (1e-5, 5e-4, 8, 50)
    assert (config.relation.lr, config.relation.batch, config.relation.epochs) == (5e-5, 128, 20)


@pytest.mark.slow
def test_phantom_reports_are_learned_from_what_the_rules_say(tmp_path):
    began = time.monotonic()
    extractor = train_ner_re(drawn(*range(400)), tmp_path / "models", tiny())
    seconds = time.monotonic() - began
    cases = [PHANTOM.case(index) for index in range(1000, 1100)]
    found = extractor.annotate([report for _, _, report in cases])
    true = [truth_of(findings, report) for _, findings, report in cases]
    scores = []
    for ours, theirs in (
        ([{tuple(e[3:6]) for e in a.entities} for a in found], [t.entities for t in true]),
        ([{*a.triples()} for a in found], [t.triples for t in true]),
    ):
        hits = sum(len(a & b) for a, b in zip(ours, theirs, strict=True))
        scores.append(Score.of(hits, sum(map(len, ours)), sum(map(len, theirs))))
    print(f"{seconds:.0f} s; entities {scores[0]}; triples {scores[1]}")
    assert scores[0].f1 >= 0.95 and scores[1].f1 >= 0.95


@pytest.mark.slow
def test_shards_are_annotated_by_an_actor(extractor, phantom_shards, tmp_path):
    side = write_annotations(phantom_shards, tmp_path / "side", extractor, actors=1)
    reports = [study.report for study in read_studies(phantom_shards, "train")]
    said = extractor.annotate(reports)
    assert side.totals["entities"] == sum(len(annotation.entities) for annotation in said) > 0
    assert side.totals["relations"] == sum(len(annotation.relations) for annotation in said)
