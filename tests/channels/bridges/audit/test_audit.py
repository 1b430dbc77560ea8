"""Audits: perfect projections keep all, empty ones nothing; intervals bracket figures."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flows import Pair
from hypothesis import given
from hypothesis import strategies as st
from pairs import AUDIT, quick_fits, text

from unspoken.channels.bridges.audit.answers import greedy, losses_of
from unspoken.channels.bridges.audit.audit import audit
from unspoken.channels.bridges.audit.contexts import TaskRows
from unspoken.channels.bridges.audit.controls import BRIDGE, MISMATCHED, Controls, conditions_of
from unspoken.channels.bridges.audit.plan import AuditPlan
from unspoken.channels.bridges.audit.rows import AuditRows, passages
from unspoken.channels.bridges.audit.tables import figures, table
from unspoken.channels.bridges.audit.trial import Trial, Trials, assess
from unspoken.channels.bridges.audit.worth import task_summary
from unspoken.channels.bridges.bridge import Bridge
from unspoken.channels.bridges.fit.samples import Sample, Target
from unspoken.channels.bridges.manifest import BridgeManifest, FitData, ModelDescription
from unspoken.channels.bridges.projector import Projector, ProjectorConfig
from unspoken.channels.data.rows import QaRow, RecallRow
from unspoken.channels.data.text import Corpus, load_corpus
from unspoken.channels.errors import IdentityMismatch, InputError
from unspoken.channels.kv.layer_state import LayerState
from unspoken.channels.kv.state import KVState
from unspoken.channels.metrics import kept

CONFIG = ProjectorConfig(source_layers=(0, 1), rank=8, hidden=8, bottleneck=4)


@pytest.fixture(scope="module")
def corpus(source: str) -> Corpus:
    return load_corpus([source])


@pytest.fixture(scope="module")
def bridge(pair: Pair) -> Bridge:
    """A bridge that maps all messages to one and the same random row."""
    sharer, receiver = pair
    projector = Projector(CONFIG, sharer.geometry, receiver.geometry)
    torch.manual_seed(0)
    projector.offset.normal_()
    manifest = BridgeManifest.new(
        ModelDescription.of(sharer, "their/model"),
        ModelDescription.of(receiver, "our/model"),
        config=CONFIG.to_dict(),
        dtype="float32",
        data=FitData(sources=("builtin",), digest="", tokens=1, seed=0),
        fit={"fit_minutes_closed_form": 1.5, "fit_minutes_total": 2.5},
    )
    return Bridge(manifest, projector)


@pytest.fixture
def rows(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> AuditRows:
    """A few rows of every kind, short enough for a tokenizer of letters."""
    quick_fits(monkeypatch)
    audit_rows = AUDIT.rows(corpus)
    qa = (
        QaRow("the key is in the reader", "where is the key?", ("in the reader",)),
        QaRow("this document was for the user", "who was it for?", ("the user",)),
    )
    recall = tuple(
        RecallRow((("one", "alpha"), ("two", word)), "two", word) for word in ("beta", "gamma")
    )
    return replace(audit_rows, qa=qa, recall=recall, message=40, continuation=12)


def perfect(trial: Trial, other: Trial) -> KVState:
    """The receiver's own rows."""
    return trial.full.slice(trial.sample.at, len(trial.sample.ids))


def samples(count: int = 6) -> list[Sample]:
    words = "the key of the value in the document is what the reader and the solver were for"
    return [
        Sample(f"{number} {words} {number * 7}", (Target("", f" and {number} it"),))
        for number in range(count)
    ]


