"""The contenders: the reference, adapters, checkpoints, whole models, best-of-n, and given texts.

    reference                     the base with adapters off
    ppo=outputs/ppo/adapters/policy
    ppo=outputs/ppo/checkpoint-*  each checkpoint, as ppo@40, ppo@80, ...
    other=some-org/some-model     a whole model, loaded beside the base while it samples
    best16=best_of_16             the highest reward among 16 completions of the reference
    best4=best_of_4:ppo           the highest reward among 4 completions of the contender ppo
    half=outputs/ppo/adapters/policy*0.5, soup=mean(A,B), s=slerp(A,B)    (``merged``)
    ilql=outputs/ilql/adapters:beta=4                                     (``steered``)
    lead-2                        the first two sentences of the text to sum up (``source_text``)
    human=column:summary          the texts in a column of the prompts' rows

All except whole models are adapters on one base in memory. The last two need no model, and have no
KL.
"""

import math
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from toolkit.data.chat import Chat
from toolkit.data.encoding import Encoder
from toolkit.data.leftovers import scratch_folder
from toolkit.data.prompts import Prompts
from toolkit.data.records import Row
from toolkit.data.tokens import decode_pair
from toolkit.errors import InputError
from toolkit.evaluation.merged import (
    Merged,
    digits_of,
    hint_of,
    is_merged,
    parse_merged,
    split_factors,
    written,
)
from toolkit.evaluation.source_text import column_texts, continues, lead
from toolkit.evaluation.steered import Steered, check_steered, is_steered, parse_steered
from toolkit.maths.frontier import best_of_n_kl
from toolkit.maths.sequences import pad, real_tokens
from toolkit.models.actors import REFERENCE
from toolkit.models.adapters import check_adapter
from toolkit.models.base_config import check_base
from toolkit.models.loading import load_base, load_tokenizer
from toolkit.models.reading import other_rendering
from toolkit.models.roles import Roles
from toolkit.models.sampling import SamplingRule
from toolkit.record import RUN_FILE, RunRecord, record_beside
from toolkit.scoring.scorer import Scorer, TokenCompletions
from toolkit.training.ppo.checkpoints import NAME, export_policy

BEST_OF = re.compile(r"best_of_(\d+)(?::(.+))?")
LEAD = re.compile(r"lead-(\d+)")
COLUMN = re.compile(r"column:(.+)")
GIVEN = ("lead", "column")  # kinds whose texts no model writes
RuleOf = Callable[[PreTrainedTokenizerBase], SamplingRule]


@dataclass(frozen=True)
class Contender:
    """One contender.

    Attributes:
        name: name in tables.
        kind: "reference", "adapter", "checkpoint", "merged", "ilql", "model", "best_of_n", "lead"
            or "column".
        source: folder or Hub id; for best-of-n, the name of the contender that it picks from; for
            a merged or a steered one, its expression, in which only folders are named; for "lead",
            the number of sentences; for "column", its name.
        n: number of completions for best-of-n.
        made: for "merged", what it is made of; its source is the same as text.
    """

    name: str
    kind: str
    source: str = ""
    n: int = 1
    made: Merged | None = field(default=None, compare=False)

    @property
    def adapter(self) -> str | None:
        """The adapter's folder as an absolute path; None without an adapter."""
        return str(Path(self.source).resolve()) if self.kind == "adapter" else None

    @property
    def steered(self) -> Steered:
        """Policy, critic and strength of one of the kind "ilql"."""
        return parse_steered(self.source)[0]

    @property
    def trained(self) -> list[str]:
        """The folders of the adapters and checkpoints that it is, or is made of."""
        if self.made is not None:
            return self.made.folders()
        if self.kind == "ilql":
            return [self.steered.policy]
        return [self.source] if self.kind in ("adapter", "checkpoint") else []


