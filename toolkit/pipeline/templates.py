"""The templates of a project file: which settings to begin with, for which model and task."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml

from toolkit.arguments.common import OverwriteArguments
from toolkit.arguments.model import DEMO_MODEL, ModelArguments, Precision
from toolkit.arguments.prompts import DEMO_PROMPTS, HELD_OUT
from toolkit.data.records import Row
from toolkit.embedded import is_embedded_model, short_name
from toolkit.errors import InputError
from toolkit.flags import Count, Named, Range, flag, other_default

TemplateName = Literal["auto", "text", "chat", "summaries", "sentiment", "descriptiveness"]
RANKED = 8  # completions that the labeling page lets people put in order
SMALL = 50_000_000  # parameters; below this, a model takes much higher learning rates
LARGE = 6_000_000_000


@dataclass(frozen=True)
class Template:
    """The settings that a kind of task begins with.

    Attributes:
        about: what the model is to do, for the file's first line.
        settings: what all stages share, with a remark for each ("" for none).
        ppo: further settings of PPO.
        guidelines: what people are told to look for; "" to leave that to you.
    """

    about: str
    settings: dict[str, tuple[object, str]]
    ppo: dict[str, object] = field(default_factory=dict)
    guidelines: str = ""


# The styles of arXiv 1909.08593: continuations of 24 tokens, of which people see, and the reward
# model scores, what stands before the first full stop from the token 16 on.
STYLE: dict[str, tuple[object, str]] = {
    "response_length": (24, "tokens of a continuation, as in the paper"),
    "max_prompt_length": (64, "tokens; the paper's prompts have 32 to 64"),
    "temperature": (0.7, ""),
    "stop_token": ("none", "no token ends a continuation early ..."),
    "truncate_token": (".", "... but what stands behind a full stop does not count,"),
    "truncate_after": (16, "and one without a full stop from here on scores -1"),
}
# The paper says what is picked; these words are this project's.
GUIDELINES = """\
Each item is the beginning of a text and several ways in which it may go on.
Pick the continuation that {best}.

Compare only that. A continuation does not have to be true, polite or well written.
If two are equally good by this measure, say that the best are equally good. If you cannot tell
because a text makes no sense, skip the item.
"""


TEMPLATES: dict[str, Template] = {
    "text": Template(
        "a model that continues texts",
        {
            "response_length": (24, "tokens of a completion"),
            "max_prompt_length": (256, "tokens; longer prompts are left out"),
            "stop_token": ("none", "no token ends a completion early ..."),
            "truncate_token": (
                ".",
                "... but what stands behind a full stop does not count",
            ),
            "truncate_after": (12, "after this many tokens"),
        },
    ),
    "chat": Template(
        "a chat model that answers",
        {
            "as_messages": (True, "prompts that are text become messages of a user"),
            "response_length": (256, "tokens of an answer at most"),
            "max_prompt_length": (256, "tokens; longer prompts are left out"),
            "stop_token": ("eos", "an answer ends with the model's end of turn"),
        },
        {"missing_eos_penalty": 1.0},
    ),
    "summaries": Template(
        "a model that summarizes texts",
        {
            "prompt_form": ("{prompt}\\n\\nTL;DR:", "what the model reads of a text"),
            "response_length": (64, "tokens of a summary at most"),
            "max_prompt_length": (512, "tokens; longer texts are left out"),
            "stop_token": ("eos", "a summary ends with the model's end token"),
        },
        {"missing_eos_penalty": 1.0},
    ),
    "sentiment": Template(
        "a model that continues texts in a positive and happy way",
        STYLE,
        {"kl_target": 10},
        GUIDELINES.format(best="has the most positive, happiest feeling"),
    ),
    "descriptiveness": Template(
        "a model that continues texts with vivid descriptions",
        STYLE,
        {"kl_target": 6},
        GUIDELINES.format(best="describes most vividly what one would see, hear, smell or touch"),
    ),
}


@dataclass
class InitArguments(OverwriteArguments):
    """What a new project is about; all of it can be changed in the file later."""

    FIRST_WORD: ClassVar[str] = "output"

    template: TemplateName = flag(
        "auto",
        "What the model does: text (it continues prompts), chat (it answers) or summaries; "
        "sentiment and descriptiveness are text with the settings of arXiv 1909.08593. auto is "
        "chat for a model with a chat template, else text.",
    )
    model_name_or_path: str = other_default(DEMO_MODEL, ModelArguments, "model_name_or_path")
    precision: Precision = other_default("4bit", ModelArguments, "precision")
    prompts: str | None = flag(
        None, "Your prompts: a .txt file with one a line, JSONL, CSV, Parquet, owner/name:split."
    )
    eval_prompts: str | None = flag(
        None, "Prompts to compare on. By default a tenth of the prompts is held out."
    )
    comparisons: str | None = flag(
        None, "Your picks, pairs or rankings in any form that preftune convert reads: CSV, JSONL."
    )
    columns: list[str] = flag(
        [], "What the columns of --comparisons hold, as for preftune convert --columns."
    )
    lexicon: str | None = flag(None, "Word list that picks in place of people.")
    invite: str = flag("me", "People who label, separated by commas.")
    completions: Annotated[int, Range(low=2, high=26)] = flag(
        4, "Completions of each prompt among which people pick."
    )
    models: Named = flag(
        [],
        "Policies that write the completions together, as NAME=FOLDER of an adapter on the base, "
        "or NAME=base for the untuned model. They are rated by what people choose.",
    )
    ask: Literal["best", "ranking"] = flag(
        "best", "What people are asked for: the best completion, or all from best to worst."
    )
    response_length: Count | None = flag(None, "Tokens of a completion. By default the template's.")
    max_prompt_length: Count | None = flag(
        None, "Longest prompt in tokens. By default the template's."
    )
    stop_token: str | None = flag(
        None, "Token that ends a completion, eos or none. By default the template's."
    )
    truncate_token: str | None = flag(
        None, "Token behind which nothing counts, or none. By default the template's."
    )
    total_episodes: Count | None = flag(
        None, "Completions that PPO samples in all. By default by the model's size."
    )
    folder: str = flag("outputs", "Folder for all that the stages write.")
    output: str = flag("project.yaml", "The project file to write.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.models and self.comparisons is not None:
            raise InputError("models: they write where there are no --comparisons yet", "models")
        if self.models and self.completions % len(self.models):
            raise InputError(
                f"completions: {self.completions} cannot be shared out equally among "
                f"{len(self.models)} models (say --completions {2 * len(self.models)})",
                "completions",
            )
        if self.ask == "ranking" and (self.lexicon or self.comparisons):
            raise InputError("ask: only people on the labeling page rank completions", "ask")
        if self.ask == "ranking" and self.completions > RANKED:
            raise InputError(
                f"completions: {self.completions}, but people rank {RANKED} at most", "completions"
            )
        if self.columns and self.comparisons is None:
            raise InputError("columns: of which file? (add --comparisons FILE)", "columns")
        for name in ("prompts", "eval_prompts", "comparisons", "lexicon"):
            path = getattr(self, name)
            if path is not None and Path(path).suffix and not Path(path).exists():
                raise InputError(f"{name}: {path}: no such file", name)


def parameters_of(model: str) -> int | None:
    """Count a model's parameters by its config, without its weights; None if that cannot be read.

    Args:
        model: a folder or Hub id.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from toolkit.models.base_config import load_config

    try:
        with torch.device("meta"):
            found = AutoModelForCausalLM.from_config(load_config(model))
    except (InputError, OSError, ValueError, KeyError, AttributeError):
        return None
    return sum(p.numel() for p in found.parameters())


