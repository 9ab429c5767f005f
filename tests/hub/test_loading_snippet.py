"""The lines that load a published adapter: they parse, and hold the base as training held it."""

import ast
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch

from toolkit.data.chat import Chat
from toolkit.hub.adapter_source import Kind
from toolkit.hub.loading_snippet import Names, ids_line, loading_snippet, probe_lines
from toolkit.models.families import HEADS
from toolkit.models.loading import Fp32Head, ValueHead, load_tokenizer
from toolkit.models.quantized import four_bit_config

NAMES = Names("me/adapter", "org/base", "a" * 40)


def calls(lines: str) -> dict[str, ast.Call]:
    """The calls in these lines, by what is called."""
    found = [node for node in ast.walk(ast.parse(lines)) if isinstance(node, ast.Call)]
    return {ast.unparse(node.func): node for node in found}


@pytest.mark.parametrize("kind", get_args(Kind))
@pytest.mark.parametrize("precision", ["4bit", "bf16", "fp32"])
@pytest.mark.parametrize("chat", [None, Chat(kwargs={"mood": 'so "glad"'})])
def test_all_lines_parse_and_name_the_bases_commit_and_the_adapter(
    kind: Kind, precision: str, chat: Chat | None
) -> None:
    lines = loading_snippet(kind, precision, NAMES, chat=chat, experts=precision == "4bit")
    compile(lines + probe_lines(kind, ids_line("text")), "card", "exec")
    asked = {name: call for name, call in calls(lines).items() if name.endswith("from_pretrained")}
    base = next(call for name, call in asked.items() if name.startswith("AutoModel"))
    assert ast.literal_eval(base.args[0]) == "org/base"
    assert {k.arg: k.value for k in base.keywords}["revision"].value == "a" * 40  # type: ignore[attr-defined]
    assert 'adapter = "me/adapter"' in lines and "PeftModel.from_pretrained" in asked
    assert ("Classification" in lines) == (kind == "reward")


def test_the_4_bit_base_is_quantized_as_it_was_in_training() -> None:
    (call,) = [c for n, c in calls(loading_snippet("policy", "4bit", NAMES)).items() if "Bits" in n]
    told = {
        str(k.arg): torch.float32
        if k.arg == "bnb_4bit_compute_dtype"
        else ast.literal_eval(k.value)
        for k in call.keywords
    }
    ours = four_bit_config(torch.float32, list(HEADS)).to_dict()
    theirs = type(four_bit_config(torch.float32))(**told).to_dict()
    assert theirs == ours


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16", "torch.bfloat16"), ("fp32", "torch.float32")]
)
def test_a_base_that_was_not_quantized_needs_no_bitsandbytes(precision: str, dtype: str) -> None:
    lines = loading_snippet("policy", precision, NAMES)
    assert f"dtype={dtype}," in lines and "BitsAndBytes" not in lines


def test_a_rewards_gain_and_bias_are_written_out_whole() -> None:
    """A third, and the smallest step above 1, come back as they were: not as they are printed."""
    lines = loading_snippet("reward", "fp32", NAMES, gain=1 / 3, bias=-(1 + 2**-52))
    score = next(n for n in ast.parse(lines).body if isinstance(n, ast.FunctionDef))
    scope: dict[str, Any] = {"raw": 3.0}
    returned = next(n for n in score.body if isinstance(n, ast.Return))
    assert returned.value is not None
    assert eval(ast.unparse(returned.value), scope) == 1 / 3 * 3.0 - (1 + 2**-52)


@pytest.mark.parametrize("head", [Fp32Head(4, 1), ValueHead(4, [6, 5])], ids=["linear", "deep"])
def test_the_lines_of_a_value_compute_what_its_head_computes(head: torch.nn.Module) -> None:
    states = torch.randn(1, 3, 4)
    trunk = SimpleNamespace(base_model=lambda **given: SimpleNamespace(last_hidden_state=states))
    scope = {
        "torch": torch,
        "tokenizer": lambda *given, **how: {"input_ids": torch.zeros(1, 3)},
        "device": "cpu",
        "model": SimpleNamespace(get_base_model=lambda: trunk),
        "head": {name: tensor.detach() for name, tensor in head.state_dict().items()},
    }
    tree = ast.parse(loading_snippet("value", "fp32", NAMES))
    tree.body = [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef) or ast.unparse(node).startswith("layers = ")
    ]
    exec(compile(tree, "card", "exec"), scope)
    found = scope["values"]("text")  # type: ignore[operator]
    torch.testing.assert_close(torch.tensor(found), head(states).flatten())


@pytest.mark.parametrize("ends_with", ["", "<|endoftext|>"])
@pytest.mark.parametrize("prefix", [None, [], [7, 8]])
def test_ids_are_prefix_text_and_what_closes_it(
    ends_with: str, prefix: list[int] | None, demo_model: str
) -> None:
    tokenizer = load_tokenizer(demo_model)
    scope = {"tokenizer": tokenizer, "torch": torch, "text": "We went out."}
    ids = eval(ids_line("text", ends_with, prefix), scope)
    bare = tokenizer("We went out.", add_special_tokens=False)["input_ids"]
    end = [tokenizer.convert_tokens_to_ids(ends_with)] if ends_with else []
    before = prefix or []
    assert ids.tolist() == [before + bare + end]  # this tokenizer puts nothing before a text


def test_an_adapter_of_messages_shows_one_and_tells_the_template_what_training_told_it() -> None:
    lines = loading_snippet("policy", "fp32", NAMES, chat=Chat(kwargs={"mood": 'so "glad"'}))
    (call,) = [c for n, c in calls(lines).items() if n.endswith("apply_chat_template")]
    told = {k.arg: k.value for k in call.keywords}
    assert ast.literal_eval(told[None]) == {"mood": 'so "glad"'}
    assert ast.literal_eval(told["add_generation_prompt"]) is True
    assert "chat(" not in loading_snippet("policy", "fp32", NAMES)
