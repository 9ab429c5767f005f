"""The flags of the KL penalty's controller say what its two forms have in common."""

import math

import pytest

from toolkit.arguments.kl import KLArguments
from toolkit.errors import InputError
from toolkit.maths.kl_controllers import AdaptiveKLController


def test_a_horizon_of_ten_batches_is_the_papers_form_at_the_default_k() -> None:
    args, batch = KLArguments(), 1000
    assert args.kl_horizon == 10 * batch
    code = AdaptiveKLController(args.kl_coef, args.kl_target, args.kl_horizon)
    paper = AdaptiveKLController(args.kl_coef, args.kl_target, args.kl_horizon, args.kl_k_beta)
    for kl in (6.6, 30.0, 0.0):
        code.update(kl, batch)
        paper.update(kl, batch)
    # Errors of 0.1, and of 0.2 at either end of the clipping: 0.15 * 1.01 * 1.02 * 0.98.
    assert math.isclose(code.value, 0.15 * 1.01 * 1.02 * 0.98, rel_tol=1e-12)
    assert math.isclose(code.value, paper.value, rel_tol=1e-12)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"kl_controller": "slow"}, "must be one of adaptive, adaptive_paper, adaptive_pi, fixed"),
        ({"kl_target": 0.0}, "kl_target is 0, but must be above 0"),
        ({"kl_coef": -0.1}, "kl_coef is -0.1, but must be at least 0"),
    ],
)
def test_what_no_controller_can_do_is_refused(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        KLArguments(**wrong)  # type: ignore[arg-type]


def test_a_coefficient_of_0_is_no_penalty_and_is_taken() -> None:
    assert KLArguments(kl_coef=0.0, kl_controller="fixed").kl_coef == 0
