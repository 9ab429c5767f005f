"""One file for a project: what its stages share, said once, and a section for each stage.

    model_name_or_path: your-org/your-model     # all stages read this
    prompts: prompts.txt
    folder: outputs

    reward:                                     # a section, named by its recipe
      learning_rate: 1.0e-4
    ppo:

A recipe that gets such a file by ``--config`` reads the shared keys that it knows, then the paths
that earlier stages make, then its own section; each overrules the one before, and the flags of the
command line overrule all. A YAML file without sections is no project file, and is read as it is.
"""

import difflib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from toolkit.arguments.chat import ChatArguments, read_kwargs
from toolkit.arguments.model import ModelArguments
from toolkit.arguments.sampling import SamplingArguments
from toolkit.arguments.shared import CHAT, MODEL, SAMPLING, USUAL
from toolkit.commands import command_names
from toolkit.embedded import expand_value
from toolkit.errors import InputError

Values = dict[str, Any]

# Shared keys that are no flags of the recipes: each is put where the recipes want it.
PLACED = ("folder", "prompts", "eval_prompts", "comparisons", "columns", "policy_adapter")
SHARED = (*PLACED, *MODEL, *CHAT, *SAMPLING, *USUAL)

# Methods that have a section of their own, and the recipes that read it (training.methods).
METHODS = {"dpo": "preference", "kto": "preference", "orpo": "preference", "cpo": "preference",
           "grpo": "rloo"}  # fmt: skip
# Recipes that read another one's section before their own.
READS = {"doctor": "ppo"}
# Recipes that read finished runs, whose own records say what they were trained with.
OF_RUNS = ("reward_report", "report", "ratings", "publish")
# Where the stages that train leave their adapter, within their folder.
ADAPTERS = {"reward": "adapter", "ppo": "adapters/policy", "sft": "adapter", "rloo": "adapter",
            "preference": "adapter"}  # fmt: skip
ADAPTERS |= {method: ADAPTERS[recipe] for method, recipe in METHODS.items()}
SCRIPTS = ("lexicon", "reward_function", "judge_url")  # in the section of label: no people pick
REWARDS = ("reward_adapter", "reward_model", "lexicon", "reward_function")

POLICIES = ("sft", "preference", "dpo", "kto", "orpo", "cpo", "rloo", "grpo", "ppo")
# The stages that `preftune run` runs, in this order.
STAGES = (
    *("convert", "split", "sample", "label", "ratings", "reward", "reward_report"),
    *(*POLICIES, "evaluate", "report"),
)

# What makes one stage's texts or scores another thing than the next stage takes them for.
AGREED = tuple(
    n for n in (*MODEL, *CHAT, *SAMPLING) if n not in ("temperature", "max_prompt_length")
)
AGREEING = ("sample", "reward", *POLICIES, "best_of_n", "evaluate", "doctor")
TRAIN_ON_REWARD = ("ppo", "rloo")
DEFAULTS = {
    f.name: f.default
    for kind in (ModelArguments, ChatArguments, SamplingArguments)
    for f in fields(kind)
    if f.name in (*MODEL, *CHAT, *SAMPLING)
}


