"""Statistics with generous bounds (six standard deviations), and bits that must not depend on the batch."""

import math

import pytest
import torch

from workers.engine.draw import Filters, draw, draw_filtered, gumbel
from workers.engine.noise import row_key
from workers.engine.protocol import SamplingParams
from workers.engine.sampler import Sampler
from workers.engine.sequence import Sequence

VOCAB = 50
CPU = torch.device("cpu")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small tensors are fastest on one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def sequence(sampling, prompt=(1, 2, 3), generated=(), choice=0, arrival=0):
    return Sequence(
        request_id="r",
        choice=choice,
        priority=0,
        arrival=arrival,
        sampling=sampling,
        max_len=10_000,
        token_ids=[*prompt, *generated],
        num_prompt_tokens=len(prompt),
    )


def params(**more):
    return SamplingParams(**({"max_tokens": 100} | more))


def sampler(eos=(0,), vocab=VOCAB):
    return Sampler(vocab, list(eos), CPU)


def logits(rows=1, vocab=VOCAB, seed=0, scale=1.5):
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * scale


def sample_many(row, count=20_000, **more):
    """Counts [vocab] of the tokens drawn for `count` seeds."""
    chosen = sampler(vocab=len(row)).sample(
        row.expand(count, -1), [sequence(params(seed=seed, **more)) for seed in range(count)]
    )
    return torch.bincount(torch.tensor([each.token_id for each in chosen]), minlength=len(row))


def assert_follows(counts, probs):
    """Pearson's chi-square, classes of few merged."""
    expected = probs.double() * counts.sum()
    assert counts[expected == 0].sum() == 0
    order = expected.argsort(descending=True)
    expected, counts = expected[order], counts[order].double()
    big = expected >= 20
    expected = torch.cat([expected[big], expected[~big].sum().unsqueeze(0)])
    counts = torch.cat([counts[big], counts[~big].sum().unsqueeze(0)])
    keep = expected > 0
    statistic = ((counts - expected)[keep] ** 2 / expected[keep]).sum().item()
    freedom = max(1, int(keep.sum()) - 1)
    assert statistic < freedom + 6 * math.sqrt(2 * freedom) + 6


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_draws_follow_the_softmax(temperature):
    row = logits()[0]
    assert_follows(sample_many(row, temperature=temperature), (row / temperature).softmax(-1))


def test_draws_by_position_and_by_choice_follow_the_softmax_too():
    row = logits()[0]
    sequences = [
        sequence(params(seed=5), generated=[1] * position, choice=choice)
        for position in range(500)
        for choice in range(16)
    ]
    chosen = sampler().sample(row.expand(len(sequences), -1), sequences)
    counts = torch.bincount(torch.tensor([each.token_id for each in chosen]), minlength=VOCAB)
    assert_follows(counts, row.softmax(-1))


def test_successive_draws_are_independent():
    row = torch.zeros(4)
    sequences = [sequence(params(seed=9), generated=[1] * position) for position in range(8001)]
    ids = torch.tensor([each.token_id for each in sampler(vocab=4).sample(row.expand(8001, -1), sequences)])
    assert_follows(torch.bincount(ids[:-1] * 4 + ids[1:], minlength=16), torch.full((16,), 1 / 16))


def _spelled_out(row, top_k=0, top_p=1.0, min_p=0.0):
    """The filtered distribution, one obvious step after the other."""
    ids = row.argsort(descending=True, stable=True).tolist()
    if top_k:
        ids = ids[:top_k]
    weights = {token: math.exp(row[token].item() - row.max().item()) for token in ids}
    total, before, kept = sum(weights.values()), 0.0, []
    for token in ids:
        if (before < top_p * total or top_p >= 1) and weights[token] >= min_p:
            kept.append(token)
        before += weights[token]
    probs = torch.zeros(len(row))
    for token in kept:
        probs[token] = weights[token]
    return probs / probs.sum()


FILTERS = [
    {"top_k": 5},
    {"top_k": 1},
    {"top_k": 10_000},
    {"top_p": 0.5},
    {"top_p": 0.999},
    {"top_p": 1e-6},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"top_k": 20, "top_p": 0.8, "min_p": 0.05},
]


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_filtered_draws_follow_the_filtered_softmax(filters):
    row = logits(seed=3)[0]
    assert_follows(sample_many(row, count=8000, **filters), _spelled_out(row, **filters))


