"""PPOTrainer with TRL 1.12's interface: separate whole models, or roles on one base."""

import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import PeftConfig
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import (
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
)

from toolkit.data.leftovers import part_folder
from toolkit.errors import InputError
from toolkit.models.actors import Actors
from toolkit.training.ppo.config import PPOConfig
from toolkit.training.ppo.trainer import PPOTrainer as _PPOTrainer
from toolkit.trl_compat.config import PPOConfig as TRLPPOConfig
from toolkit.trl_compat.separate_models import SeparateModels


class PPOTrainer(_PPOTrainer):
    """The toolkit's trainer with the constructor and methods of TRL 1.12's.

    Args:
        args: the configuration.
        processing_class: the tokenizer.
        model: a causal language model, plain or with an adapter; or ``Roles``.
        ref_model: with a plain ``model``, the reference; None copies the model, or switches its
            adapter off.
        reward_model: a sequence classifier; or functions, as for the toolkit's own trainer.
        train_dataset: prompts, as for the toolkit's own trainer.
        value_model: with a plain ``model``, a sequence classifier that learns the values.
        data_collator: None, or TRL's, which only pads (the trainer pads itself).
        eval_dataset, optimizers, callbacks: as in the toolkit's own trainer.
        peft_config: with a plain ``model``, the adapter to put on it.
        reward_weights, ptx_dataset: as in the toolkit's own trainer.

    Raises:
        InputError: the models do not fit together, or the collator does more than pad.
    """

    def __init__(
        self,
        args: PPOConfig,
        processing_class: PreTrainedTokenizerBase,
        model: Actors | PreTrainedModel,
        ref_model: PreTrainedModel | None = None,
        reward_model: object = None,
        train_dataset: object = None,
        value_model: PreTrainedModel | None = None,
        data_collator: object = None,
        eval_dataset: object = None,
        optimizers: tuple[Optimizer | None, LRScheduler | None] = (None, None),
        callbacks: list[TrainerCallback] | None = None,
        peft_config: PeftConfig | None = None,
        reward_weights: list[float] | None = None,
        ptx_dataset: Sequence[Sequence[int]] | None = None,
    ) -> None:
        actors = as_actors(model, ref_model, reward_model, value_model, peft_config, args)
        if data_collator is not None and type(data_collator) is not DataCollatorWithPadding:
            raise InputError(
                f"data_collator: {type(data_collator).__name__} is not used, because the trainer "
                "pads prompts itself (leave it out, and pass prompts as input_ids)"
            )
        super().__init__(
            args,
            processing_class,
            actors,
            reward_model,
            train_dataset,
            eval_dataset,
            optimizers,
            callbacks,
            reward_weights,
            ptx_dataset=ptx_dataset,
        )
        if isinstance(args, TRLPPOConfig):
            self._note_what_was_worked_out(args)

    def _note_what_was_worked_out(self, args: TRLPPOConfig) -> None:
        """Write into ``args`` what TRL's trainer wrote there: batch sizes of the processes."""
        world, steps = self.ranks.world, args.num_mini_batches
        args.world_size = world
        args.num_total_batches = self.num_updates
        args.micro_batch_size = args.per_device_train_batch_size * world
        args.batch_size = self.batch_size
        args.mini_batch_size = self.batch_size // steps
        args.local_mini_batch_size = self.batch_size // world // steps
        if args.eval_strategy == "epoch":
            self.eval_every = math.ceil(len(self.train_dataset) / self.batch_size)

    def save_model(self, output_dir: str | Path | None = None, **facts: object) -> Path:
        """Save the result in a form that other libraries load; return its folder.

        For roles: the adapters, under ``output_dir/adapters``; the policy's folder is returned. For
        a plain model: the model or its adapter, and the tokenizer, in ``output_dir``.
        """
        if not isinstance(self.model, SeparateModels):
            return super().save_model(output_dir, **facts)
        target = Path(output_dir or self.folder)
        if self.ranks.is_main:
            self._save_beside(target)
        self.ranks.wait()
        return target

    def _save_beside(self, target: Path) -> None:
        """Put the model file by file into a folder that also holds the run's own files."""
        target.mkdir(parents=True, exist_ok=True)
        aside = part_folder(target / "model")
        try:
            self.model.save(aside)
            self.processing_class.save_pretrained(aside)
            for file in aside.iterdir():
                if (target / file.name).is_dir():  # a named adapter's
                    shutil.rmtree(target / file.name)
                os.replace(file, target / file.name)
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def add_callback(self, callback: TrainerCallback | type[TrainerCallback]) -> None:
        """Add a callback, as in transformers' Trainer."""
        self.run_log.handler.add_callback(callback)

    def is_world_process_zero(self) -> bool:
        """Whether this process is the main one, which writes."""
        return self.ranks.is_main


def as_actors(
    model: Actors | PreTrainedModel,
    ref_model: PreTrainedModel | None,
    reward_model: object,
    value_model: PreTrainedModel | None,
    peft_config: PeftConfig | None,
    args: PPOConfig,
) -> Actors:
    """Return ``Roles`` unchanged; put separate models into one object.

    Raises:
        InputError: roles and separate models are mixed, or the models do not fit together.
    """
    if isinstance(model, Actors):
        if any(m is not None for m in (ref_model, value_model, peft_config)):
            raise InputError(
                "ref_model, value_model and peft_config belong to a plain model; Roles have their "
                "own"
            )
        return model

    listed = reward_model if isinstance(reward_model, list | tuple) else [reward_model]
    classifiers = [part for part in listed if isinstance(part, nn.Module)]
    if len(classifiers) > 1:
        raise InputError(
            "reward_model: pass at most one sequence classifier, with functions beside it"
        )
    return SeparateModels(
        model,
        ref_model,
        classifiers[0] if classifiers else None,
        value_model,
        peft_config,
        torch.bfloat16 if args.bf16 else None,
        getattr(args, "model_adapter_name", None),
        getattr(args, "ref_adapter_name", None),
    )
