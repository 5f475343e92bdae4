"""`penstock doctor`: is everything there that Penstock needs, and what is to be done where it isn't? One line a check."""

import asyncio
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.text import Text

from app.cli.errors import one_line, without_password
from app.errors import PenstockError
from app.settings import Settings

if TYPE_CHECKING:
    from app.jobs.breakers import Standing
    from app.jobs.live import LiveWorker, ServedModel

MIN_POSTGRES = 15  # UNIQUE NULLS NOT DISTINCT
MIN_REDIS = (6, 2)
LOW_DISK_GIB = 2.0
STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}
DEEP_TIMEOUT_S = 900


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found; `advice` says what to do about it."""

    level: Literal["ok", "warn", "fail"]
    subject: str
    found: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class _Installation:
    """What the database knows of what runs: workers, the models that they serve, breakers that aren't closed, pools that nobody serves."""

    workers: "list[LiveWorker]"
    models: "list[ServedModel]"
    breakers: "list[Standing]"
    unserved: list[str]


def doctor(settings: Settings, *, deep: bool) -> bool:
    """Print the findings as they come; return whether none is a failure."""
    console = Console()
    healthy = True
    for finding in _findings(settings, deep=deep):
        healthy = healthy and finding.level != "fail"
        line = Text(f"{finding.level:<5}", style=STYLES[finding.level])
        line.append(f" {finding.subject:<10} {finding.found}", style="default")
        console.print(line, soft_wrap=True, highlight=False)
        if finding.advice:
            console.print(f"{'':<17}→ {finding.advice}", soft_wrap=True, highlight=False, markup=False)
    return healthy


def _findings(settings: Settings, *, deep: bool) -> Iterator[Finding]:
    yield _python()
    is_served = False
    for finding in _postgres(settings):
        is_served = is_served or finding.subject == "model"
        yield finding
    yield from _redis(settings)
    # Beside an installation that serves models, only one that was named, or that is to be loaded, is of interest.
    if deep or not is_served or {"model", "engine"} & settings.model_fields_set:
        yield from model_findings(settings)
    yield from _pepper(settings)
    yield from _device(settings)
    yield _disk(settings)
    if deep:
        yield _engine(settings)


def _pepper(settings: Settings) -> Iterator[Finding]:
    if (
        settings.database_url
        and settings.key_pepper.get_secret_value() == Settings.model_fields["key_pepper"].default.get_secret_value()
    ):
        advice = (
            "set PENSTOCK_KEY_PEPPER to a random text of your own, the same for all processes, before you make keys"
        )
        yield Finding("warn", "pepper", "PENSTOCK_KEY_PEPPER isn't set: keys are hashed with a known one", advice)


def _python() -> Finding:
    return Finding("ok", "python", f"{platform.python_version()} in {sys.prefix}")


def _postgres(settings: Settings) -> Iterator[Finding]:
    if not settings.database_url:
        yield Finding(
            "warn", "postgres", "DATABASE_URL isn't set, and no `penstock up` runs here",
            "`penstock up` starts an embedded one; set DATABASE_URL to use your own",
        )  # fmt: skip
        return
    from sqlalchemy import create_engine, text
    from sqlalchemy.exc import SQLAlchemyError

    shown = without_password(settings.database_url)
    try:
        engine = create_engine(settings.sqlalchemy_url, connect_args={"connect_timeout": 5})
        with engine.connect() as connection:
            number = int(connection.scalar(text("SHOW server_version_num")) or 0)
            version = connection.scalar(text("SHOW server_version"))
        engine.dispose()
    except (SQLAlchemyError, PenstockError) as error:
        advice = "start it, or mend DATABASE_URL (postgresql://user:password@host:port/database)"
        reason = (one_line(error) or str(error)).partition("; check DATABASE_URL")[0]
        yield Finding("fail", "postgres", f"{reason} [{shown}]", advice)
        return
    if number // 10_000 < MIN_POSTGRES:
        yield Finding("fail", "postgres", f"{version} at {shown}", f"Penstock needs PostgreSQL {MIN_POSTGRES} or newer")
        return
    yield Finding("ok", "postgres", f"{version} at {shown}")
    yield from _schema(settings)


def _schema(settings: Settings) -> Iterator[Finding]:
    from app.revisions import head_revision
    from app.schema import current_revision

    current, head = current_revision(settings), head_revision()
    if current != head:
        yield Finding(
            "fail", "schema", f"at {current or 'nothing'}, and this version wants {head}", "run `penstock migrate`"
        )
        return
    yield Finding("ok", "schema", f"at {current}")
    yield from _workers(settings)


