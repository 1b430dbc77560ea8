"""What models think before they answer: handed on or left out, by their template's own markers."""

from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any

import pytest
import torch
from chat_templates import CHANNEL_MARKS, CHANNELS, OPENED, THINKING
from tiny import tiny_tokenizer
from tokenizer_kinds import made
from transformers import AddedToken, LlamaConfig, LlamaForCausalLM

from unspoken.agents import Agent, LocalModel, Workflow
from unspoken.agents.prompts.context import ChatTurn
from unspoken.agents.prompts.parity import context_builder_of
from unspoken.agents.prompts.tokenizer import TextTokenizer
from unspoken.agents.runtime.reply import TurnReply
from unspoken.agents.testing import ScriptedModel, tiny_model

THOUGHT = "<think>\nthe key\n</think>\n\n"


def scripted(answers: Any, template: str = THINKING) -> ScriptedModel:
    return ScriptedModel(answers, chat_template=template)


def pair(model: ScriptedModel, share: str = "output", **edge: Any) -> Workflow:
    """A thinker that hands on what it wrote, and a reader of it."""
    thinker = Agent("thinker", model, "Who?", generate={"max_new_tokens": 60})
    reader = Agent("reader", model, "When?", generate={"max_new_tokens": 60})
    flow = Workflow("it", [thinker, reader], outputs={"answer": "{{ thinker.text }}"})
    return flow.connect(thinker, reader, "auto", share=share, **edge)


def test_output_goes_without_its_thoughts() -> None:
    """The reader, the templates and the results have the answer alone; the report counts both."""
    model = scripted({"thinker": f"{THOUGHT}Ada.", "reader": "1887."})
    result = pair(model).run()
    assert result.outputs == {"answer": "Ada."}
    assert "user\nAda.<|im_end|>" in model.prompts["reader"][0]
    assert "key" not in model.prompts["reader"][0]
    assert result.report.agents["thinker"][0].thought_tokens > 0
    assert result.report.agents["reader"][0].thought_tokens == 0


@pytest.mark.parametrize("where", ["edge", "agent"])
def test_thoughts_are_kept_where_that_is_asked(where: str) -> None:
    """`thoughts: keep` on the edge is for its reader, on the agent for its text too."""
    model = scripted({"thinker": f"{THOUGHT}Ada.", "reader": "1887."})
    flow = pair(model, **({"thoughts": "keep"} if where == "edge" else {}))
    if where == "agent":
        spec = flow.spec
        thinker = spec.agents["thinker"].model_copy(update={"thoughts": "keep"})
        agents = {**spec.agents, "thinker": thinker}
        flow.spec = spec.model_copy(update={"agents": agents})
    result = flow.run()
    assert f"user\n{THOUGHT}Ada.<|im_end|>" in model.prompts["reader"][0]
    assert result.outputs["answer"] == (f"{THOUGHT}Ada." if where == "agent" else "Ada.")


def test_a_turn_that_ends_inside_its_thoughts_answers_nothing() -> None:
    """No half of a thought is taken for an answer."""
    model = scripted({"thinker": "<think>\nthe key of the", "reader": "1887."})
    assert pair(model).run().outputs == {"answer": ""}


def test_thoughts_that_the_prompt_begins() -> None:
    """Where the template's prompt opens the thoughts, the answer begins where they are closed."""
    model = scripted({"thinker": "the key\n</think>\n\nAda.", "reader": "</think>1887."}, OPENED)
    assert pair(model).run().outputs == {"answer": "Ada."}
    kept = pair(model, thoughts="keep")
    kept.run()
    assert f"user\n{THOUGHT}Ada.<|im_end|>" in model.prompts["reader"][1]


def test_context_keeps_thoughts_and_the_plan_says_what_dropping_costs() -> None:
    """Whole turns continue with their thoughts; without them what follows is moved."""
    model = scripted({"thinker": f"{THOUGHT}Ada.", "reader": "1887."})
    kept, dropped = pair(model, "context"), pair(model, "context", thoughts="drop")
    assert kept.plan().edges[0].mode == "continuation"
    edge = dropped.plan().edges[0]
    assert edge.mode == "splice"
    assert "the thoughts of thinker are left out and what follows them is moved" in edge.reason
    kept.run()
    dropped.run()
    assert "key" in model.prompts["reader"][0] and "key" not in model.prompts["reader"][1]


def test_later_turns_are_those_of_the_template() -> None:
    """An agent's second turn stands in the context that its chat template writes."""
    model = scripted({"thinker": [f"{THOUGHT}Ada.", f"{THOUGHT}1887."], "critic": "Go on."})
    thinker = Agent("thinker", model, "Who?", generate={"max_new_tokens": 60}, max_turns=2)
    critic = Agent("critic", model, "Judge.", generate={"max_new_tokens": 60}, max_turns=2)
    flow = Workflow("it", [thinker, critic]).connect(thinker, critic)
    flow = flow.connect(critic, thinker, loop=True)
    (notes,) = flow.plan().notes.values()
    assert any("reads what follows its last thoughts again" in note for note in notes)
    flow.run()
    said = [("user", "Who?"), ("assistant", f"{THOUGHT}Ada."), ("user", "Go on."), ("user", "Who?")]
    turns = [{"role": role, "content": words} for role, words in said]
    tokenizer = model.text.tokenizer
    wanted = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert "key" not in wanted and model.prompts["thinker"][1] == wanted


