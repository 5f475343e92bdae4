"""How do logits become the next tokens? One pass for all rows; only rows that ask for something pay for it."""

from collections.abc import Callable

import torch
from torch import Tensor

from workers.engine.draw import Filters, draw, draw_filtered
from workers.engine.engine import Sampled
from workers.engine.grammar import GrammarMasks
from workers.engine.noise import row_key
from workers.engine.penalties import TokenCounts
from workers.engine.protocol import Logprob, SamplingParams
from workers.engine.sequence import Sequence

_MIN_TEMPERATURE = 1e-5  # less is greedy: dividing by it would overflow


Argmax = Callable[[Tensor], Tensor]  # scores [R, vocab] float32 -> the place of each row's highest [R] int64


Forbid = Callable[[Tensor, list[int], Tensor], None]  # see `torch_forbid`


def torch_forbid(logits: Tensor, rows: list[int], words: Tensor) -> None:
    """Set the logits [R, vocab] of some rows to minus infinity where their bit in words [len(rows), vocab / 32] isn't set."""
    bits = torch.arange(8, dtype=torch.uint8, device=logits.device)
    octets = words.contiguous().view(torch.uint8).to(logits.device)  # little endian, as every machine that we run on
    allowed = (octets[:, :, None] >> bits) & 1
    forbidden = allowed.flatten(1)[:, : logits.shape[1]] == 0
    if len(rows) == len(logits):
        logits.masked_fill_(forbidden, float("-inf"))
    else:
        at = torch.tensor(rows, device=logits.device)
        logits[at] = logits[at].masked_fill(forbidden, float("-inf"))


def torch_argmax(scores: Tensor) -> Tensor:
    """PyTorch's own, for any device."""
    return scores.argmax(dim=-1)


