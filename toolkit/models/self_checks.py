"""Checks at load, on a few tokens, that a model does what the roles rely on.

Every log-prob of PPO relies on four things that a family may silently do differently: its logits
are its output head applied to the trunk's last states; the config says what happens to them after
that; sampling with a cache gives what a whole pass gives; and padding on the left changes nothing.
Each is compared with the model's own forward pass, one row at a time, with nonzero adapters.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from toolkit.errors import InputError
from toolkit.maths.sequences import pad
from toolkit.models.families import FAILURES, LogitRule
from toolkit.models.generation import draw_uniforms, sample
from toolkit.models.peft_wrappers import head_weights

if TYPE_CHECKING:
    from toolkit.models.actors import Actors

LENGTHS, NEW = (7, 4), 4  # tokens of the rows that are sampled from, and new ones of each
# Nats by which log-probs may differ, on average over tokens, for each unit of the largest logit:
# rounding alone makes 1e-6 in fp32 and 5e-3 in bf16; one wrong token in the past makes tenths.
ALLOWED = {True: 1e-4, False: 2e-2}
RAMP = 60.0  # the largest logit of the ramp, beyond any trained model's


def check_passes(actors: "Actors", role: str) -> None:
    """Raise InputError unless the role's passes agree with its model's own forward pass.

    Args:
        actors: the roles.
        role: a role with logits (policy, reference, or a contender).
    """
    try:
        with torch.no_grad(), actors.precision():
            _check_head(actors, role)
            with _noise_in_new_adapters(actors):
                _check_rows(actors, role)
    except (InputError, torch.OutOfMemoryError):
        raise
    except FAILURES as error:
        kind = type(actors.language_model(role)).__name__
        said = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{kind}: a pass over a few tokens fails, so the model is not supported: {said[:200]}"
        ) from error


def _check_head(actors: "Actors", role: str) -> None:
    """Check that the head reads the trunk's states, and that its output follows the logit rule.

    The head's output is replaced by a ramp of numbers, which shows a cap whatever the size of the
    model's logits.
    """
    model, head = actors.language_model(role), actors.output_head(role)
    kind = type(model).__name__
    ids = _tokens(head, 4).unsqueeze(0).to(actors.device)
    read: list[Tensor] = []
    ramp: Tensor | None = None

    def watch(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        nonlocal ramp
        read.append(inputs[0])
        numbers = torch.linspace(-RAMP, RAMP, output.shape[-1], device=output.device)
        ramp = numbers.to(output.dtype).expand_as(output)
        return ramp

    hook = head.register_forward_hook(watch)
    try:
        made = model(input_ids=ids, use_cache=False).logits.float()
    finally:
        hook.remove()
    if ramp is None:
        raise InputError(f"{kind} is not supported: its logits do not come from its output head")

    states = actors.trunk(
        role,
        4,
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        use_cache=False,
        position_ids=torch.arange(4, device=ids.device).unsqueeze(0),
    )
    if not bool(states.isfinite().all()):
        raise InputError(
            f"{kind}: as the {role} it has hidden states that are not finite (its weights are "
            "broken, or the precision is too low: try --precision fp32)"
        )

    rounding = 1e-3 if actors.in_fp32 else 0.1
    if not _close(states, read[0], rounding):
        raise InputError(
            f"{kind} is not supported: its output head reads something else than its trunk's "
            "last states"
        )

    # Some composite models ignore a rule in the config of their language model (Aya Vision).
    promised = actors.logit_rule(role)
    rounding = 1e-5 if ramp.dtype == torch.float32 else 1e-2
    for rule in (promised, LogitRule()):
        if ramp.shape == made.shape and _close(rule(ramp), made, rounding):
            actors.set_logit_rule(role, rule)
            return

    said = promised.said() or "unchanged"
    raise InputError(
        f"{kind} is not supported: its config says that its logits are {said}, but the model does "
        "something else"
    )


def _check_rows(actors: "Actors", role: str) -> None:
    """Check that sampling with a cache, a padded pass and single rows give equal log-probs."""
    model, head = actors.language_model(role), actors.output_head(role)
    drawn = _tokens(head, sum(LENGTHS)).tolist()
    prompts = [drawn[: LENGTHS[0]], drawn[LENGTHS[0] :]]
    ids, mask = (t.to(actors.device) for t in pad(prompts, 0, "left"))

    noise = draw_uniforms(len(prompts), NEW, torch.Generator().manual_seed(0))
    sampled = sample(actors.step(role), ids, mask, noise, 1.0, 0)
    whole = torch.cat([ids, sampled.completion_ids], 1), torch.cat([mask, sampled.mask], 1)
    again = actors.logprobs(role, *whole, sampled.completion_ids, 1.0)

    model = actors.language_model(role)
    plain, largest = [], 1.0
    for prompt, completion in zip(prompts, sampled.completion_ids, strict=True):
        row = torch.cat([torch.tensor(prompt, device=completion.device), completion])
        logits = model(input_ids=row.unsqueeze(0), use_cache=False).logits[0, -NEW - 1 : -1].float()
        if actors.banned is not None:
            logits = logits + actors.banned
        largest = max(largest, logits[logits > -RAMP * 1e3].abs().max().item())
        plain.append(logits.log_softmax(-1).gather(-1, completion.unsqueeze(1)).squeeze(1))
    expected = torch.stack(plain)

    allowed = ALLOWED[actors.in_fp32] * largest
    for what, found in (
        ("sampling with its cache", sampled.logprobs),
        ("a pass over rows padded on the left", again),
    ):
        gap = (found - expected).abs().mean().item()
        if not gap <= allowed:
            raise InputError(
                f"{type(model).__name__} is not supported: log-probs of {what} differ from "
                f"those of its own pass over each row by {gap:.2g} nats a token (rounding makes "
                f"up to {allowed:.1g})"
            )


def _tokens(head: nn.Module, count: int) -> Tensor:
    """Token ids (count,) spread over the vocabulary."""
    rows = head_weights(head)[0].shape[0]
    return torch.randint(0, rows, (count,), generator=torch.Generator().manual_seed(rows))


def _close(found: Tensor, expected: Tensor, rounding: float) -> bool:
    found, expected = found.float(), expected.float()
    room = rounding * (1 + expected.abs().max())
    return bool(((found - expected).abs() <= room).all())


@contextmanager
def _noise_in_new_adapters(actors: "Actors") -> Iterator[None]:
    """Set LoRA's initial zeros to noise inside, so that a pass without LoRA shows."""
    generator = torch.Generator().manual_seed(0)
    new = [
        parameter
        for name, parameter in actors.named_parameters()
        if "lora_B" in name and not parameter.any()
    ]
    try:
        for parameter in new:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.02 * noise)
        yield
    finally:
        for parameter in new:
            parameter.zero_()
