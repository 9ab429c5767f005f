"""The flags that say how completions are sampled."""

from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from toolkit.errors import check_range
from toolkit.training.rollouts import SamplingRule, sampling_rule


@dataclass
class SamplingArguments:
    """How completions come about. Field names are those of TRL 1.12's PPOConfig."""

    response_length: int = field(default=24, metadata={"help": "Tokens sampled per completion."})
    temperature: float = field(default=0.7, metadata={"help": "Of the sampling."})
    stop_token: str | None = field(
        default=None,
        metadata={"help": "End completions at this token; eos for all end tokens of model and "
                  "chat template, none for none. By default eos with a chat template, else none."},
    )  # fmt: skip
    truncate_token: str | None = field(
        default=None, metadata={"help": "Cut each completion behind this token (say a full stop)."}
    )
    truncate_after: int = field(
        default=16, metadata={"help": "First index at which truncate_token counts."}
    )
    max_prompt_length: int = field(
        default=256, metadata={"help": "Leave out prompts of more tokens."}
    )
    prompt_tokens: int | None = field(
        default=None,
        metadata={"help": "Cut prompts out of text: its first so many tokens (rows of `text`)."},
    )

    def __post_init__(self) -> None:
        check_range("response_length", self.response_length, low=1)
        check_range("temperature", self.temperature, above=0)
        check_range("truncate_after", self.truncate_after, low=0)
        check_range("max_prompt_length", self.max_prompt_length, low=1)
        check_range("prompt_tokens", self.prompt_tokens, low=1)

    def rule(self, tokenizer: PreTrainedTokenizerBase) -> SamplingRule:
        """The rule in token ids."""
        return sampling_rule(
            tokenizer, self.response_length, self.temperature, self.stop_token,
            self.truncate_token, self.truncate_after,
        )  # fmt: skip
