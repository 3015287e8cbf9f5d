"""The harnesses of ``fuzzing/`` on this machine: built as OSS-Fuzz would, run one after another, the results kept.

Runs as ``scripts/fuzz-harnesses``. The build is that of OSS-Fuzz, ``fuzzing/build.sh`` on a copy of the checkout, but
for the command that packs a harness (``fuzzing/local``). Atheris has a virtual environment of its own. A corpus grows
from run to run, in ``.cache/fuzzing``; what was found lies there too.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import tomllib
import venv
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import click

from fuzzing import corpus

EVIDENCE = Path("evidence/fuzzing.json")
ROOT = Path(".cache/fuzzing").absolute()
VENV, SRC, OUT, WORK = (ROOT / name for name in ("venv", "src", "out", "work"))
RUNS = 100_000


class BuildError(Exception):
    """The harnesses could not be built."""


def build() -> None:
    """Build all harnesses into ``OUT``.

    Raises:
        BuildError: A step failed.
    """
    for folder in (SRC, OUT, WORK):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    for path in checkout():
        copy = SRC / "vhostuser" / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)
    if not VENV.exists():
        venv.create(VENV, with_pip=True, symlinks=True)
    requirements = tomllib.loads(Path("pyproject.toml").read_text())["project"]["optional-dependencies"]["fuzz"]
    environment = os.environ | {
        "SRC": str(SRC),
        "OUT": str(OUT),
        "WORK": str(WORK),
        "PATH": f"{Path('fuzzing/local').absolute()}:{VENV / 'bin'}:{os.environ['PATH']}",
    }
    environment.pop("VHOSTUSER_REQUIRE_COMPILED", None)
    with (ROOT / "build.log").open("w") as log:
        for command in (["pip3", "install", *requirements], ["bash", f"{SRC}/vhostuser/fuzzing/build.sh"]):
            ran = subprocess.run(command, env=environment, stdout=log, stderr=subprocess.STDOUT, check=False)
            if ran.returncode:
                raise BuildError(f"{command[0]} ended with status {ran.returncode}; see {log.name}")


def checkout() -> Iterator[Path]:
    """The files that a checkout has, those that are not committed yet included."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        capture_output=True,
        text=True,
        check=True,
    )
    yield from (path for path in map(Path, listed.stdout.split("\0")) if path.is_file())


def run(name: str, runs: int) -> dict[str, Any]:
    """Run a harness so many times: what came of it."""
    seeds, grown, log = WORK / name, ROOT / "corpus" / name, ROOT / f"{name}.log"
    with ZipFile(OUT / f"{name}_seed_corpus.zip") as packed:
        packed.extractall(seeds)
    grown.mkdir(parents=True, exist_ok=True)
    options = re.findall(r"^(\w+) = (\w+)$", (OUT / f"{name}.options").read_text(), re.MULTILINE)
    words = [f"-runs={runs}", f"-dict={OUT / name}.dict", f"-artifact_prefix={ROOT}/{name}-"]
    words += [f"-{option}={value}" for option, value in options]
    start = time.monotonic()
    with log.open("w") as file:
        status = subprocess.run(
            [OUT / name, *words, grown, seeds], stdout=file, stderr=subprocess.STDOUT, check=False
        ).returncode
    seconds = time.monotonic() - start
    return {"exit status": status, "seconds": round(seconds, 1), **told(log.read_text(errors="replace"))}


def told(output: str) -> dict[str, Any]:
    """What libFuzzer's output tells of a run; what it does not tell is left out."""
    patterns = {
        "runs": r"^Done (\d+) runs",
        "seed": r"^INFO: Seed: (\d+)",
        "coverage": r"^#\d+\t.* cov: (\d+)",
        "features": r"^#\d+\t.* ft: (\d+)",
        "corpus": r"^#\d+\t.* corp: (\d+)",
        "exec/s": r"^#\d+\t.* exec/s: (\d+)",
        "rss MB": r"^#\d+\t.* rss: (\d+)Mb",
    }
    found: dict[str, Any] = {
        name: int(numbers[-1])
        for name, pattern in patterns.items()
        if (numbers := re.findall(pattern, output, re.MULTILINE))
    }
    if finding := re.search(r"Test unit written to (\S+)", output):
        error = re.search(r"^(?:\w+(?:Error|Exception)\b|SUMMARY).*", output, re.MULTILINE)
        found |= {"finding": finding[1], "error": error[0] if error else ""}
    return found


def done(result: dict[str, Any], runs: int) -> bool:
    """Whether a harness ran so many times and found nothing."""
    return bool(result["exit status"] == 0 and result.get("runs", 0) >= runs)


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(corpus.names()))
@click.option("--runs", type=click.IntRange(min=1), default=RUNS, show_default=True, help="How often each one runs.")
def main(names: tuple[str, ...], runs: int) -> None:
    """Build the harnesses, run those named or all, and keep the evidence."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    evidence: dict[str, Any] = {
        "run": "fuzzing",
        "what": f"Each harness with Atheris, {runs} times: nothing but what is documented is raised.",
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip(),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }
    start = time.monotonic()
    try:
        build()
    except BuildError as error:
        raise click.ClickException(str(error)) from error
    evidence["seconds to build"] = round(time.monotonic() - start, 1)
    results = evidence["result"] = {}
    EVIDENCE.parent.mkdir(exist_ok=True)
    for name in names or corpus.names():
        results[name] = run(name, runs)
        click.echo(f"{name}: {json.dumps(results[name])}")
        evidence["ok"] = all(done(result, runs) for result in results.values())
        EVIDENCE.write_text(json.dumps(evidence, indent=2) + "\n")  # each time: the next one may take long
    sys.exit(0 if evidence["ok"] else 1)


if __name__ == "__main__":
    main()
