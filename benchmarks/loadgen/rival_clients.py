"""Plain Python clients on the same load: ``python rival_clients.py KIND PORT CONCURRENCY REQUESTS TOKENS``.

KIND is ``aiohttp`` (uvloop where it is installed, one line at a time, ``json.loads`` of each event) or ``openai`` (the
openai client, parsed events, as most scripts use it). Prints JSON as ``client.c`` does; the error is the time at which
the event reached the user's code minus the emitter's send time in its text.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from collections.abc import AsyncIterator, Callable

PROMPT = list(range(100, 116))
SETTLED = 10
"""Events of an answer that are not compared: connections are still being made."""
Stream = Callable[[int], AsyncIterator[str]]
"""From a number of tokens to the texts of an answer's events."""


async def drive(stream: Stream, concurrency: int, requests: int, tokens: int) -> dict[str, object]:
    errors: list[float] = []
    left = requests
    events = 0
    gaps: list[float] = []

    async def slot() -> None:
        nonlocal left, events
        while left > 0:
            left -= 1
            last_s = 0.0
            count = 0
            async for text in stream(tokens):
                now_s = time.perf_counter()
                count += 1
                if count > SETTLED:
                    errors.append((time.time_ns() - int(text[1:])) * 1e-3)
                if last_s:
                    gaps.append(now_s - last_s)
                last_s = now_s
                events += 1

    begun_s = time.perf_counter()
    await asyncio.gather(*(slot() for _ in range(concurrency)))
    wall_s = time.perf_counter() - begun_s
    usage = resource.getrusage(resource.RUSAGE_SELF)
    errors = sorted(errors) or [float("nan")]
    return {
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "events": events,
        "requests": requests,
        "wall_s": wall_s,
        "user_error_us": {"p50": errors[len(errors) // 2], "p99": errors[int(len(errors) * 0.99)]},
    }


async def with_aiohttp(url: str, concurrency: int, requests: int, tokens: int) -> dict[str, object]:
    import aiohttp

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def stream(count: int) -> AsyncIterator[str]:
            body = {
                "model": "bench",
                "prompt": PROMPT,
                "max_tokens": count,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
            async with session.post(f"{url}/v1/completions", json=body) as response:
                async for line in response.content:
                    if line.startswith(b"data: {"):
                        choices = json.loads(line[6:])["choices"]
                        if choices:
                            yield choices[0]["text"]

        return await drive(stream, concurrency, requests, tokens)


async def with_openai(url: str, concurrency: int, requests: int, tokens: int) -> dict[str, object]:
    import openai

    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=600) as client:

        async def stream(count: int) -> AsyncIterator[str]:
            answer = await client.completions.create(
                model="bench", prompt=PROMPT, max_tokens=count, stream=True, stream_options={"include_usage": True}
            )
            async for chunk in answer:
                if chunk.choices:
                    yield chunk.choices[0].text

        return await drive(stream, concurrency, requests, tokens)


if __name__ == "__main__":
    kind, port, *numbers = sys.argv[1:]
    run = {"aiohttp": with_aiohttp, "openai": with_openai}[kind]
    coroutine = run(f"http://127.0.0.1:{port}", *map(int, numbers))
    try:
        import uvloop
    except ImportError:
        print(json.dumps(asyncio.run(coroutine)))
    else:
        print(json.dumps(uvloop.run(coroutine)))
