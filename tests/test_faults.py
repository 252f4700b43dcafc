"""Trouble in real processes: NaN on one rank, a request to stop, a rank that does not come, a killed job."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from dtrain.checkpoint import steps
from dtrain.faults import COLLECTIVE, PeerWatch, StopSignal
from dtrain.files import LOST, STOPPED
from dtrain.world import start
from tests.harness import difference
from tests.processes import launch
from tests.runs import command, environment, execute, final_weights, freeze, metrics, status

POISONED = "tests.poison.Poisoned"
NAN_STEP = 13  # position 200 is read at step 13 of batches of 16, by rank 0 of 2


def attempt(file: Path) -> tuple[int, str]:
    """Exit code and error of a run."""
    try:
        return execute(file), ""
    except ArithmeticError as e:
        return 1, str(e)


def poisoned(run_dir: Path, shards: Path, policy: str, positions: list[int], *overrides: str) -> Path:
    model = {"_target_": POISONED, "nan_at": positions}
    return freeze(run_dir, shards, f"trainer.on_nonfinite={policy}", *overrides, model=model)


NAMED = f"loss term 'pixels' of update 'encoder+decoder' is not finite at step {NAN_STEP}"


def test_nan_on_one_rank_is_raised_on_all_with_update_term_and_step(tmp_path: Path, shards: Path) -> None:
    file = poisoned(tmp_path / "run", shards, "raise", [200])
    for code, error in launch(2, attempt, file):
        assert code == 1
        assert error == NAMED
    assert status(tmp_path / "run")["state"] == "failed"
    assert NAMED in status(tmp_path / "run")["error"]


@pytest.mark.parametrize(
    ("strategy", "log_every", "named"),
    [
        ("ddp", 1, f"gradient of group 'encoder' in update 'encoder+decoder' is not finite at step {NAN_STEP}"),
        ("fsdp", 1, f"gradient of group 'encoder' in update 'encoder+decoder' is not finite at step {NAN_STEP}"),
        # Norms are measured in logged steps: in between the next loss tells.
        ("ddp", 5, f"loss term 'critic' of update 'code_critic' is not finite at step {NAN_STEP}"),
    ],
)
def test_nan_in_a_gradient_alone_is_named_before_anything_is_saved(
    tmp_path: Path, shards: Path, strategy: str, log_every: int, named: str
) -> None:
    model = {"_target_": POISONED, "nan_gradient_at": [200]}
    log = f"trainer.log_every={log_every}"
    file = freeze(tmp_path / "run", shards, log, f"trainer.strategy={strategy}", model=model)
    assert launch(2, attempt, file) == [(1, named), (1, named)]
    assert [p.name for p in steps(tmp_path / "run" / "checkpoints")] == ["step-00000010"]


@pytest.mark.parametrize(
    "message",
    [
        "Application timeout caused pair closure",
        "[../third_party/gloo/gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:4711",
        "Timed out waiting 4000ms for recv operation to complete",
        "NCCL Error 6: remote process exited or there was a network error",
    ],
)
def test_what_a_failed_collective_says_is_recognised(message: str) -> None:
    """torch raises all of these as plain RuntimeErrors where the collective is part of a backward pass."""
    assert COLLECTIVE.search(message)
    assert not COLLECTIVE.search("mat1 and mat2 shapes cannot be multiplied (128x784 and 700x2048)")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_skipping_leaves_out_the_bad_step_and_nothing_else(tmp_path: Path, shards: Path, strategy: str) -> None:
    file = poisoned(tmp_path / "run", shards, "skip", [200], f"trainer.strategy={strategy}")
    assert launch(2, attempt, file) == [(0, ""), (0, "")]
    (event,) = metrics(tmp_path / "run", "skipped")
    assert NAMED in event["message"]
    assert "nan" not in (tmp_path / "run" / "metrics.jsonl").read_text().replace(NAMED, "")
    clean = freeze(tmp_path / "clean", shards, model={"_target_": POISONED})
    assert attempt(clean) == (0, "")
    assert 0 < difference(final_weights(tmp_path / "run"), final_weights(tmp_path / "clean")) < 0.05


def test_more_skipped_steps_than_allowed_raise(tmp_path: Path, shards: Path) -> None:
    file = poisoned(tmp_path / "run", shards, "skip", [200, 220, 240], "trainer.nonfinite_limit=2")
    for code, error in launch(2, attempt, file):
        assert code == 1
        assert "nonfinite_limit=2" in error


def test_rolling_back_returns_to_the_last_checkpoint_and_leaves_the_bad_images_out(
    tmp_path: Path, shards: Path
) -> None:
    file = poisoned(tmp_path / "run", shards, "rollback", [200])
    assert launch(2, attempt, file) == [(0, ""), (0, "")]
    (event,) = metrics(tmp_path / "run", "rollback")
    assert NAMED in event["message"] and "rolled back to step 10" in event["message"]
    last = metrics(tmp_path / "run", "train")[-1]
    assert last["step"] == 40
    assert last["images"] == (40 + 5) * 16  # steps 11 to 15 were run twice, on later images


def test_rollbacks_that_do_not_help_end_in_the_error(tmp_path: Path, shards: Path) -> None:
    everywhere = list(range(200, 2000))
    file = poisoned(tmp_path / "run", shards, "rollback", everywhere, "trainer.nonfinite_limit=2")
    code, error = attempt(file)
    assert code == 1 and "2 rollbacks did not help" in error


def launch_run(file: Path, world: int, log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as out:
        return subprocess.Popen(command("--config", file, world=world), stdout=out, stderr=out, env=environment())


def wait_for_step(run_dir: Path, step: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline and process.poll() is None:
        lines = metrics(run_dir, "train") if (run_dir / "metrics.jsonl").exists() else []
        if lines and lines[-1]["step"] >= step:
            return
        time.sleep(0.05)
    raise AssertionError(f"the run never reached step {step}")


def workers(pid: int) -> list[int]:
    """The ranks that a torchrun process started."""
    children = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout.split()
    return [int(c) for c in children]


LONG = ("trainer.max_steps=3000", "trainer.checkpoint.every=100000")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_one_rank_asked_to_stop_stops_all_at_one_step_and_the_command_continues(
    tmp_path: Path, shards: Path, number: signal.Signals
) -> None:
    file = freeze(tmp_path / "run", shards, *LONG)
    process = launch_run(file, 2, tmp_path / "log")
    wait_for_step(tmp_path / "run", 20, process)
    os.kill(workers(process.pid)[1], number)
    process.wait(240)
    log = (tmp_path / "log").read_text()
    assert f"exitcode  : {STOPPED}" in log, log
    stopped = status(tmp_path / "run")
    assert stopped["state"] == "stopped"
    file.write_text(file.read_text().replace("max_steps: 3000", f"max_steps: {stopped['step'] + 10}"))
    (tmp_path / "run" / "config.yaml").unlink()  # the longer run counts as another one
    assert execute(file) == 0
    seen = [line["step"] for line in metrics(tmp_path / "run", "train")]
    assert seen == sorted(seen) and seen[-1] == stopped["step"] + 10
    assert metrics(tmp_path / "run", "start")[0]["restart"] is False


def test_a_rank_that_hangs_is_named_within_the_timeout(tmp_path: Path, shards: Path) -> None:
    model = {"_target_": POISONED, "hang_at": [201]}  # read by rank 1
    file = freeze(tmp_path / "run", shards, "trainer.timeout=15", model=model)
    process = launch_run(file, 2, tmp_path / "log")
    assert process.wait(300) != 0
    log = (tmp_path / "log").read_text()
    assert "ranks that did not arrive: 1" in log, log
    assert "step 12" in log
    assert "RanksMissing" in status(tmp_path / "run")["error"]
    assert f"exitcode  : {LOST}" in log


@pytest.mark.parametrize(("failing", "position"), [(0, 200), (1, 201)])
def test_a_rank_out_of_memory_ends_all_as_failed_with_its_reason(
    tmp_path: Path, shards: Path, failing: int, position: int
) -> None:
    """Not as if it had been lost: the same command would fail again, and must not go back into the queue."""
    file = freeze(tmp_path / "run", shards, model={"_target_": POISONED, "fail_at": [position]})
    found = launch(2, execute, file, check=False)  # long before trainer.timeout
    assert "OutOfMemoryError: CUDA out of memory" in found[failing]
    assert found[1 - failing] == 1  # not LOST
    error = status(tmp_path / "run")["error"]
    assert status(tmp_path / "run")["state"] == "failed" and "CUDA out of memory" in error
    assert failing == 0 or f"rank {failing}: OutOfMemoryError" in error


def stuck(folder: Path) -> None:
    """Rank 1 fails by itself while rank 0 waits for what never comes."""
    world = start("cpu")
    if world.rank:
        world.publish("ValueError: why", grace=60)
        return
    PeerWatch.STUCK = 0.2
    PeerWatch(world, (folder / "noted").write_text)  # type: ignore[arg-type]
    time.sleep(100)


def test_a_rank_that_is_stuck_with_a_failed_one_is_ended(tmp_path: Path) -> None:
    assert launch(2, stuck, tmp_path, check=False, timeout=300) == ["died", None]
    assert (tmp_path / "noted").read_text() == "ended, since another rank has failed: rank 1: ValueError: why"


def stop_votes(asked_at: int) -> tuple[int, int]:
    """After how many steps rank 1's request at one of them is agreed on, and how many votes that took."""
    stop, votes = StopSignal(start("cpu")), 0
    begin_vote = stop._begin_vote

    def counted() -> None:
        nonlocal votes
        votes += 1
        begin_vote()

    stop._begin_vote = counted  # type: ignore[method-assign]
    for step in range(10 * asked_at):
        stop.requested |= stop.world.rank == 1 and step == asked_at
        time.sleep(0.001 * (1 + stop.world.rank))
        if stop.agreed():
            stop.drain()
            return step, votes
    raise AssertionError("never agreed")


