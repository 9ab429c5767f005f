"""The controllers of the KL penalty's coefficient, and a sketch of what they do."""

import math
from collections.abc import Mapping


class FixedKLController:
    """Keeps the coefficient constant."""

    @property
    def kl_target(self) -> float | None:
        """Target KL in nats; None for a fixed coefficient."""
        return None

    def __init__(self, kl_coef: float) -> None:
        self.value = kl_coef

    def update(self, kl: float, episodes: int) -> None:
        """Do nothing."""

    def state_dict(self) -> dict[str, float]:
        return {"value": self.value}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.value = state["value"]


class AdaptiveKLController(FixedKLController):
    """Proportional control in log space: the KL above its target raises the coefficient.

    e = clip(KL / target - 1, -0.2, 0.2). The code's form is value *= 1 + e * episodes / horizon,
    the paper's is value *= 1 + K e (K = 0.1). They agree if the horizon is the batch / K.
    Source: openai/lm-human-preferences lm_human_preferences/train_policy.py:115-124; arXiv
    1909.08593 section 2.2. Neither has a floor or a ceiling.

    Args:
        kl_coef: starting value.
        kl_target: nats; the KL is summed over a completion's tokens and averaged over completions.
        kl_horizon: episodes; the shorter, the faster the coefficient moves.
        k_beta: K of the paper's form, which replaces the horizon; None for the code's form.
        floor, ceiling: the coefficient stays between them.
    """

    def __init__(
        self,
        kl_coef: float,
        kl_target: float,
        kl_horizon: float,
        k_beta: float | None = None,
        floor: float = 0.0,
        ceiling: float = math.inf,
    ) -> None:
        super().__init__(kl_coef)
        self._target = kl_target
        self.kl_horizon = kl_horizon
        self.k_beta = k_beta
        self.floor, self.ceiling = floor, ceiling

    @property
    def kl_target(self) -> float:
        return self._target

    def update(self, kl: float, episodes: int) -> None:
        """Adjust the coefficient to the KL of the last rollouts.

        Args:
            kl: nats, summed over tokens and averaged over the sequences of all ranks.
            episodes: number of sequences, all ranks together.

        Raises:
            ValueError: the KL is not finite; the coefficient does not change.
        """
        if not math.isfinite(kl):
            raise ValueError(f"KL is {kl}: the policy has diverged, or a log-prob is not finite")
        error = min(max(kl / self._target - 1, -0.2), 0.2)
        gain = episodes / self.kl_horizon if self.k_beta is None else self.k_beta
        self.value = min(max(self.value * (1 + error * gain), self.floor), self.ceiling)


def preview_kl(
    controller: FixedKLController, updates: int, batch_size: int, stiffness: float, lag: float
) -> list[tuple[float, float]]:
    """Simulate (KL, coefficient) before each update, for a policy that follows the optimum.

    A reward that is N(0, 1) under the reference has its optimum at KL = 1 / (2 coef^2) (arXiv
    1909.08593 section 3.1.1). At each update the policy goes a share ``1 / lag`` of the way there.
    This sketches the control loop, not learning: it shows whether a horizon lets the coefficient
    settle within the run.

    Args:
        controller: is updated in the simulation.
        updates: number of updates.
        batch_size: episodes in each.
        stiffness: the optimal KL at coefficient c is 1 / (2 (c stiffness)^2).
        lag: time constant of the policy, in updates.
    """
    kl, path = 0.0, []
    for _ in range(updates):
        path.append((kl, controller.value))
        wanted = 1 / (2 * (max(controller.value, 1e-9) * stiffness) ** 2)
        kl += (min(wanted, 1e3) - kl) / lag
        controller.update(kl, batch_size)
    return path
