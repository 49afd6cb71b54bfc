"""METEOR 1.5 by its own Java program."""

import importlib.util
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from threading import Timer
from typing import Self

import numpy as np

from r2kg.scoring.metrics import check_pairs


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
        process = self._process = self._process or _start()
        watchdog = Timer(self.timeout_seconds, process.kill)
        watchdog.start()
        try:
            statistics = []
            for pair in zip(references, hypotheses, strict=True):
                # A line break or `|||` inside a text would put the program out of step with its input.
                reference, hypothesis = (" ".join(text.replace("|||", " ").split()) for text in pair)
                statistics.append(_answer(process, f"SCORE ||| {reference} ||| {hypothesis}"))
            first = float(_answer(process, "EVAL ||| " + " ||| ".join(statistics)))
            *rest, corpus = [float(_answer(process)) for _ in statistics]
        except (OSError, ValueError) as error:
            messages = [line for line in self.close().splitlines() if not line.startswith("Picked up ")]
            raise MeteorUnavailable(f"METEOR's Java program stopped: {messages[0] if messages else error}") from error
        finally:
            watchdog.cancel()
        return corpus, np.array([first, *rest])


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
