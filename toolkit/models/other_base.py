"""A reward model on another base than the policy's: loaded beside it, it scores text."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoConfig, PreTrainedTokenizerBase

from toolkit.errors import InputError
from toolkit.maths.sequences import last_real_token, length_sorted_batches, pad
from toolkit.models.adapter_config import read_config
from toolkit.models.adapters import check_adapter, plain_adapter
from toolkit.models.base_config import base_fingerprint, check_base
from toolkit.models.families import fit_inputs, trunk_of
from toolkit.models.loading import load_base, load_tokenizer
from toolkit.models.peft_wrappers import filler
from toolkit.models.reading import reading_of
from toolkit.models.toolkit_json import read_facts


class TextRewardModel:
    """Scores text by a sequence classifier with one output; text is tokenized anew for it.

    Prompts that are messages are rendered by its own chat template. The model is loaded at the
    first call, so that a run's other inputs are checked before.

    Args:
        name: Hub id or folder of a classifier, or folder of a reward adapter, whose own
            ``adapter_config.json`` names its base.
        precision: how the base is held: "4bit", "bf16" or "fp32".
        batch_size: texts in one pass.
        end_token: what closes a text, as for ``reading_of``.
        tokenizer: the policy's, where the model sits on the policy's base: it is given token ids
            then (``score_ids``), and makes none of its own.

    Raises:
        InputError: no such model, or more than one output.
    """

    def __init__(
        self, name: str, precision: str, batch_size: int = 64, end_token: str = "auto",
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:  # fmt: skip
        self.name, self.precision, self.batch_size = name, precision, batch_size
        self.__name__ = f"reward model {Path(name).name}"
        self.gain, self.bias = 1.0, 0.0
        self.adapter: Path | None = None
        self.revision = "main"
        self.base = name
        if (Path(name) / "adapter_config.json").is_file():
            self.adapter = Path(name)
            config = read_config(self.adapter, "--reward_model")
            self.base = config.get("base_model_name_or_path") or ""
            check_adapter(self.adapter, self.base, "SEQ_CLS", "--reward_model", precision)
            self.revision = config.get("revision") or "main"  # of the base that it was trained on
            facts = read_facts(self.adapter)
            self.gain, self.bias = facts.get("gain", 1.0), facts.get("bias", 0.0)
        check_base(self.base)
        padding = None
        if self.adapter is None:
            config = AutoConfig.from_pretrained(self.base)
            if config.num_labels != 1:
                raise InputError(f"reward_model: {name}: not a classifier with one output")
            padding = config.get_text_config().pad_token_id
        own = self.adapter is not None and (self.adapter / "tokenizer_config.json").is_file()
        self.takes_ids = tokenizer is not None
        self.tokenizer = tokenizer or load_tokenizer(
            str(self.adapter) if own else self.base, base=self.base
        )
        self.reading = reading_of(name, self.tokenizer, end_token, padding)
        self._model: Any = None

    @property
    def identity(self) -> str:
        """Which model it is: its name, and its weights where they are a folder's."""
        weights = base_fingerprint(self.base)
        if self.adapter is not None:
            content = (self.adapter / "adapter_model.safetensors").read_bytes()
            weights = f"{weights} {hashlib.sha256(content).hexdigest()[:16]}"
        return f"{self.name} {weights} {self.gain} {self.bias} {self.reading.ends_with}"

    def load(self) -> Any:
        """The model, frozen."""
        if self._model is None:
            kind = "new" if self.adapter is not None else "own"
            model: Any = load_base(self.base, self.precision, self.revision, score_head=kind)
            if self.adapter is not None:
                model = plain_adapter(model, self.adapter)
            self._model = model.eval().requires_grad_(False)
        return self._model

    def __call__(self, prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
        """gain * score + bias of each completion behind its prompt, texts or messages."""
        return self.score_rows(
            self.reading.text_rows(self.tokenizer, prompts, completions, columns)
        )

    def score_ids(self, prompts: Any, kept: list[list[int]]) -> list[float]:
        """The same of token ids, where they are this model's: ``Prompts`` and completions."""
        return self.score_rows(self.reading.rows(self.tokenizer, prompts, kept))

    @torch.no_grad()
    def score_rows(self, rows: list[list[int]]) -> list[float]:
        """gain * score + bias of each row of token ids, read on its last token."""
        model = self.load()
        device = next(model.parameters()).device
        scores = [0.0] * len(rows)
        for batch in length_sorted_batches([len(row) for row in rows], self.batch_size):
            chosen = batch.tolist()
            ids, mask = pad([rows[i] for i in chosen], self.tokenizer.pad_token_id)
            raw = self._score(model, ids.to(device), mask.to(device))
            for i, value in zip(chosen, raw.tolist(), strict=True):
                scores[i] = self.gain * value + self.bias
        return scores

    def _score(self, model: Any, ids: Tensor, mask: Tensor) -> Tensor:
        # Not by the classifier's own forward pass, which takes a real token for padding where both
        # have one id.
        classifier: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        trunk = trunk_of(classifier)
        filled = ids.masked_fill(~mask, filler(trunk.get_input_embeddings()))
        inputs = {"input_ids": filled, "attention_mask": mask.long(), "use_cache": False}
        hidden = trunk(**fit_inputs(trunk, inputs)).last_hidden_state
        last = hidden[torch.arange(len(ids), device=ids.device), last_real_token(mask)]
        return classifier.score(last).float().squeeze(-1)
