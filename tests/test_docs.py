"""The documents: their links lead somewhere, and their commands are commands.

Code that a page shows in a block that begins with ```` ```bash run ```` or ```` ```python run ````
is run, the blocks of a page one after the other in one empty folder.
"""

import importlib
import importlib.util
import os
import re
import shlex
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from tests.forks import Commands

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [README, *filter(Path.is_file, [ROOT / "CONTRIBUTING.md"]), *DOCS]
RECIPES = sorted(path for path in (ROOT / "recipes").glob("*.py") if path.stem != "__init__")
CONSOLE = importlib.util.find_spec("toolkit.console") is not None
BESIDE_RECIPES = {"completions", "--help", "-h", "--version"}  # what else `preftune` answers to
SECONDS = 900  # for all blocks of a page

# What takes half a minute more and teaches no test anything (the full demo does it all in CI).
SMALLER = {
    "getting-started.md": {
        "--eval_rows 50": "--eval_rows 50 --check_reload false",
        "--total_episodes 640": "--total_episodes 192",
    }
}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: what stands behind its fence, its first line's number, its text."""

    info: str
    line: int
    text: str


def fenced(page: str) -> Iterator[Block]:
    """The fenced blocks of a page."""
    lines = page.split("\n")
    start: int | None = None
    mark = info = ""
    for number, line in enumerate(lines, start=1):
        found = re.match(r" {0,3}(`{3,}|~{3,})\s*(.*)$", line)
        if start is None and found:
            mark, info, start = found[1], found[2].strip(), number
        elif start is not None and found and found[1].startswith(mark) and not found[2]:
            yield Block(info, start + 1, "\n".join(lines[start : number - 1]))
            start = None


