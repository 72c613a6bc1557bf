"""A server of the `websockets` package; prints its port."""
import asyncio
import json

from websockets.asyncio.server import serve


async def handle(connection):
    for n in (1, 2):
        await connection.send(json.dumps({"n": n, "path": connection.request.path, "protocol": connection.subprotocol}))
    async for message in connection:
        await connection.send(json.dumps({"echo": json.loads(message)}))
        await connection.close(4321, "enough")


async def main():
    async with serve(handle, "127.0.0.1", 0, subprotocols=["json.v1"]) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.get_running_loop().create_future()


asyncio.run(main())
