"""Alone = batched = preempted = prefix-cached = speculated = resumed: the same tokens, greedy and sampled, in float32 and
bfloat16; with our kernels, the same bits in the log-probabilities, too."""

import random

import msgspec
import pytest

from tests.equivalence import tiny
from workers.engine import native
from workers.engine.protocol import Request, SamplingParams

QUICK = [
    "qwen2",
    "gemma2",
    "gpt2",
    "phi3",
]  # one by our decoder, three through transformers: softcap and window, Conv1D, plain
CASES = [(name, "bfloat16") for name in QUICK]
LONG = [(name, dtype) for name in (*tiny.FAST, *tiny.WIDE) for dtype in ("float32", "bfloat16")]
LONG.remove(("phimoe", "bfloat16"))  # its router cuts at a threshold: a last bit of its input changes whole experts
CASES += [pytest.param(case, marks=pytest.mark.long) for case in LONG if case not in CASES]
QUANTIZED = [
    ("llama", "int8"),
    ("llama", "nf4"),
    *(pytest.param(case, marks=pytest.mark.long) for case in [("llama", "fp4"), ("gpt2", "int8"), ("gemma2", "int8")]),
]

PROMPTS = [
    [*prompt, *prompt[-6:] * 2] for prompt in tiny.prompts(6, longest=36, seed=5)
]  # with something to guess from
SAMPLED = SamplingParams(max_tokens=18, temperature=1.0, seed=7, logprobs=2)
EVERYTHING = SamplingParams(
    max_tokens=18,
    min_tokens=5,
    temperature=0.9,
    top_p=0.95,
    top_k=50,
    presence_penalty=0.3,
    repetition_penalty=1.1,
    seed=3,
    logprobs=2,
)
GREEDY = SamplingParams(max_tokens=18, temperature=0.0, logprobs=2)
POOL = {"block_size": 4, "max_num_seqs": 6, "max_batch_tokens": 64}


def requests():
    """Greedy and sampled ones by turns; the biased ones run in circles, so that guesses come true."""
    kinds = [GREEDY, SAMPLED, EVERYTHING]
    made = []
    for i, prompt in enumerate(PROMPTS):
        sampling = kinds[i % 3]
        if i >= 3:
            sampling = msgspec.structs.replace(sampling, logit_bias=dict.fromkeys(prompt[-6:-4], 30.0))
        made.append(Request(id=str(i), prompt_ids=prompt, sampling=sampling, n=2 if i == 1 else 1, priority=i % 2))
    return made


def signature(outcome, is_exact):
    """Of each choice its tokens and, where every product is ours, the exact log-probabilities."""
    return {
        key: [(token, (each.chosen, each.top_ids, each.top_logprobs) if is_exact else None) for token, each in zip(
            tokens, outcome.logprobs[key], strict=True)]
        for key, tokens in outcome.tokens.items()
    }  # fmt: skip


class Subject:
    """A model, and what each request gets when it has the engine to itself."""

    def __init__(self, folder, is_exact, **settings):
        self.is_exact = is_exact and native.kernels() is not None
        self._folder, self._settings = folder, settings
        self.alone = {}
        engine = self.engine(prefix_cache=False)
        for request in requests():
            self.alone |= signature(tiny.run(engine, [request]), self.is_exact)

    def engine(self, **more):
        return tiny.load(self._folder, **(POOL | self._settings | more))

    def check(self, outcome):
        assert not outcome.failed
        assert signature(outcome, self.is_exact) == self.alone


@pytest.fixture(params=CASES, ids="-".join, scope="module")
def subject(request, checkpoint):
    name, dtype = request.param
    return Subject(checkpoint(name)[1], name not in tiny.MIXTURES, dtype=dtype)


@pytest.fixture(params=QUANTIZED, ids="-".join, scope="module")
def quantized(request, checkpoint):
    name, quantization = request.param
    return Subject(checkpoint(name)[1], True, dtype="bfloat16", quantization=quantization)


def batched(subject):
    engine = subject.engine(max_batch_tokens=11, max_num_seqs=5)
    order = requests()
    random.Random(3).shuffle(order)
    subject.check(tiny.run(engine, order))


def preempted(subject):
    engine = subject.engine(num_blocks=20)
    subject.check(tiny.run(engine, list(reversed(requests()))))
    assert engine.stats().preemptions > 0


def prefix_cached(subject):
    engine = subject.engine()
    for _ in range(2):
        subject.check(tiny.run(engine, requests()))
    assert engine.stats().cached_tokens >= sum((len(prompt) - 1) // 4 * 4 for prompt in PROMPTS)


def speculated(subject):
    engine = subject.engine(speculative_tokens=5)
    subject.check(tiny.run(engine, requests()))
    assert 0 < engine.stats().accepted_tokens < engine.stats().guessed_tokens


def resumed(subject):
    engine = subject.engine(max_batch_tokens=13)
    known = {key: [token for token, _ in made][: 3 + 2 * i] for i, (key, made) in enumerate(subject.alone.items())}
    again = [
        msgspec.structs.replace(request, resume=[known[request.id, choice] for choice in range(request.n)])
        for request in requests()
    ]
    got = signature(tiny.run(engine, again), subject.is_exact)
    assert got == {key: made[len(known[key]) :] for key, made in subject.alone.items()}


LEGS = pytest.mark.parametrize(
    "leg", [batched, preempted, prefix_cached, speculated, resumed], ids=lambda leg: leg.__name__
)


@LEGS
def test_same_tokens_as_alone(subject, leg):
    leg(subject)


@LEGS
def test_same_tokens_as_alone_with_quantised_weights(quantized, leg):
    leg(quantized)


def test_the_requests_tell_the_legs_apart(subject):
    """Else equality would say nothing: the outputs differ from each other and depend on the sampling."""
    tokens = [tuple(token for token, _ in made) for made in subject.alone.values()]
    assert len(set(tokens)) == len(tokens)
    assert any(len(set(each)) > 6 for each in tokens)
