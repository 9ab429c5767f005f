"""The flags of PPO's prompts."""

from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from toolkit.arguments.model import DEMO_PROMPTS
from toolkit.data.chat import ChatArguments
from toolkit.data.prompts import PROMPTS_HELP, Prompts, read_prompts
from toolkit.errors import check_choice, check_range


@dataclass
class PromptArguments(ChatArguments):
    """PPO's prompts, and where the policy starts."""

    prompts: str | None = field(
        default=None,
        metadata={"help": f"{PROMPTS_HELP} With the embedded model by default {DEMO_PROMPTS}."},
    )
    eval_prompts: str | None = field(
        default=None, metadata={"help": "Held-out prompts: evaluated every --eval_every updates."}
    )
    eval_limit: int | None = field(default=128, metadata={"help": "Use only so many of these."})
    eval_skip: int = field(default=0, metadata={"help": "Pass over so many of their rows first."})
    max_prompt_length: int = field(default=256, metadata={"help": "Leave out longer prompts."})
    prompt_tokens: int | None = field(
        default=None,
        metadata={"help": "Cut prompts out of text: its first so many tokens (rows of `text`)."},
    )
    limit: int | None = field(default=None, metadata={"help": "Use only so many prompts."})
    policy_adapter: str | None = field(
        default=None, metadata={"help": "Adapter that the policy starts from (fine-tuned, say)."}
    )
    reference: str = field(
        default="policy_adapter",
        metadata={"help": "With --policy_adapter: policy_adapter (a frozen copy of it), or base."},
    )
    skip_invalid: bool = field(
        default=False, metadata={"help": "Go on without bad prompts, and say how many there are."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace what is at --output_dir."})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("reference", self.reference, ("policy_adapter", "base"))
        for name in ("max_prompt_length", "prompt_tokens", "limit", "eval_limit"):
            check_range(name, getattr(self, name), low=1)
        check_range("eval_skip", self.eval_skip, low=0)

    @property
    def reference_role(self) -> str:
        """The reference, as ``Roles`` has it."""
        return self.reference if self.policy_adapter is not None else "base"

    def load(self, tokenizer: PreTrainedTokenizerBase) -> tuple[Prompts, Prompts | None, int]:
        """Prompts, held-out prompts if there are any, and how many were left out by length."""
        prompts, left_out = read_prompts(
            self.prompts or DEMO_PROMPTS, tokenizer, self.max_prompt_length, self.prompt_tokens,
            self.limit, chat=self.chat, skip_invalid=self.skip_invalid,
        )  # fmt: skip
        if self.eval_prompts is None:
            return prompts, None, left_out
        held_out, _ = read_prompts(
            self.eval_prompts, tokenizer, self.max_prompt_length, self.prompt_tokens,
            self.eval_limit, self.eval_skip, "--eval_prompts", self.chat, self.skip_invalid,
        )  # fmt: skip
        return prompts, held_out, left_out

    def held_out_facts(self, prompts: Prompts, held_out: Prompts | None) -> dict[str, int]:
        """For run.json: how many prompts are held out, and how many of these are trained on."""
        seen = {tuple(ids) for ids in prompts}
        again = sum(tuple(ids) in seen for ids in held_out or [])
        count = len(held_out or [])
        if again:
            print(f"note: {again} of the {count} prompts of --eval_prompts are trained on")
        return {"held_out_prompts": count, "held_out_trained_on": again}
