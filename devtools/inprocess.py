"""ComfyUI inside this process, on the CPU: boot it, load a pack, validate and execute prompts.

The tests use the functions; `dev.py` runs the file as a script, with the environment's Python.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import inspect
import json
import logging
import signal
import sys
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

PACK = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    # A script's own folder is on the path, where `server.py` would shadow the host's.
    sys.path[0] = str(PACK)

from devtools import outcome, standins  # noqa: E402
from devtools.outcome import OnEvent, OutputFile, Result  # noqa: E402
from devtools.progress import Reporter  # noqa: E402
from devtools.prompt import Added, BadPrompt, InvalidPrompt, Prompt, check_added, declared_inputs  # noqa: E402


class _Server:
    """The part of ComfyUI's server that execution talks to: it takes events."""

    def __init__(self, on_event: OnEvent) -> None:
        self._on_event = on_event
        self.errors: list[tuple[str, Any]] = []
        self.client_id: str | None = None
        self.last_node_id: str | None = None
        self.last_prompt_id: str | None = None
        self.sockets_metadata: dict[str, Any] = {}

    def send_sync(self, event: Any, data: Any, client_id: str | None = None) -> None:
        # Binary previews have numbers for names.
        if isinstance(event, str):
            # Of an output that is blocked the host's history says nothing.
            self.errors += [(event, data)] if event == "execution_error" else []
            self._on_event(event, data)

    def queue_updated(self) -> None:
        return None


def boot_host(host: Path, workdir: Path, cpu: bool = True) -> None:
    """Import the ComfyUI tree `host`, its core and extra nodes; every folder of it in `workdir`.

    Raises RuntimeError when another ComfyUI was imported before: a process can hold only one.
    """
    imported = getattr(sys.modules.get("nodes"), "__file__", None)
    if imported and Path(imported).resolve() != (host / "nodes.py").resolve():
        raise RuntimeError(f"cannot boot {host}: {imported} was imported as `nodes` before")
    # The pack's root must not stay on the path: its `nodes/` would shadow the host's `nodes.py`.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != PACK]
    sys.path.insert(0, str(host))
    standins.install()
    for name in ("custom_nodes", "models", "input", "output", "temp", "user"):
        (workdir / name).mkdir(parents=True, exist_ok=True)
    arguments = ["--base-directory", str(workdir), "--database-url", "sqlite:///:memory:"]
    parse_host_arguments(arguments + (["--cpu"] if cpu else []))
    import nodes

    async def load_nodes() -> None:
        await nodes.init_public_apis()
        await nodes.init_builtin_extra_nodes()

    asyncio.run(load_nodes())


def parse_host_arguments(arguments: list[str]) -> None:
    """Let the host read `arguments` as its command line, which it does once, at import."""
    before, sys.argv = sys.argv, ["main.py", *arguments]
    try:
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.cli_args  # noqa: F401
    finally:
        sys.argv = before


def load_pack(path: Path) -> None:
    """Load the node pack in `path` as the host does; RuntimeError with the host's words if not."""
    import nodes

    known = set(nodes.NODE_CLASS_MAPPINGS)
    with _recorded_log() as records:
        loaded = asyncio.run(
            nodes.load_custom_node(str(path), ignore=known, module_parent="custom_nodes")
        )
    if not loaded:
        raise RuntimeError(f"the host could not load {path}:\n" + "\n".join(records))


@contextlib.contextmanager
def _recorded_log() -> Iterator[list[str]]:
    records: list[str] = []

    class Recorder(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record.getMessage())

    recorder = Recorder(logging.WARNING)
    logging.getLogger().addHandler(recorder)
    try:
        yield records
    finally:
        logging.getLogger().removeHandler(recorder)


def add_models(folder: Path) -> None:
    """Add a ComfyUI models folder: each subfolder's name is a category, searched first."""
    import folder_paths

    for category in sorted(child for child in folder.iterdir() if child.is_dir()):
        folder_paths.add_model_folder_path(category.name, str(category), is_default=True)


def validate(prompt: Prompt) -> list[str]:
    """The ids of the output nodes the host will execute; InvalidPrompt when it refuses."""
    import execution

    verdict = asyncio.run(execution.validate_prompt(str(uuid.uuid4()), prompt, None))
    if not verdict[0]:
        raise InvalidPrompt(verdict[1], verdict[3])
    return list(verdict[2])


def inputs_of(kind: str) -> list[str] | None:
    """The inputs that a class of nodes declares; None for a class the host does not have."""
    import nodes

    known = nodes.NODE_CLASS_MAPPINGS.get(kind)
    return None if known is None else declared_inputs(known.INPUT_TYPES())


