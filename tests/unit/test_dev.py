"""The developer's front door, as far as it goes without a network and without a host."""

import base64
import contextlib
import hashlib
import io
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from devtools import environment, host, outcome, process, progress, prompt, serving, standins
from devtools.cache import SetupError, lock
from devtools.remote import Client
from devtools.websocket import BINARY, CLOSE, PING, PONG, TEXT, WebSocket, WebSocketError, mask

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def small_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SKYREELS_V2_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def graph():
    return {
        "5": {
            "class_type": "Encode",
            "inputs": {"prompt": "x", "a.b": 1},
            "_meta": {"title": "v1.0"},
        },
        "6": {"class_type": "Sampler", "inputs": {"steps": 4, "encoded": ["5", 0]}},
        "7": {"class_type": "Save", "inputs": {}},
        "8": {"class_type": "Save", "inputs": {}},
    }


class TestPrompt:
    @pytest.mark.parametrize(
        ("assignment", "node_id", "name", "value"),
        [
            ("5.prompt=a red ball = fun", "5", "prompt", "a red ball = fun"),
            ("Encode.prompt=a red ball", "5", "prompt", "a red ball"),
            ("v1.0.prompt=by title", "5", "prompt", "by title"),
            ("5.a.b=2", "5", "a.b", 2),
            ("6.steps=7", "6", "steps", 7),
            ('6.encoded=["7", 1]', "6", "encoded", ["7", 1]),
            ('5.prompt="7"', "5", "prompt", "7"),
        ],
    )
    def test_set(self, graph, assignment, node_id, name, value):
        prompt.assign(graph, [assignment])
        assert graph[node_id]["inputs"][name] == value

    @pytest.mark.parametrize(
        ("assignment", "said"),
        [
            ("9.prompt=x", "6 Sampler"),
            ("6.stepz=3", "encoded, steps"),
            ("Save.x=3", "['7', '8']"),
            ("steps=3", "node.input=value"),
            ("6.steps", "node.input=value"),
        ],
    )
    def test_set_refuses_and_lists_the_legal(self, graph, assignment, said):
        with pytest.raises(prompt.BadPrompt, match=re.escape(said)):
            prompt.assign(graph, [assignment])

    def test_ui_format_is_refused_and_its_api_twin_named(self, tmp_path):
        file = tmp_path / "film.json"
        file.write_text('{"nodes": [], "links": []}')
        with pytest.raises(prompt.BadPrompt, match="Export"):
            prompt.load(file)
        (tmp_path / "api").mkdir()
        (tmp_path / "api" / "film.json").write_text("{}")
        with pytest.raises(prompt.BadPrompt, match=re.escape(str(tmp_path / "api" / "film.json"))):
            prompt.load(file)

    @pytest.mark.parametrize("content", ["{", "[]", "{}", '{"1": {"class_type": "A"}}'])
    def test_other_files_are_refused(self, tmp_path, content):
        (tmp_path / "x.json").write_text(content)
        with pytest.raises(prompt.BadPrompt):
            prompt.load(tmp_path / "x.json")

    def test_node_errors_read_as_node_class_input_message(self):
        node_errors = {
            "6": {
                "class_type": "Sampler",
                "errors": [
                    {
                        "type": "value_not_in_list",
                        "message": "Value not in list",
                        "details": "solver: 'x' not in ['euler']",
                        "extra_info": {"input_name": "solver"},
                    }
                ],
            }
        }
        error = {"type": "prompt_outputs_failed_validation", "message": "failed", "details": ""}
        assert str(prompt.InvalidPrompt(error, node_errors)).splitlines() == [
            "invalid prompt: failed",
            "  node 6 (Sampler), input solver: Value not in list (solver: 'x' not in ['euler'])",
        ]


