"""The extractor asks a real HTTP server, which answers well, badly, slowly, or not at all."""

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r2kg.graph.extract.annotate import write_annotations
from r2kg.graph.extract.llm import LlmExtractor
from r2kg.graph.extract.prompt import PROMPT, SCHEMA, Answer, Usage, align, sentences_of
from r2kg.graph.schema import CERTAINTIES, KINDS, RELATIONS, Annotation, Extractor
from shards.errors import ConfigError, DataError, RetryableError
from shards.tars.format import read_manifest

ROOT = Path(__file__).parents[3]
REPORT = "Small left effusion.  No\npneumothorax. Possible pneumonia at the left base."
SAID = {
    "entities": [
        {"text": "Small", "kind": "concept", "certainty": "present", "sentence": 0},
        {"text": "effusion.", "kind": "disorder", "certainty": "present", "sentence": 0},
        {"text": "Pneumothorax", "kind": "disorder", "certainty": "absent", "sentence": 1},
        {"text": "pneumonia", "kind": "disorder", "certainty": "uncertain", "sentence": 2},
        {"text": "left  base", "kind": "anatomy", "certainty": "present", "sentence": 2},
    ],
    "relations": [
        {"head": 0, "relation": "modify", "tail": 1},
        {"head": 3, "relation": "located_at", "tail": 4},
    ],
}


class Reply(NamedTuple):
    """What the server sends."""

    body: bytes | Iterator[bytes]
    status: int = 200
    headers: dict[str, str] = {}  # noqa: RUF012


def completion(content: Any, finish: str = "stop", refusal: str | None = None) -> Reply:
    """A chat completion of 70 and 30 tokens whose message is `content`, as JSON unless it is a text."""
    text = content if isinstance(content, str) or content is None else json.dumps(content)
    message = {"role": "assistant", "content": text, "refusal": refusal}
    whole = {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": finish, "logprobs": None}],
        "usage": {"prompt_tokens": 70, "completion_tokens": 30, "total_tokens": 100},
    }
    return Reply(json.dumps(whole).encode())


def problem(status: int, message: str, code: str = "", **headers: str) -> Reply:
    """An error as OpenAI's servers word it."""
    body = json.dumps({"error": {"message": message, "type": "t", "code": code}}).encode()
    return Reply(body, status, {name.replace("_", "-"): value for name, value in headers.items()})


class Asked(NamedTuple):
    """A request that the server got."""

    report: str
    body: dict[str, Any]
    headers: dict[str, str]


class Endpoint(ThreadingHTTPServer):
    """Chat completions at http://127.0.0.1:PORT/v1, as `reply` (report, times it was asked before) says."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.asked: list[Asked] = []
        self.reply: Callable[[str, int], Reply] = lambda report, before: completion(SAID)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        report = body["messages"][1]["content"]
        before = sum(asked.report == report for asked in self.server.asked)
        self.server.asked.append(Asked(report, body, {name.lower(): value for name, value in self.headers.items()}))
        reply = self.server.reply(report, before)
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if isinstance(reply.body, bytes):
            self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            self.wfile.write(reply.body)
            return
        self.send_header("Connection", "close")
        self.end_headers()
        for piece in reply.body:
            self.wfile.write(piece)
            self.wfile.flush()
        self.close_connection = True

    do_GET = do_CONNECT = do_POST

    def log_message(self, *arguments: Any) -> None:
        pass


def serve() -> Iterator[Endpoint]:
    server = Endpoint()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


server = pytest.fixture(serve)
other = pytest.fixture(serve)
shared_server = pytest.fixture(serve, scope="module")


@pytest.fixture
def extractor(server, tmp_path, monkeypatch) -> Callable[..., LlmExtractor]:
    """Function (changed fields) → an extractor that asks the server, with short waits."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy") or name.startswith("OPENAI_")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("R2KG_LLM_KEY", raising=False)

    def made(**changes: Any) -> LlmExtractor:
        fields = {"endpoint": server.url, "model": "m", "cache": str(tmp_path / "cache"), "licence": "synthetic"}
        return LlmExtractor(**fields | {"backoff_s": 0.005, "timeout_s": 20.0} | changes)

    return made


