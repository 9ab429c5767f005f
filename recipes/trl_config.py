"""Convert a YAML file for TRL 1.12's PPO script into one for ppo.py.

    python recipes/trl_config.py --input their_ppo.yaml --output outputs/ppo.yaml

You should see a line for every change: fields with another name, fields that TRL's PPO ignored, and
TRL's defaults where ours differ, so that the run stays the same. Then you see the command that runs
it. If ppo.py would refuse some settings, all of them are listed and nothing is written.
"""

from toolkit.cli import run

import shlex
from dataclasses import dataclass

import yaml

from toolkit.arguments.common import OverwriteArguments
from toolkit.data.files import require_file, write_text
from toolkit.data.outputs import claim_output
from toolkit.flags import flag
from toolkit.trl_compat.yaml_reader import read_trl_config


@dataclass
class ConfigArguments(OverwriteArguments):
    input: str = flag("ppo.yaml", "YAML file for TRL 1.12.")
    output: str = flag("outputs/ppo.yaml", "YAML file to write.")


def main(args: ConfigArguments) -> None:
    require_file(args.input, "--input")
    claim_output(args.output, args.overwrite, "output")
    read = read_trl_config(args.input)
    for note in read.notes:
        print(f"  {note}")
    write_text(
        args.output, f"# From {args.input}, written for TRL 1.12.\n" + yaml.safe_dump(read.values)
    )
    print(f"{args.output}: {len(read.values)} settings, {len(read.notes)} changes. Run it with:")
    words = ["accelerate", "launch", "recipes/ppo.py", "--config", args.output]
    print(" ".join([shlex.join(words), *read.missing]))


if __name__ == "__main__":
    run(main)
