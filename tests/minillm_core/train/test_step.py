"""One step gives the same value and gradient however its rows are padded, ordered, split and shared."""

from __future__ import annotations

import copy
import itertools
import math
import random
from dataclasses import replace

import pytest
import torch

from minillm_core.data.batching import pad_rows
from minillm_core.models.families import hidden_states
from minillm_core.models.pruning import prune_layers
from minillm_core.objectives.divergences import KINDS, divergence
from minillm_core.objectives.policy_gradient import importance_weights
from minillm_core.spec import JobSpec
from minillm_core.train.batches import response_batch
from minillm_core.train.guards import repetition
from minillm_core.train.methods import resolve_method
from minillm_core.train.rounds import TrainRow
from minillm_core.train.step import train_step
from minillm_core.train.student import StudentModule, loss_head
from tests.minillm_core.tiny_runs import run_ranks, tiny_spec
from tests.minillm_core.train import step_bench as bench


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    models = bench.make_models(tmp_path_factory.mktemp("teacher"))
    yield models
    models.engine.close()


def corpus() -> torch.Tensor:
    return torch.randint(3, bench.VOCAB, (5, 16), generator=torch.Generator().manual_seed(3), dtype=torch.int32)


@pytest.mark.parametrize("name", bench.METHODS)
class TestNothingChanges:
    def test_by_micro_batches(self, models, name):
        """All rows at once, some at a time, and each alone: as many accumulation steps as rows."""
        method = bench.method_of(name)
        rows = bench.make_round(models, method, bench.make_rows()).next_rows()
        expected = bench.step_gradient(models, method, rows)
        assert any(float(gradient.abs().max()) > 1e-4 for gradient in expected[1].values())
        for budget in (16, 60):
            bench.assert_same(bench.step_gradient(models, method, rows, budget=budget), expected)

    def test_by_the_order_of_the_rows(self, models, name):
        method = bench.method_of(name)
        rows = bench.make_round(models, method, bench.make_rows()).next_rows()
        expected = bench.step_gradient(models, method, rows, budget=60)
        random.Random(1).shuffle(rows)
        bench.assert_same(bench.step_gradient(models, method, rows, budget=60), expected)


@pytest.mark.parametrize("name", bench.METHODS)
def test_a_step_leaves_its_rows_as_they_were(models, name):
    """The next inner epoch begins from what was sampled, not from what a step made of it."""
    method = bench.method_of(name)
    round_ = bench.make_round(models, method, bench.make_rows())
    before = copy.deepcopy(round_.state_dict())
    bench.step_gradient(models, method, round_.next_rows(), budget=60)
    after = round_.state_dict()
    assert after["rows"].keys() == before["rows"].keys()
    for number, row in before["rows"].items():
        for field, value in row.items():
            found = after["rows"][number][field]
            if isinstance(value, torch.Tensor):  # log-probabilities that a method does not need are nan
                torch.testing.assert_close(found, value, rtol=0.0, atol=0.0, equal_nan=True)
            else:
                assert found == value, field


def test_corpus_blocks_count_apart_from_the_rows(models):
    """However they are split: the corpus is divided by its own number of tokens."""
    method = bench.method_of("reference", lm_coef=0.7)
    rows = bench.make_round(models, method, bench.make_rows()).next_rows()
    alone = bench.step_gradient(models, method, rows)
    expected = bench.step_gradient(models, method, rows, blocks=corpus())
    bench.assert_same(bench.step_gradient(models, method, rows, blocks=corpus(), budget=16), expected)
    twice = torch.cat([corpus(), corpus()])
    bench.assert_same(bench.step_gradient(models, method, rows, blocks=twice), expected)
    assert expected[0]["loss"] > alone[0]["loss"]


