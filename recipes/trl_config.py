"""Read a YAML that was written for TRL 1.12's PPO script, and write one for ppo.py.

    python recipes/trl_config.py --input their_ppo.yaml --output outputs/ppo.yaml

You should see a line for everything that changed: fields with another name here, fields that TRL's
PPO ignored, and TRL's defaults where they differ from ours, so that the run means the same; then
the command that runs it. What ppo.py would refuse is listed, all of it at once, and nothing is
written.
"""

from toolkit.cli import run

import shlex
from dataclasses import dataclass

import yaml

from toolkit.arguments.common import OverwriteArguments
from toolkit.data.files import require_file, write_text
from toolkit.data.outputs import claim_output
from toolkit.flags import flag
from toolkit.terminal import say
from toolkit.trl_compat.yaml_reader import read_trl_config


@dataclass
class ConfigArguments(OverwriteArguments):
    input: str = flag("ppo.yaml", "The YAML for TRL 1.12.")
    output: str = flag("outputs/ppo.yaml", "The YAML to write.")


def main(args: ConfigArguments) -> None:
    require_file(args.input, "--input")
    claim_output(args.output, args.overwrite, "output")
    read = read_trl_config(args.input)
    for note in read.notes:
        say(f"  {note}", indent=4)
    write_text(
        args.output, f"# From {args.input}, written for TRL 1.12.\n" + yaml.safe_dump(read.values)
    )
    print(f"{args.output}: {len(read.values)} settings, {len(read.notes)} changes. Run it with:")
    words = ["accelerate", "launch", "recipes/ppo.py", "--config", args.output]
    print(" ".join([shlex.join(words), *read.missing]))


if __name__ == "__main__":
    run(main)
