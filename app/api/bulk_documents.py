"""What does a bulk submission look like in the OpenAPI document?"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.api.documents import Described
from app.jobs.request import JobRequest

MAX_BULK_JOBS = 1000


class BulkRequest(BaseModel):
    """The body of POST /v1/jobs/bulk: all of these jobs, or none."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={"examples": [{"jobs": [{"prompt": "Once", "max_tokens": 16}, {"prompt": "Twice"}]}]},
    )

    jobs: Annotated[list[JobRequest], Field(min_length=1, max_length=MAX_BULK_JOBS)] = Field(
        description="As for POST /v1/jobs, without `fallback_model` and with `on_budget` as `reject` or `wait`."
    )


class BulkObject(Described):
    """The jobs that were promised."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"object": "job.bulk", "job_ids": ["job_01968c7be7e57000800000000000002a"]}]},
    )

    object: Literal["job.bulk"]
    job_ids: list[Annotated[str, Field(pattern="^job_[0-9a-f]{32}$")]] = Field(description="In the order of `jobs`.")
