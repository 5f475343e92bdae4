"""What becomes of requests when the server refuses, breaks off, is busy, or is away: no socket, a scripted server."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import msgspec
import pytest
from tokenizers import Tokenizer

from workers.engine.config import EngineConfig
from workers.engine.errors import EngineConfigError, UpstreamUnavailable
from workers.engine.protocol import EngineInfo, Request, SamplingParams
from workers.engine.streamed import LoopThread, StreamedEngine
from workers.engine.tokenizer import load_bundle
from workers.engine.upstream import UpstreamSource, _connect, client_of
from workers.engine.upstream_config import UpstreamConfig
from workers.models import BROOK

TOKENIZER = Tokenizer.from_file(str(BROOK / "tokenizer.json"))
BUNDLE = load_bundle(str(BROOK))
INFO = EngineInfo(
    model="it", model_hash="", tokenizer_hash="", settings_hash="", architecture="", device="upstream", dtype="",
    num_parameters=0, vocab_size=2048, max_model_len=256, block_size=16, num_blocks=64, max_num_seqs=4, eos_token_ids=[1],
)  # fmt: skip
GOOD = "good"  # a body's answer that the script doesn't change


def chunks(*token_ids: int, finish: str | None = "length") -> list[dict[str, Any]]:
    """A stream of vLLM's, a token a chunk; an end unless `finish` is None."""
    last = len(token_ids) - 1
    return [
        {
            "choices": [
                {
                    "text": TOKENIZER.decode([token_id]),
                    "token_ids": [token_id],
                    "finish_reason": finish if i == last else None,
                }
            ]
        }
        for i, token_id in enumerate(token_ids)
    ]


class Script:
    """Answers in order, the last one again and again; probes get `probe`."""

    def __init__(self, *answers: Any, probe: Any = GOOD) -> None:
        self.answers = list(answers)
        self.probe = probe
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[httpx.Headers] = []
        self.num_probes = 0

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/models"):
            return httpx.Response(200, json={"data": [{"id": "served", "max_model_len": 256}]})
        body = json.loads(request.content)
        if not body["stream"]:
            self.num_probes += 1
            return self._answer(
                self.probe, [{"choices": [{"text": " fox", "token_ids": TOKENIZER.encode(" fox").ids}]}]
            )
        self.bodies.append(body)
        self.headers.append(request.headers)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return self._answer(answer, chunks(5, 6, 7))

    def _answer(self, answer: Any, good: list[dict[str, Any]]) -> httpx.Response:
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, int):
            return httpx.Response(
                answer, json={"error": {"message": f'invalid input: "said {answer}"', "code": answer}}
            )
        if answer == GOOD:
            answer = good
            if "token_ids" in good[0]["choices"][0] and "finish_reason" not in good[0]["choices"][0]:
                return httpx.Response(200, json=good[0])
        return httpx.Response(200, content=_lines(answer))


async def _lines(answer: list[Any]) -> AsyncIterator[bytes]:
    for each in answer:
        if isinstance(each, Exception):
            raise each
        yield f"data: {json.dumps(each)}\n\n".encode() if isinstance(each, dict) else each
    yield b"data: [DONE]\n\n"


@pytest.fixture
def engine_of() -> Any:
    """Makes an engine over a script."""
    made: list[StreamedEngine] = []

    def make(script: Script, max_streams: int = 4, **changes: Any) -> StreamedEngine:
        config = UpstreamConfig(**({"url": "http://it", "dialect": "vllm", "outage_s": 0.3} | changes))
        client = httpx.AsyncClient(transport=httpx.MockTransport(script), base_url=config.base_url)
        source = UpstreamSource(
            config, client, model="served", tokenizer=TOKENIZER, bundle=BUNDLE, eos_token_ids=[1], takes_token_ids=True
        )
        engine = StreamedEngine(INFO, source, LoopThread(), max_streams=max_streams)
        made.append(engine)
        return engine

    yield make
    for engine in made:
        engine.close()


def request(name: str = "it", **changes: Any) -> Request:
    outer = {key: changes.pop(key) for key in ("n", "resume", "priority", "cache_salt") if key in changes}
    return Request(id=name, prompt_ids=[40, 41], sampling=SamplingParams(**({"max_tokens": 3} | changes)), **outer)


def run(engine: StreamedEngine, *requests: Request) -> tuple[dict[str, list[int]], dict[str, Any]]:
    tokens: dict[str, list[int]] = {}
    failed: dict[str, Any] = {}
    for each in requests:
        engine.add(each)
    while engine.has_work():
        output = engine.step()
        for delta in output.deltas:
            tokens.setdefault(f"{delta.request_id}.{delta.choice}", []).extend(delta.token_ids)
        failed |= {each.request_id: each for each in output.failed}
    return tokens, failed


