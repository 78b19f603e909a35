# ministack goes on waiting for a client that has gone, and hands it messages. SQS notices that a connection was closed, so
# this does too.
import asyncio

import ministack.app as module

answer = module.app


async def app(scope, receive, send):
    if scope["type"] != "http":
        return await answer(scope, receive, send)
    request = {"type": "http.request", "body": b"", "more_body": False}
    more = True
    while more:
        part = await receive()
        if part["type"] == "http.disconnect":
            return
        request["body"] += part.get("body", b"")
        more = part.get("more_body", False)
    leaving = asyncio.ensure_future(receive())
    parts = [request]

    async def again():
        return parts.pop() if parts else await leaving

    handling = asyncio.ensure_future(answer(scope, again, send))
    await asyncio.wait({handling, leaving}, return_when=asyncio.FIRST_COMPLETED)
    if handling.done():
        leaving.cancel()
        handling.result()
    else:
        handling.cancel()


module.app = app
module.main()
