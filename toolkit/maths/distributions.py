"""Log-probabilities and entropies of the temperature-scaled next-token distribution."""

import torch
from torch import Tensor


def token_logprobs(logits: Tensor, token_ids: Tensor, temperature: float) -> Tensor:
    """log softmax(logits / temperature) at ``token_ids``, in fp32.

    The same temperature as in sampling: with another one the KL is of a distribution that nobody
    samples from (and climbs too fast; spec 1.3).

    Args:
        logits: (B, C, V), any float type.
        token_ids: int (B, C).

    Returns:
        (B, C) fp32, in nats.
    """
    scaled = logits.float() / temperature
    chosen = scaled.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1)
    return chosen - scaled.logsumexp(dim=-1)


def entropy(logits: Tensor, temperature: float) -> Tensor:
    """Entropy in nats over the vocabulary of softmax(logits / temperature): (..., V) -> (...).

    Source: openai/lm-human-preferences lm_human_preferences/utils/core.py:290-292.
    """
    logprobs = torch.log_softmax(logits.float() / temperature, dim=-1)
    return -(logprobs.exp() * logprobs).sum(dim=-1)


def kl_between(logits: Tensor, other_logits: Tensor, temperature: float) -> Tensor:
    """KL(p || q) in nats over the whole vocabulary: (..., V) twice -> (...)."""
    p = torch.log_softmax(logits.float() / temperature, dim=-1)
    q = torch.log_softmax(other_logits.float() / temperature, dim=-1)
    return (p.exp() * (p - q)).sum(dim=-1)
