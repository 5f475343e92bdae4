"""vLLM's processes live and die with ours: real signals. Needs VLLM_PYTHON."""

from pathlib import Path

import psutil
import pytest

from tests.contract.conftest import NEEDS_VLLM, VLLM_OPTIONS, VLLM_PYTHON
from tests.support.processes import have_ended
from workers.engine.config import EngineConfig
from workers.engine.errors import EngineDied, EngineStartFailed
from workers.engine.process import EngineProcess
from workers.engine.protocol import Request, SamplingParams
from workers.models import BROOK

pytestmark = [pytest.mark.long, pytest.mark.timeout(900), NEEDS_VLLM]

CONFIG = EngineConfig(engine="vllm", model=str(BROOK), device="cpu", engine_options=VLLM_OPTIONS)


async def start(folder: Path) -> tuple[EngineProcess, list[psutil.Process]]:
    """A vLLM that works on something, and the processes below ours."""
    engine = await EngineProcess.start(CONFIG, folder / "vllm.log", timeout_s=900, python=Path(VLLM_PYTHON))
    await engine.add(
        Request(id="it", prompt_ids=[*range(5, 25)], sampling=SamplingParams(max_tokens=400, ignore_eos=True))
    )
    async for output in engine:
        if output.deltas:
            break
    below = psutil.Process(engine.pid).children(recursive=True)
    assert below
    return engine, below


async def test_the_death_of_vllms_engine_is_ours(tmp_path: Path) -> None:
    engine, below = await start(tmp_path)
    for each in below:
        each.kill()
    with pytest.raises(EngineDied) as death:
        async for _ in engine:
            pass
    assert not death.value.is_outage
    await engine.stop(0)


async def test_our_death_is_the_death_of_all_below(tmp_path: Path) -> None:
    engine, below = await start(tmp_path)
    engine.kill()
    assert have_ended(below)
    await engine.stop(0)


async def test_a_stop_leaves_nobody(tmp_path: Path) -> None:
    engine, below = await start(tmp_path)
    assert await engine.stop() == 0
    assert have_ended(below)


async def test_options_that_vllm_does_not_know_fail_the_start_by_name(tmp_path: Path) -> None:
    config = EngineConfig(engine="vllm", model=str(BROOK), device="cpu", engine_options={"no_such_option": 1})
    with pytest.raises(EngineStartFailed, match=r"vLLM refuses its settings.*no_such_option") as failure:
        await EngineProcess.start(config, tmp_path / "vllm.log", timeout_s=900, python=Path(VLLM_PYTHON))
    assert failure.value.cause == "engine_config_invalid"
