"""Train several methods on the same data, evaluate all of them, and write a report.

A folder of configs determines what runs: NAME*.yaml for each stage in PREPARATION and each row of
``training.methods``, and evaluate.yaml. ``compare.py``, ``demo.py`` and ``sweep.py`` use this.
"""

from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from toolkit.cli import bind, recipe
from toolkit.errors import InputError
from toolkit.pipeline.stages import Stage
from toolkit.scoring.arguments import adapter_folders
from toolkit.training.methods import METHODS, Method, method_of

# The stages that make the data, with the titles that are printed above them.
PREPARATION = {"sample": "Sample completions", "label": "Pick the best of each"}

# Flags that name what an earlier stage may have made.
INPUTS = (
    *("samples", "comparisons", "start_adapter", "policy_adapter", "reward_adapter"),
    "adapter",  # whose completions are sampled
)
INSTEAD = ("demonstrations", "text")  # of comparisons, which are then not read

Main = Callable[..., object]


def stages_of(configs: Path, names: list[str], words: dict[str, list[str]]) -> list[Stage]:
    """Make a stage for each config of these names, in the order of PREPARATION and the methods.

    A stage that reads what another one makes comes after it, wherever its name would put it:
    reward-sft.yaml, which starts from the adapter of sft.yaml, runs after sft.yaml.

    Args:
        configs: the folder of configs.
        names: names of stages: "sample", "label" or a method.
        words: further command-line words by stage name.

    Raises:
        InputError: a name is unknown, there is no config for any name, or stages wait for each
            other.
    """
    known = [*PREPARATION, *METHODS]
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"stages: {unknown[0]!r} is not one of {', '.join(known)}", "stages")

    found = [
        _stage(name, path, words.get(name, []))
        for name in known
        if name in names
        for path in sorted(configs.glob(f"{name}*.yaml"))
    ]
    if not configs.is_dir():
        raise InputError(f"configs: {configs}: no such folder (name another)", "configs")
    if not found:
        raise InputError(
            f"configs: {configs}: holds no YAML for {', '.join(names)} (name another folder)",
            "configs",
        )
    return in_order(found)


def in_order(stages: list[Stage]) -> list[Stage]:
    """Put each stage after those that make what it reads; the order stays otherwise.

    Raises:
        InputError: stages wait for each other.
    """
    maker = {path.resolve(): stage.name for stage in stages for path in stage.made}
    needs = {stage.name: {maker.get(path) for _, path in inputs_of(stage)} for stage in stages}
    ordered: list[Stage] = []
    waiting = list(stages)
    while waiting:
        missing = {stage.name for stage in waiting}
        ready = next((s for s in waiting if not needs[s.name] & (missing - {s.name})), None)
        if ready is None:
            names = ", ".join(stage.name for stage in waiting)
            raise InputError(
                f"configs: no order can be kept, since each of {names} reads what another of them "
                "makes (correct their adapters or output_dir)",
                "configs",
            )
        ordered.append(ready)
        waiting.remove(ready)
    return ordered


def inputs_of(stage: Stage) -> Iterator[tuple[str, Path]]:
    """Yield the flags of a stage that name what another one may make, with full paths."""
    told = {
        key: value for part in bind(stage.main, stage.words) for key, value in vars(part).items()
    }
    instead = any(told.get(name) is not None for name in INSTEAD)
    for name in INPUTS:
        value = told.get(name) if name != "comparisons" or not instead else None
        if isinstance(value, str):  # several reward adapters are joined by commas
            yield from ((name, Path(part.strip()).resolve()) for part in value.split(","))
    for text in told.get("models") or ():  # NAME=FOLDER, who sample together
        yield "models", Path(text.partition("=")[2]).resolve()


def check_inputs(stages: list[Stage]) -> None:
    """Raise InputError if a stage needs an adapter that is not there and that no stage makes."""
    made = {path.resolve() for stage in stages for path in stage.made}
    for stage in stages:
        for name, path in inputs_of(stage):
            if name.endswith("_adapter") and path not in made and not path.exists():
                raise InputError(
                    f"{stage.name}: {name}: {path} does not exist, and no stage makes it (add the "
                    "config that makes it, and its name to --stages)",
                    "stages",
                )