def load_yaml(path: Path) -> tuple[Values, yaml.MappingNode]:
    """Read a YAML file that holds a mapping; return its values, and its nodes for their lines.

    Raises:
        InputError: the file is not UTF-8, not YAML, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
        node, values = yaml.compose(text), yaml.safe_load(text)
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 (save the file as UTF-8)") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise InputError(f"{where}: not YAML, {getattr(error, 'problem', error)}") from None
    if not isinstance(values, dict) or not isinstance(node, yaml.MappingNode):
        raise InputError(f"{path}:1: not a YAML mapping (write one `name: value` per line)")
    return values, node


def lines_of(path: Path, node: yaml.MappingNode) -> dict[str, int]:
    """The line of each key of a mapping.

    Raises:
        InputError: a key is given twice.
    """
    lines: dict[str, int] = {}
    for key, _ in node.value:
        name, line = str(key.value), key.start_mark.line + 1
        if name in lines:
            raise InputError(f"{path}:{line}: {name} is given twice, first on line {lines[name]}")
        lines[name] = line
    return lines


def section_name(key: object) -> str | None:
    """The stage that a key names, with or without dashes; None if it names no stage."""
    name = str(key).replace("-", "_")
    return name if name in METHODS or name in command_names() else None


def has_sections(values: Mapping[str, object]) -> bool:
    """Whether a YAML file with these values is a project file."""
    return any(
        section_name(key) is not None and (value is None or isinstance(value, dict))
        for key, value in values.items()
    )


@dataclass(frozen=True)
class Project:
    """A project file.

    Attributes:
        path: of the file, as it was given.
        shared: what stands outside the sections.
        sections: what stands in each section, by the stage's name.
        lines: the line of each key, by its section ("" for shared keys and for the sections'
            names) and its name.
    """

    path: Path
    shared: Values
    sections: dict[str, Values]
    lines: dict[tuple[str, str], int]

    @classmethod
    def read(cls, path: str | Path, what: str = "project") -> "Project":
        """Read and check a project file.

        Raises:
            InputError: there is no such file, it has no section, a key or a section is unknown, or
                stages disagree.
        """
        path = Path(path)
        if not path.is_file():
            raise InputError(f"{what}: {path}: no such file (preftune init writes a project file)")
        project = cls.if_any(path)
        if project is None:
            raise InputError(
                f"{path}: no section for a stage in it, such as `reward:` (`preftune init` writes "
                "a project file)"
            )
        return project

    @classmethod
    def if_any(cls, path: Path) -> "Project | None":
        """Read a file that may be a project's; None if it has no section."""
        values, node = load_yaml(path)
        return cls.of(path, values, node) if has_sections(values) else None

    @classmethod
    def of(cls, path: Path, values: Values, node: yaml.MappingNode) -> "Project":
        """Take apart what ``load_yaml`` returned; it raises what ``read`` raises."""
        lines = {("", key): line for key, line in lines_of(path, node).items()}
        inner = {str(key.value): value for key, value in node.value}
        project = cls(path, {}, {}, lines)

        for key, value in values.items():
            where, name = f"{path}:{lines.get(('', str(key)), 1)}", section_name(key)
            if name is None and key not in SHARED:
                raise InputError(f"{where}: {_unknown(key, value)}")
            if name is None:
                try:
                    project.shared[key] = expand_value(value, key)
                except InputError as error:
                    raise InputError(f"{where}: {error}") from None
                continue

            if value is not None and not isinstance(value, dict):
                raise InputError(
                    f"{where}: {key} is the section of a stage (write its settings below it, "
                    "indented, one `name: value` per line)"
                )
            if name in project.sections:
                raise InputError(f"{where}: a second section {name} (leave one)")
            project.sections[name] = dict(value or {})
            lines["", name] = lines.get(("", str(key)), 1)
            if value:
                found = lines_of(path, inner[str(key)])
                lines |= {(name, setting): line for setting, line in found.items()}

        project._check_methods()
        project._check_agreement()
        return project

    def where(self, section: str, key: str) -> str:
        """The file and the line of a key."""
        line = self.lines.get((section, key)) or self.lines.get(("", section or key), 1)
        return f"{self.path}:{line}"

    # Where things are

    @property
    def folder(self) -> Path:
        """The folder of all that the project's stages write."""
        return Path(str(self.shared.get("folder", "outputs")))

    @property
    def comparisons(self) -> str | None:
        """The comparisons to learn from, once they are made or converted; None without any."""
        if "comparisons" in self.shared:
            return self.made("convert", "comparisons.jsonl", "output")
        return self.made("label", "comparisons.jsonl", "output") if self.has("label") else None

    @property
    def splits(self) -> bool:
        """Whether some prompts are held out, since a stage needs prompts or compares on them."""
        return any(self.has(n) for n in ("split", "sample", "rloo", "grpo", "ppo", "evaluate"))

    @property
    def policy_comparisons(self) -> str | None:
        """The comparisons that a policy learns from: without those on held-out prompts.

        The project's own samples are of prompts to train on, and so are the picks among them.
        """
        if "comparisons" in self.shared and self.splits:
            return self.made("split", "comparisons.policy.jsonl", "kept")
        return self.comparisons

    @property
    def people_label(self) -> bool:
        """Whether people pick on the page, and not a script."""
        label = self.sections.get("label", {})
        return self.has("label") and not any(name in label for name in SCRIPTS)

    @property
    def store(self) -> Path:
        """The file in which people's labels are kept."""
        return Path(self.made("label", "labels.sqlite", "store"))

    def has(self, section: str) -> bool:
        """Whether the file has this section."""
        return section in self.sections

    def made(self, section: str, name: str, key: str = "output_dir") -> str:
        """A path that a stage writes: what its section says, or this name in the folder."""
        return str(self.sections.get(section, {}).get(key) or self.folder / name)

    def adapter(self, stage: str) -> str:
        """The adapter that a stage leaves."""
        return str(Path(self.made(stage, stage)) / ADAPTERS[stage])

    # What a recipe is told

    def section_of(self, recipe: str, words: Iterable[str] = ()) -> str:
        """The section that a recipe reads: its own, or that of the method which its words name.

        Args:
            recipe: its name.
            words: of its command line.

        Raises:
            InputError: several sections are of its methods, and no word says which.
        """
        words = list(words)
        named = [w.removeprefix("--method=") for w in words if w.startswith("--method=")]
        named += [after for w, after in zip(words, words[1:], strict=False) if w == "--method"]
        for method in named:
            if METHODS.get(method) == recipe and self.has(method):
                return method

        others = [m for m, reader in METHODS.items() if reader == recipe and self.has(m)]
        if not named and not self.has(recipe) and len(others) > 1:
            raise InputError(
                f"{self.where('', others[1])}: there are sections {' and '.join(others)} (say "
                f"which one {recipe} is to read, as in --method {others[0]})"
            )
        if not named and not self.has(recipe) and others:
            return others[0]
        return recipe

    def told(
        self, recipe: str, known: Collection[str], words: Iterable[str] = ()
    ) -> tuple[Values, dict[str, int]]:
        """What this file says to a recipe, and the line of each key.

        Args:
            recipe: its name.
            known: the names of its flags.
            words: of its command line.
        """
        section = self.section_of(recipe, words)
        values: Values = {}
        lines: dict[str, int] = {}
        if section in METHODS:
            values["method"] = section
        for name, value in self.shared.items():
            if name in known and name not in PLACED and recipe not in OF_RUNS:
                values[name] = value
                lines[name] = self.lines.get(("", name), 1)

        for name, value in self.placed(section).items():
            if name in known and value is not None:
                values[name] = value
                lines[name] = self.lines.get(("", section), self.lines.get(("", name), 1))

        for part in (READS.get(recipe), section):
            for name, value in self.sections.get(part or "", {}).items():
                if name == "contenders" and isinstance(value, list):
                    value = _joined(values.get(name, []), value)
                values[name] = value
                lines[str(name)] = self.lines.get((part or "", str(name)), 1)
        return values, lines

    def inputs(self, recipe: str, words: Iterable[str] = ()) -> Values:
        """What a recipe reads that earlier stages make, by the names of its flags."""
        section = self.section_of(recipe, words)
        given = self.sections.get(section, {})
        names = ("prompts", "comparisons", "samples", "reward_adapter", "run", "evaluation")
        placed = {n: v for n, v in self.placed(section).items() if n in names and n not in given}
        return {n: v for n, v in placed.items() if v is not None and v not in self.shared.values()}

    def placed(self, section: str) -> Values:
        """The paths that a stage reads and writes, by the names of its flags; None for none."""
        places: dict[str, Callable[[str], Values]] = {
            "convert": self._convert,
            "split": self._split,
            "sample": self._sample,
            "label": self._label,
            "reward": self._reward,
            "reward_report": self._reward_report,
            "ppo": self._ppo,
            "doctor": self._ppo,
            "sft": self._on_comparisons,
            "preference": self._on_comparisons,
            "rloo": self._rloo,
            "best_of_n": self._best_of_n,
            "evaluate": self._evaluate,
            "report": self._report,
            "publish": self._publish,
            "ratings": self._ratings,
            "online": self._online,
            "sweep": self._whole,
            "label_sweep": self._label_sweep,
            "head_to_head": self._whole,
            "warp": self._whole,
            "ilql": self._on_comparisons,
            "run": lambda _: {"project": str(self.path)},
            "compare": lambda _: {"configs": str(self.path)},
        }
        return places.get(METHODS.get(section, section), lambda _: {})(section)

    def _convert(self, section: str) -> Values:
        return {
            "input": self.shared.get("comparisons"),
            "columns": self.shared.get("columns"),
            "output": self.comparisons,
        }

    def _split(self, section: str) -> Values:
        converted = self.comparisons if "comparisons" in self.shared else None
        return {
            "comparisons": converted,
            "kept": self.policy_comparisons if converted else None,
            "columns": None if converted else self.shared.get("columns"),
            "prompts": self.shared.get("prompts") or self.comparisons,
            "eval_prompts": self.shared.get("eval_prompts"),
            "output": self.made("split", "prompts.jsonl", "output"),
            "held_out": self.made("split", "prompts.heldout.jsonl", "held_out"),
        }

    @property
    def _prompts(self) -> str | None:
        known = self.shared.get("prompts") or self.comparisons
        return self.made("split", "prompts.jsonl", "output") if known else None

    @property
    def _held_out(self) -> str | None:
        return self.made("split", "prompts.heldout.jsonl", "held_out") if self._prompts else None

    def _start(self, section: str) -> object:
        """The adapter that a stage starts from; the stage that makes it starts from the base."""
        start = self.shared.get("policy_adapter")
        makes = section in ADAPTERS and start is not None
        return None if makes and Path(str(start)) == Path(self.adapter(section)) else start

    def _sample(self, section: str) -> Values:
        output = self.made("sample", "samples.jsonl", "output")
        several = "models" in self.sections.get(section, {})  # which say themselves who writes
        start = None if several else self._start(section)
        return {"prompts": self._prompts, "adapter": start, "output": output}

    def _label(self, section: str) -> Values:
        samples = self.made("sample", "samples.jsonl", "output") if self.has("sample") else None
        if self.people_label:  # `preftune run` writes their picks
            asked = {"serve": True, "invite": "me"}
            return {"samples": samples, "store": str(self.store), **asked}
        judged = "judge_url" in self.sections.get("label", {})
        store = str(self.store) if judged else None
        return {"samples": samples, "store": store, "output": self.comparisons}

    def _reward(self, section: str) -> Values:
        out = self.made("reward", "reward")
        return {
            "comparisons": self.comparisons,
            "start_adapter": self._start(section),
            "output_dir": out,
        }

    def _reward_report(self, section: str) -> Values:
        return {"run": self.made("reward", "reward"), "output_dir": self.made(section, section)}

    def _ppo(self, section: str) -> Values:
        return {
            "prompts": self._prompts,
            "reward_adapter": self._trained_reward("ppo"),
            "policy_adapter": self._start(section),
            "output_dir": self.made("ppo", "ppo"),
        }

    def _rloo(self, section: str) -> Values:
        return self._ppo(section) | {
            "reward_adapter": self._trained_reward(section),
            "output_dir": self.made(section, section),
        }

    def _on_comparisons(self, section: str) -> Values:
        others = {"demonstrations", "text"} & self.sections.get(section, {}).keys()
        return {
            "comparisons": None if others else self.policy_comparisons,
            "policy_adapter": self._start(section),
            "output_dir": self.made(section, section),
        }

    def _best_of_n(self, section: str) -> Values:
        return {
            "prompts": self._prompts,
            "adapter": self._start(section),
            "reward_adapter": self._trained_reward(section),
            "output": self.made(section, "best_of_n.jsonl", "output"),
        }

    def _trained_reward(self, section: str) -> str | None:
        """The project's own reward model, unless a section names another reward."""
        others = any(name in self.sections.get(section, {}) for name in REWARDS)
        return self.adapter("reward") if self.has("reward") and not others else None

    def _evaluate(self, section: str) -> Values:
        given, label = self.sections.get("evaluate", {}), self.sections.get("label", {})
        reward = self.adapter("reward") if self.has("reward") else None
        trained = [f"{self.method(name)}={self.adapter(name)}" for name in self.policies()]
        others = {"judges", "reward_adapter", "training_reward"} & given.keys()
        scripts = {
            name: label.get(name)
            for name in ("lexicon", "reward_function")
            if "judges" not in given
        }
        return scripts | {
            "contenders": trained or None,
            "prompts": self._held_out,
            "reward_adapter": reward,
            "training_reward": "reward" if reward and not others else None,
            "output_dir": self.made("evaluate", "evaluation"),
        }

    def _report(self, section: str) -> Values:
        others = [name for name in self.policies() if name != "ppo"]
        there = {"ppo": "runs", "reward": "rewards"}
        shown = {
            flag: [f"{name}={self.made(name, name)}"]
            for name, flag in there.items()
            if self.has(name)
        }
        return shown | {
            "trainings": [f"{name}={self.made(name, name)}" for name in others] or None,
            "evaluation": self.made("evaluate", "evaluation") if self.has("evaluate") else None,
            "comparisons": self.comparisons,
            "ratings": self._ratings_file,
            "output_dir": self.made("report", "report"),
        }

    def _publish(self, section: str) -> Values:
        policy = next(reversed(self.policies()), None)
        return {
            "adapter": None if policy is None else self.adapter(policy),
            "evaluation": self.made("evaluate", "evaluation") if self.has("evaluate") else None,
            "output_dir": self.made("publish", "publish"),
        }

    def _ratings(self, section: str) -> Values:
        output = self.made("ratings", "ratings.json", "output")
        return {"comparisons": self.comparisons, "output": output}

    @property
    def _ratings_file(self) -> str | None:
        """The ratings of models; None without the stage, or if it makes scores in their place."""
        rates = self.has("ratings") and "scores" not in self.sections["ratings"]
        return self.made("ratings", "ratings.json", "output") if rates else None

    def _online(self, section: str) -> Values:
        stages = ("sample", "reward", "ppo")
        configs = {f"{name}_config": str(self.path) for name in stages if self.has(name)}
        return self._whole(section) | configs | {"policy_adapter": self._start(section)}

    def _whole(self, section: str) -> Values:
        """What a recipe is told that runs other recipes: this file holds their settings, too."""
        return {
            "ppo_config": str(self.path) if self.has("ppo") else None,
            "evaluate_config": str(self.path) if self.has("evaluate") else None,
            "policy_adapter": self._start(section),
            "output_dir": self.made(section, section),
        }

    def _label_sweep(self, section: str) -> Values:
        config = str(self.path) if self.has("reward") else None
        return self._whole(section) | {"reward_config": config}

    def policies(self) -> list[str]:
        """The stages of this file that train a policy, in the order in which they run."""
        return [name for name in POLICIES if self.has(name)]

    def method(self, stage: str) -> str:
        """The method of a stage, by which its policy is called in an evaluation."""
        given = self.sections.get(stage, {}).get("method")
        default = {"preference": "dpo"}.get(stage, stage)
        chosen = METHODS.get(stage, stage) in METHODS.values()  # whether its recipe has the flag
        return str(given or default) if chosen else default

    def _check_methods(self) -> None:
        """Raise InputError if a section has another method than its name, or two have the same."""
        found: dict[str, str] = {}
        for name in self.policies():
            method = self.method(name)
            if name in METHODS and method != name:
                raise InputError(
                    f"{self.where(name, 'method')}: the section {name} has the method {method} "
                    f"(call the section {method}, or leave out its method)"
                )
            if method in found:
                raise InputError(
                    f"{self.where('', name)}: the sections {found[method]} and {name} both train "
                    f"by {method} (leave one of them out)"
                )
            found[method] = name

    # Agreement

    def agreed(self, name: str) -> Any:
        """The value of a setting that all stages share."""
        return self.shared.get(name, DEFAULTS[name])

    def _check_agreement(self) -> None:
        """Raise InputError if a section gives another model, length or end token than the rest."""
        for section in AGREEING:
            for name in AGREED:
                given = self.sections.get(section, {})
                if name not in given or same(name, given[name], self.agreed(name)):
                    continue
                known = ("", name) in self.lines
                rest = f"line {self.lines['', name]} says" if known else "the other stages have"
                raise InputError(
                    f"{self.where(section, name)}: {section}: {name} is {given[name]!r}, but "
                    f"{rest} {self.agreed(name)!r} (all stages need the same: write it once, "
                    "outside the sections)"
                )

    def check_reward(self, recipe: str, adapter: str, told: Mapping[str, Any]) -> None:
        """Raise InputError if the reward model was trained with other settings than these.

        Args:
            recipe: that is to use it.
            adapter: the reward adapter that it was given.
            told: the settings of the recipe.
        """
        from toolkit.record import RUN_FILE, RunRecord  # it needs a moment

        record = Path(self.made("reward", "reward")) / RUN_FILE
        if adapter != self.adapter("reward") or not record.is_file():
            return
        trained = RunRecord.read(record).settings
        for name in AGREED:
            if name in told and name in trained and not same(name, told[name], trained[name]):
                raise InputError(
                    f"{self.where('', name)}: {name} is {told[name]!r} for {recipe}, but the "
                    f"reward model in {record.parent} was trained with {trained[name]!r} (train it "
                    f"again: preftune run {self.path} --from_stage reward)"
                )


