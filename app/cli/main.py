"""Which commands are there? Their names and options; each one's work is in a module of its own, loaded when it runs."""

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from app.cli.batch_commands import batch_commands
from app.cli.dashboard_commands import dashboard_commands
from app.cli.quota_commands import commands_of
from app.cli.retention_commands import commands_of as retention_commands_of
from app.cli.webhook_commands import commands_of as webhook_commands_of

if TYPE_CHECKING:
    from app.cli.http import Target
    from app.settings import Settings

app = typer.Typer(
    name="penstock",
    help="Queue-driven generation jobs: nothing lost, nothing twice, fair by tokens.",
    epilog="Settings come from the environment (PENSTOCK_*, DATABASE_URL, REDIS_URL): docs/configuration.md names them all.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
jobs_app = typer.Typer(help="List, show, cancel and watch jobs, over HTTP.", no_args_is_help=True)
keys_app = typer.Typer(help="Make, list, rotate and revoke API keys, directly on the database.", no_args_is_help=True)
dlq_app = typer.Typer(
    help="List, show, requeue and discard jobs that were given up, directly on the database.", no_args_is_help=True
)
app.add_typer(jobs_app, name="jobs")
app.add_typer(keys_app, name="keys")
models_app = typer.Typer(
    help="See and set models' circuit breakers and prices, directly on the database.", no_args_is_help=True
)
app.add_typer(models_app, name="models")
app.add_typer(dlq_app, name="dlq")

TierName = Literal["interactive", "standard", "batch"]
StatusName = Literal["queued", "running", "succeeded", "failed", "cancelled", "expired", "dead"]


class Scope(StrEnum):
    """What a key may be used for."""

    READ = "jobs:read"
    WRITE = "jobs:write"
    ADMIN = "admin"


Model = Annotated[
    str | None, typer.Option("--model", help="Hugging Face id or folder of the model; the bundled one if left out.")
]
ModelName = Annotated[
    str | None,
    typer.Option("--model-name", help="Name that jobs use for it; the id's or folder's last part if left out."),
]
Host = Annotated[str | None, typer.Option("--host", help="Address that the API binds to.  [default: 127.0.0.1]")]
Port = Annotated[
    int | None,
    typer.Option("--port", min=0, max=65535, help="Port that the API binds to; 0 takes a free one.  [default: 8000]"),
]
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Where servers' data, secrets and logs live.  [default: .penstock]")
]
Url = Annotated[
    str | None,
    typer.Option("--url", envvar="PENSTOCK_URL", help="The API; that of a running `penstock up` if left out."),
]
Key = Annotated[
    str | None,
    typer.Option("--key", envvar="PENSTOCK_API_KEY", help="API key; that of a running `penstock up` if left out."),
]
Pool = Annotated[str | None, typer.Option("--pool", help="Only this pool's: it bears the name of its model.")]
ExpiresDays = Annotated[float | None, typer.Option("--expires-days", min=0, help="Never, if left out.")]
OfTenant = Annotated[str | None, typer.Option("--tenant", help="Only this tenant's.")]
OfReason = Annotated[
    str | None, typer.Option("--of-reason", help="Only those that died of this, such as engine_crashes.")
]
Fingerprint = Annotated[
    str | None, typer.Option("--fingerprint", help="Only those of one kind, as `dlq list` shows it.")
]
LetterIds = Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Jobs.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print job objects as JSON.")]


@app.command()
def up(
    model: Model = None,
    model_name: ModelName = None,
    workers: Annotated[int, typer.Option("--workers", min=1, max=64, help="Generation workers.")] = 1,
    host: Host = None,
    port: Port = None,
    data_dir: DataDir = None,
) -> None:
    """Start everything and stay until Ctrl-C, which drains: Postgres, Redis, API, workers, maintenance, webhooks.

    DATABASE_URL and REDIS_URL replace the embedded servers. Data survives in the data folder.
    """
    _configure(model=model, model_name=model_name, api_host=host, api_port=port, data_dir=data_dir)
    from app.cli.up import up as run
    from app.settings import Settings

    run(Settings(), num_workers=workers)


