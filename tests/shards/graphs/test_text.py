"""Triples and the text that says them: what is written is read back, and every text can be read."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.graphs.text import MAX_CHUNK, MAX_TEXT, Reading, normal_triple, triples_in, triples_text

ANY = st.text(max_size=12)
RELATIONS = st.sampled_from(["modify", "located_at", "suggestive_of", "modifies", "Located at", "next-to"])


def test_the_scoring_string_has_punctuation_apart_and_every_triple_once() -> None:
    triples = [("Right-sided Effusion", "located at", "Pleural"), ("small", "modifies", "effusion")]
    text = "right - sided effusion , located_at , pleural ; small , modify , effusion"
    assert triples_text([*triples, ("SMALL", "modify", "effusion")]) == text
    assert triples_in(text) == Reading(
        (("right - sided effusion", "located_at", "pleural"), ("small", "modify", "effusion")), 2, 0, 0
    )
    assert triples_text([]) == "none"
    assert triples_in("None.") == Reading((), 0, 0, 0)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(ANY, RELATIONS, ANY), max_size=5))
def test_what_is_written_is_read_back(triples: list[tuple[str, str, str]]) -> None:
    text = triples_text(triples)
    normal = [normal_triple(*triple) for triple in triples]
    wanted = tuple(dict.fromkeys(triple for triple in normal if all(triple)))
    assert triples_in(text).triples == wanted
    assert triples_text(wanted) == text
    assert [normal_triple(*triple) for triple in normal] == normal


@settings(deadline=None, max_examples=300)
@given(st.text(max_size=200) | st.text(alphabet="a ,;|:()-1.modify\nlocated_at#", max_size=200))
def test_every_text_can_be_read(text: str) -> None:
    reading = triples_in(text)
    assert reading.chunks == len(reading.triples) + reading.rejected + reading.repeated
    assert triples_in(triples_text(reading.triples)).triples == reading.triples


@pytest.mark.parametrize(
    ("text", "triples"),
    [
        ("effusion | located_at | pleural ; small|modify|effusion", 2),
        ("1. effusion, located at, pleural\n2) small, modify, effusion", 2),
        ("- (effusion, located_at, pleural)\n* [small, modifies, effusion]", 2),
        ("effusion located_at pleural ; small modify effusion", 2),
        ("### Instruction: list ; a, modify, b ### Response: small, modify, effusion</s> c, modify, d", 1),
        ("effusion , located_at , pleural ; small , mod", 1),
        ("the lungs are clear .", 0),
        (" , modify , effusion", 0),
    ],
)
def test_forms_that_are_seen_are_read(text: str, triples: int) -> None:
    known = {("effusion", "located_at", "pleural"), ("small", "modify", "effusion")}
    found = triples_in(text).triples
    assert len(found) == triples and set(found) <= known


@pytest.mark.parametrize(
    ("text", "triples", "broken"),
    [
        ("small , modify , effusion ; effusion , located_at , left", 1, 1),
        ("small , modify , effusion ; effusion , loc", 1, 1),
        ("small , modify , effusion ;", 1, 0),
        ("small , modify , effusion ; effusion , located_at , left\n", 2, 0),
        ("small , modify , effusion</s>", 1, 0),
        ("small , modify , eff", 0, 1),
        ("none", 0, 1),
        ("", 0, 0),
    ],
)
def test_the_piece_in_which_a_truncated_text_broke_off_is_left_out(text: str, triples: int, broken: int) -> None:
    reading = triples_in(text, truncated=True)
    assert (len(reading.triples), reading.rejected, reading.truncated) == (triples, 0, broken)
    assert reading.chunks == triples + broken and triples_in(text).truncated == 0


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=200), st.booleans())
def test_bytes_of_any_kind_can_be_read(data: bytes, truncated: bool) -> None:
    for text in (data.decode("utf-8", "replace"), data.decode("latin-1"), data.decode("utf-8", "surrogateescape")):
        reading = triples_in(text, truncated)
        faults = reading.rejected + reading.repeated + reading.truncated
        assert reading.chunks == len(reading.triples) + faults
        again = triples_in(triples_text(reading.triples))
        assert again.triples == reading.triples and not again.rejected + again.repeated + again.truncated


def test_statuses_are_read_back() -> None:
    triples = (("effusion", "located_at", "left base"), ("effusion", "status", "absent"), ("clip", "status", "present"))
    assert triples_in(triples_text(triples)) == Reading(triples, 3, 0, 0)


def test_of_endless_texts_only_the_end_is_read_and_no_endless_piece() -> None:
    assert triples_in("x , modify , y ; " + "a " * MAX_TEXT).triples == ()
    assert triples_in("a " * MAX_TEXT + "; x , modify , y").triples == (("x", "modify", "y"),)
    assert triples_in("a" * MAX_CHUNK + " , modify , y").triples == ()
    for piece in ("#", "## ", ",|", " ( ", "modify", "1. "):
        assert triples_in(piece * MAX_TEXT).triples == ()
