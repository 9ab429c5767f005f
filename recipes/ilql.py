"""Train a policy and a critic on completions with rewards, offline: implicit language Q-learning.

    preftune ilql --comparisons outputs/comparisons.jsonl --rewards scores

This takes the same comparisons as preftune reward, and holds out the same rows for the same --seed
and --eval_rows, but nothing is sampled while training. The policy's LoRA adapter learns all
completions by likelihood; the critic, an adapter of its own with heads Q and V, learns which tokens
lead to high rewards: +1 for a pick and -1 for the others, or the `scores` of each row. When the
policy writes, --beta times Q - V is added to its logits: how far it goes is chosen afterwards.
OUTPUT_DIR/adapters holds both, and preftune evaluate --contenders
ilql=OUTPUT_DIR/adapters:beta=1,4,16 shows the curve of score against KL. Killed, it goes on by
--resume auto. You should see loss/q fall, and eval/correlation (of Q and the rewards of held-out
completions) rise above 0.
"""

from toolkit.cli import run, write_run

from typing import Any

from toolkit.arguments.comparisons import ComparisonArguments
from toolkit.arguments.lora import LoraArguments, StartArguments
from toolkit.arguments.model import ModelArguments
from toolkit.data.outputs import claim_output
from toolkit.next_step import Step, again, beside, evaluation, reward_beside, say_next, wrote
from toolkit.scoring.arguments import short_forms
from toolkit.terminal import counted, say, say_figures
from toolkit.training.ilql.config import ILQLConfig


def main(
    model_args: ModelArguments,
    lora: LoraArguments,
    data_args: ComparisonArguments,
    args: StartArguments,
    config: ILQLConfig,
) -> list[dict[str, Any]]:
    import torch

    from toolkit.data.from_arguments import encoder_of, split_picks
    from toolkit.data.tokens import closing_id, stop_ids
    from toolkit.models.adapters import check_adapter
    from toolkit.models.from_arguments import base_of, longest_text, lora_of, tokenizer_of
    from toolkit.models.roles import Roles
    from toolkit.training.baselines.data import prepare_completions
    from toolkit.training.ilql.data import SCHEMA, rewarded, with_learned_rewards
    from toolkit.training.ilql.outputs import check_reload, save
    from toolkit.training.ilql.trainer import ILQLTrainer
    from toolkit.training.ppo.checkpoints import checkpoints, clear_run

    # Check all data before a model is loaded.
    replaced = args.overwrite or config.resume is not None
    begun = bool(checkpoints(config.folder))
    out = claim_output(config.folder, replaced, "output_dir", goes_on=begun)
    name, tokenizer = model_args.model_name_or_path, tokenizer_of(model_args, args.policy_adapter)
    if args.policy_adapter is not None:
        check_adapter(
            args.policy_adapter, name, "CAUSAL_LM", "--policy_adapter", model_args.precision
        )
    stop_id = closing_id(tokenizer, stop_ids(tokenizer, args.stop_token))
    encoder = encoder_of(data_args, tokenizer, longest_text(model_args, config.max_length))
    wants = "scores" if config.rewards == "scores" else "best"
    data = prepare_completions(
        split_picks(data_args, config.seed, wants), encoder, stop_id, rewarded(config), SCHEMA, out
    )
    train, held_out, facts = with_learned_rewards(data, config.normalize_rewards)
    say_figures("data", facts)

    # Load the model: one base, the policy's adapter, the critic's, and its heads.
    torch.manual_seed(config.seed)  # for peft's random A matrices and the heads' first layers
    roles = Roles(
        base_of(model_args),
        lora_of(lora, "CAUSAL_LM"),
        policy_adapter=args.policy_adapter,
        autocast_dtype=torch.bfloat16 if config.bf16 else None,
    )
    heads = roles.add_critic(None if config.q_head == "auto" else config.q_head)
    trainer = ILQLTrainer(
        config, roles, train, held_out, tokenizer.pad_token_id, {"rows": facts["digest"]}
    )
    if args.overwrite and config.resume is None:
        clear_run(config.folder)
    say(
        f"ILQL makes {counted(trainer.updates, 'update')} of {config.batch_size} completions each, "
        f"with {heads.kind} heads of Q."
    )
    share = trainer.targets_share()
    if share < 0.5:
        say(
            f"note: the target heads come only {share:.0%} of their way in this run, and it is "
            "they that steer (raise --alpha or --max_steps)"
        )

    # Train, save, and load again.
    def record(**more: object) -> None:
        write_run(out, "ilql", model_args, lora, data_args, args, config, data=facts, **more)

    rows = trainer.train(record)
    if config.stop_at_update is not None and config.stop_at_update < trainer.updates:
        say_next(again("ilql", "overwrite", "stop_at_update", resume="auto"))
        return rows
    folder = save(
        roles, tokenizer, out, config.beta, precision=model_args.precision, **encoder.rendering()
    )
    difference = check_reload(
        trainer, data.probes, folder, lambda: base_of(model_args), model_args.precision
    )
    metrics = rows[-1] | {"reload_difference": difference}
    record(metrics=metrics, history=rows)
    say_figures("result", metrics)
    wrote(folder, "policy and critic")

    # What comes next: the curve of score against KL.
    judges = short_forms({"reward_adapter": reward_beside(out, name)})
    look = evaluation(folder / "policy", model_args, data_args, args, judges=judges)
    told = {k: v for k, v in look.flags.items() if k != "adapter"}
    curve = {"contenders": [f"ilql={folder}:beta=1,{config.beta:g},16"]}
    say_next(Step("evaluate", {**curve, **told, "output_dir": beside(out, "evaluation")}))
    return rows


if __name__ == "__main__":
    run(main)
