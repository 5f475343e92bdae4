"""How is brook made? One command: text from the grammar, a tokenizer from the text, a model from both, a card on top.

    python -m workers.models.train_brook --out FOLDER [--minutes 60] [--seed 7] [--compile] [--start FOLDER --part 1]

Needs one CPU core, no network and no download. Minutes are CPU time, so a busy machine gives the same model, only later.
The learning rate follows them, so any number ends in a finished model. The same seed gives the same text, the same
tokenizer and nearly the same model.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from torch.nn import functional
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from workers.models.corpus import Document, documents, known_words, words_of

VOCAB_SIZE: Final = 2048
BOS, END, PAD = "<|bos|>", "<|end|>", "<|pad|>"
SPECIAL_TOKENS: Final = (BOS, END, PAD, "<|system|>", "<|user|>", "<|assistant|>")

# One turn is <|role|>text<|end|>. The content is trimmed, as it was in training.
CHAT_TEMPLATE: Final = """\
{{- bos_token -}}
{%- for message in messages -%}
    {%- if message['role'] not in ['system', 'user', 'assistant'] -%}
        {{- raise_exception('brook knows the roles system, user and assistant, not ' + message['role']) -}}
    {%- endif -%}
    {{- '<|' + message['role'] + '|>' + (message['content'] | trim) + '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|assistant|>' -}}
{%- endif -%}
"""

SAMPLE_PROMPTS: Final = (
    "Write a short story about a fox and a lantern.",
    "Tell me about the mill.",
    "List three things you find by the river.",
    "What colour is the heron?",
    "Say hello to Mara.",
    "Count from two to seven.",
    "Write a poem about winter.",
    "What is the capital of France?",
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a training run depends on besides the corpus."""

    minutes: float  # CPU time
    seed: int
    compile: bool = False
    start: Path | None = None  # a folder whose weights and tokenizer are trained further
    part: int = 0  # a further run reads other text: that of seed + part
    muon_learning_rate: float = 5e-3
    adam_learning_rate: float = 2e-3
    warmup_share: float = 0.02
    clip_norm: float = 1.0
    # (rows, tokens each) of a step. One step in five is long, so that all positions are learned.
    short_batch: tuple[int, int] = (8, 256)
    long_batch: tuple[int, int] = (1, 2048)
    long_every: int = 5


@dataclass(frozen=True, slots=True)
class Report:
    """What a training run measured; losses are nats per token."""

    train_loss: float
    validation_loss: float
    num_steps: int
    num_tokens: int
    minutes: float  # CPU time, this run only
    num_parameters: int


def make_tokenizer(seed: int, num_documents: int = 20_000) -> Any:
    """Byte-level BPE over the first documents of a seed; every byte is in the vocabulary, so any text can be encoded."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = (turn.text for document in islice(documents(seed), num_documents) for turn in document)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=["<|system|>", "<|user|>", "<|assistant|>"],
        chat_template=CHAT_TEMPLATE,
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def render(document: Document) -> str:
    """The document as the model sees it: what the chat template gives for a chat, bos and end around plain text."""
    parts = [
        turn.text + END if turn.role == "text" else f"<|{turn.role}|>{turn.text.strip()}{END}" for turn in document
    ]
    return BOS + "".join(parts)


def token_documents(tokenizer: Any, seed: int) -> Iterator[list[int]]:
    """Token ids of one document after the other, without end."""
    source = documents(seed)
    while True:
        texts = [render(document) for document in islice(source, 500)]
        yield from tokenizer(texts, add_special_tokens=False)["input_ids"]


class Packer:
    """Packs documents into rows. Each row begins with a whole document, so that a name in it has been introduced in it."""

    def __init__(self, token_documents: Iterator[list[int]]) -> None:
        self._documents = token_documents

    def batch(self, num_rows: int, num_tokens: int) -> torch.Tensor:
        """[num_rows, num_tokens + 1] int64: inputs, and the same shifted by one as targets."""
        return torch.tensor([self._row(num_tokens + 1) for _ in range(num_rows)])

    def _row(self, num_ids: int) -> list[int]:
        row: list[int] = []
        while len(row) < num_ids:
            row += next(self._documents)
        return row[:num_ids]  # text is free: what doesn't fit is dropped


def make_model(tokenizer: Any) -> Any:
    """A fresh Llama of about 2.8 million parameters, with grouped-query attention and tied embeddings."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=256,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=8,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            attn_implementation="eager",  # on a CPU its backward pass is the fastest
        )
    )


