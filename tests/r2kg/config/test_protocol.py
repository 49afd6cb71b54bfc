"""Protocols decide what is compared; a changed rule must change the hash."""

import pytest
from pydantic import ValidationError

from r2kg.config.protocol import PROTOCOLS, Protocol, protocol_named
from shards import clean
from shards.clean import vocabulary
from shards.errors import ConfigError, DataError

LINE = {
    "id": "a",
    "prediction": "The heart is large. No  effusion.",
    "reference": "the heart is large . no effusion .",
    "reference_raw": "The heart is large. No effusion.",
}
KNOWN = frozenset({"the", "heart", "is", ".", "<unk>"})


def test_r2gen_reference_is_cut_and_rare_words_are_unknown() -> None:
    protocol = PROTOCOLS["r2gen-2020"]
    assert protocol.reference(LINE, KNOWN) == "the heart is <unk> . <unk> <unk> ."
    long = {**LINE, "reference_raw": "the " * 100}
    assert protocol.reference(long, KNOWN) == " ".join(["the"] * 59)
    assert PROTOCOLS["r2gen-2020-mimic"].reference(long, KNOWN) == " ".join(["the"] * 99)


def test_r2gen_reference_comes_from_the_report_as_written() -> None:
    line = {**LINE, "reference": "something else", "reference_raw": "The heart. . Is."}
    assert PROTOCOLS["r2gen-2020"].reference(line, KNOWN) == "the heart . . is ."


def test_cutting_twice_changes_nothing() -> None:
    protocol = PROTOCOLS["r2gen-2020"]
    once = protocol.reference(LINE, vocabulary([LINE["reference"]], 1))
    assert protocol.cut(once, vocabulary([LINE["reference"]], 1)) == once == LINE["reference"]


def test_full_text_cuts_nothing_and_cleans_both_sides_alike() -> None:
    protocol = PROTOCOLS["full-text"]
    line = {**LINE, "reference": "a .  . b ."}
    assert protocol.reference(line) == "a .  . b ."
    assert protocol.hypothesis(LINE, "r2gen-2020-iu") == "the heart is large . no  effusion ."
    assert protocol.hypothesis({"prediction": LINE["reference"]}, "r2gen-2020-iu") == LINE["reference"]
    assert protocol.hypothesis(LINE) == LINE["prediction"]


def test_r2gen_hypothesis_is_as_generated_with_single_blanks() -> None:
    assert PROTOCOLS["r2gen-2020"].hypothesis(LINE, "r2gen-2020-iu") == "The heart is large. No effusion."


def test_missing_vocabulary_says_what_to_pass() -> None:
    with pytest.raises(DataError, match=r"r2gen-2020 .* fewer than 3 times.*--shards"):
        PROTOCOLS["r2gen-2020"].reference(LINE)


def test_missing_report_as_written_names_the_study_and_the_way_out() -> None:
    line = {key: value for key, value in LINE.items() if key != "reference_raw"}
    with pytest.raises(DataError, match=r"'a' has no reference_raw.*full-text"):
        PROTOCOLS["r2gen-2020"].reference(line, KNOWN)


def test_a_cut_by_tokens_is_what_the_line_says() -> None:
    protocol = PROTOCOLS["r2genkg-2025"]
    cleaned = "the heart is large . no effusion ."
    for end, wanted in ((20, cleaned[:20].rstrip()), (len(cleaned), cleaned)):
        line = LINE | {"reference_cut": {"r2genkg-2025": end, "r2genkg-2025-mimic": 3}}
        assert protocol.reference(line) == wanted and protocol.cuts(line) == (wanted != cleaned)
        assert protocol.fits("clean-1"), "the protocol cleans the report itself, so that any shards will do"
    for told in (None, {}, {"r2genkg-2025": None}, {"r2genkg-2025": True}, {"r2genkg-2025": 99}, [1]):
        with pytest.raises(DataError, match=r"'a' does not tell .* 60 tokens .*generate RUN 'protocols="):
            protocol.reference(LINE | {"reference_cut": told})


def test_hash_follows_content_and_cleaning_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    protocol = PROTOCOLS["r2gen-2020"]
    before = {name: each.hash for name, each in PROTOCOLS.items()}
    assert len(set(before.values())) == len(PROTOCOLS)
    assert Protocol(**protocol.model_dump()).hash == protocol.hash
    assert protocol.model_copy(update={"max_length": 61}).hash != protocol.hash
    monkeypatch.setitem(clean.VERSIONS, "r2gen-2020-iu", 2)
    after = {name: each.hash for name, each in PROTOCOLS.items()}
    assert [name for name in before if before[name] != after[name]] == ["r2gen-2020", "r2genkg-2025", "full-text"]


def test_hash_of_labels_follows_what_becomes_of_uncertain_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hashes of triples are those of version 2 of their text; of reports, another test holds them."""
    assert [PROTOCOLS[name].hash for name in ("triples", "triples-sorted")] == ["dab1ab21b3a70673", "046e73fdfda820af"]
    before = {name: each.hash for name, each in PROTOCOLS.items()}
    changed = PROTOCOLS["labels"].model_copy(update={"uncertain": "left_out"})
    assert changed.hash not in before.values()
    monkeypatch.setattr("r2kg.config.protocol.LABELS_VERSION", 2)
    after = {name: each.hash for name, each in PROTOCOLS.items()}
    assert [name for name in before if before[name] != after[name]] == ["labels", "labels-certain"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"cleaning": "r2gen"}, "cleaning='r2gen' is not a cleaning"),
        ({"hypothesis_cleaning": "none"}, "hypothesis_cleaning='none' is not a cleaning"),
        ({"reference_cut": "r2gen", "threshold": 3}, "goes with threshold and max_length"),
        ({"max_length": 60}, "goes with threshold and max_length"),
        ({"reference_cut": "tokens", "cleaning": "r2gen-2020-iu"}, "reference_cut=tokens with max_length alone"),
        ({"reference_cut": "tokens", "max_length": 60}, "reference_cut=tokens goes with a named cleaning"),
        ({"length": 60}, "Extra inputs"),
        ({"uncertain": "left_out"}, "uncertain=left_out goes with task=labels"),
        ({"uncertain": "left_out", "task": "triples"}, "uncertain=left_out goes with task=labels"),
        ({"task": "labels", "order": "sorted"}, "order=sorted goes with task=triples"),
        ({"task": "labels", "cleaning": "r2gen-2020-iu"}, "task=labels goes with no cut and no cleaning"),
    ],
)
def test_impossible_protocols_are_refused(fields: dict, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Protocol(name="mine", **fields)


def test_unknown_protocol_names_the_known_ones() -> None:
    with pytest.raises(
        ConfigError, match=r"'r2gen'.*r2gen-2020, r2gen-2020-mimic, r2gengpt-2023-mimic, r2genkg-2025, "
    ):
        protocol_named("r2gen")
