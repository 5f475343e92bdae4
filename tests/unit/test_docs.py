"""Documented or red: does each setting, error code, route, command, target, table, key and kill point stand in the docs, as it is?"""

import ast
import importlib
import pkgutil
import re
from collections.abc import Iterator
from inspect import isclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin
from uuid import UUID

import pytest
import typer.main
from pydantic.fields import FieldInfo

import app
from app.api.main import create_app
from app.batches.collect import LOST
from app.cli.main import app as cli
from app.endings import JOB_CODES, LINE_CODES
from app.errors import PenstockError
from app.openai.refusals import NAMES
from app.queue import keys
from app.queue.decisions import decisions_key
from app.queue.keys import PoolKeys
from app.quotas.buckets import buckets_of, refund_key
from app.quotas.limits import Limits, Rate, Rates
from app.schema import full_metadata
from app.settings import Settings
from workers.engine.errors import EngineError

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
PARTS = ("Context", "Decision", "Consequences", "Alternatives", "What enforces it")


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def missing(wanted: list[str], text: str) -> list[str]:
    """Which of these literal texts aren't in the page?"""
    return [each for each in wanted if each not in text]


# --- settings: docs/configuration.md ---------------------------------------------------------------------------------


def variables_of(name: str, field: FieldInfo) -> str:
    alias = field.validation_alias
    names = [str(choice) for choice in alias.choices] if hasattr(alias, "choices") else [f"PENSTOCK_{name.upper()}"]
    return " or ".join(f"`{each}`" for each in reversed(names))


def default_of(field: FieldInfo) -> str:
    value = field.default
    if hasattr(value, "get_secret_value"):
        value = value.get_secret_value()
    if value is None:
        return "unset"
    return f"`{str(value).lower() if isinstance(value, bool) else f'{value:g}' if isinstance(value, float) else value}`"


def bounds_of(field: FieldInfo) -> str:
    kinds = [field.annotation]
    if get_origin(field.annotation) in {Union, UnionType}:
        kinds = list(get_args(field.annotation))
    for kind in kinds:
        if get_origin(kind) is Literal:
            return ", ".join(f"`{each}`" for each in get_args(kind))
    if bool in kinds:
        return "`true`, `false`"
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    found = [
        f"{sign} {_plain(getattr(each, name))}"
        for each in field.metadata
        for name, sign in signs.items()
        if getattr(each, name, None) is not None
    ]
    return ", ".join(found) or "-"