def test_a_report_becomes_an_annotation_with_the_reports_own_spans(server, extractor):
    asking: Extractor = extractor()
    (found,) = asking.annotate([REPORT])
    assert [(REPORT[e.start : e.end], e.name, e.kind, e.certainty, e.sentence) for e in found.entities] == [
        ("Small", "small", "concept", "present", 0),
        ("effusion", "effusion", "disorder", "present", 0),
        ("pneumothorax", "pneumothorax", "disorder", "absent", 1),
        ("pneumonia", "pneumonia", "disorder", "uncertain", 2),
        ("left base", "left base", "anatomy", "present", 2),
    ]
    assert found.triples() == (("small", "modify", "effusion"), ("pneumonia", "located_at", "left base"))
    assert {one.rule for one in (*found.entities, *found.relations)} == {"llm m"}
    (asked,) = server.asked
    numbered = "[0] Small left effusion.\n[1] No pneumothorax.\n[2] Possible pneumonia at the left base."
    assert asked.report == numbered
    form = asked.body["response_format"]["json_schema"]
    assert form["strict"] and form["schema"] == json.loads(json.dumps(SCHEMA))
    assert (asked.body["temperature"], asked.body["seed"], asked.body["max_tokens"]) == (0, 0, 4096)
    assert asking.usage == Usage(requests=1, prompt_tokens=70, completion_tokens=30)


def test_the_prompts_own_example_fits_its_report():
    *_, example = PROMPT.partition("Example:\n")
    lines, answer = example[: example.index("{")], Answer.model_validate_json(example[example.index("{") :])
    report, usage = " ".join(line.split("] ")[1] for line in lines.splitlines()), Usage()
    found = align(report, answer, "", usage)
    assert len(found.entities) == 5 and len(found.relations) == 3 and usage == Usage()
    assert ("effusion", "suggestive_of", "heart failure") in found.triples()


@pytest.mark.parametrize(
    ("report", "sentences"),
    [
        ("", []),
        (" \n ", []),
        ("No effusion", ["No effusion"]),
        ("Heart is\nlarge. Lungs 1.5 cm low!  Why?", ["Heart is\nlarge.", "Lungs 1.5 cm low!", "Why?"]),
        ("heart normal . lungs clear .", ["heart normal .", "lungs clear ."]),
        ("1. No edema. 2. Rib 5. End", ["1. No edema.", "2. Rib 5.", "End"]),
        ("Told Dr. Who. Edema vs. pneumonia", ["Told Dr. Who.", "Edema vs. pneumonia"]),
        ("HEART\n \nLUNGS", ["HEART", "LUNGS"]),
    ],
)
def test_sentences(report, sentences):
    assert [report[start:end] for start, end in sentences_of(report)] == sentences


def entity(text: str, sentence: int | None = None, kind: str = "disorder", certainty: str = "present") -> dict:
    return {"text": text, "kind": kind, "certainty": certainty, "sentence": sentence}


@pytest.mark.parametrize(
    ("report", "entities", "spans"),
    [
        ("Edema. No edema.", [entity("edema"), entity("edema")], [0, 10]),
        ("Edema. No edema.", [entity("edema", 1), entity("edema", 0)], [0, 10]),
        ("Edema. No edema.", [entity("edema", 1), entity("edema", 1)], [10]),
        ("Edema. No edema.", [entity("edema", 7), entity("EDEMA", -1), entity("edema")], [0, 10]),
        ("Pleural effusion, effusion.", [entity("effusion"), entity("pleural effusion")], [0, 18]),
        ("Pleural effusion.", [entity("effusion"), entity("pleural\t effusion")], [0]),
        ("Nodules in no node (3 cm).", [entity("no"), entity("nodule"), entity("(3 cm)", kind="size")], [11, 19]),
        ("Lymphedema, edema.", [entity("edema")], [12]),
        ("C++ a.b [x] 50%", [entity("a.b"), entity("axb"), entity("[x]"), entity("50%"), entity(".*")], [4, 8, 12]),
        ("Edema.", [entity(""), entity(" . "), entity("œdema"), entity("edema", kind="finding")], []),
        ("Edema.", [entity("edema", certainty="sure")], []),
    ],
)
def test_places_of_what_a_model_says(report, entities, spans):
    usage = Usage()
    found = align(report, Answer.model_validate_json(json.dumps({"entities": entities, "relations": []})), "", usage)
    assert [one.start for one in found.entities] == spans
    assert usage.dropped_entities == len(entities) - len(spans)


