"""Read a YAML that was written for TRL 1.12's PPO script, and write one for ppo.py.

    python recipes/trl_config.py --input their_ppo.yaml --output outputs/ppo.yaml

You should see a line for everything that changed: fields with another name here, fields that TRL's
PPO ignored, and TRL's defaults where they differ from ours, so that the run means the same; then
the command that runs it. What ppo.py would refuse is listed, all of it at once, and nothing is
written.
"""

from toolkit.cli import run

from dataclasses import dataclass

import yaml

from toolkit.arguments.common import OverwriteArguments
from toolkit.data.files import require_file, write_text
from toolkit.data.outputs import claim_output
from toolkit.flags import flag
from toolkit.next_step import Step, say_next, wrote


@dataclass
class ConfigArguments(OverwriteArguments):
    input: str = flag("ppo.yaml", "The YAML for TRL 1.12.")
    output: str = flag("outputs/ppo.yaml", "The YAML to write.")


def main(args: ConfigArguments) -> None:
    from toolkit.trl_compat.yaml_reader import read_trl_config

    require_file(args.input, "--input")
    claim_output(args.output, args.overwrite, "output")
    read = read_trl_config(args.input)
    for note in read.notes:
        print(f"  {note}")
    write_text(
        args.output, f"# From {args.input}, written for TRL 1.12.\n" + yaml.safe_dump(read.values)
    )
    wrote(args.output, f"{len(read.values)} settings, {len(read.notes)} changes")
    missing = {}
    for told in read.missing:  # "--flag value"
        name, _, value = told.removeprefix("--").partition(" ")
        missing[name] = value
    say_next(Step("ppo", {"config": args.output, **missing}))


if __name__ == "__main__":
    run(main)
