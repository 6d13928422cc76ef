"""One run from its spec to the exported student.

The order of the phases is here and nowhere else: resolve and check, fine-tune the teacher,
measure, fine-tune the student, train it by the job's method, measure again, export. Each training
phase can be left out by the spec and resumes from a checkpoint; what is measured once is kept in
the run's state.
"""

from __future__ import annotations

import datetime as dt
import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from minillm_core.data.dataset import TokenizedRow
from minillm_core.data.marks import check_unchanged, marks_of
from minillm_core.data.rendering import clock_at
from minillm_core.errors import SystemFault
from minillm_core.evaluate.measure import Measured, Subject
from minillm_core.evaluate.report import build_report, sample_answers_of
from minillm_core.export.card import RunFacts, Sample
from minillm_core.export.card import Score as CardScore
from minillm_core.export.student import write_student
from minillm_core.models.families import unwrapped
from minillm_core.prepare import Parts, build_student, file_path, prepare
from minillm_core.rollout.decoder import Decoder, make_decoder
from minillm_core.spec import STUDENT_DIR, JobSpec, Phase, RunContext
from minillm_core.spec.event_lines import SAMPLE_CHARACTERS, shortened
from minillm_core.train.checkpoints import Checkpoints, RunState, disk_fault
from minillm_core.train.distributed import Ranks
from minillm_core.train.events import EventLog
from minillm_core.train.loop import PhasePlan, Run, train_phase
from minillm_core.train.memory import drop_mapped_pages, give_back_freed_memory
from minillm_core.train.methods import SFT_METHOD, Method, resolve_method
from minillm_core.train.progress import Progress
from minillm_core.train.rounds import Round
from minillm_core.train.selection import Selection, criterion_of, verdict
from minillm_core.train.stop import StopFlag
from minillm_core.train.teacher_responses import with_teacher_responses
from minillm_core.train.weights import load_weights, merged_model

TEACHER_SFT = Phase.TEACHER_SFT.value
STUDENT_SFT = Phase.STUDENT_SFT.value
TRAINING = Phase.TRAINING.value
BEFORE = "before"
AFTER = "after"


@dataclass(frozen=True)
class Resumed:
    """A checkpoint to continue from, for the phase it belongs to."""

    folder: Path
    phase: str | None
    round: Round | None
    random: dict[str, Any]


@dataclass(frozen=True)
class Work:
    """A run under way: its shared services, its parts and the checkpoint it came from."""

    run: Run
    parts: Parts
    resumed: Resumed | None


def run_job(job: JobSpec, context: RunContext, run_dir: Path, ranks: Ranks, events: EventLog, stop: StopFlag) -> None:
    """Do the whole job. Raises RunError where it cannot be done and Stopped where it was asked to stop."""
    progress = Progress(units_of_work(job), events)
    checkpoints = Checkpoints(run_dir, ranks, events, job.training.keep_checkpoints)
    state, resumed = RunState(), None
    found = checkpoints.latest(context.resume_from)
    if found is not None:
        state, round_, random = checkpoints.load(found)
        resumed = Resumed(found, state.phase, round_, random)
    elif context.forked:
        raise SystemFault("checkpoint_unreadable", "no checkpoint verifies of those that the job could begin from")
    # A template may write the date: to a run that goes on tomorrow it is that of its first day.
    now = dt.datetime.now() if state.template_clock is None else dt.datetime.fromisoformat(state.template_clock)
    now = ranks.broadcast(now)
    state.template_clock = now.isoformat()
    with clock_at(now):
        parts, teacher = prepare(job, context, run_dir, ranks, events, progress)
    marks = _marks(job, context, run_dir, parts)
    if state.rows is not None and (
        not context.forked or (found is not None and found.resolve().is_relative_to(run_dir.resolve()))
    ):
        check_unchanged(state.rows, marks)
    state.rows = marks
    run = Run(
        job=job,
        ranks=ranks,
        events=events,
        progress=progress,
        checkpoints=checkpoints,
        stop=stop,
        state=state,
        sampling=parts.sampling,
        pad_id=parts.pad_id,
        vocab=parts.sampling.vocab,
        corpus=parts.corpus,
    )
    work = Work(run, parts, resumed)
    method = resolve_method(job)
    if job.training.teacher_sft is not None and TEACHER_SFT not in state.completed and parts.student_folder is not None:
        # Built once to be refused, if it is to be, before hours of the teacher's training and not after them.
        build_student(job, parts, teacher, ranks)
        give_back_freed_memory()
    teacher = _fine_tuned_teacher(work, teacher)
    teacher_parameters = teacher.num_parameters()
    answering = make_decoder(teacher, scores=True)
    student = build_student(job, parts, teacher, ranks)
    if BEFORE not in state.results:
        announce = _announcer(progress, "the teacher")
        state.results["teacher"] = vars(parts.measurement.measure(Subject(teacher, answering), None, announce))
        state.results[BEFORE] = vars(_measured(work, student, answering, "the student before training"))
        progress.report(BEFORE, 1.0, step=0, total_steps=job.training.max_steps, force=True)
    # From here on the decoder, which has weights of its own, is all that is asked of the teacher.
    drop_mapped_pages(teacher.parameters())
    del teacher
    gc.collect()
    give_back_freed_memory()
    if job.training.student_sft is not None:
        plan = PhasePlan.of_sft(job.training.student_sft, len(parts.dataset.train))
        student = _trained(work, Phase.STUDENT_SFT, SFT_METHOD, plan, student, None, parts.dataset.train)
    plan = PhasePlan.of_training(job.training)
    rows = parts.dataset.train
    if method.responses == "teacher" and TRAINING not in state.completed:
        rows = with_teacher_responses(run, answering, method, rows, parts.tokenizer)
    student = _trained(work, Phase.TRAINING, method, plan, student, answering if method.needs_teacher else None, rows)

    state.results[AFTER] = vars(_measured(work, student, answering, "the student after training"))
    progress.report(AFTER, 1.0, step=state.step, total_steps=job.training.max_steps, force=True)
    progress.enter(Phase.EXPORTING)
    if ranks.main:
        _export(work, context, run_dir, merged_model(student), teacher_parameters)
    ranks.barrier()


