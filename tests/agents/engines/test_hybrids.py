"""Models with recurrent or latent layers: what they write, and where they go on."""

from typing import Any

import pytest
import torch
from flows import DOCUMENT, QUESTION, reader_solver, sound
from hybrids import LATENT, RECURRENT, make_hybrid
from packets import read, written
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from unspoken.agents import Agent, LocalModel, Workflow
from unspoken.agents.bench import splice
from unspoken.agents.engines.assembly import Past
from unspoken.agents.engines.base import Sampling, TurnRequest
from unspoken.agents.engines.pool.pool import Pool
from unspoken.agents.engines.pool.tensors import outline_of, tensors_of, with_tensors
from unspoken.agents.engines.turn import drive_turn
from unspoken.agents.testing import tiny_model
from unspoken.channels.bridges.fit.loop import check_pair
from unspoken.channels.errors import BridgeError, StateError
from unspoken.channels.kv.compressed import compress
from unspoken.channels.kv.state import KVState

KINDS = (*RECURRENT, *LATENT, "gemma4")
SOME = ("qwen3-next", "falcon-h1", "mamba2")
TOKENS = 6
GIVEN = {"document": DOCUMENT, "question": QUESTION}


def prompts(model: LocalModel, count: int) -> list[tuple[int, ...]]:
    drawn = torch.Generator().manual_seed(0)
    top = len(model.tokenizer)
    return [
        tuple(torch.randint(3, top, (5 + 3 * row,), generator=drawn).tolist())
        for row in range(count)
    ]


def generated(model: LocalModel, ids: tuple[int, ...]) -> list[int]:
    """What plain transformers writes greedily."""
    tensor = model.tensor(ids)[None]
    whole = model.hf.generate(
        tensor,
        attention_mask=torch.ones_like(tensor),
        max_new_tokens=TOKENS,
        min_new_tokens=TOKENS,
        do_sample=False,
        # The cache that MiniMax brings counts no tokens where its first layer is recurrent.
        use_cache=model.ref != "minimax",
    )
    return whole[0, len(ids) :].tolist()


def taken(
    model: LocalModel, ids: tuple[int, ...], past: Past | None = None, **request: object
) -> tuple[list[int], KVState, int]:
    """What a turn writes, its state, and how many tokens of its prompt it reused."""
    sampling = Sampling(max_tokens=TOKENS, min_tokens=TOKENS, stop_ids=model.stop_ids)
    asked = TurnRequest(ids=ids, sampling=sampling, keep_state=True, **request)  # type: ignore[arg-type]
    _, computed = drive_turn(model, asked, past)
    assert computed.state is not None
    return list(computed.ids[len(ids) :]), computed.state, computed.usage.reused_tokens


@pytest.mark.parametrize("name", KINDS)
def test_text_and_continuation_equal_generate(name: str) -> None:
    """A turn writes what transformers writes, from the start and after another turn's snapshot."""
    model = make_hybrid(name)
    for ids in prompts(model, 2):
        expected = generated(model, ids)
        assert taken(model, ids)[0] == expected
        cut = len(ids) // 2
        before = model.read(ids[:cut])
        words, _, reused = taken(model, ids, Past(ids[:cut], before))
        assert (words, reused) == (expected, cut)


@pytest.mark.parametrize("name", SOME)
def test_a_context_goes_on_from_the_last_snapshot_that_it_shares(name: str) -> None:
    """Two contexts that part within a turn share what stands before it, and no more."""
    model = make_hybrid(name)
    first, second = prompts(model, 8)[-2:]
    begin = second[:20]
    _, state, _ = taken(model, (*begin, *first[20:]), snapshots=(12, 18))
    words, _, reused = taken(model, second, Past((*begin, *first[20:]), state))
    assert words == generated(model, second)
    assert reused == 18
    assert [one.at for one in state.snapshots] == [12, 18, len(first), state.stop]


