"""Loading before a run: cancelled, shared by several runs, done once."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest
from flows import own_cache, stored_model
from processes import LIMIT_S

from unspoken.agents import Agent, LocalModel, Workflow

pytestmark = [pytest.mark.anyio, pytest.mark.event_loops]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalModel]:
    folder = tmp_path_factory.mktemp("model")
    with own_cache(folder / "cache"):
        yield stored_model(folder / "small")


class SlowLoads:
    """Stands in for `LocalModel.load`: it waits, and tells how it ended.

    Args:
        model: What it gives.
        tells: Whether it tells of its progress after the wait.
    """

    def __init__(self, model: LocalModel, tells: bool) -> None:
        self.model, self.tells = model, tells
        self.started, self.go_on, self.over = (threading.Event() for _ in range(3))
        self.ends: list[str] = []

    def __call__(self, ref: str, *, progress: Callable[[str, float], None], **_: Any) -> LocalModel:
        self.started.set()
        try:
            assert self.go_on.wait(LIMIT_S)
            if self.tells:
                progress("load", 0.5)
        except BaseException as error:
            self.ends.append(type(error).__name__)
            raise
        else:
            self.ends.append("whole")
            return self.model
        finally:
            self.over.set()


async def cancelled_while_loading(flow: Workflow, loads: SlowLoads) -> float:
    """Cancel a run while it loads; the seconds that the cancel took."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(flow.arun)
        assert await anyio.to_thread.run_sync(loads.started.wait, LIMIT_S)
        began = anyio.current_time()
        tasks.cancel_scope.cancel()
    return anyio.current_time() - began


@pytest.mark.parametrize("tells", [True, False])
async def test_a_cancelled_run_does_not_wait_for_its_load(
    model: LocalModel, monkeypatch: pytest.MonkeyPatch, tells: bool
) -> None:
    """The load ends where it next tells of its progress; a model that is whole by then is kept."""
    loads = SlowLoads(model, tells)
    monkeypatch.setattr(LocalModel, "load", loads)
    flow = Workflow("w", [Agent("a", model.ref, prompt="x", generate={"max_new_tokens": 3})])
    assert await cancelled_while_loading(flow, loads) < LIMIT_S / 3
    assert loads.ends == [] and flow.models == {}
    loads.go_on.set()
    await anyio.to_thread.run_sync(loads.over.wait)
    with anyio.fail_after(LIMIT_S):
        assert (await flow.arun())["a"].text
    assert loads.ends == (["_Abandoned", "whole"] if tells else ["whole"])


async def test_another_run_that_waits_for_the_load_goes_on(
    model: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancel of one run leaves the other its models."""
    loads = SlowLoads(model, tells=True)
    monkeypatch.setattr(LocalModel, "load", loads)
    flow = Workflow("w", [Agent("a", model.ref, prompt="x", generate={"max_new_tokens": 3})])
    words: list[str] = []

    async def other() -> None:
        words.append((await flow.arun())["a"].text)

    with anyio.fail_after(LIMIT_S):
        async with anyio.create_task_group() as tasks:
            async with anyio.create_task_group() as first:
                first.start_soon(flow.arun)
                await anyio.to_thread.run_sync(loads.started.wait)
                tasks.start_soon(other)
                await anyio.sleep(0.05)
                first.cancel_scope.cancel()
            loads.go_on.set()
    assert words and words[0] and loads.ends == ["_Abandoned", "whole"]


def test_context_variables_hold_in_a_run_on_a_thread(model: LocalModel) -> None:
    """What a notebook's cell has set is set where its run goes on."""
    import contextvars

    asked: contextvars.ContextVar[str] = contextvars.ContextVar("asked", default="nobody")
    seen: list[str] = []

    class Watched(Workflow):
        async def _to_end(self, *args: Any) -> Any:
            seen.append(asked.get())
            return await super()._to_end(*args)

    flow = Watched("w", [Agent("a", model, prompt="x", generate={"max_new_tokens": 3})])

    async def cell() -> None:
        asked.set("the cell")
        flow.run()

    anyio.run(cell)
    flow.run()
    assert seen == ["the cell", "nobody"]
