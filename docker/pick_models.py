"""Copies the models of some pipelines to a folder: `pick_models.py MODELS PIPELINES TO NAME...`, in an image's build.

A model that only other pipelines name stays out; one that none names (an operator's own) goes where models are used.
"""

import pathlib
import re
import shutil
import sys

import yaml


def main(models: pathlib.Path, pipelines: pathlib.Path, to: pathlib.Path, mine: set[str]) -> None:
    """Pick, and write what was picked."""
    declared = yaml.safe_load((models / "models.yaml").read_text()) or {}
    named = {name: pipelines_that_name(name, pipelines) for name in declared}
    infers = any(by & mine for by in named.values())
    picked = {name: entry for name, entry in declared.items() if named[name] & mine or (infers and not named[name])}
    to.mkdir(parents=True)
    (to / "models.yaml").write_text(yaml.safe_dump(picked, sort_keys=False, allow_unicode=True))
    for file in {word for entry in picked.values() for word in words(entry) if (models / word).is_file()}:
        shutil.copy(models / file, to / file)


def pipelines_that_name(model: str, pipelines: pathlib.Path) -> set[str]:
    """The folders in which some file says the model's name."""
    said = re.compile(rf"(?<![\w-]){re.escape(model)}(?![\w-])")
    files = [file for kind in ("py", "yaml", "json") for file in pipelines.glob(f"*/**/*.{kind}")]
    return {file.relative_to(pipelines).parts[0] for file in files if said.search(file.read_text())}


def words(entry: object) -> list[str]:
    """Every text in an entry: some are names of files."""
    if isinstance(entry, dict):
        return [word for value in entry.values() for word in words(value)]
    return [entry] if isinstance(entry, str) and "/" not in entry and entry else []


if __name__ == "__main__":
    main(*map(pathlib.Path, sys.argv[1:4]), set(sys.argv[4:]))
