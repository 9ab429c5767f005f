"""Can the embedded model learn to sum up its reviews? A trial of supervised fine-tuning.

    python benchmarks/digests.py --rank 64
    python benchmarks/digests.py --rank 0 --learning_rate 1e-3

A prompt is a review of four to six sentences and " TL;DR:". Its digest is one sentence of a form
that no review has, such as " bread good, waiter bad, verdict bad.", with a clause for each fact of
the review: a thing or person that it praises or blames, and its verdict. The script trains on
digests (by LoRA, or all weights with --rank 0), lets the model write digests of unseen reviews,
and counts the facts that are right and wrong: without sampling noise, and in the end at temperature
0.7 too, at which RL samples. "Right of said" and "right of all" are precision and recall; a fact
that is said twice counts once. It uses plain torch and peft on one thread.
"""

import argparse
import random
import re
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from toolkit.data import demo_text

MODEL = Path(__file__).parent.parent / "data" / "model"
BATCH = 32
NEW_TOKENS = 40
Fact = tuple[str, bool]  # a thing, a person or "verdict"; and whether it is praised


def any_of(words: list[str]) -> str:
    """A pattern of these words, the longest first."""
    return "|".join(sorted(map(re.escape, words), key=len, reverse=True))


def verdicts(templates: list[str]) -> re.Pattern[str]:
    """A pattern of the verdicts in lower case, whatever place they are about."""
    places = any_of(list(demo_text.PLACES))
    found = (re.escape(t.lower().rstrip(".")) for t in templates)
    return re.compile("|".join(t.replace(r"\{place\}", f"(?:{places})") for t in found))


THING = re.compile(
    rf"\b({any_of([n for place in demo_text.PLACES.values() for row in place for n in row])})\b"
)
PRAISE, BLAME = (
    re.compile(rf"\b({any_of([word for row in rows for word in row])})\b")
    for rows in (
        (demo_text.GOOD, demo_text.GOOD_STAFF, demo_text.GOOD_DEED, demo_text.GOOD_FELT,
         demo_text.GOOD_MOOD),
        (demo_text.BAD, demo_text.BAD_STAFF, demo_text.BAD_DEED, demo_text.BAD_FELT,
         demo_text.BAD_MOOD),
    )
)  # fmt: skip
GOOD_VERDICT, BAD_VERDICT = verdicts(demo_text.GOOD_VERDICT), verdicts(demo_text.BAD_VERDICT)
CLAUSE = re.compile(r"[.!?,;\n]|\band the\b")
BESIDE = re.compile(r"\bwho showed us the .*? was\b")  # what is shown is not what is judged


def facts_of(text: str) -> list[Fact]:
    """Return what a review or a digest praises and blames, in order, each once."""
    found: list[Fact] = []
    for clause in CLAUSE.split(text.lower()):
        clause = BESIDE.sub("was", clause)
        rest = THING.sub("", clause)  # a great hall is not praised by its name
        praised, blamed = bool(PRAISE.search(rest)), bool(BLAME.search(rest))
        if GOOD_VERDICT.search(clause):
            said = [("verdict", True)]
        elif BAD_VERDICT.search(clause):
            said = [("verdict", False)]
        elif praised == blamed:
            said = []
        else:
            things = THING.findall(clause) + (["verdict"] if "verdict" in clause else [])
            said = [(thing, praised) for thing in things]
        found += [fact for fact in said if fact not in found]
    return found


def review(rng: random.Random) -> tuple[str, list[Fact]]:
    """Make a prompt and its facts; no thing in it is both praised and blamed."""
    while True:
        opening, rest = demo_text.review(rng)
        facts = facts_of(rest)
        sentences = 1 + rest.count(".")
        if 4 <= sentences <= 6 and facts and len({thing for thing, _ in facts}) == len(facts):
            return f"{opening} {rest} TL;DR:", facts


