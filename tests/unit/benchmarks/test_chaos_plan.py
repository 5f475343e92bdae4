"""Does a seed say which faults come, and are they all there?"""

from benchmarks.faults.plan import by_name, make_plan, names_of_all


def test_a_seed_says_all_of_it() -> None:
    assert make_plan(7, 200, 600.0) == make_plan(7, 200, 600.0)
    assert make_plan(7, 200, 600.0) != make_plan(8, 200, 600.0)


def test_each_kind_of_fault_comes_as_soon_as_there_is_room_for_all() -> None:
    count = len(names_of_all())
    assert all(number for _, number in by_name(make_plan(3, count, 60.0)))


def test_nothing_happens_to_a_target_while_something_still_does() -> None:
    plan = make_plan(1, 510, 1800.0)
    assert [fault.at_s for fault in plan] == sorted(fault.at_s for fault in plan)
    until: dict[str, float] = {}
    for fault in plan:
        assert until.get(fault.target, 0.0) <= fault.at_s
        until[fault.target] = fault.at_s + fault.lasts_s


def test_durations_are_scaled() -> None:
    plan, short = make_plan(1, 100, 600.0), make_plan(1, 100, 600.0, scale=0.1)
    longest = max(fault.lasts_s for fault in plan)
    assert longest == 20.0
    assert max(fault.lasts_s for fault in short) == 2.0
