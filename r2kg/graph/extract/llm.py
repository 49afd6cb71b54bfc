"""Annotations by a language model behind an OpenAI-compatible endpoint: vLLM, llama.cpp, Ollama, a provider's.

A report leaves this machine only for a host that the user names. The model copies words of numbered sentences, and
their places are looked for here: a span is the report's own text whatever a model says. Every answer is kept at once.
"""

import hashlib
import json
import os
import random
import re
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from itertools import islice
from socket import getaddrinfo
from typing import Any

from pydantic import AliasPath, Field, ValidationError

from r2kg.graph.extract.prompt import ANSWERS, PROMPT, SCHEMA, VERSION, Answer, Heard, Usage, align, sentences_of
from r2kg.graph.schema import Annotation
from shards.errors import PASSING_STATUS, ConfigError, DataError, RetryableError, may_pass
from shards.privacy import fence, terms_of
from shards.tars.place import Place, make_directory, place, read_whole, write_atomic

WARMER = 0.4  # temperature after an unusable answer: at 0 the same question has the same answer
KEY = "R2KG_LLM_KEY"  # environment variable of the key that the endpoint asks for
MOST_BYTES, MOST_WAIT_S = 2 << 20, 120.0  # of an answer; between two requests
ENDPOINT = re.compile(r"https?://(\[[0-9A-Fa-f:.]+\]|[\w.-]+)(?::([0-9]{1,5}))?(?:/[\w./~-]*)?", re.ASCII)
HEADERS = {"host", "content-length", "content-type", "accept", "user-agent", "x-stainless-raw-response"}
"""Of the library's headers those that it needs: others may hold what the environment says of other accounts."""
PASSING = {"APIConnectionError", "TransportError", "TimeoutError", "SSLError"}  # of openai, its client and Python


class _Completion(Heard):
    content: str | None = Field(None, validation_alias=AliasPath("choices", 0, "message", "content"))
    refusal: str | None = Field(None, validation_alias=AliasPath("choices", 0, "message", "refusal"))
    finish: str | None = Field(None, validation_alias=AliasPath("choices", 0, "finish_reason"))
    prompt_tokens: int = Field(0, ge=0, le=10**9, validation_alias=AliasPath("usage", "prompt_tokens"))
    completion_tokens: int = Field(0, ge=0, le=10**9, validation_alias=AliasPath("usage", "completion_tokens"))


class _NoAnswer(Exception):
    """Its count in `Usage`, or "" for a server that may answer later; why not; the seconds it asks to wait or None."""


