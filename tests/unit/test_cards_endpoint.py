"""The writer at an endpoint: a real server with a real tiny model, behind a proxy that fails as real ones do."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cathpc import schema
from cathpc.cards import asking as module
from cathpc.cards import endpoint
from cathpc.cards.config import CardsConfig, WriterKind
from cathpc.cards.endpoint import OpenAIWriter
from cathpc.cards.json_form import as_form, names
from cathpc.cards.writer import Draft, Task
from cathpc.errors import TryAgainError, UserError
from cathpc.record import RECORD_SCHEMA, Message, Record, record_id
from cathpc.serving.config import EndpointConfig, Engine, ServingConfig, faults_of
from cathpc.serving.server import Endpoint, Server
from tests.model_server import Proxy, Served, answer, serve

KEY = "sk-canary-3f9c21d0-not-to-be-seen"
VARIABLE = "CATHPC_TEST_KEY"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server(tiny_llama: Path) -> Iterator[Served]:
    with serve(tiny_llama, KEY) as served:
        yield served


@pytest.fixture
def proxy(server: Served, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    monkeypatch.setenv(VARIABLE, KEY)
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(module, "LONGEST_PAUSE_S", 0.4)
    made = Proxy(server.port)
    yield made
    made.close()


def cards(url: str, **options: Any) -> CardsConfig:
    asked = EndpointConfig(url=url, model="tiny", key_env=VARIABLE, concurrency=4, give_up_s=60.0, timeout_s=30.0)
    return CardsConfig(writer=WriterKind.openai, max_new_tokens=24, attempts=2, endpoint=replace(asked, **options))


def tasks(writer: OpenAIWriter, number: int) -> list[Task]:
    made = []
    for n in range(number):
        messages: list[Message] = [
            {"role": "user", "content": f"Question {n}?"},
            {"role": "assistant", "content": f"Answer {n}."},
        ]
        made.append(writer.task(str(n), messages, "general", 0))
    return made


def written(config: CardsConfig, cache: Path, number: int = 8) -> list[Draft]:
    """All drafts of `number` tasks, each once."""
    writer = OpenAIWriter(config, cache)
    asked = tasks(writer, number)
    drafts = [draft for batch in writer.write(asked) for draft in batch]
    assert sorted(d.key for d in drafts) == sorted(t.key for t in asked)
    assert len({d.key for d in drafts}) == number
    return drafts


def first(times: int, fault: Callable[[Any], Any]) -> Any:
    """A fault of the proxy for the first `times` chat requests."""
    left = [times]

    def faulty(handler: Any, body: bytes, ask: Callable[[], bytes]) -> bool:
        if left[0] <= 0:
            return False
        left[0] -= 1
        fault((handler, body, ask))
        return True

    return faulty


def test_every_task_gets_one_draft_decoded_under_the_schema(proxy: Proxy, tmp_path: Path) -> None:
    drafts = written(cards(proxy.url), tmp_path)
    assert all(as_form(d.text) == d.text and d.tokens > 0 and d.seconds > 0 for d in drafts)
    assert len(proxy.seen) == 8 and all("response_format" in body for _, body in proxy.seen)
    assert KEY not in json.dumps([body for _, body in proxy.seen])


def test_no_more_requests_are_in_flight_than_allowed(proxy: Proxy, tmp_path: Path) -> None:
    flying, most = [0], [0]

    def watch(handler: Any, body: bytes, ask: Callable[[], bytes]) -> bool:
        flying[0] += 1
        most[0] = max(most[0], flying[0])
        text = ask()
        time.sleep(0.05)
        flying[0] -= 1
        return answer(handler, 200, text)

    proxy.faults.append(watch)
    written(cards(proxy.url, concurrency=3), tmp_path)
    assert most[0] == 3


def test_requests_keep_the_rate(proxy: Proxy, tmp_path: Path) -> None:
    written(cards(proxy.url, requests_per_minute=600.0), tmp_path, 6)
    times = sorted(at for at, _ in proxy.seen)
    assert times[-1] - times[0] >= 0.4  # six requests, 0.1 s apart, but for what the proxy takes to note them


@pytest.mark.parametrize("seconds", [2.0, pytest.param(60.0, marks=pytest.mark.faults)])
def test_an_outage_is_waited_out_and_nothing_is_written_twice(
    proxy: Proxy, tmp_path: Path, server: Served, seconds: float
) -> None:
    before = len(server.requests)
    writer = OpenAIWriter(cards(proxy.url, concurrency=2, give_up_s=120.0), tmp_path)
    asked, drafts = tasks(writer, 8), []
    for batch in writer.write(asked):
        drafts += batch
        if proxy.down_until == 0:
            proxy.down_until = time.monotonic() + seconds
    assert sorted(d.key for d in drafts) == sorted(t.key for t in asked)
    assert len(proxy.seen) > 8  # those that met the outage came again
    assert len(server.requests) - before <= 8 + 2  # and at most those in flight were written twice


def test_too_many_requests_wait_as_long_as_they_are_told(proxy: Proxy, tmp_path: Path) -> None:
    told: list[float] = []

    def busy(parts: Any) -> None:
        answer(parts[0], 429, b'{"error": {"message": "slow down"}}', Retry_After="1")
        told.append(time.monotonic())

    proxy.faults.append(first(1, busy))
    written(cards(proxy.url, concurrency=1), tmp_path, 3)
    assert proxy.seen[1][0] - told[0] >= 0.95


def test_a_wait_that_is_longer_than_we_have_ends_the_job_for_now(proxy: Proxy, tmp_path: Path) -> None:
    proxy.faults.append(first(9, lambda p: answer(p[0], 429, b"{}", Retry_After="3600")))
    with pytest.raises(TryAgainError, match=r"give_up_s=60.*the same command goes on"):
        written(cards(proxy.url), tmp_path)


def cut(parts: Any) -> None:
    handler, _, ask = parts
    text = ask()
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(text)))
    handler.end_headers()
    handler.wfile.write(text[: len(text) // 2])


def with_text(text: str | None) -> Callable[[Any], None]:
    def change(parts: Any) -> None:
        handler, _, ask = parts
        content = json.loads(ask())
        content["choices"][0]["message"]["content"] = text
        answer(handler, 200, json.dumps(content).encode())

    return change


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(lambda p: answer(p[0], 500, b"internal error"), id="500"),
        pytest.param(lambda p: answer(p[0], 503, b"<html>no backend</html>"), id="503"),
        pytest.param(cut, id="cut"),
        pytest.param(lambda p: answer(p[0], 200, p[2]()[:-40]), id="broken JSON of the answer"),
        pytest.param(lambda p: answer(p[0], 200, b"<html>maintenance</html>", Content_Type="text/html"), id="a page"),
        pytest.param(with_text('{"Role": "a gardener", "Na'), id="broken JSON of the card"),
        pytest.param(with_text(""), id="empty"),
        pytest.param(with_text(None), id="null"),
        pytest.param(with_text('["a", "list"]'), id="another JSON"),
    ],
)
def test_a_fault_in_between_costs_no_card(proxy: Proxy, tmp_path: Path, fault: Callable[[Any], Any]) -> None:
    proxy.faults.append(first(3, fault))
    drafts = written(cards(proxy.url), tmp_path)
    assert len(proxy.seen) == 8 + 3
    assert all(as_form(d.text) for d in drafts)


def test_an_endpoint_that_fails_for_long_makes_no_text_the_scapegoat(proxy: Proxy, tmp_path: Path) -> None:
    proxy.faults.append(first(60, lambda p: answer(p[0], 500, b"out of memory")))  # more than 8 texts x retries
    drafts = written(cards(proxy.url, retries=2), tmp_path)
    assert all(as_form(d.text) for d in drafts)


def test_a_text_that_the_endpoint_cannot_answer_is_refused_and_the_others_go_on(proxy: Proxy, tmp_path: Path) -> None:
    def poison(handler: Any, body: bytes, ask: Callable[[], bytes]) -> bool:
        return b"Question 3?" in body and answer(handler, 500, b"tensor has nan")

    proxy.faults.append(poison)
    drafts = written(cards(proxy.url, retries=1, concurrency=2), tmp_path, 12)
    assert [d.id for d in drafts if not d.text] == ["3"]


def test_a_text_that_never_becomes_json_is_a_failed_draft(proxy: Proxy, tmp_path: Path) -> None:
    proxy.faults.append(
        lambda handler, body, ask: b"Question 3?" in body and bool(with_text("nonsense")((handler, body, ask)) or True)
    )
    drafts = written(cards(proxy.url, retries=2), tmp_path)
    assert [(d.id, d.text) for d in drafts if not as_form(d.text)] == [("3", "nonsense")]
    assert sum("Question 3?" in json.dumps(body) for _, body in proxy.seen) == 3


def test_a_record_that_is_too_long_for_the_endpoint_is_refused_alone(proxy: Proxy, tmp_path: Path) -> None:
    proxy.faults.append(lambda h, body, ask: b"Question 0?" in body and answer(h, 400, b'{"detail": "too long"}'))
    drafts = written(cards(proxy.url, concurrency=1), tmp_path)
    assert [d.id for d in drafts if not d.text] == ["0"]


def test_an_endpoint_that_refuses_everything_is_an_error_and_no_draft(proxy: Proxy, tmp_path: Path) -> None:
    proxy.faults.append(lambda h, body, ask: answer(h, 400, b'{"error": {"message": "max_tokens is not supported"}}'))
    writer = OpenAIWriter(cards(proxy.url), tmp_path)
    drafts: list[Draft] = []
    with pytest.raises(UserError, match=r"refuses every request.*max_tokens is not supported"):
        for batch in writer.write(tasks(writer, 8)):
            drafts += batch
    assert drafts == []


def some_then(writer: OpenAIWriter, asked: list[Task]) -> tuple[list[Draft], str]:
    """What is written of `asked`, and the error that it ends with."""
    drafts: list[Draft] = []
    with pytest.raises(UserError) as caught:
        for batch in writer.write(asked):
            drafts += batch
    return drafts, str(caught.value)


def after(times: int, status: int, body: bytes) -> Callable[..., bool]:
    """A fault of the proxy for every chat request but the first `times`."""
    left = [times]

    def faulty(handler: Any, said: bytes, ask: Callable[[], bytes]) -> bool:
        left[0] -= 1
        return left[0] < 0 and answer(handler, status, body)

    return faulty


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (402, b'{"error": {"code": 402, "message": "Insufficient credits"}}', "no credit left .402.: .*Insufficient"),
        (429, b'{"error": {"code": "insufficient_quota", "message": "pay"}}', "no credit left .429."),
        (400, b'{"error": {"message": "balance too low"}}', "refuses every request: .*balance too low"),
    ],
)
def test_an_account_that_runs_dry_costs_no_record_its_card(
    proxy: Proxy, tmp_path: Path, status: int, body: bytes, told: str
) -> None:
    proxy.faults.append(after(4, status, body))
    writer = OpenAIWriter(cards(proxy.url, concurrency=2), tmp_path)
    asked = tasks(writer, 60)
    drafts, said = some_then(writer, asked)
    assert re.search(told, said) and "the same command goes on" in said
    assert 3 <= len(drafts) <= 4 and all(d.text for d in drafts)
    assert len(proxy.seen) <= 4 + endpoint.DOUBTED + 4  # beside the control, and what was in flight meanwhile
    proxy.faults.clear()
    left = [t for t in asked if t.key not in {d.key for d in drafts}][:3]
    drafts = [d for batch in OpenAIWriter(cards(proxy.url), tmp_path).write(left) for d in batch]
    assert sorted(d.key for d in drafts) == sorted(t.key for t in left) and all(d.text for d in drafts)


def test_an_account_that_runs_dry_at_the_end_of_a_shard_costs_no_card_either(proxy: Proxy, tmp_path: Path) -> None:
    proxy.faults.append(after(6, 400, b'{"error": {"message": "balance too low"}}'))
    drafts, said = some_then(writer := OpenAIWriter(cards(proxy.url), tmp_path), tasks(writer, 8))
    assert len(drafts) == 6 and all(d.text for d in drafts) and "balance too low" in said


def test_refusals_in_a_row_are_the_records_own_where_another_card_is_answered(proxy: Proxy, tmp_path: Path) -> None:
    def too_long(handler: Any, body: bytes, ask: Callable[[], bytes]) -> bool:
        mine = re.search(rb"Question (\d+)\?", body)
        return bool(mine and int(mine[1]) >= 4) and answer(handler, 400, b'{"error": {"message": "too long"}}')

    proxy.faults.append(too_long)
    drafts = written(cards(proxy.url), tmp_path, 4 + endpoint.DOUBTED + 5)
    assert sorted(int(d.id) for d in drafts if d.text) == [0, 1, 2, 3]
    controls = sum("Hello to you!" in json.dumps(body) for _, body in proxy.seen)
    assert controls == 2  # after so many, and at the end


@pytest.mark.parametrize("concurrency", [1, 2])
@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(lambda p: answer(p[0], 500, b"tensor has nan"), id="500"),
        pytest.param(lambda p: time.sleep(2.5), id="timeout"),
        pytest.param(lambda p: answer(p[0], 200, b"<html></html>", Content_Type="text/html"), id="a page"),
    ],
)
def test_a_text_that_always_fails_is_given_up_though_no_other_one_is_in_flight(
    proxy: Proxy, tmp_path: Path, fault: Callable[[Any], Any], concurrency: int
) -> None:
    def poison(handler: Any, body: bytes, ask: Callable[[], bytes]) -> bool:
        return any(word in body for word in (b"Question 2?", b"Question 3?")) and bool(fault((handler, body, ask)) or 1)

    proxy.faults.append(poison)
    drafts = written(cards(proxy.url, retries=0, timeout_s=2.0, concurrency=concurrency), tmp_path, 4)
    assert sorted(d.id for d in drafts if not d.text) == ["2", "3"]


def test_a_text_is_not_blamed_where_the_control_fails_too(proxy: Proxy, tmp_path: Path) -> None:
    proxy.faults.append(lambda h, body, ask: answer(h, 500, b"out of memory"))
    writer = OpenAIWriter(cards(proxy.url, retries=0, concurrency=1, give_up_s=1.0), tmp_path)
    with pytest.raises(TryAgainError, match="has not answered"):
        list(writer.write(tasks(writer, 1)))
    assert any("Hello to you!" in json.dumps(body) for _, body in proxy.seen)


def test_a_server_of_our_own_that_has_died_is_not_waited_for(proxy: Proxy, tmp_path: Path) -> None:
    proxy.down_until = time.monotonic() + 600
    writer = OpenAIWriter(cards(proxy.url), tmp_path)
    writer.load()
    server = Server.__new__(Server)
    server._process, server._log = subprocess.Popen([sys.executable, "-c", "exit(7)"]), tmp_path / "log"
    server._log.write_text("CUDA error\n")
    server._process.wait()
    writer._link.server = server
    begun = time.monotonic()
    with pytest.raises(TryAgainError, match=r"the server ended with code 7(.|\n)*CUDA error(.|\n)*goes on"):
        list(writer.write(tasks(writer, 4)))
    assert time.monotonic() - begun < 10


def test_without_schemas_json_is_asked_for_in_words_and_that_is_said_once(
    proxy: Proxy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_schema(handler: Any, body: bytes, ask: Callable[[], bytes]) -> bool:
        if b"response_format" in body:
            return answer(handler, 400, b'{"error": {"message": "response_format is not supported"}}')
        fields = json.dumps(dict.fromkeys(names(), "a word"))
        with_text(f"Here it is:\n```json\n{fields}\n```")((handler, body, ask))
        return True

    proxy.faults.append(no_schema)
    drafts = written(cards(proxy.url), tmp_path)
    assert all("a word" in as_form(d.text) for d in drafts)
    assert capsys.readouterr().err.count("takes no response_format") == 1
    assert sum("response_format" in body for _, body in proxy.seen) <= 4  # those that were in flight together


def test_no_part_of_a_key_is_left_where_a_long_error_is_cut() -> None:
    asking = module.Asking.__new__(module.Asking)
    asking._endpoint = Endpoint("http://127.0.0.1:1/v1", "m", KEY)
    for before in range(250, 310):
        assert "canary" not in asking._said(ValueError("x" * before + KEY))


@pytest.mark.parametrize("value", ["sk-wrong-canary-7c1e", ""])
def test_a_refused_key_is_one_error_that_names_the_variable_and_not_the_key(
    proxy: Proxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    value: str,
) -> None:
    monkeypatch.setenv(VARIABLE, value)
    with pytest.raises(UserError, match=f"refuses the key \\(401\\).*{VARIABLE}") as caught:
        written(cards(proxy.url), tmp_path)
    chain = [str(caught.value), str(caught.value.__cause__), *capsys.readouterr()]
    assert not any(secret in text for text in chain for secret in ("canary", KEY))
    assert ("is not set" in str(caught.value)) == (value == "")


def test_a_model_that_is_not_there_is_explained(proxy: Proxy, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no model other.*cards\.endpoint\.model"):
        written(cards(proxy.url, model="other"), tmp_path)


def test_what_was_written_before_an_outage_without_end_is_kept(proxy: Proxy, tmp_path: Path) -> None:
    writer = OpenAIWriter(cards(proxy.url, concurrency=2, give_up_s=0.5), tmp_path)
    asked, drafts = tasks(writer, 8), []
    with pytest.raises(TryAgainError, match="has not answered for"):
        for batch in writer.write(asked):
            drafts += batch
            proxy.down_until = time.monotonic() + 600
    assert 0 < len(drafts) < 8
    proxy.down_until = 0.0
    left = [t for t in asked if t.key not in {d.key for d in drafts}]
    drafts += [d for batch in OpenAIWriter(cards(proxy.url), tmp_path).write(left) for d in batch]
    assert sorted(d.key for d in drafts) == sorted(t.key for t in asked)


def test_the_budget_ends_the_writing_and_counts_what_others_spent(proxy: Proxy, tmp_path: Path) -> None:
    prices: dict[str, Any] = {"usd_per_million_input": 1.0, "usd_per_million_output": 1.0, "concurrency": 1}
    asked: list[Task] = []
    drafts: list[Draft] = []

    def go(usd: float) -> None:
        writer = OpenAIWriter(cards(proxy.url, budget_usd=usd, **prices), tmp_path)
        asked[:] = tasks(writer, 8)
        for batch in writer.write([t for t in asked if t.key not in {d.key for d in drafts}]):
            drafts.extend(batch)

    with pytest.raises(UserError, match=r"budget_usd=0\.006.*What is written is kept"):
        go(0.006)
    some = len(drafts)
    assert 0 < some < 8
    seen = len(proxy.seen)
    with pytest.raises(UserError, match="are spent"):  # another process, or the next attempt
        go(0.006)
    assert len(proxy.seen) == seen and len(drafts) == some
    go(1.0)
    assert sorted(d.key for d in drafts) == sorted(t.key for t in asked)
    spent = sum(float(x) for f in (tmp_path / "spent").rglob("*.txt") for x in f.read_text().split())
    assert 8e-6 * 24 < spent < 0.1


@pytest.mark.parametrize(("fault", "billed"), [(lambda p: time.sleep(3.0), True), (cut, True), (None, False)])
def test_a_request_whose_answer_is_lost_counts_as_the_most_that_it_may_cost(
    proxy: Proxy, tmp_path: Path, fault: Callable[[Any], Any] | None, billed: bool
) -> None:
    prices: dict[str, Any] = {"usd_per_million_input": 0.0, "usd_per_million_output": 1e6, "budget_usd": 1e6}
    proxy.faults.append(first(1, fault or (lambda p: answer(p[0], 500, b"overloaded"))))
    (draft,) = written(cards(proxy.url, concurrency=1, timeout_s=2.5, **prices), tmp_path, 1)
    spent = sum(float(x) for f in (tmp_path / "spent").rglob("*.txt") for x in f.read_text().split())
    assert spent == draft.tokens + 24 * billed


KILLED = """
import sys
from pathlib import Path
from types import SimpleNamespace
from cathpc.cards import stage
from cathpc.cards.config import CardsConfig, WriterKind
from cathpc.serving.config import EndpointConfig, ServingConfig
asked = EndpointConfig(url=sys.argv[1], model="tiny", key_env="CATHPC_TEST_KEY", concurrency=2)
cards = CardsConfig(writer=WriterKind.openai, max_new_tokens=24, attempts=2, endpoint=asked)
config = SimpleNamespace(cards=cards, paths=SimpleNamespace(cache=sys.argv[2]), serving=ServingConfig())
stage.run(config, {"select": Path(sys.argv[3])}, Path(sys.argv[4]))
"""


def test_a_writer_that_is_killed_twice_loses_no_card_and_writes_none_twice(proxy: Proxy, tmp_path: Path) -> None:
    records = []
    for n in range(12):
        talk: list[Message] = [
            {"role": "user", "content": f"I have question {n}. How do I grow herbs?"},
            {"role": "assistant", "content": f"Answer {n}: give them light, and water them in the morning."},
        ]
        records.append(Record(record_id("t", talk), "t", "general", talk, "careful", "CC0-1.0", f"t:{n}"))
    select, out = tmp_path / "select", tmp_path / "out"
    select.mkdir()
    out.mkdir()
    pq.write_table(pa.Table.from_pylist([r.row() for r in records], RECORD_SCHEMA), select / "kept.parquet")
    command = [sys.executable, "-c", KILLED, proxy.url, str(tmp_path / "cache"), str(select), str(out)]
    drafts = out / "cache" / "drafts-00000.jsonl"

    def lines() -> int:
        return len(drafts.read_bytes().splitlines()) if drafts.exists() else 0

    for more in (3, 5):
        process = subprocess.Popen(command, cwd=ROOT)
        goal = lines() + more
        while lines() < goal and process.poll() is None:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert subprocess.run(command, cwd=ROOT, check=True).returncode == 0
    listed = [json.loads(line) for line in (out / "cards.jsonl").read_text().splitlines()]
    assert [c["id"] for c in listed] == [r.id for r in records]
    keys = [json.loads(line)["key"] for line in drafts.read_text().splitlines()]
    assert len(keys) == len(set(keys)) >= 12
    assert len(proxy.seen) <= len(keys) + 2 * 4  # of each kill at most what was in flight, and one batch


def test_only_what_decides_a_card_is_part_of_its_fingerprint() -> None:
    base = cards("http://here/v1")
    same = [
        replace(base, endpoint=replace(base.endpoint, **change))
        for change in (
            {"url": "http://there/v1"},
            {"concurrency": 99},
            {"key_env": "OTHER"},
            {"requests_per_minute": 5.0},
            {"url": "", "serve": Engine.vllm},
            {"budget_usd": 5.0},
        )
    ]
    other = [replace(base, endpoint=replace(base.endpoint, model="m")), replace(base, temperature=0.1)]
    assert all(schema.identity(c) == schema.identity(base) for c in same)
    assert all(schema.identity(c) != schema.identity(base) for c in other)

    def key(config: CardsConfig) -> str:
        return tasks(OpenAIWriter(config, Path("nowhere")), 1)[0].key

    assert {key(c) for c in same} == {key(base)} and key(base) not in {key(c) for c in other}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"url": ""}, "give either url"),
        ({"url": "http://x/v1", "serve": Engine.vllm}, "give either url"),
        ({"url": "ftp://x"}, "must start with http"),
        ({"url": "http://me:pass@x/v1"}, "holds a name, a key"),
        ({"key_env": "OPENAI_API_KEY"}, "is plain HTTP to another machine"),
        ({"key_env": "sk-canary"}, "must be the name of an environment variable"),
        ({"model": ""}, "model is empty"),
        ({"concurrency": 0}, "must be greater than 0"),
        ({"budget_usd": 3.0}, "needs prices"),
    ],
)
def test_a_config_that_cannot_work_is_refused_by_key(change: dict[str, Any], message: str) -> None:
    faults = faults_of(replace(cards("http://x/v1").endpoint, **change), ServingConfig(), "")
    assert any(message in fault for fault in faults) and "canary" not in "".join(faults)
    assert not faults_of(cards("http://x/v1").endpoint, ServingConfig(), "")
    for url in ("https://x/v1", "http://127.0.0.1:8000/v1", "http://[::1]/v1"):
        assert not faults_of(cards(url, key_env="OPENAI_API_KEY").endpoint, ServingConfig(), "")


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ('{"Role": "a", "Name": "b", "Place": "c", "Time": "d", "Appearance": "e", "Personality": "f\\n g"}', "f g"),
        ("Role: a\nName: b\nPlace: c\nTime: d\nAppearance: e\nPersonality: f", "Personality: f"),
        ('{"Role": "a"}', ""),
        ('{"Role": 1, "Name": "b", "Place": "c", "Time": "d", "Appearance": "e", "Personality": "f"}', ""),
        ("", ""),
    ],
)
def test_forms_are_read_from_json_or_lines(text: str, form: str) -> None:
    assert as_form(text).endswith(form) and bool(as_form(text)) == bool(form)
