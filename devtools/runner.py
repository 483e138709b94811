"""Run a workflow: on a server that is up, in-process on the CPU, or on a server of our own."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from devtools import cache, environment, host, process, serving
from devtools.cache import SetupError
from devtools.outcome import Result
from devtools.progress import Reporter
from devtools.prompt import Added, InvalidPrompt, Prompt, check_added
from devtools.remote import Client

OK, FAILED, INVALID, NODE_FAILED, INTERRUPTED = 0, 1, 2, 3, process.INTERRUPTED


@dataclass(frozen=True)
class Job:
    """A prompt and the folders it reads from and writes to."""

    prompt: Prompt
    output: Path
    models: tuple[Path, ...] = ()
    input: Path | None = None
    offline: bool = False
    added: Sequence[Added] = ()


@dataclass(frozen=True)
class Outcome:
    """The exit code of a run, and the files it made on this machine."""

    code: int
    files: list[Path] = field(default_factory=list)


def default_base() -> Path:
    """The base directory of hosts of our own: models, input, temporary and user files."""
    return cache.root() / "base"


def run_here(job: Job, python: Path, tree: Path) -> Outcome:
    """Run `job` on the ComfyUI in `tree`: in-process without a GPU, else on its real server.

    With a GPU the server it is, because only main.py sets memory up as users have it.
    """
    job.output.mkdir(parents=True, exist_ok=True)
    if not environment.sees_cuda(python):
        return _run_in_process(job, python, tree)
    python = environment.choose(
        (environment.run_group(), environment.SERVER), job.offline, keep_current=True
    )
    log = default_base() / "server.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    server = serving.Server(
        python,
        tree,
        default_base(),
        serving.free_port(),
        cpu=False,
        log=log,
        offline=job.offline,
        output=job.output,
        input=job.input,
        models=models_folders(tree, job.models),
    )
    with server:
        code, result = _follow(Client(server.url), job.prompt, job.added)
    if result is None:
        return Outcome(code)
    # Temporary files (previews) have ended with the server.
    files = [job.output / file.relative for file in result.files if file.kind == "output"]
    print(*files, sep="\n")
    return Outcome(code, files)


def run_on(url: str, prompt: Prompt, output: Path | None, added: Sequence[Added] = ()) -> Outcome:
    """Run `prompt` on the server at `url`; its files are fetched if `output` is given."""
    client = Client(url)
    code, result = _follow(client, prompt, added)
    if result is None:
        return Outcome(code)
    files = []
    for file in result.files:
        if output is None:
            print(f"{file.kind}: {file.relative}")
        else:
            files.append(client.download(file, output))
            print(files[-1].absolute())
    return Outcome(code, files)


def _follow(client: Client, prompt: Prompt, added: Sequence[Added]) -> tuple[int, Result | None]:
    """Run on a server, say what went wrong, and give the result if nothing did."""
    check_added(prompt, added, client.inputs)
    reporter = Reporter(prompt)
    try:
        result = client.run(prompt, reporter)
    except InvalidPrompt as error:
        print(error, file=sys.stderr)
        return INVALID, None
    finally:
        reporter.close()
    if not result.success:
        print(result.describe(), file=sys.stderr)
        return (INTERRUPTED if result.interrupted else NODE_FAILED), None
    return OK, result


def _run_in_process(job: Job, python: Path, tree: Path) -> Outcome:
    with tempfile.TemporaryDirectory(prefix="skyreels-v2-") as scratch:
        file, report = Path(scratch) / "prompt.json", Path(scratch) / "files.json"
        file.write_text(json.dumps(job.prompt), encoding="utf-8")
        script = Path(__file__).with_name("inprocess.py")
        command: list[str | Path] = [python, script, "--host", tree, "--workdir", default_base()]
        command += ["--prompt", file, "--output", job.output, "--report", report]
        for folder in models_folders(tree, job.models):
            command += ["--models", folder]
        command += ["--input", job.input] if job.input else []
        command += ["--added", json.dumps(job.added)]
        code = process.wait(process.start(command, job.offline))
        files = json.loads(report.read_text(encoding="utf-8")) if report.is_file() else []
    return Outcome(code, [Path(name) for name in files])


def models_folders(tree: Path, given: Sequence[Path]) -> list[Path]:
    """The models folders to add to a host of ours, the last one searched first."""
    own = tree / "models"
    # A person's own ComfyUI has the person's models; a fetched tree has none.
    return ([own] if own.is_dir() and not host.is_fetched(tree) else []) + list(given)


def checked_folder(path: Path | None, option: str) -> Path | None:
    """`path` made absolute; SetupError when it was given but is no folder."""
    if path is None:
        return None
    if not path.is_dir():
        raise SetupError(f"{option} {path}: there is no such folder")
    return path.absolute()
