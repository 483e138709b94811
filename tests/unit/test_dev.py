"""The developer's front door, as far as it goes without a network and without a host."""

import hashlib
import importlib.util
import io
import os
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path, PureWindowsPath

import pytest

from devtools import (
    checks,
    environment,
    host,
    process,
    serving,
    standins,
)
from devtools.cache import SetupError, lock
from devtools.remote import Client

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def small_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SKYREELS_V2_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_nobody_there():
    with pytest.raises(SetupError, match="no ComfyUI server answers"):
        Client(f"http://127.0.0.1:{serving.free_port()}").run({}, lambda event, data: None)


def sdist(path, names):
    with tarfile.open(path, "w:gz") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 4
            tar.addfile(member, io.BytesIO(b"text"))
    return hashlib.sha256(path.read_bytes()).hexdigest()


class TestHost:
    def test_extract_takes_the_vendored_folder_only(self, tmp_path):
        archive = tmp_path / "a.tar.gz"
        digest = sdist(archive, ["p-1/vendor/ComfyUI/comfy/x.py", "p-1/other.py"])
        host.extract(archive, digest, tmp_path / "out")
        files = sorted(p.relative_to(tmp_path / "out") for p in (tmp_path / "out").rglob("*.py"))
        assert files == [Path("comfy/x.py")]

    def test_extract_refuses_another_hash(self, tmp_path):
        archive = tmp_path / "a.tar.gz"
        sdist(archive, ["p-1/vendor/ComfyUI/x.py"])
        with pytest.raises(SetupError, match="expected 0000"):
            host.extract(archive, "0000", tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_extract_refuses_to_leave_its_folder(self, tmp_path):
        archive = tmp_path / "a.tar.gz"
        digest = sdist(archive, ["p-1/vendor/ComfyUI/../../escaped.py"])
        with pytest.raises(SetupError, match="cannot unpack"):
            host.extract(archive, digest, tmp_path / "in" / "out")
        assert not any(tmp_path.rglob("escaped.py"))

    def test_a_failed_fetch_leaves_nothing(self, small_cache, monkeypatch):
        def truncated(release, folder, python):
            (folder / "x.tar.gz").write_bytes(b"half")
            return folder / "x.tar.gz"

        monkeypatch.setattr(host, "_download", truncated)
        monkeypatch.setattr(host, "_clone", lambda commit, tree: False)
        with pytest.raises(SetupError, match="SHA-256"):
            host.fetched(host.DEFAULT, Path(sys.executable), offline=False)
        assert [path.name for path in sorted(small_cache.iterdir())] == ["ComfyUI-0.30.0.lock"]

    def test_what_is_asked_for_but_not_there_is_said(self, small_cache, monkeypatch):
        python = Path(sys.executable)
        monkeypatch.delenv("COMFYUI_PATH", raising=False)
        monkeypatch.delenv("SKYREELS_V2_COMFYUI", raising=False)
        with pytest.raises(SetupError, match="--offline, but ComfyUI 0.30.0"):
            host.locate(None, ROOT, python, offline=True)
        with pytest.raises(SetupError, match=r"9\.9 is not .* known are: .*0\.30\.0"):
            host.locate(None, ROOT, python, offline=True, version="9.9")
        with pytest.raises(SetupError, match=r"--offline, but ComfyUI 0\.26\.0"):
            host.locate(None, ROOT, python, offline=True, version="0.26.0")
        monkeypatch.setenv("COMFYUI_PATH", str(small_cache))
        with pytest.raises(SetupError, match="COMFYUI_PATH names .* not a ComfyUI"):
            host.locate(None, ROOT, python, offline=True)

    def test_the_tree_around_the_pack_is_found(self, small_cache, tmp_path, monkeypatch):
        monkeypatch.delenv("COMFYUI_PATH", raising=False)
        monkeypatch.delenv("SKYREELS_V2_COMFYUI", raising=False)
        for name in ("main.py", "execution.py", "nodes.py", "folder_paths.py", "comfy/options.py"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
        pack = tmp_path / "custom_nodes" / "pack"
        assert host.locate(None, pack, Path(sys.executable), offline=True) == tmp_path
        monkeypatch.setenv("SKYREELS_V2_COMFYUI", "0.27.0")
        with pytest.raises(SetupError, match=r"0\.27\.0 is not in"):
            host.locate(None, pack, Path(sys.executable), offline=True)


class TestEnvironment:
    group = environment.Group("run", ("no-such-package",), ("no_such_module",), "a test", "0 MB")

    def test_the_current_interpreter_is_kept_when_it_has_all(self, small_cache):
        has_all = environment.Group("run", (), ("json",), "a test", "0 MB")
        assert environment.choose([has_all], offline=True) == Path(sys.executable)
        assert not small_cache.exists()

    def test_offline_says_what_lacks(self, small_cache):
        with pytest.raises(SetupError, match="no-such-package"):
            environment.choose([self.group], offline=True)

    def test_a_half_made_environment_is_made_anew(self, small_cache, monkeypatch):
        folder = environment.folder_of(self.group)
        folder.mkdir(parents=True)
        (folder / "half").touch()

        def call(command):
            if "venv" in command:
                Path(command[-1]).mkdir()

        monkeypatch.setattr(environment, "_call", call)
        python = environment.choose([self.group], offline=False)
        assert python.is_relative_to(folder) and not (folder / "half").exists()
        assert environment.is_installed(folder, self.group)
        assert environment.choose([self.group], offline=True) == python

    def test_a_failed_command_is_named(self, small_cache):
        with pytest.raises(SetupError, match="code 3:\n.*SystemExit"):
            environment._call([sys.executable, "-c", "raise SystemExit(3)"])

    def test_a_failed_download_leaves_no_marker(self, small_cache, monkeypatch):
        def call(command):
            if "pip" in command:
                raise SetupError("no network")
            Path(command[-1]).mkdir(parents=True)

        monkeypatch.setattr(environment, "_call", call)
        with pytest.raises(SetupError, match="no network"):
            environment.choose([self.group], offline=False)
        assert not environment.is_installed(environment.folder_of(self.group), self.group)

    def test_a_newer_host_gets_the_native_packages_that_it_asks_for(self, tmp_path):
        usual = environment.run_group()
        pins = "comfy-kitchen=={}\ncomfy-aimdo==0.4.10\ncomfyui-frontend-package==1.49.6\n"
        (tmp_path / "requirements.txt").write_text(pins.format("0.2.10"))
        assert environment.run_group(tmp_path) == usual
        assert "comfyui-frontend-package==1.49.6" in environment.page_group(tmp_path).requirements
        (tmp_path / "requirements.txt").write_text(pins.format("0.10.1"))
        newer = environment.run_group(tmp_path)
        assert set(newer.requirements) - set(usual.requirements) == {"comfy-kitchen==0.10.1"}
        assert environment.folder_of(newer) != environment.folder_of(usual)

    def test_the_current_interpreter_is_not_kept_for_a_host_that_wants_newer_packages(
        self, monkeypatch
    ):
        wants = environment.Group("run", ("comfy-kitchen==0.10.1",), ("json",), "a test", "0 MB")
        installed = {"comfy-kitchen": "0.9.30"}
        monkeypatch.setattr(environment.importlib.metadata, "version", installed.__getitem__)
        with pytest.raises(SetupError, match="comfy-kitchen==0.10.1"):
            environment.choose([wants], offline=True)
        installed["comfy-kitchen"] = "0.10.2"
        assert environment.choose([wants], offline=True) == Path(sys.executable)

    def test_another_list_of_packages_is_not_installed(self, tmp_path):
        (tmp_path / "skyreels-v2-run.txt").write_text("no-such-package\n")
        assert environment.is_installed(tmp_path, self.group)
        other = environment.Group("run", ("other",), (), "a test", "0 MB")
        assert not environment.is_installed(tmp_path, other)

    def test_the_lock_keeps_others_out(self, small_cache, capsys):
        inside = []

        def other():
            with lock("x"):
                inside.append(True)

        with lock("x"):
            thread = threading.Thread(target=other)
            thread.start()
            time.sleep(0.2)
            assert not inside
        thread.join(5)
        assert inside and "waiting" in capsys.readouterr().out


class TestChecks:
    def test_seeds_are_drawn_where_they_are_not_given(self):
        given = checks.Seeds.draw(0, 7)
        assert given == checks.Seeds(0, 7)
        assert given.options() == "--hash-seed 0 --order-seed 7"
        drawn = checks.Seeds.draw(order=7)
        assert drawn.order == 7 and drawn != checks.Seeds.draw(order=7)

    @pytest.mark.parametrize(
        ("seeds", "said"),
        [
            ((-1, 0), "--hash-seed is -1; it must be 0 to 4294967295; nearest: 0"),
            ((0, 2**32), "--order-seed is 4294967296; .* nearest: 4294967295"),
        ],
    )
    def test_other_seeds_are_refused(self, seeds, said):
        with pytest.raises(SetupError, match=said):
            checks.Seeds.draw(*seeds)

    @pytest.mark.slow
    def test_the_same_seeds_run_the_same_and_others_do_not(self, tmp_path):
        (tmp_path / "test_it.py").write_text(
            "import os, pytest\n"
            "@pytest.mark.parametrize('n', range(9))\n"
            "def test_it(n):\n"
            "    with open('seen', 'a') as file:\n"
            "        print(n, hash('x'), os.environ['OMP_NUM_THREADS'], file=file)\n"
            "@pytest.mark.slow\n"
            "def test_slow():\n"
            "    test_it(9)\n"
        )

        def seen(seeds, *arguments, fast=False):
            (tmp_path / "seen").unlink(missing_ok=True)
            command = checks.pytest_command(seeds, fast, tmp_path / "temp", ["-n0", *arguments])
            variables = checks.variables(seeds, os.environ)
            done = subprocess.run(
                [sys.executable, "-m", *command],
                cwd=tmp_path, env=variables, capture_output=True, text=True, check=True,
            )  # fmt: skip
            assert " passed" in done.stdout.splitlines()[-1]
            return (tmp_path / "seen").read_text().splitlines()

        first, other = seen(checks.Seeds(1, 2)), seen(checks.Seeds(3, 4))
        assert sorted(line[0] for line in first) == sorted(line[0] for line in other)
        assert [line[0] for line in first] != [line[0] for line in other]
        assert len({line.split()[1] for line in first + other}) == 2
        assert all(line.endswith(" 1") for line in first)
        again = seen(checks.Seeds(1, 2), "-k", "3 or 5 or 7 or slow", fast=True)
        assert again == [line for line in first if line[0] in "357"]

    def test_the_command_takes_its_options_and_leaves_the_others_to_pytest(self, monkeypatch):
        spec = importlib.util.spec_from_file_location("dev", ROOT / "dev.py")
        dev = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(dev)
        monkeypatch.setattr(dev.environment, "choose", lambda *_, **__: Path("python"))
        monkeypatch.setattr(dev.host, "locate", lambda *_: Path("ComfyUI"))
        monkeypatch.setattr(dev.browser, "find_chromium", lambda: None)
        ran = []
        monkeypatch.setattr(dev.checks, "run", lambda *given: ran.append(given))
        options = dev._parser().parse_known_args
        for line in ("--fast --hash-seed 3 tests/unit -k x", "tests/unit --order-seed 4 -n 0"):
            known, known.pytest_arguments = options(["test", *line.split()])
            known.action(known)
        (first, second) = ran
        assert first[2].hashes == 3 and first[4:] == (["tests/unit", "-k", "x"], True)
        assert second[2].order == 4 and second[4:] == (["tests/unit", "-n", "0"], False)
        assert first[3]["COMFYUI_PATH"] == "ComfyUI"

    def test_every_check_runs_and_one_that_failed_fails_all(
        self, small_cache, tmp_path, monkeypatch, capsys
    ):
        ran, codes = [], {"ruff": 1}

        def run(command, **options):
            ran.append(command[2:4])
            return subprocess.CompletedProcess(command, codes.get(command[2], 0))

        monkeypatch.setattr(checks.subprocess, "run", run)
        every = (Path("python"), tmp_path, checks.Seeds(5, 6), {}, ())
        assert checks.run(*every) == 1
        assert [names[0] for names in ran] == ["ruff", "ruff", "mypy", "pytest"]
        assert capsys.readouterr().out.count("--hash-seed 5 --order-seed 6") == 2
        codes.clear()
        assert checks.run(*every) == 0


class TestStandIns:
    def test_they_import_and_raise_only_when_called(self):
        code = (
            "import sys; sys.path.insert(0, sys.argv[1]); from devtools import standins\n"
            "sys.path.pop(0)\n"
            "standins._imports = lambda name: False\n"
            "standins._let_transformers_look_first = lambda: None\n"
            "assert standins.install() == list(standins.NAMES)\n"
            "from torchvision.transforms import functional\n"
            "import torchaudio.functional as AF\n"
            "default = functional.InterpolationMode.BICUBIC\n"
            "try: AF.resample(1)\n"
            "except RuntimeError as error: print(error)\n"
        )
        done = subprocess.run(
            [sys.executable, "-B", "-c", code, str(ROOT)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert "torchaudio.functional.resample" in done.stdout

    def test_a_module_that_is_there_needs_none(self, monkeypatch):
        monkeypatch.setattr(standins, "NAMES", ("json",))
        assert standins.install() == []


class TestProcess:
    @pytest.mark.skipif(os.name == "nt", reason="signals to oneself differ on Windows")
    def test_an_interrupt_reaches_the_child_once(self, small_cache, tmp_path):
        code = (
            "import pathlib, signal, sys, time\n"
            # In the background of a script the shell has it ignored.
            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            "try: pathlib.Path(sys.argv[1]).touch(); time.sleep(300)\n"
            "except KeyboardInterrupt: time.sleep(0.3); raise SystemExit(7)\n"
        )
        ready = tmp_path / "ready"
        child = process.start([sys.executable, "-c", code, ready], offline=True)

        before = signal.getsignal(signal.SIGINT)

        def press():
            # Not before the child listens, nor before this process passes signals on.
            while not (ready.exists() and signal.getsignal(signal.SIGINT) is not before):
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=press).start()
        assert process.wait(child) == 7

    @pytest.mark.parametrize(
        ("code", "shown"),
        [(0, 0), (3, 3), (-signal.SIGINT, 130), (0xC000013A, 130), (-signal.SIGSEGV, 11)],
    )
    def test_exit_codes(self, code, shown):
        assert process.exit_code(code) == shown

    def test_the_command_for_a_junction_takes_any_name(self):
        link, target = PureWindowsPath(r"C:\a & b\x"), PureWindowsPath(r"D:\me^you\pack")
        command = serving.junction_command(link, target)
        assert command.endswith(r'mklink /J "C:\a & b\x" "D:\me^you\pack"')

    def test_a_base_directory_links_to_the_pack_and_follows_its_move(self, tmp_path):
        for name in ("old", "new"):
            (tmp_path / name).mkdir()
            base = serving.prepare_base(tmp_path / "base", tmp_path / name)
            link = base / "custom_nodes" / serving.PACK_FOLDER
            assert os.path.samefile(link, tmp_path / name)

    def test_a_taken_port_is_said(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            with pytest.raises(SetupError, match="is free"):
                serving.free_port(taken.getsockname()[1])
