"""SkyReels-V2 for ComfyUI, from nothing: see it make a film, test it, run workflows, open its page.

    python3 dev.py demo                  make a small film with the toy weights and judge it
    python3 dev.py test [PYTEST ARGS]    lint, types and tests
    python3 dev.py run WORKFLOW.json     run an API-format workflow
    python3 dev.py host                  the real ComfyUI with this pack in it

What is missing (Python packages, ComfyUI itself) is fetched once into the user's cache folder, or
SKYREELS_V2_CACHE; nothing else on the machine is touched. COMFYUI_PATH or --host names a ComfyUI
of yours, SKYREELS_V2_COMFYUI or --host-version another version to fetch (0.26.0 to 0.33.0).
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(os.path.abspath(__file__)).parent
MINIMUM_PYTHON = (3, 10)
DEMO_WORKFLOW = ROOT / "workflows" / "api" / "storyboard.json"

if sys.version_info < MINIMUM_PYTHON:
    sys.exit(f"dev.py needs Python 3.10 or newer, this is {sys.version.split()[0]}")

# No bytecode between the sources; child processes write theirs to the cache.
sys.dont_write_bytecode = True

from devtools import browser, cache, checks, environment, host, process, prompt, runner, serving  # noqa: E402


def demo(options: argparse.Namespace) -> int:
    """Run the main job on the toy weights, and let the toy world's instruments judge the film."""
    output = ROOT / "output"
    python, tree = _environment_and_host(options)
    job = runner.Job(prompt.load(DEMO_WORKFLOW), output, offline=options.offline)
    done = runner.run_here(job, python, tree)
    if done.code:
        return done.code
    films = [file for file in done.files if file.suffix == ".mp4"]
    if not films:
        raise cache.SetupError(f"{DEMO_WORKFLOW} made no film, only {done.files}")
    sheet = films[0].with_suffix(".png")
    measure: list[str | Path] = [python, ROOT / "toy" / "measure.py", films[0]]
    measure += ["--workflow", DEMO_WORKFLOW, "--sheet", sheet]
    code = process.wait(process.start(measure, options.offline))
    print(f"\nfilm:          {films[0]}\ncontact sheet: {sheet}")
    return code


def test(options: argparse.Namespace) -> int:
    """Run every check, whatever the one before said; 1 if any failed."""
    seeds = checks.Seeds.draw(options.hash_seed, options.order_seed)
    python, tree = _environment_and_host(
        options, environment.SERVER, environment.TEST, keep_current=False
    )
    groups = (environment.run_group(tree), environment.SERVER, environment.TEST)
    if browser.find_chromium():
        page = environment.page_group(tree)
        there = environment.is_installed(environment.folder_of(groups[0]), page)
        if there or not options.offline:
            python = environment.choose((*groups, page), options.offline, keep_current=False)
    variables = process.child_environment(options.offline) | {host.PATH_VARIABLE: str(tree)}
    return checks.run(python, ROOT, seeds, variables, options.pytest_arguments, options.fast)


def run(options: argparse.Namespace) -> int:
    """Run one workflow and print where its output lies."""
    content = prompt.load(options.workflow)
    added = prompt.assign(content, options.set)
    output = options.output.absolute() if options.output else None
    models = runner.checked_folder(options.models, "--models")
    given = runner.checked_folder(options.input, "--input")
    if options.host and options.host.startswith(("http://", "https://")):
        if models or given:
            raise cache.SetupError("--models and --input cannot change a server that already runs")
        return runner.run_on(options.host, content, output, added).code
    python, tree = _environment_and_host(options)
    output = output or runner.default_base() / "output"
    folders = (models,) if models else ()
    job = runner.Job(content, output, folders, given, options.offline, added)
    return runner.run_here(job, python, tree).code


def serve(options: argparse.Namespace) -> int:
    """Start ComfyUI's own server and page with this pack in it, until Ctrl-C."""
    port = serving.free_port(options.port)
    _, tree = _environment_and_host(options, environment.SERVER)
    groups = (environment.run_group(tree), environment.SERVER, environment.page_group(tree))
    python = environment.choose(groups, options.offline)
    cpu = not environment.sees_cuda(python)
    base = runner.default_base()
    models = runner.checked_folder(options.models, "--models")
    server = serving.Server(
        python,
        tree,
        base,
        port,
        cpu,
        page=True,
        offline=options.offline,
        models=runner.models_folders(tree, (models,) if models else ()),
    )
    with server:
        print(f"\nComfyUI with this pack: {server.url}\nCtrl-C stops it.", flush=True)
        code = server.wait()
    # Ctrl-C is how it is meant to end.
    return 0 if code == process.INTERRUPTED else code


def _environment_and_host(
    options: argparse.Namespace, *groups: environment.Group, keep_current: bool = True
) -> tuple[Path, Path]:
    usual = environment.run_group()
    python = environment.choose((usual, *groups), options.offline, keep_current)
    tree = host.locate(options.host, ROOT, python, options.offline, options.host_version)
    own = environment.run_group(tree)
    if own != usual:
        python = environment.choose((own, *groups), options.offline, keep_current)
    return python, tree


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, action: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name, help=action.__doc__, description=action.__doc__, allow_abbrev=False
        )
        added.set_defaults(action=action, host=None, host_version=None)
        added.add_argument("--offline", action="store_true", help="fetch nothing, fail instead")
        return added

    def add_host(to: argparse.ArgumentParser, also: str = "") -> None:
        which = to.add_mutually_exclusive_group()
        which.add_argument("--host", metavar="PATH", help=f"a ComfyUI source tree{also}")
        known = ", ".join(host.RELEASES)
        which.add_argument("--host-version", metavar="X", help=f"a ComfyUI to fetch: {known}")

    add_host(command("demo", demo))
    testing = command("test", test)
    add_host(testing)
    testing.add_argument("--fast", action="store_true", help="leave out hosts and slow tests")
    for name, what in (("--hash-seed", "hashes of strings"), ("--order-seed", "order of tests")):
        testing.add_argument(name, type=int, metavar="N", help=f"the {what}; default: drawn")
    running = command("run", run)
    add_host(running, ", or the URL of a running ComfyUI")
    running.add_argument("workflow", type=Path, help="an API-format prompt (workflows/api/*)")
    running.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NODE.INPUT=VALUE",
        help="change an input; NODE is an id, a title, or a class that occurs once",
    )
    running.add_argument("--output", type=Path, metavar="DIR", help="where output files go")
    running.add_argument(
        "--input", type=Path, metavar="DIR", help="where LoadImage and similar nodes read"
    )
    serving_parser = command("host", serve)
    add_host(serving_parser)
    serving_parser.add_argument("--port", type=int, help="default: any free port")
    for one in (running, serving_parser):
        one.add_argument("--models", type=Path, metavar="DIR", help="a models folder to add")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run one command; its exit code.

    0 fine; 1 something is missing or a check failed; 2 an invalid prompt; 3 a failed node; 130
    interrupted.
    """
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command != "test":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    options.pytest_arguments = rest
    for stream in (sys.stdout, sys.stderr):
        # A console that lacks a path's characters shows their numbers.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # Whatever ends this ends its children first, as Ctrl-C does.
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.default_int_handler)
    try:
        return options.action(options)
    except prompt.BadPrompt as error:
        print(error, file=sys.stderr)
        return runner.INVALID
    except cache.SetupError as error:
        print(error, file=sys.stderr)
        return runner.FAILED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return runner.INTERRUPTED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
