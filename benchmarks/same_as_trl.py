"""The same batch, weights and settings through TRL 1.12's PPOTrainer and this one, compared.

    python benchmarks/same_as_trl.py [--adapters]

TRL 1.12 (in the environment that ppo_vs_trl.py makes) runs one update of tiny random models, four
of them, with KL between policy and reference, and writes down its tensors. This project's trainer
gets the same models and the same completions, and works everything else out anew. Compared are
log-probs, KL, values, scores, returns, advantages, and the statistics of both epochs. TRL whitens
by the sample variance, this project by the population's (as the original code): its advantages are
multiplied by sqrt(n / (n - 1)) for that, and nothing else is adjusted. The second epoch's numbers
are those of weights that the optimizer has moved, here AdamW with weight decay. With --adapters the
reward and the value model are PeftModels, LoRA in the trunk and the head in modules_to_save.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ppo_vs_trl import ROOT, peer_python, tokenizer

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 500,
    "max_position_embeddings": 64,
}
COUNT, NEW = 16, 10


def settings(folder: str) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "per_device_train_batch_size": COUNT,
        "num_ppo_epochs": 2,
        "local_rollout_forward_batch_size": COUNT,
        "response_length": NEW,
        "temperature": 0.7,
        "total_episodes": COUNT,
        "learning_rate": 3e-3,
        "kl_coef": 0.2,
        "use_cpu": True,
        "num_sample_generations": 0,
        "report_to": "none",
        "save_strategy": "no",
        "seed": 0,
        "bf16": False,
        "gamma": 0.97,
        "lam": 0.9,
        "vf_coef": 0.3,
        "weight_decay": 0.1,
        "lr_scheduler_type": "cosine",
    }


def prompts() -> list[list[int]]:
    import torch

    generator = torch.Generator().manual_seed(0)
    lengths = [5 + i % 4 for i in range(COUNT)]
    return [torch.randint(3, 500, (n,), generator=generator).tolist() for n in lengths]


def make_models(folder: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    torch.manual_seed(0)
    words = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = LlamaConfig(**SHAPE, **words)
    LlamaForCausalLM(config).save_pretrained(folder / "policy")
    LlamaForCausalLM(config).save_pretrained(folder / "reference")
    classifier = LlamaConfig(**SHAPE, **words, num_labels=1)
    for name in ("reward", "value"):
        model = LlamaForSequenceClassification(classifier)
        torch.nn.init.normal_(model.score.weight, std=0.3)
        model.save_pretrained(folder / name)


def make_adapters(folder: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForSequenceClassification

    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="SEQ_CLS")
    for name in ("reward", "value"):
        base = LlamaForSequenceClassification.from_pretrained(folder / name)
        model: Any = get_peft_model(base, config)
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(parameter, std=0.1)
        model.save_pretrained(folder / f"{name}-adapter")


def load_models(folder: Path) -> dict[str, Any]:
    from peft import PeftModel
    from transformers import LlamaForCausalLM, LlamaForSequenceClassification

    models: dict[str, Any] = {
        "model": LlamaForCausalLM.from_pretrained(folder / "policy"),
        "ref_model": LlamaForCausalLM.from_pretrained(folder / "reference"),
        "reward_model": LlamaForSequenceClassification.from_pretrained(folder / "reward"),
        "value_model": LlamaForSequenceClassification.from_pretrained(folder / "value"),
    }
    for name in ("reward", "value"):
        adapter = folder / f"{name}-adapter"
        if adapter.is_dir():
            models[f"{name}_model"] = PeftModel.from_pretrained(
                models[f"{name}_model"], str(adapter), is_trainable=name == "value"
            )
    return models


def run_trl(folder: Path) -> None:
    """TRL's update; its local variables are read where a callback is called from them."""
    import torch
    from datasets import Dataset
    from safetensors.torch import save_file
    from transformers import TrainerCallback
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    logged: dict[str, float] = {}

    class Spy(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kw: Any) -> None:
            logged.update({k: float(v) for k, v in logs.items()})

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            frame = sys._getframe()
            while frame and "query_responses" not in frame.f_locals:
                frame = frame.f_back  # type: ignore[assignment]
            names = (
                "queries",
                "responses",
                "logprobs",
                "ref_logprobs",
                "values",
                "scores",
                "kl",
                "returns",
                "advantages",
            )
            tensors = {name: frame.f_locals[name].contiguous() for name in names}
            tensors |= {f"log {k}": torch.tensor(v) for k, v in logged.items()}
            save_file(tensors, folder / "trl.safetensors")

    models = load_models(folder)
    args = PPOConfig(**settings(str(folder / "out")), gradient_checkpointing=False)
    rows = Dataset.from_dict({"input_ids": prompts()})
    PPOTrainer(
        args,
        tokenizer(),
        models["model"],
        models["ref_model"],
        models["reward_model"],
        rows,
        models["value_model"],
        eval_dataset=rows,
        callbacks=[Spy()],
    ).train()


