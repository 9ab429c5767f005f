"""Sampling by a server that speaks vLLM's protocol: transformers and peft behind http.server.

The stand-in loads each adapter with plain peft from the folder that was pushed. So its log-probs
equal the trainer's only if the folder holds the policy. No test runs vLLM itself.
"""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM

from toolkit.errors import InputError
from toolkit.models.actors import banned_of
from toolkit.models.adapters import lora_config
from toolkit.models.loading import load_base, load_tokenizer
from toolkit.models.roles import Roles
from toolkit.models.sampling import SamplingRule
from toolkit.training.ppo.rollouts import Rollout
from toolkit.training.ppo.trainer import PPOTrainer
from toolkit.training.ppo.vllm_server import Agreement, VLLMServer

from .test_trainer import trainer_of

FIXED = SamplingRule(response_length=8, temperature=0.7, pad_id=0)


class Handler(BaseHTTPRequestHandler):
    """The four addresses of vLLM; ``server.fault`` names what it does wrong."""

    server: "StandIn"

    def do_GET(self) -> None:  # noqa: N802 (http.server's name)
        cards = [{"id": "base", "root": "base", "max_model_len": self.server.room}]
        cards += [{"id": name, "parent": "base"} for name in self.server.loaded]
        self.answer(200, {"object": "list", "data": cards})

    def do_POST(self) -> None:  # noqa: N802 (http.server's name)
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, asked))
        with self.server.lock:  # one at a time, as peft has one active adapter
            self.answer(*self.server.answers[self.path](asked))

    def answer(self, status: int, value: Any) -> None:
        body = (value if isinstance(value, str) else json.dumps(value)).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


