"""Phantom films: deterministic, exact, and readable only from their pixels."""

import hashlib
import pickle
from collections import Counter

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from shards.clean import clean
from shards.errors import ConfigError
from shards.films.stored import encode
from shards.sources import SOURCES, open_source
from shards.sources.phantom.anatomy import PLANTINGS, Anatomy, Finding, sample_anatomy, study_rng
from shards.sources.phantom.frontal import draw_frontal, frontal
from shards.sources.phantom.lateral import lateral
from shards.sources.phantom.report import OWN, absent_of, labels_of, triples_of, write_report
from shards.sources.phantom.source import Phantom
from shards.sources.phantom.words import AGAIN, GONE, HEDGES, NORMAL, WORDS
from shards.study import FINDINGS

CASES = [Phantom().case(index) for index in range(400)]
DENIES = (*("no ", "neither ", "absent", "not seen", "without", "negative for", "ruled out", "resol", "cleared"),)
SIDED = [(name, side) for name, kind in PLANTINGS.items() for side in kind.sides if side in ("right", "left")]


def one(name: str, grade: int = 2) -> Finding:
    kind = PLANTINGS[name]
    return Finding(name, kind.sides[0], kind.zones[0], grade, (0.08, 0.35, 0.65, 1.0)[grade])


def drawn(body: Anatomy, findings: tuple[Finding, ...], draw=frontal) -> np.ndarray:
    """The film before it is exposed, in the levels of one of mean gain."""
    return (255 * draw(body, findings, 128).a).astype(int)


def change(body: Anatomy, finding: Finding, draw=frontal) -> np.ndarray:
    return np.abs(drawn(body, (finding,), draw) - drawn(body, (), draw))


def test_a_study_depends_on_seed_and_index_alone():
    small, large = Phantom(studies=20, size=96), Phantom(studies=50, size=96)
    study, films = small.read(small.listing().items[7])
    again, same = large.read(large.listing().items[7])
    assert (study.report, study.labels, study.triples) == (again.report, again.labels, again.triples)
    assert all(np.array_equal(a, b) for a, b in zip(films, same, strict=True))
    other, different = Phantom(studies=20, size=96, seed=1).read(small.listing().items[7])
    assert not np.array_equal(films[0], different[0])
    assert other.provenance["seed"] == "1"


@pytest.mark.parametrize(("size", "views"), [(256, 2), (100, 1)])
def test_films_and_record(size: int, views: int):
    source = Phantom(studies=3, size=size, views=views)
    for item in source.listing().items:
        study, films = source.read(item)
        assert [film.shape for film in films] == [(size, size)] * views
        assert all(film.dtype == np.uint8 and 20 < film.mean() < 235 and film.std() > 25 for film in films)
        assert [view.position for view in study.views] == ["frontal", "lateral"][:views]
        assert (study.id, study.patient, study.split, study.target) == (item.id, item.id, item.split, "")
        assert study.report == study.sections["findings"]


def test_splits_are_disjoint_and_of_stated_size():
    items = Phantom(studies=200, val_fraction=0.1, test_fraction=0.15).listing().items
    assert len({item.id for item in items}) == 200
    assert Counter(item.split for item in items) == {"train": 150, "val": 20, "test": 30}
    assert [i.split for i in items] != [i.split for i in Phantom(studies=200, seed=1).listing().items]


def test_prevalence():
    count = Counter(f.name for _, findings, _ in CASES for f in findings)
    share = {name: count[name] / len(CASES) for name in PLANTINGS}
    assert 0.20 < sum(not findings for _, findings, _ in CASES) / len(CASES) < 0.33
    assert all(0.18 < share[name] < 0.34 for name in ("Cardiomegaly", "Pleural Effusion"))
    assert all(0.03 < share[name] < 0.18 for name in set(PLANTINGS) - {"Cardiomegaly", "Pleural Effusion"})
    assert max(len(findings) for _, findings, _ in CASES) == 4


def test_report_says_what_was_planted_and_denies_the_rest():
    for _, findings, report in CASES:
        planted, sentences = {f.name for f in findings}, [s.strip().lower() for s in report.split(".") if s.strip()]
        assert 5 <= len(sentences) <= 16
        for name, words in WORDS.items():
            said = [s for s in sentences if words.term in s]
            denied = all(any(word in s for word in DENIES) and "no change" not in s for s in said)
            assert bool(said) and not denied if name in planted else denied, (name, report)


