"""Does the benchmarks' client outlive a server that closes a connection which was idle for long?"""

import asyncio

from benchmarks.control.client import Client


async def test_a_request_on_a_connection_that_the_server_has_just_closed_goes_over_a_new_one() -> None:
    """A benchmark of minutes ended with an error: the server's time was up while it had been stopped."""
    served = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal served
        await reader.readuntil(b"\r\n\r\n")
        served += 1
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
        await writer.drain()
        await reader.read(1)  # of the next request, which is never served
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, Client(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "token") as client:
        assert [await client.get("/"), await client.get("/")] == [{}, {}]
    assert served == 2