class Sampler:
    """Chooses tokens. Its only state is counts for penalties, and they follow from the tokens."""

    def __init__(
        self,
        vocab_size: int,
        eos_token_ids: list[int],
        device: torch.device,
        argmax: Argmax = torch_argmax,
        forbid: Forbid = torch_forbid,
    ) -> None:
        self._vocab_size = vocab_size
        self._eos_token_ids = torch.tensor(eos_token_ids, dtype=torch.int64, device=device)
        self._counts = TokenCounts(vocab_size, device)
        self._device = device
        self._argmax = argmax
        self._forbid = forbid

    def forget(self, arrivals: list[int]) -> None:
        """Drop what is kept for sequences that left."""
        self._counts.forget(arrivals)

    @torch.inference_mode()
    def sample(
        self,
        logits: Tensor,
        sequences: list[Sequence],
        guesses: list[list[int]] | None = None,
        masks: GrammarMasks | None = None,
    ) -> list[Sampled]:
        """The next token of each row's sequence; logits [R, vocab] of any float type.

        `guesses` [R] holds tokens that a row takes to follow those of its sequence, which may stand in several rows.
        `masks` says what rows with a grammar may choose, and lets their logits be written over.
        """
        if not sequences:
            return []
        guesses = guesses or [[] for _ in sequences]
        lens = [len(sequence.token_ids) + len(guess) for sequence, guess in zip(sequences, guesses, strict=True)]
        params = [sequence.sampling for sequence in sequences]
        logits = logits.float()
        raw = logits
        if any(map(_changes_logits, sequences, lens)):
            logits = logits.clone()
            self._add_bias(logits, params)
            self._hold_back_eos(logits, sequences, lens)
            self._penalise(logits, sequences, guesses)
        faults: dict[int, str] = {}
        if masks is not None:
            faults = masks.faults
            if masks.rows:
                if logits is raw and any(p.logprobs is not None for p in params):
                    logits = (
                        logits.clone()
                    )  # which takes longer than all masks: only where the others are still asked for
                self._forbid(logits, masks.rows, masks.words)
        tokens = self._choose(logits, sequences, lens)
        token_ids: list[int] = tokens.tolist()
        logprobs = self._logprobs(raw, tokens, params)
        return [Sampled(token_id, logprobs.get(row), faults.get(row)) for row, token_id in enumerate(token_ids)]

    def _choose(self, logits: Tensor, sequences: list[Sequence], lens: list[int]) -> Tensor:
        """Token ids [R]; lens [R] are the places that they will stand at."""
        params = [sequence.sampling for sequence in sequences]
        drawn = [row for row, p in enumerate(params) if p.temperature >= _MIN_TEMPERATURE]
        if not drawn:
            return self._argmax(logits)
        keys = torch.tensor(
            [_signed_halves(_key(sequences[row], lens[row])) for row in drawn], dtype=torch.int32, device=self._device
        )
        is_filtered = [_is_filtered(params[row], self._vocab_size) for row in drawn]
        tokens = self._argmax(logits) if len(drawn) < len(params) else torch.empty_like(logits[:, 0], dtype=torch.int64)
        temperature = torch.tensor([params[row].temperature for row in drawn], device=self._device)
        rows = self._index(drawn)
        scores = logits[rows] / temperature[:, None]
        for places, filtered in (
            ([place for place, flag in enumerate(is_filtered) if not flag], False),
            ([place for place, flag in enumerate(is_filtered) if flag], True),
        ):
            if not places:
                continue
            at = self._index(places)
            if filtered:
                chosen = draw_filtered(scores[at], keys[at], self._filters([params[drawn[place]] for place in places]))
            else:
                chosen = draw(scores[at], keys[at])
            tokens[rows[at]] = chosen
        return tokens

    def _filters(self, params: list[SamplingParams]) -> Filters:
        return Filters(
            top_k=self._index([p.top_k if 0 < p.top_k < self._vocab_size else self._vocab_size for p in params]),
            top_p=torch.tensor([p.top_p for p in params], device=self._device),
            min_p=torch.tensor([p.min_p for p in params], device=self._device),
        )

    def _add_bias(self, logits: Tensor, params: list[SamplingParams]) -> None:
        entries = [(row, token, bias) for row, p in enumerate(params) for token, bias in p.logit_bias.items()]
        if entries:
            rows, tokens, biases = zip(*entries, strict=True)
            values = torch.tensor(biases, dtype=logits.dtype, device=self._device)
            logits.index_put_((self._index(rows), self._index(tokens)), values, accumulate=True)

    def _hold_back_eos(self, logits: Tensor, sequences: list[Sequence], lens: list[int]) -> None:
        rows = [row for row, sequence in enumerate(sequences) if _is_too_short(sequence, lens[row])]
        if rows and len(self._eos_token_ids):
            logits[self._index(rows)[:, None], self._eos_token_ids] = float("-inf")

    def _penalise(self, logits: Tensor, sequences: list[Sequence], guesses: list[list[int]]) -> None:
        """Presence and frequency: of generated tokens (OpenAI). Repetition: of prompt and generated tokens.

        Source of the latter: N. Keskar et al., "CTRL", 2019.
        """
        places = [row for row, sequence in enumerate(sequences) if _has_penalty(sequence.sampling)]
        if not places:
            return
        counts, in_prompt = self._counts.of([sequences[row] for row in places])
        guessed = [(place, token) for place, row in enumerate(places) for token in guesses[row]]
        if guessed:
            at, tokens = zip(*guessed, strict=True)
            ones = torch.ones(len(at), dtype=counts.dtype, device=self._device)
            counts.index_put_((self._index(at), self._index(tokens)), ones, accumulate=True)
        params = [sequences[row].sampling for row in places]
        presence, frequency, repetition = (
            torch.tensor(values, device=self._device)[:, None]
            for values in (
                [p.presence_penalty for p in params],
                [p.frequency_penalty for p in params],
                [p.repetition_penalty for p in params],
            )
        )
        rows = self._index(places)
        scores = logits[rows]
        repeated = torch.where(scores > 0, scores / repetition, scores * repetition)
        scores = torch.where(in_prompt | (counts > 0), repeated, scores)
        logits[rows] = scores - presence * (counts > 0) - frequency * counts

    def _logprobs(self, raw: Tensor, tokens: Tensor, params: list[SamplingParams]) -> dict[int, Logprob]:
        """By row, for those that ask."""
        wanted = {row: p.logprobs for row, p in enumerate(params) if p.logprobs is not None}
        if not wanted:
            return {}
        rows = self._index(list(wanted))
        log_probs = raw[rows].log_softmax(dim=-1)
        chosen = log_probs.gather(1, tokens[rows, None]).squeeze(1).tolist()
        best = log_probs.topk(min(max(wanted.values()), self._vocab_size), dim=-1)
        top_ids, top_logprobs = best.indices.tolist(), best.values.tolist()
        return {
            row: Logprob(chosen[place], top_ids[place][:count], top_logprobs[place][:count])
            for place, (row, count) in enumerate(wanted.items())
        }

    def _index(self, values: "list[int] | tuple[int, ...]") -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)


def _key(sequence: Sequence, position: int) -> int:
    return row_key(sequence.sampling.seed, sequence.choice, position)


def _signed_halves(key: int) -> tuple[int, int]:
    """A 64-bit key as two numbers that fit int32."""
    low, high = key & 0xFFFFFFFF, key >> 32
    return low - ((low >> 31) << 32), high - ((high >> 31) << 32)


def _changes_logits(sequence: Sequence, position: int) -> bool:
    sampling = sequence.sampling
    return bool(sampling.logit_bias) or _has_penalty(sampling) or _is_too_short(sequence, position)


def _is_too_short(sequence: Sequence, position: int) -> bool:
    return sequence.sampling.grammar is None and position - sequence.num_prompt_tokens < sequence.sampling.min_tokens


def _has_penalty(sampling: SamplingParams) -> bool:
    return bool(sampling.presence_penalty or sampling.frequency_penalty) or sampling.repetition_penalty != 1


def _is_filtered(sampling: SamplingParams, vocab_size: int) -> bool:
    return 0 < sampling.top_k < vocab_size or sampling.top_p < 1 or sampling.min_p > 0
