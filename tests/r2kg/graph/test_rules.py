"""The rules extractor on sentences that text tools stumble over, and on phantom reports, whose truth is known."""

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r2kg.graph.extract.evaluate import Score
from r2kg.graph.extract.lexicon import TEXTS, spellings
from r2kg.graph.extract.rules import Rules
from r2kg.graph.schema import CERTAINTIES, KINDS, RELATIONS, pack, unpack
from shards.errors import DataError
from shards.sources.phantom.source import Phantom
from shards.sources.phantom.truth import FIXED, denials, kind_of, truth_of
from shards.sources.phantom.words import ANEW, NORMAL, WORDS

RULES = Rules()


def said(report: str) -> dict[str, str]:
    """Name → certainty of what is no anatomy."""
    (annotation,) = RULES.annotate([report])
    return {
        entity.name: entity.certainty for entity in annotation.entities if entity.kind not in ("anatomy", "concept")
    }


CONTEXT = {
    "No pneumothorax.": {"pneumothorax": "absent"},
    "No focal consolidation, pleural effusion, or pneumothorax.": {
        "consolidation": "absent", "pleural effusion": "absent", "pneumothorax": "absent",
    },
    "No pneumothorax, small left effusion.": {"pneumothorax": "absent", "pleural effusion": "present"},
    "No effusion but there is cardiomegaly.": {"pleural effusion": "absent", "cardiomegaly": "present"},
    "No pneumothorax is seen and there is a nodule.": {"pneumothorax": "absent", "nodule": "present"},
    "No change in the effusion.": {"pleural effusion": "present"},
    "No significant interval change in moderate edema.": {"pulmonary edema": "present"},
    "The effusion has resolved.": {"pleural effusion": "absent"},
    "Effusion is no longer seen.": {"pleural effusion": "absent"},
    "Pneumonia cannot be excluded.": {"pneumonia": "uncertain"},
    "Pneumonia has been excluded.": {"pneumonia": "absent"},
    "Opacity may represent atelectasis or pneumonia.": {
        "opacity": "present", "atelectasis": "uncertain", "pneumonia": "uncertain",
    },
    "Neither effusion nor pneumothorax.": {"pleural effusion": "absent", "pneumothorax": "absent"},
    "History of tuberculosis.": {"tuberculosis": "uncertain"},
    "Family history of asthma.": {"asthma": "absent"},
    "There is an effusion. No pneumothorax.": {"pleural effusion": "present", "pneumothorax": "absent"},
    "Clear lungs without effusion, but a granuloma is noted.": {"pleural effusion": "absent", "granuloma": "present"},
    "Effusion and pneumothorax are absent.": {"pleural effusion": "absent", "pneumothorax": "absent"},
    "The heart is large, pneumothorax is not seen.": {"pneumothorax": "absent"},
    "The picc line has been removed.": {"picc line": "absent"},
    "Sternotomy wires are intact. No acute disease.": {"wire": "present", "abnormality": "absent"},
}  # fmt: skip


@pytest.mark.parametrize("report", CONTEXT)
def test_what_a_sentence_says_of_a_finding(report):
    assert said(report) == CONTEXT[report]


TRIPLES = {
    "Small left pleural effusion.": "small modify pleural effusion; left modify pleural effusion",
    "Patchy opacity in the left lower lobe.": "patchy modify opacity; opacity located_at left lower lobe",
    "Left lower lobe opacity.": "opacity located_at left lower lobe",
    "Opacities at both lung bases.": "opacity located_at both bases",
    "Effusion and atelectasis at the right base.": (
        "pleural effusion located_at right base; atelectasis located_at right base"
    ),
    "Lungs are clear.": "clear modify lung",
    "Heart size normal.": "normal modify heart",
    "Cardiac silhouette and mediastinal contours are within normal limits.": (
        "normal modify heart; normal modify mediastinum"
    ),
    "Effusion at the left base is unchanged.": (
        "unchanged modify pleural effusion; pleural effusion located_at left base"
    ),
    "Consolidation suggestive of pneumonia.": "consolidation suggestive_of pneumonia",
    "Opacity consistent with atelectasis or pneumonia.": (
        "opacity suggestive_of atelectasis; opacity suggestive_of pneumonia"
    ),
    "No consolidation suggestive of pneumonia.": "",
    "The lungs are free of consolidation.": "consolidation located_at lung",
    "Rib fracture.": "fracture located_at rib",
    "Picc line terminates in the superior vena cava.": "picc line located_at superior vena cava",
    "There is a 5 mm nodule.": "5 mm modify nodule",
}


