"""How are files handed in, read and deleted over HTTP? /v1/files, as OpenAI's."""

import re
from collections.abc import AsyncIterator
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import StreamingResponse
from starlette.datastructures import QueryParams

from app.api.authentication import Reader, Writer
from app.api.batch_documents import FileDeleted, FileObject, FilePage, file_object, list_object
from app.api.documents import answer
from app.api.openai.errors import BothRoute
from app.api.openapi import problems, shows
from app.api.paging import given_of, limit_of, wrong
from app.api.runtime import Runtime, runtime_of
from app.api.uploads import Upload, give_up, receive
from app.errors import InvalidRequest
from app.files import store
from app.files.store import file_id_of, file_name

PURPOSES = ("batch", "user_data", "evals")
MAX_PAGE = 10_000
_SHORTEST_S, _LONGEST_S = 3600, 2_592_000  # that OpenAI lets a file say

router = APIRouter(prefix="/v1", tags=["files"], route_class=BothRoute)

FileId = Annotated[str, Path(alias="id", description="`file-` and 32 hex digits.")]

FORM: dict[str, Any] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file", "purpose"],
                "properties": {
                    "file": {"type": "string", "format": "binary", "description": "For `batch`: JSON Lines."},
                    "purpose": {"type": "string", "enum": list(PURPOSES)},
                    "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                    "expires_after[seconds]": {"type": "integer", "minimum": _SHORTEST_S, "maximum": _LONGEST_S},
                },
            }
        }
    },
}
LINES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The bytes.", "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
}  # fmt: skip


