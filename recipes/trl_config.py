"""Read a YAML that was written for TRL 1.12's PPO script, and write one for ppo.py.

    python recipes/trl_config.py --input their_ppo.yaml --output outputs/ppo.yaml

You should see a line for everything that changed: fields with another name here, fields that TRL's
PPO ignored, and TRL's defaults where they differ from ours, so that the run means the same. Then:
accelerate launch recipes/ppo.py --config outputs/ppo.yaml --prompts ... --reward_adapter ...
"""

from dataclasses import dataclass, field

import yaml

from toolkit.cli import run
from toolkit.data.files import claim_output, require_file, write_text
from toolkit.trl_dialect import read_trl_config


@dataclass
class ConfigArguments:
    input: str = field(default="ppo.yaml", metadata={"help": "The YAML for TRL 1.12."})
    output: str = field(default="outputs/ppo.yaml", metadata={"help": "The YAML to write."})
    overwrite: bool = field(default=False, metadata={"help": "Replace what is at --output."})


def main(args: ConfigArguments) -> None:
    require_file(args.input, "--input")
    claim_output(args.output, args.overwrite, "output")
    values, notes = read_trl_config(args.input)
    for note in notes:
        print(f"  {note}")
    write_text(
        args.output, f"# From {args.input}, written for TRL 1.12.\n" + yaml.safe_dump(values)
    )
    print(f"{args.output}: {len(values)} settings, {len(notes)} changes")


if __name__ == "__main__":
    run(main)
