"""Write the lines that load a published adapter with only transformers and peft."""

import json
from typing import NamedTuple

from toolkit.data.chat import Chat
from toolkit.hub.adapter_source import Kind
from toolkit.models.families import HEADS, Family

# The settings of the toolkit's 4-bit bases (models/loading.py); others would round differently.
FOUR_BIT = """\
    dtype=compute,
    quantization_config=BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
        llm_int8_skip_modules={heads},
    ),
"""
CURE = """\
for module in model.modules():  # bitsandbytes 0.50 repacks weights on CPUs with AVX512_BF16
    if hasattr(module, "support_avx512bf16_for_cpu"):
        module.support_avx512bf16_for_cpu = False
"""
# A pad token that is also the end token would be taken for padding.
UNPADDED = """\
model.config.get_text_config().pad_token_id = None  # score one text at a time, at its last token
"""
CHAT = """\


def chat(message):
    return tokenizer.apply_chat_template(
        [{{"role": "user", "content": message}}],
        tokenize=False,
        add_generation_prompt=True,{told}
    )
"""
# Experts that are not linear layers; transformers does not quantize them.
EXPERTS = """\
for module in list(model.modules()):  # experts in 4 bits, as in training
    if "Experts" in type(module).__name__ or hasattr(module, "is_transposed"):
        for name, weight in list(module.named_parameters(recurse=False)):
            if weight.dim() >= 3:
                weight.requires_grad_(False)
                replace_parameter_4bit(
                    module, name, compress_statistics=True, quant_type="nf4", blocksize=64
                )
"""
# For a reward model without a class in transformers, the head is beside the output head.
SCORE_HEAD = """\
model.score = torch.nn.Linear(
    model.get_output_embeddings().weight.shape[1], 1, bias=False, device=device
)
"""
USES = {
    "policy": """\
prompt = {prompt}.to(device)
print(tokenizer.decode(model.generate({passed}, max_new_tokens=24, do_sample=True)[0]))
""",
    "reward": """\


def score(text):
    ids = {ids}.to(device)
    with torch.no_grad():
        {raw}
    return {gain!r} * raw + {bias!r}  # gain and bias of toolkit.json


print(score({text}))
""",
    "value": """\
head = load_file(hf_hub_download(adapter, "value_head.safetensors"))
layers = sorted((name for name in head if name.endswith("weight")), key=lambda n: (len(n), n))


def values(text):
    ids = {ids}.to(device)
    with torch.no_grad():
        trunk = model.get_base_model().base_model
        states = trunk(input_ids=ids, use_cache=False).last_hidden_state.float().cpu()
    for name in layers:
        if name != layers[0]:
            states = torch.nn.functional.gelu(states)
        states = states @ head[name].float().T + head[name.replace("weight", "bias")].float()
    return states.flatten().tolist()


print(values({text}))  # one value per token, for the text up to that token
""",
}
DTYPES = {"bf16": "bfloat16", "fp32": "float32"}
_PASSAGE = "We went to the market. It was great."
RAW = {
    "stock": "raw = model(ids).logits.float().item()",
    "trunk": """\
base = model.get_base_model()
        states = base.base_model(input_ids=ids, use_cache=False).last_hidden_state
        raw = base.score(states[:, -1].float()).item()""",
}
# The gate adds these lines, which compute the numbers of the probe texts.
_PROBES = {
    "policy": """
def _numbers(text):
    ids = {ids}.to(device)
    with torch.no_grad():
        logprobs = model(input_ids=ids, use_cache=False).logits[0, :-1].float().log_softmax(-1)
    return logprobs.gather(-1, ids[0, 1:, None])[:, 0].tolist()
""",
    "reward": "\ndef _numbers(text):\n    return [score(text)]\n",
    "value": "\n_numbers = values\n",
}


def ids_line(text: str, ends_with: str = "", prefix: list[int] | None = None) -> str:
    """Return Python that makes token ids (1, T) of a text.

    Args:
        text: an expression.
        ends_with: text to append.
        prefix: None if the tokenizer adds its special tokens. Otherwise they are left out (it would
            append its end token, or a chat template wrote them), and these ids precede the text.
    """
    closed = f"{text} + {ends_with!r}" if ends_with else text
    if prefix is None:
        return f'tokenizer({closed}, return_tensors="pt")["input_ids"]'
    bare = f'tokenizer({closed}, add_special_tokens=False)["input_ids"]'
    return f"torch.tensor([{prefix} + {bare}])" if prefix else f"torch.tensor([{bare}])"


