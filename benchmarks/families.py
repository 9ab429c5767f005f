"""The table of model families in docs/families.md, measured by the project's own family tests.

    python benchmarks/families.py            prints it
    python benchmarks/families.py --write    puts it into docs/families.md

Each row is a mechanism by which families differ from Llama, on a tiny random model: the largest
difference, over policy, reference, value and reward, from what plain transformers and plain peft
give for one unpadded row at a time. It takes half a minute. Below it stand the types that
transformers has a causal language model for, by what the toolkit does with them.
"""

import argparse
import importlib.util
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from toolkit.errors import InputError
from toolkit.models.families import family_of

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "families.md"
MARKS = "<!-- measured -->", "<!-- end -->"
STANDS_FOR = {
    "a hybrid's cache: convolutions": "LFM2",
    "a hybrid's cache: linear attention, out of a composite checkpoint": "Qwen3.5, Qwen3-Next",
    "a composite model, held whole": "Ministral 3, Mistral Small 3, Qwen-VL",
    "a composite model with a classifier of its own": "Gemma 3",
    "capped logits, shared keys, a head on the trunk": "Gemma 4, Gemma 2 and 3n",
    "scaled logits": "Granite, Cohere 2, Falcon-H1",
    "experts": "Mixtral, Qwen3-MoE, GPT-OSS, DeepSeek",
    "a cache by another name": "Mamba, Mamba 2",
    "an embedding of another width": "OPT-350m",
}


def family_tests() -> Any:
    """The module tests/models/test_families.py."""
    path = ROOT / "tests" / "models" / "test_families.py"
    spec = importlib.util.spec_from_file_location("test_families", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measure(tests: Any, mechanism: str, precision: str) -> tuple[str, str]:
    """The largest difference of log-probs and values, and of scores, as they are shown."""
    if (mechanism, precision) not in tests.PRECISIONS:
        return "refused", "refused"
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        torch.manual_seed(0)
        folder = Path(scratch)
        name = tests.save(tests.MECHANISMS[mechanism]().float().eval(), folder / "base")
        for gaps in (tests.policy_gaps, tests.reward_gaps):
            numbers = gaps(name, precision, folder)
            numbers.pop("moved by the adapter", None)
            if numbers.pop("without a gradient"):
                raise SystemExit(f"{mechanism}, {precision}: layers without a gradient")
            found.append(f"{max(numbers.values()):.0e}")
    return found[0], found[1]


def table(tests: Any) -> str:
    """The measured rows, as Markdown."""
    lines = [
        "| what is unlike Llama | stands for | log-probs, values: fp32 | 4-bit | scores: fp32 | "
        "4-bit |",
        "|---|---|---|---|---|---|",
    ]
    for mechanism in tests.MECHANISMS:
        wide, four = (measure(tests, mechanism, precision) for precision in ("fp32", "4bit"))
        print(mechanism, wide, four, file=sys.stderr)
        cells = [mechanism, STANDS_FOR[mechanism], wide[0], four[0], wide[1], four[1]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def types() -> str:
    """All types with a causal or an image-text model, by how they are held."""
    groups: dict[str, list[str]] = {}
    for kind in sorted(
        {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES}
    ):
        try:
            family = family_of(CONFIG_MAPPING[kind]())
        except InputError as error:
            reason = re.sub(r"^a \S+ model ", "", str(error)).split(" (")[0]
            groups.setdefault(f"refused: {reason}", []).append(kind)
            continue
        except Exception:  # a config without defaults, or of a library that is not there
            groups.setdefault("not looked at, since its config has no defaults", []).append(kind)
            continue
        head = (
            "transformers' own classifier"
            if family.classifier == "stock"
            else "a head on the trunk"
        )
        whole = ", of which the language model is used" if family.composite else ""
        groups.setdefault(f"reward model: {head}{whole}", []).append(kind)
    return "\n\n".join(
        f"**{title}** ({len(kinds)}): {', '.join(kinds)}."
        for title, kinds in sorted(groups.items())
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--write", action="store_true", help="put it into docs/families.md")
    write = parser.parse_args().write
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    versions = f"transformers {transformers.__version__}, peft {peft.__version__}, on a CPU"
    made = (
        f"Measured with {versions}.\n\n{table(family_tests())}\n\nBy their configs alone, the "
        "types of models that transformers knows divide as follows. Most of them were not run one "
        f"by one; each model is checked when it is loaded.\n\n{types()}\n"
    )
    if not write:
        print(made)
        return
    page = PAGE.read_text(encoding="utf-8")
    start, end = (page.index(mark) for mark in MARKS)
    PAGE.write_text(f"{page[: start + len(MARKS[0])]}\n\n{made}\n{page[end:]}", encoding="utf-8")


if __name__ == "__main__":
    main()