def _marks(job: JobSpec, context: RunContext, run_dir: Path, parts: Parts) -> dict[str, str]:
    files = {"file": file_path(job.dataset.file, context, run_dir, "/dataset/file")}
    if job.pretrain_corpus is not None:
        files["corpus_file"] = file_path(job.pretrain_corpus.file, context, run_dir, "/pretrain_corpus/file")
    settings = {
        "dataset": job.dataset.model_dump(mode="json", exclude={"file"}),
        "lengths": [job.training.max_prompt_tokens, job.training.max_new_tokens],
        "seed": job.seed,
    }
    return marks_of(parts.dataset, parts.corpus, parts.tokenizer, settings, files)


def units_of_work(job: JobSpec) -> dict[str, float]:
    """The parts of a job and their rough shares of its time, in rows that pass through a model."""
    training = job.training
    units: dict[str, float] = {}
    for name, phase in ((TEACHER_SFT, training.teacher_sft), (STUDENT_SFT, training.student_sft)):
        if name == STUDENT_SFT:
            units[BEFORE] = 2.0 * job.evaluation.max_rows
        if phase is not None:
            steps = phase.max_steps or phase.epochs * 1000 / phase.rows_per_step
            units[name] = float(steps * phase.rows_per_step)
    units[TRAINING] = 2.0 * training.max_steps * training.rows_per_step
    units[AFTER] = float(job.evaluation.max_rows)
    return units


def _fine_tuned_teacher(work: Work, teacher: PreTrainedModel) -> PreTrainedModel:
    """The teacher, fine-tuned first where the job says so; frozen."""
    sft = work.run.job.training.teacher_sft
    if sft is not None:
        teacher.requires_grad_(True)
        plan = PhasePlan.of_sft(sft, len(work.parts.dataset.train))
        trained = _trained(work, Phase.TEACHER_SFT, SFT_METHOD, plan, teacher, None, work.parts.dataset.train)
        teacher = unwrapped(trained)
    teacher.requires_grad_(False)
    return teacher


def _trained(
    work: Work,
    phase: Phase,
    method: Method,
    plan: PhasePlan,
    model: nn.Module,
    teacher: Decoder | None,
    rows: list[TokenizedRow],
) -> nn.Module:
    """The model with the best weights of a phase, which runs now unless it is done."""
    run, resumed = work.run, work.resumed
    if phase.value not in run.state.completed:
        here = resumed if resumed is not None and resumed.phase == phase.value else None
        model = train_phase(
            run,
            name=phase.value,
            phase=phase,
            method=method,
            plan=plan,
            model=model,
            teacher=teacher,
            rows=rows,
            selection=_selection(work, phase),
            resume_from=None if here is None else here.folder,
            round_=None if here is None else here.round,
            random_state=None if here is None else here.random,
        )
    load_weights(model, run.checkpoints.weights / f"{phase.value}.safetensors")
    return model


