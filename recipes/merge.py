"""Merge an adapter of any kind into its base, as a model of its own to start from.

    python recipes/merge.py --adapter some/adapter --model_name_or_path its-base --output_dir merged

For adapters that one base cannot hold beside the others: a vocabulary that was resized, IA3 and
other kinds than LoRA, DoRA on the output head. peft loads it (with the tokenizer that lies beside
it, whose new tokens the embedding is grown for) and merges it; the result is loaded again and must
give the same log-probs. Then pass --model_name_or_path OUTPUT_DIR. You should see by how much they
differ.
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
    adapter: str | None = flag(None, "The adapter's folder.")
    model_name_or_path: str | None = flag(None, "Its base; by default the one that it names.")
    output_dir: str = flag("outputs/merged", "Folder to write.")
    dtype: MergedDtype = flag(
        "bf16",
        "How the merged weights are held: bf16 or fp32. The base is loaded so too, never in 4-bit, "
        "where a merge would be rounded away.",
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