def test_relations_that_say_nothing_are_dropped_and_counted(server, extractor):
    entities = [entity("edema"), entity("made up"), entity("base", kind="anatomy"), entity("large", kind="concept")]
    ends = [(0, "located_at", 2), (3, "modify", 0), (0, "located_at", 2), (0, "located_at", 0), (0, "causes", 2)]
    ends += [(0, "modify", 1), (1, "modify", 0), (-1, "modify", 0), (0, "modify", 4), (10**30, "modify", 0)]
    links = [{"head": head, "relation": relation, "tail": tail} for head, relation, tail in ends]
    server.reply = lambda report, before: completion({"entities": entities, "relations": links, "more": 1})
    (found,) = (asking := extractor()).annotate(["Large edema at the base"])
    assert [one.name for one in found.entities] == ["large", "edema", "base"]
    assert [tuple(one)[:3] for one in found.relations] == [(1, "located_at", 2), (0, "modify", 1)]
    assert (asking.usage.dropped_entities, asking.usage.dropped_relations) == (1, 8)


MALFORMED = {
    "prose": completion("There is an effusion."),
    "fenced": completion(f"```json\n{json.dumps(SAID)}\n```"),
    "broken off": completion(json.dumps(SAID)[:-9]),
    "no content": completion(None),
    "a list": completion([SAID]),
    "other names": completion({"nodes": [], "edges": []}),
    "texts for entities": completion({"entities": ["effusion"], "relations": []}),
    "numbers for texts": completion({"entities": [entity(5)], "relations": []}),  # type: ignore[arg-type]
    "texts for numbers": completion({"entities": [], "relations": [{"head": "0", "relation": "modify", "tail": "1"}]}),
    "a thousand entities": completion({"entities": [entity("effusion")] * 1001, "relations": []}),
    "deep": completion("[" * 100_000),
    "deep outside": Reply(b'{"choices":' * 100_000),
    "huge": Reply(json.dumps({"choices": [], "x": "y" * (3 << 20)}).encode()),
    "without end": Reply(b"[" + b" " * 65536 for _ in count()),
    "half a number": Reply(b'{"choices": [{"message": {"content": 1' + b"0" * 5000),
    "no text": Reply(b"\xff\xfe\x00"),
    "html": Reply(b"<html>gateway</html>"),
    "no choice": Reply(b'{"choices": []}'),
    "less than no tokens": Reply(b'{"choices": [{"message": {"content": "{}"}}], "usage": {"prompt_tokens": -1}}'),
    "an error in a success": Reply(b'{"error": {"message": "busy"}}'),
    "packed": Reply(b"\x1f\x8b" + b"\0" * 100, headers={"Content-Encoding": "gzip"}),
}


@pytest.mark.parametrize("reply", MALFORMED.values(), ids=MALFORMED.keys())
def test_an_answer_that_is_none_is_asked_for_again_somewhat_warmer(server, extractor, reply):
    server.reply = lambda report, before: completion(SAID) if before else reply
    (found,) = (asking := extractor()).annotate([REPORT])
    assert len(found.entities) == 5
    assert [(asked.body["seed"], asked.body["temperature"]) for asked in server.asked] == [(0, 0), (1, 0.4)]
    usage = asking.usage
    assert (usage.requests, usage.retried, usage.malformed, usage.refused) == (2, 1, 1, 0)


def test_reports_without_an_annotation_are_named_by_position_alone(server, extractor, tmp_path):
    server.reply = lambda report, before: completion("effusion" if "Small" in report else SAID)
    reports = ["Possible pneumonia.", REPORT, "", "No edema.", REPORT]
    with pytest.raises(DataError) as raised:
        (asking := extractor(retries=2)).annotate(reports)
    assert "2 of 5 reports: positions 1 (malformed), 4 (malformed) of the batch" in str(raised.value)
    assert "ffusion" not in str(raised.value) and len(server.asked) == 5
    assert asking.usage.malformed == 3 and asking.usage.dropped_entities > 0
    found = asking.annotate_or_none(reports)
    assert [one is None for one in found] == [False, True, False, False, True] and found[2] == Annotation()
    assert len(server.asked) == 8, "what was had is in the cache"


REFUSALS = {
    "in words": completion(None, refusal="I cannot help with that"),
    "of the filter": completion("", finish="content_filter"),
    "before the model": problem(400, "filtered", code="content_filter"),
    "too long": problem(400, "too long", code="context_length_exceeded"),
}