@dataclass
class Outputs:
    """A contender's completions, one per prompt.

    Attributes:
        texts: the texts that judges see.
        ids: the texts as the base's token ids; None for a model with other tokens.
        log_ratios: log pi - log rho of each completion, in nats; None for other tokens.
        kls: of a steered contender, the KL of each of its next-token distributions, summed over a
            completion: the mean is that of log_ratios, with a smaller error.
        tokens: number of sampled tokens, with the end token.
        kl_of_picking: KL that best-of-n adds: ln n - (n - 1) / n nats.
    """

    texts: list[str]
    ids: list[list[int]] | None
    log_ratios: list[float] | None
    tokens: list[int]
    kl_of_picking: float = 0.0
    kls: list[float] | None = None

    @property
    def measured_kls(self) -> list[float] | None:
        """Of each completion, what its contender's KL is the mean of, without that of picking."""
        return self.log_ratios if self.kls is None else self.kls


def parse_contenders(specs: Sequence[str]) -> list[Contender]:
    """Parse contenders from ``name=what``, in that order; the reference always comes first.

    Raises:
        InputError: a name is used twice, or a contender does not exist.
    """
    found: list[Contender] = []
    merged: list[tuple[str, str]] = []
    for spec in specs:
        name, equals, what = (part.strip() for part in spec.partition("="))
        if not equals or name.endswith(":beta"):  # FOLDER:beta=4, without a name
            name, equals, what = "", "", spec.strip()
        if not what or (equals and not name):
            raise InputError(
                f"contenders: {spec!r} is not NAME=WHAT (such as ppo=outputs/ppo/adapters/policy)"
            )
        if is_merged(what):
            part = [Contender(each, "merged", text) for each, text in _factors_of(name, what)]
            merged += [(c.name, c.source) for c in part]
        else:
            part = _parse(name, what)
        found += part
    found = [_resolved(c, found, dict(merged)) for c in found]

    if not any(c.kind == "reference" for c in found):
        found.insert(0, Contender("reference", "reference"))
    first = next(c.name for c in found if c.kind == "reference")
    found = [
        replace(c, source=first) if c.kind == "best_of_n" and not c.source else c for c in found
    ]
    names = [c.name for c in found]
    for name in names:
        if names.count(name) > 1:
            raise InputError(
                f"contenders: two are called {name!r} (choose another NAME; `reference` is the "
                "untuned model)"
            )

    for c in found:
        if c.kind == "best_of_n" and c.source not in names:
            raise InputError(f"contenders: {c.name}: no contender is called {c.source!r}")
        if c.kind == "best_of_n" and _by_name(found, c.source).kind == "best_of_n":
            raise InputError(
                f"contenders: {c.name}: best-of-n of best-of-n is not possible (use a greater n)"
            )
        if c.kind == "best_of_n" and _by_name(found, c.source).kind in GIVEN:
            raise InputError(
                f"contenders: {c.name}: best-of-n of {c.source} is not possible, since it has one "
                "text for each prompt"
            )

    return sorted(found, key=lambda c: c.kind != "reference")


def _factors_of(name: str, what: str) -> list[tuple[str, str]]:
    """Return a name and an expression for each factor of ``WHAT*0.25,0.5``."""
    head, factors = split_factors(what)
    if len(factors) < 2:
        return [(name or what, what)]
    name = name or _name_of(head)
    return [(f"{name}*{digits_of(f)}", f"{head}*{digits_of(f)}") for f in factors]


def _resolved(
    contender: Contender, contenders: Sequence[Contender], merged: Mapping[str, str]
) -> Contender:
    """Replace the names of other contenders in a merged one by what they are.

    A whole adapter, which ``FOLDER*1`` is, stays the adapter's own folder.
    """
    if contender.kind != "merged":
        return contender

    def named(word: str, within: tuple[str, ...]) -> str | Merged | None:
        if word in within and Path(word).is_dir():
            return None  # the folder of that name
        if word in within:
            raise InputError(f"contenders: {contender.name}: {word} is made of itself")
        if word in merged:
            inner = (*within, word)
            return parse_merged(merged[word], lambda other: named(other, inner))
        known = [c for c in contenders if c.name == word]
        if not known:
            return None
        if known[0].kind not in ("adapter", "checkpoint"):
            raise InputError(
                f"contenders: {contender.name}: {word} is no adapter, so it cannot be merged"
            )
        return known[0].source

    found = parse_merged(contender.source, lambda word: named(word, (contender.name,)))
    only = found.parts[0]
    if found.how is None and found.factor == 1 and isinstance(only, str):
        kind = "checkpoint" if NAME.fullmatch(Path(only).name) else "adapter"
        return Contender(contender.name, kind, only)
    return replace(contender, source=str(found), made=found)


