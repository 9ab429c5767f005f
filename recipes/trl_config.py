"""Convert a YAML file for TRL 1.12's PPO script into one for preftune ppo.

    preftune trl-config --input their_ppo.yaml --output outputs/ppo.yaml

You should see a line for every change: fields with another name, fields that TRL's PPO ignored, and
TRL's defaults where ours differ, so that the run stays the same. Then you see the command that runs
it. If preftune ppo would refuse some settings, all of them are listed and nothing is written.
"""

from toolkit.cli import run

from dataclasses import dataclass

import yaml

from toolkit.arguments.common import OverwriteArguments
from toolkit.data.files import require_file, write_text
from toolkit.data.outputs import claim_output
from toolkit.flags import flag
from toolkit.next_step import Step, say_next, wrote
from toolkit.terminal import say


@dataclass
class ConfigArguments(OverwriteArguments):
    input: str = flag("ppo.yaml", "YAML file for TRL 1.12.")
    output: str = flag("outputs/ppo.yaml", "YAML file to write.")


def main(args: ConfigArguments) -> None:
    from toolkit.trl_compat.yaml_reader import read_trl_config

    require_file(args.input, "--input")
    claim_output(args.output, args.overwrite, "output")
    read = read_trl_config(args.input)
    for note in read.notes:
        say(f"  {note}", indent=4)
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
