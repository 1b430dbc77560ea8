"""Messages from a fine-tune of the receiver's base, against the receiver's own prefill."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from architectures import ARCHITECTURES, make, tuned
from turns import inbound

from unspoken.agents.engines.assembly import Assembly, Past, assemble
from unspoken.agents.engines.base import Inbound
from unspoken.agents.models.model import LocalModel
from unspoken.channels import KVState, Message, SameModelCacheChannel
from unspoken.channels.base import Arrival, Span
from unspoken.channels.errors import IdentityMismatch, InputError, RunError
from unspoken.channels.finetunes.recompute import LayerRanges
from unspoken.channels.kv.layer_state import LayerState
from unspoken.channels.message import Segment

OPENING = (5, 6, 7)
WORDS = tuple(range(40, 62))
OTHER = (90, 91, 92, 93, 94)
NEXT = (40, 41, 42, 43)


def message_of(
    sharer: LocalModel, before: Sequence[int] = OPENING, capture: Sequence[int] | None = None
) -> Message:
    """`WORDS` after `before` in the sharer's context, with all layers' inputs by default."""
    ids = (*before, *WORDS)
    layers = range(len(sharer.geometry.layers)) if capture is None else capture
    state = sharer.read(ids, layers)
    segment = Segment(
        role="user", ids=WORDS, content=(0, len(WORDS)), text="", position=len(before)
    )
    return Message(
        sharer="sharer",
        segments=(segment,),
        whole=False,
        context=ids,
        identity=sharer.identity,
        state=state,
    )


def delivered(
    message: Message, ids: tuple[int, ...], at: int, channel: SameModelCacheChannel
) -> Inbound:
    source = message.segments[0].position
    arrival = Arrival(message=message, spans=(Span(at, source, len(WORDS)),), context=ids)
    return inbound(0, channel, arrival, fallback=False)


def logits(model: LocalModel, ids: tuple[int, ...], parts: Assembly) -> torch.Tensor:
    """Of the tokens that a turn computes over what is in place, the last one's."""
    new = model.tensor([ids[position] for position in parts.missing])
    return model.prefill(new, parts.states, model.tensor(parts.missing)).logits


def channel(
    *layer_ranges: tuple[int, int], sink: int = 2, deviation: float = 0.0
) -> SameModelCacheChannel:
    return SameModelCacheChannel(sink=sink, deviation=deviation, layer_ranges=layer_ranges)


def everything(model: LocalModel) -> tuple[int, int]:
    return (0, len(model.geometry.layers))


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("before", [OPENING, OTHER])
def test_all_layers_anew_are_the_receivers_own_prefill(name: str, before: tuple[int, ...]) -> None:
    """At the prefix and behind other tokens; windows of 6 are far shorter than the message."""
    sharer, receiver = make(name), tuned(name)
    ids = (*before, *WORDS, *NEXT)
    given = delivered(message_of(sharer), ids, len(before), channel(everything(receiver)))
    parts = assemble(receiver, ids, [given])
    exact = receiver.prefill(receiver.tensor(ids)).logits
    torch.testing.assert_close(logits(receiver, ids, parts), exact, atol=2e-4, rtol=2e-4)
    (carried,) = parts.carries
    report = carried.report
    assert report.exact and report.recomputed_layers == everything(receiver)[1]


def test_some_layers_anew_are_near_and_never_called_exact() -> None:
    sharer, receiver = make("llama"), tuned("llama")
    ids = (*OPENING, *WORDS, *NEXT)
    exact = receiver.prefill(receiver.tensor(ids)).logits.log_softmax(dim=-1)

    def far(*layer_ranges: tuple[int, int]) -> float:
        parts = assemble(
            receiver, ids, [delivered(message_of(sharer), ids, 3, channel(*layer_ranges))]
        )
        assert not parts.carries[0].report.exact
        other = logits(receiver, ids, parts).log_softmax(dim=-1)
        return float((exact.exp() * (exact - other)).sum())

    assert far() > far((0, 2)) > far((0, 3)) > 0


