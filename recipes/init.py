"""Write a project file: the settings of all stages, once.

    preftune init --model_name_or_path your-org/your-model --prompts prompts.txt
    preftune init --model_name_or_path your-org/your-model --comparisons picks.csv

This asks nothing. From prompts it makes a project in which people (or a word list) pick among the
model's completions; from comparisons one that learns from these. The lengths and the end token come
with the template. The learning rates depend on the model's size, which its config tells. Read the
file, change what you like, and run it. You should see the name of the file.
"""

from toolkit.cli import run

from toolkit.data.files import write_text
from toolkit.data.outputs import claim_output
from toolkit.next_step import project_step, say_next, wrote
from toolkit.pipeline.templates import InitArguments


def main(args: InitArguments) -> None:
    from toolkit.pipeline.templates import (
        guidelines_file,
        has_chat_template,
        parameters_of,
        project_text,
        template_of,
    )

    claim_output(args.output, args.overwrite, "output")
    parameters = parameters_of(args.model_name_or_path)
    if parameters is None:
        print(
            f"note: {args.model_name_or_path}: its config cannot be read now, so the learning "
            "rates are those for a model of 1 to 6 billion parameters"
        )
    chat = args.template == "auto" and has_chat_template(args.model_name_or_path)
    text, template = project_text(args, parameters, chat), template_of(args, chat)
    if (told := guidelines_file(args, template)) is not None:
        claim_output(told, args.overwrite, "output")
        write_text(told, template.guidelines)
        wrote(told, "what people are told to look for; make it your own")
    write_text(args.output, text)
    wrote(args.output, "a project file; read it, and change what you like")
    say_next(project_step(args.output))


if __name__ == "__main__":
    run(main)