def has_chat_template(model: str) -> bool:
    """Whether a model's tokenizer turns messages into text; False if it cannot be read."""
    from transformers import AutoTokenizer

    try:
        return bool(getattr(AutoTokenizer.from_pretrained(model), "chat_template", None))
    except (OSError, ValueError, KeyError):
        return False


def rates(parameters: int | None) -> tuple[Row, Row]:
    """Settings of reward training and of PPO to begin with (docs/your-model.md has the sources).

    Args:
        parameters: of the model; None if they are not known.
    """
    if parameters is not None and parameters < SMALL:
        reward: Row = {
            "learning_rate": 2e-3,
            "num_train_epochs": 4,
            "per_device_train_batch_size": 16,
        }
        ppo: Row = {
            "total_episodes": 2560,
            "per_device_train_batch_size": 64,
            "learning_rate": 1e-3,
            "kl_controller": "adaptive_pi",
            "kl_coef": "auto",
            "kl_target": 5,
            "kl_horizon": 640,
            "value_warmup": 4,
        }
        return reward, ppo

    rate = 5e-5 if parameters is not None and parameters >= LARGE else 1e-4
    reward = {
        "learning_rate": rate,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 4,
    }
    return reward, {"total_episodes": 20_000, "learning_rate": 1.4e-5, "kl_target": 6}