def test_what_stands_first_at_both_ends_travels_with_the_message() -> None:
    sharer, receiver = make("llama"), tuned("llama")
    ids = (*OPENING, *WORDS, *NEXT)
    parts = assemble(receiver, ids, [delivered(message_of(sharer), ids, 3, channel())])
    assert parts.missing == tuple(range(len(ids) - len(NEXT), len(ids)))
    assert torch.equal(parts.states[0].layers[1].keys, message_of(sharer).state.layers[1].keys)  # type: ignore[union-attr]


def test_tokens_count_by_their_dearest_treatment() -> None:
    """Behind other tokens the sink is computed whole, the rest of the message in part."""
    sharer, receiver = make("llama"), tuned("llama")
    ids = (*OTHER, *WORDS, *NEXT)
    parts = assemble(receiver, ids, [delivered(message_of(sharer), ids, 5, channel((1, 3)))])
    assert parts.positions("computed", "fused") == frozenset(range(7))
    assert parts.positions("recomputed") == frozenset(range(7, 27))
    (carried,) = parts.carries
    report = carried.report
    assert (report.reused, report.repaired, report.recomputed_layers) == (0, 20, 2)
    assert report.layer_tokens == 2 * 20 + 4 * 7


def test_bytes_are_those_of_the_other_layers_and_of_the_entries() -> None:
    sharer, receiver = make("llama"), tuned("llama")
    ids = (*OPENING, *WORDS, *NEXT)
    parts = assemble(receiver, ids, [delivered(message_of(sharer), ids, 3, channel((1, 3)))])
    (carried,) = parts.carries
    report = carried.report
    per_layer = receiver.geometry.bytes_per_token(4) // 4
    assert report.bytes == 25 * (2 * per_layer + 4 * receiver.geometry.hidden_size)


def test_the_receivers_own_past_stays_its_own() -> None:
    """What its own state covers is not taken from the sharer, equal tokens or not."""
    sharer, receiver = make("llama"), tuned("llama")
    ids = (*OPENING, *WORDS, *NEXT)
    past = Past(OPENING, receiver.read(OPENING))
    parts = assemble(receiver, ids, [delivered(message_of(sharer), ids, 3, channel())], past)
    assert [len(state) for state in parts.states] == [3, len(WORDS)]
    assert torch.equal(parts.states[0].layers[0].keys, past.state.layers[0].keys)


def test_a_second_message_builds_on_the_first() -> None:
    """Two messages of two models, all layers recomputed in both: the receiver's own prefill."""
    first, second, receiver = make("llama"), tuned("llama", 0.1), tuned("llama")
    ids = (*OPENING, *WORDS, *OTHER, *WORDS, *NEXT)
    whole = channel(everything(receiver))
    parts = assemble(
        receiver,
        ids,
        [
            delivered(message_of(first), ids, 3, whole),
            delivered(message_of(second), ids, 3 + len(WORDS) + len(OTHER), whole),
        ],
    )
    exact = receiver.prefill(receiver.tensor(ids)).logits
    torch.testing.assert_close(logits(receiver, ids, parts), exact, atol=2e-4, rtol=2e-4)
    assert parts.missing == tuple(range(len(ids) - len(NEXT), len(ids)))


def test_tokens_without_hidden_states_are_computed() -> None:
    """A sharer that took over what stands before its message has no hidden states there."""
    sharer, receiver = make("llama"), tuned("llama")
    message = message_of(sharer)
    state = message.state
    assert state is not None
    late = replace(state, hidden={layer: rows[3:] for layer, rows in state.hidden.items()})
    ids = (*OPENING, *WORDS, *NEXT)
    given = delivered(replace(message, state=late), ids, 3, channel((1, 4)))
    parts = assemble(receiver, ids, [given])
    assert parts.positions("computed", "fused") == frozenset(range(3))
    assert torch.equal(parts.states[0].layers[2].keys, receiver.read(OPENING).layers[2].keys)