@pytest.mark.parametrize("reply", REFUSALS.values(), ids=REFUSALS.keys())
def test_a_refusal_is_not_argued_with(server, extractor, reply):
    server.reply = lambda report, before: reply
    assert (asking := extractor()).annotate_or_none([REPORT]) == [None]
    assert len(server.asked) == 1 and asking.usage.refused == 1 and asking.usage.malformed == 0


def test_an_answer_that_breaks_off_is_counted_and_asked_for_again(server, extractor):
    server.reply = lambda report, before: completion(SAID, finish="stop" if before == 2 else "length")
    asking = extractor(temperature=None, seed=None)
    asking.annotate([REPORT])
    assert asking.usage.truncated == 2 and asking.usage.completion_tokens == 90
    assert not {"seed", "temperature"} & server.asked[0].body.keys()
    with pytest.raises(DataError, match=r"0 \(truncated\).*Raise max_tokens=7"):
        extractor(max_tokens=7, retries=1).annotate([REPORT])


def test_slow_servers_are_waited_for_within_bounds(server, extractor):
    def late() -> Iterator[bytes]:
        for _ in range(30):
            time.sleep(0.05)
            yield b" "

    slow = [Reply(late()), Reply(late()), completion(SAID)]
    server.reply = lambda report, before: slow[min(before, 2)]
    asking = extractor(timeout_s=0.15)
    assert len(asking.annotate([REPORT])[0].entities) == 5, "each piece was in time, the whole was not"
    assert (asking.usage.retried, asking.usage.malformed) == (2, 0)
    server.reply = lambda report, before: time.sleep(0.4) or completion(SAID)  # type: ignore[func-returns-value]
    with pytest.raises(RetryableError, match=r"asked 2 times \(nothing within 0\.1 s\).*run the same command again"):
        extractor(timeout_s=0.1, retries=1).annotate(["No edema."])


def test_a_server_that_is_not_there_may_come_back(extractor, free_port):
    asking = extractor(endpoint=f"http://127.0.0.1:{free_port()}/v1", retries=1)
    with pytest.raises(RetryableError, match=r"asked 2 times \(no connection\)"):
        asking.annotate([REPORT, "No edema."])
    assert asking.usage.requests >= 2


def test_a_busy_server_says_when_to_ask_again(server, extractor):
    past = formatdate(time.time() - 5, usegmt=True)
    replies = [problem(429, "busy", Retry_After="1"), problem(503, "busy", Retry_After=past), completion(SAID)]
    server.reply = lambda report, before: replies[before]
    began = time.monotonic()
    (asking := extractor()).annotate([REPORT])
    assert 1 <= time.monotonic() - began < 5 and asking.usage.retried == 2


@pytest.mark.parametrize("wait", ["3600", "in an hour", "9" * 400])
def test_a_server_that_asks_for_an_hour_ends_the_batch(server, extractor, wait):
    wait = formatdate(time.time() + 3600, usegmt=True) if wait == "in an hour" else wait
    server.reply = lambda report, before: problem(429, "busy", Retry_After=wait)
    with pytest.raises(RetryableError, match=r"asked 1 times \(status 429, wait (3,[56]\d\d|inf) s\)"):
        extractor().annotate([REPORT])
    assert len(server.asked) == 1


@pytest.mark.parametrize("wait", ["", "soon", "-1", "1e999", "²", "nan"])
def test_servers_that_fail_are_asked_a_few_times(server, extractor, wait):
    server.reply = lambda report, before: problem(500, f"cannot read {report}", Retry_After=wait)
    with pytest.raises(RetryableError) as raised:
        extractor(retries=3, licence="physionet-credentialed-1.5.0").annotate([REPORT])
    assert len(server.asked) == 4 and "asked 4 times (status 500)" in str(raised.value)
    assert "ffusion" not in str(raised.value)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_what_asking_again_does_not_mend_is_said_at_once(server, extractor, monkeypatch, status):
    monkeypatch.setenv("R2KG_LLM_KEY", "sk-secret-1")
    server.reply = lambda report, before: problem(status, f"sk-secret-1 may not ask about\x1b[1m {report}" + "x" * 999)
    with pytest.raises(ConfigError) as raised:
        extractor().annotate([REPORT])
    shown = str(raised.value)
    assert f"{server.url} answers {status} (... may not ask about[1m [0] Small" in shown and len(shown) < 450
    for change in ({"licence": "stanford-aimi-rua"}, {"licence": "whatever"}):
        with pytest.raises(ConfigError, match=f"answers {status} \\(message withheld") as raised:
            extractor(**change).annotate([REPORT])
        assert "Small" not in str(raised.value)
    with pytest.raises(ConfigError, match="Small"):
        extractor(licence="stanford-aimi-rua", allow_text=True).annotate([REPORT])
    assert len(server.asked) == 4


