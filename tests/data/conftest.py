"""The embedded model with other tokenizers and templates."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, processors

CHATML = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def variant(demo_model: str, tmp_path: Path) -> Callable[..., str]:
    """The embedded model's files, its tokenizer changed as told; the path of its folder."""

    def make(
        name: str = "model",
        added: tuple[str, ...] = (),
        single: str | None = None,
        template: str | None = None,
        **config: Any,
    ) -> str:
        folder = tmp_path / name
        shutil.copytree(demo_model, folder)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.add_special_tokens(list(added))
        if single is not None:
            known = [t for t in (*added, "<|endoftext|>") if t in single]
            tokenizer.post_processor = processors.TemplateProcessing(
                single=single, special_tokens=[(t, tokenizer.token_to_id(t)) for t in known]
            )
        tokenizer.save(str(folder / "tokenizer.json"))
        if added:
            _edit(folder / "config.json", vocab_size=tokenizer.get_vocab_size())
        _edit(folder / "tokenizer_config.json", **config)
        if template is not None:
            (folder / "chat_template.jinja").write_text(template)
        return str(folder)

    return make


@pytest.fixture
def chat(variant: Callable[..., str]) -> str:
    """A chat model: BOS before all text, ChatML, and an end of turn beside the end of text."""
    return variant("chat", ("<s>", "<|im_start|>", "<|im_end|>"), "<s> $A", CHATML, bos_token="<s>")