def test_a_message_without_any_hidden_states_is_refused() -> None:
    sharer, receiver = make("llama"), tuned("llama")
    ids = (*OPENING, *WORDS, *NEXT)
    given = delivered(message_of(sharer, capture=()), ids, 3, channel((1, 4)))
    with pytest.raises(RunError, match="hidden states"):
        assemble(receiver, ids, [given])


def test_deviating_tokens_are_computed_in_all_layers() -> None:
    sharer, receiver = make("llama"), tuned("llama")
    ids = (*OPENING, *WORDS, *NEXT)
    some = channel((2, 3), deviation=0.2)
    parts = assemble(receiver, ids, [delivered(message_of(sharer), ids, 3, some)])
    assert len(parts.repaired) == 5 and len(parts.missing) == 5 + len(NEXT)


def test_without_groups_other_weights_are_refused() -> None:
    sharer, receiver = make("llama"), tuned("llama")
    ids = (*OPENING, *WORDS, *NEXT)
    with pytest.raises(RunError, match="weights"):
        assemble(receiver, ids, [delivered(message_of(sharer), ids, 3, SameModelCacheChannel())])
    with pytest.raises(IdentityMismatch):
        SameModelCacheChannel().check(sharer, receiver)


def test_groups_beyond_the_models_layers_are_refused_at_once() -> None:
    layer_ranges: LayerRanges = ((2, 9),)
    with pytest.raises(InputError, match="range of layers"):
        SameModelCacheChannel(layer_ranges=layer_ranges).check(make("llama"), tuned("llama"))


def test_groups_leave_equal_weights_as_they_are() -> None:
    """Between agents on one model nothing is recomputed, whatever the channel's layers."""
    model = make("llama")
    ids = (*OPENING, *WORDS, *NEXT)
    parts = assemble(model, ids, [delivered(message_of(model), ids, 3, channel((0, 2)))])
    assert parts.carries[0].report.exact and not parts.positions("recomputed")


def test_a_state_is_never_changed_by_a_carry() -> None:
    sharer, receiver = make("gemma3"), tuned("gemma3")
    message = message_of(sharer)
    state = message.state
    assert state is not None
    copies = [layer.keys.clone() for layer in state.layers]
    ids = (*OTHER, *WORDS, *NEXT)
    assemble(receiver, ids, [delivered(message, ids, 5, channel((0, 1), (2, 3), deviation=0.3))])
    assert all(torch.equal(a, b.keys) for a, b in zip(copies, state.layers, strict=True))
    assert isinstance(state, KVState)


def mixed(receiver: LocalModel, *given: Inbound, ids: tuple[int, ...]) -> Assembly:
    """Assembled deliveries whose counts hold and whose states do not overlap."""
    parts = assemble(receiver, ids, list(given))
    kinds = (
        parts.repaired,
        parts.positions("projected"),
        parts.positions("computed", "fused"),
        parts.positions("recomputed"),
    )
    assert sum(map(len, kinds)) == len(frozenset().union(*kinds))
    placed = [position for state in parts.states for position in range(state.start, state.stop)]
    assert len(placed) == len(set(placed))
    assert all(
        report.reused >= 0 and report.repaired >= 0
        for report in (carried.report for carried in parts.carries)
    )
    return parts


