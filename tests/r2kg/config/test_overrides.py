"""key=value reaches every field of every system, or one sentence says which key or word was meant."""

import itertools
import json
import re

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import jobs.show
from r2kg.config.overrides import parse_overrides
from r2kg.config.run import SYSTEMS, Run, load_run
from r2kg.recipes import find_recipe, recipes
from r2kg.systems.r2genkg.config import R2GenKGConfig
from shards.errors import ConfigError
from tests.r2kg.config.own_system import OTHER, OWN, Bank, Graph, Head, Matrix, Other, Own

RUNS = {name: find_recipe(name) for name in sorted(recipes())} | {
    "own": Run(name="x", model=Own()),
    "own, all on": Run(name="x", model=Own(graph=Graph(), memory=Bank(), knowledge=Bank(), weights={"kl": 0.1})),
    "other": Run(name="x", model=Other(head=Head())),
}


def change(start: Run, *words: str) -> Run:
    return start.change(parse_overrides(list(words)))


def refusal(start: Run, *words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        change(start, *words)
    sentence = str(caught.value)
    assert "\n" not in sentence and len(sentence) <= 600
    return sentence


def any_order(start: Run, *words: str) -> Run:
    """The one Run that the words give, whichever stands first."""
    results = [change(start, *order) for order in itertools.permutations(words)]
    assert all(result == results[0] for result in results)
    return results[0]


def flat(tree: dict, prefix: str = "") -> dict:
    leaves = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {prefix + key: value}
    return leaves


def keys_of(part, prefix: str = "") -> list[str]:
    """Dotted keys of a run, parts included; what stands in dictionaries is no key."""
    keys = []
    for name in type(part).model_fields:
        value = getattr(part, name)
        keys += [prefix + name, *(keys_of(value, f"{prefix}{name}.") if hasattr(value, "model_fields") else [])]
    return keys


def test_another_system_brings_its_own_defaults():
    start = find_recipe("r2gengpt.tiny")
    run = any_order(
        start, f"model.system={OWN}", "model.llm.revision=v2", "model.knowledge.kind=bank", "train.epochs=1"
    )
    assert run.model == Own(llm=Own().llm.model_copy(update={"revision": "v2"}), knowledge=Bank())
    assert run.optim == start.optim and run.train.epochs == 1
    assert any_order(run, f"model.system={OTHER}", "model.head.width=3").model == Other(head=Head(width=3))
    assert change(run, "model.system=r2genkg").model == R2GenKGConfig()


def test_the_same_system_or_kind_resets_nothing():
    run = change(RUNS["own, all on"], f"model.system={OWN}", "model.knowledge.kind=bank", "model.memory.kind=bank")
    assert run == RUNS["own, all on"]
    tiny = find_recipe("r2gengpt.tiny")
    assert change(tiny, "model.system=r2genkg") == tiny


def test_a_kind_that_is_no_unions_tag_resets_nothing():
    run = change(RUNS["other"], "model.llm.revision=v2", "model.head.width=3")
    assert change(run, "model.kind=deep").model == run.model.model_copy(update={"kind": "deep"})


def test_another_kind_resets_that_part_alone():
    start = change(RUNS["own"], "model.knowledge.rows=3", "model.llm.revision=v2")
    run = any_order(start, "model.knowledge.kind=bank", "model.knowledge.size=7")
    assert run.model.knowledge == Bank(size=7) and run.model.llm.revision == "v2"
    assert change(run, "model.knowledge.kind=matrix").model.knowledge == Matrix()


def test_a_part_is_switched_on_and_off():
    off = RUNS["own"]
    assert "model.graph is switched off; switch it on with model.graph={}" in refusal(off, "model.graph.levels=3")
    assert "model.memory.size comes with model.memory.kind=bank" in refusal(off, "model.memory.size=3")
    assert "did you mean bank?" in refusal(off, "model.memory.kind=bnk")
    on = any_order(off, "model.graph={}", "model.graph.levels=3", "model.graph.adapter.rank=2")
    assert (on.model.graph.levels, on.model.graph.sizes, on.model.graph.adapter.rank) == (3, (100, 200), 2)
    bank = any_order(off, "model.memory.kind=bank", "model.memory.size=7", "model.memory.adapter={}")
    assert bank.model.memory == Bank(size=7, adapter=Graph().adapter)
    assert change(on, "model.graph=null") == off and change(bank, "model.memory=None") == off


def test_a_dictionary_given_for_a_union_keeps_its_member():
    run = change(RUNS["own, all on"], 'model.knowledge={"size":3}', 'model.memory={"kind":"matrix","rows":2}')
    assert (run.model.knowledge, run.model.memory) == (Bank(size=3), Matrix(rows=2))
    assert change(run, 'model={"graph":{"levels":5}}').model == Own(graph=Graph(levels=5))


def test_of_a_key_given_twice_the_last_word_counts():
    assert change(RUNS["own"], "train.epochs=3", "train.epochs=4").train.epochs == 4
    assert change(RUNS["own"], 'model.graph={"levels":3}', "model.graph=null").model.graph is None


@pytest.mark.parametrize(
    ("start", "word", "meant"),
    [
        ("own", "model.knowlege.rows=3", "did you mean model.knowledge.rows?"),
        ("own", "model.knowledge.row=3", "did you mean model.knowledge.rows?"),
        ("own", "model.graph.lvels=3", "did you mean model.graph.levels?"),
        ("own", "model.knowledge.size=3", "model.knowledge.size comes with model.knowledge.kind=bank"),
        ("own, all on", "model.memory.rows=3", "model.memory.rows comes with model.memory.kind=matrix"),
        ("own", "model.knowledge.kind=bnk", "model.knowledge.kind: Input should be matrix or bank, not 'bnk'; did you"),
        ("own", 'model.knowledge={"kind":"bnk"}', "did you mean bank?"),
        ("own", "model.memory={}", "model.memory.kind: say which"),
        ("own", "model.knowledge.rows=0", r"^model\.knowledge\.rows: Input should be greater"),
        ("own", 'model.knowledge={"kind":"bank","size":0}', r"^model\.knowledge\.size: Input should be greater"),
        ("own", 'model.knowledge={"kind":"bank","sise":3}', "did you mean model.knowledge.size"),
        ("own", "model.vision.image_px=32", "model.vision.image_px comes with model.system=r2genkg"),
        ("own", "model.vision.options.depths=[1]", "model.vision.options comes with model.system=r2genkg"),
        ("own", "model.betas=[1]", r"^model\.betas"),
        ("own", "model.betas.0=1", r"model\.betas has no parts: write model\.betas=\[0\.9, 0\.98\]"),
        ("own", "model.weights.kl=x", r"^model\.weights\.kl: Input should be a valid number"),
        ("own", "model.graph=true", "keys levels, sizes, adapter"),
        ("own", "model.knowledge=bank", "did you mean model.knowledge.kind=bank?"),
        ("own", "model.system=r2genk", "did you mean model.system=r2genkg?"),
        ("own", "model.system=nowhere.at_all:X", "No module named 'nowhere'.*PYTHONPATH"),
        ("own", "model.system=:X", "cannot be imported"),
        ("own", "model.system=tests.r2kg.config.own_system:NoSystem", "no subclass of"),
        ("own", "model=r2genkg", "did you mean model.system=r2genkg?"),
        ("r2gengpt.tiny", "model.graph.levels=3", "unknown key 'model.graph.levels'"),
        ("r2gengpt.tiny", "model.llm=tiny", "did you mean model.llm.source=tiny?"),
        ("r2gengpt.tiny", 'model={"llm":"tiny"}', r"^model\.llm: Input should be a valid dictionary"),
        ("r2gengpt.tiny", "model.llm=null", "model.llm is a part"),
        ("r2gengpt.tiny", "model.llm.tuning=lorra", "did you mean lora?"),
        ("r2gengpt.tiny", "protocols=full-text", r'a list, e\.g\. \["full-text"\]'),
        ("r2gengpt.tiny", "llm.source=tiny", "did you mean model.llm.source"),
        ("r2gengpt.tiny", "tracking.parent=20.26", """Input should be text: write tracking.parent='"20.26"'"""),
        ("r2gengpt.tiny", "train.epochs=NaN", "train.epochs takes JSON: finite"),
        ("r2gengpt.tiny", "optim.lr=Infinity", "optim.lr takes JSON: finite"),
        ("r2gengpt.tiny", "optim.lr=1e999", "optim.lr takes JSON: finite"),
        ("r2gengpt.tiny", 'model.vision.options={"x":NaN}', "model.vision.options takes JSON"),
        ("r2gengpt.tiny", "model.vision.options=" + "[" * 100_000, "nests too deep"),
        ("r2gengpt.tiny", "model.vision.options.x=" + "[" * 300 + "]" * 300, "depth exceeded"),
        ("r2gengpt.tiny", 'model.llm={"source":"a","source":"b"}', "model.llm: the JSON says 'source' twice"),
        ("r2gengpt.tiny", 'model.vision.options.x="\\ud800"', "model.vision.options.x takes JSON"),
        ("r2gengpt.tiny", "model.vision.options.\udcff=1", "takes JSON"),
        ("r2gengpt.tiny", f"train.workers={'9' * 400}", "cannot be split over"),
        ("r2gengpt.tiny", f"train.steps={'9' * 5000}", r"^train\.steps"),
        ("r2gengpt.tiny", f"{'long' * 5000}=1", "unknown key 'longlong"),
        ("r2gengpt.tiny", 'name="a\\nb"', "plain directory name"),
        ("r2gengpt.tiny", "=3", "'=3' is not an override"),
        ("r2gengpt.tiny", "model..llm=1", "did you mean model.llm?"),
        ("r2gengpt.tiny", "model.vision.options.=1", "did you mean model.vision.options?"),
        ("r2gengpt.tiny", ".=1", "keys at the top: name, recipe"),
    ],
)  # fmt: skip
def test_one_sentence_says_what_was_meant(start, word, meant):
    assert re.search(meant if meant.startswith("^") or "\\" in meant or ".*" in meant else re.escape(meant),
                     refusal(RUNS[start], word))  # fmt: skip


def test_a_system_of_a_short_name_is_known_like_ours(monkeypatch):
    monkeypatch.setitem(SYSTEMS, "other", OTHER)
    assert "model.head comes with model.system=other" in refusal(RUNS["own"], "model.head={}")
    assert "did you mean model.system=other?" in refusal(RUNS["own"], "model.system=othre")


def test_a_system_may_be_given_in_code(tmp_path):
    run = Run(name="x", model=Own(graph=Graph(levels=4))).model_copy(update={"model": Own(memory=Matrix(rows=2))})
    run.save(tmp_path / "run.json")
    assert load_run(tmp_path / "run.json") == run
    assert run.change({"model.graph": Graph(levels=4), "model.memory": Bank()}).model == Own(
        graph=Graph(levels=4), memory=Bank()
    )
    with pytest.raises(ValueError, match="names Other, not Own"):
        Run(name="x", model=Own.model_construct(system=OTHER))


def test_a_saved_run_whose_system_is_not_there_says_what_to_do(tmp_path):
    tree = RUNS["own"].model_dump() | {"model": {"system": "nowhere.at_all:Mine"}}
    (tmp_path / "run.json").write_text(json.dumps(tree))
    with pytest.raises(ConfigError, match="'nowhere.at_all:Mine' cannot be imported.*PYTHONPATH"):
        load_run(tmp_path / "run.json")
    (tmp_path / "mine.py").write_text("1 / 0")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        assert "ZeroDivisionError" in refusal(RUNS["own"], "model.system=mine:Mine")


def test_what_nests_deep_is_saved_or_refused(tmp_path):
    start, sentences = RUNS["r2gengpt.tiny"], []
    for depth in range(230, 270):
        value = json.loads("[" * depth + "]" * depth)
        sentences.append(run_or_sentence(start, {"model.vision.options.x": value}, tmp_path))
    assert not sentences[0] and sentences[-1]


@pytest.mark.parametrize(
    "torn",
    [
        "[]",
        "null",
        "[" * 100_000,
        '{"name": "x", "modle": {}}',
        '{"name": "x", "model": 3}',
        '{"name": "x", "optim": {"lr": Infinity}}',
    ],
)
def test_what_is_no_saved_run_is_one_sentence(tmp_path, torn):
    (tmp_path / "run.json").write_text(torn)
    with pytest.raises(ConfigError) as caught:
        load_run(tmp_path / "run.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", RUNS)
def test_what_show_prints_is_the_run(name, tmp_path, capsys):
    run = RUNS[name]
    run.save(tmp_path / "run.json")
    jobs.show.main(str(tmp_path / "run.json"))
    printed = capsys.readouterr().out
    (tmp_path / "again.json").write_text(printed)
    jobs.show.main(str(tmp_path / "again.json"))
    assert capsys.readouterr().out == printed
    if name in recipes():
        jobs.show.main(name)
        assert capsys.readouterr().out == printed
    words = [f"{key}={json.dumps(value)}" for key, value in flat(json.loads(printed)).items()]
    for word in words:
        assert change(run, word) == run, word
    told = json.loads(printed)["model"]
    parts = [f"model.{part}={{}}" for part in ("graph", "queries") if told.get(part)]
    for part, inner in (("queries", "bank"), ("transformer", "text")):
        parts += [f"model.{part}.{inner}={{}}"] if (told.get(part) or {}).get(inner) else []
    assert change(Run(name="y"), *words, *parts) == run


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["r2genkg", OWN, OTHER, "matrix", "bank", "lora", "frozen", "tiny", "a\nb", "", 0, 1, 2, 8]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["system", "kind", "rows", "source", "levels", "x", ""]), inner, max_size=3)
    ),
    max_leaves=4,
)
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["delete", "insert", "replace", "swap"]), st.integers(0, 60), st.sampled_from("aelnrst._3")
    ),
    min_size=1,
    max_size=2,
)


