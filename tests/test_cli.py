"""The door: every mistake in a config is one line that says where and how to mend it."""

import dataclasses
import inspect
import os
import random
import typing
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest

from toolkit import cli
from toolkit.arguments.common import OverwriteArguments
from toolkit.arguments.model import ModelArguments
from toolkit.cli import call, flag_names, parse, recipe, run
from toolkit.endings import Stopped, goes_on
from toolkit.errors import Caution, InputError, Interrupted
from toolkit.flags import Flags, flag
from toolkit.scoring.arguments import ScorerArguments
from toolkit.scoring.guests import as_guest
from toolkit.training.ppo.config import PPOConfig
from toolkit.training.reward.trainer import BestOfKConfig

BAD_CONFIGS = [
    ("kl_traget: 5", r"c\.yaml:1: unknown key 'kl_traget' \(did you mean kl_target\?\)"),
    ("kl_target: 5\n\nxyzzy: 1", r"c\.yaml:3: unknown key 'xyzzy'"),
    ("kl_target: five", r"c\.yaml:1: kl_target is 'five', but must be of type float"),
    ("kl_target: [5]", r"c\.yaml:1: kl_target is \[5\], but must be of type float"),
    ("total_episodes: 2.5", r"c\.yaml:1: total_episodes is 2\.5, but must be of type int"),
    ("total_episodes: true", r"c\.yaml:1: total_episodes is True, but must be of type int"),
    ("whiten_rewards: 1", r"c\.yaml:1: whiten_rewards is 1, but must be of type bool"),
    ("value: 3", r"c\.yaml:1: value is 3, but must be of type str$"),
    ("save_strategy: no", r"save_strategy is False, but .* type str \(.*: write 'no' with its"),
    ("seed: 1\nkl_target: -3", r"c\.yaml:2: kl_target is -3, but must be above 0"),
    ("temperature: 0", r"c\.yaml:1: temperature is 0, but must be above 0"),
    ("lam: 1.5", r"c\.yaml:1: lam is 1\.5, but must be at most 1"),
    ("num_ppo_epochs: 0", r"c\.yaml:1: num_ppo_epochs is 0, but must be at least 1"),
    ("value: both", r"c\.yaml:1: value is 'both', but must be one of adapter, trunk"),
    ("kl_controller: pid", r"c\.yaml:1: kl_controller is 'pid'"),
    ("num_mini_batches: 7", r"c\.yaml:1: num_mini_batches is 7, but must divide the batch of 64"),
    ("per_device_train_batch_size: 4", r"c\.yaml:1: a batch of 4 is too small to whiten"),
    ("a: [1", r"c\.yaml:1: not YAML|c\.yaml:2: not YAML"),
    ("kl_coef: 0", r"c\.yaml:1: kl_coef is 0, but must be above 0"),
    ("kl_horizon: 8", r"c\.yaml:1: kl_horizon is 8, but must be at least 64"),
    ("penalty_reward_value: .nan", r"c\.yaml:1: penalty_reward_value is nan, but must be finite"),
    ("learning_rate: .inf", r"c\.yaml:1: learning_rate is inf, but must be finite"),
    ("adam_beta1: .nan", r"c\.yaml:1: adam_beta1 is nan, but must be finite"),
    ("lr_scheduler_kwargs: {power: .inf}", r"c\.yaml:1: lr_scheduler_kwargs is inf, but must be"),
    ("seed: -1", r"c\.yaml:1: seed is -1, but must be at least 0"),
    ("true: 1", r"c\.yaml:1: unknown key True"),
    ("null: 1", r"c\.yaml:1: unknown key None"),
    ("kl_coef: 1\nkl_coef: 2", r"c\.yaml:2: kl_coef is given twice, first on line 1"),
    ("label_smoothing_factor: 0.1", r"c\.yaml:1: label_smoothing_factor is not used by PPO"),
    ("- 1\n- 2", r"c\.yaml:1: not a YAML mapping"),
    ("", r"c\.yaml:1: not a YAML mapping"),
    ("precision: 8bit", r"c\.yaml:1: precision is '8bit', but must be one of 4bit, bf16, fp32"),
    ("lr_scheduler_type: zigzag", r"lr_scheduler_type is 'zigzag', but must be one of linear"),
    ("max_kl: 0", r"c\.yaml:1: max_kl is 0, but must be above 0"),
    ("on_fault: pray", r"c\.yaml:1: on_fault is 'pray', but must be one of stop, skip"),
    ("kl_coef_max: 0.1", r"c\.yaml:1: kl_coef is 0.15, but must be at most 0.1|kl_coef is 0.15"),
    (
        "value: trunk\nvalue_init: reward",
        r"c\.yaml:2: value_init: reward works only with value: adapter",
    ),
    ("stop_token: eos\nstop_token_id: 1", r"c\.yaml:2: stop_token and stop_token_id"),
]


