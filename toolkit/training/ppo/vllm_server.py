"""Sampling an update's completions on a vLLM server, which gets the policy as a LoRA adapter.

    vLLM's OpenAI-compatible server       what is asked of it
    GET  /v1/models                       the model's name and its longest context
    POST /v1/load_lora_adapter            the policy of this update, from a folder that both see
    POST /v1/completions                  one completion of one prompt, as token ids
    POST /v1/unload_lora_adapter          the policy of the update before

TRL's own client (trl/generation/vllm_client.py, 1.16) sends merged weights, and merging loses
something on a 4-bit base. So the adapter is written and loaded as it is. Each update has a name of
its own: a name that is loaded anew may be answered from the old adapter's prefix cache
(vllm-project/vllm#42125, #30931).

Log-probs are always computed again here, because rounding differs. The server's own only serve to
see whether it runs the same model (``Agreement``). It is never known to have run against a real
server: the tests have one that speaks its protocol.
"""

import hashlib
import json
import math
import secrets
import shutil
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from toolkit.data.files import atomic_directory
from toolkit.errors import InputError
from toolkit.maths.sequences import mask_after_stop
from toolkit.models.actors import POLICY, Actors
from toolkit.models.adapters import EMBEDDINGS
from toolkit.models.generation import Sampled
from toolkit.models.peft_wrappers import of_adapter
from toolkit.models.roles import Roles
from toolkit.models.sampling import SamplingRule
from toolkit.scoring.endpoint import Endpoint, Refused
from toolkit.training.ppo.rollouts import Rollout

FIELD = "vllm_server_base_url"
AT_ONCE = 64  # requests on their way, as in TRL's client
# vLLM's own limits (vllm/v1/worker/gpu/sample/logit_bias.py, vllm/sampling_params.py).
MOST_BIASED, MOST_STOPS, LOWEST_TEMPERATURE = 1024, 128, 0.01
NEVER = -100.0  # the lowest logit bias that the protocol allows
# The bias is divided by the temperature. Below this exponent a token has no weight in fp32.
NO_WEIGHT = -40.0
SEES = "(does the server see {path}, and is its --max-lora-rank large enough?)"
# How many times more than rounding explains the server must be nearer to the reference.
SURE = 10.0


@dataclass
class Agreement:
    """How well the server's log-probs of the sampled tokens agree with those computed here.

    Sums over n tokens, with s the server's log-prob, o our policy's and r the reference's.

    Attributes:
        tokens: n.
        gap: sum of |s - o|.
        to_policy: sum of (s - o)^2.
        to_reference: sum of (s - r)^2.
    """

    tokens: float
    gap: float
    to_policy: float
    to_reference: float

    @classmethod
    def of(cls, rollout: Rollout, total: Callable[[Tensor], Tensor]) -> "Agreement":
        """Compare the batches of all processes.

        Args:
            rollout: this process's share of the batch, sampled by a server.
            total: sums over the processes.
        """
        served = rollout.served_logprobs
        assert served is not None
        own = (served - rollout.logprobs)[rollout.mask].double()
        reference = (served - rollout.ref_logprobs)[rollout.mask].double()
        one = torch.tensor(float(own.numel()), dtype=torch.float64, device=own.device)
        sums = [one, own.abs().sum(), own.square().sum(), reference.square().sum()]
        return cls(*total(torch.stack(sums)).tolist())

    @property
    def mean_gap(self) -> float:
        """Mean of |s - o| in nats."""
        return self.gap / max(self.tokens, 1.0)

    @property
    def ignores_adapter(self) -> bool:
        """Whether the server is nearer to the reference than to the policy, beyond all doubt.

        A server without the adapter has s = r + noise, so that A = ``to_policy`` is about n (d^2 +
        2 sigma^2) and B = ``to_reference`` about n 2 sigma^2, where d is the distance of policy and
        reference and sigma their rounding. The difference A - B varies by about sqrt(n) (2 sigma d
        + 3 sigma^2). As long as the policy has not moved (a new adapter changes nothing), nothing
        can be said.
        """
        nearer = (self.to_policy - self.to_reference) / max(self.tokens, 1.0)
        if not nearer > 0:
            return False
        variance = self.to_reference / self.tokens / 2
        spread = 2 * math.sqrt(variance * nearer) + 3 * variance
        return nearer > SURE * spread / math.sqrt(self.tokens)