class StandIn(ThreadingHTTPServer):
    """Samples as vLLM documents it: seeds, stop tokens, bias, token ids, processed log-probs."""

    daemon_threads = True

    def __init__(self, demo_model: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.model: Any = AutoModelForCausalLM.from_pretrained(demo_model, dtype=torch.float32)
        self.model.eval()
        self.loaded: list[str] = []
        self.history: list[str] = []
        self.seen: list[tuple[str, dict[str, Any]]] = []
        self.fault, self.room = "", 512
        self.lock, self.over = threading.Lock(), threading.Event()
        self.answers = {
            "/v1/load_lora_adapter": self.load,
            "/v1/unload_lora_adapter": self.unload,
            "/v1/completions": self.complete,
        }

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # the client went away, as some tests mean it to

    def load(self, asked: dict[str, Any]) -> tuple[int, Any]:
        name, path = asked["lora_name"], asked["lora_path"]
        if self.fault == "no lora":
            return 404, {"detail": "Not Found"}
        if self.fault == "unseen":
            return 404, {"error": {"message": f"No adapter found for {path}"}}
        if self.fault == "rank":
            return 500, {"error": {"message": "LoRA rank 8 is greater than max_lora_rank 4."}}
        if self.fault == "name":
            self.fault, self.loaded = "", [*self.loaded, name]
        if name in self.loaded:
            message = f"The lora adapter '{name}' has already been loaded."
            return 400, {"error": {"message": message, "type": "InvalidUserInput"}}
        if isinstance(self.model, PeftModel):
            self.model.load_adapter(path, adapter_name=name)
        else:
            self.model = PeftModel.from_pretrained(self.model, path, adapter_name=name).eval()
        self.loaded, self.history = [*self.loaded, name], [*self.history, name]
        return 200, f"Success: LoRA adapter '{name}' added successfully."

    def unload(self, asked: dict[str, Any]) -> tuple[int, Any]:
        if asked["lora_name"] not in self.loaded:
            return 404, {"error": {"message": "The lora adapter cannot be found."}}
        self.loaded.remove(asked["lora_name"])
        return 200, "Success"

    @torch.no_grad()
    def complete(self, asked: dict[str, Any]) -> tuple[int, Any]:
        name, prompt = asked["model"], asked["prompt"]
        if self.fault == "busy":
            return 500, {"error": {"message": "EngineDeadError"}}
        if self.fault == "slow":
            self.over.wait(10)
        if name not in self.loaded or self.fault == "restarted":
            return 404, {"error": {"message": f"The model `{name}` does not exist."}}

        self.model.set_adapter(name)
        bias = torch.zeros(self.model.config.vocab_size)
        for token, value in asked.get("logit_bias", {}).items():
            bias[int(token)] = value
        generator = torch.Generator().manual_seed(asked["seed"])
        ids: list[int] = []
        logprobs: list[float] = []
        reason = "length"
        while len(ids) < asked["max_tokens"] - (self.fault == "short"):
            inputs = torch.tensor([prompt + ids])
            if self.fault == "ignores":
                with self.model.disable_adapter():
                    raw = self.model(inputs).logits[0, -1]
            else:
                raw = self.model(inputs).logits[0, -1]
            if self.fault == "other base":
                raw = raw.roll(1)
            scaled = (raw + bias) / asked["temperature"]
            token = int(torch.multinomial(scaled.softmax(0), 1, generator=generator))
            shown = raw if self.fault == "raw" else scaled
            ids.append(token)
            logprobs.append(float(shown.log_softmax(0)[token]))
            if token in asked["stop_token_ids"] or self.fault == "stops":
                reason = "stop"
                break

        if self.fault == "vocabulary":
            ids[-1] = len(bias) + 7
        choice: dict[str, Any] = {"index": 0, "text": "", "finish_reason": reason}
        choice["logprobs"] = {
            "token_logprobs": logprobs,
            "tokens": [f"token_id:{i}" for i in ids],
            "top_logprobs": [{f"token_id:{i}": p} for i, p in zip(ids, logprobs, strict=True)],
        }
        choice |= {"token_ids": ids, "prompt_token_ids": prompt}
        if self.fault == "text":
            choice["token_ids"] = None
        if self.fault == "no log-probs":
            choice["logprobs"] = None
        if self.fault == "not numbers":
            choice["logprobs"]["token_logprobs"] = [None] * len(ids)
        if self.fault == "truncates":
            choice["prompt_token_ids"] = prompt[1:]
        served = "base" if self.fault == "model" else name
        if self.fault == "two":
            return 200, {"model": served, "choices": [choice, choice]}
        return 200, {"object": "text_completion", "model": served, "choices": [choice]}


@pytest.fixture
def stand_in(demo_model: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = StandIn(demo_model)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.over.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def roles(demo_model: str) -> Roles:
    """A policy that has moved: without its adapter the log-probs are others."""
    torch.manual_seed(0)
    made = Roles(load_base(demo_model, "fp32"), lora_config(4, 8, "all-linear", "CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in made.trainable():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    made.keep_only(load_tokenizer(demo_model))
    return made


def client(stand_in: StandIn, folder: Path, **options: Any) -> VLLMServer:
    settings = {"timeout": 30.0, "key_variable": "NONE", "max_gap": 0.1, "backoff": 0.001}
    return VLLMServer(stand_in.url, folder=folder, **(settings | options))


def drawn(
    server: VLLMServer, roles: Roles, rule: SamplingRule, count: int = 4
) -> tuple[Any, torch.Tensor]:
    """Push the policy and sample; return what came, and the log-probs of a whole pass here."""
    name = server.push(roles, 1)
    ids = torch.arange(5, 5 + 6 * count).view(count, 6)
    attention = torch.ones_like(ids, dtype=torch.bool)
    attention[0, :2] = False  # a shorter prompt, padded on the left
    noise = torch.rand((count, 8), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    vocabulary = roles.language_model("policy").config.vocab_size
    sampled = server.sampler(name, rule, roles.banned, vocabulary)(ids, attention, noise)
    passage = torch.cat([ids, sampled.completion_ids], 1), torch.cat([attention, sampled.mask], 1)
    own = roles.policy_outputs(*passage, sampled.completion_ids, rule.temperature).logprobs
    return sampled, own * sampled.mask


def test_the_pushed_adapter_gives_the_log_probs_of_a_pass_here(
    stand_in: StandIn, roles: Roles, tmp_path: Path
) -> None:
    server = client(stand_in, tmp_path / "adapters")
    sampled, own = drawn(server, roles, FIXED)
    assert sampled.mask.all() and sampled.completion_ids.shape == (4, 8)
    assert torch.allclose(sampled.logprobs, own, atol=2e-4)
    again, _ = drawn(server, roles, FIXED)
    assert torch.equal(again.completion_ids, sampled.completion_ids)
    roles.act_as("reference")
    base = roles.reference_logprobs(
        torch.cat([torch.arange(11, 17)[None], sampled.completion_ids[1:2]], 1),
        torch.ones((1, 14), dtype=torch.bool),
        sampled.completion_ids[1:2],
        0.7,
    )
    assert (base - sampled.logprobs[1:2]).abs().mean() > 0.1  # the adapter makes a difference


def test_a_completion_ends_at_the_runs_stop_tokens_alone(
    stand_in: StandIn, roles: Roles, tmp_path: Path
) -> None:
    fixed, _ = drawn(client(stand_in, tmp_path / "a"), roles, FIXED)
    stop = int(fixed.completion_ids[0, 3])
    rule = replace(FIXED, stop_ids=(stop,))
    sampled, own = drawn(client(stand_in, tmp_path / "b"), roles, rule)
    cut = fixed.completion_ids[0].tolist().index(stop) + 1
    assert sampled.mask[0].sum() == cut and not sampled.completion_ids[0, cut:].any()
    assert torch.equal(sampled.completion_ids[0, :cut], fixed.completion_ids[0, :cut])
    assert torch.allclose(sampled.logprobs, own, atol=2e-4)


def test_a_request_says_all_that_a_server_could_set_otherwise(
    stand_in: StandIn, roles: Roles, demo_model: str, tmp_path: Path
) -> None:
    rows = roles.language_model("policy").config.vocab_size
    tokenizer = load_tokenizer(demo_model)
    roles.banned = torch.zeros(rows)
    roles.banned[[7, 9]] = -1e30
    drawn(client(stand_in, tmp_path / "adapters"), roles, replace(FIXED, stop_ids=(4,)))

    asked = [content for path, content in stand_in.seen if path == "/v1/completions"]
    assert sorted(len(one["prompt"]) for one in asked) == [4, 6, 6, 6]
    assert len({one["seed"] for one in asked}) == 4
    wanted = {"max_tokens": 8, "temperature": 0.7, "n": 1, "top_p": 1.0, "top_k": 0, "min_p": 0.0,
              "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
              "ignore_eos": True, "stop_token_ids": [4], "logprobs": 0, "return_token_ids": True,
              "logit_bias": {"7": -100.0, "9": -100.0}}  # fmt: skip
    assert wanted.items() <= asked[0].items()
    assert banned_of(tokenizer, rows) is None  # the embedded model has no spare rows of its own


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("text", "returns no token ids"),
        ("no log-probs", "returns no log-prob for each token"),
        ("not numbers", "returns log-probs that are none"),
        ("short", "has ended a completion after 7 of 8 tokens with finish_reason 'length'"),
        ("stops", "has ended a completion after 1 of 8 tokens with finish_reason 'stop'"),
        ("vocabulary", "which is no token here: is it another model?"),
        ("truncates", "has read another prompt than it was given"),
        ("model", "answers for the model 'base', and not for the adapter"),
        ("two", "does not answer with one completion"),
        ("busy", r"HTTP 500: .*EngineDeadError.*\(tried 2 times\)"),
        ("slow", r"(no complete answer in 0.2 s|timed out) \(tried 2 times\)"),
        ("no lora", "start vLLM with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"),
        (
            "rank",
            "LoRA rank 8 is greater than max_lora_rank 4.*is its --max-lora-rank large enough",
        ),
        ("restarted", "has the adapter no more: was it started again?"),
        ("unseen", "No adapter found for .*does the server see /.*/policy, and"),
    ],
)
def test_a_server_that_does_otherwise_ends_the_run(
    stand_in: StandIn, roles: Roles, tmp_path: Path, fault: str, message: str
) -> None:
    stand_in.fault = fault
    server = client(stand_in, tmp_path / "adapters", timeout=0.2 if fault == "slow" else 30.0)
    server._endpoint.tries = 2
    with pytest.raises(InputError, match=message):
        drawn(server, roles, FIXED, count=2)


def test_a_name_that_is_taken_is_loaded_anew(
    stand_in: StandIn, roles: Roles, tmp_path: Path
) -> None:
    """As after a kill, or if an answer was lost: what has the name may be anything."""
    stand_in.fault = "name"
    sampled, own = drawn(client(stand_in, tmp_path / "adapters"), roles, FIXED)
    assert torch.allclose(sampled.logprobs, own, atol=2e-4)
    paths = [path.removeprefix("/v1/") for path, _ in stand_in.seen][:3]
    assert paths == ["load_lora_adapter", "unload_lora_adapter", "load_lora_adapter"]


def plain(**changes: Any) -> LoraConfig:
    config = lora_config(4, 8, "all-linear", "CAUSAL_LM")
    for name, value in changes.items():
        setattr(config, name, value)
    return config


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize(
    ("config", "message"),
    [
        (plain(use_dora=True), "from an adapter with DoRA"),
        (plain(rank_pattern={"q_proj": 2}), "ranks or alphas that differ between layers"),
        (plain(alpha_pattern={"q_proj": 2}), "ranks or alphas that differ between layers"),
        (plain(target_modules={"q_proj", "lm_head"}), "from an adapter with LoRA on lm_head"),
        (plain(target_modules={"q_proj", "embed_tokens"}), "LoRA on embed_tokens"),
    ],
)
def test_an_adapter_that_vllm_would_not_serve_whole_is_refused_before_anything_is_sent(
    stand_in: StandIn, demo_model: str, tmp_path: Path, config: LoraConfig, message: str
) -> None:
    roles = Roles(load_base(demo_model, "fp32"), config)
    server = client(stand_in, tmp_path)
    with pytest.raises(InputError, match=message) as refused:
        server.check_can_serve(roles, FIXED, 10)
    assert refused.value.field == "vllm_server_base_url" and not stand_in.seen


def test_biases_and_whole_modules_are_refused_too(
    stand_in: StandIn, roles: Roles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = roles.policy_facts()
    server = client(stand_in, tmp_path)
    for change, message in (
        ({"modules_to_save": ["norm"]}, "modules that were trained whole"),
        ({"trainable_token_indices": [3]}, "trained rows of the embedding"),
        ({"bias": "lora_only"}, "trained biases"),
    ):
        changed = facts | {"config": facts["config"] | change}
        monkeypatch.setattr(roles, "policy_facts", lambda changed=changed: changed)
        with pytest.raises(InputError, match=message):
            server.check_can_serve(roles, FIXED, 10)


def test_a_rule_that_the_protocol_cannot_express_is_refused(
    stand_in: StandIn, roles: Roles, tmp_path: Path
) -> None:
    server = client(stand_in, tmp_path)
    server.check_can_serve(roles, FIXED, 504)
    with pytest.raises(InputError, match="takes 512 tokens .* have 513"):
        server.check_can_serve(roles, FIXED, 505)
    with pytest.raises(InputError, match="at temperature 0.001: it takes 0.01 instead"):
        server.check_can_serve(roles, replace(FIXED, temperature=0.001), 10)
    with pytest.raises(InputError, match="with 129 stop tokens"):
        server.check_can_serve(roles, replace(FIXED, stop_ids=tuple(range(129))), 10)
    roles.banned = torch.full((2000,), -1e30)
    with pytest.raises(InputError, match="without 2000 ids of the vocabulary"):
        server.check_can_serve(roles, FIXED, 10)
    roles.banned[2:] = 0
    server.check_can_serve(roles, FIXED, 10)
    with pytest.raises(InputError, match="without 2 ids .* at temperature 3"):
        server.check_can_serve(roles, replace(FIXED, temperature=3.0), 10)


def rollout_of(served: torch.Tensor, own: torch.Tensor, reference: torch.Tensor) -> Rollout:
    mask = torch.ones_like(own, dtype=torch.bool)
    ids = torch.zeros_like(own, dtype=torch.long)
    nothing = torch.zeros(own.shape[0])
    return Rollout(
        prompt_ids=ids,
        prompt_mask=mask,
        completion_ids=ids,
        mask=mask,
        logprobs=own,
        ref_logprobs=reference,
        values=None,
        scores=nothing,
        valid=nothing > -1,
        scored=nothing > -1,
        served_logprobs=served,
    )


@pytest.mark.parametrize("rounding", [1e-6, 0.01, 0.1])
@pytest.mark.parametrize("tokens", [200, 8000])
def test_only_a_server_without_the_adapter_seems_to_be_without_it(
    rounding: float, tokens: int
) -> None:
    """Noise in all three passes; the policy has moved far, a little, or not at all."""
    draw = torch.Generator().manual_seed(0)

    def noise(scale: float) -> torch.Tensor:
        return scale * torch.randn((1, tokens), generator=draw)

    for moved in (0.0, 0.1 * rounding, rounding, 3 * rounding, 0.3):
        for _ in range(20):
            base = -1 + noise(0.3)
            policy = base + noise(moved)
            own, reference = policy + noise(rounding), base + noise(rounding)
            honest = rollout_of(policy + noise(rounding), own, reference)
            deaf = rollout_of(base + noise(rounding), own, reference)
            assert not Agreement.of(honest, lambda x: x).ignores_adapter
            found = Agreement.of(deaf, lambda x: x).ignores_adapter
            assert found or moved <= 3 * rounding
            assert not found or moved


def trained(stand_in: StandIn, demo_model: str, tmp_path: Path, **options: Any) -> PPOTrainer:
    settings = {"vllm_server_base_url": stand_in.url, "total_episodes": 64, "seed": 3}
    return trainer_of(demo_model, tmp_path, value="trunk", **(settings | options))


@pytest.mark.slow
def test_a_run_pushes_each_update_under_a_new_name_and_leaves_nothing(
    stand_in: StandIn, demo_model: str, tmp_path: Path
) -> None:
    rows = trained(stand_in, demo_model, tmp_path, eval_every=100).train()
    assert [row["val/served_gap"] < 1e-4 for row in rows] == [True] * 4
    assert rows[-1]["objective/kl"] > 1e-3 and abs(rows[0]["objective/kl"]) < 1e-4
    assert rows[1]["val/first_max_log_ratio"] < 1e-4
    assert len(set(stand_in.history)) == 4 and not stand_in.loaded
    assert not (tmp_path / "run" / "vllm").exists()

    # Server or not, the run has the same settings: it may go on without one.
    trainer = trained(stand_in, demo_model, tmp_path, vllm_server_base_url=None, resume="auto")
    assert len(trainer.train()) == 4


@pytest.mark.slow
def test_a_resumed_run_says_that_it_is_not_exact(
    stand_in: StandIn, demo_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(trained(stand_in, demo_model, tmp_path, stop_at_update=1).train()) == 1
    assert "not bit for bit" not in capsys.readouterr().out
    assert len(trained(stand_in, demo_model, tmp_path, resume="auto").train()) == 4
    assert "the run goes on, but not bit for bit as it would have" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_stops_where_the_server_runs_another_model(
    stand_in: StandIn, demo_model: str, tmp_path: Path
) -> None:
    for fault, message in (("other base", "differ from those computed here"), ("raw", "processed")):
        stand_in.fault = fault
        with pytest.raises(InputError, match=message):
            trained(stand_in, demo_model, tmp_path, name=fault).train()
        assert not (tmp_path / fault / "log.jsonl").read_text()

    # A new adapter changes nothing, so this one is found once the policy has moved.
    stand_in.fault = "ignores"
    with pytest.raises(InputError, match="does not use the adapter that was loaded"):
        trained(stand_in, demo_model, tmp_path, name="deaf").train()
    assert len((tmp_path / "deaf" / "log.jsonl").read_text().splitlines()) == 1
    assert not stand_in.loaded


@pytest.mark.slow
def test_two_processes_get_the_completions_that_one_gets(
    stand_in: StandIn, tmp_path: Path, forked: Callable[..., list]
) -> None:
    """The main process pushes, each asks for its own; a seed belongs to a completion."""
    words = ["--lexicon", "data/lexicon.txt", "--value", "trunk", "--response_length", "6",
             "--limit", "60", "--total_episodes", "64", "--num_ppo_epochs", "1", "--lora_r", "4",
             "--vllm_server_base_url", f"{stand_in.url}/v1"]  # fmt: skip
    rows = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        sizes = ["--per_device_train_batch_size", str(32 // processes), "--output_dir", str(out)]
        for process in forked(*[words + sizes] * processes):
            said = process.wait()
            assert process.returncode == 0, said
        rows.append([json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()])

    assert len(stand_in.history) == 4 and not stand_in.loaded
    seeds = [asked["seed"] for path, asked in stand_in.seen if path == "/v1/completions"]
    assert sorted(seeds[:64]) == sorted(seeds[64:]) and len(set(seeds)) == 64
    for one, two in zip(*rows, strict=True):
        assert two == pytest.approx(one, abs=1e-4)