@pytest.mark.parametrize(("text", "message"), BAD_CONFIGS, ids=[text for text, _ in BAD_CONFIGS])
def test_bad_config_is_one_line_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        parse(ModelArguments, PPOConfig, argv=["--config", str(path), "--use_cpu"])
    assert "\n" not in str(caught.value)


BAD_FLAGS = [
    (["--kl_traget", "5"], r"unknown argument --kl_traget \(did you mean --kl_target\?\)"),
    (["--kl_target", "five"], r"argument --kl_target.*invalid float value: 'five'"),
    (["--kl_target", "-1"], r"^kl_target is -1, but must be above 0"),
    (["--kl_t", "5"], r"unknown argument --kl_t"),
    (["true", "mine.csv"], r"no flag stands before 'mine\.csv'"),
    (["--config", "nowhere.yaml"], r"--config: nowhere\.yaml: no such file"),
    (["--config"], r"--config: the path of a YAML file"),
    (["--config", "a.yaml", "--config=b.yaml"], r"--config is given twice, a\.yaml and b\.yaml"),
]


@pytest.mark.parametrize(("argv", "message"), BAD_FLAGS, ids=[" ".join(a) for a, _ in BAD_FLAGS])
def test_bad_flag_is_one_line(argv: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse(PPOConfig, argv=["--use_cpu", *argv])


def test_flags_win_over_the_file_and_numbers_are_converted(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("kl_target: 7\nlearning_rate: 1e-5\nkl_coef: 0.3\nstop_token: null\n")
    (config,) = parse(PPOConfig, argv=[f"--config={path}", "--kl_coef", "0.2", "--use_cpu"])
    assert (config.kl_target, config.learning_rate, config.kl_coef) == (7.0, 1e-5, 0.2)
    assert isinstance(config.kl_target, float)


def test_a_flags_mistake_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("kl_target: 7\n")
    with pytest.raises(InputError, match="^kl_target is -1"):
        parse(PPOConfig, argv=["--config", str(path), "--kl_target=-1", "--use_cpu"])


def test_reward_config_knows_its_own_fields(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("num_train_epochs: 0\n")
    with pytest.raises(InputError, match=r"c\.yaml:1: num_train_epochs is 0, but must be above 0"):
        parse(BestOfKConfig, argv=["--config", str(path), "--use_cpu"])


def test_help_shows_our_fields_and_help_all_the_inherited(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(PPOConfig, argv=["--help"])
    short = capsys.readouterr().out
    assert caught.value.code == 0
    assert "--kl_horizon" in short and "--learning_rate" in short
    assert "--torch_compile" not in short
    with pytest.raises(SystemExit):
        parse(PPOConfig, argv=["--help_all"])
    assert "--torch_compile" in capsys.readouterr().out


@dataclass
class Toy:
    n: int = field(default=1, metadata={"help": "A number."})


def test_run_exits_2_with_one_line_for_a_users_mistake(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(toy: Toy) -> None:
        raise InputError("data.jsonl:3: prompt: empty")

    monkeypatch.setattr("sys.argv", ["toy.py"])
    with pytest.raises(SystemExit) as caught:
        run(main)
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: data.jsonl:3: prompt: empty\n"


def test_a_caution_is_one_line_and_the_warnings_of_libraries_keep_their_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []

    def main(toy: Toy) -> None:
        for kind in (Caution, FutureWarning):
            said.append(warnings.formatwarning("a word", kind, "code.py", 3))

    monkeypatch.setattr("sys.argv", ["toy.py"])
    with pytest.raises(SystemExit):
        run(main)
    assert said[0] == "warning: a word\n"
    assert said[1].startswith("code.py:3: FutureWarning: a word")


def test_a_disk_that_says_no_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(toy: Toy) -> None:
        Path("/proc/nowhere/file").write_text("x")

    monkeypatch.setattr("sys.argv", ["toy.py"])
    with pytest.raises(SystemExit) as caught:
        run(main)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("error: /proc/nowhere/file: ")


@pytest.mark.parametrize("saved", [True, False])
def test_who_is_interrupted_is_given_the_command_that_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], saved: bool
) -> None:
    def main(toy: Toy, args: OverwriteArguments) -> None:
        if saved:
            raise Interrupted(2, Path("ppo/checkpoint-2"))
        with goes_on():
            raise Stopped(15)

    monkeypatch.setattr("sys.argv", ["recipes/toy.py", "--overwrite", "--n", "3"])
    with pytest.raises(SystemExit) as caught:
        run(main)
    assert caught.value.code == (130 if saved else 143)
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("interrupted: ")
    assert last == f"next: python recipes/test_cli.py --n 3{' --resume auto' if saved else ''}"


def test_run_passes_on_an_exit_code_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(toy: Toy) -> int:
        return 1

    def returns_rows(toy: Toy) -> list[int]:
        return [toy.n]

    monkeypatch.setattr("sys.argv", ["toy.py", "--n", "3"])
    for main, code in ((fails, 1), (returns_rows, 0)):
        with pytest.raises(SystemExit) as caught:
            run(main)
        assert caught.value.code == code
    assert call(returns_rows, ["--n", "4"]) == [4]


@pytest.mark.parametrize(
    ("scorer", "message"),
    [
        (ScorerArguments(), "no scorer given"),
        (ScorerArguments(lexicon="a", reward_adapter="b"), "lexicon and reward_adapter given"),
        (ScorerArguments(lexicon="nowhere.txt"), "nowhere.txt: no such file"),
        (ScorerArguments(reward_function="nocolon"), "is not module:function"),
        (ScorerArguments(reward_function="no_such_module:f"), "No module named"),
        (ScorerArguments(reward_function="math:nothing"), "has no function 'nothing'"),
        (ScorerArguments(reward_adapter="nowhere"), "no adapter_config.json"),
    ],
)
def test_scorers_that_do_not_load(scorer: ScorerArguments, message: str) -> None:
    with pytest.raises(InputError, match=message):
        scorer.load("data/model")


def float_fields(main: Any) -> list[str]:
    """The names of the arguments that are numbers, or lists of such, inherited ones too."""
    hints = inspect.get_annotations(main)
    hints.pop("return", None)
    found = []
    for cls in hints.values():
        types = typing.get_type_hints(cls)
        for f in dataclasses.fields(cls):
            found += [f.name] if f.init and "float" in str(types[f.name]) else []
    return found


@pytest.mark.parametrize("word", ["nan", "inf", "-inf", "1e999"])
@pytest.mark.parametrize(
    "name", ["evaluate", "label", "ppo", "preference", "reward", "rloo", "sample", "sft"]
)
def test_no_recipe_takes_a_number_that_is_none(name: str, word: str) -> None:
    main = recipe(name).main
    for field_name in float_fields(main):
        with pytest.raises(InputError, match=field_name) as caught:
            call(main, [f"--{field_name}={word}", *(["--use_cpu"] if name == "ppo" else [])])
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("words", ['{"power": NaN}', '{"power": 1e999}', '{"a": [-Infinity]}'])
def test_a_dictionary_of_a_flag_holds_numbers_that_are_some(words: str) -> None:
    with pytest.raises(InputError, match="lr_scheduler_kwargs is .*must be finite"):
        call(recipe("sft").main, ["--lr_scheduler_kwargs", words, "--use_cpu"])


def test_functions_of_each_call_draw_from_states_of_their_own() -> None:
    def draws() -> float:
        with as_guest("f"):
            return random.random()

    def twice(toy: Toy) -> list[float]:
        return [draws(), draws()]

    random.seed(1)
    first = call(twice, [])
    random.seed(1)
    assert call(twice, []) == first and len(set(first)) == 2


@dataclass
class TwoFlags:
    """One flag of each kind."""

    long_name: int = 3
    switch: bool = True


def test_flag_names_are_all_that_the_command_line_takes_and_no_more() -> None:
    def main(args: TwoFlags) -> None:
        """Nothing."""

    names = flag_names(main)
    spelt = {"--long_name", "--long-name", "--switch", "--no_switch", "--no-switch"}
    assert names == spelt | {"-h", "--help", "--config", "--help_all"}
    for name in spelt - {"--long_name", "--long-name"}:
        parse(TwoFlags, argv=[name])  # is taken


@dataclass
class Renamed(Flags):
    RENAMED: ClassVar[dict[str, str]] = {"output": "output_dir"}

    output_dir: str = flag("out", "Folder to write.")


@pytest.mark.parametrize("words", [["--output", "mine"], ["--output=mine"]])
def test_the_earlier_name_of_a_flag_is_read_with_a_warning(words: list[str]) -> None:
    with pytest.warns(Caution, match="^--output is called --output_dir now$"):
        (args,) = parse(Renamed, argv=words)
    assert args.output_dir == "mine"


def test_the_earlier_name_of_a_key_is_read_with_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("# a run of before\noutput: mine\n")
    with pytest.warns(Caution, match=r"c\.yaml:2: output is called output_dir now$"):
        (args,) = parse(Renamed, argv=["--config", str(path)])
    assert args.output_dir == "mine"


@pytest.mark.parametrize("name", [None, "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_a_gpu_s_allocator_is_set_unless_the_user_has_set_it(
    name: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for known in cli.ALLOCATOR:
        monkeypatch.delenv(known, raising=False)
    if name is not None:
        monkeypatch.setenv(name, "backend:native")
    cli._let_segments_grow()
    expected = "expandable_segments:True" if name is None else "backend:native"
    assert os.environ[name or "PYTORCH_ALLOC_CONF"] == expected
    assert len([known for known in cli.ALLOCATOR if known in os.environ]) == 1
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)


@dataclass
class Several:
    names: list[str] = field(default_factory=lambda: ["default"])
    many_numbers: list[int] = field(default_factory=list)
    one: int = 0


@pytest.mark.parametrize(
    "words",
    [
        ["--names", "a", "b", "--one", "1"],
        ["--names", "a", "--names", "b", "--one", "1"],
        ["--names=a", "--one", "1", "--names", "b"],
        ["--one=1", "--names", "a", "--names=b"],
    ],
)
def test_a_flag_of_several_values_that_stands_twice_has_all_of_them(words: list[str]) -> None:
    (found,) = parse(Several, argv=words)
    assert found == Several(["a", "b"], [], 1)


def test_both_spellings_of_such_a_flag_are_one_flag(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("many_numbers: [7]\n")  # which the command line overrules
    words = [f"--config={path}", "--many_numbers", "1", "-2", "--many-numbers", "3"]
    (found,) = parse(Several, argv=words)
    assert found.many_numbers == [1, -2, 3] and found.names == ["default"]
    path.write_text("names: alone\n")
    with pytest.raises(InputError, match=r"type list \(write names: \[alone\]\)"):
        parse(Several, argv=words)
    with pytest.raises(InputError, match="--names: expected at least one argument"):
        parse(Several, argv=["--names", "--names", "a"])
