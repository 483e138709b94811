"""Promises of the repository as a whole: documents agree with code, rooms stay apart."""

import ast
import re
import struct
import subprocess
import sys
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parents[2]
NODES, MODEL = ROOT / "nodes", ROOT / "skyreels_model"
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "docs/architecture.md")
FORBIDDEN = "torch torchvision torchaudio numpy transformers xformers opencv-python opencv".split()
LONGEST_FILE, LONGEST_FUNCTION = 400, 60


def text(path):
    return (ROOT / path).read_text(encoding="utf-8")


def sources():
    """The pack's own Python files, without what `benchmarks/pack_for_gpu.py` packs of others."""
    return [
        file
        for file in sorted(ROOT.rglob("*.py"))
        if not any(part.startswith(".") for part in file.relative_to(ROOT).parts)
        and not file.is_relative_to(ROOT / "for_gpu")
    ]


def constant(call, index=None, keyword=None):
    """A literal argument of a call, or None."""
    given = {k.arg: k.value for k in call.keywords}.get(keyword)
    if given is None and index is not None and len(call.args) > index:
        given = call.args[index]
    return given.value if isinstance(given, ast.Constant) else None


def calls(tree, functions):
    """All calls below `tree`, and below the functions of the file that it calls by name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node
            if isinstance(node.func, ast.Name) and node.func.id in functions:
                yield from calls(functions[node.func.id], functions)


def declared_nodes():
    """(node id, {input: tooltip}, {output: tooltip}) of every node class, read from its source."""

    def functions_of(tree):
        return {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef)}

    shared = functions_of(ast.parse(text("nodes/inputs.py")))
    for file in sorted(NODES.glob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        functions = shared | functions_of(tree)
        for one in (n for n in tree.body if isinstance(n, ast.ClassDef)):
            node_id, inputs, outputs = None, {}, {}
            for call in calls(one, functions):
                name = getattr(call.func, "attr", None)
                if name == "Schema":
                    node_id = constant(call, keyword="node_id")
                elif name == "Input":
                    inputs[constant(call, 0, "id")] = constant(call, keyword="tooltip")
                elif name == "Output":
                    shown = constant(call, keyword="display_name") or call.func.value.attr.upper()
                    outputs[shown] = constant(call, keyword="tooltip")
            if node_id:
                yield node_id, inputs, outputs


DECLARED = list(declared_nodes())


def rows(page, heading):
    """The rows of a help page's table below a heading: {name: meaning}."""
    section = re.split(r"^## ", page, flags=re.MULTILINE)
    table = next(part for part in section if part.startswith(heading))
    found = {}
    for names, meaning in re.findall(r"^\| (`.*?) \| (.*) \|$", table, re.MULTILINE):
        found |= dict.fromkeys(re.findall(r"`(\w+)`", names), meaning)
    return found


def test_node_sources_are_read():
    assert len(DECLARED) == len(set(id for id, _, _ in DECLARED)) >= 7
    assert "seconds" in {id: inputs for id, inputs, _ in DECLARED}["SkyReelsV2Schedule"]


@pytest.mark.parametrize(("node_id", "inputs", "outputs"), DECLARED, ids=[d[0] for d in DECLARED])
class TestHelpPage:
    def test_names_every_input_and_output(self, node_id, inputs, outputs):
        page = text(f"js/docs/{node_id}.md")
        assert list(rows(page, "Inputs")) == list(inputs)
        assert list(rows(page, "Outputs")) == list(outputs)

    def test_has_the_tooltips_numbers(self, node_id, inputs, outputs):
        page = text(f"js/docs/{node_id}.md")
        for name, meaning in rows(page, "Inputs").items():
            assert inputs[name], f"{node_id}.{name} has no tooltip"
            lost = set(re.findall(r"\d+", inputs[name])) - set(re.findall(r"\d+", meaning))
            assert not lost, f"{node_id}.{name}: the tooltip's {lost} are not in the page"


def test_no_help_page_without_a_node():
    pages = {file.stem for file in (ROOT / "js" / "docs").glob("*.md")}
    assert pages == {node_id for node_id, _, _ in DECLARED}


def test_every_help_page_shows_its_node_and_a_film():
    pages, pictures = (
        {file.stem: file.read_bytes() for file in sorted((ROOT / "js" / "docs").glob(pattern))}
        for pattern in ("*.md", "pictures/*.jpg")
    )
    assert list(pages) == list(pictures)
    for name, page in pages.items():
        text = page.decode()
        title = text.splitlines()[0].removeprefix("# ")
        assert f"![{title}" in text and f"](pictures/{name}.jpg)" in text, name
        assert pictures[name][:3] == b"\xff\xd8\xff"


