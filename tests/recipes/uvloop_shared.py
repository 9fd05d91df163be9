"""uvloop as the loop that all eager functions share; plain code and other loops use it unawares.

Run it: pip install 'eager-async[uvloop]' && python tests/recipes/uvloop_shared.py (Linux and macOS)
"""

import asyncio
import contextlib

import uvloop

from eager_async import BackgroundLoop, eager, set_shared_loop

# Once, before the first call. Nothing starts here: the loop is made when it is needed.
set_shared_loop(BackgroundLoop(loop_factory=uvloop.new_event_loop))


@eager
async def serve() -> asyncio.Server:
    """Start a server that sends back what it gets, on a free port."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            writer.write(await reader.read())
            await writer.drain()

    return await asyncio.start_server(echo, "127.0.0.1", 0)


@eager
async def ask(port: int, text: str) -> str:
    """Send a text to the server and return the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.closing(writer):
        writer.write(text.encode())
        writer.write_eof()
        return (await reader.read()).decode()


@eager
async def stop(server: asyncio.Server) -> None:
    """Close the server, on the loop that it belongs to."""
    server.close()
    await server.wait_closed()


@eager
async def name_of_loop() -> str:
    """Say whose loop runs eager functions."""
    return package_of(asyncio.get_running_loop())


def package_of(loop: asyncio.AbstractEventLoop) -> str:
    """Where a loop is from: `asyncio` or `uvloop`."""
    return type(loop).__module__.partition(".")[0]


async def main(port: int) -> None:
    """Await eager tasks on a loop of another kind."""
    here = package_of(asyncio.get_running_loop())
    print(f"{here} awaits {await name_of_loop()}:", await asyncio.gather(ask(port, "c"), ask(port, "d")))


if __name__ == "__main__":
    server = serve().result()
    port = server.sockets[0].getsockname()[1]
    tasks = [ask(port, text) for text in ("a", "b")]
    print(f"plain code asks {name_of_loop().result()}:", [task.result() for task in tasks])
    asyncio.run(main(port))
    stop(server).result()
