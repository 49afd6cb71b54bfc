"""Words of the rule labeler: which names of the lexicon are which observation, and what it needs beside the lexicon.

A name stands for all its spellings in `r2kg.graph.extract.lexicon`. Our own lists; facts of the trade only.
"""

from collections.abc import Sequence
from functools import cache
from itertools import product

from r2kg.graph.extract import context, lexicon
from r2kg.graph.extract.context import Category

NAMES = {
    "Cardiomegaly": "cardiomegaly",
    "Lung Lesion": "nodule; micronodule; mass; cavity; malignancy; metastasis",
    "Lung Opacity": "opacity; airspace disease; infiltrate; haze; reticulation; interstitial lung disease",
    "Edema": "pulmonary edema",
    "Consolidation": "consolidation",
    "Pneumonia": "pneumonia; infection",
    "Atelectasis": "atelectasis; collapse",
    "Pneumothorax": "pneumothorax",
    "Pleural Effusion": "pleural effusion; hemothorax; empyema",
    "Pleural Other": "pleural thickening; pleural plaque; pleural scarring",
    "Fracture": "fracture",
    "Support Devices": (
        "pacemaker; icd; lead; generator; electrode; wire; pacing wire; central venous line; picc line; jugular line; "
        "subclavian catheter; dialysis catheter; catheter; port; swan-ganz catheter; sheath; balloon pump; "
        "endotracheal tube; tracheostomy tube; nasogastric tube; chest tube; drain; tube; stent; filter; screw; plate; "
        "rod; hardware; prosthesis; valve prosthesis; monitor lead; device; vascular graft"
    ),
}
"""Observation → names of the lexicon."""
MORE = {
    "Pneumothorax, Pleural Effusion": "hydropneumothorax; hydropneumothoraces; hemopneumothorax",
    "Pneumothorax": "pleural air; pleural air collection; pneumothoraces",
    "Pleural Effusion": "hemothoraces; empyemas",
    "Pleural Other": """
pleural calcification; pleural calcifications; apical cap; apical capping; pleural capping; fibrothorax;
pleural parenchymal scarring; pleuroparenchymal scarring; pleural fibrosis; pleural scar; pleural based scarring
""",
    "Atelectasis": "atelectatic changes; atelectatic opacity; atelectatic opacities; atelectatic density",
    "Lung Opacity": """
increased interstitial markings; prominent interstitial markings; coarse interstitial markings; interstitial prominence;
prominence of the interstitial markings; prominence of interstitial markings; interstitial thickening;
interstitial change; interstitial changes; reticular pattern; reticular markings; increased density; airspace process;
increase in interstitial markings; increase in the interstitial markings; increased interstitium;
interstitial abnormality; interstitial abnormalities; infiltrative process;
patchy density; patchy densities; streaky density; streaky densities; hazy density;
hazy densities; airspace density; airspace densities
""",
    "Lung Lesion": "tumor; nodular densities; nodular opacities; pulmonary lesion; lung lesion; parenchymal lesion",
    "Support Devices": """
port a cath; vp shunt; shunt catheter; stimulator; neurostimulator; loop recorder; lvad; cannula; impella
""",
    "": """
pericardial effusion; pericardial effusions; joint effusion; vertebral collapse; mass effect; skin fold;
breast prosthesis; breast prostheses; catheter fracture; granulomatous infection;
granulomatous infections; tuberculous infection; tuberculosis infection; old infection;
prior infection; previous infection; remote infection; fungal infection; sequela of infection;
nipple shadow; soft tissue edema; subcutaneous edema;
disease; volume loss
""",
}
"""Observations → further phrases that are them; "" hides the shorter phrases in its own."""
STRUCTURES = {
    "heart": ("Cardiomegaly",),
    "cardiomediastinal silhouette": ("Cardiomegaly", "Enlarged Cardiomediastinum"),
    "mediastinum": ("Enlarged Cardiomediastinum",),
    "lung": ("Lung Opacity",),
    "interstitial marking": ("Lung Opacity",),
    "interstitium": ("Lung Opacity",),
}
"""Name of an anatomy → what it has when it is said to be `BIG` (a lung never is), and denied when `HEALTHY`."""
FURTHER_STRUCTURES = {
    "heart": "cardiac silhouettes; cardiac silhouette size; cardiac and pericardial silhouette; cardiac shadows",
    "cardiomediastinal silhouette": """
cardiomediastinal; cardiomediastinal size; cardiac and mediastinal silhouette; cardiac and mediastinal silhouettes;
cardiac and mediastinal contours; cardiac mediastinal contours; heart and mediastinal contours
""",
    "mediastinum": "upper mediastinum; superior mediastinum; mediastinal contours; mediastinal silhouettes",
    "interstitial marking": "pulmonary interstitial markings; interstitial lung markings; interstitial pattern",
}
BIG = """
enlarged; enlargement; borderline; borderline enlarged; borderline large; prominent; prominence; large; big; generous;
increased in size; increase in size; increased size; increased; widened; widening; wide; dilated; globular; enlarging;
grown; broad; coarse; coarsened
"""
HEALTHY = """
normal; unremarkable; within normal limits; within normal; within limits; normal limits; upper limits of normal;
upper limit of normal; upper limits normal; upper limit normal; upper normal; top normal; top limits of normal;
high normal; borderline normal; normal size; normal in size; not enlarged; nonenlarged; non enlarged; regular; clear;
unenlarged; smooth
"""
"""What is at the upper limit of normal is normal; what is borderline, with no word on normal, is enlarged."""
UP_TO = frozenset(("to", "or", "only", "slightly", "mildly", "minimally", "mild", "slight", "moderately", "perhaps"))
"""Words between one of `HEALTHY` and one of `BIG` that make a range of the two: "normal to mildly enlarged"."""
CUES: dict[Category, str] = {
    "negated": """
no residual; clearance of; interval clearance of; resolution of previously seen; inconsistent with;
not consistent with; unlikely to represent; nonvisualization of; instead of; negative; mimics; mimicking; simulates;
simulating
""",
    "uncertain": """
may; might; could; possibility; query; suspect; potential; potentially; concern; evaluate; suspicious;
worrisome; favor; favors; favored; favoring; correlate for; correlate clinically for; clinical correlation for;
clinically correlate for; correlate with; correlate clinically; clinical correlation; correlation for; if clinical;
if clinically; if there; exclude; differential diagnosis; differential diagnostic; diagnostic considerations;
considerations include; considerations would include; alternatively; may be compatible with; may be consistent with;
in the appropriate clinical setting; less likely; less probably
""",
    "history": """
evaluation for; evaluation of; limits evaluation for; limits evaluation of; sensitivity for; symptoms of; signs or
symptoms of; assessment for; assessment of; detection of; screening for; treatment for; treated for; follow up of
""",
    "pseudo": "no significant interval; no interval; no new or enlarging; not well; may be accentuated; may accentuate",
    "end": """
with small; with bilateral; with mild; with moderate; with large; with left; with right; with minimal; with tiny;
likely due to; are due to; accentuated by; exaggerated by; following; after; status post
""",
}
BLAMED = tuple(
    f"{may} {cause}"
    for may in ("may be", "might be", "could be", "maybe", "possibly", "can be", "may also be", "could also be")
    for cause in ("due to", "secondary to", "related to", "because of", "from", "on the basis of")
)
"""Doubt of a cause; "due to" alone ends what came before."""
BACKWARD: dict[Category, str] = {
    "uncertain": """
suspected; questioned; difficult to exclude; difficult to entirely exclude; difficult to completely exclude;
would be a consideration; is a consideration; is another consideration; is also a consideration; is considered;
a consideration; cannot be entirely excluded; cannot be completely excluded; not entirely excluded;
is in the differential; hard to exclude; difficult to rule out; hard to rule out; if any; if present
""",
    "negated": """
is unlikely; are unlikely; unlikely; was drained; has been drained; removed; removal; none; nil; cleared
""",
    "history": "may not be demonstrated; may not be seen; may not be visible; is limited; are limited",
}
"""Cues beside those of `r2kg.graph.extract.context`."""
SURE = "likely; probable; probably; presumed; presumably"
"""Cues of doubt in `context` that are none here: what a reader thinks likely is what he reports."""
NOT_GONE: dict[tuple[str, ...], tuple[str, ...]] = {
    (
        *("partial", "incomplete", "near complete", "nearly complete", "almost complete", "near total", "near"),
        *("substantial", "significant", "marked", "some", "slight", "further", "continued", "ongoing", "gradual"),
    ): ("resolution of", "interval resolution of", "clearing of", "interval clearing of", "clearance of"),
    (
        *("partially", "partly", "incompletely", "nearly", "nearly completely", "near completely", "almost", "mostly"),
        *("almost completely", "almost entirely", "largely", "not", "not yet", "not completely", "not fully"),
        *("not entirely", "substantially", "significantly"),
    ): ("resolved", "cleared"),
}
"""How much of it → words of going: what has not gone altogether is there."""
CLOSING = ("no", "absent", "negative")
"""Words that deny what stands before them where nothing follows: "pneumothorax: no"."""
NEWS = frozenset(
    (
        *(
            "new",
            "increasing",
            "increased",
            "worsening",
            "worsened",
            "enlarging",
            "improving",
            "improved",
            "decreasing",
        ),
        *("decreased", "persisting", "residual", "trace", "tiny", "patchy", "hazy", "streaky", "layering", "multiple"),
        *("bibasilar", "bibasal", "basilar", "retrocardiac", "probable", "likely", "possible", "interval"),
    )
)
"""First words of what is no further member of a denied list, beside `FRESH` of `context`."""
OF_PATIENT = (
    *("indication", "indications", "history", "clinical history", "clinical information", "clinical indication"),
    *("reason for exam", "reason for examination", "reason for study", "clinical data"),
)
OF_FILM = ("comparison", "comparisons", "technique", "exam", "examination", "procedure", "views")
"""Headings of sections that tell of the patient, and of the film, and not of what is seen."""