class VLLMServer:
    """A vLLM server that samples for one process of a run.

    The main process writes and loads adapters (``push``); every process asks for its own share of
    the completions (``sample``), one request for each, so that each has a seed of its own.

    Args:
        base_url: of the server, with or without /v1.
        timeout: seconds for one request.
        key_variable: environment variable with the server's API key, if it has one.
        folder: where adapters are written; the server must see it under the same path.
        max_gap: mean difference of log-probs, in nats, above which ``check`` refuses.
        run: tells this run from others on the same machine that use the same folder.
        retries: most retries of one request.
        backoff: seconds before the first retry.

    Raises:
        InputError: the address or the key is impossible.
    """

    def __init__(
        self,
        base_url: str,
        timeout: float,
        key_variable: str,
        folder: Path,
        max_gap: float,
        run: str = "",
        retries: int = 4,
        backoff: float = 1.0,
    ) -> None:
        self.folder, self.max_gap = folder.resolve(), max_gap
        self._endpoint = Endpoint(
            base_url.rstrip("/").removesuffix("/v1"),
            key_variable,
            timeout,
            retries,
            backoff,
            largest=1 << 26,
            field=FIELD,
            cures={
                401: f"is {key_variable} set to this server's key?",
                404: "start vLLM with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True",
            },
        )
        self.url = self._endpoint.base_url
        self._run = hashlib.sha256(f"{socket.gethostname()} {run}".encode()).hexdigest()[:8]
        self._own = secrets.token_hex(4)  # another run may have a policy with the same weights
        self._name: str | None = None  # of the adapter that is loaded

    def check_can_serve(self, model: Actors, rule: SamplingRule, longest: int) -> None:
        """Raise InputError for what the server could not do exactly; then ask whether it is there.

        Args:
            model: the roles.
            rule: how completions are sampled.
            longest: tokens of the longest prompt.
        """
        if not isinstance(model, Roles):
            raise InputError(f"{FIELD}: the policy must be a LoRA adapter on the base", FIELD)
        for problem in [*_of_adapter(model), *_of_sampling(rule, model.banned)]:
            raise InputError(f"{FIELD}: vLLM cannot sample exactly {problem}", FIELD)

        try:
            served = json.loads(self._endpoint.ask("/v1/models"))["data"]
            base = next(one for one in served if not one.get("parent"))
            room = base.get("max_model_len")
        except (ValueError, LookupError, TypeError, AttributeError, StopIteration):
            raise InputError(f"{FIELD}: {self.url} lists no model: is it vLLM?", FIELD) from None
        needed = longest + rule.response_length
        if type(room) is int and room < needed:
            raise InputError(
                f"{FIELD}: {self.url} takes {room} tokens (--max-model-len), but a prompt and its "
                f"completion have {needed}",
                FIELD,
            )

    def push(self, model: Actors, update: int) -> str:
        """Write the policy's adapter, load it at the server, and unload the one before.

        Returns:
            Its name at the server.
        """
        assert isinstance(model, Roles)
        self.clear()
        aside = self.folder / f"{self._run}-{update:06d}"
        with atomic_directory(aside) as part:
            model.save_policy(part)
        weights = (aside / POLICY / "adapter_model.safetensors").read_bytes()
        name = f"{aside.name}-{hashlib.sha256(weights).hexdigest()[:12]}-{self._own}"

        wanted = {"lora_name": name, "lora_path": str(aside / POLICY)}
        try:
            self._load(wanted)
        except Refused as refused:
            if "already been loaded" not in refused.said:
                raise
            # An earlier try arrived although its answer did not. Who knows what the server has
            # made of it, so it is loaded anew.
            self._unload(name)
            self._load(wanted)
        self._name = name
        return name

    def _load(self, wanted: dict[str, str]) -> None:
        path = wanted["lora_path"]
        try:
            self._endpoint.ask("/v1/load_lora_adapter", wanted)
        except Refused as refused:
            if "already been loaded" in refused.said:
                raise
            if refused.status == 404 and path not in refused.said:  # there is no such address
                raise
            raise InputError(f"{refused} {SEES.format(path=path)}", FIELD) from None
        except InputError as error:  # vLLM calls what it cannot load an error of its own
            raise InputError(f"{error} {SEES.format(path=path)}", FIELD) from None

    def _unload(self, name: str) -> None:
        # A server may have dropped it to make room; that harms nothing.
        with suppress(InputError):
            self._endpoint.ask("/v1/unload_lora_adapter", {"lora_name": name}, tries=1)

    def clear(self) -> None:
        """Unload the adapter that is loaded, and delete its folder and those of killed runs."""
        if self._name is not None:
            self._unload(self._name)
            self._name = None
        for old in self.folder.glob(f"{self._run}-*"):
            shutil.rmtree(old, ignore_errors=True)
        with suppress(OSError):
            self.folder.rmdir()  # if nothing else is in it

    def sampler(
        self, name: str, rule: SamplingRule, banned: Tensor | None, vocabulary: int
    ) -> Callable[[Tensor, Tensor, Tensor], Sampled]:
        """Return a function like ``generation.sample``: prompt ids, their mask and noise.

        A completion's seed is made from the first number of its own row of the noise. So it depends
        on nothing but the run's seed, though what the server draws with it may differ from one
        start to the next.

        Args:
            name: the adapter's name at the server.
            rule: how completions are sampled.
            banned: (V,), below 0 for ids that must not be sampled; None if all may.
            vocabulary: V.
        """
        forbidden = [] if banned is None else torch.nonzero(banned < 0).flatten().tolist()
        common = _request(rule, forbidden) | {"model": name}
        unwanted = set(forbidden)

        def sample(prompt_ids: Tensor, prompt_mask: Tensor, uniforms: Tensor) -> Sampled:
            rows = zip(prompt_ids.tolist(), prompt_mask.tolist(), strict=True)
            prompts = [[i for i, real in zip(*row, strict=True) if real] for row in rows]
            seeds = [int(first * 2**53) for first in uniforms[:, 0].tolist()]

            def one(prompt: list[int], seed: int) -> tuple[list[int], list[float]]:
                wanted = common | {"prompt": prompt, "seed": seed}
                try:
                    answer = self._endpoint.ask("/v1/completions", wanted)
                    return _read(answer, wanted, rule, vocabulary, unwanted)
                except Refused as refused:
                    if refused.status != 404:
                        raise
                    raise InputError(
                        f"{FIELD}: {self.url} has the adapter no more: was it started again? "
                        "(--resume auto goes on from the last checkpoint)",
                        FIELD,
                    ) from None
                except _Wrong as wrong:
                    raise InputError(f"{FIELD}: {self.url} {wrong}", FIELD) from None

            with ThreadPoolExecutor(min(AT_ONCE, len(prompts))) as pool:
                found = list(pool.map(one, prompts, seeds))
            return _together(found, rule, prompt_ids.device)

        return sample

    def check(self, rollout: Rollout, total: Callable[[Tensor], Tensor]) -> float:
        """Return the mean difference of log-probs in nats; arguments as for ``Agreement.of``.

        Raises:
            InputError: the server runs another model than this process.
        """
        agreement = Agreement.of(rollout, total)
        gap = agreement.mean_gap
        if not gap <= self.max_gap:  # NaN, too
            raise InputError(
                f"{FIELD}: the log-probs of {self.url} differ from those computed here by "
                f"{gap:.2g} nats a token (--vllm_max_gap {self.max_gap:g}): does it serve this "
                "base, in this precision, and was it started with --logprobs-mode "
                "processed_logprobs?",
                FIELD,
            )
        if agreement.ignores_adapter:
            raise InputError(
                f"{FIELD}: the log-probs of {self.url} are those of the reference, not of the "
                "policy: it does not use the adapter that was loaded",
                FIELD,
            )
        return gap


