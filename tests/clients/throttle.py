"""Forwards TCP at a limited pace: `throttle.py LISTEN_PORT PORT BYTES_PER_SECOND`; the pace is each connection's."""

import asyncio
import sys

CHUNK = 64 * 1024


async def forward(reader, writer, pace):
    try:
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
            if pace:
                await asyncio.sleep(len(data) / pace)
        writer.write_eof()
    except (OSError, asyncio.IncompleteReadError):
        # Who broke it has the reason; the other end must learn of it, too.
        writer.transport.abort()


async def main(listen, port, pace):
    async def accept(reader, writer):
        try:
            to_reader, to_writer = await asyncio.open_connection("127.0.0.1", port, limit=CHUNK)
        except OSError:
            writer.transport.abort()
            return
        await asyncio.gather(forward(reader, to_writer, None), forward(to_reader, writer, pace))
        for end in writer, to_writer:
            end.close()

    async with await asyncio.start_server(accept, "127.0.0.1", listen, limit=CHUNK) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(*map(int, sys.argv[1:4])))
