"""While a grammar is being looked at, its request waits outside of the batch, and can be forgotten."""

from concurrent.futures import Future

import pytest

from workers.engine.config import EngineConfig
from workers.engine.grammar_source import GrammarTooComplex
from workers.engine.null import NullEngine
from workers.engine.protocol import Grammar, Request, SamplingParams


class SlowCheck:
    """Verdicts that come when the test says so."""

    def __init__(self) -> None:
        self.verdicts: dict[Grammar, Future[None]] = {}

    def begin(self, grammar: Grammar) -> "Future[None]":
        return self.verdicts.setdefault(grammar, Future())


ONE = Grammar("regex", "a")


@pytest.fixture
def checks():
    return SlowCheck()


@pytest.fixture
def engine(checks):
    engine = NullEngine(EngineConfig(engine="null"))
    engine._grammars = checks
    return engine


def request(name, grammar=None, n=1):
    return Request(
        id=name, prompt_ids=[1, 2, 3], n=n, sampling=SamplingParams(max_tokens=3, grammar=grammar, ignore_eos=True)
    )


def steps(engine, count):
    return [delta.request_id for _ in range(count) for delta in engine.step().deltas]


def test_others_are_served_meanwhile_and_it_comes_in_with_its_verdict(engine, checks):
    engine.add(request("checked", ONE))
    engine.add(request("free"))
    assert steps(engine, 3) == ["free"] * 3
    assert engine.has_work()
    assert steps(engine, 2) == []
    checks.verdicts[ONE].set_result(None)
    assert steps(engine, 3) == ["checked"] * 3
    assert not engine.has_work()


def test_it_counts_as_load(engine):
    before = engine.stats()
    engine.add(request("checked", ONE, n=2))
    stats = engine.stats()
    assert stats.waiting == 2
    assert stats.token_room == before.token_room - 2 * (3 + 3)


def test_a_refusal_bears_its_code(engine, checks):
    engine.add(request("checked", ONE))
    checks.verdicts[ONE].set_exception(GrammarTooComplex("it takes too long"))
    (fault,) = engine.step().failed
    assert (fault.request_id, fault.code) == ("checked", "grammar_too_complex")
    assert "it takes too long" in fault.message
    assert not engine.has_work()


def test_a_check_that_came_to_nothing_fails_too(engine, checks):
    engine.add(request("checked", ONE))
    checks.verdicts[ONE].set_exception(OSError("no process"))
    assert [fault.code for fault in engine.step().failed] == ["grammar_unchecked"]


def test_what_is_aborted_meanwhile_never_comes_in(engine, checks):
    engine.add(request("whole", ONE))
    engine.add(request("part", ONE, n=2))
    engine.abort("whole")
    engine.abort("part", 0)
    checks.verdicts[ONE].set_result(None)
    assert steps(engine, 4) == ["part"] * 3
    assert not engine.has_work()


def test_its_name_is_taken(engine):
    engine.add(request("twice", ONE))
    engine.add(request("twice", ONE))
    assert [fault.code for fault in engine.step().failed] == ["duplicate_request"]
