#!/usr/bin/env python3
"""Writes the module map of docs/architecture.md from the first line of every module's documentation; `--check` only compares."""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- module map: scripts/module-map.py writes this -->", "<!-- end of module map -->"
PARTS = [
    ("dataplane/src", "crate `meshdp`: the core (`proto`) and the engine", "*.rs"),
    ("relay/src", "`edgelink-relay`", "*.rs"),
    ("node/src", "`edgelink`", "*.rs"),
    ("bindings/src", "the Python package `meshdp`", "*.rs"),
    ("fuzz/sim/src", "a whole mesh under a virtual clock", "*.rs"),
    ("benches/src", "benchmarks", "*.rs"),
    ("controller-py/edgelink_controller", "`edgelink-controller` and `edgelink-ctl`", "*.py"),
    ("e2e", "the lab of the demo and the end-to-end tests", "*.py"),
]


# In every domain of the controller these hold what their names say.
ALIKE = {"endpoints.py", "models.py", "repository.py", "schemas.py", "service.py", "events.py", "permissions.py"}


def first_line(path: pathlib.Path) -> str:
    text = path.read_text()
    if path.suffix == ".py":
        found = re.match(r'(?:#!.*\n)?"""(.+?)(?:"""|\n)', text)
    else:
        found = re.match(r"//! (.+)", text)
    if not found:
        sys.exit(f"{path.relative_to(ROOT)}: its first line does not say what it is")
    return re.sub(r"\[`(.+?)`\]", r"`\1`", found[1]).replace("|", "\\|").strip()


def table() -> str:
    out = []
    for folder, title, pattern in PARTS:
        files = [
            path
            for path in sorted((ROOT / folder).rglob(pattern))
            if not {"tests", "migrations", "__pycache__"} & set(path.relative_to(ROOT).parts)
            and path.name not in {"tests.rs", "conftest.py", "__main__.py"} | ALIKE
            and path.stat().st_size
        ]
        if not files:
            continue
        out += [f"### `{folder}`: {title}", "", "| module | what it is |", "|---|---|"]
        out += [f"| `{path.relative_to(ROOT)}` | {first_line(path)} |" for path in files]
        out.append("")
    return "\n".join(out)


def main() -> int:
    page = PAGE.read_text()
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    made = f"{head}{BEGIN}\n\n{table()}\n{END}{tail}"
    if "--check" in sys.argv:
        if made != page:
            print("docs/architecture.md: the module map is not the tree's; run scripts/module-map.py", file=sys.stderr)
            return 1
        return 0
    PAGE.write_text(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
