"""Whether a loaded model is what the roles take it for: checked once, on a few tokens, at load.

Every log-prob of PPO rests on four things that a family may do otherwise than is thought, in
silence: its logits are its output head's of the trunk's last states, and what the config says is
done to them behind it; sampling with a cache gives what a whole pass gives; padding on the left
changes nothing. Each is held against the model's own forward pass, on one row at a time, with
adapters that are not zero.
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
# Nats that log-probs may differ by, on average over the tokens, for each unit of the largest logit:
# rounding alone makes 1e-6 in fp32 and 5e-3 in bf16, where another token of the past read or not
# makes tenths.
ALLOWED = {True: 1e-4, False: 2e-2}
RAMP = 60.0  # the largest logit of the ramp, beyond any trained model's


def check_passes(actors: "Actors", role: str) -> None:
    """Raise InputError unless the role's passes give what its model's own forward pass gives.

    Args:
        actors: the roles.
        role: one that has logits (policy, reference, or a contender).
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
            f"{kind}: a first pass over a few tokens fails, so it is not supported: {said[:200]}"
        ) from error


def _check_head(actors: "Actors", role: str) -> None:
    """The trunk's states go into the head, and what comes of its output is the logit rule.

    The head's output is replaced by a ramp of numbers on its way, so that a cap is seen whatever
    the size of the model's logits.
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
        raise InputError(f"{kind}: its logits do not come from its output head: not supported")

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
            f"{kind}: as the {role} it gives hidden states that are not finite (its weights are "
            "broken, or the precision is too low: try --precision fp32)"
        )

    rounding = 1e-3 if actors.in_fp32 else 0.1
    if not _close(states, read[0], rounding):
        raise InputError(
            f"{kind}: its output head reads something else than its trunk's last states: not "
            "supported"
        )

    # Some composite models leave out what the config of their language model asks for (Aya Vision).
    promised = actors.logit_rule(role)
    rounding = 1e-5 if ramp.dtype == torch.float32 else 1e-2
    for rule in (promised, LogitRule()):
        if ramp.shape == made.shape and _close(rule(ramp), made, rounding):
            actors.set_logit_rule(role, rule)
            return

    said = promised.said() or "as they are"
    raise InputError(
        f"{kind}: its config says that its logits are taken {said}, but it does something else to "
        "them: not supported"
    )


def _check_rows(actors: "Actors", role: str) -> None:
    """Sampling with a cache, a whole padded pass, and plain rows give the same log-probs."""
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
                f"{type(model).__name__}: {what} gives log-probs that differ from those of its own "
                f"pass over each row, by {gap:.2g} nats a token (rounding makes up to "
                f"{allowed:.1g}): such models are not supported"
            )


def _tokens(head: nn.Module, count: int) -> Tensor:
    """Token ids (count,) from all over the vocabulary."""
    rows = head_weights(head)[0].shape[0]
    return torch.randint(0, rows, (count,), generator=torch.Generator().manual_seed(rows))


def _close(found: Tensor, expected: Tensor, rounding: float) -> bool:
    found, expected = found.float(), expected.float()
    room = rounding * (1 + expected.abs().max())
    return bool(((found - expected).abs() <= room).all())


@contextmanager
def _noise_in_new_adapters(actors: "Actors") -> Iterator[None]:
    """Within, LoRA whose B is zero, as it begins, is not: a pass that skipped it would be seen."""
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
