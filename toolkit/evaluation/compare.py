"""Contenders against each other on the same prompts: win rates, significance, ratings, KL, gaps."""

import errno
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest
from transformers import PreTrainedTokenizerBase

from toolkit.data.chat import Chat, chat_of, named
from toolkit.data.files import read_jsonl, read_object
from toolkit.data.prompts import Prompts, given_prompts
from toolkit.data.tokens import vocabulary_digest
from toolkit.errors import InputError
from toolkit.evaluation.contenders import Contender, Outputs
from toolkit.evaluation.judges import Scores, Verdicts, pairs_of
from toolkit.evaluation.ratings import rate_pairs
from toolkit.evaluation.text_metrics import describe
from toolkit.maths.statistics import holm, mean_and_error, wilson_interval

Row = dict[str, Any]
FLIPS = 9_999  # random sign patterns of the paired test: p is known to about 0.002 at 0.05


def compare(
    names: Sequence[str], scores: dict[str, Scores], verdicts: dict[str, Verdicts], seed: int = 0
) -> tuple[list[Row], dict[str, list[Row]]]:
    """All pairs under all judges, and each judge's ratings.

    Args:
        names: of the contenders, the reference first.
        scores: judge -> contender -> a score for each prompt.
        verdicts: judge -> (contender, opponent) -> 1, 0, -1 or None for each prompt.
        seed: of the tests' and the bootstrap's randomness.

    Returns:
        Rows of ``pair_row`` with ``judge``, ``a`` and ``b``; and judge -> ratings, the best first,
        where every contender met every other.

    Raises:
        InputError: a score that is NaN or infinite, by which nothing can be ranked.
    """
    for judge, of in scores.items():
        for name, values in of.items():
            if not np.isfinite(values).all():
                raise InputError(f"judges: {judge}: a score of {name} is not finite: nobody ranks")
    pairs: list[Row] = []
    ratings: dict[str, list[Row]] = {}
    for judge in [*scores, *verdicts]:
        met = verdicts.get(judge) or {
            (a, b): [int(np.sign(x - y)) for x, y in zip(scores[judge][a], scores[judge][b],
                                                         strict=True)]
            for a, b in pairs_of(names, "all")
        }  # fmt: skip
        rows: list[Row] = []
        for (a, b), said in met.items():
            differences = None
            if judge in scores:
                differences = np.subtract(scores[judge][a], scores[judge][b])
            rows.append({"judge": judge, "a": a, "b": b} | pair_row(said, differences, seed))
        corrected = holm([row["p_value"] for row in rows])
        for row, p_holm in zip(rows, corrected, strict=True):
            row["p_holm"] = p_holm
        pairs += rows
        if met and all(row["wins"] + row["ties"] + row["losses"] for row in rows):
            ratings[judge] = rate_pairs(names, met, seed=seed)
    return pairs, ratings


def pair_row(
    said: Sequence[int | None], differences: np.ndarray | None = None, seed: int = 0
) -> Row:
    """Wins, ties and losses of one contender against another, one verdict for each prompt.

    ``win_rate`` is over decided prompts, with Wilson's 95 % interval; ``p_value`` is the exact
    two-sided sign test's, which takes each prompt as one pair. With differences of scores also
    their mean, its standard error, and ``p_scores`` of a paired test: by chance each prompt's
    difference could as well have had the other sign (R. A. Fisher, 1935).

    Args:
        said: 1, 0, -1, or None where it was not judged.
        differences: (prompts,) of scores.
        seed: of the signs drawn.
    """
    wins, ties, losses = (sum(v == sign for v in said) for sign in (1, 0, -1))
    decided = wins + losses
    low, high = wilson_interval(wins, decided)
    row: Row = {
        "wins": wins, "ties": ties, "losses": losses, "not_judged": sum(v is None for v in said),
        "win_rate": wins / decided if decided else 0.5, "low": low, "high": high,
        "p_value": float(binomtest(wins, decided).pvalue) if decided else 1.0,
    }  # fmt: skip
    if differences is not None:
        mean, error = mean_and_error(differences.tolist())
        row |= {"difference": mean, "difference_error": error,
                "p_scores": paired_p_value(differences, seed)}  # fmt: skip
    return row


def paired_p_value(differences: np.ndarray, seed: int = 0) -> float:
    """Two-sided p of the mean difference under random signs; those that are 0 change nothing."""
    d = differences[differences != 0]
    if not len(d):
        return 1.0
    rng = np.random.default_rng(seed)
    signs = rng.integers(0, 2, size=(FLIPS, len(d)), dtype=np.int8) * 2 - 1
    by_chance = np.abs(signs @ d)
    # Sums that are equal but for rounding count as reached.
    reached = (by_chance >= abs(d.sum()) * (1 - 1e-12)).sum()
    return float(1 + reached) / (FLIPS + 1)