def run_ours(folder: Path) -> bool:
    """Our update on TRL's completions; prints the differences, returns whether all are small."""
    import torch
    from safetensors.torch import load_file

    from toolkit.scoring.scorer import TokenCompletions
    from toolkit.training.ppo.rollouts import Rollout
    from toolkit.trl_compat import PPOConfig, PPOTrainer

    theirs = load_file(folder / "trl.safetensors")
    trainer = PPOTrainer(
        PPOConfig(**settings(str(folder / "ours")), disable_tqdm=True),
        tokenizer(),
        train_dataset=prompts(),
        **load_models(folder),
    )
    actors, seen = trainer.model, {}

    @torch.no_grad()
    def collect(update: int) -> Rollout:
        ids, completions = theirs["queries"], theirs["responses"]
        prompt_mask, mask = ids != 0, torch.ones_like(completions, dtype=torch.bool)
        whole = torch.cat([ids, completions], 1), torch.cat([prompt_mask, mask], 1)
        logprobs = actors.policy_outputs(*whole, completions, 0.7).logprobs
        reference = actors.reference_logprobs(*whole, completions, 0.7)
        rows = [i[m].tolist() for i, m in zip(ids, prompt_mask, strict=True)]
        seen_by = TokenCompletions.seen(rows, completions, mask, trainer.processing_class, actors)
        scores = trainer.rewards(seen_by)
        everything = torch.ones(COUNT, dtype=torch.bool)
        values = actors.values(*whole, NEW)
        rollout = Rollout(
            ids,
            prompt_mask,
            completions,
            mask,
            logprobs,
            reference,
            values,
            scores,
            everything,
            everything,
        )
        seen.update(
            logprobs=logprobs,
            ref_logprobs=reference,
            values=values,
            scores=scores,
            kl=logprobs - reference,
        )
        return rollout

    advantages = trainer.advantages
    bessel = (COUNT * NEW / (COUNT * NEW - 1)) ** 0.5

    def watched(*args: Any) -> Any:
        ours, returns = advantages(*args)
        seen.update(returns=returns, advantages=ours / bessel)
        return ours / bessel, returns

    trainer.collect, trainer.advantages = collect, watched  # type: ignore[method-assign]
    row = trainer.train()[0]
    worst = 0.0
    print(f"{'':28}{'largest difference':>20}{'largest value':>16}")
    for name, tensor in seen.items():
        difference = (tensor - theirs[name]).abs().max().item()
        worst = max(worst, difference)
        print(f"{name:28}{difference:20.2e}{theirs[name].abs().max().item():16.3f}")
    for key, value in theirs.items():
        name = key.removeprefix("log ")
        if key.startswith("log ") and name in row and name not in ("lr", "episode"):
            difference = abs(row[name] - value.item())
            if name == "val/ratio_var":
                continue  # TRL's is over epochs by the sample variance
            worst = max(worst, difference)
            print(f"{name:28}{difference:20.2e}{abs(value.item()):16.3f}")
    print(f"worst: {worst:.2e}")
    return worst < 1e-5


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--peer", type=Path, default=ROOT / ".venv-trl-1.12", help="its environment"
    )
    parser.add_argument("--adapters", action="store_true", help="reward and value by LoRA")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return run_trl(args.worker)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_models(folder)
        if args.adapters:
            make_adapters(folder)
        env = os.environ | {"ACCELERATE_USE_CPU": "true", "CI": "1", "HF_HUB_OFFLINE": "1"}
        words = [peer_python(args.peer), __file__, "--worker", name]
        subprocess.run(words, check=True, env=env, capture_output=True)
        sys.exit(0 if run_ours(folder) else 1)


if __name__ == "__main__":
    main()
