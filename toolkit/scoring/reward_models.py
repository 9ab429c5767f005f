"""Reward models as scorers: an adapter on the shared base, and a model on its own base."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from toolkit.data.prompts import Prompts
from toolkit.errors import InputError
from toolkit.maths.sequences import last_real_token, length_sorted_batches, pad
from toolkit.models.adapter_config import read_config
from toolkit.models.adapters import check_adapter, plain_adapter
from toolkit.models.base_config import base_fingerprint
from toolkit.models.families import fit_inputs, trunk_of
from toolkit.models.loading import check_base, load_base, load_tokenizer
from toolkit.models.peft_wrappers import filler
from toolkit.models.reading import reading_of, said
from toolkit.models.roles import Roles
from toolkit.models.toolkit_json import read_facts
from toolkit.scoring.scorer import Completions, Scorer, TokenCompletions, refuse_infinite


class RewardAdapter(Scorer):
    """Scores with the reward model of the actors that come with the completions.

    Args:
        folder: a reward adapter to put on ``Roles`` first, if one base serves several; by default
            the actors' current reward model scores.
        end_token: how a text ends for that adapter, as for ``reading_of``.
        title: its name in messages.
    """

    name = "reward model"
    title = "reward model"
    # A checkpoint records the actors, including their reward model, elsewhere.
    identity = "reward model"

    def __init__(
        self, folder: str = "", end_token: str = "auto", title: str = "reward model"
    ) -> None:
        self.folder = folder
        self.end_token = end_token
        self.title = title
        if folder:
            self.cure = (
                f" (the weights of {folder} are broken, or the precision is too low: try "
                "--precision fp32)"
            )

    def check(self, prompts: Prompts, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise InputError if these prompts are not rendered as the adapter's were in training."""
        if self.folder:
            reading_of(self.folder, tokenizer, self.end_token).check(prompts)

    def __call__(self, completions: Completions) -> Tensor:
        """Return gain * score + bias of each completion: (B,) fp32, on the actors' device.

        Raises:
            ValueError: no actors came with the completions.
        """
        if not isinstance(completions, TokenCompletions) or completions.actors is None:
            raise ValueError("a reward adapter scores token ids, with the actors on its base")
        actors, tokenizer = completions.actors, completions.tokenizer

        if self.folder:
            assert isinstance(actors, Roles)
            reading = reading_of(self.folder, tokenizer, self.end_token)
            actors.use_reward(self.folder, reading)
        rows = actors.reading.rows(tokenizer, completions.prompt_ids, completions.ids)
        return score_rows(
            actors.scores, rows, tokenizer.pad_token_id, completions.batch_size, actors.device
        )


@torch.no_grad()
def score_rows(
    score: Callable[[Tensor, Tensor], Tensor],
    rows: Sequence[list[int]],
    pad_id: int,
    batch_size: int,
    device: torch.device,
    show_progress: bool = False,
) -> Tensor:
    """Score B rows of token ids, similar lengths together; return (B,) fp32 on ``device``.

    Args:
        score: gives scores (b,) of ids (b, T) and their bool mask (b, T).
        rows: token ids of any length.
        pad_id: padding, on the right.
        batch_size: rows in one pass.
        device: where ids and masks are put.
        show_progress: show a bar.
    """
    scores = torch.empty(len(rows), device=device)
    batches = list(length_sorted_batches([len(row) for row in rows], batch_size))
    for chosen in tqdm(batches, desc="Scoring", leave=False, disable=not show_progress):
        padded = pad([rows[i] for i in chosen], pad_id)
        ids, mask, there = (t.to(device, non_blocking=True) for t in (*padded, chosen))
        scores[there] = score(ids, mask)
    return scores