def test_what_an_organ_could_have_and_has_not_is_denied_beside_its_findings():
    absent = Counter[str]()
    for _, findings, report in CASES:
        labels, planted = labels_of(findings), {f.name for f in findings}
        for organ in {PLANTINGS[name].organ for name in planted} & NORMAL.keys():
            for name in absent_of(organ, findings):
                assert name not in planted and labels[name] == 0 and NORMAL[organ].absent[name] in report.lower()
                absent[name] += 1
        assert labels["Pneumothorax"] is not None and labels["Pleural Effusion"] is not None
    assert min(absent[name] for normal in NORMAL.values() for name in normal.absent) >= 10


def test_reports_hold_what_text_tools_stumble_over():
    reports = [report for _, _, report in (Phantom().case(index) for index in range(1200))]
    words = {word for report in reports for word in clean("r2gen-2020-iu", report).split()}
    assert len(words) >= 300
    for trap in ("No change in the", "has resolved", "cannot be excluded", " or ", "Neither", "without mediastinal"):
        assert sum(trap in report for report in reports) >= 3, trap
    compared = sum(
        any(end in report for end in ("prior study", "resolved", "interval", "previous")) for report in reports
    )
    assert 0.08 < compared / len(reports) < 0.3
    assert all(len(phrasings) == len(set(phrasings)) for phrasings in (AGAIN, GONE, HEDGES))


def test_films_and_labels_know_nothing_of_an_earlier_film():
    for _, findings, _ in CASES[:30]:
        texts = {write_report(findings, np.random.default_rng(seed)) for seed in range(40)}
        assert any("prior" in text or "previous" in text for text in texts) or not findings
        assert all(head in text.lower() for text in texts for head, _, _ in triples_of(findings))
        assert len(texts) > 5
    source = Phantom(studies=4, size=64)
    for index, item in enumerate(source.listing().items):
        (body, findings, _), (study, (film, _)) = source.case(index), source.read(item)
        assert study.labels == labels_of(findings) and np.array_equal(film, draw_frontal(body, findings, 64))


def test_labels_agree_with_the_plan_and_with_hedging():
    for _, findings, report in CASES:
        labels, grades = labels_of(findings), {f.name: f.grade for f in findings}
        assert set(labels) == {*FINDINGS, *OWN}
        for name in PLANTINGS:
            assert (
                labels[name] in ((-1,) if grades[name] == 0 else (1,)) if name in grades else labels[name] in (0, None)
            )
        assert (labels["Support Devices"] == 1) == bool({"Pacemaker", "Central Line"} & set(grades))
        assert (labels["Pneumonia"] == -1) == ("suggestive of pneumonia" in report)
        hedged = sum(report.lower().count(word) for word in HEDGES)
        assert hedged == sum(grade == 0 for grade in grades.values())


def test_normal_statement_denies_its_labels():
    labels = labels_of(())
    assert labels["No Finding"] == 1
    assert {name for name, value in labels.items() if value == 0} == {
        n for normal in NORMAL.values() for n in normal.denies
    }
    assert labels_of((one("Pacemaker"),))["No Finding"] == 1
    assert labels_of((one("Consolidation", grade=0),))["Lung Opacity"] == -1


def test_triples_stand_verbatim_in_the_report():
    for _, findings, report in CASES:
        text = report.lower()
        for head, relation, tail in triples_of(findings):
            assert relation in ("modify", "located_at", "suggestive_of")
            assert head in text and tail in text, (head, tail, report)


def test_triples_of_a_known_study():
    findings = (
        Finding("Cardiomegaly", grade=1),
        Finding("Edema", grade=2),
        Finding("Pleural Effusion", side="left", grade=3),
    )
    assert triples_of(findings) == (
        ("mild", "modify", "cardiomegaly"),
        ("moderate", "modify", "pulmonary edema"),
        ("pulmonary edema", "located_at", "both lungs"),
        ("pulmonary edema", "suggestive_of", "heart failure"),
        ("large", "modify", "pleural effusion"),
        ("pleural effusion", "located_at", "left base"),
    )


def test_phrasing_varies_and_facts_do_not():
    findings = (one("Consolidation"), one("Pleural Effusion"))
    reports = {write_report(findings, np.random.default_rng(k)) for k in range(30)}
    assert len(reports) > 5
    assert all("right upper zone" in r and "moderate pleural effusion" in r.lower() for r in reports)


@pytest.mark.parametrize("name", PLANTINGS)
@pytest.mark.parametrize("index", [0, 1])
def test_every_finding_changes_the_frontal_film(name: str, index: int):
    difference = change(sample_anatomy(study_rng(3, index)), one(name))
    assert (difference > 12).sum() > 12
    assert (difference > 0).mean() < 0.7


