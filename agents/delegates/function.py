"""A Python function as an agent: text in, text out, and no model."""

import inspect
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import anyio.to_thread
from pydantic_core import to_jsonable_python

from unspoken.agents.delegates.model import Delegate
from unspoken.agents.tools.functions import apart, threads


class FunctionDelegate(Delegate):
    """A function that answers.

    Args:
        function: It is given the words as its one argument. One that is not async runs on a thread,
            which a cancel does not wait for.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        named = function.func if isinstance(function, partial) else function
        named = named if hasattr(named, "__qualname__") else type(named)
        name = f"{getattr(named, '__module__', '')}.{named.__qualname__}"
        super().__init__("a function", name, self._answered)
        self.function = function

    async def _answered(self, words: str) -> str:
        if inspect.iscoroutinefunction(self.function):
            result = await apart(partial(self.function, words))
        else:
            result = await anyio.to_thread.run_sync(
                self.function, words, abandon_on_cancel=True, limiter=threads()
            )
            if inspect.isawaitable(result):
                made = result
                result = await apart(lambda: made)
        if result is None or isinstance(result, str):
            return result or ""
        return json.dumps(to_jsonable_python(result), ensure_ascii=False)
