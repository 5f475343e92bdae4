"""The paged engine in its own process, as the worker runs it: started from a checkpoint, or refused with a clear word."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from tests.equivalence import tiny
from workers.engine.config import EngineConfig
from workers.engine.detokenize import Detokenizer
from workers.engine.errors import EngineStartFailed
from workers.engine.process import EngineProcess
from workers.engine.protocol import Request, SamplingParams

BROOK = Path(__file__).parents[2] / "workers" / "models" / "brook"


async def generate(engine, *requests):
    for request in requests:
        await engine.add(request)
    tokens, open_ = {request.id: [] for request in requests}, len(requests)
    async for output in engine:
        for delta in output.deltas:
            tokens[delta.request_id] += delta.token_ids
            open_ -= delta.finish_reason is not None
        if not open_:
            break
    return tokens


async def test_a_child_generates_what_transformers_generates(checkpoint):
    model, folder = checkpoint("llama")
    engine = await EngineProcess.start(EngineConfig(model=str(folder), device="cpu", dtype="float32", threads=1))
    try:
        assert (engine.info.architecture, engine.info.dtype) == ("LlamaForCausalLM", "float32")
        assert engine.chat_template == "T"
        assert engine.tokenizer.special_tokens["eos_token"] == "<|end|>"
        prompts = tiny.prompts(4)
        requests = [Request(id=str(i), prompt_ids=prompt, sampling=tiny.GREEDY) for i, prompt in enumerate(prompts)]
        tokens = await generate(engine, *requests)
        wanted = [tiny.plain_generate(model, prompt, tiny.GREEDY.max_tokens) for prompt in prompts]
        assert list(tokens.values()) == wanted
    finally:
        assert await engine.stop() == 0


@pytest.mark.parametrize(
    ("make", "message", "cause"),
    [
        (lambda checkpoint: "/there/is/no/such/folder", "there is no folder /there/is/no", "model_not_loadable"),
        (lambda checkpoint: str(checkpoint("falcon")[1]), "doesn't do its attention through", "model_unsupported"),
    ],
    ids=["no folder", "falcon"],
)
async def test_a_model_that_cannot_run_fails_the_start_with_a_clear_word(checkpoint, make, message, cause):
    with pytest.raises(EngineStartFailed, match=message) as failure:
        await EngineProcess.start(EngineConfig(model=make(checkpoint), device="cpu"))
    assert failure.value.cause == cause
    assert "Traceback" not in str(failure.value)


async def test_the_bundled_model_writes_text():
    engine = await EngineProcess.start(EngineConfig(model=str(BROOK), device="cpu"))
    try:
        tokenizer = Tokenizer.from_str(engine.tokenizer_json)
        sampling = SamplingParams(max_tokens=40, temperature=0.0)
        tokens = await generate(
            engine, Request(id="it", prompt_ids=tokenizer.encode("Once upon a time").ids, sampling=sampling)
        )
        text, _ = Detokenizer(tokenizer).push(tokens["it"])
        assert len(text.split()) > 5
        assert text.isprintable() or "\n" in text
    finally:
        assert await engine.stop() == 0