def prose(page: str) -> str:
    """A page without its blocks and its code within lines; every line keeps its number."""
    lines = page.split("\n")
    for block in fenced(page):
        count = block.text.count("\n") + 1
        lines[block.line - 2 : block.line + count] = [""] * (count + 2)
    return re.sub(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", "", "\n".join(lines))


def anchors(page: str) -> set[str]:
    """The names of a page's headings, by GitHub's rule.

    Letters are lowered, what is no letter, digit, space, dash or underscore goes, spaces become
    dashes, and a name that is there already gets a number.
    """
    lines = page.split("\n")
    for block in fenced(page):
        count = block.text.count("\n") + 1
        lines[block.line - 2 : block.line + count] = [""] * (count + 2)

    names: set[str] = set()
    for line in lines:
        found = re.match(r" {0,3}#{1,6}\s+(.*?)\s*#*$", line)
        if found is None:
            continue
        words = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", found[1])  # a link is its text
        name = re.sub(r"[^\w\- ]", "", words.replace("*", "").lower()).replace(" ", "-")
        number = 1
        unique = name
        while unique in names:
            unique, number = f"{name}-{number}", number + 1
        names.add(unique)
    return names | set(re.findall(r"<a (?:name|id)=\"([^\"]+)\"", page))


def anchors_of(path: Path) -> set[str]:
    return anchors(path.read_text(encoding="utf-8"))


def links(page: str) -> Iterator[tuple[int, str]]:
    """The targets of a page's links and pictures, each with its line."""
    text = prose(page)
    inline = r"\]\(\s*<?([^)\s>]+)>?(?:\s+[\"'][^\"']*[\"'])?\s*\)"
    for pattern in (
        inline,
        r"^ {0,3}\[[^\]]+\]:\s*(\S+)",
        r"<(?:img|a)\b[^>]*(?:src|href)=\"([^\"]+)",
    ):
        for found in re.finditer(pattern, text, flags=re.M):
            yield text.count("\n", 0, found.start()) + 1, found[1]


def broken_links(path: Path) -> list[str]:
    """A page's links to files that are not there, or to headings that are not in them."""
    broken = []
    page = path.read_text(encoding="utf-8")
    for line, target in links(page):
        if re.match(r"[a-z][a-z0-9+.-]*:", target):
            continue
        name, _, anchor = target.partition("#")
        there = path if not name else (path.parent / name)
        if not there.exists():
            broken.append(f"{path.name}:{line}: {target}: there is no such file")
        elif anchor and there.suffix == ".md" and anchor not in anchors_of(there):
            broken.append(f"{path.name}:{line}: {target}: there is no such heading")
    return broken


def commands(text: str) -> Iterator[tuple[int, list[str]]]:
    """The commands in a text, one list of words each, that call a recipe; with their line.

    Lines that end in a backslash are joined, comments and prompts (``$``) are left out.
    """
    lines = text.split("\n")
    number = 0
    while number < len(lines):
        first, line = number + 1, lines[number]
        while line.rstrip().endswith("\\") and number + 1 < len(lines):
            number += 1
            line = line.rstrip().rstrip("\\") + " " + lines[number].strip()
        number += 1
        if not re.search(r"\bpreftune\s|recipes/\w+\.py", line):
            continue

        lexer = shlex.shlex(line.strip().removeprefix("$ "), posix=True, punctuation_chars=True)
        lexer.commenters = "#"
        lexer.wordchars += "{}[],:@%!^+$"  # of words such as NAME=KIND:VALUE
        words: list[str] = []
        for word in [*lexer, ";"]:
            if re.fullmatch(r"[;&|()<>]+", word):
                if words:
                    yield first, words
                words = []
            else:
                words.append(word)


def called(words: list[str]) -> tuple[str, list[str]] | None:
    """The recipe that a command calls, and the words that it passes; None if it calls none."""
    for i, word in enumerate(words):
        if word == "preftune" or word.endswith("/preftune"):
            rest = words[i + 1 :]
            if not rest or rest[0] in BESIDE_RECIPES:
                return None
            return rest[0].replace("-", "_"), rest[1:]
        if found := re.fullmatch(r"(?:.*/)?recipes/(\w+)\.py", word):
            runs = i > 0 and (re.search(r"python[\d.]*$", words[i - 1]) or "launch" in words[:i]
                              or "torchrun" in words[:i])  # fmt: skip
            return (found[1], words[i + 1 :]) if runs else None
    return None


@cache
def known_flags(recipe: str) -> frozenset[str]:
    """The flags that a recipe's parser knows."""
    from toolkit import cli

    return frozenset(cli.flag_names(cli.recipe(recipe).main))


def wrong_commands(text: str, name: str, first_line: int = 1) -> list[str]:
    """What a text's commands ask for that there is not: recipes, flags and embedded files."""
    wrong = []
    for line, words in commands(text):
        found = called(words)
        if found is None:
            continue
        place = f"{name}:{first_line + line - 1}"
        recipe, passed = found
        if not (ROOT / "recipes" / f"{recipe}.py").is_file():
            wrong.append(f"{place}: there is no recipe {recipe}")
            continue
        for word in passed:
            flag = word.partition("=")[0]
            if re.fullmatch(r"--[A-Za-z]\w*(-\w+)*", flag) and flag not in known_flags(recipe):
                wrong.append(f"{place}: {recipe} has no flag {flag}")
            for file in re.findall(r"\bdemo:([\w./-]+)", word):
                places = ROOT / "data" / file, ROOT / "recipes/configs/demo" / file
                if not any(path.exists() for path in places):
                    wrong.append(f"{place}: no file comes with the toolkit as demo:{file}")
            for file in re.findall(r"(?:^|[=:])(recipes/[\w./-]+)", word):
                if not (ROOT / file).exists():
                    wrong.append(f"{place}: there is no {file}")
    return wrong


def wrong_in_page(path: Path) -> list[str]:
    """What is wrong with the commands in a page's blocks."""
    page = path.read_text(encoding="utf-8")
    wrong = []
    for block in fenced(page):
        if block.info.split(" ")[0] in ("bash", "sh", "shell", "console", ""):
            wrong += wrong_commands(block.text, path.name, block.line)
    return wrong


def to_run(path: Path) -> list[Block]:
    """The blocks of a page that are run."""
    blocks = fenced(path.read_text(encoding="utf-8"))
    return [block for block in blocks if block.info.split() in (["bash", "run"], ["python", "run"])]


def run_page(path: Path, folder: Path, preftune: Commands) -> None:
    """Run a page's blocks in order in ``folder``; an AssertionError shows the one that fails."""
    places = preftune.folder, Path(sys.executable).parent, os.environ["PATH"]
    env = os.environ | {"PATH": os.pathsep.join(map(str, places)), "PYTHONPATH": str(ROOT)}
    smaller = dict(SMALLER.get(path.name, {}))
    for block in to_run(path):
        python = block.info.startswith("python")
        words = [sys.executable, "-c"] if python else ["bash", "-euo", "pipefail", "-c"]
        text = block.text
        for given in [words for words in smaller if words in text]:
            text = text.replace(given, smaller.pop(given))
        code, said = preftune.run([*words, text], folder, env, SECONDS)
        assert code == 0, f"{path.name}:{block.line}: exit code {code}\n{text}\n{said[-6000:]}"
    assert not smaller  # the page has other numbers: change SMALLER


@pytest.fixture
def preftune(tmp_path: Path) -> Commands:
    """The console command of this checkout, for a page's blocks."""
    for name in ("matplotlib.pyplot", "peft", "trl.trainer.reward_trainer"):
        importlib.import_module(name)  # a fork would otherwise import it again

    folder = tmp_path / "tools"
    folder.mkdir()
    return Commands(folder)


# The pages of this project.


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_link_leads_to_a_file_or_a_heading(path: Path) -> None:
    assert broken_links(path) == []


def test_the_readme_is_short_and_leads_to_every_page() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    linked = {(ROOT / target.partition("#")[0]).resolve() for _, target in links(text)}
    assert [str(page.relative_to(ROOT)) for page in DOCS if page.resolve() not in linked] == []


@pytest.mark.slow  # asks every recipe for its flags
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_the_commands_of_a_page_are_there(path: Path) -> None:
    assert wrong_in_page(path) == []


@pytest.mark.slow  # asks every recipe for its flags
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_commands_of_a_recipes_docstring_are_there(path: Path) -> None:
    found = re.match(r'[rR]?"""(.*?)"""', path.read_text(encoding="utf-8"), flags=re.S)
    assert found is not None
    lines = found[1].replace("\\\\", "\\").split("\n")
    text = "\n".join(line if line.startswith(" ") else "" for line in lines)  # the rest is prose
    assert any(called(words) for _, words in commands(text)), "it shows no command"
    assert wrong_commands(text, path.name) == []


@pytest.mark.slow  # asks every recipe for its flags
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_has_a_help_text(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """argparse formats each flag's help: a lone percent sign in one would be an error."""
    from toolkit import cli

    with pytest.raises(SystemExit) as ended:
        cli.call(cli.recipe(path.stem).main, ["--help"])
    assert ended.value.code == 0 and "--config FILE" in capsys.readouterr().out


@pytest.mark.slow  # runs the pages' commands
@pytest.mark.parametrize("path", list(filter(to_run, PAGES)), ids=lambda path: path.name)
def test_the_blocks_of_a_page_run(path: Path, tmp_path: Path, preftune: Commands) -> None:
    if not CONSOLE and any("preftune" in block.text for block in to_run(path)):
        pytest.skip("there is no toolkit/console.py yet")
    folder = tmp_path / "empty"
    folder.mkdir()
    run_page(path, folder, preftune)


def test_the_example_of_an_own_method_is_whole_in_forty_lines() -> None:
    (block,) = [b for b in to_run(ROOT / "docs/methods.md") if b.info == "python run"]
    assert len([line for line in block.text.split("\n") if line]) <= 40
    assert "algorithm=" in block.text and "def credit" in block.text and "def loss" in block.text


# Pages made here, which show that what is wrong is seen.

New = Callable[[str], Path]


@pytest.fixture
def new_page(tmp_path: Path) -> New:
    """Writes a page with this text, beside one that has the headings `One` and `Two` twice."""

    def write(text: str) -> Path:
        (tmp_path / "other.md").write_text(
            "# One\n\n## Two `--x`, *and* more\n\n## Two\n\n## Two\n"
        )
        (tmp_path / "picture.svg").write_text("<svg/>")
        path = tmp_path / "page.md"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize(
    "text",
    [
        "[a](other.md) ![b](picture.svg) [c](https://example.org/none)",
        "[a](#here-it-is)\n\n## Here it is",
        "[a](other.md#one) [b](other.md#two---x-and-more) [c](other.md#two) [d](other.md#two-1)",
        "`[not](a-link.md)` and\n\n```text\n[nor](this.md)\n# no heading\n```\n",
        '<img src="picture.svg" width="800"> and [a]\n\n[a]: other.md\n',
    ],
)
def test_links_that_lead_somewhere_pass(new_page: New, text: str) -> None:
    assert broken_links(new_page(text)) == []


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("\n[a](gone.md)", 2),
        ("![a](gone.png)", 1),
        ("[a](other.md#three)", 1),
        ("[a](other.md#two-2)", 1),  # there are two of that name alone
        ("[a](#one)", 1),
        ("```\n# one\n```\n[a](#one)", 4),
        ('text\n<img src="gone.svg">', 2),
        ("[a]\n\n[a]: gone.md", 3),
    ],
)
def test_links_that_lead_nowhere_are_named_with_their_line(
    new_page: New, text: str, line: int
) -> None:
    (found,) = broken_links(new_page(text))
    assert found.startswith(f"page.md:{line}: ")


