"""Fetch a few hundred documents over HTTP, parse them in processes, and add up what is in them.

The server is this program's own, on the loopback interface, and takes its time: a different one for
each document.  Fifty asynchronous workers wait for it at once.  The answer is that of a plain loop,
which fetches one document after the other.
"""

import asyncio
import random
import re
import threading
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator

from pyper import task

DOCUMENTS = 300
WORDS = b"the quick brown fox jumps over a lazy dog and runs".split()


# ------------------------------------------------------------------------------------ the server


def document(number: int) -> bytes:
    words = random.Random(number).choices(WORDS, range(1, len(WORDS) + 1), k=500 + number)
    return b"<p>" + b"</p>\n<p>".join(words) + b"</p>\n"


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    request = await reader.readuntil(b"\r\n\r\n")
    number = int(request.split()[1].rpartition(b"/")[2])
    await asyncio.sleep(number * 7919 % 13 / 2000)
    writer.write(b"HTTP/1.0 200 OK\r\nContent-Type: text/html\r\n\r\n" + document(number))
    await writer.drain()
    writer.close()


class Server:
    """An HTTP server in a thread, with an event loop of its own."""

    def __enter__(self) -> str:
        self.ready = threading.Event()
        self.thread = threading.Thread(target=lambda: asyncio.run(self.serve()))
        self.thread.start()
        self.ready.wait()
        return f"http://127.0.0.1:{self.port}/documents"

    async def serve(self) -> None:
        self.loop, self.over = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self.ready.set()
        async with server:
            await self.over.wait()

    def __exit__(self, *unused: object) -> None:
        self.loop.call_soon_threadsafe(self.over.set)
        self.thread.join()


# ---------------------------------------------------------------------------------- the pipeline


async def fetch(number: int, url: str) -> bytes:
    host, _, path = url.removeprefix("http://").partition("/")
    reader, writer = await asyncio.open_connection(*host.split(":"))
    writer.write(f"GET /{path}/{number} HTTP/1.0\r\n\r\n".encode())
    response = await reader.read()
    writer.close()
    await writer.wait_closed()
    return response.partition(b"\r\n\r\n")[2]


def parse(page: bytes) -> Counter[bytes]:
    return Counter(re.findall(rb"<p>(\w+)</p>", page))


async def total(counts: AsyncIterator[Counter[bytes]]) -> Counter[bytes]:
    all_words: Counter[bytes] = Counter()
    async for words in counts:
        all_words.update(words)
    return all_words


async def crawl(url: str) -> Counter[bytes]:
    pipeline = (
        task(range, branch=True)
        | task(fetch, workers=50, throttle=100, bind=task.bind(url=url))
        | task(parse, workers=2, multiprocess=True, throttle=100)
        | task(total, join=True)
    )
    async with pipeline(DOCUMENTS) as outputs:
        return await anext(outputs)


def plain_loop(url: str) -> Counter[bytes]:
    all_words: Counter[bytes] = Counter()
    for number in range(DOCUMENTS):
        with urllib.request.urlopen(f"{url}/{number}") as page:
            all_words.update(parse(page.read()))
    return all_words


if __name__ == "__main__":
    with Server() as url:
        words = asyncio.run(crawl(url))
        print(sum(words.values()), "words,", words.most_common(1)[0][0].decode(), "most often")
        #> 194850 words, runs most often
        print("as in a plain loop:", words == plain_loop(url))
        #> as in a plain loop: True
