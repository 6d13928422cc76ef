"""From names to things: everything that a job's spec mentions, found, checked and loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from minillm_core.data.corpus import CORPUS_BLOCK_TOKENS, load_corpus
from minillm_core.data.dataset import Dataset, load_dataset
from minillm_core.data.template_defaults import set_defaults
from minillm_core.data.templates import end_token_id
from minillm_core.errors import RunError, UserError
from minillm_core.evaluate.calibration import LabelSet, labels_among, read_calibration_file
from minillm_core.evaluate.measure import Measurement
from minillm_core.evaluate.scoring import token_log_probs
from minillm_core.models.checks import check_embedded, check_finite, check_finite_answers, check_shapes
from minillm_core.models.families import (
    cast_parameters,
    context_length,
    disable_dropout,
    enable_activation_checkpointing,
)
from minillm_core.models.loading import (
    check_model,
    check_same_tokenizer,
    load_causal_lm,
    load_tokenizer,
    read_config,
    resolve,
    shared_vocab,
)
from minillm_core.models.lora import add_lora, merge_adapter
from minillm_core.models.pruning import prune_layers
from minillm_core.spec import JobSpec, Phase, RunContext
from minillm_core.spec.model_folder import Inspection, inspect_model
from minillm_core.train import engine
from minillm_core.train.distributed import Ranks
from minillm_core.train.events import EventLog
from minillm_core.train.progress import Progress
from minillm_core.train.rollouts import Sampling
from minillm_core.train.rounds import derived_seed

FIRST_ROWS = 4
"""Rows that a model is tried on before it is used."""


@dataclass(frozen=True)
class Parts:
    """What a run is made of."""

    student_folder: Path | None
    """None where the student is a pruned teacher."""
    tokenizer: PreTrainedTokenizerBase
    dataset: Dataset
    corpus: torch.Tensor | None
    sampling: Sampling
    pad_id: int
    """Any valid token: masks are explicit."""
    measurement: Measurement


def prepare(
    job: JobSpec, context: RunContext, run_dir: Path, ranks: Ranks, events: EventLog, progress: Progress
) -> tuple[Parts, PreTrainedModel]:
    """Find and load all but the student, the teacher last. Raises UserError naming the field that is wrong."""

    def folder(reference: str, revision: str | None, param: str) -> Path:
        return main_first(ranks, lambda: resolve(reference, revision, context, run_dir, param=param))

    progress.enter(Phase.VALIDATING)
    training = job.training
    teacher_folder = folder(job.teacher.model, job.teacher.revision, "/teacher/model")
    adapter_folder = None
    if job.teacher.adapter is not None:
        adapter_folder = folder(job.teacher.adapter, None, "/teacher/adapter")
    check_model(teacher_folder, param="/teacher/model")
    teacher_config = read_config(teacher_folder, param="/teacher/model")
    tokenizer = load_tokenizer(teacher_folder, param="/teacher/model")
    student_folder, student_config = None, teacher_config
    if job.student.model is not None:
        student_folder = folder(job.student.model, job.student.revision, "/student/model")
        check_model(student_folder, param="/student/model")
        student_config = read_config(student_folder, param="/student/model")
        _check_smaller(inspect_model(student_folder), inspect_model(teacher_folder))
        check_same_tokenizer(tokenizer, load_tokenizer(student_folder, param="/student/model"))
    for name, config in (("teacher", teacher_config), ("student", student_config)):
        _check_context(job, name, config)
    engine.check_dtype(training.dtype, ranks.device)
    check_shapes(job, teacher_config, None if student_folder is None else student_config)
    # After the tokenizers were compared: these are the job's own.
    set_defaults(tokenizer, job.dataset.template_arguments, job.dataset.system_prompt)
    dataset = load_dataset(
        file_path(job.dataset.file, context, run_dir, "/dataset/file"),
        job.dataset.template,
        tokenizer,
        training.max_prompt_tokens,
        training.max_new_tokens,
        job.dataset.dev_fraction,
        job.dataset.max_dev_rows,
        job.seed,
        job.dataset.special_tokens,
        job.dataset.train_on,
    )
    counts = asdict(dataset.counts)
    events.message(
        "info",
        "dataset",
        f"{len(dataset.train)} rows to train on, {len(dataset.dev)} held out, {dataset.dropped_long_prompts} left "
        f"out whose prompt is over {training.max_prompt_tokens} tokens",
        **counts,
        dropped_long_prompts=dataset.dropped_long_prompts,
    )
    for code, sentence in dataset.counts.warnings(job.dataset, training).items():
        events.message("warning", code, sentence, **counts)
    labels = _labels(job, context, run_dir, dataset, tokenizer)
    end_id = end_token_id(job.dataset.template, tokenizer)
    corpus = None
    if job.pretrain_corpus is not None:
        longest = min(context_length(teacher_config), context_length(student_config), CORPUS_BLOCK_TOKENS)
        corpus = load_corpus(
            file_path(job.pretrain_corpus.file, context, run_dir, "/pretrain_corpus/file"), tokenizer, longest
        )
    eos_ids = [end_id] if end_id == tokenizer.eos_token_id else [end_id, tokenizer.eos_token_id]
    widths = [("/teacher/model", int(teacher_config.vocab_size)), ("/student/model", int(student_config.vocab_size))]
    for where, ids in _ids_in_use(dataset, labels, corpus, eos_ids):
        check_embedded(ids, tokenizer, widths, where=where)
    vocab = shared_vocab(tokenizer, teacher_config, student_config)
    sampling = Sampling(
        eos_ids=eos_ids,
        vocab=vocab,
        max_new_tokens=training.max_new_tokens,
        batch_rows=training.decode_batch_rows,
    )
    measurement = Measurement(
        spec=job.evaluation,
        rows=dataset.dev[: job.evaluation.max_rows],
        tokenizer=tokenizer,
        sampling=sampling,
        batch_tokens=training.micro_batch_tokens,
        ranks=ranks,
        labels=labels,
    )

    progress.enter(Phase.PREPARING, f"loading {job.teacher.model}")
    # A teacher that is fine-tuned first is trained in the training dtype like any model.
    fixed_dtype = None if training.teacher_sft is not None else job.teacher.dtype
    teacher = load_causal_lm(
        teacher_folder, engine.TORCH_DTYPES[fixed_dtype or training.dtype], ranks.device, param="/teacher/model"
    )
    if adapter_folder is not None:
        check_finite(teacher, param="/teacher/model")
        teacher = merge_adapter(teacher, adapter_folder)
    disable_dropout(teacher)
    whole = Parts(student_folder, tokenizer, dataset, corpus, sampling, end_id, measurement)
    check_sound(whole, teacher, "/teacher/model" if adapter_folder is None else "/teacher/adapter")
    if training.teacher_sft is not None and training.activation_checkpointing:
        enable_activation_checkpointing(teacher)
    return whole, teacher


def build_student(job: JobSpec, parts: Parts, teacher: PreTrainedModel, ranks: Ranks) -> nn.Module:
    """The student as its first phase begins: loaded or pruned, with its adapter, ready to train."""
    dtype = engine.TORCH_DTYPES[job.training.dtype]
    if parts.student_folder is None:
        assert job.student.prune_teacher is not None
        student = prune_layers(teacher, job.student.prune_teacher.layers)
        cast_parameters(student, dtype)
    else:
        student = load_causal_lm(parts.student_folder, dtype, ranks.device, param="/student/model")
    check_sound(parts, student, "/student/model" if parts.student_folder is not None else "/student/prune_teacher")
    if student.num_parameters() > teacher.num_parameters():
        _refuse_size(student.num_parameters(), teacher.num_parameters())
    disable_dropout(student)
    student.requires_grad_(True)
    model: nn.Module = student
    if job.student.lora is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(job.seed, "adapter"))
            model = add_lora(student, job.student.lora)
    if job.training.activation_checkpointing:
        enable_activation_checkpointing(model)
    return model


def file_path(reference: str, context: RunContext, run_dir: Path, param: str) -> Path:
    """Where a named file lies. Raises UserError ``file_not_found``."""
    if reference in context.files:
        candidates = [Path(context.files[reference])]
    else:
        name = reference.removeprefix("path:")
        candidates = [Path(name), run_dir / name] if reference.startswith("path:") else []
    for path in candidates:
        if path.is_file():
            return path
    raise UserError("file_not_found", f"{reference} is no file on this machine", param=param)


def main_first(ranks: Ranks, find: Callable[[], Path]) -> Path:
    """Let the main rank look (and download) first; the others then find it there or fail alike."""
    failure: RunError | None = None
    found: Path | None = None
    if ranks.main:
        try:
            found = find()
        except RunError as error:
            failure = error
    found, failure = ranks.broadcast((found, failure))
    if failure is not None:
        raise failure
    assert found is not None
    return found


def check_sound(parts: Parts, model: PreTrainedModel, param: str) -> None:
    """Raise UserError ``model_not_finite`` where weights, or answers to the first rows, are not finite."""
    check_finite(model, param=param)
    rows = parts.dataset.train[:FIRST_ROWS]
    log_probs = token_log_probs(
        model,
        [row.prompt_ids for row in rows],
        [row.response_ids for row in rows],
        vocab=parts.sampling.vocab,
        batch_tokens=parts.measurement.batch_tokens,
    )
    check_finite_answers(log_probs, model.dtype, param=param)


def _ids_in_use(
    dataset: Dataset, labels: LabelSet | None, corpus: torch.Tensor | None, eos_ids: list[int]
) -> Iterator[tuple[str, Iterable[int]]]:
    """All token ids that a model will see, with the words for where they are."""
    yield "as the end of a response", eos_ids
    rows = [*dataset.train, *dataset.dev]
    yield "in a prompt of the dataset", (max(row.prompt_ids) for row in rows)
    yield "in a response of the dataset", (max(row.response_ids) for row in rows)
    if labels is not None:
        yield "in the calibration rows", (max(row.prompt_ids) for row in labels.rows)
        yield "in a calibration label", (max(ids, default=0) for ids in labels.label_ids)
    if corpus is not None:
        yield "in the corpus", [int(corpus.max())]


def _check_smaller(student: Inspection, teacher: Inspection) -> None:
    ours, theirs = student.description.parameters, teacher.description.parameters
    if ours > theirs:
        _refuse_size(ours, theirs)


def _refuse_size(student: int, teacher: int) -> NoReturn:
    raise UserError(
        "student_larger_than_teacher",
        f"the student has {student:,} parameters, its teacher {teacher:,}",
        param="/student/model",
    )


def _check_context(job: JobSpec, name: str, config: PreTrainedConfig) -> None:
    try:
        context = context_length(config)
    except ValueError as error:
        raise UserError("unsupported_model", f"config.json: {error}", param=f"/{name}/model") from error
    needed = job.training.max_prompt_tokens + job.training.max_new_tokens
    if needed > context:
        raise UserError(
            "context_too_short",
            f"max_prompt_tokens + max_new_tokens is {needed}; the {name}'s context is {context} tokens",
            param="/training/max_new_tokens",
        )


def _labels(
    job: JobSpec, context: RunContext, run_dir: Path, dataset: Dataset, tokenizer: PreTrainedTokenizerBase
) -> LabelSet | None:
    """Rows for the calibration metric: the file named, else the dev rows whose responses are labels."""
    if "calibration" not in job.evaluation.metrics:
        return None
    if job.evaluation.calibration_file is not None:
        path = file_path(job.evaluation.calibration_file, context, run_dir, "/evaluation/calibration_file")
        return read_calibration_file(path, job.dataset.template, tokenizer, job.training.max_prompt_tokens)
    return labels_among(dataset.dev, job.dataset.template, tokenizer)
