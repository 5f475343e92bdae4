"""Can a worker of ours be fed by another Penstock? The engine that asks OpenAI-compatible servers asks our own face."""

from tests.contract.test_contract import request, run
from tests.integration.openai.conftest import BROOK as MODEL
from tests.integration.openai.conftest import Stack
from workers.engine.config import EngineConfig
from workers.engine.load import load_engine
from workers.engine.upstream_config import UpstreamConfig
from workers.models import BROOK


def test_the_upstream_engine_speaks_to_our_face(stack: Stack) -> None:
    upstream = UpstreamConfig(url=stack.url, api_key=stack.tenant.token, model=MODEL)
    config = EngineConfig(engine="upstream", model=str(BROOK), max_model_len=512, max_num_seqs=4, upstream=upstream)
    engine = load_engine(config).engine
    try:
        found = run(engine, request(seed=5, n=2, max_tokens=12))
        assert not found.failed
        assert sorted(found.reasons) == [("it", 0), ("it", 1)]
        assert all(1 <= len(tokens) <= 12 for tokens in found.tokens.values())
        again = run(engine, request("again", seed=5, n=2, max_tokens=12))
        assert [again.tokens["again", i] for i in range(2)] == [found.tokens["it", i] for i in range(2)]
    finally:
        engine.close()