def test_equal_scores_are_cut_by_token_id():
    row = torch.tensor([0.0, 5.0, 5.0, 5.0, 5.0])
    counts = sample_many(row, count=500, top_k=2)
    assert counts.nonzero().flatten().tolist() == [1, 2]


def test_top_p_stops_as_soon_as_it_is_reached():
    counts = sample_many(torch.zeros(4), count=500, top_p=0.5)
    assert counts.nonzero().flatten().tolist() == [0, 1]


@pytest.mark.parametrize("rounding", [False, True])
@pytest.mark.parametrize(
    "filters", [{"top_k": 1500}, {"top_k": 1000}, {"top_k": 100}, {"top_p": 0.9}, {"top_p": 0.3}, {"min_p": 0.02}]
)
def test_looking_among_candidates_gives_what_sorting_everything_gives(filters, rounding, monkeypatch):
    scores = logits(rows=24, vocab=5000, scale=2.0)
    if rounding:  # as bfloat16 gives them: many are equal, also where the candidates end
        scores = scores.bfloat16().float()
    keys = torch.randint(-(2**31), 2**31, (24, 2), dtype=torch.int64).to(torch.int32)
    given = Filters(
        torch.full((24,), filters.get("top_k", 5000)),
        torch.full((24,), filters.get("top_p", 1.0)),
        torch.full((24,), filters.get("min_p", 0.0)),
    )
    quick = draw_filtered(scores, keys, given)
    monkeypatch.setattr("workers.engine.draw._NUM_CANDIDATES", (5000,))
    assert torch.equal(quick, draw_filtered(scores, keys, given))


@pytest.mark.parametrize("vocab", [VOCAB, 1021, 33_333])
def test_a_row_draws_the_same_whatever_else_is_in_the_batch(vocab):
    rows = 9
    scores = logits(rows=rows, vocab=vocab)
    kinds = [{}, {"top_p": 0.9}, {"top_k": 40}, {"temperature": 0.0}, {"presence_penalty": 1.0}]
    sequences = [
        sequence(params(**({"seed": row, "logprobs": 2} | kinds[row % 5])), generated=[7, 7], arrival=row)
        for row in range(rows)
    ]
    together = sampler(vocab=vocab).sample(scores, sequences)
    alone = [sampler(vocab=vocab).sample(scores[row : row + 1], [sequences[row]])[0] for row in range(rows)]
    assert together == alone
    order = [4, 0, 8, 2, 6]
    shuffled = sampler(vocab=vocab).sample(scores[order], [sequences[row] for row in order])
    assert shuffled == [together[row] for row in order]


def test_noise_is_gumbel_and_never_infinite_upwards():
    keys = torch.tensor([[123, -456]], dtype=torch.int32)
    noise = gumbel(keys, torch.arange(1_000_000, dtype=torch.int32)).double()
    assert noise.isfinite().all()
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.01)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, abs=0.02)
    assert noise.max().item() == pytest.approx(math.log(1_000_000), abs=8)


def test_the_noise_of_a_seed_never_changes():
    # Checkpoints are resumed by other versions of this code: if this fails, raise the sampler's number in paged.py.
    assert row_key(42, 1, 7) == 0x909D7856DBE9D02A
    keys = torch.tensor([[7, 11]], dtype=torch.int32)
    assert gumbel(keys, torch.tensor([0, 1, 2], dtype=torch.int32))[0].tolist() == pytest.approx(
        [1.702014, 1.365748, -0.113665], abs=1e-5
    )


def test_keys_of_neighbours_share_nothing():
    keys = {row_key(seed, choice, position) for seed in range(20) for choice in range(20) for position in range(20)}
    assert len(keys) == 8000
    assert all(key < 2**64 for key in keys)


def test_greedy_is_the_best_token_and_its_first_among_equals():
    rows = torch.tensor([[0.0, 3.0, 3.0], [4.0, 1.0, 4.0]])
    chosen = sampler(vocab=3).sample(rows, [sequence(params(temperature=0.0))] * 2)
    assert [each.token_id for each in chosen] == [1, 0]


