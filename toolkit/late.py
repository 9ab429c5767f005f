"""Imports that can wait: what a help text or a refused flag does not need is not loaded for it."""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class _Waiting(MetaPathFinder):
    """Finds one module as the other finders would, and calls ``action`` once it is imported."""

    def __init__(self, name: str, action: Callable[[ModuleType], None]) -> None:
        self.name = name
        self.action = action
        self.asking = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.name or self.asking:
            return None

        self.asking = True  # the other finders: to look a module up is not to import it
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self.asking = False
        if spec is None or spec.loader is None:
            return spec

        execute = spec.loader.exec_module

        def execute_and_act(module: ModuleType) -> None:
            execute(module)
            sys.meta_path.remove(self)
            self.action(module)

        spec.loader.exec_module = execute_and_act  # type: ignore[method-assign]
        return spec


def when_imported(name: str, action: Callable[[ModuleType], None]) -> None:
    """Call ``action`` with the top-level module ``name``, at once or when it is imported."""
    if name in sys.modules:
        action(sys.modules[name])
    else:
        sys.meta_path.insert(0, _Waiting(name, action))


def training_arguments_without_peft() -> None:
    """Import ``transformers.trainer_utils``, as TrainingArguments do, and leave peft for later.

    transformers 5.23 imports peft there for two classes, to ask whether a model is one of them;
    that takes 3 of the 5 CPU seconds of the import. No model is one of them before peft is
    imported, so until then an empty class stands in for both.
    """
    if "peft" in sys.modules or "transformers.trainer_utils" in sys.modules:
        return

    import transformers.utils

    asked = transformers.utils.is_peft_available
    transformers.utils.is_peft_available = lambda: False
    try:
        from transformers import trainer_utils
    finally:
        transformers.utils.is_peft_available = asked

    class NotImportedYet:
        pass

    def put_in(peft: ModuleType) -> None:
        names.update(PeftModel=peft.PeftModel, PeftMixedModel=peft.PeftMixedModel)

    names = vars(trainer_utils)
    names.update(PeftModel=NotImportedYet, PeftMixedModel=NotImportedYet)
    names["is_peft_available"] = asked
    when_imported("peft", put_in)
