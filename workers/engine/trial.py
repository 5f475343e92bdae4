"""`python -m workers.engine.trial <config as JSON>`: does this model load and run here? One line on stdout says how."""

import sys
from time import perf_counter

import msgspec

from workers.engine.config import EngineConfig
from workers.engine.errors import EngineError
from workers.engine.load import load_engine
from workers.engine.protocol import Request, SamplingParams

NUM_TOKENS = 16
PROMPT_IDS = [1, 2, 3, 4]  # every vocabulary has them


def main(argv: list[str]) -> int:
    """The process's exit status: 0 if it ran, 1 if not."""
    began = perf_counter()
    try:
        engine = load_engine(msgspec.json.decode(argv[1], type=EngineConfig)).engine
        loaded = perf_counter()
        sampling = SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0, ignore_eos=True)
        engine.add(Request(id="trial", prompt_ids=PROMPT_IDS, sampling=sampling))
        while engine.has_work():
            engine.step()
    except (EngineError, msgspec.ValidationError, MemoryError) as error:
        sys.stdout.write(f"{str(error) or type(error).__name__}\n")
        return 1
    ran = perf_counter()
    info = engine.info
    sys.stdout.write(
        f"{info.architecture} on {info.device} as {info.dtype}: loaded in {loaded - began:.1f} s, "
        f"{NUM_TOKENS} tokens in {ran - loaded:.2f} s, room for {info.num_blocks * info.block_size:,} tokens\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
