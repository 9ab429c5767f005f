"""Write the model card: what the adapter is, its data, method and results, and how to load it.

Text from files (names, settings, sources) is shown as inline code without control characters or
backticks, so that it cannot become a link, HTML or a heading.
"""

import unicodedata
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from toolkit.data.files import read_object
from toolkit.hub.adapter_source import Results, TrainedAdapter
from toolkit.hub.base_on_hub import Base
from toolkit.hub.loading_snippet import Names, loading_snippet
from toolkit.record import Json, RunRecord
from toolkit.scoring.arguments import adapter_folders
from toolkit.training.log_rows import read_log
from toolkit.training.methods import BASELINE_SETTINGS

UNMEASURED = "not measured"
UNKNOWN = "not recorded"
UNKNOWN_METHOD = "The training method is not recorded."
VALUE_METHOD = (
    "It was trained together with its policy by PPO, on returns of generalized advantage "
    "estimation."
)
WHAT = {
    "policy": "a language model tuned from human preferences, or from a stand-in for them (see "
    "Labels)",
    "reward": "a reward model. It scores a text: the higher the score, the more likely the text is "
    "the one that people pick among several",
    "value": "the value function of a PPO run. For each token it predicts the sum of future "
    "rewards (score minus KL penalty), which you need to continue that run",
}
PIPELINES = {"policy": "text-generation", "reward": "text-classification"}
TAGS = {"reward": "reward-model", "value": "value-function"}
LABELS = ("reward_adapter", "reward_model", "reward_function", "lexicon", "reward_weights")
LIMITS = {
    "policy": [
        "It was tuned towards picks or scores, which only approximate what people want. The "
        "further it is from its reference, the more of a high score may be the scorer's mistakes.",
        "Nothing was done to make it truthful or safe. It may repeat any mistake of the base.",
    ],
    "reward": [
        "Its scores compare texts like those that it was trained on. They may mean nothing for "
        "other texts, or for a policy that was tuned hard against it.",
        "It has the tastes and blind spots of the people who picked. It does not measure truth or "
        "safety.",
    ],
    "value": [
        "Its numbers are valid only for one policy, one reward model and one KL coefficient.",
    ],
}
CITE = """\
```bibtex
@article{ziegler2019finetuning,
  title   = {Fine-Tuning Language Models from Human Preferences},
  author  = {Ziegler, Daniel M. and Stiennon, Nisan and Wu, Jeffrey and Brown, Tom B. and
             Radford, Alec and Amodei, Dario and Christiano, Paul and Irving, Geoffrey},
  journal = {arXiv preprint arXiv:1909.08593},
  year    = {2019}
}
```"""
FILE_ENDINGS = (".json", ".jsonl", ".gz", ".parquet", ".csv", ".txt", ".arrow", ".jinja", ".yaml")