@given(st.lists(st.tuples(*[st.floats(0.1, 9)] * 4), min_size=2, max_size=12), st.integers(0, 9))
def test_intervals_bracket_the_figure_or_are_not_given(rows: list[Any], seed: int) -> None:
    """A figure lies in the range of its draws; where the text gains nothing there is no figure."""
    none, text, way, misled = torch.tensor(rows).T
    share = kept(none, text, way, misled, seed=seed)
    gains = float((none - text).double().sum())
    if gains <= 0:
        assert share.retention.value is share.specific.value is None
        return
    assert share == kept(none, text, way, misled, seed=seed)
    expected = float((none - way).double().sum()) / gains
    assert share.retention.value == pytest.approx(expected, rel=1e-4, abs=1e-4)
    lost = max(0.0, float((none - misled).double().sum()) / gains)
    assert share.specific.value == pytest.approx(expected - lost, rel=1e-4, abs=1e-4)


def test_intervals_narrow_with_rows_and_agree_with_the_plain_formula() -> None:
    """Percentiles of the pooled share over rows drawn with replacement."""
    generator = torch.Generator().manual_seed(3)
    none = 4 + torch.rand(200, generator=generator)
    text = 2 + torch.rand(200, generator=generator)
    way = text + 0.4 * torch.rand(200, generator=generator)
    wide, narrow = kept(none[:10], text[:10], way[:10]), kept(none, text, way)
    for share in (wide, narrow):
        retention = share.retention
        assert (
            retention.low is not None and retention.high is not None and retention.value is not None
        )
        assert retention.low <= retention.value <= retention.high
    spans = [share.retention.high - share.retention.low for share in (wide, narrow)]  # type: ignore[operator]
    assert spans[1] < 0.5 * spans[0]
    drawn = torch.randint(200, (1000, 200), generator=torch.Generator().manual_seed(0))
    shares = [
        float((none[rows] - way[rows]).sum() / (none[rows] - text[rows]).sum()) for rows in drawn
    ]
    shares.sort()
    assert narrow.retention.low == pytest.approx(shares[25], abs=1e-3)
    assert narrow.retention.high == pytest.approx(shares[975], abs=1e-3)


def test_a_mismatched_message_that_harms_is_not_counted_as_a_gain() -> None:
    """Specific retention subtracts what a mismatched message gains, never what it loses."""
    none, text, way = torch.tensor([4.0, 4.0]), torch.tensor([2.0, 2.0]), torch.tensor([2.5, 2.5])
    assert kept(none, text, way, torch.tensor([6.0, 6.0])).specific.value == 0.75
    assert kept(none, text, way, torch.tensor([3.0, 3.0])).specific.value == 0.25


def test_perfect_rows_keep_all_and_another_ones_do_not(pair: Pair) -> None:
    """The receiver's own rows give the full text's loss, KL and first choices."""
    trials = Trials(samples(), CONFIG, *pair)

    def constant(trial: Trial, other: Trial) -> KVState:
        state = perfect(trial, other)
        layers = tuple(
            LayerState(torch.zeros_like(layer.keys), torch.ones_like(layer.values), layer.first)
            for layer in state.layers
        )
        return replace(state, layers=layers)

    assessment = assess(trials, {BRIDGE: perfect, MISMATCHED: constant})
    assert torch.allclose(assessment.loss[BRIDGE], assessment.text, atol=1e-4)
    assert assessment.kl[BRIDGE].abs().max() < 1e-4 and assessment.top1[BRIDGE].min() == 1
    assert assessment.kl[MISMATCHED].min() > 0.01
    by_condition = {row["way"]: row for row in table("continuation", assessment)}
    assert by_condition["none"]["retention"] in (0.0, None)
    if by_condition["text"]["retention"] is not None:
        assert by_condition[BRIDGE]["retention"] == pytest.approx(1, abs=0.02)


def test_none_keeps_the_frame_and_the_last_token(pair: Pair) -> None:
    """Without the message the receiver has the context's first tokens and the message's last."""
    receiver = pair[1]
    trial = Trials(samples(), CONFIG, *pair)[1]
    ids = [*trial.sample.ids[:4], trial.sample.ids[-1], *trial.sample.targets[0].ids]
    count = trial.sample.targets[0].count
    logs = receiver.logits(receiver.tensor(ids[:-1])).log_softmax(dim=-1)[-count:]
    wanted = -logs.gather(1, receiver.tensor(ids[-count:])[:, None]).mean()
    assert trial.none == pytest.approx(float(wanted), abs=1e-4)


