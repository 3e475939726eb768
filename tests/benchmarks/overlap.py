"""Groups trained per second by the asynchronous loop, over what its slower side reaches alone. Target: at least 0.9.

The loop is that of `posttrain rl`: its controller with one generator, one trainer and the verifier on Ray, preset
`tiny`, staleness 2. Alone: the same generator actor with the verifier and no trainer, on draws that a window of the
loop recorded (same prompts and seeds), with as many groups in flight as the loop has slots, times the share of groups
that the loop admits; and the same trainer actor on the groups that this window trained. One thread each throughout.
The learning rate is 1e-12, so that the policy, and with it the work, stays the same.

A first window fills the sampler's statistics; the windows after it start from there, so that the admitted share is
steady. The first steps of a window are not timed. There are no evaluations and no checkpoints. Other settings of the
preset are tried with `--set`, such as `--set generators.keep_cache=true`.

`async_over_sync`: against the same code with `max_staleness: 0` and `oversample: 1.5`, on the same cores.

Budget: 15 minutes on two cores.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from posttrain.cluster import Cluster, run
from posttrain.config import RLConfig, load_config
from tests.benchmarks.harness import Bench, Measurement, Options, column, medians, spread, spreads
from tests.benchmarks.loop import FROZEN, Loop, Recording


class Arms:
    """The loop and its two sides alone, started on first use."""

    def __init__(self, bench: Bench, cluster: Cluster) -> None:
        """Starts nothing."""
        self._bench, self._cluster, self._settings = bench, cluster, bench.settings
        self._rl = cluster.config.rl

    @cached_property
    def _loop(self) -> Loop:
        with self._bench.timed("start"):
            loop = Loop(self._cluster, self._cluster.config)
            run(loop.workers.ready())
        return loop

    @cached_property
    def _recording(self) -> Recording:
        """The sampler's statistics after a first window, and what the window after that drew and trained."""
        warm_up, steps = self._settings["warm_up"], self._settings["steps"]
        loop = self._loop
        with self._bench.timed("warm_up"):
            _, filled = run(loop.window(self._rl, 1, self._settings["filling_steps"]))
            _, recorded = run(loop.window(self._rl, warm_up, steps, filled))
        # The sampler goes back to where the recorded window began.
        return Recording(filled.version, filled.sampler, recorded.draws, recorded.batches)

    def asynchronous(self, repetition: int) -> Measurement:
        """The loop."""
        return self._window(self._rl)

    def synchronous(self, repetition: int) -> Measurement:
        """The loop in rounds."""
        changes = {"max_staleness": 0, "oversample": self._settings["sync_oversample"]}
        return self._window(RLConfig.model_validate(self._rl.model_dump() | changes))

    def _window(self, rl: RLConfig) -> Measurement:
        recording = self._recording
        return run(self._loop.window(rl, self._settings["warm_up"], self._settings["steps"], recording))[0]

    def generation(self, repetition: int) -> Measurement:
        """The generator and the verifier alone."""
        in_flight = (self._rl.max_staleness + 1) * self._rl.prompts_per_step
        found: Measurement = run(self._loop.generation(self._recording.draws, in_flight))
        return found

    def training(self, repetition: int) -> Measurement:
        """The trainer alone."""
        found: Measurement = run(self._loop.training(self._recording.batches, self._settings["warm_up"]))
        return found


def main(options: Options) -> dict[str, Any]:
    """Runs it; returns the line."""
    quick = ["rl.prompts_per_step=4", "rl.group_size=4", "rl.quotas=null"] if options.quick else []
    config = load_config("tiny", [*FROZEN, *quick, *options.overrides])
    settings = {
        "overrides": options.overrides,
        "model": config.model, "dtype": config.dtype, "threads": config.threads, "rl": config.rl.model_dump(),
        "filling_steps": 2 if options.quick else 12, "warm_up": 1 if options.quick else 4,
        "steps": 6 if options.quick else 20, "repetitions": 1 if options.quick else 5, "sync_oversample": 1.5,
    }  # fmt: skip
    folder = Path(__file__).parent
    bench = Bench("overlap", options, settings, (folder / "overlap.py", folder / "loop.py"))
    with Cluster(config) as cluster:
        arms = Arms(bench, cluster)
        sides = {
            "async": arms.asynchronous, "generation_alone": arms.generation, "training_alone": arms.training,
            "sync": arms.synchronous,
        }  # fmt: skip
        measured = bench.interleave(sides, settings["repetitions"])

    def share_of_slower(loop: float, admitted: float, generation: float, training: float) -> float:
        return loop / min(generation * admitted, training)

    groups = medians(measured, "groups_per_second")
    admitted = spread(column(measured["async"], "admitted_share"))
    columns = [column(measured["async"], "groups_per_second"), column(measured["async"], "admitted_share")]
    columns += [column(measured[side], "groups_per_second") for side in ("generation_alone", "training_alone")]
    alone = {"generation": groups["generation_alone"] * admitted["median"], "training": groups["training_alone"]}
    loops = {name: measured[name] for name in ("async", "sync")}
    ratio = spread(share_of_slower(*values) for values in zip(*columns, strict=True))
    return bench.line(
        ratio["median"], 0.9, "at least", unit="groups/s trained over those of the slower side alone",
        by_repetition=ratio,
        ratio_of_medians=share_of_slower(
            groups["async"], admitted["median"], groups["generation_alone"], groups["training_alone"]
        ),
        alone_admitted_groups_per_second=alone, slower=min(alone, key=lambda side: alone[side]),
        async_over_sync=spread(
            one / other for one, other in zip(columns[0], column(measured["sync"], "groups_per_second"), strict=True)
        ),
        admitted_share=admitted,
        groups_per_second=spreads(measured, "groups_per_second"),
        **{
            name: spreads(loops, name)
            for name in ("generator_busy", "trainer_busy", "pause_per_step", "tokens_per_step", "staleness")
        },
    )  # fmt: skip
