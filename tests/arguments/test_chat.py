"""The arguments of a chat template are read alike from flags, YAML and rows."""

import inspect
import json
import re
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from toolkit.arguments.chat import NOT_TOLD, ChatArguments
from toolkit.cli import call, changed, parse, recipe
from toolkit.data.from_arguments import chat_from
from toolkit.errors import InputError


def test_it_comes_from_the_command_line_or_yaml_and_goes_into_run_json(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("chat_template_kwargs:\n  enable_thinking: false\n  depth: {a: [1]}\n")
    whole = {"enable_thinking": False, "depth": {"a": [1]}}
    (by_yaml,) = parse(ChatArguments, argv=["--config", str(config)])
    (by_flag,) = parse(ChatArguments, argv=["--chat_template_kwargs", json.dumps(whole)])
    for args in (by_yaml, by_flag):
        assert chat_from(args).kwargs == whole
        assert changed(args) == {"chat_template_kwargs": whole}


@pytest.mark.parametrize(
    ("given", "said"),
    [("{enable_thinking: false}", "'{enable_thinking: false}', but must be an object"),
     ("[1]", "[1], but must be an object"), ("3", "3, but must be"), ("null", "None, but must be"),
     ('{"tokenize": true}', "'tokenize' is set by the toolkit itself"),
     ('{"add_generation_prompt": false}', "'add_generation_prompt' is set"),
     ('{"messages": []}', "'messages' is set"), ('{"bos_token": "x"}', "'bos_token' is set")],
)  # fmt: skip
@pytest.mark.parametrize(
    "name", ["sample", "reward", "ppo", "sft", "preference", "rloo", "evaluate", "best_of_n"]
)
def test_what_is_no_object_or_would_shadow_is_refused_by_every_recipe(
    name: str, given: str, said: str
) -> None:
    with pytest.raises(InputError, match=re.escape(f"chat_template_kwargs: {said}")) as caught:
        call(recipe(name).main, ["--chat_template_kwargs", given])
    assert caught.value.field == "chat_template_kwargs" and "\n" not in str(caught.value)


def test_all_that_the_tokenizer_takes_itself_is_known() -> None:
    own = set(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters)
    own -= {"self", "kwargs", "documents", "sanitize_control_tokens"}
    assert own | set(PreTrainedTokenizerBase.SPECIAL_TOKENS_ATTRIBUTES) <= set(NOT_TOLD)