@pytest.mark.parametrize("turned", [False, True])
def test_a_splice_before_it_stays_a_splice(turned: bool) -> None:
    """Tokens before a splice are computed, not the splice, whatever the edges' order."""
    sharer, receiver = make("llama"), tuned("llama")
    ids = (*OTHER, *WORDS, *OTHER, *WORDS, *NEXT)
    splice = replace(delivered(message_of(receiver), ids, 5, SameModelCacheChannel(sink=2)), edge=1)
    across = delivered(message_of(sharer), ids, 10 + len(WORDS), channel((1, 3)))
    given = (across, splice) if turned else (splice, across)
    parts = mixed(receiver, *given, ids=ids)
    reports = {carried.edge: carried.report for carried in parts.carries}
    assert reports[1].reused == len(WORDS) - 2 and reports[1].repaired == 2
    assert reports[0].repaired == len(WORDS) - 2
    assert parts.positions("computed", "fused") == frozenset((*range(5), *range(27, 34)))


def test_two_messages_out_of_order_are_both_taken() -> None:
    sharer, receiver = make("llama"), tuned("llama")
    ids = (*OPENING, *WORDS, *OTHER, *WORDS, *NEXT)
    near = delivered(message_of(sharer), ids, 3, channel((1, 3)))
    far = delivered(message_of(sharer), ids, 8 + len(WORDS), channel((1, 3)))
    parts = mixed(receiver, far, near, ids=ids)
    assert [carried.report.repaired for carried in parts.carries] == [len(WORDS) - 2, len(WORDS)]


def test_a_message_that_is_in_place_already_needs_no_hidden_states() -> None:
    sharer, receiver = make("llama"), tuned("llama")
    ids = (*OPENING, *WORDS, *NEXT)
    given = delivered(message_of(sharer, capture=()), ids, 3, channel((1, 3)))
    past = Past((*OPENING, *WORDS), receiver.read((*OPENING, *WORDS)))
    parts = assemble(receiver, ids, [given], past)
    (carried,) = parts.carries
    report = carried.report
    assert report.exact and (report.repaired, report.recomputed_layers) == (0, 0)
    assert report.reused == len(WORDS)


def test_a_sink_past_the_message_takes_nothing() -> None:
    sharer, receiver = make("llama"), tuned("llama")
    ids = (*OTHER, *WORDS, *NEXT)
    given = delivered(message_of(sharer), ids, 5, channel((1, 3), sink=99))
    parts = mixed(receiver, given, ids=ids)
    (carried,) = parts.carries
    report = carried.report
    assert (report.reused, report.repaired, report.recomputed_layers) == (0, 0, 0)
    assert parts.missing == tuple(range(len(ids)))


def test_layers_for_the_prefix_are_refused_behind_other_tokens() -> None:
    sharer, receiver = make("llama"), tuned("llama")
    first = SameModelCacheChannel(layer_ranges=((1, 3),), prefix_only=True)
    ids = (*OPENING, *WORDS, *NEXT)
    assert assemble(receiver, ids, [delivered(message_of(sharer), ids, 3, first)]).positions(
        "recomputed"
    )
    ids = (*OTHER, *WORDS, *NEXT)
    with pytest.raises(RunError, match="after other tokens"):
        assemble(receiver, ids, [delivered(message_of(sharer), ids, 5, first)])


def test_an_early_layer_computed_anew_shows_no_deviation() -> None:
    sharer, receiver = make("llama"), tuned("llama")
    ids = (*OPENING, *WORDS, *NEXT)
    parts = assemble(
        receiver, ids, [delivered(message_of(sharer), ids, 3, channel((0, 2), deviation=0.3))]
    )
    assert not parts.repaired


def test_the_tokens_that_deviate_are_those_whose_values_do() -> None:
    sharer, receiver = make("llama"), tuned("llama")
    message = message_of(sharer)
    state = message.state
    assert state is not None
    values = state.layers[1].values.clone()
    values[:, [9, 14]] += 50
    layers = list(state.layers)
    layers[1] = LayerState(layers[1].keys, values, layers[1].first)
    changed = replace(message, state=replace(state, layers=tuple(layers)))
    ids = (*OPENING, *WORDS, *NEXT)
    given = delivered(changed, ids, 3, channel((2, 3), deviation=0.08))
    assert assemble(receiver, ids, [given]).repaired == frozenset((9, 14))
