"""How near a policy comes to the best that its KL allows: PPO against the exponential tilt.

    python benchmarks/frontier.py --model_name_or_path MODEL --prompts FILE --prompt_tokens 33 \
        --lexicon FILE --reference outputs/reference.pt outputs/ppo/checkpoint-*

The KL-optimal policy is the reference reweighted by exp(score / price); from samples of the
reference it is estimated by self-normalized importance weights (toolkit/maths/frontier.py). Each
policy named is sampled on the same prompts; printed are its KL and normalized score (in standard
deviations of the reference's, from its mean), the optimum at that KL, their ratio, and how many
samples the optimum really rests on. --reference keeps the reference's scores for the next time.
"""

import argparse
import re
from pathlib import Path

import torch
from safetensors.torch import load_file
from tqdm.auto import tqdm

from toolkit import Roles, load_base, load_tokenizer
from toolkit.data.prompts import read_prompts
from toolkit.maths.frontier import tilt_at_kl
from toolkit.models.actors import POLICY, REFERENCE
from toolkit.models.adapters import lora_config
from toolkit.models.sampling import SamplingRule
from toolkit.scoring.functions import Lexicon
from toolkit.scoring.scorer import TokenCompletions


@torch.no_grad()
def sample_scores(roles, role, prompts, rule, tokenizer, scorer, each, seed):  # noqa: ANN001,ANN201
    """Scores and sampled KL, both (prompts, each)."""
    generator = torch.Generator().manual_seed(seed)
    scores, kls = [], []
    for prompt in tqdm(prompts, desc=f"Sampling the {role}", leave=False):
        parts = []
        for start in range(0, each, 512):
            batch = [prompt] * min(512, each - start)
            mask, sampled = rule.sample(roles.step(role), batch, generator, roles.device)
            seen = TokenCompletions.seen(batch, sampled.completion_ids, sampled.mask, tokenizer)
            values = torch.tensor(scorer.finite_scores(seen))
            kl = torch.zeros(len(batch))
            if role == POLICY:
                ids = torch.cat([torch.tensor(batch), sampled.completion_ids], dim=1)
                whole = torch.cat([mask, sampled.mask], dim=1)
                reference = roles.reference_logprobs(
                    ids, whole, sampled.completion_ids, rule.temperature
                )
                kl = (sampled.logprobs - reference).sum(dim=1)
            parts.append((values, kl))
        scores.append(torch.cat([p[0] for p in parts]))
        kls.append(torch.cat([p[1] for p in parts]))
    return torch.stack(scores), torch.stack(kls)


def load_policy(roles: Roles, path: Path) -> None:
    """The weights of a checkpoint, or of saved adapters, into the roles' policy."""
    with torch.no_grad():
        if (path / "weights.safetensors").is_file():
            weights = load_file(path / "weights.safetensors")
            for name, parameter in roles.named_parameters():
                if ".policy." in name:
                    parameter.copy_(weights[name])
            return
        weights = load_file(path / "policy" / "adapter_model.safetensors")
        for name, parameter in roles.model.named_parameters():
            if ".policy." in name:
                parameter.copy_(weights[name.replace(".policy.", ".")])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("policies", type=Path, nargs="*", help="checkpoints, or adapters folders")
    parser.add_argument("--model_name_or_path", required=True)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--prompts", required=True)
    parser.add_argument("--prompt_tokens", type=int)
    parser.add_argument("--skip", type=int, default=1400, help="rows to pass over first")
    parser.add_argument("--lexicon", required=True)
    parser.add_argument("--reference", type=Path, required=True, help="file of reference scores")
    parser.add_argument("--count", type=int, default=32, help="prompts")
    parser.add_argument("--each", type=int, default=8192, help="reference samples of each")
    parser.add_argument("--policy_each", type=int, default=256, help="policy samples of each")
    parser.add_argument("--response_length", type=int, default=24)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--lora_r", type=int, default=16)
    parser.add_argument("--lora_alpha", type=int, default=32)
    args = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = load_tokenizer(args.model_name_or_path)
    prompts, _ = read_prompts(
        args.prompts, tokenizer, 10_000, args.prompt_tokens, args.count, args.skip
    )
    rule = SamplingRule(args.response_length, args.temperature, tokenizer.pad_token_id)
    lora = lora_config(args.lora_r, args.lora_alpha, "all-linear", "CAUSAL_LM")
    roles = Roles(load_base(args.model_name_or_path, args.precision), lora)
    scorer = Lexicon(args.lexicon)
    if args.reference.is_file():
        reference = torch.load(args.reference, weights_only=True)
    else:
        reference, _ = sample_scores(
            roles, REFERENCE, prompts, rule, tokenizer, scorer, args.each, seed=1
        )
        args.reference.parent.mkdir(parents=True, exist_ok=True)
        torch.save(reference, args.reference)
    mean, std = reference.mean().item(), reference.std().item()
    halves = reference.view(len(prompts), 2, -1).unbind(1)
    print(f"reference: {tuple(reference.shape)} samples, score {mean:.3f}, std {std:.3f}")
    print(f"{'policy':32}{'KL':>8}{'score':>8}{'best':>8}{'ratio':>8}{'halves':>16}{'support':>9}")
    for path in sorted(args.policies, key=lambda p: [int(n) for n in re.findall(r"\d+", p.name)]):
        load_policy(roles, path)
        scores, kls = sample_scores(
            roles, POLICY, prompts, rule, tokenizer, scorer, args.policy_each, seed=2
        )
        kl, normalized = kls.mean().item(), (scores.mean().item() - mean) / std
        tilt = tilt_at_kl(reference, kl)
        best = (tilt.score - mean) / std
        by_half = [(tilt_at_kl(half, kl).score - mean) / std for half in halves]
        print(
            f"{path.parent.name + '/' + path.name:32}{kl:8.3f}{normalized:8.3f}{best:8.3f}"
            f"{normalized / best:8.3f}{by_half[0]:8.3f}{by_half[1]:8.3f}"
            f"{tilt.effective_samples:9.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