class _Wrong(Exception):
    """An answer that is not what was asked for; the message says what the server did."""


def _of_adapter(model: Roles) -> list[str]:
    """Name what the policy's adapter has besides plain LoRA of one rank on inner layers."""
    facts = model.policy_facts()
    config = facts["config"]
    assert isinstance(config, dict)
    trained = [name for name, _ in model.model.named_parameters() if of_adapter(name, POLICY)]
    on_vocabulary = sorted({part for name in trained for part in name.split(".")} & {*EMBEDDINGS})

    found = {
        "DoRA": config.get("use_dora"),
        "modules that were trained whole (modules_to_save)": config.get("modules_to_save"),
        "trained rows of the embedding": config.get("trainable_token_indices"),
        "trained biases, or other weights beside LoRA": config.get("bias", "none") != "none"
        or config.get("lora_bias")
        or facts["overrides"],
        # vLLM reads one rank and one alpha, and ignores these.
        "ranks or alphas that differ between layers": config.get("rank_pattern")
        or config.get("alpha_pattern"),
        "LoRA on parameters that are no layers (experts)": config.get("target_parameters"),
        f"LoRA on {' and '.join(on_vocabulary)}": on_vocabulary,
    }
    return [f"from an adapter with {what}" for what, there in found.items() if there]