def _plain(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if value >= 1000 else f"{value:g}"


def setting_rows() -> list[str]:
    """How each setting's row in docs/configuration.md begins; what follows is its meaning."""
    return [
        f"| {variables_of(name, field)} | {default_of(field)} | {bounds_of(field)} | "
        for name, field in Settings.model_fields.items()
    ]


def undocumented_settings(rows: list[str], text: str) -> list[str]:
    lines = text.splitlines()
    return [row for row in rows if not any(line.startswith(row) and len(line) > len(row) + 10 for line in lines)]


def test_each_setting_stands_in_the_docs_with_its_default_and_bounds() -> None:
    assert undocumented_settings(setting_rows(), page("configuration.md")) == []


def test_the_docs_name_no_setting_that_there_is_not() -> None:
    named = set(re.findall(r"^\| `(PENSTOCK_[A-Z_]+)`", page("configuration.md"), re.MULTILINE))
    known = {variable for row in setting_rows() for variable in re.findall(r"`(PENSTOCK_[A-Z_]+)`", row)}
    assert named - known == set()


def test_a_setting_that_is_missing_or_has_another_default_is_found() -> None:
    rows = ["| `PENSTOCK_A` | `1` | ≥ 1 | ", "| `PENSTOCK_B` | `2` | - | ", "| `PENSTOCK_C` | `3` | - | "]
    text = "| `PENSTOCK_A` | `1` | ≥ 1 | What it means, in words. |\n| `PENSTOCK_B` | `7` | - | What it means. |\n"
    assert undocumented_settings(rows, text) == rows[1:]


# --- errors: docs/errors.md ------------------------------------------------------------------------------------------


def tree(cls: type[Any]) -> Iterator[type[Any]]:
    yield cls
    for below in cls.__subclasses__():
        yield from tree(below)


def own_errors() -> list[type[PenstockError]]:
    """The whole tree: all rooms are imported first."""
    for module in pkgutil.walk_packages(app.__path__, "app."):
        importlib.import_module(module.name)
    return [cls for cls in tree(PenstockError) if cls.__module__.startswith("app.")]


def error_rows() -> list[str]:
    """How each error's row begins: code, status, retryable."""
    return [f"| `{cls.code}` | {cls.status} | {'yes' if cls.retryable else 'no'} | " for cls in own_errors()]


def engine_error_rows() -> list[str]:
    return [f"| `{cls.code}` | {'yes' if cls.retryable else 'no'} | " for cls in tree(EngineError)]


def literal_codes(source: str) -> set[str]:
    """Error codes that a module writes down as literals: `code = "x"`, `code, message = "x", ...`, `{"code": "x"}`, RequestFailed(_, "x", _)."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assign):
            target, value = node.targets[0], node.value
            if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                target, value = target.elts[0], value.elts[0]
            if isinstance(target, ast.Name) and target.id == "code":
                found |= set(_texts(value))
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "code":
                    found |= set(_texts(value))
                if isinstance(value, ast.Tuple) and len(value.elts) == 3:  # rescue: (count, most, code)
                    found |= set(_texts(value.elts[2]))
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "RequestFailed" and len(node.args) > 1:
            found |= set(_texts(node.args[1]))
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "StreamFailed":
            found |= set(_texts(node.args[0]))
    return found


def _texts(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from (*_texts(node.body), *_texts(node.orelse))


def job_codes() -> list[str]:
    """What may stand in a job's `error.code`."""
    files = [
        *(ROOT / "app/jobs").glob("*.py"),
        *(ROOT / "workers/generation").glob("*.py"),
        *(ROOT / "workers/engine").glob("*.py"),
    ]
    return sorted(set().union(*(literal_codes(path.read_text(encoding="utf-8")) for path in files)) - {"unknown"})


def test_each_error_code_stands_in_the_docs_with_its_status() -> None:
    assert missing(error_rows() + engine_error_rows(), page("errors.md")) == []


def test_each_code_that_a_job_may_end_with_stands_in_the_docs() -> None:
    codes = job_codes()
    assert {"attempts_exhausted", "deadline_passed", "prompt_too_long", "result_not_storable"} <= set(codes)
    assert missing([f"| `{code}` | " for code in codes], page("errors.md")) == []


def line_codes() -> set[str]:
    """What may be wrong with a line of a batch: codes that its rooms write down, and OpenAI's names for ours."""
    found = {code for code, _ in LOST.values()} | {code for _, code in NAMES.values()}
    for path in (ROOT / "app/batches").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                place = {"_Wrong": 0, "LineError": 0, "_wrong": 0, "lost_line": 2}.get(name)
                found |= set() if place is None else set(_texts(node.args[place]))
    return found


def explained(heading: str, *, columns: int) -> dict[str, tuple[str, str]]:
    """What the page says of each code below a heading: what it means, and what to do."""
    section = page("errors.md").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = [line.strip("|").split(" | ") for line in section.splitlines() if line.startswith("| `")]
    assert all(len(row) == columns for row in rows)
    return {row[0].strip(" `"): (row[-2].strip(), row[-1].strip()) for row in rows}


def test_a_code_of_a_job_or_a_line_is_explained_by_its_page_as_by_the_docs() -> None:
    said = [{code: (each.meaning, each.advice) for code, each in codes.items()} for codes in (JOB_CODES, LINE_CODES)]
    assert said[0] == explained("What a job may end with", columns=4)
    assert said[1] == explained("What a line of a batch may have", columns=3)


def test_each_code_of_a_job_and_of_a_line_is_explained() -> None:
    of_the_api, of_engines = {cls.code for cls in own_errors()}, {cls.code for cls in tree(EngineError)}
    assert set(job_codes()) - of_the_api - of_engines - JOB_CODES.keys() == set()
    found = line_codes()
    assert {"batch_expired", "result_gone", "duplicate_custom_id", "empty_file", "model_not_found"} <= found
    assert found - LINE_CODES.keys() - {"invalid_request"} == set()
    assert LINE_CODES.keys() - found == {"cancelled"}, "that one is a job's status"


def test_a_code_that_is_missing_or_has_another_status_is_found() -> None:
    text = "| `one` | 404 | no | gone |\n| `two` | 500 | no | broken |\n"
    assert missing(["| `one` | 404 | no | ", "| `two` | 503 | yes | ", "| `three` | 400 | no | "], text) == [
        "| `two` | 503 | yes | ",
        "| `three` | 400 | no | ",
    ]


def test_codes_are_found_in_all_the_ways_in_which_they_are_written() -> None:
    source = 'code = "a"\ncode, message = "b", "m"\nx = {"code": "c" if y else "d"}\nRequestFailed(i, "e", "m")\nz = {"w": (1, 2, "f")}\nStreamFailed("g", "m")\n'
    assert literal_codes(source) == set("abcdefg")


# --- faces: docs/api.md, docs/cli.md, docs/development.md -----------------------------------------------------------


def routes() -> list[str]:
    paths = create_app(Settings(_env_file=None)).openapi()["paths"]
    return [f"`{method.upper()} {path}`" for path, operations in paths.items() for method in operations]


def commands() -> list[str]:
    root = typer.main.get_command(cli)
    found = []
    for name, command in root.commands.items():  # type: ignore[attr-defined]
        found += [f"`penstock {name} {below}" for below in getattr(command, "commands", {})] or [f"`penstock {name}"]
    return found


def targets(makefile: str) -> list[str]:
    return [f"`make {name}" for name in re.findall(r"^([a-z-]+):.*##", makefile, re.MULTILINE)]


def kill_points() -> list[str]:
    calls = [
        name
        for folder in ("app", "workers")
        for path in (ROOT / folder).rglob("*.py")
        for name in re.findall(r'kill_point\("([^"]+)"\)', path.read_text(encoding="utf-8"))
    ]
    return [f"`{name}`" for name in calls]


def test_each_route_stands_in_the_docs() -> None:
    found = routes()
    assert len(found) >= 5
    assert missing(found, page("api.md")) == []


def test_each_command_stands_in_the_docs() -> None:
    found = commands()
    assert "`penstock jobs list" in found
    assert missing(found, page("cli.md")) == []


def test_each_make_target_stands_in_the_docs() -> None:
    found = targets((ROOT / "Makefile").read_text(encoding="utf-8"))
    assert "`make demo" in found
    assert missing(found, page("development.md")) == []


def test_each_kill_point_stands_in_the_docs() -> None:
    found = kill_points()
    assert found
    assert missing(found, page("development.md")) == []


def test_a_route_a_command_or_a_target_that_is_missing_is_found() -> None:
    assert missing(["`GET /a`", "`POST /a`"], "| `GET /a` | reads |") == ["`POST /a`"]
    assert targets("one: two ## does it\nhidden:\n\tx\n") == ["`make one"]
    assert missing(["`penstock up", "`penstock down"], "`penstock up --port 0` starts") == ["`penstock down"]


# --- state: docs/protocol.md, docs/architecture.md -------------------------------------------------------------------


def key_kinds() -> list[str]:
    """Each kind of key in Redis, with its varying parts in angle brackets, and the channels."""
    pool = PoolKeys("pool")
    found = []
    for name, member in vars(PoolKeys).items():
        if isinstance(member, property) and name != "prefix":
            found.append(getattr(pool, name))
        elif callable(member) and not name.startswith("_"):
            wanted = [each for each in member.__annotations__ if each != "return"]
            found.append(getattr(pool, name)(*[f"<{each}>" for each in wanted]))
    found += [value for name, value in vars(keys).items() if name.endswith("_CHANNEL")]
    rate = Rate(1, 1)
    buckets = buckets_of("<tenant>", UUID(int=0), Limits(Rates(rate), Rates(rate)))
    rates = {re.sub(r"0{32}", "<key>", bucket.key).replace("requests", "<unit>") for bucket in buckets}
    rates.add(refund_key("<tenant>", UUID(int=0)).replace("0" * 32, "<charge>"))
    return [f"`{each}`" for each in [*found, "ev:<job>", decisions_key("<minute>"), *sorted(rates)]]


def test_each_kind_of_redis_key_stands_in_the_docs() -> None:
    found = key_kinds()
    assert "`q:{pool}:<place>:<tenant>`" in found
    assert missing(found, page("protocol.md")) == []


def test_each_table_stands_in_the_docs() -> None:
    tables = list(full_metadata().tables)
    assert "jobs" in tables
    assert missing([f"`{each}`" for each in tables], page("architecture.md")) == []


def test_a_key_that_is_missing_is_found() -> None:
    assert missing(["`idx:{pool}`", "`new:{pool}`"], "| `idx:{pool}` | hash |") == ["`new:{pool}`"]


# --- what the pages name must exist ----------------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


def broken_links(path: Path, text: str) -> list[str]:
    """Relative links of a page that lead to no file or no heading."""
    broken = []
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = path if not name else (path.parent / name).resolve()
        if not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            broken.append(link)
    return broken


def absent_paths(text: str) -> list[str]:
    """Files and folders of ours that a page names in backticks and that don't exist."""
    found = re.findall(r"`((?:app|workers|tests|migrations|benchmarks|docs|\.ci)/[\w./-]+)", text)
    return [each for each in found if not (ROOT / each.rstrip(".")).exists()]


def absent_tests(text: str) -> list[str]:
    """Tests that a page names, as file::test, and that don't exist."""
    absent = []
    for name, test in re.findall(r"`(tests/[\w/]+\.py)::(\w+)", text):
        path = ROOT / name
        if not path.exists() or not re.search(rf"def {test}\(", path.read_text(encoding="utf-8")):
            absent.append(f"{name}::{test}")
    return absent


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_what_a_page_names_exists(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert broken_links(path, text) == []
    assert absent_paths(text) == []
    assert absent_tests(text) == []


def test_every_page_can_be_found_from_the_readme() -> None:
    pages = [f"(docs/{path.name})" for path in DOCS.glob("*.md")]
    assert missing(pages, (ROOT / "README.md").read_text(encoding="utf-8")) == []
    records = [f"(decisions/{path.name})" for path in (DOCS / "decisions").glob("*.md")]
    assert len(records) > 10
    assert missing(records, page("decisions.md")) == []


def shown_revisions(text: str) -> list[str]:
    """Lines of transcripts that name a migration: they would be old with the next one."""
    return re.findall(r"(?:empty to|\d{4} to|schema: at|schema +at|s  at) \d{4}\b", text)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_transcript_names_no_migration(path: Path) -> None:
    assert shown_revisions(path.read_text(encoding="utf-8")) == []


def test_a_migration_in_a_transcript_is_found() -> None:
    text = "ready  schema  0.2 s  empty to 0007\nok    schema     at 0017\nschema: at 0014 already\nready schema 1.0 s  at …"
    assert len(shown_revisions(text)) == 3


def test_the_protocol_names_tests() -> None:
    assert len(re.findall(r"::test_", page("protocol.md"))) > 20


def test_a_link_a_path_or_a_test_that_leads_nowhere_is_found() -> None:
    text = "[a](nowhere.md) [b](#no-such-heading) [c](protocol.md) [d](https://example.com/x)"
    assert broken_links(DOCS / "api.md", text) == ["nowhere.md", "#no-such-heading"]
    assert absent_paths("`app/settings.py` `app/nowhere.py` `workers/engine/`") == ["app/nowhere.py"]
    assert absent_tests(
        "`tests/unit/test_docs.py::test_nothing` `tests/unit/test_docs.py::test_the_protocol_names_tests`"
    ) == ["tests/unit/test_docs.py::test_nothing"]


@pytest.mark.parametrize("path", sorted((DOCS / "decisions").glob("*.md")), ids=lambda path: path.stem)
def test_a_decision_has_all_its_parts(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert re.match(r"# \d{4}\. .+\n", text)
    assert missing([f"\n**{part}.** " for part in PARTS], text) == []


def test_errors_are_looked_for_in_all_rooms() -> None:
    assert {cls.__module__ for cls in own_errors()} >= {"app.errors", "app.webhooks.address", "app.cli.errors"}
    assert all(isclass(cls) for cls in own_errors())