class TestOutcome:
    def test_files_of_all_nodes(self):
        outputs = {
            "1": {"images": [{"filename": "a.mp4", "subfolder": "s", "type": "output"}]},
            "2": {"text": ["hello"], "animated": (True,)},
        }
        (file,) = outcome.result([], outputs).files
        assert str(file.relative) == "s/a.mp4" and file.kind == "output"

    @pytest.mark.parametrize(
        ("name", "subfolder"),
        [("x", "../up"), ("/etc/x", ""), ("..\\x", ""), ("x", "..\\up"), ("x", "C:\\up")],
    )
    def test_a_file_outside_of_its_folder_is_refused(self, name, subfolder):
        with pytest.raises(SetupError, match="outside"):
            _ = outcome.OutputFile(name, subfolder, "output").relative

    def test_failure(self):
        data = {
            "node_id": "6",
            "node_type": "Sampler",
            "exception_type": "ValueError",
            "exception_message": "no\n",
        }
        failed = outcome.result([("execution_start", {}), ("execution_error", data)], {})
        assert not failed.success and not failed.interrupted
        assert failed.describe() == "node 6 (Sampler) failed: ValueError: no"

    def test_progress_is_sparse_off_a_terminal(self, graph):
        stream = io.StringIO()
        report = progress.Reporter(graph, stream)
        report("executing", {"node": "6"})
        for value in range(1, 101):
            state = {"6": {"value": value, "max": 100, "state": "running"}}
            report("progress_state", {"nodes": state})
        report("executing", {"node": None})
        lines = stream.getvalue().splitlines()
        assert len(lines) == 2
        assert lines[0].endswith("6 Sampler") and "100/100" in lines[1]


def server_frame(opcode, payload, final=True):
    size = len(payload)
    if size < 126:
        length = bytes([size])
    elif size < 1 << 16:
        length = struct.pack("!BH", 126, size)
    else:
        length = struct.pack("!BQ", 127, size)
    return bytes([(0x80 if final else 0) | opcode]) + length + payload


def read_client_frame(connection):
    """(opcode, payload) of one masked frame, unmasked byte by byte as the RFC's text says."""
    first, second = connection.recv(2, socket.MSG_WAITALL)
    assert first & 0x80 and second & 0x80
    size = second & 0x7F
    if size >= 126:
        size = int.from_bytes(connection.recv(2 if size == 126 else 8, socket.MSG_WAITALL), "big")
    key = connection.recv(4, socket.MSG_WAITALL)
    data = connection.recv(size, socket.MSG_WAITALL) if size else b""
    return first & 0x0F, bytes(byte ^ key[i % 4] for i, byte in enumerate(data))


