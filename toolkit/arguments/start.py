"""The flags that say where fine-tuning on completions starts."""

from dataclasses import dataclass, field

from toolkit.arguments.lora import LoraArguments
from toolkit.models.adapters import check_adapter, check_for_trl


@dataclass
class StartArguments:
    """Where fine-tuning on completions starts, and how these end."""

    stop_token: str | None = field(
        default=None,
        metadata={"help": "Texts end with this token; eos for the end token, none for nothing. By "
                  "default eos with a chat template (its end of turn), else none."},
    )  # fmt: skip
    policy_adapter: str | None = field(
        default=None, metadata={"help": "Adapter that the policy starts from (sft.py's, say)."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace what is at --output_dir."})

    def check(
        self, base_name: str, precision: str, lora: LoraArguments, copied: bool = False,
        head: bool = True,
    ) -> None:  # fmt: skip
        """Raise InputError unless the adapter, if there is one, fits the base and TRL's trainers.

        Args:
            base_name, precision: of the base.
            lora: the adapter that is trained where none is given.
            copied, head: as for ``check_for_trl``.
        """
        if self.policy_adapter is None:
            return lora.check_for_trl(head)
        what = "--policy_adapter"
        check_adapter(self.policy_adapter, base_name, "CAUSAL_LM", what, precision)
        return check_for_trl(self.policy_adapter, base_name, what, copied, head)