def execute(prompt: Prompt, on_event: OnEvent = lambda event, data: None) -> Result:
    """Validate and execute `prompt`, from nothing: no result of an earlier run is reused.

    `on_event` gets the events ComfyUI's websocket would carry. Raises InvalidPrompt.
    """
    import execution

    outputs = validate(prompt)
    server = _Server(on_event)
    options: dict[str, Any] = {}
    if "cache_args" in inspect.signature(execution.PromptExecutor).parameters:
        options["cache_args"] = {"lru": 0, "ram": 0, "ram_inactive": 0}
    executor = execution.PromptExecutor(server, **options)
    prompt_id = str(uuid.uuid4())
    with _progress_of(server):
        # Without a client the host sends no event.
        executor.execute(prompt, prompt_id, {"client_id": "skyreels-v2"}, outputs)
    history = getattr(executor, "history_result", {})
    messages = [*server.errors, *executor.status_messages]
    return outcome.result(messages, history.get("outputs", {}))


@contextlib.contextmanager
def _progress_of(server: _Server) -> Iterator[None]:
    """Route progress bars into events and let them stop an interrupted run, as main.py does."""
    import comfy.model_management
    import comfy.utils
    from comfy_execution.progress import get_progress_state
    from comfy_execution.utils import get_executing_context

    def hook(
        value: float, total: float, preview: Any, prompt_id: Any = None, node_id: Any = None
    ) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        context = get_executing_context()
        if node_id is None:
            node_id = context.node_id if context is not None else server.last_node_id
        get_progress_state().update_progress(node_id, value, total, preview)

    comfy.utils.set_progress_bar_global_hook(hook)
    try:
        yield
    finally:
        comfy.utils.set_progress_bar_global_hook(None)


def unload_models() -> None:
    """Unload every model of the host.

    What is garbage goes first: the host's walk ends in an error where a model dies meanwhile.
    """
    import comfy.model_management

    gc.collect()
    comfy.model_management.unload_all_models()


def absolute(file: OutputFile) -> Path:
    """Where a node's output file lies on this machine."""
    import folder_paths

    return Path(folder_paths.get_directory_by_type(file.kind)).absolute() / file.relative


def interrupt_on_signals() -> None:
    """From now on Ctrl-C makes the host stop at its next check; a second one ends the process."""
    import nodes

    def handler(number: int, frame: Any) -> None:
        signal.signal(number, signal.default_int_handler)
        nodes.interrupt_processing()

    for name in ("SIGINT", "SIGTERM", "SIGBREAK"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), handler)


def _log_to(file: Path) -> None:
    """Everything into `file`; at the shell only what the pack itself says."""
    handler = logging.StreamHandler()
    handler.addFilter(lambda record: Path(record.pathname).is_relative_to(PACK))
    handler.setFormatter(logging.Formatter("            %(levelname)s: %(message)s"))
    target = logging.FileHandler(file, mode="w", encoding="utf-8")
    target.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[target, handler], force=True)
    logging.captureWarnings(True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("host", "workdir", "prompt", "output", "report"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--models", type=Path, action="append", default=[])
    parser.add_argument("--input", type=Path)
    parser.add_argument("--added", type=json.loads, default=[])
    return parser.parse_args()


def _prepare(options: argparse.Namespace) -> None:
    boot_host(options.host, options.workdir)
    import folder_paths

    folder_paths.set_output_directory(str(options.output))
    if options.input is not None:
        folder_paths.set_input_directory(str(options.input))
    for folder in options.models:
        add_models(folder)
    load_pack(PACK)


def _run(prompt: Prompt, report: Path, log: Path) -> int:
    reporter = Reporter(prompt)
    interrupt_on_signals()
    try:
        result = execute(prompt, reporter)
    except InvalidPrompt as error:
        print(error, file=sys.stderr)
        return 2
    finally:
        reporter.close()
    if not result.success:
        trace = "" if result.interrupted else f"\nthe traceback is in {log}"
        print(result.describe() + trace, file=sys.stderr)
        return 130 if result.interrupted else 3
    files = [str(absolute(file)) for file in result.files]
    print(*files, sep="\n")
    report.write_text(json.dumps(files), encoding="utf-8")
    return 0


def main() -> int:
    """Run one prompt; the exit codes are those of `dev.py run`."""
    options = _arguments()
    options.workdir.mkdir(parents=True, exist_ok=True)
    log = options.workdir / "host.log"
    _log_to(log)
    prompt: Mapping[str, Any] = json.loads(options.prompt.read_text(encoding="utf-8"))
    try:
        _prepare(options)
    except (RuntimeError, ImportError) as error:
        logging.exception("the host did not start")
        print(f"{error}\nthe host's log is in {log}", file=sys.stderr)
        return 1
    try:
        check_added(dict(prompt), [Added(*one) for one in options.added], inputs_of)
    except BadPrompt as error:
        print(error, file=sys.stderr)
        return 2
    return _run(dict(prompt), options.report, log)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
