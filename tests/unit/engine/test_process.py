"""The engine in a process of its own: real processes and signals, no model."""

import asyncio
import os
import select
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from workers.engine.config import EngineConfig
from workers.engine.errors import EngineDied, EngineStartFailed
from workers.engine.process import EngineProcess
from workers.engine.protocol import Request, SamplingParams
from workers.engine.upstream_config import UpstreamConfig
from workers.models import BROOK

SLOW = EngineConfig(engine="null", null_step_s=60.0)
FAST = EngineConfig(engine="null")


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request):
    """Workers run on uvloop; who embeds the engine may not."""
    return "asyncio", {"use_uvloop": request.param}


def request(name="it", max_tokens=20, seed=0):
    return Request(id=name, prompt_ids=[65] * 10, sampling=SamplingParams(max_tokens=max_tokens, seed=seed))


async def until_finished(engine, *names):
    """Tokens by request, until all of these have ended."""
    tokens, open_ = {}, set(names)
    async for output in engine:
        for delta in output.deltas:
            tokens.setdefault(delta.request_id, []).extend(delta.token_ids)
            if delta.finish_reason:
                open_.discard(delta.request_id)
        if not open_:
            break
    return tokens


def wait_for_exit(pid, timeout_s):
    """Whether a process, not necessarily a child of ours, ends within the time."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], timeout_s)[0])
    finally:
        os.close(descriptor)


async def test_start_generate_and_stop():
    engine = await EngineProcess.start(FAST)
    assert engine.info.architecture == "null"
    assert '"ByteLevel"' in engine.tokenizer_json
    assert "messages" in engine.chat_template
    for i in range(100):
        await engine.add(request(f"r{i}", seed=i))
    tokens = await until_finished(engine, *(f"r{i}" for i in range(100)))
    assert {len(found) for found in tokens.values()} == {20}
    assert await engine.stop() == 0
    assert [output async for output in engine] == []
    assert await engine.stop() == 0


async def test_an_aborted_request_goes_silent():
    engine = await EngineProcess.start(EngineConfig(engine="null", null_step_s=0.001))
    await engine.add(request("endless", max_tokens=8000))
    async for _ in engine:
        break
    await engine.abort("endless")
    await engine.add(request("next"))
    await until_finished(engine, "next")
    await engine.add(request("last"))
    tokens = await until_finished(engine, "last")
    assert set(tokens) == {"last"}
    assert await engine.stop() == 0


async def test_commands_larger_than_the_socket_and_a_reader_that_lags_do_not_deadlock():
    engine = await EngineProcess.start(EngineConfig(engine="null", num_blocks=1 << 16, max_model_len=1 << 19))
    big = Request(id="big", prompt_ids=[300] * 400_000, sampling=SamplingParams(max_tokens=1))
    for i in range(40):  # nobody reads meanwhile
        await engine.add(request(f"r{i}", max_tokens=2000))
    await engine.add(big)
    await engine.add(request("end"))
    tokens = await until_finished(engine, "end", "big")
    assert len(tokens["big"]) == 1
    assert await engine.stop() == 0


async def test_a_cancelled_reader_loses_nothing():
    engine = await EngineProcess.start(FAST)
    reader = asyncio.create_task(anext(aiter(engine)))
    await asyncio.sleep(0)
    reader.cancel()
    await asyncio.gather(reader, return_exceptions=True)
    await engine.add(request())
    assert len((await until_finished(engine, "it"))["it"]) == 20
    await engine.stop()


async def test_kill_9_of_the_child_is_told_with_the_end_of_its_log(tmp_path):
    log = tmp_path / "engine.log"
    log.write_text("of another process\n")
    engine = await EngineProcess.start(SLOW, log)
    await engine.add(request())
    os.kill(engine.pid, signal.SIGKILL)
    with pytest.raises(EngineDied) as death:
        await until_finished(engine, "it")
    assert death.value.returncode == -signal.SIGKILL
    assert "of another process" not in death.value.log_tail
    await engine.add(request("too late"))
    await engine.abort("too late")
    assert await engine.stop() == -signal.SIGKILL


async def test_killing_it_ourselves_is_a_death_too():
    engine = await EngineProcess.start(SLOW)
    await engine.add(request())
    engine.kill()
    with pytest.raises(EngineDied):
        await until_finished(engine, "it")
    await engine.stop()


async def test_what_is_said_to_a_dead_one_is_not_heard_and_hurts_nobody():
    engine = await EngineProcess.start(FAST)
    engine.kill()
    with pytest.raises(EngineDied):
        await until_finished(engine, "it")
    for _ in range(3):
        await engine.add(request())
        await engine.abort("it")
        await asyncio.sleep(0.01)
    assert await engine.stop() == -signal.SIGKILL
    assert await engine.stop() == -signal.SIGKILL, "a worker that drains meanwhile stops it again"


async def test_stopping_a_child_that_hangs_waits_for_the_grace_only():
    engine = await EngineProcess.start(FAST)
    os.kill(engine.pid, signal.SIGSTOP)
    assert await asyncio.wait_for(engine.stop(grace_s=0.05), 20) == -signal.SIGKILL


async def test_stopping_while_nobody_reads_is_clean():
    engine = await EngineProcess.start(FAST)
    for i in range(200):
        await engine.add(request(f"r{i}", max_tokens=8000))
    assert await engine.stop(grace_s=20) == 0


async def test_ctrl_c_is_the_parents_business():
    engine = await EngineProcess.start(FAST)
    os.kill(engine.pid, signal.SIGINT)
    await engine.add(request())
    assert len((await until_finished(engine, "it"))["it"]) == 20
    assert await engine.stop() == 0


async def test_the_child_exits_in_the_middle_of_a_step_when_the_parent_closes_its_end():
    # The first step only reads half of the prompt and takes no time; the second brings a token and takes a minute.
    engine = await EngineProcess.start(EngineConfig(engine="null", null_tokens_per_s=1 / 60, max_batch_tokens=64))
    await engine.add(Request(id="it", prompt_ids=[65] * 100, sampling=SamplingParams(max_tokens=5)))
    async for _ in engine:
        break
    await engine._connection.close()
    assert await asyncio.wait_for(engine._process.wait(), 20) == 3
    await engine.stop()


def test_the_child_dies_with_a_parent_that_was_killed():
    script = """