@pytest.mark.parametrize("report", TRIPLES)
def test_what_a_sentence_relates(report):
    (annotation,) = RULES.annotate([report])
    wanted = {(*text.split(f" {r} "), r) for text in TRIPLES[report].split("; ") for r in RELATIONS if r in text}
    assert {(head, tail, relation) for head, relation, tail in annotation.triples()} == wanted


def test_a_relation_is_as_certain_as_the_less_certain_of_its_ends():
    (annotation,) = RULES.annotate(["No effusion at the left base. Consolidation suggestive of pneumonia."])
    located, suggested = annotation.relations
    assert annotation.certainty(located) == "absent" and annotation.certainty(suggested) == "present"
    assert annotation.triples("present") == (("consolidation", "suggestive_of", "pneumonia"),)


def test_places_are_those_of_the_report_as_it_was_given():
    report = "PLEURA\n\nThere is  a SMALL   pleural\neffusion.  Heart: normal."
    (annotation,) = RULES.annotate([report])
    assert [report[e.start : e.end] for e in annotation.entities] == [
        "PLEURA", "SMALL", "pleural\neffusion", "Heart", "normal",
    ]  # fmt: skip
    assert len({e.sentence for e in annotation.entities[:2]}) == 2
    assert ("small", "modify", "pleural effusion") in annotation.triples()


@settings(max_examples=200, deadline=None)
@given(
    st.text(max_size=300)
    | st.lists(st.sampled_from([*spellings(), ".", ",", "no", "and", "of", "is"]), max_size=30).map(" ".join)
)
def test_any_text_has_an_annotation_that_is_whole(report):
    (annotation,) = RULES.annotate([report])
    assert unpack(pack(annotation)) == annotation
    assert list(annotation.entities) == sorted(annotation.entities)
    for before, after in zip(annotation.entities, annotation.entities[1:], strict=False):
        assert before.end <= after.start
    for entity in annotation.entities:
        assert 0 <= entity.start < entity.end <= len(report)
        assert entity.kind in KINDS and entity.certainty in CERTAINTIES
    assert all(relation.head != relation.tail for relation in annotation.relations)


def test_a_worker_finds_what_the_driver_finds():
    there = pickle.loads(pickle.dumps(RULES))
    report = ["Moderate cardiomegaly without edema."]
    assert there.annotate(report) == RULES.annotate(report) and there.settings() == RULES.settings()


@pytest.mark.parametrize(
    "data", [b"", b"[]", b'[[],[[0,"modify",1,""]]]', b'[[[0,0,0,"a","anatomy","present",""]],[]]']
)
def test_what_is_no_annotation_is_refused(data):
    with pytest.raises(DataError, match="an annotation is not readable"):
        unpack(data)


def test_a_name_has_one_kind():
    names = {}
    for kind, text in TEXTS.items():
        for entry in text.split(";"):
            name = " ".join(entry.partition("=")[0].split())
            assert names.setdefault(name, kind) == kind and name


def test_the_truth_of_phantoms_knows_every_fixed_sentence():
    fixed = {*ANEW, *(s for normal in NORMAL.values() for s in normal.phrasings)}
    fixed |= {sign for words in WORDS.values() for sign in words.signs}
    assert fixed == set(FIXED) and len(denials()) > 100
    assert (
        kind_of("pacemaker") == "device" and kind_of("pulmonary edema") == "disorder" and kind_of("mild") == "concept"
    )


def test_phantom_reports_are_read_as_they_were_planted():
    phantom, entities, triples = Phantom(studies=400, seed=7), [0, 0, 0], [0, 0, 0]
    for index in range(400):
        _, findings, report = phantom.case(index)
        truth, (found,) = truth_of(findings, report), RULES.annotate([report])
        for counts, true, mine in (
            (entities, truth.entities, {tuple(e[3:6]) for e in found.entities}),
            (triples, truth.triples, set(found.triples())),
        ):
            for at, number in enumerate((len(true & mine), len(mine), len(true))):
                counts[at] += number
    assert Score.of(*entities).f1 >= 0.97 and Score.of(*triples).f1 >= 0.93