@pytest.mark.parametrize("body", [b"no", b'{"error": "no"}', b'["no"]', b'{"error": {}}', b"[" * 9999, b"\xff"])
def test_errors_need_no_form(server, extractor, body):
    server.reply = lambda report, before: Reply(body, 404)
    with pytest.raises(ConfigError, match="answers 404"):
        extractor().annotate([REPORT])


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_no_redirect_is_followed(server, other, extractor, status):
    place = other.url.replace("127.0.0.1", "localhost") + "/chat/completions"
    server.reply = lambda report, before: Reply(b"", status, {"Location": place})
    with pytest.raises(ConfigError, match=f"a redirect, which is not followed, to {place}"):
        extractor().annotate([REPORT])
    assert not other.asked


def test_no_proxy_and_no_other_account_is_taken_from_the_environment(server, other, extractor, monkeypatch):
    asking = extractor()
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, other.url.removesuffix("/v1"))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-else")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-else")
    monkeypatch.setenv("OPENAI_BASE_URL", other.url)
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: Bearer else\nX-Else: else")
    asking.annotate([REPORT])
    assert not other.asked and "else" not in json.dumps(server.asked[0].headers)
    assert server.asked[0].headers["authorization"] == "Bearer none"


ELSEWHERE = {
    "https://api.openai.com/v1": "api.openai.com",
    "http://127.0.0.1.evil.com/v1": "127.0.0.1.evil.com",
    "http://localhost.evil.com/v1": "localhost.evil.com",
    "http://127.evil/v1": "127.evil",
    "http://0.0.0.0:8000/v1": "0.0.0.0",
    "http://10.0.0.1/v1": "10.0.0.1",
    "http://128.0.0.1": "128.0.0.1",
    "http://2130706433/v1": "2130706433",
    "http://[2001:db8::1]:8000/v1": "2001:db8::1",
    "HTTP://evil.com".lower(): "evil.com",
}


@pytest.mark.parametrize(("endpoint", "host"), ELSEWHERE.items())
@pytest.mark.parametrize("licence", ["synthetic", "physionet-credentialed-1.5.0"])
def test_reports_stay_on_this_machine(extractor, endpoint, host, licence):
    with pytest.raises(ConfigError) as raised:
        extractor(endpoint=endpoint, licence=licence, allow=("evil.org", "evil.com.org"))
    assert f"is on {host}, and" in str(raised.value) and f"allow=({host!r},)" in str(raised.value)
    assert (f"if the terms of {licence}" in str(raised.value)) == (licence != "synthetic")
    assert extractor(endpoint=endpoint, licence=licence, allow=(host.upper(),)).allow == (host.upper(),)


@pytest.mark.parametrize(
    "endpoint",
    [
        *("", "127.0.0.1:8000", "ftp://127.0.0.1/v1", "file:///etc/passwd", "http://", "http://127.0.0.1:99999/v1"),
        *("http://user:sk-1@127.0.0.1/v1", "http://127.0.0.1@evil.com/v1", "http://evil.com\\@127.0.0.1/v1"),
        *("http://127.0.0.1/v1?key=sk-1", "http://127.0.0.1#@evil.com/", "http://127.0.0.1 .evil.com", "http://a\n/v1"),
    ],
)
def test_endpoints_hold_no_secret_and_no_trick(extractor, endpoint):
    with pytest.raises(ConfigError, match="endpoint must be like http") as raised:
        extractor(endpoint=endpoint)
    assert "sk-1" not in str(raised.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "localhost", "LocalHost.", "[::1]"])
def test_this_machine_has_several_names(extractor, host):
    assert extractor(endpoint=f"http://{host}:8000/v1")


