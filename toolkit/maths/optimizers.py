"""Adam with TensorFlow 1's epsilon, which the original runs used."""

import math
from collections.abc import Callable

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT


class AdamTFStyle(Optimizer):
    """Adam that adds epsilon before it corrects the bias of the second moment.

    step = lr sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps). torch.optim.Adam corrects v first,
    so its effective epsilon is eps * sqrt(1 - b2^t): 31 times smaller at the first step, which
    makes early updates with small gradients much larger. At eps = 0 both agree.
    Source: Kingma & Ba arXiv 1412.6980, end of section 2 (the "epsilon hat" form).

    Args:
        params: as for any torch optimizer.
        lr: learning rate.
        betas: decay rates of the two moments.
        eps: added to sqrt(v).
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-5,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-5,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()

        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue

                state = self.state[p]
                if not state:
                    state["step"] = 0
                    state["m"] = torch.zeros_like(p)
                    state["v"] = torch.zeros_like(p)

                state["step"] += 1
                t = state["step"]
                state["m"].lerp_(p.grad, 1 - beta1)
                state["v"].mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)

                lr = group["lr"] * math.sqrt(1 - beta2**t) / (1 - beta1**t)
                p.addcdiv_(state["m"], state["v"].sqrt().add_(group["eps"]), value=-lr)

        return loss