@pytest.fixture(scope="module")
def dev_help():
    def ask(*arguments):
        command = [sys.executable, ROOT / "dev.py", *arguments, "--help"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    return ask


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_in_documents_exist(document, dev_help):
    known = set(re.search(r"\{([\w,]+)\}", dev_help()).group(1).split(","))
    used = re.findall(r"python3 dev\.py (\w+)([^`\n]*)", text(document))
    assert {command for command, _ in used} <= known
    for command, arguments in used:
        if command != "test":
            options = re.findall(r"--[\w-]+", arguments)
            assert not [o for o in options if o not in dev_help(command)], (command, options)


def test_readme_starts_with_the_two_commands():
    assert {"python3 dev.py demo", "python3 dev.py test"} <= set(text("README.md").splitlines())


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_in_documents_lead_somewhere(document):
    folder = (ROOT / document).parent
    for target in re.findall(r"\]\(([^)#]+)\)", text(document)):
        assert target.startswith("https://") or (folder / target).is_file(), target


def test_requirements_leave_the_hosts_packages_alone():
    dependencies = re.search(r"^dependencies = \[(.*?)\]", text("pyproject.toml"), re.M | re.S)
    for lines in (text("requirements.txt"), dependencies.group(1)):
        names = re.findall(r"[A-Za-z][\w.-]*", lines)
        assert names and not set(FORBIDDEN) & {name.lower() for name in names}


@pytest.mark.parametrize(
    ("key", "shape", "most"), [("Icon", (400, 400), 100_000), ("Banner", (1680, 720), 500_000)]
)
def test_pictures_for_the_registry(key, shape, most):
    """An icon is a square of 400 px, a banner 21:9; both lie in the repository that is named."""
    address = re.search(rf'^{key} = "(.+)"$', text("pyproject.toml"), re.MULTILINE).group(1)
    project = re.search(r'^Repository = "https://github.com/(.+)"$', text("pyproject.toml"), re.M)
    begin = f"https://raw.githubusercontent.com/{project.group(1)}/main/"
    assert address.startswith(begin)
    picture = (ROOT / address.removeprefix(begin)).read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n" and len(picture) <= most
    assert struct.unpack(">II", picture[16:24]) == shape


@pytest.fixture(scope="module")
def shipped():
    """The files that the registry packs: those in git without what .comfyignore matches, which is
    read as git reads its own such files: a name without a slash before it matches at any depth."""

    def list_files(*options):
        command = ["git", "ls-files", *options]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if listed.returncode:
            pytest.skip("this is no git repository")
        return set(listed.stdout.splitlines())

    return list_files() - list_files("-ci", "--exclude-from=.comfyignore")


def test_the_registry_gets_what_comfyui_imports_and_no_other_source(shipped):
    sources = {name.partition("/")[0] for name in shipped if name.endswith(".py")}
    # The farm is a command for users.
    assert sources == {"__init__.py", "farm", "nodes", "skyreels_model"}


def test_the_registry_gets_all_that_comfyui_imports(shipped):
    """As the registry packs it: no file that is left out is needed by one that is not."""
    modules = [name for name in shipped if name.endswith(".py")]
    for name in modules:
        tree = ast.parse(text(name))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                folder = PurePosixPath(name).parents[node.level - 1]
                file = folder.joinpath(*(node.module or "").split("."))
                found = {f"{file}.py", f"{file}/__init__.py", f"{file / '__init__.py'}"}
                assert found & set(modules), f"{name}:{node.lineno} imports what is left out"


def test_the_registrys_archive_is_small_and_has_what_the_page_needs(shipped):
    assert not [name for name in shipped if name.startswith(("tests/", "docs/", "benchmarks/"))]
    assert {"js/schedule.js", "js/docs/SkyReelsV2Sampler.md", "locales/zh/nodeDefs.json"} <= shipped
    templates = {name for name in shipped if name.startswith("workflows/")}
    assert templates == {f"workflows/{path.name}" for path in (ROOT / "workflows").glob("*.*")}
    used = set(
        re.findall(r'"(toy/[^"]+)"', "".join(map(text, sorted(ROOT.glob("workflows/*.json")))))
    )
    weights = [name for name in shipped if name.startswith("toy/weights/")]
    assert used and not [one for one in used if not any(one in name for name in weights)]
    assert sum((ROOT / name).stat().st_size for name in shipped) < 20_000_000


def test_changelog_knows_the_version():
    version = re.search(r'^version = "(.+)"$', text("pyproject.toml"), re.MULTILINE).group(1)
    newest = re.search(r"^## \[(.+?)\]", text("CHANGELOG.md"), re.MULTILINE).group(1)
    assert newest == version


@pytest.mark.parametrize(
    "file", sorted(MODEL.rglob("*.py")), ids=lambda file: str(file.relative_to(MODEL))
)
def test_the_model_knows_no_host(file):
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            depth = len(file.relative_to(MODEL).parts)
            assert node.level <= depth, f"line {node.lineno} leaves the package"
            names = [] if node.level else [node.module]
        else:
            continue
        host = {"comfy", "comfy_api", "comfy_extras", "nodes", "folder_paths", "execution"}
        assert not host & {name.split(".")[0] for name in names}, f"line {node.lineno}"


@pytest.mark.parametrize("file", sources(), ids=lambda file: file.relative_to(ROOT).as_posix())
def test_sources_are_read_by_tools_of_windows(file):
    """Some read files in the code page of Western Windows: other characters are escaped."""
    content = file.read_bytes()
    content.decode("cp1252")
    content.decode("utf-8").encode("cp1252")


LISTINGS = {"iterdir", "glob", "rglob", "listdir", "scandir"}
OF_ANY_ORDER = {"sorted", "set", "frozenset", "any", "all", "min", "max", "sum", "len"}
IN_ORDER = set("list tuple next iter enumerate zip map join fromkeys extend".split())


def called(node):
    """The name of what a call calls, without what it belongs to."""
    function = getattr(node, "func", None)
    return getattr(function, "id", getattr(function, "attr", None))


def has_no_order(node):
    """Whether an expression is plainly a set, or a listing of a folder."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Sub, ast.BitAnd, ast.BitOr)):
        sides = (node.left, node.right)
        return any(has_no_order(side) or called(side) == "keys" for side in sides)
    is_set = isinstance(node, (ast.Set, ast.SetComp)) or called(node) in ("set", "frozenset")
    return is_set or called(node) in LISTINGS


def gone_through(node):
    """What `node` goes through from first to last, where that order can be seen."""
    if isinstance(node, ast.For):
        return [node.iter]
    if isinstance(node, (ast.ListComp, ast.DictComp, ast.GeneratorExp)):
        return [generator.iter for generator in node.generators]
    if isinstance(node, ast.Starred):
        return [node.value]
    return node.args if isinstance(node, ast.Call) and called(node) in IN_ORDER else []


def unordered(content):
    """The lines of a source that go through a set or a listing as if it had an order."""
    lines, free = [], set()
    for node in ast.walk(ast.parse(content)):
        if isinstance(node, ast.Call) and called(node) in OF_ANY_ORDER:
            free.update(node.args)
        if node not in free:
            lines += [it.lineno for it in gone_through(node) if has_no_order(it)]
    return lines


def test_nothing_goes_through_a_set_or_a_listing():
    """Their order differs from process to process and from disk to disk: sort them."""
    found = {file: unordered(file.read_text(encoding="utf-8")) for file in sources()}
    assert not {file: lines for file, lines in found.items() if lines}


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("for x in {a, b}: pass", [1]),
        ("y = [x for x in set(z)]", [1]),
        ("y = ', '.join(a.keys() - b)", [1]),
        ("y = {p.name: 1 for p in f.iterdir() if p}", [1]),
        ("y = next(f.glob('*'))", [1]),
        ("for x in sorted({a, b}): pass", []),
        ("y = sorted(x for x in f.iterdir() if x)", []),
        ("y = any(x in a for x in set(z)) or {x for x in {a, b}}", []),
        ("for x in a.keys(): pass", []),
    ],
)
def test_what_has_no_order_is_seen(source, lines):
    assert unordered(source) == lines


def test_files_and_functions_are_short():
    long = []
    for file in sources():
        content, name = file.read_text(encoding="utf-8"), str(file.relative_to(ROOT))
        lines = len(content.splitlines())
        # Tests list cases; what they test is what must be read as a whole.
        if lines > LONGEST_FILE and not name.startswith("tests"):
            long.append(f"{name}: {lines} lines")
        for node in ast.walk(ast.parse(content)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = node.end_lineno - node.lineno + 1
                if lines > LONGEST_FUNCTION:
                    long.append(f"{name}: {node.name} has {lines} lines")
    assert not long
