"""Named report cleanings. A name never changes its meaning: other rules get another name.

`r2gen-2020-iu` and `r2gen-2020-mimic` give the text on which the R2Gen lineage trains and scores (R2Gen, R2GenCMN,
XPRONet, CKNet; R2GenGPT for IU X-Ray), oddities included, because published numbers depend on them:

- the deleted characters contain the *range* `:` to `[`, so `;<=>?@` go while the hyphen stays: `x-ray` survives,
  `3.5` becomes `35`;
- slashes, backslashes and quotes vanish without a space: `PA/lat` becomes `palat`;
- an empty sentence is kept, which leaves two spaces in a row, and an empty report becomes ` .`;
- list numbers are deleted wherever `1. ` stands, even at the end of a word: `T11. The` becomes `t1the`.

`r2gengpt-2023-mimic` is what R2GenGPT's released code, and R2GenKG's after it, does to every dataset but IU X-Ray: as
`r2gen-2020-mimic`, but `:` gets a blank before it and stays, and so do `<`, `=`, `>` and `@`.

`clean-1` is our own, for work that need not match those numbers. It keeps what a reader needs and cleans a clean text
to itself:

- lower case; sentences, none of them empty, each ended by a lone period, single blanks between words; a text without a
  letter or digit (in NFKC) becomes the empty text, any other does not
- Unicode: compatibility forms, quotes and dashes become ASCII (NFKC), letters of any alphabet stay, `×` after
  a digit is `x`; control characters and those of no width vanish, line breaks and tabs are blanks
- list numbers (`1.` `1)` `(1)`, two digits at most) begin a sentence and vanish, at the start of a line, after a
  sentence's end and, for 1, after a heading (`IMPRESSION: 1.`), as do the bullets `- ` and `* ` at the start of a line
  and `•`; nowhere else: `grade 2.` and `T11.` keep their numbers
- a period, comma or colon between digits stays (`3.5`, `1,000`, `10:30`), so does the period of `.5`; every other
  period ends a sentence, also without a blank behind it, but not in `e.g.`, `p.m.`, `Dr.`, `Mr.`, `Mrs.`, `Ms.`, `vs.`
- hyphens, `%`, `+` and the apostrophe between letters stay where they are: `x-ray`, `50%`, `1+`, `patient's`
- `/ ? < > =` become words of their own (`PA/lat` is `pa / lat`), `&` the word `and`, all other signs blanks
- what was removed to protect patients (`XXXX`, `___`, `[**name**]`) becomes the word `xxxx`
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from itertools import dropwhile

from shards.errors import ConfigError

UNKNOWN = "<unk>"
VERSIONS = {"raw": 1, "r2gen-2020-iu": 1, "r2gen-2020-mimic": 1, "r2gengpt-2023-mimic": 1, "clean-1": 1}
"""Raised when a mistake in the code of a cleaning is corrected; part of every protocol's hash."""

_DELETED = re.compile(r"[.,?;*!%^&_+():-\[\]{}]")
_DELETED_2023 = re.compile(r"[.,?;*!%^&_+()\[\]{}]")
_GLUED = re.compile(r"[\"'/\\]")
_LIST_NUMBERS = tuple(f"{before} {number}. " for before in (".", "") for number in range(2, 6))
_ATTACHED = ("r2gen-2020-iu", "r2gen-2020-mimic", "r2gengpt-2023-mimic")
"""Cleanings that expect the period at the end of a word, and so change a text they have cleaned."""


def _r2gen(
    text: str, squeezed: tuple[tuple[str, str, int], ...], colon: str = ":", deleted: re.Pattern = _DELETED
) -> str:
    """The 2020 rules: `squeezed` are (old, new, times) replaced so many times over, before list numbers go."""
    for old, new, times in squeezed:
        for _ in range(times):
            text = text.replace(old, new)
    text = text.replace("1. ", "")
    for number in _LIST_NUMBERS:
        text = text.replace(number, ". ")
    sentences = text.replace(":", colon).strip().lower().split(". ")
    return " . ".join(deleted.sub("", _GLUED.sub("", sentence).strip().lower()) for sentence in sentences) + " ."


