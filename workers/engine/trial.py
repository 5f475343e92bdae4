"""`python -m workers.engine.trial < config.json`: does this model load and run here? One line on stdout says how."""

import sys
from time import perf_counter

import msgspec

from workers.engine.config import EngineConfig
from workers.engine.errors import EngineError
from workers.engine.load import load_engine
from workers.engine.protocol import Engine, Request, SamplingParams

NUM_TOKENS = 16
PROMPT_IDS = [1, 2, 3, 4]  # every vocabulary has them


def main() -> int:
    """The process's exit status: 0 if it ran, 1 if not."""
    began = perf_counter()
    try:
        engine = load_engine(msgspec.json.decode(sys.stdin.buffer.read(), type=EngineConfig)).engine
        loaded = perf_counter()
        sampling = SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0)
        engine.add(Request(id="trial", prompt_ids=PROMPT_IDS, sampling=sampling))
        num_tokens = _run(engine)
    except (EngineError, msgspec.ValidationError, MemoryError) as error:
        sys.stdout.write(f"{str(error) or type(error).__name__}\n")
        return 1
    ran = perf_counter()
    info = engine.info
    engine.close()
    sys.stdout.write(
        f"{info.architecture} on {info.device} as {info.dtype}: loaded in {loaded - began:.1f} s, "
        f"{num_tokens} tokens in {ran - loaded:.2f} s, room for {info.num_blocks * info.block_size:,} tokens\n"
    )
    return 0


def _run(engine: Engine) -> int:
    """Step until nothing is left; the number of tokens. Raises EngineError for a request that fails."""
    num_tokens = 0
    while engine.has_work():
        output = engine.step()
        num_tokens += sum(len(delta.token_ids) for delta in output.deltas)
        for failed in output.failed:
            raise EngineError(f"{failed.code}: {failed.message}")
    return num_tokens


if __name__ == "__main__":
    sys.exit(main())
