"""Publish a policy, reward or value adapter on the Hub, private by default.

    preftune publish --adapter outputs/ppo/adapters/policy \\
        --repo_id OWNER/NAME \\
        --base_model_id OWNER/BASE --dry_run true

This packs only the files to send (adapter, configurations, tokenizer, chat template, card) and
scans them for tokens and local paths. It checks that the base on the Hub is the one of the
training. A clean process loads the adapter by the card's lines and must get the numbers of
training. A dry run sends nothing: you should see each file with its SHA-256, the card, and a line
for each problem (exit code 2, without problems 0). Without --dry_run, the same command sends these
bytes in one commit, verifies them, and prints the address. If it is cut off, run it again. The
token is HF_TOKEN or that of `hf auth login`.
"""

from toolkit.cli import run

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from toolkit.arguments.model import MergedDtype, Precision
from toolkit.data.leftovers import clear_leftovers
from toolkit.data.locks import lock_file
from toolkit.data.outputs import claim_output
from toolkit.errors import InputError
from toolkit.flags import Flags, flag
from toolkit.hub.connection import connect, model_info, require_token
from toolkit.next_step import again, say_last, say_next


@dataclass
class PublishArguments(Flags):
    """The adapter, its destination, and the publisher's part of the card."""

    adapter: str = flag("outputs/ppo/adapters/policy", "Folder of the adapter.")
    repo_id: str | None = flag(None, "Repository on the Hub, as OWNER/NAME.")
    public: bool = flag(False, "Make the repository public.")
    dry_run: bool = flag(False, "Check and show everything, but send nothing.")
    model_name_or_path: str | None = flag(
        None, "Folder of the base, if it was moved since the training."
    )
    base_model_id: str | None = flag(None, "Hub id of the base, if training used a local folder.")
    base_revision: str | None = flag(None, "Branch, tag or commit of the base on the Hub.")
    precision: Precision | None = flag(
        None, "Precision of the base in training, if toolkit.json is missing."
    )
    license: str | None = flag(None, "License such as apache-2.0, if the base names none.")
    chat_template: str | None = flag(
        None, "Chat template: plain or a Jinja file. By default training's."
    )
    evaluation: str | None = flag(None, "Folder of preftune evaluate with the adapter's results.")
    contender: str | None = flag(
        None, "Adapter's name in the evaluation, if several share its folder."
    )
    data: str | None = flag(None, "Sentence for the card on the data.")
    labels: str | None = flag(None, "Sentence for the card on the labelers.")
    output_dir: str = flag("outputs/publish", "Folder in which the files are packed.")
    merged_output: str | None = flag(
        None, "Folder for base and adapter merged into one model, which is not sent."
    )
    merged_dtype: MergedDtype = flag("bf16", "Precision of the merged weights.")
    merge_into_full_precision: bool = flag(False, "Allow merging if the base was in 4-bit.")


def main(args: PublishArguments) -> int:
    from toolkit.hub.adapter_source import read_adapter, read_results
    from toolkit.hub.base_on_hub import check_repo_id, find_base
    from toolkit.hub.card import render
    from toolkit.hub.gate import pass_gate
    from toolkit.hub.merge import check_merge, merge
    from toolkit.hub.package import describe, pack, read_template
    from toolkit.hub.upload import publish

    # Check everything before a model is loaded.
    repo_id = check_repo_id(args.repo_id, "repo_id")
    folder = Path(args.output_dir) / repo_id.replace("/", "--")
    lock_file(folder, "output_dir")  # beside the folder, which packing replaces
    clear_leftovers(folder.parent, folder.name)
    adapter = read_adapter(args.adapter, args.precision)
    results = read_results(args.evaluation, adapter.folder, args.contender)
    template = read_template(adapter, args.chat_template)
    merged = None
    if args.merged_output is not None:
        check_merge(adapter, args.merged_dtype, args.merge_into_full_precision)
        merged = claim_output(args.merged_output, False, "merged_output", whole=True)
    if not args.dry_run:
        require_token()

    # Find the base on the Hub, pack the files, and check them.
    hub = connect()
    base = find_base(
        args.model_name_or_path or adapter.base_name,
        partial(model_info, hub),
        args.base_model_id,
        args.base_revision or adapter.revision,
        adapter.toolkit_json.get("base_fingerprint"),
        args.license,
    )
    card = render(adapter, base, repo_id, results, args.data, args.labels)
    package = pack(adapter, base, card, template, folder)
    print(describe(package, repo_id, private=not args.public))
    problems = base.problems + pass_gate(adapter, base, repo_id, card, folder)
    if merged is not None:
        print(merge(adapter, base, merged, args.merged_dtype, template))

    # Show or send the files.
    if args.dry_run:
        print(f"\n{card}")
        print("\n".join(f"would be refused: {line}" for line in problems) or "would be sent")
        if problems:
            say_last("Mend what would be refused, then run the same command again.")
            return 2
        say_next(again("publish", "dry_run"))
        return 0
    if problems:
        raise InputError(problems[0], details=problems[1:])
    print(f"published: {publish(hub, repo_id, folder, package.files, private=not args.public)}")
    say_last("The card on that page shows the lines of Python that load it.")
    return 0


if __name__ == "__main__":
    run(main)
