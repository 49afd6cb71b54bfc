"""The vocabulary and the floor are those of the shards, however often they were asked for before."""

import shutil
from pathlib import Path

import pytest

from r2kg.config.protocol import PROTOCOLS
from r2kg.scoring import context as module
from r2kg.scoring.choose import refuse_choice
from r2kg.scoring.context import scoring_context
from r2kg.scoring.evaluate import OF_FINDINGS, choose_floor
from r2kg.scoring.metrics.rule_labeler import score_findings
from shards.clean import vocabulary
from shards.errors import ConfigError, DataError
from shards.stream.index import Index, read_studies, read_targets
from shards.tars.format import Manifest, read_manifest

BOTH = ("r2gen-2020", "full-text")


@pytest.fixture
def shards(phantom_shards: Path, tmp_path: Path) -> tuple[Path, Manifest]:
    manifest = read_manifest(phantom_shards)
    return shutil.copytree(phantom_shards, tmp_path / "shards", ignore=lambda *_: ["facts"]), manifest


def test_what_is_kept_is_what_was_counted(shards, monkeypatch) -> None:
    root, manifest = shards
    first = scoring_context(root, manifest, BOTH)
    training = read_targets(root, "train")
    assert first["vocabulary"] == list(vocabulary(training, 3))
    references = [{"reference": s.target, "reference_raw": s.report} for s in read_studies(root, "val")]
    for name in BOTH:
        cut = [PROTOCOLS[name].reference(line, first["vocabulary"]) for line in references]
        assert first["floor"][name] == choose_floor(training, cut, PROTOCOLS[name], first["vocabulary"])
        scores = {
            key: score_findings(
                cut, [PROTOCOLS[name].hypothesis({"prediction": first["floor"][key]}, "raw")] * len(cut)
            )
            for key in (name, OF_FINDINGS.format(name))
        }
        own, of_words = (scores[key]["finding_f1"] for key in (OF_FINDINGS.format(name), name))
        assert own > of_words, "the best constant by words is not the best by findings"
    kept = "".join(path.read_text() for path in (root / "facts").iterdir())
    assert not any(report in kept for report in training), "no report stands there"
    monkeypatch.setattr(module, "read_studies", None)
    assert scoring_context(root, manifest, BOTH) == first


def test_a_kept_floor_whose_record_is_lost_is_an_error_or_counted_again(shards) -> None:
    root, manifest = shards
    first = scoring_context(root, manifest, ("full-text",))
    index = Index.open(root, "train")
    row = read_targets(root, "train").index(first["floor"]["full-text"])
    at, size, _ = index.span[row, -1]
    with (root / index.tars[index.tar[row]]).open("r+b") as file:
        file.seek(at + size // 2)
        file.write(b"\0")
    with pytest.raises(DataError, match="are not those that were written"):
        scoring_context(root, manifest, ("full-text",))
    found = scoring_context(root, manifest, ("full-text",), on_bad="skip")
    assert found["floor"]["full-text"] != first["floor"]["full-text"]
    assert list(found["context_unread"]) == [index.keys[row].decode()]


def test_protocols_of_another_cleaning_are_refused_with_those_that_fit(shards) -> None:
    root, manifest = shards
    with pytest.raises(
        ConfigError,
        match=r'set protocols=\["r2gen-2020","r2gengpt-2023-mimic","r2genkg-2025",.*"full-text"\], which can',
    ):
        scoring_context(root, manifest, ("r2gen-2020-mimic",))
    other = manifest.model_copy(update={"cleaning": "clean-1"})
    with pytest.raises(
        ConfigError, match=r'set protocols=\["r2gengpt-2023-mimic","r2genkg-2025",.*"full-text"\], which can'
    ):
        scoring_context(root, other, BOTH)


def test_a_choice_by_meteor_without_java_is_refused_before_training(small_run, monkeypatch) -> None:
    refuse_choice(small_run({"train.choose": "BLEU-4"}))
    monkeypatch.setenv("PATH", "")
    refuse_choice(small_run({"train.choose": "BLEU-4"}))
    with pytest.raises(ConfigError, match=r"no `java` on PATH.*Nothing was trained"):
        refuse_choice(small_run({"train.choose": "0.5*METEOR+BLEU-4"}))
