"""Who is compared: the reference, adapters, checkpoints, whole models, best-of-n of any of them.

    reference                     the base with adapters off
    ppo=outputs/ppo/adapters/policy
    ppo=outputs/ppo/checkpoint-*  each checkpoint, as ppo@40, ppo@80, ...
    other=some-org/some-model     a whole model, loaded beside the base while it writes
    best16=best_of_16             of 16 of the reference's completions that of the highest reward
    best4=best_of_4:ppo           the same of the contender called ppo

All but whole models are adapters on one base in memory.
"""

import math
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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
from toolkit.maths.frontier import best_of_n_kl
from toolkit.maths.sequences import pad
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
RuleOf = Callable[[PreTrainedTokenizerBase], SamplingRule]


@dataclass(frozen=True)
class Contender:
    """One of those that are compared.

    Attributes:
        name: in tables.
        kind: "reference", "adapter", "checkpoint", "model" or "best_of_n".
        source: folder or Hub id; of best-of-n, the name of the contender that it picks from.
        n: of best-of-n.
    """

    name: str
    kind: str
    source: str = ""
    n: int = 1

    @property
    def adapter(self) -> str | None:
        """The adapter's folder, in full; None where there is none."""
        return str(Path(self.source).resolve()) if self.kind == "adapter" else None


@dataclass
class Outputs:
    """What a contender wrote, one completion for each prompt.

    Attributes:
        texts: what a judge sees.
        ids: the same in the base's tokens; None of a model with other tokens.
        log_ratios: log pi - log rho of the whole completion, in nats; None where the tokens differ.
        tokens: sampled, with a stop token.
        kl_of_picking: what best-of-n adds: ln n - (n - 1) / n nats.
    """

    texts: list[str]
    ids: list[list[int]] | None
    log_ratios: list[float] | None
    tokens: list[int]
    kl_of_picking: float = 0.0


def parse_contenders(specs: Sequence[str]) -> list[Contender]:
    """Contenders from ``name=what``, in that order; the reference comes first, named or not.

    Raises:
        InputError: a name that stands twice, nothing by that name, best-of-n of nobody.
    """
    found: list[Contender] = []
    for spec in specs:
        name, equals, what = (part.strip() for part in spec.partition("="))
        if not equals:
            name, what = "", name
        if not what or (equals and not name):
            raise InputError(
                f"contenders: {spec!r} is not NAME=WHAT (as ppo=outputs/ppo/adapters/policy)"
            )
        found += _parse(name, what)

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
                f"contenders: two are called {name!r} (NAME=WHAT; the untuned model is `reference`)"
            )

    for c in found:
        if c.kind == "best_of_n" and c.source not in names:
            raise InputError(f"contenders: {c.name}: nobody is called {c.source!r} to pick from")
        if c.kind == "best_of_n" and _by_name(found, c.source).kind == "best_of_n":
            raise InputError(f"contenders: {c.name}: best-of-n of best-of-n (give one greater n)")

    return sorted(found, key=lambda c: c.kind != "reference")


def _by_name(contenders: Sequence[Contender], name: str) -> Contender:
    return next(c for c in contenders if c.name == name)


def _parse(name: str, what: str) -> list[Contender]:
    if what == "reference":
        return [Contender(name or what, "reference")]
    if match := BEST_OF.fullmatch(what):
        if int(match[1]) < 2:
            raise InputError(f"contenders: {what}: of at least 2")
        return [Contender(name or what, "best_of_n", match[2] or "", int(match[1]))]

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

    name = name or (path.parent.parent if path.name == "policy" else path.parent).name or what
    if (path / "adapter_config.json").is_file():
        return [Contender(name, "adapter", what)]
    if path.is_dir() and not (path / "config.json").is_file():
        raise InputError(
            f"contenders: {what}: neither an adapter's folder (adapter_config.json) nor a model's "
            "(config.json)"
        )

    if not path.is_dir() and (what.startswith((".", "/")) or what.count("/") != 1):
        raise InputError(f"contenders: {what}: no such folder")
    return [Contender(name, "model", what)]


