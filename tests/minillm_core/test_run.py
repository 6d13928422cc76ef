"""Whole runs on tiny models: every method, resume, ranks, and how a run ends badly."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from minillm_core.errors import SystemFault, UserError
from minillm_core.evaluate.measure import Measurement
from minillm_core.manifests import verify_folder
from minillm_core.spec import RunContext, parse_event
from minillm_core.spec.event_lines import LONGEST_LINE_BYTES
from minillm_core.train.stop import Stopped
from tests.minillm_core.tiny_runs import last_weights, losses, of_type, run_here, run_program, tiny_spec, write_run

METHODS = {
    "sft": {"type": "sft"},
    "kd": {"type": "kd"},
    "kd_skew": {"type": "kd", "divergence": "skew_reverse_kl", "kd_ratio": 1.0},
    "seqkd": {"type": "seqkd", "kd_ratio": 0.5},
    "gkd": {"type": "gkd", "on_policy_fraction": 0.5},
    "minillm": {"type": "minillm", "rollouts_per_round": 16, "inner_epochs": 2},
    "minillm_paper": {"type": "minillm", "recipe": "paper", "rollouts_per_round": 16},
    "minillm_reference": {"type": "minillm", "recipe": "reference", "rollouts_per_round": 16},
}


def weights(folder):
    return load_file(folder / "student" / "model.safetensors")


def assert_same_weights(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def assert_same_end(first, second):
    """Of two runs: the last step's weights, and the student's, which may be those of an evaluation before."""
    assert_same_weights(last_weights(first), last_weights(second))
    assert_same_weights(weights(first), weights(second))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_ends_with_a_student(tmp_path, name):
    found = run_here(write_run(tmp_path, method=METHODS[name]))
    for line in (tmp_path / "events.jsonl").read_bytes().splitlines():
        parse_event(line)
    assert len(losses(found)) == 6
    assert verify_folder(tmp_path / "student").kind == "student"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    assert model.config.num_hidden_layers == 2
    student = of_type(found, "student")[0]
    manifest = (tmp_path / "student" / "manifest.json").read_bytes()
    assert student["manifest_sha256"] == hashlib.sha256(manifest).hexdigest()
    assert student["parameters"] < student["teacher_parameters"]
    assert {"before", "after", "teacher", "samples", "steps"} <= student["report"].keys()
    assert student["report"]["steps"] == 6
    progress = of_type(found, "progress")
    assert progress[-1]["fraction"] == pytest.approx(1.0)
    assert [event["fraction"] for event in progress] == sorted(event["fraction"] for event in progress)


def test_same_seed_same_student(tmp_path):
    for name in ("a", "b"):
        run_here(write_run(tmp_path / name))
    assert_same_end(tmp_path / "a", tmp_path / "b")


def test_corpus_loss_is_added(tmp_path):
    folder = write_run(tmp_path, pretrain_corpus={"file": "path:corpus.txt"}, training={"max_steps": 2})
    text = "The baker repairs the lantern before sunrise. " * 400
    (folder / "corpus.txt").write_text(text)
    found = run_here(folder)
    corpus, total = losses(found, "corpus_loss"), losses(found)
    assert len(corpus) == 2 and all(3.0 < value < 12.0 for value in corpus)
    rest = [losses(found, name) for name in ("long_loss", "single_step_loss")]
    for step in range(2):
        assert total[step] == pytest.approx(corpus[step] + rest[0][step] + rest[1][step], rel=1e-4)


def test_lora_student_is_merged_and_only_the_adapter_moves(tmp_path):
    # Chosen by validation loss, which falls: the best weights are not those of the start.
    sft = {"max_steps": 4, "rows_per_step": 8, "learning_rate": 1e-2, "eval_every": 2}
    student = {"prune_teacher": {"layers": 2}, "lora": {"rank": 4}}
    run_here(write_run(tmp_path, student=student, training={"student_sft": sft, "max_steps": 2}))
    state = weights(tmp_path)
    assert not any("lora" in name for name in state)
    teacher = load_file(tmp_path / "teacher" / "model.safetensors")
    assert torch.equal(state["model.embed_tokens.weight"], teacher["model.embed_tokens.weight"])
    assert not torch.equal(
        state["model.layers.0.self_attn.q_proj.weight"], teacher["model.layers.0.self_attn.q_proj.weight"]
    )
    for name, tensor in last_weights(tmp_path).items():
        if "lora_B" in name:
            assert tensor.any(), name
        elif "lora_A" not in name:
            plain = name.removeprefix("base_model.model.").replace(".base_layer", "").replace("layers.1", "layers.3")
            assert torch.equal(tensor, teacher[plain]), name


def test_bfloat16_and_activation_checkpointing(tmp_path):
    found = run_here(write_run(tmp_path, training={"dtype": "bfloat16", "activation_checkpointing": True}))
    assert all(value == value for value in losses(found))
    assert {tensor.dtype for tensor in weights(tmp_path).values()} == {torch.bfloat16}


def test_fine_tuning_phases_come_first_and_keep_their_best(tmp_path):
    sft = {"max_steps": 4, "rows_per_step": 8, "learning_rate": 1e-2, "eval_every": 2}
    found = run_here(write_run(tmp_path, training={"student_sft": sft, "teacher_sft": sft, "max_steps": 2}))
    phases = list(dict.fromkeys(event["phase"] for event in of_type(found, "metrics")))
    assert phases == ["teacher_sft", "student_sft", "training"]
    for phase in ("teacher_sft", "student_sft"):
        validation = losses(found, "validation_loss", phase)
        assert validation[-1] < validation[0]


def test_activation_checkpointing_changes_no_loss(tmp_path):
    plain = run_here(write_run(tmp_path / "plain", training={"max_steps": 4}))
    found = run_here(write_run(tmp_path / "saving", training={"max_steps": 4, "activation_checkpointing": True}))
    assert losses(found) == pytest.approx(losses(plain), abs=1e-5)


class TestChoice:
    """The weights that a phase ends with are those of its best evaluation, not of its last."""

    def given(self, monkeypatch, name, values):
        """What the evaluations of a run find, one after the other."""
        left = list(values)
        monkeypatch.setattr(Measurement, name, lambda measurement, model: left.pop(0))
        return left

    def rouge_l(self, monkeypatch, *values):
        return self.given(monkeypatch, "dev_scores", [{"dev_rouge_l": value} for value in values])

    def test_the_student_is_that_of_the_highest_dev_rouge_l(self, tmp_path, monkeypatch):
        left = self.rouge_l(monkeypatch, 1.0, 5.0, 3.0, 4.0)
        found = run_here(write_run(tmp_path / "six", training={"eval_every": 2}))
        assert not left
        phase = of_type(found, "student")[0]["report"]["details"]["phases"]["training"]
        assert phase == {"steps": 6, "best_step": 2, "best_score": 5.0, "selection": "rouge_l"}
        self.rouge_l(monkeypatch, 1.0, 5.0)
        run_here(write_run(tmp_path / "two", training={"eval_every": 2, "max_steps": 2}))
        assert_same_weights(weights(tmp_path / "six"), weights(tmp_path / "two"))

    def test_a_training_that_only_makes_it_worse_exports_the_start(self, tmp_path, monkeypatch):
        self.rouge_l(monkeypatch, 5.0, 4.0, 3.0, 2.0)
        found = run_here(write_run(tmp_path, training={"eval_every": 2}))
        teacher, student = load_file(tmp_path / "teacher" / "model.safetensors"), weights(tmp_path)
        assert all(torch.equal(student[name], teacher[name]) for name in student if ".layers." not in name)
        assert "untrained_student" in [event["code"] for event in of_type(found, "message")]
        report = of_type(found, "student")[0]["report"]
        assert next(iter(report)) == "verdict" and report["verdict"].startswith("The student is untrained")

    def test_of_equal_scores_the_later_counts(self, tmp_path, monkeypatch):
        self.rouge_l(monkeypatch, 1.0, 5.0, 3.0, 5.0)
        found = run_here(write_run(tmp_path, training={"eval_every": 2}))
        report = of_type(found, "student")[0]["report"]
        assert report["details"]["phases"]["training"]["best_step"] == 6
        assert report["verdict"] == "The student is that of step 6 of 6, chosen by dev ROUGE-L."

    @pytest.mark.parametrize("stop_after", [None, 4])
    def test_scores_that_are_all_one_leave_the_choice_to_the_loss(self, tmp_path, monkeypatch, stop_after):
        self.rouge_l(monkeypatch, *[0.0] * 4)
        self.given(monkeypatch, "dev_loss", [3.0, 2.0, 1.0, 2.5])
        write_run(tmp_path / "six", method=METHODS["kd"], training={"eval_every": 2, "save_every": 1})
        if stop_after is not None:
            with pytest.raises(Stopped):
                run_here(tmp_path / "six", stop_after=stop_after)
        found = run_here(tmp_path / "six")
        report = of_type(found, "student")[0]["report"]
        phase = report["details"]["phases"]["training"]
        assert (phase["selection"], phase["undecided"], phase["best_step"]) == ("loss", "rouge_l", 4)
        assert "chosen by validation loss" in report["verdict"]
        assert "selection_by_loss" in [event["code"] for event in of_type(found, "message")]
        monkeypatch.undo()
        self.rouge_l(monkeypatch, 0.0, 1.0)
        settings = {"eval_every": 4, "max_steps": 4}
        run_here(write_run(tmp_path / "four", method=METHODS["kd"], training=settings))
        assert_same_weights(weights(tmp_path / "six"), weights(tmp_path / "four"))

    def test_a_score_that_differs_at_last_decides(self, tmp_path, monkeypatch):
        self.rouge_l(monkeypatch, 0.0, 0.0, 0.5, 0.2)
        self.given(monkeypatch, "dev_loss", [1.0, 2.0])
        found = run_here(write_run(tmp_path, training={"eval_every": 2}))
        phase = of_type(found, "student")[0]["report"]["details"]["phases"]["training"]
        assert phase == {"steps": 6, "best_step": 4, "best_score": 0.5, "selection": "rouge_l"}
        assert not list((tmp_path / "weights").glob("*level*"))

    @pytest.mark.parametrize(("selection", "metric"), [("loss", "validation_loss"), ("exact_match", "dev_exact_match")])
    def test_what_chooses_is_a_setting(self, tmp_path, selection, metric):
        found = run_here(write_run(tmp_path, method=METHODS["kd"], training={"selection": selection, "eval_every": 2}))
        assert len(losses(found, metric)) == 4
        phase = of_type(found, "student")[0]["report"]["details"]["phases"]["training"]
        assert selection in (phase["selection"], phase.get("undecided"))

    @pytest.mark.parametrize("phase", ["student_sft", "teacher_sft"])
    def test_fine_tuning_ends_with_the_lowest_validation_loss(self, tmp_path, monkeypatch, phase):
        """What follows makes nothing better, so that what is exported is what the phase left."""
        sft = {"rows_per_step": 8, "learning_rate": 1e-3, "eval_every": 2, "schedule": "constant"}
        for steps, validation in ((6, [3.0, 1.0, 2.0, 1.5]), (2, [3.0, 1.0])):
            left = self.given(monkeypatch, "dev_loss", [*validation, 4.0])  # the last is of the training's first
            self.rouge_l(monkeypatch, 5.0, 4.0)
            settings = {phase: {**sft, "max_steps": steps}, "max_steps": 1}
            found = run_here(write_run(tmp_path / str(steps), training=settings))
            assert not left
            chosen = of_type(found, "student")[0]["report"]["details"]["phases"]
            assert chosen[phase] == {"steps": steps, "best_step": 2, "best_score": -1.0, "selection": "loss"}
            assert chosen["training"]["best_step"] == 0
        assert_same_weights(weights(tmp_path / "6"), weights(tmp_path / "2"))
        teacher = load_file(tmp_path / "2" / "teacher" / "model.safetensors")
        assert not torch.equal(weights(tmp_path / "2")["lm_head.weight"], teacher["lm_head.weight"])


_CHINESE = ("河边的面包师在日出前修理灯笼", "老师在桥边画花园", "港口的小提琴手记得市场")


class TestTextsOfEveryScript:
    """Sixty steps on one answer teach it, whatever it is written in: the student exported is a trained one."""

    def learned(self, folder, responses, **changes):
        settings = {"eval_every": 15, "max_steps": 30, "learning_rate": 1e-2, "max_new_tokens": 64}
        write_run(folder, **{"method": {"type": "sft"}, "training": settings, **changes})
        rows = [{"prompt": f"请重复（{index}）", "response": responses[index % len(responses)]} for index in range(30)]
        (folder / "data.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
        return of_type(run_here(folder), "student")[0]["report"]

    @pytest.mark.parametrize("responses", [_CHINESE[:1], ["แม่น้ำและคนทำขนมปัง"], ["Пекарь чинит фонарь"], [""]])
    def test_the_student_has_learned(self, tmp_path, responses):
        report = self.learned(tmp_path, responses)
        assert report["details"]["phases"]["training"]["best_step"] > 0
        assert report["after"]["rouge_l"] > report["before"]["rouge_l"]
        assert report["verdict"].startswith("The student is that of step")

    @pytest.mark.parametrize("method", ["kd", "gkd", "minillm", "seqkd"])
    def test_by_every_method_the_paper_s_words_leave_the_choice_to_the_loss(self, tmp_path, method):
        changes = {"method": METHODS[method], "evaluation": {"rouge_tokenizer": "paper"}}
        settings = {"eval_every": 2, "max_steps": 4, "max_new_tokens": 12}
        report = self.learned(tmp_path, _CHINESE, training=settings, **changes)
        assert report["details"]["phases"]["training"]["selection"] == "loss"


@pytest.mark.parametrize(("samples", "length", "rows"), [(100, 64_000, 120), (2, 3_000_000, 10)])
def test_long_references_are_cut_in_the_event_and_whole_in_the_students_folder(tmp_path, samples, length, rows):
    settings = {"max_rows": samples, "samples": samples}
    folder = write_run(
        tmp_path, method={"type": "sft"}, training={"max_steps": 1}, evaluation=settings, dataset={"dev_fraction": 0.9}
    )
    text = "a river " * (length // 8)
    lines = [json.dumps({"prompt": f"question {index}", "response": text}) for index in range(rows)]
    (folder / "data.jsonl").write_text("\n".join(lines))
    found = run_here(folder)
    assert all(len(line) <= LONGEST_LINE_BYTES for line in (folder / "events.jsonl").read_bytes().splitlines())
    whole = json.loads((folder / "student" / "report.json").read_text())
    assert {sample["reference"] for sample in whole["samples"]} == {text} and len(whole["samples"]) >= 2
    told = of_type(found, "student")[0]["report"]
    assert len(told["samples"]) == len(whole["samples"]) and told["verdict"] == whole["verdict"]
    verify_folder(folder / "student")


class TestResume:
    @pytest.mark.parametrize("looks", [2, 4, 5])
    @pytest.mark.parametrize("name", ["minillm", "kd", "gkd"])
    def test_is_bit_equal_also_in_the_middle_of_a_round(self, tmp_path, name, looks):
        whole = run_here(write_run(tmp_path / "whole", method=METHODS[name]))
        cut = write_run(tmp_path / "cut", method=METHODS[name])
        with pytest.raises(Stopped):
            run_here(cut, stop_after=looks)
        found = run_here(cut)
        assert losses(found) == losses(whole)
        assert_same_end(tmp_path / "whole", cut)

    @pytest.mark.parametrize("looks", [3, 4])
    def test_is_bit_equal_with_a_corpus(self, tmp_path, looks):
        """The blocks go on where they stopped."""
        for kind in ("whole", "cut"):
            method = {**METHODS["minillm"], "kd_ratio": 0.5}
            write_run(tmp_path / kind, method=method, pretrain_corpus={"file": "path:corpus.txt"})
            sentences = [f"The baker repairs lantern {number} before sunrise." for number in range(600)]
            (tmp_path / kind / "corpus.txt").write_text(" ".join(sentences))
        whole = run_here(tmp_path / "whole")
        with pytest.raises(Stopped):
            run_here(tmp_path / "cut", stop_after=looks)
        found = run_here(tmp_path / "cut")
        assert losses(found) == losses(whole)
        assert losses(found, "corpus_loss") == losses(whole, "corpus_loss")
        assert_same_end(tmp_path / "whole", tmp_path / "cut")

    def test_is_bit_equal_with_an_adapters_dropout(self, tmp_path):
        """The random state goes on, too."""
        settings = {"method": METHODS["kd"], "student": {"lora": {"rank": 4, "dropout": 0.5}}}
        whole = run_here(write_run(tmp_path / "whole", **settings))
        cut = write_run(tmp_path / "cut", **settings)
        with pytest.raises(Stopped):
            run_here(cut, stop_after=4)
        torch.manual_seed(99)
        assert losses(run_here(cut)) == losses(whole)
        assert_same_end(tmp_path / "whole", cut)

    def test_a_template_that_writes_the_time_writes_that_of_the_first_day(self, tmp_path):
        run = write_run(tmp_path)
        template = (run / "teacher" / "chat_template.jinja").read_text()
        (run / "teacher" / "chat_template.jinja").write_text("{{ strftime_now('%H:%M:%S.%f') }} " + template)
        with pytest.raises(Stopped):
            run_here(run, stop_after=4)
        (checkpoint,) = (run / "checkpoints").iterdir()
        began = json.loads((checkpoint / "state.json").read_text())
        run_here(run)
        newest = json.loads((max((run / "checkpoints").iterdir()) / "state.json").read_text())
        assert (newest["template_clock"], newest["rows"]) == (began["template_clock"], began["rows"])
        report = json.loads((run / "student" / "report.json").read_text())
        moment = began["template_clock"].partition("T")[2]
        assert all(sample["prompt"].startswith(moment) for sample in report["samples"])

    @pytest.mark.parametrize(
        ("file", "old", "new", "told"),
        [
            ("data.jsonl", "river", "brook", "the file of the dataset has other bytes"),
            ("teacher/chat_template.jinja", "assistant", "helper", "chat template is another"),
            ("spec.json", '"max_new_tokens": 12', '"max_new_tokens": 10', "settings of the dataset or the lengths"),
        ],
    )
    def test_other_rows_are_refused_with_what_changed(self, tmp_path, file, old, new, told):
        run = write_run(tmp_path)
        with pytest.raises(Stopped):
            run_here(run, stop_after=4)
        before = (run / file).read_text()
        (run / file).write_text(before.replace(old, new))
        with pytest.raises(UserError, match=told) as caught:
            run_here(run)
        assert (caught.value.code, caught.value.param) == ("dataset_changed", "/dataset/file")
        (run / file).write_text(before)
        run_here(run)

    def test_in_another_folder_from_the_checkpoint_alone(self, tmp_path):
        sft = {"max_steps": 2, "rows_per_step": 8}
        whole = run_here(write_run(tmp_path / "whole", training={"student_sft": sft}))
        first = write_run(tmp_path / "first", training={"student_sft": sft})
        with pytest.raises(Stopped):
            run_here(first, stop_after=8)
        checkpoints = sorted((first / "checkpoints").iterdir(), reverse=True)
        second = write_run(tmp_path / "second", training={"student_sft": sft})
        found = run_here(second, context=RunContext(attempt=2, resume_from=[str(path) for path in checkpoints]))
        assert losses(found) == losses(whole)[-len(losses(found)) :]
        assert_same_end(tmp_path / "whole", second)

    @pytest.mark.parametrize("zero_stage", [0, 3])
    def test_what_follows_the_last_step_costs_no_training_when_it_is_cut_short(self, tmp_path, monkeypatch, zero_stage):
        """The measurement after it may take hours; a worker that is killed in it loses that alone."""
        settings = {"resources": {"zero_stage": zero_stage}}
        whole = run_here(write_run(tmp_path / "whole", **settings))
        cut = write_run(tmp_path / "cut", **settings)
        measure, calls = Measurement.measure, []

        def cut_short(*arguments, **options):
            calls.append(arguments)
            if len(calls) == 3:  # of the teacher, the student before and the student after
                raise RuntimeError("killed")
            return measure(*arguments, **options)

        monkeypatch.setattr(Measurement, "measure", cut_short)
        with pytest.raises(RuntimeError, match="killed"):
            run_here(cut)
        found = run_here(cut)
        assert losses(found) == losses(whole), "no step was done twice"
        assert len(calls) == 4, "nor was what had been measured before"
        assert_same_end(tmp_path / "whole", cut)

    # Two looks for each step of fine-tuning; then one for each round of four steps, and for each step.
    @pytest.mark.parametrize("looks", [4, 12])
    def test_a_stop_at_the_last_step_of_a_phase_stops_there(self, tmp_path, looks):
        settings = {"training": {"student_sft": {"max_steps": 2, "rows_per_step": 8}}}
        whole = run_here(write_run(tmp_path / "whole", **settings))
        cut = write_run(tmp_path / "cut", **settings)
        with pytest.raises(Stopped, match="after 2 steps" if looks == 4 else "after 6 steps"):
            run_here(cut, stop_after=looks)
        found = run_here(cut)
        assert losses(found) == losses(whole)
        assert losses(found, phase="student_sft") == losses(whole, phase="student_sft")
        assert_same_end(tmp_path / "whole", cut)

    def test_a_fork_with_more_steps_goes_on_from_the_last(self, tmp_path):
        """What was saved at the end of training is where it goes on, not where it is over."""
        first = write_run(tmp_path / "first")
        run_here(first)
        (newest,) = (first / "checkpoints").iterdir()
        fork = write_run(tmp_path / "fork", training={"max_steps": 8})
        found = run_here(fork, context=RunContext(resume_from=[str(newest)], forked=True))
        steps = [event["step"] for event in of_type(found, "metrics") if "loss" in event["values"]]
        assert steps == [7, 8]

    def test_a_damaged_checkpoint_is_passed_over(self, tmp_path):
        folder = write_run(tmp_path, training={"save_every": 2})
        with pytest.raises(Stopped):
            run_here(folder, stop_after=6)
        newest = max((folder / "checkpoints").iterdir())
        state = newest / "state.json"
        state.write_text(state.read_text().replace("training", "trainink"))
        found = run_here(folder)
        assert [event["code"] for event in of_type(found, "message")].count("checkpoint_damaged") == 1
        assert of_type(found, "student")

    def test_a_fork_never_begins_afresh(self, tmp_path):
        damaged = tmp_path / "elsewhere" / "step-00000002"
        damaged.mkdir(parents=True)
        context = RunContext(resume_from=[str(damaged)], forked=True)
        folder = write_run(tmp_path / "fork")
        with pytest.raises(SystemFault, match="no checkpoint verifies") as caught:
            run_here(folder, context=context)
        assert caught.value.code == "checkpoint_unreadable"
        assert of_type(run_here(folder, context=context.model_copy(update={"forked": False})), "student")

    def test_sampled_teacher_responses_survive(self, tmp_path, monkeypatch):
        monkeypatch.setattr("minillm_core.train.teacher_responses.BLOCK_ROWS", 8)
        method = METHODS["seqkd"]
        whole = run_here(write_run(tmp_path / "whole", method=method))
        cut = write_run(tmp_path / "cut", method=method)
        with pytest.raises(Stopped):
            run_here(cut, stop_after=2)
        assert len(list((cut / "kept").iterdir())) == 2
        assert losses(run_here(cut)) == losses(whole)
        assert_same_end(tmp_path / "whole", cut)


class TestCheckpoints:
    def test_retention_keeps_the_newest_and_the_best(self, tmp_path):
        folder = write_run(tmp_path, training={"save_every": 1, "eval_every": 2, "keep_checkpoints": 2})
        found = run_here(folder)
        kept = {path.name for path in (folder / "checkpoints").iterdir()}
        announced = {event["path"].split("/")[1] for event in of_type(found, "checkpoint")}
        removed = {event["path"].split("/")[1] for event in of_type(found, "checkpoint_removed")}
        assert kept == announced - removed
        assert 2 <= len(kept) <= 3
        for event in of_type(found, "checkpoint"):
            path = folder / event["path"]
            if path.exists():
                manifest = verify_folder(path)
                assert event["bytes"] == sum(entry.bytes for entry in manifest.files)


class TestGuard:
    def test_drift_ends_the_run_with_the_best_student_kept(self, tmp_path):
        folder = write_run(
            tmp_path,
            method={"type": "minillm", "rollouts_per_round": 8, "inner_epochs": 1},
            guards={"min_effective_sample_size": 1.0, "patience": 2},
        )
        with pytest.raises(UserError) as raised:
            run_here(folder)
        assert raised.value.code == "loss_diverged"
        assert (folder / "weights" / "training.safetensors").exists()
        assert any((folder / "checkpoints").iterdir())


class TestProgram:
    def test_two_ranks_give_the_losses_of_one(self, tmp_path):
        settings = {"max_steps": 4}
        one = run_here(write_run(tmp_path / "one", training=settings))
        code, two = run_program(write_run(tmp_path / "two", training=settings, resources={"gpus": 2}))
        assert code == 0
        assert losses(two) == pytest.approx(losses(one), abs=1e-4)
        assert losses(two, "dev_rouge_l") == pytest.approx(losses(one, "dev_rouge_l"), abs=1e-6)

    def test_under_torchrun(self, tmp_path):
        settings = {"max_steps": 2}
        one = run_here(write_run(tmp_path / "one", training=settings))
        folder = write_run(tmp_path / "two", training=settings, resources={"gpus": 2, "zero_stage": 1})
        launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
        code, two = run_program(folder, launcher=launcher)
        assert code == 0
        assert losses(two) == pytest.approx(losses(one), abs=1e-4)

    def test_dataset_of_long_prompts_is_the_users_error(self, tmp_path):
        code, found = run_program(write_run(tmp_path, training={"max_prompt_tokens": 4}))
        assert code == 64
        failure = of_type(found, "failure")[0]["failure"]
        assert failure["category"] == "user" and failure["code"] == "dataset_invalid"
        assert "max_prompt_tokens (4)" in failure["message"]

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("training/learning_rate", -1),
            ("trainings", {}),
            ("method/top_p", 0.9),
            ("method/reward_clip", -1),
            ("student/prune_teacher/layers", {"a": 1}),
            ("training/betas/0", "x"),
        ],
    )
    def test_bad_spec_names_the_field(self, tmp_path, capsys, field, value):
        from minillm_core.__main__ import main

        spec = tiny_spec(training={"betas": [0.9, 0.95]})
        here, (*outer, last) = spec, field.split("/")
        for name in outer:
            here = here[int(name) if isinstance(here, list) else name]
        here[int(last) if isinstance(here, list) else last] = value
        (tmp_path / "spec.json").write_text(json.dumps(spec))
        assert main([str(tmp_path)]) == 64
        lines = capsys.readouterr().err.splitlines()
        assert lines and all(line.startswith(f"/{field}: ") for line in lines)

    def test_a_missing_field_is_named(self, tmp_path, capsys):
        from minillm_core.__main__ import main

        spec = tiny_spec()
        del spec["dataset"]["file"]
        (tmp_path / "spec.json").write_text(json.dumps(spec))
        assert main([str(tmp_path)]) == 64
        assert capsys.readouterr().err.startswith("/dataset/file: ")
        (tmp_path / "spec.json").write_text("{")
        assert main([str(tmp_path)]) == 64
        assert "JSON" in capsys.readouterr().err