def _name_of(what: str) -> str:
    """Return a name for a folder: that of its run."""
    path = Path(what)
    return (path.parent.parent if path.name == "policy" else path.parent).name or what


def _by_name(contenders: Sequence[Contender], name: str) -> Contender:
    return next(c for c in contenders if c.name == name)


def _parse(name: str, what: str) -> list[Contender]:
    if what == "reference":
        return [Contender(name or what, "reference")]
    if match := BEST_OF.fullmatch(what):
        if int(match[1]) < 2:
            raise InputError(f"contenders: {what}: n must be at least 2")
        return [Contender(name or what, "best_of_n", match[2] or "", int(match[1]))]
    if match := LEAD.fullmatch(what):
        if int(match[1]) < 1:
            raise InputError(f"contenders: {what}: the number of sentences must be at least 1")
        return [Contender(name or what, "lead", match[1])]
    if match := COLUMN.fullmatch(what):
        column = match[1].strip()
        return [Contender(name or column, "column", column)]

    path = Path(what)
    if path.name.startswith("checkpoint-"):
        folders = sorted(p for p in path.parent.glob(path.name) if NAME.fullmatch(p.name))
        if not folders:
            raise InputError(f"contenders: {what}: no such checkpoint")
        run = name or path.parent.name
        numbers = [int(p.name.rsplit("-", 1)[1]) for p in folders]
        return [
            Contender(f"{run}@{number}", "checkpoint", str(p))
            for number, p in zip(numbers, folders, strict=True)
        ]

    if is_steered(what):
        found = parse_steered(what)
        name = name or _name_of(found[0].policy)
        names = [f"{name}:beta={digits_of(one.beta)}" for one in found] if found[1:] else [name]
        return [Contender(each, "ilql", str(one)) for each, one in zip(names, found, strict=True)]

    if what.endswith(":clipped"):
        raise InputError(
            f"contenders: {what}: names no strength before :clipped (write "
            f"{what.removesuffix(':clipped')}:beta=16:clipped)"
        )

    name = name or _name_of(what)
    if (path / "adapter_config.json").is_file():
        return [Contender(name, "adapter", what)]
    if path.is_dir() and not (path / "config.json").is_file():
        raise InputError(
            f"contenders: {what}: is neither an adapter's folder (adapter_config.json) nor a "
            "model's (config.json)"
        )

    if not path.is_dir() and (what.startswith((".", "/")) or what.count("/") != 1):
        raise InputError(f"contenders: {what}: no such folder{hint_of(what)}")
    return [Contender(name, "model", what)]


def check_contenders(contenders: Sequence[Contender], base: str, precision: str) -> None:
    """Raise InputError unless each contender can be loaded; this reads only small files."""
    for c in contenders:
        if c.kind == "adapter":
            check_adapter(c.source, base, "CAUSAL_LM", f"contenders: {c.name}", precision)
        elif c.kind == "checkpoint":
            with scratch_folder() as scratch:
                export_policy(Path(c.source), scratch)
                check_adapter(scratch, base, "CAUSAL_LM", f"contenders: {c.source}")
        elif c.made is not None:
            with written(c.made, f"contenders: {c.name}") as folder:
                check_adapter(folder, base, "CAUSAL_LM", f"contenders: {c.name}", precision)
        elif c.kind == "ilql":
            check_steered(c.steered, base, f"contenders: {c.name}", precision)
        elif c.kind == "model":
            check_base(c.source)


def other_settings(
    contenders: Sequence[Contender], sampling: Mapping[str, object], prompts: Prompts
) -> list[str]:
    """Return a line for each contender that was trained with other settings than it is judged with.

    Args:
        contenders: adapters' settings are read from the run's ``run.json`` and ``toolkit.json``.
        sampling: sampling settings by TRL's names.
        prompts: prompts, whose chat template is compared too.
    """
    names = ("response_length", "temperature", "stop_token", "truncate_token", "truncate_after")
    lines = []
    for c, folder in [(one, folder) for one in contenders for folder in one.trained]:
        if not NAME.fullmatch(Path(folder).name):
            lines += other_rendering(folder, prompts, c.name)
        path = record_beside(Path(folder))
        settings = {} if path is None else RunRecord.read(path).settings
        for name in names:
            then, now = settings.get(name), sampling[name]
            if name == "truncate_after" and sampling["truncate_token"] is None:
                continue
            if settings.get("truncate_token", ...) is ... or then == now:
                continue
            lines.append(f"{c.name} was trained with {name} {then!r}, but is judged with {now!r}")
    return list(dict.fromkeys(lines))


