"""Publish a policy, reward or value adapter on the Hub, private unless told otherwise.

    python recipes/publish.py --adapter outputs/ppo/adapters/policy --repo_id OWNER/NAME \\
        --base_model_id OWNER/BASE --dry_run true

Stages the files that will go (adapter, configurations, tokenizer, chat template, card; nothing
else), looks through them for tokens and local paths, makes sure that the base's id on the Hub is
the base that was trained on, and has a clean process load the adapter by the card's own lines: its
numbers must be those of training. A dry run sends nothing: you should see each file with its
SHA-256, the card, and a line for everything that would be refused (exit code 2, otherwise 0). The
same command without --dry_run sends these bytes in one commit, verifies them, and prints the
address; cut off, it goes on when run again. The token is HF_TOKEN or that of `hf auth login`.
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
    """What goes where, and what the card says of it."""

    adapter: str = flag("outputs/ppo/adapters/policy", "Folder of the adapter.")
    repo_id: str | None = flag(None, "Where to: OWNER/NAME.")
    public: bool = flag(False, "For everybody to see.")
    dry_run: bool = flag(False, "Show all, check all, send nothing.")
    model_name_or_path: str | None = flag(
        None, "The base here, if it was moved since the training."
    )
    base_model_id: str | None = flag(
        None, "The base on the Hub, where training had a local folder."
    )
    base_revision: str | None = flag(None, "Its branch, tag or commit; the card names the commit.")
    precision: Precision | None = flag(
        None, "Of the base in training, where toolkit.json is missing."
    )
    license: str | None = flag(None, "Where the base does not say (apache-2.0, say).")
    chat_template: str | None = flag(None, "plain or a Jinja file; by default training's.")
    evaluation: str | None = flag(None, "Folder or file of evaluate.py, for KL and win rates.")
    contender: str | None = flag(None, "Its name there; by default told by its folder.")
    data: str | None = flag(None, "A sentence on the data.")
    labels: str | None = flag(None, "A sentence on who labeled.")
    output_dir: str = flag("outputs/publish", "The files are staged in a folder of it.")
    merged_output: str | None = flag(
        None, "Also write base and adapter as one model here (not sent)."
    )
    merged_dtype: MergedDtype = flag("bf16", "How the merged weights are held.")
    merge_into_full_precision: bool = flag(False, "Allow it for an adapter of a 4-bit base.")


def main(args: PublishArguments) -> int:
    from toolkit.hub.adapter_source import read_adapter, read_results
    from toolkit.hub.base_on_hub import check_repo_id, find_base
    from toolkit.hub.card import render
    from toolkit.hub.gate import pass_gate
    from toolkit.hub.merge import check_merge, merge
    from toolkit.hub.package import describe, pack, read_template
    from toolkit.hub.upload import publish

    # What there is, checked before a model is loaded.
    repo_id = check_repo_id(args.repo_id, "repo_id")
    folder = Path(args.output_dir) / repo_id.replace("/", "--")
    lock_file(folder, "output_dir")  # beside it, since staging replaces it as a whole
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

    # The base on the Hub, the files, and whether they may go.
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

    # Show, or send.
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
