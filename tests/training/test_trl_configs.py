"""The configs that are imported without peft are transformers' and TRL's own."""

import transformers
import trl

from toolkit.training import trl_configs


def test_they_are_the_very_classes() -> None:
    for name in trl_configs.__all__:
        library = transformers if name == "TrainingArguments" else trl
        assert getattr(trl_configs, name) is getattr(library, name)
