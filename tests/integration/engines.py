"""What tests ask of engines beside rollouts."""

import asyncio
from typing import Any


async def begun(engine: Any, rollouts: int, tokens: int = 8) -> None:
    """Waits until an engine has so many rollouts of draws under way that have so many tokens."""
    async with asyncio.timeout(60):
        while True:
            draws = await engine.under_way.remote()
            under_way = [rollout for draw in draws.values() for rollout in draw.values() if not rollout.finish_reason]
            if sum(len(rollout.token_ids) >= tokens for rollout in under_way) >= rollouts:
                return
            await asyncio.sleep(0.01)