def check_contenders(contenders: Sequence[Contender], base: str, precision: str) -> None:
    """Raise InputError unless each could be loaded; reads small files and loads no model."""
    for c in contenders:
        if c.kind == "adapter":
            check_adapter(c.source, base, "CAUSAL_LM", f"contenders: {c.name}", precision)
        elif c.kind == "checkpoint":
            with scratch_folder() as scratch:
                export_policy(Path(c.source), scratch)
                check_adapter(scratch, base, "CAUSAL_LM", f"contenders: {c.source}")
        elif c.kind == "model":
            check_base(c.source)


def other_settings(
    contenders: Sequence[Contender], sampling: Mapping[str, object], prompts: Prompts
) -> list[str]:
    """A line for each contender that was trained with other settings than it is judged with.

    Args:
        contenders: of adapters, ``run.json`` of their run tells, and their toolkit.json.
        sampling: by TRL's names.
        prompts: how their messages are rendered counts too.
    """
    names = ("response_length", "temperature", "stop_token", "truncate_token", "truncate_after")
    lines = []
    for c in contenders:
        if c.kind not in ("adapter", "checkpoint"):
            continue
        lines += other_rendering(c.adapter, prompts, c.name)
        path = record_beside(Path(c.source))
        settings = {} if path is None else RunRecord.read(path).settings
        for name in names:
            then, now = settings.get(name), sampling[name]
            if name == "truncate_after" and sampling["truncate_token"] is None:
                continue
            if settings.get("truncate_token", ...) is ... or then == now:
                continue
            lines.append(f"{c.name} was trained with {name} {then!r}, and is judged with {now!r}")
    return lines


def tokenizer_folder(contenders: Sequence[Contender]) -> str | None:
    """The folder of an adapter that came with a tokenizer of its own; None if none did.

    Raises:
        InputError: two came with other tokens each, so that no prompt is one for both.
    """
    found = [_tokenizer_of(c) for c in contenders]
    folders = [folder for folder in found if folder is not None]
    vocabularies = [AutoTokenizer.from_pretrained(folder).get_vocab() for folder in folders]
    for folder, vocabulary in zip(folders, vocabularies, strict=True):
        if vocabulary != vocabularies[0]:
            raise InputError(
                f"contenders: {folders[0]} and {folder} came with tokenizers of other tokens "
                "(evaluate them apart, or name one by --tokenizer_name_or_path)"
            )
    return folders[0] if folders else None


def _tokenizer_of(contender: Contender) -> str | None:
    """The folder of the tokenizer that came with an adapter, or with a checkpoint's run."""
    places = [contender.source]
    if contender.kind == "checkpoint":
        run = Path(contender.source).parent
        settings: Row = {}
        if (run / RUN_FILE).is_file():
            settings = RunRecord.read(run / RUN_FILE).settings
        named = [settings.get("tokenizer_name_or_path"), settings.get("policy_adapter")]
        places = [str(run / "adapters" / "policy"), *filter(None, named)]
    elif contender.kind != "adapter":
        return None
    return next((p for p in places if (Path(p) / "tokenizer_config.json").is_file()), None)