def tokenizer_folder(contenders: Sequence[Contender]) -> str | None:
    """Return the folder of an adapter that has its own tokenizer; None if none has.

    Raises:
        InputError: two adapters have tokenizers with different tokens.
    """
    found = [_tokenizer_of(Path(folder)) for c in contenders for folder in c.trained]
    folders = [folder for folder in found if folder is not None]
    vocabularies = [AutoTokenizer.from_pretrained(folder).get_vocab() for folder in folders]
    for folder, vocabulary in zip(folders, vocabularies, strict=True):
        if vocabulary != vocabularies[0]:
            raise InputError(
                f"contenders: {folders[0]} and {folder} have tokenizers with different tokens "
                "(evaluate them separately, or choose one with --tokenizer_name_or_path)"
            )
    return folders[0] if folders else None


def _tokenizer_of(trained: Path) -> str | None:
    """Return the folder of the tokenizer of an adapter or of a checkpoint's run."""
    places = [str(trained)]
    if NAME.fullmatch(trained.name):
        run = trained.parent
        settings: Row = {}
        if (run / RUN_FILE).is_file():
            settings = RunRecord.read(run / RUN_FILE).settings
        named = [settings.get("tokenizer_name_or_path"), settings.get("policy_adapter")]
        places = [str(run / "adapters" / "policy"), *filter(None, named)]
    return next((p for p in places if (Path(p) / "tokenizer_config.json").is_file()), None)


def given_texts(
    contender: Contender,
    prompts: Prompts,
    sources: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
) -> Outputs:
    """Return the texts of a contender that no model writes, as completions of the prompts.

    Args:
        contender: of a kind in ``GIVEN``.
        prompts: the prompts with their columns.
        sources: the text that each prompt asks to sum up.
        tokenizer: of the prompts' ids.

    Raises:
        InputError: a row has no text in the column.
    """
    if contender.kind == "lead":
        found = [lead(text, int(contender.source)) for text in sources]
        for i, text in enumerate(found):
            if not text:
                raise InputError(
                    f"contenders: {contender.name}: {prompts.place(i)}: the text to sum up has no "
                    "sentence (leave out that row)"
                )
    else:
        found = column_texts(prompts, contender.source, "contenders")
    shown = [prompts.shown(i, tokenizer) for i in range(len(prompts))]
    texts = [continues(prompt, text) for prompt, text in zip(shown, found, strict=True)]
    ids = TokenCompletions(prompts, tokenizer, texts=texts).ids
    return Outputs(texts, ids, None, [0] * len(texts))


