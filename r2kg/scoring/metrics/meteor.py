"""METEOR 1.5 by its own Java program."""

import importlib.util
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Timer
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from r2kg.scoring.metrics import check_pairs

_STATISTICS, _CHUNKS = 23, 20
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75
_WEIGHTS = (1.0, 0.6, 0.8, 0.6)
"""Of matches by word, stem, synonym and paraphrase."""


class MeteorUnavailable(RuntimeError):
    """METEOR cannot be computed on this machine; the message says what is missing."""


class Meteor:
    """METEOR 1.5 by its own Java program, one process for many corpora.

    It starts at the first score (seconds) and ends with the `with` block. pycocoevalcap brings the program, but its
    wrapper cannot pass the locale, and with a decimal comma the program cannot read its own numbers
    (Labbeti/aac-metrics#9).
    """

    def __init__(self, timeout_seconds: float = 900.0) -> None:
        self.timeout_seconds = timeout_seconds
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> str:
        """End the program if it runs; what it wrote to its standard error."""
        if self._process is None:
            return ""
        process, self._process = self._process, None
        process.kill()
        return process.communicate()[1].strip()

    def score(self, references: Sequence[str], hypotheses: Sequence[str]) -> tuple[float, np.ndarray]:
        """The corpus score, from statistics added over all pairs (not their mean), and the score of each pair, [n].

        Raises `MeteorUnavailable` with what is missing, or with what the program said when it stopped.
        """
        check_pairs(references, hypotheses)
        with self._speaking() as process:
            statistics = _statistics(process, references, hypotheses)
            first = float(_answer(process, "EVAL ||| " + " ||| ".join(statistics)))
            *rest, corpus = [float(_answer(process)) for _ in statistics]
        return corpus, np.array([first, *rest])

    def count(self, references: Sequence[str], hypotheses: Sequence[str]) -> NDArray[np.float64]:
        """What the corpus score is made of, float64 [n, 23], to be summed over studies and given to `meteor_of`.

        Raises as `score`.
        """
        check_pairs(references, hypotheses)
        with self._speaking() as process:
            statistics = _statistics(process, references, hypotheses)
            counts = np.array([[float(number) for number in line.split()] for line in statistics])
            if counts.shape[1:] != (_STATISTICS,):
                raise ValueError(f"it gave {counts.shape[1:]} numbers a pair, and {_STATISTICS} are known")
        whole = (_matches(counts).sum((1, 2)) == counts[:, :2]).all(1) & (counts[:, _CHUNKS] == 1)
        counts[whole, _CHUNKS] = 0  # the program counts no chunk of a pair that matches in one piece
        return counts

    @contextmanager
    def _speaking(self) -> Iterator["subprocess.Popen[str]"]:
        """The program, which is ended when it takes too long; its faults are `MeteorUnavailable`."""
        process = self._process = self._process or _start()
        watchdog = Timer(self.timeout_seconds, process.kill)
        watchdog.start()
        try:
            yield process
        except (OSError, ValueError) as error:
            messages = [line for line in self.close().splitlines() if not line.startswith("Picked up ")]
            raise MeteorUnavailable(f"METEOR's Java program stopped: {messages[0] if messages else error}") from error
        finally:
            watchdog.cancel()


def meteor_of(sums: NDArray[Any]) -> NDArray[np.float64]:
    """The score from sums of `Meteor.count` over studies, [..., 23] → [...], as the program computes it with -norm.

    Harmonic mean of weighed precision and recall, less a penalty for matches that lie apart (Denkowski and Lavie, WMT
    2014, "Meteor Universal", section 2); parameters are its task `rank` for English.
    """
    lengths, functions = sums[..., 0:2], sums[..., 2:4]  # [..., 2] each: of the hypothesis and of the reference
    chunks, words = sums[..., _CHUNKS], sums[..., _CHUNKS + 1 :].mean(-1)
    of_kind = np.array([_DELTA, 1 - _DELTA])
    found = np.einsum("...skw,s,k->...w", _matches(sums), np.array(_WEIGHTS), of_kind)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision, recall = np.moveaxis(found / (_DELTA * (lengths - functions) + (1 - _DELTA) * functions), -1, 0)
        mean = 1 / ((1 - _ALPHA) / precision + _ALPHA / recall)
        score = mean * (1 - _GAMMA * (chunks / words) ** _BETA)
    return np.maximum(0.0, np.nan_to_num(score, nan=0.0))


def _matches(sums: NDArray[Any]) -> NDArray[Any]:
    """Matches of [..., 23] statistics, [..., 4, 2, 2]: stage, content or function word, hypothesis or reference."""
    return sums[..., 4:_CHUNKS].reshape(*sums.shape[:-1], len(_WEIGHTS), 2, 2)


def _statistics(process: "subprocess.Popen[str]", references: Sequence[str], hypotheses: Sequence[str]) -> list[str]:
    """The program's line of numbers for each pair."""
    lines = []
    for pair in zip(references, hypotheses, strict=True):
        # A line break or `|||` inside a text would put the program out of step with its input.
        reference, hypothesis = (" ".join(text.replace("|||", " ").split()) for text in pair)
        lines.append(_answer(process, f"SCORE ||| {reference} ||| {hypothesis}"))
    return lines


def _answer(process: "subprocess.Popen[str]", question: str | None = None) -> str:
    """The program's next line, to `question` if one is given."""
    assert process.stdin is not None and process.stdout is not None  # pipes, by _start
    if question is not None:
        process.stdin.write(question + "\n")
        process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise ValueError("it gave no answer and ended, or was ended for taking too long")
    return line.strip()


def program() -> tuple[list[str], Path]:
    """The command that runs METEOR, and the directory to run it in.

    Raises `MeteorUnavailable` with what is missing.
    """
    java, package = shutil.which("java"), importlib.util.find_spec("pycocoevalcap")
    if java is None:
        raise MeteorUnavailable("there is no `java` on PATH: METEOR 1.5 is a Java program; install any Java runtime")
    if package is None:
        raise MeteorUnavailable(
            "the package pycocoevalcap, which brings METEOR 1.5, is not installed: add the extra `meteor`"
        )
    folder = Path((package.submodule_search_locations or [""])[0]) / "meteor"
    if not (folder / "meteor-1.5.jar").exists():
        raise MeteorUnavailable("pycocoevalcap is installed without its meteor-1.5.jar: install it again")
    flags = ["-Duser.language=en", "-Duser.country=US", "-Dfile.encoding=UTF-8", "-Xmx2G"]
    return [java, *flags, "-jar", "meteor-1.5.jar", "-", "-", "-stdio", "-l", "en", "-norm"], folder


def _start() -> "subprocess.Popen[str]":
    command, folder = program()
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=folder, stdin=pipe, stdout=pipe, stderr=pipe, encoding="utf-8", errors="replace"
    )
