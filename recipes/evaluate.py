"""Compare contenders on held-out prompts with one or more judges.

    preftune evaluate --adapter outputs/ppo/adapters/policy \\
        --prompts demo:prompts.heldout.jsonl --lexicon demo:lexicon.txt
    preftune evaluate --lexicon demo:lexicon.txt \\
        --contenders sft=outputs/sft/adapter ppo=outputs/ppo/adapters/policy \\
        best4=best_of_4 \\
        --judges rm=reward_adapter:outputs/reward/adapter --training_reward rm

The untuned model always takes part. You should see a table of the contenders (KL with its standard
error, score, diversity, length), one of the pairs (wins, ties, losses, the win rate over decided
prompts with its Wilson interval, p-values paired by prompt), ratings, and the first samples, which
nobody selected. evaluation.json and samples.jsonl hold the same, and preftune report draws it. To
let people judge, pass --judges people=people:outputs/matches.sqlite, run preftune label --serve,
and evaluate again with --samples.
"""

from toolkit.cli import run, write_run

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.arguments.model import ModelArguments
from toolkit.arguments.prompts import HELD_OUT
from toolkit.arguments.sampling import SamplingArguments
from toolkit.data.outputs import claim_output, forget_run
from toolkit.errors import InputError
from toolkit.evaluation.arguments import EvaluationArguments

if TYPE_CHECKING:
    from toolkit.evaluation.contenders import Contender
    from toolkit.evaluation.result import Evaluation
from toolkit.next_step import Step, beside, say_next, wrote
from toolkit.record import RUN_FILE, RunRecord
from toolkit.scoring.arguments import adapter_folders
from toolkit.terminal import counted


def main(
    model_args: ModelArguments, sampling_args: SamplingArguments, args: EvaluationArguments
) -> "Evaluation":
    from toolkit.data.from_arguments import chat_from, prompts_of
    from toolkit.data.plain_text import text_rows
    from toolkit.data.tokens import vocabulary_digest
    from toolkit.evaluation.contenders import (
        GIVEN,
        Outputs,
        Sampling,
        check_contenders,
        given_texts,
        other_settings,
        tokenizer_folder,
    )
    from toolkit.evaluation.frontier import frontiers
    from toolkit.evaluation.head_to_head import compare, contender_results, gaps, length_lines
    from toolkit.evaluation.judges import ScoreJudge, Scores, judge_all, reranker
    from toolkit.evaluation.perplexity import perplexities
    from toolkit.evaluation.result import ContenderResult, Evaluation, JudgeResult, Written
    from toolkit.evaluation.samples import read_samples, sample_rows, write_samples
    from toolkit.evaluation.source_text import check_fits
    from toolkit.evaluation.tables import print_evaluation
    from toolkit.evaluation.trained_prompts import print_notes, trained_on
    from toolkit.models.from_arguments import (
        base_of,
        check_length,
        longest_text,
        prompts_or_demo,
        tokenizer_of,
    )
    from toolkit.models.roles import Roles
    from toolkit.training.from_arguments import rule_of

    # Check contenders, judges and prompts before a model is loaded.
    out = claim_output(args.output_dir, args.overwrite, "output_dir")
    name = model_args.model_name_or_path
    judges = args.load_judges(name, model_args.precision)
    outputs: dict[str, Outputs] = {}
    if args.samples is not None:
        samples = read_samples(args.samples)
        contenders = samples.contenders
        tokenizer = tokenizer_of(model_args, tokenizer_folder(contenders))
        prompts, outputs = samples.read_by(tokenizer, chat_from(args))
    else:
        args.prompts = prompts_or_demo(model_args, args.prompts, HELD_OUT)
        contenders = args.load_contenders(name, model_args.precision)
        tokenizer = tokenizer_of(model_args, tokenizer_folder(contenders))
        kept = args.kept_columns(contenders)
        found, left_out = prompts_of(args, sampling_args, tokenizer, args.skip, kept)
        prompts = found.once()
        check_length(model_args, prompts, sampling_args.response_length)
        twice = len(found) - len(prompts)
        print(f"{len(prompts)} prompts (left out: {left_out} by length, {twice} duplicates)")
        if len(prompts) < 2:
            raise InputError(
                f"{args.prompts}: holds one prompt (errors and tests need two or more)"
            )
        for line in other_settings(contenders, vars(sampling_args), prompts):
            print(f"note: {line}")
    summaries = args.summaries(contenders, prompts, tokenizer)
    for contender in contenders if args.samples is None else []:
        if contender.kind in GIVEN:
            sources = [] if summaries is None else summaries.sources
            given = given_texts(contender, prompts, sources, tokenizer)
            check_fits(contender.name, name, model_args.model_revision, prompts, given.ids or [])
            outputs[contender.name] = given
    for judge in judges:
        if isinstance(judge, ScoreJudge):
            judge.scorer.check(prompts, tokenizer)
    rule_of(sampling_args, tokenizer)  # an unknown token must fail now
    trained = trained_on(contenders, prompts, tokenizer)
    text, file = None, args.perplexity_text
    if file is not None:
        if args.samples is not None:  # their adapters are not needed for anything else
            check_contenders(contenders, name, model_args.precision)
        text = text_rows(file, tokenizer, longest_text(model_args, None), "--perplexity_text")
        if len(text.rows) < 2:
            raise InputError(f"{file}: holds one text (errors need two or more)", "perplexity_text")

    # All contenders write, then all are judged.
    print(work(args, contenders, len(prompts)), flush=True)
    sampling = Sampling(
        Roles(base_of(model_args)),
        tokenizer,
        prompts,
        partial(rule_of, sampling_args),
        model_args.precision,
        args.seed,
        args.batch_size,
    )
    picked_by = args.reranker or args.training_reward
    for contender in [c for c in contenders if c.name not in outputs]:
        outputs[contender.name] = sampling.write(contender, contenders, reranker(judges, picked_by))
    outputs = {c.name: outputs[c.name] for c in contenders}
    tokens = {name: sampling.visible_tokens(written) for name, written in outputs.items()}

    def results_of(scores: dict[str, Scores]) -> list[ContenderResult]:
        return contender_results(
            contenders, outputs, scores, sampling.texts, trained, tokens, summaries
        )

    written = Written(
        prompts=len(prompts),
        contenders=results_of({}),
        vocabulary=vocabulary_digest(tokenizer),
        chat_template=prompts.chat.name,
        chat_template_kwargs=prompts.chat.kwargs,
    )
    print_notes(written.contenders, len(prompts))
    if args.samples is None:  # kept even if a judge fails
        forget_run(out)
        write_samples(out, sample_rows(prompts, tokenizer, outputs, {}))
        written.write(out / "evaluation.json")
        wrote(out / "samples.jsonl", "if a judge fails, go on with --samples and this file")
    scores, verdicts = judge_all(
        judges, sampling, contenders, outputs, args.pick_pairs, args.pick_limit
    )

    # Count with errors, and keep the results.
    names = [c.name for c in contenders]
    pairs, ratings = compare(names, scores, verdicts, args.seed)
    results = results_of(scores)
    told = args.training_reward
    evaluation = Evaluation(
        **vars(written) | {"contenders": results},
        seed=args.seed,
        reference=names[0],
        judges=[JudgeResult(j.name, j.kind, j.name == told) for j in judges],
        pairs=pairs,
        ratings=ratings,
        gaps=gaps(results, pairs, told) if told else [],
        frontier=frontiers(
            judges,
            sampling,
            scores,
            args.frontier_prompts,
            args.frontier_samples,
            args.seed,
            picked_by,
        ),
        perplexity=None if text is None else perplexities(sampling, contenders, text, str(file)),
        lengths=length_lines(names[0], scores, tokens),
    )
    shown = sample_rows(prompts, tokenizer, outputs, scores)
    if args.samples is not None and Path(args.samples).resolve().parent != out.resolve():
        forget_run(out)
    write_samples(out, shown)
    evaluation.write(out / "evaluation.json")
    write_run(out, "evaluate", model_args, sampling_args, args)
    print_evaluation(evaluation, shown[: args.show])
    wrote(out / "evaluation.json", "these figures")

    # What comes next: people judge, if they are asked and have not; then a report.
    page = report_on(args, contenders)
    asked = next((judge.value for judge in args.specs() if judge.kind == "people"), None)
    people = [judge.name for judge in judges if judge.kind == "people"]
    if asked is not None and not any(p.judged for p in pairs if p.judge in people):
        say_next(Step("label", {"serve": True, "store": asked, "invite": "me"}), page)
    else:
        say_next(page)
    return evaluation


