"""The rule labeler: what reports say, the phantom's truth, human codes of real reports, and scores of findings."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from r2kg.config.protocol import FINDING_METRICS, PROTOCOLS, parse_choice
from r2kg.scoring.evaluate import evaluate
from r2kg.scoring.metrics.rule_labeler import (
    LABELER,
    NOT_MENTIONED,
    finding_counts,
    label_report,
    label_reports,
    score_findings,
    scores_of,
)
from r2kg.scoring.metrics.table import scores_table
from shards.sources.phantom.anatomy import sample_findings, study_rng
from shards.sources.phantom.report import labels_of, write_report
from shards.study import FINDINGS

CODES = {
    "Atelectasis": ("Pulmonary Atelectasis",),
    "Cardiomegaly": ("Cardiomegaly", "Cardiac Shadow/enlarged"),
    "Pleural Effusion": ("Pleural Effusion", "Hydropneumothorax"),
    "Consolidation": ("Consolidation",),
    "Pneumothorax": ("Pneumothorax", "Hydropneumothorax"),
    "Edema": ("Pulmonary Edema",),
    "Pneumonia": ("Pneumonia",),
}
"""Observation → how the MeSH codes begin that the indexers of IU X-Ray gave such a report."""
SAYS = [
    ("The heart size is mildly enlarged.", {"Cardiomegaly": 1}),
    ("Mild enlargement of the cardiac silhouette.", {"Cardiomegaly": 1}),
    ("Borderline heart size.", {"Cardiomegaly": 1}),
    ("The heart is at the upper limits of normal in size.", {"Cardiomegaly": 0}),
    ("The heart is not significantly enlarged.", {"Cardiomegaly": 0}),
    ("Heart size is normal, the aorta is enlarged.", {"Cardiomegaly": 0}),
    ("Stable heart size, moderately enlarged and tortuous aorta.", {"Cardiomegaly": None}),
    ("Stable cardiac silhouette.", {"Cardiomegaly": None}),
    ("Heart and mediastinum are normal.", {"Cardiomegaly": 0, "Enlarged Cardiomediastinum": 0}),
    ("The cardiomediastinal silhouette is enlarged.", {"Cardiomegaly": 1, "Enlarged Cardiomediastinum": 1}),
    ("The mediastinum is widened.", {"Enlarged Cardiomediastinum": 1, "Cardiomegaly": None}),
    ("No focal consolidation, large effusion/pneumothorax.", {"Consolidation": 0, "Pneumothorax": 0}),
    ("Lungs are clear of consolidation.", {"Consolidation": 0}),
    ("No cardiomegaly with small effusions.", {"Cardiomegaly": 0, "Pleural Effusion": 1}),
    ("No change in the left effusion.", {"Pleural Effusion": 1}),
    ("The effusion has resolved.", {"Pleural Effusion": 0}),
    ("Essentially resolved edema.", {"Edema": 0}),
    ("Blunting may be due to a small effusion or scarring.", {"Pleural Effusion": -1}),
    ("Pneumonia cannot be excluded.", {"Pneumonia": -1}),
    ("Opacity likely represents pneumonia.", {"Pneumonia": 1, "Lung Opacity": 1}),
    ("Pneumonia is likely.", {"Pneumonia": 1}),
    ("Pneumonia is less likely.", {"Pneumonia": -1}),
    ("Atelectasis versus scar at the left base.", {"Atelectasis": -1, "Lung Opacity": -1}),
    ("Correlate clinically for pneumonia.", {"Pneumonia": -1}),
    ("Evaluation for pneumothorax is limited.", {"Pneumothorax": None}),
    ("Linear atelectasis. No airspace disease.", {"Atelectasis": 1, "Lung Opacity": 1}),
    ("Moderate hydropneumothorax.", {"Pneumothorax": 1, "Pleural Effusion": 1}),
    ("Small pericardial effusion.", {"Pleural Effusion": None}),
    ("Blunted costophrenic angle.", {"Pleural Effusion": None}),
    ("Interval removal of the chest tube.", {"Support Devices": 0}),
    ("A calcified granuloma.", {"Lung Lesion": None, "No Finding": 0}),
    ("Right-sided PICC line. Lungs are clear.", {"Support Devices": 1, "No Finding": 1}),
    ("Possible nodule.", {"Lung Lesion": -1, "No Finding": 0}),
    ("Indication: pneumonia, effusion\n\nFindings: normal chest", {"Pneumonia": None, "No Finding": 1}),
    ("HISTORY: fever. pneumothorax? FINDINGS: Small effusion.", {"Pneumothorax": None, "Pleural Effusion": 1}),
    (
        "Comparison: effusion on CT. The heart is enlarged. Impression: none",
        {"Cardiomegaly": 1, "Pleural Effusion": None},
    ),
    ("History:\nCough. Pneumonia?\n\nSmall effusion.\n\nImpression: none", {"Pneumonia": None, "Pleural Effusion": 1}),
    ("No effusion. Small effusion on the lateral view.", {"Pleural Effusion": 1}),
    ("No effusion. There may be an effusion.", {"Pleural Effusion": -1}),
]


SHORT = {
    **{
        "devices": "Support Devices",
        "effusion": "Pleural Effusion",
        "pleura": "Pleural Other",
        "heart": "Cardiomegaly",
    },
    **{"finding": "No Finding", "mediastinum": "Enlarged Cardiomediastinum", "opacity": "Lung Opacity"},
    **{"lesion": "Lung Lesion"},
}
"""How the tables below name an observation where it is not its own name in lower case."""
OF_WARDS = """
Interval removal of right chest tube with a small right apical pneumothorax. | devices 0, pneumothorax 1
Interval improvement with partial clearing of the right lower lobe consolidation. | consolidation 1
Bibasilar opacities, likely atelectasis, less likely pneumonia. | atelectasis 1, pneumonia -1
There is bibasilar atelectasis, with pneumonia less likely. | atelectasis 1, pneumonia -1
Heart size upper normal to mildly enlarged. | heart 1
Pleural effusion: absent. | effusion 0
Difficult to exclude pneumonia. | pneumonia -1
?pneumonia | pneumonia -1
No pneumothorax, increasing right pleural effusion. | pneumothorax 0, effusion 1
No pneumothorax, new right lower lobe consolidation. | pneumothorax 0, consolidation 1
No consolidation and cardiomegaly is present. | consolidation 0, heart 1
No evidence of pneumonia with cardiomegaly. | pneumonia 0, heart 1
Heart: enlarged, effusion: none. | heart 1, effusion 0
No new, worsening consolidation. | consolidation 0
No focal consolidation, pleural effusion, pneumothorax is seen. | consolidation 0, effusion 0, pneumothorax 0
No pneumothorax, catheters, or drains. | pneumothorax 0, devices 0
The effusion has not resolved. | effusion 1
Pulmonary vascular congestion without edema. | edema 0, finding 0
Blunting of the left costophrenic angle. | effusion None, pleura None, finding 0
ET tube ends 4 cm above the carina; moderate bilateral pleural effusions are larger. | devices 1, effusion 1
Following extubation, lung volumes are lower and bibasilar atelectasis has increased. | atelectasis 1
Mild pulmonary edema has nearly cleared. | edema 1
There is no pneumothorax with unchanged small left effusion. | pneumothorax 0, effusion 1
No evidence of pneumonia, worsening left basilar atelectasis. | pneumonia 0, atelectasis 1
No focal consolidation with minimal bibasilar atelectasis. | consolidation 0, atelectasis 1
Heart size is normal to borderline enlarged. | heart 1
Cardiac silhouette is top normal to slightly enlarged. | heart 1
Retrocardiac opacity is likely atelectasis but pneumonia cannot be ruled out. | atelectasis 1, pneumonia -1
Left basal opacity, more likely atelectasis than pneumonia. | atelectasis 1, pneumonia -1
Pleural effusion: None. Pneumothorax: None. Heart: Enlarged. | effusion 0, pneumothorax 0, heart 1
Consolidation: absent. Edema: mild. | consolidation 0, edema 1
Pneumothorax - no. Effusion - small left. | pneumothorax 0, effusion 1
Edema: Not present. | edema 0
Question developing pneumonia at the right base. | pneumonia -1
Hard to exclude a small left pneumothorax. | pneumothorax -1
Right pneumothorax? Repeat film advised. | pneumothorax -1
There is almost complete resolution of the left lower lobe pneumonia. | pneumonia 1
The right effusion has almost completely resolved. | effusion 1
Substantial clearing of pulmonary edema since yesterday. | edema 1
The previously noted right pneumothorax has completely resolved. | pneumothorax 0
Complete resolution of edema. | edema 0
After removal of the left chest tube there is a tiny apical pneumothorax. | pneumothorax 1
Right chest tube removed, no pneumothorax. | pneumothorax 0
The interstitium is prominent bilaterally. | opacity 1
Interstitial markings remain diffusely increased. | opacity 1
There is increase in interstitial markings. | opacity 1
Pulmonary vascular congestion is unchanged. | finding 0
No pneumothorax, increased left effusion with compressive atelectasis. | pneumothorax 0, effusion 1, atelectasis 1
No pneumothorax. Multiple new rib fractures. | pneumothorax 0, fracture 1
No effusion and the heart is enlarged. | effusion 0, heart 1
No edema and left lower lobe collapse is unchanged. | edema 0, atelectasis 1
No edema, pneumonia, or pneumothorax. | edema 0, pneumonia 0, pneumothorax 0
No increased pleural effusion or new consolidation. | consolidation 0
No new or worsening consolidation. | consolidation 0
Without evidence of pneumothorax, trace right effusion. | pneumothorax 0, effusion 1
Widened mediastinum, cannot exclude hematoma. | mediastinum 1
No large effusion, but a trace effusion is likely. | effusion 1
Low lung volumes exaggerate the heart size. | heart None
Small effusion, if any, on the left. | effusion -1
The lungs show no consolidation, cavitation or mass. | consolidation 0, lesion 0
Mild to moderate cardiomegaly with no edema. | heart 1, edema 0
Swan-Ganz catheter tip in the right pulmonary artery, no pneumothorax, new left lower lobe atelectasis. | \
devices 1, pneumothorax 0, atelectasis 1
Interval removal of the endotracheal tube with worsening edema. | edema 1
Incomplete clearing of right upper lobe pneumonia. | pneumonia 1
Bilateral effusions have partly resolved. | effusion 1
Near total resolution of left pneumothorax. | pneumothorax 1
The left lower lobe consolidation has incompletely resolved. | consolidation 1
The edema is resolved. | edema 0
Interval resolution of the left effusion with persistent basilar atelectasis. | effusion 0, atelectasis 1
Resolution of pneumonia. No new consolidation. | pneumonia 0, consolidation 0
Opacity at the right base, likely aspiration, less likely pneumonia. | opacity 1, pneumonia -1
Pneumonia is considered less likely than atelectasis. | pneumonia -1
Left base opacity likely a combination of effusion and atelectasis. | effusion 1, atelectasis 1
Cardiac size is normal to slightly enlarged. | heart 1
Heart size is borderline to mildly enlarged. | heart 1
The cardiac silhouette is at the upper limits of normal to mildly enlarged. | heart 1
Heart size is within normal limits. Aorta is enlarged. | heart 0
The heart is normal without enlargement. | heart 0
Pneumothorax: Absent. Pleural effusion: Small, left. | pneumothorax 0, effusion 1
Cardiomegaly: none. Edema: none. | heart 0, edema 0
Consolidation: No. Effusion: Yes. | consolidation 0, effusion 1
Lines and tubes: None. Pleura: No effusion. | effusion 0
Fracture: negative. | fracture 0
Pneumothorax: not seen. | pneumothorax 0
Effusion? | effusion -1
Consolidation at the left base: atelectasis? pneumonia? | atelectasis -1, pneumonia -1
Difficult to rule out small effusions. | effusion -1
Mild interstitial edema versus atypical infection. | edema -1, pneumonia -1
Diffuse increase in interstitial markings suggests edema. | edema -1, opacity 1
Interstitial lung markings are coarse and increased. | opacity 1
No pneumothorax, worsened bibasilar opacities. | pneumothorax 0, opacity 1
No consolidation, enlarging right effusion. | consolidation 0, effusion 1
No pneumothorax, layering bilateral effusions. | pneumothorax 0, effusion 1
No effusion, improved edema. | effusion 0, edema 1
No pneumothorax, large effusion, or consolidation. | pneumothorax 0, effusion 0, consolidation 0
No focal consolidation with small bilateral pleural effusions. | consolidation 0, effusion 1
No acute fracture with chronic rib deformities. | fracture 0
No pulmonary edema and there are small effusions. | edema 0, effusion 1
No pneumonia, and cardiomegaly is stable. | pneumonia 0, heart 1
There is no consolidation and no effusion. | consolidation 0, effusion 0
Central line terminates in the SVC without pneumothorax. | devices 1, pneumothorax 0
Right PICC has been withdrawn and left effusion is bigger. | effusion 1
There may be a trace left effusion. | effusion -1
In comparison with the study of earlier today, the left pneumothorax has decreased. | pneumothorax 1
The tip of the endotracheal tube lies 3 cm above the carina. | devices 1
Interval extubation and removal of the nasogastric tube. | devices 0
Left chest tube remains in place and there is no evidence of pneumothorax. | devices 1, pneumothorax 0
Opacification at the bases is consistent with effusions and compressive atelectasis. | effusion 1, atelectasis 1
In the appropriate clinical setting, superimposed pneumonia would have to be considered. | pneumonia -1
The cardiac silhouette remains at the upper limits of normal without vascular congestion, pleural effusion, or \
pneumonia. | heart 0, effusion 0, pneumonia 0
No acute focal pneumonia. Elevated pulmonary venous pressure is improving. | pneumonia 0
The effusions have essentially cleared. | effusion 0
Right-sided effusion is now small; the left has resolved. | effusion 1
Pneumothorax is smaller but has not resolved. | pneumothorax 1
Heart size: upper normal. Mediastinum: normal. Lungs: no consolidation. | heart 0, mediastinum 0, consolidation 0
Pleural spaces: small left effusion, no pneumothorax. | effusion 1, pneumothorax 0
Bones: no fracture. | fracture 0
Devices: Right IJ catheter, unchanged. | devices 1
Lungs: Bibasilar atelectasis. No consolidation. | atelectasis 1, consolidation 0
Effusion (right): none. Effusion (left): moderate. | effusion 1
Consolidation: Possible, right base. | consolidation -1
Pulmonary edema: Mild to moderate, slightly improved. | edema 1
Pneumothorax: Cannot be excluded. | pneumothorax -1
Pleural effusion: Unlikely. | effusion 0
No convincing evidence of pneumothorax, although the apices are obscured. | pneumothorax 0
~ No definite effusion, though a small one cannot be excluded. | effusion -1
Increasing left lower lobe opacity may be atelectasis, pneumonia or aspiration. | opacity 1, atelectasis -1, \
pneumonia -1
Left retrocardiac consolidation with air bronchograms is concerning for pneumonia. | consolidation 1, pneumonia -1
Mild cardiomegaly without frank pulmonary edema. | heart 1, edema 0
Stable cardiomegaly, no overt edema. | heart 1, edema 0
No pneumothorax, pleural effusion, edema, or consolidation; cardiomegaly is unchanged. | pneumothorax 0, \
effusion 0, edema 0, consolidation 0, heart 1
There has been interval development of a right-sided effusion. | effusion 1
Interval placement of a left pigtail catheter with decrease in effusion. | devices 1, effusion 1
The heart is not only enlarged but globular. | heart 1
The heart is moderately enlarged, not significantly changed. | heart 1
No radiopaque foreign body. Sternal wires intact. | devices 1
Old left clavicular fracture, no acute fracture. | fracture 1
There is no longer any pleural effusion. | effusion 0
Previous right pneumothorax is not seen on today's film. | pneumothorax 0
Neither effusion nor pneumothorax is seen, but the lungs show patchy consolidation. | effusion 0, pneumothorax \
0, consolidation 1
What appears to be a skin fold mimics a pneumothorax. | pneumothorax 0
Lingular collapse is suspected. | atelectasis -1
Mediastinal widening is unchanged and may reflect tortuous vessels. | mediastinum 1
"""
"""Sentences such as films of wards and structured reports have, and what a reader takes from them. Rules were mended by
these; those that begin with a tilde are still read otherwise."""
HELD_OUT = """
Lines/tubes: NG tube in the stomach. Pleura: bilateral effusions, larger on the right. | devices 1, effusion 1
Cardiomediastinal silhouette: Enlarged. | heart 1, mediastinum 1
Lungs: Clear. Pleura: No effusion or pneumothorax. Heart: Normal size. | effusion 0, pneumothorax 0, heart 0
Pneumothorax: No; effusion: small. | pneumothorax 0, effusion 1
Acute fracture: None identified. | fracture 0
Edema: None. Atelectasis: Bibasilar. | edema 0, atelectasis 1
Consolidation: None; atelectasis: mild. | consolidation 0, atelectasis 1
Pneumonia is possible, particularly in the right lower lobe. | pneumonia -1
This could represent atelectasis, though early pneumonia is hard to exclude. | atelectasis -1, pneumonia -1
~ Bibasilar opacities, atelectasis favored over pneumonia. | atelectasis -1
Small layering effusions with adjacent atelectasis, underlying pneumonia not excluded. | effusion 1, \
atelectasis 1, pneumonia -1
Left pneumothorax has almost resolved after chest tube placement. | pneumothorax 1, devices 1
The lungs have cleared and the effusions are gone. | effusion 0
~ Marked clearing of both lungs with resolved edema. | edema 0
Edema has not completely resolved. | edema 1
Effusions have resolved, heart remains enlarged. | effusion 0, heart 1
Removal of the Swan-Ganz catheter, right IJ sheath remains. | devices 1
The left chest tube has been removed with no pneumothorax. | devices 0, pneumothorax 0
Chest tube has been pulled and a small pneumothorax is now present. | pneumothorax 1
Left subclavian line placed, no pneumothorax seen. | devices 1, pneumothorax 0
No pneumothorax, new PICC in good position. | pneumothorax 0, devices 1
No change in the bibasilar atelectasis or effusions. | atelectasis 1, effusion 1
~ No effusion, consolidation, or edema with heart size at the upper limit of normal. | effusion 0, \
consolidation 0, edema 0, heart 0
No evidence of acute pneumonia; chronic interstitial markings are increased. | pneumonia 0, opacity 1
The mediastinum appears slightly wide. | mediastinum 1
The heart is mildly enlarged but there is no edema or effusion. | heart 1, edema 0, effusion 0
No cardiomegaly, edema, or effusion. | heart 0, edema 0, effusion 0
~ Possible small left effusion, atelectasis at the right base. | effusion -1, atelectasis 1
Is the nodule new? | lesion -1
Multifocal consolidations have worsened, most consistent with pneumonia. | consolidation 1, pneumonia 1
Fractures of the left fifth and sixth ribs, no pneumothorax. | fracture 1, pneumothorax 0
There is continued opacification of the left hemithorax. | opacity 1
"""
"""Written before the mended rules had read them: 27 of 32 were right at first (18 by the rules before)."""


@pytest.mark.parametrize(("text", "wanted"), SAYS, ids=[text[:40] for text, _ in SAYS])
def test_what_a_sentence_says(text, wanted):
    found = label_report(text)
    assert {name: found[name] for name in wanted} == wanted
    written = label_report(text.lower().replace(".", " ."))
    assert "\n" in text or {name: written[name] for name in wanted} == wanted, "as reports are cleaned"


@pytest.mark.parametrize("line", [*OF_WARDS.strip().split("\n"), *HELD_OUT.strip().split("\n")])
def test_sentences_of_wards_and_structured_reports(line):
    text, _, labels = line.removeprefix("~ ").partition(" | ")
    wanted = {}
    for label in labels.split(", "):
        name, value = label.split()
        wanted[SHORT.get(name, name.capitalize())] = None if value == "None" else int(value)
    found = label_report(text)
    right = {name: found[name] for name in wanted} == wanted
    assert right != line.startswith("~ "), f"{found}; a line that is read well now loses its tilde"


@pytest.mark.parametrize("text", ["", " .\n", "xxxx the the", "History: cough."])
def test_a_text_that_says_nothing_has_no_labels(text):
    assert set(label_report(text).values()) == {None}
    assert (label_reports([text]) == NOT_MENTIONED).all()


def test_phantom_reports_say_what_is_drawn():
    texts, truth = [], []
    for index in range(400):
        rng = study_rng(14, index)
        findings = sample_findings(rng)
        texts.append(write_report(findings, rng))
        labels = labels_of(findings)
        truth.append([labels[name] == 1 for name in FINDINGS])
    said, wanted = label_reports(texts) == 1, np.array(truth)
    assert wanted.sum() > 600
    assert 2 * (said & wanted).sum() / (said.sum() + wanted.sum()) >= 0.99


@pytest.mark.skipif("R2KG_REAL_DATA" not in os.environ, reason="R2KG_REAL_DATA is not set: no real reports")
def test_real_reports_are_read_as_their_indexers_read_them():
    """Not one by one: indexers code doubtful findings now and then, and miss some."""
    studies = json.loads((Path(os.environ["R2KG_REAL_DATA"]) / "iu_xray" / "annotation_all.json").read_text())
    studies = [study for split in ("train", "val", "test") for study in studies[split]]
    labels = label_reports([f"{study['findings']}\n\n{study['impression']}" for study in studies])
    both, sides = 0, 0
    for name, codes in CODES.items():
        wanted = np.array([any(code.strip().startswith(codes) for code in study["mesh"]) for study in studies])
        said = labels[:, FINDINGS.index(name)] == 1
        both, sides = both + (said & wanted).sum(), sides + said.sum() + wanted.sum()
    assert sides > 600
    assert 2 * both / sides >= 0.94


def test_scores_of_findings_by_hand():
    references = ["Cardiomegaly. Small effusion.", "Lungs are clear.", "Displaced rib fracture."]
    hypotheses = ["Cardiomegaly. No effusion.", "Small effusion.", "Possible rib fracture."]
    counts = finding_counts(references, hypotheses)
    assert counts.shape == (3, 14, 3)
    assert counts[0, FINDINGS.index("Cardiomegaly")].tolist() == [1, 1, 1]
    assert counts[0, FINDINGS.index("Pleural Effusion")].tolist() == [0, 0, 1]
    assert counts[2, FINDINGS.index("Fracture")].tolist() == [0, 0, 1], "uncertain is absent"
    scores = score_findings(references, hypotheses)
    assert tuple(scores) == FINDING_METRICS
    assert scores["finding_precision"] == pytest.approx(1 / 2)
    assert scores["finding_recall"] == pytest.approx(1 / 4)
    assert scores["finding_f1"] == pytest.approx(2 / 6)
    assert scores["finding_f1_5"] == pytest.approx(2 / 4)
    assert scores["finding_f1_macro"] == pytest.approx(1 / 4), "of heart, effusion, fracture and No Finding"
    assert scores_of(counts.sum(0)) == scores
    assert set(score_findings([""], [""]).values()) == {0}
    with pytest.raises(ValueError, match="in pairs"):
        finding_counts(references, hypotheses[:2])


def test_scores_json_names_the_labeler_and_has_findings_of_all_three(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")  # no Java: METEOR has its own test
    texts = ["the heart is enlarged . no effusion .", "small effusion . the heart is normal ."]
    for name, said in (("predictions", texts), ("shuffled", texts[::-1])):
        lines = [
            {"id": str(n), "prediction": said[n], "reference": texts[n], "reference_raw": texts[n]} for n in (0, 1)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    floor = dict.fromkeys(PROTOCOLS, "the lungs are clear .")
    (tmp_path / "context.json").write_text(json.dumps({"floor": floor, "cleaning": "raw"}))
    scores = evaluate(tmp_path / "predictions.jsonl", ["full-text"])
    assert scores["labeler"] == LABELER
    result = scores["protocols"]["full-text"]
    assert [result[system]["finding_f1"] for system in ("score", "floor", "shuffled")] == [1, 0, 0]
    metrics = [*scores_table(scores).columns[1].cells]
    assert metrics[-5:] == list(FINDING_METRICS)
    of_old = json.loads((tmp_path / "scores.json").read_text()) | {"labeler": "rule-labeler 0"}
    of_old["protocols"]["r2gen-2020"] = result
    (tmp_path / "scores.json").write_text(json.dumps(of_old))
    assert list(evaluate(tmp_path / "predictions.jsonl", ["full-text"])["protocols"]) == ["full-text"]


def test_checkpoints_can_be_chosen_by_findings():
    assert parse_choice("0.5*finding-F1+0.5*BLEU-4", "report") == {"finding_f1": 0.5, "bleu4": 0.5}


def test_hostile_texts_take_no_longer_than_long_ones():
    started = time.monotonic()
    for text in ("no , " * 20_000, "heart " * 16_000, "\n " * 50_000, "may be effusion and " * 5_000, "a-/" * 30_000):
        label_report(text)
    label_report("history: " * 11_000)
    assert time.monotonic() - started < 10
