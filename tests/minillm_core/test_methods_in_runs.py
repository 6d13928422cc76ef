"""What a method trains on and when it is given up, seen from whole runs."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

import minillm_core.run as run_module
import minillm_core.train.loop as loop
from minillm_core.errors import UserError
from minillm_core.manifests import verify_folder
from minillm_core.spec import JobSpec, parse_event
from minillm_core.train.stop import Stopped
from tests.minillm_core.tiny_runs import events, losses, of_type, run_here, tiny_spec, write_run


def rewrite_answers(folder: Path) -> None:
    """Give every prompt of the run's dataset another answer of another length."""
    path = folder / "data.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for number, row in enumerate(rows):
        row["output"] = "zzz " * (1 + number % 5)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def losses_with_other_answers(folder: Path, **changes: object) -> tuple[list[float], list[float]]:
    """Losses of two runs that differ in the dataset's answers alone."""
    first = write_run(folder / "first", **changes)
    second = write_run(folder / "second", **changes)
    rewrite_answers(second)
    return losses(run_here(first)), losses(run_here(second))


class TestSeqKD:
    def test_the_datasets_own_answers_play_no_part(self, tmp_path):
        method = {"type": "seqkd", "kd_ratio": 0.5}
        first, second = losses_with_other_answers(tmp_path, method=method, training={"max_steps": 4})
        assert len(first) == 4 and first == second

    def test_not_in_a_phase_before_either(self, tmp_path):
        """Fine-tuning the student first is on where the job leaves it open, but not for this method."""
        found = []
        for name in ("first", "second"):
            folder = write_run(tmp_path / name, method={"type": "seqkd"}, training={"max_steps": 2})
            spec = json.loads((folder / "spec.json").read_text())
            del spec["training"]["student_sft"]
            (folder / "spec.json").write_text(json.dumps(spec))
            if name == "second":
                rewrite_answers(folder)
            found.append(run_here(folder))
        assert losses(found[0]) == losses(found[1]) and len(losses(found[0])) == 2
        assert not losses(found[0], phase="student_sft")

    def test_a_phase_before_is_the_jobs_choice(self):
        spec = tiny_spec(method={"type": "seqkd"}, training={"student_sft": {"max_steps": 3}})
        job = JobSpec.model_validate(spec)
        assert job.training.student_sft is not None and job.training.student_sft.max_steps == 3
        for method, phase in (({"type": "seqkd"}, False), ({"type": "kd"}, True), ({"type": "minillm"}, True)):
            del (spec := tiny_spec(method=method, training={"rows_per_step": 64}))["training"]["student_sft"]
            job = JobSpec.model_validate(spec)
            assert (job.training.student_sft is not None) is phase
            # As it is stored, and read again.
            assert JobSpec.model_validate(job.model_dump(mode="json")) == job

    def test_they_would_show(self, tmp_path):
        """The same comparison for a method that trains on them."""
        first, second = losses_with_other_answers(tmp_path, method={"type": "sft"}, training={"max_steps": 2})
        assert all(abs(ours - theirs) > 0.1 for ours, theirs in zip(first, second, strict=True))

    def test_every_row_has_what_the_teacher_sampled(self, tmp_path, monkeypatch):
        given = {}
        with_responses, train = run_module.with_teacher_responses, run_module.train_phase

        def watched_responses(run, teacher, method, rows, tokenizer):
            given["gold"], given["sampled"] = rows, with_responses(run, teacher, method, rows, tokenizer)
            return given["sampled"]

        def watched_train(run, **arguments):
            given["trained"] = arguments["rows"]
            return train(run, **arguments)

        monkeypatch.setattr(run_module, "with_teacher_responses", watched_responses)
        monkeypatch.setattr(run_module, "train_phase", watched_train)
        run_here(write_run(tmp_path, method={"type": "seqkd"}, training={"max_steps": 1}))
        kept = [
            response for path in sorted((tmp_path / "kept").iterdir()) for response, _ in json.loads(path.read_text())
        ]
        assert [row.response_ids for row in given["trained"]] == kept
        assert [row.prompt_ids for row in given["trained"]] == [row.prompt_ids for row in given["gold"]]
        same = sum(a.response_ids == b.response_ids for a, b in zip(given["gold"], given["trained"], strict=True))
        assert same == 0


