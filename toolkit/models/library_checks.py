"""Small checks of the libraries: each was once silently wrong, or would be without a fix.

Each returns what is wrong, or None. Together they take a second, and load nothing.
"""

import copy
from collections.abc import Callable
from typing import Any

import bitsandbytes as bnb
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from toolkit.maths.sequences import pad, position_ids
from toolkit.models.actors import POLICY, REFERENCE
from toolkit.models.adapters import lora_config
from toolkit.models.generation import draw_uniforms, sample
from toolkit.models.loading import cure_cpu_repacking
from toolkit.models.roles import Roles

IDS, MASK = pad([[5, 6, 7, 8, 9, 10, 11, 12], [9, 8, 7, 6, 5]], 0, "left")


def _roles() -> tuple[Roles, Any]:
    """Make roles with nonzero adapters, and a copy of their base."""
    torch.manual_seed(0)
    # Use learned positions, since rotary ones are relative and hide a shift.
    config = GPT2Config(
        n_embd=64,
        n_layer=2,
        n_head=4,
        vocab_size=128,
        n_positions=64,
        bos_token_id=0,
        eos_token_id=0,
    )
    base = GPT2LMHeadModel(config).requires_grad_(False).eval()
    bare = copy.deepcopy(base)
    lora = lora_config(4, 8, "all-linear", "CAUSAL_LM")
    roles = Roles(base, lora, value="trunk", checked=False)  # these are the checks
    for name, parameter in roles.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)
    return roles, bare


def gradient_after_sampling() -> str | None:
    """Check that a 4-bit layer's gradient is the same before and after a pass in eval mode.

    bitsandbytes repacks weights on CPUs with AVX512_BF16; without the fix, gradients are wrong.
    """
    torch.manual_seed(0)
    layer = bnb.nn.Linear4bit(64, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4")
    layer.load_state_dict(nn.Linear(64, 64, bias=False).state_dict())
    layer = layer.to("cuda" if torch.cuda.is_available() else "cpu")
    cure_cpu_repacking(nn.Sequential(layer))
    x = torch.randn(4, 64, device=layer.weight.device)

    def gradient() -> torch.Tensor:
        leaf = x.clone().requires_grad_()
        layer(leaf).square().sum().backward()
        assert leaf.grad is not None
        return leaf.grad

    before = gradient()
    layer.eval()
    with torch.no_grad():
        layer(x)
    worst = (gradient() - before).abs().max().item()
    return None if worst < 1e-4 else f"gradients differ by {worst:.2g} after a pass in eval mode"


def padding_on_the_left() -> str | None:
    """Check that explicit positions give left-padded rows the right logits."""
    roles, _ = _roles()
    with torch.no_grad():
        padded = roles.logits(POLICY, IDS, MASK, 2)[1]
        alone = roles.logits(POLICY, IDS[1:, 3:], MASK[1:, 3:], 2)[0]
    worst = (padded - alone).abs().max().item()
    return None if worst < 1e-4 else f"logits of a left-padded row differ by {worst:.2g}"


def captured_logprobs() -> str | None:
    """Check the log-probs of sampling against a whole pass, and so cache and positions."""
    roles, _ = _roles()
    noise = draw_uniforms(2, 8, torch.Generator().manual_seed(0))
    sampled = sample(roles.step(), IDS, MASK, noise, 0.7, 0)
    whole = torch.cat([IDS, sampled.completion_ids], 1), torch.cat([MASK, sampled.mask], 1)
    with torch.no_grad():
        again = roles.policy_outputs(*whole, sampled.completion_ids, 0.7).logprobs
    worst = (again - sampled.logprobs).abs().max().item()
    return None if worst < 1e-3 else f"captured log-probs differ by {worst:.2g}"


def adapters_off() -> str | None:
    """Check that the reference equals the bare base bit for bit, whatever the adapters hold."""
    roles, bare = _roles()
    with torch.no_grad():
        policy = roles.logits(POLICY, IDS, MASK, 2)
        reference = roles.logits(REFERENCE, IDS, MASK, 2)

        ids, mask = IDS[:, :-1], MASK[:, :-1]
        hidden = bare.transformer(
            input_ids=ids.masked_fill(~mask, 0),
            attention_mask=mask.long(),
            position_ids=position_ids(mask),
            use_cache=False,
        ).last_hidden_state

        alone = bare.lm_head(hidden[:, -2:])

    if torch.equal(policy, reference):
        return "the policy's adapter does nothing"
    return None if torch.equal(reference, alone) else "the reference is not the bare base"


LIBRARY_CHECKS: dict[str, Callable[[], str | None]] = {
    "4-bit gradients after sampling": gradient_after_sampling,
    "padding on the left": padding_on_the_left,
    "captured log-probs": captured_logprobs,
    "adapters off is the base": adapters_off,
}