def test_anchors_follow_githubs_rule() -> None:
    page = "# Où est [the](x.md) KL? (yes & no)\n## `ppo.py`: a_b *c*\n## 1. x\n## 1. x\n"
    assert anchors(page) == {"où-est-the-kl-yes--no", "ppopy-a_b-c", "1-x", "1-x-1"}


def test_commands_are_joined_and_split_as_a_shell_would() -> None:
    text = (
        "cd x && preftune sample --limit 3 \\\n    --output out.jsonl  # a few\n"
        "# preftune gone --x\n"
        "HF_HUB_OFFLINE=1 accelerate launch --quiet recipes/ppo.py --kl_target 6 | tail -1\n"
        "$ .venv/bin/python recipes/label.py --serve\n"
        "python recipes/evaluate.py --judges 'rm=reward_adapter:a b' at=ppo/checkpoint-*\n"
        "cp recipes/configs/demo/ppo.yaml recipes/mine.py .\npreftune --help\n"
    )
    found = [(line, called(words)) for line, words in commands(text)]
    assert [(line, call) for line, call in found if call] == [
        (1, ("sample", ["--limit", "3", "--output", "out.jsonl"])),
        (4, ("ppo", ["--kl_target", "6"])),
        (5, ("label", ["--serve"])),
        (6, ("evaluate", ["--judges", "rm=reward_adapter:a b", "at=ppo/checkpoint-*"])),
    ]