class TestGKD:
    def test_without_on_policy_rows_it_is_the_divergence_on_the_dataset(self, tmp_path):
        settings = {"max_steps": 3}
        gkd = {"type": "gkd", "on_policy_fraction": 0.0, "divergence": "jsd", "jsd_beta": 0.3}
        kd = {"type": "kd", "kd_ratio": 1.0, "divergence": "jsd", "jsd_beta": 0.3}
        found = run_here(write_run(tmp_path / "gkd", method=gkd, training=settings))
        assert not losses(found, "rollout_reward")
        assert losses(found) == losses(run_here(write_run(tmp_path / "kd", method=kd, training=settings)))

    def test_rollouts_serve_several_steps(self, tmp_path):
        method = {"type": "gkd", "rollouts_per_round": 24}
        found = run_here(write_run(tmp_path, method=method, training={"max_steps": 4}))
        assert len(losses(found, "rollout_reward")) == 2
        assert len(losses(found)) == 4

    def test_a_fraction_of_the_rows_is_sampled(self, tmp_path, monkeypatch):
        collect, sampled = loop.collect_round, []

        def watched(*args, **kwargs):
            result = collect(*args, **kwargs)
            sampled.extend(row.student_logp_T is not None for row in result[0].rows.values())
            return result

        monkeypatch.setattr(loop, "collect_round", watched)
        method = {"type": "gkd", "on_policy_fraction": 0.25, "rollouts_per_round": 64}
        run_here(write_run(tmp_path, method=method, training={"max_steps": 9}))
        assert len(sampled) == 128
        assert 16 <= sum(sampled) <= 48


class TestRecipes:
    def test_they_differ_in_the_loss_alone(self, tmp_path):
        """The first round is drawn alike; from there each has its own loss."""
        found = {}
        for recipe in ("default", "paper", "reference"):
            method = {"type": "minillm", "recipe": recipe, "rollouts_per_round": 16, "inner_epochs": 1}
            training = {"max_steps": 2}
            found[recipe] = run_here(write_run(tmp_path / recipe, method=method, training=training))
        for name in ("rollout_reward", "response_tokens", "effective_sample_size"):
            assert len({losses(run, name)[0] for run in found.values()}) == 1
        assert len({losses(run, "long_loss")[0] for run in found.values()}) == 3


class TestCorpus:
    def test_blocks_are_no_longer_than_the_models_context(self, tmp_path):
        """GPT-2 has learned positions: 256 of them in the tiny one."""
        folder = write_run(
            tmp_path, family="gpt2", pretrain_corpus={"file": "path:corpus.txt"}, training={"max_steps": 1}
        )
        (folder / "corpus.txt").write_text("The baker repairs the lantern before sunrise. " * 100)
        assert losses(run_here(folder), "corpus_loss")[0] > 3.0

    @pytest.mark.parametrize("method", [{"type": "kd"}, {"type": "gkd"}, {"type": "minillm", "lm_coef": 0}])
    def test_refused_where_it_would_not_be_used(self, method):
        with pytest.raises(ValidationError, match=r"pretrain_corpus\.file would not be used"):
            JobSpec.model_validate(tiny_spec(method=method, pretrain_corpus={"file": "path:corpus.txt"}))


class TestAdapterDropout:
    @pytest.mark.parametrize(("method", "same"), [("minillm", True), ("sft", False)])
    def test_is_off_where_the_student_is_compared_with_its_samples(self, tmp_path, method, same):
        found = []
        for dropout in (0.0, 0.5):
            student = {"lora": {"rank": 4, "dropout": dropout}}
            settings = {"method": {"type": method}, "training": {"max_steps": 3}, "student": student}
            if method == "minillm":
                settings["method"] |= {"rollouts_per_round": 16}
            found.append(losses(run_here(write_run(tmp_path / str(dropout), **settings))))
        assert (found[0] == found[1]) is same


class TestSamplingFilters:
    @pytest.mark.parametrize("type_", ["minillm", "gkd", "seqkd"])
    @pytest.mark.parametrize("setting", [{"top_k": 5}, {"top_p": 0.9}])
    def test_refused_with_the_reason(self, type_, setting):
        with pytest.raises(ValidationError) as raised:
            JobSpec.model_validate(tiny_spec(method={"type": type_, **setting}))
        (fault,) = raised.value.errors()
        assert fault["loc"][-1] == next(iter(setting)), "it is the field that is named"
        message = fault["msg"]
        assert "must stay off" in message
        assert ("whole distribution" in message) == (type_ == "seqkd")

    @pytest.mark.parametrize("type_", ["minillm", "gkd", "seqkd"])
    def test_off_is_fine(self, type_):
        JobSpec.model_validate(tiny_spec(method={"type": type_, "top_k": 0, "top_p": 1.0}))