def misspelt(key: str, edits: list[tuple[str, int, str]]) -> str:
    for edit, place, letter in edits:
        n = place % max(len(key), 1)
        if edit == "swap":
            key = key[:n] + key[n : n + 2][::-1] + key[n + 2 :]
        else:
            key = key[:n] + (letter if edit != "delete" else "") + key[n + (edit != "insert") :]
    return key


def distance(one: str, two: str) -> int:
    """Levenshtein's."""
    row = list(range(len(two) + 1))
    for i, a in enumerate(one, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(two, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


def run_or_sentence(start: Run, changes: dict, folder) -> str:
    """Empty where the changes give a run that comes back from its file; else the sentence that refuses them."""
    try:
        run = start.change(changes)
    except ConfigError as error:
        assert "\n" not in str(error) and 0 < len(str(error)) <= 600
        return str(error)
    run.save(folder / "run.json")
    assert load_run(folder / "run.json") == run == run.change({})
    return ""


QUICK = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@QUICK
@given(data=st.data(), start=st.sampled_from(list(RUNS.values())))
def test_any_changes_give_a_run_or_a_sentence(data, start, tmp_path):
    keys = st.sampled_from(keys_of(start) + keys_of(RUNS["own, all on"]))
    keys = keys | st.builds(misspelt, keys, EDITS)
    run_or_sentence(start, data.draw(st.dictionaries(keys, VALUES, min_size=1, max_size=3)), tmp_path)


@QUICK
@given(data=st.data(), start=st.sampled_from(list(RUNS.values())), value=VALUES)
def test_a_misspelt_key_is_answered_with_the_right_one(data, start, value, tmp_path):
    keys = keys_of(start)
    word = misspelt(data.draw(st.sampled_from(keys)), data.draw(EDITS))
    far = {key: distance(word, key) for key in keys}
    assume(word not in keys and min(far.values()) <= 2)
    sentence = run_or_sentence(start, {word: value}, tmp_path)
    if not sentence or "comes with" in sentence or "switched off" in sentence or "takes JSON" in sentence:
        return  # an open dictionary's key, or a key that another word brings
    named = re.split(r"[ ,?=:]+", sentence)
    listed = re.search(r"keys at (\S+): (.*)", sentence)
    named += [listed[1].rstrip(".") + "." + name for name in listed[2].split(", ")] if listed else []
    assert any(key in named or f"the.{key}" in named for key, edits in far.items() if edits == min(far.values())), (
        sentence
    )