@pytest.mark.slow  # asks recipes for their flags
def test_wrong_recipes_flags_and_files_are_named_with_their_line(new_page: New) -> None:
    path = new_page(
        "# A page\n\n```bash\npreftune sample --prompts demo:prompts.jsonl --limit 5 \\\n"
        "    --response-length 8\n"
        "preftune reward-report --run outputs/reward --lexicon demo:lexicon.txt\n```\n\n"
        "```bash\npreftune samples --limit 5\npreftune ppo --kl_targets=6\n"
        "python recipes/ppo.py --config demo:pppo.yaml --kl_target -1\n"
        "python recipes/ppo.py --config recipes/configs/demo/pppo.yaml\n```\n\n"
        "```python\n# preftune nothing\n```\n"
    )
    assert wrong_in_page(path) == [
        "page.md:10: there is no recipe samples",
        "page.md:11: ppo has no flag --kl_targets",
        "page.md:12: no file comes with the toolkit as demo:pppo.yaml",
        "page.md:13: there is no recipes/configs/demo/pppo.yaml",
    ]


def test_blocks_are_run_in_order_in_one_folder_and_a_failure_is_shown(
    new_page: New, tmp_path: Path, preftune: Commands
) -> None:
    good = new_page(
        "```bash run\nprintf 3 > count\n```\n\n```bash\nexit 7\n```\n\n"
        "```python run\nassert open('count').read() == '3'\n```\n"
    )
    run_page(good, tmp_path, preftune)
    bad = new_page("text\n\n```bash run\ntest -f count\nfalse | true\necho not reached\n```\n")
    with pytest.raises(AssertionError, match=r"page.md:4: exit code 1"):
        run_page(bad, tmp_path, preftune)


