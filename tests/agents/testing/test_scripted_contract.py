"""The scripted engine keeps the contract of an engine."""

import pytest
from engine_contract import EngineContract, Subject

from unspoken.agents.runtime.states import StateStore
from unspoken.agents.testing import ScriptedModel

ANSWER = "abcdefghijklmnop" * 64


class TestScriptedEngine(EngineContract):
    @pytest.fixture
    def subject(self) -> Subject:
        model, states = ScriptedModel(lambda *asked: ANSWER, max_positions=2048), StateStore()
        ids = model.text.encode_words(ANSWER)
        return Subject(
            model.make_engine(states),
            lambda: len(states),
            lambda: states.bytes_held,
            lambda _, n: ids[:n],
        )