@contextlib.contextmanager
def websocket_server(talk, accept=True):
    """A server for one connection, which does the handshake and then calls `talk(connection)`."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        connection, _ = listener.accept()
        with connection:
            request = b""
            while b"\r\n\r\n" not in request:
                request += connection.recv(4096)
            key = re.search(rb"Sec-WebSocket-Key: (.*)\r\n", request).group(1)
            digest = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
            answer = base64.b64encode(digest if accept else digest[::-1])
            connection.sendall(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
                b"Connection: Upgrade\r\nsec-websocket-accept: " + answer + b"\r\n\r\n"
            )
            talk(connection)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"ws://127.0.0.1:{listener.getsockname()[1]}/ws?clientId=1"
    finally:
        thread.join(5)
        listener.close()
        assert not thread.is_alive()


class TestWebSocket:
    def test_the_rfc_example_of_masking(self):
        assert mask(b"Hello", bytes.fromhex("37fa213d")) == bytes.fromhex("7f9f4d5158")
        assert mask(b"", b"abcd") == b""

    @pytest.mark.parametrize("size", [0, 5, 125, 126, 65535, 65536, 300_000])
    def test_messages_of_every_length_class_both_ways(self, size):
        text = "é" * (size // 2) + "x" * (size % 2)

        def echo(connection):
            opcode, payload = read_client_frame(connection)
            connection.sendall(server_frame(opcode, payload))
            connection.sendall(server_frame(BINARY, payload))

        with websocket_server(echo) as url:
            client = WebSocket(url)
            client.send(text)
            assert client.receive(5) == text
            assert client.receive(5) == text.encode()
            client.close()

    def test_fragments_with_a_ping_between_and_a_timeout_inside_a_frame(self):
        heard = []

        def talk(connection):
            connection.sendall(server_frame(TEXT, b"one ", final=False))
            connection.sendall(server_frame(PING, b"there?"))
            heard.append(read_client_frame(connection))
            last = server_frame(0, b"two")
            connection.sendall(last[:3])
            time.sleep(0.3)
            connection.sendall(last[3:])
            connection.sendall(server_frame(CLOSE, struct.pack("!H", 1000)))
            heard.append(read_client_frame(connection))

        with websocket_server(talk) as url:
            client = WebSocket(url)
            with pytest.raises(TimeoutError):
                client.receive(0.1)
            assert client.receive(5) == "one two"
            with pytest.raises(WebSocketError, match="closed"):
                client.receive(5)
            client.close()
        assert heard == [(PONG, b"there?"), (CLOSE, struct.pack("!H", 1000))]

    @pytest.mark.parametrize(
        "frame",
        [
            server_frame(0, b"continues nothing"),
            server_frame(TEXT, b"a", final=False) + server_frame(TEXT, b"b"),
            b"\x81\x81abcde",
            b"\x82\x7f" + b"\x7f" * 8,
            b"",
        ],
        ids=["continuation", "interleaved", "masked", "huge", "hangup"],
    )
    def test_broken_peers(self, frame):
        with websocket_server(lambda connection: connection.sendall(frame)) as url:
            client = WebSocket(url)
            with pytest.raises(WebSocketError):
                client.receive(5)
            client.close()

    def test_a_wrong_accept_key_is_refused(self):
        with websocket_server(lambda connection: None, accept=False) as url:
            with pytest.raises(WebSocketError, match="prove"):
                WebSocket(url)


class FakeComfyUI(BaseHTTPRequestHandler):
    """Answers HTTP as ComfyUI does, and refuses the websocket, as a plain gateway would."""

    def log_message(self, *arguments):
        pass

    def answer(self, code, content):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.path.startswith("/history/"):
            images = [{"filename": "a.png", "subfolder": "s", "type": "output"}]
            entry = {"status": {"messages": []}, "outputs": {"7": {"images": images}}}
            self.answer(200, {"id1": entry} if self.server.known else {})
        elif self.path == "/queue":
            self.answer(200, {"queue_running": [], "queue_pending": []})
        elif self.path.startswith("/view?"):
            self.answer(200, b"picture")
        else:
            self.answer(404, {})

    def do_POST(self):
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if "6" in content["prompt"]:
            self.answer(400, {"error": {"message": "bad"}, "node_errors": {}})
        else:
            self.answer(200, {"prompt_id": "id1"})


@pytest.fixture
def fake_comfyui():
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeComfyUI)
    server.known = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


class TestRemote:
    def test_a_result_comes_without_websocket_and_its_file_is_fetched(self, fake_comfyui, tmp_path):
        client = Client(f"http://127.0.0.1:{fake_comfyui.server_port}/")
        result = client.run({"7": {}}, lambda event, data: None)
        path = client.download(result.files[0], tmp_path)
        assert path == tmp_path / "s" / "a.png" and path.read_bytes() == b"picture"
        assert [file.name for file in path.parent.iterdir()] == ["a.png"]

    def test_a_refused_prompt(self, fake_comfyui):
        with pytest.raises(prompt.InvalidPrompt, match="bad"):
            Client(f"http://127.0.0.1:{fake_comfyui.server_port}").queue({"6": {}})

    def test_a_prompt_the_server_lost(self, fake_comfyui, monkeypatch):
        fake_comfyui.known = False
        monkeypatch.setattr("devtools.remote.POLL_SECONDS", 0.01)
        with pytest.raises(SetupError, match="no longer knows"):
            Client(f"http://127.0.0.1:{fake_comfyui.server_port}").run({}, lambda event, data: None)

    def test_nobody_there(self):
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
        files = [p.relative_to(tmp_path / "out") for p in (tmp_path / "out").rglob("*.py")]
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
        assert not list(tmp_path.rglob("escaped.py"))

    def test_a_failed_fetch_leaves_nothing(self, small_cache, monkeypatch):
        def truncated(release, folder, python):
            (folder / "x.tar.gz").write_bytes(b"half")
            return folder / "x.tar.gz"

        monkeypatch.setattr(host, "_download", truncated)
        monkeypatch.setattr(host, "_clone", lambda commit, tree: False)
        with pytest.raises(SetupError, match="SHA-256"):
            host.fetched(host.DEFAULT, Path(sys.executable), offline=False)
        assert [path.name for path in small_cache.iterdir()] == ["ComfyUI-0.30.0.lock"]

    def test_what_is_asked_for_but_not_there_is_said(self, small_cache, monkeypatch):
        python = Path(sys.executable)
        monkeypatch.delenv("COMFYUI_PATH", raising=False)
        with pytest.raises(SetupError, match="--offline, but ComfyUI 0.30.0"):
            host.locate(None, ROOT, python, offline=True)
        with pytest.raises(SetupError, match=r"known are: 0\.30\.0"):
            host.fetched("9.9", python, offline=True)
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
    def test_an_interrupt_reaches_the_child_once(self, small_cache):
        code = (
            "import time\n"
            "try: time.sleep(20)\n"
            "except KeyboardInterrupt: time.sleep(0.3); raise SystemExit(7)\n"
        )
        child = process.start([sys.executable, "-c", code], offline=True)
        threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
        assert process.wait(child) == 7

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
