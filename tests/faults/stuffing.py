"""Keys that are guessed: `python -m tests.faults.stuffing URL KEY RATE SECONDS SEED` asks with wrong ones from fifty
loopback addresses and prints how often it was answered what, as JSON. A process of its own: A-10 measures beside it.

A quarter each: nonsense, keys of the right form that nobody made, a true key but for its last characters, and none.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections import Counter

import aiohttp

from app.domain import tokens

ADDRESSES = [f"127.0.0.{number}" for number in range(2, 52)]


def guess(draw: random.Random, key: str) -> str | None:
    """One wrong key."""
    match draw.randrange(4):
        case 0:
            return "".join(draw.choices(tokens.ALPHABET, k=draw.randint(1, 60)))
        case 1:
            return _formed("".join(draw.choices(tokens.ALPHABET, k=32)))
        case 2:
            near = _formed(key[len(tokens.PREFIX) : -9] + "".join(draw.choices(tokens.ALPHABET, k=3)))
            return None if near == key else near
    return None


def _formed(secret: str) -> str:
    return tokens.PREFIX + secret + tokens._checksum(secret)


async def stuff(url: str, key: str, rate: float, seconds: float, draw: random.Random) -> Counter[str]:
    """So many wrong keys a second, each sent when it is due, whatever became of those before."""
    told = Counter[str]()

    async def one(session: aiohttp.ClientSession, wrong: str | None) -> None:
        headers = {} if wrong is None else {"Authorization": f"Bearer {wrong}"}
        try:
            async with session.get(f"{url}/v1/me", headers=headers) as answer:
                await answer.read()
                told[str(answer.status)] += 1
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            told[type(error).__name__] += 1

    lines = [aiohttp.TCPConnector(local_addr=(address, 0), limit=2) for address in ADDRESSES]
    sessions = [aiohttp.ClientSession(connector=line) for line in lines]
    began, work = time.monotonic(), []
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
        work.append(asyncio.create_task(one(sessions[number % len(sessions)], guess(draw, key))))
    await asyncio.gather(*work)
    for session in sessions:
        await session.close()
    return told


if __name__ == "__main__":
    url, key, rate, seconds, seed = sys.argv[1:]
    print(json.dumps(asyncio.run(stuff(url, key, float(rate), float(seconds), random.Random(int(seed))))))
