"""Run the paper's online loop in rounds: sample, label, retrain the reward model, PPO.

    preftune online --config demo:online.yaml

A round samples from the current policy and collects labels in an SQLite store until there are l(n)
picks (--schedule). It retrains the reward model from the base on all picks so far, and continues
one PPO run against it, or begins one anew (--restart_policy). With --policy_adapter all of this
starts from an adapter instead of the base. The labeler is a script or, with --wait, people on the
page of `preftune label --serve --store OUTPUT_DIR/labels.sqlite`. --sample_config, --reward_config
and --ppo_config hold the stages' settings; with --config project.yaml they are that file's
sections. After a kill, the same command continues and gives the
same result. A file OUTPUT_DIR/STOP ends the loop after the current phase. You should see
a line for each phase, and in rounds.jsonl the labels, reward accuracy, score, KL, and how often
labelers prefer the policy to the untuned model.
"""

from toolkit.cli import bind, call, changed, recipe, run

import dataclasses
import gc
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from toolkit.arguments.model import ModelArguments
from toolkit.data.locks import lock_file
from toolkit.endings import goes_on
from toolkit.errors import InputError
from toolkit.next_step import again, evaluation, held_out_flags, say_next, wrote
from toolkit.pipeline.arguments import OnlineArguments
from toolkit.scoring.arguments import FunctionArguments, JudgeArguments, load_picker, short_forms

if TYPE_CHECKING:
    from toolkit.labeling.labelers import ScriptedLabeler


def main(
    model_args: ModelArguments,
    scorer: FunctionArguments,
    judge: JudgeArguments,
    args: OnlineArguments,
) -> int:
    import torch
    from transformers import set_seed

    from toolkit.data.prompts import read_prompt_rows
    from toolkit.labeling.store import Settings, Store
    from toolkit.models.from_arguments import prompts_or_demo
    from toolkit.pipeline.online import Loop, LoopEnded, claim, summary

    # Check everything before a model is loaded.
    labeler = labeler_of(scorer, judge, args)
    given = {k: v for k, v in dataclasses.asdict(model_args).items() if v is not None}
    model = [w for k, v in given.items() for w in (f"--{k}", str(v))]
    configs = {"sample": args.sample_config, "reward": args.reward_config, "ppo": args.ppo_config}
    words = {
        name: [*(["--config", path] if path else []), *model, "--seed", str(args.seed)]
        for name, path in configs.items()
    }
    mains: dict[str, Callable[..., Any]] = {name: recipe(name).main for name in words}
    bound = {name: bind(mains[name], words[name]) for name in words}
    (_, sampling, sample_args), config = bound["sample"], bound["ppo"][-1]
    check_stages(model_args, bound, args)
    check_policy_start(model_args, bound, args)
    plan = args.plan(config.total_episodes, config.local_batch_size)
    path = prompts_or_demo(model_args, sample_args.prompts)
    prompts = read_prompt_rows(path)[: sample_args.limit]
    settings = {name: changed(*parts) for name, parts in bound.items()}
    asked = {k: v for k, v in changed(scorer, judge).items() if k not in JudgeArguments.FREE}
    out = claim(args, settings | {"scorer": asked})
    where = args.store or out / "labels.sqlite"
    lock_file(where, "store")  # only one loop may use a store

    def stage(name: str, more: list[str]) -> Any:
        set_seed(args.seed)  # so that a stage does not depend on the stages before it
        result = call(mains[name], [*words[name], "--overwrite", *more])
        gc.collect()  # free the trainer's cycles before the next model is loaded
        torch.cuda.empty_cache()
        return result

    # The rounds.
    runs = ", in a run for each round" if args.restart_policy else ""
    print(
        f"{len(plan.stops)} rounds: {plan.wanted[0]} picks before the first and {plan.wanted[-1]} "
        f"before the last; a reward model is trained in each, and PPO makes {plan.stops[-1]} "
        f"updates in all{runs}.",
        flush=True,
    )
    with Store(where, Settings(overlap=args.overlap)) as store:
        loop = Loop(
            args,
            plan,
            stage,
            store,
            labeler,
            prompts,
            sample_args.completions,
            {
                "model": model_args.model_name_or_path,
                "temperature": sampling.temperature,
            },
            bound["reward"][3].folds or 0,
        )
        try:
            with goes_on():
                rows = loop.run()
        except LoopEnded as ending:
            print(f"the loop ended: {ending}")
            say_next(again("online"))
            return ending.code
    print("\n".join(["", *map(summary, rows)]))
    policy = loop.ppo_folder(len(plan.stops) - 1) / "adapters" / "policy"
    wrote(policy, "policy adapter")

    # What comes next: judges that it was trained on, and the scripted labeler itself.
    _, _, rewards, ppo_prompts, _ = bound["ppo"]
    last = loop.folder(len(plan.stops) - 1) / "reward" / "adapter"
    judges = short_forms({"reward_adapter": str(last)} | scorer.flags())
    told = ppo_prompts, config
    held_out = held_out_flags(ppo_prompts)
    end_token = rewards.reward_end_token
    say_next(
        evaluation(policy, model_args, *told, judges=judges, held_out=held_out, end_token=end_token)
    )
    return 0


