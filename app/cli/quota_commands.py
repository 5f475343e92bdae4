"""Which commands are there for tenants and budgets? Their names and options; the work is in modules that are loaded when it is done."""

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from app.settings import Settings

TenantArgument = Annotated[str, typer.Argument(metavar="ID", help="The tenant's slug.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, an object a line.")]
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Where servers' data, secrets and logs live.  [default: .penstock]")
]


def _limit(name: str, words: str) -> Any:
    return typer.Option(name, metavar="N|none", help=words)


DisplayName = Annotated[str | None, typer.Option("--display-name", help="For people.")]
Weight = Annotated[int | None, typer.Option("--weight", help="Its share among a tier's tenants, 1 to 1000.")]


class Tier(StrEnum):
    """What a tenant may submit to."""

    INTERACTIVE = "interactive"
    STANDARD = "standard"
    BATCH = "batch"


Tiers = Annotated[
    list[Tier] | None,
    typer.Option("--tier", help="It may submit to these, and no others: repeat it."),
]
MaxRunning = Annotated[str | None, _limit("--max-running-jobs", "Most that run at a time.")]
MaxQueued = Annotated[str | None, _limit("--max-queued-jobs", "Most that wait at a time.")]
MaxQueuedTokens = Annotated[
    str | None, _limit("--max-queued-tokens", "Most tokens that wait at a time: prompt + n x max_tokens.")
]
MaxPrompt = Annotated[str | None, _limit("--max-prompt-tokens", "Of one request.")]
MaxOutput = Annotated[str | None, _limit("--max-output-tokens", "Of one request: n x max_tokens.")]
Requests = Annotated[str | None, _limit("--requests-per-minute", "In the long run.")]
RequestBurst = Annotated[str | None, _limit("--request-burst", "So many at once; none: what a minute brings.")]
TokensRate = Annotated[str | None, _limit("--tokens-per-minute", "In the long run: prompt + n x max_tokens.")]
TokenBurst = Annotated[str | None, _limit("--token-burst", "So many at once; none: what a minute brings.")]
Share = Annotated[
    str | None, _limit("--share-identical-s", "Compute identical work once within so many seconds; none: never.")
]
RetentionDays = Annotated[
    str | None, _limit("--retention-days", "Delete its ended jobs after so many days; none: as the setting says.")
]
ContentRetention = Annotated[
    str | None,
    _limit(
        "--content-retention-s", "Wipe prompts and outputs so many seconds after a job's end, 60 or more; none: don't."
    ),
]
BillShared = Annotated[
    bool | None, typer.Option("--bill-shared/--no-bill-shared", help="Whether shared results count as used.")
]
Reason = Annotated[str, typer.Option("--reason", help="Why, for the log of acts.")]


