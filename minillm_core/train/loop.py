"""The training loop: one function for supervised fine-tuning, every baseline and MiniLLM.

A phase is a method (data, :class:`Method`), a plan (steps, rates, intervals) and a student. Each
pass of the loop takes the next step's rows from the current round, makes a round where there is
none, does one optimizer step, and where it is due evaluates, keeps the best weights and writes a
checkpoint. Nothing here knows a method by name.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from minillm_core.data.dataset import TokenizedRow
from minillm_core.data.sampler import EpochCursor
from minillm_core.errors import UserError
from minillm_core.rollout.decoder import Decoder, make_decoder
from minillm_core.spec import JobSpec, Phase, SftPhase, TrainingSpec
from minillm_core.train.checkpoints import Checkpoints, RunState, set_random_state
from minillm_core.train.distributed import Ranks
from minillm_core.train.engine import TORCH_DTYPES, Engine, scheduled_rate
from minillm_core.train.events import EventLog
from minillm_core.train.guards import Guards
from minillm_core.train.memory import give_back_freed_memory
from minillm_core.train.methods import Method
from minillm_core.train.progress import Progress
from minillm_core.train.rollouts import Sampling, collect_round
from minillm_core.train.rounds import Round, TrainRow, derived_seed, owned_rows
from minillm_core.train.selection import Kept, Selection, warnings_of
from minillm_core.train.step import train_step
from minillm_core.train.stop import StopFlag, Stopped
from minillm_core.train.student import StudentModule, loss_head
from minillm_core.train.weights import save_weights


@dataclass(frozen=True)
class PhasePlan:
    """How long and how fast a phase trains; counts are global, never per device."""

    max_steps: int
    rows_per_step: int
    learning_rate: float
    schedule: str
    warmup_steps: int
    weight_decay: float
    eval_every: int
    save_every: int

    @classmethod
    def of_training(cls, training: TrainingSpec) -> PhasePlan:
        return cls(
            training.max_steps,
            training.rows_per_step,
            training.learning_rate,
            training.schedule,
            training.warmup_steps,
            training.weight_decay,
            training.evaluation_interval,
            training.checkpoint_interval,
        )

    @classmethod
    def of_sft(cls, sft: SftPhase, train_rows: int) -> PhasePlan:
        epoch = max(1, math.ceil(train_rows / sft.rows_per_step))
        steps = sft.max_steps or max(1, round(sft.epochs * epoch))
        interval = min(steps, sft.eval_every or epoch)
        return cls(
            steps,
            sft.rows_per_step,
            sft.learning_rate,
            sft.schedule,
            sft.warmup_steps,
            sft.weight_decay,
            interval,
            max(interval, steps // 4),
        )


@dataclass(frozen=True)
class Run:
    """What all phases of a run share."""

    job: JobSpec
    ranks: Ranks
    events: EventLog
    progress: Progress
    checkpoints: Checkpoints
    stop: StopFlag
    state: RunState
    sampling: Sampling
    pad_id: int
    vocab: int
    corpus: torch.Tensor | None = None
    """Blocks (N, T) of the pre-training corpus."""


def train_phase(
    run: Run,
    *,
    name: str,
    phase: Phase,
    method: Method,
    plan: PhasePlan,
    model: nn.Module,
    teacher: Decoder | None,
    rows: list[TokenizedRow],
    selection: Selection,
    resume_from: Path | None,
    round_: Round | None,
    random_state: dict[str, Any] | None,
) -> nn.Module:
    """Train ``model`` and leave the best weights in ``weights/<name>.safetensors``.

    Returns the model as the last step left it: ``model`` itself or, under ZeRO-3, a whole copy of it.

    With ``resume_from`` the state of ``run`` is that of the checkpoint and training goes on from
    its step. Raises :class:`Stopped` after a checkpoint when asked to stop, UserError
    ``loss_diverged`` when a guard gives the run up.
    """
    job, state, ranks = run.job, run.state, run.ranks
    training = job.training
    teacher_head = None if teacher is None else loss_head(teacher.head, run.vocab)
    module = StudentModule(model, vocab=run.vocab, teacher_head=teacher_head, zero_stage=job.resources.zero_stage)
    if method.policy is not None:
        # The ratio compares with the student that sampled, which has no dropout; an adapter may bring some.
        module.eval()
    engine = Engine(
        module,
        learning_rate=plan.learning_rate,
        betas=training.betas,
        weight_decay=plan.weight_decay,
        grad_clip=training.grad_clip,
        dtype=training.dtype,
        resources=job.resources,
        ranks=ranks,
    )
    if engine.reads_gradients_last:
        module.add_gradients_in_place()
    seed = derived_seed(job.seed, name)
    cursor = EpochCursor(len(rows), derived_seed(seed, "rows"))
    corpus_cursor = None
    if run.corpus is not None and method.lm_coef > 0:
        corpus_cursor = EpochCursor(len(run.corpus), derived_seed(seed, "corpus"))
    guards = Guards(job.guards)
    kept = Kept(run.checkpoints.weights, name, state, ranks)

    if resume_from is not None:
        engine.load(resume_from)
        assert state.cursor is not None and random_state is not None
        cursor.load_state_dict(state.cursor)
        if corpus_cursor is not None and state.corpus_cursor is not None:
            corpus_cursor.load_state_dict(state.corpus_cursor)
        if state.guards is not None:
            guards.load_state_dict(state.guards)
        set_random_state(random_state)
    else:
        torch.manual_seed(derived_seed(seed, "dropout", ranks.rank))
        state.phase, state.step, state.best_score, state.best_step = phase.value, 0, None, -1
        state.level = None
        round_ = None
    run.progress.enter(phase, f"{method.name}: {plan.max_steps} steps of {plan.rows_per_step} rows")
    latest: dict[str, float] = {}

    def current_decoder(whole: nn.Module) -> Decoder:
        """The student's decoder with the weights of this step; not kept between rounds, it costs memory."""
        return make_decoder(whole, dtype=TORCH_DTYPES[training.decode_dtype or training.dtype])

    def save(*, healthy: bool = True) -> None:
        state.cursor = cursor.state_dict()
        state.corpus_cursor = None if corpus_cursor is None else corpus_cursor.state_dict()
        state.guards = guards.state_dict()
        if healthy:
            run.checkpoints.save(state, engine, round_, latest)
        else:
            # Nothing to go on from, only the best weights so far.
            run.checkpoints.save(state, None, None, latest, resumable=False)

    def evaluate() -> None:
        run.progress.enter(Phase.EVALUATING, f"dev set after {state.step} steps")
        loss = None
        with engine.whole_model() as whole:
            metrics, value = selection.score(whole, current_decoder(whole) if selection.samples else None)
            if selection.samples and kept.undecided(value):
                loss = metrics["validation_loss"] = selection.loss(whole)
        latest.update(metrics)
        run.events.metrics(phase, state.step, metrics)
        kept.offer(value, loss, lambda path: save_weights(engine, path, ranks))
        give_back_freed_memory()
        run.progress.enter(phase)

    def give_up(message: str, *, healthy: bool) -> NoReturn:
        run.events.message("error", "loss_diverged", message, step=state.step)
        save(healthy=healthy)
        raise UserError("loss_diverged", f"{message}; the best student so far is kept (step {state.best_step})")

    try:
        if state.step == 0 and state.best_step < 0:
            evaluate()
        clock = time.monotonic()
        while state.step < plan.max_steps:
            if round_ is None or round_.exhausted:
                number = 0 if round_ is None else round_.number + 1
                if method.samples_student:
                    assert teacher is not None
                    run.progress.enter(Phase.GENERATING, f"round {number + 1}")
                    with engine.whole_model() as whole:
                        round_, health, measured, work = collect_round(
                            number,
                            [rows[index] for index in cursor.take(method.rollouts_per_round)],
                            method,
                            student=current_decoder(whole),
                            teacher=teacher,
                            sampling=run.sampling,
                            rows_per_step=plan.rows_per_step,
                            seed=seed,
                            ranks=ranks,
                        )
                    # The decoder's memory and the last round's: training needs other shapes.
                    give_back_freed_memory()
                    latest.update(measured)
                    timed = {f"{part}_seconds": seconds for part, seconds in work.seconds.items()}
                    run.events.metrics(phase, state.step, {**measured, **timed})
                    for code, sentence in guards.observe(health).items():
                        run.events.message("warning", f"guard_{code}", sentence, step=state.step)
                    if guards.exhausted is not None:
                        rounds = guards.past[guards.exhausted]
                        give_up(
                            f"the guard {guards.exhausted} was past its limit {rounds} rounds in a row", healthy=True
                        )
                    run.progress.enter(phase)
                else:
                    round_ = dataset_round(number, rows, cursor, method, plan, seed, ranks)
                if run.stop.agreed(ranks):
                    save()
                    raise Stopped(f"stopped after {state.step} steps")
            rate = scheduled_rate(
                plan.schedule, state.step, peak=plan.learning_rate, total=plan.max_steps, warmup=plan.warmup_steps
            )
            blocks = None
            if corpus_cursor is not None:
                chosen = corpus_cursor.take(plan.rows_per_step)
                assert run.corpus is not None
                blocks = run.corpus[[chosen[index] for index in ranks.share(len(chosen))]]
            result = train_step(
                engine,
                round_.next_rows(),
                blocks,
                method,
                teacher,
                learning_rate=rate,
                micro_batch_tokens=training.micro_batch_tokens,
                response_width=training.max_new_tokens,
                pad_id=run.pad_id,
                ranks=ranks,
            )
            if result is None:
                give_up(f"the loss or the gradient of step {state.step + 1} is not finite", healthy=False)
            state.step += 1
            round_.steps_done += 1
            now = time.monotonic()
            state.train_seconds += now - clock
            speed = result.tokens / (now - clock)
            clock = now
            latest.update(result.metrics)
            timed = {f"{part}_seconds": seconds for part, seconds in result.seconds.items()}
            values = {**result.metrics, "tokens_per_second": speed, "learning_rate": rate, **timed}
            run.events.metrics(phase, state.step, values)
            run.progress.report(
                name,
                state.step / plan.max_steps,
                step=state.step,
                total_steps=plan.max_steps,
                tokens_per_second=speed,
                force=state.step == plan.max_steps,
            )
            last = state.step == plan.max_steps
            if state.step % plan.eval_every == 0 or last:
                evaluate()
                clock = time.monotonic()
            stopping = run.stop.agreed(ranks)
            # The last step too: what follows it, such as the measurements, may be long and must cost no training.
            if stopping or last or state.step % plan.save_every == 0:
                save()
                clock = time.monotonic()
            if stopping:
                raise Stopped(f"stopped after {state.step} steps")
        trained = engine.finished_model()
    finally:
        engine.close()
    state.completed.append(name)
    state.results[name] = kept.settle(selection.criterion)
    for code, sentence in warnings_of(phase, state.results[name]).items():
        run.events.message("warning", code, sentence, step=state.step)
    return trained


def dataset_round(
    number: int,
    rows: list[TokenizedRow],
    cursor: EpochCursor,
    method: Method,
    plan: PhasePlan,
    seed: int,
    ranks: Ranks,
) -> Round:
    """One step's rows with the responses they have."""
    chosen = [rows[index] for index in cursor.take(plan.rows_per_step)]
    own = owned_rows(len(chosen), plan.rows_per_step, ranks.rank, ranks.world)
    return Round(
        number=number,
        rows={row: TrainRow(chosen[row].prompt_ids, chosen[row].response_ids) for row in own},
        total_rows=len(chosen),
        rows_per_step=plan.rows_per_step,
        seed=derived_seed(seed, "order"),
    )
