"""Does a profile cover the steps that it should, and change nothing?"""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from workers.engine.config import EngineConfig
from workers.engine.errors import EngineConfigError
from workers.engine.load import load_engine
from workers.engine.protocol import Engine, Request, SamplingParams
from workers.models import BROOK

SMALL: dict[str, Any] = {"model": str(BROOK), "device": "cpu", "kernels": "torch", "kv_cache_bytes": 8 << 20}


def generate(engine: Engine, max_tokens: int) -> tuple[list[int], list[str]]:
    """The tokens, and the profiles that were told of."""
    engine.add(Request(id="a", prompt_ids=[5, 6, 7], sampling=SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True)))  # fmt: skip
    tokens, profiles = [], []
    while engine.has_work():
        output = engine.step()
        tokens += [token for delta in output.deltas for token in delta.token_ids]
        profiles += [output.profile] if output.profile else []
    return tokens, profiles


def steps_in(path: str) -> list[str]:
    events = json.loads(gzip.decompress(Path(path).read_bytes()))["traceEvents"]
    assert any(str(each.get("name", "")).startswith("aten::") for each in events)
    return sorted({each["name"] for each in events if str(each.get("name", "")).startswith("engine step")})


def test_a_profile_is_written_once_of_warm_steps_and_the_tokens_are_the_same(tmp_path: Path) -> None:
    plain, none = generate(load_engine(EngineConfig(**SMALL)).engine, 8)
    folder = tmp_path / "new" / "profiles"
    config = EngineConfig(**SMALL, profile_dir=str(folder), profile_after_steps=2, profile_steps=3)
    engine = load_engine(config).engine
    tokens, profiles = generate(engine, 8)
    assert (tokens, none) == (plain, [])
    assert [str(each) for each in folder.iterdir()] == profiles
    (path,) = profiles
    assert path.endswith("-3-steps.trace.json.gz")
    assert steps_in(path) == ["engine step 0", "engine step 1", "engine step 2"]
    assert generate(engine, 4)[1] == []
    engine.close()
    assert len(list(folder.iterdir())) == 1


def test_an_engine_that_is_closed_early_writes_what_it_has(tmp_path: Path) -> None:
    config = EngineConfig(**SMALL, profile_dir=str(tmp_path), profile_after_steps=1, profile_steps=1000)
    engine = load_engine(config).engine
    assert generate(engine, 4)[1] == []
    engine.close()
    (path,) = tmp_path.iterdir()
    assert steps_in(str(path)) == ["engine step 0", "engine step 1", "engine step 2"]


def test_a_folder_that_can_not_be_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineConfigError, match="profile_dir"):
        load_engine(EngineConfig(**SMALL, profile_dir=str(tmp_path / "file" / "below")))


def test_another_engine_has_a_profiler_of_its_own() -> None:
    with pytest.raises(ValueError, match="profile_dir is for our own engine"):
        EngineConfig(engine="vllm", model="x", profile_dir="p")
