"""The benchmark of a second question, in another run."""

import pytest

from unspoken.agents.bench.engine import session
from unspoken.agents.testing import tiny_model


def test_session_has_its_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second run takes over what the first has read, and writes what it writes alone."""
    for name, value in (("TOKENS", 96), ("NEW", 3), ("ROUNDS", 1)):
        monkeypatch.setattr(session, name, value)
    rows, summary = session.measure(tiny_model(), progress=lambda line: None)
    reused = {row["way"]: row["reused_tokens"] for row in rows}
    assert reused[session.TEXT] == 0
    assert min(reused[session.AGAIN], reused[session.CONTINUED]) >= 96 - 1
    assert summary["answers_equal"] is True
    ttft = {row["way"]: row["ttft_s"] for row in rows}
    ratio = ttft[session.AGAIN] / ttft[session.CONTINUED]
    assert summary["second_over_continuation"] == pytest.approx(ratio, rel=0.01)