@pytest.mark.parametrize("name", SOME)
def test_snapshots_are_left_while_it_writes(name: str) -> None:
    """A context that shares some of the answer goes on from the last of them."""
    model = make_hybrid(name)
    (ids,) = prompts(model, 1)
    written, state, _ = taken(model, ids, snapshots=(len(ids) + 2, len(ids) + 4))
    assert [one.at - len(ids) for one in state.snapshots] == [0, 2, 4, TOKENS]
    other = (*ids, *written[:3], 9, 9)
    words, _, reused = taken(model, other, Past((*ids, *written), state))
    assert (words, reused) == (generated(model, other), len(ids) + 2)


def test_a_stop_string_goes_back_to_the_end_of_the_prompt() -> None:
    """What was read beyond the kept words is forgotten, and the words are read again."""
    model = make_hybrid("qwen3-next")
    (ids,) = prompts(model, 1)

    class Half:
        count = 0

        def push(self, token: int) -> bool:
            self.count += 1
            return self.count == 4

        def close(self) -> tuple[int, ...]:
            return (*generated(model, ids)[:2], 5)

    _, state, _ = taken(model, ids, reply=Half())
    again = model.read((*ids, *generated(model, ids)[:2], 5))
    pairs = zip(state.snapshots[-1].tensors(), again.snapshots[-1].tensors(), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", SOME)
def test_a_reader_hands_its_state_to_a_solver(name: str) -> None:
    """The solver writes what it writes over text, and reads no token of the document."""
    model = make_hybrid(name)
    text = reader_solver(model, model, "text").run(**GIVEN)
    flow = reader_solver(model, model, "auto")
    assert "recurrent" in flow.plan().edges[0].reason
    cache = flow.run(**GIVEN)
    assert cache["solver"].text == text["solver"].text
    (edge,) = sound(cache.report).edges
    assert (edge.mode, edge.reused) == ("continuation", edge.tokens)


def test_a_message_that_stands_elsewhere_is_read_again() -> None:
    """The plan says why, and the run does as it says."""
    model = make_hybrid("qwen3-next")
    flow = reader_solver(model, model, "auto", system="be brief")
    (edge,) = flow.plan().edges
    assert edge.mode == "text"
    assert "through 3 of 4 layers, up to the last recurrent one, sparing 1 (25 %)" in edge.reason
    assert flow.run(**GIVEN)["solver"].text


def test_an_agent_remembers_its_turns() -> None:
    """A loop's second turn goes on from the end of the first."""
    model = make_hybrid("qwen3-next")
    few = {"max_new_tokens": 6}
    again = "{% if turn == 1 %}{{ inputs.document }}{% else %}again: {{ critic.text }}{% endif %}"
    draft = Agent("draft", model, prompt=again, generate=few, max_turns=2)
    critic = Agent("critic", model, prompt="what of it?", generate=few)
    flow = Workflow("loop", [draft, critic])
    flow.connect(draft, critic, "text").connect(critic, draft, "text", loop=True)
    first, second = flow.run(document=DOCUMENT).report.agents["draft"]
    closing = len(model.context_builder.close())
    assert second.reused_tokens == first.prompt_tokens + first.generated_tokens + closing


@pytest.mark.parametrize(
    ("name", "codec"),
    [*((name, "raw") for name in (*SOME, "deepseek-v3", "gemma4")), ("deepseek-v3", "int8")],
)
def test_a_packet_carries_every_kind_of_layer(name: str, codec: str) -> None:
    """What comes out of a packet can be continued; raw, it is bit for bit what went in."""
    model = make_hybrid(name)
    message = model.message("the key of the document is with the reader")
    data = written(message, codec=codec)  # type: ignore[arg-type]
    came = read(data, model).require_state()
    sent = message.require_state()
    assert came.usable(model.geometry, came.stop) == came.stop
    if codec == "raw":
        for ours, theirs in zip(tensors_of(came), tensors_of(sent), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", SOME)
def test_a_kept_state_counts_and_restores_its_snapshots(name: str) -> None:
    """Bytes count them, a copy in fewer bytes has them, and so has one that comes from disk."""
    model = make_hybrid(name)
    state = model.read(range(3, 30))
    rows = len(state) * model.geometry.bytes_per_token(4)
    assert state.nbytes == rows + model.geometry.snapshot_bytes
    whole = compress(state, "int8").decompress()
    assert whole.usable(model.geometry, whole.stop) == whole.stop
    pool = Pool()
    ticket = pool.put(state, tuple(range(3, 30)))
    assert pool.bytes_held >= state.nbytes
    assert pool.get(ticket) is state
    rebuilt = with_tensors(outline_of(state), tensors_of(state))
    assert isinstance(rebuilt, KVState)
    assert rebuilt.usable(model.geometry, 27) == 27


def test_recurrent_states_are_cut_at_snapshots_alone() -> None:
    """Nothing goes on in the middle, and nothing is moved."""
    model = make_hybrid("qwen3-next")
    state = model.read(range(3, 30))
    assert state.usable(model.geometry, 26) == 0
    with pytest.raises(StateError, match="no snapshot"):
        model.prefill(model.tensor([5]), [state.slice(0, 20)])
    with pytest.raises(StateError, match="cannot be moved"):
        state.shift(3, model.geometry, model.rotary)


def test_no_bridge_leads_to_or_from_recurrent_layers() -> None:
    with pytest.raises(BridgeError, match="recurrent"):
        check_pair(make_hybrid("qwen3-next"), make_hybrid("qwen3-next", seed=1))


def test_a_plan_says_why_no_bridge_serves_a_hybrid() -> None:
    """It names the layers that have no rows, and what the receiver would read all the same."""
    hybrid, other, plain = make_hybrid("qwen3-next"), make_hybrid("lfm2"), tiny_model()
    (to_plain,) = reader_solver(hybrid, plain).plan().edges
    (to_hybrid,) = reader_solver(plain, hybrid).plan().edges
    (between,) = reader_solver(hybrid, other).plan().edges
    assert {edge.mode for edge in (to_plain, to_hybrid, between)} == {"text"}
    sharers, receivers = "reader's model 3 are recurrent", "solver's model 3 are recurrent"
    again = "solver would still read the message through"
    assert sharers in to_plain.reason and again not in to_plain.reason
    assert receivers in to_hybrid.reason and f"{again} 3 of 4 layers" in to_hybrid.reason
    assert sharers in between.reason and "solver's model 2 are recurrent" in between.reason


@pytest.mark.parametrize("name", LATENT)
def test_states_and_packets_hold_latent_rows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer bytes a token than what attention gets of them, and a packet adds its frame alone."""
    model, expanded = make_hybrid(name), []
    attention = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def watched(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *a: Any, **kw: Any):
        expanded.append((key.nbytes + value.nbytes) // key.shape[2])
        return attention(module, query, key, value, *a, **kw)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", watched)
    message = model.message("the key of the document is with the reader " * 20)
    state = message.require_state()
    latent = len(model.geometry.layers) * (16 + 8) * 4
    assert {layer.kind for layer in model.geometry.layers} == {"latent"}
    assert state.nbytes == len(state) * latent == len(state) * model.geometry.bytes_per_token(4)
    assert sum(expanded[-4:]) == 4 * 4 * (8 + 8 + 12) * 4  # four layers of four heads
    frame = len(written(message)) - state.nbytes
    assert 0 < frame < 4 * 4096 + 16 * len(state) < len(state) * (sum(expanded[-4:]) - latent)


def test_a_latent_splice_is_nearer_than_its_controls(monkeypatch: pytest.MonkeyPatch) -> None:
    """All recomputed, it is text; spliced, it is nearer to it than another's message or none."""
    for name, value in (("PASSAGES", 3), ("TOKENS", 48), ("FORCED", 8), ("BATCH", 3)):
        monkeypatch.setattr(splice, name, value)
    model = tiny_model(family="deepseek_v3")  # its context is long enough
    rows, summary = splice.measure(model, progress=lambda line: None)
    assert summary["all_recomputed_kl"] < 1e-6
    for share in ("prompt", "output"):
        kl = {row["way"]: row["mean_kl"] for row in rows if row["share"] == share}
        assert 1e-6 < kl["sink 4"] < min(kl["another example's message"], kl["no message"])
