"""What do the jobs of one call ask for? Each validated by itself, so that a refusal names the job and the field: `jobs[17].max_tokens`."""

from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError

from app.api.body import decode
from app.api.bulk_documents import MAX_BULK_JOBS
from app.errors import InvalidRequest, NotInBulk, PenstockError
from app.jobs.idempotency import IdempotencyKey
from app.jobs.refusals import MAX_ERRORS, refusal, refuse_wide_objects
from app.jobs.request import JobRequest

E = TypeVar("E", bound=PenstockError)


@dataclass(frozen=True, slots=True)
class Bulk:
    """What was asked, and under which key."""

    requests: list[JobRequest]
    key: IdempotencyKey | None


def parse_bulk(body: bytes, idempotency_key: str | None) -> Bulk:
    """The jobs that a body asks for. Takes long: call it in a thread.

    Raises:
        MalformedBody: it isn't JSON.
        InvalidRequest: a rule is broken; `errors` lists which, of the first jobs that break any.
        NotInBulk: a job asks for what isn't possible here.
    """
    decoded = decode(body)
    for name in decoded:
        if name != "jobs":
            raise InvalidRequest(f"{name[:64]}: isn't a known field", param=name[:64])
    jobs = decoded.get("jobs")
    if not isinstance(jobs, list) or not 1 <= len(jobs) <= MAX_BULK_JOBS:
        raise InvalidRequest(f"jobs: must be a list of 1 to {MAX_BULK_JOBS} jobs", param="jobs", limit=MAX_BULK_JOBS)
    requests, errors = [], Errors()
    for place, job in enumerate(jobs):
        try:
            requests.append(_request(job))
        except InvalidRequest as error:
            errors.add(place, error)
            if errors.are_enough:
                break
    errors.throw()
    return bulk_of(requests, idempotency_key)


def bulk_of(requests: list[JobRequest], idempotency_key: str | None) -> Bulk:
    """These requests as one call."""
    return Bulk(requests, None if idempotency_key is None else IdempotencyKey.of_many(idempotency_key, requests))


def _request(job: Any) -> JobRequest:
    if not isinstance(job, dict):
        raise InvalidRequest("must be a JSON object", errors=[{"field": "", "message": "must be a JSON object"}])
    refuse_wide_objects(job)
    try:
        request = JobRequest.model_validate(job)
    except ValidationError as error:
        raise refusal(error) from None
    if request.on_budget not in {"reject", "wait"}:
        raise NotInBulk(
            f"on_budget: must be reject or wait in bulk: {request.on_budget} is for a job that comes alone",
            param="on_budget",
        )
    if request.fallback_model is not None:
        raise NotInBulk(
            "fallback_model: must be left out in bulk: it is for a job that comes alone", param="fallback_model"
        )
    return request


def placed_error(place: int, error: E) -> E:
    """The same error of the job at this place; one that is about no field is about all of them."""
    param = error.extra.get("param")
    if param is None:
        return error
    about = f"jobs[{place}].{param}"
    detail = error.detail if error.detail.startswith(f"{param}") else f"{param}: {error.detail}"
    return type(error)(f"jobs[{place}].{detail}", **(error.extra | {"param": about}))


class Errors:
    """What is wrong with some jobs of a bulk, up to as many as one answer tells."""

    def __init__(self) -> None:
        self._found: list[dict[str, Any]] = []
        self._first: InvalidRequest | None = None

    @property
    def are_enough(self) -> bool:
        """Whether no more are told."""
        return len(self._found) >= MAX_ERRORS

    def add(self, place: int, error: InvalidRequest) -> None:
        """The job at this place breaks a rule, or some."""
        self._first = self._first or error
        said = {"field": error.extra.get("param") or "", "message": error.detail, "limit": error.extra.get("limit")}
        for each in error.extra.get("errors") or [said]:
            field = each["field"] if each["field"] != "body" else ""
            message = each["message"].removeprefix(f"{field}: ")
            broken = {"field": f"jobs[{place}]" + (f".{field}" if field else ""), "message": message}
            if each.get("limit") is not None:
                broken["limit"] = each["limit"]
            self._found.append(broken)

    def throw(self) -> None:
        """Refuse the bulk if anything was found.

        Raises:
            InvalidRequest: of the first error's class.
        """
        if self._first is None:
            return
        found = self._found[:MAX_ERRORS]
        detail = "; ".join(f"{each['field']}: {each['message']}" for each in found[:3])
        more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
        extra = {"limit": found[0]["limit"]} if "limit" in found[0] else {}
        raise type(self._first)(detail + more, param=found[0]["field"], errors=found, **extra)