def check_judges(stages: list[Stage]) -> None:
    """Raise InputError if a reward model that judges is not there and no stage makes it.

    The evaluation comes last, and would say so only after all policies are trained.
    """
    made = {path.resolve() for stage in stages for path in stage.made}
    for stage in stages:
        if stage.name != "evaluate":
            continue
        for spec in bind(stage.main, stage.words)[-1].specs():
            folders = adapter_folders(spec.value) if spec.kind == "reward_adapter" else []
            for folder in folders:
                if Path(folder).resolve() not in made and not Path(folder).exists():
                    raise InputError(
                        f"evaluate: the judge {spec.name} is {folder}, which does not exist, and "
                        "no stage makes it (train it first, as preftune run does in a project, or "
                        "leave the judge out)"
                    )


def _stage(name: str, config: Path, words: list[str]) -> Stage:
    """Make the stage of a config; its name is the file's name."""
    told = ["--config", str(config), *words]
    method = METHODS.get(name)
    if method is None:
        main = recipe(name).main
        return Stage(config.stem, PREPARATION[name], main, told, [output_of(main, told)])

    told += method.words
    main = recipe(method.recipe).main
    adapter = output_of(main, told) / method.adapter
    settings = {key: value for part in bind(main, told) for key, value in vars(part).items()}
    title = (method_of(name, settings) or method).title
    return Stage(config.stem, title, main, told, [adapter], method.resumes, method.continues)


def ppo_stage(kl_target: float, told: list[str], folder: Path) -> Stage:
    """Make a PPO stage with this KL target (nats per completion); its name is the folder's."""
    ppo = METHODS["ppo"]
    words = [*told, "--kl_target", str(kl_target), "--output_dir", str(folder)]
    title = f"PPO, KL target {kl_target:g} nats"
    made = [folder / ppo.adapter]
    # Runs do not read each other: another target between two leaves the later one as it is.
    return Stage(folder.name, title, recipe(ppo.recipe).main, words, made, ppo.resumes, after=())


def output_of(main: Main, words: list[str]) -> Path:
    """Return the output_dir or the output file of a recipe with these words."""
    for part in bind(main, words):
        for name in ("output_dir", "output"):
            if getattr(part, name, None) is not None:
                return Path(getattr(part, name))
    raise InputError(f"{words[1]}: output_dir or output is missing (a comparison needs one)")


def last_stages(
    configs: Path, stages: list[Stage], out: Path, words: list[str], title: str
) -> list[Stage]:
    """Make the stages that evaluate and report on all that the earlier stages train.

    Args:
        configs: the folder with evaluate.yaml.
        stages: the earlier stages.
        out: folder in which the report's folder is made.
        words: further words for evaluate.py.
        title: title of the report.
    """
    shown: dict[str, list[str]] = {"--runs": [], "--rewards": [], "--trainings": []}
    picks: list[str] = []
    for stage in stages:
        if stage.name.startswith("label"):
            picks = ["--comparisons", str(stage.made[0])]
    for stage, method in trained(stages):
        flag = "--rewards" if method.name == "reward" else "--trainings"
        flag = "--runs" if method.recipe == "ppo" else flag
        shown[flag].append(f"{stage.name}={output_of(stage.main, stage.words)}")

    policies = [stage for stage, method in trained(stages) if method.name != "reward"]
    more = [w for flag, places in shown.items() if places for w in (flag, *places)]
    told = ["--config", str(configs / "evaluate.yaml"), *words]
    return judge_and_report(told, policies, out, title, [*picks, *more])


def trained(stages: list[Stage]) -> Iterator[tuple[Stage, Method]]:
    """Yield the stages that train with their methods, by which their names begin."""
    for stage in stages:
        method = next((m for name, m in METHODS.items() if stage.name.startswith(name)), None)
        if method is not None:
            yield stage, method


def judge_and_report(
    told: list[str],
    policies: list[Stage],
    out: Path,
    title: str,
    shown: list[str],
    without: Collection[str] = (),
) -> list[Stage]:
    """Make the stages that evaluate these policies and the named contenders, and that report.

    Args:
        told: words for evaluate.py.
        policies: stages whose adapters are contenders, under the stages' names.
        out: folder in which the report's folder is made.
        title: title of the report.
        shown: further words for report.py.
        without: adapters that are named as contenders, but take no part.
    """
    evaluate, report = recipe("evaluate"), recipe("report")
    known = bind(evaluate.main, told)[-1].contenders
    contenders = [one for one in known if one.partition("=")[2] not in without]
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