def render(
    adapter: TrainedAdapter,
    base: Base,
    repo_id: str,
    results: Results | None = None,
    data: str | None = None,
    labels: str | None = None,
) -> str:
    """Return the text of README.md; the same arguments give the same bytes.

    Args:
        adapter: the adapter and its training.
        base: its base on the Hub.
        repo_id: the repository that it goes to.
        results: the results of an evaluation.
        data, labels: the publisher's sentences on them.
    """
    record = adapter.record or RunRecord()
    gain = float(adapter.toolkit_json.get("gain", 1.0))
    bias = float(adapter.toolkit_json.get("bias", 0.0))
    snippet = loading_snippet(
        adapter.kind,
        adapter.precision,
        Names(repo_id, base.repo_id, base.sha),
        gain,
        bias,
        adapter.ends_with,
        adapter.written_prefix(base.files),
        adapter.chat(base.files),
        base.family,
        base.has_experts,
    )

    method = "" if adapter.method is None else adapter.method.name
    license_fields: Json = dict(base.license)
    metadata = ModelCardData(
        base_model=base.repo_id,
        library_name="peft",
        pipeline_tag=PIPELINES.get(adapter.kind),
        tags=["lora", "rlhf", *filter(None, [TAGS.get(adapter.kind, method)])],
        base_model_relation="adapter",
        **license_fields,
    )

    parts = [
        f"# {repo_id.split('/')[1]}",
        f"A LoRA adapter on [{base.repo_id}](https://huggingface.co/{base.repo_id}) (commit "
        f"`{base.sha}`): {WHAT[adapter.kind]}.",
        f"## How to load it\n\n```python\n{snippet}```",
        _loading_notes(adapter, base, gain, bias),
        f"## Data\n\n{_prose(data)}{_table(record.data, bool(data))}",
        f"## Labels\n\n{_prose(labels)}{_labels(adapter, bool(labels))}",
        f"## Method\n\n{_method(adapter)}\n\n{_table(_chosen(adapter))}",
        f"## Results\n\n{_results(adapter, results)}",
        f"## Limits\n\n{_limits(adapter, results)}",
        f"## How to cite\n\nCite this adapter by its address, `https://huggingface.co/{repo_id}`, "
        f"its base as its own card says, and the paper behind the method:\n\n{CITE}",
    ]
    return str(ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"))


def code(value: object, limit: int = 120) -> str:
    """Return text as inline code in one line, which is inert in Markdown, even in a table.

    >>> code("a | <b>`x`</b>")
    "`a / <b>'x'</b>`"
    """
    text = _one_line(value).replace("|", "/").replace("\\", "/")
    return f"`{text[:limit] + (' ...' if len(text) > limit else '') or ' '}`"


def _name(value: object) -> str:
    """Show a setting; of a path on this machine only the last part.

    Several reward adapters are joined by commas.
    """
    return code(",".join(map(_last_part, str(value).split(","))))


def _last_part(text: str) -> str:
    local = text.startswith(("/", "~", "./", "../")) or "\\" in text or text.count("/") > 1
    if "/" in text and (text.endswith(FILE_ENDINGS) or Path(text).exists()) or local:
        return Path(text.replace("\\", "/")).name or text.strip("/~.")
    return text


def _one_line(value: object) -> str:
    text = "".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in str(value))
    return " ".join(text.split()).replace("`", "'")


def _prose(text: str | None) -> str:
    """Return the publisher's sentences in one line, without heading, HTML or code."""
    if not text:
        return ""
    return _one_line(text).replace("&", "&amp;").replace("<", "&lt;").lstrip("#>-+*=| ") + "\n\n"


def _table(known: Json | None, told: bool = False) -> str:
    """Return a table of the known values; without any, and without prose, say so."""
    rows = _flat(known or {})
    if not rows:
        return "" if told else f"{UNKNOWN}."
    return "| | |\n|---|---|\n" + "\n".join(f"| {code(k)} | {_name(v)} |" for k, v in rows.items())


def _flat(known: Json, before: str = "") -> Json:
    """Flatten nested objects, with dots in the names, and leave out None."""
    rows: Json = {}
    for key, value in sorted(known.items()):
        if isinstance(value, dict):
            rows |= _flat(value, f"{before}{key}.")
        elif isinstance(value, list):
            rows[before + key] = ", ".join(_name(v).strip("`") for v in value)
        elif value is not None:
            rows[before + key] = value
    return rows


def _chosen(adapter: TrainedAdapter) -> Json:
    """Return the training's main settings; without a run.json, those of the adapter."""
    names = BASELINE_SETTINGS if adapter.method is None else adapter.method.settings
    kept = {k: adapter.setting(k) for k in names if adapter.setting(k) is not None}
    if not kept:
        targets = adapter.config.get("target_modules")
        if isinstance(targets, list):
            targets = ", ".join(sorted(targets))
        kept = {
            "lora_r": adapter.config.get("r"),
            "lora_alpha": adapter.config.get("lora_alpha"),
            "lora_target_modules": targets,
            "precision": adapter.precision,
        }

    versions = {} if adapter.record is None else adapter.record.versions
    if versions:
        wanted = ("torch", "transformers", "trl", "peft")
        kept["versions"] = ", ".join(f"{k} {versions[k]}" for k in wanted if k in versions)
    return kept