def _workers(settings: Settings) -> Iterator[Finding]:
    from app.db import create_engine
    from app.jobs.breakers import standings
    from app.jobs.live import live_workers, served_models, unserved_pools

    async def read() -> _Installation:
        db = create_engine(settings, application_name="penstock-doctor")
        try:
            async with db.connect() as conn:
                return _Installation(
                    await live_workers(conn),
                    await served_models(conn),
                    await standings(conn),
                    await unserved_pools(conn),
                )
        finally:
            await db.dispose()

    seen = asyncio.run(read())
    for each in seen.workers:
        who = (
            f"{each.model} on {each.host}:{each.pid} ({each.device}), {each.state}, renewed {each.renewed_s:.0f} s ago"
        )
        if each.is_expired:
            yield Finding(
                "warn", "worker", who, "its lease ran out: is `penstock maintenance` running? It buries such workers"
            )
        else:
            yield Finding("ok", "worker", f"{who}, {each.stats.get('jobs', 0)} jobs at hand{_guesses(each.stats)}")
    if not seen.workers:
        yield Finding("warn", "worker", "none is alive: jobs wait", "start one: `penstock worker`")
    for model in seen.models:
        by = "1 worker" if model.num_workers == 1 else f"{model.num_workers} workers"
        yield Finding(
            "ok", "model",
            f"{model.name}: served by {by}, up to {model.max_model_len:,} tokens of prompt and output, {model.vocab_size:,} in its vocabulary",
        )  # fmt: skip
    for pool in seen.unserved:
        yield Finding("warn", "jobs", f"some wait for {pool}, and no worker serves it", "start one: `penstock worker`")
    for breaker in seen.breakers:
        yield _breaker(breaker)


def _breaker(standing: "Standing") -> Finding:
    said = f"{standing.model} is {standing.shown}"
    if standing.mode != "auto":
        advice = f"`penstock models breaker {standing.model} auto` leaves it to the error rate again"
        return Finding("warn", "breaker", f"{said} by an operator's word", advice)
    seen = f"{standing.bad} deaths or broken streams to {standing.good} successes"
    return Finding(
        "warn", "breaker", f"{said}: {seen}", "read the logs of its workers; it closes when they succeed again"
    )


def _guesses(stats: dict[str, Any]) -> str:
    guessed = stats.get("guessed_tokens", 0)
    return (
        f", {stats.get('accepted_tokens', 0) / guessed:.0%} of {guessed} guessed tokens were right" if guessed else ""
    )


def _redis(settings: Settings) -> Iterator[Finding]:
    if not settings.redis_url:
        yield Finding(
            "warn", "redis", "REDIS_URL isn't set, and no `penstock up` runs here",
            "`penstock up` starts an embedded one; set REDIS_URL to use your own",
        )  # fmt: skip
        return
    from redis import Redis, RedisError

    shown = without_password(settings.redis_url)
    try:
        with Redis.from_url(settings.required_redis_url, socket_timeout=5, socket_connect_timeout=5) as client:
            info: Any = client.info()
    except (RedisError, PenstockError) as error:
        advice = "start it, or mend REDIS_URL (redis://:password@host:port/0 or unix:///absolute/path?db=0)"
        yield Finding("fail", "redis", f"{error} [{shown}]", advice)
        return
    version = str(info.get("redis_version", "0"))
    if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < MIN_REDIS:
        yield Finding(
            "fail", "redis", f"{version} at {shown}", f"Penstock needs Redis {MIN_REDIS[0]}.{MIN_REDIS[1]} or newer"
        )
        return
    yield Finding("ok", "redis", f"{version} at {shown}")
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        advice = "CONFIG SET maxmemory-policy noeviction: an evicted queue has to be rebuilt from Postgres"
        yield Finding("warn", "redis", f"maxmemory-policy is {policy}", advice)
    if not info.get("aof_enabled"):
        advice = "nothing gets lost, but after a restart the queue is rebuilt from Postgres: set `appendonly yes`"
        yield Finding("warn", "redis", "the append-only file is off", advice)


def model_findings(settings: Settings) -> Iterator[Finding]:
    """Is there a model that a worker could load? Looked at from outside, without loading it."""
    if settings.engine == "null":
        yield Finding("ok", "model", "none: PENSTOCK_ENGINE is null, which makes tokens up")
        return
    if settings.engine == "upstream" and (settings.model is None or settings.upstream_url is None):
        found = "the engine `upstream` needs a server and its model's tokenizer"
        yield Finding(
            "fail", "model", found, "set PENSTOCK_UPSTREAM_URL, and PENSTOCK_MODEL to the model's id or folder"
        )
        return
    folder = bundled_model() if settings.model is None else Path(settings.model)
    if folder.is_dir():
        yield _model_folder(folder, needs_weights=settings.engine != "upstream")
    elif settings.model and not settings.model.startswith((".", "/", "~")) and settings.model.count("/") <= 1:
        yield _hub_model(settings.model)
    else:
        yield Finding(
            "fail",
            "model",
            f"{folder} isn't a folder",
            "give --model (PENSTOCK_MODEL) a Hugging Face id or a model's folder",
        )


def bundled_model() -> Path:
    """The folder of the model that is served where none is configured."""
    spec = find_spec("workers.models")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "brook"


