"""Writes docs/licenses.md: the license of every package that is installed, direct or transitive.

    python benchmarks/licenses.py

Run it where constraints.txt is installed (make's environment), and again when a pin changes; a
test says so. A license is what the package's metadata say, as an SPDX expression where they have
one; else it is told by their classifier, or by the license's own text.
"""

import re
import tomllib
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "licenses.md"
REQUIREMENT = re.compile(r"([\w.-]+)\s*(?:\[([^]]*)\])?[^;]*(?:;(.*))?")
EXTRA = re.compile(r"extra\s*==\s*[\"']([^\"']+)")
WORDS = {  # as old metadata put it
    "Apache": "Apache-2.0", "Apache 2.0": "Apache-2.0", "Apache 2.0 License": "Apache-2.0",
    "Apache Software License": "Apache-2.0", "MIT License": "MIT", "ISC License": "ISC",
    "ISC License (ISCL)": "ISC", "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}  # fmt: skip
HEAD = """# Licenses

The toolkit is under Apache-2.0 ([LICENSE](../LICENSE)). It comes without its dependencies: pip
installs them, each under its own license. This is what their metadata say, for the versions of
constraints.txt; `python benchmarks/licenses.py` writes this page. What a wheel brings along (a
wheel of numpy brings OpenBLAS, one of torch for CUDA brings NVIDIA's libraries, under NVIDIA's
terms) has license files in that package.
"""
FOR_USE = """
## What it needs

`pip install ".[label]"` installs these. **Bold** ones are named in pyproject.toml, the others come
with them. None is under the GPL or another license that would ask anything of the toolkit's own
code.
"""
FOR_TESTS = """
## What only its tests and checks need

The extra `dev` adds these; neither toolkit nor recipes import one of them, which a test checks.
krippendorff is under the GPL: one test computes an agreement by it and by the toolkit's own code,
and compares. Nothing that is installed for use has it. axe-playwright-python is under the MIT
license and brings axe-core, which is under the MPL-2.0.
"""


def name_of(text: str) -> str:
    """A package's name as packages compare them."""
    return re.sub(r"[-_.]+", "-", text).lower()


def pins() -> dict[str, str]:
    """Version by name, of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = [line.split("#")[0].strip().split("==") for line in lines if "==" in line]
    return {name_of(name): version for name, version in found}


def declared(extra: str | None = None) -> list[str]:
    """The requirements in pyproject.toml: those for use, with the page's, or those of an extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    return extras[extra] if extra else project["dependencies"] + extras["label"]


def closure(requirements: list[str]) -> dict[str, Distribution]:
    """All that is installed for these, by name."""
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, str]] = set()
    left = [(line, "") for line in requirements]
    while left:
        line, asked = left.pop()
        match = REQUIREMENT.match(line)
        assert match is not None, line
        only = EXTRA.search(match[3] or "")
        if only is not None and only[1] != asked:
            continue
        try:
            package = distribution(match[1])
        except PackageNotFoundError:  # for another system, or another Python
            continue
        name = name_of(match[1])
        found[name] = package
        for extra in ("", *re.findall(r"[\w.-]+", match[2] or "")):
            if (name, extra) not in seen:
                seen.add((name, extra))
                left += [(needed, extra) for needed in package.requires or []]
    return found


def license_of(package: Distribution) -> str:
    """An SPDX expression, or what comes nearest."""
    facts = package.metadata
    if expression := facts.get("License-Expression"):
        return expression
    said = (facts.get("License") or "").strip()
    classifiers = [
        c.split(" :: ")[-1] for c in facts.get_all("Classifier") or [] if c.startswith("License ::")
    ]
    for words in (said, *classifiers):
        if words in WORDS:
            return WORDS[words]
        if re.fullmatch(r"[\w.+-]+( (AND|OR|WITH) [\w.+-]+)*", words) and words != "BSD":
            return words
    files = [f for f in package.files or [] if "dist-info" in str(f) and "LICEN" in f.name.upper()]
    text = " ".join((said + "".join(f.read_text() for f in files)).split())
    if "Redistribution and use in source and binary forms" in text:
        return "BSD-3-Clause" if re.search("neither the names? of", text, re.I) else "BSD-2-Clause"
    if (
        "Permission is hereby granted, free of charge" in text
        and "Software without restric" in text
    ):
        return "MIT"
    return f"{', '.join(classifiers) or 'unknown'} (see its license file)"


def table(packages: dict[str, Distribution], direct: set[str]) -> str:
    """A row a package; bold where it is among ``direct``."""
    versions = pins()
    lines = ["| package | version | license |", "|---|---|---|"]
    for name, package in sorted(packages.items()):
        shown = f"**{name}**" if name in direct else name
        lines.append(f"| {shown} | {versions.get(name, 'any')} | {license_of(package)} |")
    return "\n".join(lines) + "\n"


def page() -> str:
    """The whole page."""
    use, dev = closure(declared()), closure(declared("dev"))
    names = [{name_of(REQUIREMENT.match(line)[1]) for line in declared(e)} for e in (None, "dev")]
    only_dev = {name: package for name, package in dev.items() if name not in use}
    return f"{HEAD}{FOR_USE}\n{table(use, names[0])}{FOR_TESTS}\n{table(only_dev, names[1])}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE}: written")