class Sampling:
    """Samples from all contenders: one base with their adapters, the same prompts and seed.

    Args:
        roles: the base; adapters are added to it.
        tokenizer: the base's tokenizer.
        prompts: token ids.
        rule_of: makes the sampling rule for a tokenizer.
        precision: precision of whole models.
        seed: combined with a contender's name, so that other contenders do not change its texts.
        batch_size: completions in one pass.
    """

    def __init__(
        self,
        roles: Roles,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Prompts,
        rule_of: RuleOf,
        precision: str,
        seed: int,
        batch_size: int = 256,
    ) -> None:
        self.roles, self.tokenizer, self.prompts = roles, tokenizer, prompts
        self.rule_of, self.rule, self.precision = rule_of, rule_of(tokenizer), precision
        self.seed, self.batch_size = seed, batch_size
        self.texts = [decode_pair(tokenizer, ids, [])[0] for ids in prompts]
        roles.keep_only(tokenizer)
        self._roles_of: dict[str, str] = {}

    def role(self, contender: Contender) -> str:
        """Return a contender's role on the base."""
        if contender.kind == "reference":
            return REFERENCE
        if contender.name not in self._roles_of:
            role = f"contender{len(self._roles_of)}"
            try:
                if contender.kind == "checkpoint":
                    with scratch_folder() as scratch:
                        export_policy(Path(contender.source), scratch)
                        self.roles.add_policy(role, scratch)
                elif contender.made is not None:
                    with written(contender.made, "merging") as folder:
                        self.roles.add_policy(role, folder)
                elif contender.kind == "ilql":
                    one = contender.steered
                    self.roles.add_steered(role, one.folder, one.beta, one.clipped)
                else:
                    self.roles.add_policy(role, contender.source)
            except InputError as error:
                raise InputError(f"contenders: {contender.name}: {error}") from None
            self._roles_of[contender.name] = role
        return self._roles_of[contender.name]

    def write(
        self, contender: Contender, contenders: Sequence[Contender], reranker: Scorer | None
    ) -> Outputs:
        """Sample one completion per prompt; best-of-n picks another's by ``reranker``."""
        generator = torch.Generator().manual_seed(_stream(self.seed, contender.name))
        if contender.kind == "model":
            return self._write_beside(contender, generator)
        if contender.kind == "best_of_n":
            assert reranker is not None
            source = _by_name(contenders, contender.source)
            if source.kind == "model":
                raise InputError(
                    f"contenders: {contender.name}: best-of-n of a whole model is not possible"
                )
            return self._pick(contender, self.role(source), reranker, generator)
        return self.sample(
            self.role(contender), range(len(self.prompts)), generator, contender.name
        )

    def sample(
        self,
        role: str,
        indices: Sequence[int],
        generator: torch.Generator,
        name: str,
        reference: Roles | None = None,
    ) -> Outputs:
        """Sample a completion for each of these prompts, which may occur several times.

        Raises:
            InputError: log-probs are NaN or infinite.
        """
        texts: list[str] = []
        kept: list[list[int]] = []
        ratios: list[float] = []
        tokens: list[int] = []
        kls: list[float] = []
        starts = range(0, len(indices), self.batch_size)
        for start in tqdm(starts, desc=f"Sampling {name}", leave=False):
            batch = [self.prompts[i] for i in indices[start : start + self.batch_size]]
            found = sample_batch(self.roles, role, batch, self.rule, generator, reference)
            for prompt, ratio in zip(batch, found.log_ratios, strict=True):
                if not math.isfinite(ratio):
                    text = decode_pair(self.tokenizer, prompt, [])[0]
                    raise InputError(
                        f"contenders: {name}: its log-probs on {text!r:.60} are not finite. Its "
                        "weights are broken or the precision is too low (try --precision fp32)"
                    )
            ratios += found.log_ratios
            kls += found.kls or []
            tokens += found.tokens
            kept += found.kept
            texts += [
                decode_pair(self.tokenizer, p, c)[1] for p, c in zip(batch, found.kept, strict=True)
            ]

        return Outputs(texts, kept, ratios, tokens, kls=kls or None)

    def completions(
        self, outputs: Outputs, indices: Sequence[int] | None = None
    ) -> TokenCompletions:
        """Return completions for scorers; ``indices`` names each one's prompt (by default all)."""
        chosen = range(len(self.prompts)) if indices is None else indices
        return TokenCompletions(
            self.prompts.pick(chosen),
            self.tokenizer,
            outputs.ids,
            outputs.texts,
            self.roles,
            self.batch_size,
        )

    def visible_tokens(self, outputs: Outputs) -> list[int]:
        """Count the tokens of each completion that a scorer sees, in the base's tokens."""
        return [len(ids) for ids in self.completions(outputs).ids]

    def draw(self, contender: Contender, n: int, reranker: Scorer) -> tuple[Outputs, list[float]]:
        """Sample and score n completions of each prompt, prompt by prompt."""
        generator = torch.Generator().manual_seed(_stream(self.seed, contender.name))
        return self._draw(self.role(contender), contender.name, n, reranker, generator)

    def _draw(
        self, role: str, name: str, n: int, reranker: Scorer, generator: torch.Generator
    ) -> tuple[Outputs, list[float]]:
        indices = [i for i in range(len(self.prompts)) for _ in range(n)]
        drawn = self.sample(role, indices, generator, name)
        return drawn, reranker.finite_scores(self.completions(drawn, indices))

    def _pick(
        self, contender: Contender, role: str, reranker: Scorer, generator: torch.Generator
    ) -> Outputs:
        n = contender.n
        drawn, scores = self._draw(role, contender.name, n, reranker, generator)
        assert drawn.ids is not None and drawn.log_ratios is not None
        best = [
            max(range(i * n, (i + 1) * n), key=lambda k: scores[k])
            for i in range(len(self.prompts))
        ]
        return Outputs(
            [drawn.texts[k] for k in best],
            [drawn.ids[k] for k in best],
            [drawn.log_ratios[k] for k in best],
            [drawn.tokens[k] for k in best],
            best_of_n_kl(n),
        )

    def _write_beside(self, contender: Contender, generator: torch.Generator) -> Outputs:
        """Sample from a whole model; the KL is known if its tokens are the base's."""
        tokenizer = load_tokenizer(contender.source)
        prompts, own = self.prompts, tokenizer.chat_template
        same = tokenizer.get_vocab() == self.tokenizer.get_vocab()
        if prompts.messages and prompts.chat.template is None:
            same = same and own == self.tokenizer.chat_template
        if not same:
            chat = Chat(None if own else prompts.chat.template, prompts.chat.kwargs)
            encoder = Encoder(tokenizer, None, chat=chat)
            shown = [prompts.shown(i, self.tokenizer) for i in range(len(prompts))]
            made = Prompts(encoder.prompt_ids(p, prompts.row(i)) for i, p in enumerate(shown))
            made.given, made.columns = dict(enumerate(shown)), prompts.columns
            made.chat = chat
            prompts = made

        other = Sampling(
            Roles(load_base(contender.source, self.precision)),
            tokenizer,
            prompts,
            self.rule_of,
            self.precision,
            self.seed,
            self.batch_size,
        )

        everyone = range(len(prompts))
        reference = self.roles if same else None
        found = other.sample(REFERENCE, everyone, generator, contender.name, reference)
        return found if same else Outputs(found.texts, None, None, found.tokens)


