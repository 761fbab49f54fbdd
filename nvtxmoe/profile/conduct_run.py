"""A profile run from its start to its results."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe.profile.capture_size import LoadSize
from nvtxmoe.profile.interrupts import Interrupts
from nvtxmoe.profile.load_client import Load
from nvtxmoe.profile.load_drive import bench_program, drive_with_bar, drive_with_bench
from nvtxmoe.profile.load_report import LoadReport
from nvtxmoe.profile.log_tee import Echo, last_lines
from nvtxmoe.profile.plan import Plan
from nvtxmoe.profile.preflight import preflight
from nvtxmoe.profile.process_run import Run
from nvtxmoe.profile.qdstrm_import import import_raw
from nvtxmoe.profile.results import RESULTS, analyze_report, check_report, listing, merge_session
from nvtxmoe.profile.server import Server, wait_until_ready
from nvtxmoe_analysis.core.text import number

FAILED, INCOMPLETE = 1, 3


@dataclass(frozen=True)
class RunOptions:
    """How a plan is carried out; see the options of ``nvtxmoe profile``."""

    load: LoadSize | None = None
    seed: int = 0
    client: str = "auto"
    ready_timeout_s: float = 1800.0
    stop_timeout_s: float = 120.0
    analyze: bool = True
    verbose: bool = False
    strict: bool = False


@dataclass
class Outcome:
    """How a run went.

    Attributes:
        code: exit code of the command.
        asked: whether it ended because it was asked to.
        forced: whether force was needed for that.
        load: how the requests fared.
        error: why it is not worth analysing.
    """

    code: int = 0
    asked: bool = False
    forced: bool = False
    load: LoadReport | None = None
    error: NvtxmoeError | None = None


def show_message(text: str) -> None:
    """A line of ours between those of the command."""
    sys.stdout.write(f"nvtxmoe: {text}\n")
    sys.stdout.flush()


def run_profile(plan: Plan, wishes: RunOptions) -> int:
    """Run a plan, then export and analyse; the exit code.

    Raises:
        NvtxmoeError: the run can't be made, or what it left can't be read. What there is stays in the folder.
    """
    preflight(
        plan.folder,
        under_nsys=plan.nsys is not None,
        server=plan.server,
        expected_bytes=plan.size.total_bytes if plan.size else None,
    )
    for note in plan.notes:
        show_message(note)
    show_message(f"running\n{plan.shown()}")
    plan.folder.mkdir(parents=True, exist_ok=True)
    outcome = _run(plan, wishes)
    if plan.nsys is not None:
        import_raw(plan.nsys.path, plan.folder, plan.log, show_message)
    if outcome.load is not None:
        show_message(outcome.load.line())
    if outcome.error is not None:
        _show_failure(plan)
        raise outcome.error
    failed = outcome.code != 0 and not outcome.asked
    if failed:
        _show_failure(plan)
        show_message(f"the command failed with exit code {outcome.code}; what was recorded until then is kept")
    elif outcome.forced:
        show_message("the command had to be ended by force: what it recorded last may be missing")
    elif outcome.code:
        show_message(f"the command ended with exit code {outcome.code} after it was asked to end")
    complete = True
    if wishes.analyze:
        try:
            complete = _analyze(plan)
        except NvtxmoeError as error:
            if not failed:
                raise
            show_message(f"that can't be analysed: {error}")
    show_message(f"everything is in {plan.folder}: {', '.join(listing(plan))}")
    if (plan.folder / RESULTS).exists():
        verdict = "" if complete else " of an incomplete capture (the reasons are above)"
        show_message(f"results{verdict}: {plan.folder / RESULTS}")
    if failed or (outcome.load is not None and outcome.load.failed):
        return FAILED
    return INCOMPLETE if wishes.strict and not complete else 0


def _analyze(plan: Plan) -> bool:
    """Analyse what was recorded; whether all of it is complete."""
    complete = True
    if plan.nsys is not None:
        complete &= analyze_report(plan, check_report(plan)).complete
    if plan.direct is not None:
        done = merge_session(plan.direct, show=plan.nsys is None)
        complete &= done.complete
        if plan.nsys is not None:
            show_message(f"the same from mode moe's journals: {done.folder}")
    return complete


def _show_failure(plan: Plan) -> None:
    """The last lines of a command's output, unless all of it was shown."""
    if plan.server is not None:
        show_message(f"the end of {plan.log}:")
        for line in last_lines(plan.log):
            sys.stdout.write(f"  {line}\n")
        sys.stdout.flush()


def _run(plan: Plan, wishes: RunOptions) -> Outcome:
    plan.log.touch()
    outcome = Outcome()
    quiet = wishes.load is not None and not wishes.verbose
    if quiet:
        show_message(f"the server's output goes to {plan.log}")
    with Interrupts() as interrupts, Echo(plan.log, show=not quiet):
        run = Run(
            plan.argv,
            plan.environment.applied(os.environ),
            plan.log,
            nsys=plan.nsys.path if plan.nsys else None,
            session=plan.session,
            show_message=show_message,
            pressed=lambda: interrupts.count,
        )
        try:
            interrupts.arm()
            if plan.server is not None and wishes.load is not None:
                _serve(plan, plan.server, wishes, wishes.load, run, outcome)
            else:
                run.wait()
        except KeyboardInterrupt:
            show_message("interrupted")
        except NvtxmoeError as error:
            outcome.error = error
        finally:
            interrupts.disarm()
            if not run.ended():
                outcome.asked = run.end(wishes.stop_timeout_s)
            if plan.nsys is None:
                run.settle(wishes.stop_timeout_s)
            outcome.code, outcome.forced = run.code, run.forced
    return outcome


def _serve(plan: Plan, server: Server, wishes: RunOptions, size: LoadSize, run: Run, outcome: Outcome) -> None:
    """Wait for the server, send it the load; it is left running unless it ends by itself."""
    show_message(f"waiting until the server is ready at {server.base_url}")
    if not wait_until_ready(server, run.ended, wishes.ready_timeout_s):
        raise NvtxmoeError(
            f"the server ended before it was ready, with exit code {run.code}",
            where=plan.log,
            remedy="The end of its output is above",
        )
    load = Load(
        base_url=server.base_url,
        num_requests=size.num_requests,
        concurrency=size.concurrency,
        max_tokens=size.max_tokens,
        prompt_tokens=size.prompt_tokens,
        seed=wishes.seed,
    )
    outcome.load = _drive(plan, wishes, load)


def _drive(plan: Plan, wishes: RunOptions, load: Load) -> LoadReport:
    bench = bench_program(plan.command, plan.python) if plan.python and wishes.client != "nvtxmoe" else None
    if bench is None and wishes.client == "vllm":
        raise NvtxmoeError("the command's environment has no vLLM client", remedy="Use --client nvtxmoe")
    if bench is not None:
        report = drive_with_bench(bench, load, plan.folder / "load.log", show_message)
        if report is not None:
            return report
        if wishes.client == "vllm":
            raise NvtxmoeError("vLLM's bench client failed", where=plan.folder / "load.log", remedy="See its end")
    show_message(f"sending {number(load.num_requests, 'request')}")
    return drive_with_bar(load)
