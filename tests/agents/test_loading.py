"""Models with arguments for their chat template are made once, and never mistaken."""

import gc
from weakref import ref

from unspoken.agents.loading import Templated
from unspoken.agents.testing import tiny_model


def test_arguments_of_two_types_are_two() -> None:
    """``true`` is not 1: a template may write either out."""
    templated, model = Templated(), tiny_model()
    flag, number = (templated.of(model, {"level": value}) for value in (True, 1))
    assert [one.template_arguments["level"] for one in (flag, number)] == [True, 1]
    assert flag is not number and templated.of(model, {"level": True}) is flag


def test_a_model_is_held_with_what_was_made_of_it() -> None:
    """Its id, by which that is found, is never another model's meanwhile."""
    templated, model = Templated(), tiny_model()
    templated.of(model, {"level": 1})
    held = ref(model)
    del model
    gc.collect()
    assert held() is not None