def _method(adapter: TrainedAdapter) -> str:
    if adapter.kind == "value":
        return VALUE_METHOD
    text = UNKNOWN_METHOD if adapter.method is None else adapter.method.sentence
    if adapter.kind == "policy" and adapter.setting("policy_adapter"):
        text += " It started from another adapter on this base, which is also its reference."
    if adapter.kind == "policy" and adapter.setting("ptx_coef"):
        weight = adapter.setting("ptx_coef")
        text += f" It learned plain text beside its rewards (PTX, ptx_coef {weight:g})."
    if adapter.kind == "reward" and adapter.setting("start_adapter"):
        text += " It started as a copy of a policy adapter on this base."
    return text


def _labels(adapter: TrainedAdapter, told: bool) -> str:
    if adapter.method is not None and not adapter.method.needs_reward:
        picked = "Each comparison has several completions of one prompt, and one of them is picked."
        return picked + ("" if told else f" Who picked them is {UNKNOWN}.")

    chosen = {k: adapter.setting(k) for k in LABELS if adapter.setting(k)}
    if len(adapter_folders(adapter.setting("reward_adapter"))) > 1:
        chosen["reward_combine"] = adapter.setting("reward_combine")
    if not chosen:
        return _table(None, told)
    return (
        f"The policy was rewarded by:\n\n{_table(chosen)}\n\n"
        "The card of the reward model, if there is one, says whose picks it was trained on."
    )


def _loading_notes(adapter: TrainedAdapter, base: Base, gain: float, bias: float) -> str:
    notes = [
        "Before the upload, these lines were run in a clean process on the files of this "
        "repository. They gave the same numbers as the training code.",
        {
            "4bit": "It was trained on the base in 4-bit, as loaded here. On the base in another "
            "precision it gives other numbers.",
            "bf16": "It was trained on the base in bfloat16.",
            "fp32": "It was trained on the base in float32.",
        }[adapter.precision],
    ]

    if adapter.kind == "reward":
        if base.family.classifier == "stock":
            head = (
                "transformers reports that `score.weight` is newly initialized. The next line "
                "fills it from the adapter."
            )
        else:
            head = (
                "transformers has no sequence classifier for this base, so the head is put "
                "beside the language model's head, on the same last hidden states."
            )
        notes.append(
            "`score` is gain x raw + bias. The raw score is the model's logit, the gain is "
            f"{gain:.6g} and the bias is {bias:.6g}. {head}"
        )

    notes += [f"{line[:1].upper()}{line[1:]}." for line in base.family.notes()]
    if base.has_experts and adapter.precision == "4bit":
        notes.append("Its experts were in 4-bit too, which transformers alone does not do.")
    if adapter.kind == "value":
        notes.append("The head is in a separate file, because no class of transformers loads it.")
    return "\n".join(f"- {note}" for note in notes)


