"""What TRL's trainers print while they train: a bar, and now and then a line of measures."""

from typing import Any

from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ProgressCallback

from toolkit.terminal import terminal_width, wrapped


def show_progress_in_words(trainer: Trainer) -> None:
    """Have a trainer print its measures as ``loss 0.4349, accuracy 0.85`` in lines that fit.

    transformers prints them as a dictionary of some 160 characters, which a terminal breaks in the
    midst of words. Nothing changes where the progress bar is turned off.
    """
    if trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(ProgressInWords())


class ProgressInWords(ProgressCallback):
    """transformers' progress bar, with measures in words below it."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Print the measures above the bar."""
        if state.is_world_process_zero and self.training_bar is not None and logs:
            self.training_bar.write(wrapped(in_words(logs), terminal_width()))


def in_words(logs: dict[str, Any]) -> str:
    """Measures as ``name value, name value``, the epoch first; floats with four digits.

    >>> in_words({"loss": 0.434871, "epoch": 0.5, "total_flos": 1.0})
    'epoch 0.5: loss 0.4349'
    """
    shown = {
        name: f"{value:.4g}" if isinstance(value, float) else str(value)
        for name, value in logs.items()
        if name not in ("epoch", "total_flos")
    }
    line = ", ".join(f"{name} {value}" for name, value in shown.items())
    return f"epoch {logs['epoch']:.3g}: {line}" if "epoch" in logs else line
