"""What medSpaCy's ConText says, in an environment of its own: {"terms", "texts"} → [start, end, certainty] a text.

It needs an older spaCy and numpy than this stack: `make test-oracle` makes the environment.
"""

import json
import sys

import medspacy  # type: ignore[import-not-found]
from medspacy.target_matcher import TargetRule  # type: ignore[import-not-found]

given = json.load(sys.stdin)
pipeline = medspacy.load(enable=["medspacy_pyrush", "medspacy_target_matcher", "medspacy_context"])
pipeline.get_pipe("medspacy_target_matcher").add([TargetRule(term, "TERM") for term in given["terms"]])
said = []
for text in given["texts"]:
    found = []
    for one in pipeline(text).ents:
        doubted = one._.is_uncertain or one._.is_historical
        absent = one._.is_negated or one._.is_family
        found.append([one.start_char, one.end_char, "absent" if absent else "uncertain" if doubted else "present"])
    said.append(found)
print("\n" + json.dumps(said))