def test_controls_say_nothing_of_the_message(pair: Pair, bridge: Bridge) -> None:
    """Controls replace the sharer's columns alone; noise is seeded, with the message's mean."""
    sharer, receiver = pair
    seen: list[torch.Tensor] = []
    projector = Projector(CONFIG, sharer.geometry, receiver.geometry)
    projector.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    columns = CONFIG.features(sharer.geometry, receiver.geometry)[0]
    trials = Trials(samples(), CONFIG, *pair)
    trial, other = trials[2], trials.partner(2)
    for way in conditions_of(projector, columns, receiver).values():
        way(trial, other)
        way(trial, other)
    right, misled, zeros, noise = seen[::2]
    assert torch.equal(right, trial.example.features.float())
    assert all(
        torch.equal(features[:, columns:], right[:, columns:])
        for features in (misled, zeros, noise)
    )
    assert torch.equal(misled[:1, :columns], other.example.features[:1, :columns].float())
    assert not zeros[:, :columns].any()
    assert torch.equal(noise, seen[-1]) and not torch.equal(noise, right)
    gap = (noise[:, :columns].mean(dim=0) - right[:, :columns].mean(dim=0)).abs()
    assert (gap < right[:, :columns].std(dim=0) + 0.01).all()


def test_refitted_controls(pair: Pair, corpus: Corpus) -> None:
    """A map without its sharer has the receiver's features; its own sharer is near perfect."""
    sharer, receiver = pair
    config = replace(CONFIG, source_layers=(0, 1, 2, 3), rank=48)
    controls = Controls.fit(config, sharer, receiver, corpus, tokens=1500)
    assert controls.alone.config.source_layers == ()
    assert len(controls.alone.mean) == 2 * receiver.geometry.hidden_size
    assert controls.itself.config.source_layers == (0, 1)  # all that it has
    trials = Trials(samples(), config, *pair)
    assessment = assess(trials, controls.conditions())
    itself, alone = (
        assessment.kl[name] for name in ("the receiver as its own sharer", "without the sharer")
    )
    assert itself.mean() < 0.05 < alone.mean()


def test_controls_without_any_feature_of_the_receiver(pair: Pair, corpus: Corpus) -> None:
    """Where a bridge reads its sharer alone, what is left of it is the mean of the rows."""
    config = replace(CONFIG, embeddings=0)
    controls = Controls.fit(config, *pair, corpus, tokens=300)
    mapped = controls.alone(torch.zeros(3, 0))
    assert torch.equal(mapped[0], mapped[2]) and mapped.abs().max() > 0


def test_another_example_has_another_message(pair: Pair) -> None:
    """Questions about one context are no controls of each other; one message alone is refused."""
    one, two, three = samples(3)
    trials = Trials([one, one, two, two, three], CONFIG, *pair)
    assert [trials.partner(index).index for index in range(5)] == [2, 2, 1, 1, 3]
    with pytest.raises(InputError, match="one message"):
        Trials([one, one], CONFIG, *pair)


def test_losses_of_answers_are_those_of_the_whole(pair: Pair) -> None:
    """Each answer's loss after the question's state is that of one pass over both."""
    model = pair[1]
    asked, answers = model.words("the key is")[0], [model.words(word)[0] for word in ("a", " cab")]
    for answer, loss in zip(answers, losses_of(model, (), asked, answers), strict=True):
        logs = model.logits(model.tensor((*asked, *answer)[:-1])).log_softmax(dim=-1)
        picked = logs[-len(answer) :].gather(1, model.tensor(answer)[:, None])
        assert loss == pytest.approx(-float(picked.mean()), abs=1e-4)


