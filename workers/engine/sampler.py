"""How do logits become the next tokens? One pass for all rows; only rows that ask for something pay for it."""

from collections.abc import Callable

import torch
from torch import Tensor

from workers.engine.choose import Argmax, Chooser, torch_argmax
from workers.engine.engine import Sampled
from workers.engine.grammar import GrammarMasks
from workers.engine.penalties import TokenCounts
from workers.engine.protocol import Logprob, SamplingParams
from workers.engine.sequence import Sequence
from workers.engine.transfer import Download, to_device, upload

Forbid = Callable[[Tensor, list[int], Tensor], None]  # see `torch_forbid`


def torch_forbid(logits: Tensor, rows: list[int], words: Tensor) -> None:
    """Set the logits [R, vocab] of some rows to minus infinity where their bit in words [len(rows), vocab / 32] isn't set."""
    bits = torch.arange(8, dtype=torch.uint8, device=logits.device)
    octets = to_device(
        words.contiguous().view(torch.uint8), logits.device
    )  # little endian, as every machine that we run on
    allowed = (octets[:, :, None] >> bits) & 1
    forbidden = allowed.flatten(1)[:, : logits.shape[1]] == 0
    if len(rows) == len(logits):
        logits.masked_fill_(forbidden, float("-inf"))
    else:
        at = upload(rows, torch.int64, logits.device)
        logits[at] = logits[at].masked_fill(forbidden, float("-inf"))


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
        chooser = Chooser(sequences, lens, self._vocab_size, self._device, self._argmax)
        wanted = {row: p.logprobs for row, p in enumerate(params) if p.logprobs is not None}
        tokens, is_open = chooser(logits)
        while True:  # once, or twice if a filter's cut lay far out
            host_tokens, host_open, *found = Download(tokens, is_open, *self._logprobs(raw, tokens, wanted)).wait()
            open_rows = host_open.nonzero().flatten().tolist()
            if not open_rows:
                break
            tokens, is_open = chooser.settle(logits, tokens, open_rows), torch.zeros_like(is_open)
        token_ids: list[int] = host_tokens.tolist()
        logprobs = _logprobs_by_row(wanted, found)
        return [Sampled(token_id, logprobs.get(row), faults.get(row)) for row, token_id in enumerate(token_ids)]

    @torch.inference_mode()
    def chooser(self, sequences: list[Sequence], num_steps: int) -> Chooser:
        """For so many steps of the same rows, none of which needs the host (see `multistep`)."""
        lens = [len(sequence.token_ids) for sequence in sequences]
        return Chooser(sequences, lens, self._vocab_size, self._device, self._argmax, num_steps)

    def _add_bias(self, logits: Tensor, params: list[SamplingParams]) -> None:
        entries = [(row, token, bias) for row, p in enumerate(params) for token, bias in p.logit_bias.items()]
        if entries:
            rows, tokens, biases = zip(*entries, strict=True)
            values = self._values(list(biases))
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
            self._values(values)[:, None]
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

    def _logprobs(self, raw: Tensor, tokens: Tensor, wanted: dict[int, int]) -> list[Tensor]:
        """Of the wanted rows: the chosen token's, the best tokens' ids, and theirs; nothing if no row asks."""
        if not wanted:
            return []
        rows = self._index(list(wanted))
        log_probs = raw[rows].log_softmax(dim=-1)
        best = log_probs.topk(min(max(wanted.values()), self._vocab_size), dim=-1)
        return [log_probs.gather(1, tokens[rows, None]).squeeze(1), best.indices, best.values]

    def _index(self, values: "list[int] | tuple[int, ...]") -> Tensor:
        return upload(values, torch.int64, self._device)

    def _values(self, values: list[float]) -> Tensor:
        return upload(values, torch.float32, self._device)


def _logprobs_by_row(wanted: dict[int, int], found: list[Tensor]) -> dict[int, Logprob]:
    if not wanted:
        return {}
    chosen, top_ids, top_logprobs = (tensor.tolist() for tensor in found)
    return {
        row: Logprob(chosen[place], top_ids[place][:count], top_logprobs[place][:count])
        for place, (row, count) in enumerate(wanted.items())
    }


def _changes_logits(sequence: Sequence, position: int) -> bool:
    sampling = sequence.sampling
    return bool(sampling.logit_bias) or _has_penalty(sampling) or _is_too_short(sequence, position)


def _is_too_short(sequence: Sequence, position: int) -> bool:
    return sequence.sampling.grammar is None and position - sequence.num_prompt_tokens < sequence.sampling.min_tokens


def _has_penalty(sampling: SamplingParams) -> bool:
    return bool(sampling.presence_penalty or sampling.frequency_penalty) or sampling.repetition_penalty != 1
