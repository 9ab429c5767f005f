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
        self.estimate: float | None = None

    def start_at(self, estimate: float, anew: bool = False) -> None:
        """Start at an estimate of the coefficient.

        Args:
            estimate: the coefficient.
            anew: take it as it is, because it rests on samples of the policy as it is now. By
                default a second estimate, for another reward, moves the value in proportion to the
                first, so that what the controller found out since then is kept.
        """
        share = 1.0 if self.estimate is None or anew else self.value / self.estimate
        self.value = share * estimate
        self.estimate = estimate

    def update(self, kl: float, episodes: int) -> None:
        """Do nothing."""

    def state_dict(self) -> dict[str, float]:
        known = {} if self.estimate is None else {"estimate": self.estimate}
        return {"value": self.value} | known

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.value = state["value"]
        self.estimate = state.get("estimate")


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
        self.value = self._moved(self.value, kl, self._gain(kl, episodes))

    def _gain(self, kl: float, episodes: int) -> float:
        """Return the share of the error by which the coefficient moves; refuse a KL of NaN."""
        if not math.isfinite(kl):
            raise ValueError(f"KL is {kl}: the policy has diverged, or a log-prob is not finite")
        return episodes / self.kl_horizon if self.k_beta is None else self.k_beta

    def _moved(self, value: float, kl: float, gain: float) -> float:
        error = min(max(kl / self._target - 1, -0.2), 0.2)
        return self._within(value * (1 + error * gain))

    def start_at(self, estimate: float, anew: bool = False) -> None:
        super().start_at(estimate, anew)
        self.value = self._within(self.value)

    def _within(self, value: float) -> float:
        return min(max(value, self.floor), self.ceiling)


class ProportionalIntegralKLController(AdaptiveKLController):
    """Adaptive control that waits for the first approach, and answers at once afterwards.

    The adaptive controller lowers the coefficient while the KL is still on its way up, so the KL
    overshoots; and it is a pure integrator of a slow process, so the KL then swings. Here

        value = base * sqrt(KL / target),    base *= 1 + clip(KL / target - 1, -0.2, 0.2) * gain

    where gain is episodes / horizon, or K. The square root is the answer that brings a policy with
    normally distributed scores back to its target at once, since its KL goes with the coefficient's
    -2nd power; it is kept within 1/2 and 2. Until the KL first reaches its target, or (smoothed)
    has not risen for a whole horizon, the coefficient does not change; and so again after an
    estimate from the policy's samples.

    Args: as for ``AdaptiveKLController``.
    """

    SMOOTHING = 0.5  # weight of the newest KL in the level, which says whether the KL still rises
    RISE = 1.03  # how many times as high as before the level must be to count as risen

    def __init__(
        self,
        kl_coef: float,
        kl_target: float,
        kl_horizon: float,
        k_beta: float | None = None,
        floor: float = 0.0,
        ceiling: float = math.inf,
    ) -> None:
        super().__init__(kl_coef, kl_target, kl_horizon, k_beta, floor, ceiling)
        self.base = kl_coef
        self.level = 0.0
        self.highest = 0.0
        self.waited = 0.0  # in horizons, since the level was last at its highest
        self.begun = False

    def update(self, kl: float, episodes: int) -> None:
        """Adjust the coefficient to the KL of the last rollouts; arguments as above.

        Raises:
            ValueError: the KL is not finite; nothing changes.
        """
        gain = self._gain(kl, episodes)
        self.level += self.SMOOTHING * (kl - self.level)
        self.waited += gain
        if self.level > self.RISE * self.highest:
            self.highest, self.waited = self.level, 0.0
        # 10 times a gain of 0.1 is a little less than 1.
        self.begun = self.begun or kl >= self._target or self.waited > 1 - 1e-9
        if not self.begun:
            return

        share = kl / self._target
        self.base = self._moved(self.base, kl, gain)
        self.value = self._within(self.base * min(max(share, 0.25), 4.0) ** 0.5)

    def start_at(self, estimate: float, anew: bool = False) -> None:
        before = self.value
        super().start_at(estimate, anew)
        # The base moves in the same proportion; before the first estimate there is none.
        first = anew or math.isnan(before)
        self.base = self.value if first else self.base * self.value / before
        if anew:  # the policy is on its way to another optimum, so wait for it as at the start
            self.highest, self.waited, self.begun = 0.0, 0.0, False

    def state_dict(self) -> dict[str, float]:
        return super().state_dict() | {
            "base": self.base,
            "level": self.level,
            "highest": self.highest,
            "waited": self.waited,
            "begun": float(self.begun),
        }

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        super().load_state_dict(state)
        self.base, self.level, self.highest = state["base"], state["level"], state["highest"]
        self.waited, self.begun = state["waited"], bool(state["begun"])


def controller_of(
    kind: str,
    kl_coef: float,
    kl_target: float,
    kl_horizon: float,
    k_beta: float,
    floor: float = 0.0,
    ceiling: float = math.inf,
) -> FixedKLController:
    """Return the controller that ``kl_controller`` names, at its start.

    Args:
        kind: "fixed", "adaptive" (by the horizon), "adaptive_paper" (by K) or "adaptive_pi".
        others: see ``AdaptiveKLController``.
    """
    if kind == "fixed":
        return FixedKLController(kl_coef)
    by_k = k_beta if kind == "adaptive_paper" else None
    made = ProportionalIntegralKLController if kind == "adaptive_pi" else AdaptiveKLController
    return made(kl_coef, kl_target, kl_horizon, by_k, floor, ceiling)


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