def test_a_localhost_that_is_elsewhere_is_refused(server, extractor, monkeypatch):
    asking = extractor(endpoint=server.url.replace("127.0.0.1", "localhost"))
    monkeypatch.setattr(
        "r2kg.graph.extract.llm.getaddrinfo",
        lambda *_: [(2, 1, 6, "", ("127.0.0.1", 0)), (2, 1, 6, "", ("10.0.0.1", 0))],
    )
    with pytest.raises(ConfigError, match="is on localhost, and reports leave this machine for no host"):
        asking.annotate([REPORT])
    assert not server.asked


@pytest.mark.parametrize(
    "change",
    [
        *({"model": ""}, {"cache": ""}, {"concurrency": 0}, {"retries": -1}, {"timeout_s": 0}, {"max_tokens": 0}),
        *({"backoff_s": -1}, {"allow": "evil.com"}),
    ],
)
def test_fields_that_cannot_work_are_told_with_their_values(extractor, change):
    with pytest.raises(
        ConfigError, match="=".join(map(str, next(iter({k: repr(v) for k, v in change.items()}.items()))))
    ):
        extractor(**change)


CHILD = """
import sys
from r2kg.graph.extract.llm import LlmExtractor
endpoint, cache, *reports = sys.argv[1:]
LlmExtractor(endpoint, "m", cache, "synthetic", concurrency=1).annotate(reports)
"""


