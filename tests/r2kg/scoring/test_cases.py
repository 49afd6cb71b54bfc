"""The page of cases: what its texts say is told apart, hostile reports are text, and patients' films stay at home."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from PIL import Image

from r2kg.graph.extract.rules import Rules
from r2kg.recipes import find_recipe
from r2kg.rundir import saved_run
from r2kg.scoring.evaluate import evaluate
from r2kg.scoring.pages import PICTURES
from r2kg.scoring.pages.cases import chosen, evidence_rows, read_cases, write_cases
from r2kg.scoring.pages.films import Budget, Films
from r2kg.scoring.pages.marks import MAX_READ, compared, mentions_of, pieces_of, shown
from r2kg.tracking import track_pictures, tracking_uri
from shards.errors import ConfigError, DataError
from shards.stream.index import read_studies
from shards.tars.format import read_manifest

REFERENCE = "The heart is enlarged. Small left effusion. No pneumothorax. Possible pneumonia. No fracture."
GENERATED = "No effusion. Possible pneumonia.\nThere is a nodule. No pneumothorax."
HOSTILE = (
    "Effusion. </script><script>document.title='hurt'</script><img src=x onerror=\"document.title='hurt'\"> "
    "</p></details>' \" data:text/html,<b>x</b> <svg onload=document.title='hurt'> {{ 7*7 }} \u202ekcab\u202c \x00 "
    "http://127.0.0.1:9/a.png "
)
HOSTILE_ID = "\"><script>document.title='hurt'</script>\u202eid'"


def both(reference: str, generated: str, task: Any = "report"):
    return [mentions_of(task, text, Rules().annotate([text])[0]) for text in (reference, generated)]


def line(number: int, prediction: str, reference: str = REFERENCE, **more: Any) -> dict[str, Any]:
    study = {"id": f"s{number}", "key": f"s{number}", "split": "test", "prediction": prediction}
    return study | {"reference": reference, "reference_raw": reference, "labels": {}, "triples": []} | more


def write(folder: Path, lines: list[dict[str, Any]], **context: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "context.json").write_text(json.dumps({"task": "report", "cleaning": "clean-1", **context}))
    (folder / "predictions.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    return folder / "predictions.jsonl"


def write_run(root: Path, lines: list[dict[str, Any]], films: str = "", **context: Any) -> Path:
    """Predictions where a run writes them."""
    run = find_recipe("r2gengpt.tiny").change({"root": str(root), "name": "drawn", "data.shards": films})
    (root / "drawn").mkdir(parents=True)
    run.save(root / "drawn" / "run.json")
    return write(root / "drawn" / "predictions" / "test" / "how", lines, run="drawn", split="test", **context)


def test_findings_are_hit_missed_invented_or_denied() -> None:
    given, said = both(REFERENCE, GENERATED)
    found = compared(given, said)
    assert found.hit == ("pneumonia",) and found.invented == ("nodule",)
    assert set(found.missed) == {"cardiomegaly", "pleural effusion"}
    assert set(found.denied) == {"pneumothorax", "fracture"}
    assert found.f1 == pytest.approx(2 * 1 / (2 + 3))
    assert compared(*both("No effusion.", "The lungs are clear.")).f1 == 1


def test_a_text_is_cut_into_pieces_and_nothing_of_it_is_lost() -> None:
    given, said = both(REFERENCE, GENERATED)
    reference, generated = pieces_of(REFERENCE, given, said, True), pieces_of(GENERATED, said, given, False)
    assert "".join(piece.text for piece in reference) == REFERENCE
    kinds = {piece.text.lower(): piece.kind for piece in [*reference, *generated][::-1] if piece.kind}
    assert kinds["enlarged"] == "missed" and kinds["nodule"] == "invented" and kinds["pneumonia"] == "hit doubt"
    assert kinds["fracture"] == kinds["pneumothorax"] == "denied"
    by_text = {piece.text: piece for piece in generated}
    assert by_text["effusion"].kind == "denied against" and by_text["effusion"].title.endswith("the reference says it")
    long = "effusion. " * MAX_READ
    assert len("".join(piece.text for piece in pieces_of(long, [], [], True))) == MAX_READ
    assert shown("a\u202eb\n\x00é") == "a⟨U+202E⟩b\n⟨U+0000⟩é"


def test_triples_and_labels_are_findings_of_their_tasks() -> None:
    reference, generated = "small , modify , effusion ; nodule , located_at , apex", "small,modify,effusion; nonsense; "
    given, said = both(reference, generated, "triples")
    assert [generated[one.start : one.end] for one in said] == ["small,modify,effusion"]
    assert compared(given, said)[:3] == (("small modify effusion",), ("nodule located_at apex",), ())
    given, said = both("Edema, Lung  Lesion", " Lung Lesion,", "labels")
    assert compared(given, said)[:3] == (("Lung Lesion",), ("Edema",), ())


def test_the_worst_the_best_and_a_sample_are_chosen_by_seed() -> None:
    texts = ["Nodule.", "Small left effusion.", REFERENCE, "Enlarged heart. Effusion.", "Effusion. Nodule.", "Clear."]
    cases = read_cases([line(number, text) for number, text in enumerate(texts)], "report", "raw")
    assert [case.scores["finding_f1"] for case in cases][:3] == [0, 0.5, 1] and cases[2].scores["rouge_l"] == 1
    assert [why for _, why in chosen(cases, 6, 0)] == [""] * 6
    picked = {case.line["id"]: why for case, why in chosen(cases, 3, 0)}
    assert picked.pop("s2") == "best" and sorted(picked.values()) == ["sample", "worst"]
    assert (
        chosen(cases, 1, 4) == chosen(cases, 1, 4) and len({chosen(cases, 1, n)[0][0].line["id"] for n in range(9)}) > 1
    )


def test_whatever_a_system_gives_is_rows_of_a_table() -> None:
    told = {
        "evidence": {"nodes": [["rib", 0.25, ["s1", "s2"]]]},
        "probabilities": {"Edema": 0.5},
        "deep": [[[[[[[[]]]]]]]],
    }
    rows, left = evidence_rows(told)
    assert rows[0] == {"of": "evidence › nodes", "name": "rib", "more": "s1, s2", "share": 0.25}
    assert rows[1] == {"of": "probabilities", "name": "Edema", "more": "", "share": 0.5} and not left
    assert [len(rows) for rows in evidence_rows({"many": [[str(n), float("nan")] for n in range(99)]})[:1]] == [60]


def test_patients_stay_beside_their_predictions(tmp_path: Path) -> None:
    path = write_run(tmp_path / "runs", [line(0, GENERATED)], licence="physionet-credentialed-1.5.0")
    page = write_cases(path)
    assert page.credentialed and page.path == path.with_name("cases.html")
    assert "Credentialed data." in page.path.read_text() and any("No films are shown" in note for note in page.notes)
    assert "MLflow gets none of these" in track_pictures(path, [page.path])
    (path.parent / "away").symlink_to(tmp_path)
    for out in (tmp_path, path.parent / "away" / "pages"):
        with pytest.raises(ConfigError, match=r"credentialed data .* say privacy\.allow_text=true"):
            write_cases(path, out=out)
    assert write_cases(path, out=tmp_path / "runs" / "drawn" / "pages").path.is_file()
    assert write_cases(path, out=tmp_path / "pages", allow_text=True).path.is_file()
    path.with_name("context.json").unlink()  # whose data it is nobody knows
    with pytest.raises(ConfigError, match="unknown"):
        write_cases(path, out=tmp_path)
    assert "MLflow gets none of these" in track_pictures(path, [page.path], write_cases(path).credentialed)
    open_data = write(tmp_path / "open", [line(0, GENERATED)], licence="public")
    assert not write_cases(open_data, out=tmp_path / "elsewhere").credentialed


def test_a_key_is_no_path_and_scores_of_other_predictions_are_not_shown(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    path = write(tmp_path / "a", [line(0, GENERATED, key="../../secret")], licence="public")
    (tmp_path / "a" / "knowledge").mkdir()
    path.with_name("scores.json").write_text(json.dumps({"predictions": {"sha256": "0"}, "protocols": {}}))
    page = write_cases(path).path.read_text()
    assert "data:image/png" not in page and "scores.json is of other predictions" in page
    path.with_name("scores.json").write_text("[]")
    assert "No aggregated scores" in write_cases(path).path.read_text()
    budget = Budget(left=5)
    assert budget.take(b"123456", "jpeg") == "" and budget.take(b"1", "jpeg") and "1 are left out" in budget.notes[0]
    with pytest.raises(DataError, match="no shards"):
        Films.of(str(tmp_path), {}, named=True)


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    hurt = line(0, HOSTILE, HOSTILE, id=HOSTILE_ID, extra={HOSTILE: [[HOSTILE, 0.5]]}, triples=[[HOSTILE], 1])
    page = write_cases(write(tmp_path, [hurt], run=HOSTILE, licence=HOSTILE, checkpoint=HOSTILE)).path.read_text()
    assert page.count("<script") == 1 and page.count("<svg") == 0 and page.count("<img src=x") == 0
    assert page.count("&lt;script&gt;document.title=") > 5 and "\u202e" not in page and "\x00" not in page
    assert "script-src 'sha256-" in page and "default-src 'none'" in page


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    """Debian's Chromium without a window, which keeps what it logs and whatever it asks the network for."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no chromium with chromedriver: apt-get install chromium chromium-driver")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--no-first-run"):
        options.add_argument(word)
    options.add_argument(f"--user-data-dir={tmp_path / 'profile'}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = webdriver.Chrome(options=options, service=Service(driver, env=dict(os.environ)))
    yield started
    started.quit()


@pytest.mark.slow
def test_the_page_in_a_real_browser(phantom_shards: Path, tmp_path: Path, browser: Any) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.select import Select

    studies, manifest = list(read_studies(phantom_shards, "test")), read_manifest(phantom_shards)
    texts = ["Effusion.", "Large nodule. No effusion.", studies[0].target, HOSTILE + "no effusion or " * 5_000]
    lines = [
        line(number, texts[number % 3], study.target, id=study.id, key=study.key)
        for number, study in enumerate(studies)
    ]
    hurt = [[HOSTILE, 0.5, [HOSTILE]]]
    lines[-1] |= {"id": HOSTILE_ID, "prediction": texts[3], "extra": {HOSTILE: hurt}}
    named = {"licence": manifest.licence, "shards": manifest.fingerprint, "checkpoint": HOSTILE}
    path = write_run(tmp_path / "runs", lines, str(phantom_shards), **named)
    evaluate(path, ["full-text"])
    (path.parent / PICTURES).mkdir()
    Image.new("RGB", (40, 30), "red").save(path.parent / PICTURES / f"{studies[0].key}.png")
    page = write_cases(path, out=tmp_path / "elsewhere")
    assert "holds all records" in track_pictures(path, [page.path], page.credentialed)
    client, saved = MlflowClient(tracking_uri(saved_run(tmp_path / "runs" / "drawn"))), "predictions/test/how"
    (run,) = client.search_runs([client.get_experiment_by_name("r2kg").experiment_id])
    assert [Path(one.path).name for one in client.list_artifacts(run.info.run_id, saved)] == ["cases.html"]
    assert not page.notes and page.path.stat().st_size < 3_000_000

    browser.get(page.path.as_uri())
    assert browser.title == "Cases of drawn"
    cards = browser.find_elements(By.CSS_SELECTOR, ".study")
    films = browser.find_elements(By.CSS_SELECTOR, ".films img")
    assert len(cards) == len(lines) and len(films) == sum(len(study.views) for study in studies)
    assert browser.execute_script("return document.querySelector('.films img').naturalWidth") == 320
    assert browser.find_elements(By.CSS_SELECTOR, ".scores td")
    pictures = "return [...document.querySelectorAll('.attention')].map(one => one.src.slice(0, 15))"
    assert browser.execute_script(pictures) == ["data:image/png;"]

    def visible(what: str) -> list[str]:
        script = f"return [...document.querySelectorAll('.study:not([hidden])')].map(one => one.dataset.{what})"
        return browser.execute_script(script)

    scores = [float(value) for value in visible("findingF1")]
    assert scores == sorted(scores) and scores[0] < scores[-1]
    browser.find_element(By.ID, "direction").click()
    assert [float(value) for value in visible("findingF1")] == sorted(scores, reverse=True)
    Select(browser.find_element(By.ID, "sort")).select_by_value("invented")
    invented = [len(json.loads(names)["invented"]) for names in visible("names")]
    assert invented == sorted(invented, reverse=True) and invented[0] > 0
    Select(browser.find_element(By.ID, "finding")).select_by_value("nodule")
    Select(browser.find_element(By.ID, "outcome")).select_by_value("invented")
    left = visible("names")
    assert 0 < len(left) < len(lines) and all("nodule" in json.loads(names)["invented"] for names in left)
    assert browser.find_element(By.ID, "count").text == f"{len(left)} of {len(lines)} studies"
    for control in ("finding", "outcome"):
        Select(browser.find_element(By.ID, control)).select_by_value("")
    browser.find_element(By.TAG_NAME, "body").send_keys("/")
    browser.switch_to.active_element.send_keys("ONERROR=", Keys.TAB)
    [card] = [card for card in cards if card.is_displayed()]
    card.find_element(By.TAG_NAME, "summary").send_keys(Keys.ENTER)
    assert card.get_attribute("open")
    card.find_element(By.CSS_SELECTOR, ".evidence summary").click()
    told = card.find_elements(By.CSS_SELECTOR, ".text")[1].text
    assert "</script><script>" in told and "⟨U+202E⟩kcab" in told and "{{ 7*7 }}" in told
    assert HOSTILE_ID.replace("\u202e", "⟨U+202E⟩") in card.text and "more characters" in card.text
    assert browser.title == "Cases of drawn" and len(browser.find_elements(By.TAG_NAME, "script")) == 1
    browser.set_window_size(500, 900)
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"}
    assert {url for url in asked if not url.startswith(("data:", "chrome:"))} == {page.path.as_uri()}
    assert browser.get_log("browser") == []