def check_stages(model_args: ModelArguments, bound: dict[str, Any], args: OnlineArguments) -> None:
    """Raise InputError unless the stages' settings are valid and fit together."""
    from toolkit.data.from_arguments import chat_from, prompts_of, training_prompts
    from toolkit.models.from_arguments import check_length, prompts_or_demo, tokenizer_of
    from toolkit.pipeline.online import check_alike
    from toolkit.training.from_arguments import rule_of

    (_, sampling, sample_args), eval_rows = bound["sample"], bound["reward"][3].eval_rows
    _, _, rewards, prompt_args, config = bound["ppo"]
    check_alike(sampling, config)
    if chat_from(sample_args) != chat_from(prompt_args):
        raise InputError(
            "chat_template: this or chat_template_kwargs differs in sample_config and ppo_config"
        )

    if rewards.reward_model or rewards.lexicon or rewards.reward_function:
        raise InputError("ppo_config: must name no reward, since each round trains one")
    if args.snapshots > sample_args.completions:
        raise InputError(
            f"snapshots is {args.snapshots}, but a row has {sample_args.completions} completions "
            "(raise completions in sample_config)",
            "snapshots",
        )
    if config.save_strategy == "no":
        raise InputError("ppo_config: save_strategy must be steps")
    if eval_rows is not None and eval_rows >= args.initial_labels:
        raise InputError(
            f"reward_config: eval_rows is {eval_rows}, but must be below initial_labels "
            f"({args.initial_labels})"
        )
    tokenizer = tokenizer_of(model_args, args.policy_adapter)
    prompts_or_demo(model_args, prompt_args.prompts)
    prompts_or_demo(model_args, sample_args.prompts)
    asked, _ = prompts_of(sample_args, sampling, tokenizer)
    prompts, held_out, _ = training_prompts(prompt_args, tokenizer)
    config.rule(tokenizer), rule_of(sampling, tokenizer)
    check_length(model_args, asked + prompts + (held_out or []), config.response_length)


def check_policy_start(
    model_args: ModelArguments, bound: dict[str, Any], args: OnlineArguments
) -> None:
    """Raise InputError unless all stages can start from ``args.policy_adapter``, or none does.

    A start that one stage has and the others lack would make another reference of it in silence.
    """
    from toolkit.models.from_arguments import check_reward_start

    lora, prompt_args, sample_args = bound["reward"][1], bound["ppo"][3], bound["sample"][2]
    named = {
        "sample_config: leave out adapter": sample_args.adapter,
        "reward_config: leave out start_adapter": lora.start_adapter,
        "ppo_config: leave out policy_adapter": prompt_args.policy_adapter,
    }
    for what, value in named.items():
        if value is not None and value != args.policy_adapter:  # a project file says it to all
            raise InputError(f"{what} (give preftune online a --policy_adapter for all stages)")
    if args.policy_adapter is None:
        return
    if prompt_args.reference == "base":
        raise InputError("ppo_config: leave out reference (the loop's is --policy_adapter)")
    lora = dataclasses.replace(bound["reward"][1], start_adapter=args.policy_adapter)
    lora.given_defaults = set(bound["reward"][1].given_defaults)
    check_reward_start(lora, model_args, "--policy_adapter")


def labeler_of(
    scorer: FunctionArguments, judge: JudgeArguments, args: OnlineArguments
) -> "ScriptedLabeler | None":
    """Return the scripted labeler; None for people."""
    from toolkit.labeling.labelers import ScriptedLabeler

    found = load_picker(judge, scorer)
    if (found is None) != args.wait:
        raise InputError(
            "labeler: give exactly one of --lexicon, --reward_function, --judge_url and --wait"
        )
    if found is None:
        return None
    name, picker = found
    return ScriptedLabeler(args.labeler or name, picker, args.noise, seed=args.seed)


if __name__ == "__main__":
    run(main)
