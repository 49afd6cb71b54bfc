"""Named report cleanings. A name never changes its meaning: other rules get another name.

`r2gen-2020-iu` and `r2gen-2020-mimic` give the text on which the R2Gen lineage trains and scores (R2Gen, R2GenCMN,
XPRONet, CKNet, R2GenGPT), oddities included, because published numbers depend on them:

- the deleted characters contain the *range* `:` to `[`, so `;<=>?@` go while the hyphen stays: `x-ray` survives,
  `3.5` becomes `35`;
- slashes, backslashes and quotes vanish without a space: `PA/lat` becomes `palat`;
- an empty sentence is kept, which leaves two spaces in a row, and an empty report becomes ` .`;
- list numbers are deleted wherever `1. ` stands, even at the end of a word: `T11. The` becomes `t1the`.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable

from shards.errors import ConfigError

UNKNOWN = "<unk>"
VERSIONS = {"raw": 1, "r2gen-2020-iu": 1, "r2gen-2020-mimic": 1}
"""Raised when a mistake in the code of a cleaning is corrected; part of every protocol's hash."""

_DELETED = re.compile(r"[.,?;*!%^&_+():-\[\]{}]")
_GLUED = re.compile(r"[\"'/\\]")
_LIST_NUMBERS = tuple(f"{before} {number}. " for before in (".", "") for number in range(2, 6))


def _repeat(text: str, old: str, new: str, times: int) -> str:
    for _ in range(times):
        text = text.replace(old, new)
    return text


def _sentences(text: str) -> str:
    text = text.replace("1. ", "")
    for number in _LIST_NUMBERS:
        text = text.replace(number, ". ")
    sentences = text.strip().lower().split(". ")
    return " . ".join(_DELETED.sub("", _GLUED.sub("", sentence).strip().lower()) for sentence in sentences) + " ."


def _r2gen_2020_iu(text: str) -> str:
    return _sentences(_repeat(text, "..", ".", 3))


def _r2gen_2020_mimic(text: str) -> str:
    text = _repeat(text.replace("\n", " "), "__", "_", 7)
    return _sentences(_repeat(_repeat(text, "  ", " ", 6), "..", ".", 8))


def _raw(text: str) -> str:
    return text


CLEANINGS: dict[str, Callable[[str], str]] = {
    "raw": _raw,
    "r2gen-2020-iu": _r2gen_2020_iu,
    "r2gen-2020-mimic": _r2gen_2020_mimic,
}


def clean(name: str, text: str) -> str:
    """`text` after the cleaning `name`: words and lone periods divided by blanks, in lower case; `raw` changes nothing.

    Raises `ConfigError` naming the known cleanings.
    """
    if name not in CLEANINGS:
        raise ConfigError(f"there is no cleaning {name!r}: choose one of {', '.join(CLEANINGS)}")
    return CLEANINGS[name](text)


def clean_again(name: str, text: str) -> str:
    """Clean a text that may be clean already, such as a model's output, without changing the words of a clean one.

    The 2020 rules expect a period at the end of a word; one that stands alone at the very end would leave two blanks
    behind. It is attached first, so cleaned reports come out as they went in.
    """
    stripped = text.rstrip()
    attached = stripped[:-2] + "." if name != "raw" and stripped.endswith(" .") else text
    return clean(name, attached)


def vocabulary(cleaned_training_reports: Iterable[str], threshold: int) -> tuple[str, ...]:
    """Sorted words that occur at least `threshold` times in the cleaned reports of the **training** split, and `<unk>`.

    R2Gen-2020 uses 3 for IU X-Ray and 10 for MIMIC-CXR; ids, where needed, are 1 + the position here, 0 being begin,
    end and padding.
    """
    counts = Counter(word for report in cleaned_training_reports for word in report.split())
    return tuple(sorted({word for word, count in counts.items() if count >= threshold} | {UNKNOWN}))
