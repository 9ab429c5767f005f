"""The reward model's settings."""

from pathlib import Path

import pytest

from toolkit.errors import InputError
from toolkit.training.reward.config import BestOfKConfig
from toolkit.training.reward.losses import LOSSES, Loss


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"resume_from_checkpoint": "x"}, "resume_from_checkpoint is not used"),
        ({"train_sampling_strategy": "group_by_length"}, "train_sampling_strategy is not used"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps is 0, but must be"),
        ({"loss_type": "hinge"}, "loss_type is 'hinge'"),
        ({"label_smoothing": 0.7}, "label_smoothing is 0.7, but must be at most 0.5"),
        ({"loss_type": "plackett_luce", "label_smoothing": 0.1}, "label_smoothing is not used by"),
        ({"loss_type": "scalar_rating", "use_margin": True}, "use_margin is not used by the loss"),
        ({"loss_type": "scalar_rating", "center_rewards_coefficient": 0.1},
         "center_rewards_coefficient is not used by scalar_rating"),
        ({"source_weights": ["harmless"]}, "'harmless' is not NAME=WEIGHT with a weight above 0"),
        ({"source_weights": ["=2"]}, "'=2' is not NAME=WEIGHT"),
        ({"source_weights": ["a=0"]}, "'a=0' is not NAME=WEIGHT"),
        ({"source_weights": ["a=inf"]}, "'a=inf' is not NAME=WEIGHT"),
        ({"source_weights": ["a=1", "a=2"]}, "source_weights: a occurs twice"),
        ({"push_to_hub": True}, "push_to_hub is not used"),
        ({"hub_token": "hf_x"}, "hub_token is not used"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor is not used"),
    ],
)  # fmt: skip
def test_options_that_would_do_nothing_are_refused(
    tmp_path: Path, kwargs: dict, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        BestOfKConfig(output_dir=str(tmp_path), use_cpu=True, **kwargs)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_row_needs_what_its_loss_reads(loss: Loss, tmp_path: Path) -> None:
    wants = BestOfKConfig(output_dir=str(tmp_path), use_cpu=True, loss_type=loss).wants
    assert wants == ("scores" if loss.startswith("scalar") else "best")
