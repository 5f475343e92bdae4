"""A small OpenAI-compatible completions server around one of our engines, on a real socket: what UpstreamEngine is tested against.

`python -m tests.support.completions <engine config as JSON> <options as JSON>`; the first line on stdout is its port.
"""

import asyncio
import json
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from tokenizers import Tokenizer

from workers.engine.config import EngineConfig
from workers.engine.detokenize import Detokenizer
from workers.engine.load import load_engine
from workers.engine.protocol import Grammar, Logprob, RequestFailed, SamplingParams, TokenDelta
from workers.engine.protocol import Request as EngineRequest

ROOT = Path(__file__).parents[2]


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How the server behaves."""

    name: str = "little"
    port: int = 0
    key: str = ""  # that callers must send; "" = none
    is_vllm: bool = True  # its parameters, its token ids; else OpenAI's alone, and others are refused
    takes_token_ids: bool = True


_OPENAI = {
    "model", "prompt", "stream", "max_tokens", "temperature", "top_p", "seed", "presence_penalty", "frequency_penalty",
    "logit_bias",
}  # fmt: skip
_VLLM = _OPENAI | {
    "return_token_ids", "top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos", "cache_salt", "priority",
    "logprobs", "return_tokens_as_token_ids", "structured_outputs",
}  # fmt: skip


class EngineThread:
    """Steps the engine; hands what comes to asyncio queues."""

    def __init__(self, config: EngineConfig) -> None:
        loaded = load_engine(config)
        self.engine, self.tokenizer = loaded.engine, Tokenizer.from_str(loaded.tokenizer.tokenizer_json)
        self._commands: queue.Queue[Any] = queue.Queue()
        self._readers: dict[str, tuple[asyncio.AbstractEventLoop, asyncio.Queue[Any]]] = {}
        threading.Thread(target=self._run, daemon=True).start()

    def add(self, request: EngineRequest) -> asyncio.Queue[Any]:
        reader: asyncio.Queue[Any] = asyncio.Queue()
        self._readers[request.id] = (asyncio.get_running_loop(), reader)
        self._commands.put(request)
        return reader

    def abort(self, name: str) -> None:
        self._readers.pop(name, None)
        self._commands.put(name)

    def _run(self) -> None:
        engine = self.engine
        while True:
            while not self._commands.empty() or not engine.has_work():
                command = self._commands.get()
                if isinstance(command, EngineRequest):
                    engine.add(command)
                else:
                    engine.abort(command)
            output = engine.step()
            for each in [*output.deltas, *output.failed]:
                if each.request_id in self._readers:
                    loop, reader = self._readers[each.request_id]
                    loop.call_soon_threadsafe(reader.put_nowait, each)


def create_server(thread: EngineThread, options: Options) -> FastAPI:
    server = FastAPI()
    numbers = iter(range(1 << 62))

    def refused(status: int, message: str) -> JSONResponse:
        return JSONResponse({"error": {"message": message, "type": "invalid", "code": status}}, status)

    @server.middleware("http")
    async def check_key(request: Request, call_next: Any) -> Response:
        if (
            options.key
            and request.url.path != "/stats"
            and request.headers.get("authorization") != f"Bearer {options.key}"
        ):
            return refused(401, "wrong key")
        response: Response = await call_next(request)
        return response

    @server.get("/v1/models")
    def models() -> dict[str, Any]:
        model: dict[str, Any] = {"id": options.name, "object": "model"}
        if options.is_vllm:
            model["max_model_len"] = thread.engine.info.max_model_len
        return {"object": "list", "data": [model]}

    @server.get("/stats")
    def stats() -> dict[str, Any]:
        found: dict[str, Any] = msgspec.to_builtins(thread.engine.stats())
        return found | {"sent": sent}

    sent: list[dict[str, Any]] = []  # the bodies so far, without prompts

    @server.post("/v1/completions")
    async def completions(request: Request) -> Response:
        body: dict[str, Any] = await request.json()
        sent.append({name: value for name, value in body.items() if name != "prompt"})
        unknown = set(body) - (_VLLM if options.is_vllm else _OPENAI)
        if unknown:
            return refused(400, f"unknown parameters: {sorted(unknown)}")
        if body["model"] != options.name:
            return refused(404, f"there is no model {body['model']}")
        prompt = body["prompt"]
        if isinstance(prompt, list) and not options.takes_token_ids:
            return refused(422, "prompt must be a string")
        prompt_ids = thread.tokenizer.encode(prompt).ids if isinstance(prompt, str) else prompt
        name = str(next(numbers))
        reader = thread.add(
            EngineRequest(
                id=name,
                prompt_ids=prompt_ids,
                sampling=_sampling(body),
                priority=body.get("priority", 0),
                cache_salt=body.get("cache_salt", ""),
            )
        )
        first = await reader.get()  # an error has a status as long as nothing was sent
        if isinstance(first, RequestFailed):
            return refused(400, first.message)
        writer = _Writer(thread.tokenizer, body)
        if body.get("stream"):
            return StreamingResponse(_stream(thread, name, first, reader, writer), media_type="text/event-stream")
        token_ids, text, delta = [], "", first
        while True:
            chunk = writer.choice(delta)
            token_ids += delta.token_ids
            text += chunk["text"]
            if delta.finish_reason is not None:
                break
            delta = await reader.get()
        whole = {"index": 0, "text": text, "finish_reason": delta.finish_reason}
        return JSONResponse({"choices": [whole | ({"token_ids": token_ids} if body.get("return_token_ids") else {})]})

    return server


async def _stream(
    thread: EngineThread, name: str, first: TokenDelta, reader: "asyncio.Queue[Any]", writer: "_Writer"
) -> AsyncIterator[str]:
    delta: TokenDelta | RequestFailed = first
    try:
        while True:
            if isinstance(delta, RequestFailed):
                yield f"data: {json.dumps({'error': {'message': delta.message, 'code': 400}})}\n\n"
                return
            yield f"data: {json.dumps({'choices': [writer.choice(delta)]})}\n\n"
            if delta.finish_reason is not None:
                yield "data: [DONE]\n\n"
                return
            delta = await reader.get()
    finally:  # the reader's hanging up arrives here too
        thread.abort(name)


class _Writer:
    """Chunks of one choice."""

    def __init__(self, tokenizer: Tokenizer, body: dict[str, Any]) -> None:
        self._detokenizer = Detokenizer(tokenizer)
        self._with_ids = bool(body.get("return_token_ids"))

    def choice(self, delta: TokenDelta) -> dict[str, Any]:
        text, _ = self._detokenizer.push(delta.token_ids)
        if delta.finish_reason is not None:
            text += self._detokenizer.flush()
        choice: dict[str, Any] = {"index": 0, "text": text, "finish_reason": delta.finish_reason}
        if self._with_ids:
            choice["token_ids"] = delta.token_ids
        if delta.logprobs:
            choice["logprobs"] = {
                "tokens": [f"token_id:{token_id}" for token_id in delta.token_ids],
                "token_logprobs": [each.chosen for each in delta.logprobs],
                "top_logprobs": [
                    _top(token_id, each) for token_id, each in zip(delta.token_ids, delta.logprobs, strict=True)
                ],
            }
        return choice


def _top(token_id: int, each: Logprob) -> dict[str, float]:
    """As vLLM has it: the best ones, and the chosen one besides."""
    best = dict(zip(each.top_ids, each.top_logprobs, strict=True)) | {token_id: each.chosen}
    return {f"token_id:{other}": value for other, value in best.items()}


def _sampling(body: dict[str, Any]) -> SamplingParams:
    names = {
        "max_tokens", "min_tokens", "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty",
        "repetition_penalty", "logprobs", "seed", "ignore_eos",
    }  # fmt: skip
    grammar = None
    for name, value in (body.get("structured_outputs") or {}).items():
        kinds = {"json": "json_schema", "grammar": "lark"}
        grammar = Grammar(kinds.get(name, name), value if isinstance(value, str) else json.dumps(value))
    biases = {int(token_id): bias for token_id, bias in body.get("logit_bias", {}).items()}
    return SamplingParams(
        **{name: body[name] for name in names & set(body)},
        logit_bias=biases,
        grammar=grammar,
    )


class LittleServer:
    """One that runs."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process = process
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def stats(self) -> dict[str, Any]:
        """The state of its engine, and `sent`: the bodies of the completions that it was asked for."""
        found: dict[str, Any] = httpx.get(f"{self.url}/stats").json()
        return found

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def little_server(config: EngineConfig, log: Path, **options: Any) -> Iterator[LittleServer]:
    """Start one and wait until it serves; gone at the end."""
    with log.open("ab") as stderr:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "tests.support.completions", msgspec.json.encode(config).decode(),
                json.dumps(options),
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=stderr,
        )  # fmt: skip
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, log.read_text()
        yield LittleServer(process, int(line))
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def main(argv: list[str]) -> None:
    """Serve until killed."""
    options = msgspec.json.decode(argv[2], type=Options)
    thread = EngineThread(msgspec.json.decode(argv[1], type=EngineConfig))
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", options.port))
    listening.listen(1024)
    print(listening.getsockname()[1], flush=True)
    uvicorn.Server(uvicorn.Config(create_server(thread, options), log_level="warning")).run([listening])


if __name__ == "__main__":
    main(sys.argv)
