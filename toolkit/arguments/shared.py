"""The names of the flags that say the same to every recipe that has them."""

# Recipes must agree on these. They have one default wherever they are.
MODEL = (
    "model_name_or_path",
    "model_revision",
    "precision",
    "tokenizer_name_or_path",
    "trust_remote_code",
)
CHAT = ("chat_template", "chat_template_kwargs")
SAMPLING = (
    "response_length",
    "temperature",
    "stop_token",
    "truncate_token",
    "truncate_after",
    "max_prompt_length",
)

# These may differ, but are mostly the same for all stages of a project.
USUAL = (
    "plain_scales",
    "prompt_tokens",
    "lora_r",
    "lora_alpha",
    "lora_target_modules",
    "bf16",
    "use_cpu",
    "report_to",
    "seed",
    "skip_invalid",
    "as_messages",
    "prompt_form",
)
