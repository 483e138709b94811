"""Worker processes: a shared forward with them, their failures, and that none is left behind."""

import copy
import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import golden_data
import pytest
import torch
from golden_data import models

from skyreels_model.parallel.degrees import Degrees
from skyreels_model.parallel.forward import share_forward
from skyreels_model.parallel.groups import Mesh
from skyreels_model.parallel.process import Launch
from skyreels_model.parallel.sharded import ShardGroup
from skyreels_model.parallel.team import Team, TeamFailed

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="ranks run on Linux only")
FOLLOWER = Path(__file__).resolve().parents[1] / "fixtures" / "parallel" / "follower.py"
sys.path.append(str(FOLLOWER.parent))
import follower  # noqa: E402

CASE = "dit_df_fps24"
# Seconds in which a failure is told; a loaded machine gets more than it should need.
SOON = 30
# As Linux writes them in its tables: of IPv4 and of IPv6.
LOOPBACK = {"0100007F", "00000000000000000000000001000000"}


def launches(count):
    def launch(folder):
        command = (sys.executable, str(FOLLOWER))
        return [Launch(f"rank {n}", command, folder / f"{n}.log") for n in range(1, count + 1)]

    return launch


def make_team(degrees, patience=60.0, sharded=False):
    team = Team(launches(degrees.world - 1), degrees, patience=patience, sharded=sharded)
    team.start({"case": CASE})
    team.join()
    return team


def find_listeners(pid):
    """(address as the system writes it, socket) of all on which a process listens."""
    own = {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()}
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in own:
                found.add((fields[1].rpartition(":")[0], fields[9]))
    return found


@pytest.fixture
def listeners_before():
    """This process's own, before it has a team."""
    return find_listeners(os.getpid())


@pytest.fixture
def team(request):
    made = make_team(*request.param)
    yield made
    made.close()


def make_given():
    """A model, and what a forward is given."""
    torch.manual_seed(0)
    model = models.dit(golden_data.case(CASE))
    tensors = {
        "x": torch.randn(2, model.config.in_dim, 3, 6, 10),
        "timestep": torch.randint(0, 1000, (2, 3)),
        "context": torch.randn(2, 12, model.config.text_dim),
    }
    return model, tensors


@pytest.fixture(scope="module")
def given():
    return make_given()


def run(team, model, tensors, **settings):
    with torch.inference_mode(), team.forward():
        team.begin(settings, tensors)
        return share_forward(model, team.mesh, **tensors)