_ASCII = str.maketrans("‐‑‒–−‘’‚‛′⁄", "-----'''''/") | str.maketrans({"—": " - ", "―": " - ", "±": "+/-"})
_MARKS_KEPT = 3
"""Accents on one letter: sorting an endless run of them takes Python quadratic time."""
_NUMBER = r"\(?\d{1,2}[.)](?=[ \n]|[^\W\d_])"
_ITEM = re.compile(rf"^ ?(?:{_NUMBER}|[-*](?= ))|(?<=[.?!]) {_NUMBER}|(?<=[A-Z]{{3}}:) ?\(?1[.)](?= )|•", re.MULTILINE)
_INITIALS = re.compile(r"(?<![^\W_])(?:[a-z]\.){2,}")
_TITLE = re.compile(r"(?<![^\W_])(dr|mr|mrs|ms|vs)\.")
_END = re.compile(r"\.(?!\d)|(?<![\d\s(<>=+/~-])\.")
_REMOVED = re.compile(r"\[\*\*[^\]\n]{0,80}\*\*\]|(?<![^\W_])x{3,}(?![^\W_])|_{2,}")
_BLANK = re.compile(r"[,:](?!\d)|(?<!\d)[,:]|'(?![^\W\d_])|(?<![^\W\d_])'|[^\w\s.,:'%+/?<>=-]|_")


def _clean_1(text: str) -> str:
    """Lines of NFKC without control characters, quotes and dashes in ASCII, single blanks; then its sentences."""
    text = "\n".join(text.splitlines()).replace("\t", " ")
    if not text.isascii():
        visible, marks = [], 0
        for c in text:
            marks = marks + 1 if unicodedata.combining(c) else 0
            if marks <= _MARKS_KEPT and unicodedata.category(c) != "Cf":
                visible.append(c)
        text = unicodedata.normalize("NFKC", "".join(visible)).translate(_ASCII)
        text = re.sub(r"(?<=\d)( ?)×", r"\1x", text)
    text = "".join(c for c in text if c == "\n" or unicodedata.category(c) != "Cc")
    plain = re.sub(r"[^\S\n]+", " ", text).strip(" ")
    if not any(c.isalnum() for c in plain):
        return ""
    return _sentences(_ITEM.sub(" . ", plain)) or _sentences(plain)


def _sentences(plain: str) -> str:
    """The sentences of a text, their words and lone periods divided by single blanks."""
    # blanks between letters and the underscores in place of a removed word; a hyphen may touch them
    text = re.sub(r"(?<=[^\W_])(?=__)|(?<=__)(?=[^\W_])", " ", " " + plain.lower())
    text = _REMOVED.sub(lambda removed: " xxxx " if removed[0].startswith("[") else "xxxx", text)
    text = _TITLE.sub(r"\1 ", _INITIALS.sub(lambda initials: initials[0].replace(".", "") + " ", text))
    text = _BLANK.sub(" ", _END.sub(" . ", text.replace("&", " and ")))
    text = re.sub(r"-{2,}", " - ", re.sub(r"([/?<>=])", r" \1 ", text))
    kept = []
    for sentence in re.split(r"(?<!\S)\.(?!\S)", text):
        words = " ".join(dropwhile("-".__eq__, sentence.split()))
        if any(c.isalnum() for c in words):
            kept.append(f"{words} .")
    return " ".join(kept)


_LINE = ("\n", " ", 1), ("__", "_", 7), ("  ", " ", 6), ("..", ".", 8)
CLEANINGS: dict[str, Callable[[str], str]] = {
    "raw": str,
    "r2gen-2020-iu": partial(_r2gen, squeezed=(("..", ".", 3),)),
    "r2gen-2020-mimic": partial(_r2gen, squeezed=_LINE),
    "r2gengpt-2023-mimic": partial(_r2gen, squeezed=_LINE, colon=" :", deleted=_DELETED_2023),
    "clean-1": _clean_1,
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
    behind. It is attached first, so cleaned reports come out as they went in. `clean-1` needs no such help.
    """
    stripped = text.rstrip()
    attached = stripped[:-2] + "." if name in _ATTACHED and stripped.endswith(" .") else text
    return clean(name, attached)


def vocabulary(cleaned_training_reports: Iterable[str], threshold: int) -> tuple[str, ...]:
    """Sorted words that occur at least `threshold` times in the cleaned reports of the **training** split, and `<unk>`.

    R2Gen-2020 uses 3 for IU X-Ray and 10 for MIMIC-CXR; ids, where needed, are 1 + the position here, 0 being begin,
    end and padding.
    """
    counts = Counter(word for report in cleaned_training_reports for word in report.split())
    return tuple(sorted({word for word, count in counts.items() if count >= threshold} | {UNKNOWN}))
