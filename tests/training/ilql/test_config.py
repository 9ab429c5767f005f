"""ILQL's settings: which are refused, and which a resumed run may change."""

import pytest

from toolkit.errors import InputError
from toolkit.training.ilql.config import FREE, ILQLConfig


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"tau": 1.0}, "tau"),
        ({"tau": 0.0}, "tau"),
        ({"gamma": 1.1}, "gamma"),
        ({"alpha": 2.0}, "alpha"),
        ({"beta": -1.0}, "beta"),
        ({"sync_every": 0}, "sync_every"),
        ({"rewards": "ranking"}, "rewards"),
        ({"q_head": "shared"}, "q_head"),
        ({"output_dir": ""}, "output_dir is empty"),
        ({"resume": " "}, "resume is empty"),
        ({"stop_at_update": 3, "save_steps": 0}, "stop_at_update needs checkpoints"),
    ],
)
def test_a_wrong_setting_is_one_line_with_its_name(told: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        ILQLConfig(**told)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_run_is_identified_by_all_settings_on_which_the_result_depends() -> None:
    plain = ILQLConfig().identity()
    assert not FREE & plain.keys()
    for name, value in {"tau": 0.8, "alpha": 0.1, "seed": 3, "awac_beta": 1.0}.items():
        assert ILQLConfig(**{name: value}).identity() != plain, name  # type: ignore[arg-type]
    # Steering comes after training, so another strength continues the same run.
    assert ILQLConfig(beta=16.0, output_dir="other", save_steps=7).identity() == plain


def test_the_batch_is_all_passes_of_an_update() -> None:
    config = ILQLConfig(per_device_train_batch_size=8, gradient_accumulation_steps=4)
    assert config.batch_size == 32