def commands_of(settings: Callable[[Path | None], "Settings"]) -> tuple[typer.Typer, typer.Typer]:
    """`penstock tenants` and `penstock budgets`; `settings` reads what is configured."""
    tenants_app = typer.Typer(
        help="Make, list, change and suspend tenants, directly on the database.", no_args_is_help=True
    )
    budgets_app = typer.Typer(help="Set, list and retire budgets, directly on the database.", no_args_is_help=True)

    @tenants_app.command("list")
    def list_tenants(
        state: Annotated[Literal["active", "suspended", "any"], typer.Option("--state", help="Only these.")] = "any",
        as_json: AsJson = False,
        data_dir: DataDir = None,
    ) -> None:
        """List tenants with their limits, by id."""
        from app.cli import tenants

        tenants.show_all(settings(data_dir), state, as_json=as_json)

    @tenants_app.command("show")
    def show_tenant(tenant: TenantArgument, as_json: AsJson = False, data_dir: DataDir = None) -> None:
        """Show all that is known of a tenant; - is no limit."""
        from app.cli import tenants

        tenants.show(settings(data_dir), tenant, as_json=as_json)

    @tenants_app.command("create")
    def create_tenant(
        tenant: TenantArgument,
        display_name: DisplayName = None,
        weight: Weight = None,
        tier: Tiers = None,
        max_running_jobs: MaxRunning = None,
        max_queued_jobs: MaxQueued = None,
        max_queued_tokens: MaxQueuedTokens = None,
        max_prompt_tokens: MaxPrompt = None,
        max_output_tokens: MaxOutput = None,
        requests_per_minute: Requests = None,
        request_burst: RequestBurst = None,
        tokens_per_minute: TokensRate = None,
        token_burst: TokenBurst = None,
        share_identical_s: Share = None,
        retention_days: RetentionDays = None,
        content_retention_s: ContentRetention = None,
        bill_shared: BillShared = None,
        data_dir: DataDir = None,
    ) -> None:
        """Make a tenant: every tier and no limits, unless something else is said."""
        options = dict(locals())
        from app.cli import tenants

        tenants.create(settings(data_dir), tenant, _fields(options))

    @tenants_app.command("set")
    def change_tenant(
        tenant: TenantArgument,
        display_name: DisplayName = None,
        weight: Weight = None,
        tier: Tiers = None,
        max_running_jobs: MaxRunning = None,
        max_queued_jobs: MaxQueued = None,
        max_queued_tokens: MaxQueuedTokens = None,
        max_prompt_tokens: MaxPrompt = None,
        max_output_tokens: MaxOutput = None,
        requests_per_minute: Requests = None,
        request_burst: RequestBurst = None,
        tokens_per_minute: TokensRate = None,
        token_burst: TokenBurst = None,
        share_identical_s: Share = None,
        retention_days: RetentionDays = None,
        content_retention_s: ContentRetention = None,
        bill_shared: BillShared = None,
        data_dir: DataDir = None,
    ) -> None:
        """Change what is given; the rest stays. `none` takes a limit away."""
        options = dict(locals())
        from app.cli import tenants

        tenants.change(settings(data_dir), tenant, _fields(options))

    @tenants_app.command("suspend")
    def suspend_tenant(tenant: TenantArgument, reason: Reason = "suspended by hand", data_dir: DataDir = None) -> None:
        """Take no new jobs of a tenant; accepted ones run on."""
        from app.cli import tenants

        tenants.suspend(settings(data_dir), tenant, reason)

    @tenants_app.command("resume")
    def resume_tenant(tenant: TenantArgument, reason: Reason = "resumed by hand", data_dir: DataDir = None) -> None:
        """Take a tenant's jobs again."""
        from app.cli import tenants

        tenants.resume(settings(data_dir), tenant, reason)

    @budgets_app.command("list")
    def list_budgets(
        tenant: Annotated[str | None, typer.Option("--tenant", help="Only this one's.")] = None,
        retired: Annotated[bool, typer.Option("--retired", help="Those that apply no more, too.")] = False,
        as_json: AsJson = False,
        data_dir: DataDir = None,
    ) -> None:
        """List budgets with what is used, reserved and left in their current windows."""
        from app.cli import budgets

        budgets.show_all(settings(data_dir), tenant, retired=retired, as_json=as_json)

    @budgets_app.command("set")
    def set_budget(
        tenant: TenantArgument,
        metric: Annotated[
            Literal["input_tokens", "output_tokens", "total_tokens", "requests", "cost"], typer.Argument()
        ],
        period: Annotated[Literal["minute", "hour", "day", "month", "total"], typer.Argument()],
        limit: Annotated[str, typer.Argument(help="Tokens, requests, or millionths of the currency.")],
        key: Annotated[str | None, typer.Option("--key", help="Only of the key with this prefix.")] = None,
        thresholds: Annotated[
            str | None, typer.Option("--thresholds", metavar="80,100", help="Warn at these per cent.")
        ] = None,
        data_dir: DataDir = None,
    ) -> None:
        """Make a budget, or change the one for the same tenant or key, metric and period."""
        from app.cli import budgets

        budgets.put(settings(data_dir), tenant, metric, period, limit, key=key, thresholds=thresholds)

    @budgets_app.command("retire")
    def retire_budget(
        budget: Annotated[str, typer.Argument(metavar="ID", help="As `budgets list` shows it.")],
        data_dir: DataDir = None,
    ) -> None:
        """Let a budget apply no more; its ledger stays."""
        from app.cli import budgets

        budgets.retire(settings(data_dir), budget)

    return tenants_app, budgets_app


def _fields(options: dict[str, Any]) -> dict[str, Any]:
    """A command's options under their fields' names."""
    tiers = [each.value for each in options["tier"]] if options["tier"] else None
    named = {name: value for name, value in options.items() if name != "tier"} | {"tiers": tiers}
    return {name: value for name, value in named.items() if name not in {"tenant", "data_dir", "settings"}}