@app.command()
def demo(model: Model = None, model_name: ModelName = None) -> None:
    """Start everything in a temporary folder, run some 20 real prompts through it, show what happened."""
    _configure(model=model, model_name=model_name)
    from app.cli.demo import demo as run
    from app.settings import Settings

    raise typer.Exit(run(Settings()))


@app.command()
def api(host: Host = None, port: Port = None, data_dir: DataDir = None) -> None:
    """Run the API in the foreground."""
    _become("app.api.main", api_host=host, api_port=port, data_dir=data_dir)


@app.command()
def worker(
    model: Model = None,
    model_name: ModelName = None,
    device: Annotated[
        Literal["auto", "cpu", "cuda"] | None,
        typer.Option("--device", help="Device that the engine runs on.  [default: auto]"),
    ] = None,
    dtype: Annotated[
        Literal["auto", "bfloat16", "float16", "float32"] | None,
        typer.Option("--dtype", help="Type of weights and KV.  [default: auto]"),
    ] = None,
    quantization: Annotated[
        Literal["none", "int8", "nf4", "fp4"] | None,
        typer.Option("--quantization", help="How the linear layers' weights are shrunk.  [default: none]"),
    ] = None,
    max_num_seqs: Annotated[
        int | None, typer.Option("--max-num-seqs", min=1, help="Most sequences in one batch.  [default: 64]")
    ] = None,
    kv_cache_mib: Annotated[
        int | None,
        typer.Option("--kv-cache-mib", min=1, help="Memory for KV pages; a sane part of what is free if left out."),
    ] = None,
    profile: Annotated[
        Path | None, typer.Option("--profile", help="Folder to write a torch profile of some warm steps to.")
    ] = None,
    profile_steps: Annotated[
        int | None, typer.Option("--profile-steps", min=1, help="Steps that the profile covers.  [default: 20]")
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Run one generation worker in the foreground."""
    _become(
        "workers.generation.main", model=model, model_name=model_name, device=device, dtype=dtype,
        quantization=quantization, max_num_seqs=max_num_seqs, kv_cache_mib=kv_cache_mib, profile_dir=profile, profile_steps=profile_steps, data_dir=data_dir,
    )  # fmt: skip


@app.command()
def maintenance(data_dir: DataDir = None) -> None:
    """Run the repairer and timekeeper in the foreground."""
    _become("workers.maintenance.main", data_dir=data_dir)


@app.command()
def migrate(data_dir: DataDir = None) -> None:
    """Bring the database's schema to what this version wants."""
    from app.schema import current_revision
    from app.schema import migrate as upgrade

    config = _settings(data_dir)
    before = current_revision(config)
    after = upgrade(config)
    print(f"schema: at {after} already" if before == after else f"schema: from {before or 'empty'} to {after}")


@app.command()
def doctor(
    deep: Annotated[
        bool, typer.Option("--deep", help="Also load the model and run it, which may take minutes.")
    ] = False,
    model: Model = None,
    data_dir: DataDir = None,
) -> None:
    """Check servers, schema, model, device, workers and disk, and say what to do. Exit status 1 if something fails."""
    _configure(model=model)
    from app.cli.doctor import doctor as run

    if not run(_settings(data_dir), deep=deep):
        raise typer.Exit(1)


@app.command()
def top(
    once: Annotated[bool, typer.Option("--once", help="Print one picture and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="A line of JSON each second, or one with --once.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Watch workers, tiers and tenants live, directly on the database and Redis. q or Ctrl-C ends it."""
    from app.cli.top import top as run

    raise typer.Exit(run(_settings(data_dir), once=once, as_json=as_json))


@app.command()
def audit(
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the report as JSON into this file; - prints it instead.")
    ] = None,
    within: Annotated[
        float,
        typer.Option("--within", min=0, max=3600, help="Seconds that anything may be under way; 0 on a quiet system."),
    ] = 60.0,
    data_dir: DataDir = None,
) -> None:
    """Check that nothing is lost, doubled or astray, by queries of its own; it changes nothing.

    Exit status 0: clean. 1: something is off. 2: Postgres couldn't be asked. 3: what could be checked is clean.
    """
    from app.cli.audit import audit as run

    raise typer.Exit(run(_settings(data_dir), json_file=json_file, within_s=within))


@app.command()
def submit(
    prompt: Annotated[
        str | None, typer.Argument(help="Text to continue; - reads it from standard input.", show_default=False)
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", help="A prompt a line; - is standard input.")] = None,
    jsonl: Annotated[
        Path | None,
        typer.Option("--jsonl", help="A job object a line, as POST /v1/jobs takes it; - is standard input."),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Ask the prompts as a user's messages, rather than continue them.")
    ] = False,
    tier: Annotated[TierName | None, typer.Option("--tier", help="[default: standard]")] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", min=1, help="Most tokens of each choice.")] = None,
    temperature: Annotated[float | None, typer.Option("--temperature", min=0, max=2, help="0 is greedy.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Same seed, same job: same tokens.")] = None,
    n: Annotated[int | None, typer.Option("--n", min=1, max=128, help="How many choices.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="Name of a registered model.")] = None,
    json_schema: Annotated[
        Path | None, typer.Option("--json-schema", help="A file; the output is JSON that keeps to this schema.")
    ] = None,
    regex: Annotated[str | None, typer.Option("--regex", help="The whole output matches it.")] = None,
    choice: Annotated[list[str] | None, typer.Option("--choice", help="The output is one of these: repeat it.")] = None,
    grammar: Annotated[
        Path | None, typer.Option("--grammar", help="A file; the output keeps to this Lark grammar.")
    ] = None,
    stop_repeating: Annotated[
        int | None, typer.Option("--stop-repeating", min=2, help="End when the output repeats itself so many times.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the results, or print ids.")] = True,
    as_json: AsJson = False,
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Hand in jobs and print their results. Exit status 1 if any of them didn't succeed."""
    if sum(source is not None for source in (prompt, file, jsonl)) != 1:
        raise typer.BadParameter("give exactly one of PROMPT, --file and --jsonl")
    from app.cli import submit as submitting

    given: dict[str, Any] = {
        "tier": tier,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "seed": seed,
        "n": n,
        "model": model,
    }
    given |= {"stop_repeating": stop_repeating}
    given |= {"structured_outputs": submitting.structured(json_schema, regex, choice, grammar)}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if prompt is not None:
        submissions = submitting.from_prompt(prompt, options, chat=chat)
    elif file is not None:
        submissions = submitting.from_prompts(file, options, chat=chat)
    else:
        assert jsonl is not None
        submissions = submitting.from_jsonl(jsonl, options)
    if not submitting.submit(_target(url, key, data_dir), submissions, wait=wait, as_json=as_json):
        raise typer.Exit(1)


@jobs_app.command("list")
def list_jobs(
    status: Annotated[StatusName | None, typer.Option("--status", help="Only these.")] = None,
    tier: Annotated[TierName | None, typer.Option("--tier", help="Only these.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="Only those of this model.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="Most jobs.")] = 20,
    as_json: AsJson = False,
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """List the newest jobs."""
    from app.cli import jobs

    filters = {"status": status, "tier": tier, "model": model}
    jobs.list_jobs(_target(url, key, data_dir), filters, limit=limit, as_json=as_json)


@jobs_app.command("show")
def show_job(
    job_id: Annotated[str, typer.Argument(metavar="ID")],
    as_json: AsJson = False,
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Show all that is known of a job, with its result."""
    from app.cli import jobs

    jobs.show_job(_target(url, key, data_dir), job_id, as_json=as_json)


@jobs_app.command("cancel")
def cancel_jobs(
    job_ids: Annotated[list[str], typer.Argument(metavar="ID...")],
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Cancel jobs: at once where they wait, within a second where they run."""
    from app.cli import jobs

    jobs.cancel_jobs(_target(url, key, data_dir), job_ids)


@jobs_app.command("watch")
def watch_jobs(
    job_id: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="The newest jobs if left out.", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=100, help="Most jobs, without an ID.")] = 20,
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> None:
    """Watch a job until it ends, or the newest jobs until none of them waits or runs."""
    from app.cli import jobs

    target = _target(url, key, data_dir)
    if job_id is None:
        jobs.watch_jobs(target, limit=limit)
    elif not jobs.watch_job(target, job_id):
        raise typer.Exit(1)


@keys_app.command("create")
def create_key(
    tenant: Annotated[str, typer.Argument(help="It is made if it doesn't exist.")],
    name: Annotated[str, typer.Option("--name", help="For your own memory.")] = "",
    scope: Annotated[
        list[Scope] | None, typer.Option("--scope", help="May be given often.  [default: jobs:read, jobs:write]")
    ] = None,
    expires_days: ExpiresDays = None,
    requests_per_minute: Annotated[str | None, typer.Option("--requests-per-minute", help="Of this key.")] = None,
    request_burst: Annotated[str | None, typer.Option("--request-burst", help="So many at once.")] = None,
    tokens_per_minute: Annotated[str | None, typer.Option("--tokens-per-minute", help="Of this key.")] = None,
    token_burst: Annotated[str | None, typer.Option("--token-burst", help="So many at once.")] = None,
    data_dir: DataDir = None,
) -> None:
    """Make a key and print it, the only time."""
    from app.cli import keys

    options = {
        "name": name, "scopes": [each.value for each in scope or [Scope.READ, Scope.WRITE]],
        "requests_per_minute": requests_per_minute, "request_burst": request_burst,
        "tokens_per_minute": tokens_per_minute, "token_burst": token_burst,
    }  # fmt: skip
    keys.create(_settings(data_dir), tenant, options, expires_days=expires_days)


@keys_app.command("list")
def list_keys(
    tenant: Annotated[str | None, typer.Option("--tenant", help="Only this one's.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, an object a line.")] = False,
    data_dir: DataDir = None,
) -> None:
    """List keys, without their secrets."""
    from app.cli import keys

    keys.show(_settings(data_dir), tenant, as_json=as_json)


@keys_app.command("rotate")
def rotate_key(
    prefix: Annotated[str, typer.Argument(help="As `keys list` shows it, or the whole key.")],
    overlap_hours: Annotated[
        float | None,
        typer.Option("--overlap-hours", min=0, help="How long the secret before stays valid.  [default: 24]"),
    ] = None,
    expires_days: Annotated[
        float | None, typer.Option("--expires-days", min=0, help="From now on; as before, if left out.")
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Give a key a new secret and print it, the only time; budgets, rates and scopes stay."""
    from app.cli import keys

    keys.rotate(_settings(data_dir), prefix, overlap_hours=overlap_hours, expires_days=expires_days)


@keys_app.command("webhook-secret")
def show_webhook_secret(
    tenant: Annotated[str, typer.Argument(help="Whose webhooks the secret verifies.")], data_dir: DataDir = None
) -> None:
    """Show the secret that a tenant's webhooks are signed with (Standard Webhooks); the look is audited."""
    from app.cli import keys

    keys.webhook_secret(_settings(data_dir), tenant)


@keys_app.command("rotate-webhook-secret")
def rotate_webhook_secret(
    tenant: Annotated[str, typer.Argument(help="Whose webhooks it signs.")],
    overlap_hours: Annotated[
        float, typer.Option("--overlap-hours", min=0, max=720, help="So long both secrets sign.")
    ] = 24.0,
    data_dir: DataDir = None,
) -> None:
    """Give a tenant a new secret for webhooks to jobs' own URLs, and print it; audited."""
    from app.cli import keys

    keys.rotate_webhook_secret(_settings(data_dir), tenant, overlap_s=overlap_hours * 3600)


@keys_app.command("revoke")
def revoke_key(
    prefix: Annotated[str, typer.Argument(help="As `keys list` shows it, or the whole key.")], data_dir: DataDir = None
) -> None:
    """Make a key invalid: an API that has just seen it believes it for 5 more seconds."""
    from app.cli import keys

    keys.revoke(_settings(data_dir), prefix)


class BreakerMode(StrEnum):
    """Who decides on a model's breaker."""

    OPEN = "open"
    CLOSE = "close"
    AUTO = "auto"


@models_app.command("breaker")
def breaker(
    model: Annotated[
        str | None, typer.Argument(help="The model's name. Left out: show all models' breakers.", show_default=False)
    ] = None,
    mode: Annotated[
        BreakerMode | None,
        typer.Argument(help="open: take no new jobs; close: take all; auto: by its error rate. Left out: show it."),
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Show circuit breakers, or set a model's until told otherwise; accepted jobs run on in any case."""
    from app.cli import models

    models.breaker(_settings(data_dir), model, mode.value if mode else None)


@models_app.command("price")
def price(
    model: Annotated[str, typer.Argument(help="The model's name.")],
    input_price: Annotated[
        int | None, typer.Option("--input", min=0, help="Millionths of the currency for a million tokens of prompt.")
    ] = None,
    output_price: Annotated[int | None, typer.Option("--output", min=0, help="The same, of output.")] = None,
    fallback: Annotated[
        str | None, typer.Option("--fallback", metavar="NAME|none", help="Stands in for jobs that name no fallback.")
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Show a model's prices and fallback, or change them; a job pays the price of its submission."""
    from app.cli import models

    options = {"input_price": input_price, "output_price": output_price, "fallback": fallback}
    models.price(_settings(data_dir), model, {name: each for name, each in options.items() if each is not None})


@dlq_app.command("list")
def list_dead(
    pool: Pool = None,
    tenant: OfTenant = None,
    reason: OfReason = None,
    fingerprint: Fingerprint = None,
    older_than: Annotated[
        str | None, typer.Option("--older-than", metavar="AGE", help="Only those that died before that, such as 2h.")
    ] = None,
    newer_than: Annotated[
        str | None, typer.Option("--newer-than", metavar="AGE", help="Only those that died since then, such as 15m.")
    ] = None,
    state: Annotated[
        Literal["open", "requeued", "discarded", "any"], typer.Option("--state", help="What became of them.")
    ] = "open",
    groups: Annotated[bool, typer.Option("--groups", help="Group them by fingerprint, the largest first.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="Most lines.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, an object a line.")] = False,
    data_dir: DataDir = None,
) -> None:
    """List jobs that were given up, newest first."""
    from app.cli import dlq
    from app.jobs.dead.read import LetterFilter

    wanted = LetterFilter(state, pool, tenant, reason, fingerprint)
    dlq.list_dead(
        _settings(data_dir), wanted, older_than=older_than, newer_than=newer_than, limit=limit, groups=groups,
        as_json=as_json,
    )  # fmt: skip


@dlq_app.command("show")
def show_dead(
    job_id: Annotated[str, typer.Argument(metavar="ID")],
    prompts: Annotated[
        bool, typer.Option("--prompts", help="Also the prompt and what was written; the look is audited.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Show the evidence: error, attempts with what each left behind, earlier lives."""
    from app.cli import dlq

    dlq.show_dead(_settings(data_dir), job_id, prompts=prompts, as_json=as_json)


@dlq_app.command("requeue")
def requeue_dead(
    job_ids: LetterIds = None,
    pool: Pool = None,
    tenant: OfTenant = None,
    of_reason: OfReason = None,
    fingerprint: Fingerprint = None,
    reason: Annotated[str, typer.Option("--reason", help="Why, for the log of acts.")] = "requeued by hand",
    rate: Annotated[
        float | None, typer.Option("--rate", min=0.01, max=10_000, help="At most so many a second.")
    ] = None,
    edit: Annotated[bool, typer.Option("--edit", help="Change one job's parameters in $EDITOR first.")] = False,
    deadline_s: Annotated[
        float | None,
        typer.Option("--deadline-s", min=0.001, max=31_536_000, help="A new deadline, from the requeue on."),
    ] = None,
    clear_deadline: Annotated[
        bool, typer.Option("--clear-deadline", help="No deadline any more; else the first one's span begins anew.")
    ] = False,
    data_dir: DataDir = None,
) -> None:
    """Send jobs back into the queue, by ids or by group; budgets are reserved anew.

    Ctrl-C stops between two jobs; the same command goes on with the rest. Exit status 1 if any was refused.
    """
    if clear_deadline and deadline_s is not None:
        raise typer.BadParameter("give only one of --deadline-s and --clear-deadline")
    from app.cli import dlq

    meant = dlq.selection(job_ids or [], pool=pool, tenant=tenant, reason=of_reason, fingerprint=fingerprint)
    status = dlq.requeue_dead(
        _settings(data_dir), meant, reason=_said(reason), rate=rate, edit=edit, deadline_s=deadline_s,
        clear_deadline=clear_deadline,
    )  # fmt: skip
    raise typer.Exit(status)


@dlq_app.command("discard")
def discard_dead(
    reason: Annotated[str, typer.Option("--reason", help="Why, for the log of acts.", show_default=False)],
    job_ids: LetterIds = None,
    pool: Pool = None,
    tenant: OfTenant = None,
    of_reason: OfReason = None,
    fingerprint: Fingerprint = None,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Close dead letters for good: their jobs stay dead, the letters stay readable."""
    from app.cli import dlq

    meant = dlq.selection(job_ids or [], pool=pool, tenant=tenant, reason=of_reason, fingerprint=fingerprint)
    raise typer.Exit(dlq.discard_dead(_settings(data_dir), meant, reason=_said(reason), is_sure=yes))


@dlq_app.command("watch")
def watch_dead(
    pool: Pool = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, an object a line.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Print the latest deaths and each new one as it is announced, until Ctrl-C."""
    from app.cli import dlq

    dlq.watch_dead(_settings(data_dir), pool, as_json=as_json)


def _said(reason: str) -> str:
    if not 1 <= len(reason.strip()) <= 500:
        raise typer.BadParameter("must have 1 to 500 characters", param_hint="--reason")
    return reason


@app.command()
def version() -> None:
    """Print the version."""
    from importlib.metadata import version as installed

    print(f"penstock {installed('penstock')}")


def main() -> None:
    """The command's entry: exit status 0 if all went well, 1 with a line on standard error if not, 2 if it was called wrongly."""
    try:
        status = app(standalone_mode=False, prog_name="penstock")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except Exception as error:  # noqa: BLE001 - a process's main
        from app.cli.errors import fail, fail_usage

        if hasattr(error, "format_message"):  # typer's own
            fail_usage(error)
        fail(error)
    raise SystemExit(status)


def _configure(**options: object) -> None:
    """Options are settings: from here on they count as if the environment had them."""
    for name, value in options.items():
        if value is not None:
            os.environ[f"PENSTOCK_{name.upper()}"] = str(value)


def _settings(data_dir: Path | None) -> "Settings":
    """What is configured, and what the data folder of a running `up` adds."""
    _configure(data_dir=data_dir)
    from app.cli.folder import completed, unpaired
    from app.settings import Settings

    config = Settings()
    if why := unpaired(config):
        print(f"penstock: {why}", file=sys.stderr)
    return completed(config)


def _target(url: str | None, key: str | None, data_dir: Path | None) -> "Target":
    _configure(data_dir=data_dir)
    from app.cli.http import find_target
    from app.settings import Settings

    return find_target(Settings(), url, key)


def _become(module: str, **options: object) -> None:
    """Replace this process by `python -m module`, so that signals and exit status are its own."""
    _configure(**options)
    from app.cli.folder import process_environment

    config = _settings(None)
    _ = config.sqlalchemy_url, config.required_redis_url  # said here in one line, rather than in a log
    environment = process_environment(config)
    os.execve(sys.executable, [sys.executable, "-P", "-m", module], environment)  # noqa: S606


for _name, _commands in zip(("tenants", "budgets"), commands_of(_settings), strict=True):
    app.add_typer(_commands, name=_name)
app.add_typer(batch_commands(_target), name="batches")
app.add_typer(retention_commands_of(_settings), name="retention")
app.add_typer(dashboard_commands(_settings), name="dashboard")
app.add_typer(
    webhook_commands_of(_target, lambda data_dir: _become("workers.webhooks.main", data_dir=data_dir)), name="webhooks"
)


if __name__ == "__main__":
    main()