import asyncio
from workers.engine.config import EngineConfig
from workers.engine.process import EngineProcess
from workers.engine.protocol import Request, SamplingParams
from workers.engine.upstream_config import UpstreamConfig
from workers.models import BROOK

async def main():
    engine = await EngineProcess.start(EngineConfig(engine="null", null_tokens_per_s=1 / 60, max_batch_tokens=64))
    await engine.add(Request(id="r", prompt_ids=[1] * 100, sampling=SamplingParams(max_tokens=5)))
    async for _ in engine:
        break
    print(engine.pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""
    root = Path(__file__).parents[3]
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=root) as parent:
        child_pid = int(parent.stdout.readline())
        parent.kill()
        assert wait_for_exit(child_pid, 20)


@pytest.mark.parametrize(
    ("config", "message", "cause"),
    [
        (
            EngineConfig(engine="null", model="/there/is/none"),
            r"/there/is/none has no tokenizer\.json",
            "model_not_loadable",
        ),
        (
            EngineConfig(engine="null", block_size=1000),
            r"settings are wrong: .*\$\.block_size",
            "engine_config_invalid",
        ),
    ],
)
async def test_a_start_that_fails_says_why(config, message, cause):
    with pytest.raises(EngineStartFailed, match=message) as failure:
        await EngineProcess.start(config)
    assert failure.value.cause == cause


async def test_a_child_that_cannot_even_start_shows_its_log(monkeypatch, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("raise SystemExit('broken on purpose')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(EngineStartFailed, match="ended with exit status 1 before it was ready") as failure:
        await EngineProcess.start(FAST)
    assert "broken on purpose" in failure.value.log_tail


async def test_a_start_that_takes_too_long_is_given_up_and_leaves_no_process():
    with pytest.raises(EngineStartFailed, match="wasn't ready within 0"):
        await EngineProcess.start(FAST, timeout_s=0.0)


async def test_an_interpreter_that_is_not_there_is_named():
    with pytest.raises(EngineStartFailed, match=r"/no/such/python isn't an interpreter.*PENSTOCK_ENGINE_PYTHON"):
        await EngineProcess.start(FAST, python=Path("/no/such/python"))


async def test_another_interpreter_that_lacks_a_package_says_which(tmp_path):
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    with pytest.raises(EngineStartFailed, match=r"has no package 'msgspec'.*install it there"):
        await EngineProcess.start(FAST, python=bare)


async def test_another_interpreter_runs_the_engine(tmp_path):
    other = tmp_path / "python"
    other.write_text(f'#!/bin/sh\necho started > {tmp_path}/mark\nexec {sys.executable} "$@"\n')
    other.chmod(0o755)
    engine = await EngineProcess.start(FAST, python=other)
    await engine.add(request())
    assert len((await until_finished(engine, "it"))["it"]) == 20
    assert await engine.stop() == 0
    assert (tmp_path / "mark").exists()


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed here")
async def test_vllm_where_it_is_not_installed_is_missed_by_name():
    with pytest.raises(EngineStartFailed, match=r"has no package 'vllm'.*PENSTOCK_ENGINE_PYTHON") as failure:
        await EngineProcess.start(EngineConfig(engine="vllm", model=str(BROOK)))
    assert failure.value.cause == "engine_config_invalid"


# The child reads a tokenizer first, by transformers, which takes seconds; that failed starts are told on both loops is shown above.
@pytest.mark.parametrize("anyio_backend", [pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop")])
async def test_an_upstream_that_is_away_fails_the_start_with_its_address():
    nowhere = UpstreamConfig(url="http://127.0.0.1:9", outage_s=0.01)
    with pytest.raises(EngineStartFailed, match=r"http://127\.0\.0\.1:9 doesn't answer") as failure:
        await EngineProcess.start(EngineConfig(engine="upstream", model=str(BROOK), upstream=nowhere))
    assert failure.value.cause == "upstream_unavailable"
