"""What does the OpenAPI document say of a job's events?"""

from typing import Literal

from pydantic import ConfigDict, Field

from app.api.documents import Described


class ServerSentEvent(Described):
    """One event of a job's stream, with its fields as they stand on the wire."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "id": "6",
                    "event": "tokens",
                    "data": '{"id":6,"kind":"tokens","index":0,"offset":3,"text_offset":12,"text":" time","token_ids":[640],"finish_reason":"stop"}',
                }
            ]
        },
    )

    id: str = Field(pattern="^[0-9]{1,16}$", description="A whole number; whoever comes back says the last one.")
    event: Literal["started", "restarted", "tokens", "finished"]
    data: str = Field(description="The event as a JSON object.")


DESCRIBED = (ServerSentEvent,)