def rate_factor(recipe: Recipe, progress: float) -> float:
    """Linear warm-up, then half a cosine down to 2 % of the peak; `progress` runs from 0 to 1."""
    if progress < recipe.warmup_share:
        return max(0.02, progress / recipe.warmup_share)
    along = min(1.0, (progress - recipe.warmup_share) / (1 - recipe.warmup_share))
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * along))


def loss_of(model: Any, batch: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the next token, in bfloat16 where that is safe."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
    return functional.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())


def optimizers_for(model: Any, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the embedding and the norms.

    Source: K. Jordan and others, "Muon: An optimizer for hidden layers in neural networks", 2024. Here it needs less than
    half of the steps that AdamW alone needs for the same loss.
    """
    inner = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    outer = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(inner, lr=recipe.muon_learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(outer, lr=recipe.adam_learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]


def train(model: Any, tokenizer: Any, recipe: Recipe, console: Console) -> Report:
    """Trains until the minutes are over. No document is read twice; a further run reads the text of another seed."""
    packer = Packer(token_documents(tokenizer, recipe.seed + recipe.part))
    optimizers = optimizers_for(model, recipe)
    peaks = [optimizer.defaults["lr"] * (0.8 if recipe.start else 1.0) for optimizer in optimizers]
    short_loss = torch.compile(loss_of, dynamic=False) if recipe.compile else loss_of
    model.train()
    started = time.process_time()
    progress, num_steps, num_tokens, smooth = 0.0, 0, 0, float("nan")
    with Progress(
        TextColumn("training"), BarColumn(), TextColumn("{task.fields[status]}"), TimeElapsedColumn(), TimeRemainingColumn(),
        console=console,
    ) as bar:  # fmt: skip
        task = bar.add_task("training", total=1.0, status="")
        while progress < 1.0:
            for optimizer, peak in zip(optimizers, peaks, strict=True):
                for group in optimizer.param_groups:
                    group["lr"] = peak * rate_factor(recipe, progress)
            is_long = num_steps % recipe.long_every == recipe.long_every - 1
            batch = packer.batch(*(recipe.long_batch if is_long else recipe.short_batch))
            loss = loss_of(model, batch) if is_long else short_loss(model, batch)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            num_steps += 1
            num_tokens += batch.shape[0] * (batch.shape[1] - 1)
            smooth = loss.item() if num_steps == 1 else 0.97 * smooth + 0.03 * loss.item()
            elapsed_s = time.process_time() - started
            progress = elapsed_s / (60 * recipe.minutes)
            status = f"step {num_steps}  loss {smooth:.3f}  {num_steps / elapsed_s:.2f} steps/s  {num_tokens / 1e6:.1f} M tokens"
            bar.update(task, completed=min(progress, 1.0), status=status)
            if num_steps % 200 == 0 and not console.is_terminal:
                console.print(status, highlight=False)
    return Report(
        train_loss=smooth,
        validation_loss=validate(model, tokenizer, recipe.seed),
        num_steps=num_steps,
        num_tokens=num_tokens,
        minutes=(time.process_time() - started) / 60,
        num_parameters=sum(p.numel() for p in model.parameters()),
    )


@torch.no_grad()
def validate(model: Any, tokenizer: Any, seed: int, num_batches: int = 12) -> float:
    """Mean loss on documents of another seed."""
    model.eval()
    packer = Packer(token_documents(tokenizer, seed + 1_000_003))
    return sum(loss_of(model, packer.batch(8, 512)).item() for _ in range(num_batches)) / num_batches


@torch.no_grad()
def answer(model: Any, tokenizer: Any, prompt: str, *, temperature: float = 0.0, max_new_tokens: int = 320) -> str:
    """What the model says to one user message; temperature 0 is greedy."""
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    how = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    out = model.generate(**inputs, max_new_tokens=max_new_tokens, **how)
    return str(tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def card(report: Report, recipe: Recipe, samples: list[tuple[str, str, str]]) -> str:
    """The model card; samples are (prompt, manner, answer)."""
    shown = "\n\n".join(
        f"**{prompt}** ({manner})\n\n" + "\n".join(f"> {line}".rstrip() for line in text.splitlines())
        for prompt, manner, text in samples
    )
    options = " --compile" if recipe.compile else ""
    options += f" --start EARLIER --part {recipe.part}" if recipe.start else ""
    return f"""\
# brook

A very small language model that tells stories about one valley, its river and its people. It ships with Penstock so that
the demo, the tests and the streams show real text from a real distribution, without any download.

Special tokens: `{"`, `".join(SPECIAL_TOKENS)}`. `{END}` ends a chat answer and plain text alike.

| | |
|---|---|
| Architecture | Llama: 4 layers, width 256, 8 query heads over 2 key-value heads, SwiGLU 512, RoPE, tied embeddings |
| Parameters | {report.num_parameters:,} (bfloat16) |
| Context | 2048 tokens; four training steps in five used rows of 256, one in five a row of 2048 |
| Tokenizer | byte-level BPE, {VOCAB_SIZE} tokens, all 256 bytes included |
| Training text | {report.num_tokens / 1e6:.1f} million tokens, made by `workers/models/corpus.py`; always fresh |
| Training | {"a further run of " if recipe.start else ""}{report.num_steps:,} steps, {report.minutes:.0f} minutes of one CPU core; Muon and AdamW, cosine, bfloat16 autocast |
| Loss | {report.train_loss:.3f} in training, {report.validation_loss:.3f} on documents of another seed (nats per token) |
| Licence | that of Penstock; the text is our own, and nothing was taken from elsewhere |

## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer
from workers.models import BROOK

model = AutoModelForCausalLM.from_pretrained(BROOK)
tokenizer = AutoTokenizer.from_pretrained(BROOK)
```

A chat is `{BOS}<|system|>...{END}<|user|>...{END}<|assistant|>...{END}`, which `apply_chat_template` writes; the system turn
is optional. Plain completion works too: `{BOS}Once upon a time`; the tokenizer puts `{BOS}` in front of what it encodes.

brook writes stories, poems and letters, describes places, people, animals and things, makes lists, explains how to do
things, counts to twenty, adds small numbers, answers questions about a story that it was given or has just told,
summarizes, continues, and says so when a topic lies outside its valley.

## Samples

{shown}

## Limits

brook knows about {len(known_words()):,} words and nothing of the world. It may mix up its characters and their things in a
story, lists more or other things than asked, and counts and adds wrongly now and then. It has no opinion, no memory and
no safety training; it needs none, because its training text holds nothing but the valley. Don't use it for anything but
showing and testing software.

## Make it again

    python -m workers.models.train_brook --out FOLDER --minutes {recipe.minutes:.0f} --seed {recipe.seed}{options}

The text and the tokenizer depend on the seed alone. The weights also depend on how many steps fit into
the minutes.
"""


def save(model: Any, tokenizer: Any, out: Path) -> None:
    """Writes a folder that transformers loads as it stands."""
    model.to(torch.bfloat16).save_pretrained(out)
    for trace in ("is_local", "local_files_only"):  # of how a further run loaded it
        tokenizer.init_kwargs.pop(trace, None)
    tokenizer.save_pretrained(out)
    GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    ).save_pretrained(out)


def main() -> None:
    """Reads the arguments, trains, saves, and prints samples."""
    parser = argparse.ArgumentParser(description="Train brook, the bundled model.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--minutes", type=float, default=60.0, help="CPU time of the training itself")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument(
        "--threads", type=int, default=1, help="one is nearly as fast as two, and two wait for each other"
    )
    parser.add_argument("--compile", action="store_true", help="torch.compile: a third faster, needs a C++ compiler")
    parser.add_argument("--part", type=int, default=0, help="0 for a first run; a further run takes the next number")
    parser.add_argument("--start", type=Path, help="folder to train further, instead of starting from nothing")
    arguments = parser.parse_args()
    recipe = Recipe(arguments.minutes, arguments.seed, arguments.compile, arguments.start, arguments.part)

    console = Console()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(recipe.seed)
    tokenizer = AutoTokenizer.from_pretrained(recipe.start) if recipe.start else make_tokenizer(recipe.seed)
    model = (
        LlamaForCausalLM.from_pretrained(recipe.start, attn_implementation="eager").float()
        if recipe.start
        else make_model(tokenizer)
    )
    report = train(model, tokenizer, recipe, console)
    save(model, tokenizer, arguments.out)
    console.print(report)

    vocabulary = known_words(recipe.seed)
    samples = []
    for prompt in SAMPLE_PROMPTS:
        for manner, temperature in (("greedy", 0.0), ("temperature 0.8", 0.8)):
            text = answer(model, tokenizer, prompt, temperature=temperature)
            strange = [word for word in words_of(text) if word not in vocabulary]
            console.print(
                f"[bold]{prompt}[/] ({manner}) {json.dumps(strange) if strange else ''}\n{text}\n", highlight=False
            )
            samples.append((prompt, manner, text))
    shown = [sample for i, sample in enumerate(samples) if i < 2 or i % 2 == 1]
    (arguments.out / "README.md").write_text(card(report, recipe, shown), encoding="utf-8")


if __name__ == "__main__":
    main()
