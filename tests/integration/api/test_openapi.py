"""Is the OpenAPI document whole, and does the API do what it says? Schemathesis tries to prove that it doesn't."""

import asyncio
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.specs.openapi import checks
from sqlalchemy.ext.asyncio import AsyncEngine

from app.api import reference
from app.api.main import create_app
from app.api.openapi import BODIES, DESCRIBED
from app.jobs.models import Model
from app.jobs.request import JobRequest
from app.settings import Settings
from tests.support.api import Tenant, job_id_of, make_tenant
from tests.support.api_process import running_process
from tests.support.dead import kill

BYTES = "application/octet-stream"


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    document: dict[str, Any] = create_app(Settings()).openapi()
    return document


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def test_the_document_is_whole(document: dict[str, Any]) -> None:
    assert {name: operation["operationId"] for name, operation in operations(document)} == {
        "POST /v1/jobs": "submitJob",
        "GET /v1/jobs": "listJobs",
        "GET /v1/jobs/{id}": "getJob",
        "GET /v1/jobs/{id}/events": "readJobEvents",
        "GET /v1/jobs/{id}/why": "explainJob",
        "POST /v1/jobs/{id}/cancel": "cancelJob",
        "GET /v1/webhook_endpoints": "listWebhookEndpoints",
        "POST /v1/webhook_endpoints": "createWebhookEndpoint",
        "GET /v1/webhook_endpoints/{id}": "getWebhookEndpoint",
        "PATCH /v1/webhook_endpoints/{id}": "changeWebhookEndpoint",
        "DELETE /v1/webhook_endpoints/{id}": "deleteWebhookEndpoint",
        "POST /v1/webhook_endpoints/{id}/rotate": "rotateWebhookSecret",
        "POST /v1/webhook_endpoints/{id}/ping": "pingWebhookEndpoint",
        "POST /v1/webhook_endpoints/{id}/recover": "recoverWebhookEndpoint",
        "GET /v1/webhook_deliveries": "listWebhookDeliveries",
        "GET /v1/webhook_deliveries/{id}": "getWebhookDelivery",
        "POST /v1/webhook_deliveries/{id}/resend": "resendWebhookDelivery",
        "GET /v1/admin/dead-letters": "listDeadLetters",
        "GET /v1/admin/dead-letters/groups": "listDeadLetterGroups",
        "GET /v1/admin/dead-letters/{id}": "getDeadLetter",
        "POST /v1/admin/dead-letters/requeue": "requeueDeadLetters",
        "POST /v1/admin/dead-letters/discard": "discardDeadLetters",
        "GET /v1/admin/tenants": "listTenants",
        "POST /v1/admin/tenants": "createTenant",
        "GET /v1/admin/tenants/{id}": "getTenant",
        "PATCH /v1/admin/tenants/{id}": "changeTenant",
        "POST /v1/admin/tenants/{id}/suspend": "suspendTenant",
        "POST /v1/admin/tenants/{id}/resume": "resumeTenant",
        "GET /v1/admin/tenants/{id}/keys": "listKeys",
        "POST /v1/admin/tenants/{id}/keys": "createKey",
        "GET /v1/admin/keys/{prefix}": "getKey",
        "PATCH /v1/admin/keys/{prefix}": "changeKey",
        "POST /v1/admin/keys/{prefix}/rotate": "rotateKey",
        "POST /v1/admin/keys/{prefix}/revoke": "revokeKey",
        "GET /v1/admin/tenants/{id}/budgets": "listBudgets",
        "POST /v1/admin/tenants/{id}/budgets": "createBudget",
        "GET /v1/admin/budgets/{id}": "getBudget",
        "PATCH /v1/admin/budgets/{id}": "changeBudget",
        "POST /v1/admin/budgets/{id}/retire": "retireBudget",
        "GET /v1/admin/retention": "getRetention",
        "POST /v1/admin/retention/runs": "runRetention",
        "GET /v1/admin/models/{name}": "getModelPrice",
        "PATCH /v1/admin/models/{name}": "changeModelPrice",
        "POST /v1/files": "uploadFile",
        "GET /v1/files": "listFiles",
        "GET /v1/files/{id}": "getFile",
        "GET /v1/files/{id}/content": "getFileContent",
        "DELETE /v1/files/{id}": "deleteFile",
        "POST /v1/batches": "createBatch",
        "GET /v1/batches": "listBatches",
        "GET /v1/batches/{id}": "getBatch",
        "POST /v1/batches/{id}": "changeBatch",
        "POST /v1/batches/{id}/cancel": "cancelBatch",
        "GET /v1/batches/{id}/output": "getBatchOutput",
        "GET /v1/batches/{id}/errors": "getBatchErrors",
        "GET /v1/models": "listModels",
        "GET /v1/models/{model}": "getModel",
        "POST /v1/jobs/quote": "quoteJob",
        "POST /v1/jobs/bulk": "submitJobs",
        "GET /v1/autoscale": "autoscale",
        "GET /healthz": "health",
        "GET /readyz": "readiness",
        "GET /errors/{code}": "explainError",
    }
    assert document["components"]["securitySchemes"]["ApiKey"]["scheme"] == "bearer"
    for name, operation in operations(document):
        assert bool(operation.get("security")) == ("/v1/" in name)
        assert operation["summary"]
        assert operation["description"]
        for status, answer in operation["responses"].items():
            assert answer["description"], (name, status)
            if status == "204":
                assert "content" not in answer
                continue
            assert list(answer["content"]) == [kind_of(name) if status < "400" else "application/problem+json"]
            if kind_of(name) == BYTES and status < "400":
                continue
            schema = answer["content"][next(iter(answer["content"]))]["schema"]
            assert schema["$ref"].rpartition("/")[2] in document["components"]["schemas"]