@dataclass(frozen=True)
class LlmExtractor:
    """Asks a model once for every report that is not in the cache; ConfigError for fields that cannot work."""

    endpoint: str  # base URL, e.g. http://127.0.0.1:8000/v1
    model: str  # as the server names it
    cache: str  # directory or URL of the answers: words of reports, under the reports' terms
    licence: str  # tag of the shards that the reports are from (`shards.privacy`)
    allow: tuple[str, ...] = ()  # hosts beside this machine that reports may be sent to
    allow_text: bool = False  # privacy.allow_text: show what others say of an error, which may quote a report
    concurrency: int = 8  # requests at once
    retries: int = 4  # requests for a report after its first, for whatever reason
    timeout_s: float = 120.0  # longest time for one answer
    temperature: float | None = 0.0  # None: the server's own, for models that take no other
    max_tokens: int = 4096  # longest answer; one that breaks off is no annotation
    seed: int | None = 0  # of the first request, plus one for every unusable answer; None: none is sent
    backoff_s: float = 1.0  # first wait for a server that names none, doubled every time, give or take a third
    usage: Usage = field(default_factory=Usage, init=False, compare=False, repr=False)  # a pickled copy begins at 0
    name = "llm"

    def __post_init__(self) -> None:
        self._refuse_elsewhere()
        positive = min(self.concurrency, self.max_tokens, self.timeout_s) > 0 and min(self.retries, self.backoff_s) >= 0
        if not (positive and self.model and self.cache and isinstance(self.allow, tuple)):
            ways_out = "name model and cache, retries and backoff_s from 0, other numbers above it, allow as a tuple"
            raise ConfigError(f"{self} cannot work: {ways_out}")

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"usage": Usage()}

    def settings(self) -> dict[str, Any]:
        """What decides the answers. The endpoint does not: the same server has another port tomorrow."""
        asked = {name: getattr(self, name) for name in ("model", "temperature", "max_tokens", "seed")}
        whole = json.dumps([PROMPT, SCHEMA, WARMER, VERSION, asked], sort_keys=True)
        return {"name": self.name, "version": VERSION, **asked, "sha256": hashlib.sha256(whole.encode()).hexdigest()}

    def annotate(self, reports: Sequence[str]) -> list[Annotation]:
        """As `Extractor.annotate`; the reports that a `DataError` does not name are in the cache.

        ConfigError: the endpoint refuses, or is refused; the cache cannot be written; openai is not installed.
        """
        outcomes = self._outcomes(reports)
        if why := {number: outcome for number, outcome in enumerate(outcomes) if isinstance(outcome, str)}:
            named = ", ".join(f"{number} ({reason})" for number, reason in islice(why.items(), 20))
            raise DataError(
                f"{self.model} has no annotation for {len(why)} of {len(reports)} reports: positions {named} of the "
                f"batch, from 0. Raise max_tokens={self.max_tokens} for truncated answers, or take another model"
            )
        return [outcome for outcome in outcomes if not isinstance(outcome, str)]

    def annotate_or_none(self, reports: Sequence[str]) -> list[Annotation | None]:
        """As `annotate`, with None for a report for which the model has no annotation."""
        return [None if isinstance(outcome, str) else outcome for outcome in self._outcomes(reports)]

    def _outcomes(self, reports: Sequence[str]) -> list[Annotation | str]:
        """Annotations, or the name of the count that says why there is none; an empty report is not asked for."""
        used, stop = {text: Usage() for text in reports if text.strip()}, threading.Event()
        try:
            with fence(self.licence, self.allow_text):
                self._refuse_elsewhere()
                answers: dict[str, Answer | str] = {text: kept for text in used if (kept := self._kept(text))}
                missing = [text for text in used if text not in answers]
                self.usage.cached += sum(text in used for text in reports) - len(missing)
                if missing:
                    with self._client() as client, ThreadPoolExecutor(min(self.concurrency, len(missing))) as pool:
                        asked = {pool.submit(self._answer, client, text, used[text], stop): text for text in missing}
                        try:
                            done = wait(asked, return_when=FIRST_EXCEPTION).done
                            answers |= {asked[future]: future.result() for future in done}
                        finally:  # whatever ended one request ends those that wait
                            stop.set()
                            pool.shutdown(cancel_futures=True)
                rule, found = f"llm {self.model}", dict[str, Annotation | str]()
                for text, answer in answers.items():
                    found[text] = answer if isinstance(answer, str) else align(text, answer, rule, used[text])
                return [found.get(text, Annotation()) for text in reports]
        finally:
            for usage in used.values():
                self.usage.add(usage)

    def _answer(self, client: Any, text: str, usage: Usage, stop: threading.Event) -> Answer | str:
        """Ask until there is an answer, which is kept; the name of a count where there is none."""
        unusable, count, pause = 0, "", 0.0
        for attempt in range(self.retries + 1):
            if stop.wait(pause):
                raise RetryableError("another request has ended the batch")
            usage.add(Usage(requests=1, retried=int(attempt > 0)))
            try:
                said = self._ask(client, text, unusable)
                usage.add(Usage(prompt_tokens=said.prompt_tokens, completion_tokens=said.completion_tokens))
                if said.refusal or said.finish in ("content_filter", "length"):
                    raise _NoAnswer("truncated" if said.finish == "length" else "refused", "", None)
                answer = Answer.model_validate_json(said.content or "")
                self._keep(text, answer, said)
                return answer
            except (_NoAnswer, ValidationError) as error:
                count, why, asked_s = error.args if isinstance(error, _NoAnswer) else ("malformed", "", None)
            if count:
                unusable, pause = unusable + 1, 0.0
                setattr(usage, count, getattr(usage, count) + 1)
                if count == "refused":
                    break
                continue
            pause = min(self.backoff_s * 2 ** min(attempt, 10), MOST_WAIT_S) if asked_s is None else asked_s
            pause += random.uniform(0, 0.3) * self.backoff_s
            if attempt == self.retries or (asked_s or 0) > MOST_WAIT_S:
                asked = f"{self.endpoint} did not answer, asked {attempt + 1} times ({why})"
                raise RetryableError(f"{asked}: run the same command again when it does (cache={self.cache})")
        return count

    def _ask(self, client: Any, text: str, unusable: int) -> _Completion:
        """One request, after so many unusable answers. It takes `timeout_s`, and as long again for its last piece."""
        lines = (" ".join(text[slice(*span)].split()) for span in sentences_of(text))
        report = "\n".join(f"[{number}] {line}" for number, line in enumerate(lines))
        report = report.encode("utf-8", "replace").decode()
        warm = None if self.temperature is None else max(self.temperature, WARMER if unusable else 0)
        options = {"temperature": warm, "seed": None if self.seed is None else self.seed + unusable}
        data, until = bytearray(), time.monotonic() + self.timeout_s
        try:
            with client.chat.completions.with_streaming_response.create(
                model=self.model,
                messages=[{"role": "system", "content": PROMPT}, {"role": "user", "content": report}],
                response_format=ANSWERS,
                max_tokens=self.max_tokens,
                **{name: value for name, value in options.items() if value is not None},
            ) as response:
                for piece in response.http_response.iter_raw():
                    data += piece
                    if len(data) > MOST_BYTES:
                        raise _NoAnswer("malformed", "", None)
                    if time.monotonic() > until:
                        raise TimeoutError
        except Exception as error:
            if not PASSING & (names := {kind.__name__ for kind in type(error).__mro__}):
                raise
            late = any("Timeout" in name for name in names)
            raise _NoAnswer("", f"nothing within {self.timeout_s:g} s" if late else "no connection", None) from None
        return _Completion.model_validate_json(bytes(data))

    def _judge(self, response: Any) -> None:
        """Raise what a response without success says: of the server, of this report, or of what was asked for."""
        status, after, wait_s = response.status_code, response.headers.get("retry-after", ""), None
        if status // 100 == 2:
            return
        if status >= 500 or status in PASSING_STATUS:
            with suppress(ValueError, OverflowError):
                wait_s = float(after) if after.isdigit() else parsedate_to_datetime(after).timestamp() - time.time()
            raise _NoAnswer("", f"status {status}" + (f", wait {wait_s:,.0f} s" if wait_s else ""), wait_s)
        message = body = b"".join(islice(response.iter_raw(), 16)).decode("utf-8", "replace")
        with suppress(ValueError, RecursionError, AttributeError):
            error = json.loads(body).get("error")
            if error.get("code") in ("content_filter", "context_length_exceeded"):
                raise _NoAnswer("refused", "", None)
            message = str(error.get("message") or body)
        if status < 400:
            message = f"a redirect, which is not followed, to {response.headers.get('location', 'nowhere')}"
        message = message.replace(os.environ.get(KEY, "").strip() or "\0", "...")
        if terms_of(self.licence).credentialed and not self.allow_text:
            message = f"message withheld: it may quote a report of data under {self.licence}"
        raise ConfigError(
            f"{self.endpoint} answers {status} ({''.join(filter(str.isprintable, message))[:200]}): check that "
            f"model={self.model} is there, that {KEY} holds a key for it, and that the endpoint ends in /v1 or the like"
        )

    def _refuse_elsewhere(self) -> None:
        """ConfigError, before any request, for an endpoint that is neither this machine nor named in `allow`."""
        found = ENDPOINT.fullmatch(self.endpoint)
        if not found or int(found[2] or 0) > 65535:
            raise ConfigError(f"endpoint must be like http://127.0.0.1:8000/v1, no user, no query; {KEY} is the key")
        host = found[1].strip("[]").lower().rstrip(".")
        allowed = host in {name.lower().rstrip(".") for name in self.allow}
        with suppress(OSError, ValueError):
            addresses = {str(entry[4][0]) for entry in getaddrinfo(host, None)} if host == "localhost" else {host}
            allowed = allowed or all(ip_address(address).is_loopback for address in addresses)
        if not allowed:
            terms = f", if the terms of {self.licence} let them go there" * terms_of(self.licence).credentialed
            raise ConfigError(
                f"endpoint {self.endpoint} is on {host}, and reports leave this machine for no host that is not named: "
                f"serve the model at 127.0.0.1, or name the host{terms}: allow=({host!r},)"
            )

    def _client(self) -> Any:
        """A client that follows no redirect, asks no proxy, and takes nothing from the environment but our own key."""
        try:
            import openai
        except ImportError:
            raise ConfigError("the extractor llm needs a package: pip install r2kg[llm]") from None
        key = os.environ.get(KEY, "").strip() or "none"
        if not (key.isascii() and key.isprintable()):
            raise ConfigError(f"{KEY} holds a character that no header may hold: set it again")

        def bare(request: Any) -> None:
            for name in set(request.headers) - HEADERS:
                del request.headers[name]
            request.headers.update({"Authorization": f"Bearer {key}", "Accept-Encoding": "identity"})

        hooks: dict[str, Any] = {"request": [bare], "response": [self._judge]}
        web = openai.DefaultHttpxClient(trust_env=False, follow_redirects=False, event_hooks=hooks)
        return openai.OpenAI(
            base_url=self.endpoint, api_key=key, timeout=self.timeout_s, max_retries=0, http_client=web
        )

    def _file(self, text: str) -> tuple[str, Place]:
        """Key of a report's answer, and the file that keeps it."""
        settings, digest = self.settings()["sha256"], hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        return f"{settings}-{digest}", place(self.cache) / settings[:16] / digest[:2] / f"{digest}.json"

    def _kept(self, text: str) -> Answer | None:
        """The answer in the cache; a file that is torn, or another's, is none."""
        key, file = self._file(text)
        with suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
            kept = json.loads(read_whole(file, MOST_BYTES))
            return Answer.model_validate(kept["answer"]) if kept["key"] == key else None
        return None

    def _keep(self, text: str, answer: Answer, said: _Completion) -> None:
        key, file = self._file(text)
        kept = {"key": key, "answer": answer.model_dump(), "tokens": [said.prompt_tokens, said.completion_tokens]}
        try:
            make_directory(file.parent)
            write_atomic(file, json.dumps(kept).encode())
        except OSError as error:
            kind = RetryableError if may_pass(error) else ConfigError
            raise kind(f"cache={self.cache} cannot be written ({error.strerror}): name another directory") from None