class Sampling:
    """Has contenders write: one base, their adapters on it, the same prompts and seed for all.

    Args:
        roles: the base; adapters are added to it.
        tokenizer: the base's.
        prompts: token ids.
        rule_of: the sampling rule in a tokenizer's ids.
        precision: of whole models that are loaded.
        seed: each contender draws from it and its own name, so that who else takes part changes
            nothing in what it writes.
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
        """The role that it plays on the base."""
        if contender.kind == "reference":
            return REFERENCE
        if contender.name not in self._roles_of:
            role = f"contender{len(self._roles_of)}"
            try:
                if contender.kind == "checkpoint":
                    with scratch_folder() as scratch:
                        export_policy(Path(contender.source), scratch)
                        self.roles.add_policy(role, scratch)
                else:
                    self.roles.add_policy(role, contender.source)
            except InputError as error:
                raise InputError(f"contenders: {contender.name}: {error}") from None
            self._roles_of[contender.name] = role
        return self._roles_of[contender.name]

    def write(
        self, contender: Contender, contenders: Sequence[Contender], reranker: Scorer | None
    ) -> Outputs:
        """One completion for each prompt.

        Args:
            contender: who writes.
            contenders: all of them: best-of-n picks from another's.
            reranker: what it picks by.
        """
        generator = torch.Generator().manual_seed(_stream(self.seed, contender.name))
        if contender.kind == "model":
            return self._write_beside(contender, generator)
        if contender.kind == "best_of_n":
            assert reranker is not None
            source = _by_name(contenders, contender.source)
            if source.kind == "model":
                raise InputError(f"contenders: {contender.name}: best-of-n of a whole model")
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
        """A completion for each of these prompts, which may stand there several times.

        Raises:
            InputError: log-probs that are NaN or infinite, by name and prompt.
        """
        texts: list[str] = []
        kept: list[list[int]] = []
        ratios: list[float] = []
        tokens: list[int] = []
        starts = range(0, len(indices), self.batch_size)
        for start in tqdm(starts, desc=f"{name} writes", leave=False):
            batch = [self.prompts[i] for i in indices[start : start + self.batch_size]]
            found = sample_batch(self.roles, role, batch, self.rule, generator, reference)
            for prompt, ratio in zip(batch, found.log_ratios, strict=True):
                if not math.isfinite(ratio):
                    text = decode_pair(self.tokenizer, prompt, [])[0]
                    raise InputError(
                        f"contenders: {name}: its log-probs on {text!r:.60} are not finite, so "
                        "that it takes no part (its weights are broken, or the precision is too "
                        "low: try --precision fp32)"
                    )
            ratios += found.log_ratios
            tokens += found.tokens
            kept += found.kept
            texts += [
                decode_pair(self.tokenizer, p, c)[1] for p, c in zip(batch, found.kept, strict=True)
            ]

        return Outputs(texts, kept, ratios, tokens)

    def completions(
        self, outputs: Outputs, indices: Sequence[int] | None = None
    ) -> TokenCompletions:
        """What a contender wrote, as scorers are asked about it.

        Args:
            outputs: the completions.
            indices: the prompt of each; by default all prompts in their order.
        """
        chosen = range(len(self.prompts)) if indices is None else indices
        return TokenCompletions(
            self.prompts.pick(chosen),
            self.tokenizer,
            outputs.ids,
            outputs.texts,
            self.roles,
            self.batch_size,
        )

    def draw(self, contender: Contender, n: int, reranker: Scorer) -> tuple[Outputs, list[float]]:
        """n completions of each prompt by one contender, one prompt after the other, and scores."""
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
        """By a whole model; the KL is known if its tokens are the base's."""
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


@torch.no_grad()
def sample_batch(
    roles: Roles,
    role: str,
    prompts: list[list[int]],
    rule: SamplingRule,
    generator: torch.Generator,
    reference: Roles | None = None,
) -> _Batch:
    """Completions of one role, what is seen of each, and how far each is from the reference.

    A log-ratio that is not finite tells of a log-prob that is not.

    Args:
        roles: with that role.
        role: who writes.
        prompts: token ids.
        rule: of sampling.
        generator: its noise.
        reference: whose reference is asked, if not ``roles``.
    """
    mask, sampled = rule.sample(roles.step(role), prompts, generator, roles.device)
    visible, _ = rule.visible(sampled)
    # 0 unless there is a log-prob that is no number, as the ratio would be.
    ratios = ((sampled.logprobs - sampled.logprobs) * sampled.mask).sum(dim=1)
    if role != REFERENCE or reference is not None:
        ids, _ = pad(prompts, rule.pad_id, "left")
        passage = (
            torch.cat([ids.to(roles.device), sampled.completion_ids], dim=1),
            torch.cat([mask, sampled.mask], dim=1),
        )
        asked = reference or roles
        there = asked.reference_logprobs(*passage, sampled.completion_ids, rule.temperature)
        ratios = ((sampled.logprobs - there) * sampled.mask).sum(dim=1)
    kept = [ids[m].tolist() for ids, m in zip(sampled.completion_ids, visible, strict=True)]
    return _Batch(kept, ratios.tolist(), sampled.mask.sum(dim=1).tolist())


def _stream(seed: int, name: str) -> int:
    """A seed of its own for each name."""
    return int(np.random.SeedSequence([seed, zlib.crc32(name.encode())]).generate_state(1)[0])
