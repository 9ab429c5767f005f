"""Show a PPO run on a page while it trains, or as it ended.

    preftune watch --run outputs/ppo

The page is for this machine only, and its address has a secret in it. It shows the score, the KL
against its target, kl_coef, samples, the seconds of each phase and the time left, and follows the
run's files. Nothing here reaches the run: stop this command with Ctrl-C, and the run goes on. You
should see an address to open in a browser. For a machine that you reach by ssh, name a port and
forward it: ssh -L 8001:127.0.0.1:8001 MACHINE. preftune ppo --live opens the same page by itself.
"""

from toolkit.cli import run

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from toolkit.arguments.live import check_web_server
from toolkit.errors import InputError
from toolkit.flags import Flags, Range, flag


@dataclass
class WatchArguments(Flags):
    run: str = flag("outputs/ppo", "Output folder of preftune ppo. The run may still be at work.")
    port: Annotated[int, Range(low=0, high=65_535)] = flag(
        0, "Port of the page; 0 takes any free port."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_web_server("watch")
        if not Path(self.run).is_dir():
            raise InputError(f"run: {self.run}: no such folder (name that of a PPO run)", "run")


def main(args: WatchArguments) -> None:
    from toolkit.live.serving import serve_run  # loads a web server

    def say(address: str) -> None:
        print(f"open {address}", flush=True)
        print("Ctrl-C ends the page; the run goes on.", flush=True)

    serve_run(Path(args.run), args.port, say)


if __name__ == "__main__":
    run(main)
