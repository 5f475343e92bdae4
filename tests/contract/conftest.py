"""Every engine that there is, each with what it promises beyond the contract."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.contract.remote import ChildEngine
from tests.support.completions import LittleServer, little_server
from workers.engine.config import EngineConfig
from workers.engine.load import load_engine
from workers.engine.protocol import Engine
from workers.engine.upstream_config import UpstreamConfig
from workers.models import BROOK

VLLM_PYTHON = os.environ.get("VLLM_PYTHON", "")  # an interpreter that has vLLM
NEEDS_VLLM = pytest.mark.skipif(not VLLM_PYTHON, reason="VLLM_PYTHON names no interpreter that has vLLM")
VLLM_OPTIONS = {"enforce_eager": True, "max_model_len": 512, "max_num_seqs": 16}


@dataclass(frozen=True)
class Subject:
    """An engine under test."""

    engine: Engine
    name: str
    is_exact: bool = True  # each token is the one that the model made, so parameters about tokens work
    resumes_exactly: bool = True  # a resumed sampled request goes on with the tokens that it would have had
    has_grammars: bool = True
    has_model: bool = True  # its logits mean something: biases, EOS
    server: LittleServer | None = None


def _upstream(url: str, **changes: Any) -> Engine:
    upstream = UpstreamConfig(**({"url": url, "dialect": "vllm"} | changes))
    return load_engine(
        EngineConfig(engine="upstream", model=str(BROOK), max_model_len=512, max_num_seqs=16, upstream=upstream)
    ).engine


@contextmanager
def subject_of(name: str, folder: Path) -> Iterator[Subject]:
    """Start it, and what it needs; gone at the end."""
    paged = EngineConfig(model=str(BROOK), device="cpu", max_model_len=512, max_num_seqs=16)
    with ExitStack() as stack:
        if name == "paged":
            subject = Subject(load_engine(paged).engine, name)
        elif name == "null":
            config = EngineConfig(engine="null", max_model_len=512, max_num_seqs=16, null_vocab_size=2048)
            subject = Subject(load_engine(config).engine, name, has_grammars=False, has_model=False)
        elif name == "upstream":
            server = stack.enter_context(little_server(paged, folder / "server.log"))
            subject = Subject(_upstream(server.url), name, resumes_exactly=False, server=server)
        elif name == "upstream-text":
            server = stack.enter_context(
                little_server(paged, folder / "server.log", is_vllm=False, takes_token_ids=False)
            )
            engine = _upstream(server.url, dialect="openai")
            subject = Subject(
                engine, name, is_exact=False, resumes_exactly=False, has_grammars=False, has_model=False, server=server
            )
        elif name == "vllm":
            config = EngineConfig(engine="vllm", model=str(BROOK), device="cpu", engine_options=VLLM_OPTIONS)
            engine = stack.enter_context(ChildEngine.running(config, Path(VLLM_PYTHON), folder / "vllm.log"))
            subject = Subject(engine, name, resumes_exactly=False)
        else:
            url = stack.enter_context(_vllm_server(folder / "vllm-server.log"))
            subject = Subject(_upstream(url, send_priority=True), name, resumes_exactly=False)
        stack.callback(subject.engine.close)
        yield subject


@contextmanager
def _vllm_server(log: Path) -> Iterator[str]:
    port = 18_473
    command = [
        VLLM_PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", str(BROOK), "--host", "127.0.0.1",
        "--port", str(port), "--enforce-eager", "--max-model-len", "512", "--max-num-seqs", "16",
        "--scheduling-policy", "priority", "--structured-outputs-config", json.dumps({"backend": "guidance"}),
    ]  # fmt: skip
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with log.open("wb") as stream:
        process = subprocess.Popen(command, env=environment, stdout=stream, stderr=stream)
    url = f"http://127.0.0.1:{port}"
    try:
        give_up_at = time.monotonic() + 900
        while True:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < give_up_at, log.read_text()
            try:
                if httpx.get(f"{url}/health").is_success:
                    break
            except httpx.TransportError:
                time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.wait()


ENGINES = [
    "paged",
    "null",
    "upstream",
    "upstream-text",
    pytest.param("vllm", marks=[pytest.mark.long, pytest.mark.timeout(900), NEEDS_VLLM]),
    pytest.param("vllm-server", marks=[pytest.mark.long, pytest.mark.timeout(900), NEEDS_VLLM]),
]


@pytest.fixture(scope="session", params=ENGINES)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    with subject_of(request.param, tmp_path_factory.mktemp("engine")) as subject:
        yield subject


@pytest.fixture
def engine(subject: Subject) -> Iterator[Engine]:
    """Nothing is left in it, before and after."""
    assert not subject.engine.has_work()
    yield subject.engine
    assert not subject.engine.has_work()