class RewardModel(Scorer):
    """A sequence classifier with one output, loaded beside the policy; it tokenizes the text.

    Its own chat template renders messages. It is loaded at the first call, after a run's other
    inputs were checked.

    Args:
        source: Hub id or folder of a classifier, or folder of a reward adapter whose
            ``adapter_config.json`` names its base.
        precision: how the base is held: "4bit", "bf16" or "fp32".
        batch_size: texts in one pass.
        end_token: how a text ends, as for ``reading_of``.
        tokenizer: the policy's, if the model has the policy's base: it then scores token ids and
            does not tokenize.

    Raises:
        InputError: there is no such model, or it has more than one output.
    """

    def __init__(
        self,
        source: str,
        precision: str,
        batch_size: int = 64,
        end_token: str = "auto",
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        self.source = source
        self.precision = precision
        self.batch_size = batch_size
        self.name = f"reward model {Path(source).name}"

        self.base = source
        self.revision = "main"
        self.gain, self.bias = 1.0, 0.0
        self.adapter: Path | None = None
        if (Path(source) / "adapter_config.json").is_file():
            self._read_adapter(Path(source))
        check_base(self.base)

        padding = None
        if self.adapter is None:
            config = AutoConfig.from_pretrained(self.base)
            if config.num_labels != 1:
                raise InputError(f"reward_model: {source} is not a classifier with one output")
            padding = config.get_text_config().pad_token_id

        own = self.adapter is not None and (self.adapter / "tokenizer_config.json").is_file()
        self.takes_ids = tokenizer is not None
        self.tokenizer = tokenizer or load_tokenizer(
            str(self.adapter) if own else self.base, base=self.base
        )
        self.reading = reading_of(source, self.tokenizer, end_token, padding)
        self._model: nn.Module | None = None

    def _read_adapter(self, folder: Path) -> None:
        """Take base, revision, gain and bias from an adapter's folder."""
        config = read_config(folder, "--reward_model")
        self.adapter = folder
        self.base = config.get("base_model_name_or_path") or ""
        check_adapter(folder, self.base, "SEQ_CLS", "--reward_model", self.precision)
        self.revision = (
            config.get("revision") or "main"
        )  # revision of the base that it was trained on

        facts = read_facts(folder)
        self.gain, self.bias = facts.get("gain", 1.0), facts.get("bias", 0.0)

    @property
    def identity(self) -> str:
        """What identifies the model: its name, and for a folder its weights."""
        weights = base_fingerprint(self.base)
        if self.adapter is not None:
            content = (self.adapter / "adapter_model.safetensors").read_bytes()
            weights = f"{weights} {hashlib.sha256(content).hexdigest()[:16]}"
        return f"{self.source} {weights} {self.gain} {self.bias} {self.reading.ends_with}"

    def said(self) -> str:
        """Return a line on how it reads a text."""
        return said(self.reading, self.tokenizer, self.name)

    def check(self, prompts: Prompts, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise InputError if it scores token ids that were rendered differently from its own."""
        if self.takes_ids:
            self.reading.check(prompts)

    def load(self) -> nn.Module:
        """Load the model, frozen."""
        if self._model is None:
            kind = "new" if self.adapter is not None else "own"
            model: nn.Module = load_base(self.base, self.precision, self.revision, score_head=kind)
            if self.adapter is not None:
                model = plain_adapter(model, self.adapter)
            self._model = model.eval().requires_grad_(False)
        return self._model

    def __call__(self, completions: Completions) -> Tensor:
        """Return gain * score + bias of each completion after its prompt: (B,) fp64, on the CPU."""
        if self.takes_ids:
            assert isinstance(completions, TokenCompletions)
            rows = self.reading.rows(self.tokenizer, completions.prompt_ids, completions.ids)
        else:
            rows = self.reading.text_rows(
                self.tokenizer, completions.prompts, completions.texts, completions.columns
            )
        scores = self.score_rows(rows)
        refuse_infinite(self.title, scores.tolist(), completions.texts)
        return scores

    def score_rows(self, rows: list[list[int]]) -> Tensor:
        """Return gain * score + bias of B rows of token ids, at their last tokens: (B,) fp64."""
        device = next(self.load().parameters()).device
        raw = score_rows(self._score, rows, self.tokenizer.pad_token_id, self.batch_size, device)
        return self.gain * raw.to("cpu", torch.float64) + self.bias

    def _score(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return raw scores (b,) of ids and mask (b, T)."""
        # The classifier's own forward pass would take a real token for padding if it has the same
        # id.
        model = self.load()
        whole = model.get_base_model() if isinstance(model, PeftModel) else model
        classifier = cast(PreTrainedModel, whole)
        trunk = trunk_of(classifier)
        filled = ids.masked_fill(~mask, filler(trunk.get_input_embeddings()))
        inputs = {"input_ids": filled, "attention_mask": mask.long(), "use_cache": False}
        hidden = trunk(**fit_inputs(trunk, inputs)).last_hidden_state
        last = hidden[torch.arange(len(ids), device=ids.device), last_real_token(mask)]
        scores: Tensor = classifier.get_submodule("score")(last)
        return scores.float().squeeze(-1)
