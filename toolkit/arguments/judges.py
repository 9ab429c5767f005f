"""The flags that say how an HTTP judge is asked."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from toolkit.flags import Count, Flags, Range, flag


@dataclass
class JudgeRequestArguments(Flags):
    """How a language model behind an endpoint is asked, and when to give up."""

    HELP_GROUP: ClassVar[str] = "rewards and labelers"

    judge_key_variable: str = flag("OPENAI_API_KEY", "Environment variable that holds the API key.")
    judge_max_tokens: Count = flag(
        8, "Most tokens of an answer, which is one letter; a model that thinks needs thousands."
    )
    judge_timeout: Annotated[float, Range(above=0, high=86_400)] = flag(
        60.0, "Seconds that one request may take, from its start to its end."
    )
    judge_patience: Count = flag(20, "Stop after this many answers in a row that are not a letter.")