def contender_rows(
    contenders: Sequence[Contender], outputs: dict[str, Outputs], scores: dict[str, Scores],
    prompts: Sequence[str], trained: dict[str, Row] | None = None,
) -> list[Row]:  # fmt: skip
    """One row a contender: KL with its error, scores under each judge, what its texts are like.

    ``gain`` is the rise of the mean score in standard deviations of the reference's scores. The
    KL of best-of-n is its bound ln n - (n - 1) / n, which is exact without ties, plus that of
    what it picks from. ``trained`` is that of ``trained_prompts.trained_on``.
    """
    first = contenders[0].name
    rows = []
    for c in contenders:
        o = outputs[c.name]
        row: Row = {"name": c.name, "kind": c.kind, "source": c.source, "adapter": c.adapter,
                    "n": c.n, "tokens": math.fsum(o.tokens) / len(o.tokens)}  # fmt: skip
        row |= {"kl": None, "kl_error": None} | (trained or {}).get(c.name, {})
        if o.log_ratios is not None:
            kl, error = mean_and_error(o.log_ratios)
            row |= {"kl": kl + o.kl_of_picking, "kl_error": error}
        row["scores"] = {}
        for judge, of in scores.items():
            mean, error = mean_and_error(of[c.name])
            center, spread = np.mean(of[first]), np.std(of[first])
            gain = float((mean - center) / spread) if spread > 0 else 0.0
            std = float(np.std(of[c.name]))
            row["scores"][judge] = {"mean": mean, "error": error, "gain": gain, "std": std}
        rows.append(row | describe(prompts, o.texts))
    return rows


def gaps(rows: Sequence[Row], pairs: Sequence[Row], training: str) -> list[Row]:
    """What the training reward says, beside what judges say that the policy was not trained on.

    ``gap`` is the difference of the gains; ``alarm`` says that the training reward finds the
    contender better than the reference (p < 0.05) and the other judge does not, or finds it worse.

    Args:
        rows: of ``contender_rows``.
        pairs: of ``compare``.
        training: the judge that policies were trained on.
    """
    reference = rows[0]["name"]
    at = {(p["judge"], p["a"]): p for p in pairs if p["b"] == reference}
    found = []
    for row in rows[1:]:
        for judge, s in row["scores"].items():
            if judge == training:
                continue
            mine, theirs = at[training, row["name"]], at[judge, row["name"]]
            liked = mine["difference"] > 0 and mine["p_scores"] < 0.05
            confirmed = theirs["difference"] > 0 and theirs["p_scores"] < 0.05
            trained = row["scores"][training]["gain"]
            found.append({
                "name": row["name"], "judge": judge, "trained_gain": trained, "gain": s["gain"],
                "gap": trained - s["gain"], "alarm": bool(liked and not confirmed),
            })  # fmt: skip
    return found


def sample_rows(
    prompts: Prompts, tokenizer: PreTrainedTokenizerBase, outputs: dict[str, Outputs],
    scores: dict[str, Scores],
) -> list[Row]:  # fmt: skip
    """One row a prompt: every contender's text, scores, log-ratio, number of tokens, and token ids.

    The ids are there because a text does not tell them: a policy may write a word in other tokens
    than a tokenizer makes of it, and a prompt may end where a longer text was cut.

    Args:
        prompts: as they were read, with their rows' other fields, so that ``--samples`` has judges
            see the same again (``Prompts.asked``).
        tokenizer: of their ids.
        outputs, scores: of the contenders.
    """
    rows: list[Row] = []
    for i, question in enumerate(prompts.asked(tokenizer)):
        fields = {name: v for name, v in question.items() if name != "prompt"}
        rows.append({
            "prompt": question["prompt"],
            "prompt_ids": prompts[i],
            **({"row": fields} if fields else {}),
            "completions": {name: o.texts[i] for name, o in outputs.items()},
            "scores": {j: {name: s[i] for name, s in of.items()} for j, of in scores.items()},
            "log_ratios": {
                name: o.log_ratios[i] for name, o in outputs.items() if o.log_ratios is not None
            },
            "tokens": {name: o.tokens[i] for name, o in outputs.items()},
            "ids": {name: o.ids[i] for name, o in outputs.items() if o.ids is not None},
        })  # fmt: skip
    return rows


