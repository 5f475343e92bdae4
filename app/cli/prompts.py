"""What does the demo ask for? Jobs of three tenants over the three tiers, from the bundled model's small world."""

from dataclasses import dataclass
from typing import Any

INN, SCHOOL, POST = "sleeping-otter-inn", "valley-school", "post-house"
TENANTS = (INN, SCHOOL, POST)


@dataclass(frozen=True, slots=True)
class DemoJob:
    """A job of the demo: whose, and the body of POST /v1/jobs. `is_shown`: its text is printed at the end."""

    tenant: str
    body: dict[str, Any]
    is_shown: bool = False

    @property
    def tier(self) -> str:
        """Its tier."""
        return str(self.body["tier"])

    @property
    def title(self) -> str:
        """Its prompt, or the last message."""
        messages = self.body.get("messages")
        return str(messages[-1]["content"] if messages else self.body["prompt"])


def _ask(tenant: str, tier: str, *turns: str, is_shown: bool = False, **options: Any) -> DemoJob:
    """A conversation: turns of user and assistant, in turn."""
    messages = [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]
    return DemoJob(
        tenant, {"messages": messages, "tier": tier, "max_tokens": 200, "temperature": 0.7} | options, is_shown
    )


def _continue(tenant: str, tier: str, text: str, *, is_shown: bool = False, **options: Any) -> DemoJob:
    return DemoJob(tenant, {"prompt": text, "tier": tier, "max_tokens": 160, "temperature": 0.7} | options, is_shown)


# The batch work comes first: what is interactive is served first all the same.
JOBS = (
    _ask(SCHOOL, "batch", "Write a short story about a fox and a lantern.", is_shown=True),
    _ask(SCHOOL, "batch", "Tell me a story about a heron."),
    _ask(SCHOOL, "batch", "Write a very short story about a mole."),
    _ask(SCHOOL, "batch", "Tell me a story about courage."),
    _ask(POST, "batch", "Write a letter from Hester to Bettina.", is_shown=True),
    _ask(POST, "batch", "Write a letter from Verity to Fergus."),
    _ask(POST, "batch", "Show me the way from the herb cottage to the workshop."),
    _continue(INN, "standard", "Once upon a time, a sleepy owl named Luna", is_shown=True),
    _continue(INN, "standard", "One clear night a young girl named Tilly went to the river with", seed=7),
    _continue(SCHOOL, "standard", "The Lost Kite\n\nA dreamy boy called Victor"),
    _ask(SCHOOL, "standard", "Write me a two-line rhyme about the bees.", n=2, is_shown=True),
    _ask(SCHOOL, "standard", "Count from three to eleven.", temperature=0),
    _ask(INN, "standard", "Tell me about the mill.", temperature=0),
    _ask(POST, "standard", "What does Tobin like?"),
    _ask(INN, "interactive", "Say hello to Mara."),
    _ask(INN, "interactive", "Who is the miller?", temperature=0),
    _ask(POST, "interactive", "What colour is the heron?", temperature=0),
    _ask(POST, "interactive", "List three things you find by the river.", is_shown=True),
    _ask(SCHOOL, "interactive", "What is the opposite of light?", temperature=0),
    _ask(
        INN, "interactive", "Tell me a very short story about a goat.", "A goat ate the tailor's hat. Nobody laughed but the goat.",
        "What is the moral?", is_shown=True,
    ),
)  # fmt: skip
