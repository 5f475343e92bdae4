"""`penstock audit`: is anything lost, doubled, unbilled or astray? A table for people, a document for machines."""

import asyncio
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table
from sqlalchemy.exc import SQLAlchemyError

from app.audit.auditor import audit as look
from app.audit.report import Report
from app.cli.errors import one_line
from app.clock import SystemClock
from app.db import create_engine
from app.errors import PenstockError
from app.redis import create_redis
from app.settings import Settings

CLEAN, FOUND, NOT_LOOKED, NOT_ALL_LOOKED = 0, 1, 2, 3
MOST_LISTED = 20  # violations of one check
_UNDECIDED_SLACK_S = 5.0  # beside renominate_after_s: rounds that look for undecided claims, and their work


def audit(settings: Settings, *, json_file: Path | None, within_s: float) -> int:
    """Audit and print; return the exit status: 0 clean, 1 something is off, 2 Postgres can't be asked, 3 clean but not all was looked at."""
    try:
        report = asyncio.run(_audit(settings, within_s))
    except (SQLAlchemyError, PenstockError, OSError) as error:
        print(f"penstock: nothing was audited: {one_line(error) or error}", file=sys.stderr)
        return NOT_LOOKED
    if json_file is not None:
        document = json.dumps(report.document(), indent=1, ensure_ascii=False)
        if str(json_file) == "-":
            print(document)
        else:
            json_file.write_text(f"{document}\n", encoding="utf-8")
    if json_file is None or str(json_file) != "-":
        _show(report)
    if report.findings:
        return FOUND
    return NOT_ALL_LOOKED if report.unchecked else CLEAN


async def _audit(settings: Settings, within_s: float) -> Report:
    db = create_engine(settings, application_name="penstock-audit")
    redis = create_redis(settings) if settings.redis_url else None
    claim_s = settings.renominate_after_s + _UNDECIDED_SLACK_S
    try:
        return await look(db, redis, SystemClock(), within_s=within_s, claim_s=claim_s, most=MOST_LISTED)
    finally:
        if redis is not None:
            await redis.aclose()
        await db.dispose()


def _show(report: Report) -> None:
    console = Console(highlight=False)
    jobs = ", ".join(f"{count:,} {status}" for status, count in report.jobs.items()) or "none"
    console.print(f"jobs: {jobs}", markup=False, soft_wrap=True)
    for what, why in report.unchecked.items():
        console.print(f"not checked: {what}: {why}", markup=False, soft_wrap=True)
    if not report.findings:
        console.print(f"clean: {len(report.outcomes)} checks found nothing")
        return
    for finding in report.findings:
        console.print(f"\n{finding.check}: {finding.total:,} against: {finding.claim}", markup=False, soft_wrap=True)
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for column in ("subject", "expected", "found"):
            table.add_column(column, overflow="fold")
        for each in finding.violations:
            table.add_row(each.subject, each.expected, each.found)
        console.print(table, markup=False)
        if finding.total > len(finding.violations):
            console.print(f"and {finding.total - len(finding.violations):,} more")
