"""What is imported late is there, whole, once somebody imports it."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from toolkit.late import when_imported


def test_a_module_that_is_there_is_acted_on_at_once() -> None:
    seen: list[ModuleType] = []
    when_imported("json", seen.append)
    assert [module.__name__ for module in seen] == ["json"]


def test_a_module_that_comes_later_is_acted_on_once_when_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib
    import importlib.util

    name = "comes_later"
    (tmp_path / f"{name}.py").write_text("early = 1\nlate = 2\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = list(sys.meta_path)
    seen: list[int] = []
    when_imported(name, lambda module: seen.append(module.late))

    importlib.util.find_spec(name)  # to look for it is not to import it
    assert seen == []
    importlib.import_module(name)
    importlib.import_module(name)
    assert seen == [2]
    assert sys.meta_path == before
    monkeypatch.delitem(sys.modules, name)


def test_a_module_that_does_not_exist_is_missed_as_ever() -> None:
    before = list(sys.meta_path)
    when_imported("no_such_module_at_all", lambda module: None)
    with pytest.raises(ModuleNotFoundError, match="no_such_module_at_all"):
        __import__("no_such_module_at_all")
    sys.meta_path[:] = before


@pytest.mark.slow  # a clean process
def test_transformers_knows_a_peft_model_whether_peft_comes_before_or_after(
    demo_model: str,
) -> None:
    code = f"""
import sys
from toolkit.training.trl_configs import TrainingArguments
assert "peft" not in sys.modules
from transformers import AutoModelForCausalLM, trainer_utils
model = AutoModelForCausalLM.from_pretrained({demo_model!r})
assert not trainer_utils._is_peft_model(model)
from peft import LoraConfig, get_peft_model, PeftModel
assert trainer_utils.PeftModel is PeftModel and trainer_utils.is_peft_available()
tuned = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
assert trainer_utils._is_peft_model(tuned)
assert trainer_utils.unwrap_peft_model(tuned) is model
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
