"""Every method on the same data, then evaluation of all that was trained, and a report.

A folder of configs says what runs: NAME*.yaml for each stage in PREPARATION and each row of
``training.methods``, and evaluate.yaml. ``compare.py``, ``demo.py`` and ``sweep.py`` call this.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from toolkit.cli import bind, recipe
from toolkit.errors import InputError
from toolkit.pipeline.stages import Stage
from toolkit.training.methods import METHODS, Method

# Before anything is trained: what makes the data, and what is printed above it.
PREPARATION = {"sample": "Sample completions", "label": "Pick the best of each"}

Main = Callable[..., object]


def stages_of(configs: Path, names: list[str], words: dict[str, list[str]]) -> list[Stage]:
    """A stage for each config of these names, in the order of PREPARATION and the methods.

    Args:
        configs: the folder.
        names: of stages: "sample", "label" or a method's.
        words: further ones for some of them, by name.

    Raises:
        InputError: a name that is none, or no config for any of them.
    """
    known = [*PREPARATION, *METHODS]
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"stages: {unknown[0]!r} is none of {', '.join(known)}", "stages")

    found = [
        _stage(name, path, words.get(name, []))
        for name in known
        if name in names
        for path in sorted(configs.glob(f"{name}*.yaml"))
    ]
    if not found:
        raise InputError(
            f"configs: {configs}: no folder with a YAML for {', '.join(names)}", "configs"
        )
    return found


def _stage(name: str, config: Path, words: list[str]) -> Stage:
    """The stage that a config is for, called as the file is."""
    told = ["--config", str(config), *words]
    method = METHODS.get(name)
    if method is None:
        main = recipe(name).main
        return Stage(config.stem, PREPARATION[name], main, told, [output_of(main, told)])

    told += method.words
    main = recipe(method.recipe).main
    adapter = output_of(main, told) / method.adapter
    return Stage(config.stem, method.title, main, told, [adapter], method.resumes)


def ppo_stage(kl_target: float, told: list[str], folder: Path) -> Stage:
    """A PPO run at this KL target (nats a completion) into this folder, called as the folder is."""
    ppo = METHODS["ppo"]
    words = [*told, "--kl_target", str(kl_target), "--output_dir", str(folder)]
    title = f"PPO, KL target {kl_target:g} nats"
    made = [folder / ppo.adapter]
    return Stage(folder.name, title, recipe(ppo.recipe).main, words, made, ppo.resumes)


def output_of(main: Main, words: list[str]) -> Path:
    """Where a recipe writes when told these words: its output_dir, or its file."""
    for part in bind(main, words):
        for name in ("output_dir", "output"):
            if getattr(part, name, None) is not None:
                return Path(getattr(part, name))
    raise InputError(f"{words[1]}: no output_dir and no output (a comparison needs them)")


def last_stages(
    configs: Path, stages: list[Stage], out: Path, words: list[str], title: str
) -> list[Stage]:
    """Evaluation of all that the stages train, and the report on it.

    Args:
        configs: the folder, with evaluate.yaml.
        stages: those before.
        out: the report goes into a folder of it.
        words: further ones for evaluate.py.
        title: of the report.
    """
    shown: dict[str, list[str]] = {"--runs": [], "--rewards": [], "--trainings": []}
    picks: list[str] = []
    for stage in stages:
        if stage.name.startswith("label"):
            picks = ["--comparisons", str(stage.made[0])]
    for stage, method in trained(stages):
        flag = "--rewards" if method.name == "reward" else "--trainings"
        flag = "--runs" if method.resumes else flag
        shown[flag].append(f"{stage.name}={output_of(stage.main, stage.words)}")

    policies = [stage for stage, method in trained(stages) if method.name != "reward"]
    more = [w for flag, places in shown.items() if places for w in (flag, *places)]
    told = ["--config", str(configs / "evaluate.yaml"), *words]
    return judge_and_report(told, policies, out, title, [*picks, *more])


def trained(stages: list[Stage]) -> Iterator[tuple[Stage, Method]]:
    """The stages that train, and by which method: their names begin with it."""
    for stage in stages:
        method = next((m for name, m in METHODS.items() if stage.name.startswith(name)), None)
        if method is not None:
            yield stage, method


def judge_and_report(
    told: list[str], policies: list[Stage], out: Path, title: str, shown: list[str]
) -> list[Stage]:
    """Evaluation of these policies beside the contenders that were named, and the report on it.

    Args:
        told: words for evaluate.py.
        policies: stages whose adapters contend, by their names.
        out: the report goes into a folder of it.
        title: of the report.
        shown: further words for report.py.
    """
    evaluate, report = recipe("evaluate"), recipe("report")
    contenders = list(bind(evaluate.main, told)[-1].contenders)
    named = {Path(contender.partition("=")[2]) for contender in contenders}
    contenders += [f"{s.name}={s.made[0]}" for s in policies if s.made[0] not in named]
    if contenders:
        told = [*told, "--contenders", *contenders]

    evaluation, page = output_of(evaluate.main, told), out / "report"
    words = ["--evaluation", str(evaluation), "--output_dir", str(page), "--title", title, *shown]
    made = [evaluation / "evaluation.json"]
    return [
        Stage("evaluate", "Compare on held-out prompts", evaluate.main, told, made),
        Stage("report", "Report", report.main, words, [page / "report.html"]),
    ]
