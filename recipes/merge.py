"""Merge an adapter of any kind into its base, or LoRA adapters with each other.

    preftune merge --adapter some/adapter --model_name_or_path its-base \\
        --output_dir merged
    preftune merge --adapters outputs/ppo-a/adapters/policy outputs/ppo-b/adapters/policy \\
        --how slerp --output_dir outputs/merged-adapter

--adapter makes a new base. Use it for adapters that cannot share one base with others: those with a
resized vocabulary, IA3 and other kinds than LoRA, and DoRA on the output head. peft loads the
adapter (the embedding grows to the new tokens of the tokenizer beside it) and merges it. The result
is loaded again and must give the same log-probs. You should see how much they differ. Then pass
--model_name_or_path OUTPUT_DIR.

--adapters makes a new adapter, exactly, without loading a base: the weighted sum of the adapters'
changes, or SLERP of them (arXiv 2406.16768), times --scale. Its rank is the sum of the ranks. It
merges policies, and takes the mean of reward models whose heads began as one (--head_seed of
preftune reward). You should see the ranks, and the angles between the adapters' changes.
"""

from toolkit.cli import run

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from toolkit.arguments.common import OverwriteArguments
from toolkit.arguments.model import MergedDtype, ModelArguments
from toolkit.data.outputs import claim_output
from toolkit.errors import InputError
from toolkit.flags import Finite, flag
from toolkit.next_step import Step, base_named_by, beside, evaluation, say_next, step, wrote

# Flags of the one kind of merge, which the other does not read.
INTO_BASE = ("model_name_or_path", "dtype")
WITH_EACH_OTHER = ("how", "weights", "scale", "start")


@dataclass
class MergeArguments(OverwriteArguments):
    adapter: str | None = flag(None, "Folder of the adapter to merge into its base.")
    model_name_or_path: str | None = flag(
        None, "Base of the adapter. By default the one that it names."
    )
    adapters: list[str] = flag(
        [],
        "Folders of LoRA adapters to merge with each other into one adapter, instead of --adapter. "
        "One folder with --scale makes that adapter weaker or stronger.",
    )
    how: Literal["linear", "slerp"] = flag(
        "linear",
        "How --adapters are merged: linear (the weighted sum of their changes) or slerp (along "
        "the arc between them, layer by layer, which keeps their length; more than two in turn).",
    )
    weights: list[Finite] = flag(
        [],
        "Weight of each of --adapters. By default the same for all, with sum 1. For slerp of two "
        "they must sum to 1.",
    )
    scale: Finite = flag(
        1.0,
        "Multiply the merged change by this: below 1 goes back towards what the adapters started "
        "from, above 1 goes further.",
    )
    start: str | None = flag(
        None,
        "Folder of the adapter that --adapters were trained from (their --policy_adapter). What "
        "they changed is counted from there; by default from the base.",
    )
    output_dir: str = flag("outputs/merged", "Folder for the merged model or adapter.")
    dtype: MergedDtype = flag(
        "bf16",
        "Precision of the merged weights: bf16 or fp32. The base is loaded in the same precision, "
        "never in 4-bit, where rounding would undo the merge.",
    )

    def __post_init__(self) -> None:
        if self.adapter is None and not self.adapters:
            raise InputError(
                "adapter: missing (name the adapter's folder, or several by --adapters)", "adapter"
            )
        if self.adapter is not None and self.adapters:
            raise InputError(
                "adapters: --adapter merges one adapter into its base, --adapters merges adapters "
                "with each other (give one of them)",
                "adapters",
            )

        defaults = {name: MergeArguments.__dataclass_fields__[name].default for name in INTO_BASE}
        defaults |= {"how": "linear", "weights": [], "scale": 1.0, "start": None}
        does, unread = (
            ("adapters: merging adapters with each other", INTO_BASE)
            if self.adapters
            else ("adapter: merging an adapter into its base", WITH_EACH_OTHER)
        )
        for name in unread:
            if vars(self)[name] != defaults[name]:
                raise InputError(f"{does} does not read {name} (leave it out)", name)
        super().__post_init__()


def main(args: MergeArguments) -> None:
    out = claim_output(args.output_dir, args.overwrite, "output_dir", whole=True)
    if args.adapters:
        merge_with_each_other(args, out)
        return

    from toolkit.models.merging import merge_adapter

    print(merge_adapter(str(args.adapter), args.model_name_or_path, out, args.dtype))
    wrote(out, "merged model; pass it as --model_name_or_path")
    flags = {
        "model_name_or_path": str(out),
        "prompts": "PROMPTS.jsonl",
        "output": beside(out, "samples.jsonl"),
    }
    say_next(Step("sample", flags))


def merge_with_each_other(args: MergeArguments, out: Path) -> None:
    """Write the merged adapter, and say what it is."""
    from toolkit.models.adapter_arithmetic import merge_adapters
    from toolkit.models.toolkit_json import read_facts

    weights = args.weights or None
    outcome = merge_adapters(args.adapters, out, args.how, weights, args.scale, args.start)
    print(outcome.sentence())

    facts = read_facts(out)
    base = ModelArguments(model_name_or_path=base_named_by(out) or "MODEL")
    base.precision = facts.get("precision") or base.precision
    if outcome.rewards:
        print("The mean of scores spreads less than each of them: kl_coef weighs more against it.")
        wrote(out, "reward adapter")
        told = {"output_dir": beside(out, "ppo")}
        say_next(step("ppo", base, reward_adapter=str(out), **told))
        return
    wrote(out, "policy adapter")
    say_next(evaluation(out, base, judges=[]))


if __name__ == "__main__":
    run(main)
