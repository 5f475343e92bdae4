"""Which commands are there? Their names and options; each one's work is in a module of its own, loaded when it runs."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from app.cli import dlq_commands, job_commands, key_commands, model_commands
from app.cli.batch_commands import batch_commands
from app.cli.configured import become, configure, settings_of, target_of
from app.cli.dashboard_commands import dashboard_commands
from app.cli.options import AsJson, DataDir, Key, TierName, Url
from app.cli.quota_commands import commands_of
from app.cli.retention_commands import commands_of as retention_commands_of
from app.cli.webhook_commands import commands_of as webhook_commands_of

app = typer.Typer(
    name="penstock",
    help="Queue-driven generation jobs: nothing lost, nothing twice, fair by tokens.",
    epilog="Settings come from the environment (PENSTOCK_*, DATABASE_URL, REDIS_URL): docs/configuration.md names them all.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(job_commands.commands, name="jobs")
app.add_typer(key_commands.commands, name="keys")
app.add_typer(model_commands.commands, name="models")
app.add_typer(dlq_commands.commands, name="dlq")

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
    configure(model=model, model_name=model_name, api_host=host, api_port=port, data_dir=data_dir)
    from app.cli.up import up as run
    from app.settings import Settings

    run(Settings(), num_workers=workers)


@app.command()
def demo(model: Model = None, model_name: ModelName = None) -> None:
    """Start everything in a temporary folder, run some 20 real prompts through it, show what happened."""
    configure(model=model, model_name=model_name)
    from app.cli.demo import demo as run
    from app.settings import Settings

    raise typer.Exit(run(Settings()))


@app.command()
def api(host: Host = None, port: Port = None, data_dir: DataDir = None) -> None:
    """Run the API in the foreground."""
    become("app.api.main", api_host=host, api_port=port, data_dir=data_dir)


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
    become(
        "workers.generation.main", model=model, model_name=model_name, device=device, dtype=dtype,
        quantization=quantization, max_num_seqs=max_num_seqs, kv_cache_mib=kv_cache_mib, profile_dir=profile, profile_steps=profile_steps, data_dir=data_dir,
    )  # fmt: skip


@app.command()
def maintenance(data_dir: DataDir = None) -> None:
    """Run the repairer and timekeeper in the foreground."""
    become("workers.maintenance.main", data_dir=data_dir)


@app.command()
def migrate(data_dir: DataDir = None) -> None:
    """Bring the database's schema to what this version wants."""
    from app.schema import current_revision
    from app.schema import migrate as upgrade

    config = settings_of(data_dir)
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
    configure(model=model)
    from app.cli.doctor import doctor as run

    if not run(settings_of(data_dir), deep=deep):
        raise typer.Exit(1)


@app.command()
def top(
    once: Annotated[bool, typer.Option("--once", help="Print one picture and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="A line of JSON each second, or one with --once.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Watch workers, tiers and tenants live, directly on the database and Redis. q or Ctrl-C ends it."""
    from app.cli.top import top as run

    raise typer.Exit(run(settings_of(data_dir), once=once, as_json=as_json))


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

    raise typer.Exit(run(settings_of(data_dir), json_file=json_file, within_s=within))


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
    if not submitting.submit(target_of(url, key, data_dir), submissions, wait=wait, as_json=as_json):
        raise typer.Exit(1)


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
    except Exception as error:  # noqa: BLE001 - a process's main
        from app.cli.errors import fail, fail_usage

        if hasattr(error, "format_message"):  # typer's own
            fail_usage(error)
        fail(error)
    raise SystemExit(status)


for _name, _commands in zip(("tenants", "budgets"), commands_of(settings_of), strict=True):
    app.add_typer(_commands, name=_name)
app.add_typer(batch_commands(target_of), name="batches")
app.add_typer(retention_commands_of(settings_of), name="retention")
app.add_typer(dashboard_commands(settings_of), name="dashboard")
app.add_typer(
    webhook_commands_of(target_of, lambda data_dir: become("workers.webhooks.main", data_dir=data_dir)), name="webhooks"
)
