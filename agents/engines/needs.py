"""What a turn needs of memory, known before anything runs.

A turn reads what leads its context where it lies. All else it has to itself: what it computes, what
it writes, and whatever a channel moves, unpacks or maps.
"""

from collections.abc import Callable, Sequence

from unspoken.agents.engines.base import Footprint, Inbound, StateRef, TurnRequest
from unspoken.agents.engines.states import LeaseRequest, PrefixQuery, States
from unspoken.agents.engines.turn import CLOSING
from unspoken.agents.models.base import TurnModel
from unspoken.agents.models.ragged.sequence import FEW_ROWS
from unspoken.agents.models.ragged.tails import capacity_of
from unspoken.channels.kv.state import KVState
from unspoken.channels.message import common_prefix
from unspoken.channels.model import layer_devices

LEAST = 16
"""Fewer tokens are not worth taking over from another agent's turn."""


class Needs:
    """What turns on a model need.

    Args:
        model: The model.
        states: Where their states are.
    """

    def __init__(self, model: TurnModel, states: States) -> None:
        self._model, self._states = model, states

    def footprint(self, request: TurnRequest) -> Footprint:
        """Bytes that a turn takes: rows of its own, and the states that it reads."""
        private = self._private(request)(self._offered(request))
        reads = sum(self._states.about(ref).nbytes for ref in refs_of(request))
        rows = len(request.ids) + self._new(request)
        folded = (2 + len(request.snapshots)) * self._model.geometry.snapshot_bytes
        kept = rows * self._row + folded if request.keep_state else 0
        return Footprint(peak=private + max(reads, kept - private), kept=kept, private=private)

    def lease(self, request: TurnRequest) -> LeaseRequest:
        """What a turn leases."""
        model, offered, private = self._model, self._offered(request), self._private(request)
        query = PrefixQuery(
            identity=model.identity,
            geometry=model.geometry,
            dtype=model.dtype,
            devices=layer_devices(model),
            ids=request.ids[: self._exact_until(request)],
            more_than=offered + LEAST - 1,
            capture=request.capture,
        )
        return LeaseRequest(
            device=model.device,
            refs=refs_of(request),
            nbytes=lambda found: private(max(found, offered)),
            query=query,
            owner=request.owner,
        )

    @property
    def _row(self) -> int:
        return self._model.geometry.bytes_per_token(self._model.dtype.itemsize)

    def _new(self, request: TurnRequest) -> int:
        """Rows after the context at most."""
        room = max(self._model.max_positions - len(request.ids), 0)
        return min(request.sampling.max_tokens if request.sampling else 0, room) + CLOSING

    def _private(self, request: TurnRequest) -> Callable[[int], int]:
        """Bytes that a turn makes itself, by the number of tokens that stay where they are."""
        after, copied = self._new(request), 0
        for inbound in request.inbound:
            if inbound.state is not None:
                state = self._states.about(inbound.state)
                copied += state.stop - state.start - self._leading(request.ids, inbound)

        def private(reused: int) -> int:
            # The last rows of what is shared are rather copied.
            own = len(request.ids) - max(min(reused, len(request.ids) - 1) - FEW_ROWS, 0) + after
            rows = capacity_of(own) + copied + (own if request.keep_state else 0)
            # What recurrent layers have now and beside others', where the prompt ends, where it was
            # asked for and is computed, and where the answer ends.
            done = reused if reused < len(request.ids) else 0  # the last token is computed
            folds = 3 + sum(at >= done for at in request.snapshots) + request.keep_state
            return rows * self._row + folds * self._model.geometry.snapshot_bytes

        return private

    def _exact_until(self, request: TurnRequest) -> int:
        """How much of a context other turns' states may serve.

        What a message brings as it is, or moved, or mapped, is not what the model computes. Were it
        replaced where another turn happens to have computed the same tokens, a result would depend
        on who was first.
        """
        stop = len(request.ids) - 1
        for inbound in request.inbound:
            arrival = inbound.arrival
            if inbound.state is None or arrival is None or not arrival.positions:
                continue
            if self._leading(request.ids, inbound) <= arrival.positions[-1]:
                stop = min(stop, arrival.positions[0])
        return stop

    def _offered(self, request: TurnRequest) -> int:
        """Tokens of the context that its history and its messages bring where they stand."""
        history, ids, known = request.history, request.ids, 0
        if self._model.geometry.recurrent:
            ids = ids[:-1]  # the last is computed, from a snapshot before it
        if history is not None:
            known = common_prefix(ids, history.ids)
            if self._model.geometry.recurrent:
                known = self._usable(history.state, known)
        return max([known, *(self._leading(ids, one) for one in request.inbound)])

    def _leading(self, ids: Sequence[int], inbound: Inbound) -> int:
        """Tokens of a message's state that a context begins with."""
        message = inbound.message
        if inbound.state is None or message.identity != self._model.identity:
            return 0
        return self._usable(inbound.state, common_prefix(ids, message.context))

    def _usable(self, ref: StateRef, shared: int) -> int:
        """After how many of the first `shared` tokens of a state the model can go on."""
        state = self._states.about(ref)
        if not isinstance(state, KVState):
            return 0
        return state.usable(self._model.geometry, min(shared, state.stop))


def refs_of(request: TurnRequest) -> tuple[StateRef, ...]:
    """Tickets of the states that a turn reads."""
    refs = [one.state for one in request.inbound if one.state is not None]
    return tuple(refs if request.history is None else [request.history.state, *refs])