def _of_sampling(rule: SamplingRule, banned: Tensor | None) -> list[str]:
    """Name what in the rule the protocol cannot express."""
    found = []
    if rule.temperature < LOWEST_TEMPERATURE:
        found.append(f"at temperature {rule.temperature:g}: it takes {LOWEST_TEMPERATURE} instead")
    if len(rule.stop_ids) > MOST_STOPS:
        found.append(f"with {len(rule.stop_ids)} stop tokens (at most {MOST_STOPS})")
    count = 0 if banned is None else int((banned < 0).sum())
    if count > MOST_BIASED:
        found.append(f"without {count} ids of the vocabulary (at most {MOST_BIASED})")
    if count and NEVER / rule.temperature > NO_WEIGHT:
        most = NEVER / NO_WEIGHT
        found.append(
            f"without {count} ids of the vocabulary at temperature {rule.temperature:g} (at most "
            f"{most:g})"
        )
    return found


def _request(rule: SamplingRule, forbidden: Sequence[int]) -> dict[str, object]:
    """Return a request's fields, all of them, because a server may have other defaults."""
    asked: dict[str, object] = {
        "max_tokens": rule.response_length,
        "temperature": rule.temperature,
        "n": 1,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        # The end tokens of the server's config do not count, only the run's.
        "ignore_eos": True,
        "stop_token_ids": list(rule.stop_ids),
        "logprobs": 0,  # of the sampled token alone
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        "skip_special_tokens": False,
    }
    if forbidden:
        asked["logit_bias"] = {str(token): NEVER for token in forbidden}
    return asked


def _read(
    answer: bytes,
    wanted: dict[str, object],
    rule: SamplingRule,
    vocabulary: int,
    unwanted: set[int],
) -> tuple[list[int], list[float]]:
    """Return a completion's ids and log-probs, after checking all that an answer can get wrong."""
    try:
        value = json.loads(answer)
        (choice,) = value["choices"]
        ids, reason = choice.get("token_ids"), choice["finish_reason"]
        logprobs = (choice.get("logprobs") or {}).get("token_logprobs")
        named, prompt = value.get("model"), choice.get("prompt_token_ids")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise _Wrong("does not answer with one completion") from None

    if not isinstance(ids, list) or not all(type(i) is int for i in ids):
        raise _Wrong("returns no token ids (a newer vLLM does: return_token_ids)")
    if not isinstance(logprobs, list) or len(logprobs) != len(ids):
        raise _Wrong("returns no log-prob for each token")
    if not all(type(p) in (int, float) and -math.inf < p < 1e-3 for p in logprobs):
        raise _Wrong("returns log-probs that are none")
    if named not in (None, wanted["model"]):
        raise _Wrong(f"answers for the model {named!r:.80}, and not for the adapter")
    if prompt not in (None, wanted["prompt"]):
        raise _Wrong("has read another prompt than it was given (does it truncate prompts?)")

    strange = [i for i in ids if not 0 <= i < vocabulary or i in unwanted]
    if strange:
        raise _Wrong(f"has sampled {strange[0]}, which is no token here: is it another model?")
    ended = [at for at, i in enumerate(ids) if i in rule.stop_ids]
    last = len(ids) - 1
    # A stop token at the last place may be called either.
    whole = {"stop": ended == [last], "length": last + 1 == rule.response_length}
    if not whole.get(reason, False) or ended not in ([], [last]) or last >= rule.response_length:
        raise _Wrong(
            f"has ended a completion after {len(ids)} of {rule.response_length} tokens with "
            f"finish_reason {reason!r:.20}, but not at a stop token of this run"
        )
    return ids, logprobs


def _together(
    found: list[tuple[list[int], list[float]]], rule: SamplingRule, device: torch.device
) -> Sampled:
    """Pad completions of different lengths to (B, C)."""
    shape = len(found), rule.response_length
    completion_ids = torch.full(shape, rule.pad_id, dtype=torch.long)
    logprobs = torch.zeros(shape)
    for row, (ids, served) in enumerate(found):
        completion_ids[row, : len(ids)] = torch.tensor(ids)
        logprobs[row, : len(ids)] = torch.tensor(served)
    completion_ids = completion_ids.to(device)
    mask = mask_after_stop(completion_ids, rule.stop_ids)
    return Sampled(completion_ids, mask, logprobs.to(device) * mask)