def same(name: str, one: Any, other: Any) -> bool:
    """Whether two values of a setting mean the same."""
    if name == "chat_template_kwargs":
        return read_kwargs(one) == read_kwargs(other)
    if name.endswith("_name_or_path") and one is not None and other is not None:
        one, other = (str(expand_value(value, name)) for value in (one, other))
        return one == other or (Path(one).is_dir() and Path(one).resolve() == Path(other).resolve())
    return bool(one == other)


def _joined(made: list[str], given: list[str]) -> list[str]:
    """The contenders of the file's stages, and those of its section, which win."""
    names = {str(one).partition("=")[0] for one in given}
    return [one for one in made if one.partition("=")[0] not in names] + given


def _unknown(key: object, value: object) -> str:
    """What is wrong with a key that is neither shared nor a section, and the nearest one."""
    if isinstance(value, dict):
        names = [*METHODS, *command_names()]
        close = difflib.get_close_matches(str(key), names, n=1, cutoff=0.6)
        cure = f"did you mean {close[0]}?" if close else "sections are named by commands"
        return f"no stage is called {key!r} ({cure})"

    close = difflib.get_close_matches(str(key), SHARED, n=1, cutoff=0.75)
    if close:
        return f"unknown key {key!r} (did you mean {close[0]}?)"
    return (
        f"{key!r} is not shared by stages (write it into the section of its stage; shared are "
        f"{', '.join(SHARED)})"
    )
