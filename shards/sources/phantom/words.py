"""The words of phantom reports: what is said of an organ in health, of every finding, and between two films.

Lists of phrasings go from the common one to the rare (`shards.sources.phantom.report.pick`). `{side}` and `{zone}` are
the finding's, `{what}` its adjectives and term with the article, `{bare}` the same without, `{place}` where it is,
`{why}` what it suggests; a capital letter begins a sentence.
"""

from typing import NamedTuple


class Normal(NamedTuple):
    """What is said of an organ without findings, which labels that denies, and which are denied beside findings."""

    phrasings: tuple[str, ...]
    denies: tuple[str, ...]
    absent: dict[str, str]
    """Label → how it is called when an organ has other findings and not this one."""


class Words(NamedTuple):
    """How a finding is named. Bilateral findings use `both` as their place."""

    term: str
    degrees: tuple[str, str, str, str]
    """Adjective per grade; grade 0 is only ever used in an uncertain sentence."""
    place: str = ""
    """Preposition, article and anatomy: "at the | left base". What follows the bar is the tail of `located_at`."""
    article: str = ""
    modifier: str = ""
    """A second adjective, the same at every grade."""
    both: str = ""
    signs: tuple[str, ...] = ()
    """What else the film shows wherever the finding is drawn; some reports say one of them."""