@pytest.mark.parametrize(("name", "side"), [pair for pair in SIDED if pair[0] not in ("Central Line", "Scoliosis")])
def test_the_change_is_on_the_stated_side(name: str, side: str):
    for index in range(3):
        body = sample_anatomy(study_rng(4, index))
        columns = change(body, Finding(name, side, PLANTINGS[name].zones[-1])).sum(axis=0)
        right, left = columns[:64].sum(), columns[64:].sum()
        assert (right > 1.5 * left) if side == "right" else (left > 1.5 * right)


def test_the_spine_bends_to_the_stated_side():
    body = sample_anatomy(study_rng(4, 0))
    plain = drawn(body, ())
    for side, sign in (("right", -1), ("left", 1)):
        gain = (drawn(body, (Finding("Scoliosis", side, severity=1.0),)) - plain)[45:65].sum(axis=0)
        assert sign * (gain.argmax() - gain.argmin()) > 3


def test_a_central_line_enters_from_the_stated_side():
    body = sample_anatomy(study_rng(4, 0))
    entry = {side: change(body, Finding("Central Line", side))[:20].sum(axis=0).argmax() for side in ("right", "left")}
    assert entry["right"] < 60 < 68 < entry["left"]


@pytest.mark.parametrize(
    "name", ["Cardiomegaly", "Pleural Effusion", "Consolidation", "Lung Lesion", "Edema", "Pacemaker"]
)
def test_the_lateral_film_shows_it_too(name: str):
    assert (change(sample_anatomy(study_rng(5, 0)), one(name), lateral) > 12).sum() > 12


def test_severity_is_visible():
    body = sample_anatomy(study_rng(6, 0))
    for name in ("Cardiomegaly", "Pleural Effusion", "Pneumothorax", "Consolidation", "Edema"):
        amounts = [change(body, one(name, grade)).sum() for grade in range(4)]
        assert amounts == sorted(amounts), name


def test_fluid_stays_visible_below_a_pneumothorax():
    body = sample_anatomy(study_rng(6, 0))
    air, fluid = Finding("Pneumothorax", "left", severity=1.0), Finding("Pleural Effusion", "left", severity=1.0)
    both, only_air = (drawn(body, planted) for planted in ((fluid, air), (air,)))
    assert (both - only_air)[85:110, 95:115].max() > 80


def test_a_films_mean_is_the_bodys_whatever_is_planted():
    for body, findings, _ in CASES[:40]:
        assert draw_frontal(body, findings, 64).mean() / 255 == pytest.approx(body.brightness, abs=0.01)


@pytest.mark.slow
def test_neither_size_nor_name_nor_order_nor_brightness_tells_what_is_planted():
    source, facts, found = Phantom(studies=1000, size=256), [], []
    for item in source.listing().items:
        study, films = source.read(item)
        name = int(hashlib.sha256(study.key.encode()).hexdigest()[:8], 16)
        facts.append(
            [*(len(encode(film, 95)) for film in films), *(film.mean() for film in films), item.payload["index"], name]
        )
        found.append([value in (1, -1) for value in study.labels.values()])
    facts, counted = np.array(facts, float), 0
    models = (
        make_pipeline(StandardScaler(), LogisticRegression()),
        HistGradientBoostingClassifier(max_iter=60, max_depth=3),
    )
    for name, planted in zip(study.labels, np.array(found).T, strict=True):
        if 40 <= planted.sum() <= len(planted) - 40:
            for model in models:
                guessed = cross_val_predict(model, facts, planted, cv=5, method="predict_proba")[:, 1]
                assert roc_auc_score(planted, guessed) <= 0.6, (name, model)
            counted += 1
    assert counted >= 18


def test_source_opens_by_name_and_pickles():
    source = open_source("phantom", studies=4, size=64)
    copy = pickle.loads(pickle.dumps(source))
    assert copy == source and copy.listing() == source.listing() and copy.listing().drops == ()
    assert set(SOURCES) >= {"phantom", "iu_xray"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"studies": 0}, "studies=0"),
        ({"size": 32}, "size=32"),
        ({"views": 3}, "views=3"),
        ({"seed": -1}, "seed=-1: use at least one study and a seed of 0 or more"),
        ({"size": "large"}, "size='large'"),
        ({"val_fraction": 0.6, "test_fraction": 0.4}, "training split"),
        ({"colour": "red"}, "no option colour"),
    ],
)
def test_impossible_requests_are_refused(options: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        open_source("phantom", **options)


def test_unknown_source_lists_the_known_ones():
    with pytest.raises(ConfigError, match="phantom"):
        open_source("fantom")
