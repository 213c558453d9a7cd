"""What the tests of asynchronous pipelines share: running them on a loop that must stay silent."""

from __future__ import annotations

import asyncio
import gc
import logging
import re
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from typing import Any

import pytest

from helpers import PATIENCE


@pytest.fixture(autouse=True)
def nothing_said(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Fail a test that makes asyncio log anything, or Python report what nobody could raise."""
    unraisable: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    with caplog.at_level(logging.WARNING, logger="asyncio"):
        yield
        gc.collect()
    said = [
        record.getMessage()
        for phase in ("setup", "call", "teardown")
        for record in caplog.get_records(phase)  # type: ignore[arg-type]
    ]
    # In debug mode asyncio tells of each callback that took 100 ms: that is the machine's load.
    assert [text for text in said if not re.match("Executing <.* took ", text)] == []
    assert unraisable == []


def run(main: Awaitable[Any] | Callable[[], Awaitable[Any]], **options: Any) -> Any:
    """asyncio.run() in debug mode, with a guard against hanging; nothing is left in the loop."""

    async def guarded() -> Any:
        async with asyncio.timeout(PATIENCE):
            result = await (main() if callable(main) else main)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        while others:  # dropped outputs: their tasks end by themselves
            await asyncio.wait(others, timeout=PATIENCE)
            others = asyncio.all_tasks() - {asyncio.current_task()}
        return result

    return asyncio.run(guarded(), debug=options.get("debug", True))


async def collect(outputs: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in outputs]


# --------------------------------------------------------------------------- functions of tasks


async def ainc(x: int) -> int:
    return x + 1


async def ainc_later(x: int) -> int:
    await asyncio.sleep(0)
    return x + 1


async def arange(n: int) -> AsyncGenerator[int, None]:
    for i in range(n):
        yield i
        if i % 7 == 0:
            await asyncio.sleep(0)


def gated() -> tuple[asyncio.Event, Callable[[int], Coroutine[Any, Any, int]]]:
    """A gate, and a function of the loop that runs which returns its input once that is open."""
    gate = asyncio.Event()

    async def waits(x: int) -> int:
        await gate.wait()
        return x

    return gate, waits