def split(text: str) -> list[str]:
    """The phrases of a list with semicolons."""
    return [phrase for part in text.split(";") if (phrase := " ".join(part.split()))]


@cache
def terms() -> dict[str, tuple[str, Sequence[str]]]:
    """Phrase → (what it is, the observations it names).

    It is a finding, a structure's name of `STRUCTURES`, an anatomy, "big", "healthy", an other disorder (it speaks
    against No Finding), or nothing.
    """
    of_name = {name: (observation,) for observation, names in NAMES.items() for name in split(names)}
    known: dict[str, tuple[str, Sequence[str]]] = {}
    for phrase, (name, kind) in lexicon.spellings().items():
        if name in of_name:
            known[phrase] = "finding", of_name[name]
        elif kind == "anatomy":
            known[phrase] = (name, STRUCTURES[name]) if name in STRUCTURES else ("anatomy", ())
        elif kind == "disorder":
            known[phrase] = ("nothing" if name in ("abnormality", "complication", "enlargement") else "other"), ()
    for name, text in FURTHER_STRUCTURES.items():
        known |= dict.fromkeys(split(text), (name, STRUCTURES[name]))
    for observations, text in MORE.items():
        found = tuple(filter(None, observations.split(", ")))
        known |= dict.fromkeys(split(text), ("finding" if found else "nothing", found))
    known |= dict.fromkeys(split(BIG), ("big", ())) | dict.fromkeys(split(HEALTHY), ("healthy", ()))
    return known


@cache
def cues() -> dict[str, tuple[Category, bool]]:
    """Cue → (category, whether it works backwards), of `context` and of `CUES` and without `SURE`."""
    known = context.phrases()
    for phrase in [phrase for phrase in known if phrase.split()[-1] in split(SURE) and "less" not in phrase.split()]:
        del known[phrase]
    for category, text in CUES.items():
        known |= dict.fromkeys(split(text), (category, False))
    for category, text in BACKWARD.items():
        known |= dict.fromkeys(split(text), (category, True))
    for amounts, going in NOT_GONE.items():
        known |= dict.fromkeys(map(" ".join, product(amounts, going)), ("pseudo", False))
        known |= {f"interval {amount} {word}": ("pseudo", False) for amount, word in product(amounts, going)}
    return known | dict.fromkeys(BLAMED, ("uncertain", False))