def _selection(work: Work, phase: Phase) -> Selection:
    """What a phase's weights are chosen by: those of fine-tuning always by their validation loss."""
    measurement = work.parts.measurement
    if phase is not Phase.TRAINING:
        return Selection("loss", measurement)
    job = work.run.job
    criterion = criterion_of(job, measurement)
    if criterion == "loss" and job.training.selection == "auto":
        sentence = "no held-out response has a word that ROUGE-L counts: the student is chosen by the validation loss"
        work.run.events.message("info", "selection", sentence)
    return Selection(criterion, measurement)


def _measured(work: Work, student: nn.Module, teacher: Decoder, who: str) -> Measured:
    source = merged_model(student)
    subject = Subject(source, make_decoder(source))
    measured = work.parts.measurement.measure(subject, teacher, _announcer(work.run.progress, who))
    subject.decoder.release()
    return measured


def _announcer(progress: Progress, who: str) -> Callable[[str], None]:
    """Says which measurement begins: an evaluation can be longer than a phase of training."""
    return lambda metric: progress.enter(Phase.EVALUATING, f"{who}: {metric}")


def _export(work: Work, context: RunContext, run_dir: Path, student: PreTrainedModel, teacher_parameters: int) -> None:
    """Write the student folder and announce it with the report. Raises SystemFault when the disk refuses."""
    run, parts = work.run, work.parts
    job, results = run.job, run.state.results
    before, after, ideal = results[BEFORE], results[AFTER], results["teacher"]
    rows = parts.measurement.rows
    samples = sample_answers_of(
        [row.prompt_text for row in rows[: len(after["texts"])]],
        [row.response_text for row in rows[: len(after["texts"])]],
        before=before["texts"],
        after=after["texts"],
        teacher=ideal["texts"],
        count=job.evaluation.samples,
    )
    phases = {name: results[name] for name in (TEACHER_SFT, STUDENT_SFT, TRAINING) if name in results}
    report = build_report(
        verdict=verdict(phases),
        before=before["values"],
        after=after["values"],
        teacher=ideal["values"],
        samples=samples,
        steps=results[TRAINING]["steps"],
        train_seconds=round(run.state.train_seconds, 3),
        student_parameters=student.num_parameters(),
        teacher_parameters=teacher_parameters,
        settings={
            "evaluation": job.evaluation.model_dump(mode="json"),
            "dev_rows": len(rows),
            "method": method_settings(job),
        },
        dataset=vars(parts.dataset.counts),
        details={"phases": phases, "before": before["details"], "after": after["details"]},
    )
    facts = RunFacts(
        parameters=student.num_parameters(),
        teacher_parameters=teacher_parameters,
        train_rows=len(parts.dataset.train),
        dev_rows=len(parts.dataset.dev),
        steps=results[TRAINING]["steps"],
        job_id=context.job_id,
        scores={
            name: CardScore(before["values"].get(name), value)
            for name, value in after["values"].items()
            if isinstance(value, float)
        },
        samples=[Sample(sample.prompt, sample.before or "", sample.after or "") for sample in samples],
    )
    try:
        exported = write_student(
            run_dir / STUDENT_DIR,
            student,
            parts.tokenizer,
            spec=job,
            facts=facts,
            dtype=job.export.dtype or job.training.dtype,
            end_ids=parts.sampling.eos_ids,
            report=report,
        )
    except OSError as error:
        raise disk_fault(error, "the student") from error
    run.events.student(
        path=STUDENT_DIR,
        manifest_sha256=exported.manifest_sha256,
        bytes=exported.bytes,
        parameters=facts.parameters,
        teacher_parameters=facts.teacher_parameters,
        report={**report, "samples": shortened(report["samples"], SAMPLE_CHARACTERS)},
    )


def method_settings(job: JobSpec) -> dict[str, Any]:
    """The method with its recipe resolved, for the report."""
    resolved = getattr(job.method, "resolved", None)
    settings = resolved() if resolved is not None else job.method
    return {"type": job.method.type, **settings.model_dump(mode="json", exclude={"type"})}