def test_ranks_vote_on_a_stop_now_and_then_and_at_the_same_steps() -> None:
    (step, votes), other = launch(2, stop_votes, 400)
    assert other == (step, votes)
    assert 400 <= step <= 400 + 2 * StopSignal.LONGEST and 400 / StopSignal.LONGEST <= votes < 200


def test_torchrun_restarts_a_killed_rank_from_the_last_checkpoint(tmp_path: Path, shards: Path) -> None:
    file = freeze(tmp_path / "run", shards, "trainer.max_steps=300", "trainer.checkpoint.every=20")
    arguments = command("--config", file, world=2)
    arguments.insert(arguments.index("--standalone"), "--max-restarts=2")
    with (tmp_path / "log").open("ab") as out:
        process = subprocess.Popen(arguments, stdout=out, stderr=out, env=environment())
    wait_for_step(tmp_path / "run", 40, process)
    os.kill(workers(process.pid)[0], signal.SIGKILL)
    assert process.wait(600) == 0, (tmp_path / "log").read_text()
    starts = metrics(tmp_path / "run", "start")
    assert [s["restart"] for s in starts] == [False, True]
    undisturbed = freeze(tmp_path / "whole", shards, "trainer.max_steps=300", "trainer.checkpoint.every=20")
    for code in launch(2, execute, undisturbed):
        assert code == 0
    assert difference(final_weights(tmp_path / "run"), final_weights(tmp_path / "whole")) == 0