def digest(facts: list[Fact]) -> str:
    """Write the facts as one sentence that continues a prompt."""
    return " " + ", ".join(f"{thing} {'good' if good else 'bad'}" for thing, good in facts) + "."


def measure(
    model, tokenizer, held_out: list[tuple[str, list[Fact]]], temperature: float = 0.0
) -> str:
    """Write digests, greedily at temperature 0, and count facts that are right and wrong."""
    how: dict = {"do_sample": False}
    if temperature:
        how = {"do_sample": True, "temperature": temperature, "top_k": 0}
    tokenizer.padding_side = "left"
    right = wrong = known = 0
    model.eval()
    for start in range(0, len(held_out), 100):
        part = held_out[start : start + 100]
        asked = tokenizer([prompt for prompt, _ in part], return_tensors="pt", padding=True)
        with torch.no_grad():
            whole = model.generate(
                input_ids=asked["input_ids"],
                attention_mask=asked["attention_mask"],
                max_new_tokens=NEW_TOKENS,
                **how,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
        for row, (_, facts) in zip(whole[:, asked["input_ids"].shape[1] :], part, strict=True):
            said = facts_of(tokenizer.decode(row, skip_special_tokens=True))
            right += sum(fact in facts for fact in said)
            wrong += sum(fact not in facts for fact in said)
            known += len(facts)
    model.train()
    count = len(held_out)
    return (
        f"right {right / count:.2f}, wrong {wrong / count:.2f} of {known / count:.2f} facts; right "
        f"of said {right / max(1, right + wrong):.3f}, right of all {right / known:.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rank", type=int, default=64, help="of LoRA; 0 trains all weights")
    parser.add_argument("--learning_rate", type=float, default=3e-3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--digests", type=int, default=2_000, help="to train on")
    parser.add_argument("--held_out", type=int, default=200, help="reviews to sum up")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForCausalLM.from_pretrained(MODEL)
    draw, other = random.Random(7), random.Random(8)
    held_out = [review(draw) for _ in range(args.held_out)]
    rows = []
    for prompt, facts in (review(other) for _ in range(args.digests)):
        learned = tokenizer(digest(facts))["input_ids"] + [tokenizer.eos_token_id]
        rows.append((tokenizer(prompt)["input_ids"], learned))
    if args.rank:
        lora = LoraConfig(
            r=args.rank,
            lora_alpha=2 * args.rank,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        model = get_peft_model(model, lora)

    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=args.learning_rate, weight_decay=0)
    steps, step, begun = args.epochs * (len(rows) // BATCH), 0, time.process_time()
    for epoch in range(1, args.epochs + 1):
        order = torch.randperm(len(rows)).tolist()
        losses = []
        for start in range(0, len(rows) - BATCH + 1, BATCH):
            step += 1
            for group in optimizer.param_groups:
                falling = max(0.05, 1 - step / steps)
                group["lr"] = args.learning_rate * min(1, step / 20) * falling

            batch = [rows[i] for i in order[start : start + BATCH]]
            width = max(len(prompt) + len(learned) for prompt, learned in batch)
            ids = torch.zeros(BATCH, width, dtype=torch.long)
            mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
            for i, (prompt, learned) in enumerate(batch):
                end = len(prompt) + len(learned)
                ids[i, :end] = torch.tensor(prompt + learned)
                mask[i, :end] = 1
                labels[i, len(prompt) : end] = torch.tensor(learned)

            loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            losses.append(loss.item())

        mean, seconds = sum(losses) / len(losses), time.process_time() - begun
        print(f"epoch {epoch}: loss {mean:.3f}, {seconds:.0f} CPU seconds", flush=True)
        if epoch % 4 == 0 or epoch == args.epochs:
            print(f"  {measure(model, tokenizer, held_out)}", flush=True)
    print(f"  at temperature 0.7: {measure(model, tokenizer, held_out, 0.7)}")


if __name__ == "__main__":
    main()