def work(args: EvaluationArguments, contenders: "list[Contender]", prompts: int) -> str:
    """How much is to be done, a sentence a line."""
    from toolkit.evaluation.contenders import GIVEN

    count, specs = len(contenders), args.specs()
    judges = counted(len(specs), "judge")
    lines = [f"{count} contenders on {prompts} prompts are compared by {judges}."]
    if args.samples is None:
        drawn = sum(c.n for c in contenders if c.kind not in GIVEN) * prompts
        lines.append(f"{drawn} completions are sampled for this first.")
    if args.frontier_prompts:
        more = min(args.frontier_prompts, prompts) * args.frontier_samples
        lines.append(f"{more} more are sampled for the frontier (--frontier_prompts 0 for none).")
    if args.perplexity_text is not None:
        lines.append(f"Their perplexity on {args.perplexity_text} is measured last.")
    if any(spec.kind == "http" for spec in specs):
        pairs = count - 1 if args.pick_pairs == "reference" else count * (count - 1) // 2
        asked = pairs * min(args.pick_limit, prompts)
        lines.append(f"Each HTTP judge is asked {asked} questions at most (see --pick_limit).")
    return "\n".join(lines)


def report_on(args: EvaluationArguments, contenders: "list[Contender]") -> Step:
    """The report on this evaluation, and on the runs whose adapters took part in it."""
    shown: dict[str, list[str]] = {"runs": [], "trainings": [], "rewards": []}
    adapters = [(c.name, c.source) for c in contenders if c.kind == "adapter"]
    for judge in args.specs():
        folders = adapter_folders(judge.value) if judge.kind == "reward_adapter" else []
        for number, folder in enumerate(folders, start=1):
            adapters.append((judge.name if len(folders) == 1 else f"{judge.name}{number}", folder))

    for name, adapter in adapters:
        around = [folder for folder in list(Path(adapter).parents)[:2] if folder.name]
        run = next((folder for folder in around if (folder / RUN_FILE).is_file()), None)
        method = None if run is None else RunRecord.read(run / RUN_FILE).method
        if method is not None:
            flag = {"ppo": "runs", "reward": "rewards"}.get(method, "trainings")
            shown[flag].append(f"{name}={run}")

    folders = {flag: given or None for flag, given in shown.items()}
    page = {"evaluation": args.output_dir, "output_dir": beside(args.output_dir, "report")}
    return Step("report", {**folders, **page})


if __name__ == "__main__":
    run(main)