@pytest.mark.parametrize(
    "trouble",
    [httpx.ConnectError("refused"), httpx.ReadTimeout("slow"), 503, 429, 502, 500, [], [b"data: {broken\n\n"]],
)
def test_before_its_first_token_a_request_is_sent_again(engine_of: Any, trouble: Any) -> None:
    script = Script(trouble, trouble, GOOD)
    tokens, failed = run(engine_of(script, outage_s=60), request())
    assert (tokens, failed) == ({"it.0": [5, 6, 7]}, {})
    assert script.bodies[0] == script.bodies[2]


@pytest.mark.parametrize("end", [httpx.ReadError("cut"), {"error": {"message": "no memory", "code": 500}}])
def test_after_its_first_token_it_is_not_and_may_run_another_time(engine_of: Any, end: Any) -> None:
    script = Script([*chunks(5, finish=None), end])
    _, failed = run(engine_of(script), request())
    assert len(script.bodies) == 1
    assert (failed["it"].code, failed["it"].retryable) == ("upstream_failed", True)


def test_a_stream_that_just_ends_has_broken(engine_of: Any) -> None:
    _, failed = run(engine_of(Script(chunks(5, finish=None))), request())
    assert (failed["it"].code, failed["it"].retryable) == ("stream_broken", True)


@pytest.mark.parametrize("answer", [400, 413, 422, [{"error": {"message": "invalid input: said 400", "code": 400}}]])
def test_what_the_server_refuses_fails_alone_and_for_good(engine_of: Any, answer: Any) -> None:
    script = Script(answer, GOOD)
    engine = engine_of(script, max_streams=1)
    tokens, failed = run(engine, request("bad"), request("good"))
    assert tokens == {"good.0": [5, 6, 7]}
    assert (failed["bad"].code, failed["bad"].retryable) == ("upstream_rejected", False)
    assert "invalid input" in failed["bad"].message
    assert "said" not in failed["bad"].message, "it may quote what was sent"


def test_a_request_that_the_server_breaks_on_while_it_serves_others_fails_alone(engine_of: Any) -> None:
    script = Script(500)
    _, failed = run(engine_of(script, outage_s=60), request())
    assert (failed["it"].code, failed["it"].retryable) == ("upstream_failed", True)
    assert (len(script.bodies), script.num_probes) == (3, 1)


def test_one_that_is_always_turned_away_while_others_are_served_is_not_kept_for_ever(engine_of: Any) -> None:
    script = Script(504)
    _, failed = run(engine_of(script, outage_s=0.05), request())
    assert (failed["it"].code, failed["it"].retryable) == ("upstream_failed", True)


@pytest.mark.parametrize("trouble", [httpx.ConnectError("refused"), 503, 500])
def test_a_server_that_answers_nobody_ends_the_engine_after_the_time_for_that(engine_of: Any, trouble: Any) -> None:
    engine = engine_of(Script(trouble, probe=trouble), outage_s=0.3)
    began = time.monotonic()
    with pytest.raises(UpstreamUnavailable):
        run(engine, request(), request("other"))
    assert time.monotonic() - began >= 0.3


@pytest.mark.parametrize(("status", "advice"), [(401, "API_KEY"), (403, "API_KEY"), (404, "UPSTREAM_MODEL")])
def test_a_refused_key_ends_the_engine_rather_than_every_job(engine_of: Any, status: int, advice: str) -> None:
    with pytest.raises(UpstreamUnavailable, match=rf"{status}: invalid input.*{advice}"):
        run(engine_of(Script(status)), request())


def test_one_that_answers_again_in_time_was_only_slow(engine_of: Any) -> None:
    away = httpx.ConnectError("refused")
    tokens, failed = run(engine_of(Script(away, away, GOOD), outage_s=60), *(request(f"r{i}") for i in range(4)))
    assert len(tokens) == 4
    assert failed == {}


def test_an_aborted_request_stops_being_sent(engine_of: Any) -> None:
    script = Script(503, probe=503)
    engine = engine_of(script, outage_s=600)
    engine.add(request())
    while not script.bodies:
        engine.step()
    engine.abort("it")
    assert not engine.has_work()
    num_sent = len(script.bodies)
    for _ in range(20):
        engine.step()
    assert len(script.bodies) <= num_sent + 1


def test_what_waits_goes_by_tier_then_arrival_and_never_more_at_once_than_allowed(engine_of: Any) -> None:
    script = Script(GOOD)
    engine = engine_of(script, max_streams=1)
    seeds = {"first": 1, "low": 2, "high": 3, "lower": 4}
    for name, priority in {"first": 2, "low": 1, "high": 0, "lower": 2}.items():
        engine.add(request(name, priority=priority, seed=seeds[name]))
    assert (engine.stats().running, engine.stats().waiting) == (1, 3)
    run(engine)
    assert [body["seed"] for body in script.bodies] == [1, 3, 2, 4]


def test_all_that_a_server_has_defaults_for_is_said(engine_of: Any) -> None:
    script = Script(GOOD)
    run(engine_of(script), request(cache_salt="acme", priority=2, seed=9, logprobs=None))
    (body,) = script.bodies
    salt = body.pop("cache_salt")
    assert "acme" not in salt
    assert body == {
        "model": "served", "prompt": [40, 41], "stream": True, "max_tokens": 3, "temperature": 1.0, "top_p": 1.0, "seed": 9,
        "presence_penalty": 0.0, "frequency_penalty": 0.0, "return_token_ids": True, "top_k": 0, "min_p": 0.0,
        "repetition_penalty": 1.0, "min_tokens": 0, "ignore_eos": False,
    }  # fmt: skip


