"""Train by WARP: several PPO runs from one start, merged, and again from nearer to the start.

    preftune warp --ppo_config demo:ppo.yaml --iterations 2 --runs 2 \\
        --output_dir outputs/warp

In each iteration the PPO runs differ in their seed, and each one's KL is measured against a moving
average of its own policy. What they changed is merged by SLERP, layer by layer; the next iteration
starts --eta of the way from its start to the merged policy (arXiv 2406.16768). All merges are exact
(preftune merge makes the same ones). After a kill, the same command continues and gives the same
result. You should see a line for each run and the angles between the runs' changes, and the last
merged policy in OUTPUT_DIR/adapter. preftune evaluate --contenders
warp=OUTPUT_DIR/adapter*0.3,0.6,1 shows the curve of score against KL on the way to it.
"""

from toolkit.cli import bind, changed, recipe, run, write_run

from pathlib import Path

from toolkit.data.files import require_file
from toolkit.next_step import evaluation, held_out_flags, say_next, wrote
from toolkit.pipeline.stages import run_stages
from toolkit.pipeline.warp import WarpArguments, check_config, warp_stages


def main(args: WarpArguments) -> None:
    from toolkit.models.from_arguments import prompts_or_demo

    # Check everything before a model is loaded.
    require_file(args.ppo_config, "--ppo_config")
    train = recipe("ppo").main
    bound = bind(train, ["--config", args.ppo_config])
    check_config(changed(*bound), args.ppo_config)
    model_args, lora, rewards, prompts, config = bound
    prompts.prompts = prompts_or_demo(model_args, prompts.prompts)
    if args.policy_adapter is not None:
        from toolkit.models.adapters import check_adapter

        base = model_args.model_name_or_path
        check_adapter(args.policy_adapter, base, "CAUSAL_LM", "--policy_adapter")

    out = Path(args.output_dir)
    stages = warp_stages(args, train, lora.lora_r, lora.lora_alpha)
    run_stages(stages, out, args.overwrite)
    config.seed = args.seed  # as each run's was made of it
    write_run(out, "warp", *bound, args)
    wrote(out / "adapter", "policy adapter")
    say_next(
        evaluation(
            out / "adapter",
            model_args,
            prompts,
            config,
            judges=rewards.specs(),
            held_out=held_out_flags(prompts),
            end_token=rewards.reward_end_token,
        )
    )


if __name__ == "__main__":
    run(main)