SIZES, DEGREES = ("subtle", "small", "moderate", "large"), ("subtle", "mild", "moderate", "severe")
NORMAL: dict[str, Normal] = {
    "heart": Normal(
        (
            "Normal heart size.",
            "The heart is not enlarged.",
            "Unremarkable cardiac silhouette.",
            "Heart size is within normal limits.",
            "The cardiac contour is smooth and of expected width.",
            "Cardiothoracic ratio lies below one half.",
        ),
        ("Cardiomegaly",),
        {},
    ),
    "mediastinum": Normal(
        (
            "Normal mediastinum.",
            "Mediastinal contours are unremarkable.",
            "The mediastinum is not widened.",
            "Mediastinal and hilar structures have a regular appearance.",
            "The trachea is midline and the aortic knob sharply outlined.",
        ),
        ("Enlarged Cardiomediastinum",),
        {"Enlarged Cardiomediastinum": "widening of the upper mediastinum"},
    ),
    "lungs": Normal(
        (
            "Lungs are clear.",
            "Both lungs appear clear.",
            "No opacity in either lung.",
            "The lungs are well aerated and free of airspace disease.",
            "Pulmonary parenchyma shows neither infiltrate nor opacity.",
            "Lung volumes are adequate without acute abnormality.",
        ),
        ("Lung Opacity",),
        {"Consolidation": "consolidation"},
    ),
    "pleura": Normal(
        (
            "No pleural effusion or pneumothorax.",
            "Neither pneumothorax nor pleural effusion.",
            "Pleural effusion and pneumothorax are absent.",
            "There is no evidence of pneumothorax or pleural effusion.",
            "Costophrenic angles are sharp, without pleural effusion or pneumothorax.",
            "The pleural spaces are dry and negative for pneumothorax.",
        ),
        ("Pleural Effusion", "Pneumothorax"),
        {"Pleural Effusion": "pleural effusion", "Pneumothorax": "pneumothorax"},
    ),
    "bones": Normal(
        (
            "No rib fracture.",
            "Bones are intact without fracture.",
            "Osseous structures show no fracture.",
            "The visualized skeleton is grossly unremarkable, fracture is not seen.",
            "Ribs, clavicles and vertebral bodies preserve their cortical margins.",
        ),
        ("Fracture",),
        {"Fracture": "rib fracture"},
    ),
}
"""Organs in the order of a report."""
WORDS: dict[str, Words] = {
    "Cardiomegaly": Words(
        "cardiomegaly",
        ("borderline", "mild", "moderate", "severe"),
        signs=(
            "The left cardiac border is rounded.",
            "The cardiothoracic ratio exceeds one half.",
            "The transverse diameter of the heart has grown beyond its expected range.",
        ),
    ),
    "Enlarged Cardiomediastinum": Words(
        "widening",
        DEGREES,
        "of the |upper mediastinum",
        signs=("The paratracheal stripe is thickened.", "Vascular pedicle appears broad on this projection."),
    ),
    "Hiatal Hernia": Words(
        "hiatal hernia",
        SIZES,
        "behind the |heart",
        "a",
        signs=("It contains an air-fluid level.", "A retrocardiac sac with gas is outlined."),
    ),
    "Hyperinflation": Words(
        "hyperinflation",
        DEGREES,
        "of |both lungs",
        signs=(
            "The diaphragms are flattened.",
            "Increased lucency and wide intercostal spaces accompany it.",
            "The retrosternal airspace is enlarged.",
        ),
    ),
    "Edema": Words(
        "pulmonary edema",
        DEGREES,
        "throughout |both lungs",
        signs=(
            "Perihilar haze is present.",
            "Vascular markings are indistinct and cephalized.",
            "Interstitial prominence extends from the hila.",
        ),
    ),
    "Consolidation": Words(
        "consolidation",
        SIZES,
        "in the |{side} {zone} zone",
        "a",
        signs=("Its margins are ill-defined.", "The patchy density obscures underlying vessels."),
    ),
    "Atelectasis": Words(
        "atelectasis",
        DEGREES,
        "at the |{side} base",
        modifier="linear",
        signs=("Bands run parallel above the diaphragm.", "This subsegmental volume loss is platelike."),
    ),
    "Lung Lesion": Words(
        "nodule",
        SIZES,
        "in the |{side} {zone} zone",
        "a",
        signs=("It is round and well circumscribed.", "Follow-up with computed tomography is recommended."),
    ),
    "Granuloma": Words(
        "granuloma",
        ("", "", "", ""),
        "in the |{side} {zone} zone",
        "a",
        modifier="calcified",
        signs=("This is a benign sequela requiring no further evaluation.", "Its density equals that of bone."),
    ),
    "Pleural Effusion": Words(
        "pleural effusion",
        SIZES,
        "at the |{side} base",
        "a",
        both="at |both bases",
        signs=(
            "The costophrenic angle is blunted.",
            "Fluid climbs laterally as a meniscus.",
            "Part of the hemidiaphragm is obscured.",
        ),
    ),
    "Pneumothorax": Words(
        "pneumothorax",
        SIZES,
        "at the |{side} apex",
        "a",
        signs=(
            "A visceral line is visible without mediastinal shift.",
            "No signs of tension.",
            "Peripheral markings are lacking beyond the collapsed margin.",
        ),
    ),
    "Elevated Hemidiaphragm": Words(
        "elevation",
        DEGREES,
        "of the |{side} hemidiaphragm",
        signs=("Eventration or phrenic palsy could explain it.", "The opposite dome keeps its usual level."),
    ),
    "Fracture": Words(
        "fracture",
        ("", "", "", ""),
        "of a |{side} {zone} rib",
        "a",
        modifier="displaced",
        signs=("The ends are offset by several millimeters.", "Callus has not formed, in keeping with recent trauma."),
    ),
    "Scoliosis": Words(
        "scoliosis",
        DEGREES,
        "of the |thoracic spine",
        modifier="{side} convex",
        signs=(
            "Degenerative spurring cannot be assessed in detail.",
            "The curvature is centered at midthoracic level.",
        ),
    ),
    "Pacemaker": Words(
        "pacemaker",
        ("", "", "", ""),
        "in the |{side} chest wall",
        "a",
        signs=(
            "Its lead projects over the right ventricle.",
            "The generator and electrode are in satisfactory position.",
            "The wire is continuous, without kink or discontinuity.",
        ),
    ),
    "Central Line": Words(
        "central venous line",
        ("", "", "", ""),
        "from the |{side} neck",
        "a",
        signs=(
            "Its tip projects over the superior vena cava.",
            "The catheter terminates near the cavoatrial junction.",
            "The jugular approach shows no complication.",
        ),
    ),
}
CERTAIN = (
    "There is {what} {place}{why}.",
    "{What} {place} is seen{why}.",
    "The films show {what} {place}{why}.",
    "{What} {place} is readily appreciated{why}.",
    "Radiographs reveal {what} {place}{why}.",
    "Findings include {what} {place}{why}.",
    "{What} is identified {place}{why}.",
)
UNCERTAIN = (
    "There may be {what} {place}{why}.",
    "{What} {place} is possible{why}.",
    "Questionable {bare} {place}{why}.",
    "{What} {place} cannot be excluded{why}.",
    "Equivocal appearance of {what} {place}{why}.",
    "{What} {place} is suspected but difficult to confirm{why}.",
)
HEDGES = ("there may be", "is possible", "questionable", "cannot be excluded", "equivocal", "is suspected")
"""What tells an uncertain sentence, in lower case."""
DENIED = (
    ("No {a}.", "No {a} or {b}."),
    ("There is no {a}.", "There is no {a} or {b}."),
    ("{A} is absent.", "Neither {a} nor {b}."),
    ("No definite {a} is detected.", "No definite {a} and no {b} is detected."),
    ("The study is negative for {a}.", "The study is negative for {a} and {b}."),
    ("{A} has been ruled out.", "{A} and {b} have been ruled out."),
)
"""Of one absent finding, and of two."""
AGAIN = (
    "{What} {place} is unchanged from the prior study{why}.",
    "No change in the {bare} {place}{why}.",
    "{What} {place} has increased since the previous examination{why}.",
    "{What} {place} has decreased in the interval{why}.",
    "Compared with the earlier radiograph, {what} {place} is new{why}.",
    "Persistent {bare} {place}, similar to before{why}.",
)
"""Of a finding, where there is an earlier film, whose like no one can see in this one."""
GONE = (
    "The previously seen {a} has resolved.",
    "Interval resolution of {a}.",
    "{A} is no longer visible.",
    "{A} described earlier has cleared completely.",
)
"""Of an absent finding, in the same way."""
ANEW = (
    "No acute change otherwise.",
    "Remainder of the examination is stable.",
    "Otherwise similar to the comparison film obtained some months ago.",
    "Technique differs slightly from yesterday, allowing for rotation and inspiration.",
)
"""What closes some reports with an earlier film."""
