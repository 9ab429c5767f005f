"""Merge an adapter of any kind into its base, to get a new base.

    preftune merge --adapter some/adapter --model_name_or_path its-base \\
        --output_dir merged

Use this for adapters that cannot share one base with others: those with a resized vocabulary, IA3
and other kinds than LoRA, and DoRA on the output head. peft loads the adapter (the embedding grows
to the new tokens of the tokenizer beside it) and merges it. The result is loaded again and must
give the same log-probs. You should see how much they differ. Then pass --model_name_or_path
OUTPUT_DIR.
"""

from toolkit.cli import run

from dataclasses import dataclass

from toolkit.arguments.common import OverwriteArguments
from toolkit.arguments.model import MergedDtype
from toolkit.data.outputs import claim_output
from toolkit.errors import InputError
from toolkit.flags import flag
from toolkit.next_step import Step, beside, say_next, wrote


@dataclass
class MergeArguments(OverwriteArguments):
    adapter: str | None = flag(None, "Folder of the adapter.")
    model_name_or_path: str | None = flag(
        None, "Base of the adapter. By default the one that it names."
    )
    output_dir: str = flag("outputs/merged", "Folder for the merged model.")
    dtype: MergedDtype = flag(
        "bf16",
        "Precision of the merged weights: bf16 or fp32. The base is loaded in the same precision, "
        "never in 4-bit, where rounding would undo the merge.",
    )

    def __post_init__(self) -> None:
        if self.adapter is None:
            raise InputError("adapter: missing (name the adapter's folder)", "adapter")
        super().__post_init__()


def main(args: MergeArguments) -> None:
    from toolkit.models.merging import merge_adapter

    out = claim_output(args.output_dir, args.overwrite, "output_dir", whole=True)
    print(merge_adapter(str(args.adapter), args.model_name_or_path, out, args.dtype))
    wrote(out, "merged model; pass it as --model_name_or_path")
    flags = {
        "model_name_or_path": str(out),
        "prompts": "PROMPTS.jsonl",
        "output": beside(out, "samples.jsonl"),
    }
    say_next(Step("sample", flags))


if __name__ == "__main__":
    run(main)