def project_text(args: InitArguments, parameters: int | None, chat: bool) -> str:
    """Return a project file with comments.

    Args:
        args: what the project is about.
        parameters: of the model (``parameters_of``).
        chat: whether its tokenizer has a chat template.
    """
    template = template_of(args, chat)
    lines = [
        f"# {template.about[0].upper()}{template.about[1:]}, and people's choices to tune it by.",
        f"#   preftune run {args.output}",
        "# runs all stages that have a section here; the same command goes on after a stop.",
        f"#   preftune reward --config {args.output}",
        "# runs one of them, and preftune reward --help lists what its section may say. What",
        "# stands outside the sections is for all stages. Paths start in the folder in which you",
        "# run the command.",
        "",
        _line("model_name_or_path", short_name(args.model_name_or_path)),
        _line("precision", args.precision, "4bit, bf16 or fp32"),
        _line("folder", args.folder, "all that is written goes here"),
        "",
        *_sources(args),
        "",
        *_settings(args, template),
    ]

    reward, ppo = rates(parameters)
    ends = _ends(args, template)
    ppo |= {k: v for k, v in template.ppo.items() if ends or k != "missing_eos_penalty"}
    if args.total_episodes is not None:
        ppo["total_episodes"] = args.total_episodes
    if args.comparisons is None:
        lines += [
            "",
            "sample:",
            _line("  completions", args.completions, "people see these side by side"),
        ]
        if args.models:
            lines.append(_line("  models", args.models, "they write in equal shares"))
        lines += ["", "label:", *_labelers(args)]
        if (told := guidelines_file(args, template)) is not None:
            lines.append(_line("  guidelines", str(told), "what people are told to look for"))
        if args.ask == "ranking":
            lines.append(_line("  ask", "ranking", "from best to worst"))
            reward = {"loss_type": "plackett_luce", **reward}
        if args.models:
            lines += ["", "ratings:  # who writes best, by what people chose"]
    lines += ["", "reward:", *(_line(f"  {key}", value) for key, value in reward.items())]
    curve = _line("  # label_fractions", "0.1,0.25,0.5", "shows what more labels would give")
    lines += ["", "reward_report:", curve]
    lines += ["", "ppo:", *(_line(f"  {key}", value) for key, value in ppo.items())]
    others = [f"best-of-{args.completions}=best_of_{args.completions}", *_writers(args)]
    lines += ["", "evaluate:", _line("  contenders", others, "beside the tuned model")]
    model = short_name(args.model_name_or_path)
    lines += ["", "report:", _line("  title", f"{Path(model).name}, tuned by people's choices"), ""]
    return "\n".join(lines)


def template_of(args: InitArguments, chat: bool) -> Template:
    """Return the template that was named, or the one that fits the model's tokenizer."""
    name = args.template if args.template != "auto" else "chat" if chat else "text"
    return TEMPLATES[name]


def guidelines_file(args: InitArguments, template: Template) -> Path | None:
    """Where the template's guidelines for people go; None if it has none or nobody labels."""
    if not template.guidelines or args.comparisons is not None or args.lexicon is not None:
        return None
    return Path(args.output).with_suffix(".guidelines.txt")


def _sources(args: InitArguments) -> list[str]:
    """The lines on prompts and comparisons."""
    prompts, held_out = args.prompts, args.eval_prompts
    if prompts is None and args.comparisons is None:
        if not is_embedded_model(args.model_name_or_path):
            raise InputError(
                "prompts: name your prompts by --prompts FILE, or the picks that you have by "
                "--comparisons FILE",
                "prompts",
            )
        prompts, held_out = DEMO_PROMPTS, HELD_OUT

    lines = []
    if args.comparisons is not None:
        lines.append(_line("comparisons", args.comparisons, "people's choices"))
    if args.columns:
        lines.append(_line("columns", args.columns))
    if prompts is not None:
        lines.append(_line("prompts", short_name(prompts)))
    else:
        lines.append("# prompts: FILE             # by default those of the comparisons")
    if held_out is not None:
        lines.append(_line("eval_prompts", short_name(held_out), "never trained on"))
    else:
        lines.append("# eval_prompts: FILE        # by default a tenth of the prompts is held out")
    return lines


def _settings(args: InitArguments, template: Template) -> list[str]:
    """The lines on lengths and end tokens: the template's, or what was given instead."""
    lines = []
    for name, (value, remark) in template.settings.items():
        given = getattr(args, name, None)
        cut = args.truncate_token if name == "truncate_after" else given
        if name.startswith("truncate_") and cut == "none":
            continue
        lines.append(_line(name, value if given is None else given, "" if given else remark))
    if "truncate_token" not in template.settings and args.truncate_token not in (None, "none"):
        lines.append(_line("truncate_token", args.truncate_token))
    return lines


def _ends(args: InitArguments, template: Template) -> bool:
    """Whether completions end with a token, so that one may be missing."""
    return (args.stop_token or template.settings["stop_token"][0]) != "none"


def _writers(args: InitArguments) -> list[str]:
    """The models that write the completions, as contenders; the untuned one always is one.

    A contender of the file replaces the project's own of this name, so none is called ppo.
    """
    named = [one.partition("=")[::2] for one in args.models]
    return [f"{'ppo-before' if n == 'ppo' else n}={what}" for n, what in named if what != "base"]


def _labelers(args: InitArguments) -> list[str]:
    if args.lexicon is not None:
        return [_line("  lexicon", short_name(args.lexicon), "picks in place of people")]
    return [_line("  invite", args.invite, "who labels; each name gets a link")]


def _line(name: str, value: Any, remark: str = "") -> str:
    """A line of YAML, with a remark in a column of its own."""
    text = (
        yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n...\n").strip()
    )
    line = f"{name}: {text}"
    return f"{line:27} # {remark}" if remark else line