def test_a_killed_job_asks_for_the_rest_alone(server, extractor, tmp_path):
    reports = [f"Edema of lobe {number}." for number in range(6)]
    hold, fourth = threading.Event(), threading.Event()

    def reply(report: str, before: int) -> Reply:
        if len(server.asked) == 4:
            fourth.set()
            hold.wait(20)
        return completion({"entities": [entity("edema", 0)], "relations": []})

    server.reply = reply
    job = [sys.executable, "-c", CHILD, server.url, str(tmp_path / "cache"), *reports]
    child = subprocess.Popen(job, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert fourth.wait(30)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    hold.set()
    server.asked.clear()
    server.reply = lambda report, before: completion({"entities": [entity("edema", 0)], "relations": []})
    asking = extractor()
    assert all(len(found.entities) == 1 for found in asking.annotate(reports))
    assert sorted(asked.report for asked in server.asked) == [f"[0] {report}" for report in reports[3:]]
    assert asking.usage.cached == 3 and asking.usage.requests == 3


def test_the_key_goes_to_the_endpoint_and_nowhere_else(server, extractor, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("R2KG_LLM_KEY", "sk-secret-1\n")
    caplog.set_level("DEBUG")
    asking = extractor()
    asking.annotate([REPORT])
    assert server.asked[0].headers["authorization"] == "Bearer sk-secret-1"
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) == 1 and REPORT.encode() not in written[0]
    shown = [*written, repr(asking).encode(), json.dumps(asking.settings()).encode(), pickle.dumps(asking)]
    assert not any(b"sk-secret" in one for one in [*shown, caplog.text.encode()])
    assert "ffusion" not in caplog.text
    monkeypatch.setenv("R2KG_LLM_KEY", "sk-secret-\u00fc")
    with pytest.raises(ConfigError, match="R2KG_LLM_KEY holds a character") as raised:
        extractor(seed=1).annotate([REPORT])
    assert "secret" not in str(raised.value)


def test_shards_are_annotated_by_workers_that_count_what_it_took(server, extractor, phantom_shards, tmp_path):
    server.reply = lambda report, _: completion({"entities": [entity(report.split()[1], 0)], "relations": []})
    asking = extractor(cache=str(tmp_path / "answers"))
    side = write_annotations(phantom_shards, tmp_path / "side", asking)
    studies = read_manifest(phantom_shards).splits["train"].studies
    asked, reports = len(server.asked), len({one.report for one in server.asked})
    assert reports <= asked <= reports + 3, "two workers may ask for equal reports at the same moment"
    assert side.totals["requests"] == asked and side.totals["entities"] == studies
    assert side.totals["prompt_tokens"] == 70 * asked and side.totals["cached"] == studies - asked
    write_annotations(phantom_shards, tmp_path / "again", asking)
    assert len(server.asked) == asked, "another side of the same answers asks for nothing"


def test_the_same_report_is_asked_for_once(server, extractor):
    asking = extractor()
    found = asking.annotate([REPORT, "", REPORT, "No edema.", REPORT])
    assert len(server.asked) == 2 and found[0] == found[2] == found[4] and found[1] == Annotation()
    assert asking.usage.cached == 2 and asking.annotate([]) == [] and len(server.asked) == 2


def test_answers_are_in_the_order_of_the_reports(server, extractor):
    busy, most, lock = 0, 0, threading.Lock()

    def reply(report: str, before: int) -> Reply:
        nonlocal busy, most
        with lock:
            busy += 1
            most = max(most, busy)
        number = int(report.split()[-1])
        time.sleep(0.06 if number % 4 == 0 else 0.01)
        with lock:
            busy -= 1
        return completion({"entities": [entity(str(number), 0, "size")], "relations": []})

    server.reply = reply
    found = extractor(concurrency=4).annotate([f"Lobe {number}" for number in range(24)])
    assert [one.entities[0].name for one in found] == [str(number) for number in range(24)]
    assert 2 <= most <= 4


def test_an_error_ends_the_batch_without_waiting_for_the_others(server, extractor):
    def reply(report: str, before: int) -> Reply:
        if "bad" in report:
            time.sleep(0.1)
            return problem(401, "no")
        return problem(429, "busy", Retry_After="60")

    server.reply = reply
    began = time.monotonic()
    with pytest.raises(ConfigError, match="answers 401"):
        extractor(concurrency=3).annotate(["busy", "busy too", "bad", *map(str, range(20))])
    assert time.monotonic() - began < 5 and len(server.asked) < 8


def test_a_cache_that_is_torn_or_anothers_is_asked_anew(server, extractor, tmp_path):
    extractor().annotate([REPORT])
    (file,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    whole = file.read_bytes()
    assert file.parent.parent.name == extractor().settings()["sha256"][:16] and file.parent.name == file.name[:2]
    foreign = json.dumps(json.loads(whole) | {"key": "another"}).encode()
    wrong = json.dumps(json.loads(whole) | {"answer": {"entities": [5], "relations": []}}).encode()
    for times, torn in enumerate(
        [b"", whole[:-5], b"[]", b"5", b"[" * 99999, b"\xff", foreign, wrong, b" " * (3 << 20)]
    ):
        file.write_bytes(torn)
        assert len(extractor().annotate([REPORT])[0].entities) == 5
        assert len(server.asked) == times + 2 and file.read_bytes() == whole


def test_what_decides_answers_has_a_cache_of_its_own(server, extractor):
    changes = ({}, {"model": "n"}, {"temperature": 0.5}, {"max_tokens": 99}, {"seed": 1}, {"seed": None})
    assert len({extractor(**change).settings()["sha256"] for change in changes}) == len(changes)
    for change in changes:
        extractor(**change).annotate([REPORT])
    assert len(server.asked) == len(changes)
    same = ({"concurrency": 1}, {"timeout_s": 9.0}, {"endpoint": "http://localhost:1/v1"}, {"retries": 0})
    for change in same:
        assert extractor(**change).settings() == extractor().settings()
        assert len(extractor(**change).annotate([REPORT])[0].entities) == 5
    assert len(server.asked) == len(changes)


def test_a_cache_that_cannot_be_written_is_told(server, extractor, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cache=.*file cannot be written"):
        extractor(cache=str(tmp_path / "file")).annotate([REPORT])


def test_two_workers_may_write_the_same_answers(server, extractor):
    reports = [f"Small effusion {number}." for number in range(8)]
    asking, found = [extractor(concurrency=2) for _ in range(2)], {}
    threads = [
        threading.Thread(target=lambda n=n: found.update({n: asking[n].annotate(reports)}))  # type: ignore[misc]
        for n in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1] == extractor().annotate(reports) and len(server.asked) <= 16


def test_openai_is_needed_for_what_is_not_in_the_cache(server, extractor, monkeypatch):
    extractor().annotate([REPORT])
    monkeypatch.setitem(sys.modules, "openai", None)
    assert len(extractor().annotate([REPORT])[0].entities) == 5
    with pytest.raises(ConfigError, match=r"pip install r2kg\[llm\]"):
        extractor().annotate(["No edema."])


def test_a_pickled_extractor_counts_for_itself(server, extractor):
    asking = extractor()
    asking.annotate([REPORT])
    copy = pickle.loads(pickle.dumps(asking))
    assert copy == asking and copy.usage == Usage() and asking.usage.requests == 1
    copy.annotate([REPORT, "No edema."])
    total = Usage().add(asking.usage).add(copy.usage)
    assert total.requests == 2 and total.cached == 1 and total.prompt_tokens == 140
    assert total.cost(prompt_per_million=2.0, completion_per_million=10.0) == pytest.approx(140 * 2e-6 + 60 * 1e-5)


def test_errors_of_libraries_are_fenced(extractor, monkeypatch):
    def fails(*_: Any) -> None:
        raise KeyError(REPORT)

    monkeypatch.setattr(LlmExtractor, "_ask", fails)
    with pytest.raises(KeyError, match="effusion"):
        extractor().annotate([REPORT])
    with pytest.raises(RuntimeError, match="KeyError .its message is withheld") as raised:
        extractor(licence="credentialed").annotate([REPORT])
    assert "ffusion" not in str(raised.value)


def test_half_characters_are_sent_as_question_marks(server, extractor):
    server.reply = lambda report, before: completion({"entities": [entity("edema", 0)], "relations": []})
    (found,) = extractor().annotate(["\ud800 edema"])
    assert server.asked[0].report == "[0] ? edema" and found.entities[0].start == 2


def same_letters(one: str, two: str) -> bool:
    """Whether two texts are the same but for case, as regular expressions see it, and the width of blanks."""
    folded = [[letter.lower()[0].upper() for letter in " ".join(text.split())] for text in (one, two)]
    return folded[0] == folded[1]


def holds(report: str, found: Annotation, said: list[str] | None = None) -> None:
    """Assert what every annotation of a report has to be."""
    ends = 0
    for one in found.entities:
        assert ends <= one.start < one.end <= len(report)
        ends, text = one.end, report[one.start : one.end]
        assert one.name == " ".join(text.lower().split())
        start, end = sentences_of(report)[one.sentence]
        assert start <= one.start and one.end <= end
        assert said is None or any(same_letters(text, words) for words in said)
    for link in found.relations:
        assert {link.head, link.tail} <= set(range(len(found.entities))) and link.head != link.tail


letters = st.text(st.sampled_from("aAbB ıIİſKkß.,\n1[(é"), max_size=6)
mentions = st.fixed_dictionaries(
    {
        "text": letters,
        "kind": st.sampled_from([*KINDS, "other"]),
        "certainty": st.sampled_from([*CERTAINTIES, "other"]),
        "sentence": st.none() | st.integers(-1, 3),
    }
)
links = st.fixed_dictionaries(
    {"head": st.integers(-1, 5), "relation": st.sampled_from([*RELATIONS, "other"]), "tail": st.integers(-1, 5)}
)
answers = st.fixed_dictionaries({"entities": st.lists(mentions, max_size=6), "relations": st.lists(links, max_size=6)})


@settings(max_examples=200, deadline=None)
@given(st.lists(letters, max_size=6).map(" ".join), answers)
def test_spans_are_the_reports_own_whatever_is_said(report, said):
    usage = Usage()
    found = align(report, Answer.model_validate(said), "", usage)
    holds(report, found, [one["text"].strip(" \t\r\n.,;:") for one in said["entities"]])
    assert usage.dropped_entities == len(said["entities"]) - len(found.entities)
    assert usage.dropped_relations == len(said["relations"]) - len(found.relations)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "message", "content", "usage", "prompt_tokens", "refusal", "entities", "relations", "error"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
replies = (
    st.one_of(answers, anything, st.text()).map(completion)
    | anything.map(lambda whole: Reply(json.dumps(whole).encode()))
    | st.binary(max_size=40).map(Reply)
    | st.builds(
        Reply, anything.map(lambda whole: json.dumps(whole).encode()), st.sampled_from([300, 400, 404, 429, 500])
    )
)
numbers = count()


@settings(max_examples=25, deadline=None)
@given(reply=replies)
def test_whatever_a_server_says_the_errors_are_ours(shared_server, tmp_path_factory, reply):
    shared_server.reply = lambda report, before: reply
    cache = tmp_path_factory.getbasetemp() / "any" / str(next(numbers))
    asking = LlmExtractor(shared_server.url, "m", str(cache), "public", retries=1, backoff_s=0.0)
    report = "aA b. B a.b 1 é"
    try:
        (found,) = asking.annotate_or_none([report])
        again = asking.annotate([report])
    except (ConfigError, DataError, RetryableError):
        return
    holds(report, found)
    assert again == [found]