def test_greedy_answers_are_the_likeliest_tokens(pair: Pair) -> None:
    """Token by token what one pass over the whole makes likeliest."""
    model = pair[1]
    asked = list(model.words("who is the reader?")[0])
    said = greedy(model, (), asked, 6)
    written: list[int] = []
    for _ in range(6):
        token = int(model.logits(model.tensor(asked + written))[-1].argmax())
        if token in model.stop_ids:
            break
        written.append(token)
        if "\n" in model.decode(written).lstrip():
            break
    assert said == next(iter(model.decode(written).strip().splitlines()), "").strip()


def test_passages_are_spread_over_the_text(pair: Pair) -> None:
    """Messages and their continuations are consecutive, spread over the whole text."""
    text = " ".join(f"{number} the key of" for number in range(400))
    drawn = passages(text, pair[1], 5, 64, 16)
    places = [text.index(sample.text + sample.targets[0].answer) for sample in drawn]
    assert places == sorted(places) and places[0] == 0
    assert places[-1] > 0.9 * (len(text) - 200)
    with pytest.raises(InputError, match="tokens") as caught:
        passages(text, pair[1], 500, 64, 16)
    assert "40000" in caught.value.expected


def test_rows_come_of_files_or_are_built_in(tmp_path: Path) -> None:
    """Files are named with the rows taken; unseen text is what the corpus held out."""
    file = tmp_path / "qa.jsonl"
    file.write_text(
        "\n".join(f'{{"context": "c{n}", "question": "q", "answers": ["a"]}}' for n in range(9))
    )
    corpus = Corpus(train=(), validation=(text(),), sources=("topics",), digest="0")
    rows = AuditPlan(qa=file, questions=4, records=3).rows(corpus)
    assert [(one.name, one.rows) for one in rows.files] == [("qa.jsonl", 4)]
    assert (len(rows.qa), len(rows.recall)) == (4, 3)
    assert rows.text.startswith(corpus.validation[0][:50])
    assert AuditPlan().rows(corpus).files == ()


def test_an_audit_is_whole_and_deterministic(
    pair: Pair, bridge: Bridge, rows: AuditRows, corpus: Corpus
) -> None:
    """Every data set has every condition; a constant bridge keeps nothing; figures repeat."""
    stages: list[str] = []

    def run() -> Any:
        return audit(
            bridge,
            *pair,
            rows,
            corpus=corpus,
            settings=AUDIT.settings,
            report=lambda stage, part: stages.append(stage),
        )

    audited = run()
    sets = ("continuation", "question", "recall")
    conditions = ("text", "none", BRIDGE, MISMATCHED, "zeros", "noise", "without the sharer")
    for data in sets:
        for way in (*conditions, "the receiver as its own sharer"):
            row = figures(list(audited.rows), data, way)
            assert row["rows"] == 2 and row["loss"] > 0
        mine, other = (figures(list(audited.rows), data, way) for way in (BRIDGE, MISMATCHED))
        assert mine["loss"] == other["loss"]  # the sharer's rows do not reach it
        if mine["specific"] is not None:
            assert mine["specific"] <= 0
    assert set(stages) == {"controls", *sets, "time"}
    summary = audited.summary
    named = {name for name in summary if not name.endswith("_builtin")}
    assert named == set(task_summary([], TaskRows()))
    assert summary["fit_minutes_total_builtin"] == 2.5
    for name in ("qa_f1_text", "qa_f1_bridge", "recall_accuracy", "ttft_speedup_32"):
        assert isinstance(summary[f"{name}_builtin"], float)
    assert audited.retention_lower_bound == summary["earned_builtin"] <= 0
    timed = {row["way"] for row in audited.rows if row["data"] == "time"}
    assert timed == {"text", "bridge", "floor", "products"}
    again = run()
    untimed = [row for row in audited.rows if row["data"] != "time"]
    assert untimed == [row for row in again.rows if row["data"] != "time"]


def test_an_audit_of_other_models_is_refused(
    pair: Pair, bridge: Bridge, rows: AuditRows, corpus: Corpus
) -> None:
    """Before anything is measured."""
    with pytest.raises(IdentityMismatch, match="the sharer"):
        audit(bridge, pair[1], pair[0], rows, corpus=corpus)