def _model_folder(folder: Path, *, needs_weights: bool = True) -> Finding:
    """What can be seen without loading it: configuration, tokenizer, whole weights."""
    advice = "download or copy the model again; --deep loads it for real"
    try:
        config = json.loads((folder / "config.json").read_bytes())
        kind = config.get("model_type") or "unknown architecture"
        from tokenizers import Tokenizer

        vocabulary = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
        weights = sorted(folder.glob("*.safetensors"))
        for path in weights:
            _check_weights(path)
    except FileNotFoundError as error:
        return Finding("fail", "model", f"{folder} has no {Path(error.filename or '?').name}", advice)
    except Exception as error:  # noqa: BLE001 - tokenizers raises bare Exception
        return Finding(
            "fail", "model", f"{folder}: {str(error).splitlines()[0] if str(error) else type(error).__name__}", advice
        )
    if not weights and not needs_weights:
        return Finding("ok", "model", f"{folder.name}: {kind}, {vocabulary:,} tokens; its weights are the upstream's")
    if not weights:
        return Finding("fail", "model", f"{folder} has no *.safetensors", advice)
    size = sum(path.stat().st_size for path in weights) / 2**20
    return Finding("ok", "model", f"{folder.name}: {kind}, {size:,.0f} MiB of weights, {vocabulary:,} tokens")


def _check_weights(path: Path) -> None:
    """Is a safetensors file as long as its header says? One cut short, or a pointer in its place, isn't."""
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        if header_size > path.stat().st_size:
            raise ValueError(f"{path.name} is no safetensors file, or was cut short")
        header = json.loads(file.read(header_size))
    end = max((each["data_offsets"][1] for name, each in header.items() if name != "__metadata__"), default=0)
    if 8 + header_size + end != path.stat().st_size:
        raise ValueError(f"{path.name} was cut short: {path.stat().st_size:,} bytes of {8 + header_size + end:,}")


def _hub_model(model: str) -> Finding:
    try:
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(model, "config.json")
    except (ImportError, ValueError):
        cached = None
    if isinstance(cached, str):
        return _model_folder(Path(cached).parent)
    return Finding("warn", "model", f"{model} isn't in the local cache", "the worker downloads it at its first start")


def _device(settings: Settings) -> Iterator[Finding]:
    if settings.device == "cpu":
        yield Finding("ok", "device", "cpu, as PENSTOCK_DEVICE says")
        return
    gpus = _output(["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"])
    if not gpus:
        found = "no NVIDIA driver answers (nvidia-smi)"
        if settings.device == "cuda":
            yield Finding(
                "fail",
                "device",
                f"{found}, and PENSTOCK_DEVICE is cuda",
                "install the driver, or set PENSTOCK_DEVICE=cpu",
            )
        else:
            yield Finding("ok", "device", f"cpu: {found}")
        return
    for line in gpus.splitlines():
        yield Finding("ok", "device", line.strip())
    seen = _output([sys.executable, "-P", "-c", "import torch; print(torch.__version__, torch.cuda.is_available())"])
    if seen is None or not seen.endswith("True"):
        advice = "install torch for CUDA, or a newer driver; or set PENSTOCK_DEVICE=cpu"
        yield Finding("fail", "device", f"torch doesn't see the GPU (torch {seen or 'fails to load'})", advice)


def _disk(settings: Settings) -> Finding:
    folder = next(
        path for path in (settings.data_dir.absolute(), *settings.data_dir.absolute().parents) if path.exists()
    )
    free_gib = shutil.disk_usage(folder).free / 2**30
    if free_gib < LOW_DISK_GIB:
        return Finding(
            "warn", "disk", f"{free_gib:.1f} GiB free at {folder}", "make room, or set PENSTOCK_DATA_DIR elsewhere"
        )
    return Finding("ok", "disk", f"{free_gib:,.0f} GiB free at {folder}")


def _engine(settings: Settings) -> Finding:
    """Load the model in a process of its own and let it write some tokens."""
    model = settings.model or ("" if settings.engine == "null" else str(bundled_model()))
    config: dict[str, Any] = {
        "engine": settings.engine, "model": model, "device": settings.device, "dtype": settings.dtype,
        "quantization": settings.quantization, "engine_options": settings.engine_options or {},
    }  # fmt: skip
    if settings.engine == "upstream":
        key = settings.upstream_api_key
        config["upstream"] = {
            "url": settings.upstream_url or "", "model": settings.upstream_model or "",
            "dialect": settings.upstream_dialect, "api_key": key.get_secret_value() if key else "",
        }  # fmt: skip
    command = [str(settings.engine_python or sys.executable), "-P", "-m", "workers.engine.trial"]
    source = Path(__file__).parents[2]  # another interpreter doesn't have our source
    search_path = os.pathsep.join(filter(None, [str(source), os.environ.get("PYTHONPATH")]))
    try:
        result = subprocess.run(
            command, input=json.dumps(config), env=os.environ | {"PYTHONPATH": search_path},
            capture_output=True, text=True, timeout=DEEP_TIMEOUT_S, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("fail", "engine", str(error), "run `penstock worker` by itself and read its log")
    lines = (result.stdout.strip() or result.stderr.strip()).splitlines() or [f"exit status {result.returncode}"]
    if result.returncode != 0:
        return Finding("fail", "engine", lines[-1], "run `penstock worker` by itself and read its log")
    return Finding("ok", "engine", lines[-1])


def _output(command: list[str]) -> str | None:
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None