def test_logit_bias_bans_and_forces():
    rows = torch.zeros(2, VOCAB)
    rows[:, 3] = 5.0
    ban, force = params(temperature=0.0, logit_bias={3: -100.0, 8: 1.0}), params(logit_bias={9: 100.0})
    assert [each.token_id for each in sampler().sample(rows, [sequence(ban), sequence(force)])] == [8, 9]


def test_eos_is_held_back_until_min_tokens():
    row = torch.zeros(1, VOCAB)
    row[0, 0] = row[0, 1] = 50.0
    row[0, 0] += 1
    sampling = params(min_tokens=2, temperature=0.0)
    chosen = [sampler().sample(row, [sequence(sampling, generated=[5] * count)])[0].token_id for count in range(4)]
    assert chosen == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("penalty", "wanted"),
    [
        ({"presence_penalty": 1.0}, {1: 1.0, 7: 2.0, 8: 2.0, 9: -1.0}),
        ({"frequency_penalty": 1.0}, {1: 1.0, 7: 0.0, 8: 2.0, 9: -1.0}),
        ({"repetition_penalty": 2.0}, {1: 0.5, 7: 1.5, 8: 1.5, 9: -2.0}),
    ],
)
def test_penalties(penalty, wanted):
    """Token 1 is in the prompt, 7 was generated three times, 8 once, 9 (negative) is in the prompt."""
    row = torch.full((1, VOCAB), -50.0)
    row[0, 1], row[0, 7], row[0, 8], row[0, 9] = 1.0, 3.0, 3.0, -1.0
    seen = row.clone()
    target = sampler()
    target._penalise(seen, [sequence(params(**penalty), prompt=[1, 9], generated=[7, 7, 8, 7])], [[]])
    assert {token: seen[0, token].item() for token in wanted} == wanted


def test_the_repetition_penalty_is_that_of_transformers():
    from transformers import RepetitionPenaltyLogitsProcessor

    row = logits(seed=5)
    tokens = [3, 4, 3, 9, 20, 20]
    wanted = RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([tokens]), row.clone())
    got = row.clone()
    sampler()._penalise(got, [sequence(params(repetition_penalty=1.3), prompt=tokens[:2], generated=tokens[2:])], [[]])
    assert torch.equal(got, wanted)


@pytest.mark.parametrize(
    "more",
    [
        {"temperature": 0.0},
        {"top_p": 0.9, "logprobs": 2},
        {"presence_penalty": 1.5, "frequency_penalty": 0.7, "repetition_penalty": 1.4},
        {"min_tokens": 6, "logit_bias": {0: 5.0, 3: -2.0}, "temperature": 0.3},
    ],
    ids=str,
)
def test_a_row_with_guessed_tokens_chooses_what_a_sequence_with_these_tokens_would(more):
    guess, rows, sampling = [7, 7, 1, 20], logits(rows=5, seed=8), params(seed=3, **more)
    one_by_one = [
        sampler().sample(rows[place : place + 1], [sequence(sampling, generated=[5, 7, *guess[:place]])])[0]
        for place in range(5)
    ]
    target, it = sampler(), sequence(sampling, generated=[5, 7])
    for _ in range(2):  # guesses aren't remembered
        assert target.sample(rows, [it] * 5, [guess[:place] for place in range(5)]) == one_by_one


def test_penalties_are_counted_on_as_tokens_come_and_rows_are_used_again():
    target, row = sampler(), torch.zeros(1, VOCAB)
    sampling = params(frequency_penalty=1.0, temperature=0.0)
    for arrival in range(20):
        it = sequence(sampling, prompt=[arrival], arrival=arrival)
        for _ in range(VOCAB // 2):
            it.token_ids.append(target.sample(row, [it])[0].token_id)
        assert it.token_ids[1:] == list(range(VOCAB // 2)), "of equal tokens, the first that wasn't used yet"
        target.forget([arrival])
    assert len(target._counts._generated) == 4


def test_draw_alone_needs_no_filters():
    scores = torch.tensor([[0.0, 100.0, 0.0]])
    assert draw(scores, torch.tensor([[1, 2]], dtype=torch.int32)).tolist() == [1]


def test_nothing_to_sample():
    assert sampler().sample(torch.zeros(0, VOCAB), []) == []