def page_query(limit: int, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """The query of a list in OpenAI's manner, as the document describes it."""
    described = {
        "limit": {"type": "integer", "minimum": 1, "maximum": limit},
        "after": {"type": "string"},
        "order": {"type": "string", "enum": ["asc", "desc"]},
        "purpose": {"type": "string"},
    }
    return [{"name": name, "in": "query", "schema": described[name]} for name in names]


def page_of(query: QueryParams, names: tuple[str, ...], *, most: int, default: int) -> tuple[dict[str, str], int]:
    """What a query in OpenAI's manner says, and its limit.

    Raises:
        InvalidRequest: an unknown, repeated or malformed parameter.
    """
    given = given_of(query, names)
    limit = limit_of(given, default, most=most)
    if given.get("order", "desc") not in {"asc", "desc"}:
        raise wrong("order", "must be one of asc, desc")
    return given, limit


@router.post(
    "/files",
    operation_id="uploadFile",
    summary="Upload a file",
    responses=shows(200, "It is kept.", FileObject) | problems(400, 401, 403, 413, 415, 422, 503),
    openapi_extra={"requestBody": FORM},
)
async def upload_file(request: Request, caller: Writer) -> Response:
    """Keep a file, which is written as it comes and seen once it is whole."""
    runtime = runtime_of(request)
    upload = await receive(request, runtime, caller.tenant_id)
    try:
        purpose, ttl_s = _purpose(upload), _ttl_s(upload)
        async with runtime.transaction() as conn:
            file = await store.close_file(conn, upload.file_id, purpose=purpose, filename=upload.filename, ttl_s=ttl_s)
    except InvalidRequest:
        await give_up(runtime, upload.file_id)
        raise
    return answer(file_object(file))


_QUERY = ("purpose", "limit", "order", "after")


@router.get(
    "/files",
    operation_id="listFiles",
    summary="List files",
    responses=shows(200, "A page of the tenant's files.", FilePage) | problems(401, 403, 404, 422, 503),
    openapi_extra={"parameters": page_query(MAX_PAGE, _QUERY)},
)
async def page_of_files(request: Request, caller: Reader) -> Response:
    """The tenant's files, newest first unless `order` is `asc`."""
    runtime = runtime_of(request)
    given, limit = page_of(request.query_params, _QUERY, most=MAX_PAGE, default=MAX_PAGE)
    after = file_id_of(given["after"]) if "after" in given else None
    purpose = given.get("purpose")
    if purpose is not None and "\x00" in purpose:
        raise wrong("purpose", "must not contain U+0000")
    async with runtime.transaction() as conn:
        found = await store.list_files(
            conn, caller.tenant_id, purpose=purpose, limit=limit + 1, after=after,
            ascending=given.get("order") == "asc",
        )  # fmt: skip
    return answer(list_object([file_object(each) for each in found[:limit]], has_more=len(found) > limit))


@router.get(
    "/files/{id}",
    operation_id="getFile",
    summary="Read what a file is",
    responses=shows(200, "The file.", FileObject) | problems(401, 403, 404, 503),
)
async def read_file(request: Request, name: FileId, caller: Reader) -> Response:
    """The file without its bytes."""
    async with runtime_of(request).transaction() as conn:
        return answer(file_object(await store.get_file(conn, caller.tenant_id, file_id_of(name))))


@router.get(
    "/files/{id}/content",
    operation_id="getFileContent",
    summary="Read a file's bytes",
    responses=LINES | problems(401, 403, 404, 503),
    response_class=StreamingResponse,
)
async def read_content(request: Request, name: FileId, caller: Reader) -> Response:
    """The file's bytes, as they were uploaded or written by a batch."""
    runtime = runtime_of(request)
    async with runtime.transaction() as conn:
        file = await store.get_file(conn, caller.tenant_id, file_id_of(name))
    return streamed(runtime, file.id, num_bytes=file.bytes)


@router.delete(
    "/files/{id}",
    operation_id="deleteFile",
    summary="Delete a file",
    responses=shows(200, "It is gone.", FileDeleted) | problems(401, 403, 404, 409, 503),
)
async def delete_file(request: Request, name: FileId, caller: Writer) -> Response:
    """Delete a file that no batch reads."""
    file_id = file_id_of(name)
    async with runtime_of(request).transaction() as conn:
        await store.delete_file(conn, caller.tenant_id, file_id)
    return answer({"id": file_name(file_id), "object": "file", "deleted": True})


def streamed(runtime: Runtime, file_id: UUID | None, *, num_bytes: int | None = None) -> StreamingResponse:
    """The bytes of a file as they are now, without holding them; none where there is no file."""

    async def pieces() -> AsyncIterator[bytes]:
        if file_id is not None:
            async for piece in store.read_pieces(runtime.engine, file_id):
                yield piece

    headers = {"Cache-Control": "no-store"} | ({"Content-Length": str(num_bytes)} if num_bytes is not None else {})
    return StreamingResponse(pieces(), media_type="application/octet-stream", headers=headers)


def _purpose(upload: Upload) -> str:
    purpose = upload.fields.get("purpose")
    if purpose not in PURPOSES:
        raise InvalidRequest(f"purpose: must be one of {', '.join(PURPOSES)}", param="purpose")
    known = {"purpose", "expires_after[anchor]", "expires_after[seconds]"}
    unknown = sorted(upload.fields.keys() - known)
    if unknown:
        raise InvalidRequest(f"{unknown[0][:64]}: isn't a known field", param=unknown[0][:64])
    return purpose


def _ttl_s(upload: Upload) -> float | None:
    anchor, seconds = (upload.fields.get(f"expires_after[{name}]") for name in ("anchor", "seconds"))
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise InvalidRequest("expires_after[anchor]: must be created_at", param="expires_after[anchor]")
    if not re.fullmatch(r"[0-9]{1,9}", seconds or "", re.ASCII) or not _SHORTEST_S <= int(seconds or 0) <= _LONGEST_S:
        raise InvalidRequest(
            f"expires_after[seconds]: must be from {_SHORTEST_S} to {_LONGEST_S}",
            param="expires_after[seconds]",
            limit=_LONGEST_S,
        )
    return float(seconds or 0)