def probe_lines(kind: Kind, ids: str) -> str:
    """Return Python that defines ``_numbers`` of a text, whose ids are those of ``ids_line``."""
    return _PROBES[kind].replace("{ids}", ids)


class Names(NamedTuple):
    """The names in the lines: the adapter's repository, the base's, and its commit."""

    repo_id: str
    base_id: str
    sha: str


def loading_snippet(
    kind: Kind,
    precision: str,
    names: Names,
    gain: float = 1.0,
    bias: float = 0.0,
    ends_with: str = "",
    prefix: list[int] | None = None,
    chat: Chat | None = None,
    family: Family | None = None,
    experts: bool = False,
) -> str:
    """Return Python that loads the adapter and uses it once.

    Args:
        kind: the adapter's kind.
        precision: precision of the base in training.
        names: the repositories.
        gain, bias: the normalization of a reward.
        ends_with: end token of texts that a reward model reads; "" for none.
        prefix: as for ``ids_line``.
        chat: the chat template in training; None for an adapter that continues text.
        family: the base's family; None for the usual one.
        experts: whether it has experts, which were in 4-bit if its linear layers were.
    """
    family_class = "AutoModelForCausalLM" if family is None else family.auto.__name__
    classifier = "stock" if family is None else family.classifier
    stock = kind == "reward" and classifier == "stock"
    auto = "AutoModelForSequenceClassification" if stock else family_class
    heads = json.dumps(list(HEADS) if family is None else family.heads)
    four_bit = precision == "4bit"

    # The base, as in training.
    pieces = [_imports(kind, auto, four_bit, experts), f'adapter = "{names.repo_id}"\n']
    pieces.append('device = "cuda" if torch.cuda.is_available() else "cpu"\n')
    if four_bit:
        pieces.append('compute = torch.bfloat16 if device == "cuda" else torch.float32\n')
    pieces.append(f'model = {auto}.from_pretrained(\n    "{names.base_id}",\n')
    pieces.append(f'    revision="{names.sha}",\n')
    if stock:
        pieces.append("    num_labels=1,\n")
    if four_bit:
        pieces.append(FOUR_BIT.replace("{heads}", heads))
    else:
        pieces.append(f"    dtype=torch.{DTYPES[precision]},\n")
    pieces.append("    device_map=device,\n)\n")
    if four_bit:
        pieces.append(CURE)
    if four_bit and experts:
        pieces.append(EXPERTS)

    # The adapter on the base, and the tokenizer.
    if kind == "reward" and not stock:
        pieces.append(SCORE_HEAD)
    pieces.append("model = PeftModel.from_pretrained(model, adapter).eval()\n")
    pieces.append("tokenizer = AutoTokenizer.from_pretrained(adapter, config=model.config)\n")
    if ends_with and stock:
        pieces.append(UNPADDED)

    # An example.
    rendering, text = _example(kind, chat)
    asked = f'tokenizer({text}, return_tensors="pt")'
    if prefix is not None:
        asked = ids_line(text, prefix=prefix)
    use = USES[kind].format(
        text=text,
        gain=gain,
        bias=bias,
        raw=RAW[classifier],
        ids=ids_line("text", ends_with, prefix),
        prompt=asked,
        passed="**prompt" if prefix is None else "prompt",
    )
    return "".join([*pieces, rendering, use])


def _imports(kind: Kind, auto: str, four_bit: bool, experts: bool) -> str:
    lines = ["import torch"]
    if four_bit and experts:
        lines.append("from bitsandbytes.nn.parametrize import replace_parameter_4bit")
    if kind == "value":
        lines.append("from huggingface_hub import hf_hub_download")
    lines.append("from peft import PeftModel")
    if kind == "value":
        lines.append("from safetensors.torch import load_file")
    more = ", BitsAndBytesConfig" if four_bit else ""
    lines.append(f"from transformers import {auto}, AutoTokenizer{more}")
    return "\n".join(lines) + "\n\n"


def _example(kind: Kind, chat: Chat | None) -> tuple[str, str]:
    """Return lines that render messages, if needed, and an expression for an example text."""
    if chat is None:
        return "", '"We went to the market."' if kind == "policy" else f'"{_PASSAGE}"'

    told = f"\n        **{chat.kwargs!r}," if chat.kwargs else ""
    rendering = CHAT.format(told=told)
    asked = 'chat("Where did you go?")'
    if kind == "policy":
        return f"{rendering}\n\ntext = {asked}\n", "text"

    space = " " if chat.plain else ""  # "Assistant: We"
    return rendering + ("" if kind == "reward" else "\n\n"), f'{asked} + "{space}{_PASSAGE}"'
