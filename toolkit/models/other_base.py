"""A reward model on another base than the policy's: loaded beside it, it scores text."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoConfig

from toolkit.data.files import read_object
from toolkit.errors import InputError
from toolkit.maths.sequences import last_real_token, pad
from toolkit.models.adapters import check_adapter, read_facts
from toolkit.models.loading import base_fingerprint, check_base, load_base, load_tokenizer


class TextRewardModel:
    """Scores text by a sequence classifier with one output; text is tokenised anew for it.

    The model is loaded at the first call, so that a run's other inputs are checked before.

    Args:
        name: Hub id or folder of a classifier, or folder of a reward adapter, whose own
            ``adapter_config.json`` names its base.
        precision: how the base is held: "4bit", "bf16" or "fp32".
        batch_size: texts in one pass.

    Raises:
        InputError: no such model, or more than one output.
    """

    def __init__(self, name: str, precision: str, batch_size: int = 64) -> None:
        self.name, self.precision, self.batch_size = name, precision, batch_size
        self.__name__ = f"reward model {Path(name).name}"
        self.gain, self.bias = 1.0, 0.0
        self.adapter: Path | None = None
        self.base = name
        if (Path(name) / "adapter_config.json").is_file():
            self.adapter = Path(name)
            config = read_object(self.adapter / "adapter_config.json", "--reward_model")
            self.base = config.get("base_model_name_or_path") or ""
            check_adapter(self.adapter, self.base, "SEQ_CLS", "--reward_model", precision)
            facts = read_facts(self.adapter)
            self.gain, self.bias = facts.get("gain", 1.0), facts.get("bias", 0.0)
        check_base(self.base)
        if self.adapter is None and AutoConfig.from_pretrained(self.base).num_labels != 1:
            raise InputError(f"reward_model: {name}: not a classifier with one output")
        self.tokenizer = load_tokenizer(self.base)
        self._model: Any = None

    @property
    def identity(self) -> str:
        """Which model it is: its name, and its weights where they are a folder's."""
        weights = base_fingerprint(self.base)
        if self.adapter is not None:
            content = (self.adapter / "adapter_model.safetensors").read_bytes()
            weights = f"{weights} {hashlib.sha256(content).hexdigest()[:16]}"
        return f"{self.name} {weights} {self.gain} {self.bias}"

    def load(self) -> Any:
        """The model, frozen."""
        if self._model is None:
            kind = "new" if self.adapter is not None else "own"
            model: Any = load_base(self.base, self.precision, score_head=kind)
            if self.adapter is not None:
                model = PeftModel.from_pretrained(model, str(self.adapter))
            self._model = model.eval().requires_grad_(False)
        return self._model

    @torch.no_grad()
    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        """gain * score + bias of each text, prompt and completion joined."""
        model = self.load()
        device = next(model.parameters()).device
        texts = [p + c for p, c in zip(prompts, completions, strict=True)]
        rows = self.tokenizer(texts, truncation=False, verbose=False)["input_ids"]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        scores = [0.0] * len(rows)
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            ids, mask = pad([rows[i] for i in chosen], self.tokenizer.pad_token_id)
            raw = self._score(model, ids.to(device), mask.to(device))
            for i, value in zip(chosen, raw.tolist(), strict=True):
                scores[i] = self.gain * value + self.bias
        return scores

    def _score(self, model: Any, ids: Tensor, mask: Tensor) -> Tensor:
        # Not by the classifier's own forward pass, which takes a real token for padding where both
        # have one id.
        classifier: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        trunk = getattr(classifier, classifier.base_model_prefix)
        hidden = trunk(
            input_ids=ids.masked_fill(~mask, 0), attention_mask=mask.long()
        ).last_hidden_state
        last = hidden[torch.arange(len(ids), device=ids.device), last_real_token(mask)]
        return classifier.score(last).float().squeeze(-1)
