"""The async pair: `orders` calls `stock`, several calls at once. Both serve until Ctrl-C or SIGTERM, then leave."""

import asyncio
from typing import Any

from iii_zmq import AsyncWorker

stock = AsyncWorker("stock")
orders = AsyncWorker("orders")


@stock.function("stock::reserve", description="Reserve one item")
async def reserve(item: str) -> str:
    await asyncio.sleep(0.001)  # the work
    return f"{item} reserved"


@orders.function("orders::create", description="Reserve all items of an order")
async def create(order: dict[str, Any]) -> list[str]:
    return await asyncio.gather(*[orders.call("stock::reserve", item) for item in order["items"]])


async def main() -> None:
    async with stock, orders:
        print(await stock.call("orders::create", {"items": ["lamp", "desk"]}), flush=True)
        await orders.run()


asyncio.run(main())
