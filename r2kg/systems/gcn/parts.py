"""Parts of the GCN classifier's configuration: its graph, and CheXpert's names for the graph's findings."""

from r2kg.config.parts import Local, Part

NORMAL = "normal"
"""The node of a report that says none of the other findings."""
DEVICE = "device"
"""The lexicon's name for "medical device": a node that has it stands for whatever is of that kind."""
CHEXPERT: dict[str, tuple[str, ...]] = {
    "No Finding": (NORMAL,),
    "Cardiomegaly": ("cardiomegaly",),
    "Lung Lesion": ("nodule",),
    "Lung Opacity": ("opacity", "airspace disease", "consolidation", "pulmonary edema", "atelectasis", "nodule"),
    "Edema": ("pulmonary edema",),
    "Consolidation": ("consolidation",),
    "Pneumonia": ("pneumonia",),
    "Atelectasis": ("atelectasis",),
    "Pneumothorax": ("pneumothorax",),
    "Pleural Effusion": ("pleural effusion",),
    "Fracture": ("fracture",),
    "Support Devices": (DEVICE,),
}
"""CheXpert's finding → names, of which a node that stands for one stands for the finding. Lung Opacity is the parent of
the others in CheXpert's hierarchy. Consolidation and pneumonia are one node; Enlarged Cardiomediastinum and Pleural
Other have none."""


class FindingGraph(Part):
    """The graph of findings that the classifier thinks in."""

    place: Local = ""
    """Directory of the graph (`r2kg graph findings`); empty: SHARDS/finding-graph."""
    self_loops: bool = False
    """false: Ã = D_f^-½ A D_b^-½ as SentKG; true: of A + I with D_f on both sides, as AMIA 2022 and CKNet's code."""
    at: Local = ""
    """Directory of names and edges that is made of it before the run; empty until then."""