class TestValues:
    """The loss of a step is what the dense models give, with the settings of the job in their places."""

    def logits(self, models, prompts, responses):
        """Of student and teacher (N, V), where they predict the tokens of the responses, and those tokens (N,)."""
        sides = []
        for model in (models.student, models.teacher):
            rows = []
            for prompt, response in zip(prompts, responses, strict=True):
                with torch.no_grad():
                    logits_TV = model(torch.tensor([[*prompt, *response]])).logits[0]
                rows.append(logits_TV[len(prompt) - 1 : -1, : bench.VOCAB])
            sides.append(torch.cat(rows))
        return *sides, torch.tensor([token for response in responses for token in response])

    # The word-level term of seqkd is forward KL alone; the rows here stand for what the teacher sampled.
    @pytest.mark.parametrize(("type_", "kind"), [*itertools.product(["kd", "gkd"], KINDS), ("seqkd", "forward_kl")])
    def test_cross_entropy_and_divergence(self, models, type_, kind):
        settings = {"type": type_, "temperature": 1.7}
        ratio = 1.0 if type_ == "gkd" else 0.3
        settings |= {"on_policy_fraction": 0.5} if type_ == "gkd" else {"kd_ratio": ratio}
        if type_ != "seqkd":
            settings |= {"divergence": kind, "jsd_beta": 0.2, "skew_alpha": 0.4}
        method = resolve_method(JobSpec.model_validate(tiny_spec(method=settings)))
        rows = bench.make_round(models, method, bench.make_rows()).next_rows()
        metrics, _ = bench.step_gradient(models, method, rows, budget=60)
        student_NV, teacher_NV, targets_N = self.logits(
            models, [row.prompt_ids for row in rows], [row.response_ids for row in rows]
        )
        expected = divergence(kind, student_NV, teacher_NV, temperature=1.7, beta=0.2, alpha=0.4).mean().item()
        assert metrics["divergence"] == pytest.approx(expected, rel=1e-4)
        # Cross-entropy knows no temperature.
        cross_entropy = torch.nn.functional.cross_entropy(student_NV, targets_N).item()
        assert metrics["loss"] == pytest.approx((1 - ratio) * cross_entropy + ratio * expected, rel=1e-4)

    @pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
    def test_the_corpus_loss_mixes_cross_entropy_and_forward_kl(self, models, ratio):
        # The temperature is the rollouts' alone.
        method = bench.method_of("minillm", lm_coef=0.7, kd_ratio=ratio, temperature=1.7)
        rows = bench.make_round(models, method, bench.make_rows()).next_rows()
        alone, _ = bench.step_gradient(models, method, rows)
        metrics, _ = bench.step_gradient(models, method, rows, blocks=corpus(), budget=40)
        blocks = corpus().tolist()
        student_NV, teacher_NV, targets_N = self.logits(
            models, [block[:1] for block in blocks], [block[1:] for block in blocks]
        )
        assert len(targets_N) == 5 * 15
        cross_entropy = torch.nn.functional.cross_entropy(student_NV, targets_N).item()
        forward = divergence("forward_kl", student_NV, teacher_NV).mean().item()
        expected = 0.7 * ((1 - ratio) * cross_entropy + ratio * forward)
        assert metrics["loss"] - alone["loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("alpha", "held"), [(0.2, True), (0.0, False)])
def test_the_clip_acts_on_the_weights_from_the_first_step_on(models, alpha, held):
    """The ratio of the two students is 1 there: by the teacher's and the student's probabilities alone."""
    method = bench.method_of("minillm", teacher_mix_alpha=alpha, whitening="off")
    rows = bench.make_round(models, method, bench.make_rows()).next_rows()
    metrics, _ = bench.step_gradient(models, method, rows)
    past = [
        odds < 1 / 6 if advantage > 0 else odds > 2.25 and advantage < 0
        for row in rows
        for odds, advantage in zip(
            (row.teacher_logp_T - row.student_logp_T).exp().tolist(), row.returns_T.tolist(), strict=True
        )
    ]
    assert sum(past) > 3
    assert metrics["clip_fraction"] == pytest.approx(sum(past) / len(past) if held else 0.0)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gemma3"])
def test_padding_on_either_side_changes_nothing(tmp_path, family):
    """The module's loss and gradient are those over padded rows, on the left or right, with any padding token."""
    models = bench.make_models(tmp_path, family)
    method = bench.method_of("minillm")
    rows = bench.make_round(models, method, bench.make_rows()).next_rows()
    teacher_head = loss_head(models.answering.head, bench.VOCAB)
    module = StudentModule(models.student, vocab=bench.VOCAB, teacher_head=teacher_head, zero_stage=0)
    batch = response_batch(rows, [row.returns_T for row in rows], None, device=torch.device("cpu"))

    def evaluate():
        module.zero_grad()
        loss, statistics = module(batch, method)
        loss.backward()
        return loss.item(), statistics, {name: tensor.grad.clone() for name, tensor in module.named_parameters()}

    expected = evaluate()
    for side, pad_id, extra in (("left", bench.EOS, 0), ("left", 7, 1), ("right", bench.EOS, 1)):
        # A row without a response counts nothing and makes all others wide.
        padded = pad_rows(
            [*(row.prompt_ids for row in rows), *[[5] * 50] * extra],
            [*(row.response_ids for row in rows), *[[]] * extra],
            pad_id=pad_id,
            side=side,
        )
        where = padded.predicts_response_BT

        def over_padded(model, padded=padded, where=where):
            tensors = (padded.input_ids_BT, padded.attention_mask_BT, padded.position_ids_BT)
            return hidden_states(model, *tensors)[where]

        with torch.no_grad():
            seen_ND = over_padded(models.teacher)
        torch.testing.assert_close(batch.teacher_hidden_ND, seen_ND, rtol=1e-4, atol=1e-4)
        module.hidden = lambda batch, over_padded=over_padded: over_padded(models.student)
        loss, statistics, gradient = evaluate()
        assert loss == pytest.approx(expected[0], rel=1e-5)
        torch.testing.assert_close(statistics, expected[1], rtol=1e-4, atol=1e-4)
        for name, tensor in expected[2].items():
            size = max(1.0, float(tensor.abs().max()))
            torch.testing.assert_close(gradient[name], tensor, rtol=1e-4, atol=1e-5 * size)


RANK_PROGRAM = """
from pathlib import Path
import torch
from minillm_core.train.rounds import owned_rows
from tests.minillm_core.train import step_bench as bench

folder = Path(sys.argv[1])
found = {}
models = bench.make_models(folder / "teacher")
ranks = models.ranks
for name in bench.METHODS:
    method = bench.method_of(name)
    rows = bench.make_round(models, method, bench.make_rows()).next_rows()
    own = [rows[index] for index in owned_rows(len(rows), len(rows), ranks.rank, ranks.world)]
    blocks = torch.load(folder / "blocks.pt") if name == "reference" else None
    share = None if blocks is None else blocks[ranks.share(len(blocks))]
    # A budget of one row, and another number of micro-batches on each rank.
    metrics, gradient = bench.step_gradient(models, method, own, blocks=share, budget=16 + 40 * ranks.rank)
    found[name] = (metrics, gradient)
if ranks.main:
    torch.save(found, folder / "found.pt")
ranks.barrier()
ranks.close()
"""


def test_two_ranks_have_the_gradient_of_one(tmp_path):
    bench.make_models(tmp_path / "teacher")
    torch.save(corpus(), tmp_path / "blocks.pt")
    assert run_ranks(RANK_PROGRAM, tmp_path) == 0
    found = torch.load(tmp_path / "found.pt")
    models = bench.make_models(tmp_path / "teacher")
    for name in bench.METHODS:
        method = bench.method_of(name)
        rows = bench.make_round(models, method, bench.make_rows()).next_rows()
        blocks = corpus() if name == "reference" else None
        bench.assert_same(found[name], bench.step_gradient(models, method, rows, blocks=blocks))


def test_a_student_equal_to_its_teacher_has_nothing_to_learn(tmp_path):
    """Sampled from the mixture, weighted, and through both parts: zero up to float32's rounding."""
    different = bench.make_models(tmp_path)
    models = bench.Models(different.teacher, prune_layers(different.teacher, 4).requires_grad_(True))
    recipe = {"type": "minillm", "recipe": "paper", "rollouts_per_round": 8}
    method = resolve_method(JobSpec.model_validate(tiny_spec(method=recipe)))
    sizes = []
    for pair in (models, different):
        rows = bench.make_round(pair, method, bench.make_rows()).next_rows()
        metrics, gradient = bench.step_gradient(pair, method, rows)
        sizes.append(max(float(tensor.abs().max()) for tensor in gradient.values()))
        if pair is models:
            assert all(abs(metrics[name]) < 1e-5 for name in ("long_loss", "single_step_loss", "reverse_kl"))
            for row in rows:
                torch.testing.assert_close(row.weights_T, torch.ones_like(row.weights_T), rtol=0, atol=1e-4)
        pair.engine.close()
    assert sizes[0] < 1e-3 * sizes[1]


class TestOddRows:
    def test_one_token_and_no_eos(self, models):
        """Every response is cut after one token: nothing is still to come, so the long part is zero."""
        method = bench.method_of("minillm", whitening="off")
        round_ = bench.make_round(models, method, bench.make_rows(), width=1)
        rows = round_.next_rows()
        assert all(len(row.response_ids) == 1 for row in rows)
        assert any(row.response_ids != [bench.EOS] for row in rows)
        assert all(row.returns_T.tolist() == [0.0] for row in rows)
        metrics, gradient = bench.step_gradient(models, method, rows)
        assert metrics["long_loss"] == 0.0 and metrics["single_step_loss"] > 0.0
        assert all(torch.isfinite(tensor).all() for tensor in gradient.values())

    def test_the_first_eos_counts_and_nothing_after_it(self, models):
        """With every token an eos each response is one token long and not truncated."""
        method = bench.method_of("minillm")
        alone = bench.Ranks(0, 1, torch.device("cpu"))
        sampling = bench.Sampling(range(bench.VOCAB), bench.VOCAB, bench.WIDTH, batch_rows=4)
        round_, _, measured, _ = bench.collect_round(
            0,
            bench.make_rows(),
            method,
            student=bench.make_decoder(models.student),
            teacher=models.answering,
            sampling=sampling,
            rows_per_step=8,
            seed=5,
            ranks=alone,
        )
        assert [len(row.response_ids) for row in round_.rows.values()] == [1] * 8
        assert measured["truncated_fraction"] == 0.0 and measured["response_tokens"] == 1.0
        metrics, _ = bench.step_gradient(models, method, round_.next_rows())
        assert math.isfinite(metrics["loss"])

    def test_responses_without_eos_are_marked(self, models):
        method = bench.method_of("minillm")
        alone = bench.Ranks(0, 1, torch.device("cpu"))
        _, _, measured, _ = bench.collect_round(
            0,
            bench.make_rows(),
            method,
            student=bench.make_decoder(models.student),
            teacher=models.answering,
            sampling=bench.Sampling([bench.VOCAB + 1], bench.VOCAB, 4, batch_rows=4),
            rows_per_step=8,
            seed=5,
            ranks=alone,
        )
        assert measured["truncated_fraction"] == 1.0 and measured["response_tokens"] == 4.0

    @pytest.mark.parametrize("name", ["minillm", "kd", "gkd"])
    def test_an_empty_response_adds_nothing(self, models, name):
        method = bench.method_of(name)
        rows = bench.make_round(models, method, bench.make_rows()).next_rows()
        expected = bench.step_gradient(models, method, rows)
        none = torch.zeros(0)
        hidden = None if rows[0].teacher_hidden_TD is None else rows[0].teacher_hidden_TD[:0]
        if name == "kd":
            empty = TrainRow([5, bench.EOS, 6], [])
        else:
            empty = TrainRow([5, bench.EOS, 6], [], none, none, hidden, none, none)
        for budget in (16, 100_000):
            found = bench.step_gradient(models, method, [*rows, empty], budget=budget)
            bench.assert_same(found, expected)

    def test_a_dataset_row_without_response_in_a_sampled_round(self, models):
        rows = bench.make_rows()
        rows = [replace(row, response_ids=[]) if index % 2 else row for index, row in enumerate(rows)]
        method = bench.method_of("gkd")
        metrics, _ = bench.step_gradient(models, method, bench.make_round(models, method, rows).next_rows())
        assert math.isfinite(metrics["loss"])

    def test_a_round_of_nothing_but_empty_responses_is_no_division_by_zero(self, models):
        method = bench.method_of("kd")
        rows = [TrainRow([5, bench.EOS, 6], []) for _ in range(4)]
        metrics, gradient = bench.step_gradient(models, method, rows)
        assert metrics["loss"] == 0.0
        assert all(not tensor.any() for tensor in gradient.values())


class TestNotFinite:
    """A step that cannot be made: the loop gives the run up."""

    @pytest.fixture
    def step(self, tmp_path):
        models = bench.make_models(tmp_path)
        method = bench.method_of("minillm")
        rows = bench.make_round(models, method, bench.make_rows()).next_rows()

        def step():
            options = {"micro_batch_tokens": 60, "response_width": bench.WIDTH, "pad_id": bench.PAD}
            return train_step(
                models.engine, rows, None, method, models.answering, learning_rate=1e-3, ranks=models.ranks, **options
            )

        yield models.engine, rows, step
        models.engine.close()

    def test_of_a_loss_that_is_not_nothing_is_applied(self, step, monkeypatch):
        engine, rows, make = step
        applied = []
        monkeypatch.setattr(engine, "step", lambda rate: applied.append(rate) or 1.0)
        rows[3].weights_T[0] = math.nan
        assert make() is None and not applied

    @pytest.mark.parametrize("norm", [math.inf, math.nan])
    def test_a_gradient_that_is_not(self, step, monkeypatch, norm):
        engine, _, make = step
        monkeypatch.setattr(engine, "step", lambda rate: norm)
        assert make() is None

    def test_a_norm_that_is_not_known_is_no_fault(self, step, monkeypatch):
        engine, _, make = step
        monkeypatch.setattr(engine, "step", lambda rate: None)
        assert "grad_norm" not in make().metrics


class TestCollected:
    def collect(self, models, method, number=0):
        alone = bench.Ranks(0, 1, torch.device("cpu"))
        return bench.collect_round(
            number,
            bench.make_rows(),
            method,
            student=bench.make_decoder(models.student),
            teacher=models.answering,
            sampling=bench.Sampling([bench.EOS], bench.VOCAB, bench.WIDTH, batch_rows=8),
            rows_per_step=8,
            seed=5,
            ranks=alone,
        )

    @pytest.mark.parametrize("name", ["gkd", "minillm"])
    def test_a_method_that_needs_no_rewards_measures_them_in_part(self, models, name):
        """Every fourth position: the same tokens are drawn, and the measurements are those of their part."""
        method = bench.method_of(name, **({"teacher_mix_alpha": 0.0, "long_part": False} if name == "minillm" else {}))
        assert not method.uses_teacher_logp
        round_, health, measured, _ = self.collect(models, method)
        logs = []
        for row in round_.rows.values():
            if row.student_logp_T is not None:
                difference = (row.teacher_logp_T - row.student_logp_T).tolist()
                assert [math.isnan(log) for log in difference] == [at % 4 > 0 for at in range(len(difference))]
                logs += difference[::4]
                assert row.returns_T is None or not row.returns_T.any()
        assert len(logs) > 8
        assert measured["rollout_reward"] == pytest.approx(sum(logs) / len(logs), rel=1e-4)
        k3 = [math.exp(log) - 1 - log for log in logs]
        assert health.reverse_kl == pytest.approx(sum(k3) / len(k3), rel=1e-4)

    def test_the_teacher_draws_its_share_of_the_tokens(self, models):
        """The mean of log p - log q is -KL(q, p) over what the student draws, KL(p, q) over what the teacher does."""
        rewards = []
        for alpha in (0.0, 0.5, 0.999):
            *_, measured, _ = self.collect(models, bench.method_of("minillm", teacher_mix_alpha=alpha))
            rewards.append(measured["rollout_reward"])
        assert rewards[0] < -0.2 and rewards[2] > 0.2
        assert rewards[0] + 0.1 < rewards[1] < rewards[2] - 0.1

    def test_each_round_draws_anew(self, models):
        method = bench.method_of("minillm")
        drawn = [
            [row.response_ids for row in self.collect(models, method, number)[0].rows.values()] for number in (0, 1)
        ]
        assert all(first != second for first, second in zip(*drawn, strict=True))

    @pytest.mark.parametrize("temperature", [1.0, 1.7])
    @pytest.mark.parametrize("family", ["llama", "gemma2"])
    def test_log_probabilities_are_those_of_the_dense_models(self, tmp_path, family, temperature):
        """Both models' at the temperature, over the whole prompt with the eos inside it, and the weights of them."""
        models = bench.make_models(tmp_path, family)
        method = bench.method_of("minillm", temperature=temperature)
        round_ = bench.make_round(models, method, bench.make_rows())
        for row in round_.rows.values():
            ids = torch.tensor([[*row.prompt_ids, *row.response_ids]])
            start = len(row.prompt_ids) - 1
            taken = torch.tensor(row.response_ids)[:, None]
            for model, logp_T in ((models.student, row.student_logp_T), (models.teacher, row.teacher_logp_T)):
                with torch.no_grad():
                    logits_TV = model(ids).logits[0, start:-1, : bench.VOCAB] / temperature
                expected_T = logits_TV.log_softmax(dim=-1).gather(1, taken).squeeze(1)
                torch.testing.assert_close(logp_T, expected_T, rtol=1e-4, atol=1e-4)
            weights_T = importance_weights(row.student_logp_T, row.teacher_logp_T, alpha=method.teacher_mix_alpha)
            torch.testing.assert_close(row.weights_T, weights_T)
            assert (row.weights_T > 0).all() and (row.weights_T <= 1 / (1 - method.teacher_mix_alpha)).all()

    def test_the_health_of_a_round_is_that_of_its_tokens(self, models):
        method = bench.method_of("minillm")
        round_, health, measured, _ = bench.collect_round(
            0,
            bench.make_rows(),
            method,
            student=bench.make_decoder(models.student),
            teacher=models.answering,
            # Many tokens end a response, so that lengths differ.
            sampling=bench.Sampling(range(60), bench.VOCAB, bench.WIDTH, batch_rows=4),
            rows_per_step=8,
            seed=5,
            ranks=bench.Ranks(0, 1, torch.device("cpu")),
        )
        rows = list(round_.rows.values())
        assert len({len(row.response_ids) for row in rows}) > 2
        weights = [weight for row in rows for weight in row.weights_T.tolist()]
        logs = [
            p - q for row in rows for p, q in zip(row.teacher_logp_T.tolist(), row.student_logp_T.tolist(), strict=True)
        ]
        effective = sum(weights) ** 2 / (len(weights) * sum(weight**2 for weight in weights))
        assert 0.0 < effective < 0.99 and health.effective_sample_size == pytest.approx(effective, rel=1e-5)
        k3 = [weight * (math.exp(log) - 1 - log) for weight, log in zip(weights, logs, strict=True)]
        assert health.reverse_kl == pytest.approx(sum(k3) / len(k3), rel=1e-4)
        assert health.mean_length == pytest.approx(len(weights) / 8)
        repeated, grams = repetition([row.response_ids for row in rows])
        assert health.repetition == pytest.approx(repeated / grams)
        assert measured["rollout_reward"] == pytest.approx(sum(logs) / len(logs), rel=1e-4)
        assert measured["importance_weight"] == pytest.approx(sum(weights) / len(weights), rel=1e-5)

    @pytest.mark.parametrize("sharpness", [40.0, 400.0])
    def test_a_token_that_the_student_rules_out_is_a_finite_divergence(self, tmp_path, sharpness):
        """The teacher draws what the student gives exp(-80) and less: the weighted estimate is at most 1 / alpha."""
        models = bench.make_models(tmp_path)
        with torch.no_grad():
            models.student.get_output_embeddings().weight.mul_(sharpness)
        method = bench.method_of("minillm", teacher_mix_alpha=0.5)
        round_, health, *_ = self.collect(models, method)
        logs = [
            p - q
            for row in round_.rows.values()
            for p, q in zip(row.teacher_logp_T.tolist(), row.student_logp_T.tolist(), strict=True)
        ]
        assert max(logs) > (80 if sharpness == 40.0 else 710)
        # With d = log p - log q: p / m - w (1 + d), nothing of which is large.
        k3 = [1 / (0.5 + 0.5 * math.exp(-d)) - (1 + d) / (0.5 + 0.5 * math.exp(d)) if d < 700 else 2.0 for d in logs]
        assert health.reverse_kl == pytest.approx(sum(k3) / len(k3), rel=1e-6)