def test_a_blocks_commands_have_its_folder_its_streams_and_its_exit_code(
    new_page: New, tmp_path: Path, preftune: Commands
) -> None:
    mistake = "preftune convert --input nowhere.jsonl --output x.jsonl"
    page = new_page(
        f"```bash run\nmkdir in && cd in\npreftune --version > version\n"
        f"{mistake} 2> said || test $? -eq 2\n```\n\n```bash run\n{mistake}\n```\n"
    )
    with pytest.raises(AssertionError, match=r"(?s)page.md:8: exit code 2.*error: .*nowhere.jsonl"):
        run_page(page, tmp_path, preftune)
    assert preftune.calls == 3
    assert "." in (tmp_path / "in/version").read_text()
    assert "error: --input: nowhere.jsonl" in (tmp_path / "in/said").read_text()


# Pictures.


def test_the_flow_is_the_one_that_is_drawn_and_every_picture_is_small() -> None:
    spec = importlib.util.spec_from_file_location("pictures", ROOT / "docs/pictures/make.py")
    assert spec is not None and spec.loader is not None
    pictures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pictures)

    drawn = (ROOT / "docs/pictures/flow.svg").read_text(encoding="utf-8")
    assert drawn == pictures.flow(), "run make pictures"
    assert ElementTree.fromstring(drawn).attrib["viewBox"].split()[2] == "800"
    for path in (ROOT / "docs/pictures").glob("*.[ps][nv]g"):
        assert path.stat().st_size < 250_000, path


# Whom to cite.


def test_the_citation_has_what_its_format_requires_and_every_paper_that_the_code_names() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert citation["cff-version"] == "1.2.0" and citation["message"]
    assert citation["authors"] == [{"name": "The preference-toolkit authors"}]
    shared = "version", "license"
    assert citation["title"] == project["name"]
    assert [citation[name] for name in shared] == [project[name] for name in shared]

    cited = set()
    for reference in citation["references"]:
        assert {"type", "title", "authors"} <= set(reference)  # required of each
        for author in reference["authors"]:
            assert set(author) in ({"family-names", "given-names"}, {"name"})
        (identifier,) = reference["identifiers"]
        assert identifier["type"] == "other"
        cited.add(identifier["value"].removeprefix("arXiv:"))

    named = {
        paper
        for path in (ROOT / "toolkit").rglob("*.py")
        for paper in re.findall(
            r"(?:arXiv:?\s+|Paper\(\s*\")(\d{4}\.\d{4,5})", path.read_text(encoding="utf-8")
        )
    }
    assert len(named) > 10 and named == cited
