"""`posttrain rl`: puts the loop of `rl.py` together with its real workers, checkpoints, evaluation and log lines."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

from curricula.curriculum import Curriculum
from curricula.sampler import PromptSampler
from curricula.window import PromptWindow
from posttrain import data
from posttrain.cluster import Cluster, GeneratorPool, answer, run
from posttrain.config import Config, resolve_model
from posttrain.curriculum_log import NAME as CURRICULUM
from posttrain.curriculum_log import CurriculumLog
from posttrain.curriculum_plots import draw_curriculum
from posttrain.evaluate import evaluate
from posttrain.interrupt import Stopped, on_interrupt
from posttrain.ledger import Ledger, Watermark
from posttrain.metrics import MetricsLog
from posttrain.parity import MAX_DRIFT, probable_causes
from posttrain.passk import check_matches, read_scan
from posttrain.placement import ROLES
from posttrain.progress import bar, say
from posttrain.resume import TakenUp, take_up
from posttrain.reward import scorer_of
from posttrain.rl import Controller, Step
from posttrain.rl_state import LEDGER, UNDER_WAY, RLState, check_stands, fixed_settings, standing_checkpoint
from posttrain.rundir import RunDir, write_json
from posttrain.slots import Judged
from posttrain.trainer import check_model
from posttrain.workers import RayWorkers
from rollouts.dotted import load_dotted
from rollouts.errors import DriftError
from rollouts.recorder import write_shard
from rollouts.renderer import Renderer
from rollouts.types import Prompt

DRIFT_PROMPTS = 4
"""Prompts by which engines and trainer are compared."""


@dataclass(frozen=True)
class RLSummary:
    """What an RL stage did, over all attempts that led to its newest checkpoint.

    Busy shares are of the wall time: how long the engines (on average), and the trainer, were at work.
    """

    steps: int = 0
    groups_trained: int = 0
    groups_rejected: int = 0
    rejected_by_reason: dict[str, int] = field(default_factory=dict)
    max_staleness_seen: int = 0
    tokens_generated: int = 0
    seconds: float = 0.0
    generator_busy_share: float = 0.0
    trainer_busy_share: float = 0.0


def train_rl(config: Config, rundir: RunDir, resume: str | None = None) -> Path:
    """Runs the stage; returns its last checkpoint.

    Args:
        config: of the run.
        rundir: whose newest SFT checkpoint (or the base model) RL starts from.
        resume: `auto`, or a checkpoint directory of this stage to continue from.

    Raises:
        UserError: wrong data, checkpoint or reward; or no prompt gives a signal.
        Stopped: by the user; a checkpoint was written.
    """
    if resume == "auto" and (standing := standing_checkpoint(rundir.path)) is not None:
        resume = str(standing)
    parent, checkpoint = rundir.begin("rl", resolve_model(config.model), resume)
    if config.environment is not None:
        load_dotted(config.environment, "environment")
    scorer_of(config)  # so that a wrong name is told before anything is started
    check_model(parent, config.rl)
    state = RLState.read(checkpoint) if checkpoint else None
    if checkpoint and state:
        state.check(config, checkpoint)
        check_stands(rundir.path, state)
    renderer = Renderer(parent)
    prompts: list[Prompt] | PromptWindow
    if config.data.prompts.window is None:
        prompts = data.prompts(config, "prompts", renderer, config.rl.sampling.max_tokens, say)
        data.check_quotas(config, prompts, say)
    else:
        prompts = data.window(config, renderer, say, checkpoint)
    heldout = data.prompts(config, "heldout", renderer, config.eval.max_tokens, say) if config.rl.eval_every else []
    rl, taken_up = config.rl, None
    curriculum = Curriculum(**rl.curriculum.model_dump(), steps=rl.steps)
    sampler = PromptSampler(prompts, rl.selection, rl.group_size, config.seed, curriculum)
    _take_scan(config, sampler, checkpoint is not None)
    if checkpoint and state:
        folder = rundir.stage("rl") / "rollouts"
        taken_up = take_up(checkpoint, state, sampler, data.instructions(config), folder, rl.group_size)
    rundir.save_config()
    with Cluster.of(config, ROLES["rl"]) as cluster:
        stage = RLStage(config, rundir, cluster, renderer, parent, checkpoint, state)
        newest: Path = run(stage.run(sampler, heldout[: rl.eval_prompts], taken_up))
        stage.workers.trainer.end()
        return newest


def _take_scan(config: Config, sampler: PromptSampler, resumed: bool) -> None:
    """Gives the sampler the scan that the run starts from, if there is one. The statistics of a resumed run know it of
    what they hold, but not of what a window takes in later.
    """
    path = config.rl.start_from_scan
    if path is None or (resumed and sampler.window is None):
        return
    found = read_scan(path)
    if resumed:
        sampler.scan = found
        return
    matched = check_matches(path, found, sampler.prompts)
    say(f"{path}: pass rates of {matched} of {len(sampler.prompts)} prompts; the others start unseen")
    sampler.observe_scan(found)


class RLStage:
    """One attempt at the stage."""

    def __init__(
        self,
        config: Config,
        rundir: RunDir,
        cluster: Cluster,
        renderer: Renderer,
        parent: str,
        checkpoint: Path | None,
        state: RLState | None,
    ) -> None:
        """Starts the workers on the checkpoint to continue from, which has the state, or on the parent."""
        self.config, self.rundir, self.parent, self.checkpoint = config, rundir, parent, checkpoint
        self.state = state
        self.renderer = renderer
        self.folder = rundir.stage("rl")
        start = str(checkpoint or parent)
        self.pool: GeneratorPool = cluster.pool(parent if config.lora else start)
        self.workers = RayWorkers(cluster, self.pool, renderer, start, parent, self.folder)
        self.shards = list(self.state.shards) if self.state else []
        self.log = MetricsLog(rundir.path, config.metrics, "rl")
        self.agreed: int | None = None  # the last version at which engines and trainer were compared
        self._evaluation: asyncio.Task[None] | None = None
        self._drawing: asyncio.Task[None] | None = None  # of the curriculum
        self._drawn = 0  # the version at which that began

    async def run(self, sampler: PromptSampler, heldout: list[Prompt], taken_up: TakenUp | None) -> Path:
        """Trains, with a checkpoint every so often and at the end, whatever ends it but an error.

        Args:
            sampler: of the prompts to train on.
            heldout: to evaluate on.
            taken_up: of the checkpoint to continue from, if there is one.
        """
        rl = self.config.rl
        await self.workers.ready()
        version = self.state.version if self.state else 0
        await self.workers.begin(version, str(self.checkpoint) if self.checkpoint else None)
        self.sampler, self.ledger = sampler, Ledger(self.rundir.path / LEDGER)
        if self.checkpoint is not None:  # first: killed before the ledger has voided what came later, it would count
            self.rundir.give_up_after(self.checkpoint)
        voided = self.ledger.begin(version, self.state.watermark if self.state else Watermark())
        self.log.drop_after(version if self.state else None)
        pools = data.instructions(self.config)
        self.controller = Controller(rl, self.sampler, self.workers, self.ledger, version, pools)
        if self.state and taken_up:
            say(f"going on after step {version}: {voided} later draws are void; {taken_up}")
            self._restore(self.state, taken_up)
        self.curriculum = CurriculumLog(self.folder / CURRICULUM, version, self.sampler, self.controller.slots.asked)
        self.heldout, self.scorer = heldout, scorer_of(self.config, self.workers.graders)
        self.started = time.monotonic()
        self.engines_before = await self.workers.engine_metrics()
        with on_interrupt(self.controller.stop), bar("rl", rl.steps, "step", done=version) as self.bar:
            await self._check_drift(version)
            await self._evaluate(version)
            await self.controller.run(self._checkpoint_when_due, self._report)
            await self._evaluation_done()
        newest = await self._finish()
        if self.controller.version < rl.steps:
            raise Stopped(f"rl stopped after step {self.controller.version} of {rl.steps}; {newest} holds it")
        return newest

    def _restore(self, state: RLState, taken_up: TakenUp) -> None:
        """Gives the loop what the checkpoint kept."""
        pending, begun = taken_up.pending, taken_up.begun
        for row in pending.removed:
            solved, rollouts, tokens = (value or 0 for value in (row.solved, row.rollouts, row.tokens))
            self.ledger.judged(row.draw_id, "rejected", "removed", solved, rollouts, tokens)
        self.controller.totals.rejected["removed"] += len(pending.removed)
        draws = [
            (draw, Judged.of(draw, group, self.workers.keep(group)) if group else None) for draw, group in pending.draws
        ]
        self.workers.go_on(begun)
        oldest = {draw_id: min(group.versions) for draw_id, group in begun.items()}
        self.controller.restore(state.controller, state.watermark.next_draw, draws, oldest)
        pending.draws.clear()  # the groups are Ray's by now; here they would be in memory as long as the run lives
        begun.clear()

    async def _finish(self) -> Path:
        newest = self.rundir.newest("rl")
        if newest is None or int(newest.name.removeprefix("step-")) != self.controller.version:
            newest = await self._checkpoint(self.controller.version)
        await self._drawing_done()
        write_json(self.folder / "summary.json", asdict(await self._summary()))
        self.ledger.close()
        self.curriculum.close()
        self.log.close()
        return newest

    # -------------------------------------------------------------------------------------------- at each step

    async def _report(self, step: Step) -> None:
        """One line for people, scalars for the curves, and the evaluation when it is due."""
        seconds = time.monotonic() - self.started
        generated = (await self.workers.engine_metrics())["tokens"] - self.engines_before["tokens"]
        before = self.state.summary["tokens_generated"] if self.state else 0
        scalars = step.scalars() | {"tokens_per_second": generated / seconds, "tokens_generated": before + generated}
        self.log.write(step.version, scalars)
        train = step.train
        say(
            f"step {step.version:4d}  reward {step.reward:.3f}  solved {step.solved:.3f}  staleness {step.staleness}  "
            f"rejected {step.rejected / (step.rejected + self.config.rl.prompts_per_step):4.0%}  "
            f"{generated / seconds:6.0f} tok/s  entropy {train.entropy:.3f}  kl {train.kl:.4f}  "
            f"lr {train.learning_rate:.1e}"
        )
        self.bar.advance()
        if self.config.rl.drift_every and step.version % self.config.rl.drift_every == 0:
            await self._check_drift(step.version)
        if self.config.rl.eval_every and step.version % self.config.rl.eval_every == 0:
            await self._evaluate(step.version)

    async def _check_drift(self, version: int) -> None:
        """Compares engines and trainer on fresh completions, while both hold this version.

        Raises:
            DriftError: they differ by more than `rl.max_drift`; a checkpoint holds what was trained.
        """
        rl = self.config.rl
        if not rl.drift_every:
            return
        prompts = self.sampler.prompts
        first = version * DRIFT_PROMPTS % len(prompts)
        drift = await self.workers.drift(prompts[first : first + DRIFT_PROMPTS])
        self.log.write(version, {"drift": drift})
        limit = rl.max_drift or MAX_DRIFT[self.config.dtype]
        if drift <= limit:  # not so where it is not a number
            self.agreed = version
            return
        if self.agreed is None:
            since = "nothing was trained with that"
        else:
            since = f"they agreed after step {self.agreed}; {await self._finish()} holds the policy"
        raise DriftError(
            f"engines and trainer give the same tokens other log-probabilities: {drift:.2g} nats apart on average "
            f"after step {version}, more than {limit:g} (rl.max_drift); probably {probable_causes(rl)}; {since}; "
            "`posttrain doctor` looks for the cause"
        )

    async def _evaluate(self, version: int) -> None:
        """Evaluates one named version: on spare engines while the loop goes on, else with the loop waiting."""
        if not self.heldout:
            return
        await self._evaluation_done()
        await self.workers.update_evaluators()

        async def work() -> None:
            report = await evaluate(
                self.pool, self.renderer, self.heldout, self.scorer, self.config, self.workers.evaluators, (), 1
            )
            self.log.write(version, {"eval/pass@1": report.pass_at_1, "eval/corner_cases": report.corner_cases["any"]})
            low, high = report.ci95
            say(
                f"held-out after step {version}: pass@1 {report.pass_at_1:.3f} ({low:.3f}-{high:.3f}), corner cases "
                f"{report.corner_cases['any']:.1%}, {report.mean_tokens:.0f} tokens, {report.prompts} prompts"
            )

        self._evaluation = asyncio.ensure_future(work())
        if not self.workers.has_spare_engines:
            await self._evaluation_done()

    async def _evaluation_done(self) -> None:
        if self._evaluation is not None:
            await self._evaluation
            self._evaluation = None

    # -------------------------------------------------------------------------------------------- checkpoints

    async def _checkpoint_when_due(self, version: int) -> None:
        self.curriculum.write(version, self.controller.totals)
        if version % self.config.rl.checkpoint_every == 0 or version == self.config.rl.steps:
            await self._checkpoint(version)

    async def _checkpoint(self, version: int) -> Path:
        """Rollout shard first, then weights, optimizer, statistics and random state; the manifest last."""
        limit = self.config.rl.step_timeout
        shard = self.folder / "rollouts" / f"attempt-{self.ledger.attempt:03d}-step-{version:06d}.parquet"
        watermark = self.ledger.watermark(self.controller.next_draw)
        under_way = {row.draw_id for row in watermark.pending if row.state == "drawn"}
        # Seeds make a synchronous run's rollouts again as they were.
        begun = self.workers.under_way(under_way if self.config.rl.max_staleness else ())
        written = self.workers.verifier.write_shard.remote(str(shard), under_way)
        groups = await begun
        if await answer(written, limit, "the verifier to write its rollouts"):
            self.shards.append(shard.name)
        state = RLState(
            version=version, settings=fixed_settings(self.config), controller=self.controller.state_dict(),
            watermark=watermark, shards=tuple(self.shards), summary=asdict(await self._summary()),
        )  # fmt: skip
        with self.rundir.new_checkpoint("rl", version, self.parent, self.config.rl.checkpoints_kept) as directory:
            await self.workers.trainer.save(str(directory))
            self.sampler.save(directory)
            write_shard(directory / UNDER_WAY, groups)
            state.write(directory)
        if self._drawing is None or self._drawing.done():
            self._draw(version)
        return self.rundir.checkpoints("rl")[-1]

    def _draw(self, version: int) -> None:
        """Draws the curriculum in a thread, while the loop goes on."""
        self._drawn = version
        self._drawing = asyncio.ensure_future(asyncio.to_thread(draw_curriculum, self.folder, self.rundir.path.name))

    async def _drawing_done(self) -> None:
        """Waits for the drawing, and for another where the last checkpoint came while it was under way."""
        if self._drawing is not None:
            await self._drawing
            if self._drawn < self.controller.version:
                self._draw(self.controller.version)
                await self._drawing

    async def _summary(self) -> RLSummary:
        seconds = time.monotonic() - self.started
        engines = await self.workers.engine_metrics()
        trainer = await self.workers.trainer.metrics()
        generating = (engines["busy_seconds"] - self.engines_before["busy_seconds"]) / self.config.rl.generators
        totals = self.controller.totals
        before = RLSummary(**self.state.summary) if self.state else RLSummary()
        together = before.seconds + seconds
        rejected = Counter(before.rejected_by_reason) + totals.rejected
        return RLSummary(
            steps=self.controller.version,
            groups_trained=before.groups_trained + totals.groups_trained,
            groups_rejected=rejected.total(),
            rejected_by_reason=dict(rejected),
            max_staleness_seen=max(before.max_staleness_seen, totals.max_staleness_seen),
            tokens_generated=before.tokens_generated + int(engines["tokens"] - self.engines_before["tokens"]),
            seconds=round(together, 1),
            generator_busy_share=round((before.generator_busy_share * before.seconds + generating) / together, 3),
            trainer_busy_share=round(
                (before.trainer_busy_share * before.seconds + trainer["busy_seconds"]) / together, 3
            ),
        )