def read_sample_rows(path: Path, names: Sequence[str], count: int) -> list[Row]:
    """The rows of a samples.jsonl, each with a text of every contender.

    Raises:
        InputError: another number of rows than ``count``, or a row that is no such (file:line).
    """
    rows = []
    for number, row in read_jsonl(path, "--samples"):
        texts: Any = row.get("completions")
        whole = isinstance(row.get("prompt"), str | list) and isinstance(texts, dict)
        for name in names:
            if not whole or not isinstance(texts.get(name), str):
                raise InputError(
                    f"{path}:{number}: no prompt with a text of {name!r} (evaluate.py wrote it "
                    "otherwise: evaluate again)"
                )
        for field in ("scores", "log_ratios", "tokens"):
            if not isinstance(row.get(field), dict):
                raise InputError(f"{path}:{number}: {field}: missing (evaluate again)")
        numbers: Row = {}
        for field in ("log_ratios", "tokens"):
            numbers |= {f"{field} of {name}": value for name, value in row[field].items()}
        for judge, of in row["scores"].items():
            by_name = of if isinstance(of, dict) else {"": of}
            numbers |= {f"{judge}'s score of {name}": score for name, score in by_name.items()}
        for name, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise InputError(
                    f"{path}:{number}: {name}: {value!r:.40} is no number (evaluate again)"
                )
        rows.append(row)
    if len(rows) != count:
        raise InputError(
            f"{path}: {len(rows)} rows, but evaluation.json beside it is of {count} prompts "
            "(evaluate again)"
        )
    return rows


@dataclass
class Samples:
    """What an earlier evaluation sampled.

    Attributes:
        contenders: the reference first.
        asked: of each prompt ``prompt`` and its row's other fields.
        outputs: what was written.
        prompt_ids: of each prompt; None where the file lacks them.
        vocabulary: the digest of the vocabulary that ids are of (``vocabulary_digest``).
        chat: how messages were rendered; None where that was not noted.
    """

    contenders: list[Contender]
    asked: list[Row]
    outputs: dict[str, Outputs]
    prompt_ids: list[list[int]] | None
    vocabulary: str | None
    chat: Chat | None

    def read_by(
        self, tokenizer: PreTrainedTokenizerBase, chat: Chat
    ) -> tuple[Prompts, dict[str, Outputs]]:
        """Prompts and completions in a tokenizer's ids: those that were sampled, if it knows them.

        Args:
            tokenizer: the base's.
            chat: what this run was told of messages.

        Raises:
            InputError: the run was told something else than the one that sampled.
        """
        if self.chat is not None and chat not in (Chat(), self.chat):
            raise InputError(
                f"chat_template: the samples answer prompts rendered by "
                f"{named(self.chat.template)}, told {json.dumps(self.chat.kwargs)} (leave "
                "--chat_template and --chat_template_kwargs out)", "chat_template",
            )  # fmt: skip
        chat = self.chat or chat
        if self.vocabulary == vocabulary_digest(tokenizer):
            return given_prompts(self.asked, tokenizer, chat, self.prompt_ids), self.outputs
        # Other tokens: the texts are what there is.
        texts = {name: replace(o, ids=None) for name, o in self.outputs.items()}
        return given_prompts(self.asked, tokenizer, chat), texts


def read_samples(path: str | Path) -> Samples:
    """``samples.jsonl``, and ``evaluation.json`` beside it.

    Raises:
        InputError: files that are missing or not such.
    """
    path = Path(path) / "samples.jsonl" if Path(path).is_dir() else Path(path)
    facts = path.parent / "evaluation.json"
    try:
        if not facts.is_file():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        kept = read_object(facts, "--samples")
        contenders = [
            Contender(c["name"], c["kind"], c["source"], c["n"]) for c in kept["contenders"]
        ]
        rows = read_sample_rows(path, [c.name for c in contenders], kept["prompts"])
        outputs = {}
        for c, row in zip(contenders, kept["contenders"], strict=True):
            known = row["kl"] is not None
            ratios = [float(r["log_ratios"][c.name]) for r in rows] if known else None
            picking = row["kl"] - mean_and_error(ratios)[0] if ratios else 0.0
            outputs[c.name] = Outputs(
                [r["completions"][c.name] for r in rows],
                _ids([(r.get("ids") or {}).get(c.name) for r in rows]), ratios,
                [int(r["tokens"][c.name]) for r in rows], picking,
            )  # fmt: skip
        asked = [{"prompt": r["prompt"]} | (r.get("row") or {}) for r in rows]
        return Samples(
            contenders, asked, outputs, _ids([row.get("prompt_ids") for row in rows]),
            kept.get("vocabulary"), chat_of(kept) if "chat_template" in kept else None,
        )  # fmt: skip
    except OSError as error:
        raise InputError(
            f"--samples: {facts}: {error.strerror} (evaluate.py writes both)"
        ) from None
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"--samples: {path}: not what evaluate.py wrote ({error!r})") from None


def _ids(found: list[Any]) -> list[list[int]] | None:
    """Token ids, if every row has them."""
    whole = all(isinstance(ids, list) and all(type(i) is int for i in ids) for ids in found)
    return found if whole else None