@dataclass
class _Batch:
    kept: list[list[int]]
    log_ratios: list[float]
    tokens: list[int]
    kls: list[float] | None


@torch.no_grad()
def sample_batch(
    roles: Roles,
    role: str,
    prompts: list[list[int]],
    rule: SamplingRule,
    generator: torch.Generator,
    reference: Roles | None = None,
) -> _Batch:
    """Sample completions of one role, with their texts and log-ratios to the reference.

    A log-ratio is not finite if a log-prob is not.

    Args:
        roles: the models.
        role: the role that writes.
        prompts: token ids.
        rule: the sampling rule.
        generator: source of the sampling noise.
        reference: models whose reference is used; by default ``roles``.
    """
    step = roles.step(role, rule.temperature)
    mask, sampled = rule.sample(step, prompts, generator, roles.device)
    visible, _ = rule.visible(sampled)
    # 0 unless a log-prob is NaN, which makes the ratio NaN too.
    ratios = ((sampled.logprobs - sampled.logprobs) * sampled.mask).sum(dim=1)
    kls = None
    if role != REFERENCE or reference is not None:
        ids, _ = pad(prompts, rule.pad_id, "left")
        passage = (
            torch.cat([ids.to(roles.device), sampled.completion_ids], dim=1),
            torch.cat([mask, sampled.mask], dim=1),
        )
        asked = reference or roles
        there = asked.reference_logprobs(*passage, sampled.completion_ids, rule.temperature)
        ratios = ((sampled.logprobs - there) * sampled.mask).sum(dim=1)
        if role in roles.steering:
            exact = roles.exact_kl(role, *passage, sampled.completion_ids, rule.temperature)
            kls = (exact * sampled.mask).sum(dim=1).tolist()
    kept = real_tokens(sampled.completion_ids, visible)
    return _Batch(kept, ratios.tolist(), sampled.mask.sum(dim=1).tolist(), kls)


def _stream(seed: int, name: str) -> int:
    """Derive a seed from a seed and a name."""
    return int(np.random.SeedSequence([seed, zlib.crc32(name.encode())]).generate_state(1)[0])