def is_there(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(pids):
    end = time.monotonic() + SOON
    while any(map(is_there, pids)):
        assert time.monotonic() < end, "a worker is left behind"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("team", [(Degrees(prompts=2, heads=2),)], indirect=True)
def test_processes_make_what_one_makes_until_one_dies(listeners_before, team, given):
    model, tensors = given
    with torch.inference_mode():
        alone = model(**tensors)
    for _ in range(2):
        assert golden_data.relative_l2(run(team, model, tensors), alone) <= 2e-6
    # Tensors beside a message come as they are.
    said = team.ask({"do": "say"}, SOON, {"numbers": torch.arange(3.0)[:, None].expand(3, 2)})
    assert [each["numbers"] for each in said] == [[[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]] * 3
    pids = [each["pid"] for each in said]
    listeners = set().union(*map(find_listeners, [os.getpid(), *pids])) - listeners_before
    assert listeners  # gloo's own
    assert {address for address, _ in listeners} <= LOOPBACK

    with pytest.raises(TeamFailed, match=r"rank 2 was ended by the system \(SIGKILL\)"):
        run(team, model, tensors, fail=2, how="dies")
    wait_until_gone(pids)
    with pytest.raises(TeamFailed, match="rank 2 was ended"):  # and stays so
        run(team, model, tensors)


@pytest.mark.slow
@pytest.mark.parametrize("team", [(Degrees(prompts=2), 60.0, True)], indirect=True)
def test_weights_in_parts_make_what_whole_ones_make(listeners_before, team, given):
    model, tensors = given
    own, one = copy.deepcopy(model), {name: part[:1] for name, part in tensors.items()}
    with torch.inference_mode():
        both, alone = model(**tensors), model(**one)
    team.shard(lambda mesh: follower.shard_model(own, mesh), SOON)
    block = own.blocks[0].forward.block
    held = sum(part.to_local().nbytes for part in block.parameters())
    whole = sum(part.nbytes for part in model.blocks[0].parameters())
    assert whole / 2 <= held <= 0.6 * whole  # what does not divide lies with rank 0
    for _ in range(2):
        assert golden_data.relative_l2(run(team, own, tensors), both) <= 2e-6
        # Without guidance one rank has nothing to compute, but some of the weights.
        assert golden_data.relative_l2(run(team, own, one), alone) <= 2e-6
    listeners = find_listeners(os.getpid()) - listeners_before
    assert {address for address, _ in listeners} <= LOOPBACK
    with pytest.raises(ValueError, match="weights is sharded, .* set weights to whole"):
        ShardGroup(None, 0, 2, torch.device("cpu"), 1.0)
    with pytest.raises(TeamFailed, match="rank 1 was ended by the system"):
        run(team, own, tensors, fail=1, how="dies")
    team.close()
    assert not torch.distributed.is_initialized()


@pytest.mark.slow
@pytest.mark.parametrize("team", [(Degrees(ring=2), 2.0)], indirect=True)
def test_a_worker_that_hangs_ends_the_run_in_time(team, given):
    with pytest.raises(TeamFailed, match="a model call took longer than 2 seconds"):
        run(team, *given, fail=1, how="hangs")
    wait_until_gone([worker.process.pid for worker in team.workers])


@pytest.mark.slow
@pytest.mark.parametrize("team", [(Degrees(heads=2),)], indirect=True)
def test_a_worker_without_memory_says_so(team, given):
    with pytest.raises(TeamFailed, match=r"rank 1 ran out of memory \(.*no room for 7 GB\)"):
        run(team, *given, fail=1, how="lacks memory")


def test_a_program_that_does_not_start_is_told():
    def launch(folder):
        command = (sys.executable, "-c", "raise SystemExit('no such model')")
        return [Launch("rank 1", command, folder / "1")]

    team = Team(launch, Degrees(heads=2))
    with pytest.raises(TeamFailed, match="rank 1 ended with code 1: no such model"):
        team.start({})
    team.close()
    assert not team.folder.exists()


def start_sleeper(folder):
    return [Launch("rank 1", (sys.executable, "-c", "import time; time.sleep(600)"), folder / "1")]


def wait_for_pid(team):
    while team.workers[0].process is None:
        time.sleep(0.01)
    return team.workers[0].process.pid


def test_an_error_here_ends_the_workers():
    team = Team(start_sleeper, Degrees(heads=2))
    pid = wait_for_pid(team)
    team.mesh = Mesh()
    with pytest.raises(ValueError, match="before"), team.forward():
        raise ValueError("before any worker has begun")
    assert is_there(pid)
    with pytest.raises(KeyboardInterrupt), team.forward():
        team.begin({}, {})
        raise KeyboardInterrupt
    wait_until_gone([pid])
    team.close()


def test_a_team_that_nobody_has_any_more_is_ended():
    team = Team(start_sleeper, Degrees(heads=2))
    pid, folder = wait_for_pid(team), team.folder
    del team
    gc.collect()
    wait_until_gone([pid])
    assert not folder.exists()


def kill_after(delay):
    """What a team says whose worker is killed so long after its start, and how long that took.

    Nothing of it is left behind, neither a process nor a folder.
    """
    model, tensors = make_given()
    team = Team(launches(1), Degrees(heads=2), patience=60.0)
    pid, killed = wait_for_pid(team), []

    def kill():
        killed.append(time.monotonic())
        os.kill(pid, signal.SIGKILL)

    timer = threading.Timer(delay, kill)
    timer.start()
    with pytest.raises(TeamFailed) as raised:
        team.start({"case": CASE})
        team.join()
        while True:
            run(team, model, tensors)
    took = time.monotonic() - killed[0]
    team.close()
    wait_until_gone([pid])
    assert not team.folder.exists()
    return str(raised.value), took


@pytest.mark.slow
def test_workers_may_be_killed_at_any_moment():
    """While they start, find each other, are in a forward or between two."""
    draw = random.Random(0)
    for _ in range(3):
        told, took = kill_after(draw.uniform(0, 3))
        assert "rank 1 was ended by the system (SIGKILL)" in told and took < SOON


OWNER = """
import sys
sys.path[:0] = [{root!r}, {tests!r}, {unit!r}]
import test_parallel_team as tests
from skyreels_model.parallel.degrees import Degrees
team = tests.make_team(Degrees(heads=2))
print(team.workers[0].process.pid, flush=True)
input()
"""


@pytest.mark.slow
def test_no_worker_outlives_a_program_that_is_killed():
    tests = FOLLOWER.parents[2]
    code = OWNER.format(root=str(tests.parent), tests=str(tests), unit=str(tests / "unit"))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], text=True, **pipes) as owner:
        pid = int(owner.stdout.readline())
        assert is_there(pid)
        owner.kill()
    wait_until_gone([pid])