def chained(words: Sequence[str], template: str = THINKING) -> LocalModel:
    """A model with real states that writes these tokens after the prompt's last one, in order."""
    tokenizer = tiny_tokenizer(chat_template=template)
    tokenizer.add_tokens([AddedToken(mark, normalized=False) for mark in ("<think>", "</think>")])
    ids = [tokenizer(word, add_special_tokens=False).input_ids for word in ("\n", *words)]
    chain = [number for (number,) in ids] + [tokenizer.eos_token_id]
    size = len(tokenizer)
    config = LlamaConfig(
        hidden_size=size + size % 2,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=size,
        max_position_embeddings=512,
        head_dim=8,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=2,
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model: Any = LlamaForCausalLM(config)
        model.model.embed_tokens.weight.copy_(torch.eye(size, config.hidden_size) * 8)
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.mul_(0.1)
            layer.mlp.down_proj.weight.mul_(0.1)
        model.lm_head.weight.zero_()
        for one, other in pairwise(chain):
            model.lm_head.weight[other, one] = 1.0
    return LocalModel(model, tokenizer)


def test_an_answer_keeps_its_state() -> None:
    """Of a turn's state the answer's rows are taken over, and the thoughts' are not."""
    model = chained(["<think>", " the", "</think>", "reader", " who", " was"])
    flow = pair(model)  # type: ignore[arg-type]
    result = flow.run()
    edge = result.report.edges[0]
    assert result["thinker"].text == "reader who was"
    assert (edge.mode, edge.tokens) == ("splice", 3)
    assert edge.reused + edge.repaired == 3
    assert result.report.agents["thinker"][0].thought_tokens == 3


def test_an_agent_gives_its_template_arguments() -> None:
    """Two agents on one model, of which one is told not to think."""
    model = chained(["<think>", " the", "</think>", "reader"])
    thinks = Agent("thinks", model, "Who?", generate={"max_new_tokens": 8})
    off = {"enable_thinking": False}
    answers = Agent("answers", model, "Who?", generate={"max_new_tokens": 1}, template=off)
    flow = Workflow("it", [thinks, answers])
    flow.load()
    models = flow._preparation.by_agent(flow.spec)
    assert models["thinks"] is model
    ask = models["answers"].context_builder.ask()
    assert models["answers"].text.decode(ask).endswith("<think>\n\n</think>\n\n")
    assert models["answers"].template.thinks is False
    assert models["answers"].identity == model.identity
    assert flow.run()["thinks"].text == "reader"
    assert Workflow.from_spec(flow.spec, models=dict(flow.models)).spec == flow.spec


def test_channels_of_one_turn() -> None:
    """As gpt-oss writes: the answer is what the last channel holds, whatever stands before it."""
    tokenizer = made("byte-level", CHANNEL_MARKS, template=CHANNELS)
    text = TextTokenizer(tokenizer, "digest")
    builder = context_builder_of(text)

    class Model:
        context_builder = builder

    model: Any = Model()
    model.text = text
    composed = builder.compose([ChatTurn("user", ("Who?",))])
    reply = TurnReply(model, composed)
    written = "<|channel|>analysis<|message|>the key<|end|><|start|>assistant"
    written += "<|channel|>final<|message|>Ada <|start|>."
    ids = tokenizer(written, add_special_tokens=False).input_ids
    for token in ids:
        reply.push(token)
    closed = reply.close()
    turn = reply.closed_context().segments[-1]
    answer = reply.answered(turn)
    assert answer is not None and answer.text == "Ada ."
    assert text.turn_markers.isdisjoint(answer.words)
    assert closed[: answer.content[0] - 3] == tuple(ids)[: answer.content[0] - 3]
    later = builder.rewritten(reply.closed_context(), answer)
    wanted = "<|start|>user<|message|>Who?<|end|><|start|>assistant<|channel|>final<|message|>"
    wanted += "Ada .<|end|>"
    assert later.ids == tuple(tokenizer(wanted, add_special_tokens=False).input_ids)


DATED = "{{ strftime_now('%d %B %Y') }}" + THINKING


def test_a_run_has_one_date() -> None:
    """A template's date is that of the run's start, and one for all agents of a model."""
    model = tiny_model(tokenizer=tiny_tokenizer(chat_template=DATED))
    model.text.loaded = datetime(2020, 1, 2).astimezone()
    yesterday = model.with_template({})
    assert "02 January 2020" in yesterday.template.opening
    agents = [
        Agent(name, yesterday, "Who?", generate=None, template=given)
        for name, given in (("one", {}), ("two", {"enable_thinking": False}))
    ]
    flow = Workflow("it", agents)
    dressed = flow._preparation.by_agent(flow.spec)
    today = datetime.now().astimezone().strftime("%d %B %Y")
    assert today in dressed["one"].template.opening
    assert dressed["one"].template.opening == dressed["two"].template.opening
    assert flow._preparation.by_agent(flow.spec)["one"] is dressed["one"]
