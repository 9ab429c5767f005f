"""What training prints: bars that say what they do, and figures in lines that fit."""

from typing import Any

from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ProgressCallback

from toolkit.terminal import figure_text, terminal_width, wrapped

# The measures that are printed; the others are in the log. TRL's RLOO alone logs more than twenty.
SHOWN = (
    "loss", "accuracy", "mean_token_accuracy", "reward", "reward_std", "kl", "entropy",
    "rewards/accuracies", "rewards/margins", "grad_norm", "learning_rate", "eval_loss",
    "eval_accuracy", "eval_mean_token_accuracy", "eval_rewards/accuracies", "eval_rewards/margins",
    "eval_reward",
)  # fmt: skip


def show_progress_in_words(trainer: Trainer, doing: str) -> None:
    """Name a trainer's bars, and have it print its measures in lines that fit.

    transformers leaves the bar without a name, and prints measures as a dictionary of some 160
    characters, which a terminal breaks in the midst of words. Nothing changes where the progress
    bar is turned off.

    Args:
        trainer: the trainer.
        doing: the name of its bar, such as "Training the reward model".
    """
    if trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(ProgressInWords(doing))


class ProgressInWords(ProgressCallback):
    """transformers' progress bar with a name, and measures in words below it.

    Args:
        doing: the name of the bar.
    """

    def __init__(self, doing: str) -> None:
        super().__init__()
        self.doing = doing

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the bar."""
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.unit = "step"
            self.training_bar.set_description(self.doing)

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        """Open the bar of an evaluation, and move it."""
        first = self.prediction_bar is None
        super().on_prediction_step(args, state, control, eval_dataloader, **kwargs)
        if first and self.prediction_bar is not None:
            self.prediction_bar.unit = "batch"
            self.prediction_bar.set_description("Evaluating")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Print the measures above the bar, but not the summary at the end of the training."""
        if logs is None or "train_runtime" in logs:
            return
        if state.is_world_process_zero and self.training_bar is not None:
            self.training_bar.write(wrapped(in_words(logs), terminal_width()))


def in_words(logs: dict[str, Any]) -> str:
    """Measures as ``name value, name value``, the epoch first; floats with four digits.

    Only those in ``SHOWN``, unless there is none of them.

    >>> in_words({"loss": 0.434871, "epoch": 0.5, "total_flos": 1.0})
    'epoch 0.5: loss 0.4349'
    """
    shown = {name: value for name, value in logs.items() if name in SHOWN}
    if not shown:
        shown = {n: v for n, v in logs.items() if n not in ("epoch", "total_flos")}
    line = ", ".join(f"{name} {figure_text(value)}" for name, value in shown.items())
    return f"epoch {logs['epoch']:.3g}: {line}" if "epoch" in logs else line