def kind_of(name: str) -> str:
    """What an operation answers with where all is well."""
    if name.endswith("/events"):
        return "text/event-stream"
    return BYTES if name.endswith(("/content", "/output", "/errors")) else "application/json"


def test_the_body_is_the_request_itself(document: dict[str, Any]) -> None:
    body = document["paths"]["/v1/jobs"]["post"]["requestBody"]
    assert body["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/JobRequest"}
    described = document["components"]["schemas"]["JobRequest"]
    assert set(described["properties"]) == set(JobRequest.model_fields)


def test_the_examples_are_valid(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    for model in (*BODIES, *DESCRIBED):
        assert schemas[model.__name__]["examples"]
        for example in schemas[model.__name__]["examples"]:
            model.model_validate(example)


async def test_the_document_and_its_page_are_served(client: httpx.AsyncClient) -> None:
    assert (await client.get("/openapi.json")).json()["openapi"].startswith("3.1")
    page = await client.get("/docs")
    assert page.status_code == (await client.head("/docs")).status_code == 200
    assert 'data-description="/openapi.json"' in page.text
    assert not re.findall(r"""(?:src|href)="(?!/admin/static/)""", page.text)  # nothing from elsewhere
    for asset in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        assert (await client.get(asset)).status_code == 200
    assert page.headers["Content-Security-Policy"] == reference.csp(client.base_url.netloc.decode())
    assert (await client.get("/redoc")).status_code == 404


CHECKS = [
    schemathesis.checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.response_headers_conformance,
    checks.negative_data_rejection,
]
EXAMPLES = {"POST /v1/jobs": 20, "GET /v1/jobs": 10}
FEW = 3


@pytest.mark.timeout(600)  # all routes: half a minute, or minutes where all else is busy
@pytest.mark.parametrize("times", [1, pytest.param(4, marks=pytest.mark.long)])
@pytest.mark.parametrize("mode", list(GenerationMode))
async def test_schemathesis_finds_nothing(
    environment: dict[str, str],
    tmp_path: Path,
    model: Model,
    engine: AsyncEngine,
    settings: Settings,
    document: dict[str, Any],
    subtests: pytest.Subtests,
    mode: GenerationMode,
    times: int,
) -> None:
    tenant = await make_tenant(engine, settings, "acme", scopes=["jobs:read", "jobs:write", "admin"])
    # Nothing ends here: a wait would only cost time.
    with running_process(environment, tmp_path, PENSTOCK_MAX_WAIT_S="0.5") as api:
        url = await api.url()
        async with httpx.AsyncClient(base_url=url, headers=tenant.auth) as client:
            ended = (await client.post("/v1/jobs", json={"prompt": "Once"})).json()
            made = "/v1/admin/tenants/made"
            assert (await client.post("/v1/admin/tenants", json={"id": "made"})).status_code == 201
            key = (await client.post(f"{made}/keys", json={})).json()
            budget = {"metric": "requests", "period": "day", "limit": 9}
            budget = (await client.post(f"{made}/budgets", json=budget)).json()
        await kill(engine, [job_id_of(ended)], pool=model.pool)
        real = {"/tenants/": "made", "/budgets/": budget["id"], "/keys/": key["prefix"], "/models/": model.name}
        schema = schemathesis.openapi.from_dict(document)
        schema.config.update(base_url=url)
        schema.config.generation.update(with_security_parameters=False)  # the key is always sent
        for result in schema.get_all_operations():
            operation = result.ok()
            with subtests.test(operation.label):
                found = next((name for part, name in real.items() if part in operation.path), ended["id"])
                await asyncio.to_thread(attack, operation, mode, tenant, found, times)
        async with httpx.AsyncClient(base_url=url) as client:
            assert (await client.get("/readyz")).json()["status"] == "ready"
        crashes = [line for line in api.events() if line["level"] == "error"]
        assert crashes == []


def attack(operation: Any, mode: GenerationMode, tenant: Tenant, real: str, times: int) -> None:
    """Send what Schemathesis makes up, with a good key; every second time to something that exists. `times` as many examples."""
    turn = itertools.count()

    @given(case=operation.as_strategy(generation_mode=mode))
    @hypothesis_settings(
        max_examples=times * EXAMPLES.get(operation.label, FEW),
        phases=[Phase.generate],
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    def send(case: schemathesis.Case) -> None:
        (name,) = set(case.path_parameters) & {"id", "prefix", "name"} or {None}
        if mode is GenerationMode.POSITIVE and name is not None and next(turn) % 2:
            case.path_parameters[name] = real
        case.call_and_validate(headers=tenant.auth, checks=CHECKS)

    try:
        send()
    except Unsatisfiable:
        assert mode is GenerationMode.NEGATIVE, "an operation that takes nothing can't be asked wrongly"