class TestGivenUp:
    def check(self, folder: Path, raised: UserError, best_step: int) -> None:
        """It is told, and a checkpoint that verifies has the best weights."""
        found = events(folder)
        # The worker skips what is no event: it would not know of the checkpoint.
        for line in (folder / "events.jsonl").read_bytes().splitlines():
            parse_event(line)
        assert raised.code == "loss_diverged" and f"step {best_step}" in raised.message
        assert [event["code"] for event in of_type(found, "message")][-1] == "loss_diverged"
        last = of_type(found, "checkpoint")[-1]
        manifest = verify_folder(folder / last["path"])
        assert "weights/training.safetensors" in {file.name for file in manifest.files}
        kept = load_file(folder / last["path"] / "weights" / "training.safetensors")
        assert all(torch.isfinite(tensor).all() for tensor in kept.values())

    @pytest.mark.parametrize(
        "method", [{"type": "minillm", "rollouts_per_round": 8, "inner_epochs": 1}, {"type": "kd"}]
    )
    def test_a_loss_that_is_not_finite(self, tmp_path, method):
        settings = {"learning_rate": 0.99, "weight_decay": 10, "max_steps": 40, "eval_every": 50, "save_every": 1}
        folder = write_run(tmp_path, method=method, training=settings, guards={"enabled": False})
        with pytest.raises(UserError) as raised:
            run_here(folder)
        self.check(folder, raised.value, best_step=0)
        assert "not finite" in raised.value.message
        checkpoints = of_type(events(folder), "checkpoint")
        assert not checkpoints[-1]["resumable"] and all(event["resumable"] for event in checkpoints[:-1])
        assert all(map(math.isfinite, losses(events(folder))))
        # A second start goes on from the last checkpoint of before, and ends in the same way.
        with pytest.raises(UserError):
            run_here(folder)
        resumed = [event for event in of_type(events(folder), "message") if event["code"] == "resuming"]
        assert resumed[0]["data"]["path"].endswith(checkpoints[-2]["path"].split("/")[1])

    @pytest.mark.parametrize(
        ("guard", "drift"),
        [
            ("length", {"mean_length": 1.5}),
            ("repetition", {"repetition": 0.9}),
            ("effective_sample_size", {"effective_sample_size": 0.01}),
        ],
    )
    def test_a_limit_passed_round_after_round(self, tmp_path, monkeypatch, guard, drift):
        """From the second round on the rollouts look as a student's do that has gone astray."""
        collect = loop.collect_round

        def drifting(number, *args, **kwargs):
            round_, health, *rest = collect(number, *args, **kwargs)
            return round_, replace(health, **drift) if number > 0 else health, *rest

        monkeypatch.setattr(loop, "collect_round", drifting)
        method = {"type": "minillm", "rollouts_per_round": 8, "inner_epochs": 1}
        folder = write_run(tmp_path, method=method, guards={"patience": 2})
        with pytest.raises(UserError) as raised:
            run_here(folder)
        self.check(folder, raised.value, best_step=0)
        assert f"guard {guard} " in raised.value.message
        warned = [event for event in of_type(events(folder), "message") if event["code"].startswith("guard_")]
        assert [(event["code"], event["level"]) for event in warned] == [(f"guard_{guard}", "warning")] * 2
        assert len(losses(events(folder), "effective_sample_size")) == 3
        assert not of_type(events(folder), "student")

    def test_a_stop_forgives_nothing(self, tmp_path, monkeypatch):
        """The first round's length and the rounds past a limit are known to the second start."""
        collect = loop.collect_round

        def drifting(number, *args, **kwargs):
            round_, health, *rest = collect(number, *args, **kwargs)
            return round_, replace(health, mean_length=1.5) if number > 0 else health, *rest

        monkeypatch.setattr(loop, "collect_round", drifting)
        method = {"type": "minillm", "rollouts_per_round": 8, "inner_epochs": 1}
        folder = write_run(tmp_path, method=method, guards={"patience": 2})
        with pytest.raises(Stopped):
            run_here(folder, stop_after=3)
        assert [event["data"]["step"] for event in of_type(events(folder), "message") if "step" in event["data"]] == [1]
        with pytest.raises(UserError, match="was past its limit 2 rounds in a row"):
            run_here(folder)
        assert len(losses(events(folder), "effective_sample_size")) == 3