def test_priority_goes_along_where_it_is_asked_for(engine_of: Any) -> None:
    script = Script(GOOD)
    run(engine_of(script, send_priority=True), request(priority=2))
    assert script.bodies[0]["priority"] == 2


def test_choices_and_resumed_places_have_seeds_of_their_own(engine_of: Any) -> None:
    script = Script(GOOD)
    run(engine_of(script), request(n=3, seed=9), request("on", seed=9, resume=[[5]], max_tokens=9, min_tokens=4))
    seeds = [body["seed"] for body in script.bodies]
    assert len(set(seeds)) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)
    resumed = script.bodies[3]
    assert (resumed["prompt"], resumed["max_tokens"], resumed["min_tokens"]) == ([40, 41, 5], 8, 3)


def test_no_more_tokens_than_asked_for_are_taken_whatever_the_server_sends(engine_of: Any) -> None:
    tokens, _ = run(engine_of(Script(chunks(5, 6, 7, 8, 9, 10))), request(max_tokens=4))
    assert tokens == {"it.0": [5, 6, 7, 8]}


def test_text_becomes_tokens_and_an_end_by_stop_is_an_eos(engine_of: Any) -> None:
    script = Script(
        [{"choices": [{"text": each}]} for each in (" quick", " fo", "x")]
        + [{"choices": [{"text": "", "finish_reason": "stop"}]}]
    )
    tokens, _ = run(engine_of(script, dialect="openai"), request(max_tokens=50))
    assert tokens["it.0"][-1] == 1
    assert TOKENIZER.decode(tokens["it.0"][:-1]) == " quick fox"
    assert "return_token_ids" not in script.bodies[0]


def test_the_key_is_sent_and_shown_nowhere() -> None:
    config = EngineConfig(engine="upstream", model="it", upstream=UpstreamConfig(url="http://it", api_key="hush-hush"))
    assert client_of(config.upstream, 4).headers["authorization"] == "Bearer hush-hush"
    assert "hush" not in f"{config} {config!r} {config.upstream}"
    assert msgspec.convert(msgspec.to_builtins(config), EngineConfig).upstream.api_key == "hush-hush"


@pytest.mark.parametrize(
    "url",
    ["", "it:8000", "ftp://it", "http://", "http://user:pass@it", "http://it?key=1", "http://it#a", "http://it:port"],
)
def test_urls_that_cannot_be_meant_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"URL|[Pp]ort"):
        UpstreamConfig(url=url)


@pytest.mark.parametrize("url", ["http://it:8000", "http://it:8000/", "http://it:8000/v1", "http://it:8000/v1/"])
def test_the_base_url_ends_with_v1_once(url: str) -> None:
    assert UpstreamConfig(url=url).base_url == "http://it:8000/v1"


async def connect(script: Callable[..., Any], **changes: Any) -> Any:
    config = UpstreamConfig(**({"url": "http://it", "dialect": "vllm", "outage_s": 0.01} | changes))
    async with httpx.AsyncClient(transport=httpx.MockTransport(script), base_url=config.base_url) as client:
        return await _connect(config, client, TOKENIZER, BUNDLE, [1])


async def test_the_only_model_is_found() -> None:
    served, _ = await connect(Script(GOOD))
    assert (served.id, served.max_model_len) == ("served", 256)


async def test_a_model_that_is_not_there_is_told_with_those_that_are() -> None:
    with pytest.raises(EngineConfigError, match=r"PENSTOCK_UPSTREAM_MODEL.*served"):
        await connect(Script(GOOD), model="other")


async def test_a_server_of_another_model_is_found_out_at_the_start() -> None:
    wrong = [{"choices": [{"text": "something else", "token_ids": [5]}]}]
    script = Script(GOOD)
    script._answer = lambda *_: httpx.Response(200, json=wrong[0])  # type: ignore[method-assign]
    with pytest.raises(UpstreamUnavailable, match="aren't those of our tokenizer"):
        await connect(script)


async def test_the_start_waits_for_a_server_that_comes_up() -> None:
    script = Script(GOOD, probe=503)
    task = asyncio.create_task(connect(script, outage_s=60))
    while not script.num_probes:
        await asyncio.sleep(0)
    script.probe = GOOD
    served, _ = await task
    assert served.id == "served"


async def test_a_server_that_takes_no_token_ids_gets_text() -> None:
    bodies = []

    async def text_only(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json={"data": [{"id": "served"}]})
        bodies.append(json.loads(request.content))
        return httpx.Response(422 if isinstance(bodies[-1]["prompt"], list) else 200, json={"choices": [{"text": "x"}]})

    await connect(text_only, dialect="openai")
    assert bodies[-1]["prompt"].startswith("The quick brown fox")
