"""What every engine keeps to: subclass `EngineContract`, give it an engine and its model's facts.

The suite speaks to the engine as a turn does: in token ids, tickets and sampling settings.
"""

from dataclasses import replace

import anyio
import pytest
from engine_turns import MORE, PROMPT, Script, Subject, inbound, message_of, take, told, writes
from processes import LIMIT_S

from unspoken.agents.engines.base import (
    Carried,
    History,
    Keep,
    Prefilling,
    Sampled,
    TurnEvent,
    TurnRequest,
)
from unspoken.channels.errors import (
    ContextLengthError,
    IdentityMismatch,
    PacketError,
    RunError,
    RunTimeout,
)
from unspoken.channels.kv.geometry import ModelIdentity
from unspoken.channels.message import Message
from unspoken.channels.same_model import SameModelCacheChannel
from unspoken.channels.text import TextChannel

__all__ = ["EngineContract", "Subject"]

KEY = bytes(range(32))


@pytest.mark.anyio
class EngineContract:
    """The contract. A subclass has a fixture `subject`."""

    async def test_a_turn_writes_what_its_model_writes(self, subject: Subject) -> None:
        """Greedy tokens are those of the model alone; each is an event, after the prefill's."""
        events, outcome = await told(subject.engine, TurnRequest(ids=PROMPT, sampling=writes(6)))
        expected = subject.greedy(PROMPT, 6)
        assert outcome.ids == (*PROMPT, *expected) and outcome.finish == "length"
        assert tuple(event.token for event in events if isinstance(event, Sampled)) == expected
        progress = [event for event in events if isinstance(event, Prefilling)]
        assert progress[0] == Prefilling(0, len(PROMPT))
        assert events.index(progress[-1]) < events.index(Sampled(expected[0]))
        assert outcome.state is None and subject.held() == 0

    async def test_a_turn_that_writes_nothing_prefills(self, subject: Subject) -> None:
        """An agent that only reads leaves the state of its context."""
        request = TurnRequest(ids=PROMPT, keep_state=True, owner="reader")
        outcome = await take(subject.engine, request)
        assert outcome.ids == PROMPT and outcome.finish == "none"
        assert outcome.usage.ttft_s is None and outcome.usage.prefilled_tokens == len(PROMPT)
        assert outcome.state is not None and subject.held() == 1
        subject.engine.release(outcome.state)
        assert subject.held() == 0

    async def test_a_stop_id_ends_a_turn_and_is_not_kept(self, subject: Subject) -> None:
        """It counts as generated, has no event, and is not in the finished context."""
        expected = subject.greedy(PROMPT, 6)
        stop = expected[3]
        kept = expected[: expected.index(stop)]
        sampling = writes(6, stop_ids=frozenset({stop}))
        events, outcome = await told(
            subject.engine, TurnRequest(ids=PROMPT, sampling=sampling, keep_state=True)
        )
        assert outcome.ids == (*PROMPT, *kept) and outcome.finish == "stop"
        assert Sampled(stop) not in events
        assert outcome.usage.generated_tokens == len(kept) + 1

    async def test_a_reply_ends_a_turn_and_closes_it(self, subject: Subject) -> None:
        """What the reply drops is forgotten; what it closes with is computed."""
        reply = Script(after=4, closing=MORE, kept=2)
        request = TurnRequest(ids=PROMPT, sampling=writes(50), reply=reply, keep_state=True)
        outcome = await take(subject.engine, request)
        assert reply.ids == list(subject.greedy(PROMPT, 4)) and outcome.finish == "stop"
        assert outcome.ids == (*PROMPT, *reply.ids[:2], *MORE) and outcome.state is not None
        longer = (*outcome.ids, *PROMPT[:6])
        history = History(outcome.ids, outcome.state)
        again = TurnRequest(ids=longer, history=history, sampling=writes(5))
        second = await take(subject.engine, again)
        assert second.ids[len(longer) :] == subject.greedy(longer, 5)
        assert second.usage.reused_tokens == len(outcome.ids)

    async def test_a_turn_ends_at_its_limit_of_work(self, subject: Subject) -> None:
        """The error names the owner; a turn within its limit is as one without."""
        request = TurnRequest(ids=PROMPT, sampling=writes(6), owner="slow", limit_s=1e-9)
        with pytest.raises(RunTimeout, match="agent 'slow' took longer") as caught:
            await take(subject.engine, request)
        assert caught.value.agent == "slow" and subject.held() == 0
        outcome = await take(subject.engine, replace(request, limit_s=LIMIT_S))
        assert outcome.ids == (*PROMPT, *subject.greedy(PROMPT, 6))

    async def test_a_context_that_parts_from_the_history_reuses_what_is_equal(
        self, subject: Subject
    ) -> None:
        """Only the ids that both begin with are taken over."""
        first = await take(subject.engine, TurnRequest(ids=PROMPT, keep_state=True))
        assert first.state is not None
        other = (*PROMPT[:25], *MORE)
        request = TurnRequest(
            ids=other, history=History(first.ids, first.state), sampling=writes(5)
        )
        outcome = await take(subject.engine, request)
        assert outcome.ids[len(other) :] == subject.greedy(other, 5)
        assert outcome.usage.reused_tokens == 25

    async def test_a_message_continues_exactly(self, subject: Subject) -> None:
        """A state at the start of the context is reused; the tokens are those of text."""
        engine = subject.engine
        sharer = await take(engine, TurnRequest(ids=PROMPT, keep_state=True))
        message, context = message_of(PROMPT, engine.facts.identity), (*PROMPT, *MORE)
        request = TurnRequest(
            ids=context, inbound=(inbound(message, sharer.state, context),), sampling=writes(5)
        )
        events, outcome = await told(engine, request)
        (carried,) = [event for event in events if isinstance(event, Carried)]
        assert (carried.edge, carried.report.mode, carried.report.exact) == (
            7,
            "continuation",
            True,
        )
        assert outcome.ids[len(context) :] == subject.greedy(context, 5)
        assert outcome.usage.reused_tokens == len(PROMPT)
        assert outcome.usage.prefilled_tokens == len(MORE)

    async def test_a_message_behind_other_tokens_is_spliced(self, subject: Subject) -> None:
        """All repaired, a splice is text; every prompt token is counted once."""
        engine = subject.engine
        sharer = await take(engine, TurnRequest(ids=PROMPT, keep_state=True))
        message, context = message_of(PROMPT, engine.facts.identity), (*MORE, *PROMPT, 75)
        for sink in (4, 1000):
            arrived = inbound(
                message, sharer.state, context, len(MORE), SameModelCacheChannel(sink=sink)
            )
            request = TurnRequest(ids=context, inbound=(arrived,), sampling=writes(5))
            events, outcome = await told(engine, request)
            (carried,) = [event for event in events if isinstance(event, Carried)]
            assert carried.report.mode == "splice"
            assert carried.report.exact == (sink == 1000)
            usage = outcome.usage
            assert usage.recomputed_tokens == min(sink, len(PROMPT))
            assert usage.prompt_tokens == (
                usage.prefilled_tokens + usage.reused_tokens + usage.recomputed_tokens
            )
        assert outcome.ids[len(context) :] == subject.greedy(context, 5)

    async def test_a_text_message_is_computed(self, subject: Subject) -> None:
        """Its report says so, and nothing is reused."""
        message, context = message_of(PROMPT, subject.engine.facts.identity), (*PROMPT, *MORE)
        arrived = inbound(message, None, context, channel=TextChannel())
        request = TurnRequest(ids=context, inbound=(arrived,), sampling=writes(5))
        events, outcome = await told(subject.engine, request)
        (carried,) = [event for event in events if isinstance(event, Carried)]
        assert carried.report.mode == "text" and carried.report.fallback is None
        assert outcome.usage.prefilled_tokens == len(context)
        assert outcome.ids[len(context) :] == subject.greedy(context, 5)

    async def test_a_carry_that_fails_is_told_or_refused(self, subject: Subject) -> None:
        """A message without its state goes by text with the cause, or ends the turn."""
        message, context = message_of(PROMPT, subject.engine.facts.identity), (*PROMPT, *MORE)
        arrived = inbound(message, None, context, fallback=True)
        events, outcome = await told(
            subject.engine, TurnRequest(ids=context, inbound=(arrived,), sampling=writes(5))
        )
        (carried,) = [event for event in events if isinstance(event, Carried)]
        assert carried.report.channel == "text" and carried.report.fallback is not None
        assert carried.report.fallback.channel == "same_model_cache"
        assert outcome.ids[len(context) :] == subject.greedy(context, 5)
        strict = inbound(message, None, context)
        with pytest.raises(RunError) as caught:
            await take(
                subject.engine, TurnRequest(ids=context, inbound=(strict,), sampling=writes(5))
            )
        assert caught.value.edge == "sharer -> receiver"

    async def test_too_long_a_context_is_refused(self, subject: Subject) -> None:
        """The error says how long it may be."""
        most = subject.engine.facts.max_positions
        ids = (PROMPT * (most // len(PROMPT) + 1))[:most]
        with pytest.raises(ContextLengthError, match=str(most)):
            await take(subject.engine, TurnRequest(ids=ids, sampling=writes(1)))

    async def test_the_footprint_is_known_beforehand(self, subject: Subject) -> None:
        """It grows with the context, and only a state that is wanted is kept."""
        engine = subject.engine
        short = engine.footprint(TurnRequest(ids=PROMPT, sampling=writes(5)))
        long = engine.footprint(TurnRequest(ids=PROMPT * 2, sampling=writes(5), keep_state=True))
        assert 0 < short.peak < long.peak and short.kept == 0 < long.kept <= long.peak
        itemsize = engine.facts.dtype.itemsize
        assert short.peak >= len(PROMPT) * engine.facts.geometry.bytes_per_token(itemsize)

    @pytest.mark.parametrize("tokens", [0, 5, 120])
    async def test_the_footprint_bounds_what_is_kept(self, subject: Subject, tokens: int) -> None:
        """However long the turn writes."""
        sampling = writes(tokens) if tokens else None
        request = TurnRequest(ids=PROMPT, sampling=sampling, keep_state=True)
        bound = subject.engine.footprint(request)
        await take(subject.engine, request)
        assert 0 < subject.bytes_held() <= bound.kept <= bound.peak

    async def test_tickets_share_a_state(self, subject: Subject) -> None:
        """It is held once for all of them, and goes with the last."""
        engine = subject.engine
        outcome = await take(engine, TurnRequest(ids=PROMPT, keep_state=True))
        assert outcome.state is not None
        ticket = await engine.keep(outcome.state, PROMPT, Keep(holder="an edge"))
        assert subject.held() == 1
        engine.release(outcome.state)
        context = (*PROMPT, *MORE)
        request = TurnRequest(ids=context, history=History(PROMPT, ticket), sampling=writes(3))
        assert (await take(engine, request)).usage.reused_tokens == len(PROMPT)
        engine.release(ticket)
        assert subject.held() == 0

    async def test_a_codec_keeps_a_state_that_is_not_exact(self, subject: Subject) -> None:
        """What was rounded is never called exact."""
        engine = subject.engine
        sharer = await take(engine, TurnRequest(ids=PROMPT, keep_state=True))
        assert sharer.state is not None
        ticket = await engine.keep(sharer.state, PROMPT, Keep(codec="int8", holder="an edge"))
        message, context = message_of(PROMPT, engine.facts.identity), (*PROMPT, *MORE)
        request = TurnRequest(
            ids=context, inbound=(inbound(message, ticket, context),), sampling=writes(2)
        )
        events, _ = await told(engine, request)
        (carried,) = [event for event in events if isinstance(event, Carried)]
        assert not carried.report.exact and carried.report.reused == len(PROMPT)
        held = subject.held()
        await engine.keep(sharer.state, PROMPT, Keep(codec="int8", holder="another edge"))
        assert subject.held() == held  # an equal copy is held once

    async def test_a_trimmed_state_goes_on_at_its_end_alone(self, subject: Subject) -> None:
        """A continuation is exact; where other tokens stand before it, the edge falls back."""
        engine = subject.engine
        sharer = await take(engine, TurnRequest(ids=PROMPT, keep_state=True))
        assert sharer.state is not None
        ticket = await engine.keep(sharer.state, PROMPT, Keep(trimmed=True))
        message, context = message_of(PROMPT, engine.facts.identity), (*PROMPT, *MORE)
        arrived = inbound(message, ticket, context)
        request = TurnRequest(ids=context, inbound=(arrived,), sampling=writes(5))
        outcome = await take(engine, request)
        assert outcome.ids[len(context) :] == subject.greedy(context, 5)
        assert outcome.usage.reused_tokens == len(PROMPT)
        moved = (*MORE, *PROMPT, 75)
        arrived = inbound(message, ticket, moved, len(MORE), fallback=True)
        request = TurnRequest(ids=moved, inbound=(arrived,), sampling=writes(5))
        events, outcome = await told(engine, request)
        (carried,) = [event for event in events if isinstance(event, Carried)]
        windowed = any(layer.window for layer in engine.facts.geometry.layers)
        assert carried.report.mode == ("text" if windowed else "splice")
        history = History(PROMPT, ticket)
        request = TurnRequest(ids=(*PROMPT[:20], 75), history=history, sampling=writes(5))
        outcome = await take(engine, request)
        assert outcome.ids[21:] == subject.greedy((*PROMPT[:20], 75), 5)
        assert outcome.usage.reused_tokens == (0 if windowed else 20)

    async def test_a_packet_goes_out_and_comes_in(self, subject: Subject) -> None:
        """What was exported and admitted continues as the state itself does."""
        engine = subject.engine
        sharer = await take(engine, TurnRequest(ids=PROMPT, keep_state=True))
        assert sharer.state is not None
        message = message_of(PROMPT, engine.facts.identity)
        packet = b"".join(bytes(chunk) for chunk in engine.export(sharer.state, message, KEY))
        engine.release(sharer.state)
        assert subject.held() == 0
        admitted, ticket = await engine.admit(packet, KEY)
        assert admitted.state is None and admitted.context == PROMPT and subject.held() == 1
        context = (*PROMPT, *MORE)
        request = TurnRequest(
            ids=context, inbound=(inbound(admitted, ticket, context),), sampling=writes(5)
        )
        outcome = await take(engine, request)
        assert outcome.ids[len(context) :] == subject.greedy(context, 5)
        assert outcome.usage.reused_tokens == len(PROMPT)
        with pytest.raises(PacketError):
            await engine.admit(packet, bytes(32))
        other = Message(
            sharer="x",
            segments=message.segments,
            whole=True,
            context=PROMPT,
            identity=ModelIdentity("o", "o", "o"),
        )
        with pytest.raises(IdentityMismatch):
            engine.export(ticket, other, KEY)

    async def test_a_cancelled_turn_leaves_nothing(self, subject: Subject) -> None:
        """It ends within one operation, keeps no state, and the engine serves on."""
        engine = subject.engine
        sampled = 0

        def count(event: TurnEvent) -> None:
            nonlocal sampled
            sampled += isinstance(event, Sampled)
            if sampled == 2:
                scope.cancel()

        with anyio.CancelScope() as scope:
            await engine.turn(TurnRequest(ids=PROMPT, sampling=writes(500), keep_state=True), count)
        assert scope.cancelled_caught and sampled < 10 and subject.held() == 0
        outcome = await take(engine, TurnRequest(ids=PROMPT, sampling=writes(3)))
        assert outcome.ids[len(PROMPT) :] == subject.greedy(PROMPT, 3)

    async def test_turns_side_by_side_write_what_they_write_alone(self, subject: Subject) -> None:
        """No turn's tokens depend on its neighbours."""
        prompts = [PROMPT[:length] for length in (10, 25, 40)]
        written: dict[int, tuple[int, ...]] = {}

        async def go(number: int) -> None:
            request = TurnRequest(ids=prompts[number], sampling=writes(5))
            written[number] = (await take(subject.engine, request)).ids

        async with anyio.create_task_group() as tasks:
            for number in range(len(prompts)):
                tasks.start_soon(go, number)
        for number, prompt in enumerate(prompts):
            assert written[number] == (*prompt, *subject.greedy(prompt, 5))

    async def test_a_seed_repeats_a_turn(self, subject: Subject) -> None:
        """The draws of a turn are its own, whoever draws beside it."""
        request = TurnRequest(ids=PROMPT, sampling=writes(12, temperature=1.5, seed=3))
        first, second = await take(subject.engine, request), await take(subject.engine, request)
        assert first.ids == second.ids
