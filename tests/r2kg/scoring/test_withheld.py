"""What a control does not show: films are black, texts empty, and what there is nothing of is refused."""

import json

import numpy as np
import pytest

from r2kg.recipes import find_recipe
from r2kg.scoring.controls.withheld import refuse_withheld, shown
from shards.errors import ConfigError

RECORD = {"key": "a", "id": "a", "split": "test", "views": [], "target": "large heart .", "report": "Large heart."}
ROWS = {"images": np.full((1, 1, 4, 4), 7, np.uint8), "record": np.array([json.dumps(RECORD)], object)}


def with_withheld(recipe: str, *what: str, **changes: str):
    return find_recipe(recipe).change({"model.decoding.withhold": what, **changes})


def test_films_are_black_and_texts_empty_where_they_are_withheld():
    whole, no_film, no_report = (shown(with_withheld("vlm_kg.tiny", *w), ROWS) for w in ((), ("film",), ("report",)))
    assert "images" not in whole and json.loads(whole["record"][0])["target"] == "large heart ."
    assert not no_film["images"].any() and no_film["images"].shape == (1, 1, 4, 4) and ROWS["images"].all()
    assert json.loads(no_film["record"][0])["target"] == "large heart ."
    assert "images" not in no_report and "target" not in json.loads(no_report["record"][0])


def test_what_is_made_of_films_goes_with_them():
    run = with_withheld("r2genkg.tiny", "film", **{"model.graph.source": "film"})
    changed = shown(run, ROWS | {"film_subgraph": np.array([b"nodes"], object)})
    assert changed["film_subgraph"].tolist() == [b""] and not changed["images"].any()


def test_what_there_is_nothing_of_is_refused():
    for run, told in (
        (with_withheld("r2gengpt.tiny", "report"), "reads no text, so none can be withheld"),
        (with_withheld("vlm_kg.llm_tiny", "film"), "reads no films, so none can be withheld"),
        (with_withheld("vlm_kg.tiny", "film", **{"data.features": "there"}), "black films, which have no features"),
    ):
        with pytest.raises(ConfigError, match=told):
            refuse_withheld(run)
    refuse_withheld(with_withheld("vlm_kg.tiny", "film", "report"))


def test_predictions_are_named_alike_where_nothing_is_withheld():
    told = find_recipe("vlm_kg.tiny").model.decoding.told()
    assert "withhold" not in told and with_withheld("vlm_kg.tiny", "film").model.decoding.told()["withhold"] == ["film"]