def _results(adapter: TrainedAdapter, results: Results | None) -> str:
    if adapter.kind == "reward":
        return _accuracy(adapter)
    if adapter.kind == "value":
        return f"Accuracy of its predictions: {UNMEASURED}."
    if results is None:
        return (
            f"KL from the reference per completion: {_kl_in_training(adapter)}.\n\n"
            f"Win rates: {UNMEASURED}."
        )

    row = results.contender
    held = UNMEASURED if row.kl is None else f"{row.kl:.3g} nats"
    if row.kl_error is not None:
        held += f" (standard error {row.kl_error:.2g})"
    parts = [
        f"It was evaluated on {results.prompts} prompts. KL from the reference per completion: "
        f"{held}."
    ]

    if row.trained_prompts is None:
        parts.append("Whether it was trained on some of these prompts could not be checked.")
    elif row.trained_prompts > 0:
        parts.append(
            f"**It was trained on {row.trained_prompts} of these prompts, so they are not all held "
            "out.**"
        )

    if results.pairs:
        parts.append(
            "| against | judge | wins / ties / losses | win rate if decided, 95 % interval |\n"
            "|---|---|---|---|\n"
            + "\n".join(
                f"| {_name(p.b)} | {_judge(results, p.judge)} | {p.wins} / {p.ties} / "
                f"{p.losses} | {p.win_rate:.1%} [{p.low:.1%}, {p.high:.1%}] |"
                for p in results.pairs
                if p.judged
            )
        )
    else:
        parts.append(f"Win rates: {UNMEASURED}.")

    if row.scores:
        parts.append(
            "| judge | mean score (standard error) | gain in the reference's std |\n"
            "|---|---|---|\n"
            + "\n".join(
                f"| {_judge(results, name)} | {s.mean:.3g} ({s.error:.2g}) | {s.gain:+.2f} |"
                for name, s in row.scores.items()
            )
        )
    return "\n\n".join(parts)


def _judge(results: Results, name: str) -> str:
    judge = results.judges.get(name)
    trained = judge is not None and judge.training_reward
    return _name(name) + (" (the training reward)" if trained else "")


def _accuracy(adapter: TrainedAdapter) -> str:
    m = adapter.metrics
    if m is None:
        return f"Accuracy on held-out comparisons: {UNMEASURED}."

    text = (
        f"It gives the picked completion the highest score in a share of {m.accuracy:.3f} "
        f"[{m.accuracy_low:.3f}, {m.accuracy_high:.3f}] of {m.comparisons} held-out comparisons, "
        f"whose prompts it was not trained on."
    )
    if m.folds is not None and m.own is not None:
        text = (
            f"In a cross-validation of {m.folds} folds, the picked completion gets the highest "
            f"score in a share of {m.accuracy:.3f} [{m.accuracy_low:.3f}, {m.accuracy_high:.3f}] "
            f"of {m.comparisons} comparisons. Each was scored by a model that was not trained on "
            f"its prompt: {m.own.comparisons} of them by this one, which is right in "
            f"{m.own.accuracy:.3f} [{m.own.low:.3f}, {m.own.high:.3f}] of these, and the others "
            "by models that were trained by the same settings."
        )
    text += (
        f" Chance reaches {m.chance:.3f}. The probability that chance does as well is {m.p:.2g}."
    )
    if m.p >= 0.025:  # the interval reaches down to chance
        text += " **It is not shown to be better than chance.**"
    elif m.p >= 0.001:
        text += " **It is probably better than chance, but that is not certain.**"
    return text


def _kl_in_training(adapter: TrainedAdapter) -> str:
    """Return the KL that PPO logged: the last fifth's mean, or that of the best adapters."""
    beside = adapter.folder.parent
    if beside.name == "best" and (beside / "evaluation.json").is_file():
        noted = read_object(beside / "evaluation.json", "adapter").get("eval/kl")
        if isinstance(noted, int | float):
            return f"{noted:.3g} nats, on the run's held-out prompts"

    log = read_log(beside.parent / "log.jsonl") if beside.name == "adapters" else []
    known = [update.kl for update in log[-max(1, len(log) // 5) :] if update.kl is not None]
    if not known:
        return UNMEASURED
    return f"{sum(known) / len(known):.3g} nats, as sampled over the last fifth of the training"


def _limits(adapter: TrainedAdapter, results: Results | None) -> str:
    missing = []
    if adapter.kind == "policy" and (results is None or not results.pairs):
        missing.append("whether people or another judge prefer it")
    if adapter.record is None:
        missing.append("the settings and data of its training, because there is no run.json")
    lines = [*LIMITS[adapter.kind]]
    if missing:
        lines.append(f"Not known: {'; '.join(missing)}.")
    return "\n".join(f"- {line}" for line in lines)
