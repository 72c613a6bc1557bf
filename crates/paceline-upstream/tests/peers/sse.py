"""Server-Sent Events by `sse-starlette`, which ends lines with CR LF and sends comments as pings; prints its port."""
import asyncio
import socket

import uvicorn
from sse_starlette.sse import EventSourceResponse
from starlette.applications import Starlette
from starlette.routing import Route


async def events(request):
    first = int(request.headers.get("last-event-id", 0)) + 1

    async def numbers():
        for n in range(first, first + 3):
            yield {"event": "number", "id": str(n), "data": f'{{"n": {n},\n"text": "ü"}}', "retry": 1500}
            await asyncio.sleep(0.05)
        await asyncio.sleep(60)

    return EventSourceResponse(numbers(), ping=1, sep="\r\n")


listener = socket.socket()
listener.bind(("127.0.0.1", 0))
listener.listen()
print(listener.getsockname()[1], flush=True)
application = Starlette(routes=[Route("/events", events)])
asyncio.run(uvicorn.Server(uvicorn.Config(application, log_level="error")).serve(sockets=[listener]))
