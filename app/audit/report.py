"""What does an audit say? Each check by name, with what was expected and what was found, the first so many of them."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing that is off: a job's name or what else the check is about."""

    subject: str
    expected: str
    found: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one check found: `total` violations, of which the first are listed."""

    check: str
    claim: str  # what holds where nothing was found
    total: int = 0
    violations: list[Violation] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Report:
    """One audit. `unchecked` says what couldn't be looked at, and why."""

    within_s: float
    jobs: dict[str, int]  # by status, at the time of the snapshot
    outcomes: list[Outcome]
    unchecked: dict[str, str]

    @property
    def findings(self) -> list[Outcome]:
        """The checks that found something."""
        return [each for each in self.outcomes if each.total]

    def document(self) -> dict[str, Any]:
        """The report for machines."""
        return {
            "object": "audit",
            "clean": not self.findings and not self.unchecked,
            "within_s": self.within_s,
            "jobs": self.jobs,
            "unchecked": self.unchecked,
            "checks": [
                {
                    "check": each.check,
                    "claim": each.claim,
                    "total": each.total,
                    "violations": [
                        {"subject": v.subject, "expected": v.expected, "found": v.found} for v in each.violations
                    ],
                }
                for each in self.outcomes
            ],
        }
